"""Rows into a SQLite file: one transaction per batch, on the disk when the SendFn returns."""

import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import anyio.to_thread

from dispatcher import Batch, SendFn

Row = tuple[int, str]


def make_row(number: int, size: int) -> Row:
    return number, "x" * size


@asynccontextmanager
async def open_database() -> AsyncIterator[SendFn[Row]]:
    # One connection, so one writer at a time; it runs in a thread, for a commit waits for the disk.
    writer = anyio.CapacityLimiter(1)
    # Here and not where temporary files usually go: there may be no disk beneath that.
    with (
        tempfile.TemporaryDirectory(dir=".") as folder,
        closing(sqlite3.connect(Path(folder) / "rows.db", check_same_thread=False)) as database,
    ):
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, text TEXT)")

        def write(rows: tuple[Row, ...]) -> None:
            with database:  # a transaction: all of the batch, or nothing
                database.executemany("INSERT INTO rows VALUES (?, ?)", rows)

        async def send(batch: Batch[Row]) -> None:
            await anyio.to_thread.run_sync(write, batch.items, limiter=writer)

        yield send
