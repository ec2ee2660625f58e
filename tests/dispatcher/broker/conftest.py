"""A broker over every store, in a time that jumps where no thread is asked."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatcher.broker import Broker, TopicOptions
from dispatcher.stores import MemoryStore, SQLiteStore


class Time:
    """A clock that is told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def pass_(self, seconds: float) -> None:
        """Let it go on."""
        self.now += seconds


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real loops: an SQLite store's thread knows no jumping clock."""
    return str(request.param)


@pytest.fixture
def time() -> Time:
    """The time of the store."""
    return Time()


OpenBroker = Callable[..., AbstractAsyncContextManager[Broker]]


@pytest.fixture(params=["memory", "sqlite"])
def open_broker(request: pytest.FixtureRequest, tmp_path: Path, time: Time) -> OpenBroker:
    """Opens a broker, again and again over the same store."""
    memory = MemoryStore(clock=time)

    @asynccontextmanager
    async def opened(**topics: TopicOptions) -> AsyncIterator[Broker]:
        store: Any = (
            memory if request.param == "memory" else SQLiteStore(tmp_path / "broker.db", "os", clock=time)
        )
        async with store, Broker(store, topics) as broker:
            yield broker

    return opened
