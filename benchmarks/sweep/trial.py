"""
One turn of one cell: a channel with the cell's options, a load, and what came of it.

The load runs through three phases: warm-up, the window that is measured, and as long again as the items
accepted in the window need to be settled, so that neither begin nor end of a turn is in the figures. What
is still in the channel a window's length after that is dropped, and SendFns that still run are cancelled.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel
import attrs

from benchmarks.sweep.figures import Call, Turn, percentile, rate
from dispatcher import Batch, Channel, ChannelOptions, ChannelStatistics, OptionError, Receipt, Status
from dispatcher.typing import SendFn

__all__ = ["Load", "TurnFailed", "run_turn"]

WARM_UP = 0.25
"""Of the window's length."""

LONGEST = 4
"""A window with too few calls is made longer, up to so many times."""

CALLS_PER_LEASE = 4
"""Fewer calls than these in a window say little."""

SAMPLES = 2000
"""Items of a turn whose delivery is timed, about; each costs a task."""


@attrs.frozen(kw_only=True)
class Load:
    """
    What is offered.

    Args:
        rate: Items per second, evenly spaced; None: producers as fast as they may.

        seconds: Length of the window.

        producers: Tasks that send.
    """

    rate: float | None = None
    seconds: float = 0.4
    producers: int = 4


class TurnFailed(Exception):
    """The user's opener, or function that makes items, raised; there are no figures. The text says which."""

    def __init__(self, what: str, error: Exception) -> None:
        super().__init__(f"{what} raised {type(error).__name__}: {error}")


class _Watched:
    """The SendFn that the channel gets: the user's, with a note of each call; results are not passed on."""

    def __init__(self, send: SendFn[Any, Any]) -> None:
        self._send = send
        self.calls: list[Call] = []

    async def __call__(self, batch: Batch[Any], /) -> None:
        began = anyio.current_time()
        try:
            await self._send(batch)
        finally:
            self.calls.append(Call(began, anyio.current_time(), len(batch)))


@attrs.frozen(kw_only=True)
class _Mark:
    """One edge of the window: everything is looked at in one step of the loop, so that it fits together."""

    at: float
    calls: int
    counts: ChannelStatistics
    cpu: float


class _Run:
    def __init__(
        self, send: SendFn[Any, Any], options: ChannelOptions[Any], make: Callable[[], object], load: Load
    ) -> None:
        self._load = load
        self._make = make
        self._leases = options.max_leases
        self._at_once = options.max_leases * (options.batch_items_max or math.inf)
        self._age = options.batch_age_max
        self._watched = _Watched(send)
        self._errors: Counter[str] = Counter()
        self._failed: TurnFailed | None = None
        self._chance = random.Random(1)
        self._sampling = False
        self._over = anyio.Event()
        self._settled = anyio.Event()
        self._taken = 0
        self._waiting: dict[Receipt[None], float] = {}
        self._latencies: list[float] = []
        self._channel: Channel[Any] = Channel(
            self._watched,
            attrs.evolve(options, on_error=self._note, on_drop=None),
        )

    def _note(self, batch: Batch[Any], error: Exception) -> None:
        self._errors[f"{type(error).__name__}: {error}"[:200]] += 1

    async def run(self) -> Turn:
        load = self._load
        async with anyio.create_task_group() as group, self._channel as channel:
            self._group = group
            began = anyio.current_time()
            for number in range(load.producers):
                group.start_soon(self._produce, began, number)
            await self._warm_up(began)
            begin = self._mark()
            await self._window(begin.at)
            end = self._mark()
            await self._settle()
            self._over.set()
            channel.close()
            with anyio.move_on_after(load.seconds):
                await channel.wait_drained()
            left = channel.statistics().live
            channel.cancel()
        if self._failed is not None:
            raise self._failed
        return self._figures(begin, end, left)

    def _mark(self) -> "_Mark":
        return _Mark(
            at=anyio.current_time(),
            calls=len(self._watched.calls),
            counts=self._channel.statistics(),
            cpu=time.process_time(),
        )

    async def _warm_up(self, began: float) -> None:
        """As fast as it goes: until each sender has had its first call, whose begin is like no other's."""
        load = self._load
        await anyio.sleep(WARM_UP * load.seconds + (self._age if load.rate is not None else 0))
        while load.rate is None and len(self._watched.calls) < self._leases:
            if anyio.current_time() - began >= LONGEST * load.seconds:
                break
            await anyio.sleep(load.seconds / 4)

    async def _window(self, begin: float) -> None:
        """Sample deliveries until there is enough to go by, or no hope that there will be."""
        seconds = self._load.seconds
        if self._load.rate is not None:
            seconds = max(seconds, 5 * self._age)  # a few batches that are cut by age
        so_far = len(self._watched.calls)
        self._sampling = True
        while True:
            await anyio.sleep(max(0.0, begin + seconds - anyio.current_time()))
            wanted = so_far + max(8, CALLS_PER_LEASE * self._leases)
            passed = anyio.current_time() - begin
            if len(self._watched.calls) >= wanted or passed >= LONGEST * self._load.seconds:
                break
            seconds = passed + self._load.seconds / 4
        self._sampling = False

    async def _settle(self) -> None:
        """
        Keep the load up until the window's items are settled: closing would cut their batches early.

        What is not settled in time counts as having taken so long: a bound from below, but to leave the
        slowest out would flatter.
        """
        with anyio.move_on_after(self._age + self._load.seconds):
            if self._waiting:
                await self._settled.wait()
        now = anyio.current_time()
        if self._latencies:  # where nothing is delivered, there is no latency either
            self._latencies += [now - accepted for accepted in self._waiting.values()]
        self._waiting.clear()

    async def _produce(self, began: float, number: int) -> None:
        try:
            if self._load.rate is None:
                while not self._over.is_set():
                    await self._give()
            else:
                await self._produce_at(self._load.rate / self._load.producers, began, number)
        except anyio.ClosedResourceError:
            pass  # the turn ended while this one waited for room
        except TurnFailed as error:
            self._failed = error
            self._group.cancel_scope.cancel()

    async def _produce_at(self, per_second: float, began: float, number: int) -> None:
        began += number / per_second / self._load.producers
        given = 0
        while not self._over.is_set():
            # What is due but for a rounding is due: or this would sleep for nothing, again and again.
            due = math.floor((anyio.current_time() - began) * per_second + 1e-6) + 1
            for _ in range(due - given):
                await self._give()
                if self._over.is_set():
                    return
            given = max(due, given)
            await anyio.sleep(max(0.0, began + given / per_second - anyio.current_time()))

    async def _give(self) -> None:
        self._taken += 1
        if self._sampling and self._chance.random() < self._share():
            receipt = await self._channel.submit(self._item())
            self._waiting[receipt] = anyio.current_time()
            self._group.start_soon(self._wait, receipt)
        else:
            await self._channel.send(self._item())

    def _item(self) -> object:
        try:
            return self._make()
        except Exception as error:
            what = "the function that makes items"
            raise TurnFailed(what, error) from error

    def _share(self) -> float:
        """Of the items to be timed: all while they are few, and then fewer, so that timing costs little."""
        return min(1.0, SAMPLES / self._taken)

    async def _wait(self, receipt: Receipt[None]) -> None:
        outcome = await receipt.wait()
        accepted = self._waiting.pop(receipt, None)
        if not self._waiting and not self._sampling:
            self._settled.set()
        if accepted is not None and outcome.status is Status.DELIVERED:
            self._latencies.append(anyio.current_time() - accepted)

    def _figures(self, begin: "_Mark", end: "_Mark", left: int) -> Turn:
        inside = self._watched.calls[begin.calls : end.calls]
        before = self._watched.calls[begin.calls - 1].ended if begin.calls else None
        count = len(inside)
        delivered = end.counts.delivered - begin.counts.delivered
        failed = end.counts.failed - begin.counts.failed
        latencies = sorted(self._latencies)
        throughput = rate(before, [call.ended for call in inside], begin.at, end.at, delivered)
        call_seconds = sum(call.ended - call.began for call in inside) / count if count else 0.0
        return Turn(
            offered=self._load.rate,
            throughput=throughput,
            p50=percentile(latencies, 0.5),
            p99=percentile(latencies, 0.99),
            batch_items=sum(call.items for call in inside) / count if count else 0.0,
            call_seconds=call_seconds,
            used=throughput * call_seconds / self._at_once,
            cpu=(end.cpu - begin.cpu) / (end.at - begin.at),
            calls=count,
            retries=end.counts.retries - begin.counts.retries,
            failed=self._channel.statistics().failed,
            lost=failed / (failed + delivered) if failed else 0.0,
            left=left,
            errors=dict(self._errors),
        )


async def run_turn(
    open_sink: Callable[[], AbstractAsyncContextManager[SendFn[Any, Any]]],
    options: ChannelOptions[Any],
    make: Callable[[], object],
    load: Load,
) -> Turn:
    """
    Run one turn.

    Args:
        open_sink: Opens a SendFn; what that takes is not in the figures.

        options: The channel's; its hooks are replaced by ones that count.

        make: Makes an item.

        load: What to offer.

    Raises:
        TurnFailed: If opening raised, or making an item.
    """
    stack = AsyncExitStack()
    try:
        send = await stack.enter_async_context(open_sink())
    except OptionError:
        raise
    except Exception as error:
        what = "opening the sink"
        raise TurnFailed(what, error) from error
    async with stack:
        return await _Run(send, options, make, load).run()
