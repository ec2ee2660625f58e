"""
Stores beside what one would write by hand on SQLite, and beside the packages that do the same.

Payloads are 200 random octets; every turn has its own file in a fresh folder on the same disk.
"""

import asyncio
import contextlib
import importlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, Sides, Unavailable, at_least, at_most
from benchmarks.servers import folder
from dispatcher import Batch, BlockNewItems, ChannelOptions, DurableChannel
from dispatcher.broker import Broker, Message, TopicOptions
from dispatcher.codecs import Bytes
from dispatcher.stores import Record, SQLiteStore

__all__ = ["ROWS"]

TASKS = 100
BATCH = 100
PUBLISHED = 50
SUBSCRIPTIONS = ("a", "b")
PAYLOAD = os.urandom(200)
MILLION = 1_000_000


def _file(where: Path) -> Path:
    """A name that nobody has had."""
    return where / f"{time.monotonic_ns()}.db"


Turn = Callable[[Path, int], Awaitable[float]]
"""Works through so many items; returns the seconds from open to done, opening and closing left out."""


def _timed(where: Path, count: int, turn: Turn) -> float:
    """Items per second of *turn*."""
    return count / asyncio.run(_run(turn, _file(where), count))


async def _run(turn: Turn, path: Path, count: int) -> float:
    return await turn(path, count)


async def _take_all(store: SQLiteStore, queue: str, count: int, batch: int) -> None:
    while count:
        leased = await store.lease(queue, batch)
        if not leased:
            await store.wait_ready(queue)
            continue
        await store.settle([one.tag for one in leased])
        count -= len(leased)


async def _journal(path: Path, count: int) -> float:
    """A hundred tasks put one at a time; what is there is leased and acked by the hundred."""
    async with SQLiteStore(path) as store:
        await store.create("q")

        async def produce(share: int) -> None:
            for _ in range(share):
                await store.put([Record(PAYLOAD)], ["q"])

        started = time.perf_counter()
        await asyncio.gather(
            *(produce(count // TASKS) for _ in range(TASKS)),
            _take_all(store, "q", count // TASKS * TASKS, BATCH),
        )
        return time.perf_counter() - started


async def _overflow(path: Path, count: int) -> float:
    """By the hundred to the disk, without syncs, and back."""
    async with SQLiteStore(path, "os") as store:
        await store.create("q")
        started = time.perf_counter()
        for _ in range(count // BATCH):
            await store.put([Record(PAYLOAD) for _ in range(BATCH)], ["q"])
        await _take_all(store, "q", count // BATCH * BATCH, BATCH)
        return time.perf_counter() - started


async def _publish(path: Path, count: int) -> float:
    """Fifty at a time into two queues, out and acked by the fifty, everything synced."""
    async with SQLiteStore(path) as store:
        await store.create(*SUBSCRIPTIONS)
        started = time.perf_counter()
        for _ in range(count // PUBLISHED):
            await store.put([Record(PAYLOAD) for _ in range(PUBLISHED)], SUBSCRIPTIONS)
            for queue in SUBSCRIPTIONS:
                await _take_all(store, queue, PUBLISHED, PUBLISHED)
        return time.perf_counter() - started


async def _durable_journal(path: Path, count: int) -> float:
    """A hundred tasks send through a journal, until everything is delivered and acked."""

    async def nothing(batch: Batch[bytes]) -> None:
        """Deliver."""

    options = ChannelOptions[bytes](batch_age_max=0)
    async with (
        SQLiteStore(path) as store,
        DurableChannel(nothing, store, mode="journal", codec=Bytes(), options=options) as channel,
    ):

        async def produce(share: int) -> None:
            for _ in range(share):
                await channel.send(PAYLOAD)

        started = time.perf_counter()
        await asyncio.gather(*(produce(count // TASKS) for _ in range(TASKS)))
        await channel.flush()
        taken = time.perf_counter() - started
        _whole((await channel.counts()).acked, count // TASKS * TASKS)
        return taken


async def _durable_overflow(path: Path, count: int) -> float:
    """Memory is full and stays so: everything else goes to the disk, and comes back when it may."""
    gate = asyncio.Event()
    delivered = 0

    async def wait(batch: Batch[bytes]) -> None:
        nonlocal delivered
        await gate.wait()
        delivered += len(batch)

    options = ChannelOptions[bytes](batch_age_max=0, full_behavior=BlockNewItems(BATCH))
    async with (
        SQLiteStore(path, "os") as store,
        DurableChannel(wait, store, codec=Bytes(), options=options) as channel,
    ):
        started = time.perf_counter()
        for _ in range(count + BATCH):
            await channel.send(PAYLOAD)
        gate.set()
        await channel.flush()
        taken = time.perf_counter() - started
        _whole(channel.statistics().read_back, count)
        _whole(delivered, count + BATCH)
        return taken


async def _broker(path: Path, count: int) -> float:
    """Fifty at a time to two subscriptions, pulled and acked as they come, everything synced."""
    topics = {"t": TopicOptions(subscriptions=SUBSCRIPTIONS)}
    async with SQLiteStore(path) as store, Broker(store, topics) as broker:

        async def pull(name: str) -> None:
            left = count
            async with broker.subscribe("t", name) as subscription:
                while left:
                    batch = await subscription.receive()
                    await subscription.ack(*batch)
                    left -= len(batch)

        async def publish() -> None:
            for _ in range(count // PUBLISHED):
                await broker.publish("t", [Message(PAYLOAD)] * PUBLISHED)

        started = time.perf_counter()
        await asyncio.gather(publish(), *(pull(name) for name in SUBSCRIPTIONS))
        return time.perf_counter() - started


def _whole(got: int, wanted: int) -> None:
    if got != wanted:
        msg = f"{got} of {wanted} arrived"
        raise RuntimeError(msg)


def _one_transaction_each(where: Path, count: int, queues: int = 1) -> float:
    """
    What one writes by hand: a table, one synced transaction per put and one per ack.

    A put goes into all *queues* in one transaction; each of them acks by itself.
    """
    db = sqlite3.connect(_file(where), isolation_level=None)
    with contextlib.closing(db):
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, name INTEGER, payload BLOB)")
        put = f"INSERT INTO queue (name, payload) VALUES {', '.join(['(?, ?)'] * queues)}"
        rows = [value for queue in range(queues) for value in (queue, PAYLOAD)]
        started = time.perf_counter()
        for _ in range(count):
            db.execute(put, rows)
        for queue in range(queues):
            waiting = db.execute("SELECT id, payload FROM queue WHERE name = ? ORDER BY id", (queue,))
            for item, _ in waiting.fetchall():
                db.execute("DELETE FROM queue WHERE id = ?", (item,))
        return count / (time.perf_counter() - started)


def _foreign(name: str) -> Any:  # noqa: ANN401 - neither package has types
    try:
        return importlib.import_module(name)
    except ImportError:
        msg = f"the package {name} is not installed"
        raise Unavailable(msg) from None


def _persist_queue(where: Path, count: int, queues: int = 1) -> float:
    """Its queue with acks on SQLite, each put and ack committed, as it is by default."""
    make = _foreign("persistqueue").SQLiteAckQueue
    all_of_them = [make(str(_file(where)), auto_commit=True) for _ in range(queues)]
    started = time.perf_counter()
    for queue in all_of_them:
        for _ in range(count):
            queue.put(PAYLOAD)
        for _ in range(count):
            queue.ack(queue.get())
    taken = time.perf_counter() - started
    for queue in all_of_them:
        queue.close()
    return count / taken


def _litequeue(where: Path, count: int, queues: int = 1) -> float:
    """As it is by default: no syncs in its write-ahead log, payloads as text."""
    make = _foreign("litequeue").LiteQueue
    all_of_them = [make(str(_file(where))) for _ in range(queues)]
    text = PAYLOAD.hex()
    started = time.perf_counter()
    for queue in all_of_them:
        for _ in range(count):
            queue.put(text)
        for _ in range(count):
            queue.done(queue.pop().message_id)
    taken = time.perf_counter() - started
    for queue in all_of_them:
        queue.close()
    return count / taken


@contextmanager
def _beside(
    turn: Turn,
    count: int,
    yardstick: Callable[[Path, int], float],
    fewer: int,
    scale: float,
) -> Iterator[Sides]:
    mine, theirs = (max(TASKS, round(n * scale) // TASKS * TASKS) for n in (count, fewer))
    with folder() as where:
        yield Sides(partial(_timed, where, mine, turn), partial(yardstick, where, theirs))


_FILL = """
BEGIN;
CREATE TEMP TABLE n AS
    WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n;
INSERT INTO bodies SELECT i, 1, crc, payload FROM temp.n, bodies WHERE id = {first};
INSERT INTO entries SELECT i, queue, shelf, priority, i, i, size, attempts, lease, due, key, put_at,
    expires_at, error, failed_at FROM temp.n, entries WHERE id = {first};
UPDATE queues SET ready_items = {count}, ready_bytes = ready_bytes * {count}, put = {count};
UPDATE store SET next = {count} + 1;
COMMIT;
"""


def _fill(path: Path, count: int) -> None:
    """One record through the front door, and its copies by SQL."""

    async def one() -> None:
        async with SQLiteStore(path, "os") as store:
            await store.create("q")
            await store.put([Record(PAYLOAD)], ["q"])

    asyncio.run(one())
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(_FILL.format(count=count, first=1))


def _first_lease(path: Path) -> float:
    """Milliseconds to open, lease a batch, and hand it back."""

    async def first() -> float:
        started = time.perf_counter()
        async with SQLiteStore(path, "os") as store:
            leased = await store.lease("q", BATCH)
            taken = time.perf_counter() - started
            if len(leased) != BATCH:
                msg = f"{len(leased)} of {BATCH} were leased"
                raise RuntimeError(msg)
            await store.release("q")
        return taken * 1000

    return asyncio.run(first())


@contextmanager
def _first_of_a_million(scale: float) -> Iterator[Sides]:
    with folder() as where:
        many, few = where / "many.db", where / "few.db"
        _fill(many, max(1000, round(MILLION * scale)))
        _fill(few, 1000)
        yield Sides(partial(_first_lease, many), partial(_first_lease, few))


_GROWTH = "import sys; from benchmarks.stores import growth; print(growth(sys.argv[1]))"


def _peak() -> float:
    """MiB that this process has had at most; not ru_maxrss, which counts what it was forked from."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    msg = "this system does not tell a process's peak (VmHWM)"
    raise Unavailable(msg)


def growth(path: str) -> float:
    """MiB by which this process grows when it opens *path* and leases a batch; for a fresh process."""
    before = _peak()
    _first_lease(Path(path))
    return _peak() - before


def _grown(path: Path) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    return float(done.stdout)


@contextmanager
def _memory_of_a_million(scale: float) -> Iterator[Sides]:
    with folder() as where:
        _fill(where / "many.db", max(1000, round(MILLION * scale)))
        yield Sides(partial(_grown, where / "many.db"))


ROWS = (
    Row(
        name="store-journal",
        what="a store: 100 tasks put one at a time, leases and acks included, all synced",
        yardstick="one synced SQLite transaction per put and per ack",
        unit="items/s",
        bar=at_least(12),
        turns=9,
        open=partial(_beside, _journal, 5_000, _one_transaction_each, 200),
    ),
    Row(
        name="store-overflow-persist-queue",
        what="a store: written by 100 and read back, not synced",
        yardstick="persist-queue's SQLiteAckQueue",
        unit="items/s",
        bar=at_least(3),
        turns=9,
        open=partial(_beside, _overflow, 10_000, _persist_queue, 200),
    ),
    Row(
        name="store-overflow-litequeue",
        what="a store: written by 100 and read back, not synced",
        yardstick="litequeue",
        unit="items/s",
        bar=at_least(3),
        turns=9,
        open=partial(_beside, _overflow, 10_000, _litequeue, 1_000),
    ),
    Row(
        name="store-publish",
        what="a store: 50 at a time into two queues, leased and acked by 50, one after the other, all synced",
        yardstick="one synced SQLite transaction per put into both and per ack",
        unit="items/s",
        bar=at_least(12),
        turns=9,
        open=partial(
            _beside, _publish, 5_000, partial(_one_transaction_each, queues=len(SUBSCRIPTIONS)), 200
        ),
    ),
    Row(
        name="durable-journal",
        what="DurableChannel, journal: 100 tasks send one at a time, until delivered and acked, all synced",
        yardstick="one synced SQLite transaction per put and per ack",
        unit="items/s",
        bar=at_least(12),
        turns=9,
        open=partial(_beside, _durable_journal, 5_000, _one_transaction_each, 200),
    ),
    Row(
        name="durable-overflow-persist-queue",
        what="DurableChannel, overflow: written to disk, read back and delivered, not synced",
        yardstick="persist-queue's SQLiteAckQueue",
        unit="items/s",
        bar=at_least(3),
        turns=9,
        open=partial(_beside, _durable_overflow, 10_000, _persist_queue, 200),
    ),
    Row(
        name="durable-overflow-litequeue",
        what="DurableChannel, overflow: written to disk, read back and delivered, not synced",
        yardstick="litequeue",
        unit="items/s",
        bar=at_least(3),
        turns=9,
        open=partial(_beside, _durable_overflow, 10_000, _litequeue, 1_000),
    ),
    *(
        Row(
            name=f"broker-publish{suffix}",
            what="Broker: 50 at a time to two subscriptions, pulled and acked, all synced",
            yardstick=yardstick,
            unit="items/s",
            bar=at_least(bar),
            turns=9,
            open=partial(_beside, _broker, 5_000, partial(by_hand, queues=len(SUBSCRIPTIONS)), fewer),
        )
        for suffix, yardstick, bar, by_hand, fewer in (
            (
                "",
                "one synced SQLite transaction per put into both and per ack",
                12,
                _one_transaction_each,
                200,
            ),
            ("-persist-queue", "two of persist-queue's SQLiteAckQueue", 3, _persist_queue, 200),
            ("-litequeue", "two of litequeue, which does not sync", 3, _litequeue, 1_000),
        )
    ),
    Row(
        name="store-first-lease",
        what="a store of 1 000 000 records: opened, first batch leased",
        yardstick="a store of 1 000",
        unit="ms",
        bar=at_most(2, of="ratio"),
        turns=15,
        open=_first_of_a_million,
    ),
    Row(
        name="store-memory",
        what="a store of 1 000 000 records: growth by opening it and leasing a batch",
        unit="MiB",
        bar=at_most(64),
        turns=3,
        open=_memory_of_a_million,
    ),
)
