"""
The file of a `SQLiteStore`: its tables, its opening, its one owner, and the names of its errors.
"""

import contextlib
import fcntl
import os
import sqlite3
import threading
from pathlib import Path

from dispatcher.errors import (
    StoreCorrupt,
    StoreDiskFull,
    StoreError,
    StoreOwned,
    StoreTrouble,
    StoreUnwritable,
    StoreVersionError,
)
from dispatcher.stores._engine import SHELVES, TOTALS

__all__ = ["COUNTERS", "OwnerLock", "connect", "connect_read_only", "is_corrupt", "owner_pid", "translate"]

APPLICATION_ID = 0x64717331
FORMAT = 1

COUNTERS = (*(f"{s.value}_items" for s in SHELVES), *(f"{s.value}_bytes" for s in SHELVES), *TOTALS)

# The order of a queue is (priority, place); an entry's place is its id until it is moved. What is ready
# has its own index, which a lease reads from the front; all else lies in the one beside it, so that
# opening, dead letters and purges never walk the queue. All are partial: a plain record costs two rows
# and one index entry.
SCHEMA = f"""
CREATE TABLE store (
    only INTEGER PRIMARY KEY CHECK (only = 1), next INTEGER NOT NULL, front INTEGER NOT NULL
) STRICT;
INSERT INTO store VALUES (1, 1, 0);
CREATE TABLE queues (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
    {", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in COUNTERS)}
) STRICT;
CREATE TABLE bodies (
    id INTEGER PRIMARY KEY, refs INTEGER NOT NULL, crc INTEGER NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, shelf INTEGER NOT NULL, priority INTEGER NOT NULL,
    place INTEGER NOT NULL, body INTEGER NOT NULL, size INTEGER NOT NULL, attempts INTEGER NOT NULL,
    lease INTEGER, due REAL, key TEXT, put_at REAL NOT NULL, expires_at REAL, error TEXT, failed_at REAL
) STRICT;
CREATE INDEX ready ON entries (queue, priority, place) WHERE shelf = 0;
CREATE INDEX aside ON entries (queue, shelf, place) WHERE shelf <> 0;
CREATE INDEX due ON entries (queue, due) WHERE due IS NOT NULL;
CREATE INDEX expiry ON entries (queue, expires_at) WHERE expires_at IS NOT NULL AND shelf < 2;
CREATE INDEX keys ON entries (queue, key) WHERE key IS NOT NULL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
"""


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_corrupt(error: Exception) -> bool:
    """Whether what was read makes no sense (and not that it could not be read)."""
    return isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_CORRUPT


def translate(path: Path, error: sqlite3.Error) -> StoreError:
    """One of ours, by what SQLite says."""
    why = f"{error} ({getattr(error, 'sqlite_errorname', 'SQLITE_ERROR')})"
    match _code(error):
        case sqlite3.SQLITE_FULL:
            return StoreDiskFull(str(path), why)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return StoreUnwritable(str(path), why)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreCorrupt(str(path), why)
        case _:
            return StoreTrouble(str(path), why)


_owned: set[tuple[int, int]] = set()
_owned_guard = threading.Lock()


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + "-owner")


def owner_pid(path: Path) -> int | None:
    """The process id that the file's last owner wrote down; it may be dead."""
    try:
        return int(_lock_path(path).read_text())
    except (OSError, ValueError):
        return None


class OwnerLock:
    """
    Makes this process the one owner of a store's file, until `release` or the end of the process.

    A POSIX record lock: it dies with its process, and no forked child inherits it. It knows nothing of
    a second owner within the process, so those are kept in a set.

    Raises:
        StoreOwned: If somebody living owns it.
        StoreUnwritable: If the lock file, beside the store's, cannot be made.
    """

    def __init__(self, path: Path) -> None:
        lock_path = _lock_path(path)
        try:
            parent = path.parent.stat()
        except OSError as error:
            raise StoreUnwritable(str(path), f"{error.strerror}: its folder") from error
        self._name = (parent.st_dev, hash((parent.st_ino, path.name)))
        with _owned_guard:
            # Before the lock file is opened: to close it again would give up the lock that is held.
            if self._name in _owned:
                raise StoreOwned(str(path), os.getpid())
            try:
                self._fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise StoreUnwritable(str(path), f"{error.strerror}: {lock_path.name}") from error
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._fd)
                raise StoreOwned(str(path), owner_pid(path)) from None
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
            _owned.add(self._name)

    def release(self) -> None:
        """Let the next one in."""
        with _owned_guard:
            _owned.discard(self._name)
            os.ftruncate(self._fd, 0)
            os.close(self._fd)


def connect(path: Path, *, synchronous: str, bytes_max: int | None) -> sqlite3.Connection:
    """
    Open the file for writing, make its tables if it is new, and check that it is what it has to be.

    Raises:
        StoreError: See `dispatcher.stores.base.Store.__aenter__`.
    """
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, timeout=5.0, cached_statements=256, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise translate(path, error) from error
    try:
        _prepare(connection, path, synchronous, bytes_max)
    except sqlite3.Error as error:
        connection.close()
        raise translate(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _pragma(connection: sqlite3.Connection, text: str) -> object:
    row = connection.execute(f"PRAGMA {text}").fetchone()
    return None if row is None else row[0]


def _check_format(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether there is a store in it already; refuses what is none, before anything is touched."""
    if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
        return False
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreCorrupt(str(path), "it is an SQLite database, but not a store")
    version = _pragma(connection, "user_version")
    if version != FORMAT:
        raise StoreVersionError(str(path), version if isinstance(version, int) else 0, FORMAT)
    return True


def _prepare(connection: sqlite3.Connection, path: Path, synchronous: str, bytes_max: int | None) -> None:
    exists = _check_format(connection, path)
    if not exists:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has an effect on an empty file only
    if _pragma(connection, "journal_mode = WAL") != "wal":
        raise StoreUnwritable(str(path), "its file system does not support a write-ahead log")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    level = {"FULL": 2, "NORMAL": 1}[synchronous]
    if _pragma(connection, "synchronous") != level:
        raise StoreUnwritable(str(path), f"synchronous={synchronous} was not taken")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("PRAGMA cache_size = -8192")
    if bytes_max is not None:
        page = _pragma(connection, "page_size")
        assert isinstance(page, int)
        connection.execute(f"PRAGMA max_page_count = {max(1, bytes_max // page)}")
    # Immediately, so that a file that cannot be written to is known now and not at the first put.
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not exists:
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
        else:
            connection.execute("UPDATE store SET next = next")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def connect_read_only(path: Path) -> sqlite3.Connection:
    """
    Open the file beside its owner, to look at it.

    Raises:
        StoreError: As `connect`; `StoreUnwritable` also if there is no such file.
    """
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise translate(path, error) from error
    try:
        exists = _check_format(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise translate(path, error) from error
    except BaseException:
        connection.close()
        raise
    if not exists:
        connection.close()
        raise StoreCorrupt(str(path), "it is empty")
    return connection


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable, too: SQLite does not for a new database file."""
    with contextlib.suppress(OSError):  # file systems that cannot are those that need not
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
