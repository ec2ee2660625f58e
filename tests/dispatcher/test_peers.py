"""The worst bugs that users of other batchers met, each as a test of its name."""

import asyncio
import contextlib
import functools
import os
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
    DropReason,
    RetryPolicy,
    SendCancelled,
    Status,
)
from dispatcher.testing import RecordingSender, ScriptedSink

Law1 = Callable[[Channel[Any, Any]], ChannelStatistics]

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_linger_became_a_rate_limit() -> None:
    """aiokafka#1137: the age of a batch must not space out batches that are full."""
    send = RecordingSender[int]()
    began = anyio.current_time()
    async with Channel(
        send, ChannelOptions[int](batch_items_max=10, batch_age_max=1.0, max_leases=1)
    ) as channel:
        await channel.consume(range(1000))
        await channel.flush()
    assert anyio.current_time() == began
    assert len(send.batches) == 100


class TestQuadraticWakeUps:
    """aiokafka#528: every blocked sender was woken for each freed place."""

    @staticmethod
    async def _blocked(waiting: int) -> tuple[int, int]:
        """How often senders were woken, and how many entered, when 100 places were freed."""
        options = ChannelOptions[int](
            batch_items_max=100,
            batch_age_max=0,
            max_leases=1,
            full_behavior=BlockNewItems(max_items=100),
            on_drop=None,
        )
        gates = [anyio.Event(), anyio.Event()]
        seen = 0

        async def send(batch: Batch[int]) -> None:
            nonlocal seen
            gate = gates[min(seen, 1)]
            seen += 1
            await gate.wait()

        woken = 0

        async def sender() -> None:
            with contextlib.suppress(anyio.ClosedResourceError):
                await _Counted(channel.send(1), count)

        def count() -> None:
            nonlocal woken
            woken += 1

        async with Channel(send, options) as channel:
            await channel.consume(range(100))
            async with anyio.create_task_group() as group:
                for _ in range(waiting):
                    group.start_soon(sender)
                await anyio.sleep(1)
                assert channel.statistics().waiters == waiting
                woken = 0
                gates[0].set()
                await anyio.sleep(1)
                entered = channel.statistics().accepted - 100
                counted = woken
                channel.close()
                gates[1].set()
        return counted, entered

    async def test_10_000_blocked_senders_are_woken_by_what_is_freed(self) -> None:
        """
        A hundred places freed: a hundred senders woken, of ten thousand.

        Where tasks run in any order (trio), one that runs too early waits for its turn: once more.
        """
        woken, entered = await self._blocked(10_000)
        assert entered == 100
        assert 100 <= woken <= 200


class _Counted:
    """Awaits a coroutine, and counts how often it is resumed."""

    def __init__(self, coroutine: Any, count: Callable[[], None]) -> None:
        self._coroutine, self._count = coroutine, count

    def __await__(self) -> Any:
        steps = self._coroutine.__await__()
        sent = None
        try:
            while True:
                sent = yield steps.send(sent)
                self._count()
        except StopIteration as stop:
            return stop.value


async def test_ever_growing_memory_one_task_per_batch() -> None:
    """python-pubsub#395: ten thousand batches use the tasks of four leases, no more."""
    most = 0

    async def send(batch: Batch[int]) -> None:
        nonlocal most
        await anyio.lowlevel.checkpoint()
        workers = [task for task in anyio.get_running_tasks() if "_work" in (task.name or "")]
        most = max(most, len(workers))

    async with Channel(send, ChannelOptions[int](batch_items_max=1)) as channel:
        await channel.consume(range(2000))
    assert most == 4


async def test_a_batch_of_10_010_when_retries_come_due_together(law_1: Law1) -> None:
    """celery-batches#84: retries that are due at once leave one by one, as they were cut."""
    largest = 0

    async def send(batch: Batch[int]) -> None:
        nonlocal largest
        largest = max(largest, len(batch))
        await anyio.lowlevel.checkpoint()
        if anyio.current_time() < began + 10:
            raise ConnectionError

    options = ChannelOptions[int](
        batch_items_max=10, retry=RetryPolicy(wait=tenacity.wait_fixed(20)), on_error=None
    )
    async with Channel(send, options) as channel:
        began = anyio.current_time()
        await channel.consume(range(1000))
    assert largest == 10
    assert law_1(channel).delivered == 1000


async def test_reserved_slots_never_used(gate: Any, law_1: Law1) -> None:
    """tower#434, zebra#1593: room handed to senders that die is handed on, to the last of them."""
    options = ChannelOptions[int](
        batch_items_max=1, max_leases=4, full_behavior=BlockNewItems(max_items=4), on_drop=None
    )
    async with Channel(gate, options) as channel:
        await channel.consume(range(4))
        scopes: list[anyio.CancelScope] = []

        async def dies() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await channel.send(1)

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(dies)
            await anyio.sleep(1)
            gate.open()
            while channel.statistics().leases == 4:
                await anyio.lowlevel.checkpoint()
            for scope in scopes:
                scope.cancel()
        with anyio.fail_after(1):
            for number in range(10):
                await channel.send(number)
        assert law_1(channel).waiters == 0


@pytest.mark.parametrize("lateness", [-0.001, 0.0, 0.001])
async def test_the_last_element_lost_between_timer_and_completion(lateness: float, law_1: Law1) -> None:
    """akka#20232, #25875: an item that comes just when the timer fires, or the channel closes, is sent."""
    send = RecordingSender[int]()
    async with Channel(send, ChannelOptions[int](batch_age_max=1.0)) as channel:
        await channel.send(0)
        await anyio.sleep(1.0 + lateness)
        await channel.send(1)
    assert sorted(send.items) == [0, 1]
    assert law_1(channel).delivered == 2


async def test_an_early_flush_from_a_stale_timer() -> None:
    """akka.net#7879: the timer of a batch that was cut by count must not cut the next one."""
    send = RecordingSender[int]()
    async with Channel(send, ChannelOptions[int](batch_items_max=2, batch_age_max=1.0)) as channel:
        began = anyio.current_time()
        await channel.send(0)
        await anyio.sleep(0.5)
        await channel.send(1)  # cut by count; the timer still stands at 1.0
        await anyio.sleep(0.1)
        await channel.send(2)
        await channel.wait_idle()
    assert [round(call.at - began, 2) for call in send.calls] == [0.5, 1.6]


async def test_an_overflow_error_when_downstream_is_merely_slow(law_1: Law1) -> None:
    """reactor-core#1557, #3012: slow means that the timer's batches wait, and the source with them."""
    send = RecordingSender[int](latency=100.0)
    options = ChannelOptions[int](
        batch_items_max=2, batch_age_max=0.01, max_leases=1, full_behavior=BlockNewItems(max_items=4)
    )
    async with Channel(send, options) as channel:
        for number in range(40):
            await channel.send(number)
            await anyio.sleep(0.02)
    assert send.items == list(range(40))
    assert law_1(channel).dropped_items == 0


class TestFork:
    @pytest.fixture
    def anyio_backend(self) -> Any:
        """A real loop: another process is waited for."""
        return "asyncio", {}

    async def test_a_fork_leaves_locks_held(self, anyio_backend: Any) -> None:
        """opentelemetry-python#4215, sentry-python#6148: the core holds none, so a child just starts anew."""

        async def use() -> int:
            send = RecordingSender[int]()
            async with Channel(send, ChannelOptions[int](batch_age_max=0)) as channel:
                await channel.call(1)
            return len(send.items)

        async with Channel(RecordingSender[int](), ChannelOptions[int](batch_age_max=0)) as channel:
            await channel.send(1)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    asyncio._set_running_loop(None)  # noqa: SLF001 - the parent's, of which this is a copy
                    code = 0 if asyncio.new_event_loop().run_until_complete(use()) == 1 else 2
                finally:
                    os._exit(code)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0


async def test_queued_data_deleted_on_shutdown(law_1: Law1) -> None:
    """opentelemetry-collector#15677: what failed once is still tried again while the channel closes."""
    send = ScriptedSink[int](failures=[ConnectionError(number) for number in range(3)])
    options = ChannelOptions[int](
        batch_items_max=1, max_leases=1, retry=RetryPolicy(wait=tenacity.wait_fixed(10)), on_error=None
    )
    async with Channel(send, options) as channel:
        await channel.consume(range(5))
    assert sorted(send.delivered) == list(range(5))
    assert law_1(channel).delivered == 5


async def test_drops_without_a_metric(hooks: Any, gate: Any, law_1: Law1) -> None:
    """opentelemetry-collector#12443: every drop is counted by its reason, and told."""
    options = ChannelOptions[int](batch_items_max=1, max_leases=1, item_age_max=5, on_drop=hooks.on_drop)
    async with Channel(gate, options) as channel:
        await channel.send(0)
        await anyio.sleep(1)
        await channel.send(1)
        channel.submit_nowait(2).cancel()
        await anyio.sleep(10)
        channel.send_nowait(3)
        channel.cancel()
    statistics = law_1(channel)
    assert statistics.dropped[DropReason.EXPIRED] == 1
    assert statistics.dropped[DropReason.CANCELLED] == 3
    assert statistics.dropped_items == sum(len(items) for items, _ in hooks.dropped) == 4


class TestCancelledByNobody:
    async def test_is_a_failed_attempt(self, on_trio: bool, hooks: Any, law_1: Law1) -> None:
        """A CancelledError that comes out of a callee fails the attempt as SendCancelled, transient."""

        async def send(batch: Batch[int]) -> None:
            if batch.attempt == 1 and not on_trio:  # trio's cannot be raised by hand
                task = asyncio.ensure_future(asyncio.sleep(60))
                task.cancel()
                await task

        options = ChannelOptions[int](batch_age_max=0, send_timeout=100, **hooks.all)
        async with Channel(send, options) as channel:
            receipt = await channel.submit(1)
            assert (await receipt.wait()).status is Status.DELIVERED
        if not on_trio:
            ((_, error),) = hooks.errors
            assert isinstance(error, SendCancelled)
            assert isinstance(error.__cause__, asyncio.CancelledError)
        assert law_1(channel).delivered == 1

    async def test_raised_by_hand(self, on_trio: bool, hooks: Any, law_1: Law1) -> None:
        """Without retries its items are FAILED, and the channel lives on."""
        if on_trio:
            return
        raised = iter([asyncio.CancelledError()])

        async def send(batch: Batch[int]) -> None:
            for error in raised:
                raise error

        async with Channel(send, ChannelOptions[int](batch_age_max=0, retry=None, **hooks.all)) as channel:
            outcome = await channel.submit_nowait(1).wait()
            assert isinstance(outcome.error, SendCancelled)
            await channel.call(2)
        assert law_1(channel).failed == 1


async def test_a_thundering_herd_waits_for_the_limiter() -> None:
    """Many senders, many leases, one token at a time: nobody but one task asks."""
    inside = most = 0

    class Limiter:
        async def acquire(self, amount: float = 1, /) -> None:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await anyio.sleep(0.01)
            inside -= 1

    options = ChannelOptions[int](batch_items_max=1, max_leases=50, qps_limit=Limiter())
    send = RecordingSender[int](latency=1.0)
    async with Channel(send, options) as channel, anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(functools.partial(channel.send, number))
    assert most == 1
    assert len(send.items) == 100
