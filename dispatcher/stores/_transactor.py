"""
Several calls, one transaction: each whole or not at all, and none in another's way.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dispatcher._wait import Waiter
from dispatcher.errors import OptionError, StoreError
from dispatcher.stores._engine import Engine
from dispatcher.stores._schema import is_corrupt, translate
from dispatcher.stores._tables import Tables

__all__ = ["Call", "Transactor"]


class Call:
    """One step that somebody waits for."""

    __slots__ = (
        "abandoned",
        "answered",
        "durable",
        "error",
        "light",
        "now",
        "orphan",
        "result",
        "step",
        "waiter",
    )

    def __init__(
        self,
        step: Callable[[Engine, float], Any],
        now: float,
        *,
        waiter: Waiter | None,
        durable: bool,
        light: bool,
        orphan: Callable[[Any], None] | None,
    ) -> None:
        self.step, self.now, self.durable, self.light = step, now, durable, light
        self.waiter, self.orphan = waiter, orphan
        self.result: Any = None
        self.error: Exception | None = None
        self.abandoned = waiter is None
        """Nobody waits any more."""

        self.answered = False


class Transactor:
    """
    Does calls in groups, on a connection that it alone uses.

    Args:
        db: The connection.

        path: Its file, for errors.

        synchronous: SQLite's word for how durable a commit is, as the connection has it: FULL or NORMAL.
    """

    def __init__(self, db: sqlite3.Connection, path: Path, synchronous: str) -> None:
        self._db, self._path = db, path
        self._synchronous = self._level = synchronous
        self._recover = False
        self.tables = Tables(db)

    def void_leases(self) -> None:
        """For the opening: what a dead owner had leased is ready again."""
        self._db.execute("BEGIN IMMEDIATE")
        self.tables.void_leases()
        self.tables.flush()
        self._db.execute("COMMIT")

    def work(self, calls: Sequence[Call]) -> None:
        """Do *calls*, and note in each what came of it; raises nothing of theirs."""
        known = len(self.tables.damaged)
        try:
            self._transact(calls)
        except Exception as error:
            if len(self.tables.damaged) > known:
                for call in calls:
                    call.result = call.error = None
                self.work(calls)
                return
            if len(calls) == 1:
                calls[0].error = self.named(error)
                return
            # A full disk, or one call too large for it: each by itself, so that what fits gets in.
            for call in calls:
                call.result = call.error = None
                self.work([call])

    def named(self, error: Exception) -> Exception:
        """One of ours, if SQLite raised it."""
        if not isinstance(error, sqlite3.Error):
            return error
        named: StoreError = translate(self._path, error)
        named.__cause__ = error
        return named

    def _transact(self, calls: Sequence[Call]) -> None:
        """All of *calls* in one transaction; raises only what concerns them all, then nothing is done."""
        db = self._db
        if self._recover:
            self._start_over()
        self._set_level(durable=any(call.durable for call in calls))
        db.execute("BEGIN IMMEDIATE")
        try:
            for call in calls:
                self._do(call, alone=len(calls) == 1)
            self.tables.flush()
            db.execute("COMMIT")
        except BaseException:
            self._recover = True
            with contextlib.suppress(sqlite3.Error):  # at once, for whoever waits goes by the numbers
                self._start_over()
            raise

    def _start_over(self) -> None:
        """After a transaction that failed: as if it had never begun. May fail itself, then again later."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self.tables.load()
        self._recover = False

    def _do(self, call: Call, *, alone: bool) -> None:
        if call.light:
            try:
                call.result = call.step(self.tables, call.now)
            except (StoreError, OptionError) as error:  # refused, before anything changed
                call.error = error
            return
        db = self._db
        self.tables.begin_step()
        if not alone:
            db.execute("SAVEPOINT step")
        try:
            call.result = call.step(self.tables, call.now)
        except Exception as error:
            # Some errors end the transaction, or make it of no use; and with a lone call it may as well.
            of_sqlite = isinstance(error, sqlite3.Error)
            if not db.in_transaction or (of_sqlite and (alone or is_corrupt(error))):
                raise
            call.error = self.named(error)
            if alone:
                db.execute("ROLLBACK")
                db.execute("BEGIN IMMEDIATE")
            else:
                db.execute("ROLLBACK TO step")
            self.tables.undo_step()
        if not alone:
            db.execute("RELEASE step")

    def _set_level(self, *, durable: bool) -> None:
        """Leases are written without a sync: the power may take them, a dying process may not."""
        level = self._synchronous if durable else "NORMAL"
        if level != self._level:
            self._db.execute(f"PRAGMA synchronous = {level}")
            self._level = level
