"""
One channel's core a second time, as naively as possible: lists, scanned from end to end.

It shares no code with what it checks, and keeps no counts: each is taken anew from the items' fates.
"""

import math
from collections.abc import Callable
from typing import Any

import attrs

from dispatcher.buffer import (
    BlockNewItems,
    ChannelStatistics,
    DropOldestBatch,
    DropReason,
    InfiniteGrowth,
    Outcome,
    Status,
)
from dispatcher.buffer.options import BufferOptions
from dispatcher.buffer.outcome import Ticket
from dispatcher.errors import BadResults, RetryAfter, TransientError

Fate = tuple[Status, Any]


@attrs.define(eq=False)
class Item:
    """One item, and all that is known of it."""

    number: int
    size: int
    key: int
    ticket: Ticket | None = None
    at: float = 0.0
    superseded: bool = False
    fate: Fate | None = None

    def settle(self, status: Status, what: Any = None) -> None:
        assert self.fate is None, f"{self} settled twice"
        self.fate = status, what

    @property
    def outcome(self) -> Outcome[Any] | None:
        if self.fate is None:
            return None
        status, what = self.fate
        field = {Status.DELIVERED: "result", Status.FAILED: "error", Status.DROPPED: "reason"}[status]
        return Outcome(status, **{field: what})


@attrs.define(eq=False)
class Lot:
    """One batch."""

    id: int
    opened: float
    due: float
    items: list[Item] = attrs.Factory(list)
    where: str = "open"
    synthetic: bool = False
    attempts: int = 0
    first_at: float = 0.0
    doomed: bool = False
    marks: dict[int, Exception] = attrs.Factory(dict)
    key: str = ""
    sent: tuple[Item, ...] = ()

    @property
    def left(self) -> list[Item]:
        return [item for item in self.items if item.fate is None]


@attrs.define(eq=False)
class Sender:
    """One that waits."""

    item: Item
    granted: bool = False


@attrs.frozen
class Verdicts:
    """The retry policy that both sides follow; None for *attempts* and *before*: never stops."""

    wait: float
    attempts: int | None = None
    before: float | None = None


class Naive:
    """What the coordinator promises, step by step."""

    def __init__(
        self,
        options: BufferOptions[Item],
        verdicts: Verdicts | None,
        heartbeat: float | None,
        now: float,
    ) -> None:
        self.o, self.verdicts, self.heartbeat = options, verdicts, heartbeat
        behavior = options.full_behavior
        self.blocking = isinstance(behavior, BlockNewItems)
        self.dropping = isinstance(behavior, DropOldestBatch)
        self.unbounded = isinstance(behavior, InfiniteGrowth)
        self.sized = options.item_size is not None
        self.coalescing = options.coalesce_by is not None
        self.items_max = options.batch_items_max or math.inf
        self.size_max = options.batch_size_max or math.inf

        self.everything: list[Item] = []
        self.lots: list[Lot] = []
        self.senders: list[Sender] = []
        self.reserved: list[Item] = []
        self.told: list[tuple[tuple[Item, ...], DropReason]] = []
        self.next_id = 1
        self.batches = self.attempts = self.retries = self.heartbeats = 0
        self.closed = self.cancelled = self.hurry = self.token = False
        self.hold_until = -math.inf
        self.empty_since: float | None = now

    # Looking

    def size(self, items: list[Item]) -> int:
        return sum(item.size for item in items) if self.sized else 0

    def at(self, *places: str) -> list[Lot]:
        return [lot for lot in self.lots if lot.where in places]

    @property
    def open(self) -> Lot | None:
        return next(iter(self.at("open")), None)

    @property
    def leased(self) -> list[Lot]:
        return self.at("leased")

    @property
    def unleased(self) -> list[Lot]:
        return self.at("waiting", "open")

    @property
    def queue(self) -> list[Sender]:
        return [sender for sender in self.senders if not sender.granted]

    @property
    def handed(self) -> list[Sender]:
        return [sender for sender in self.senders if sender.granted]

    def find(self, item: Item) -> Lot:
        return next(lot for lot in self.lots if item in lot.items)

    def load(self) -> tuple[int, int]:
        """What counts against the bounds."""
        live = [item for lot in self.lots if self.blocking or not lot.doomed for item in lot.left]
        live += [sender.item for sender in self.handed] + self.reserved
        return len(live), self.size(live)

    def room_for(self, items: int, size: int) -> bool:
        bounds, (load, load_size) = self.o.bounds, self.load()
        return load + items <= bounds.items and load_size + size <= bounds.size

    def older(self, item: Item) -> Item | None:
        """The one whose place *item* would take."""
        if not self.coalescing:
            return None
        same = [old for lot in self.unleased for old in lot.items if old.key == item.key]
        assert len(same) <= 1, "two of one key wait"
        return same[0] if same else None

    def needs(self, item: Item) -> tuple[int, int]:
        old = self.older(item)
        size = self.size([item])
        return (1, size) if old is None else (0, size - self.size([old]))

    def fits(self, item: Item, now: float) -> bool:
        if not self.blocking:
            return True

        def fit() -> bool:
            items, size = self.needs(item)
            return not (self.senders and (items > 0 or size > 0)) and self.room_for(items, size)

        if not fit():
            self.expire(now)
        return fit()

    # Items in

    def accept(self, item: Item, now: float) -> None:
        if self.dropping and not self.room_for(*self.needs(item)):
            self.expire(now)
            while not self.room_for(*self.needs(item)):
                self.drop_oldest()
        self.everything.append(item)
        item.at = now
        if not self.replace(item, now):
            self.append(item, now)
        self.empty_since = None  # though replacing the only item of a batch emptied it in passing
        self.hand()

    def replace(self, item: Item, now: float) -> bool:
        old = self.older(item)
        if self.coalescing:
            for lot in self.leased:
                for other in lot.left:
                    other.superseded |= other.key == item.key
        if old is None:
            return False
        lot = self.find(old)
        rest = [other for other in lot.items if other is not old]
        if lot.attempts or self.size([*rest, item]) > self.size_max:
            self.leave(lot, [old], DropReason.SUPERSEDED, now)
            return False
        lot.items[lot.items.index(old)] = item
        old.settle(Status.DROPPED, DropReason.SUPERSEDED)
        self.told.append(((old,), DropReason.SUPERSEDED))
        if lot.where == "open" and self.size(lot.items) >= self.size_max:
            self.cut(now)
        return True

    def append(self, item: Item, now: float) -> None:
        if self.open is not None and self.size([*self.open.items, item]) > self.size_max:
            self.cut(now)
        lot = self.open
        if lot is None:
            lot = self.new_lot(now, now + self.o.batch_age_max)
        lot.items.append(item)
        if len(lot.items) >= self.items_max or self.size(lot.items) >= self.size_max:
            self.cut(now)

    def new_lot(self, now: float, due: float, *, synthetic: bool = False) -> Lot:
        lot = Lot(self.next_id, now, due, synthetic=synthetic)
        self.next_id += 1
        self.lots.append(lot)
        return lot

    def cut(self, now: float) -> None:
        if self.open is not None:
            self.batches += 1
            self.hurry = False
            lot = self.open
            lot.where, lot.due = "waiting", now

    def drop_oldest(self) -> None:
        candidates = (
            [lot for lot in self.at("waiting") if not lot.synthetic]
            or [lot for lot in self.leased if not lot.doomed and not lot.synthetic]
            or self.at("open")
        )
        lot = min(candidates, key=lambda lot: lot.id)
        if lot.where == "leased":
            lot.doomed = True
        else:
            self.leave(lot, list(lot.items), DropReason.FULL, math.nan)

    # Items out

    def leave(self, lot: Lot, items: list[Item], reason: DropReason, now: float) -> None:
        """*items* leave a batch that is with no SendFn."""
        for item in items:
            item.settle(Status.DROPPED, reason)
        self.told.append((tuple(items), reason))
        lot.items = lot.left
        if not lot.items:
            self.lots.remove(lot)
        self.idle(now)

    def idle(self, now: float) -> None:
        if not self.lots and self.empty_since is None:
            self.empty_since = now

    def hand(self) -> None:
        """Nobody overtakes: the head, and only then the next."""
        while self.queue and self.room_for(1, self.size([self.queue[0].item])):
            self.queue[0].granted = True

    def expire(self, now: float) -> None:
        age = self.o.item_age_max
        if age is None:
            return
        stale = {lot.id: [item for item in lot.items if item.at + age <= now] for lot in self.unleased}
        for lot in self.unleased:
            if stale[lot.id]:
                self.leave(lot, stale[lot.id], DropReason.EXPIRED, now)
        if any(stale.values()):
            self.hand()

    def expires_at(self) -> float:
        age = math.inf if self.o.item_age_max is None else self.o.item_age_max
        return min((item.at + age for lot in self.unleased for item in lot.items), default=math.inf)

    def withdraw(self, item: Item, now: float) -> bool:
        if item.fate is not None or self.find(item).where == "leased":
            return False
        self.leave(self.find(item), [item], DropReason.CANCELLED, now)
        self.hand()
        return True

    # Batches out

    def due_at(self) -> float:
        """When the next batch, or heartbeat, can be leased; -inf: at any time."""
        if len(self.leased) >= self.o.max_leases:
            return math.inf
        waiting = self.at("waiting")
        early = self.hurry or bool(self.queue)
        if self.o.fifo and waiting:
            at = min(waiting, key=lambda lot: lot.id).due
        else:
            dues = [lot.due for lot in waiting]
            if self.open is not None:
                dues.append(-math.inf if early else self.open.due)
            at = min(dues, default=math.inf)
        if self.heartbeat is not None and not self.closed and not self.lots:
            assert self.empty_since is not None
            at = self.empty_since + self.heartbeat
        return max(at, self.hold_until)

    def take(self, now: float) -> Lot | None:
        """Lease; the caller has made sure of the token."""
        if len(self.leased) >= self.o.max_leases or now < self.hold_until:
            return None
        self.expire(now)
        if self.due_at() > now:
            return None
        due = [lot for lot in self.at("waiting") if lot.due <= now]
        if due:
            lot = min(due, key=lambda lot: (0 if self.o.fifo else lot.due, lot.id))
        elif self.open is not None:
            lot = self.open
            self.cut(now)
        else:
            lot = self.new_lot(now, now, synthetic=True)
            self.heartbeats += 1
            self.empty_since = None
        self.hurry = False
        lot.where = "leased"
        lot.attempts += 1
        lot.marks = {}
        self.attempts += 1
        if lot.attempts == 1:
            lot.first_at = now
        else:
            self.retries += 1
        return lot

    # Leases back

    def mark_done(self, lot: Lot, positions: set[int]) -> None:
        fresh = [position for position in positions if lot.sent[position].fate is None]
        for position in fresh:
            lot.marks.pop(position, None)
            lot.sent[position].settle(Status.DELIVERED)
        if fresh:
            self.hand()

    def end(
        self, lot: Lot, error: Exception | None, results: list[Any] | None, now: float
    ) -> list[tuple[Item, Exception]]:
        """What failed, each with its own error; settles what did not."""
        failures: list[tuple[Item, Exception]] = []
        for position, item in enumerate(lot.sent):
            if item.fate is not None:
                continue
            cause = lot.marks.get(position, error)
            if cause is not None:
                failures.append((item, cause))
            else:
                item.settle(Status.DELIVERED, None if results is None else results[position])
        lot.items = lot.left
        asked = [asked_for(cause) for _, cause in failures] + [asked_for(error)]
        if failures or (lot.synthetic and error is not None):
            self.hold_until = max([self.hold_until, *(now + seconds for seconds in asked if seconds >= 0)])
        return failures

    def delivered(self, lot: Lot, now: float) -> None:
        self.lots.remove(lot)
        self.idle(now)
        self.hand()

    def judge(
        self,
        lot: Lot,
        failures: list[tuple[Item, Exception]],
        error: Exception | None,
        verdict: bool | None,
        now: float,
    ) -> None:
        delays: list[float] = []
        dropped: list[Item] = []
        failed: list[Item] = []
        reason = DropReason.SUPERSEDED
        if lot.doomed or self.cancelled:
            reason = DropReason.CANCELLED if self.cancelled else DropReason.FULL
            dropped = [item for item, _ in failures]
        else:
            for item, cause in failures:
                delay = self.delay(cause, lot, verdict, now)
                if item.superseded:
                    dropped.append(item)
                elif delay is None:
                    failed.append(item)
                    item.settle(Status.FAILED, cause)
                else:
                    delays.append(delay)
            if lot.synthetic and error is not None and not self.closed:
                delays = [d for d in [self.delay(error, lot, verdict, now)] if d is not None]
        for item in dropped:
            item.settle(Status.DROPPED, reason)
        if dropped:
            self.told.append((tuple(dropped), reason))
        if failed:
            self.told.append((tuple(failed), DropReason.FAILED))
        lot.items = lot.left
        if delays:
            lot.where, lot.doomed, lot.due = "waiting", False, now + max(delays)
        else:
            self.lots.remove(lot)
        self.idle(now)
        self.expire(now)
        self.hand()

    def delay(self, error: Exception, lot: Lot, verdict: bool | None, now: float) -> float | None:
        policy = self.verdicts
        if verdict is False or policy is None or isinstance(error, BadResults):
            return None
        if verdict is None and not transient(error):
            return None
        if policy.attempts is not None and lot.attempts >= policy.attempts:
            return None
        wait = max(policy.wait, asked_for(error))
        return None if policy.before is not None and now - lot.first_at + wait >= policy.before else wait

    # Ends

    def close(self, now: float) -> None:
        if not self.closed:
            self.cut(now)
            self.closed = True
            self.lots = [lot for lot in self.lots if not lot.synthetic or lot.where == "leased"]
            self.senders = self.handed

    def drop_waiting(self, reason: DropReason, now: float) -> None:
        for lot in self.unleased:
            self.leave(lot, list(lot.items), reason, now)

    def cancel(self, now: float) -> None:
        self.close(now)
        if not self.cancelled:
            self.cancelled = True
            self.drop_waiting(DropReason.CANCELLED, now)

    def statistics(self) -> ChannelStatistics:
        unleased = [item for lot in self.unleased for item in lot.left]
        leased = [item for lot in self.leased if not lot.doomed for item in lot.left]
        doomed = [item for lot in self.leased if lot.doomed for item in lot.left]

        def count(holds: Callable[[Fate], bool]) -> int:
            return sum(1 for item in self.everything if item.fate is not None and holds(item.fate))

        return ChannelStatistics(
            unleased_items=len(unleased),
            unleased_size=self.size(unleased),
            leased_items=len(leased),
            leased_size=self.size(leased),
            dropped_leased_items=len(doomed),
            dropped_leased_size=self.size(doomed),
            leases=len(self.leased),
            waiters=len(self.senders),
            accepted=len(self.everything),
            delivered=count(lambda fate: fate[0] is Status.DELIVERED),
            failed=count(lambda fate: fate[0] is Status.FAILED),
            dropped={
                reason: count(lambda fate, reason=reason: fate == (Status.DROPPED, reason))  # type: ignore[misc]
                for reason in DropReason
            },
            batches=self.batches,
            attempts=self.attempts,
            retries=self.retries,
            heartbeats=self.heartbeats,
        )


def transient(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(transient, error.exceptions))
    return isinstance(error, TransientError)


def asked_for(error: BaseException | None) -> float:
    """-inf: for nothing."""
    if isinstance(error, BaseExceptionGroup):
        return max(map(asked_for, error.exceptions))
    return error.seconds if isinstance(error, RetryAfter) else -math.inf
