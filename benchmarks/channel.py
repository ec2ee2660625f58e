"""
The Channel beside what one would write by hand on asyncio.

Every turn is one run of a fresh event loop, timed from the first item to the last one settled;
a turn that did not deliver all of them fails.
"""

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any

import anyio

from benchmarks.measure import Row, Sides, at_least, at_most
from dispatcher import Batch, BlockNewItems, BufferFull, Channel, ChannelOptions

__all__ = ["ROWS"]

BATCH = 100
BOUND = 1000


async def _nothing(batch: Sequence[object]) -> None:
    """The sink on both sides."""


def _timed(turn: Callable[[], Awaitable[float]]) -> float:
    with asyncio.Runner() as runner:

        async def main() -> float:
            return await turn()

        return runner.run(main())


def _check_all_delivered(channel: Channel[Any], count: int) -> None:
    delivered = channel.statistics().delivered
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
        await _nothing(batch)


async def _queue_put(count: int) -> float:
    queue: asyncio.Queue[int] = asyncio.Queue(BOUND)
    consumer = asyncio.create_task(_take(queue, count))
    started = time.perf_counter()
    for item in range(count):
        await queue.put(item)
    await consumer
    return count / (time.perf_counter() - started)


async def _let_run(put: Callable[[int], None], item: int) -> None:
    """It was full: let the others run until *put* takes the item."""
    while True:
        await asyncio.sleep(0)
        try:
            return put(item)
        except (asyncio.QueueFull, BufferFull):
            continue


async def _queue_put_nowait(count: int) -> float:
    queue: asyncio.Queue[int] = asyncio.Queue(BOUND)
    consumer = asyncio.create_task(_take(queue, count))
    started = time.perf_counter()
    for item in range(count):
        try:
            queue.put_nowait(item)
        except asyncio.QueueFull:
            await _let_run(queue.put_nowait, item)
    await consumer
    return count / (time.perf_counter() - started)


async def _channel_send(count: int) -> float:
    async with Channel(_nothing, ChannelOptions(batch_items_max=BATCH)) as channel:
        started = time.perf_counter()
        for item in range(count):
            await channel.send(item)
        await channel.flush()
        taken = time.perf_counter() - started
    _check_all_delivered(channel, count)
    return count / taken


async def _channel_send_nowait(count: int) -> float:
    async with Channel(_nothing, ChannelOptions(batch_items_max=BATCH)) as channel:
        started = time.perf_counter()
        for item in range(count):
            try:
                channel.send_nowait(item)
            except BufferFull:
                await _let_run(channel.send_nowait, item)
        await channel.flush()
        taken = time.perf_counter() - started
    _check_all_delivered(channel, count)
    return count / taken


@contextmanager
def _send(scale: float) -> Iterator[Sides]:
    count = int(100_000 * scale)
    yield Sides(partial(_timed, partial(_channel_send, count)), partial(_timed, partial(_queue_put, count)))


@contextmanager
def _send_nowait(scale: float) -> Iterator[Sides]:
    count = int(100_000 * scale)
    yield Sides(
        partial(_timed, partial(_channel_send_nowait, count)),
        partial(_timed, partial(_queue_put_nowait, count)),
    )


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
        await _nothing(batch)
        for _, future in batch:
            if not future.done():
                future.set_result(None)


async def _queue_waves(waves: int) -> float:
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


async def _channel_waves(waves: int) -> float:
    async with Channel(_nothing, ChannelOptions(batch_items_max=BATCH)) as channel:
        started = time.perf_counter()
        for _ in range(waves):
            receipts = [await channel.submit(item) for item in range(BOUND)]
            for receipt in receipts:
                await receipt.wait()
        taken = time.perf_counter() - started
    _check_all_delivered(channel, waves * BOUND)
    return waves * BOUND / taken


async def _queue_waiters(tasks: int, each: int) -> float:
    queue: asyncio.Queue[tuple[int, asyncio.Future[None]]] = asyncio.Queue(BOUND)
    loop = asyncio.get_running_loop()
    consumer = asyncio.create_task(_answer(queue, tasks * each))

    async def one() -> None:
        for item in range(each):
            future: asyncio.Future[None] = loop.create_future()
            await queue.put((item, future))
            await future

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(one())
    taken = time.perf_counter() - started
    await consumer
    return tasks * each / taken


async def _channel_waiters(tasks: int, each: int) -> float:
    # batch_age_max=0, as the hand-written consumer: whoever is free takes what is there.
    async with Channel(_nothing, ChannelOptions(batch_items_max=BATCH, batch_age_max=0)) as channel:

        async def one() -> None:
            for item in range(each):
                receipt = await channel.submit(item)
                await receipt.wait()

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(one())
        taken = time.perf_counter() - started
    _check_all_delivered(channel, tasks * each)
    return tasks * each / taken


@contextmanager
def _submit_waves(scale: float) -> Iterator[Sides]:
    waves = max(1, int(40 * scale))
    yield Sides(
        partial(_timed, partial(_channel_waves, waves)), partial(_timed, partial(_queue_waves, waves))
    )


@contextmanager
def _submit_tasks(scale: float) -> Iterator[Sides]:
    each = max(1, int(250 * scale))
    yield Sides(
        partial(_timed, partial(_channel_waiters, 100, each)),
        partial(_timed, partial(_queue_waiters, 100, each)),
    )


# --- the cost of a batch, of waiting, of standing still ------------------------------------------


async def _batch_cost(count: int) -> float:
    """Microseconds per batch of one item, the item included: cut, leased, sent, settled."""
    options = ChannelOptions[int](batch_items_max=1, max_leases=1)
    async with Channel(_nothing, options) as channel:
        started = time.perf_counter()
        for item in range(count):
            await channel.send(item)
        await channel.flush()
        taken = time.perf_counter() - started
    _check_all_delivered(channel, count)
    return taken / count * 1e6


async def _lone_item(count: int) -> float:
    """Microseconds from submit to outcome of an item that is alone: two turns of the loop and a batch."""
    async with Channel(_nothing, ChannelOptions[int](batch_age_max=0)) as channel:
        started = time.perf_counter()
        for item in range(count):
            receipt = await channel.submit(item)
            await receipt.wait()
        taken = time.perf_counter() - started
    _check_all_delivered(channel, count)
    return taken / count * 1e6


@contextmanager
def _batch(scale: float) -> Iterator[Sides]:
    yield Sides(partial(_timed, partial(_batch_cost, int(5_000 * scale))))


@contextmanager
def _lone(scale: float) -> Iterator[Sides]:
    yield Sides(partial(_timed, partial(_lone_item, int(5_000 * scale))))


async def _wake_up(senders: int, rounds: int) -> float:
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
        _check_all_delivered(channel, senders + 10)
    return total / (senders * rounds) * 1e6


@contextmanager
def _blocked(scale: float) -> Iterator[Sides]:
    many = max(200, int(10_000 * scale))
    yield Sides(
        partial(_timed, partial(_wake_up, many, 1)), partial(_timed, partial(_wake_up, 100, many // 100))
    )


class _CountingSelector(selectors.DefaultSelector):
    """Counts how often the loop that waits on it wakes."""

    wakes = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        self.wakes += 1
        return ready


def _wakes(channels: int, seconds: float) -> float:
    """Wake-ups of a loop during *seconds* in which *channels* channels stand idle, beyond those without any."""

    def count(channels: int) -> int:
        selector = _CountingSelector()

        async def main() -> int:
            async with AsyncExitStack() as stack:
                for _ in range(channels):
                    channel = await stack.enter_async_context(
                        Channel(_nothing, ChannelOptions[int](batch_age_max=0.01))
                    )
                    await channel.send(1)
                    await channel.flush()
                await asyncio.sleep(0.05)  # past the last timer that a batch may have set
                before = selector.wakes
                await asyncio.sleep(seconds)
                return selector.wakes - before

        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            return runner.run(main())

    return count(channels) - count(0)


@contextmanager
def _idle(scale: float) -> Iterator[Sides]:
    yield Sides(partial(_wakes, 100, 1.0 * scale))


ROWS = (
    Row(
        name="send",
        what="await send, room there, SendFn a no-op, batches of 100",
        yardstick="asyncio.Queue(1000): await put; get, then get_nowait up to 100",
        unit="items/s",
        bar=at_least(1.5),
        open=_send,
    ),
    Row(
        name="send_nowait",
        what="send_nowait until full, then let the others run",
        yardstick="the same queue with put_nowait",
        unit="items/s",
        bar=at_least(2.0),
        open=_send_nowait,
    ),
    Row(
        name="submit-waves",
        what="submit 1 000, then wait for each outcome, by one task",
        yardstick="one asyncio.Future per item through the same queue",
        unit="items/s",
        bar=at_least(1.0),
        open=_submit_waves,
    ),
    Row(
        name="submit-tasks",
        what="submit and wait, 100 tasks each for its own",
        yardstick="the same with one asyncio.Future per item",
        unit="items/s",
        bar=at_least(0.7),
        open=_submit_tasks,
    ),
    Row(
        name="batch",
        what="one batch of one item: cut, leased, sent, settled",
        unit="us",
        bar=at_most(20),
        open=_batch,
    ),
    Row(name="lone-item", what="a lone item, from submit to its outcome", unit="us", open=_lone),
    Row(
        name="idle",
        what="wake-ups that 100 idle channels cause in a second",
        unit="wake-ups",
        bar=at_most(0),
        turns=3,
        open=_idle,
    ),
    Row(
        name="blocked-senders",
        what="time per wake-up with 10 000 senders blocked",
        yardstick="with 100 blocked",
        unit="us",
        bar=at_most(2, of="ratio"),
        turns=5,
        open=_blocked,
    ),
)
