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

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import attrs

from mailpipe.envelope import Body, Envelope
from mailpipe.steps import processor
from mailpipe.storages._archive import RowArchive
from mailpipe.storages._rows import ROWS_MAX, envelope_values, statements_of, stored_body
from mailpipe.storages._schema import COLUMNS, PIECE_COLUMNS, Inserts, Tables
from mailpipe.storages._store import SqlStore
from mailpipe.storages._validators import one_of, positive, positive_or_none, table_name

__all__ = ["SqlOptions", "SqlStorage"]

# Octets of a body that stand in the mail's own row; larger ones are pieces, or a file.
_PIECE = 512 * 1024
_INLINE_MAX = {"sqlite": 1024 * 1024}


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
            received; ``"received"``, or the name of a copy. ``"none"`` keeps the row only, for a
            chain whose other storage keeps the octets.

        durability:
            ``"disk"``: a commit is on stable storage, verified when opened. ``"os"``: it is in the
            system's hands, and a power cut may lose the last ones.

        timeout: Seconds that one statement or a lock may take; below the gateway's send_timeout.

        expire: Seconds after which a mail is deleted; None keeps it.

    Raises:
        ValueError: If a value breaks its rule.
    """

    url: str = "sqlite:///mail.db"
    table: str = attrs.field(default="mails", validator=table_name)
    body: str = ""
    durability: Literal["disk", "os"] = attrs.field(default="disk", validator=one_of("disk", "os"))
    timeout: float = attrs.field(default=10.0, validator=positive)
    expire: float | None = attrs.field(default=None, validator=positive_or_none)


class _Ready(NamedTuple):
    """A batch that only has to be written."""

    envelopes: Sequence[Envelope]
    statements: list[list[Any]]
    """Values of each statement's rows."""

    large: list[tuple[str, Body]]
    """By queue id, bodies that go into rows of their own."""


@processor("sql", kind="batch", options=SqlOptions, storage=True, rejects=False)
class SqlStorage(RowArchive, SqlStore):
    """
    Keeps mails in one database; every batch is one transaction.

    Idempotent by ``queue_id``: a row that is there already is left alone, which also answers a
    COMMIT whose reply was lost.
    """

    options: SqlOptions
    tables: Tables

    def __init__(self, options: SqlOptions | None = None) -> None:
        self.options = options or SqlOptions()
        super().__init__()
        self.tables = Tables(self.options.table)
        dialect = self.database.dialect
        self._mails = Inserts(self.tables.mails, COLUMNS, ("queue_id",), dialect)
        self._pieces = Inserts(self.tables.pieces, PIECE_COLUMNS, ("queue_id", "seq"), dialect)
        self.keeps_files = dialect.name == "sqlite"
        self._inline_max = _INLINE_MAX.get(dialect.name, _PIECE)

    @property
    def holds_body(self) -> bool:
        """False with ``body = "none"``."""
        return self.options.body != "none"

    def _prepare(self, envelopes: Sequence[Envelope]) -> _Ready:
        rows: list[tuple[Any, ...]] = []
        files: list[tuple[str, Body]] = []
        large: list[tuple[str, Body]] = []
        for envelope in envelopes:
            if not self.holds_body:
                rows.append((*envelope_values(envelope), "", None, 0, None))
                continue
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
            rows.append((*envelope_values(envelope), body.encoding, file, pieces, data))
        if files and self.shelf is not None:
            self.shelf.keep(files)
        return _Ready(envelopes, list(statements_of(rows)), large)

    def _insert(self, ready: _Ready) -> None:
        envelopes, statements, large = ready
        cursor = self._connection.cursor()
        try:
            if len(statements) == 1 and not large and not self.jobs:
                # Alone, a statement is its own transaction, which saves two trips.
                cursor.execute(self._mails.of(len(statements[0]) // len(COLUMNS)), statements[0])
                return
            cursor.execute(self.database.begin)
            # A mail that was there already had its jobs, which may be done by now.
            fresh = self._fresh(cursor, envelopes) if self.jobs else ()
            for values in statements:
                cursor.execute(self._mails.of(len(values) // len(COLUMNS)), values)
            for queue_id, body in large:
                for seq, piece in enumerate(_pieces(body)):
                    cursor.execute(self._pieces.of(1), (queue_id, seq, piece))
            self._insert_jobs(cursor, fresh)
            cursor.execute("COMMIT")
        finally:
            cursor.close()

    def _fresh(self, cursor: Any, envelopes: Sequence[Envelope]) -> Sequence[Envelope]:  # noqa: ANN401 - a driver's cursor
        """Of these mails, those that are not there yet."""
        there: set[str] = set()
        mark = "?" if self.database.dialect.paramstyle == "qmark" else "%s"
        for start in range(0, len(envelopes), ROWS_MAX):
            some = [envelope.queue_id for envelope in envelopes[start : start + ROWS_MAX]]
            marks = ", ".join([mark] * len(some))
            cursor.execute(f"SELECT queue_id FROM {self.tables.name} WHERE queue_id IN ({marks})", some)
            there.update(queue_id for (queue_id,) in cursor.fetchall())
        return [envelope for envelope in envelopes if envelope.queue_id not in there]


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
