"""
The tables of the ``sql`` storage, and their statements for each database.

Portable by SQLAlchemy Core; the statements of the hot path are text made once, since building
them anew for each batch would cost more than running them.
"""

import secrets
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

__all__ = [
    "CHUNK_COLUMNS",
    "COLUMNS",
    "MAIL_COLUMNS",
    "OUTBOX_COLUMNS",
    "PIECE_COLUMNS",
    "VERSION",
    "ChunkTables",
    "Inserts",
    "SchemaMismatch",
    "StoreTables",
    "Tables",
]

VERSION: Final = "1"
"""Of the schema; a store of another one is refused."""

ENVELOPE_COLUMNS: Final = (
    "queue_id",
    "received_at",
    "mail_from",
    "rcpt_to",
    "size",
    "subject",
    "peer",
    "helo",
    "auth_user",
    "tls",
    "sha256",
    "detail",
    "prelude",
)
COLUMNS: Final = (*ENVELOPE_COLUMNS, "encoding", "body_file", "pieces", "body")
OUTBOX_COLUMNS: Final = ("job", "queue_id", "attempts", "due_at", "error", "dead")
PIECE_COLUMNS: Final = ("queue_id", "seq", "data")
MAIL_COLUMNS: Final = (*ENVELOPE_COLUMNS, "token", "chunk_keys")
CHUNK_COLUMNS: Final = ("hash", "refs", "size", "encoding", "data")

_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_BLOB = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
_HASH = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
_ID = sa.String(26)
_TABLE_OPTIONS: Final[dict[str, Any]] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}


class SchemaMismatch(ValueError):
    """The store was made by another version, or is none of ours."""

    def __init__(self, table: str, found: str | None) -> None:
        was = "no version" if found is None else f"version {found}"
        super().__init__(f"table {table!r} has {was} of the schema, this program knows version {VERSION}")
        self.table, self.found = table, found


def _envelope_columns() -> list[sa.Column[Any]]:
    """The columns of every table of mails, in the order of `ENVELOPE_COLUMNS`."""
    return [
        # Not the queue id: with it, large rows would hang in the very tree that is searched.
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("queue_id", _ID, nullable=False, unique=True),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("mail_from", _TEXT, nullable=False),
        sa.Column("rcpt_to", _TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("subject", _TEXT, nullable=False),
        sa.Column("peer", _TEXT, nullable=False),
        sa.Column("helo", _TEXT, nullable=False),
        sa.Column("auth_user", _TEXT, nullable=False),
        sa.Column("tls", _TEXT, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("detail", _TEXT),
        sa.Column("prelude", _BLOB, nullable=False),
    ]


class StoreTables:
    """
    The tables of one store of mails, whatever stands beside them.

    Args:
        name: Of the mails' table; the others are called after it.

        columns: Of the mails' table, after those of every envelope.
    """

    def __init__(self, name: str, *columns: sa.Column[Any]) -> None:
        self.metadata = sa.MetaData()
        self.name = name
        self.meta = sa.Table(
            "mailpipe_meta",
            self.metadata,
            sa.Column("name", sa.String(100), primary_key=True),
            sa.Column("value", sa.String(200), nullable=False),
            **_TABLE_OPTIONS,
        )
        self.outbox = sa.Table(
            f"{name}_outbox",
            self.metadata,
            sa.Column("job", sa.String(64), primary_key=True),
            sa.Column("queue_id", _ID, primary_key=True),
            sa.Column("attempts", sa.Integer(), nullable=False),
            sa.Column("due_at", sa.Double(), nullable=False),
            sa.Column("error", _TEXT, nullable=False),
            sa.Column("dead", sa.SmallInteger(), nullable=False),
            **_TABLE_OPTIONS,
        )
        self.mails = sa.Table(name, self.metadata, *_envelope_columns(), *columns, **_TABLE_OPTIONS)

    def make(self, connection: sa.Connection) -> str:
        """
        Make what is missing and check what is there, within the caller's transaction.

        Returns:
            The store's own id: 16 hex digits drawn when it was made.

        Raises:
            SchemaMismatch: If it is of another version; nothing was changed.
        """
        existing = set(sa.inspect(connection).get_table_names())
        if self.name not in existing:
            others = [table for table in self.metadata.sorted_tables if table.name != self.name]
            for table in others:
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            for key, value in (("version", VERSION), ("store", secrets.token_hex(8))):
                name = f"{self.name}.{key}"
                if self._value(connection, key) is None:
                    connection.execute(sa.insert(self.meta).values(name=name, value=value))
            # Last, for where it is there all is: MySQL cannot take back the making of tables.
            connection.execute(sa.schema.CreateTable(self.mails))
        elif self.meta.name not in existing:
            raise SchemaMismatch(self.name, None)
        return self.check(connection)

    def check(self, connection: sa.Connection) -> str:
        """
        Check the version and return the store's id.

        Raises:
            SchemaMismatch: If it is of another version.
        """
        found = self._value(connection, "version")
        if found != VERSION:
            raise SchemaMismatch(self.name, found)
        return self._value(connection, "store") or ""

    def _value(self, connection: sa.Connection, key: str) -> str | None:
        query = sa.select(self.meta.c.value).where(self.meta.c.name == f"{self.name}.{key}")
        value: str | None = connection.execute(query).scalar()
        return value


class Tables(StoreTables):
    """
    The tables of one ``sql`` store.

    Args:
        name: Of the mails' table; the others are called after it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            name,
            sa.Column("encoding", sa.String(16), nullable=False),
            sa.Column("body_file", sa.String(64)),
            sa.Column("pieces", sa.Integer(), nullable=False),
            sa.Column("body", _BLOB),
        )
        self.pieces = sa.Table(
            f"{name}_pieces",
            self.metadata,
            sa.Column("queue_id", _ID, primary_key=True),
            sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=False),
            sa.Column("data", _BLOB, nullable=False),
            **_TABLE_OPTIONS,
        )


class ChunkTables(StoreTables):
    """
    The tables of one ``chunks`` store.

    Args:
        name: Of the mails' table; the others are called after it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            name,
            sa.Column("token", sa.String(16), nullable=False),
            sa.Column("chunk_keys", _BLOB, nullable=False),
        )
        self.chunks = sa.Table(
            f"{name}_chunks",
            self.metadata,
            sa.Column("hash", _HASH, primary_key=True),
            sa.Column("refs", sa.BigInteger(), nullable=False),
            sa.Column("size", sa.Integer(), nullable=False),
            sa.Column("encoding", sa.String(16), nullable=False),
            sa.Column("data", _BLOB, nullable=False),
            **_TABLE_OPTIONS,
        )


class Inserts:
    """
    Statements that insert many rows at once and leave those alone whose key is there already.

    One statement for a batch, not one execution per row: each execution gives the interpreter's
    lock away and has to wait for it again, up to 5 ms while the event loop is busy.

    Args:
        table: Where the rows go.

        columns: In the order of the values.

        key: The unique column or columns that decide.

        dialect: Of the database.

        adding: A column to which the new value is added where the key is there already.
    """

    def __init__(
        self,
        table: sa.Table,
        columns: tuple[str, ...],
        key: tuple[str, ...],
        dialect: sa.Dialect,
        *,
        adding: str = "",
    ) -> None:
        quote: Any = dialect.identifier_preparer
        mark = "?" if dialect.paramstyle == "qmark" else "%s"
        self._row = f"({', '.join([mark] * len(columns))})"
        names = ", ".join(quote.quote(column) for column in columns)
        self._head = f"INSERT INTO {quote.format_table(table)} ({names}) VALUES "
        if dialect.name in {"mysql", "mariadb"}:
            # Not INSERT IGNORE, which would also cut values that are too long.
            change = f"{adding} = {adding} + VALUES({adding})" if adding else f"{key[0]} = {key[0]}"
            self._tail = f" ON DUPLICATE KEY UPDATE {change}"
        else:
            sum_up = f"UPDATE SET {adding} = {quote.format_table(table)}.{adding} + excluded.{adding}"
            change = sum_up if adding else "NOTHING"
            self._tail = f" ON CONFLICT ({', '.join(key)}) DO {change}"
        self._made: dict[int, str] = {}

    def of(self, rows: int) -> str:
        """The statement for so many rows."""
        text = self._made.get(rows)
        if text is None:
            text = self._made[rows] = self._head + ", ".join([self._row] * rows) + self._tail
        return text
