"""
Reading databases of mails back: the `mailpipe.steps.Archive` half of ``sql`` and ``chunks``.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import anyio.to_thread
import attrs
import sqlalchemy as sa

from mailpipe.encodings import DecodedBody
from mailpipe.envelope import Body, MemoryBody
from mailpipe.steps import StoredMail
from mailpipe.storages._database import Database
from mailpipe.storages._rows import decoded_subject, hashes_of
from mailpipe.storages._schema import ENVELOPE_COLUMNS, StoreTables, Tables
from mailpipe.storages._shelf import Shelf

__all__ = ["RowArchive", "SqlArchive"]

# Mails deleted in one transaction: a writer never waits for long.
_DELETE_AT_ONCE = 200


class SqlArchive:
    """
    Gives back what a `mailpipe.storages._store.SqlStore` keeps, while another process may write.

    Each call uses a connection of its own, in a worker thread. Opened for reading where nothing
    was ever stored, it is empty.
    """

    database: Database
    tables: StoreTables

    async def get(self, queue_id: str) -> StoredMail | None:
        """One mail with its body as received, or None."""
        if not self.database.is_open:
            return None
        return await anyio.to_thread.run_sync(self._get, queue_id)

    async def list(self, *, after: str = "", limit: int = 1000) -> Sequence[StoredMail]:
        """Mails in the order of their ids, without bodies; from the one after *after*."""
        if not self.database.is_open:
            return []
        return await anyio.to_thread.run_sync(self._list, after, limit)

    async def delete(self, queue_ids: Sequence[str]) -> int:
        """Delete these, rows before files; returns how many there were."""
        if not self.database.is_open:
            return 0
        deleted = 0
        for start in range(0, len(queue_ids), _DELETE_AT_ONCE):
            some = queue_ids[start : start + _DELETE_AT_ONCE]
            deleted += await anyio.to_thread.run_sync(self._delete, some)
        return deleted

    async def expire(self, before: float) -> int:
        """Delete what was received earlier than *before* (seconds since the epoch); returns how many."""
        if not self.database.is_open:
            return 0
        deleted = 0
        while some := await anyio.to_thread.run_sync(self._expired, before):
            deleted += await anyio.to_thread.run_sync(self._delete, some)
        return deleted

    def _has_body(self, row: sa.Row[Any]) -> bool:
        """Whether the octets were kept at all."""
        return True

    def _body(self, row: sa.Row[Any]) -> Body | None:
        """The stored octets that *row* tells of, their encoding not yet undone; None if they are gone."""
        raise NotImplementedError

    def _delete(self, queue_ids: Sequence[str]) -> int:
        """Delete these in one transaction; returns how many there were."""
        raise NotImplementedError

    def _get(self, queue_id: str) -> StoredMail | None:
        mails = self.tables.mails
        with self.database.engine.connect() as connection:
            row = connection.execute(sa.select(mails).where(mails.c.queue_id == queue_id)).one_or_none()
        if row is None:
            return None
        if not self._has_body(row):
            return _stored(row)
        if (body := self._body(row)) is None:
            return None
        return attrs.evolve(_stored(row), body=DecodedBody(body, row.size))

    def _list(self, after: str, limit: int) -> Sequence[StoredMail]:
        mails = self.tables.mails
        columns = [mails.c[name] for name in ENVELOPE_COLUMNS]
        query = sa.select(*columns).where(mails.c.queue_id > after).order_by(mails.c.queue_id).limit(limit)
        with self.database.engine.connect() as connection:
            return [_stored(row) for row in connection.execute(query)]

    def _expired(self, before: float) -> Sequence[str]:
        mails = self.tables.mails
        query = sa.select(mails.c.queue_id).where(mails.c.received_at < before).limit(_DELETE_AT_ONCE)
        with self.database.engine.connect() as connection:
            return tuple(connection.execute(query).scalars())


class RowArchive(SqlArchive):
    """Bodies in rows, in pieces beside them, or in files: what ``sql`` writes."""

    tables: Tables
    shelf: Shelf | None

    def known_files(self, names: Collection[str]) -> Collection[str]:
        """Of these files, those that a row refers to."""
        column, found = self.tables.mails.c.body_file, set[str]()
        wanted = tuple(names)
        with self.database.engine.connect() as connection:
            for start in range(0, len(wanted), 500):
                query = sa.select(column).where(column.in_(wanted[start : start + 500]))
                found.update(connection.execute(query).scalars())
        return found

    def _has_body(self, row: sa.Row[Any]) -> bool:
        return bool(row.pieces) or row.body is not None or row.body_file is not None

    def _body(self, row: sa.Row[Any]) -> Body | None:
        if row.pieces:
            return _PieceBody(
                self.database.engine, self.tables.pieces, row.queue_id, row.pieces, row.encoding
            )
        if row.body_file is None:
            return MemoryBody(bytes(row.body), row.encoding)
        if self.shelf is None:
            msg = f"mail {row.queue_id} has its body in a file, and there is no folder of files"
            raise OSError(msg)
        try:
            return self.shelf.get(row.body_file, row.encoding)
        except FileNotFoundError:
            # Deleted between the two looks: rows go first.
            if self.known_files([row.body_file]):
                raise
            return None

    def _delete(self, queue_ids: Sequence[str]) -> int:
        mails, pieces = self.tables.mails, self.tables.pieces
        there = mails.c.queue_id.in_(queue_ids)
        with self.database.writing() as connection:
            files = connection.execute(sa.select(mails.c.body_file).where(there)).scalars().all()
            outbox = self.tables.outbox
            connection.execute(sa.delete(outbox).where(outbox.c.queue_id.in_(queue_ids)))
            connection.execute(sa.delete(pieces).where(pieces.c.queue_id.in_(queue_ids)))
            deleted = connection.execute(sa.delete(mails).where(there)).rowcount
        if self.shelf is not None:
            self.shelf.remove(name for name in files if name is not None)
        return deleted


def _stored(row: sa.Row[Any]) -> StoredMail:
    detail = json.loads(row.detail) if row.detail else {}
    return StoredMail(
        queue_id=row.queue_id,
        received_at=row.received_at,
        mail_from=row.mail_from,
        rcpt_to=tuple(json.loads(row.rcpt_to)),
        size=row.size,
        subject=decoded_subject(row.subject),
        prelude=bytes(row.prelude),
        hashes=hashes_of(row.sha256, detail),
        mail_params=tuple(detail.get("mail_params", ())),
        rcpt_params=tuple(tuple(params) for params in detail.get("rcpt_params", ())),
        smtputf8=detail.get("smtputf8", False),
        peer=row.peer,
        helo=row.helo,
        user=row.auth_user,
        tls=row.tls,
    )


@attrs.frozen(eq=False)
class _PieceBody:
    """A body in pieces, fetched one by one while it is read."""

    engine: sa.Engine
    table: sa.Table
    queue_id: str
    count: int
    encoding: str

    def __len__(self) -> int:
        query = sa.select(sa.func.sum(sa.func.length(self.table.c.data)))
        with self.engine.connect() as connection:
            return int(connection.execute(query.where(self.table.c.queue_id == self.queue_id)).scalar() or 0)

    def chunks(self, size: int = 65536) -> Iterator[bytes]:
        """
        Yield the octets in order, at most *size* at a time.

        Raises:
            OSError: If a piece is missing: the mail was deleted meanwhile.
        """
        data = self.table.c.data
        with self.engine.connect() as connection:
            for seq in range(self.count):
                query = sa.select(data).where(self.table.c.queue_id == self.queue_id, self.table.c.seq == seq)
                piece = connection.execute(query).scalar()
                if piece is None:
                    msg = f"piece {seq} of {self.count} of mail {self.queue_id} is missing"
                    raise OSError(msg)
                yield from MemoryBody(bytes(piece)).chunks(size)

    def read(self) -> bytes:
        """Refused: a body in pieces is a large one."""
        msg = f"the body of {self.queue_id} is read by chunks()"
        raise ValueError(msg)
