"""
The laws that a channel's core can break, under drawn options and every act of its API.

The machine drives a `Coordinator` as the shell does and a naive model beside it, and compares all that
can be seen after every step. HYPOTHESIS_PROFILE=long (see the end) lets it run for minutes.
"""

import ast
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tenacity
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import dispatcher
from dispatcher._coordinator import Blocked, Coordinator
from dispatcher.buffer import Batch, BlockNewItems, DropOldestBatch, DropReason, InfiniteGrowth
from dispatcher.buffer.batch import Watch
from dispatcher.buffer.options import BufferOptions
from dispatcher.buffer.outcome import Outcome, Ticket
from dispatcher.errors import (
    AddError,
    BadResults,
    ForeignBatch,
    RetryAfter,
    StaleBatch,
    TransientError,
    UnknownPosition,
)
from dispatcher.retry import RetryPolicy, is_transient
from tests.dispatcher.naive import Item, Lot, Naive, Sender, Verdicts

ITEM_SIZES = st.integers(1, 4)
KEYS = st.integers(0, 2)
PICK = st.integers(0, 1000)
POSITIONS = st.sets(st.integers(0, 4), min_size=1, max_size=3)
BAD_RESULTS: list[Any] = ["text", b"bytes", {}, 17, [1] * 99, iter([])]


@dataclasses.dataclass  # attrs would give it a hash
class Unhashable(TransientError):
    """What users' errors may be: equal by value, so without a hash."""

    why: str = ""


class WithResult(Ticket):
    wants_result = True


class FakeSender(Blocked):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


class Flush(Watch):
    def __init__(self) -> None:
        super().__init__()
        self.lots: list[Lot] = []


@st.composite
def buffer_options(draw: st.DrawFn) -> BufferOptions[Item]:
    items_max = draw(st.sampled_from([None, 1, 2, 3, 5]))
    sized = draw(st.booleans())
    size_max = draw(st.sampled_from([None, 4, 7])) if sized else None
    bound = draw(st.sampled_from([0, 1, 2, 5])) + (items_max or 1)
    size_bound = draw(st.sampled_from([None, 0, 1, 6])) if sized else None
    if size_bound is not None:
        size_bound += size_max or 4
        bound = draw(st.sampled_from([bound, math.inf]))
    behavior = draw(st.sampled_from([BlockNewItems, BlockNewItems, DropOldestBatch, InfiniteGrowth]))
    full = InfiniteGrowth() if behavior is InfiniteGrowth else behavior(bound, size_bound)
    fifo = draw(st.booleans())
    return BufferOptions(
        batch_items_max=items_max,
        batch_size_max=size_max,
        item_size=(lambda item: item.size) if sized else None,
        batch_age_max=draw(st.sampled_from([0, 1, 4, math.inf])),
        max_leases=1 if fifo else draw(st.integers(1, 3)),
        full_behavior=full,
        fifo=fifo,
        item_age_max=draw(st.sampled_from([None, None, 2, 6])),
        coalesce_by=(lambda item: item.key) if draw(st.booleans()) else None,
    )


def policies() -> st.SearchStrategy[Verdicts | None]:
    made = st.builds(
        Verdicts,
        wait=st.sampled_from([0.0, 1.0, 3.0]),
        attempts=st.sampled_from([None, 2, 3]),
        before=st.sampled_from([None, 5.0]),
    )
    return st.none() | made | made


def as_policy(verdicts: Verdicts | None) -> RetryPolicy | None:
    if verdicts is None:
        return None
    stops: list[Any] = [tenacity.stop_never]
    if verdicts.attempts is not None:
        stops.append(tenacity.stop_after_attempt(verdicts.attempts))
    if verdicts.before is not None:
        stops.append(tenacity.stop_before_delay(verdicts.before))
    return RetryPolicy(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_fixed(verdicts.wait),
        stop=tenacity.stop_any(*stops),
    )


def errors() -> st.SearchStrategy[Exception]:
    single = st.one_of(
        st.builds(TransientError, st.just("t")),
        st.builds(TransientError, st.just("t")),
        st.builds(ValueError, st.just("p")),
        st.builds(Unhashable, st.just("u")),
        st.builds(RetryAfter, st.sampled_from([0, 2, 5])),
    )
    return single | st.lists(single, min_size=1, max_size=2).map(lambda some: ExceptionGroup("g", some))


class Laws(RuleBasedStateMachine):
    """Acts as the shell does; `check` compares after every step."""

    # Setting up

    @initialize(
        options=buffer_options(),
        verdicts=policies(),
        heartbeat=st.sampled_from([None, None, 3.0]),
        limited=st.booleans(),
    )
    def begin(
        self,
        options: BufferOptions[Item],
        verdicts: Verdicts | None,
        heartbeat: float | None,
        limited: bool,
    ) -> None:
        self.now = 100.0
        self.options = options
        self.core: Coordinator[Item] = Coordinator(
            options, run="run", policy=as_policy(verdicts), heartbeat_every=heartbeat, limited=limited
        )
        self.core.begin(self.now)
        self.model = Naive(options, verdicts, heartbeat, self.now)
        self.number = 0
        self.blocked: list[tuple[Sender, FakeSender]] = []
        self.leases: dict[int, tuple[Batch[Item], Lot]] = {}
        self.ended: list[Batch[Item]] = []
        self.keys: set[str] = set()
        self.seen: dict[Item, Outcome[Any]] = {}
        self.flushes: list[Flush] = []

    # Items in

    def new_item(self, size: int, key: int, with_result: bool) -> Item:
        item = Item(self.number, size, key)
        self.number += 1
        if with_result:
            item.ticket = WithResult()
        return item

    def weigh(self, item: Item) -> None:
        if self.core.per_item:
            if item.ticket is None:
                item.ticket = Ticket()
            assert self.core.weigh(item, item.ticket) is None

    def offer(self, item: Item, *, patient: bool) -> None:
        """As Channel.send or submit if *patient*, else as their nowait kin."""
        core, model = self.core, self.model
        if core.room:
            assert model.fits(item, self.now), "room was granted though the buffer is full"
            assert model.open is not None
            assert len(model.open.items) + 1 < model.items_max, "room was granted for a batch's last item"
            if item.ticket is None:
                core.items.append(item)
            else:  # as Channel._append
                lot = core.buffer.open
                assert lot is not None
                lot.pad()
                lot.items.append(item)
                lot.tickets.append(item.ticket)
                item.ticket.batch = lot
            model.accept(item, self.now)
            return
        self.weigh(item)
        fits = model.fits(item, self.now)
        assert core.fits(item.ticket, self.now) == fits
        if fits:
            core.accept(item, item.ticket, self.now)
            model.accept(item, self.now)
        elif patient:
            fake = FakeSender(item.size if model.sized else 0)
            sender = Sender(item)
            core.block(fake)
            model.senders.append(sender)
            self.blocked.append((sender, fake))
        else:
            core.refuse()
            model.hurry = model.open is not None

    def is_open(self) -> bool:
        return not self.core.closed

    @precondition(is_open)
    @rule(size=ITEM_SIZES, key=KEYS, with_result=st.booleans(), patient=st.booleans())
    def send(self, size: int, key: int, with_result: bool, patient: bool) -> None:
        self.offer(self.new_item(size, key, with_result), patient=patient)

    @precondition(is_open)
    @rule(sizes=st.lists(st.tuples(ITEM_SIZES, KEYS, st.booleans()), min_size=2, max_size=4))
    def send_many(self, sizes: list[tuple[int, int, bool]]) -> None:
        for size, key, with_result in sizes:
            self.offer(self.new_item(size, key, with_result), patient=True)
            self.check()

    @precondition(lambda self: any(fake.woken for _, fake in self.blocked))
    @rule(pick=PICK)
    def woken_sender_runs(self, pick: int) -> None:
        """Trio runs them in any order, so any of the woken may ask first; they enter in theirs."""
        woken = [pair for pair in self.blocked if pair[1].woken]
        sender, fake = pair = woken[pick % len(woken)]
        may = self.core.may_enter(fake)
        assert may == (self.core.closed or sender is self.model.senders[0])
        if not may:
            return
        self.blocked.remove(pair)
        self.core.unblock(fake)
        if self.core.closed:
            self.leave_queue(sender)
            return
        self.model.senders.remove(sender)
        self.core.accept(sender.item, sender.item.ticket, self.now)
        self.model.accept(sender.item, self.now)

    @precondition(lambda self: self.blocked)
    @rule(pick=PICK)
    def sender_is_cancelled(self, pick: int) -> None:
        sender, fake = pair = self.blocked[pick % len(self.blocked)]
        self.blocked.remove(pair)
        self.core.unblock(fake)
        self.core.hand_room()
        self.leave_queue(sender)

    @precondition(lambda self: self.is_open() and self.options.coalesce_by is None and self.model.blocking)
    @rule(size=ITEM_SIZES)
    def reserve(self, size: int) -> None:
        """As DurableChannel does while it writes: only with BlockNewItems, and without coalesce_by."""
        item = self.new_item(size, 0, with_result=False)
        self.weigh(item)
        fits = self.model.fits(item, self.now)
        assert self.core.reserve(self.model.size([item]), item.ticket, self.now) == fits
        if fits:
            self.model.reserved.append(item)

    @precondition(lambda self: self.model.reserved)
    @rule(pick=PICK, written=st.booleans())
    def reserved_item_is_written(self, pick: int, written: bool) -> None:
        item = self.model.reserved.pop(pick % len(self.model.reserved))
        self.core.unreserve(self.model.size([item]))
        if written and self.is_open():
            self.core.accept(item, item.ticket, self.now)
            self.model.accept(item, self.now)
        else:
            self.core.hand_room()
            self.model.hand()

    def leave_queue(self, sender: Sender) -> None:
        if sender in self.model.senders:
            self.model.senders.remove(sender)
        self.model.hand()

    @rule(pick=PICK)
    def withdraw(self, pick: int) -> None:
        items = [item for item in self.model.everything if item.ticket is not None and item.fate is None]
        if items:
            item = items[pick % len(items)]
            assert item.ticket is not None
            assert self.core.withdraw(item.ticket, self.now) == self.model.withdraw(item, self.now)

    # Batches out

    @precondition(lambda self: self.core.limited)
    @rule(granted=st.booleans())
    def limiter(self, granted: bool) -> None:
        core = self.core
        if core.acquiring:
            core.acquiring = False
            core.token = core.token or granted
        elif core.wants_token(self.now):
            core.acquiring = True
            assert core.outlook(self.now) > -math.inf, "a second task would acquire"

    @rule(token=st.booleans())
    def take(self, token: bool) -> None:
        core, model = self.core, self.model
        if core.limited and not core.token:
            if not token or core.acquiring:
                assert core.take(self.now) is None
                return
            core.token = True
        due = core.outlook(self.now) == -math.inf
        batch, lot = core.take(self.now), model.take(self.now)
        if lot is None:
            assert batch is None
            assert core.acquiring or core.outlook(self.now) > -math.inf, "due, and yet there is nothing"
            return
        assert batch is not None
        assert due or core.acquiring, "something was due, and the outlook missed it"
        assert not core.token
        self.compare_lease(batch, lot)
        lot.sent = batch.items
        self.leases[lot.id] = batch, lot

    @rule()
    def work(self) -> None:
        """As a worker and the keeper do together: to the next batch, whenever that is."""
        if self.core.outlook(self.now) > -math.inf:
            self.sleep()
        self.core.acquiring = False
        self.take(token=True)

    def compare_lease(self, batch: Batch[Item], lot: Lot) -> None:
        assert (batch.id, batch.items, batch.attempt) == (lot.id, tuple(lot.items), lot.attempts)
        assert (batch.size, batch.created_at) == (self.model.size(lot.items), lot.opened)
        assert batch.synthetic == lot.synthetic
        if lot.attempts == 1:
            assert batch.meta == {}
            batch.meta["of"] = lot.id
        assert batch.meta == {"of": lot.id}
        if lot.attempts > 1 and lot.sent == batch.items:
            assert batch.key == lot.key, "the same items, and another key"
        else:
            assert batch.key not in self.keys, "other items, and a known key"
            assert set(batch.items) <= set(lot.sent) or lot.attempts == 1, "a retried batch grew"
            self.keys.add(batch.key)
            lot.key = batch.key

    # Leases back

    def leased(self, pick: int) -> tuple[Batch[Item], Lot]:
        return self.leases[sorted(self.leases)[pick % len(self.leases)]]

    def has_items_leased(self) -> bool:
        return any(batch.items for batch, _ in self.leases.values())

    def leased_items(self, pick: int) -> tuple[Batch[Item], Lot]:
        pairs = [self.leases[n] for n in sorted(self.leases) if self.leases[n][0].items]
        return pairs[pick % len(pairs)]

    @precondition(has_items_leased)
    @rule(pick=PICK, positions=POSITIONS)
    def mark_done(self, pick: int, positions: set[int]) -> None:
        batch, lot = self.leased_items(pick)
        positions = {position % len(batch) for position in positions}
        batch.done(*positions)
        self.model.mark_done(lot, positions)

    @precondition(has_items_leased)
    @rule(pick=PICK, positions=POSITIONS, error=errors())
    def mark_failed(self, pick: int, positions: set[int], error: Exception) -> None:
        batch, lot = self.leased_items(pick)
        for position in {position % len(batch) for position in positions}:
            if lot.sent[position].fate is not None:
                with pytest.raises(StaleBatch):
                    batch.fail(position, error)
            else:
                batch.fail(position, error)
                lot.marks[position] = error

    @precondition(lambda self: self.leases)
    @rule(pick=PICK, results=st.sampled_from([None, None, "good", "good", *BAD_RESULTS]))
    def returns(self, pick: int, results: Any) -> None:
        batch, lot = self.leased(pick)
        self.end(batch, lot, None, [item.number for item in batch] if results == "good" else results)

    @precondition(lambda self: self.leases)
    @rule(
        pick=PICK,
        error=errors(),
        verdict=st.sampled_from([None, None, None, True, False]),
        hook=st.sampled_from([*[None] * 8, "send", "send", "close", "cancel"]),
    )
    def fail(self, pick: int, error: Exception, verdict: bool | None, hook: str | None) -> None:
        self.end(*self.leased(pick), error, None, verdict, hook)

    @rule(
        sizes=st.lists(st.tuples(ITEM_SIZES, KEYS, st.booleans()), max_size=4),
        done=st.sets(st.integers(0, 4), max_size=2),
        marked=st.sets(st.integers(0, 4), max_size=2),
        error=st.none() | errors(),
        verdict=st.sampled_from([None, None, True]),
    )
    def round_trip(
        self,
        sizes: list[tuple[int, int, bool]],
        done: set[int],
        marked: set[int],
        error: Exception | None,
        verdict: bool | None,
    ) -> None:
        """What mostly happens, in one rule: else most runs would hardly come to a second attempt."""
        if self.is_open():
            self.send_many(sizes)
        self.work()
        self.check()
        if self.has_items_leased():
            batch, _ = self.leased_items(len(self.leases) - 1)
            if done:
                self.mark_done(len(self.leases) - 1, done)
                self.check()
            if marked:
                self.mark_failed(len(self.leases) - 1, marked, TransientError("marked"))
            self.end(batch, self.leases[batch.id][1], error, None, verdict)

    def end(
        self,
        batch: Batch[Item],
        lot: Lot,
        error: Exception | None,
        results: Any,
        verdict: bool | None = None,
        hook: str | None = None,
    ) -> None:
        core, model = self.core, self.model
        del self.leases[lot.id]
        self.ended.append(batch)
        wanted = any(item.ticket is not None and item.ticket.wants_result for item in lot.sent)
        failure = core.end(batch, error, results, self.now)
        if not wanted:
            results = None
        elif not isinstance(results, list | None) or (results is not None and len(results) != len(batch)):
            results = None
            error = BadResults("any")
            if failure is not None:  # both sides have to talk of the same object
                error = failure.batch.error
                assert isinstance(error, BadResults)
        failures = model.end(lot, error, results, self.now)
        assert (failure is None) == (not failures and not (lot.synthetic and error is not None))
        if failure is None:
            model.delivered(lot, self.now)
            return
        view = failure.batch
        assert view.items == tuple(item for item, _ in failures)
        assert list(view.errors.values()) == [cause for _, cause in failures]
        assert view.size == model.size([item for item, _ in failures])
        assert view.key == batch.key
        self.compare_joined(view.error, error, [cause for _, cause in failures])
        if hook == "send" and not core.closed:
            self.offer(self.new_item(1, 0, with_result=True), patient=False)
        elif hook == "close":
            self.close()
        elif hook == "cancel":
            self.cancel()
        core.judge(failure, verdict, self.now)
        model.judge(lot, failures, error, verdict, self.now)

    def compare_joined(self, got: Exception | None, raised: Exception | None, marks: list[Exception]) -> None:
        if raised is not None:
            assert got is raised
        elif all(mark is marks[0] for mark in marks):
            assert got is marks[0]
        else:
            assert isinstance(got, ExceptionGroup)
            assert list(got.exceptions) == marks

    @precondition(lambda self: self.ended)
    @rule(pick=PICK, size=st.sampled_from([0, -1, 1000, 1.5, True, None]))
    def misuse(self, pick: int, size: Any) -> None:
        """What is refused leaves no trace: `check` follows."""
        late = self.ended[pick % len(self.ended)]
        with pytest.raises(ForeignBatch):
            self.core.end(late, None, None, self.now)
        for mark in (lambda: late.done(0), lambda: late.fail(0, ValueError("late"))):
            with pytest.raises(StaleBatch):
                mark()
        if self.leases:
            batch, _ = self.leased(pick)
            with pytest.raises(UnknownPosition):
                batch.done(0, len(batch))
            with pytest.raises(UnknownPosition):
                batch.fail(-1, ValueError("nowhere"))
        if self.options.item_size is not None and self.options.item_size_limit < 1000:
            assert isinstance(self.core.weigh(Item(-1, size, 0), Ticket()), AddError)

    # Time and ends

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 10.0]), woken=st.booleans())
    def time_passes(self, seconds: float, woken: bool) -> None:
        """Nobody need be woken at once: the shell may be late."""
        self.now += seconds
        if woken:
            self.core.tick(self.now)
            self.model.expire(self.now)

    @rule()
    def sleep(self) -> None:
        """As the keeper does: to the outlook, and no longer."""
        at = self.core.outlook(self.now)
        if -math.inf < at < math.inf:
            self.now = max(self.now, at)
            self.core.tick(self.now)
            self.model.expire(self.now)
            again = self.core.outlook(self.now)
            assert again == -math.inf or again > self.now, "the keeper would spin"

    @rule(watch=st.booleans())
    def cut(self, watch: bool) -> None:
        self.core.cut(self.now)
        self.model.cut(self.now)
        self.model.hurry = False
        if watch:
            flush = Flush()
            self.core.watch(flush)
            flush.lots = [lot for lot in self.model.lots if not lot.synthetic]
            self.flushes.append(flush)

    @precondition(lambda self: self.number > 8)
    @rule(luck=st.integers(0, 4))
    def close_or_cancel(self, luck: int) -> None:
        if luck == 0:
            self.close()
        elif luck == 1:
            self.cancel()

    def close(self) -> None:
        self.core.close(self.now)
        self.model.close(self.now)

    def cancel(self) -> None:
        self.core.cancel(self.now)
        self.model.cancel(self.now)

    # The laws

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "core"):
            return
        self.check_counts()
        self.check_bounds()
        self.check_batches()
        self.check_outcomes()
        self.check_told()
        self.check_senders()
        self.check_outlook()
        for flush in self.flushes:
            assert flush.remaining == sum(lot in self.model.lots for lot in flush.lots)

    def check_counts(self) -> None:
        stats = self.core.statistics()
        assert stats == self.model.statistics()
        assert stats.accepted == stats.delivered + stats.failed + stats.dropped_items + stats.live
        assert self.core.idle == (not self.model.lots)
        assert self.core.drained == (self.core.closed and not self.model.lots)

    def check_bounds(self) -> None:
        load, size = self.model.load()
        if not self.model.unbounded:
            assert load <= self.options.bounds.items
            assert size <= self.options.bounds.size
        assert len(self.model.leased) <= self.options.max_leases
        if self.core.room:
            assert not self.core.per_item
            assert not self.core.closed
            assert not self.model.senders
            assert load + self.core.room <= self.options.bounds.items
            assert self.model.open is not None
            assert len(self.model.open.items) + self.core.room < self.model.items_max

    def check_batches(self) -> None:
        buffer = self.core.buffer
        ours = {lot.id: lot for lot in (*buffer.waiting, *buffer.leased.values())}
        if buffer.open is not None:
            ours[buffer.open.id] = buffer.open
        theirs = {lot.id: lot for lot in self.model.lots}
        assert ours.keys() == theirs.keys()
        for lot_id, lot in ours.items():
            other = theirs[lot_id]
            assert lot.where.value == other.where
            if other.where != "leased":
                assert lot.items == other.items
                assert lot.size == self.model.size(other.items)
                assert lot.next_send_at == other.due
                assert len(lot.items) <= self.model.items_max
                assert lot.size <= self.model.size_max

    def check_outcomes(self) -> None:
        """Each at most one, for good, and the right one."""
        for item in self.model.everything:
            if item.ticket is None:
                continue
            assert item.ticket.outcome == item.outcome
            if item.ticket.outcome is not None:
                assert self.seen.setdefault(item, item.ticket.outcome) is item.ticket.outcome

    def check_told(self) -> None:
        told = self.core.buffer.told
        for batch, reason in told:
            assert batch.size == self.model.size(list(batch.items))
            if reason is DropReason.FAILED:
                outcomes = [item.outcome for item in batch.items]
                assert [o and o.error for o in outcomes] == list(batch.errors.values())

        def order(entry: tuple[tuple[Item, ...], DropReason]) -> tuple[str, list[int]]:
            return entry[1].value, [item.number for item in entry[0]]

        ours = sorted([(batch.items, reason) for batch, reason in told], key=order)
        assert ours == sorted(self.model.told, key=order)
        told.clear()
        self.model.told.clear()

    def check_senders(self) -> None:
        """First come, first served; nobody waits for room that is there."""
        for sender, fake in self.blocked:
            assert fake.granted == sender.granted
            assert fake.woken == (sender.granted or self.core.closed)
        granted = [sender.granted for sender in self.model.senders]
        assert granted == sorted(granted, reverse=True)
        if self.model.queue and not self.model.handed:
            head = self.model.queue[0].item
            assert not self.model.room_for(1, self.model.size([head])), "room is idle, and somebody waits"

    def check_outlook(self) -> None:
        """It misses nothing; it may be early only to find an item gone that could have become stale."""
        outlook = self.core.outlook(self.now)
        due, stale = self.model.due_at(), self.model.expires_at()
        if self.core.acquiring:
            due = math.inf
        if due <= self.now:
            assert outlook == -math.inf
        else:
            assert outlook <= min(due, stale)
            if self.options.item_age_max is None:
                assert outlook == due

    def teardown(self) -> None:
        """Law 6: closed, it ends; every item has its outcome then."""
        if not hasattr(self, "core"):
            return
        core = self.core
        core.acquiring = False
        self.close()
        for number in range(1000):
            self.check()
            if core.drained:
                break
            if core.outlook(self.now) == -math.inf:
                self.take(token=True)
            elif self.leases:
                self.end(*self.leased(0), TransientError("again") if number < 30 else None, None)
            else:
                before = self.now
                self.sleep()
                assert self.now > before or core.outlook(self.now) == -math.inf, "it hangs"
        assert core.drained
        assert core.outlook(self.now) == math.inf, "it is over, and somebody would still be woken"
        assert all(item.fate is not None for item in self.model.everything)
        assert all(fake.woken for _, fake in self.blocked)
        assert all(flush.remaining == 0 for flush in self.flushes)


MODE = os.environ.get("HYPOTHESIS_PROFILE", "")
"""long: for minutes, all bugs; quick: without shrinking, to see whether planted bugs are found."""


@pytest.mark.timeout(3600 if MODE == "long" else 400)  # green in seconds; shrinking a failure takes its time
def test_the_core_keeps_its_laws() -> None:
    """Laws 1, 3, 4, 5, 6, and 8 as far as errors go, under every drawn combination of options."""
    phases = set(hypothesis.Phase)
    settings = hypothesis.settings(
        deadline=None,
        database=None,
        derandomize=not MODE,  # the suite is the same each time; the runs by hand look elsewhere
        max_examples=20_000 if MODE == "long" else 500,
        stateful_step_count=40,
        report_multiple_bugs=MODE == "long",
        phases=phases - {hypothesis.Phase.shrink, hypothesis.Phase.explain} if MODE == "quick" else phases,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(Laws, settings=settings)


PURE = sorted(
    [
        *Path(dispatcher.__file__).parent.glob("buffer/*.py"),
        Path(dispatcher.__file__).parent / "_coordinator.py",
    ]
)
UNWORLDLY = {"anyio", "asyncio", "aiolimiter", "tenacity", "trio", "time", "datetime", "random", "logging"}
UNWORLDLY |= {"threading", "socket", "uuid", "secrets", "os"}


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.name)
def test_the_core_knows_no_clock_loop_log_or_chance(path: Path) -> None:
    """Law 7: time is an argument."""
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert not {name.split(".")[0] for name in names} & UNWORLDLY
