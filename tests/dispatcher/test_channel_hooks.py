"""Hooks: what they hear, when, in which order; what they may do; what happens when they raise."""

import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import tenacity

from dispatcher import (
    Batch,
    BlockNewItems,
    Channel,
    ChannelOptions,
    ChannelStatistics,
    DropOldestBatch,
    DropReason,
    OptionError,
    RetryPolicy,
    Status,
    TransientError,
    handlers,
)
from dispatcher.testing import RecordingSender, ScriptedSink

Law1 = Callable[[Channel[Any, Any]], ChannelStatistics]
AT_ONCE = RetryPolicy(wait=tenacity.wait_none(), stop=tenacity.stop_after_attempt(3))

pytestmark = pytest.mark.usefixtures("no_leaks")


class TestOnError:
    async def test_once_per_attempt_with_what_failed(self, hooks: Any) -> None:
        """Each attempt's own Batch."""
        errors = [ConnectionError(1), ConnectionError(2)]
        send = ScriptedSink[int](failures=errors)
        options = ChannelOptions[int](batch_items_max=2, retry=AT_ONCE, **hooks.all)
        async with Channel(send, options) as channel:
            await channel.consume([0, 1])
        assert [(batch.items, batch.attempt, error) for batch, error in hooks.errors] == [
            ((0, 1), 1, errors[0]),
            ((0, 1), 2, errors[1]),
        ]
        assert [batch.error for batch, _ in hooks.errors] == errors
        assert dict(hooks.errors[0][0].errors) == {0: errors[0], 1: errors[0]}

    async def test_true_answers_retry_alone(self, hooks: Any, law_1: Law1) -> None:
        """An error that the policy would not try again is; ``stop=`` still holds."""
        hooks.verdict = True
        send = ScriptedSink[int](failures=[ValueError(number) for number in range(9)])
        options = ChannelOptions[int](batch_age_max=0, retry=AT_ONCE, **hooks.all)
        async with Channel(send, options) as channel:
            assert (await channel.submit_nowait(1).wait()).status is Status.FAILED
        assert law_1(channel).attempts == 3

    async def test_false_fails_them(self, hooks: Any, law_1: Law1) -> None:
        """Though the policy would try again."""
        hooks.verdict = False
        send = ScriptedSink[int](failures=[ConnectionError()])
        options = ChannelOptions[int](batch_age_max=0, **hooks.all)
        async with Channel(send, options) as channel:
            assert (await channel.submit_nowait(1).wait()).status is Status.FAILED
        assert law_1(channel).attempts == 1

    async def test_none_lets_the_policy_judge_each_item_by_its_own_error(self, hooks: Any) -> None:
        """Refused items are FAILED at once; the rest stays one batch."""

        async def send(batch: Batch[str]) -> None:
            attempts.append(batch.items)
            if batch.attempt == 1:
                batch.fail(0, ValueError())
                batch.fail(1, ConnectionError())
                batch.fail(2, TransientError())

        attempts: list[tuple[str, ...]] = []
        options = ChannelOptions[str](batch_items_max=4, retry=AT_ONCE, **hooks.all)
        async with Channel(send, options) as channel:
            receipts = [channel.submit_nowait(item) for item in "abcd"]
            assert (await receipts[0].wait()).status is Status.FAILED
            assert (await receipts[3].wait()).status is Status.DELIVERED
        assert attempts == [("a", "b", "c", "d"), ("b", "c")]

    async def test_due_at_the_latest_delay(self) -> None:
        """The rest of a batch waits for the item that has to wait longest."""

        async def send(batch: Batch[str]) -> None:
            starts.append(anyio.current_time())
            if batch.attempt == 1:
                batch.fail(0, TransientError("3"))
                batch.fail(1, TransientError("8"))

        starts: list[float] = []
        policy = RetryPolicy(wait=tenacity.wait_exception(lambda error: float(str(error))))
        options = ChannelOptions[str](batch_items_max=2, retry=policy, on_error=None)
        async with Channel(send, options) as channel:
            await channel.consume("ab")
        assert starts[1] - starts[0] == pytest.approx(8.0)

    async def test_one_that_raises_is_logged_and_says_nothing(self, caplog: Any, law_1: Law1) -> None:
        """The policy judges; the loop lives."""

        def on_error(batch: Batch[int], error: Exception) -> bool:
            raise LookupError("hook")  # noqa: EM101

        send = ScriptedSink[int](failures=[ConnectionError()])
        options = ChannelOptions[int](batch_age_max=0, retry=AT_ONCE, on_error=on_error)
        async with Channel(send, options) as channel:
            assert (await channel.submit_nowait(1).wait()).status is Status.DELIVERED
        assert "LookupError" in caplog.text
        assert law_1(channel).attempts == 2

    async def test_the_default_logs(self, caplog: Any) -> None:
        """A warning with type and text of the error."""
        send = ScriptedSink[int](failures=[ConnectionError("reset")])
        async with Channel(send, ChannelOptions[int](batch_age_max=0)) as channel:
            await channel.call(1)
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "ConnectionError: reset" in record.getMessage()

    async def test_a_policy_that_raises(self, caplog: Any, law_1: Law1, hooks: Any) -> None:
        """The batch fails with its own error; the policy's is logged."""

        def wait(state: Any) -> float:
            raise LookupError("policy")  # noqa: EM101

        error = ConnectionError()
        send = ScriptedSink[int](failures=[error])
        options = ChannelOptions[int](batch_age_max=0, retry=RetryPolicy(wait=wait), **hooks.all)
        async with Channel(send, options) as channel:
            assert (await channel.submit_nowait(1).wait()).error is error
            await channel.send(2)
        assert "the retry policy raised" in caplog.text
        assert law_1(channel).failed == 1


class TestOnDrop:
    async def test_given_up_is_told_as_failed(self, hooks: Any, law_1: Law1) -> None:
        """The ancestor's batch vanished in silence when its policy stopped."""
        send = ScriptedSink[int](failures=[ConnectionError(number) for number in range(3)])
        options = ChannelOptions[int](batch_items_max=2, retry=AT_ONCE, **hooks.all)
        async with Channel(send, options) as channel:
            await channel.consume([0, 1])
        assert hooks.dropped == [((0, 1), DropReason.FAILED)]
        batch = hooks.drops[0][0]
        assert isinstance(batch.error, ConnectionError)
        assert batch.attempt == 3
        assert law_1(channel).failed == 2
        assert law_1(channel).dropped_items == 0

    async def test_refused_items_alone_are_told(self, hooks: Any) -> None:
        """With the batch that they came from, as it was then."""

        async def send(batch: Batch[str]) -> None:
            batch.meta["seen"] = True
            if batch.attempt == 1:
                batch.fail(1, ValueError("b"))

        options = ChannelOptions[str](batch_items_max=3, **hooks.all)
        async with Channel(send, options) as channel:
            await channel.consume("abc")
        ((batch, reason),) = hooks.drops
        assert (batch.items, reason) == (("b",), DropReason.FAILED)
        assert dict(batch.errors).keys() == {0}
        assert batch.meta == {"seen": True}

    async def test_an_item_that_its_owner_withdrew_is_told_too(self, hooks: Any) -> None:
        """Everything that leaves undelivered is."""
        async with Channel(RecordingSender[int](), ChannelOptions[int](**hooks.all)) as channel:
            channel.submit_nowait(1).cancel()
            assert hooks.dropped == [((1,), DropReason.CANCELLED)]

    async def test_state_is_final_when_it_runs(self, law_1: Law1) -> None:
        """It sees counts and outcomes as they stay."""
        seen: list[tuple[int, int, bool]] = []

        def on_drop(batch: Batch[int], reason: DropReason) -> None:
            statistics = law_1(channel)
            seen.append((statistics.failed, statistics.live, receipt.outcome is not None))

        send = ScriptedSink[int](failures=[ValueError()])
        options = ChannelOptions[int](batch_age_max=0, on_error=None, on_drop=on_drop)
        async with Channel(send, options) as channel:
            receipt = channel.submit_nowait(1)
            await channel.wait_idle()
        assert seen == [(1, 0, True)]

    async def test_on_the_stack_of_what_caused_it(self, gate: Any, hooks: Any) -> None:
        """A send that pushes something out has told it when it returns."""
        options = ChannelOptions[int](
            batch_items_max=1, max_leases=1, full_behavior=DropOldestBatch(max_live_items=2), **hooks.all
        )
        async with Channel(gate, options) as channel:
            await channel.send(0)
            await anyio.sleep(1)
            channel.send_nowait(1)
            channel.send_nowait(2)
            assert hooks.dropped == [((1,), DropReason.FULL)]
            gate.open()

    async def test_may_send_and_what_that_causes_waits_for_the_next_turn(self, gate: Any) -> None:
        """Hooks that send deadlocked the ancestor; here they never nest."""
        log: list[str] = []
        depth = 0

        def on_drop(batch: Batch[int], reason: DropReason) -> None:
            nonlocal depth
            depth += 1
            log.append(f"{batch[0]} at {depth}")
            if batch[0] < 5:
                channel.send_nowait(batch[0] + 2)  # pushes out another
            depth -= 1

        options = ChannelOptions[int](
            batch_items_max=1,
            max_leases=1,
            full_behavior=DropOldestBatch(max_live_items=2),
            on_drop=on_drop,
        )
        async with Channel(gate, options) as channel:
            await channel.send(0)
            await anyio.sleep(1)
            channel.send_nowait(1)
            channel.send_nowait(2)
            assert log == ["1 at 1"]
            await anyio.sleep(1)
            gate.open()
        assert len(log) >= 3
        assert all(line.endswith("at 1") for line in log)

    async def test_into_the_same_channel_for_ever(self, gate: Any) -> None:
        """A hook that feeds itself keeps nobody else from running, and ends with the channel."""

        def on_drop(batch: Batch[int], reason: DropReason) -> None:
            channel.send_nowait(batch[0] + 1)

        options = ChannelOptions[int](
            batch_items_max=1, max_leases=1, full_behavior=DropOldestBatch(max_live_items=2), on_drop=on_drop
        )
        async with Channel(gate, options) as channel:
            for number in range(5):
                await channel.send(number)
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            gate.open()
            channel.cancel()
        assert channel.drained

    async def test_one_that_raises_is_logged(self, caplog: Any, law_1: Law1) -> None:
        """The others still run, and the loop lives."""

        def on_drop(batch: Batch[int], reason: DropReason) -> None:
            raise LookupError("hook")  # noqa: EM101

        async with Channel(RecordingSender[int](), ChannelOptions[int](on_drop=on_drop)) as channel:
            for receipt in [channel.submit_nowait(number) for number in range(3)]:
                assert receipt.cancel()
            await channel.call(5)
        assert caplog.text.count("LookupError: hook") == 3
        assert law_1(channel).delivered == 1

    async def test_the_default_logs_by_reason(self, caplog: Any) -> None:
        """What was given up is an error."""
        caplog.set_level(logging.DEBUG, "dispatcher")
        send = ScriptedSink[int](failures=[ValueError()])
        async with Channel(send, ChannelOptions[int](batch_age_max=0)) as channel:
            await channel.send(1)
            await channel.wait_idle()
            channel.submit_nowait(2).cancel()
        assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "WARNING"]

    @pytest.mark.parametrize("hook", ["on_error", "on_drop", "flush", "on_drained"])
    async def test_beyond_exception_out_of_a_hook(self, hook: str, law_1: Law1) -> None:
        """Cancels the channel, and leaves the block as itself."""

        class Stop(BaseException):
            pass

        stop = Stop()

        class Hook:
            def __call__(self, *args: object) -> None:
                if hook in ("on_error", "on_drop", "on_drained"):
                    raise stop

            def flush(self) -> None:
                if hook == "flush":
                    raise stop

        def quiet(*args: object) -> None:
            pass

        options: ChannelOptions[int] = ChannelOptions(
            batch_age_max=0,
            retry=None,
            on_error=Hook() if hook == "on_error" else quiet,
            on_drop=Hook() if hook in ("on_drop", "flush") else quiet,
            on_drained=Hook() if hook == "on_drained" else None,
        )
        send = ScriptedSink[int](failures=[ConnectionError()])
        with pytest.raises(Stop) as caught:
            async with Channel(send, options) as channel:
                receipt = channel.submit_nowait(1)
                await channel.wait_idle()
                if hook in ("on_error", "on_drop"):
                    await anyio.sleep_forever()
        assert caught.value is stop
        assert receipt.outcome is not None
        assert channel.drained
        assert law_1(channel).live == 0


class TestTheEnd:
    async def test_flush_then_drained_each_once(self, law_1: Law1) -> None:
        """After the last drop, before wait_drained returns."""
        log: list[str] = []

        class Drops:
            def __call__(self, batch: Batch[int], reason: DropReason) -> None:
                log.append(f"drop {list(batch)}")

            def flush(self) -> None:
                log.append("flush")

        async def waits() -> None:
            await channel.wait_drained()
            log.append("wait_drained")

        options = ChannelOptions[int](on_drop=Drops(), on_drained=lambda: log.append("drained"))
        send = RecordingSender[int](latency=1.0)
        async with Channel(send, options) as channel, anyio.create_task_group() as group:
            group.start_soon(waits)
            await channel.consume([1, 2])
            await anyio.sleep(1)
            await channel.send(3)
            channel.cancel()
            channel.close()
            await channel.aclose()
        assert log[-3:] == ["flush", "drained", "wait_drained"]
        assert log.count("flush") == log.count("drained") == 1

    async def test_drops_that_hooks_cause_come_before(self) -> None:
        """Nothing is told after the end."""
        log: list[str] = []

        class Drops:
            def __call__(self, batch: Batch[int], reason: DropReason) -> None:
                log.append(f"drop {batch[0]}")
                if batch[0] == 0:
                    receipts[1].cancel()

            def flush(self) -> None:
                log.append("flush")

        options = ChannelOptions[int](batch_items_max=1, batch_age_max=60, on_drop=Drops())
        receipts: list[Any] = []
        async with Channel(RecordingSender[int](latency=9.0), options) as channel:
            receipts += [channel.submit_nowait(number) for number in range(2)]
            receipts[0].cancel()
        assert log == ["drop 0", "drop 1", "flush"]

    async def test_hooks_at_the_end_that_raise(self, caplog: Any) -> None:
        """Logged; the channel is drained all the same."""

        class Drops:
            def __call__(self, batch: Batch[int], reason: DropReason) -> None: ...

            def flush(self) -> None:
                raise LookupError("flush")  # noqa: EM101

        def drained() -> None:
            raise LookupError("drained")  # noqa: EM101

        async with Channel(
            RecordingSender[int](), ChannelOptions[int](on_drop=Drops(), on_drained=drained)
        ) as channel:
            await channel.send(1)
        assert channel.drained
        assert "flush" in caplog.text
        assert "drained" in caplog.text

    async def test_on_drained_may_use_the_channel(self) -> None:
        """Closed means closed, and a second end does nothing."""
        caught: list[BaseException] = []

        def drained() -> None:
            channel.cancel()
            channel.close()
            try:
                channel.send_nowait(1)
            except anyio.ClosedResourceError as error:
                caught.append(error)

        async with Channel(RecordingSender[int](), ChannelOptions[int](on_drained=drained)) as channel:
            await channel.send(1)
        assert len(caught) == 1


class TestWhatHooksMayDo:
    @pytest.mark.parametrize("act", ["cancel", "close", "cut", "statistics"])
    @pytest.mark.parametrize("hook", ["on_error", "on_drop"])
    async def test_calls_that_do_not_wait(self, act: str, hook: str, law_1: Law1) -> None:
        """From either hook, in the middle of a step."""

        def acts(*args: object) -> None:
            getattr(channel, act)()

        def quiet(*args: object) -> None:
            pass

        options: ChannelOptions[int] = ChannelOptions(
            batch_items_max=2,
            max_leases=1,
            retry=AT_ONCE,
            on_error=acts if hook == "on_error" else quiet,
            on_drop=acts if hook == "on_drop" else quiet,
            full_behavior=BlockNewItems(max_items=4),
        )
        send = ScriptedSink[int](failures=[ConnectionError(number) for number in range(5)])
        with anyio.fail_after(100):
            async with Channel(send, options) as channel:
                for number in range(12):
                    try:
                        await channel.send(number)
                    except anyio.ClosedResourceError:
                        break
        assert law_1(channel).live == 0

    async def test_async_hooks_are_refused(self) -> None:
        """Nobody would await them."""

        async def hook(*args: object) -> None: ...

        class Callable_:
            async def __call__(self, *args: object) -> None: ...

        class Flushes:
            def __call__(self, *args: object) -> None: ...

            async def flush(self) -> None: ...

        for name in ("on_error", "on_drop", "on_drained"):
            for value in (hook, Callable_()):
                with pytest.raises(OptionError, match=f"{name} has to be a plain function"):
                    ChannelOptions(**{name: value})
        with pytest.raises(OptionError, match="on_drop"):
            ChannelOptions(on_drop=Flushes())


class TestReadyMade:
    async def test_quiet(self, caplog: Any) -> None:
        """Says nothing, of either kind."""
        caplog.set_level(logging.DEBUG, "dispatcher")
        send = ScriptedSink[int](failures=[ValueError()])
        options = ChannelOptions[int](batch_age_max=0, on_error=handlers.quiet, on_drop=handlers.quiet)
        async with Channel(send, options) as channel:
            await channel.send(1)
        assert caplog.records == []

    async def test_summarized_says_the_rest_at_the_end(self, caplog: Any) -> None:
        """One line for many drops, and one when drained."""
        caplog.set_level(logging.DEBUG, "dispatcher")
        clock = [0.0]
        on_drop = handlers.summarized(60.0, clock=lambda: clock[0])
        options = ChannelOptions[int](on_drop=on_drop)
        async with Channel(RecordingSender[int](), options) as channel:
            for number in range(10):
                channel.submit_nowait(number).cancel()
            assert caplog.records == []
            clock[0] = 61.0
            channel.submit_nowait(11).cancel()
            channel.submit_nowait(12).cancel()
        lines = [record.getMessage() for record in caplog.records]
        assert ["11" in lines[0], "1" in lines[1], len(lines)] == [True, True, 2]

    async def test_report_into_a_stream(self) -> None:
        """Pairs of batch and error or reason; what does not fit is counted."""
        into, out = anyio.create_memory_object_stream[Any](2)
        report = handlers.report(into)
        send = ScriptedSink[int](failures=[ValueError(number) for number in range(3)])
        options = ChannelOptions[int](batch_items_max=1, max_leases=1, on_error=report, on_drop=None)
        async with Channel(send, options) as channel, into, out:
            await channel.consume(range(3))
            await channel.flush()
            assert [
                (batch.items, error.args) for batch, error in (out.receive_nowait(), out.receive_nowait())
            ] == [
                ((0,), (0,)),
                ((1,), (1,)),
            ]
        assert report.missed == 1

    async def test_dead_letters_into_another_channel(self, law_1: Law1) -> None:
        """A channel is a sink like any other; full, it costs the letter and not the channel."""
        letters = RecordingSender[Any]()
        small = ChannelOptions[Any](
            batch_items_max=2, batch_age_max=60, full_behavior=BlockNewItems(max_items=2)
        )
        async with Channel(letters, small) as dead:
            report = handlers.report(dead)
            send = ScriptedSink[int](failures=[ValueError(number) for number in range(3)])
            options = ChannelOptions[int](batch_items_max=1, max_leases=1, on_error=None, on_drop=report)
            async with Channel(send, options) as channel:
                await channel.consume(range(5))
        assert next((batch.items, reason) for batch, reason in letters.items) == ((0,), DropReason.FAILED)
        assert len(letters.items) + report.missed == 3
        assert law_1(channel).delivered == 2
