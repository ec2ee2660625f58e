"""
``sql``: mails in a database, one transaction per batch.

=============  ========================================================================
does           keeps envelope, prelude and body; returns once the transaction is committed
hook           batch (storage); sync, in a thread of its own that owns the connection
options        `SqlOptions`
reads          the copy that ``body`` names
writes         nothing
durability     ``disk``, verified when opened; ``os`` where asked for
largest body   no bound of its own: on SQLite large ones are files in ``DATA/bodies``, elsewhere
               pieces of 512 KiB in the mail's transaction
=============  ========================================================================

SQLAlchemy Core makes the schema, the connections and every query but those of the hot path,
which are texts made once (`mailpipe.storages._schema.Inserts`).
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import attrs

from mailpipe.envelope import Body, Envelope
from mailpipe.steps import Durability, Place, processor
from mailpipe.storages._archive import SqlArchive
from mailpipe.storages._database import Database
from mailpipe.storages._rows import clean, detail_of, encode, raw_subject, stored_body
from mailpipe.storages._schema import COLUMNS, PIECE_COLUMNS, Inserts, Tables
from mailpipe.storages._shelf import Shelf
from mailpipe.storages._thread import OwnThread

__all__ = ["SqlOptions", "SqlStorage"]

T = TypeVar("T")

# Octets of a body that stand in the mail's own row; larger ones are pieces, or a file.
_PIECE = 512 * 1024
_INLINE_MAX = {"sqlite": 1024 * 1024}

# One statement has so many rows and octets at most: below every driver's count of parameters and
# MariaDB's max_allowed_packet (16 MiB).
_ROWS_MAX = 100
_OCTETS_MAX = 4 * 1024 * 1024

_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}\Z")


def _table_name(_: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if not _TABLE.match(value):
        msg = f"{attribute.name} is 1 to 40 letters, digits and '_', not starting with a digit, got {value!r}"
        raise ValueError(msg)


def _level(_: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if value not in {"disk", "os"}:
        msg = f"{attribute.name} is 'disk' or 'os', got {value!r}"
        raise ValueError(msg)


def _seconds(_: object, attribute: "attrs.Attribute[float]", value: float | None) -> None:
    if value is not None and not value > 0:
        msg = f"{attribute.name} must be more than 0 seconds, got {value!r}"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class SqlOptions:
    """
    Settings of one ``sql`` storage; checked when made.

    Args:
        url:
            SQLAlchemy's form: ``sqlite:///mail.db`` (a relative path is relative to the data
            folder), ``postgresql://user:password@host/name``, ``mysql://…``, ``mariadb://…``.

        table: Name of the mails' table; others are called after it.

        body:
            What is stored: ``""`` is the compressor's copy if there is one, else what was
            received; ``"received"``, or the name of a copy.

        durability:
            ``"disk"``: a commit is on stable storage, verified when opened. ``"os"``: it is in the
            system's hands, and a power cut may lose the last ones.

        timeout: Seconds that one statement or a lock may take; below the gateway's send_timeout.

        expire: Seconds after which a mail is deleted; None keeps it.

    Raises:
        ValueError: If a value breaks its rule.
    """

    url: str = "sqlite:///mail.db"
    table: str = attrs.field(default="mails", validator=_table_name)
    body: str = ""
    durability: Literal["disk", "os"] = attrs.field(default="disk", validator=_level)
    timeout: float = attrs.field(default=10.0, validator=_seconds)
    expire: float | None = attrs.field(default=None, validator=_seconds)


@processor("sql", kind="batch", options=SqlOptions, storage=True, rejects=False)
class SqlStorage(SqlArchive):
    """
    Keeps mails in one database; every batch is one transaction.

    Idempotent by ``queue_id``: a row that is there already is left alone, which also answers a
    COMMIT whose reply was lost.
    """

    idempotent = True
    serial = True
    holds_body = True
    largest: int | None = None

    def __init__(self, options: SqlOptions | None = None) -> None:
        self.options = options or SqlOptions()
        self.database = Database(self.options)
        self.tables = Tables(self.options.table)
        self.shelf: Shelf | None = None
        self._thread: OwnThread | None = None
        self._connection: Any = None
        dialect = self.database.dialect
        self._mails = Inserts(self.tables.mails, COLUMNS, ("queue_id",), dialect)
        self._pieces = Inserts(self.tables.pieces, PIECE_COLUMNS, ("queue_id", "seq"), dialect)
        self._inline_max = _INLINE_MAX.get(dialect.name, _PIECE)

    @property
    def durability(self) -> Durability:
        """As asked for, and verified by `setup`."""
        return self.options.durability

    @property
    def lasting(self) -> bool:
        """False if it expires."""
        return self.options.expire is None

    async def setup(self, place: Place) -> None:
        """
        Open; make or check the schema; verify the durability.

        Raises:
            ValueError: If the schema is of another version, or the server's settings do not keep
                what `SqlOptions.durability` promises.
            sqlalchemy.exc.DBAPIError: If the database cannot be reached.
        """
        self._thread = OwnThread(f"mailpipe-sql-{place.gateway}")
        try:
            await self.run(lambda: self._open(place))
        except BaseException:
            await self.teardown()
            raise

    async def teardown(self) -> None:
        """Close, after what runs. May be repeated."""
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
        if self._connection is None:
            self._connection = self.database.connect()
        try:
            self._insert(list(batch))
        except BaseException as error:
            self._recover(error)
            raise

    def _open(self, place: Place) -> None:
        if place.reading:
            if store := self._opened_for_reading(place):
                self.shelf = Shelf(place.data / "bodies" / store)
            return
        self.database.open(place.data, reading=False)
        store = self.database.make(self.tables)
        if self.database.dialect.name == "sqlite":
            self.shelf = Shelf(place.data / "bodies" / store)
            self.shelf.open(self.known_files)
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
        self.database.close()

    def _insert(self, envelopes: Sequence[Envelope]) -> None:
        rows: list[tuple[Any, ...]] = []
        files: list[tuple[str, Body]] = []
        large: list[tuple[str, Body]] = []
        for envelope in envelopes:
            body = stored_body(envelope, self.options.body)
            data, file, pieces = None, None, 0
            if len(body) <= self._inline_max:
                # One chunk of a body in memory is its own octets, not a copy.
                data = b"".join(body.chunks(self._inline_max))
            elif self.shelf is not None:
                file = envelope.queue_id
                files.append((file, body))
            else:
                pieces = -(-len(body) // _PIECE)
                large.append((envelope.queue_id, body))
            rows.append(_row(envelope, body.encoding, file, pieces, data))
        if files and self.shelf is not None:
            self.shelf.keep(files)
        statements = list(_statements(rows))
        cursor = self._connection.cursor()
        try:
            if len(statements) == 1 and not large:
                # Alone, a statement is its own transaction, which saves two trips.
                cursor.execute(self._mails.of(len(rows)), statements[0])
                return
            cursor.execute(self.database.begin)
            for values in statements:
                cursor.execute(self._mails.of(len(values) // len(COLUMNS)), values)
            for queue_id, body in large:
                for seq, piece in enumerate(_pieces(body)):
                    cursor.execute(self._pieces.of(1), (queue_id, seq, piece))
            cursor.execute("COMMIT")
        finally:
            cursor.close()

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


def _row(
    envelope: Envelope, encoding: str, file: str | None, pieces: int, data: bytes | None
) -> tuple[Any, ...]:
    """One mail's values in the order of `COLUMNS`."""
    session = envelope.session
    return (
        envelope.queue_id,
        envelope.received_at,
        clean(envelope.mail_from),
        encode([clean(address) for address in envelope.rcpt_to]),
        len(envelope.body),
        raw_subject(envelope.body),
        clean(session.peer),
        clean(session.helo),
        clean(session.user),
        clean(session.tls),
        envelope.hashes.get("sha256", ""),
        encoding,
        detail_of(envelope),
        file,
        pieces,
        envelope.prelude,
        data,
    )


def _statements(rows: list[tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Rows as flat lists of values, each for one statement."""
    values: list[Any] = []
    octets = count = 0
    for row in rows:
        size = len(row[-1] or b"")
        if count and (count == _ROWS_MAX or octets + size > _OCTETS_MAX):
            yield values
            values, octets, count = [], 0, 0
        values += row
        octets += size
        count += 1
    yield values


def _pieces(body: Body) -> Iterator[bytes]:
    """A body in pieces of `_PIECE` octets, whatever the sizes it comes in."""
    held = bytearray()
    for chunk in body.chunks(_PIECE):
        held += chunk
        while len(held) >= _PIECE:
            yield bytes(held[:_PIECE])
            del held[:_PIECE]
    if held:
        yield bytes(held)
