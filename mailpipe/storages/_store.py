"""
What the storages that keep mails in a database have in common: the thread that owns the
connection, opening and closing, and what happens after an error.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

from mailpipe.envelope import Envelope
from mailpipe.steps import Durability, Place
from mailpipe.storages._archive import SqlArchive
from mailpipe.storages._database import Database, DatabaseOptions
from mailpipe.storages._expiry import Expiry
from mailpipe.storages._outbox import SqlOutbox
from mailpipe.storages._rows import ROWS_MAX
from mailpipe.storages._schema import OUTBOX_COLUMNS, Inserts, StoreTables
from mailpipe.storages._shelf import Shelf
from mailpipe.storages._thread import OwnThread
from mailpipe.storages._turn import Turn

__all__ = ["SqlStore", "StoreOptions"]

T = TypeVar("T")


class StoreOptions(DatabaseOptions, Protocol):
    """What every storage in a database is told."""

    @property
    def durability(self) -> Durability:
        """``"disk"`` or ``"os"``."""
        ...

    @property
    def table(self) -> str:
        """Name of the mails' table."""
        ...

    @property
    def expire(self) -> float | None:
        """Seconds after which a mail is deleted."""
        ...


class SqlStore(SqlArchive):
    """
    A storage over one database; every batch is one transaction.

    Idempotent by ``queue_id``: a row that is there already is left alone, which also answers a
    COMMIT whose reply was lost.
    """

    idempotent = True
    serial = True
    largest: int | None = None
    kind = "sql"
    """For the names of threads."""

    keeps_files = False
    """Bodies too large for a row stand in files, which their rows refer to."""

    options: StoreOptions
    tables: StoreTables

    def __init__(self) -> None:
        self.database = Database(self.options)
        self.shelf: Shelf | None = None
        self._thread: OwnThread | None = None
        self._connection: Any = None
        self._expiry: Expiry | None = None
        self.jobs: Sequence[str] = ()
        """Names of the jobs that each mail brings along, in its own transaction; see `Outbox`."""
        self._turn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    @property
    def durability(self) -> Durability:
        """As asked for, and verified by `setup`."""
        return self.options.durability

    @property
    def lasting(self) -> bool:
        """False if it expires."""
        return self.options.expire is None

    @property
    def holds_body(self) -> bool:
        """It keeps the octets, not only facts about them."""
        return True

    async def setup(self, place: Place) -> None:
        """
        Open; make or check the schema; verify the durability.

        Raises:
            ValueError: If the schema is of another version, or the server's settings do not keep
                what ``durability`` promises.
            sqlalchemy.exc.DBAPIError: If the database cannot be reached.
        """
        self._thread = OwnThread(f"mailpipe-{self.kind}-{place.gateway}")
        try:
            await self.run(lambda: self._open(place))
        except BaseException:
            await self.teardown()
            raise
        if self.options.expire is not None and not place.reading:
            self._expiry = Expiry(self, self.options.expire)

    async def teardown(self) -> None:
        """Close, after what runs. May be repeated."""
        if self._expiry is not None:
            await self._expiry.close()
            self._expiry = None
        if self._thread is not None:
            thread, self._thread = self._thread, None
            await thread.run(self._close)
            await thread.close()

    async def run(self, work: Callable[[], T]) -> T:
        """Call *work* in the thread that owns the connection; see `OwnThread.run`."""
        if self._thread is None:
            msg = f"storage {self.database.name} is not open"
            raise RuntimeError(msg)
        return await self._thread.run(work)

    def __call__(self, batch: Sequence[Envelope], /) -> None:
        """Keep the batch in one transaction; blocks, in the storage's thread."""
        if not len(batch):
            return
        ready = self._prepare(list(batch))
        with self._turn:
            if self._connection is None:
                self._connection = self.database.connect()
            try:
                self._insert(ready)
            except BaseException as error:
                self._recover(error)
                raise

    def known_files(self, names: Collection[str]) -> Collection[str]:
        """Of these files, those that a row refers to."""
        raise NotImplementedError

    @property
    def outbox(self) -> SqlOutbox:
        """The jobs beside the mails (`mailpipe.steps.Outbox`)."""
        return SqlOutbox(self.database, self.tables.outbox)

    def _insert_jobs(self, cursor: Any, envelopes: Sequence[Envelope]) -> None:  # noqa: ANN401 - a driver's cursor
        """Write a job of each name for each mail, in the transaction of *cursor*."""
        inserts = Inserts(self.tables.outbox, OUTBOX_COLUMNS, ("job", "queue_id"), self.database.dialect)
        rows = [
            (job, envelope.queue_id, 0, envelope.received_at, "", 0)
            for job in self.jobs
            for envelope in envelopes
        ]
        for start in range(0, len(rows), ROWS_MAX):
            some = rows[start : start + ROWS_MAX]
            cursor.execute(inserts.of(len(some)), [value for row in some for value in row])

    def _prepare(self, envelopes: Sequence[Envelope]) -> Any:  # noqa: ANN401 - the storage's own
        """Do what needs no turn at the database; returns what `_insert` takes."""
        return envelopes

    def _insert(self, ready: Any) -> None:  # noqa: ANN401 - what `_prepare` returned
        """Keep these envelopes in one transaction on ``self._connection``."""
        raise NotImplementedError

    def _open(self, place: Place) -> None:
        if place.reading:
            if (store := self._opened_for_reading(place)) and self.keeps_files:
                self.shelf = Shelf(place.data / "bodies" / store)
            return
        self.database.open(place.data, reading=False)
        store = self.database.make(self.tables)
        if self.keeps_files:
            self.shelf = Shelf(place.data / "bodies" / store)
            self.shelf.open(self.known_files)
        if self.database.dialect.name == "sqlite" and place.workers > 1:
            path = self.database.path(place.data)
            self._turn = Turn(path.with_name(f"{path.name}.lock"), self.options.timeout)
        self._connection = self.database.connect()

    def _opened_for_reading(self, place: Place) -> str:
        """The store's id, ``""`` (and closed) where nothing was ever stored."""
        try:
            self.database.open(place.data, reading=True)
        except FileNotFoundError:
            return ""
        if not (store := self.database.check(self.tables)):
            self.database.close()
        return store

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if self.shelf is not None:
            self.shelf.close()
        if isinstance(self._turn, Turn):
            self._turn.close()
        self.database.close()

    def _recover(self, error: BaseException) -> None:
        """
        Leave no transaction open; a connection that may be broken is dropped.

        After a failed COMMIT nothing on the connection is trusted, and what had reached the disk
        before a failed sync neither: the batch is written anew on a new one.
        """
        connection, self._connection = self._connection, None
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if not kinds & {"OperationalError", "InterfaceError", "OSError"} and isinstance(error, Exception):
            with contextlib.suppress(Exception):
                connection.rollback()
                self._connection = connection
                return
        # Broken is as good as closed.
        with contextlib.suppress(Exception):
            connection.close()
