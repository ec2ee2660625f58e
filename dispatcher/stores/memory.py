"""
Queues in memory: for tests, for development, and where a restart may lose everything.

Keeps the whole contract but the one about surviving: the promises that other engines are measured by.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import anyio
import attrs

from dispatcher.errors import OptionError, QueueFull, UnknownQueue
from dispatcher.stores._engine import (
    DEAD,
    DELAYED,
    LEASED,
    QUARANTINED,
    READY,
    SHELVES,
    Engine,
    Hint,
    Ledger,
    PutOptions,
    Tags,
)
from dispatcher.stores._shell import EmbeddedStore
from dispatcher.stores.base import Counts, Dead, Leased, Nack, Peeked, Record, Stored

__all__ = ["MemoryStore"]

T = TypeVar("T")

LIVE = (READY, DELAYED, LEASED)
WAITING = (READY, DELAYED)


@attrs.define(slots=True, eq=False)
class _Entry:
    """One record in one queue."""

    id: int
    record: Record
    priority: int
    place: int
    put_at: float
    shelf: int
    attempts: int = 0
    lease: int | None = None
    due: float | None = None
    error: str | None = None
    failed_at: float | None = None


class _Heap:
    """
    Finds the least of the entries for which a rank holds.

    Entries that changed stay in it until they surface, or until they outnumber the others.

    Args:
        rank: What an entry is ordered by now; None: it does not belong here.
    """

    def __init__(self, rank: Callable[[_Entry], tuple[float, ...] | None]) -> None:
        self._rank = rank
        self._heap: list[tuple[tuple[float, ...], int, _Entry]] = []
        self._enough = 64

    def push(self, entry: _Entry) -> None:
        """Its rank is new."""
        rank = self._rank(entry)
        if rank is None:
            return
        heapq.heappush(self._heap, (rank, entry.id, entry))
        if len(self._heap) > self._enough:
            ranked = {
                one.id: (rank, number, one) for rank, number, one in self._heap if self._rank(one) == rank
            }
            self._heap = list(ranked.values())
            heapq.heapify(self._heap)
            self._enough = 64 + 2 * len(self._heap)

    def first(self) -> _Entry | None:
        """The least, or None."""
        while self._heap:
            rank, _, entry = self._heap[0]
            if self._rank(entry) == rank:
                return entry
            heapq.heappop(self._heap)
        return None


GONE = -1


def _moment(moment: float | None) -> tuple[float, ...] | None:
    return None if moment is None else (moment,)


class _Queue:
    """
    One queue.

    Args:
        name: Its name.

        homes: In which queue each entry of the store is; kept up to date.
    """

    def __init__(self, name: str, homes: "dict[int, _Queue]") -> None:
        self.name = name
        self._homes = homes
        self.ledger = Ledger()
        self.entries: dict[int, _Entry] = {}
        self.by_key: dict[str, list[_Entry]] = {}
        self.ready = _Heap(lambda e: (e.priority, e.place) if e.shelf == READY else None)
        self.due = _Heap(lambda e: _moment(e.due) if e.shelf in LIVE else None)
        self.expiring = _Heap(lambda e: _moment(e.record.expires_at) if e.shelf in WAITING else None)
        self.aged = _Heap(lambda e: (e.place,) if e.shelf in LIVE else None)

    def add(self, entry: _Entry) -> None:
        self.entries[entry.id] = entry
        self._homes[entry.id] = self
        if entry.record.key is not None:
            self.by_key.setdefault(entry.record.key, []).append(entry)
        self.ledger.add(entry.shelf, 1, entry.record.size)
        self.ledger.put += 1
        self._rank(entry)

    def _rank(self, entry: _Entry) -> None:
        for heap in (self.ready, self.due, self.expiring, self.aged):
            heap.push(entry)

    def move(self, entry: _Entry, shelf: int, *, lease: int | None = None, due: float | None = None) -> None:
        self.ledger.move(entry.shelf, shelf, 1, entry.record.size)
        entry.shelf, entry.lease, entry.due = shelf, lease, due
        self._rank(entry)

    def erase(self, entry: _Entry) -> None:
        self.ledger.add(entry.shelf, -1, -entry.record.size)
        entry.shelf = GONE
        del self.entries[entry.id], self._homes[entry.id]
        if entry.record.key is not None:
            same = self.by_key[entry.record.key]
            same.remove(entry)
            if not same:
                del self.by_key[entry.record.key]

    def tend(self, now: float) -> None:
        while (entry := self.due.first()) is not None and entry.due is not None and entry.due <= now:
            self.move(entry, READY)
        while (entry := self.expiring.first()) is not None:
            if entry.record.expires_at is None or entry.record.expires_at > now:
                break
            self.erase(entry)
            self.ledger.expired += 1

    def on(self, shelf: int) -> list[_Entry]:
        """In the order of leases."""
        found = [entry for entry in self.entries.values() if entry.shelf == shelf]
        return sorted(found, key=lambda e: (e.priority, e.place) if shelf == READY else (0, e.place))

    def hint(self) -> Hint:
        due, expiring = self.due.first(), self.expiring.first()
        never = float("inf")
        return Hint(
            self.ledger.items[READY],
            never if due is None or due.due is None else due.due,
            never if expiring is None or expiring.record.expires_at is None else expiring.record.expires_at,
            self.ledger.live_bytes,
        )


class _Engine:
    """The steps; see `dispatcher.stores.base.Store` for what each promises."""

    def __init__(self) -> None:
        self._tags = Tags()
        self._queues: dict[str, _Queue] = {}
        self._homes: dict[int, _Queue] = {}
        self._touched: set[str] = set()
        self._next, self._front = 1, 0

    def reopen(self) -> None:
        """The owner died, or closed it: its leases are void."""
        self._tags = Tags()
        for name, queue in self._queues.items():
            self._touched.add(name)
            for entry in queue.on(LEASED):
                queue.move(entry, READY)

    def take_hints(self) -> dict[str, Hint | None]:
        touched, self._touched = self._touched, set()
        return {name: self._queues[name].hint() if name in self._queues else None for name in touched}

    def _queue(self, name: str, now: float) -> _Queue:
        try:
            queue = self._queues[name]
        except KeyError:
            raise UnknownQueue(name) from None
        self._touched.add(name)
        queue.tend(now)
        return queue

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    # -- queues

    def create(self, now: float, queues: Sequence[str]) -> None:
        for name in queues:
            if name not in self._queues:
                self._queues[name] = _Queue(name, self._homes)
                self._touched.add(name)

    def remove(self, now: float, queues: Sequence[str]) -> None:
        for name in queues:
            queue = self._queues.pop(name, None)
            if queue is not None:
                self._touched.add(name)
                for entry in queue.entries:
                    del self._homes[entry]

    def queues(self, now: float) -> Sequence[str]:
        return sorted(self._queues)

    # -- in

    def put(
        self, now: float, records: Sequence[Record], queues: Sequence[str], options: PutOptions
    ) -> Sequence[Stored]:
        for name in queues:
            if name not in self._queues:
                raise UnknownQueue(name)
        if not records:
            return []
        targets = [self._queue(name, now) for name in queues]
        if options.bytes_max is not None:
            for queue in targets:
                size = _growth(queue, records, replace=options.replace)
                held = queue.ledger.live_bytes
                if held + size > options.bytes_max:
                    raise QueueFull(queue.name, size, held, options.bytes_max)
        if options.front:
            self._front -= len(records)
        oldest = {queue.name: queue.aged.first() for queue in targets}
        stored: list[Stored] = []
        for n, record in enumerate(records):
            for queue in targets:
                entry = _Entry(self._number(), record, record.priority, 0, now, READY)
                entry.place = self._front + n if options.front else entry.id
                if options.front and (first := oldest[queue.name]) is not None:
                    entry.put_at = min(now, first.put_at)
                if options.replace and record.key is not None:
                    self._replace(queue, record.key, entry)
                if options.lease:
                    entry.shelf, entry.attempts, entry.lease = LEASED, 1, self._tags.next_lease()
                queue.add(entry)
                tag = None if entry.lease is None else self._tags.tag(entry.lease, entry.id)
                stored.append(Stored(str(entry.id), tag))
        return stored

    def _replace(self, queue: _Queue, key: str, entry: _Entry) -> None:
        there = [one for one in queue.by_key.get(key, ()) if one.shelf != QUARANTINED]
        waiting = [one for one in there if one.shelf in WAITING]
        if waiting:
            first = min(waiting, key=lambda one: (one.priority, one.place))
            if first.priority <= entry.priority:
                entry.priority, entry.place, entry.put_at = first.priority, first.place, first.put_at
        for one in there:
            queue.ledger.replaced += one.shelf in LIVE
            queue.erase(one)

    def drop_oldest(self, now: float, queue: str, size: int) -> Sequence[Peeked]:
        source = self._queue(queue, now)
        ready = sorted(source.on(READY), key=lambda e: (-e.priority, e.place))
        dropped: list[Peeked] = []
        for entry in (*ready, *source.on(DELAYED)):
            if size <= 0:
                break
            dropped.append(_peeked(entry))
            size -= entry.record.size
            source.erase(entry)
        source.ledger.dropped += len(dropped)
        return dropped

    # -- out

    def lease(
        self, now: float, queue: str, limit: int, bytes_max: int | None, ack_timeout: float | None
    ) -> Sequence[Leased]:
        source = self._queue(queue, now)
        taken: list[Leased] = []
        size = 0
        while len(taken) < limit and (entry := source.ready.first()) is not None:
            record = entry.record
            size += record.size
            if taken and bytes_max is not None and size > bytes_max:
                break
            lease = self._tags.next_lease()
            due = None if ack_timeout is None else now + ack_timeout
            source.ledger.redelivered += entry.attempts > 0
            entry.attempts += 1
            source.move(entry, LEASED, lease=lease, due=due)
            tag = self._tags.tag(lease, entry.id)
            taken.append(
                Leased(
                    tag,
                    str(entry.id),
                    record.payload,
                    record.key,
                    entry.priority,
                    entry.attempts,
                    entry.put_at,
                    record.expires_at,
                )
            )
        return taken

    def _delivery(self, tag: str, now: float) -> tuple[_Queue, _Entry] | None:
        parsed = self._tags.parse(tag)
        queue = None if parsed is None else self._homes.get(parsed[1])
        if parsed is None or queue is None:
            return None
        entry = queue.entries[parsed[1]]
        if entry.lease != parsed[0] or (entry.due is not None and entry.due <= now):
            return None
        self._touched.add(queue.name)
        return queue, entry

    def settle(
        self, now: float, acks: Sequence[str], nacks: Sequence[Nack], dead: Sequence[Dead]
    ) -> Sequence[str]:
        stale: list[str] = []
        for tag in acks:
            if (found := self._delivery(tag, now)) is None:
                stale.append(tag)
                continue
            queue, entry = found
            queue.erase(entry)
            queue.ledger.acked += 1
        for nack in nacks:
            if (found := self._delivery(nack.tag, now)) is None:
                stale.append(nack.tag)
                continue
            queue, entry = found
            if not nack.front:
                entry.place, entry.put_at = self._number(), now
            entry.attempts -= not nack.count
            if nack.delay > 0:
                queue.move(entry, DELAYED, due=now + nack.delay)
            else:
                queue.move(entry, READY)
        for one in dead:
            if (found := self._delivery(one.tag, now)) is None:
                stale.append(one.tag)
                continue
            queue, entry = found
            entry.error, entry.failed_at = one.error, now
            queue.move(entry, QUARANTINED if one.quarantine else DEAD)
            queue.ledger.quarantined_ever += one.quarantine
            queue.ledger.died += not one.quarantine
        return stale

    def extend(self, now: float, tags: Sequence[str], ack_timeout: float | None) -> Sequence[str]:
        stale: list[str] = []
        for tag in tags:
            if (found := self._delivery(tag, now)) is None:
                stale.append(tag)
                continue
            queue, entry = found
            due = None if ack_timeout is None else now + ack_timeout
            queue.move(entry, LEASED, lease=entry.lease, due=due)
        return stale

    def release(self, now: float, queue: str) -> int:
        source = self._queue(queue, now)
        leased = source.on(LEASED)
        for entry in leased:
            source.move(entry, READY)
        return len(leased)

    # -- care

    def peek(self, now: float, queue: str, limit: int, shelf: int, after: str | None) -> Sequence[Peeked]:
        entries = self._queue(queue, now).on(shelf)
        if after is not None:
            try:
                behind = tuple(int(part) for part in after.split("."))
            except ValueError:
                behind = ()
            if len(behind) != (2 if shelf == READY else 1):
                rule = "has to be a Peeked.cursor of this shelf"
                raise OptionError(option="after", rule=rule, value=after)
            entries = [e for e in entries if (e.priority, e.place)[-len(behind) :] > behind]
        return [_peeked(entry) for entry in entries[:limit]]

    def counts(self, now: float, queue: str) -> Counts:
        source = self._queue(queue, now)
        oldest = source.aged.first()
        return source.ledger.counts(None if oldest is None else max(0.0, now - oldest.put_at))

    def sweep(self, now: float) -> int:
        before = sum(queue.ledger.expired for queue in self._queues.values())
        return sum(self._queue(name, now).ledger.expired for name in self._queues) - before

    def redrive(self, now: float, queue: str, ids: Sequence[str] | None, shelf: int) -> int:
        source = self._queue(queue, now)
        chosen = _chosen(source, ids, shelf)
        for entry in chosen:
            entry.place, entry.put_at, entry.attempts = self._number(), now, 0
            entry.error = entry.failed_at = None
            source.move(entry, READY)
        source.ledger.redriven += len(chosen)
        return len(chosen)

    def purge(self, now: float, queue: str, ids: Sequence[str] | None, shelf: int) -> int:
        source = self._queue(queue, now)
        chosen = _chosen(source, ids, shelf)
        for entry in chosen:
            source.erase(entry)
        if shelf in WAITING:
            source.ledger.purged += len(chosen)
        return len(chosen)


def _growth(queue: _Queue, records: Sequence[Record], *, replace: bool) -> int:
    """How many bytes the queue will hold more."""
    if not replace:
        return sum(record.size for record in records)
    last = {record.key: record.size for record in records if record.key is not None}
    freed = sum(one.record.size for key in last for one in queue.by_key.get(key, ()) if one.shelf in LIVE)
    return sum(last.values()) + sum(record.size for record in records if record.key is None) - freed


def _chosen(queue: _Queue, ids: Sequence[str] | None, shelf: int) -> list[_Entry]:
    on_shelf = queue.on(shelf)
    if ids is None:
        return on_shelf
    by_id = {str(entry.id): entry for entry in on_shelf}
    return [by_id[one] for one in dict.fromkeys(ids) if one in by_id]


def _peeked(entry: _Entry) -> Peeked:
    return Peeked(
        id=str(entry.id),
        cursor=f"{entry.priority}.{entry.place}" if entry.shelf == READY else str(entry.place),
        shelf=SHELVES[entry.shelf],
        payload=entry.record.payload,
        key=entry.record.key,
        priority=entry.priority,
        attempts=entry.attempts,
        put_at=entry.put_at,
        expires_at=entry.record.expires_at,
        error=entry.error,
        failed_at=entry.failed_at,
    )


class MemoryStore(EmbeddedStore):
    """
    A `dispatcher.stores.base.Store` in this process's memory.

    Closed and opened again, it still has what it had, as a file would; it dies with the process.

    Args:
        clock: Reads the time, in Unix seconds, for tests; None: the wall clock at opening plus the
            monotonic time since.
    """

    def __init__(self, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(clock=clock)
        self._engine = _Engine()

    async def _start(self) -> dict[str, Hint | None]:
        await anyio.lowlevel.checkpoint()
        self._engine.reopen()
        return self._engine.take_hints()

    async def _stop(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def _step(
        self,
        step: Callable[[Engine, float], T],
        *,
        durable: bool = True,
        light: bool = False,
        orphan: Callable[[T], None] | None = None,
    ) -> T:
        self._check_open()
        await anyio.lowlevel.checkpoint()  # the one place to be cancelled at: nothing has happened yet
        self._check_open()
        try:
            return step(self._engine, self.now())
        finally:
            self._take(self._engine.take_hints())

    def _hand_back(self, tags: Iterable[str]) -> None:  # pragma: no cover - nobody can be cancelled too late
        raise AssertionError(tags)
