"""Both event loops, with clocks that jump; and what the tests of the Channel share."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from dispatcher import Batch, Channel, ChannelStatistics, DropReason
from dispatcher.testing import JumpingLoop, jumping_asyncio, jumping_trio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """asyncio and trio, each with a clock that jumps to the next timer."""
    return jumping_asyncio() if request.param == "asyncio" else jumping_trio()


@pytest.fixture
def on_trio(anyio_backend_name: str) -> bool:
    """The test runs on trio."""
    return anyio_backend_name == "trio"


def _tasks() -> int:
    """Tasks of this event loop; on trio none can outlive its nursery."""
    try:
        return len([task for task in asyncio.all_tasks() if not task.done()])
    except RuntimeError:
        return 0


@pytest.fixture
async def no_leaks(anyio_backend: Any) -> AsyncIterator[None]:
    """After the test there are as many tasks as before, and no garbage complains."""
    before = _tasks()
    yield
    assert _tasks() == before
    gc.collect(1)  # what a test leaves is young; a whole collection costs more than most tests


class Hooks:
    """Hooks that remember; what `on_error` answers is *verdict*."""

    def __init__(self, verdict: bool | None = None) -> None:
        self.verdict = verdict
        self.errors: list[tuple[Batch[Any], Exception]] = []
        self.drops: list[tuple[Batch[Any], DropReason]] = []
        self.log: list[str] = []

    def on_error(self, batch: Batch[Any], error: Exception) -> bool | None:
        """Remember an attempt that failed."""
        self.errors.append((batch, error))
        self.log.append(f"error {list(batch)}")
        return self.verdict

    def on_drop(self, batch: Batch[Any], reason: DropReason) -> None:
        """Remember a drop."""
        self.drops.append((batch, reason))
        self.log.append(f"drop {list(batch)} {reason.value}")

    def on_drained(self) -> None:
        """Remember the end."""
        self.log.append("drained")

    @property
    def dropped(self) -> list[tuple[tuple[Any, ...], DropReason]]:
        """What was dropped, without the batches."""
        return [(batch.items, reason) for batch, reason in self.drops]

    @property
    def all(self) -> dict[str, Any]:
        """As options."""
        return {"on_error": self.on_error, "on_drop": self.on_drop, "on_drained": self.on_drained}


@pytest.fixture
def hooks() -> Hooks:
    """Hooks that remember."""
    return Hooks()


def _check_law_1(statistics: ChannelStatistics) -> None:
    assert (
        statistics.accepted
        == statistics.delivered + statistics.failed + statistics.dropped_items + statistics.live
    )


@pytest.fixture
def law_1() -> Callable[[Channel[Any, Any]], ChannelStatistics]:
    """Check that every accepted item is accounted for; returns the statistics."""

    def check(channel: Channel[Any, Any]) -> ChannelStatistics:
        statistics = channel.statistics()
        _check_law_1(statistics)
        return statistics

    return check


class Gate:
    """A SendFn that holds its batches until it is opened."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.seen: list[Batch[Any]] = []
        self.cancelled = 0
        self.running = 0

    async def __call__(self, batch: Batch[Any], /) -> None:
        """Wait for the gate."""
        self.seen.append(batch)
        self.running += 1
        try:
            await self.opened.wait()
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def open(self) -> None:
        """Let everything through, from now on."""
        self.opened.set()

    @property
    def batches(self) -> list[tuple[Any, ...]]:
        """What it was given."""
        return [batch.items for batch in self.seen]


@pytest.fixture
async def gate(anyio_backend: Any) -> Gate:
    """A SendFn that holds its batches until it is opened."""
    return Gate()


class Turns:
    """Lets everything run that can, without a tick of the clock."""

    async def __call__(self, turns: int = 20) -> None:
        """Pass so many turns of the loop."""
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()


@pytest.fixture
def settle() -> Turns:
    """Lets everything run that can, without a tick of the clock."""
    return Turns()


@pytest.fixture
def jump() -> Callable[[float], None]:
    """Let time pass without a turn of the loop, as a slow function does."""

    def forward(seconds: float) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            clock = trio.lowlevel.current_clock()
            assert isinstance(clock, trio.testing.MockClock)
            clock.jump(seconds)
        else:
            assert isinstance(loop, JumpingLoop)
            loop._now += seconds  # noqa: SLF001 - the fake's own knob

    return forward
