"""
What an item costs while it waits, in octets and, with a receipt, in time; as Python counts what it allocates.
"""

import asyncio
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from benchmarks.measure import Row, Sides
from benchmarks.turns import check_all, timed
from dispatcher import Batch, BlockNewItems, Channel, ChannelOptions, Receipt

__all__ = ["ROWS"]

Grow = Callable[[], None]


class _Gate:
    """A sink that holds every batch until it is opened."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    async def send(self, batch: Batch[int]) -> None:
        await self._open.wait()


async def _octets(grow: Grow) -> int:
    """How much *grow* allocates and keeps, what the loop does next included."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        grow()
        await asyncio.sleep(0)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before


def _options(count: int) -> ChannelOptions[int]:
    return ChannelOptions(full_behavior=BlockNewItems(max_items=count))


def _items(count: int) -> Sequence[int]:
    """The items themselves, which cost the same wherever they wait."""
    return [1_000_000 + number for number in range(count)]


async def _channel_items(count: int) -> float:
    items, gate = _items(count), _Gate()

    def grow() -> None:
        for item in items:
            channel.send_nowait(item)

    async with Channel(gate.send, _options(count)) as channel:
        grown = await _octets(grow)
        gate.open()
        await channel.flush()
    check_all(channel.statistics().delivered, count)
    return grown / count


async def _queue_items(count: int) -> float:
    items = _items(count)
    queue: asyncio.Queue[int] = asyncio.Queue(count)

    def grow() -> None:
        for item in items:
            queue.put_nowait(item)

    return await _octets(grow) / count


async def _channel_receipts(count: int) -> float:
    items, gate = _items(count), _Gate()
    receipts: list[Receipt[object] | None] = [None] * count

    def grow() -> None:
        for at, item in enumerate(items):
            receipts[at] = channel.submit_nowait(item)

    async with Channel(gate.send, _options(count)) as channel:
        grown = await _octets(grow)
        gate.open()
        await channel.flush()
    check_all(channel.statistics().delivered, count)
    return grown / count


async def _queue_futures(count: int) -> float:
    items = _items(count)
    futures: list[asyncio.Future[None] | None] = [None] * count
    queue: asyncio.Queue[tuple[int, asyncio.Future[None]]] = asyncio.Queue(count)
    loop = asyncio.get_running_loop()

    def grow() -> None:
        for at, item in enumerate(items):
            futures[at] = future = loop.create_future()
            queue.put_nowait((item, future))

    return await _octets(grow) / count


async def _channel_time(count: int) -> float:
    """Microseconds per receipt: all of them asked for, then all outcomes, then each waited for."""
    gate = _Gate()
    async with Channel(gate.send, _options(count)) as channel:
        started = time.perf_counter()
        receipts = [channel.submit_nowait(item) for item in range(count)]
        gate.open()
        for receipt in receipts:
            await receipt.wait()
        taken = time.perf_counter() - started
    check_all(channel.statistics().delivered, count)
    return taken / count * 1e6


async def _queue_time(count: int) -> float:
    """The same with a future per item, and a consumer that takes a hundred at a time."""
    queue: asyncio.Queue[tuple[int, asyncio.Future[None]]] = asyncio.Queue(count)
    loop = asyncio.get_running_loop()
    gate = asyncio.Event()

    async def answer() -> None:
        await gate.wait()
        while not queue.empty():
            batch = [queue.get_nowait() for _ in range(min(100, queue.qsize()))]
            for _, future in batch:
                future.set_result(None)
            await asyncio.sleep(0)

    consumer = asyncio.create_task(answer())
    started = time.perf_counter()
    futures = []
    for item in range(count):
        future: asyncio.Future[None] = loop.create_future()
        queue.put_nowait((item, future))
        futures.append(future)
    gate.set()
    for future in futures:
        await future
    taken = time.perf_counter() - started
    await consumer
    return taken / count * 1e6


@contextmanager
def _beside(
    scale: float,
    *,
    subject: Callable[[int], Awaitable[float]],
    yardstick: Callable[[int], Awaitable[float]],
) -> Iterator[Sides]:
    count = max(1000, int(100_000 * scale))
    yield Sides(partial(timed, partial(subject, count)), partial(timed, partial(yardstick, count)))


ROWS = (
    Row(
        name="memory-buffered",
        what="memory of one of 100 000 buffered items, without the item",
        yardstick="asyncio.Queue",
        unit="octets",
        turns=3,
        open=partial(_beside, subject=_channel_items, yardstick=_queue_items),
    ),
    Row(
        name="memory-receipts",
        what="memory of one of 100 000 buffered items with a receipt, without the item",
        yardstick="asyncio.Queue, with a Future for each item",
        unit="octets",
        turns=3,
        open=partial(_beside, subject=_channel_receipts, yardstick=_queue_futures),
    ),
    Row(
        name="receipts",
        what="time per receipt, 100 000 outstanding at once",
        yardstick="100 000 Futures through asyncio.Queue",
        unit="us",
        turns=9,
        open=partial(_beside, subject=_channel_time, yardstick=_queue_time),
    ),
)
