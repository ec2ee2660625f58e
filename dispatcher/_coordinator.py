"""
One channel's decisions: who may enter, what is sent when, and what becomes of what failed.

Rules of this room. It reads no clock and waits for nothing. The shell calls one step after another,
each with the time, and then looks at what there is to do: hooks to call (`told`), a batch that a free
worker should take, a moment at which to be woken (`outlook`). Steps that hand room to a
blocked sender or an outcome to a receipt do so through `Blocked.wake` and `Ticket.settle`, which only
schedule. Refusals are returned; the shell raises.

Room. While `items` is shorter than `limit`, an item may be appended to it, unasked. `limit` is 0 whenever
something has to be looked at: there is no open batch yet, the next item would be its last, the buffer
would be full, somebody waits, or an option needs to see every item. What was appended counts as accepted.
(A list's own length and append are the two quickest things there are; a countdown costs a third more.)
"""

import math
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic

from typing_extensions import TypeVar

from dispatcher.buffer.batch import Batch, Watch
from dispatcher.buffer.buffer import Buffer, Failure
from dispatcher.buffer.full import BlockNewItems, InfiniteGrowth
from dispatcher.buffer.options import BufferOptions
from dispatcher.buffer.outcome import DropReason, Ticket
from dispatcher.buffer.stats import ChannelStatistics
from dispatcher.errors import (
    AddError,
    BadItemSize,
    BadResults,
    ItemTooLarge,
    ItemTooSmall,
    RetryAfter,
    SendCancelled,
)
from dispatcher.typing import Policy

__all__ = ["Blocked", "Coordinator"]

T = TypeVar("T")

YIELD_EVERY = 1000
"""A sender that never has to wait lets others run after so many items."""


class Blocked:
    """A sender that waits for room; the shell subclasses it to be woken."""

    __slots__ = ("granted", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.granted = False

    def wake(self) -> None:
        """There is room, kept for this one, or the channel was closed; called once."""

    def turn(self) -> None:
        """Nobody who waited longer has yet to enter (`Coordinator.may_enter`), or the channel was closed."""


class Coordinator(Generic[T]):
    """
    The state of one channel, complete; the shell holds none of its own.

    Args:
        options: Checked already.

        run: Prefix of the batches' keys, unique over processes.

        policy: Judges failed attempts; None: there is one attempt.

        heartbeat_every: Seconds of emptiness until a heartbeat; None: none.

        limited: Each attempt costs a token.
    """

    __slots__ = (
        "_accepted",
        "_base",
        "_batch_room",
        "_blocking",
        "_bounds",
        "_bounds_items",
        "_coalesce_by",
        "_cut_since_yield",
        "_handed",
        "_heartbeat_every",
        "_hold_until",
        "_idle_since",
        "_item_size",
        "_item_size_limit",
        "_max_leases",
        "_nothing",
        "_policy",
        "_queue",
        "_reserved_items",
        "_reserved_size",
        "_unbounded",
        "_wanted",
        "_yielded_at",
        "acquiring",
        "buffer",
        "cancelled",
        "closed",
        "expiring",
        "faults",
        "halted",
        "items",
        "limit",
        "limited",
        "per_item",
        "token",
    )

    def __init__(
        self,
        options: BufferOptions[T],
        *,
        run: str,
        policy: Policy | None,
        heartbeat_every: float | None,
        limited: bool,
    ) -> None:
        self._policy = policy
        self._heartbeat_every = heartbeat_every
        self._idle_since = 0.0
        self.buffer: Buffer[T] = Buffer(options, run)

        self._max_leases = options.max_leases
        self._bounds = options.bounds
        self._bounds_items = self._bounds.items
        self._blocking = isinstance(options.full_behavior, BlockNewItems)
        self._unbounded = isinstance(options.full_behavior, InfiniteGrowth)
        self._batch_room = options.batch_items_max or sys.maxsize
        self._coalesce_by = options.coalesce_by
        self._item_size = options.item_size
        self._item_size_limit = options.item_size_limit
        self.expiring = options.item_age_max is not None
        self.per_item = not (
            options.item_size is None and options.coalesce_by is None and options.item_age_max is None
        )
        """Every item needs a ticket."""

        self._nothing: list[T] = []
        self.items = self._nothing
        self.limit = 0
        self._base = 0
        self._accepted = 0
        self._yielded_at = 0
        self._cut_since_yield = False

        self._queue: OrderedDict[Blocked, None] = OrderedDict()
        # Who was handed room, and has not run yet; in order, too.
        self._handed: OrderedDict[Blocked, None] = OrderedDict()
        # Room that is taken, though its items are not in yet: handed over, or reserved.
        self._reserved_items = 0
        self._reserved_size = 0
        self._wanted = False

        self.limited = limited
        self.token = False
        self.acquiring = False
        self._hold_until = -math.inf

        self.closed = False
        self.cancelled = False
        self.halted = False
        self.faults: list[Exception] = []
        """What a retry policy raised; for the log."""

    def begin(self, now: float) -> None:
        """The channel is open from now on; heartbeats count from here."""
        self._idle_since = now

    # Items in

    def weigh(self, item: T, ticket: Ticket) -> AddError | None:
        """
        Ask the options' functions about *item*, each once, and note the answers in *ticket*.

        Returns:
            Why no batch can take it, or None. What the functions raise comes out as it is.
        """
        if self._item_size is not None:
            size = self._item_size(item)
            if not isinstance(size, int) or isinstance(size, bool):
                return BadItemSize(size)
            if size < 1:
                return ItemTooSmall(size)
            if size > self._item_size_limit:
                return ItemTooLarge(size, self._item_size_limit)
            ticket.size = size
        if self._coalesce_by is not None:
            key = self._coalesce_by(item)
            hash(key)
            # Their comparison is the user's code, too: what it raises has to come out here.
            self.buffer.replaceable(key)
            ticket.key = key
            ticket.superseded = False
        return None

    def fits(self, ticket: Ticket | None, now: float) -> bool:
        """Whether an item can be accepted now; False: its sender has to wait."""
        if not self._blocking:
            return True
        if not self.per_item:
            # Whoever was handed room, and has not run yet, came earlier.
            buffer = self.buffer
            live = buffer.unleased_items + buffer.leased_items + self._reserved_items
            return not self._queue and not self._handed and live < self._bounds_items
        if self._fits_weighed(ticket):
            return True
        # What an expired item of the same key leaves is not what replacing it would have taken.
        return self._expire(now) and self._fits_weighed(ticket)

    def _fits_weighed(self, ticket: Ticket | None) -> bool:
        items, size = self._needs(ticket)
        if (self._queue or self._handed) and (items > 0 or size > 0):
            return False
        return self._fits(items, size)

    def _needs(self, ticket: Ticket | None) -> tuple[int, int]:
        """How much fuller the buffer gets."""
        size = ticket.size if ticket is not None and self._item_size is not None else 0
        if ticket is not None and self._coalesce_by is not None:
            old = self.buffer.replaceable(ticket.key)
            if old is not None:
                return 0, size - old.size if self._item_size is not None else 0
        return 1, size

    def _fits(self, items: int, size: int) -> bool:
        buffer, bounds = self.buffer, self._bounds
        # Only DropOldestBatch marks leased batches, and there they do not count.
        live = buffer.unleased_items + buffer.leased_items + self._reserved_items
        live_size = buffer.unleased_size + buffer.leased_size + self._reserved_size
        return live + items <= bounds.items and live_size + size <= bounds.size

    def accept(self, item: T, ticket: Ticket | None, now: float, accepted_at: float | None = None) -> None:
        """
        Take an item that `fits`, or for which room was handed over; drops others if that is the policy.

        Args:
            item: To take.

            ticket: Its ticket, if it has one; `weigh` has filled it in.

            now: The time.

            accepted_at: When it was accepted, if that was earlier (it comes out of a store).
        """
        buffer = self.buffer
        if self.limit:
            self._revoke()
        if not self._blocking and not self._unbounded and not self._fits(*self._needs(ticket)):
            self._expire(now)
            while not self._fits(*self._needs(ticket)) and buffer.drop_oldest():
                pass
        self._accepted += 1
        batches = buffer.batches
        size = ticket.size if ticket is not None and self._item_size is not None else 0
        buffer.add(item, ticket, size, now, accepted_at)
        if buffer.batches != batches:
            self._cut_since_yield = True
            self._wanted = False
        if self._queue:  # room handed over may not have been needed: the item took an older one's place
            self.hand_room()
        elif buffer.open is not None:
            self._grant()

    def _revoke(self) -> None:
        """Take the unused room back; before anything that may change the open batch."""
        self._accepted += len(self.items) - self._base
        self.items = self._nothing
        self.limit = self._base = 0

    def _grant(self) -> None:
        """Let items be appended unasked, as many as nothing has to be looked at for."""
        if self.limit:
            self._revoke()
        lot = self.buffer.open
        if lot is None or self.per_item or self._queue or self._handed or self.closed:
            return
        room = self._batch_room - 1 - len(lot.items)
        if not self._unbounded:
            buffer = self.buffer
            live = buffer.unleased_items + buffer.leased_items + self._reserved_items
            free = self._bounds_items - live
            if free < room:
                room = int(free)
        if room > 0:
            self.items = lot.items
            self._base = len(lot.items)
            self.limit = self._base + (room if room < YIELD_EVERY else YIELD_EVERY)

    @property
    def room(self) -> int:
        """How many items may be appended unasked."""
        return self.limit - len(self.items)

    @property
    def yield_owed(self) -> bool:
        """Whether a sender that may wait should let others run before its next item."""
        return self._cut_since_yield or self.accepted - self._yielded_at >= YIELD_EVERY

    def yielded(self) -> None:
        """Others ran."""
        self._cut_since_yield = False
        self._yielded_at = self.accepted

    @property
    def accepted(self) -> int:
        """Items taken so far."""
        return self._accepted + len(self.items) - self._base

    # Senders that wait

    def block(self, blocked: Blocked) -> None:
        """Put a sender at the end of the queue; the open batch is due early while anyone is in it."""
        self._revoke()
        self._queue[blocked] = None

    def unblock(self, blocked: Blocked) -> None:
        """
        Take a sender out: it is about to add its item, or was cancelled, or sees that all is closed.

        Room that was handed to it is free again; the shell calls `accept` at once, or `hand_room`.
        """
        if blocked.granted:
            blocked.granted = False
            del self._handed[blocked]
            self._reserved_items -= 1
            self._reserved_size -= blocked.size
            if self._handed:
                next(iter(self._handed)).turn()
        else:
            self._queue.pop(blocked, None)

    def reserve(self, size: int, ticket: Ticket | None, now: float) -> bool:
        """Keep room for an item whose sender has something to do first; False if there is none."""
        if not self.fits(ticket, now):
            return False
        self._revoke()
        self._reserved_items += 1
        self._reserved_size += size
        self._grant()
        return True

    def unreserve(self, size: int) -> None:
        """That is done: the shell calls `accept` at once, or `hand_room`."""
        self._reserved_items -= 1
        self._reserved_size -= size

    def may_enter(self, blocked: Blocked) -> bool:
        """Whether nobody who waited longer has yet to add its item; for shells that run in any order."""
        return self.closed or next(iter(self._handed)) is blocked

    def hand_room(self) -> None:
        """Hand what room there is to the senders that wait, in their order."""
        queue = self._queue
        while queue:
            blocked = next(iter(queue))
            if not self._fits(1, blocked.size):
                return
            del queue[blocked]
            blocked.granted = True
            self._handed[blocked] = None
            self._reserved_items += 1
            self._reserved_size += blocked.size
            blocked.wake()

    def _crowded(self) -> bool:
        """Whether somebody waits for room. Who waits only for those before it to add theirs does not."""
        return bool(self._queue) and not self._fits(1, next(iter(self._queue)).size)

    def refuse(self) -> None:
        """A sender that cannot wait was turned away: the open batch, if there is one, is due early."""
        self._wanted = self.buffer.open is not None

    def withdraw(self, ticket: Ticket, now: float) -> bool:
        """Take one item out at its owner's wish; False if it has its outcome or is with a SendFn."""
        self._revoke()
        gone = self.buffer.withdraw(ticket)
        if gone:
            self._after_leaving(now)
        return gone

    # Batches out

    def _heartbeat_at(self) -> float:
        if self._heartbeat_every is None or self.closed or not self.buffer.empty:
            return math.inf
        return self._idle_since + self._heartbeat_every

    def outlook(self, now: float) -> float:
        """
        When there will be something to do: ``-inf`` if a worker has something to do now, else the time
        at which the passing of time alone brings something; ``inf``: never.
        """
        buffer = self.buffer
        at = math.inf
        if len(buffer.leased) < self._max_leases and not self.acquiring:
            at = buffer.next_at(early=self._wanted or self._crowded())
            if self._heartbeat_every is not None:
                at = min(at, self._heartbeat_at())
            if at < self._hold_until:
                at = self._hold_until
            if at <= now:
                return -math.inf
        if self.expiring:
            at = min(at, buffer.expires_at())
        return at

    def wants_token(self, now: float) -> bool:
        """Whether the asking worker shall acquire one; it sets `acquiring` while it does."""
        return self.limited and not self.token and self.outlook(now) == -math.inf

    def take(self, now: float) -> Batch[T] | None:
        """Lease the next batch that is due, if a lease is free (and a token there, where one is needed)."""
        buffer = self.buffer
        self.yielded()
        if (
            len(buffer.leased) >= self._max_leases
            or now < self._hold_until
            or (self.limited and not self.token)
        ):
            return None
        if self.expiring:
            self._expire(now)
        if self.limit:
            self._revoke()
        lot = buffer.next_due(now, early=self._wanted or self._crowded())
        if lot is None and self._heartbeat_every is not None and self._heartbeat_at() <= now:
            lot = buffer.synthetic(now)
        batch = None
        if lot is not None:
            batch = buffer.lease(lot, self, now)
            self.token = False
            self._wanted = False
        if buffer.open is not None:
            self._grant()
        return batch

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._expire(now)

    def _expire(self, now: float) -> bool:
        """Drop what is too old; whether there was anything. (No room is granted where items have an age.)"""
        gone = self.expiring and self.buffer.expire(now)
        if gone:
            self._after_leaving(now)
        return gone

    # Leases back

    def mark_done(self, batch: Batch[Any], positions: Any) -> None:  # noqa: ANN401 - see batch.Owner
        """A SendFn delivered some of its items before its end."""
        self.buffer.mark_done(batch, positions)
        self.hand_room()

    def end(self, batch: Batch[T], error: Exception | None, results: object, now: float) -> Failure[T] | None:
        """
        Take a lease back.

        Args:
            batch: The attempt.

            error: What the SendFn raised, None if it returned.

            results: What it returned.

            now: The time.

        Returns:
            What failed; ask the hooks, then `judge`. None if nothing did.

        Raises:
            ForeignBatch: If *batch* is not leased from here.
        """
        checked: Sequence[Any] | None = None
        if error is None and results is not None and _wants_results(batch):
            try:
                checked = _checked(results, len(batch.items))
            except BadResults as bad:
                error = bad
        failure = self.buffer.end(batch, error, checked)
        if failure is None:
            self._after_leaving(now)
        else:
            self._hold(failure.batch, now)
        return failure

    def judge(self, failure: Failure[T], verdict: bool | None, now: float) -> None:
        """Say what becomes of what failed; *verdict* is the hook's."""
        lot, view = failure.lot, failure.batch
        failed: set[int] = set()
        dropped: set[int] = set()
        reason = DropReason.SUPERSEDED
        retry_at = math.inf
        if self.cancelled or lot.dropped:
            reason = DropReason.CANCELLED if self.cancelled else DropReason.FULL
            dropped.update(range(len(lot.items)))
        else:
            failed, dropped, retry_at = self._sort(failure, verdict, now)
            if lot.synthetic and view.error is not None and not self.closed:
                delay = self._delay(view.error, failure, verdict, now)
                retry_at = math.inf if delay is None else now + delay
        self.buffer.resolve(
            failure, failed=failed, dropped=dropped, reason=reason, retry_at=retry_at, now=now
        )
        self._expire(now)
        self._after_leaving(now)

    def _sort(
        self, failure: Failure[T], verdict: bool | None, now: float
    ) -> tuple[set[int], set[int], float]:
        """Who failed for good, who is superseded, and when the others are due again."""
        tickets = failure.lot.pad()
        failed: set[int] = set()
        superseded: set[int] = set()
        delays: dict[int, float | None] = {}  # by the error's identity: one draw of chance for each
        longest = -math.inf
        for position, error in failure.batch.errors.items():
            ticket = tickets[position]
            if ticket is not None and self._coalesce_by is not None and ticket.superseded:
                superseded.add(position)
                continue
            if id(error) not in delays:
                delays[id(error)] = self._delay(error, failure, verdict, now)
            delay = delays[id(error)]
            if delay is None:
                failed.add(position)
            else:
                longest = max(longest, delay)
        return failed, superseded, now + longest if longest >= 0 else math.inf

    def _delay(self, error: Exception, failure: Failure[T], verdict: bool | None, now: float) -> float | None:
        if self.halted and isinstance(error, SendCancelled):
            return 0.0  # the halt's own doing, and no attempt of the batch's
        if verdict is False or self._policy is None or isinstance(error, BadResults):
            return None
        lot = failure.lot
        try:
            delay = self._policy.next_delay(
                error,
                attempt=lot.attempts,
                first_at=lot.first_leased_at,
                now=now,
                at_least=asked_for(error) or 0.0,
                wanted=verdict is True,
            )
        except Exception as fault:
            self.faults.append(fault)
            return None
        if delay is None or 0.0 <= delay < math.inf:
            return delay
        # Waiting for ever, or for nan, would keep the channel from ever being drained.
        msg = f"a retry policy answers with seconds of 0 or more, finite, or None; got {delay!r}"
        self.faults.append(ValueError(msg))
        return None

    def _hold(self, view: Batch[T], now: float) -> None:
        """Obey a RetryAfter, wherever it stands."""
        # By identity: users' errors need not be hashable.
        errors = {id(error): error for error in (*view.errors.values(), view.error) if error is not None}
        asked = [seconds for error in errors.values() if (seconds := asked_for(error)) is not None]
        if asked:
            self._hold_until = max(self._hold_until, now + max(asked))

    def _after_leaving(self, now: float) -> None:
        """Something left the buffer or a lease: room for those who wait, perhaps idleness."""
        if self._heartbeat_every is not None and self.buffer.empty:
            self._idle_since = now
        if self._queue:
            self.hand_room()
        if len(self.items) >= self.limit and self.buffer.open is not None:
            self._grant()

    # Ends

    def cut(self, now: float) -> None:
        """Close the open batch; it is due at once."""
        self._revoke()
        self.buffer.cut(now)
        self._wanted = False

    def watch(self, watch: Watch) -> None:
        """Let *watch* count down with every batch there is, the open one left out."""
        self.buffer.watch(watch)

    def close(self, now: float) -> None:
        """Take no more; what is there is sent. Senders that wait are woken to see it."""
        if self.closed:
            return
        self.cut(now)
        self.closed = True
        self.buffer.discard_heartbeats()
        queue, self._queue = self._queue, OrderedDict()
        for blocked in queue:
            blocked.wake()
        for blocked in self._handed:
            blocked.turn()

    def cancel(self, now: float) -> None:
        """Take no more, and drop what is with no SendFn; attempts that fail from here on are not repeated."""
        self.close(now)
        if not self.cancelled:
            self.cancelled = True
            self.buffer.drop_waiting(DropReason.CANCELLED)

    def halt(self, now: float) -> None:
        """Take no more and send no more; what is with a SendFn ends, and what fails there waits."""
        self.close(now)
        self.halted = True
        self._hold_until = math.inf

    def keep(self, now: float) -> None:
        """After `halt`: what waits is in a store now, and leaves as KEPT."""
        self.cancelled = True
        self.buffer.drop_waiting(DropReason.KEPT)
        self._after_leaving(now)

    @property
    def free(self) -> float:
        """How many items fit in now, by their number; 0 if somebody waits."""
        if self._queue or self._handed:
            return 0
        buffer = self.buffer
        live = buffer.unleased_items + buffer.leased_items + self._reserved_items
        return max(0, self._bounds_items - live)

    @property
    def idle(self) -> bool:
        """Nothing is buffered or in flight."""
        return self.buffer.empty

    @property
    def drained(self) -> bool:
        """Closed, and everything is out."""
        return self.closed and self.buffer.empty

    @property
    def waiters(self) -> int:
        """Senders that wait, those with room handed to them included."""
        return len(self._queue) + len(self._handed)

    def statistics(self) -> ChannelStatistics:
        """All counts, as of now."""
        buffer = self.buffer
        dropped: Mapping[DropReason, int] = MappingProxyType(dict(buffer.dropped))
        return ChannelStatistics(
            unleased_items=buffer.unleased_items,
            unleased_size=buffer.unleased_size,
            leased_items=buffer.leased_items,
            leased_size=buffer.leased_size,
            dropped_leased_items=buffer.marked_items,
            dropped_leased_size=buffer.marked_size,
            leases=len(buffer.leased),
            waiters=self.waiters,
            accepted=self.accepted,
            delivered=buffer.delivered,
            failed=buffer.failed,
            dropped=dropped,
            batches=buffer.batches,
            attempts=buffer.attempts,
            retries=buffer.retries,
            heartbeats=buffer.heartbeats,
        )


def asked_for(error: BaseException) -> float | None:
    """The longest RetryAfter in *error*, which may be a group; None if there is none."""
    if isinstance(error, RetryAfter):
        seconds = getattr(error, "seconds", None)  # a subclass may have left it out, or changed it
        return seconds if isinstance(seconds, int | float) and 0 <= seconds < math.inf else 0.0
    if isinstance(error, BaseExceptionGroup):
        found = [seconds for leaf in error.exceptions if (seconds := asked_for(leaf)) is not None]
        return max(found, default=None)
    return None


def _wants_results(batch: Batch[Any]) -> bool:
    tickets = batch._lot.tickets  # noqa: SLF001 - one core
    return any(ticket is not None and ticket.wants_result for ticket in tickets)


def _checked(results: object, length: int) -> Sequence[Any]:
    """The results as a list, one per item."""
    wrong = f"a SendFn returns a sequence of one result per item, or None; got {type(results).__name__}"
    if isinstance(results, str | bytes | bytearray | memoryview | Mapping):
        raise BadResults(wrong)
    try:
        if not (hasattr(results, "__len__") and hasattr(results, "__getitem__")):
            raise BadResults(wrong)  # noqa: TRY301 - hasattr runs the user's code, too
        entries: list[Any] = list(results)  # type: ignore[call-overload]
    except BadResults:
        raise
    except Exception as error:
        msg = f"the results of a SendFn could not be read: {type(error).__name__}"
        raise BadResults(msg) from error
    if len(entries) != length:
        msg = f"a SendFn returned {len(entries)} results for a batch of {length}"
        raise BadResults(msg)
    return entries
