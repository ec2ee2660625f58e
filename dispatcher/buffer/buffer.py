"""
Items in, batches out, leases back.

Rules of this room. It reads no clock: what depends on the time takes it as *now*, which never goes
back. It waits for nobody and decides nothing about policy: the coordinator asks whether an item fits,
which batch is due, and what becomes of a failed one; the buffer keeps the items and the counts.

Theory of operation. Items are appended to the open batch. Cut, a batch waits in a heap by (next send
time, id), or by id alone where order counts. Leased, it is with a SendFn; what the attempt delivered
leaves, and what is to be tried again goes back into the heap as the same batch, smaller. Batches never
merge. Each item leaves exactly once, through `_settle` or the loops that stand for it, and is counted
where it leaves.

Most items have no `Ticket`: one is made only for a receipt or for an option that has to know something
of each item (its size, its age, its key).
"""

import math
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any, Generic

from typing_extensions import TypeVar

from dispatcher.buffer.batch import Batch, BufferedBatch, Watch, Where
from dispatcher.buffer.full import DropOldestBatch
from dispatcher.buffer.heap import Heap
from dispatcher.buffer.options import BufferOptions
from dispatcher.buffer.outcome import DropReason, Outcome, Status, Ticket
from dispatcher.errors import ForeignBatch

__all__ = ["Buffer", "Failure"]

T = TypeVar("T")

_DELIVERED: Outcome[None] = Outcome(Status.DELIVERED)
_DROPPED = {reason: Outcome[None](Status.DROPPED, reason=reason) for reason in DropReason}


class Failure(Generic[T]):
    """What an attempt left undelivered; `batch` is the view that hooks get, its errors complete."""

    __slots__ = ("batch", "lot")

    def __init__(self, lot: BufferedBatch[T], batch: Batch[T]) -> None:
        self.lot = lot
        self.batch = batch


class Buffer(Generic[T]):
    """
    The items of one channel, from acceptance to outcome.

    Args:
        options: Checked already.

        run: Prefix of the batches' keys; has to be unique over processes.
    """

    __slots__ = (
        "_batch_age_max",
        "_coalescing",
        "_expiries",
        "_fifo",
        "_item_age_max",
        "_items_max",
        "_latest",
        "_next_id",
        "_oldest",
        "_run",
        "_size_max",
        "_sized",
        "attempts",
        "batches",
        "delivered",
        "dropped",
        "failed",
        "heartbeats",
        "leased",
        "leased_items",
        "leased_size",
        "marked_items",
        "marked_size",
        "open",
        "retries",
        "told",
        "waiting",
        "waiting_items",
        "waiting_size",
    )

    def __init__(self, options: BufferOptions[T], run: str) -> None:
        self._run = run
        self._items_max = options.batch_items_max or math.inf
        self._size_max = options.batch_size_max or math.inf
        self._batch_age_max = options.batch_age_max
        self._item_age_max = options.item_age_max
        self._fifo = options.fifo
        self._coalescing = options.coalesce_by is not None
        self._sized = options.item_size is not None

        self.open: BufferedBatch[T] | None = None
        self.waiting: Heap[BufferedBatch[T]] = Heap()
        # The second order of what waits, needed only to find the oldest.
        self._oldest: Heap[BufferedBatch[T]] | None = (
            Heap() if isinstance(options.full_behavior, DropOldestBatch) else None
        )
        self.leased: dict[int, BufferedBatch[T]] = {}
        # What is with no SendFn, by when its oldest item expires; early where that one left already.
        # A batch that is leased or gone must not stay: it would wake an idle channel, and live as long.
        self._expiries: Heap[BufferedBatch[T]] = Heap()
        self._latest: dict[Hashable, Ticket] = {}
        self._next_id = 1

        self.waiting_items = self.waiting_size = 0
        self.leased_items = self.leased_size = 0
        self.marked_items = self.marked_size = 0
        self.delivered = self.failed = 0
        self.dropped = dict.fromkeys(DropReason, 0)
        self.batches = self.attempts = self.retries = self.heartbeats = 0
        self.told: deque[tuple[Batch[T], DropReason]] = deque()
        """What ``on_drop`` has to hear, in order."""

    # Counts

    @property
    def unleased_items(self) -> int:
        """In the open batch and in waiting ones."""
        return self.waiting_items if self.open is None else self.waiting_items + len(self.open.items)

    @property
    def unleased_size(self) -> int:
        """In the open batch and in waiting ones."""
        return self.waiting_size if self.open is None else self.waiting_size + self.open.size

    @property
    def empty(self) -> bool:
        """Nothing buffered and nothing in flight, heartbeats included."""
        return self.open is None and not self.leased and not self.waiting.live

    def _count(self, lot: BufferedBatch[T], items: int, size: int) -> None:
        """Add to (or take from) the counts that *lot* belongs to; the open batch counts itself."""
        if lot.where is Where.WAITING:
            self.waiting_items += items
            self.waiting_size += size
        elif lot.where is Where.LEASED:
            if lot.dropped:
                self.marked_items += items
                self.marked_size += size
            else:
                self.leased_items += items
                self.leased_size += size

    # Items in

    def add(
        self, item: T, ticket: Ticket | None, size: int, now: float, accepted_at: float | None = None
    ) -> None:
        """Take an item; the caller has made sure that it fits, and filled in the ticket's size and key."""
        if ticket is not None and self._coalescing and self._supersede(item, ticket, size, now, accepted_at):
            return
        lot = self.open
        if lot is not None and size and lot.size + size > self._size_max:
            self.cut(now)
            lot = None
        if lot is None:
            lot = self.open = BufferedBatch(self._next_id, now)
            lot.next_send_at = now + self._batch_age_max
            self._next_id += 1
        if ticket is not None:
            lot.pad().append(ticket)
            ticket.batch = lot
            ticket.accepted_at = now if accepted_at is None else accepted_at
        lot.items.append(item)
        lot.size += size
        if self._item_age_max is not None and (accepted_at is not None or len(lot.items) == 1):
            self._watch_age(lot)
        if len(lot.items) >= self._items_max or lot.size >= self._size_max:
            self.cut(now)

    def cut(self, now: float) -> None:
        """Close the open batch, if there is one; it is due at once."""
        lot = self.open
        if lot is not None:
            self.open = None
            self.batches += 1
            self._wait(lot, now)

    def synthetic(self, now: float) -> BufferedBatch[T]:
        """Make a heartbeat and let it wait; it is due at once."""
        lot: BufferedBatch[T] = BufferedBatch(self._next_id, now, synthetic=True)
        self._next_id += 1
        self.heartbeats += 1
        self._wait(lot, now)
        return lot

    def _wait(self, lot: BufferedBatch[T], at: float) -> None:
        lot.where = Where.WAITING
        lot.next_send_at = at
        self.waiting_items += len(lot.items)
        self.waiting_size += lot.size
        self.waiting.push(lot.id if self._fifo else at, lot.id, lot)
        if self._oldest is not None and not lot.synthetic:
            self._oldest.push(lot.id, lot.id, lot)

    def _stop_waiting(self, lot: BufferedBatch[T]) -> None:
        self.waiting.remove(lot.id)
        self.waiting_items -= len(lot.items)
        self.waiting_size -= lot.size
        if self._oldest is not None and not lot.synthetic:
            self._oldest.remove(lot.id)

    # Latest wins

    def replaceable(self, key: Hashable) -> Ticket | None:
        """The undelivered item of *key* that a new one would push out of the buffer, if there is one."""
        ticket = self._latest.get(key)
        if ticket is None or ticket.batch.where is Where.LEASED:
            return None
        return ticket

    def _supersede(self, item: T, ticket: Ticket, size: int, now: float, accepted_at: float | None) -> bool:
        """Push out what *ticket* is newer than; True if it took the very place."""
        old = self._latest.get(ticket.key)
        self._latest[ticket.key] = ticket
        if old is None:
            return False
        lot: BufferedBatch[T] = old.batch
        if lot.where is Where.LEASED:
            old.superseded = True
            return False
        position = lot.pad().index(old)
        grown = size - old.size if self._sized else 0
        if lot.attempts or lot.size + grown > self._size_max:
            self._drop(lot, {position}, DropReason.SUPERSEDED)
            return False
        gone = lot.items[position]
        lot.items[position] = item
        lot.tickets[position] = ticket
        ticket.batch = lot
        ticket.accepted_at = now if accepted_at is None else accepted_at
        if accepted_at is not None:
            self._watch_age(lot)
        lot.size += grown
        self._count(lot, 0, grown)
        self.dropped[DropReason.SUPERSEDED] += 1
        old.settle(_DROPPED[DropReason.SUPERSEDED])
        self.told.append((self._view(lot, [gone], old.size if self._sized else 0), DropReason.SUPERSEDED))
        if lot.where is Where.OPEN and lot.size >= self._size_max:
            self.cut(now)
        return True

    # Batches out

    def next_at(self, *, early: bool) -> float:
        """When the next batch is due, ``inf`` if there is none; the open one is due at once if *early*."""
        open_lot = self.open
        if self.waiting.live:
            lot = self.waiting.peek()
            assert lot is not None  # something is live
            if self._fifo or open_lot is None:
                return lot.next_send_at
            return -math.inf if early else min(lot.next_send_at, open_lot.next_send_at)
        if open_lot is None:
            return math.inf
        return -math.inf if early else open_lot.next_send_at

    def next_due(self, now: float, *, early: bool) -> BufferedBatch[T] | None:
        """The batch to send now, cut if it was open; None if none is due."""
        lot = self.waiting.peek()
        if lot is not None:
            if lot.next_send_at <= now:
                return lot
            if self._fifo:
                return None
        lot = self.open
        if lot is None or not (early or lot.next_send_at <= now):
            return None
        self.cut(now)
        return lot

    def lease(self, lot: BufferedBatch[T], owner: Any, now: float) -> Batch[T]:  # noqa: ANN401 - see batch.Owner
        """Hand a waiting batch out; *owner* hears of its marks."""
        self._stop_waiting(lot)
        if self._item_age_max is not None:
            self._unwatch_age(lot)
        lot.where = Where.LEASED
        self.leased[lot.id] = lot
        self.leased_items += len(lot.items)
        self.leased_size += lot.size
        lot.attempts += 1
        self.attempts += 1
        if lot.attempts == 1:
            lot.first_leased_at = now
        else:
            self.retries += 1
        batch = lot.lease = Batch(lot, tuple(lot.items), owner, self._run)
        return batch

    # Leases back

    def mark_done(self, batch: Batch[T], positions: Iterable[int]) -> None:
        """These items of a leased batch are delivered; they stay in it, settled, until the attempt ends."""
        lot = batch._lot  # noqa: SLF001 - one room
        tickets = lot.pad()
        items = size = 0
        for position in positions:
            ticket = tickets[position]
            items += 1
            if ticket is not None:
                if self._sized:
                    size += ticket.size
                self._settle(ticket, _DELIVERED)
        lot.size -= size
        self.delivered += items
        self._count(lot, -items, -size)

    def end(
        self, batch: Batch[T], error: Exception | None, results: Sequence[Any] | None
    ) -> Failure[T] | None:
        """
        Take a lease back.

        Args:
            batch: The attempt; marks on it are refused from here on.

            error: What it raised; None if it returned.

            results: One for each item, or None.

        Returns:
            What failed: still leased, until `resolve` says what becomes of it. None: nothing did,
            and the batch is gone.

        Raises:
            ForeignBatch: If *batch* is not leased from here.
        """
        lot = batch._lot  # noqa: SLF001
        if lot.lease is not batch or self.leased.get(lot.id) is not lot:
            raise ForeignBatch(batch.id)
        lot.lease = None
        batch._owner = None  # noqa: SLF001
        done, marked = batch._done, batch._errors  # noqa: SLF001
        if error is None:
            if not marked:
                self._deliver(lot, len(lot.items) - len(done or ()), results)
                self._release(lot)
                return None
            failed = sorted(marked)
        else:
            failed = [n for n in range(len(lot.items)) if done is None or n not in done]
            if not failed and not lot.synthetic:  # all was delivered before it raised
                self._release(lot)
                return None
        return self._failure(lot, batch, failed, error, results)

    def _deliver(self, lot: BufferedBatch[T], items: int, results: Sequence[Any] | None) -> None:
        """All that has no outcome yet is delivered."""
        self.delivered += items
        self._count(lot, -items, -lot.size)
        if not lot.tickets:
            return
        if results is None and not self._coalescing:
            # Ticket.settle, spelled out: this is done once per item.
            for ticket in lot.tickets:
                if ticket is not None and ticket.outcome is None:
                    ticket.outcome = _DELIVERED
                    if ticket.listeners is not None:
                        ticket.tell()
            return
        for position, ticket in enumerate(lot.tickets):
            if ticket is not None and ticket.outcome is None:
                outcome = _DELIVERED if results is None else Outcome(Status.DELIVERED, results[position])
                self._settle(ticket, outcome)

    def _failure(
        self,
        lot: BufferedBatch[T],
        batch: Batch[T],
        failed: list[int],
        error: Exception | None,
        results: Sequence[Any] | None,
    ) -> Failure[T]:
        """Deliver the others, keep the failed."""
        marked = batch._errors or {}  # noqa: SLF001
        tickets = lot.pad()
        keep = set(failed)
        delivered = size = 0
        for position in range(len(lot.items)):
            ticket = tickets[position]
            if position in keep or (batch._done is not None and position in batch._done):  # noqa: SLF001
                continue
            delivered += 1
            if ticket is not None:
                if self._sized:
                    size += ticket.size
                self._settle(
                    ticket, _DELIVERED if results is None else Outcome(Status.DELIVERED, results[position])
                )
        self.delivered += delivered
        self._count(lot, -delivered, -size)
        lot.size -= size
        if len(failed) < len(lot.items):
            lot.items = [lot.items[position] for position in failed]
            lot.tickets = [tickets[position] for position in failed]
            lot.revision += 1
        view = Batch(lot, tuple(lot.items), None, self._run, batch)
        errors: dict[int, Exception] = {}
        for new, old in enumerate(failed):
            cause = marked.get(old, error)
            if cause is not None:
                errors[new] = cause
        view._errors = errors  # noqa: SLF001
        view.error = error if error is not None else _joined(list(errors.values()))
        return Failure(lot, view)

    def resolve(
        self,
        failure: Failure[T],
        *,
        failed: Collection[int],
        dropped: Collection[int],
        reason: DropReason,
        retry_at: float,
        now: float,
    ) -> None:
        """
        Say what becomes of what an attempt left.

        Args:
            failure: From `end`.

            failed: Positions that failed for good, each with its own error.

            dropped: Positions that are dropped for *reason*; disjoint from *failed*.

            reason: See *dropped*.

            retry_at: When the rest is due again, as the same batch; ``inf``: never, for a heartbeat.

            now: The time.
        """
        lot, view = failure.lot, failure.batch
        if dropped:
            self._settle_dropped(lot, sorted(dropped), reason)
        if failed:
            self._settle_failed(lot, sorted(failed), view)
        if dropped or failed:
            self._remove(lot, {*dropped, *failed})
        if not lot.items and not (lot.synthetic and retry_at < math.inf):
            self._release(lot)
            return
        self._count(lot, -len(lot.items), -lot.size)
        del self.leased[lot.id]
        lot.dropped = False
        self._wait(lot, retry_at)
        if self._item_age_max is not None and not lot.synthetic:
            self._watch_age(lot)

    def _settle_failed(self, lot: BufferedBatch[T], positions: list[int], view: Batch[T]) -> None:
        errors, tickets, size = view.errors, lot.pad(), self._size_of(lot, positions)
        for position in positions:
            ticket = tickets[position]
            if ticket is not None:
                self._settle(ticket, Outcome(Status.FAILED, error=errors[position]))
        self.failed += len(positions)
        told = Batch(lot, tuple([lot.items[position] for position in positions]), None, self._run, view)
        told._errors = {new: errors[old] for new, old in enumerate(positions)}  # noqa: SLF001
        told.error = view.error
        told.size = size
        self.told.append((told, DropReason.FAILED))

    def _settle_dropped(self, lot: BufferedBatch[T], positions: list[int], reason: DropReason) -> None:
        items = [lot.items[position] for position in positions]
        self.told.append((self._view(lot, items, self._size_of(lot, positions)), reason))
        if lot.tickets:
            tickets, outcome = lot.pad(), _DROPPED[reason]
            for position in positions:
                ticket = tickets[position]
                if ticket is not None:
                    self._settle(ticket, outcome)
        self.dropped[reason] += len(positions)

    def _release(self, lot: BufferedBatch[T]) -> None:
        del self.leased[lot.id]
        self._gone(lot)

    def _gone(self, lot: BufferedBatch[T]) -> None:
        if lot.where is not Where.LEASED and self._item_age_max is not None:
            self._unwatch_age(lot)
        lot.where = Where.GONE
        # A receipt that somebody keeps must not keep its neighbours' items, nor be part of a cycle; and a
        # dead entry of a heap keeps its batch.
        lot.items = []
        if lot.tickets:
            lot.tickets = []
        if lot.watches is not None:
            for watch in lot.watches:
                watch.gone()

    # Items out

    def drop_oldest(self) -> bool:
        """Drop (or mark, if leased) the oldest batch that is not marked; False if there is none."""
        lot = self._oldest.peek() if self._oldest is not None else None
        if lot is None:
            leased = [lot for lot in self.leased.values() if not lot.dropped and not lot.synthetic]
            if leased:
                self._mark_dropped(min(leased, key=lambda lot: lot.id))
                return True
            lot = self.open
        if lot is None:
            return False
        self._drop(lot, range(len(lot.items)), DropReason.FULL)
        return True

    def _mark_dropped(self, lot: BufferedBatch[T]) -> None:
        done = lot.lease._done if lot.lease is not None else None  # noqa: SLF001
        items = len(lot.items) - len(done or ())
        self._count(lot, -items, -lot.size)
        lot.dropped = True
        self._count(lot, items, lot.size)

    def withdraw(self, ticket: Ticket) -> bool:
        """Take one item out, unless it has its outcome or is with a SendFn."""
        if ticket.outcome is not None:
            return False
        lot: BufferedBatch[T] = ticket.batch
        if lot.where is Where.LEASED:
            return False
        self._drop(lot, {lot.pad().index(ticket)}, DropReason.CANCELLED)
        return True

    def contents(self) -> list[tuple[T, Ticket | None]]:
        """Everything that is with no SendFn, oldest batch first."""
        lots = sorted(self.waiting, key=lambda lot: lot.id)
        if self.open is not None:
            lots.append(self.open)
        return [pair for lot in lots for pair in zip(lot.items, lot.pad(), strict=True)]

    def drop_waiting(self, reason: DropReason) -> None:
        """Drop everything that is with no SendFn."""
        for lot in sorted(self.waiting, key=lambda lot: lot.id):
            if lot.synthetic:
                self._discard(lot)
            else:
                self._drop(lot, range(len(lot.items)), reason)
        if self.open is not None:
            self._drop(self.open, range(len(self.open.items)), reason)

    def discard_heartbeats(self) -> None:
        """Forget the heartbeats that wait."""
        for lot in list(self.waiting):
            if lot.synthetic:
                self._discard(lot)

    def _discard(self, lot: BufferedBatch[T]) -> None:
        self._stop_waiting(lot)
        self._gone(lot)

    def expires_at(self) -> float:
        """When the next item may become too old; ``inf`` if none can. May be early, never late."""
        lot = self._expiries.peek()
        return math.inf if lot is None else lot.expires_at

    def expire(self, now: float) -> bool:
        """Drop what is too old and with no SendFn; whether there was anything."""
        age = self._item_age_max
        gone = False
        while age is not None and (lot := self._expiries.peek()) is not None and lot.expires_at <= now:
            stale = [n for n, t in enumerate(lot.pad()) if t is not None and t.accepted_at + age <= now]
            if stale:
                gone = True
                self._drop(lot, stale, DropReason.EXPIRED)
            if lot.items:
                self._watch_age(lot)
        return gone

    def _watch_age(self, lot: BufferedBatch[T]) -> None:
        """Note, anew, when the oldest item of an unleased batch becomes too old."""
        self._unwatch_age(lot)
        oldest = min([ticket.accepted_at for ticket in lot.tickets if ticket is not None])
        lot.expires_at = oldest + (self._item_age_max or math.inf)
        self._expiries.push(lot.expires_at, lot.id, lot)

    def _unwatch_age(self, lot: BufferedBatch[T]) -> None:
        if lot.id in self._expiries:
            self._expiries.remove(lot.id)

    def _drop(self, lot: BufferedBatch[T], positions: Collection[int], reason: DropReason) -> None:
        """These leave undelivered a batch that is with no SendFn."""
        self._settle_dropped(lot, sorted(positions), reason)
        self._remove(lot, positions)
        if lot.items:
            return
        if lot.where is Where.OPEN:
            self.open = None
            self._gone(lot)
        else:
            self._discard(lot)

    def _remove(self, lot: BufferedBatch[T], positions: Collection[int]) -> None:
        """Take settled items out of a batch and out of the counts."""
        gone = set(positions)
        tickets = lot.pad()
        size = self._size_of(lot, gone)
        # In place: the coordinator may hold on to the open batch's list.
        lot.items[:] = [item for n, item in enumerate(lot.items) if n not in gone]
        tickets[:] = [ticket for n, ticket in enumerate(tickets) if n not in gone]
        lot.size -= size
        self._count(lot, -len(gone), -size)
        if lot.attempts:
            lot.revision += 1

    def _settle(self, ticket: Ticket, outcome: Outcome[Any]) -> None:
        if self._coalescing and self._latest.get(ticket.key) is ticket:
            del self._latest[ticket.key]
        ticket.settle(outcome)

    def _size_of(self, lot: BufferedBatch[T], positions: Iterable[int]) -> int:
        if not self._sized:
            return 0
        tickets = lot.pad()
        return sum([ticket.size for n in positions if (ticket := tickets[n]) is not None])

    def _view(self, lot: BufferedBatch[T], items: Sequence[T], size: int) -> Batch[T]:
        """An ended attempt over *items*, for hooks."""
        view = Batch(lot, tuple(items), None, self._run)
        view.size = size
        return view

    def watch(self, watch: Watch) -> None:
        """Let *watch* count down with every batch that has items now, the open one left out."""
        for lot in (*self.waiting, *self.leased.values()):
            if not lot.synthetic:
                watch.remaining += 1
                if lot.watches is None:
                    lot.watches = []
                lot.watches.append(watch)


def _joined(errors: list[Exception]) -> Exception | None:
    """The single mark, or a group of the marks; None for a heartbeat."""
    if not errors:
        return None
    if all(error is errors[0] for error in errors):
        return errors[0]
    return ExceptionGroup("items of one batch failed", errors)
