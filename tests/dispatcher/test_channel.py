"""A channel's life: opened, used, ended; misuse by name."""

import asyncio
import inspect
import pickle
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.abc
import pytest

from dispatcher import (
    Batch,
    BlockNewItems,
    BufferFull,
    Channel,
    ChannelEnded,
    ChannelMisuse,
    ChannelOptions,
    ChannelStatistics,
    DropReason,
    OptionError,
    Status,
    WouldDeadlock,
    process,
)
from dispatcher._coordinator import Coordinator
from dispatcher.testing import RecordingSender, jumping_asyncio

Law1 = Callable[[Channel[Any, Any]], ChannelStatistics]
NATURAL = ChannelOptions[Any](batch_age_max=0)

pytestmark = pytest.mark.usefixtures("no_leaks")


class TestTheBlock:
    async def test_leaving_drains(self, law_1: Law1) -> None:
        """Leaving normally sends what is there, the open batch at once, and waits for it."""
        send = RecordingSender[int](latency=1.0)
        async with Channel(send, ChannelOptions[int](batch_age_max=60)) as channel:
            for number in range(3):
                await channel.send(number)
            began = anyio.current_time()
        assert anyio.current_time() - began == pytest.approx(1.0, abs=0.1)  # not the batch's 60 s
        assert send.batches == [(0, 1, 2)]
        assert law_1(channel).delivered == 3
        assert channel.closed
        assert channel.drained

    async def test_an_exception_cancels_and_leaves_as_itself(self, gate: Any, hooks: Any) -> None:
        """What the block raises is never wrapped in a group."""
        error = ValueError("mine")
        with pytest.raises(ValueError) as caught:
            async with Channel(gate, ChannelOptions[int](batch_age_max=0, on_drop=hooks.on_drop)) as channel:
                leased = await channel.submit(1)
                await anyio.sleep(1)
                waiting = await channel.submit(2)
                channel.cut()
                raise error
        assert caught.value is error
        assert gate.cancelled >= 1
        assert [receipt.outcome and receipt.outcome.reason for receipt in (leased, waiting)] == [
            DropReason.CANCELLED,
            DropReason.CANCELLED,
        ]
        assert channel.drained

    async def test_a_cancelled_block_cancels(self, gate: Any) -> None:
        """A scope around the block that is cancelled ends the channel, and swallows its own cancellation."""
        with anyio.move_on_after(5) as scope:
            async with Channel(gate, NATURAL) as channel:
                receipt = await channel.submit(1)
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert receipt.outcome is not None
        assert receipt.outcome.reason is DropReason.CANCELLED

    async def test_a_deadline_around_the_draining(self, gate: Any) -> None:
        """The end of a normal block can be cut off, too."""
        with anyio.move_on_after(5) as scope:
            async with Channel(gate, NATURAL) as channel:
                receipt = await channel.submit(1)
        assert scope.cancelled_caught
        assert receipt.outcome is not None
        assert receipt.outcome.reason is DropReason.CANCELLED

    async def test_the_caller_is_not_cancelled_by_cancel(self, gate: Any) -> None:
        """`cancel()` ends the channel; the block runs on."""
        async with Channel(gate, NATURAL) as channel:
            await channel.send(1)
            await anyio.sleep(1)
            channel.cancel()
            await anyio.sleep(1)
            ran_on = True
        assert ran_on
        assert gate.cancelled == 1

    async def test_beyond_exception_out_of_a_send_fn(self, law_1: Law1) -> None:
        """It cancels the channel and leaves the block as itself; on asyncio the loop lives on."""

        class Stop(BaseException):
            pass

        stop = Stop()

        async def send(batch: Batch[int]) -> None:
            raise stop

        with pytest.raises(Stop) as caught:
            async with Channel(send, NATURAL) as channel:
                receipt = await channel.submit(1)
                await anyio.sleep_forever()
        assert caught.value is stop
        assert receipt.outcome is not None
        assert receipt.outcome.reason is DropReason.CANCELLED
        assert law_1(channel).live == 0

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
    async def test_the_end_of_the_program_out_of_a_send_fn(self, kind: type[BaseException]) -> None:
        """KeyboardInterrupt, SystemExit and GeneratorExit are of that sort."""

        async def send(batch: Batch[int]) -> None:
            await anyio.lowlevel.checkpoint()
            raise kind

        with pytest.raises(kind):
            async with Channel(send, NATURAL) as channel:
                await channel.send(1)
                await anyio.sleep_forever()
        assert channel.drained

    async def test_beyond_exception_while_draining(self) -> None:
        """The same when the block has ended already."""

        async def send(batch: Batch[int]) -> None:
            await anyio.sleep(1)
            raise SystemExit

        with pytest.raises(SystemExit):
            async with Channel(send, NATURAL) as channel:
                await channel.send(1)

    async def test_it_replaces_the_blocks_own(self) -> None:
        """Both at once: the end of the program wins, the block's error is its context."""

        async def send(batch: Batch[int]) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise SystemExit

        error = ValueError()
        with pytest.raises(SystemExit) as caught:
            async with Channel(send, NATURAL) as channel:
                await channel.send(1)
                await anyio.sleep(1)
                raise error
        assert caught.value.__context__ is not None

    async def test_an_empty_block_ends_at_once(self) -> None:
        """Nothing sent, nothing waited for."""
        send = RecordingSender[int]()
        began = anyio.current_time()
        async with Channel(send):
            pass
        assert anyio.current_time() == began
        assert send.calls == []

    async def test_an_idle_channel_never_wakes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After the last timer that its batches left, it sets none."""
        ticks: list[float] = []
        tick = Coordinator.tick

        def counted(core: Coordinator[Any], now: float) -> None:
            ticks.append(now)
            tick(core, now)

        monkeypatch.setattr(Coordinator, "tick", counted)
        async with Channel(RecordingSender[int](), ChannelOptions[int](batch_age_max=0.5)) as channel:
            await channel.send(1)
            await anyio.sleep(10)
            assert len(ticks) <= 2
            ticks.clear()
            await anyio.sleep(80_000)
            assert ticks == []


class TestClosing:
    async def test_close_takes_no_more_and_sends_the_rest(self, law_1: Law1) -> None:
        """A second close does nothing."""
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](batch_age_max=60)) as channel:
            await channel.send(1)
            assert not channel.closed
            channel.close()
            channel.close()
            assert channel.closed
            for way in (channel.send, channel.submit, channel.call):
                with pytest.raises(anyio.ClosedResourceError):
                    await way(2)
            for way_now in (channel.send_nowait, channel.submit_nowait):
                with pytest.raises(anyio.ClosedResourceError):
                    way_now(2)
            with pytest.raises(anyio.ClosedResourceError):
                await channel.consume([1, 2])
            await channel.wait_drained()
        assert send.batches == [(1,)]
        assert law_1(channel).accepted == 1

    async def test_blocked_senders_get_closed(self, gate: Any) -> None:
        """Those who wait for room when it closes have not entered."""
        options = ChannelOptions[int](
            batch_items_max=1, batch_age_max=0, full_behavior=BlockNewItems(max_items=1)
        )
        refused: list[int] = []

        async def put(item: int) -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await channel.send(item)
            refused.append(item)

        async with Channel(gate, options) as channel, anyio.create_task_group() as group:
            await channel.send(0)
            for number in range(1, 4):
                group.start_soon(put, number)
            await anyio.sleep(1)
            assert channel.statistics().waiters == 3
            channel.close()
            await anyio.sleep(1)
            assert sorted(refused) == [1, 2, 3]
            assert channel.statistics().waiters == 0
            gate.open()
        assert channel.statistics().accepted == 1

    async def test_aclose_closes_drains_and_may_be_called_again(self) -> None:
        """Also after the block."""
        send = RecordingSender[int](latency=1.0)
        async with Channel(send, NATURAL) as channel:
            await channel.send(1)
            await channel.aclose()
            assert channel.drained
            assert send.batches == [(1,)]
            await channel.aclose()
        await channel.aclose()
        channel.close()
        channel.cancel()

    async def test_move_on_after_around_aclose_is_a_deadline(self, gate: Any) -> None:
        """Cancelled, it is cancel(), and it returns once everything is out."""
        async with Channel(gate, NATURAL) as channel:
            receipt = await channel.submit(1)
            with anyio.move_on_after(10) as scope:
                await channel.aclose()
            assert scope.cancelled_caught
            assert channel.drained
            assert receipt.outcome is not None
            assert receipt.outcome.reason is DropReason.CANCELLED

    async def test_cancelled_it_waits_until_all_is_out(self) -> None:
        """A SendFn that cleans up in a shield is waited for."""
        ended: list[float] = []

        async def send(batch: Batch[int]) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(3)
                ended.append(anyio.current_time())

        async with Channel(send, NATURAL) as channel:
            await channel.send(1)
            with anyio.move_on_after(1):
                await channel.aclose()
            assert ended == [pytest.approx(anyio.current_time(), abs=0.01)]

    async def test_aclose_forcefully(self, gate: Any) -> None:
        """anyio's own: it drops what is there, and hangs nowhere."""
        async with Channel(gate, NATURAL) as channel:
            receipt = await channel.submit(1)
            await anyio.sleep(1)
            await anyio.aclose_forcefully(channel)
            assert channel.drained
            assert receipt.outcome is not None
            assert receipt.outcome.status is Status.DROPPED

    async def test_cancel_drops_what_waits_and_cancels_what_runs(
        self, gate: Any, hooks: Any, law_1: Law1
    ) -> None:
        """All of it is told, with its reason; a second cancel does nothing."""
        options = ChannelOptions[int](batch_items_max=2, max_leases=1, **hooks.all)
        async with Channel(gate, options) as channel:
            for number in range(5):
                await channel.send(number)
            await anyio.sleep(1)
            channel.cancel()
            channel.cancel()
            assert channel.closed
            assert hooks.dropped == [((2, 3), DropReason.CANCELLED), ((4,), DropReason.CANCELLED)]
            await channel.wait_drained()
        assert hooks.dropped[2:] == [((0, 1), DropReason.CANCELLED)]
        assert law_1(channel).dropped[DropReason.CANCELLED] == 5
        assert hooks.errors == []

    async def test_delivered_after_the_cancellation(self, law_1: Law1) -> None:
        """A SendFn's end beats our wish: what it returns from is delivered."""

        async def send(batch: Batch[int]) -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)

        async with Channel(send, NATURAL) as channel:
            receipt = await channel.submit(1)
            await anyio.sleep(1)
            channel.cancel()
            assert (await receipt.wait()).status is Status.DELIVERED
        assert law_1(channel).delivered == 1

    async def test_cancel_from_inside_a_send_fn(self, law_1: Law1) -> None:
        """The SendFn may end its own channel."""

        async def send(batch: Batch[int]) -> None:
            channel.cancel()
            await anyio.lowlevel.checkpoint()

        async with Channel(send, NATURAL) as channel:
            receipt = await channel.submit(1)
            assert (await receipt.wait()).reason is DropReason.CANCELLED
        assert law_1(channel).live == 0

    async def test_close_from_inside_a_send_fn(self) -> None:
        """Closing is no waiting."""
        send = RecordingSender[int]()

        async def closes(batch: Batch[int]) -> None:
            await send(batch)
            channel.close()

        async with Channel(closes, NATURAL) as channel:
            await channel.send(1)
            await channel.wait_drained()
        assert send.batches == [(1,)]


class TestWaiting:
    async def test_wait_idle(self) -> None:
        """Returns when nothing is buffered or in flight; at once if that is so."""
        async with Channel(RecordingSender[int](latency=2.0), NATURAL) as channel:
            await channel.wait_idle()
            began = anyio.current_time()
            await channel.send(1)
            await channel.wait_idle()
            assert anyio.current_time() - began == pytest.approx(2.0, abs=0.1)
            assert not channel.closed

    async def test_wait_drained_waits_for_close(self) -> None:
        """An idle channel is not drained."""
        async with Channel(RecordingSender[int](), NATURAL) as channel:
            with anyio.move_on_after(5) as scope:
                await channel.wait_drained()
            assert scope.cancelled_caught
            channel.close()
            await channel.wait_drained()
            assert channel.drained
        await channel.wait_drained()

    async def test_flush_cuts_and_waits_for_what_was_accepted_before(self) -> None:
        """Not for what comes later, and not for the batch's age."""
        send = RecordingSender[str](latency=1.0)
        async with Channel(send, ChannelOptions[str](batch_age_max=60, max_leases=1)) as channel:
            await channel.send("before")
            began = anyio.current_time()

            async def later() -> None:
                await anyio.sleep(0.5)
                await channel.send("after")
                channel.cut()

            async with anyio.create_task_group() as group:
                group.start_soon(later)
                await channel.flush()
                assert anyio.current_time() - began == pytest.approx(1.0, abs=0.1)
                assert send.running <= 1
        assert send.batches == [("before",), ("after",)]

    async def test_flush_waits_for_retries(self) -> None:
        """Until each item has its outcome."""
        attempts: list[int] = []

        async def send(batch: Batch[int]) -> None:
            attempts.append(batch.attempt)
            if batch.attempt < 3:
                raise ConnectionError

        async with Channel(send, NATURAL) as channel:
            await channel.send(1)
            await channel.flush()
            assert attempts == [1, 2, 3]

    async def test_flush_of_nothing_returns(self) -> None:
        """At once."""
        async with Channel(RecordingSender[int]()) as channel:
            await channel.flush()

    async def test_flush_ends_with_a_cancelled_channel(self, gate: Any) -> None:
        """Dropped is an outcome, too."""
        async with Channel(gate, NATURAL) as channel, anyio.create_task_group() as group:
            await channel.send(1)
            group.start_soon(channel.flush)
            await anyio.sleep(1)
            channel.cancel()

    async def test_cut_sends_what_is_there(self) -> None:
        """Now, whatever its age; nothing if there is nothing."""
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](batch_age_max=60)) as channel:
            channel.cut()
            await channel.send(1)
            channel.cut()
            await channel.wait_idle()
            assert send.batches == [(1,)]


class TestMisuse:
    async def test_before_the_block(self) -> None:
        """Every use is refused, and a later block works as if nothing had been."""
        channel = Channel(RecordingSender[int]())
        for way in (channel.send, channel.submit, channel.call):
            with pytest.raises(ChannelMisuse, match="before its 'async with' block"):
                await way(1)
        for use in (lambda: channel.send_nowait(1), lambda: channel.submit_nowait(1), channel.cut):
            with pytest.raises(ChannelMisuse):
                use()
        for use in (channel.close, channel.cancel):
            with pytest.raises(ChannelMisuse):
                use()
        for wait in (channel.flush, channel.aclose, channel.wait_idle, channel.wait_drained):
            with pytest.raises(ChannelMisuse):
                await wait()
        async with channel:
            await channel.send(1)
        assert channel.statistics().accepted == 1

    async def test_after_the_block(self) -> None:
        """A RuntimeError that is a ClosedResourceError."""
        async with Channel(RecordingSender[int]()) as channel:
            pass
        for way in (channel.send, channel.submit, channel.call):
            with pytest.raises(ChannelEnded):
                await way(1)
        with pytest.raises(RuntimeError):
            channel.send_nowait(1)
        with pytest.raises(anyio.ClosedResourceError):
            channel.submit_nowait(1)
        assert channel.statistics().accepted == 0

    async def test_two_blocks(self) -> None:
        """A channel lives once."""
        async with Channel(RecordingSender[int]()) as channel:
            with pytest.raises(ChannelMisuse, match="entered before"):
                async with channel:
                    pass
            await channel.call(1)
        with pytest.raises(ChannelMisuse, match="entered before"):
            async with channel:
                pass

    @pytest.mark.parametrize("what", ["aclose", "wait_drained", "wait_idle", "flush", "call", "send", "wait"])
    async def test_waiting_inside_its_own_send_fn(self, what: str) -> None:
        """Would never end, so it is refused by name."""
        refused: list[BaseException] = []

        async def send(batch: Batch[int]) -> None:
            try:
                match what:
                    case "call":
                        await channel.call(2)
                    case "send":
                        await channel.send(2)
                    case "wait":
                        await receipts[0].wait()
                    case _:
                        await getattr(channel, what)()
            except WouldDeadlock as error:
                refused.append(error)

        receipts: list[Any] = []
        options = ChannelOptions[int](
            batch_items_max=1, batch_age_max=0, full_behavior=BlockNewItems(max_items=1)
        )
        async with Channel(send, options) as channel:
            receipts.append(await channel.submit(1))
            await channel.flush()
        assert len(refused) == 1
        assert isinstance(refused[0], RuntimeError)
        assert channel.statistics().accepted == 1

    async def test_a_send_with_room_inside_its_own_send_fn(self) -> None:
        """What does not block is allowed, and a send_nowait that is refused is only full."""
        seen: list[int] = []

        async def send(batch: Batch[int]) -> None:
            seen.extend(batch)
            if 1 in batch:
                await channel.send(2)
                channel.send_nowait(3)

        async with Channel(send, NATURAL) as channel:
            await channel.send(1)
            await channel.wait_idle()
        assert seen == [1, 2, 3]

    async def test_two_channels_may_feed_each_other_inside(self) -> None:
        """Only its own channel is refused to a SendFn."""
        last = RecordingSender[int](latency=1.0)

        async def first(batch: Batch[int]) -> None:
            for item in batch:
                await behind.call(item)

        async with Channel(last, NATURAL) as behind, Channel(first, NATURAL) as channel:
            await channel.call(1)
        assert last.items == [1]

    @pytest.mark.parametrize("send_fn", [None, 5, "send"])
    async def test_a_send_fn_that_cannot_be_called(self, send_fn: Any) -> None:
        """Refused when made, with rule and value."""
        with pytest.raises(OptionError, match="send_fn has to be an async function") as caught:
            Channel(send_fn)
        assert caught.value.value == send_fn

    async def test_a_send_fn_that_is_not_async(self, hooks: Any) -> None:
        """Seen when it is called: its batches fail, the channel lives."""
        options = ChannelOptions[int](batch_age_max=0, **hooks.all)
        async with Channel(lambda batch: None, options) as channel:  # type: ignore[arg-type, return-value]
            receipt = await channel.submit(1)
            assert (await receipt.wait()).status is Status.FAILED
        assert isinstance(hooks.errors[0][1], TypeError)


class TestAsAStream:
    async def test_is_an_unreliable_object_send_stream(self) -> None:
        """anyio's abstract class, with everything it asks for."""
        channel = Channel(RecordingSender[int]())
        assert isinstance(channel, anyio.abc.UnreliableObjectSendStream)
        assert channel.extra_attributes == {}
        for name in ("send", "aclose"):
            assert inspect.iscoroutinefunction(getattr(channel, name))
        async with channel:
            pass

    async def test_buffer_full_is_a_would_block(self) -> None:
        """So that code written for anyio's streams sees what it knows."""
        assert issubclass(BufferFull, anyio.WouldBlock)
        assert issubclass(ChannelEnded, anyio.ClosedResourceError)
        assert issubclass(ChannelEnded, RuntimeError)

    async def test_name_and_repr(self) -> None:
        """A name is for logs."""
        assert "'mails'" in repr(Channel(RecordingSender[int](), name="mails"))
        assert repr(Channel(RecordingSender[int]())).startswith("<Channel at ")


_WHO: ContextVar[str] = ContextVar("who", default="nobody")


class TestContext:
    async def test_the_send_fn_runs_in_the_openers_context(self) -> None:
        """Not in that of whoever happened to send, and writing there reaches nobody else."""
        seen: list[str] = []

        async def send(batch: Batch[int]) -> None:
            seen.append(_WHO.get())

        _WHO.set("opener")
        async with Channel(send, ChannelOptions[int](batch_items_max=1)) as channel:

            async def sender(name: str) -> None:
                _WHO.set(name)
                for number in range(20):
                    await channel.send(number)

            async with anyio.create_task_group() as group:
                group.start_soon(sender, "a")
                group.start_soon(sender, "b")
            _WHO.set("changed since")
            await channel.send(1)
        assert set(seen) == {"opener"}
        assert _WHO.get() == "changed since"


class TestProcess:
    async def test_does_all_of_it(self) -> None:
        """Open to drained; returns the statistics."""
        send = RecordingSender[int]()
        statistics = await process(range(250), send, ChannelOptions[int](max_leases=1))
        assert send.items == list(range(250))
        assert (statistics.accepted, statistics.delivered, statistics.live) == (250, 250, 0)

    async def test_from_an_async_source(self) -> None:
        """As well."""
        send = RecordingSender[int]()
        async with aclosing(_count(30)) as source:
            assert (await process(source, send)).delivered == 30

    async def test_a_source_that_raises(self, gate: Any) -> None:
        """Cancels, and comes out as it is."""

        def source() -> Any:
            yield 1
            raise KeyError

        with pytest.raises(KeyError):
            await process(source(), gate, NATURAL)


async def _count(end: int) -> AsyncGenerator[int, None]:
    for number in range(end):
        await anyio.lowlevel.checkpoint()
        yield number


class TestStatistics:
    async def test_a_frozen_snapshot(self, gate: Any, law_1: Law1) -> None:
        """Now and so far, at any moment, before the block too."""
        options = ChannelOptions[str](
            batch_items_max=2, batch_size_max=100, item_size=len, max_leases=1, batch_age_max=60
        )
        channel = Channel(gate, options)
        assert channel.statistics().accepted == 0
        async with channel:
            for item in ("a", "bb", "ccc"):
                await channel.send(item)
            await anyio.sleep(1)
            now = law_1(channel)
            assert (now.leased_items, now.leased_size) == (2, 3)
            assert (now.unleased_items, now.unleased_size) == (1, 3)
            assert (now.leases, now.waiters, now.live) == (1, 0, 3)
            assert (now.batches, now.attempts, now.retries, now.heartbeats) == (1, 1, 0, 0)
            with pytest.raises(AttributeError):
                now.accepted = 5  # type: ignore[misc]
            with pytest.raises(TypeError):
                now.dropped[DropReason.FULL] = 5  # type: ignore[index]
            gate.open()
        end = law_1(channel)
        assert (end.delivered, end.batches, end.attempts, end.live) == (3, 2, 2, 0)
        assert now.delivered == 0


class TestRealLoops:
    @pytest.mark.parametrize(
        "anyio_backend",
        [("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})],
        ids=["asyncio", "uvloop", "trio"],
    )
    async def test_a_thousand_items_with_errors(self, anyio_backend: Any, law_1: Law1) -> None:
        """The whole core on the loops that programs run on, clocks and all."""
        delivered: list[int] = []

        async def send(batch: Batch[int]) -> list[int]:
            await anyio.lowlevel.checkpoint()
            if batch.attempt == 1 and batch.id % 3 == 0:
                raise ConnectionError
            delivered.extend(batch)
            return [-item for item in batch]

        options = ChannelOptions[int](
            batch_items_max=10,
            batch_age_max=0.001,
            on_error=None,
            full_behavior=BlockNewItems(max_items=50),
            send_timeout=30,
        )
        async with Channel(send, options) as channel:
            answers: dict[int, int] = {}

            async def caller(start: int) -> None:
                for number in range(start, start + 50):
                    answers[number] = await channel.call(number)

            async with anyio.create_task_group() as group:
                for start in range(0, 1000, 50):
                    group.start_soon(caller, start)
        assert answers == {number: -number for number in range(1000)}
        assert sorted(delivered) == list(range(1000))
        assert law_1(channel).retries > 0


class TestEagerTasks:
    @pytest.fixture
    def anyio_backend(self) -> Any:
        """asyncio alone knows of eager tasks, from 3.12 on; before, this is what all do."""
        return jumping_asyncio()

    async def test_workers_that_start_at_once(self) -> None:
        """A SendFn may run before ``send`` has returned."""
        factory = getattr(asyncio, "eager_task_factory", None)
        asyncio.get_running_loop().set_task_factory(factory)
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](batch_items_max=1)) as channel:
            for number in range(10):
                await channel.send(number)
        assert sorted(send.items) == list(range(10))


def test_errors_can_be_pickled() -> None:
    """Errors travel between processes."""
    for error in (ChannelEnded(), BufferFull()):
        assert type(pickle.loads(pickle.dumps(error))) is type(error)
