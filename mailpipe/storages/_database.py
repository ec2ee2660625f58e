"""
One database, whichever it is: its address, its connections, what it promises.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from mailpipe.storages._schema import StoreTables

__all__ = ["Database", "DatabaseOptions", "NotDurable"]

_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
_EXTRAS = {"psycopg": "postgres", "pymysql": "mysql", "MySQLdb": "mysql"}

# SQLite's page: rows of 2 kB fill one of 4 KiB badly; measured, 8 KiB stores a third faster.
_PAGE_SIZE = 8192


class NotDurable(ValueError):
    """The server's settings do not keep what was asked for."""

    def __init__(self, setting: str, found: str, wanted: str) -> None:
        super().__init__(f"durability 'disk' needs {setting} = {wanted}, the server has {found!r}")
        self.setting, self.found, self.wanted = setting, found, wanted


class DatabaseOptions(Protocol):
    """What a database needs to know."""

    @property
    def url(self) -> str:
        """SQLAlchemy's form."""
        ...

    @property
    def durability(self) -> str:
        """``"disk"`` or ``"os"``."""
        ...

    @property
    def timeout(self) -> float:
        """Seconds for a lock, a connection, a statement."""
        ...


class Database:
    """
    Makes connections to one database; holds none.

    Args:
        options: Its address and bounds.

    Raises:
        ValueError: If the address is none, or of a database nobody here knows.
        ModuleNotFoundError: If its driver is not installed; names the extra.
    """

    def __init__(self, options: DatabaseOptions) -> None:
        self._options = options
        self._url = _parsed(options.url)
        self._engine: sa.Engine | None = None
        try:
            kind: Any = self._url.get_dialect()
            kind.import_dbapi()
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get(error.name or "", "mail")
            msg = f"the driver of {self.name} is not installed: pip install 'dispatcher-toolkit[{extra}]'"
            raise ModuleNotFoundError(msg, name=error.name) from error
        self.dialect: sa.Dialect = kind(paramstyle="qmark" if kind.name == "sqlite" else "format")
        self.begin = "BEGIN IMMEDIATE" if kind.name == "sqlite" else "BEGIN"
        """Starts a transaction that will write."""

    @property
    def name(self) -> str:
        """For people: the address without its password."""
        return self._url.render_as_string(hide_password=True)

    @property
    def engine(self) -> sa.Engine:
        """
        SQLAlchemy's engine; a connection for each use.

        Raises:
            RuntimeError: If it is not open.
        """
        if self._engine is None:
            msg = f"database {self.name} is not open"
            raise RuntimeError(msg)
        return self._engine

    @property
    def is_open(self) -> bool:
        """Between `open` and `close`."""
        return self._engine is not None

    def open(self, data: Path, *, reading: bool) -> None:
        """
        Get ready to connect.

        Args:
            data: Folder of relative SQLite paths.

            reading: Change nothing. A SQLite file that does not exist is not made.

        Raises:
            FileNotFoundError: If *reading*, and there is no such SQLite file.
        """
        url = self._url
        if self.dialect.name == "sqlite":
            path = self.path(data)
            if reading and not path.exists():
                raise FileNotFoundError(2, "no such database", str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            url = url.set(database=str(path))
        self._engine = sa.create_engine(url, poolclass=NullPool, connect_args=self._arguments())
        sa.event.listen(self._engine, "connect", self._prepare)

    def path(self, data: Path) -> Path:
        """The file of a SQLite database."""
        return data / str(self._url.database)

    def connect(self) -> Any:  # noqa: ANN401 - a driver's connection
        """
        Make a driver's connection, in autocommit, for the hot path; its owner closes it.

        Raises:
            Exception: The driver's own, an OperationalError where the server cannot be reached.
        """
        connection: Any = self.engine.raw_connection()
        if self.dialect.name == "postgresql":
            connection.driver_connection.autocommit = True
        elif self.dialect.name != "sqlite":
            connection.driver_connection.autocommit(True)
        return connection

    def close(self) -> None:
        """Forget the engine. May be repeated."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def make(self, tables: StoreTables) -> str:
        """Make or check the schema, verify the durability; returns the store's id."""
        with self.engine.begin() as connection:
            # One at a time: CREATE TABLE IF NOT EXISTS of two workers at once fails on PostgreSQL.
            connection.exec_driver_sql(
                {
                    "sqlite": "BEGIN IMMEDIATE",
                    "postgresql": "SELECT pg_advisory_xact_lock(1835100524)",
                }.get(
                    self.dialect.name, f"SELECT GET_LOCK('mailpipe.schema', {int(self._options.timeout) + 1})"
                )
            )
            self._verify(connection)
            return tables.make(connection)

    def check(self, tables: StoreTables) -> str:
        """Check the schema; returns the store's id, ``""`` if nothing was ever stored."""
        with self.engine.connect() as connection:
            if not sa.inspect(connection).has_table(tables.name):
                return ""
            return tables.check(connection)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction of SQLAlchemy's that will write, beside the hot path; committed at its end."""
        with self.engine.begin() as connection:
            if self.dialect.name == "sqlite":
                connection.exec_driver_sql(self.begin)
            yield connection

    def _arguments(self) -> dict[str, Any]:
        timeout = self._options.timeout
        if self.dialect.name == "sqlite":
            # One text per number of rows, and the statements beside them.
            return {"timeout": timeout, "isolation_level": None, "cached_statements": 256}
        if self.dialect.name == "postgresql":
            milliseconds = int(timeout * 1000)
            return {
                "connect_timeout": max(2, int(timeout)),
                "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
                # A server that vanished without a word is noticed in the time of a statement.
                "tcp_user_timeout": milliseconds,
            }
        return {
            "connect_timeout": max(1, int(timeout)),
            "read_timeout": max(1, int(timeout)),
            "write_timeout": max(1, int(timeout)),
            "charset": "utf8mb4",
        }

    def _prepare(self, connection: Any, _: object) -> None:  # noqa: ANN401 - a driver's connection
        """On every new connection, before its first use."""
        on_disk = self._options.durability == "disk"
        cursor = connection.cursor()
        if self.dialect.name == "sqlite":
            cursor.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
            _switch_to_wal(cursor, self._options.timeout)
            cursor.execute(f"PRAGMA synchronous = {'FULL' if on_disk else 'NORMAL'}")
            # What a burst made of the log is given back by the next checkpoint, but not all of it:
            # commits that make a file grow cost more than those that write over it.
            cursor.execute("PRAGMA journal_size_limit = 67108864")
        elif self.dialect.name == "postgresql":
            cursor.execute(f"SET synchronous_commit = {'on' if on_disk else 'off'}")
            connection.commit()
        else:
            # Values that do not fit are errors, never cut.
            cursor.execute("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'")
        cursor.close()

    def _verify(self, connection: sa.Connection) -> None:
        """
        Ask the server whether a commit means what we say it does.

        Raises:
            NotDurable: If it does not.
        """
        if self._options.durability != "disk":
            return
        if self.dialect.name == "sqlite":
            wanted = {"PRAGMA journal_mode": ("wal",), "PRAGMA synchronous": ("2", "3")}
        elif self.dialect.name == "postgresql":
            remote = ("on", "remote_apply", "remote_write", "local")
            wanted = {"SHOW synchronous_commit": remote, "SHOW fsync": ("on",)}
        else:
            wanted = {"SELECT @@innodb_flush_log_at_trx_commit": ("1",)}
        for query, values in wanted.items():
            found = str(connection.exec_driver_sql(query).scalar())
            if found not in values:
                raise NotDurable(query.split()[-1].lstrip("@"), found, " or ".join(values))


def _switch_to_wal(cursor: Any, timeout: float) -> None:  # noqa: ANN401 - a driver's cursor
    # SQLite waits for locks, but not for this one: two workers that open a new file at once.
    deadline = time.monotonic() + timeout
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _parsed(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError as error:
        # SQLAlchemy's text would show the password.
        msg = "url must be one that SQLAlchemy understands, such as sqlite:///mail.db or postgresql://user@host/name"
        raise ValueError(msg) from error
    known = url.drivername.partition("+")[0]
    if known not in _DRIVERS:
        msg = f"url must be of {', '.join(sorted(_DRIVERS))}, got {url.drivername!r}"
        raise ValueError(msg)
    if known == "sqlite" and url.database in {None, "", ":memory:"}:
        msg = f"url must name a file (the storage 'memory' keeps nothing on disk), got {text!r}"
        raise ValueError(msg)
    return url if "+" in url.drivername else url.set(drivername=_DRIVERS[known])
