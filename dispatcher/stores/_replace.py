"""A put in which the newest wins."""

from collections.abc import Sequence

from dispatcher.stores._books import ERASED, INSERT_BODY, INSERT_ENTRY, Books, Queue, Row, checksum
from dispatcher.stores._bulk import insert
from dispatcher.stores._engine import DEAD, DELAYED, LEASED, QUARANTINED, READY, earlier
from dispatcher.stores.base import Record, Stored

__all__ = ["Replacing"]


class Replacing:
    """
    One put with ``replace=True``: record by record, for each by the one that is there.

    Slower than a plain put, which need not look.

    Args:
        books: Where to.

        now: When.

        bytes_max: The bound on each queue's live bytes, or None.
    """

    def __init__(self, books: Books, now: float, bytes_max: int | None) -> None:
        self._books = books
        self._now = now
        self._bytes_max = bytes_max
        self._there: dict[tuple[Queue, str], list[Row]] = {}

    def put(self, records: Sequence[Record], targets: Sequence[Queue]) -> list[Stored]:
        """All of it, once it is known to fit."""
        self._books.check_room(targets, [self._growth(queue, records) for queue in targets], self._bytes_max)
        stored: list[Stored] = []
        for record in records:
            first = self._books.take_numbers(len(targets))
            body = (first, len(targets), checksum(record.payload, record.key), record.payload)
            insert(self._books.db, INSERT_BODY, [body])
            for nth, queue in enumerate(targets):
                self._put_one(record, queue, first + nth, first)
                stored.append(Stored(str(first + nth)))
        return stored

    def _growth(self, queue: Queue, records: Sequence[Record]) -> int:
        """How many bytes *queue* will hold more: of each key only the last one stays."""
        last = {record.key: record.size for record in records if record.key is not None}
        growth = sum(last.values()) + sum(record.size for record in records if record.key is None)
        for key in last:
            rows = self._books.db.execute(
                f"SELECT {ERASED}, priority, place, put_at FROM entries"
                f" WHERE queue = ? AND key = ? AND shelf <> {QUARANTINED}",
                (queue.number, key),
            ).fetchall()
            self._there[queue, key] = rows
            growth -= sum(row[2] for row in rows if row[1] != DEAD)
        return growth

    def _put_one(self, record: Record, queue: Queue, entry: int, body: int) -> None:
        priority, place, put_at = record.priority, entry, self._now
        ledger = self._books.edit(queue)
        if record.key is not None:
            there = self._there[queue, record.key]
            waiting = [row[4:] for row in there if row[1] in (READY, DELAYED)]
            if waiting and min(waiting)[0] <= priority:
                priority, place, put_at = min(waiting)
            if there:
                self._books.erase(queue, [row[:4] for row in there])
                ledger.replaced += sum(1 for row in there if row[1] in (READY, DELAYED, LEASED))
            self._there[queue, record.key] = [(entry, READY, record.size, body, priority, place, put_at)]
        row = (entry, queue.number, READY, priority, place, body, record.size, 0, None, record.key, put_at)
        insert(self._books.db, INSERT_ENTRY, [(*row, record.expires_at)])
        ledger.add(READY, 1, record.size)
        ledger.put += 1
        queue.expiry = earlier(queue.expiry, record.expires_at)
