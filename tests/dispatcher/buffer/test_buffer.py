"""Cutting, order, expiry and ends, by hand; the laws' machine covers the combinations."""

import gc
import math
import weakref
from typing import Any

import pytest

from dispatcher.buffer import Batch, DropReason, Status
from dispatcher.buffer.buffer import Buffer
from dispatcher.buffer.options import BufferOptions
from dispatcher.buffer.outcome import Ticket
from dispatcher.errors import ForeignBatch


class Weak(str):
    """An item that can be watched going."""

    __slots__ = ("__weakref__",)


class Deaf:
    def mark_done(self, batch: Batch[Any], positions: Any) -> None:
        raise AssertionError


def make(**options: Any) -> Buffer[str]:
    return Buffer(BufferOptions(**options), "run")


def take(buffer: Buffer[str], now: float) -> Batch[str] | None:
    lot = buffer.next_due(now, early=False)
    return None if lot is None else buffer.lease(lot, Deaf(), now)


def put(buffer: Buffer[str], item: str, now: float = 0.0, key: str | None = None) -> Ticket:
    ticket = Ticket()
    ticket.size, ticket.key, ticket.superseded = len(item), key, False
    buffer.add(item, ticket, len(item), now)
    return ticket


def items(batch: Batch[str] | None) -> tuple[str, ...] | None:
    return None if batch is None else batch.items


class TestCut:
    def test_by_count(self) -> None:
        buffer = make(batch_items_max=2)
        for item in "abc":
            buffer.add(item, None, 0, 0.0)

        assert items(take(buffer, 0.0)) == ("a", "b")
        assert take(buffer, 0.0) is None

    def test_by_size_before_the_item_that_does_not_fit(self) -> None:
        buffer = make(item_size=len, batch_size_max=5)
        put(buffer, "aaa")
        put(buffer, "bbb")

        assert items(take(buffer, 0.0)) == ("aaa",)

    def test_by_size_at_once_when_nothing_more_would_fit(self) -> None:
        buffer = make(item_size=len, batch_size_max=5)
        put(buffer, "aaa")
        put(buffer, "bb")

        assert items(take(buffer, 0.0)) == ("aaa", "bb")

    def test_by_age_of_the_first_item(self) -> None:
        buffer = make(batch_age_max=1.0)
        put(buffer, "a", 10.0)
        put(buffer, "b", 10.9)

        assert buffer.next_at(early=False) == 11.0
        assert take(buffer, 10.99) is None
        assert items(take(buffer, 11.0)) == ("a", "b")

    def test_an_old_age_never_cuts_a_younger_batch(self) -> None:
        buffer = make(batch_age_max=1.0)
        put(buffer, "a", 10.0)
        buffer.cut(10.5)
        put(buffer, "b", 10.6)

        assert items(take(buffer, 11.0)) == ("a",)
        assert take(buffer, 11.0) is None
        assert buffer.next_at(early=False) == 11.6

    def test_age_zero_takes_what_is_there(self) -> None:
        buffer = make(batch_age_max=0)
        put(buffer, "a", 3.0)
        assert items(take(buffer, 3.0)) == ("a",)

    def test_age_inf_waits_for_ever(self) -> None:
        buffer = make(batch_age_max=math.inf)
        put(buffer, "a")
        assert buffer.next_at(early=False) == math.inf
        assert take(buffer, 1e12) is None
        assert buffer.next_at(early=True) == -math.inf


class TestOrder:
    def fail_first(self, buffer: Buffer[str], retry_at: float) -> None:
        batch = take(buffer, 0.0)
        assert batch is not None
        failure = buffer.end(batch, ValueError("x"), None)
        assert failure is not None
        buffer.resolve(failure, failed=(), dropped=(), reason=DropReason.FULL, retry_at=retry_at, now=0.0)

    def test_is_by_time_then_age(self) -> None:
        """A batch that waits for its retry lets others pass."""
        buffer = make(batch_items_max=1)
        for item in "abc":
            put(buffer, item)
        self.fail_first(buffer, retry_at=5.0)

        assert [items(take(buffer, 9.0)) for _ in range(3)] == [("b",), ("c",), ("a",)]

    def test_with_fifo_the_oldest_data_holds_all_up(self) -> None:
        buffer = make(batch_items_max=1, fifo=True, max_leases=1)
        for item in "abc":
            put(buffer, item)
        self.fail_first(buffer, retry_at=5.0)

        assert take(buffer, 4.9) is None
        assert buffer.next_at(early=True) == 5.0

    def test_with_fifo_the_open_batch_waits_behind_a_retry(self) -> None:
        """However old it is, and whoever is blocked."""
        buffer = make(batch_items_max=2, batch_age_max=0, fifo=True, max_leases=1)
        put(buffer, "a")
        self.fail_first(buffer, retry_at=5.0)
        put(buffer, "b")

        assert take(buffer, 4.9) is None
        assert buffer.next_due(4.9, early=True) is None
        assert [items(take(buffer, 5.0)) for _ in range(2)] == [("a",), ("b",)]

    def test_with_fifo_ids_decide(self) -> None:
        buffer = make(batch_items_max=1, fifo=True, max_leases=1)
        for item in "abc":
            put(buffer, item)
        self.fail_first(buffer, retry_at=5.0)

        assert [items(take(buffer, 5.0)) for _ in range(3)] == [("a",), ("b",), ("c",)]


class TestExpiry:
    def test_is_exactly_at_the_age(self) -> None:
        buffer = make(item_age_max=2.0, batch_age_max=math.inf)
        ticket, younger = put(buffer, "a", 10.0), put(buffer, "b", 11.0)

        assert buffer.expires_at() == 12.0
        assert not buffer.expire(11.99)
        assert buffer.expire(12.0)
        assert ticket.outcome is not None
        assert (ticket.outcome.status, ticket.outcome.reason) == (Status.DROPPED, DropReason.EXPIRED)
        assert younger.outcome is None
        assert buffer.expires_at() == 13.0

    def test_spares_what_is_leased(self) -> None:
        buffer = make(item_age_max=2.0, batch_age_max=0)
        ticket = put(buffer, "a", 10.0)
        take(buffer, 10.0)

        assert buffer.expires_at() == math.inf
        assert not buffer.expire(100.0)
        assert ticket.outcome is None

    def test_counts_from_acceptance_over_retries(self) -> None:
        buffer = make(item_age_max=2.0, batch_age_max=0)
        put(buffer, "a", 10.0)
        batch = take(buffer, 10.0)
        assert batch is not None
        failure = buffer.end(batch, ValueError("x"), None)
        assert failure is not None
        buffer.resolve(failure, failed=(), dropped=(), reason=DropReason.FULL, retry_at=50.0, now=11.0)

        assert buffer.expires_at() == 12.0

    def test_counts_from_an_earlier_acceptance_where_one_is_told(self) -> None:
        """Of an item that comes out of a store; the replaced one's age is not its own, either."""
        buffer = make(item_age_max=10.0, batch_age_max=math.inf, coalesce_by=len)
        put(buffer, "young", 100.0, key="k")
        old = Ticket()
        old.size, old.key, old.superseded = 0, "k", False
        buffer.add("old", old, 0, 100.0, accepted_at=91.0)

        assert buffer.expires_at() == 101.0
        assert buffer.expire(101.0)
        assert old.outcome is not None

    @pytest.mark.parametrize("way", ["delivered", "withdrawn", "replaced"])
    def test_forgets_what_is_gone(self, way: str) -> None:
        """Else an idle channel would wake for it, and keep its items until then."""
        buffer = make(item_age_max=3600.0, batch_age_max=0, coalesce_by=len)
        item = Weak("item")
        ticket = put(buffer, item, 0.0, key="k")
        if way == "replaced":
            put(buffer, "newer", 0.0, key="k")
        if way == "withdrawn":
            buffer.withdraw(ticket)
        elif (batch := take(buffer, 0.0)) is not None:
            buffer.end(batch, None, None)
        buffer.told.clear()
        gone = weakref.ref(item)
        del item, ticket
        batch = None
        gc.collect()

        assert buffer.empty
        assert buffer.expires_at() == math.inf
        assert gone() is None


class TestEnds:
    def test_of_one_attempt_come_once(self) -> None:
        buffer, other = make(batch_items_max=1), make(batch_items_max=1)
        put(buffer, "a")
        put(other, "a")
        batch, foreign = take(buffer, 0.0), take(other, 0.0)
        assert batch is not None
        assert foreign is not None
        with pytest.raises(ForeignBatch, match=r"batch 1 is not leased from this buffer"):
            buffer.end(foreign, None, None)
        buffer.end(batch, None, None)
        with pytest.raises(ForeignBatch):
            buffer.end(batch, None, None)

        assert buffer.delivered == 1

    def test_a_retry_has_the_same_key_while_its_items_are_the_same(self) -> None:
        buffer = make(batch_items_max=3)
        a, _, _ = (put(buffer, item) for item in "abc")
        keys = []
        for leaves in (False, True, False):
            batch = take(buffer, 0.0)
            assert batch is not None
            keys.append(batch.key)
            failure = buffer.end(batch, ValueError("x"), None)
            assert failure is not None
            buffer.resolve(failure, failed=(), dropped=(), reason=DropReason.FULL, retry_at=0.0, now=0.0)
            if leaves:
                assert buffer.withdraw(a)

        assert keys[0] == keys[1] != keys[2]

    def test_what_hooks_are_told_has_its_own_size(self) -> None:
        buffer = make(item_size=len, batch_items_max=3)
        for item in ("a", "bb", "cccc"):
            put(buffer, item)
        batch = take(buffer, 0.0)
        assert batch is not None
        failure = buffer.end(batch, ValueError("x"), None)
        assert failure is not None
        buffer.resolve(failure, failed={1}, dropped={2}, reason=DropReason.SUPERSEDED, retry_at=1.0, now=0.0)

        assert [(told.items, told.size, why) for told, why in buffer.told] == [
            (("cccc",), 4, DropReason.SUPERSEDED),
            (("bb",), 2, DropReason.FAILED),
        ]

    def test_several_marks_are_one_group_and_equal_ones_one_error(self) -> None:
        for same in (True, False):
            buffer = make(batch_items_max=2)
            put(buffer, "a")
            put(buffer, "b")
            batch = take(buffer, 0.0)
            assert batch is not None
            first, second = ValueError("1"), ValueError("2")
            batch.fail(0, first)
            batch.fail(1, first if same else second)
            failure = buffer.end(batch, None, None)
            assert failure is not None
            error = failure.batch.error
            if same:
                assert error is first
            else:
                assert isinstance(error, ExceptionGroup)
                assert error.exceptions == (first, second)
