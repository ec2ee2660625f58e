"""
How other packages are used for the same job: each in the fastest way that its documentation offers.

What each use says of itself stands in the table of rows, so that whoever knows a faster way can tell.
"""

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from benchmarks.measure import Unavailable
from benchmarks.turns import BATCH, BOUND, TASKS, by_tasks, check_all, let_run, nothing

__all__ = [
    "aiostream_chunks",
    "anyio_batches",
    "anyio_lone_items",
    "anyio_send",
    "anyio_send_nowait",
    "anyio_waiters",
    "anyio_wake_ups",
    "anyio_waves",
    "async_batcher_idle",
    "async_batcher_lone_items",
    "async_batcher_waiters",
    "async_batcher_waves",
    "batched_batches",
    "batched_idle",
    "batched_lone_items",
    "batched_waiters",
    "batched_waves",
    "batchit_timed",
    "batchit_untimed",
    "package",
    "streamable_timed",
    "streamable_untimed",
]

Asked = tuple[int, "asyncio.Future[None]"]


def package(name: str) -> Any:  # noqa: ANN401 -- most of them bring no types
    """
    Import a package that the dependency group *bench* pins.

    Raises:
        Unavailable: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = f"{name} cannot be imported ({error}): pip install --group bench"
        raise Unavailable(reason) from error


# --- anyio: a memory object stream with room for a thousand, emptied as one empties a queue ------


async def _take(stream: MemoryObjectReceiveStream[int], count: int) -> None:
    while count:
        batch = [await stream.receive()]
        while len(batch) < BATCH:
            try:
                batch.append(stream.receive_nowait())
            except anyio.WouldBlock:
                break
        count -= len(batch)
        await nothing(batch)


async def _answer(stream: MemoryObjectReceiveStream[Asked], count: int) -> None:
    while count:
        batch = [await stream.receive()]
        while len(batch) < BATCH:
            try:
                batch.append(stream.receive_nowait())
            except anyio.WouldBlock:
                break
        count -= len(batch)
        await nothing(batch)
        for _, future in batch:
            if not future.done():
                future.set_result(None)


async def anyio_send(count: int) -> float:
    """``await send``, which lets other tasks run at every item."""
    sender, receiver = anyio.create_memory_object_stream[int](BOUND)
    async with sender, receiver:
        consumer = asyncio.create_task(_take(receiver, count))
        started = time.perf_counter()
        for item in range(count):
            await sender.send(item)
        await consumer
        return count / (time.perf_counter() - started)


async def anyio_send_nowait(count: int) -> float:
    """``send_nowait`` until it would block, then let the consumer run."""
    sender, receiver = anyio.create_memory_object_stream[int](BOUND)
    async with sender, receiver:
        consumer = asyncio.create_task(_take(receiver, count))
        started = time.perf_counter()
        for item in range(count):
            try:
                sender.send_nowait(item)
            except anyio.WouldBlock:
                await let_run(sender.send_nowait, item)
        await consumer
        return count / (time.perf_counter() - started)


async def anyio_waves(waves: int) -> float:
    """Each item with an `asyncio.Future`, which is cheaper than an `anyio.Event`."""
    sender, receiver = anyio.create_memory_object_stream[Asked](BOUND)
    loop = asyncio.get_running_loop()
    async with sender, receiver:
        consumer = asyncio.create_task(_answer(receiver, waves * BOUND))
        started = time.perf_counter()
        for _ in range(waves):
            futures = []
            for item in range(BOUND):
                future: asyncio.Future[None] = loop.create_future()
                await sender.send((item, future))
                futures.append(future)
            for future in futures:
                await future
        taken = time.perf_counter() - started
        await consumer
    return waves * BOUND / taken


async def anyio_waiters(each: int) -> float:
    """A hundred tasks, each with a future for its own item."""
    sender, receiver = anyio.create_memory_object_stream[Asked](BOUND)
    loop = asyncio.get_running_loop()

    async def work(each: int) -> None:
        for item in range(each):
            future: asyncio.Future[None] = loop.create_future()
            await sender.send((item, future))
            await future

    async with sender, receiver:
        consumer = asyncio.create_task(_answer(receiver, TASKS * each))
        rate = await by_tasks(each, work)
        await consumer
    return rate


async def anyio_batches(count: int) -> float:
    """Microseconds per item through a stream whose consumer takes one at a time."""
    sender, receiver = anyio.create_memory_object_stream[int](BOUND)

    async def take() -> None:
        for _ in range(count):
            await nothing([await receiver.receive()])

    async with sender, receiver:
        consumer = asyncio.create_task(take())
        started = time.perf_counter()
        for item in range(count):
            await sender.send(item)
        await consumer
        return (time.perf_counter() - started) / count * 1e6


async def anyio_lone_items(count: int) -> float:
    """Microseconds from sending an item that is alone to its future's result."""
    sender, receiver = anyio.create_memory_object_stream[Asked](BOUND)
    loop = asyncio.get_running_loop()
    async with sender, receiver:
        consumer = asyncio.create_task(_answer(receiver, count))
        started = time.perf_counter()
        for item in range(count):
            future: asyncio.Future[None] = loop.create_future()
            await sender.send((item, future))
            await future
        taken = time.perf_counter() - started
        await consumer
    return taken / count * 1e6


async def anyio_wake_ups(senders: int) -> float:
    """Microseconds per task that waits to send into a full stream, until all have gone on."""
    sender, receiver = anyio.create_memory_object_stream[int](10)
    async with sender, receiver:
        for item in range(10):
            sender.send_nowait(item)
        tasks = [asyncio.create_task(sender.send(item)) for item in range(senders)]
        while sender.statistics().tasks_waiting_send < senders:  # noqa: ASYNC110 -- no event tells this
            await asyncio.sleep(0)
        started = time.perf_counter()
        for _ in range(senders + 10):
            await receiver.receive()
        await asyncio.gather(*tasks)
        return (time.perf_counter() - started) / senders * 1e6


# --- packages that cut a stream into batches ------------------------------------------------------


async def _numbers(count: int) -> AsyncIterator[int]:
    """An asynchronous source that has every item at hand: no producer beside it, which is less than send does."""
    for item in range(count):
        yield item


async def _batchit(count: int, seconds: float | None) -> float:
    batchit = package("batchit")
    queue: asyncio.Queue[object] = asyncio.Queue(BOUND)

    async def produce() -> None:
        for item in range(count):
            await queue.put(item)
        await queue.put(batchit.STOP)

    done = 0
    started = time.perf_counter()
    producer = asyncio.create_task(produce())
    async for batch in batchit.drain_queue(queue, size=BATCH, timeout=seconds):
        await nothing(batch)
        done += len(batch)
    taken = time.perf_counter() - started
    await producer
    check_all(done, count)
    return count / taken


async def batchit_timed(count: int) -> float:
    """``drain_queue`` on an `asyncio.Queue(1000)` with a time limit: send's job, and the faster of its timed forms."""
    return await _batchit(count, 1.0)


async def batchit_untimed(count: int) -> float:
    """The same by count alone; a last item would wait for 99 others."""
    return await _batchit(count, None)


async def _streamable(count: int, within: timedelta | None) -> float:
    stream = package("streamable").stream
    done = 0
    started = time.perf_counter()
    async for batch in stream(_numbers(count)).group(BATCH, within=within):
        await nothing(batch)
        done += len(batch)
    taken = time.perf_counter() - started
    check_all(done, count)
    return count / taken


async def streamable_timed(count: int) -> float:
    """``group(100, within=1 s)`` over an asynchronous generator, consumed by ``async for``."""
    return await _streamable(count, timedelta(seconds=1))


async def streamable_untimed(count: int) -> float:
    """``group(100)`` by count alone; neither clock nor producer is left, only a list that is filled."""
    return await _streamable(count, None)


async def aiostream_chunks(count: int) -> float:
    """``stream.chunks`` over an asynchronous generator; there is none with a time limit."""
    stream = package("aiostream").stream
    done = 0
    started = time.perf_counter()
    async with stream.chunks(_numbers(count), BATCH).stream() as batches:
        async for batch in batches:
            await nothing(batch)
            done += len(batch)
    taken = time.perf_counter() - started
    check_all(done, count)
    return count / taken


# --- packages that give every caller its item's result --------------------------------------------


def _async_batcher(concurrency: int) -> Any:  # noqa: ANN401 -- it brings no types
    base: Any = package("async_batcher.batcher").AsyncBatcher

    class Batcher(base):  # type: ignore[misc]  # a base of type Any is all there is
        async def process_batch(self, batch: list[int]) -> None:
            await nothing(batch)

    return Batcher(max_batch_size=BATCH, max_queue_time=0, concurrency=concurrency)


async def async_batcher_waves(waves: int) -> float:
    """A thousand ``process`` calls gathered; ``max_queue_time=0`` waits for nobody, four batches at once as in ours."""
    batcher = _async_batcher(4)
    started = time.perf_counter()
    for _ in range(waves):
        await asyncio.gather(*[batcher.process(item) for item in range(BOUND)])
    taken = time.perf_counter() - started
    await batcher.stop(force=True)
    return waves * BOUND / taken


async def async_batcher_waiters(each: int) -> float:
    """``process`` by a hundred tasks, with as many batches at once as there are, which is its faster form here."""
    batcher = _async_batcher(-1)

    async def work(each: int) -> None:
        for item in range(each):
            await batcher.process(item)

    rate = await by_tasks(each, work)
    await batcher.stop(force=True)
    return rate


async def async_batcher_lone_items(count: int) -> float:
    """Microseconds per ``process`` of an item that is alone, without any waiting for others."""
    batcher = _async_batcher(-1)
    started = time.perf_counter()
    for item in range(count):
        await batcher.process(item)
    taken = time.perf_counter() - started
    await batcher.stop(force=True)
    return taken / count * 1e6


async def async_batcher_idle(stack: AsyncExitStack) -> None:
    """A hundred batchers that have each processed one item."""
    for _ in range(100):
        batcher = _async_batcher(4)
        await batcher.process(1)
        stack.push_async_callback(batcher.stop, force=True)


async def _back(items: Sequence[int]) -> Sequence[int]:
    """batched wants a result for every item."""
    return items


def _batched(size: int, milliseconds: float) -> Any:  # noqa: ANN401 -- it brings no types
    return package("batched.aio").dynamically(_back, batch_size=size, timeout_ms=milliseconds)


async def batched_waves(waves: int) -> float:
    """One call with a list of a thousand, its fastest form; ``timeout_ms=0`` polls the loop instead of waiting 5 ms."""
    call = _batched(BATCH, 0)
    started = time.perf_counter()
    for _ in range(waves):
        await call(list(range(BOUND)))
    return waves * BOUND / (time.perf_counter() - started)


async def batched_waiters(each: int) -> float:
    """A call for each item by a hundred tasks; ``timeout_ms=0`` polls the loop instead of waiting 5 ms."""
    call = _batched(BATCH, 0)

    async def work(each: int) -> None:
        for item in range(each):
            await call(item)

    return await by_tasks(each, work)


async def batched_batches(count: int) -> float:
    """Microseconds per batch of one, from one call with the list of all of them."""
    call = _batched(1, 0)
    started = time.perf_counter()
    await call(list(range(count)))
    return (time.perf_counter() - started) / count * 1e6


async def batched_lone_items(count: int) -> float:
    """Microseconds per call with an item that is alone, polling."""
    call = _batched(BATCH, 0)
    started = time.perf_counter()
    for item in range(count):
        await call(item)
    return (time.perf_counter() - started) / count * 1e6


async def batched_idle(stack: AsyncExitStack) -> None:
    """A hundred processors with the pause of 5 ms that they come with, each of which has done one item."""
    calls = [_batched(BATCH, 5) for _ in range(100)]
    await asyncio.gather(*[call(1) for call in calls])
    stack.callback(calls.clear)  # they live as long as somebody holds them
