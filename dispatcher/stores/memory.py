"""
Queues in memory: for tests, for development, and where a restart may lose everything.

Keeps the whole contract but the one about surviving: the promises that other engines are measured by.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import anyio

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
    PutOptions,
    Tags,
)
from dispatcher.stores._memoryqueue import LIVE, WAITING, Entry, MemoryQueue
from dispatcher.stores._shell import EmbeddedStore
from dispatcher.stores.base import Counts, Dead, Leased, Nack, Peeked, Record, Stored

__all__ = ["MemoryStore"]

T = TypeVar("T")


class _Engine:
    """The steps; see `dispatcher.stores.base.Store` for what each promises."""

    def __init__(self) -> None:
        self._tags = Tags()
        self._queues: dict[str, MemoryQueue] = {}
        self._homes: dict[int, MemoryQueue] = {}
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

    def _queue(self, name: str, now: float) -> MemoryQueue:
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
                self._queues[name] = MemoryQueue(name, self._homes)
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
                entry = Entry(self._number(), record, record.priority, 0, now, READY)
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

    def _replace(self, queue: MemoryQueue, key: str, entry: Entry) -> None:
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

    def _delivery(self, tag: str, now: float) -> tuple[MemoryQueue, Entry] | None:
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


def _growth(queue: MemoryQueue, records: Sequence[Record], *, replace: bool) -> int:
    """How many bytes the queue will hold more."""
    if not replace:
        return sum(record.size for record in records)
    last = {record.key: record.size for record in records if record.key is not None}
    freed = sum(one.record.size for key in last for one in queue.by_key.get(key, ()) if one.shelf in LIVE)
    return sum(last.values()) + sum(record.size for record in records if record.key is None) - freed


def _chosen(queue: MemoryQueue, ids: Sequence[str] | None, shelf: int) -> list[Entry]:
    on_shelf = queue.on(shelf)
    if ids is None:
        return on_shelf
    by_id = {str(entry.id): entry for entry in on_shelf}
    return [by_id[one] for one in dict.fromkeys(ids) if one in by_id]


def _peeked(entry: Entry) -> Peeked:
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
