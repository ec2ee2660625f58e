"""
The whole shell under drawn options and drawn lives: senders, withdrawals, failures, cancellations.

`test_laws` drives the pure core; here are real workers, timers, limiters and hooks, on both loops. A seed
draws everything, so a failure names its seed. HYPOTHESIS_PROFILE=long runs more of them.
"""

import os
import random
from collections import Counter
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
    DropOldestBatch,
    DropReason,
    InfiniteGrowth,
    Rate,
    RetryAfter,
    RetryPolicy,
    Status,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

SEEDS = 2500 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 100

Item = tuple[int, int, int]
"""A key, a size, a number of its own."""


class Storm:
    """One life of a channel; *seed* draws it."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.told: Counter[DropReason] = Counter()
        self.receipts: list[Any] = []
        self.sent: Counter[int] = Counter()
        self.accepted = 0
        self.drained = 0
        self.sized = chance.random() < 0.4
        self.items_max = chance.randrange(1, 6)
        self.bound = self.items_max + chance.randrange(6)
        self.size_bound = 20
        self.full = chance.choice(["block", "block", "drop", "grow"])
        self.leases = chance.choice([1, 1, 2, 4])
        self.number = 0
        self.channel: Channel[Item, int] = Channel(self.send, self.options())

    def options(self) -> ChannelOptions[Item]:
        """Drawn."""
        chance = self.chance
        size = self.size_bound if self.sized else None
        full: Any = InfiniteGrowth()
        if self.full == "block":
            full = BlockNewItems(self.bound, size)
        elif self.full == "drop":
            full = DropOldestBatch(self.bound, size)
        wait = chance.choice([tenacity.wait_none(), tenacity.wait_fixed(3), tenacity.wait_random(0, 5)])
        policy = RetryPolicy(wait=wait, stop=tenacity.stop_after_attempt(chance.randrange(1, 6)))
        return ChannelOptions(
            batch_items_max=self.items_max,
            batch_size_max=10 if self.sized else None,
            item_size=(lambda item: item[1]) if self.sized else None,
            batch_age_max=chance.choice([0, 0.5, 3.0, 1e6]),
            max_leases=self.leases,
            fifo=self.leases == 1 and chance.random() < 0.5,
            full_behavior=full,
            retry=policy if chance.random() < 0.8 else None,
            qps_limit=Rate(2, burst=3) if chance.random() < 0.3 else None,
            min_qps=chance.choice([None, None, 0.5]),
            send_timeout=chance.choice([None, 2.0]),
            item_age_max=chance.choice([None, None, 4.0]),
            coalesce_by=(lambda item: item[0]) if chance.random() < 0.3 else None,
            on_error=self.on_error,
            on_drop=self.on_drop,
            on_drained=self.on_drained,
        )

    def on_error(self, batch: Batch[Item], error: Exception) -> bool | None:
        """Judge at random, and sometimes raise."""
        self.check()
        if self.chance.random() < 0.1:
            raise LookupError
        return self.chance.choice([None, None, None, True, False])

    def on_drop(self, batch: Batch[Item], reason: DropReason) -> None:
        """Count, and sometimes send, cancel a receipt or raise."""
        self.told[reason] += len(batch)
        self.check()
        draw = self.chance.random()
        if draw < 0.1:
            raise LookupError
        if draw < 0.2:
            try:
                self.channel.send_nowait(self.draw())
            except (anyio.WouldBlock, anyio.ClosedResourceError):
                return
            self.accepted += 1
        elif draw < 0.3 and self.receipts:
            self.chance.choice(self.receipts).cancel()

    def on_drained(self) -> None:
        """Count."""
        self.drained += 1
        assert self.check().live == 0

    def draw(self) -> Item:
        """An item."""
        self.number += 1
        return self.chance.randrange(5), self.chance.randrange(1, 8), self.number

    async def send(self, batch: Batch[Item]) -> Any:
        """Take some time, mark some, fail somehow, answer."""
        chance = self.chance
        self.check()
        assert len(batch) <= self.items_max
        assert self.channel.statistics().leases <= self.leases
        await anyio.sleep(chance.choice([0, 0, 0.3, 1.0, 5.0]))
        for position in range(len(batch)):
            draw = chance.random()
            if draw < 0.05:
                batch.done(position)
            elif draw < 0.1:
                batch.fail(position, chance.choice([ConnectionError(), ValueError()]))
        draw = chance.random()
        if draw < 0.1:
            raise ConnectionError
        if draw < 0.15:
            raise ValueError
        if draw < 0.2:
            raise RetryAfter(chance.choice([0, 2]))
        if draw < 0.23:
            return "bad results"
        self.sent.update(item[2] for item in batch)
        return [item[2] for item in batch]

    def check(self) -> ChannelStatistics:
        """Law 1 and law 5, at any moment."""
        now = self.channel.statistics()
        assert now.accepted == now.delivered + now.failed + now.dropped_items + now.live
        counts = (now.unleased_items, now.leased_items, now.dropped_leased_items, now.live)
        assert min(counts) >= 0
        items, size = now.unleased_items + now.leased_items, now.unleased_size + now.leased_size
        if self.full == "block":
            items, size = items + now.dropped_leased_items, size + now.dropped_leased_size
        if self.full != "grow":
            assert items <= self.bound
            assert not self.sized or size <= self.size_bound
        return now

    async def sender(self) -> None:
        """Send, submit, call, withdraw; each cancelled now and then."""
        chance = self.chance
        for _ in range(chance.randrange(5, 30)):
            item = self.draw()
            with anyio.move_on_after(chance.choice([0, 0.1, 2, 100])) as scope:
                try:
                    await self.one(item)
                except anyio.ClosedResourceError:
                    return
                except anyio.WouldBlock:
                    pass
                except Exception as error:
                    assert type(error).__name__ in ("ItemFailed", "ItemDropped")  # noqa: PT017
            self.check()
            if scope.cancelled_caught or chance.random() < 0.3:
                await anyio.sleep(chance.choice([0, 0.2, 3]))

    async def one(self, item: Item) -> None:
        """One way in."""
        chance, channel = self.chance, self.channel
        draw = chance.random()
        if draw < 0.4:
            await channel.send(item)
            self.accepted += 1
        elif draw < 0.6:
            channel.send_nowait(item)
            self.accepted += 1
        elif draw < 0.9:
            receipt = await channel.submit(item)
            self.accepted += 1
            self.receipts.append(receipt)
            if chance.random() < 0.3:
                receipt.cancel()
            elif chance.random() < 0.3:
                await receipt.wait()
        else:
            before = channel.statistics().accepted
            try:
                await channel.call(item)
            finally:
                assert channel.statistics().accepted >= before

    async def live(self) -> None:
        """From open to drained."""
        chance = self.chance
        async with self.channel as channel, anyio.create_task_group() as group:
            for _ in range(chance.randrange(1, 8)):
                group.start_soon(self.sender)
            for _ in range(chance.randrange(4)):
                await anyio.sleep(chance.choice([0.1, 2, 10]))
                if chance.random() < 0.3:
                    channel.cut()
                if chance.random() < 0.3:
                    with anyio.move_on_after(chance.choice([0.1, 50])):
                        await channel.flush()
            end = chance.random()
            if end < 0.15:
                channel.cancel()
            elif end < 0.3:
                with anyio.move_on_after(1):
                    await channel.aclose()
            elif end < 0.4:
                await anyio.aclose_forcefully(channel)
            elif end < 0.5:
                channel.close()


@pytest.mark.parametrize("part", range(4))
async def test_no_life_breaks_a_law(part: int) -> None:
    """Exact at every step, everything with one outcome and told, and it ends."""
    for seed in range(part * SEEDS, (part + 1) * SEEDS):
        storm = Storm(seed)
        try:
            with anyio.fail_after(100_000):
                await storm.live()
            statistics = storm.check()
            assert statistics.live == 0
            assert statistics.waiters == 0
            assert storm.drained == 1
            assert statistics.accepted >= storm.accepted
            assert storm.told[DropReason.FAILED] == statistics.failed
            for reason, count in statistics.dropped.items():
                assert reason is DropReason.FAILED or storm.told[reason] == count
            for receipt in storm.receipts:
                assert receipt.outcome is not None
                if receipt.outcome.status is Status.DELIVERED and receipt.outcome.result is not None:
                    assert storm.sent[receipt.outcome.result] >= 1
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
