"""
Durable channels under drawn lives: slow and failing stores, senders that give up, withdrawals, halts.

As `test_channel_storm`, over a store and several runs in a row. What must come out: every accepted item is
delivered once, or given up by name; one whose sender was cancelled or refused never is; and in the end
nothing is left anywhere. A seed draws everything, so a failure names its seed.
"""

import asyncio
import os
import random
from collections import Counter
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
import tenacity

from dispatcher import Batch, BlockNewItems, ChannelOptions, DropReason, RetryPolicy
from dispatcher.channel import ChannelEnded
from dispatcher.codecs import JSON
from dispatcher.durable import DurableChannel
from dispatcher.errors import StoreError, StoreTrouble
from dispatcher.stores.base import Shelf
from dispatcher.stores.memory import MemoryStore

SEEDS = 2000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 50

DISK = 400
"""Bytes; an item has about ten."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class SlowStore(MemoryStore):
    """Takes some turns before and after each step, and fails now and then: before it has done anything."""

    def __init__(self, chance: random.Random, *, faults: float) -> None:
        super().__init__()
        self.chance, self.faults = chance, faults

    async def _turns(self) -> None:
        for _ in range(self.chance.choice([0, 0, 1, 2, 5])):
            await anyio.lowlevel.checkpoint()

    async def _before(self) -> None:
        await self._turns()
        if self.chance.random() < self.faults:
            raise StoreTrouble(path="memory", why="on purpose")

    async def put(self, *args: Any, **more: Any) -> Any:
        await self._before()
        done = await super().put(*args, **more)
        await self._turns()
        return done

    async def lease(self, *args: Any, **more: Any) -> Any:
        await self._turns()
        return await super().lease(*args, **more)

    async def settle(self, *args: Any, **more: Any) -> Any:
        await self._before()
        done = await super().settle(*args, **more)
        await self._turns()
        return done


class Cut(Exception):
    """A call was cancelled, as asyncio's own tasks are."""


class Storm:
    """Several runs over one store; *seed* draws them."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.journal = chance.random() < 0.7
        self.bound = chance.randrange(4, 12)
        self.disk: int | None = chance.choice([None, DISK])
        self.drop = self.disk is not None and chance.random() < 0.3
        self.fifo = chance.random() < 0.5
        # Only in a journal: in overflow mode a store that fails while halting loses, and says so.
        self.store = SlowStore(chance, faults=0.1 if self.journal and chance.random() < 0.4 else 0)
        self.number = 0
        self.accepted: set[int] = set()
        self.refused: set[int] = set()
        self.withdrawn: set[int] = set()
        self.dropped: set[int] = set()
        self.delivered: Counter[int] = Counter()
        self.order: list[int] = []
        self.senders: list[list[int]] = []

    def channel(self) -> DurableChannel[int, None]:
        """The next run."""
        options = ChannelOptions[int](
            batch_items_max=self.chance.randrange(1, 5),
            batch_age_max=0,
            max_leases=1 if self.fifo else self.chance.choice([1, 3]),
            full_behavior=BlockNewItems(self.bound),
            fifo=self.fifo,
            retry=RetryPolicy(
                retry=tenacity.retry_if_exception_type(ConnectionError), wait=tenacity.wait_fixed(0.0001)
            ),
            on_drop=self.on_drop,
        )
        return DurableChannel(
            self.send,
            self.store,
            mode="journal" if self.journal else "overflow",
            codec=JSON(),
            options=options,
            disk_bytes_max=self.disk,
            disk_full="drop_oldest" if self.drop else "block",
        )

    def on_drop(self, batch: Batch[int], reason: DropReason) -> None:
        """What made room."""
        if reason is DropReason.FULL:
            self.dropped.update(batch)

    async def send(self, batch: Batch[int]) -> None:
        """Delivers, fails for now, or for good."""
        for _ in range(self.chance.choice([0, 1, 4])):
            await anyio.lowlevel.checkpoint()
        lot = self.chance.random()
        if lot < 0.1:
            raise ConnectionError
        if lot < 0.15:
            raise ValueError
        self.delivered.update(batch)
        self.order.extend(batch)

    async def produce(self, channel: DurableChannel[int, None]) -> None:
        """One sender; some of its calls are cancelled under way."""
        chance = self.chance
        mine: list[int] = []
        self.senders.append(mine)
        for _ in range(chance.randrange(1, 12)):
            self.number += 1
            item = self.number * 10_000_000  # nine digits or so: as many bytes
            mine.append(item)
            with anyio.CancelScope() as scope:
                try:
                    if chance.random() < 0.6:
                        await self.interrupted(item, channel.send(item), scope)
                    else:
                        receipt = await self.interrupted(item, channel.submit(item), scope)
                        await anyio.lowlevel.checkpoint()
                        if chance.random() < 0.2 and receipt.cancel():
                            self.withdrawn.add(item)
                except (StoreError, Cut):
                    self.refused.add(item)
                except (anyio.ClosedResourceError, ChannelEnded):
                    self.refused.add(item)
                    return
                except BaseException:
                    if item not in self.accepted:  # or was cancelled behind its call
                        self.refused.add(item)
                    raise
            for _ in range(chance.choice([0, 0, 1, 3])):
                await anyio.lowlevel.checkpoint()

    async def interrupted(self, item: int, call: Any, scope: anyio.CancelScope) -> Any:
        """Await *call*, which takes *item*; sometimes cancelled by a scope, or as asyncio's own tasks are, after some turns."""
        lot = self.chance.random()
        if lot > 0.3:
            result = await call
            self.accepted.add(item)
            return result
        turns = self.chance.randrange(8)
        native = lot < 0.1 and sniffio.current_async_library() == "asyncio"
        if native:
            task = asyncio.ensure_future(call)
            with anyio.CancelScope(shield=True):  # else it would go on by itself
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    result = await task
                except asyncio.CancelledError:
                    raise Cut from None
                self.accepted.add(item)
            return result
        trouble: Exception | None = None
        result: Any = None
        async with anyio.create_task_group() as group:

            async def cut() -> None:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

            group.start_soon(cut)
            try:
                result = await call
                self.accepted.add(item)
            except Exception as error:  # not through the group, which would wrap it
                trouble = error
            group.cancel_scope.cancel()
        if trouble is not None:
            raise trouble
        return result

    async def run(self, *, last: bool) -> None:
        """One life of a channel: drained, halted behind its senders, or under them."""
        under = not last and self.chance.random() < 0.4
        async with anyio.create_task_group() as outer, self.channel() as channel:
            async with anyio.create_task_group() as group:
                for _ in range(self.chance.randrange(1, 12)):
                    (outer if under else group).start_soon(self.produce, channel)
                if not last and self.chance.random() < 0.5:
                    for _ in range(self.chance.randrange(60)):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
            if last:
                with anyio.fail_after(30):
                    await channel.aclose()
        statistics = channel.statistics()
        assert statistics.waiting_for_disk == statistics.unsettled == 0
        assert channel._inner._core._reserved_items == 0  # noqa: SLF001 - nobody else would see a leak

    async def live(self) -> None:
        """All runs, and what has to be true then."""
        async with self.store:
            for left in range(self.chance.randrange(1, 4), 0, -1):
                await self.run(last=left == 1)
            counts = await self.store.counts("default")
            assert counts.live.items == 0
            given_up = await self.store.peek("default", 10_000, shelf=Shelf.DEAD)
        dead = {int(one.payload) for one in given_up}
        delivered = set(self.delivered)
        assert not [item for item, times in self.delivered.items() if times > 1]
        assert not (delivered | dead) & self.refused
        assert not (delivered | dead) & self.withdrawn
        assert delivered | dead | self.withdrawn | self.dropped >= self.accepted
        assert delivered.isdisjoint(dead)
        if self.fifo:
            place = {item: n for n, item in enumerate(self.order)}
            for sender in self.senders:
                places = [place[item] for item in sender if item in place]
                assert places == sorted(places)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.durable.PAUSES", (0.0005,) * 20)
    monkeypatch.setattr("dispatcher._disk.PAUSE", 0.0005)


@pytest.mark.parametrize("block", range(4))
async def test_every_accepted_item_has_one_fate_and_no_refused_one_has_any(block: int) -> None:
    """Over any number of runs."""
    for seed in range(block, SEEDS * 4, 4):
        storm = Storm(seed)
        try:
            await storm.live()
        except BaseException as error:
            if not isinstance(error, Exception) and not isinstance(error, BaseExceptionGroup):
                raise
            error.add_note(f"seed {seed}")
            raise
