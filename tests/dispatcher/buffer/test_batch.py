"""What a SendFn can do with its batch."""

from typing import Any

import pytest

from dispatcher import Batch, StaleBatch
from dispatcher.buffer.batch import Watch
from dispatcher.buffer.buffer import Buffer
from dispatcher.buffer.options import BufferOptions
from dispatcher.errors import UnknownPosition


class Marks:
    """Records what the batch's owner hears."""

    def __init__(self) -> None:
        self.done: list[set[int]] = []

    def mark_done(self, batch: Batch[Any], positions: Any) -> None:
        self.done.append(set(positions))


def leased(*items: str) -> tuple[Buffer[str], Batch[str], Marks]:
    buffer: Buffer[str] = Buffer(BufferOptions(), "run")
    for item in items:
        buffer.add(item, None, 0, 5.0)
    buffer.cut(6.0)
    lot = buffer.next_due(7.0, early=False)
    assert lot is not None
    marks = Marks()
    return buffer, buffer.lease(lot, marks, 7.0), marks


class TestIsASequence:
    def test_over_its_items(self) -> None:
        _, batch, _ = leased("a", "b", "c")

        assert batch.items == tuple(batch) == ("a", "b", "c")
        assert (len(batch), batch[0], batch[-1], batch[1:]) == (3, "a", "c", ("b", "c"))
        assert "b" in batch
        assert "x" not in batch
        assert batch.index("c") == 2
        assert list(reversed(batch)) == ["c", "b", "a"]
        assert repr(batch) == "<Batch 1, attempt 1, 3 items>"

    def test_that_knows_where_it_comes_from(self) -> None:
        _, batch, _ = leased("a")

        assert (batch.id, batch.attempt, batch.created_at, batch.size) == (1, 1, 5.0, 0)
        assert batch.key == "run-1-0"
        assert batch.meta is batch.meta
        assert (batch.error, batch.errors, batch.synthetic) == (None, {}, False)


class TestDone:
    def test_tells_its_owner_once_of_each(self) -> None:
        _, batch, marks = leased("a", "b", "c")
        batch.done(0)
        batch.done(0, 2)
        batch.done(0, 2)
        batch.done()

        assert marks.done == [{0}, {2}]

    def test_takes_a_failure_back(self) -> None:
        _, batch, marks = leased("a", "b")
        batch.fail(0, ValueError("first"))
        batch.done(0)

        assert marks.done == [{0}]
        assert batch.errors == {}

    @pytest.mark.parametrize("wrong", [2, -1, "0", None, 0.0])
    def test_of_an_unknown_position_marks_none(self, wrong: Any) -> None:
        _, batch, marks = leased("a", "b")
        with pytest.raises(UnknownPosition) as caught:
            batch.done(0, wrong)

        assert str(caught.value) == f"a position is 0 to 1 in this batch of 2, got {wrong!r}"
        assert marks.done == []


class TestFail:
    def test_is_kept_for_the_end(self) -> None:
        _, batch, marks = leased("a", "b")
        first, second = ValueError("first"), ValueError("second")
        batch.fail(1, first)
        batch.fail(1, second)

        assert batch.errors == {1: second}
        assert marks.done == []

    def test_comes_too_late_for_what_is_delivered(self) -> None:
        _, batch, _ = leased("a", "b")
        batch.done(1)
        with pytest.raises(StaleBatch, match="item 1 of batch 1 is delivered already"):
            batch.fail(1, ValueError("late"))
        assert batch.errors == {}

    @pytest.mark.parametrize("wrong", [ValueError, "no", None, KeyboardInterrupt()])
    def test_takes_exceptions_only(self, wrong: Any) -> None:
        _, batch, _ = leased("a")
        with pytest.raises(TypeError, match="a mark takes an Exception, got"):
            batch.fail(0, wrong)
        assert batch.errors == {}

    @pytest.mark.parametrize("wrong", [1, -1, "0"])
    def test_of_an_unknown_position_marks_none(self, wrong: Any) -> None:
        _, batch, _ = leased("a")
        with pytest.raises(UnknownPosition):
            batch.fail(wrong, ValueError("nowhere"))
        assert batch.errors == {}

    def test_cannot_be_written_past_the_method(self) -> None:
        _, batch, _ = leased("a")
        batch.fail(0, ValueError("x"))
        with pytest.raises(TypeError):
            batch.errors[0] = ValueError("y")  # type: ignore[index]


class TestAnEndedAttempt:
    def test_refuses_marks_and_stays_as_it_was(self) -> None:
        buffer, batch, marks = leased("a", "b")
        batch.fail(0, error := ValueError("x"))
        assert buffer.end(batch, None, None) is not None

        for mark in (lambda: batch.done(1), lambda: batch.fail(1, ValueError("late")), batch.done):
            with pytest.raises(StaleBatch, match="attempt 1 of batch 1 has ended"):
                mark()
        assert batch.errors == {0: error}
        assert marks.done == []


def test_a_watch_counts_down() -> None:
    watch = Watch()
    watch.remaining = 2
    watch.gone()
    assert watch.remaining == 1
