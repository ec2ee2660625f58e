"""The coordinator's decisions one by one, with literal times; combinations are the laws' machine's."""

import dataclasses
import math
from typing import Any

import pytest
import tenacity

from dispatcher import (
    Batch,
    BlockNewItems,
    DropOldestBatch,
    DropReason,
    InfiniteGrowth,
    ItemTooLarge,
    ItemTooSmall,
    RetryAfter,
    RetryPolicy,
    Status,
    TransientError,
)
from dispatcher._coordinator import YIELD_EVERY, Blocked, Coordinator, asked_for
from dispatcher.buffer.options import BufferOptions
from dispatcher.buffer.outcome import Ticket
from dispatcher.errors import BadItemSize, BadResults

ONE_SECOND = RetryPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_never)


class Wanting(Ticket):
    wants_result = True


class Sender(Blocked):
    def __init__(self, size: int = 0) -> None:
        super().__init__(size)
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


class Core:
    """A coordinator, handled as the shell does."""

    def __init__(
        self, policy: Any = None, *, heartbeat: float | None = None, limited: bool = False, **options: Any
    ) -> None:
        self.it: Coordinator[Any] = Coordinator(
            BufferOptions(**options), run="run", policy=policy, heartbeat_every=heartbeat, limited=limited
        )
        self.it.begin(0.0)

    def put(self, item: Any, now: float = 0.0) -> Ticket:
        ticket = Wanting()
        assert self.it.weigh(item, ticket) is None
        assert self.it.fits(ticket, now)
        self.it.accept(item, ticket, now)
        return ticket

    def take(self, now: float = 0.0) -> Batch[Any]:
        batch = self.it.take(now)
        assert batch is not None
        return batch

    def end(
        self, batch: Batch[Any], error: Exception | None = None, verdict: bool | None = None, now: float = 0.0
    ) -> None:
        failure = self.it.end(batch, error, None, now)
        if failure is not None:
            self.it.judge(failure, verdict, now)

    def told(self) -> list[tuple[tuple[Any, ...], DropReason]]:
        return [(batch.items, reason) for batch, reason in self.it.buffer.told]


class TestRoom:
    def test_ends_before_the_last_item_of_a_batch(self) -> None:
        core = Core(batch_items_max=5)
        core.put("a")
        assert core.it.room == 3

    def test_ends_before_the_buffer_is_full(self) -> None:
        core = Core(batch_items_max=5, full_behavior=BlockNewItems(5), max_leases=4)
        for item in "abcde":
            core.put(item)
        core.take().done(0, 1, 2)
        core.put("f")

        assert core.it.room == 2

    @pytest.mark.parametrize(
        "options",
        [{"item_size": len}, {"coalesce_by": len}, {"item_age_max": 5.0}, {"batch_items_max": 1}],
        ids=lambda options: next(iter(options)),
    )
    def test_is_none_where_each_item_is_looked_at(self, options: dict[str, Any]) -> None:
        core = Core(**options)
        core.put("a")
        assert core.it.room == 0

    def test_is_at_most_what_a_sender_may_take_without_a_yield(self) -> None:
        core = Core(batch_items_max=None, full_behavior=InfiniteGrowth())
        core.put("a")
        assert core.it.room == YIELD_EVERY

    def test_that_was_used_counts_as_accepted_and_what_was_not_does_not(self) -> None:
        core = Core(batch_items_max=10)
        core.put("a")
        for item in "bcd":
            core.it.items.append(item)
        assert core.it.statistics().accepted == 4
        core.it.cut(0.0)

        assert core.it.room == 0
        assert core.it.statistics().accepted == 4
        assert core.take().items == ("a", "b", "c", "d")

    @pytest.mark.parametrize("end", ["close", "cancel", "block"])
    def test_is_taken_back(self, end: str) -> None:
        core = Core()
        core.put("a")
        core.it.block(Sender()) if end == "block" else getattr(core.it, end)(0.0)
        assert core.it.room == 0


class TestWeigh:
    @pytest.mark.parametrize(
        ("size", "refusal", "text"),
        [
            (11, ItemTooLarge, "an item may be at most 10 large, got 11"),
            (0, ItemTooSmall, "an item's size is 1 or more, got 0"),
            (-3, ItemTooSmall, "an item's size is 1 or more, got -3"),
            (1.5, BadItemSize, "item_size has to return a whole number, got 1.5"),
            (True, BadItemSize, "item_size has to return a whole number, got True"),
            (None, BadItemSize, "item_size has to return a whole number, got None"),
        ],
    )
    def test_refuses_with_rule_and_value(self, size: Any, refusal: type, text: str) -> None:
        core = Core(item_size=lambda item: item, batch_size_max=10)
        refused = core.it.weigh(size, Ticket())
        assert isinstance(refused, refusal)
        assert str(refused) == text

    def test_takes_the_largest(self) -> None:
        core = Core(item_size=lambda item: item, batch_size_max=10)
        core.put(10)
        assert core.take().size == 10

    def test_asks_each_size_once(self) -> None:
        asked: list[str] = []
        core = Core(RetryPolicy(), item_size=lambda item: asked.append(item) or 1, batch_items_max=2)  # type: ignore[func-returns-value]
        core.put("a")
        core.put("b")
        core.end(core.take(), TransientError())
        core.end(core.take(1000.0), None, now=1000.0)

        assert asked == ["a", "b"]

    def test_lets_out_what_a_key_raises_even_when_compared(self) -> None:
        """Before anything is counted; a key without a hash, too."""

        class Touchy:
            def __hash__(self) -> int:
                return 1

            def __eq__(self, other: object) -> bool:
                raise RuntimeError

        core = Core(coalesce_by=lambda item: item, full_behavior=InfiniteGrowth(), batch_age_max=0)
        core.put(Touchy())
        with pytest.raises(RuntimeError):
            core.it.weigh(Touchy(), Ticket())
        with pytest.raises(TypeError, match="unhashable"):
            core.it.weigh([], Ticket())
        core.end(core.take())

        assert (core.it.statistics().accepted, core.it.statistics().delivered) == (1, 1)


class TestBlockedSenders:
    def full(self, **options: Any) -> Core:
        core = Core(batch_items_max=2, full_behavior=BlockNewItems(2), max_leases=2, **options)
        core.put("aa")
        core.put("bb")
        return core

    def test_are_woken_in_their_order_one_for_each_freed_place(self) -> None:
        """O(freed): the others are not even looked at."""
        core = self.full()
        senders = [Sender() for _ in range(10_000)]
        for sender in senders:
            core.it.block(sender)
        core.take().done(0)

        assert [n for n, sender in enumerate(senders) if sender.woken] == [0]
        assert core.it.statistics().waiters == 10_000

    def test_keep_their_room_until_they_run(self) -> None:
        """Nobody overtakes: neither who cannot wait nor who could."""
        core = self.full()
        first = Sender()
        core.it.block(first)
        core.end(core.take())
        assert first.woken == 1
        # Two places are free, and one is the first one's; a newcomer comes after it all the same.
        assert not core.it.fits(None, 0.0)
        second = Sender()
        core.it.block(second)
        core.it.unblock(first)
        core.it.accept("first", None, 0.0)

        assert second.woken == 1
        core.it.unblock(second)
        core.it.accept("second", None, 0.0)
        assert core.take().items == ("first", "second")

    def test_pass_their_room_on_when_cancelled(self) -> None:
        core = self.full()
        first, second = Sender(), Sender()
        core.it.block(first)
        core.it.block(second)
        batch = core.take()
        batch.done(0)
        assert (first.woken, second.woken) == (1, 0)
        core.it.unblock(first)
        core.it.hand_room()

        assert second.woken == 1
        assert core.it.statistics().waiters == 1

    def test_cut_the_open_batch_early(self) -> None:
        core = Core(batch_age_max=math.inf, batch_items_max=None, full_behavior=BlockNewItems(1))
        core.put("a")
        assert core.it.outlook(0.0) == math.inf
        core.it.block(Sender())

        assert core.it.outlook(0.0) == -math.inf
        assert core.take().items == ("a",)

    def test_that_wait_for_their_turn_alone_cut_nothing(self) -> None:
        """There is room again; who was handed it has yet to run, and only therefore the next one waits."""
        core = Core(batch_age_max=math.inf, batch_items_max=3, full_behavior=BlockNewItems(3))
        for item in "abc":
            core.put(item)
        first, second, third = Sender(), Sender(), Sender()
        core.it.block(first)
        core.it.block(second)
        core.end(core.take())
        assert (first.woken, second.woken) == (1, 1)
        core.it.unblock(first)
        core.it.accept("d", None, 0.0)
        core.it.block(third)

        assert core.it.outlook(0.0) == math.inf
        assert core.it.take(0.0) is None

    def test_that_cannot_wait_cut_it_early_once(self) -> None:
        core = Core(batch_age_max=math.inf, batch_items_max=None, full_behavior=BlockNewItems(1))
        core.put("a")
        core.it.refuse()
        batch = core.take()
        core.it.refuse()  # there is nothing to be cut now, and the next batch shall not suffer for it
        core.end(batch)
        core.put("b")

        assert core.it.outlook(0.0) == math.inf

    def test_do_not_wait_for_room_that_nobody_needed(self) -> None:
        """Two of one key were let in; the second took the first one's place."""
        core = Core(batch_items_max=2, full_behavior=BlockNewItems(2), coalesce_by=lambda item: item[0])
        core.put("a")
        core.put("b")
        senders = [Sender(), Sender(), Sender()]
        for sender in senders:
            core.it.block(sender)
        core.end(core.take())
        assert [sender.woken for sender in senders] == [1, 1, 0]
        for sender, item in zip(senders, ["x1", "x2"], strict=False):
            core.it.unblock(sender)
            ticket = Ticket()
            core.it.weigh(item, ticket)
            core.it.accept(item, ticket, 0.0)

        assert [sender.woken for sender in senders] == [1, 1, 1]

    def test_are_woken_by_close_to_see_it(self) -> None:
        core = self.full()
        sender = Sender()
        core.it.block(sender)
        core.it.close(0.0)
        assert (sender.woken, sender.granted) == (1, False)
        assert core.it.statistics().waiters == 0


class TestBounds:
    def test_hold_when_the_item_to_be_replaced_expires_meanwhile(self) -> None:
        """It needs its whole size then, not the difference."""
        core = Core(
            item_size=lambda item: item[1],
            coalesce_by=lambda item: item[0],
            item_age_max=5.0,
            batch_age_max=math.inf,
            full_behavior=BlockNewItems(100, 10),
        )
        core.put(("x", 5), 0.0)
        core.put(("y", 5), 3.0)
        ticket = Ticket()
        core.it.weigh(("x", 10), ticket)

        assert not core.it.fits(ticket, 5.0)
        assert core.it.statistics().unleased_size == 5

    def test_let_stale_items_go_first_when_room_is_wanted(self) -> None:
        for behavior in (BlockNewItems(2), DropOldestBatch(2)):
            core = Core(batch_items_max=2, batch_age_max=math.inf, item_age_max=5.0, full_behavior=behavior)
            stale, fresh = core.put("stale", 0.0), core.put("fresh", 3.0)
            core.put("new", 5.0)

            assert stale.outcome is not None
            assert stale.outcome.reason is DropReason.EXPIRED
            assert fresh.outcome is None

    def test_are_kept_by_dropping_as_many_batches_as_it_takes(self) -> None:
        core = Core(item_size=lambda item: item, batch_items_max=1, full_behavior=DropOldestBatch(100, 10))
        for size in (3, 3, 4):
            core.put(size)
        core.put(7)

        assert core.told() == [((3,), DropReason.FULL), ((3,), DropReason.FULL), ((4,), DropReason.FULL)]
        assert core.it.statistics().live == 1

    def test_of_live_items_do_not_count_what_is_marked_for_dropping(self) -> None:
        """The ancestor panicked here: it counted them, and had nothing left to drop."""
        core = Core(batch_items_max=1, full_behavior=DropOldestBatch(1), max_leases=2)
        core.put("a")
        a = core.take()
        core.put("b")
        core.end(core.take())
        core.put("c")
        stats = core.it.statistics()

        assert (stats.unleased_items, stats.dropped_leased_items) == (1, 1)
        core.end(a)
        assert core.it.statistics().delivered == 2

    def test_are_kept_by_dropping_what_waits_then_what_is_leased_then_the_open_batch(self) -> None:
        """The leased one runs on, but gets no second attempt."""
        core = Core(ONE_SECOND, batch_items_max=2, full_behavior=DropOldestBatch(4), max_leases=1)
        for item in "abcd":
            core.put(item)
        core.take()
        core.put("e")
        assert core.told() == [(("c", "d"), DropReason.FULL)]
        core.put("f")
        core.put("g")
        assert core.told()[1:] == [(("e", "f"), DropReason.FULL)]
        assert core.it.statistics().dropped_leased_items == 0

        tight = Core(ONE_SECOND, batch_items_max=2, full_behavior=DropOldestBatch(2), max_leases=1)
        tickets = {item: tight.put(item) for item in "ab"}
        leased = tight.take()
        tight.put("c")
        assert tight.told() == []
        assert tight.it.statistics().dropped_leased_items == 2
        tight.end(leased, TransientError(), True)
        assert tight.told() == [(("a", "b"), DropReason.FULL)]
        assert [t.outcome and t.outcome.reason for t in tickets.values()] == [DropReason.FULL] * 2


class TestResults:
    @pytest.mark.parametrize(
        ("results", "text"),
        [
            ("ab", "a SendFn returns a sequence of one result per item, or None; got str"),
            (b"ab", "a SendFn returns a sequence of one result per item, or None; got bytes"),
            ({0: 1, 1: 2}, "a SendFn returns a sequence of one result per item, or None; got dict"),
            (iter([1, 2]), "a SendFn returns a sequence of one result per item, or None; got list_iterator"),
            ([1], "a SendFn returned 1 results for a batch of 2"),
            ([1, 2, 3], "a SendFn returned 3 results for a batch of 2"),
        ],
        ids=["str", "bytes", "mapping", "iterator", "too few", "too many"],
    )
    def test_that_are_wrong_fail_the_unmarked_and_are_not_retried(self, results: Any, text: str) -> None:
        core = Core(ONE_SECOND, batch_items_max=2)
        done, unmarked = core.put("a"), core.put("b")
        batch = core.take()
        batch.done(0)
        failure = core.it.end(batch, None, results, 0.0)
        assert failure is not None
        core.it.judge(failure, True, 0.0)

        assert done.outcome is not None
        assert done.outcome.status is Status.DELIVERED
        assert unmarked.outcome is not None
        assert isinstance(unmarked.outcome.error, BadResults)
        assert str(unmarked.outcome.error) == text

    def test_that_raise_when_read_are_bad_ones(self) -> None:
        class Broken(list[int]):
            def __iter__(self) -> Any:
                raise RuntimeError

        core = Core(batch_items_max=1)
        ticket = core.put("a")
        failure = core.it.end(core.take(), None, Broken([1]), 0.0)
        assert failure is not None
        core.it.judge(failure, None, 0.0)
        assert ticket.outcome is not None
        assert str(ticket.outcome.error) == "the results of a SendFn could not be read: RuntimeError"

    def test_are_not_looked_at_without_a_receipt(self) -> None:
        core = Core(batch_items_max=1)
        core.it.accept("a", None, 0.0)
        assert core.it.end(core.take(), None, "whatever", 0.0) is None
        assert core.it.statistics().delivered == 1

    def test_reach_each_its_item_those_of_failed_ones_ignored(self) -> None:
        core = Core(batch_items_max=3)
        tickets = [core.put(item) for item in "abc"]
        batch = core.take()
        batch.fail(1, ValueError("b"))
        failure = core.it.end(batch, None, ["A", "B", "C"], 0.0)
        assert failure is not None
        core.it.judge(failure, None, 0.0)

        assert [t.outcome and t.outcome.result for t in tickets] == ["A", None, "C"]
        assert [t.outcome and t.outcome.status for t in tickets] == [
            Status.DELIVERED,
            Status.FAILED,
            Status.DELIVERED,
        ]


class TestRetry:
    def test_frees_the_lease_at_once(self) -> None:
        """A waiting batch holds no sender."""
        core = Core(ONE_SECOND, batch_items_max=1, max_leases=1)
        core.put("a")
        core.put("b")
        core.end(core.take(), TransientError())

        assert core.take().items == ("b",)

    def test_is_due_at_the_latest_delay_of_its_items(self) -> None:
        def wait(state: Any) -> float:
            return float(str(state.outcome.exception()))

        core = Core(RetryPolicy(wait=wait, stop=tenacity.stop_never), batch_items_max=3, max_leases=1)
        for item in "abc":
            core.put(item)
        batch = core.take()
        for position, seconds in enumerate([1, 5, 3]):
            batch.fail(position, TransientError(str(seconds)))
        core.end(batch, now=10.0)

        assert core.it.outlook(10.0) == 15.0
        assert core.it.take(14.9) is None
        assert core.take(15.0).items == ("a", "b", "c")

    @pytest.mark.parametrize(
        ("verdict", "status"),
        [(None, [Status.FAILED, None]), (False, [Status.FAILED, Status.FAILED]), (True, [None, None])],
    )
    def test_is_up_to_the_hook_first(self, verdict: bool | None, status: list[Status | None]) -> None:
        core = Core(ONE_SECOND, batch_items_max=2)
        tickets = [core.put("a"), core.put("b")]
        batch = core.take()
        batch.fail(0, ValueError("permanent"))
        batch.fail(1, TransientError("passing"))
        core.end(batch, verdict=verdict)

        assert [ticket.outcome and ticket.outcome.status for ticket in tickets] == status

    def test_stops_even_if_the_hook_wants_more(self) -> None:
        core = Core(
            RetryPolicy(wait=tenacity.wait_none(), stop=tenacity.stop_after_attempt(2)), batch_items_max=1
        )
        ticket = core.put("a")
        core.end(core.take(), ValueError("x"), True)
        assert ticket.outcome is None
        core.end(core.take(), ValueError("x"), True)
        assert ticket.outcome is not None

    @pytest.mark.parametrize("answer", [math.inf, math.nan])
    def test_that_would_never_come_is_a_failure_and_a_fault(self, answer: float) -> None:
        """Else the channel could never be drained."""
        core = Core(RetryPolicy(wait=lambda state: answer, stop=tenacity.stop_never), batch_items_max=1)
        ticket = core.put("a")
        core.end(core.take(), TransientError())

        assert ticket.outcome is not None
        assert ticket.outcome.status is Status.FAILED
        assert [str(fault) for fault in core.it.faults] == [
            f"a retry policy answers with seconds of 0 or more, finite, or None; got {answer!r}"
        ]

    def test_by_a_policy_that_raises_is_a_failure_and_a_fault(self) -> None:
        fault = RuntimeError("broken strategy")

        def wait(state: Any) -> float:
            raise fault

        core = Core(RetryPolicy(wait=wait), batch_items_max=1)
        ticket = core.put("a")
        core.end(core.take(), TransientError())
        assert ticket.outcome is not None
        assert core.it.faults == [fault]

    def test_of_errors_without_a_hash(self) -> None:
        """A dataclass makes one: equal by value. (attrs' are equal by identity.)"""

        @dataclasses.dataclass
        class Refused(TransientError):
            code: int

        core = Core(ONE_SECOND, batch_items_max=2)
        core.put("a")
        core.put("b")
        batch = core.take()
        batch.fail(0, Refused(451))
        batch.fail(1, Refused(452))
        core.end(batch)

        assert core.it.statistics().unleased_items == 2

    def test_is_not_asked_for_after_a_cancel(self) -> None:
        core = Core(ONE_SECOND, batch_items_max=1)
        ticket = core.put("a")
        batch = core.take()
        core.it.cancel(0.0)
        core.end(batch, TransientError(), True)
        assert ticket.outcome is not None
        assert ticket.outcome.reason is DropReason.CANCELLED
        assert core.it.drained


class TestRetryAfter:
    def test_holds_the_whole_channel(self) -> None:
        core = Core(ONE_SECOND, batch_items_max=1)
        core.put("a")
        core.put("b", 10.0)
        core.end(core.take(10.0), RetryAfter(30), now=10.0)

        assert core.it.outlook(10.0) == 40.0
        assert core.it.take(39.9) is None
        assert core.take(40.0).items == ("b",)
        assert core.take(40.0).items == ("a",)

    def test_is_never_shorter_than_the_policy_says(self) -> None:
        core = Core(RetryPolicy(wait=tenacity.wait_fixed(60), stop=tenacity.stop_never), batch_items_max=1)
        core.put("a")
        core.end(core.take(), RetryAfter(30))
        assert core.it.outlook(0.0) == 60.0

    def test_is_not_shortened_by_a_later_one(self) -> None:
        core = Core(ONE_SECOND, batch_items_max=1)
        core.put("a")
        core.put("b")
        first, second = core.take(), core.take()
        core.end(first, RetryAfter(30))
        core.end(second, RetryAfter(5), now=1.0)
        assert core.it.outlook(1.0) == 30.0

    def test_is_found_in_groups(self) -> None:
        group = ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [RetryAfter(3), RetryAfter(7)])])
        assert asked_for(group) == 7
        assert asked_for(ValueError()) is None


class TestHeartbeat:
    def test_comes_after_so_long_with_nothing(self) -> None:
        core = Core(heartbeat=5.0)
        assert core.it.outlook(0.0) == 5.0
        assert core.it.take(4.9) is None
        beat = core.take(5.0)

        assert (beat.synthetic, len(beat), beat.id) == (True, 0, 1)
        assert core.it.outlook(6.0) == math.inf
        core.end(beat, now=7.0)
        assert core.it.outlook(7.0) == 12.0
        assert core.it.statistics().heartbeats == 1
        assert core.it.statistics().batches == 0

    def test_never_while_something_is_out(self) -> None:
        core = Core(heartbeat=5.0, batch_age_max=0)
        core.put("a", 1.0)
        batch = core.take(1.0)
        assert core.it.outlook(100.0) == math.inf
        core.end(batch, now=100.0)
        assert core.it.outlook(100.0) == 105.0

    def test_is_retried_until_closed(self) -> None:
        core = Core(ONE_SECOND, heartbeat=5.0)
        core.end(core.take(5.0), TransientError(), now=5.0)
        again = core.take(6.0)
        assert (again.synthetic, again.attempt, again.id) == (True, 2, 1)
        core.end(again, TransientError(), now=6.0)
        core.it.close(6.0)

        assert core.it.drained
        assert core.told() == []

    def test_starts_anew_only_when_the_last_item_leaves(self) -> None:
        """Nor does an item delivered long ago that would be stale now."""
        core = Core(heartbeat=5.0, batch_age_max=0, item_age_max=3.0)
        gone = core.put("a", 1.0)
        core.end(core.take(1.0), now=2.0)
        core.it.tick(4.0)
        assert not core.it.withdraw(gone, 5.0)
        assert core.it.outlook(5.0) == 7.0


class TestLimit:
    def test_is_asked_by_one_and_paid_by_the_attempt(self) -> None:
        core = Core(limited=True, batch_items_max=1)
        core.put("a")
        core.put("b")
        assert core.it.wants_token(0.0)
        assert core.it.take(0.0) is None
        core.it.acquiring = True
        assert core.it.outlook(0.0) == math.inf
        assert not core.it.wants_token(0.0)
        core.it.acquiring = False
        core.it.token = True

        assert core.take().items == ("a",)
        assert core.it.take(0.0) is None
        assert core.it.wants_token(0.0)

    def test_is_not_asked_for_nothing(self) -> None:
        core = Core(limited=True, batch_age_max=5.0)
        core.put("a")
        assert not core.it.wants_token(4.9)
        assert core.it.wants_token(5.0)

    def test_keeps_one_token_if_all_was_stale(self) -> None:
        core = Core(limited=True, batch_items_max=1, item_age_max=1.0)
        core.put("a")
        core.it.token = True
        assert core.it.take(1.0) is None
        assert core.it.token


class TestLatestWins:
    def core(self, **options: Any) -> Core:
        return Core(ONE_SECOND, coalesce_by=lambda item: item[0], batch_items_max=3, **options)

    def test_in_place(self) -> None:
        core = self.core()
        old = core.put("x1")
        core.put("y1")
        core.put("x2")
        core.it.cut(0.0)

        assert core.take().items == ("x2", "y1")
        assert old.outcome is not None
        assert old.outcome.reason is DropReason.SUPERSEDED
        assert core.told() == [(("x1",), DropReason.SUPERSEDED)]

    def test_over_one_that_waits_for_its_retry(self) -> None:
        """It leaves its batch; the new one does not join it."""
        core = self.core()
        core.put("x1")
        core.put("y1")
        core.it.cut(0.0)
        core.end(core.take(), TransientError())
        core.put("x2")
        core.it.cut(0.0)

        assert core.take().items == ("x2",)
        assert core.take(1.0).items == ("y1",)

    @pytest.mark.parametrize("fails", [True, False])
    def test_over_one_in_flight_if_that_fails(self, fails: bool) -> None:
        core = self.core()
        old = core.put("x1")
        core.it.cut(0.0)
        batch = core.take()
        core.put("x2")
        core.end(batch, TransientError() if fails else None)

        assert old.outcome is not None
        assert old.outcome.status is (Status.DROPPED if fails else Status.DELIVERED)
        assert core.it.statistics().dropped[DropReason.SUPERSEDED] == fails
        assert core.it.statistics().unleased_items == 1


class TestYields:
    def test_are_owed_after_a_cut_and_after_many_items(self) -> None:
        core = Core(batch_items_max=2)
        core.put("a")
        assert not core.it.yield_owed
        core.put("b")
        assert core.it.yield_owed
        core.it.yielded()
        assert not core.it.yield_owed

        many = Core(batch_items_max=None, full_behavior=InfiniteGrowth())
        for number in range(YIELD_EVERY):
            assert not many.it.yield_owed
            many.put(number)
        assert many.it.yield_owed


class TestHalt:
    def test_keeps_what_waits_and_lets_what_runs_end(self) -> None:
        core = Core(ONE_SECOND, batch_items_max=1)
        first, second = core.put("a"), core.put("b")
        batch = core.take()
        core.it.halt(0.0)
        assert core.it.take(100.0) is None
        core.end(batch, TransientError())
        assert [item for item, _ in core.it.buffer.contents()] == ["a", "b"]
        core.it.keep(0.0)

        assert [t.outcome and t.outcome.reason for t in (first, second)] == [DropReason.KEPT] * 2
        assert core.it.drained
