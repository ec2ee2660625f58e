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

from dispatcher._wait import Backend, wake
from dispatcher.stores._engine import Hint
from dispatcher.stores._schema import OwnerLock, connect, sync_folder, translate
from dispatcher.stores._transactor import Call, Transactor

__all__ = ["WriterThread"]

GROUP_MAX = 1000
"""Calls in one transaction; a bound only for what one failure makes to be done again."""

FREE_PAGES_KEPT = 256
"""Beyond, the file is made smaller when it is closed."""

Hints = dict[str, Hint | None]


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
        self._backend, self._answer = backend, answer
        self._post = _poster(backend)
        self._inbox: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._opened = backend.waiter()
        self._closed = backend.waiter()
        self._trouble: Exception | None = None
        self._hints: Hints = {}
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
            transactor = Transactor(db, self._path, self._synchronous)
            transactor.void_leases()
            self._hints = transactor.tables.take_hints()
            self._tell(wake, self._opened)
            self._serve(transactor)
            (free,) = db.execute("PRAGMA freelist_count").fetchone()
            if free > FREE_PAGES_KEPT:
                db.executescript("PRAGMA incremental_vacuum")  # execute() would free one page
        finally:
            db.close()

    def _serve(self, transactor: Transactor) -> None:
        more = True
        while more:
            calls, more = self._gather()
            if calls:
                transactor.work(calls)
                self._tell(self._answer, calls, transactor.tables.take_hints())

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
