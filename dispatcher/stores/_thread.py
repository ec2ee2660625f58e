"""
The thread that owns a store's connection, and makes one transaction of all that waits.

Group commit: a commit costs a disk sync, whatever is in it. While one runs, calls pile up; the next one
takes them all, each in a savepoint of its own, and answers them with one wake-up of the event loop after
the commit. No task waits here and no scope can cancel it, so no cancellation ever tears a write apart.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dispatcher._wait import Backend, Waiter, wake
from dispatcher.errors import StoreError
from dispatcher.stores._engine import Engine, Hint
from dispatcher.stores._schema import OwnerLock, connect, sync_folder, translate
from dispatcher.stores._tables import Tables

__all__ = ["Call", "WriterThread"]

GROUP_MAX = 1000
"""Calls in one transaction; a bound only for what one failure makes to be done again."""

FREE_PAGES_KEPT = 256
"""Beyond, the file is made smaller when it is closed."""

Hints = dict[str, Hint | None]


class Call:
    """One step that somebody waits for."""

    __slots__ = ("abandoned", "answered", "durable", "error", "now", "orphan", "result", "step", "waiter")

    def __init__(
        self,
        step: Callable[[Engine, float], Any],
        now: float,
        *,
        waiter: Waiter | None,
        durable: bool,
        orphan: Callable[[Any], None] | None,
    ) -> None:
        self.step, self.now, self.durable = step, now, durable
        self.waiter, self.orphan = waiter, orphan
        self.result: Any = None
        self.error: Exception | None = None
        self.abandoned = waiter is None
        """Nobody waits any more."""

        self.answered = False


def _poster(backend: Backend) -> Callable[..., object]:
    """What calls a function in the event loop, from another thread."""
    if backend.name == "asyncio":
        return asyncio.get_running_loop().call_soon_threadsafe
    import trio

    return trio.lowlevel.current_trio_token().run_sync_soon


class WriterThread:
    """
    Opens the file, does what is asked, closes it.

    Made in the event loop that it answers to.

    Args:
        path: The file.

        synchronous: SQLite's word for how durable a commit is: FULL or NORMAL.

        bytes_max: How large the file may grow; None: as the disk allows.

        backend: The event loop's.

        answer: Is called in the event loop with the calls that are done, and with what has changed.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: str,
        bytes_max: int | None,
        backend: Backend,
        answer: Callable[[Sequence[Call], Hints], None],
    ) -> None:
        self._path, self._synchronous, self._bytes_max = path, synchronous, bytes_max
        self._level = synchronous
        self._backend, self._answer = backend, answer
        self._post = _poster(backend)
        self._inbox: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._opened = backend.waiter()
        self._closed = backend.waiter()
        self._trouble: Exception | None = None
        self._hints: Hints = {}
        self._recover = False
        # A daemon: an event loop that dies without closing must not keep the process alive, and what
        # was confirmed is on the disk.
        self._thread = threading.Thread(target=self._main, name=f"store {path.name}", daemon=True)

    async def start(self) -> Hints:
        """Open; cancelled, it closes again."""
        self._thread.start()
        try:
            await self._opened
        except BaseException:
            self._inbox.put(None)
            raise
        if self._trouble is not None:
            raise self._trouble
        return self._hints

    async def stop(self) -> None:
        """Finish what is asked for, and close."""
        self._inbox.put(None)
        await self._closed
        self._thread.join()
        if self._trouble is not None:
            raise self._trouble

    def submit(self, call: Call) -> None:
        """Do it soon."""
        self._inbox.put(call)

    # -- in the thread

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        # The loop is gone: so is everybody who waited.
        with contextlib.suppress(RuntimeError):
            self._post(function, *args)

    def _main(self) -> None:
        try:
            lock = OwnerLock(self._path)
        except Exception as error:
            self._trouble = error
            self._tell(wake, self._opened)
            return
        try:
            self._open_and_serve()
        except Exception as error:
            self._trouble = translate(self._path, error) if isinstance(error, sqlite3.Error) else error
        finally:
            lock.release()
            self._tell(wake, self._opened)
            self._tell(wake, self._closed)

    def _open_and_serve(self) -> None:
        db = connect(self._path, synchronous=self._synchronous, bytes_max=self._bytes_max)
        try:
            sync_folder(self._path.parent)
            self._db, self._tables = db, Tables(db)
            db.execute("BEGIN IMMEDIATE")
            self._tables.void_leases()
            self._tables.flush()
            db.execute("COMMIT")
            self._hints = self._tables.take_hints()
            self._tell(wake, self._opened)
            self._serve()
            (free,) = db.execute("PRAGMA freelist_count").fetchone()
            if free > FREE_PAGES_KEPT:
                db.execute("PRAGMA incremental_vacuum").fetchall()
        finally:
            db.close()

    def _serve(self) -> None:
        more = True
        while more:
            calls, more = self._gather()
            if not calls:
                continue
            try:
                self._work(calls)
            except Exception as error:  # nothing of it has been committed
                for call in calls:
                    call.error = call.error or self._named(error)
            self._tell(self._answer, calls, self._tables.take_hints())

    def _gather(self) -> tuple[list[Call], bool]:
        """What waits, or the first that comes; and whether to go on afterwards."""
        calls: list[Call] = []
        call = self._inbox.get()
        while call is not None:
            # A call whose caller was cancelled before it began is left out. Those without a waiter are
            # nobody's, and meant so.
            if not call.abandoned or call.waiter is None:
                calls.append(call)
            if len(calls) >= GROUP_MAX:
                return calls, True
            try:
                call = self._inbox.get_nowait()
            except queue.Empty:
                return calls, True
        return calls, False

    def _work(self, calls: Sequence[Call]) -> None:
        try:
            self._transact(calls)
        except sqlite3.Error as error:
            if len(calls) == 1:
                calls[0].error = self._named(error)
                return
            # A full disk, or one call too large for it: each by itself, so that what fits gets in.
            for call in calls:
                call.result = call.error = None
                self._work([call])

    def _named(self, error: Exception) -> Exception:
        if not isinstance(error, sqlite3.Error):
            return error
        named: StoreError = translate(self._path, error)
        named.__cause__ = error
        return named

    def _transact(self, calls: Sequence[Call]) -> None:
        """All of *calls* in one transaction; raises only what concerns them all, then nothing is done."""
        db = self._db
        if self._recover:
            self._start_over()
        self._set_level(durable=any(call.durable for call in calls))
        db.execute("BEGIN IMMEDIATE")
        try:
            for call in calls:
                self._do(call, alone=len(calls) == 1)
            self._tables.flush()
            db.execute("COMMIT")
        except BaseException:
            self._recover = True
            raise

    def _start_over(self) -> None:
        """After a transaction that failed: as if it had never begun. May fail itself, then again later."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._tables.load()
        self._recover = False

    def _do(self, call: Call, *, alone: bool) -> None:
        db = self._db
        if not alone:
            db.execute("SAVEPOINT step")
        self._tables.begin_step()
        try:
            call.result = call.step(self._tables, call.now)
        except Exception as error:
            # Some errors end the transaction by themselves; and with a lone call it may as well.
            if not db.in_transaction or (alone and isinstance(error, sqlite3.Error)):
                raise
            call.error = self._named(error)
            if alone:
                db.execute("ROLLBACK")
                db.execute("BEGIN IMMEDIATE")
            else:
                db.execute("ROLLBACK TO step")
            self._tables.undo_step()
        if not alone:
            db.execute("RELEASE step")

    def _set_level(self, *, durable: bool) -> None:
        """Leases are written without a sync: the power may take them, a dying process may not."""
        level = self._synchronous if durable else "NORMAL"
        if level != self._level:
            self._db.execute(f"PRAGMA synchronous = {level}")
            self._level = level
