"""
One turn each, of the Channel and of what one would write by hand on asyncio.

Every turn is one run of a fresh event loop, timed from the first item to the last one settled;
a turn that did not deliver all of them fails.
"""

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio

from dispatcher import Batch, BlockNewItems, BufferFull, Channel, ChannelOptions

__all__ = [
    "BATCH",
    "BOUND",
    "TASKS",
    "awaited_tasks",
    "by_tasks",
    "channel_batches",
    "channel_lone_items",
    "channel_send",
    "channel_send_nowait",
    "channel_waiters",
    "channel_wake_ups",
    "channel_waves",
    "check_all",
    "idle_channels",
    "idle_wakes",
    "let_run",
    "nothing",
    "queue_batches",
    "queue_lone_items",
    "queue_put",
    "queue_put_nowait",
    "queue_waiters",
    "queue_wake_ups",
    "queue_waves",
    "timed",
]

BATCH = 100
BOUND = 1000
TASKS = 100


async def nothing(batch: Sequence[object]) -> None:
    """The sink on both sides."""


def timed(turn: Callable[[], Awaitable[float]]) -> float:
    """Run one turn on a loop of its own, and return its number."""
    with asyncio.Runner() as runner:

        async def main() -> float:
            return await turn()

        return runner.run(main())


def check_all(delivered: int, count: int) -> None:
    """
    Fail the turn if something was lost.

    Raises:
        RuntimeError: If not all *count* items were *delivered*.
    """
    if delivered != count:
        msg = f"{delivered} of {count} items were delivered"
        raise RuntimeError(msg)


async def _take(queue: "asyncio.Queue[int]", count: int) -> None:
    """The consumer that one writes by hand: wait for one, then take what else is there."""
    while count:
        batch = [await queue.get()]
        while len(batch) < BATCH:
            try:
                batch.append(queue.get_nowait())
            except asyncio.QueueEmpty:
                break
        count -= len(batch)
        await nothing(batch)


async def queue_put(count: int) -> float:
    queue: asyncio.Queue[int] = asyncio.Queue(BOUND)
    consumer = asyncio.create_task(_take(queue, count))
    started = time.perf_counter()
    for item in range(count):
        await queue.put(item)
    await consumer
    return count / (time.perf_counter() - started)


async def let_run(put: Callable[[int], None], item: int) -> None:
    """It was full: let the others run until *put* takes the item."""
    while True:
        await asyncio.sleep(0)
        try:
            return put(item)
        except (asyncio.QueueFull, anyio.WouldBlock):  # BufferFull is one
            continue


async def queue_put_nowait(count: int) -> float:
    queue: asyncio.Queue[int] = asyncio.Queue(BOUND)
    consumer = asyncio.create_task(_take(queue, count))
    started = time.perf_counter()
    for item in range(count):
        try:
            queue.put_nowait(item)
        except asyncio.QueueFull:
            await let_run(queue.put_nowait, item)
    await consumer
    return count / (time.perf_counter() - started)


async def channel_send(count: int) -> float:
    async with Channel(nothing, ChannelOptions(batch_items_max=BATCH)) as channel:
        started = time.perf_counter()
        for item in range(count):
            await channel.send(item)
        await channel.flush()
        taken = time.perf_counter() - started
    check_all(channel.statistics().delivered, count)
    return count / taken


async def channel_send_nowait(count: int) -> float:
    async with Channel(nothing, ChannelOptions(batch_items_max=BATCH)) as channel:
        started = time.perf_counter()
        for item in range(count):
            try:
                channel.send_nowait(item)
            except BufferFull:
                await let_run(channel.send_nowait, item)
        await channel.flush()
        taken = time.perf_counter() - started
    check_all(channel.statistics().delivered, count)
    return count / taken


# --- an answer for every item -----------------------------------------------------------------


async def _answer(queue: "asyncio.Queue[tuple[int, asyncio.Future[None]]]", count: int) -> None:
    while count:
        batch = [await queue.get()]
        while len(batch) < BATCH:
            try:
                batch.append(queue.get_nowait())
            except asyncio.QueueEmpty:
                break
        count -= len(batch)
        await nothing(batch)
        for _, future in batch:
            if not future.done():
                future.set_result(None)


async def queue_waves(waves: int) -> float:
    queue: asyncio.Queue[tuple[int, asyncio.Future[None]]] = asyncio.Queue(BOUND)
    loop = asyncio.get_running_loop()
    consumer = asyncio.create_task(_answer(queue, waves * BOUND))
    started = time.perf_counter()
    for _ in range(waves):
        futures = []
        for item in range(BOUND):
            future: asyncio.Future[None] = loop.create_future()
            await queue.put((item, future))
            futures.append(future)
        for future in futures:
            await future
    taken = time.perf_counter() - started
    await consumer
    return waves * BOUND / taken


async def channel_waves(waves: int) -> float:
    async with Channel(nothing, ChannelOptions(batch_items_max=BATCH)) as channel:
        started = time.perf_counter()
        for _ in range(waves):
            receipts = [await channel.submit(item) for item in range(BOUND)]
            for receipt in receipts:
                await receipt.wait()
        taken = time.perf_counter() - started
    check_all(channel.statistics().delivered, waves * BOUND)
    return waves * BOUND / taken


async def by_tasks(each: int, work: Callable[[int], Coroutine[Any, Any, None]]) -> float:
    """Items per second of a hundred tasks that *work* through *each* items, one after the other."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(work(each))
    return TASKS * each / (time.perf_counter() - started)


async def queue_waiters(each: int) -> float:
    """A hundred tasks, each waiting for the future of its own item."""
    queue: asyncio.Queue[tuple[int, asyncio.Future[None]]] = asyncio.Queue(BOUND)
    loop = asyncio.get_running_loop()
    consumer = asyncio.create_task(_answer(queue, TASKS * each))

    async def work(each: int) -> None:
        for item in range(each):
            future: asyncio.Future[None] = loop.create_future()
            await queue.put((item, future))
            await future

    rate = await by_tasks(each, work)
    await consumer
    return rate


async def channel_waiters(each: int) -> float:
    """A hundred tasks, each waiting for the receipt of its own item."""
    # batch_age_max=0, as the hand-written consumer: whoever is free takes what is there.
    async with Channel(nothing, ChannelOptions[int](batch_items_max=BATCH, batch_age_max=0)) as channel:

        async def work(each: int) -> None:
            for item in range(each):
                receipt = await channel.submit(item)
                await receipt.wait()

        rate = await by_tasks(each, work)
    check_all(channel.statistics().delivered, TASKS * each)
    return rate


# --- the cost of a batch, of waiting, of standing still ------------------------------------------


async def channel_batches(count: int) -> float:
    """Microseconds per batch of one item, the item included: cut, leased, sent, settled."""
    options = ChannelOptions[int](batch_items_max=1, max_leases=1)
    async with Channel(nothing, options) as channel:
        started = time.perf_counter()
        for item in range(count):
            await channel.send(item)
        await channel.flush()
        taken = time.perf_counter() - started
    check_all(channel.statistics().delivered, count)
    return taken / count * 1e6


async def awaited_tasks(count: int) -> float:
    """Microseconds per asyncio task that is made and awaited, one after the other: what everybody knows the cost of."""
    started = time.perf_counter()
    for item in range(count):
        await asyncio.create_task(nothing([item]))
    return (time.perf_counter() - started) / count * 1e6


async def channel_lone_items(count: int) -> float:
    """Microseconds from submit to outcome of an item that is alone: two turns of the loop and a batch."""
    async with Channel(nothing, ChannelOptions[int](batch_age_max=0)) as channel:
        started = time.perf_counter()
        for item in range(count):
            receipt = await channel.submit(item)
            await receipt.wait()
        taken = time.perf_counter() - started
    check_all(channel.statistics().delivered, count)
    return taken / count * 1e6


async def queue_batches(count: int) -> float:
    """Microseconds per item through a queue whose consumer takes one at a time."""
    queue: asyncio.Queue[int] = asyncio.Queue(BOUND)

    async def take() -> None:
        for _ in range(count):
            await nothing([await queue.get()])

    consumer = asyncio.create_task(take())
    started = time.perf_counter()
    for item in range(count):
        await queue.put(item)
    await consumer
    return (time.perf_counter() - started) / count * 1e6


async def queue_lone_items(count: int) -> float:
    """Microseconds from putting an item that is alone to its future's result."""
    queue: asyncio.Queue[tuple[int, asyncio.Future[None]]] = asyncio.Queue(BOUND)
    loop = asyncio.get_running_loop()
    consumer = asyncio.create_task(_answer(queue, count))
    started = time.perf_counter()
    for item in range(count):
        future: asyncio.Future[None] = loop.create_future()
        await queue.put((item, future))
        await future
    taken = time.perf_counter() - started
    await consumer
    return taken / count * 1e6


async def channel_wake_ups(senders: int, rounds: int) -> float:
    """Microseconds from one blocked sender's going on to the next one's, with *senders* waiting at first."""
    total = 0.0
    for _ in range(rounds):
        gate = anyio.Event()

        async def hold(batch: Batch[int], gate: anyio.Event = gate) -> None:
            await gate.wait()

        options = ChannelOptions[int](
            batch_items_max=10, max_leases=1, full_behavior=BlockNewItems(max_items=10)
        )
        async with Channel(hold, options) as channel:
            for item in range(10):
                channel.send_nowait(item)
            tasks = [asyncio.create_task(channel.send(item)) for item in range(senders)]
            while channel.statistics().waiters < senders:  # noqa: ASYNC110 -- no event tells this
                await asyncio.sleep(0)
            started = time.perf_counter()
            gate.set()
            await asyncio.gather(*tasks)
            total += time.perf_counter() - started
        check_all(channel.statistics().delivered, senders + 10)
    return total / (senders * rounds) * 1e6


async def queue_wake_ups(senders: int) -> float:
    """The same for tasks that wait to put into a full queue of ten."""
    queue: asyncio.Queue[int] = asyncio.Queue(10)
    for item in range(10):
        queue.put_nowait(item)
    tasks = [asyncio.create_task(queue.put(item)) for item in range(senders)]
    for _ in range(3):  # a task that was just made runs in the next turn of the loop, and blocks
        await asyncio.sleep(0)
    started = time.perf_counter()
    for _ in range(senders + 10):
        await queue.get()
    await asyncio.gather(*tasks)
    return (time.perf_counter() - started) / senders * 1e6


class _CountingSelector(selectors.DefaultSelector):
    """Counts how often the loop that waits on it wakes."""

    wakes = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        self.wakes += 1
        return ready


async def idle_channels(stack: AsyncExitStack) -> None:
    """A hundred channels that have delivered one item each."""
    for _ in range(100):
        channel = await stack.enter_async_context(Channel(nothing, ChannelOptions[int](batch_age_max=0.01)))
        await channel.send(1)
        await channel.flush()


async def _no_one(stack: AsyncExitStack) -> None:
    """What a loop does by itself is counted, too, and taken off."""


def idle_wakes(build: Callable[[AsyncExitStack], Awaitable[None]], seconds: float) -> float:
    """
    Wake-ups of a loop during *seconds* in which nothing happens, beyond those of an empty loop.

    Args:
        build: Sets up what stands idle, to be taken down by the stack.

        seconds: How long it is watched.
    """

    def count(build: Callable[[AsyncExitStack], Awaitable[None]]) -> int:
        selector = _CountingSelector()

        async def main() -> int:
            async with AsyncExitStack() as stack:
                await build(stack)
                await asyncio.sleep(0.05)  # past the last timer that a batch may have set
                before = selector.wakes
                await asyncio.sleep(seconds)
                return selector.wakes - before

        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            return runner.run(main())

    return count(build) - count(_no_one)
