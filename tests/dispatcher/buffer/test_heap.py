"""The heap against a sorted list; the laws' machine hardly notices a wrong order after a removal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.buffer.heap import Heap

ACTS = st.lists(
    st.tuples(st.sampled_from(["push", "push", "remove", "pop", "again"]), st.integers(0, 9)), max_size=80
)


class TestAgainstASortedList:
    @given(ACTS)
    def test_order_holds_after_removals_from_the_middle(self, acts: list[tuple[str, int]]) -> None:
        """Smallest key first, equal keys by id, whatever was taken out between."""
        heap: Heap[str] = Heap()
        listed: list[tuple[int, int]] = []
        for value_id, (act, number) in enumerate(acts):
            if act == "push":
                heap.push(number, value_id, f"value {value_id}")
                listed.append((number, value_id))
            elif listed and act == "remove":
                entry = listed.pop(number % len(listed))
                heap.remove(entry[1])
            elif listed and act == "again":
                # The same value under another key, as a retried batch: its dead entry has to stay dead.
                _, old = listed.pop(number % len(listed))
                heap.remove(old)
                heap.push(number, old, f"value {old}")
                listed.append((number, old))
            elif listed:
                entry = min(listed)
                listed.remove(entry)
                assert heap.peek() == f"value {entry[1]}"
                heap.remove(entry[1])
            assert len(heap) == len(listed)
            assert heap.peek() == (f"value {min(listed)[1]}" if listed else None)
            assert sorted(heap) == sorted(f"value {known}" for _, known in listed)
            assert all(known in heap for _, known in listed)

    def test_many_removals_leave_the_order_of_the_rest(self) -> None:
        """Beyond the bound on dead entries the list is made anew."""
        heap: Heap[int] = Heap()
        for number in range(200):
            heap.push(-number, number, number)
        for number in range(0, 200, 3):
            heap.remove(number)
        out = []
        while (value := heap.peek()) is not None:
            out.append(value)
            heap.remove(value)

        assert out == [number for number in range(199, -1, -1) if number % 3]


class TestDeadEntries:
    def test_are_bounded(self) -> None:
        """Values that come and go under a lasting first one cost no memory."""
        heap: Heap[str] = Heap()
        heap.push(0, 0, "lasting")
        for value_id in range(1, 10_000):
            heap.push(1, value_id, "passing")
            heap.remove(value_id)

        assert len(heap._entries) < 40  # noqa: SLF001 - there is no other way to see it
        assert heap.peek() == "lasting"

    def test_are_never_compared_by_value(self) -> None:
        """The same key and id again, with values that do not compare."""
        heap: Heap[object] = Heap()
        for _ in range(3):
            heap.push(1, 7, object())
            heap.remove(7)
        heap.push(1, 7, last := object())

        assert heap.peek() is last


def test_what_is_not_in_cannot_be_removed() -> None:
    heap: Heap[str] = Heap()
    with pytest.raises(KeyError):
        heap.remove(1)
    assert 1 not in heap
    assert heap.peek() is None
