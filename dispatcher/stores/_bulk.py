"""
Many rows in few statements.

Each step of a statement lets go of the interpreter's lock and takes it again; and what a statement costs
before it has touched a row is more than most rows. So rows go by the dozen. SQL is made for a few lengths
only, so that the connection's cache of statements holds all of it.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

__all__ = ["each_in", "insert"]

Row = tuple[Any, ...]

INSERTED = (64, 16, 4, 1)
"""Rows in one INSERT."""

LISTED = tuple(1 << n for n in range(10))
"""Ids in one list."""


def insert(db: sqlite3.Connection, into: str, rows: Sequence[Row]) -> None:
    """
    Insert *rows*, all of one length.

    Args:
        db: Where.

        into: ``INSERT INTO table (column, …)``.

        rows: What; may be empty.
    """
    done, left = 0, len(rows)
    for count in INSERTED:
        if count > left:
            continue
        row = f"({', '.join('?' * len(rows[0]))})"
        sql = f"{into} VALUES {', '.join([row] * count)}"
        while left >= count:
            db.execute(sql, tuple(chain.from_iterable(rows[done : done + count])))
            done, left = done + count, left - count


def each_in(
    db: sqlite3.Connection, sql: str, ids: Sequence[int], *before: object
) -> Iterator[sqlite3.Cursor]:
    """
    Run *sql* for *ids*, as often as their number takes.

    Args:
        db: Where.

        sql: Ends before the list in parentheses: ``DELETE FROM table WHERE id IN``.

        ids: In the list; one that is there twice counts once.

        before: Parameters in front of the list.
    """
    most = LISTED[-1]
    for start in range(0, len(ids), most):
        part = ids[start : start + most]
        length = next(length for length in LISTED if length >= len(part))
        padding = (part[-1],) * (length - len(part))
        yield db.execute(f"{sql} ({', '.join('?' * length)})", (*before, *part, *padding))
