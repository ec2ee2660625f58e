"""What a store in a file promises beyond the contract."""

import asyncio
import gc
import logging
import os
import random
import re
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from dispatcher.errors import (
    OptionError,
    StoreClosed,
    StoreCorrupt,
    StoreDiskFull,
    StoreOwned,
    StoreTrouble,
    StoreUnwritable,
    StoreVersionError,
    UnknownQueue,
)
from dispatcher.stores._contract import CHECKS
from dispatcher.stores._contract.rig import Rig
from dispatcher.stores._schema import FORMAT
from dispatcher.stores.base import Dead, Record, Shelf
from dispatcher.stores.sqlite import SQLiteStore, SQLiteView

pytestmark = pytest.mark.anyio

Child = Callable[..., subprocess.Popen[str]]

OWNER = """
import sys, anyio
from dispatcher.stores.sqlite import SQLiteStore
async def main():
    async with SQLiteStore(sys.argv[1]) as store:
        await store.create("q")
        print("open", flush=True)
        sys.stdin.read()
anyio.run(main)
"""


FIRST_LEASE = """
import sys, anyio
from dispatcher.stores import _thread
from dispatcher.stores.sqlite import SQLiteStore

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    return int(line.split()[1])

steps = 0

def count():
    global steps
    steps += 1

connect = _thread.connect

def tapped(*args, **kwargs):
    connection = connect(*args, **kwargs)
    connection.set_progress_handler(count, 10)
    return connection

_thread.connect = tapped

async def main():
    async with SQLiteStore(sys.argv[1], "os") as store:
        leased = await store.lease("q", 100)
        assert len(leased) == 100
        counts = await store.counts("q")
        assert counts.live.items == int(sys.argv[2]), counts

before = peak()
anyio.run(main)
print(steps, peak() - before)
"""

FILL = """
BEGIN;
CREATE TEMP TABLE n AS
    WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n;
INSERT INTO bodies SELECT i, 1, crc, payload FROM temp.n, bodies WHERE id = 1;
INSERT INTO entries SELECT i, queue, shelf, priority, i, i, size, attempts, lease, due, key, put_at,
    expires_at, error, failed_at FROM temp.n, entries WHERE id = 1;
UPDATE queues SET ready_items = {count}, ready_bytes = ready_bytes * {count}, put = {count};
UPDATE store SET next = {count} + 1;
COMMIT;
PRAGMA wal_checkpoint(TRUNCATE);
"""


def _fill(path: Path, count: int) -> None:
    """One record through the front door, and its copies by SQL."""

    async def one() -> None:
        async with SQLiteStore(path, "os") as store:
            await store.create("q")
            await store.put([Record(b"x" * 100)], ["q"])

    anyio.run(one)
    db = sqlite3.connect(path)
    db.executescript(FILL.format(count=count))
    db.close()


def _rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


class TestOwner:
    async def test_is_one_within_a_process(self, tmp_path: Path) -> None:
        """A second store of this process is refused, and the first one's lock holds."""
        async with SQLiteStore(tmp_path / "q.db"):
            (tmp_path / "link.db").symlink_to(tmp_path / "q.db")
            for name in ("q.db", "link.db", "q.db"):
                with pytest.raises(StoreOwned, match=str(os.getpid())) as caught:
                    await SQLiteStore(tmp_path / name).__aenter__()
                assert caught.value.pid == os.getpid()
        async with SQLiteStore(tmp_path / "q.db"):
            pass

    async def test_is_named_while_it_lives(self, tmp_path: Path, child: Child) -> None:
        """Another process that has it open is named by its id; dead, it is in nobody's way."""
        owner = child(OWNER, tmp_path / "q.db")
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        for _ in range(2):
            with pytest.raises(StoreOwned, match=str(owner.pid)) as caught:
                await SQLiteStore(tmp_path / "q.db").__aenter__()
            assert caught.value.pid == owner.pid
        owner.kill()
        owner.wait()
        async with SQLiteStore(tmp_path / "q.db") as store:
            assert await store.queues() == ["q"]

    async def test_a_refused_opening_leaves_no_lock(self, tmp_path: Path) -> None:
        """What was wrong is put right, and the same process opens it."""
        path = tmp_path / "q.db"
        path.write_bytes(b"no database" * 1000)
        with pytest.raises(StoreCorrupt):
            await SQLiteStore(path).__aenter__()
        path.unlink()
        async with SQLiteStore(path):
            pass


class TestWrongFile:
    @pytest.mark.parametrize("version", [FORMAT + 1, 0, 99])
    async def test_another_version_is_refused_untouched(self, version: int, tmp_path: Path) -> None:
        """The error names both, and not one byte changes."""
        path = tmp_path / "q.db"
        async with SQLiteStore(path):
            pass
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version = {version}")
        db.close()
        before = path.read_bytes()
        with pytest.raises(StoreVersionError, match=f"{version}.*{FORMAT}"):
            await SQLiteStore(path).__aenter__()
        assert path.read_bytes() == before

    async def test_somebody_elses_database_is_refused_untouched(self, tmp_path: Path) -> None:
        """A database that is no store stays as it is."""
        path = tmp_path / "q.db"
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE precious (x)")
        db.close()
        before = path.read_bytes()
        with pytest.raises(StoreCorrupt, match="not a store"):
            await SQLiteStore(path).__aenter__()
        assert path.read_bytes() == before

    async def test_no_folder(self, tmp_path: Path) -> None:
        """It is named, and not made."""
        with pytest.raises(StoreUnwritable, match="nowhere"):
            await SQLiteStore(tmp_path / "nowhere" / "q.db").__aenter__()
        assert not (tmp_path / "nowhere").exists()

    async def test_a_folder_in_its_place(self, tmp_path: Path) -> None:
        """It is named."""
        with pytest.raises(StoreUnwritable, match="cannot be written"):
            await SQLiteStore(tmp_path).__aenter__()

    @pytest.mark.parametrize("what", ["folder", "file"])
    def test_read_only(self, what: str, child: Child) -> None:
        """A folder or a file without the right to write is refused at opening, not at the first put."""
        code = """
import os, stat, sys, tempfile, anyio
from dispatcher.errors import StoreUnwritable
from dispatcher.stores.sqlite import SQLiteStore
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)  # root may write everywhere
folder = tempfile.mkdtemp()
path = os.path.join(folder, "q.db")
async def main():
    async with SQLiteStore(path) as store:
        await store.create("q")
    os.chmod(path, 0o400)
    if sys.argv[1] == "folder":
        os.unlink(path + "-owner")
        os.chmod(folder, 0o500)
    try:
        async with SQLiteStore(path):
            print("opened")
    except StoreUnwritable as error:
        print("refused", error.path == path)
    os.chmod(folder, 0o700)
try:
    anyio.run(main)
finally:
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))
    os.rmdir(folder)
"""
        process = child(code, what)
        out, _ = process.communicate(timeout=50)
        assert out == "refused True\n"

    async def test_bad_options(self, tmp_path: Path) -> None:
        """The rule and the value."""
        with pytest.raises(OptionError, match=r"durability has to be one of commit, os, got 'none'"):
            SQLiteStore(tmp_path / "q.db", "none")  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="file_bytes_max"):
            SQLiteStore(tmp_path / "q.db", file_bytes_max=1000)


class TestFullDisk:
    async def test_is_an_error_by_name_and_nothing_is_stored(self, tmp_path: Path) -> None:
        """What does not fit is refused whole, and what fits goes in; room that is freed is used again."""
        async with SQLiteStore(tmp_path / "q.db", file_bytes_max=400_000) as store:
            await store.create("q", "r")
            big = [Record(b"x" * 50_000) for _ in range(20)]
            with pytest.raises(StoreDiskFull, match="full") as caught:
                await store.put(big, ["q", "r"])
            assert isinstance(caught.value, StoreTrouble)
            for queue in ("q", "r"):
                assert (await store.counts(queue)).put == 0
            await store.put(big[:4], ["q", "r"])
            leased = await store.lease("q", 9)
            assert await store.settle([one.tag for one in leased]) == []
            leased = await store.lease("r", 9)
            assert await store.settle([one.tag for one in leased]) == []
            await store.put(big[:4], ["q", "r"])
        assert (tmp_path / "q.db").stat().st_size <= 400_000

    async def test_does_not_take_its_neighbours_along(self, tmp_path: Path) -> None:
        """Of calls in one transaction only the one that is too large fails."""
        fates: dict[int, str] = {}
        async with SQLiteStore(tmp_path / "q.db", file_bytes_max=400_000) as store:
            await store.create("q")

            async def put(n: int) -> None:
                size = 600_000 if n == 5 else 100
                try:
                    await store.put([Record(bytes([n]) * size)], ["q"])
                    fates[n] = "stored"
                except StoreDiskFull:
                    fates[n] = "full"

            async with anyio.create_task_group() as tasks:
                for n in range(10):
                    tasks.start_soon(put, n)
            stored = {one.payload[0] for one in await store.lease("q", 99)}
        assert fates == {n: "full" if n == 5 else "stored" for n in range(10)}
        assert stored == set(range(10)) - {5}

    async def test_a_waiter_is_not_fooled(self, tmp_path: Path) -> None:
        """A put that failed leaves nothing to wait for."""
        async with SQLiteStore(tmp_path / "q.db", file_bytes_max=100_000) as store:
            await store.create("q")
            with pytest.raises(StoreDiskFull):
                await store.put([Record(b"x" * 200_000)], ["q"])
            await store.wait_room(["q"], 10, 10)
            with anyio.move_on_after(0.05):
                await store.wait_ready("q")
                pytest.fail("nothing is ready")


class TestDurability:
    async def test_one_sync_for_all_who_wait(self, tmp_path: Path, statements: list[str]) -> None:
        """Puts and acks of a hundred tasks are a handful of transactions."""
        async with SQLiteStore(tmp_path / "q.db") as store:
            await store.create("q")
            statements.clear()
            got: list[str] = []

            async def put() -> None:
                (stored,) = await store.put([Record(b"x")], ["q"], lease=True)
                got.append(stored.tag or "")

            async def ack(tag: str) -> None:
                assert await store.settle([tag]) == []

            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(put)
            async with anyio.create_task_group() as tasks:
                for tag in got:
                    tasks.start_soon(ack, tag)
        commits = statements.count("COMMIT")
        assert 2 <= commits <= 40, commits
        assert len(set(got)) == 100

    @pytest.mark.parametrize(
        ("durability", "put_at", "lease_at"), [("commit", 2, 1), ("os", 1, 1)], ids=["commit", "os"]
    )
    async def test_what_is_confirmed_is_synced(
        self, durability: str, put_at: int, lease_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A put and an ack commit with synchronous=FULL where asked for; a lease never needs it."""
        from dispatcher.stores import _thread

        connections: list[sqlite3.Connection] = []
        connect = _thread.connect

        def kept(path: Path, *, synchronous: str, bytes_max: int | None) -> sqlite3.Connection:
            connections.append(connect(path, synchronous=synchronous, bytes_max=bytes_max))
            return connections[-1]

        monkeypatch.setattr(_thread, "connect", kept)

        def level() -> int:
            return int(connections[0].execute("PRAGMA synchronous").fetchone()[0])

        async with SQLiteStore(tmp_path / "q.db", durability) as store:  # type: ignore[arg-type]
            assert connections[0].execute("PRAGMA journal_mode").fetchone() == ("wal",)
            await store.create("q")
            await store.put([Record(b"x")], ["q"])
            assert level() == put_at
            (leased,) = await store.lease("q", 1)
            assert level() == lease_at
            await store.settle([leased.tag])
            assert level() == put_at
            del level
        connections.clear()
        gc.collect()

    async def test_the_file_holds_nothing_that_is_done(self, tmp_path: Path) -> None:
        """Payloads go with the last queue that had them, and closing gives the room back."""
        path = tmp_path / "q.db"
        async with SQLiteStore(path) as store:
            await store.create("a", "b")
            for _ in range(20):
                await store.put([Record(b"x" * 10_000, key="k")] * 10, ["a", "b"])
            for queue in ("a", "b"):
                while leased := await store.lease(queue, 50):
                    await store.settle([one.tag for one in leased])
                assert (await store.counts(queue)).acked == 200
        assert _rows(path, "SELECT count(*) FROM bodies UNION ALL SELECT count(*) FROM entries") == [
            (0,),
            (0,),
        ]
        assert path.stat().st_size < 100_000


class TestTornLog:
    async def test_every_cut_leaves_whole_steps(self, tmp_path: Path) -> None:
        """A log that breaks off anywhere, as by a power cut, opens: each step is there wholly, or not."""
        path, cut = tmp_path / "q.db", tmp_path / "cut.db"
        lengths: list[int] = []
        async with SQLiteStore(path) as store:
            await store.create("q", "r")
            for n in range(12):
                await store.put([Record(b"%d" % n * 700), Record(b"%d." % n)], ["q", "r"])
                lengths.append((tmp_path / "q.db-wal").stat().st_size)
            main, wal = path.read_bytes(), (tmp_path / "q.db-wal").read_bytes()
        chance = random.Random(7)
        for length in sorted({*lengths, *(chance.randrange(lengths[0], len(wal)) for _ in range(20))}):
            cut.write_bytes(main)
            (tmp_path / "cut.db-wal").write_bytes(wal[:length])
            whole = sum(one <= length for one in lengths)
            async with SQLiteStore(cut) as store:
                for queue in ("q", "r"):
                    leased = await store.lease(queue, 99)
                    assert [one.payload for one in leased[1::2]] == [b"%d." % n for n in range(whole)]
                    assert (await store.counts(queue)).put == len(leased) == 2 * whole


class TestBadRecords:
    async def test_are_quarantined_and_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A flipped byte is found by its checksum; the others are leased as if it were not there."""
        path = tmp_path / "q.db"
        async with SQLiteStore(path) as store:
            await store.create("q")
            await store.put([Record(b"first"), Record(b"flip me"), Record(b"third", key="k")], ["q"])
        path.write_bytes(path.read_bytes().replace(b"flip me", b"flop me"))
        async with SQLiteStore(path) as store:
            with caplog.at_level(logging.ERROR, "dispatcher.stores"):
                leased = await store.lease("q", 2)
            assert [one.payload for one in leased] == [b"first", b"third"]
            assert "checksum" in caplog.text
            counts = await store.counts("q")
            assert (counts.quarantined.items, counts.quarantined_ever, counts.ready.items) == (1, 1, 0)
            (bad,) = await store.peek("q", 9, shelf=Shelf.QUARANTINED)
            assert (bad.payload, bad.error) == (b"flop me", "its checksum is wrong")
            await store.redrive("q", shelf=Shelf.QUARANTINED)
            assert await store.lease("q", 9) == []
            assert await store.purge("q", shelf=Shelf.QUARANTINED) == 1

    async def test_a_key_that_changed_is_found_too(self, tmp_path: Path) -> None:
        """The checksum is of what is delivered."""
        path = tmp_path / "q.db"
        async with SQLiteStore(path) as store:
            await store.create("q")
            await store.put([Record(b"x", key="customer-1")], ["q"])
        db = sqlite3.connect(path)
        db.execute("UPDATE entries SET key = 'customer-2'")
        db.commit()
        db.close()
        async with SQLiteStore(path) as store:
            assert await store.lease("q", 9) == []
            assert (await store.counts("q")).quarantined.items == 1

    @pytest.mark.parametrize("first", ["lease", "purge"])
    async def test_a_damaged_page_costs_its_record_only(self, first: str, tmp_path: Path) -> None:
        """A payload whose chain of pages is broken is quarantined, and can be purged."""
        path = tmp_path / "q.db"
        async with SQLiteStore(path) as store:
            await store.create("q")
            await store.put([Record(b"a" * 9000), Record(b"b" * 90_000), Record(b"c" * 9000)], ["q"])
        ((page_size,),) = _rows(path, "PRAGMA page_size")
        assert isinstance(page_size, int)
        data = bytearray(path.read_bytes())
        pages = [
            start
            for start in range(0, len(data), page_size)
            if data[start + 4 : start + page_size] == b"b" * (page_size - 4)
        ]
        data[pages[3] : pages[3] + 4] = b"\xff\xff\xff\x7f"  # the number of the next page
        path.write_bytes(data)
        async with SQLiteStore(path) as store:
            if first == "purge":
                assert await store.purge("q", shelf=Shelf.READY) == 3
                await store.put([Record(b"new")], ["q"])
                assert [one.payload for one in await store.lease("q", 9)] == [b"new"]
                return
            assert [one.payload[:1] for one in await store.lease("q", 9)] == [b"a", b"c"]
            with SQLiteView(path) as view:
                assert [one.payload for one in view.peek("q", 9, shelf=Shelf.QUARANTINED)] == [b""]
            (bad,) = await store.peek("q", 9, shelf=Shelf.QUARANTINED)
            assert "damaged" in (bad.error or "")
            assert await store.purge("q", shelf=Shelf.QUARANTINED) == 1
            assert (await store.counts("q")).quarantined.items == 0

    async def test_a_payload_that_is_gone(self, tmp_path: Path) -> None:
        """An entry without its payload is in nobody's way."""
        path = tmp_path / "q.db"
        async with SQLiteStore(path) as store:
            await store.create("q")
            await store.put([Record(b"1"), Record(b"2")], ["q"])
        db = sqlite3.connect(path)
        db.execute("DELETE FROM bodies WHERE id = 1")
        db.commit()
        db.close()
        async with SQLiteStore(path) as store:
            (leased,) = await store.lease("q", 1)
            assert leased.payload == b"2"
            assert await store.drop_oldest("q", 1) == []


class TestCost:
    async def test_no_step_walks_a_queue(self, tmp_path: Path, statements: list[str]) -> None:
        """Every statement of the whole contract finds its rows by an index, in order."""
        for check, _ in CHECKS:
            await check(Rig(lambda name, clock: SQLiteStore(tmp_path / name, clock=clock), check.__name__))
        db = sqlite3.connect(tmp_path / "check_order")
        walks = []
        for one in sorted({re.sub(r"'[^']*'|\b\d[\d.e+]*\b", "7", s) for s in statements}):
            if not re.match(r"(SELECT|UPDATE|DELETE)\b", one):
                continue
            # the literals are the codes of shelves, which partial indexes go by
            original = next(s for s in statements if re.sub(r"'[^']*'|\b\d[\d.e+]*\b", "7", s) == one)
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {original}")]
            if any(
                step.startswith(("SCAN entries", "SCAN bodies")) or step.endswith("FOR ORDER BY")
                for step in plan
            ):
                walks.append((original, plan))
        db.close()
        assert len(statements) > 1000
        assert walks == []

    def test_a_million_records_cost_little_memory(self, tmp_path: Path, child: Child) -> None:
        """Opening, and the first lease, take under 64 MiB and as many steps of SQLite as at a thousand."""
        if not Path("/proc/self/status").exists():
            pytest.skip("needs /proc to know a process's peak of memory")
        steps = {}
        for count in (1000, 1_000_000):
            path = tmp_path / f"{count}.db"
            _fill(path, count)
            out, _ = child(FIRST_LEASE, path, count).communicate(timeout=55)
            steps[count], grown = map(int, out.split())
            assert 0 < grown < 64 * 1024, f"{grown} KiB"
        assert steps[1_000_000] <= steps[1000] * 1.1


class TestCancelled:
    async def test_a_put_under_way_is_whole(self, tmp_path: Path) -> None:
        """However late it is cancelled: all of it is there, or nothing, and the store goes on."""
        async with SQLiteStore(tmp_path / "q.db") as store:
            await store.create("q")
            for turns in range(12):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(store.put, [Record(b"x")] * 3, ["q"])
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
                assert (await store.counts("q")).ready.items % 3 == 0

    async def test_leased_by_a_put_that_was_cancelled(self, tmp_path: Path) -> None:
        """Nobody has the tags: they are ready, and that was no attempt."""
        async with SQLiteStore(tmp_path / "q.db") as store:
            await store.create("q")

            async def put() -> None:
                await store.put([Record(b"x")], ["q"], lease=True)
                done.append(None)

            for turns in range(8):
                done: list[None] = []
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(put)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
                if done:
                    await store.release("q")
                    await store.purge("q", shelf=Shelf.READY)
                with anyio.fail_after(20):
                    while (await store.counts("q")).leased.items:
                        await anyio.lowlevel.checkpoint()
                assert {one.attempts for one in await store.peek("q", 9)} <= {0}

    def test_a_lease_between_its_answer_and_its_task(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Cancelled when the answer is there but the task has not run: handed back all the same."""
        answer = SQLiteStore._answer  # noqa: SLF001 - the moment cannot be met from outside
        doomed: list[asyncio.Task[object]] = []

        def answer_and_cancel(store: SQLiteStore, calls: Any, hints: Any) -> None:
            answer(store, calls, hints)
            if doomed:
                doomed.pop().cancel()

        monkeypatch.setattr(SQLiteStore, "_answer", answer_and_cancel)

        async def main() -> None:
            async with SQLiteStore(tmp_path / "q.db") as store:
                await store.create("q")
                await store.put([Record(b"x")], ["q"])
                task: asyncio.Task[object] = asyncio.ensure_future(store.lease("q", 1))
                doomed.append(task)
                with pytest.raises(asyncio.CancelledError):
                    await task
                with anyio.fail_after(20):
                    while (await store.counts("q")).leased.items:
                        await anyio.lowlevel.checkpoint()
                (one,) = await store.lease("q", 1)
                assert one.attempts == 1

        asyncio.run(main())

    async def test_an_opening(self, tmp_path: Path) -> None:
        """It is closed again, and can be opened."""
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with SQLiteStore(tmp_path / "q.db"):
                pytest.fail("opened")
        with anyio.fail_after(20):
            while True:
                try:
                    async with SQLiteStore(tmp_path / "q.db"):
                        break
                except StoreOwned:  # its thread is about to let go
                    await anyio.lowlevel.checkpoint()

    async def test_closing_finishes_what_was_asked(self, tmp_path: Path) -> None:
        """Calls that wait are done, then it closes; later ones are refused."""
        store = SQLiteStore(tmp_path / "q.db")
        answers: list[str] = []

        async def put() -> None:
            try:
                await store.put([Record(b"x")], ["q"])
                answers.append("stored")
            except StoreClosed:
                answers.append("closed")

        async with store:
            await store.create("q")
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(put)
                await anyio.lowlevel.checkpoint()
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await store.aclose()
        async with store:
            assert (await store.counts("q")).put == answers.count("stored")
        assert len(answers) == 20


class TestView:
    async def test_looks_beside_the_owner(self, tmp_path: Path, child: Child) -> None:
        """Counts and records as they were last committed, and who owns them; it takes nothing."""
        path = tmp_path / "q.db"
        async with SQLiteStore(path) as store:
            await store.create("q", "r")
            await store.put([Record(b"1"), Record(b"2")], ["q"])
            (one,) = await store.lease("q", 1)
            with SQLiteView(path) as view:
                assert view.owner == os.getpid()
                assert view.queues() == ["q", "r"]
                assert view.counts("q").ready.items == 1
                await store.settle(dead=[Dead(one.tag, "no")])
                assert [p.error for p in view.peek("q", 9, shelf=Shelf.DEAD)] == ["no"]
                assert [p.payload for p in view.peek("q", 9)] == [b"2"]
                assert view.counts("q").oldest_age is not None
                with pytest.raises(UnknownQueue):
                    view.counts("nope")
            await store.put([Record(b"3")], ["q"])
        with SQLiteView(path) as view:
            assert view.owner is None

    def test_needs_a_store(self, tmp_path: Path) -> None:
        """What is not there, or is none, is named."""
        with pytest.raises(StoreUnwritable):
            SQLiteView(tmp_path / "nothing.db")
        (tmp_path / "empty.db").touch()
        with pytest.raises(StoreCorrupt, match="empty"):
            SQLiteView(tmp_path / "empty.db")
        (tmp_path / "garbage.db").write_bytes(b"garbage" * 1000)
        with pytest.raises(StoreCorrupt):
            SQLiteView(tmp_path / "garbage.db")


class TestClock:
    async def test_the_wall_clock_may_be_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """While a store is open its time goes on by the monotonic clock; nothing expires by a jump."""
        import time

        async with SQLiteStore(tmp_path / "q.db") as store:
            await store.create("q")
            start = store.now()
            await store.put([Record(b"x", expires_at=start + 3600)], ["q"])
            monkeypatch.setattr(time, "time", lambda: start + 1e6)
            assert store.now() < start + 600
            assert len(await store.lease("q", 9)) == 1
            monkeypatch.setattr(time, "time", lambda: start - 1e6)
            assert store.now() >= start
