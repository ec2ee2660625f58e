"""
The bookkeeping of a store on SQLite, under the steps of `dispatcher.stores._tables`.

On one connection, which others open, and whose transactions others begin and end. The numbers of each
queue are kept in memory while a transaction runs, and written with it. A step that fails takes back its
own; after a transaction that failed all of them are read anew.
"""

import logging
import math
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from dispatcher.errors import QueueFull, UnknownQueue
from dispatcher.stores._bulk import each_in, insert
from dispatcher.stores._engine import DELAYED, LEASED, QUARANTINED, READY, SHELVES, Hint, Ledger, Tags, never
from dispatcher.stores._schema import COUNTERS, is_corrupt

__all__ = ["ERASED", "INSERT_BODY", "INSERT_ENTRY", "ON_SHELF", "Books", "Queue", "Row", "checksum"]

ID_MAX = 2**63 - 1

log = logging.getLogger("dispatcher.stores")

Row = tuple[Any, ...]

CHUNK = 5_000
"""Rows held in memory at once by steps that may concern a whole queue."""

NUMBERS_AHEAD = 10_000
"""Ids that are set aside at once; those not used when the store is closed are never used."""

ON_SHELF = tuple(
    f"queue = ? AND shelf = {code}" + (" AND shelf <> 0" if code else "") for code in range(len(SHELVES))
)
"""Worded so that SQLite sees which partial index covers it."""

ERASED = "id, shelf, size, body"
"""The columns of a row that `Books.erase` takes."""

INSERT_BODY = "INSERT INTO bodies (id, refs, crc, payload)"
INSERT_ENTRY = (
    "INSERT INTO entries (id, queue, shelf, priority, place, body, size, attempts, lease, key, put_at,"
    " expires_at)"
)
_DELIVERY = "SELECT id, queue, size, body, attempts, expires_at, lease, due FROM entries WHERE id IN"
_DELETE_BODIES = "DELETE FROM bodies WHERE refs <= ? AND id IN"
_LOAD_QUEUES = f"SELECT id, name, {', '.join(COUNTERS)} FROM queues"
_STORE_QUEUE = f"UPDATE queues SET {', '.join(f'{name} = ?' for name in COUNTERS)} WHERE id = ?"


@attrs.define(slots=True, eq=False)
class Queue:
    """What is known of a queue without asking."""

    number: int
    name: str
    ledger: Ledger
    due: float = math.inf
    """No entry becomes ready by itself before; may be too early, never too late."""

    expiry: float = math.inf
    """No waiting entry expires before; likewise."""


def checksum(payload: bytes, key: str | None) -> int:
    """Of what must not change unnoticed."""
    return zlib.crc32(payload, zlib.crc32(key.encode()) if key is not None else 0)


class Books:
    """
    The numbers, the time, and what all steps do to rows.

    Args:
        connection: Nobody else's.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._bodies: list[Row] = []
        self._entries: list[Row] = []
        self.damaged: set[int] = set()
        """
        Payloads whose pages make no sense. To come upon one ends the transaction (SQLite then refuses
        all that follows in it): it is noted here, and the step done again without touching it.
        """

        self.tags = Tags()
        self._undo: dict[Queue, tuple[Ledger, float, float]] = {}
        self._undo_queues: dict[str, Queue] | None = None
        self._dirty: set[Queue] = set()
        self._hinted: set[str] = set()
        self.load()

    @property
    def db(self) -> sqlite3.Connection:
        """The connection, once the rows that were put down for it are written."""
        if self._entries:
            self.write_out()
        return self._connection

    def write_later(self, bodies: Sequence[Row], entries: Sequence[Row]) -> None:
        """
        Put rows down, to be written together with those of other steps.

        A hundred tasks that put one record each make two statements, not two hundred.
        """
        self._bodies += bodies
        self._entries += entries

    def write_out(self) -> None:
        """Write what was put down."""
        bodies, self._bodies = self._bodies, []
        entries, self._entries = self._entries, []
        if entries:
            insert(self._connection, INSERT_BODY, bodies)
            insert(self._connection, INSERT_ENTRY, entries)

    # -- transactions, for whoever drives it

    def load(self) -> None:
        """Read the numbers anew, as they are in the file."""
        self._bodies, self._entries = [], []
        self._next, self._front = self.db.execute("SELECT next, front FROM store").fetchone()
        self._next_kept, self._front_kept = self._next, self._front
        self.by_name: dict[str, Queue] = {}
        for number, name, *counters in self.db.execute(_LOAD_QUEUES).fetchall():
            queue = Queue(number, name, Ledger.load(counters))
            self._look_ahead(queue)
            self.by_name[name] = queue
        self.by_number = {queue.number: queue for queue in self.by_name.values()}
        self._undo.clear()
        self._dirty.clear()
        self._hinted.update(self.by_name)

    def begin_step(self) -> None:
        """From here on, `undo_step` takes everything back; in front of the savepoint."""
        self.write_out()
        self._undo.clear()
        self._undo_queues = None

    def undo_step(self) -> None:
        """After the SQL of the step was rolled back: the numbers, too, and what was not yet written."""
        self._bodies, self._entries = [], []
        if self._undo_queues is not None:
            self.by_name = self._undo_queues
            self.by_number = {queue.number: queue for queue in self.by_name.values()}
            self._hinted.update(self.by_name)
        for queue, before in self._undo.items():
            queue.ledger, queue.due, queue.expiry = before
        self._dirty.update(self._undo)
        self._undo.clear()

    def flush(self) -> None:
        """Write the numbers that changed; belongs in front of every commit."""
        self.write_out()
        if self._dirty:
            self.db.executemany(_STORE_QUEUE, [(*q.ledger.dump(), q.number) for q in self._dirty])
            self._dirty.clear()
        if self._next > self._next_kept or self._front < self._front_kept:
            # Some ahead, so that not every commit writes one page more for it.
            self._next_kept, self._front_kept = self._next + NUMBERS_AHEAD, self._front - NUMBERS_AHEAD
            self.db.execute("UPDATE store SET next = ?, front = ?", (self._next_kept, self._front_kept))
        self._undo.clear()

    def take_hints(self) -> dict[str, Hint | None]:
        """Of the queues that changed since it was asked last; None: the queue is gone."""
        hints = {name: self._hint(name) for name in self._hinted}
        self._hinted.clear()
        return hints

    def _hint(self, name: str) -> Hint | None:
        queue = self.by_name.get(name)
        if queue is None:
            return None
        return Hint(queue.ledger.items[READY], queue.due, queue.expiry, queue.ledger.live_bytes)

    def edit(self, queue: Queue) -> Ledger:
        """The queue's numbers, about to be changed."""
        if queue not in self._undo:
            self._undo[queue] = (queue.ledger.copy(), queue.due, queue.expiry)
            self._dirty.add(queue)
            self._hinted.add(queue.name)
        return queue.ledger

    def keep_queues(self) -> None:
        """The step is about to add or remove queues."""
        if self._undo_queues is None:
            self._undo_queues = dict(self.by_name)

    def forget(self, queue: Queue) -> None:
        """It is removed: its numbers must not be written over those of the next one of its name."""
        self._dirty.discard(queue)
        self._hinted.add(queue.name)
        del self.by_name[queue.name], self.by_number[queue.number]

    def hint(self, name: str) -> None:
        """Whoever waits for this queue has to look."""
        self._hinted.add(name)

    def take_numbers(self, count: int) -> int:
        """The first of so many numbers that no entry had before."""
        first = self._next
        self._next += count
        return int(first)

    def take_front(self, count: int) -> int:
        """The first of so many places in front of all others."""
        self._front -= count
        return int(self._front)

    def queue(self, name: str) -> Queue:
        """Of this name, or UnknownQueue."""
        try:
            return self.by_name[name]
        except KeyError:
            raise UnknownQueue(name) from None

    # -- time

    def tend(self, queue: Queue, now: float) -> None:
        """Let what is due become ready, and what has expired go."""
        if now < queue.due and now < queue.expiry:
            return
        ledger = self.edit(queue)
        if now >= queue.due:
            where = "queue = ? AND due IS NOT NULL AND due <= ?"
            shelves = self.db.execute(
                f"SELECT shelf, count(*), sum(size) FROM entries WHERE {where} GROUP BY shelf",
                (queue.number, now),
            ).fetchall()
            for shelf, items, size in shelves:
                ledger.move(shelf, READY, items, size)
            self.db.execute(
                f"UPDATE entries SET shelf = {READY}, lease = NULL, due = NULL WHERE {where}",
                (queue.number, now),
            )
        # Also without *expiry* reached: of what came back just now, some may have expired meanwhile.
        where = "queue = ? AND expires_at IS NOT NULL AND shelf < 2 AND expires_at <= ?"
        for rows in self.chunks(f"SELECT {ERASED} FROM entries WHERE {where}", queue, now):
            self.erase(queue, rows)
            ledger.expired += len(rows)
        self._look_ahead(queue)

    def _look_ahead(self, queue: Queue) -> None:
        (due,) = self.db.execute(
            "SELECT min(due) FROM entries WHERE queue = ? AND due IS NOT NULL", (queue.number,)
        ).fetchone()
        (expiry,) = self.db.execute(
            "SELECT min(expires_at) FROM entries WHERE queue = ? AND expires_at IS NOT NULL AND shelf < 2",
            (queue.number,),
        ).fetchone()
        queue.due, queue.expiry = never(due), never(expiry)

    def void_leases(self) -> None:
        """What a dead owner had leased is ready again; for the opening."""
        for queue in self.by_name.values():
            self.void(queue)

    def void(self, queue: Queue) -> int:
        """End all deliveries of *queue*; how many they were."""
        ledger = queue.ledger
        items, size = ledger.items[LEASED], ledger.sizes[LEASED]
        if items:
            self.edit(queue).move(LEASED, READY, items, size)
            self.db.execute(
                f"UPDATE entries SET shelf = {READY}, lease = NULL, due = NULL WHERE {ON_SHELF[LEASED]}",
                (queue.number,),
            )
            self._look_ahead(queue)
        return items

    def texts(self, bodies: Sequence[int]) -> dict[int, Row]:
        """``(id, crc, payload)`` of each of *bodies* that is there and not damaged."""
        whole = [body for body in bodies if body not in self.damaged] if self.damaged else bodies
        try:
            parts = each_in(self.db, "SELECT id, crc, payload FROM bodies WHERE id IN", whole)
            return {row[0]: row for rows in parts for row in rows}
        except sqlite3.DatabaseError as error:
            if is_corrupt(error):
                self._find_damaged(whole)
            raise

    def read(self, body: int, row: Row | None, key: str | None) -> tuple[bytes, str | None]:
        """The payload out of a row of `texts`, and what is wrong with it."""
        if row is None:
            return b"", "its page is damaged" if body in self.damaged else "its payload is missing"
        _, crc, payload = row
        if not isinstance(payload, bytes):
            return b"", f"its payload is of type {type(payload).__name__}"
        if crc != checksum(payload, key):
            return payload, "its checksum is wrong"
        return payload, None

    def quarantine(self, queue: Queue, now: float, bad: Sequence[tuple[int, int, str]]) -> None:
        """Put ``(id, size, trouble)`` aside, which were ready."""
        ledger = self.edit(queue)
        for entry, size, trouble in bad:
            log.error("quarantined record %d of queue %r: %s", entry, queue.name, trouble)
            self.db.execute(
                f"UPDATE entries SET shelf = {QUARANTINED}, error = ?, failed_at = ? WHERE id = ?",
                (trouble, now, entry),
            )
            ledger.move(READY, QUARANTINED, 1, size)
            ledger.quarantined_ever += 1

    def deliveries(self, tags: Iterable[str], now: float) -> dict[str, Row]:
        """``(id, queue, size, body, attempts, expires_at, …)`` of those deliveries that have not ended."""
        asked = {tag: parsed for tag in tags if (parsed := self.tags.parse(tag)) is not None}
        entries = [entry for _, entry in asked.values() if entry <= ID_MAX]
        parts = each_in(self.db, _DELIVERY, entries)
        found = {row[0]: row for rows in parts for row in rows}
        live: dict[str, Row] = {}
        for tag, (lease, entry) in asked.items():
            row = found.get(entry)
            if row is not None and row[6] == lease and (row[7] is None or row[7] > now):
                live[tag] = row
        return live

    # -- rows

    def chunks(self, select: str, queue: Queue, *more: object) -> Iterator[list[Row]]:
        """
        Rows of *select*, some at a time, until none is left.

        For whoever takes them away in between; so that a million of them never are in memory.
        """
        while True:
            rows = self.db.execute(f"{select} LIMIT {CHUNK}", (queue.number, *more)).fetchall()
            if not rows:
                return
            yield rows

    def erase(self, queue: Queue, rows: Sequence[Row]) -> None:
        """Delete these entries (`ERASED`) of *queue*, and their bodies if nobody else has them."""
        ledger = self.edit(queue)
        for _ in each_in(self.db, "DELETE FROM entries WHERE id IN", [row[0] for row in rows]):
            pass
        for _, shelf, size, _ in rows:
            ledger.items[shelf] -= 1
            ledger.sizes[shelf] -= size
        self._let_go(Counter(row[3] for row in rows))

    def _let_go(self, bodies: Counter[int]) -> None:
        by_number: dict[int, list[int]] = {}
        for body, n in bodies.items():
            # What is damaged cannot even be deleted: it stays behind, in nobody's way.
            if body not in self.damaged:
                by_number.setdefault(n, []).append(body)
        for n, ones in by_number.items():
            try:
                gone = sum(done.rowcount for done in each_in(self.db, _DELETE_BODIES, ones, n))
            except sqlite3.DatabaseError as error:
                if is_corrupt(error):
                    self._find_damaged(ones)
                raise
            if gone < len(ones):  # other queues are not done with some; of those just deleted none is left
                for _ in each_in(self.db, "UPDATE bodies SET refs = refs - ? WHERE id IN", ones, n):
                    pass

    def _find_damaged(self, bodies: Sequence[int]) -> None:
        """Of several that cannot be read together, find those that cannot be read alone."""
        for body in bodies:
            try:
                self.db.execute("SELECT crc, payload FROM bodies WHERE id = ?", (body,)).fetchone()
            except sqlite3.DatabaseError as error:
                if is_corrupt(error):
                    self.damaged.add(body)

    def oldest(self, queue: Queue) -> float | None:
        """When the oldest that is ready, delayed or leased took its place."""
        found: list[float] = []
        ready = f"SELECT priority, put_at FROM entries WHERE {ON_SHELF[READY]} AND priority > ?"
        level = -1
        while True:  # one step per level that has any, however many there are
            row = self.db.execute(
                f"{ready} ORDER BY priority, place LIMIT 1", (queue.number, level)
            ).fetchone()
            if row is None:
                break
            level, put_at = row
            found.append(put_at)
        for shelf in (DELAYED, LEASED):
            if queue.ledger.items[shelf]:
                row = self.db.execute(
                    f"SELECT put_at FROM entries WHERE {ON_SHELF[shelf]} ORDER BY place LIMIT 1",
                    (queue.number,),
                ).fetchone()
                found.append(row[0])
        return min(found, default=None)

    def check_room(self, targets: Sequence[Queue], sizes: Sequence[int], bytes_max: int | None) -> None:
        """Refuse what would not fit; *sizes* says how much each queue would grow."""
        if bytes_max is not None:
            for queue, size in zip(targets, sizes, strict=True):
                if queue.ledger.live_bytes + size > bytes_max:
                    raise QueueFull(queue.name, size, queue.ledger.live_bytes, bytes_max)
