"""The steps of a store as SQL; an `dispatcher.stores._engine.Engine`."""

import contextlib
import math
import sqlite3
from collections.abc import Generator, Iterator, Sequence

from dispatcher.errors import OptionError
from dispatcher.stores._books import ERASED, ON_SHELF, Books, Queue, Row, checksum
from dispatcher.stores._bulk import each_in
from dispatcher.stores._engine import (
    DEAD,
    DELAYED,
    LEASED,
    QUARANTINED,
    READY,
    SHELVES,
    Ledger,
    PutOptions,
    earlier,
    never,
)
from dispatcher.stores._replace import Replacing
from dispatcher.stores.base import Counts, Dead, Leased, Nack, Peeked, Record, Stored

__all__ = ["Tables"]

_READY = (
    "SELECT size, body, key, id, priority, attempts, put_at, expires_at FROM entries"
    f" WHERE {ON_SHELF[READY]} ORDER BY priority, place"
)
_LEASE = f"UPDATE entries SET shelf = {LEASED}, attempts = attempts + 1, lease = ?, due = ? WHERE id IN"

_PEEKED = "id, shelf, body, key, priority, attempts, put_at, expires_at, error, failed_at, place"


class Tables(Books):
    """The steps; see `dispatcher.stores.base.Store` for what each promises."""

    # -- queues

    def create(self, now: float, queues: Sequence[str]) -> None:
        """See `dispatcher.stores.base.Store.create`."""
        self.keep_queues()
        for name in queues:
            if name not in self.by_name:
                number = self.db.execute("INSERT INTO queues (name) VALUES (?)", (name,)).lastrowid
                assert number is not None
                queue = Queue(number, name, Ledger())
                self.by_name[name] = self.by_number[number] = queue
                self.hint(name)

    def remove(self, now: float, queues: Sequence[str]) -> None:
        """See `dispatcher.stores.base.Store.remove`."""
        self.keep_queues()
        for name in queues:
            queue = self.by_name.get(name)
            if queue is None:
                continue
            for shelf in range(len(SHELVES)):
                for rows in self.chunks(f"SELECT {ERASED} FROM entries WHERE {ON_SHELF[shelf]}", queue):
                    self.erase(queue, rows)
            self.db.execute("DELETE FROM queues WHERE id = ?", (queue.number,))
            self.forget(queue)

    def queues(self, now: float) -> Sequence[str]:
        """See `dispatcher.stores.base.Store.queues`."""
        return sorted(self.by_name)

    # -- in

    def put(
        self, now: float, records: Sequence[Record], queues: Sequence[str], options: PutOptions
    ) -> Sequence[Stored]:
        """See `dispatcher.stores.base.Store.put`."""
        targets = [self.queue(name) for name in queues]
        if not records or not targets:
            return []
        for queue in targets:
            self.tend(queue, now)
        if options.replace:
            return Replacing(self, now, options.bytes_max).put(records, targets)
        size = sum(record.size for record in records)
        self.check_room(targets, [size] * len(targets), options.bytes_max)
        return self._append(now, records, targets, size, options)

    def _append(
        self, now: float, records: Sequence[Record], targets: Sequence[Queue], size: int, options: PutOptions
    ) -> Sequence[Stored]:
        count, width = len(records), len(targets)
        first = self.take_numbers(count * width)
        bodies: list[Row] = [
            (first + n * width, width, checksum(record.payload, record.key), record.payload)
            for n, record in enumerate(records)
        ]
        shelf, attempts = (LEASED, 1) if options.lease else (READY, 0)
        front = self.take_front(count) if options.front else 0
        lease = self.tags.next_lease() if options.lease else None
        rows: list[Row] = []
        stored: list[Stored | None] = [None] * (count * width)
        for nth, queue in enumerate(targets):
            ledger = self.edit(queue)
            put_at = min(now, never(self.oldest(queue))) if options.front else now
            for n, record in enumerate(records):
                entry = first + n * width + nth
                place = front + n if options.front else entry
                body = first + n * width
                row = (entry, queue.number, shelf, record.priority, place, body, record.size, attempts)
                rows.append((*row, lease, record.key, put_at, record.expires_at))
                tag = None if lease is None else self.tags.tag(lease, entry)
                stored[n * width + nth] = Stored(str(entry), tag)
                if record.expires_at is not None:
                    queue.expiry = earlier(queue.expiry, record.expires_at)
            ledger.add(shelf, count, size)
            ledger.put += count
        self.write_later(bodies, rows)
        return [one for one in stored if one is not None]

    def drop_oldest(self, now: float, queue: str, size: int) -> Sequence[Peeked]:
        """See `dispatcher.stores.base.Store.drop_oldest`."""
        source = self.queue(queue)
        self.tend(source, now)
        gone: list[Row] = []
        with contextlib.closing(self._droppable(source)) as rows:
            for row in rows:
                if size <= 0:
                    break
                gone.append(row)
                size -= row[2]
        peeked = [self._peeked(row[4:]) for row in gone]
        if gone:
            self.edit(source).dropped += len(gone)
            self.erase(source, [row[:4] for row in gone])
        return peeked

    def _droppable(self, queue: Queue) -> Generator[Row]:
        columns = f"{ERASED}, {_PEEKED}"
        below: int | None = None
        while True:
            (level,) = self.db.execute(
                f"SELECT max(priority) FROM entries WHERE {ON_SHELF[READY]}"
                + ("" if below is None else " AND priority < ?"),
                (queue.number,) if below is None else (queue.number, below),
            ).fetchone()
            if level is None:
                break
            yield from self.db.execute(
                f"SELECT {columns} FROM entries WHERE {ON_SHELF[READY]} AND priority = ? ORDER BY place",
                (queue.number, level),
            )
            below = level
        yield from self.db.execute(
            f"SELECT {columns} FROM entries WHERE {ON_SHELF[DELAYED]} ORDER BY place", (queue.number,)
        )

    # -- out

    def lease(
        self, now: float, queue: str, limit: int, bytes_max: int | None, ack_timeout: float | None
    ) -> Sequence[Leased]:
        """See `dispatcher.stores.base.Store.lease`."""
        source = self.queue(queue)
        self.tend(source, now)
        lease = self.tags.next_lease()
        taken: list[Leased] = []
        entries: list[int] = []
        bad: list[tuple[int, int, str]] = []
        size = again = 0
        with contextlib.closing(self.db.execute(_READY, (source.number,))) as rows:
            ahead: list[Row] = []
            # Once more only for those that cannot be read: others take their places.
            while len(taken) < limit:
                found, ahead = _within(ahead, rows, limit - len(taken), size, bytes_max)
                if not found:
                    break
                texts = self.texts([row[1] for row in found])
                for length, body, key, entry, priority, attempts, put_at, expires_at in found:
                    payload, trouble = self.read(body, texts.get(body), key)
                    if trouble is not None:
                        bad.append((entry, length, trouble))
                        continue
                    tag, number = self.tags.tag(lease, entry), str(entry)
                    taken.append(
                        Leased(tag, number, payload, key, priority, attempts + 1, put_at, expires_at)
                    )
                    entries.append(entry)
                    size += length
                    again += attempts > 0
        if bad:
            self.quarantine(source, now, bad)
        if taken:
            due = None if ack_timeout is None else now + ack_timeout
            for _ in each_in(self.db, _LEASE, entries, lease, due):
                pass
            ledger = self.edit(source)
            ledger.move(READY, LEASED, len(taken), size)
            ledger.redelivered += again
            source.due = earlier(source.due, due)
        return taken

    def settle(
        self, now: float, acks: Sequence[str], nacks: Sequence[Nack], dead: Sequence[Dead]
    ) -> Sequence[str]:
        """See `dispatcher.stores.base.Store.settle`."""
        live = self.deliveries([*acks, *(nack.tag for nack in nacks), *(one.tag for one in dead)], now)
        stale: list[str] = []

        def delivery(tag: str) -> Row | None:
            row = live.pop(tag, None)  # of two words on one delivery the first counts
            if row is None:
                stale.append(tag)
            return row

        erased: dict[int, list[Row]] = {}
        for tag in acks:
            row = delivery(tag)
            if row is not None:
                erased.setdefault(row[1], []).append((row[0], LEASED, row[2], row[3]))
        for number, rows in erased.items():
            queue = self.by_number[number]
            self.erase(queue, rows)
            self.edit(queue).acked += len(rows)
        for nack in nacks:
            row = delivery(nack.tag)
            if row is not None:
                self._hand_back(now, nack, row)
        for one in dead:
            row = delivery(one.tag)
            if row is not None:
                self._bury(now, one, row)
        return stale

    def _hand_back(self, now: float, nack: Nack, row: Row) -> None:
        entry, number, size, _, attempts, expires_at, *_ = row
        queue = self.by_number[number]
        shelf = DELAYED if nack.delay > 0 else READY
        due = now + nack.delay if nack.delay > 0 else None
        moved: Row = () if nack.front else (self.take_numbers(1), now)
        self.db.execute(
            f"UPDATE entries SET shelf = {shelf}, lease = NULL, due = ?, attempts = ?"
            + ("" if nack.front else ", place = ?, put_at = ?")
            + " WHERE id = ?",
            (due, attempts if nack.count else attempts - 1, *moved, entry),
        )
        self.edit(queue).move(LEASED, shelf, 1, size)
        queue.due = earlier(queue.due, due)
        queue.expiry = earlier(queue.expiry, expires_at)

    def _bury(self, now: float, one: Dead, row: Row) -> None:
        entry, number, size, *_ = row
        queue = self.by_number[number]
        ledger = self.edit(queue)
        shelf = QUARANTINED if one.quarantine else DEAD
        if one.quarantine:
            ledger.quarantined_ever += 1
        else:
            ledger.died += 1
        self.db.execute(
            f"UPDATE entries SET shelf = {shelf}, lease = NULL, due = NULL, error = ?, failed_at = ?"
            " WHERE id = ?",
            (one.error, now, entry),
        )
        ledger.move(LEASED, shelf, 1, size)

    def extend(self, now: float, tags: Sequence[str], ack_timeout: float | None) -> Sequence[str]:
        """See `dispatcher.stores.base.Store.extend`."""
        due = None if ack_timeout is None else now + ack_timeout
        live = self.deliveries(tags, now)
        for _ in each_in(
            self.db, "UPDATE entries SET due = ? WHERE id IN", [row[0] for row in live.values()], due
        ):
            pass
        for number in {row[1] for row in live.values()}:
            queue = self.by_number[number]
            self.edit(queue)
            queue.due = earlier(queue.due, due)
        return [tag for tag in tags if tag not in live]

    def release(self, now: float, queue: str) -> int:
        """See `dispatcher.stores.base.Store.release`."""
        source = self.queue(queue)
        self.tend(source, now)
        return self.void(source)

    # -- care

    def peek(self, now: float, queue: str, limit: int, shelf: int, after: str | None) -> Sequence[Peeked]:
        """See `dispatcher.stores.base.Store.peek`."""
        source = self.queue(queue)
        self.tend(source, now)
        return self.look(source, limit, shelf, after)

    def look(self, source: Queue, limit: int, shelf: int, after: str | None) -> Sequence[Peeked]:
        """`peek`, and the time stands still."""
        behind, place = ("", ()) if after is None else self._behind(shelf, after)
        rows = self.db.execute(
            f"SELECT {_PEEKED} FROM entries WHERE {ON_SHELF[shelf]}{behind} ORDER BY {'priority, place' if shelf == READY else 'place'} LIMIT ?",
            (source.number, *place, limit),
        ).fetchall()
        return [self._peeked(row) for row in rows]

    def _behind(self, shelf: int, cursor: str) -> tuple[str, tuple[int, ...]]:
        try:
            place = tuple(int(part) for part in cursor.split("."))
        except ValueError:
            place = ()
        if shelf == READY and len(place) == 2:
            return " AND (priority, place) > (?, ?)", place
        if shelf != READY and len(place) == 1:
            return " AND place > ?", place
        raise OptionError(option="after", rule="has to be a Peeked.cursor of this shelf", value=cursor)

    def _peeked(self, row: Row) -> Peeked:
        entry, shelf, body, key, priority, attempts, put_at, expires_at, error, failed_at, place = row
        payload, _ = self.read(body, self.texts([body]).get(body), key)
        return Peeked(
            id=str(entry),
            cursor=f"{priority}.{place}" if shelf == READY else str(place),
            shelf=SHELVES[shelf],
            payload=payload,
            key=key,
            priority=priority,
            attempts=attempts,
            put_at=put_at,
            expires_at=expires_at,
            error=error,
            failed_at=failed_at,
        )

    def counts(self, now: float, queue: str) -> Counts:
        """See `dispatcher.stores.base.Store.counts`."""
        source = self.queue(queue)
        self.tend(source, now)
        return self.tell(source, now)

    def tell(self, source: Queue, now: float) -> Counts:
        """`counts`, and the time stands still."""
        oldest = self.oldest(source)
        return source.ledger.counts(None if oldest is None else max(0.0, now - oldest))

    def sweep(self, now: float) -> int:
        """See `dispatcher.stores.base.Store.sweep`."""
        swept = 0
        for queue in self.by_name.values():
            before = queue.ledger.expired
            self.tend(queue, now)
            swept += queue.ledger.expired - before
        return swept

    def redrive(self, now: float, queue: str, ids: Sequence[str] | None, shelf: int) -> int:
        """See `dispatcher.stores.base.Store.redrive`."""
        source = self.queue(queue)
        self.tend(source, now)
        back = (
            f"UPDATE entries SET shelf = {READY}, attempts = 0, put_at = ?, error = NULL, failed_at = NULL,"
            " place = place + ?"
        )
        count = size = 0
        for items, length, first, last, where, more in self._chosen(source, ids, shelf):
            # One offset for all of them: they keep their order, and stand behind everything.
            offset = self.take_numbers(last - first + 1) - first
            self.db.execute(f"{back} WHERE {where}", (now, offset, source.number, *more))
            count += items
            size += length
        if count:
            ledger = self.edit(source)
            ledger.move(shelf, READY, count, size)
            ledger.redriven += count
            source.expiry = -math.inf  # whatever expired while it lay there is looked for at the next step
        return count

    def _chosen(
        self, source: Queue, ids: Sequence[str] | None, shelf: int
    ) -> Iterator[tuple[int, int, int, int, str, tuple[int, ...]]]:
        """``(items, bytes, first place, last place, where, its parameters behind the queue)``."""
        on_shelf = ON_SHELF[shelf]
        wheres: list[tuple[str, tuple[int, ...]]]
        if ids is None:
            wheres = [(on_shelf, ())]
        else:
            # + keeps SQLite at the primary key instead of the shelf's index
            by_id = on_shelf.replace("queue = ?", "+queue = ?").replace("shelf", "+shelf") + " AND id = ?"
            wheres = [(by_id, (number,)) for number in dict.fromkeys(_numbers(ids))]
        for where, more in wheres:
            items, size, first, last = self.db.execute(
                f"SELECT count(*), sum(size), min(place), max(place) FROM entries WHERE {where}",
                (source.number, *more),
            ).fetchone()
            if items:
                yield items, size, first, last, where, more

    def purge(self, now: float, queue: str, ids: Sequence[str] | None, shelf: int) -> int:
        """See `dispatcher.stores.base.Store.purge`."""
        source = self.queue(queue)
        self.tend(source, now)
        before = source.ledger.items[shelf]
        for *_, where, more in self._chosen(source, ids, shelf):
            for rows in self.chunks(f"SELECT {ERASED} FROM entries WHERE {where}", source, *more):
                self.erase(source, rows)
        count = before - source.ledger.items[shelf]
        if count and shelf in (READY, DELAYED):
            self.edit(source).purged += count
        return count


def _numbers(ids: Sequence[str]) -> list[int]:
    return [int(one) for one in ids if one.isascii() and one.isdigit() and len(one) < 19]


def _within(
    ahead: list[Row], rows: sqlite3.Cursor, limit: int, size: int, bytes_max: int | None
) -> tuple[list[Row], list[Row]]:
    """
    The next *limit* at most, of ``(size, …)``, for as long as they fit; and what was read beyond them.

    Args:
        ahead: What was read before.

        rows: All behind that.

        limit: At most.

        size: Of what there is already; 0: nothing, so the first fits in any case.

        bytes_max: With it, at most; None: all fit.
    """
    if len(ahead) < limit:
        ahead = ahead + rows.fetchmany(limit - len(ahead))
    count = min(limit, len(ahead))
    if bytes_max is not None:
        for n in range(count):
            size += ahead[n][0]
            if size > bytes_max and size > ahead[n][0]:
                count = n
                break
    return ahead[:count], ahead[count:]
