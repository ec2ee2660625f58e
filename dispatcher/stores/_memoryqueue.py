"""The queues of a store in memory: entries, and heaps that find the first of them."""

import heapq
from collections.abc import Callable

import attrs

from dispatcher.stores._engine import DELAYED, LEASED, READY, Hint, Ledger, never
from dispatcher.stores.base import Record

__all__ = ["LIVE", "WAITING", "Entry", "MemoryQueue"]

LIVE = (READY, DELAYED, LEASED)
WAITING = (READY, DELAYED)


@attrs.define(slots=True, eq=False)
class Entry:
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

    def __init__(self, rank: Callable[[Entry], tuple[float, ...] | None]) -> None:
        self._rank = rank
        self._heap: list[tuple[tuple[float, ...], int, Entry]] = []
        self._enough = 64

    def push(self, entry: Entry) -> None:
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

    def first(self) -> Entry | None:
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


class MemoryQueue:
    """
    One queue.

    Args:
        name: Its name.

        homes: In which queue each entry of the store is; kept up to date.
    """

    def __init__(self, name: str, homes: "dict[int, MemoryQueue]") -> None:
        self.name = name
        self._homes = homes
        self.ledger = Ledger()
        self.entries: dict[int, Entry] = {}
        self.by_key: dict[str, list[Entry]] = {}
        self.ready = _Heap(lambda e: (e.priority, e.place) if e.shelf == READY else None)
        self.due = _Heap(lambda e: _moment(e.due) if e.shelf in LIVE else None)
        self.expiring = _Heap(lambda e: _moment(e.record.expires_at) if e.shelf in WAITING else None)
        self.aged = _Heap(lambda e: (e.place,) if e.shelf in LIVE else None)

    def add(self, entry: Entry) -> None:
        self.entries[entry.id] = entry
        self._homes[entry.id] = self
        if entry.record.key is not None:
            self.by_key.setdefault(entry.record.key, []).append(entry)
        self.ledger.add(entry.shelf, 1, entry.record.size)
        self.ledger.put += 1
        self._rank(entry)

    def _rank(self, entry: Entry) -> None:
        for heap in (self.ready, self.due, self.expiring, self.aged):
            heap.push(entry)

    def move(self, entry: Entry, shelf: int, *, lease: int | None = None, due: float | None = None) -> None:
        self.ledger.move(entry.shelf, shelf, 1, entry.record.size)
        entry.shelf, entry.lease, entry.due = shelf, lease, due
        self._rank(entry)

    def erase(self, entry: Entry) -> None:
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

    def on(self, shelf: int) -> list[Entry]:
        """In the order of leases."""
        found = [entry for entry in self.entries.values() if entry.shelf == shelf]
        return sorted(found, key=lambda e: (e.priority, e.place) if shelf == READY else (0, e.place))

    def hint(self) -> Hint:
        due, expiring = self.due.first(), self.expiring.first()
        return Hint(
            self.ledger.items[READY],
            never(None if due is None else due.due),
            never(None if expiring is None else expiring.record.expires_at),
            self.ledger.live_bytes,
        )
