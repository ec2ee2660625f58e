"""
``chunks``: mails in a database in pieces, each different piece kept once.

=============  ==========================================================================
does           cuts what was received at the ends of headers and parts and at a size, and
               keeps each different chunk once, with a count of who refers to it
hook           batch (storage); sync, in a thread of its own that owns the connection
options        `ChunksOptions`
reads          ``mime`` (the mimeanalyzer's offsets)
writes         nothing
durability     ``disk``, verified when opened; ``os`` where asked for
largest body   no bound of its own
=============  ==========================================================================

How it stays right. In one transaction: first the mail's row; then, only for rows that were
inserted just now (a token in them tells), its chunks, in the order of their keys, so that two
writers never wait for each other in a ring. A chunk's key is the SHA-256 of its octets; where a
key is there already the octets are compared, and different ones get another key. Deleting takes
the row first, then counts down, then removes what nobody refers to. Headers are different in
every mail and bodies repeat, therefore the cut between them.
"""

import hashlib
import secrets
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import attrs
import sqlalchemy as sa

from mailpipe.bodies import FileBody, HeldBody
from mailpipe.envelope import Body, Envelope, MemoryBody
from mailpipe.mime import MimeTree
from mailpipe.steps import processor
from mailpipe.storages._rows import ROWS_MAX, envelope_values, statements_of
from mailpipe.storages._schema import CHUNK_COLUMNS, MAIL_COLUMNS, ChunkTables, Inserts
from mailpipe.storages._store import SqlStore
from mailpipe.storages._validators import one_of, positive, positive_or_none, table_name

__all__ = ["ChunksOptions", "ChunksStorage", "cut", "digest"]

_KEY = 32
_SIZE_MIN, _SIZE_MAX = 1024, 512 * 1024


def _chunk_size(_: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if not _SIZE_MIN <= value <= _SIZE_MAX:
        msg = f"{attribute.name} must be {_SIZE_MIN} to {_SIZE_MAX}, got {value!r}"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class ChunksOptions:
    """
    Settings of one ``chunks`` storage; checked when made.

    Args:
        url: As `mailpipe.storages.sql.SqlOptions.url`.

        table: Name of the mails' table; that of the chunks is called after it.

        chunk_size: Octets of one chunk at most. The same for a table's life, or equal parts are cut
            differently and kept twice.

        compress: Whether chunks that get smaller by it are kept compressed (zlib).

        durability: As `mailpipe.storages.sql.SqlOptions.durability`.

        timeout: Seconds that one statement or a lock may take; below the gateway's send_timeout.

        expire: Seconds after which a mail is deleted; None keeps it.

    Raises:
        ValueError: If a value breaks its rule.
    """

    url: str = "sqlite:///chunks.db"
    table: str = attrs.field(default="chunked", validator=table_name)
    chunk_size: int = attrs.field(default=256 * 1024, validator=_chunk_size)
    compress: bool = True
    durability: Literal["disk", "os"] = attrs.field(default="disk", validator=one_of("disk", "os"))
    timeout: float = attrs.field(default=10.0, validator=positive)
    expire: float | None = attrs.field(default=None, validator=positive_or_none)


def cut(size: int, tree: MimeTree | None, chunk_size: int) -> list[int]:
    """
    Where a body of *size* octets is cut: the offsets at which chunks end, the last is *size*.

    At the end of every header and of every part, and at least each *chunk_size* octets from there.
    """
    edges = {size}
    for part in tree.parts if tree is not None else ():
        edges |= {part.body_start, part.end}
    ends: list[int] = []
    start = 0
    for edge in sorted(edge for edge in edges if 0 < edge <= size):
        ends += range(start + chunk_size, edge, chunk_size)
        ends.append(edge)
        start = edge
    return ends


def _pieces(body: Body, ends: Sequence[int]) -> Iterator[bytes]:
    """The octets of *body* between the cuts."""
    held, at = bytearray(), 0
    chunks = body.chunks(_SIZE_MAX)
    for end in ends:
        while len(held) < end - at:
            held += next(chunks)
        yield bytes(held[: end - at])
        del held[: end - at]
        at = end


@attrs.define(eq=False)
class _Chunk:
    """One different chunk of a batch: where its octets are, and how often it is referred to."""

    body: Body
    start: int
    end: int
    count: int = 0

    def octets(self) -> bytes:
        """Read them again: a batch of large mails is never held whole."""
        if isinstance(self.body, FileBody):
            return self.body.part(self.start, self.end)
        if isinstance(self.body, (HeldBody, MemoryBody)):
            return self.body.data[self.start : self.end]
        return b"".join(self.body.chunks())[self.start : self.end]


class _Collision(Exception):
    """A key stands for other octets already."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key.hex())
        self.key = key


def digest(octets: bytes, variant: int) -> bytes:
    """The key of a chunk: its SHA-256; another one for each *variant*, should that be taken."""
    return hashlib.sha256(octets if variant == 0 else bytes([variant]) + octets).digest()


@processor(
    "chunks",
    kind="batch",
    options=ChunksOptions,
    storage=True,
    rejects=False,
    reads=("mime",),
    conflicts={"compressor": "nothing would be de-duplicated, for equal parts compress differently"},
)
class ChunksStorage(SqlStore):
    """
    Keeps mails in chunks; equal parts of different mails are kept once.

    Idempotent by ``queue_id``: only rows inserted by this very transaction count their chunks up.
    """

    kind = "chunks"
    options: ChunksOptions
    tables: ChunkTables

    def __init__(self, options: ChunksOptions | None = None) -> None:
        self.options = options or ChunksOptions()
        super().__init__()
        self.tables = ChunkTables(self.options.table)
        dialect = self.database.dialect
        self._mails = Inserts(self.tables.mails, MAIL_COLUMNS, ("queue_id",), dialect)
        self._counted = Inserts(self.tables.chunks, CHUNK_COLUMNS, ("hash",), dialect, adding="refs")
        self._mark = "?" if dialect.paramstyle == "qmark" else "%s"

    def _insert(self, envelopes: Sequence[Envelope]) -> None:
        avoided: set[bytes] = set()
        while True:
            try:
                self._transaction(envelopes, avoided)
            except _Collision as collision:
                # Nobody has seen one, but whoever makes one must not replace other people's mail.
                self._connection.rollback()
                avoided.add(collision.key)
            else:
                return

    def _transaction(self, envelopes: Sequence[Envelope], avoided: set[bytes]) -> None:
        known: dict[bytes, _Chunk] = {}
        keys = {envelope.queue_id: self._cut(envelope, known, avoided) for envelope in envelopes}
        token = secrets.token_hex(8)
        rows = [
            (*envelope_values(envelope), token, b"".join(keys[envelope.queue_id])) for envelope in envelopes
        ]
        cursor = self._connection.cursor()
        try:
            cursor.execute(self.database.begin)
            for values in statements_of(rows):
                cursor.execute(self._mails.of(len(values) // len(MAIL_COLUMNS)), values)
            inserted = set(self._inserted(cursor, list(keys), token))
            for queue_id in inserted:
                for key in keys[queue_id]:
                    known[key].count += 1
            self._insert_jobs(cursor, [envelope for envelope in envelopes if envelope.queue_id in inserted])
            self._count_up(cursor, known)
            cursor.execute("COMMIT")
        finally:
            cursor.close()

    def _cut(self, envelope: Envelope, known: dict[bytes, _Chunk], avoided: set[bytes]) -> list[bytes]:
        """The keys of a mail's chunks in order; new ones are added to *known*."""
        tree = envelope.values.get("mime")
        ends = cut(len(envelope.body), tree, self.options.chunk_size)
        keys: list[bytes] = []
        start = 0
        for end, octets in zip(ends, _pieces(envelope.body, ends), strict=True):
            variant = 0
            key = digest(octets, variant)
            while key in avoided or (key in known and known[key].octets() != octets):
                variant += 1
                key = digest(octets, variant)
            known.setdefault(key, _Chunk(envelope.body, start, end))
            keys.append(key)
            start = end
        return keys

    def _inserted(self, cursor: Any, queue_ids: Sequence[str], token: str) -> Iterator[str]:  # noqa: ANN401 - a driver's cursor
        """Of these mails, those that this transaction inserted: the others were there already."""
        for start in range(0, len(queue_ids), ROWS_MAX):
            some = queue_ids[start : start + ROWS_MAX]
            marks = ", ".join([self._mark] * len(some))
            cursor.execute(
                f"SELECT queue_id FROM {self.tables.name} WHERE token = {self._mark} AND queue_id IN ({marks})",
                [token, *some],
            )
            for (queue_id,) in cursor.fetchall():
                yield queue_id

    def _count_up(self, cursor: Any, known: dict[bytes, _Chunk]) -> None:  # noqa: ANN401 - a driver's cursor
        """Insert or count up in the order of the keys, and compare what was there before."""
        rows = [
            (key, chunk.count, *self._packed(chunk)) for key, chunk in sorted(known.items()) if chunk.count
        ]
        for values in statements_of(rows):
            cursor.execute(self._counted.of(len(values) // len(CHUNK_COLUMNS)), values)
            self._compare(cursor, [bytes(key) for key in values[:: len(CHUNK_COLUMNS)]], known)

    def _packed(self, chunk: _Chunk) -> tuple[int, str, bytes]:
        octets = chunk.octets()
        if self.options.compress:
            packed = zlib.compress(octets, 1)
            if len(packed) < len(octets):
                return len(octets), "zlib", packed
        return len(octets), "", octets

    def _compare(self, cursor: Any, keys: Sequence[bytes], known: dict[bytes, _Chunk]) -> None:  # noqa: ANN401 - a driver's cursor
        """
        Compare the octets of chunks that others refer to as well.

        Raises:
            _Collision: If they differ.
        """
        table, marks = self.tables.chunks.name, ", ".join([self._mark] * len(keys))
        cursor.execute(f"SELECT hash, refs FROM {table} WHERE hash IN ({marks})", keys)
        hits = [bytes(key) for key, refs in cursor.fetchall() if refs != known[bytes(key)].count]
        for key in hits:
            cursor.execute(f"SELECT encoding, data FROM {table} WHERE hash = {self._mark}", (key,))
            encoding, data = cursor.fetchone()
            try:
                same = _unpacked(encoding, bytes(data)) == known[key].octets()
            except OSError:
                # What is damaged must not damage this mail too.
                same = False
            if not same:
                raise _Collision(key)

    def _body(self, row: sa.Row[Any]) -> Body | None:
        keys = bytes(row.chunk_keys)
        split = [keys[at : at + _KEY] for at in range(0, len(keys), _KEY)]
        return _ChunkedBody(self.database.engine, self.tables.chunks, split, row.size)

    def _delete(self, queue_ids: Sequence[str]) -> int:
        mails, chunks = self.tables.mails, self.tables.chunks
        with self.database.writing() as connection:
            # Locked, so that two who delete the same mail do not both count down for it.
            query = sa.select(mails.c.queue_id, mails.c.chunk_keys).where(mails.c.queue_id.in_(queue_ids))
            found = connection.execute(query.order_by(mails.c.queue_id).with_for_update()).all()
            if not found:
                return 0
            outbox = self.tables.outbox
            connection.execute(sa.delete(outbox).where(outbox.c.queue_id.in_(queue_ids)))
            connection.execute(sa.delete(mails).where(mails.c.queue_id.in_([row.queue_id for row in found])))
            counts: Counter[bytes] = Counter()
            for row in found:
                keys = bytes(row.chunk_keys)
                counts.update(keys[at : at + _KEY] for at in range(0, len(keys), _KEY))
            for key, count in sorted(counts.items()):
                here = chunks.c.hash == key
                connection.execute(sa.update(chunks).where(here).values(refs=chunks.c.refs - count))
                connection.execute(sa.delete(chunks).where(here, chunks.c.refs <= 0))
        return len(found)


@attrs.frozen(eq=False)
class _ChunkedBody:
    """A body put together from its chunks while it is read."""

    engine: sa.Engine
    table: sa.Table
    keys: Sequence[bytes]
    size: int
    encoding: str = ""

    def __len__(self) -> int:
        return self.size

    def chunks(self, size: int = 65536) -> Iterator[bytes]:
        """
        Yield the octets in order, at most *size* at a time.

        Raises:
            OSError: If a chunk is missing (the mail was deleted meanwhile) or damaged.
        """
        columns = self.table.c
        with self.engine.connect() as connection:
            for key in self.keys:
                query = sa.select(columns.encoding, columns.data).where(columns.hash == key)
                row = connection.execute(query).one_or_none()
                if row is None:
                    msg = f"chunk {key.hex()} is missing"
                    raise OSError(msg)
                yield from MemoryBody(_unpacked(row.encoding, bytes(row.data))).chunks(size)

    def read(self) -> bytes:
        """Return all octets at once, however many: `chunks` is for large ones."""
        return b"".join(self.chunks(_SIZE_MAX))


def _unpacked(encoding: str, data: bytes) -> bytes:
    if not encoding:
        return data
    try:
        return zlib.decompress(data)
    except zlib.error as error:
        msg = f"stored chunk is damaged: {error}"
        raise OSError(msg) from error
