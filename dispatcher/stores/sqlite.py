"""
Queues in one SQLite file: on any disk, without a server.

The file is owned by the process that has it open. Others may look at it meanwhile, with `SQLiteView`.
"""

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self, TypeVar

from dispatcher.errors import OptionError
from dispatcher.stores._engine import SHELVES, Engine, Hint
from dispatcher.stores._schema import connect_read_only, owner_pid, translate
from dispatcher.stores._shell import EmbeddedStore, wall_clock
from dispatcher.stores._tables import Tables
from dispatcher.stores._thread import WriterThread
from dispatcher.stores._transactor import Call
from dispatcher.stores.base import Counts, Nack, Peeked, Shelf

__all__ = ["SQLiteStore", "SQLiteView"]

T = TypeVar("T")

_LEVELS = {"commit": "FULL", "os": "NORMAL"}
FILE_BYTES_LEAST = 65_536


class SQLiteStore(EmbeddedStore):
    """
    A `dispatcher.stores.base.Store` in one file, for one process.

    Beside the file there are its write-ahead log (``-wal``, ``-shm``) and ``-owner``, which names the
    owner's process and stays. The file does not shrink while it is open; freed room is used again.

    Args:
        path: The file; made if it is not there. Its folder has to be.

        durability:
            ``"commit"``: what is confirmed survives a power failure (a disk sync per commit, shared by
            all calls that wait). ``"os"``: it survives the process, not the machine; never damaged.
            Default: ``"commit"``.

        file_bytes_max: What would make the file larger is refused with StoreDiskFull; 65536 or more.
            None: as large as the disk allows.

        clock: Reads the time, in Unix seconds, for tests; None: the wall clock at opening plus the
            monotonic time since.

    Raises:
        OptionError: If an argument breaks its rule.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        durability: Literal["commit", "os"] = "commit",
        *,
        file_bytes_max: int | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(clock=clock)
        if durability not in _LEVELS:
            rule = f"has to be one of {', '.join(_LEVELS)}"
            raise OptionError(option="durability", rule=rule, value=durability)
        if file_bytes_max is not None and not file_bytes_max >= FILE_BYTES_LEAST:
            rule = f"has to be None, or {FILE_BYTES_LEAST} or more"
            raise OptionError(option="file_bytes_max", rule=rule, value=file_bytes_max)
        self._path = Path(os.path.realpath(path))
        self._durability = durability
        self._file_bytes_max = file_bytes_max
        self._thread: WriterThread | None = None

    @property
    def path(self) -> Path:
        """The file, symbolic links resolved."""
        return self._path

    @property
    def durability(self) -> str:
        """As it was made."""
        return self._durability

    async def _start(self) -> dict[str, Hint | None]:
        assert self._backend is not None
        self._thread = WriterThread(
            self._path,
            synchronous=_LEVELS[self._durability],
            bytes_max=self._file_bytes_max,
            backend=self._backend,
            answer=self._answer,
        )
        return await self._thread.start()

    async def _stop(self) -> None:
        assert self._thread is not None
        await self._thread.stop()

    async def _step(
        self,
        step: Callable[[Engine, float], T],
        *,
        durable: bool = True,
        light: bool = False,
        orphan: Callable[[T], None] | None = None,
    ) -> T:
        self._check_open()
        assert self._thread is not None
        assert self._backend is not None
        waiter = self._backend.waiter()
        call = Call(step, self.now(), waiter=waiter, durable=durable, light=light, orphan=orphan)
        self._thread.submit(call)
        try:
            await waiter
        except BaseException:
            call.abandoned = True
            if call.answered:
                self._bury_orphan(call)
            raise
        if call.error is not None:
            raise call.error
        result: T = call.result
        return result

    def _answer(self, calls: Sequence[Call], hints: dict[str, Hint | None]) -> None:
        self._take(hints)
        for call in calls:
            call.answered = True
            if call.abandoned:
                self._bury_orphan(call)
            elif call.waiter is not None and not call.waiter.done():
                call.waiter.set_result(None)

    @staticmethod
    def _bury_orphan(call: Call) -> None:
        if call.orphan is not None and call.error is None:
            call.orphan(call.result)

    def _hand_back(self, tags: Sequence[str]) -> None:
        if tags and self._open and self._thread is not None:
            nacks = [Nack(tag, count=False) for tag in tags]
            self._thread.submit(
                Call(
                    lambda engine, now: engine.settle(now, (), nacks, ()),
                    self.now(),
                    waiter=None,
                    durable=False,
                    light=False,
                    orphan=None,
                )
            )


class SQLiteView:
    """
    Looks at a store's file without owning it, also while its owner works on it; changes nothing.

    What is due or has expired since its owner looked last is shown as it lies. Sync: for tools.

    Args:
        path: The file.

    Raises:
        StoreError: As `dispatcher.stores.base.Store.__aenter__`; `StoreUnwritable` if there is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(os.path.realpath(path))
        self._db = connect_read_only(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; again: nothing."""
        self._db.close()

    @property
    def owner(self) -> int | None:
        """Process id of the owner as it was written down; None: closed in order."""
        return owner_pid(self._path)

    def _look(self, look: Callable[[Tables], T]) -> T:
        damaged: set[int] = set()
        while True:
            known = len(damaged)
            try:
                self._db.execute("BEGIN")  # one moment for all of it
                try:
                    tables = Tables(self._db)
                    tables.damaged = damaged
                    return look(tables)
                finally:
                    self._db.execute("ROLLBACK")
            except sqlite3.Error as error:
                if len(damaged) == known:
                    raise translate(self._path, error) from error

    def queues(self) -> Sequence[str]:
        """Names of all queues, sorted."""
        return self._look(lambda tables: tables.queues(0.0))

    def counts(self, queue: str) -> Counts:
        """The queue in numbers; see `dispatcher.stores.base.Store.counts`."""
        now = wall_clock()()
        return self._look(lambda tables: tables.tell(tables.queue(queue), now))

    def peek(
        self, queue: str, limit: int, *, shelf: Shelf = Shelf.READY, after: str | None = None
    ) -> Sequence[Peeked]:
        """See `dispatcher.stores.base.Store.peek`."""
        code = SHELVES.index(shelf)
        return self._look(lambda tables: tables.look(tables.queue(queue), limit, code, after))
