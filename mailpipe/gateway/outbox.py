"""
Jobs of storages that keep none themselves: an outbox in a file of its own.

Written as the last batch step, so after the mail is kept and before its 250: whoever was told 250 has a
job. A crash in between leaves a mail without one, whose client was told nothing and sends it again.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread

from dispatcher import Batch
from mailpipe.chain import Step
from mailpipe.envelope import Envelope
from mailpipe.steps import Job, spec_of

__all__ = ["FileOutbox"]

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    job TEXT NOT NULL, queue_id TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    due_at REAL NOT NULL, error TEXT NOT NULL DEFAULT '', dead INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, queue_id)
) WITHOUT ROWID
"""
_COLUMNS = "job, queue_id, attempts, due_at, error"
_ERROR_MAX = 1000
_BUSY = 10.0


class FileOutbox:
    """
    A `mailpipe.steps.Outbox` in a SQLite file; several processes may share it.

    Every commit is on stable storage when a call returns.

    Args:
        path: Of the file, made when first used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def step(self, job: str) -> Step:
        """The batch step that writes a *job* for each mail; the last one of its chain."""

        async def outbox(batch: Batch[Envelope]) -> None:
            rows = [(job, envelope.queue_id, envelope.received_at) for envelope in batch]
            if rows:
                await self._run(lambda db: _publish(db, rows))

        spec = spec_of(outbox, "outbox")
        return Step(name="outbox", spec=spec, options=None, target=outbox, reads=(), writes=())

    async def due(self, name: str, now: float, *, limit: int = 100) -> Sequence[Job]:
        """Jobs of that name due at *now* and not dead, the oldest mail first."""
        query = f"SELECT {_COLUMNS} FROM jobs WHERE job = ? AND dead = 0 AND due_at <= ? ORDER BY queue_id LIMIT ?"
        return await self._run(lambda db: _jobs(db.execute(query, (name, now, limit))))

    async def next_due(self, name: str) -> float | None:
        """When the next job of that name is due; None if there is none."""
        query = "SELECT min(due_at) FROM jobs WHERE job = ? AND dead = 0"

        def look(db: sqlite3.Connection) -> float | None:
            at: float | None = db.execute(query, (name,)).fetchone()[0]
            return at

        return await self._run(look)

    async def settle(
        self, *, done: Sequence[Job] = (), again: Sequence[Job] = (), dead: Sequence[Job] = ()
    ) -> None:
        """Note the fates of jobs, in one transaction."""
        if done or again or dead:
            await self._run(lambda db: _settle(db, done, again, dead))

    async def dead(self, name: str) -> Sequence[Job]:
        """Jobs of that name that were given up, the oldest mail first."""
        query = f"SELECT {_COLUMNS} FROM jobs WHERE job = ? AND dead = 1 ORDER BY queue_id"
        return await self._run(lambda db: _jobs(db.execute(query, (name,))))

    async def revive(self, jobs: Sequence[Job], now: float) -> int:
        """Make dead jobs due at *now*, their attempts forgotten; returns how many there were."""

        def change(db: sqlite3.Connection) -> int:
            query = "UPDATE jobs SET dead = 0, attempts = 0, due_at = ? WHERE job = ? AND queue_id = ? AND dead = 1"
            return sum(db.execute(query, (now, job.name, job.queue_id)).rowcount for job in jobs)

        return await self._run(change)

    async def close(self) -> None:
        """Close the file; more than once is fine."""
        await to_thread.run_sync(self._close)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await to_thread.run_sync(self._transaction, work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            if self._connection is None:
                self._connection = _open(self._path)
            db = self._connection
            try:
                db.execute("BEGIN IMMEDIATE")
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                # After a failed sync nothing of this connection is trusted.
                self._connection = None
                db.close()
                raise
            return result

    def _close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _publish(db: sqlite3.Connection, rows: Iterable[tuple[str, str, float]]) -> None:
    # A retry of the batch finds its jobs there, and leaves them alone.
    db.executemany("INSERT OR IGNORE INTO jobs (job, queue_id, due_at) VALUES (?, ?, ?)", rows)


def _settle(db: sqlite3.Connection, done: Sequence[Job], again: Sequence[Job], dead: Sequence[Job]) -> None:
    db.executemany(
        "DELETE FROM jobs WHERE job = ? AND queue_id = ?", [(job.name, job.queue_id) for job in done]
    )
    fates = [(job, 0) for job in again] + [(job, 1) for job in dead]
    db.executemany(
        "UPDATE jobs SET attempts = ?, due_at = ?, error = ?, dead = ? WHERE job = ? AND queue_id = ?",
        [
            (
                job.attempts,
                job.due_at,
                job.error[:_ERROR_MAX].encode(errors="replace").decode(),
                fate,
                job.name,
                job.queue_id,
            )
            for job, fate in fates
        ],
    )


def _jobs(rows: Iterable[Any]) -> Sequence[Job]:
    return [
        Job(name=name, queue_id=queue_id, attempts=attempts, due_at=due_at, error=error)
        for name, queue_id, attempts, due_at, error in rows
    ]
