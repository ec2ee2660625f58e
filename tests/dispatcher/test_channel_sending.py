"""Batches out: when they are cut, what a SendFn gets, marks, results, timeouts, limits, heartbeats."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest
import tenacity
from aiolimiter import AsyncLimiter

from dispatcher import (
    BadResults,
    Batch,
    BlockNewItems,
    Channel,
    ChannelOptions,
    ChannelStatistics,
    DropReason,
    InfiniteGrowth,
    OptionError,
    Rate,
    RetryAfter,
    RetryPolicy,
    StaleBatch,
    Status,
    UnknownPosition,
)
from dispatcher.testing import RecordingSender, ScriptedSink, jumping_asyncio, jumping_trio

Law1 = Callable[[Channel[Any, Any]], ChannelStatistics]
NATURAL = ChannelOptions[Any](batch_age_max=0)
ONCE = RetryPolicy(wait=tenacity.wait_none(), stop=tenacity.stop_after_attempt(2))

pytestmark = pytest.mark.usefixtures("no_leaks")


class TestCutting:
    async def test_by_count(self) -> None:
        """At batch_items_max, at once."""
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](batch_items_max=3, batch_age_max=60)) as channel:
            began = anyio.current_time()
            for number in range(7):
                await channel.send(number)
            await anyio.sleep(1)
            assert send.batches == [(0, 1, 2), (3, 4, 5)]
            assert {call.at for call in send.calls} == {began}

    async def test_by_age_from_the_first_item(self) -> None:
        """Later items do not put it off, and no tick rounds it."""
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](batch_age_max=1.0)) as channel:
            await anyio.sleep(0.7)
            began = anyio.current_time()
            for number in range(5):
                await channel.send(number)
                await anyio.sleep(0.3)
        assert send.calls[0].at - began == pytest.approx(1.0, abs=0.01)
        assert send.batches[0] == (0, 1, 2, 3)

    async def test_the_default_age(self) -> None:
        """0.2 s."""
        send = RecordingSender[int]()
        async with Channel(send) as channel:
            began = anyio.current_time()
            await channel.send(1)
            await channel.wait_idle()
        assert send.calls[0].at - began == pytest.approx(0.2, abs=0.01)

    async def test_never_by_age(self) -> None:
        """batch_age_max=inf waits for count, cut, flush or close."""
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](batch_age_max=math.inf)) as channel:
            await channel.send(1)
            await anyio.sleep(50_000)
            assert send.calls == []
        assert send.batches == [(1,)]

    async def test_natural_batching(self) -> None:
        """A lone item never waits; a busy sender finds a full batch."""
        send = RecordingSender[int](latency=1.0)
        async with Channel(send, ChannelOptions[int](batch_age_max=0, max_leases=1)) as channel:
            began = anyio.current_time()
            await channel.send(0)
            await anyio.sleep(0.1)
            for number in range(1, 6):
                await channel.send(number)
                await anyio.sleep(0.1)
        assert send.batches == [(0,), (1, 2, 3, 4, 5)]
        assert send.calls[0].at == pytest.approx(began)
        assert send.calls[1].at - began == pytest.approx(1.0)

    async def test_ids_grow_by_one_and_times_are_the_first_items(self) -> None:
        """And attempts begin at 1."""
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](batch_items_max=1)) as channel:
            for number in range(3):
                await anyio.sleep(1)
                await channel.send(number)
        assert [call.batch.id for call in send.calls] == [1, 2, 3]
        assert [call.batch.attempt for call in send.calls] == [1, 1, 1]
        assert [call.batch.created_at for call in send.calls] == [call.at for call in send.calls]


class TestLeases:
    async def test_at_most_so_many_at_once(self) -> None:
        """max_leases, and all of them when there is enough to do."""
        send = RecordingSender[int](latency=1.0)
        async with Channel(send, ChannelOptions[int](batch_items_max=1, max_leases=3)) as channel:
            for number in range(9):
                await channel.send(number)
            began = anyio.current_time()
            await channel.wait_idle()
            assert anyio.current_time() - began == pytest.approx(3.0)
        assert send.running_max == 3

    async def test_the_default_is_four(self) -> None:
        """Four."""
        send = RecordingSender[int](latency=1.0)
        async with Channel(send, ChannelOptions[int](batch_items_max=1)) as channel:
            await channel.consume(range(20))
        assert send.running_max == 4

    async def test_fifo_sends_the_oldest_data_first_always(self) -> None:
        """A batch that waits for its retry holds up all later ones."""
        policy = RetryPolicy(wait=tenacity.wait_fixed(10))
        send = ScriptedSink[int](failures=[None, ConnectionError(), ConnectionError()])
        options = ChannelOptions[int](
            batch_items_max=2, fifo=True, max_leases=1, retry=policy, on_error=None, batch_age_max=0
        )
        async with Channel(send, options) as channel:
            await channel.consume(range(8))
        assert send.delivered == list(range(8))
        assert send.batches == [(0, 1), (2, 3), (2, 3), (2, 3), (4, 5), (6, 7)]

    async def test_without_fifo_the_others_go_on(self) -> None:
        """A waiting batch holds no sender (law 3)."""
        policy = RetryPolicy(wait=tenacity.wait_fixed(10))
        send = ScriptedSink[int](failures=[ConnectionError()])
        options = ChannelOptions[int](batch_items_max=2, max_leases=1, retry=policy, on_error=None)
        async with Channel(send, options) as channel:
            began = anyio.current_time()
            await channel.consume(range(6))
            await anyio.sleep(1)
            assert send.delivered == [2, 3, 4, 5]
            await channel.flush()
            assert anyio.current_time() - began == pytest.approx(10.0, abs=0.1)
        assert send.delivered == [2, 3, 4, 5, 0, 1]


class TestOthers:
    """A SendFn need not suspend; everybody else has to run all the same."""

    async def test_beside_a_thousand_batches(self) -> None:
        """A backlog is worked off in turns."""
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async def send(batch: Batch[int]) -> None: ...

        options = ChannelOptions[int](batch_items_max=1, max_leases=1, full_behavior=InfiniteGrowth())
        async with Channel(send, options) as channel, anyio.create_task_group() as group:
            for number in range(1000):
                channel.send_nowait(number)
            group.start_soon(count)
            await channel.wait_idle()
            group.cancel_scope.cancel()
        assert turns >= 10

    async def test_beside_one_that_fails_at_once_for_ever(self, law_1: Law1) -> None:
        """It can still be cancelled."""
        attempts = 0

        async def send(batch: Batch[int]) -> None:
            nonlocal attempts
            attempts += 1
            raise ConnectionError

        options = ChannelOptions[int](
            batch_age_max=0,
            retry=RetryPolicy(wait=tenacity.wait_none(), stop=tenacity.stop_never),
            on_error=None,
            on_drop=None,
        )
        async with Channel(send, options) as channel:
            await channel.send(1)
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
            channel.cancel()
        assert attempts >= 10
        assert law_1(channel).dropped[DropReason.CANCELLED] == 1


class TestMarks:
    async def test_done_is_delivered_at_once(self, law_1: Law1) -> None:
        """Before the SendFn has ended; the item is out of the counts."""
        seen: list[tuple[int, int]] = []

        async def send(batch: Batch[str]) -> None:
            batch.done(0, 2)
            batch.done(0)
            await anyio.lowlevel.checkpoint()
            statistics = law_1(channel)
            seen.append((statistics.delivered, statistics.leased_items))
            assert receipts[0].outcome is not None
            assert receipts[1].outcome is None
            await anyio.sleep(1)

        receipts: list[Any] = []
        async with Channel(send, ChannelOptions[str](batch_items_max=3)) as channel:
            receipts += [channel.submit_nowait(item) for item in "abc"]
        assert seen == [(2, 1)]
        assert law_1(channel).delivered == 3

    async def test_done_frees_room(self, gate: Any) -> None:
        """For a sender that waits, while the SendFn runs on."""
        opened = anyio.Event()

        async def send(batch: Batch[int]) -> None:
            if 1 in batch:
                batch.done(1)
                await opened.wait()

        options = ChannelOptions[int](
            batch_items_max=2, batch_age_max=60, full_behavior=BlockNewItems(max_items=2)
        )
        async with Channel(send, options) as channel:
            await channel.send(0)
            await channel.send(1)
            with anyio.fail_after(1):
                await channel.send(2)
            with pytest.raises(anyio.WouldBlock):
                channel.send_nowait(3)
            opened.set()

    async def test_unmarked_items_share_the_fate_of_a_return(self, hooks: Any, law_1: Law1) -> None:
        """fail() is judged when the attempt ends; the others are delivered."""
        error = ConnectionError("item")

        async def send(batch: Batch[str]) -> None:
            if batch.attempt == 1:
                batch.fail(1, error)

        options = ChannelOptions[str](batch_items_max=3, retry=ONCE, **hooks.all)
        async with Channel(send, options) as channel:
            receipts = [channel.submit_nowait(item) for item in "abc"]
            for receipt in receipts:
                assert (await receipt.wait()).status is Status.DELIVERED
        ((batch, told),) = hooks.errors
        assert (batch.items, told, dict(batch.errors)) == (("b",), error, {0: error})
        assert law_1(channel).attempts == 2

    async def test_unmarked_items_share_the_fate_of_an_error(self, hooks: Any, law_1: Law1) -> None:
        """Marked ones are judged by their own; done ones are out of it."""
        whole, own = ConnectionError("whole"), ValueError("own")
        attempts: list[tuple[str, ...]] = []

        async def send(batch: Batch[str]) -> None:
            attempts.append(batch.items)
            if batch.attempt == 1:
                batch.done(0)
                batch.fail(1, own)
                raise whole

        options = ChannelOptions[str](batch_items_max=4, retry=ONCE, **hooks.all)
        async with Channel(send, options) as channel:
            receipts = [channel.submit_nowait(item) for item in "abcd"]
            outcomes = [await receipt.wait() for receipt in receipts]
        assert [outcome.status.value for outcome in outcomes] == [
            "delivered",
            "failed",
            "delivered",
            "delivered",
        ]
        assert outcomes[1].error is own
        assert attempts == [("a", "b", "c", "d"), ("c", "d")]
        ((batch, told),) = hooks.errors
        assert told is whole
        assert dict(batch.errors) == {0: own, 1: whole, 2: whole}
        assert hooks.dropped == [(("b",), DropReason.FAILED)]
        assert law_1(channel).failed == 1

    async def test_several_marks_are_told_as_a_group(self, hooks: Any) -> None:
        """The single mark as itself, more of them as a group."""

        async def send(batch: Batch[str]) -> None:
            batch.fail(0, ValueError(0))
            batch.fail(2, ValueError(2))

        options = ChannelOptions[str](batch_items_max=3, **hooks.all)
        async with Channel(send, options) as channel:
            await channel.consume("abc")
        ((batch, told),) = hooks.errors
        assert batch.items == ("a", "c")
        assert isinstance(told, ExceptionGroup)
        assert [error.args for error in told.exceptions] == [(0,), (2,)]

    async def test_marks_on_an_ended_attempt(self, law_1: Law1) -> None:
        """Raise StaleBatch and change nothing; the next attempt is another Batch."""
        kept: list[Batch[int]] = []

        async def send(batch: Batch[int]) -> None:
            kept.append(batch)
            if batch.attempt == 1:
                raise ConnectionError
            with pytest.raises(StaleBatch):
                kept[0].done(0)

        async with Channel(send, ChannelOptions[int](batch_age_max=0, retry=ONCE, on_error=None)) as channel:
            receipt = await channel.submit(1)
            await receipt.wait()
            before = law_1(channel)
            for mark in (lambda: kept[1].done(0), lambda: kept[1].fail(0, ValueError())):
                with pytest.raises(StaleBatch):
                    mark()
            assert law_1(channel) == before
        assert kept[0] is not kept[1]

    async def test_marks_that_make_no_sense(self, law_1: Law1) -> None:
        """A position there is not, an error that is none: refused, nothing marked."""

        async def send(batch: Batch[int]) -> None:
            for position in (2, -1, "0"):
                with pytest.raises(UnknownPosition):
                    batch.done(0, position)  # type: ignore[arg-type]
            with pytest.raises(UnknownPosition):
                batch.fail(2, ValueError())
            with pytest.raises(TypeError):
                batch.fail(0, "no error")  # type: ignore[arg-type]
            assert law_1(channel).delivered == 0
            batch.done(1)
            with pytest.raises(StaleBatch):
                batch.fail(1, ValueError())
            batch.fail(0, ValueError())
            batch.done(0)  # the mark is taken back

        async with Channel(send, ChannelOptions[int](batch_items_max=2)) as channel:
            await channel.consume([0, 1])
        assert law_1(channel).delivered == 2

    async def test_all_marked_done_and_then_an_error(self, hooks: Any, law_1: Law1) -> None:
        """Nothing failed: nothing is told, nothing is tried again."""

        async def send(batch: Batch[int]) -> None:
            batch.done(*range(len(batch)))
            raise ConnectionError

        async with Channel(send, ChannelOptions[int](batch_age_max=0, **hooks.all)) as channel:
            await channel.call(1)
        assert hooks.log == ["drained"]
        assert law_1(channel).attempts == 1


class TestResults:
    async def test_each_item_gets_its_own(self) -> None:
        """call() unwraps it."""

        async def send(batch: Batch[int]) -> list[int]:
            return [item * item for item in batch]

        async with Channel(send, ChannelOptions[int](batch_items_max=3)) as channel:
            receipts = [channel.submit_nowait(item) for item in (2, 3, 4)]
            assert [(await receipt.wait()).unwrap() for receipt in receipts] == [4, 9, 16]
            assert await channel.call(5) == 25

    @pytest.mark.parametrize(
        "results",
        ["ab", b"ab", {"a": 1, "b": 2}, [1], [1, 2, 3], 5, {1, 2}, iter([1, 2])],
        ids=["str", "bytes", "dict", "short", "long", "int", "set", "iterator"],
    )
    async def test_bad_results(self, results: Any, hooks: Any, law_1: Law1) -> None:
        """Fail the unmarked items with BadResults, not retried, for the work is done."""

        async def send(batch: Batch[int]) -> Any:
            return results

        options = ChannelOptions[int](batch_items_max=2, **hooks.all)
        async with Channel(send, options) as channel:
            receipts = [channel.submit_nowait(item) for item in (0, 1)]
            outcomes = [await receipt.wait() for receipt in receipts]
        for outcome in outcomes:
            assert outcome.status is Status.FAILED
            assert isinstance(outcome.error, BadResults)
        assert law_1(channel).attempts == 1
        assert hooks.dropped == [((0, 1), DropReason.FAILED)]

    async def test_not_even_if_the_hook_asks_for_it(self, hooks: Any, law_1: Law1) -> None:
        """True answers ``retry=`` alone; there is nothing to repeat."""
        hooks.verdict = True

        async def send(batch: Batch[int]) -> Any:
            return "x"

        async with Channel(send, ChannelOptions[int](batch_age_max=0, **hooks.all)) as channel:
            assert isinstance((await channel.submit_nowait(1).wait()).error, BadResults)
        assert law_1(channel).attempts == 1

    async def test_not_looked_at_without_receipts(self, hooks: Any, law_1: Law1) -> None:
        """What nobody asked for may be anything."""

        async def send(batch: Batch[int]) -> Any:
            return "rows: 1"

        async with Channel(send, ChannelOptions[int](batch_age_max=0, **hooks.all)) as channel:
            await channel.send(1)
        assert law_1(channel).delivered == 1
        assert hooks.errors == []

    async def test_entries_of_failed_positions_are_ignored(self) -> None:
        """One entry per item of this attempt, whatever its fate."""

        async def send(batch: Batch[str]) -> Sequence[str]:
            if batch.attempt == 1:
                batch.fail(0, ConnectionError())
                return ["ignored", "B"]
            return [item.upper() for item in batch]

        options = ChannelOptions[str](batch_items_max=2, retry=ONCE, on_error=None)
        async with Channel(send, options) as channel:
            receipts = [channel.submit_nowait(item) for item in "ab"]
            assert [(await receipt.wait()).unwrap() for receipt in receipts] == ["A", "B"]

    async def test_receipts_of_a_batch_without_results_share_one_outcome(self) -> None:
        """Nothing is made per item that nobody asked for."""
        async with Channel(RecordingSender[int](), ChannelOptions[int](batch_items_max=2)) as channel:
            receipts = [channel.submit_nowait(item) for item in (0, 1)]
            one, two = [await receipt.wait() for receipt in receipts]
        assert one is two
        assert one.unwrap() is None


class TestTimeouts:
    async def test_past_it_the_attempt_failed(self, hooks: Any, law_1: Law1) -> None:
        """The SendFn is cancelled; TimeoutError is transient, so it is tried again."""
        cancelled: list[float] = []

        async def send(batch: Batch[int]) -> None:
            if batch.attempt == 1:
                try:
                    await anyio.sleep_forever()
                finally:
                    cancelled.append(anyio.current_time() - began)

        options = ChannelOptions[int](batch_age_max=0, send_timeout=3.0, retry=ONCE, **hooks.all)
        async with Channel(send, options) as channel:
            began = anyio.current_time()
            await channel.call(1)
        assert cancelled == [pytest.approx(3.0)]
        assert isinstance(hooks.errors[0][1], TimeoutError)
        assert "3" in str(hooks.errors[0][1])
        assert law_1(channel).attempts == 2

    async def test_returned_after_the_timeout_is_delivered(self, hooks: Any) -> None:
        """A SendFn's end beats our wish."""

        async def send(batch: Batch[int]) -> list[str]:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
            return ["late"]

        options = ChannelOptions[int](batch_age_max=0, send_timeout=1.0, **hooks.all)
        async with Channel(send, options) as channel:
            assert await channel.call(1) == "late"
        assert hooks.errors == []

    async def test_its_own_error_beats_the_timeout(self, hooks: Any) -> None:
        """What it raises on being cancelled is the attempt's error."""

        async def send(batch: Batch[int]) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError

        options = ChannelOptions[int](batch_age_max=0, send_timeout=1.0, **hooks.all)
        async with Channel(send, options) as channel:
            assert isinstance((await channel.submit_nowait(1).wait()).error, ValueError)

    async def test_per_attempt(self) -> None:
        """Not over them."""
        send = ScriptedSink[int](a=0.9, failures=[ConnectionError(), ConnectionError()])
        options = ChannelOptions[int](
            batch_age_max=0, send_timeout=1.0, on_error=None, retry=RetryPolicy(wait=tenacity.wait_fixed(5))
        )
        async with Channel(send, options) as channel:
            await channel.call(1)
        assert send.delivered == [1]


class Counting:
    """A limiter of somebody's own: one call at a time is asked of it, ever."""

    def __init__(self, *errors: Exception | None, takes: float = 0.0) -> None:
        self.errors = list(errors)
        self.takes = takes
        self.asked: list[float] = []
        self.inside = self.inside_max = 0

    async def acquire(self, amount: float = 1, /) -> None:
        """Take the time; raise the next error, if it is one."""
        assert amount == 1
        self.asked.append(anyio.current_time())
        self.inside += 1
        self.inside_max = max(self.inside_max, self.inside)
        try:
            await anyio.sleep(self.takes)
        finally:
            self.inside -= 1
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error


class TestLimits:
    async def test_rate_over_all_leases(self) -> None:
        """On both backends; retries pay, too."""
        send = ScriptedSink[int](failures=[None, ConnectionError()])
        options = ChannelOptions[int](
            batch_items_max=1, qps_limit=Rate(10), retry=RetryPolicy(wait=tenacity.wait_none()), on_error=None
        )
        async with Channel(send, options) as channel:
            await channel.consume(range(10))
        starts = [call.at for call in send.calls]
        assert len(starts) == 11
        assert starts[-1] - starts[0] == pytest.approx(1.0, abs=0.01)
        assert min(b - a for a, b in itertools.pairwise(starts)) >= 0.1 - 1e-6

    async def test_a_burst(self) -> None:
        """So many at once after a pause, then at the rate."""
        send = RecordingSender[int]()
        options = ChannelOptions[int](batch_items_max=1, qps_limit=Rate(10, burst=5), max_leases=10)
        async with Channel(send, options) as channel:
            began = anyio.current_time()
            await channel.consume(range(8))
        assert [round(call.at - began, 1) for call in send.calls] == [0, 0, 0, 0, 0, 0.1, 0.2, 0.3]

    async def test_aiolimiter_as_it_is(self, on_trio: bool) -> None:
        """On asyncio; under trio it is refused by name, and nothing was opened."""
        send = RecordingSender[int]()
        channel = Channel(send, ChannelOptions[int](batch_items_max=1, qps_limit=AsyncLimiter(1, 0.5)))
        if on_trio:
            with pytest.raises(OptionError, match="has to run on trio"):
                async with channel:
                    pass
            return
        async with channel:
            await channel.consume(range(5))
        assert send.calls[-1].at - send.calls[0].at == pytest.approx(2.0, abs=0.1)

    async def test_one_task_acquires_then_takes_what_is_due_by_then(self) -> None:
        """Items that come while it waits ride along, to the full batch."""
        limiter = Counting(takes=1.0)
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](batch_age_max=0, qps_limit=limiter)) as channel:
            await channel.send(0)
            await anyio.sleep(0.5)
            for number in range(1, 150):
                await channel.send(number)
        assert [len(batch) for batch in send.batches] == [100, 50]
        assert limiter.inside_max == 1

    async def test_one_token_at_most_is_kept(self) -> None:
        """When what it was for is gone, the next batch uses it, and nobody asked twice."""
        limiter = Counting(takes=1.0)
        send = RecordingSender[int]()
        options = ChannelOptions[int](batch_age_max=0, qps_limit=limiter, on_drop=None)
        async with Channel(send, options) as channel:
            receipt = await channel.submit(0)
            await anyio.sleep(0.5)
            assert receipt.cancel()
            await anyio.sleep(10)
            assert len(limiter.asked) == 1
            began = anyio.current_time()
            await channel.call(1)
            assert anyio.current_time() == began
        assert len(limiter.asked) == 1

    async def test_a_limiter_that_raises_is_logged_and_asked_again(self, caplog: Any) -> None:
        """After a second; nothing is lost."""
        limiter = Counting(OSError("redis is down"), OSError(), None)
        async with Channel(
            RecordingSender[int](), ChannelOptions[int](batch_age_max=0, qps_limit=limiter)
        ) as channel:
            began = anyio.current_time()
            await channel.call(1)
            assert anyio.current_time() - began == pytest.approx(2.0)
        assert len(limiter.asked) == 3
        assert "the limiter raised" in caplog.text
        assert "redis is down" in caplog.text

    async def test_an_idle_channel_asks_for_nothing(self) -> None:
        """Tokens are for batches that are due."""
        limiter = Counting()
        options = ChannelOptions[int](batch_age_max=5, qps_limit=limiter)
        async with Channel(RecordingSender[int](), options) as channel:
            await channel.send(1)
            await anyio.sleep(4)
            assert limiter.asked == []

    async def test_cancel_while_it_waits_for_a_token(self, law_1: Law1) -> None:
        """Ends at once."""
        options = ChannelOptions[int](batch_age_max=0, qps_limit=Counting(takes=1e4), on_drop=None)
        with anyio.fail_after(10):
            async with Channel(RecordingSender[int](), options) as channel:
                await channel.send(1)
                await anyio.sleep(1)
                channel.cancel()
        assert law_1(channel).dropped[DropReason.CANCELLED] == 1

    async def test_two_channels_may_share_a_rate(self) -> None:
        """One event loop's."""
        rate = Rate(10)
        sends = [RecordingSender[int](), RecordingSender[int]()]
        options = ChannelOptions[int](batch_items_max=1, qps_limit=rate)
        async with Channel(sends[0], options) as one, Channel(sends[1], options) as two:
            await one.consume(range(5))
            await two.consume(range(5))
        starts = sorted(call.at for send in sends for call in send.calls)
        assert starts[-1] - starts[0] == pytest.approx(0.9, abs=0.01)


class TestHeartbeats:
    async def test_while_nothing_happens(self, hooks: Any, law_1: Law1) -> None:
        """An empty, synthetic batch, every 1 / min_qps seconds; in no item count."""
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](min_qps=2.0, **hooks.all)) as channel:
            began = anyio.current_time()
            await anyio.sleep(2.2)
        assert [round(call.at - began, 3) for call in send.calls] == [0.5, 1.0, 1.5, 2.0]
        assert all(call.batch.synthetic and call.items == () for call in send.calls)
        statistics = law_1(channel)
        assert (statistics.heartbeats, statistics.accepted, statistics.batches) == (4, 0, 0)
        assert statistics.attempts == 4
        assert hooks.log == ["drained"]

    async def test_counted_from_the_end_of_the_last_batch(self) -> None:
        """Nothing buffered or in flight for that long."""
        send = RecordingSender[int](latency=3.0)
        async with Channel(send, ChannelOptions[int](batch_age_max=0, min_qps=1.0)) as channel:
            began = anyio.current_time()
            await channel.send(1)
            await anyio.sleep(4.5)
        assert [(round(call.at - began, 1), call.batch.synthetic) for call in send.calls] == [
            (0, False),
            (4.0, True),
        ]

    async def test_through_the_limit(self) -> None:
        """Never above it, and a real batch that comes meanwhile uses the token."""
        limiter = Counting(takes=5.0)
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](min_qps=1.0, qps_limit=limiter)) as channel:
            await anyio.sleep(2)
            await channel.send(1)
            await anyio.sleep(5)
        assert [call.batch.synthetic for call in send.calls] == [False]

    async def test_its_errors_are_handled_like_others(self, hooks: Any) -> None:
        """Told to on_error, tried again by the policy, dropped when the channel closes."""
        send = ScriptedSink[int](failures=[ConnectionError(), None])
        options = ChannelOptions[int](
            min_qps=1.0, retry=RetryPolicy(wait=tenacity.wait_fixed(0.25)), **hooks.all
        )
        async with Channel(send, options) as channel:
            began = anyio.current_time()
            await anyio.sleep(1.5)
            assert [round(call.at - began, 2) for call in send.calls] == [1.0, 1.25]
            assert [call.batch.attempt for call in send.calls] == [1, 2]
            assert channel.statistics().heartbeats == 1
        assert len(hooks.errors) == 1
        assert hooks.errors[0][0].synthetic

    async def test_a_waiting_one_is_dropped_by_close(self, hooks: Any) -> None:
        """Nobody waits for a heartbeat's retry."""
        send = ScriptedSink[int](failures=[ConnectionError()])
        options = ChannelOptions[int](
            min_qps=1.0, retry=RetryPolicy(wait=tenacity.wait_fixed(250)), **hooks.all
        )
        async with Channel(send, options) as channel:
            await anyio.sleep(1.5)
            began = anyio.current_time()
            await channel.aclose()
            assert anyio.current_time() == began
        assert len(send.calls) == 1
        assert hooks.drops == []


class TestHolding:
    async def test_retry_after_holds_the_whole_channel(self, hooks: Any) -> None:
        """Not just the batch that was told so."""
        send = ScriptedSink[int](failures=[RetryAfter(10)])
        options = ChannelOptions[int](
            batch_items_max=1, max_leases=2, retry=RetryPolicy(wait=tenacity.wait_none()), **hooks.all
        )
        async with Channel(send, options) as channel:
            began = anyio.current_time()
            await channel.send(0)
            await anyio.sleep(1)
            await channel.consume(range(1, 5))
            await channel.flush()
        assert [round(call.at - began) for call in send.calls] == [0, 10, 10, 10, 10, 10]

    async def test_never_shorter_than_the_policy_says(self) -> None:
        """The batch waits for the longer of the two, the others for what was asked."""
        send = ScriptedSink[int](failures=[RetryAfter(5)])
        options = ChannelOptions[int](
            batch_items_max=1, retry=RetryPolicy(wait=tenacity.wait_fixed(20)), on_error=None
        )
        async with Channel(send, options) as channel:
            began = anyio.current_time()
            await channel.send(0)
            await anyio.sleep(1)
            await channel.send(1)
            await channel.flush()
        assert [(round(call.at - began), call.items) for call in send.calls] == [
            (0, (0,)),
            (5, (1,)),
            (20, (0,)),
        ]

    async def test_in_a_mark_and_in_a_group(self) -> None:
        """Wherever it stands."""

        async def send(batch: Batch[int]) -> None:
            starts.append(anyio.current_time())
            if len(starts) == 1:
                batch.fail(0, RetryAfter(7))
            if len(starts) == 2:
                raise group

        group = ExceptionGroup("both", [ConnectionError(), RetryAfter(9)])
        starts: list[float] = []
        options = ChannelOptions[int](
            batch_age_max=0, retry=RetryPolicy(wait=tenacity.wait_none()), on_error=None
        )
        async with Channel(send, options) as channel:
            await channel.call(1)
        assert [round(at - starts[0]) for at in starts] == [0, 7, 16]

    async def test_also_without_retries(self) -> None:
        """The receiver wants to be left alone, whatever becomes of this batch."""
        send = ScriptedSink[int](failures=[RetryAfter(10)])
        options = ChannelOptions[int](batch_items_max=1, retry=None, on_error=None, on_drop=None)
        async with Channel(send, options) as channel:
            began = anyio.current_time()
            assert (await channel.submit_nowait(0).wait()).status is Status.FAILED
            await channel.call(1)
            assert anyio.current_time() - began == pytest.approx(10)


class TestKeys:
    async def test_the_same_while_the_items_are_the_same(self, hooks: Any) -> None:
        """New once some left; unique over channels; meta and id stay (law 4)."""

        async def send(batch: Batch[str]) -> None:
            seen.append((batch.id, batch.key, batch.items, dict(batch.meta)))
            batch.meta["attempts"] = batch.attempt
            if batch.attempt == 1:
                raise ConnectionError
            if batch.attempt == 2:
                batch.done(0)
                raise ConnectionError

        seen: list[tuple[int, str, tuple[str, ...], dict[str, int]]] = []
        options = ChannelOptions[str](
            batch_items_max=2, retry=RetryPolicy(wait=tenacity.wait_none()), on_error=None
        )
        for _ in range(2):
            async with Channel(send, options) as channel:
                await channel.consume("ab")
        one, two, three, *again = seen
        assert one[:3] == two[:3]
        assert three[0] == one[0]
        assert three[1] != one[1]
        assert three[2] == ("b",)
        assert [entry[3] for entry in (one, two, three)] == [{}, {"attempts": 1}, {"attempts": 2}]
        assert len({entry[1] for entry in (one, three, again[0], again[2])}) == 4

    async def test_retries_never_merge(self) -> None:
        """Due together, they leave one by one as they were cut."""
        send = ScriptedSink[int](failures=[ConnectionError()] * 3)
        options = ChannelOptions[int](
            batch_items_max=2,
            max_leases=3,
            retry=RetryPolicy(wait=tenacity.wait_fixed(10)),
            on_error=None,
        )
        async with Channel(send, options) as channel:
            await channel.consume(range(6))
            await anyio.sleep(5)
            await channel.send(6)
        assert sorted(send.batches[:3]) == [(0, 1), (2, 3), (4, 5)]
        assert sorted(send.batches[4:]) == [(0, 1), (2, 3), (4, 5)]


def test_backends_of_the_test_kit() -> None:
    """What the README shows."""
    assert jumping_asyncio()[0] == "asyncio"
    assert jumping_trio()[0] == "trio"
