"""Faults of pelichan, each found by running it, that do not come back here. Numbers as in the documentation."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from dispatcher import Batch, ChannelOptions, DurableChannel
from dispatcher.codecs import JSON
from dispatcher.stores import MemoryStore, Record, SQLiteStore


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Real loops: an SQLite store's thread knows no jumping clock."""
    return request.param


OPTIONS = ChannelOptions[Any](batch_items_max=1, batch_age_max=0, max_leases=1, fifo=True)


class Seen:
    """A SendFn that remembers."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    async def __call__(self, batch: Batch[Any], /) -> None:
        """Remember."""
        self.items += batch


async def until(seen: Seen, count: int) -> None:
    with anyio.fail_after(20):
        while len(seen.items) < count:  # noqa: ASYNC110 - of another's doing, no event tells
            await anyio.sleep(0.002)


@pytest.mark.parametrize("mode", ["overflow", "journal"])
async def test_p1_the_store_has_it_until_it_is_delivered(tmp_path: Path, mode: Any) -> None:
    """Nothing is deleted on its way into memory: a look into the file shows all that is under way."""
    started, finish = anyio.Event(), anyio.Event()

    async def hold(batch: Batch[Any]) -> None:
        started.set()
        await finish.wait()

    async with SQLiteStore(tmp_path / "q.db") as store:
        await store.create("q")
        await store.put([Record(b"%d" % n) for n in range(5)], ["q"])
        async with DurableChannel(hold, store, "q", mode, options=OPTIONS):
            with anyio.fail_after(20):
                await started.wait()
            assert (await store.counts("q")).live.items == 5
            finish.set()


async def test_p3_nothing_that_cannot_be_read_reaches_the_consumer() -> None:
    """A codec that raises, or a record of another shape: set aside, and the next goes on."""
    seen = Seen()
    async with MemoryStore() as store:
        await store.create("q")
        await store.put([Record(b"{"), Record(b'"good"')], ["q"])
        async with DurableChannel(seen, store, "q", codec=JSON(), options=OPTIONS):
            await until(seen, 1)
        assert seen.items == ["good"]
        assert (await store.counts("q")).quarantined.items == 1


@pytest.mark.parametrize("mode", ["overflow", "journal"])
async def test_p5_closing_again_does_nothing(mode: Any) -> None:
    """In any order, and after the end."""
    seen = Seen()
    async with MemoryStore() as store:
        async with DurableChannel(seen, store, "q", mode, options=OPTIONS) as channel:
            await channel.send(1)
            channel.close()
            channel.close()
            await channel.aclose()
            channel.cancel()
            channel.close()
            with pytest.raises(anyio.ClosedResourceError):
                await channel.send(2)
        channel.close()
        assert seen.items == [1]


async def test_p5_halting_while_it_closes_loses_nothing(tmp_path: Path) -> None:
    """The end of the block does not wait for a drain that was begun: what is left, is left on disk."""

    async def away(batch: Batch[Any]) -> None:
        raise ConnectionError

    quiet = ChannelOptions[Any](batch_items_max=1, batch_age_max=0, fifo=True, max_leases=1, on_error=None)
    async with SQLiteStore(tmp_path / "q.db") as store:
        async with DurableChannel(away, store, "q", "journal", options=quiet) as channel:
            for n in range(5):
                await channel.send(n)
            channel.close()
        seen = Seen()
        async with DurableChannel(seen, store, "q", "journal", options=OPTIONS) as channel:
            channel.close()
            await channel.wait_drained()
        assert seen.items == [0, 1, 2, 3, 4]


async def test_p7_a_halt_turns_nothing_round(tmp_path: Path) -> None:
    """The oldest stay the oldest, over as many halts as one likes."""
    held = anyio.Event()

    async def hold(batch: Batch[Any]) -> None:
        held.set()
        raise ConnectionError

    quiet = ChannelOptions[Any](batch_items_max=1, batch_age_max=0, fifo=True, max_leases=1, on_error=None)
    async with SQLiteStore(tmp_path / "q.db") as store:
        for first in (0, 4):
            held = anyio.Event()
            async with DurableChannel(hold, store, "q", options=quiet) as channel:
                for n in range(first, first + 4):
                    await channel.send(n)
                with anyio.fail_after(20):
                    await held.wait()
        seen = Seen()
        async with DurableChannel(seen, store, "q", options=OPTIONS):
            await until(seen, 8)
        assert seen.items == list(range(8))


async def test_p8_what_is_put_by_hand_is_sent_at_once() -> None:
    """The reader is woken; nothing has to spill first."""
    seen = Seen()
    async with MemoryStore() as store, DurableChannel(seen, store, "q", options=OPTIONS):
        await store.put([Record(b'"by hand"')], ["q"])
        await until(seen, 1)

    assert seen.items == ["by hand"]
