"""What a durable channel promises, over both stores and on both backends."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from dispatcher import (
    Batch,
    BlockNewItems,
    ChannelOptions,
    CodecError,
    DropOldestBatch,
    DropReason,
    ItemTooLarge,
    OptionError,
    RetryPolicy,
    Status,
)
from dispatcher.codecs import Bytes
from dispatcher.durable import DurableChannel
from dispatcher.stores.base import Record, Shelf, Store
from dispatcher.stores.memory import MemoryStore
from dispatcher.stores.sqlite import SQLiteStore

MODES = ["overflow", "journal"]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Opens the same store again and again: a memory store stays open in between."""
    kept: list[MemoryStore] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Store]:
        if request.param == "sqlite":
            async with SQLiteStore(tmp_path / "store.db") as store:
                yield store
        else:
            if not kept:
                kept.append(await MemoryStore().__aenter__())
            yield kept[0]

    return opened


def small(**more: Any) -> ChannelOptions[Any]:
    """Ten items fit into memory; batches of five."""
    settings: dict[str, Any] = {"batch_items_max": 5, "batch_age_max": 0, "full_behavior": BlockNewItems(10)}
    return ChannelOptions(**{**settings, **more})


class Gate:
    """A SendFn that waits until it is let through."""

    def __init__(self) -> None:
        self.open = anyio.Event()
        self.got: list[Any] = []

    async def __call__(self, batch: Batch[Any]) -> None:
        await self.open.wait()
        self.got.extend(batch)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - any condition, looked at from outside
            await anyio.sleep(0.001)


async def refuse(batch: Batch[Any]) -> None:
    msg = "not today"
    raise ConnectionError(msg)


class TestOverflow:
    async def test_stays_off_the_disk_while_memory_has_room(self, reopen: Any) -> None:
        """Memory first: a store that nobody needs is not written to."""
        gate = Gate()
        async with reopen() as store, DurableChannel(gate, store, options=small()) as channel:
            for item in range(10):
                await channel.send(item)
            assert channel.statistics().direct == 10
            assert (await channel.counts()).put == 0
            gate.open.set()

    async def test_spills_what_memory_has_no_room_for_and_reads_it_back(self, reopen: Any) -> None:
        """Nobody waits for a slow receiver, and nothing is lost or doubled."""
        gate = Gate()
        async with reopen() as store, DurableChannel(gate, store, options=small()) as channel:
            for item in range(100):
                await channel.send(item)
            stats = channel.statistics()
            assert (stats.direct, stats.spilled, stats.accepted) == (10, 90, 100)
            gate.open.set()
            await channel.flush()
            assert sorted(gate.got) == list(range(100))
            assert (await channel.counts()).live.items == 0
            assert channel.statistics().read_back == 90

    async def test_fifo_keeps_the_order_over_memory_disk_and_a_halt(self, reopen: Any) -> None:
        """pelichan's halt reversed the order (fault P7)."""
        options = small(fifo=True, max_leases=1)
        async with reopen() as store, DurableChannel(refuse, store, options=options) as channel:
            for item in range(40):
                await channel.send(item)
        gate = Gate()
        gate.open.set()
        async with reopen() as store, DurableChannel(gate, store, options=options) as channel:
            for item in range(40, 60):
                await channel.send(item)
            await channel.flush()
        assert gate.got == list(range(60))

    async def test_fifo_orders_what_came_in_beside_what_was_read_back(self, reopen: Any) -> None:
        """In memory at a halt: records, and items that never were on disk, in their common order."""
        options = small(fifo=True, max_leases=1)
        async with reopen() as store, DurableChannel(refuse, store, options=options) as channel:
            for item in range(4):
                await channel.send(item)
        async with reopen() as store, DurableChannel(refuse, store, options=options) as channel:
            await until(lambda: channel.statistics().read_back == 4)
            for item in range(4, 20):
                await channel.send(item)
        gate = Gate()
        gate.open.set()
        async with reopen() as store, DurableChannel(gate, store, options=options) as channel:
            await channel.flush()
        assert gate.got == list(range(20))


class TestJournal:
    async def test_send_returns_when_the_item_is_in_the_store(self, reopen: Any) -> None:
        """Durable first; delivered straight from memory if there is room."""
        gate = Gate()
        async with reopen() as store, DurableChannel(gate, store, mode="journal", options=small()) as channel:
            await channel.send("a")
            counts = await channel.counts()
            assert (counts.leased.items, counts.put) == (1, 1)
            assert channel.statistics().direct == 1
            gate.open.set()
            await channel.flush()
            assert (await channel.counts()).acked == 1

    async def test_has_no_send_nowait(self) -> None:
        """A write cannot be had without waiting."""
        assert not hasattr(DurableChannel, "send_nowait")

    async def test_many_senders_share_transactions(self, reopen: Any) -> None:
        """Everything from a hundred tasks arrives exactly once."""
        gate = Gate()
        gate.open.set()
        async with reopen() as store, DurableChannel(gate, store, mode="journal", options=small()) as channel:

            async def produce(first: int) -> None:
                for item in range(first, first + 5):
                    await channel.send(item)

            async with anyio.create_task_group() as group:
                for first in range(0, 500, 5):
                    group.start_soon(produce, first)
            await channel.flush()
        assert sorted(gate.got) == list(range(500))


class TestKill:
    """Runs that die at any moment, one after the other over one file."""

    PROGRAM = textwrap.dedent("""
        import random, sys, anyio
        from dispatcher import BlockNewItems, ChannelOptions
        from dispatcher.durable import DurableChannel
        from dispatcher.stores.sqlite import SQLiteStore

        path, mode, first = sys.argv[1], sys.argv[2], int(sys.argv[3])

        def say(word, *items):
            print(word, *items, flush=True)

        async def send(batch):
            await anyio.sleep(random.choice([0, 0, 0.001, 0.005]))
            say("delivered", *batch)

        async def main():
            options = ChannelOptions(
                batch_items_max=5, batch_age_max=0, full_behavior=BlockNewItems(10), max_leases=3
            )
            async with SQLiteStore(path) as store, DurableChannel(send, store, "q", mode, options=options) as channel:
                spilled = []
                for item in range(first, first + 100_000):
                    before = channel.statistics().spilled
                    await channel.send(item)
                    if mode == "journal":
                        say("kept", item)
                    elif channel.statistics().spilled > before:
                        spilled.append(item)
                    if item % 7 == 0:
                        await anyio.sleep(0.001)
                    if spilled and not channel.statistics().waiting_for_disk:
                        say("kept", *spilled)
                        spilled.clear()
                    if item % 40 == 0:
                        await channel.flush()
                        say("settled")

        anyio.run(main)
    """)

    @pytest.mark.parametrize("mode", MODES)
    def test_nothing_kept_is_lost_and_nothing_settled_comes_again(self, tmp_path: Path, mode: str) -> None:
        """Overflow keeps what it has written to disk; a journal whatever `send` returned for."""
        path = tmp_path / "store.db"
        kept: set[int] = set()
        delivered: set[int] = set()
        settled: set[int] = set()
        rounds = int(os.environ.get("KILL_ROUNDS", "3"))

        def hear(line: str) -> None:
            if not line.endswith("\n"):
                return  # torn by the kill
            word, *items = line.split()
            numbers = {int(item) for item in items}
            match word:
                case "kept":
                    kept.update(numbers)
                case "delivered":
                    assert not numbers & settled
                    delivered.update(numbers)
                case "settled":
                    settled.update(delivered)

        for number in range(rounds):
            command = [sys.executable, "-c", self.PROGRAM, str(path), mode, str(1 + number * 100_000)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()) as child:
                assert child.stdout is not None
                fatal = random.randrange(5, 150)
                for count, line in enumerate(child.stdout):
                    hear(line)
                    if count == fatal:
                        child.send_signal(signal.SIGKILL)
            with contextlib.closing(sqlite3.connect(path)) as database:
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

        async def collect(batch: Batch[int]) -> None:
            hear(f"delivered {' '.join(map(str, batch))}\n")

        async def rest() -> None:
            async with SQLiteStore(path) as store, DurableChannel(collect, store, "q", mode) as channel:  # type: ignore[arg-type]
                await channel.aclose()

        anyio.run(rest)
        assert len(kept) >= rounds
        assert not kept - delivered


@pytest.mark.parametrize("mode", MODES)
class TestHalt:
    async def test_keeps_what_was_not_delivered_for_the_next_run(self, reopen: Any, mode: Any) -> None:
        """Leaving the block loses nothing and sends nothing twice."""
        async with reopen() as store, DurableChannel(refuse, store, "q", mode, options=small()) as channel:
            receipts = [await channel.submit(item) for item in range(50)]
        reasons = {receipt.outcome.reason for receipt in receipts if receipt.outcome}
        assert reasons == {DropReason.KEPT}
        assert all(receipt.outcome for receipt in receipts)

        gate = Gate()
        gate.open.set()
        async with reopen() as store, DurableChannel(gate, store, "q", mode, options=small()) as channel:
            channel.close()
            await channel.wait_drained()
            assert channel.drained
            assert (await channel.counts()).live.items == 0
        assert sorted(gate.got) == list(range(50))

    async def test_waits_for_the_sends_that_run(self, reopen: Any, mode: Any) -> None:
        """What was being sent is delivered, not kept."""
        gate = Gate()
        async with reopen() as store:
            async with (
                anyio.create_task_group() as group,
                DurableChannel(gate, store, "q", mode, options=small()) as channel,
            ):
                receipt = await channel.submit("a")
                await until(lambda: channel.statistics().channel.leased_items == 1)

                async def later() -> None:
                    await until(lambda: channel.closed)
                    gate.open.set()

                group.start_soon(later)
            outcome = receipt.outcome
            assert outcome is not None
            assert outcome.status is Status.DELIVERED
            assert (await store.counts("q")).live.items == 0

    async def test_an_exception_cancels_sends_and_keeps_their_items(self, reopen: Any, mode: Any) -> None:
        """A crash of the block is no reason to lose what it had sent."""
        gate = Gate()
        async with reopen() as store:
            with pytest.raises(ZeroDivisionError):
                async with DurableChannel(gate, store, "q", mode, options=small()) as channel:
                    for item in range(30):
                        await channel.send(item)
                    await until(lambda: channel.statistics().channel.leased_items > 0)
                    raise ZeroDivisionError
            assert (await store.counts("q")).live.items == 30
            assert (await store.counts("q")).ready.items == 30

    async def test_a_cancelled_block_keeps_everything(self, reopen: Any, mode: Any) -> None:
        """move_on_after around the block loses nothing."""
        gate = Gate()
        async with reopen() as store:
            with anyio.CancelScope() as scope:
                async with DurableChannel(gate, store, "q", mode, options=small()) as channel:
                    for item in range(30):
                        await channel.send(item)
                    await until(lambda: channel.statistics().channel.leased_items > 0)
                    scope.cancel()
                    await anyio.sleep_forever()
            assert (await store.counts("q")).ready.items == 30

    async def test_senders_that_wait_are_told(self, reopen: Any, mode: Any) -> None:
        """A closed channel takes nothing; nobody waits for it for ever."""
        async with reopen() as store, DurableChannel(refuse, store, "q", mode, options=small()) as channel:
            channel.close()
            with pytest.raises(anyio.ClosedResourceError):
                await channel.send(1)
            channel.cancel()


@pytest.mark.parametrize("mode", MODES)
class TestFates:
    async def test_failed_items_become_dead_letters(self, reopen: Any, mode: Any) -> None:
        """Given up is not thrown away: the record stays, with its error."""

        async def poison(batch: Batch[int]) -> None:
            for position, item in enumerate(batch):
                if item % 10 == 0:
                    batch.fail(position, ValueError(f"bad {item}"))

        options = small(on_error=None, on_drop=None)
        async with reopen() as store, DurableChannel(poison, store, "q", mode, options=options) as channel:
            for item in range(30):
                await channel.send(item)
            await channel.flush()
            counts = await channel.counts()
            assert (counts.dead.items, counts.live.items) == (3, 0)
            dead = await store.peek("q", 10, shelf=Shelf.DEAD)
            assert sorted(entry.payload for entry in dead) == [b"0", b"10", b"20"]
            assert dead[0].error is not None
            assert dead[0].error.startswith("ValueError: bad")
            assert channel.statistics().dead == 3

    async def test_the_default_retry_never_stops(self, reopen: Any, mode: Any) -> None:
        """A plain channel gives up before five minutes; over a store an outage lasts as long as it lasts."""
        async with reopen() as store:
            channel = DurableChannel(refuse, store, "q", mode)
            policy = channel._options.retry  # noqa: SLF001 - nothing public tells, short of waiting for ever
            assert policy is not None
            later = policy.next_delay(ConnectionError(), attempt=500, first_at=0.0, now=1e6)
            assert later is not None

    async def test_ones_own_retry_policy_holds(self, reopen: Any, mode: Any) -> None:
        """Who says one attempt gets one, and a dead letter."""
        options = small(retry=None, on_error=None, on_drop=None)
        async with reopen() as store, DurableChannel(refuse, store, "q", mode, options=options) as channel:
            receipt = await channel.submit(1)
            assert (await receipt.wait()).status is Status.FAILED
            await channel.flush()
            assert (await channel.counts()).dead.items == 1

    async def test_an_unwritable_item_is_refused_by_name(self, reopen: Any, mode: Any) -> None:
        """pelichan dropped it silently (fault P2)."""
        gate = Gate()
        gate.open.set()
        options = small(full_behavior=BlockNewItems(5))
        async with reopen() as store, DurableChannel(gate, store, "q", mode, options=options) as channel:
            if mode == "journal":
                with pytest.raises(CodecError, match="object"):
                    await channel.send(object())
                assert channel.statistics().accepted == 0
                assert (await channel.counts()).put == 0

    async def test_an_unreadable_record_is_set_aside_and_the_next_goes_on(
        self, reopen: Any, mode: Any
    ) -> None:
        """pelichan span on it for ever, or handed on nothing (faults P3 and P4)."""
        gate = Gate()
        gate.open.set()
        async with reopen() as store:
            await store.create("q")
            await store.put([Record(b"1"), Record(b"{not json"), Record(b"2")], ["q"])
            async with DurableChannel(gate, store, "q", mode, options=small()) as channel:
                await until(lambda: sorted(gate.got) == [1, 2])
                await channel.wait_idle()
                assert (await channel.counts()).quarantined.items == 1
                assert channel.statistics().quarantined == 1

    async def test_a_withdrawn_item_leaves_the_disk(self, reopen: Any, mode: Any) -> None:
        """Receipt.cancel reaches the store."""
        gate = Gate()
        async with reopen() as store, DurableChannel(gate, store, "q", mode, options=small()) as channel:
            receipts = [await channel.submit(item) for item in range(40)]
            assert receipts[39].cancel()
            assert not receipts[39].cancel()
            gate.open.set()
            await channel.flush()
            assert sorted(gate.got) == list(range(39))
            assert (await channel.counts()).live.items == 0

    async def test_the_newest_of_a_key_wins_on_disk_too(self, reopen: Any, mode: Any) -> None:
        """Latest wins, wherever the older one is; its receipt says so."""
        gate = Gate()
        options = small(coalesce_by=lambda item: item[0], on_drop=None, max_leases=1)
        async with reopen() as store, DurableChannel(gate, store, "q", mode, options=options) as channel:
            for item in range(30):
                await channel.send([f"filler{item}", 0])
            old = await channel.submit(["key", 1])
            await channel.send(["key", 2])
            gate.open.set()
            await channel.flush()
            assert (await old.wait()).reason is DropReason.SUPERSEDED
            assert [item for item in gate.got if item[0] == "key"] == [["key", 2]]

    async def test_what_becomes_too_old_on_disk_expires(self, reopen: Any, mode: Any) -> None:
        """Its receipt is told in time, and its record goes."""
        gate = Gate()
        options = small(item_age_max=0.2, on_drop=None)
        async with reopen() as store, DurableChannel(gate, store, "q", mode, options=options) as channel:
            receipts = [await channel.submit(item) for item in range(40)]
            with anyio.fail_after(20):
                outcomes = [await receipt.wait() for receipt in receipts[20:]]
            assert {outcome.reason for outcome in outcomes} == {DropReason.EXPIRED}
            gate.open.set()
            await channel.wait_idle()
            assert (await channel.counts()).live.items == 0


class TestBounds:
    async def test_a_full_disk_blocks_senders(self, reopen: Any) -> None:
        """Bounded by bytes, and no item is lost for it (fault P6)."""
        gate = Gate()
        options = small(full_behavior=BlockNewItems(5))
        async with (
            reopen() as store,
            DurableChannel(
                gate, store, mode="journal", codec=Bytes(), options=options, disk_bytes_max=1000
            ) as channel,
        ):
            sent = 0

            async def produce() -> None:
                nonlocal sent
                for _ in range(30):
                    await channel.send(b"x" * 100)
                    sent += 1

            async with anyio.create_task_group() as group:
                group.start_soon(produce)
                await until(lambda: sent == 10)
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
                assert sent == 10
                assert (await channel.counts()).live.bytes == 1000
                gate.open.set()
            await channel.flush()
        assert len(gate.got) == 30

    async def test_or_the_oldest_go_with_their_reason(self, reopen: Any) -> None:
        """Drop oldest: told to on_drop and to the receipts."""
        dropped: list[Any] = []
        gate = Gate()
        options = small(
            full_behavior=BlockNewItems(5), on_drop=lambda batch, reason: dropped.extend([(*batch, reason)])
        )
        async with (
            reopen() as store,
            DurableChannel(
                gate,
                store,
                mode="journal",
                codec=Bytes(),
                options=options,
                disk_bytes_max=1000,
                disk_full="drop_oldest",
            ) as channel,
        ):
            receipts = [await channel.submit(b"%03d" % n + b"x" * 97) for n in range(12)]
            full = [n for n, r in enumerate(receipts) if r.outcome and r.outcome.reason is DropReason.FULL]
            assert full == [5, 6]
            assert [entry[-1] for entry in dropped] == [DropReason.FULL] * 2
            gate.open.set()
            await channel.flush()

    async def test_an_item_that_never_fits_is_refused(self, reopen: Any) -> None:
        """The rule and the value got."""
        gate = Gate()
        gate.open.set()
        async with (
            reopen() as store,
            DurableChannel(gate, store, mode="journal", codec=Bytes(), disk_bytes_max=10) as channel,
        ):
            with pytest.raises(ItemTooLarge, match="at most 10 large, got 11"):
                await channel.send(b"x" * 11)

    @pytest.mark.parametrize(
        ("wrong", "text"),
        [
            ({"mode": "both"}, 'has to be "overflow" or "journal"'),
            ({"disk_full": "panic"}, 'has to be "block" or "drop_oldest"'),
            ({"disk_bytes_max": 0}, "disk_bytes_max has to be 1 or more"),
            ({"options": ChannelOptions(full_behavior=DropOldestBatch())}, "full_behavior has to be Block"),
        ],
    )
    async def test_options_that_make_no_sense_are_refused(self, wrong: dict[str, Any], text: str) -> None:
        """By name, with the value got, before anything was made."""
        with pytest.raises(OptionError, match=text):
            DurableChannel(refuse, MemoryStore(), **wrong)


class Flaky(MemoryStore):
    """Fails its next calls of one method."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, int] = {}

    def _fail(self, method: str) -> None:
        from dispatcher.errors import StoreTrouble

        if self.failures.get(method, 0) > 0:
            self.failures[method] -= 1
            raise StoreTrouble(path="memory", why="on purpose")

    async def settle(self, *args: Any, **more: Any) -> Any:
        self._fail("settle")
        return await super().settle(*args, **more)

    async def put(self, *args: Any, **more: Any) -> Any:
        self._fail("put")
        return await super().put(*args, **more)

    async def lease(self, *args: Any, **more: Any) -> Any:
        self._fail("lease")
        return await super().lease(*args, **more)


class TestTrouble:
    async def test_a_failed_ack_is_repeated_and_nothing_is_sent_twice(self) -> None:
        """In this process a delivered item is delivered, whatever the store says of it."""
        gate = Gate()
        gate.open.set()
        async with Flaky() as store, DurableChannel(gate, store, mode="journal") as channel:
            store.failures["settle"] = 2
            await channel.send(1)
            await channel.flush()
            assert gate.got == [1]
            assert (await channel.counts()).acked == 1

    async def test_a_failed_write_is_the_senders(self) -> None:
        """Journal: what send raised for was not accepted."""
        gate = Gate()
        gate.open.set()
        from dispatcher.errors import StoreError

        async with Flaky() as store, DurableChannel(gate, store, mode="journal") as channel:
            store.failures["put"] = 1
            with pytest.raises(StoreError):
                await channel.send(1)
            await channel.send(2)
            await channel.flush()
            assert gate.got == [2]
            assert channel.statistics().accepted == 1

    async def test_what_is_too_large_for_the_disk_takes_nobody_with_it(self) -> None:
        """Journal: several senders share a transaction; the disk has room for some of them."""
        from dispatcher.errors import StoreDiskFull

        class Small(MemoryStore):
            async def put(self, records: Any, *args: Any, **more: Any) -> Any:
                if sum(record.size for record in records) > 100:
                    raise StoreDiskFull(path="memory", why="on purpose")
                return await super().put(records, *args, **more)

        gate, refused = Gate(), []
        gate.open.set()
        async with Small() as store, DurableChannel(gate, store, mode="journal", codec=Bytes()) as channel:

            async def send(item: bytes) -> None:
                try:
                    await channel.send(item)
                except StoreDiskFull:
                    refused.append(item)

            async with anyio.create_task_group() as group:
                for item in (b"a" * 60, b"b" * 60, b"c" * 600, b"d" * 60):
                    group.start_soon(send, item)
            await channel.flush()
        assert refused == [b"c" * 600]
        assert sorted(item[:1] for item in gate.got) == [b"a", b"b", b"d"]

    async def test_a_failed_spill_or_lease_is_repeated(self) -> None:
        """Overflow: what was accepted waits in memory until the disk takes it."""
        gate = Gate()
        async with Flaky() as store, DurableChannel(gate, store, options=small()) as channel:
            store.failures["put"] = store.failures["lease"] = 1
            for item in range(30):
                await channel.send(item)
            gate.open.set()
            with anyio.fail_after(30):
                await channel.wait_idle()
            assert sorted(gate.got) == list(range(30))

    async def test_a_store_that_cannot_take_the_rest_is_told_of(self) -> None:
        """A halt over a dead store ends, and says what happened."""
        from dispatcher.errors import StoreError

        store = Flaky()
        async with store:
            with pytest.raises(StoreError):
                async with DurableChannel(refuse, store, options=small(retry=RetryPolicy())) as channel:
                    await channel.send(1)
                    store.failures["put"] = 100
            store.failures.clear()
