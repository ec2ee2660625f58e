"""Faults that the Channel once had, or that would be easy to bring back; each test is named after one."""

import asyncio
import dataclasses
import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import sniffio
import tenacity
import trio

from dispatcher import (
    Batch,
    BlockNewItems,
    Channel,
    ChannelMisuse,
    ChannelOptions,
    ChannelStatistics,
    DropOldestBatch,
    DropReason,
    OptionError,
    RetryAfter,
    RetryPolicy,
    Status,
    TransientError,
)
from dispatcher.testing import JumpingLoop, RecordingSender, ScriptedSink, jumping_asyncio

Law1 = Callable[[Channel[Any, Any]], ChannelStatistics]


class Slow:
    """A limiter that grants nothing for a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = 0

    async def acquire(self, amount: float = 1, /) -> None:
        """Sleep, and grant."""
        self.asked += 1
        await anyio.sleep(self.seconds)


@pytest.mark.usefixtures("no_leaks")
class TestTheTimer:
    async def test_what_falls_due_during_a_slow_hook_is_sent(self, jump: Callable[[float], None]) -> None:
        """Time passes while hooks run; what became due meanwhile must not wait for the next event."""
        sent: list[tuple[float, tuple[str, ...]]] = []

        async def send(batch: Batch[str]) -> None:
            sent.append((anyio.current_time() - began, batch.items))
            if "old" in batch:
                raise TransientError

        options = ChannelOptions[str](
            batch_age_max=5.0,
            item_age_max=10.0,
            retry=RetryPolicy(wait=tenacity.wait_fixed(100)),
            on_drop=lambda batch, reason: jump(1.0),
        )
        async with Channel(send, options) as channel:
            began = anyio.current_time()
            await channel.send("old")  # fails at 5, expires at 10; the hook runs until 11
            await anyio.sleep(5.5)
            await channel.send("new")  # due at 10.5
            await anyio.sleep(50)
        at, items = sent[1]
        assert (at, items) == (pytest.approx(11.0, abs=0.1), ("new",))

    async def test_items_expire_by_the_timer_while_the_limiter_makes_wait(self, hooks: Any) -> None:
        """The worker that waits for a token must not keep the timer from being set."""
        options = ChannelOptions[str](
            batch_age_max=0, item_age_max=1.0, qps_limit=Slow(10.0), on_drop=hooks.on_drop
        )
        send = RecordingSender[str]()
        async with Channel(send, options) as channel:
            await anyio.sleep(0.5)  # the keeper sleeps, with no alarm set
            began = anyio.current_time()
            receipt = await channel.submit("stale")
            outcome = await receipt.wait()
            assert anyio.current_time() - began == pytest.approx(1.0, abs=0.1)
            assert outcome.reason is DropReason.EXPIRED
            with anyio.move_on_after(0):
                await channel.aclose()
        assert send.batches == []


@dataclasses.dataclass
class Unhashable(Exception):
    """A dataclass with ``eq`` has no hash."""

    code: int


@pytest.mark.usefixtures("no_leaks")
class TestUserCode:
    async def test_an_error_without_a_hash_fails_its_batch_alone(self, law_1: Law1, hooks: Any) -> None:
        """A dataclass exception cannot be put into a set."""
        send = ScriptedSink[int](failures=[Unhashable(5)])
        async with Channel(send, ChannelOptions[int](batch_age_max=0, **hooks.all)) as channel:
            receipt = await channel.submit(1)
            with anyio.fail_after(10):
                outcome = await receipt.wait()
            assert outcome.error == Unhashable(5)
            assert await channel.call(2) is None
        assert law_1(channel).delivered == 1

    @pytest.mark.parametrize("seconds", [None, "5", math.inf, math.nan, -1])
    async def test_a_retry_after_without_seconds(self, seconds: Any, law_1: Law1) -> None:
        """A subclass may have forgotten them; it asks for nothing then, and its batch is tried again."""

        class Busy(RetryAfter):
            def __init__(self) -> None:
                if seconds is not None:
                    self.seconds = seconds

        send = ScriptedSink[int](failures=[Busy()])
        async with Channel(send, ChannelOptions[int](batch_age_max=0, on_error=None)) as channel:
            with anyio.fail_after(100):
                await channel.call(1)
        assert law_1(channel).retries == 1

    @pytest.mark.parametrize("delay", [math.inf, math.nan])
    async def test_a_delay_that_never_ends_is_a_refusal(self, delay: float, hooks: Any) -> None:
        """A wait strategy that answers inf or nan must not keep a batch for ever."""
        policy = RetryPolicy(wait=lambda state: delay, stop=tenacity.stop_never)
        send = ScriptedSink[int](failures=[TransientError()])
        options = ChannelOptions[int](batch_age_max=0, retry=policy, **hooks.all)
        with anyio.fail_after(1000):
            async with Channel(send, options) as channel:
                receipt = await channel.submit(1)
                assert (await receipt.wait()).status is Status.FAILED

    async def test_a_verdict_without_truth_is_logged_and_ignored(self, hooks: Any) -> None:
        """``on_error`` may answer an array."""

        class Array:
            def __bool__(self) -> bool:
                raise ValueError

        send = ScriptedSink[int](failures=[TransientError()])
        options = ChannelOptions[int](
            batch_age_max=0,
            on_error=lambda batch, error: Array(),  # type: ignore[arg-type]
            retry=RetryPolicy(wait=tenacity.wait_none()),
        )
        with anyio.fail_after(1000):
            async with Channel(send, options) as channel:
                assert await channel.call(1) is None

    async def test_results_that_cannot_be_looked_at(self, hooks: Any) -> None:
        """An object whose every attribute raises is a bad result, not the end of the worker."""

        class Lazy:
            def __getattr__(self, name: str) -> Any:
                raise ConnectionError(name)

        async def send(batch: Batch[int]) -> Any:
            return Lazy()

        async with Channel(send, ChannelOptions[int](batch_age_max=0, **hooks.all)) as channel:
            receipt = await channel.submit(1)
            with anyio.fail_after(10):
                assert (await receipt.wait()).status is Status.FAILED

    async def test_a_limiter_that_is_cancelled_by_nobody_is_asked_again(self, on_trio: bool) -> None:
        """A CancelledError out of the limiter must not end the channel in silence."""
        if on_trio:
            return  # trio's cannot be raised by hand
        asked: list[float] = []

        class Limiter:
            async def acquire(self, amount: float = 1, /) -> None:
                asked.append(anyio.current_time())
                if len(asked) == 1:
                    raise asyncio.CancelledError

        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](batch_age_max=0, qps_limit=Limiter())) as channel:
            with anyio.fail_after(10):
                assert await channel.call(1) is None
        assert len(asked) == 2

    async def test_a_limiter_that_ends_the_program_ends_the_channel(self) -> None:
        """What is beyond Exception leaves the block as itself, from the limiter too."""

        class Stop(BaseException):
            pass

        class Limiter:
            async def acquire(self, amount: float = 1, /) -> None:
                raise Stop

        with pytest.raises(Stop), anyio.fail_after(10):
            async with Channel(
                RecordingSender[int](), ChannelOptions[int](batch_age_max=0, qps_limit=Limiter())
            ) as channel:
                receipt = await channel.submit(1)
                await anyio.sleep(5)
        assert receipt.outcome is not None
        assert receipt.outcome.reason is DropReason.CANCELLED


@pytest.mark.usefixtures("no_leaks")
class TestCancelScopes:
    async def test_a_shielded_block_in_a_cancelled_scope_still_drains(self) -> None:
        """The block alone decides when the channel ends; its workers outlive a cancelled scope around it."""
        send = RecordingSender[int](latency=1.0)
        with anyio.CancelScope() as outer, anyio.fail_after(100, shield=False):
            async with Channel(send, ChannelOptions[int](batch_age_max=0)) as channel:
                with anyio.CancelScope(shield=True):
                    await channel.call(1)
                    outer.cancel()
                    await anyio.sleep(1)
                    with anyio.fail_after(10):
                        await channel.call(2)
                        await channel.flush()
        assert send.batches == [(1,), (2,)]

    async def test_opened_in_a_cancelled_scope(self) -> None:
        """The channel may be opened where everything is cancelled already; nothing hangs."""
        send = RecordingSender[int](latency=1.0)
        entered = False
        with anyio.CancelScope() as outer:
            outer.cancel()
            async with Channel(send, ChannelOptions[int](batch_age_max=0)) as channel:
                entered = True
                with anyio.CancelScope(shield=True), anyio.fail_after(10):
                    await channel.send(1)
                    await channel.flush()
        assert not entered or channel.statistics().live == 0

    async def test_errors_beside_a_cancellation(self, law_1: Law1, hooks: Any) -> None:
        """On trio a cancelled SendFn may end with a group of errors and cancellations."""

        async def send(batch: Batch[int]) -> None:
            async def fails() -> None:
                try:
                    await anyio.sleep_forever()
                finally:
                    raise ValueError(5)

            async with anyio.create_task_group() as group:
                group.start_soon(fails)
                group.start_soon(anyio.sleep_forever)

        async with Channel(send, ChannelOptions[int](batch_age_max=0, **hooks.all)) as channel:
            receipt = await channel.submit(1)
            await anyio.sleep(1)
            channel.cancel()
            await channel.wait_drained()
        assert receipt.outcome is not None
        assert receipt.outcome.reason is DropReason.CANCELLED
        law_1(channel)

    async def test_a_group_from_the_block_is_not_wrapped_again(self) -> None:
        """Errors beside a cancellation leave the block as they were."""
        error = ValueError(5)

        async def fails() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise error

        with pytest.raises(BaseExceptionGroup) as caught, anyio.CancelScope() as outer:
            async with Channel(RecordingSender[int]()), anyio.create_task_group() as group:
                group.start_soon(fails)
                group.start_soon(anyio.sleep_forever)
                await anyio.sleep(1)
                outer.cancel()
        assert caught.value.exceptions == (error,)


@pytest.mark.usefixtures("no_leaks")
class TestStrangers:
    """asyncio lets anybody cancel any task."""

    @pytest.fixture
    def anyio_backend(self) -> Any:
        """asyncio alone: on trio only scopes are cancelled."""
        return jumping_asyncio()

    @pytest.mark.parametrize("where", ["parked", "sending", "limiter", "everything"])
    async def test_who_cancels_all_tasks_does_not_hang_the_channel(self, where: str, law_1: Law1) -> None:
        """A stranger's cancellation is no reason to hang, whatever it hits."""
        me = asyncio.current_task()
        before = asyncio.all_tasks()
        send = RecordingSender[int](latency=5.0)
        limit = Slow(3.0) if where == "limiter" else None
        async with asyncio.timeout(1000):
            async with Channel(send, ChannelOptions[int](batch_age_max=0, qps_limit=limit)) as channel:
                if where == "parked":
                    await channel.call(1)
                else:
                    await channel.submit(1)
                    await anyio.sleep(1)
                for task in asyncio.all_tasks() - before:
                    if task is not me:
                        task.cancel()
                await anyio.sleep(1)
        assert law_1(channel).live == 0

    # anyio wraps a task's coroutine, and a wrapper that never began never awaits it.
    @pytest.mark.filterwarnings("ignore:coroutine 'Channel._work' was never awaited:RuntimeWarning")
    @pytest.mark.parametrize("turns", range(6))
    async def test_who_cancels_a_worker_that_has_hardly_begun(self, turns: int, law_1: Law1) -> None:
        """At any turn of a new worker: the channel goes on, or ends by name; it never hangs."""
        async with asyncio.timeout(1000):
            async with Channel(RecordingSender[int](), ChannelOptions[int](batch_age_max=0)) as channel:
                await anyio.sleep(1)
                before = asyncio.all_tasks()
                channel.send_nowait(1)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                for task in asyncio.all_tasks() - before:
                    task.cancel()
                await anyio.sleep(1)
                if not channel.closed:
                    assert await channel.call(2) is None
        assert law_1(channel).live == 0

    async def test_a_block_that_is_cancelled_twice(self, law_1: Law1) -> None:
        """The second time while it waits for a SendFn that cleans up: all is out when it ends."""
        cleaned: list[float] = []

        async def send(batch: Batch[int]) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(10)
                cleaned.append(anyio.current_time())

        async def block() -> None:
            async with Channel(send, ChannelOptions[int](batch_age_max=0, on_drop=None)) as channel:
                channels.append(channel)
                await channel.send(1)

        channels: list[Channel[int, None]] = []
        task = asyncio.ensure_future(block())
        for _ in range(3):
            await anyio.sleep(1)
            task.cancel()
        await asyncio.wait([task], timeout=100)
        assert task.cancelled()
        assert len(cleaned) == 1
        assert channels[0].drained
        assert law_1(channels[0]).dropped[DropReason.CANCELLED] == 1

    async def test_room_of_a_sender_that_is_cancelled_in_that_turn_is_handed_on(self, law_1: Law1) -> None:
        """Room was handed to it, it has not run yet, and its task is cancelled."""
        opened = anyio.Event()

        async def send(batch: Batch[int]) -> None:
            if 0 in batch:
                await opened.wait()
                raise ValueError

        options = ChannelOptions[int](
            batch_items_max=1,
            batch_age_max=0,
            full_behavior=BlockNewItems(max_items=1),
            on_error=None,
            on_drop=lambda batch, reason: tasks[0].cancel(),
        )
        async with Channel(send, options) as channel:
            await channel.send(0)
            tasks = [asyncio.ensure_future(channel.send(number)) for number in (1, 2)]
            await anyio.sleep(1)
            opened.set()
            await asyncio.wait(tasks, timeout=10)
            assert tasks[0].cancelled()
            assert tasks[1].done()
        assert (law_1(channel).delivered, law_1(channel).accepted) == (1, 2)

    async def test_a_cancelled_worker_task_is_a_failed_attempt(self, law_1: Law1) -> None:
        """Only the channel may cancel a SendFn for good."""
        tasks: list[asyncio.Task[Any] | None] = []

        async def send(batch: Batch[int]) -> None:
            tasks.append(asyncio.current_task())
            await anyio.sleep(1)

        async with Channel(send, ChannelOptions[int](batch_age_max=0)) as channel:
            receipt = await channel.submit(1)
            await anyio.sleep(0.5)
            assert tasks[0] is not None
            tasks[0].cancel()
            assert (await receipt.wait()).status is Status.DELIVERED
            assert tasks[0].cancelling() == 0
        assert law_1(channel).retries == 1


def test_asyncio_run_ends_beside_a_channel_left_open() -> None:
    """``asyncio.run`` cancels all tasks at its end; a channel in a task of its own must obey."""
    opened: list[Channel[int, None]] = []
    tasks: list[asyncio.Task[None]] = []

    async def background() -> None:
        async with Channel(RecordingSender[int](latency=1e9), ChannelOptions(batch_age_max=0)) as channel:
            opened.append(channel)
            await channel.send(1)
            await anyio.sleep_forever()

    async def body() -> None:
        tasks.append(asyncio.create_task(background()))
        await anyio.sleep(1)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(body())
    assert opened[0].drained
    assert tasks[0].cancelled()


@pytest.mark.usefixtures("no_leaks")
class TestMemory:
    async def test_a_parked_worker_holds_nothing(self) -> None:
        """What was sent is garbage once it is delivered, even while the channel idles."""

        class Item:
            pass

        async def send(batch: Batch[Item]) -> None:
            raise ValueError

        options = ChannelOptions[Item](batch_age_max=0, on_error=None, on_drop=None)
        async with Channel(send, options) as channel:
            item = Item()
            gone = weakref.ref(item)
            await channel.send(item)
            del item
            await channel.wait_idle()
            await anyio.sleep(1)
            gc.collect()
            assert gone() is None


@pytest.mark.usefixtures("no_leaks")
class TestMisuse:
    async def test_options_of_another_kind(self) -> None:
        """A dict of options is refused by name, before anything is made."""
        with pytest.raises(OptionError, match="options"):
            Channel(RecordingSender[int](), {"batch_items_max": 5})  # type: ignore[arg-type]

    async def test_use_after_the_block(self) -> None:
        """cut and flush are use, too."""
        async with Channel(RecordingSender[int]()) as channel:
            pass
        with pytest.raises(ChannelMisuse):
            channel.cut()
        with pytest.raises(ChannelMisuse):
            await channel.flush()


@pytest.mark.usefixtures("no_leaks")
class TestEarlyCut:
    async def test_a_refusal_long_ago_cuts_no_later_batch(self) -> None:
        """What was refused while everything was in flight says nothing about the next batch."""
        send = RecordingSender[int](latency=1.0)
        options = ChannelOptions[int](
            batch_items_max=2,
            batch_age_max=10,
            full_behavior=BlockNewItems(max_items=2),
        )
        async with Channel(send, options) as channel:
            channel.send_nowait(1)
            channel.send_nowait(2)
            await anyio.sleep(0.5)
            with pytest.raises(anyio.WouldBlock):
                channel.send_nowait(3)
            await anyio.sleep(1)
            channel.send_nowait(4)
            await anyio.sleep(1)
            channel.send_nowait(5)
            await channel.flush()
        assert send.batches == [(1, 2), (4, 5)]


@pytest.mark.usefixtures("no_leaks")
class Turns:
    """Numbers the turns of the event loop: on trio by its own word, for its tasks run in any order in each."""

    def __init__(self) -> None:
        self.number = 0

    async def count(self) -> None:
        """Until cancelled."""
        if sniffio.current_async_library() == "trio":
            watch = Watch(self)
            trio.lowlevel.add_instrument(watch)
            try:
                await anyio.sleep_forever()
            finally:
                trio.lowlevel.remove_instrument(watch)
        while True:
            self.number += 1
            await anyio.lowlevel.checkpoint()


class Watch(trio.abc.Instrument):
    """trio goes through its input and output once in every turn."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def after_io_wait(self, timeout: float) -> None:
        """A turn begins."""
        self.turns.number += 1


class TestHooks:
    async def test_what_on_error_drops_is_told_in_the_next_turn(self) -> None:
        """Hooks that a hook causes run neither inside it nor right after it."""
        log: list[str] = []
        turns, told_at = Turns(), 0

        def on_error(batch: Batch[int], error: Exception) -> None:
            nonlocal told_at
            told_at = turns.number
            channel.send_nowait(2)
            channel.send_nowait(3)
            log.append("error ends")

        def on_drop(batch: Batch[int], reason: DropReason) -> None:
            log.append(f"drop {list(batch)} {'later' if turns.number > told_at else 'at once'}")

        async def send(batch: Batch[int]) -> None:
            if 1 in batch:
                raise ValueError

        options = ChannelOptions[int](
            batch_items_max=1,
            batch_age_max=0,
            max_leases=1,
            full_behavior=DropOldestBatch(max_live_items=1),
            on_error=on_error,
            on_drop=on_drop,
        )
        async with anyio.create_task_group() as group:
            group.start_soon(turns.count)
            async with Channel(send, options) as channel:
                await channel.send(1)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert log == ["error ends", "drop [2] later", "drop [1] later"]
