"""A priority queue with removal from the middle."""

import heapq
from collections.abc import Iterator
from typing import Any, Generic

from typing_extensions import TypeVar

__all__ = ["Heap"]

V = TypeVar("V")


class Heap(Generic[V]):
    """
    Values by key, smallest first, equal keys by id; by its id a value can be taken out again.

    What is taken out of the middle stays in the list as a dead entry until it surfaces, or until dead
    entries outnumber live ones and the list is made anew: O(log n) each, amortised, and never much
    more than twice the memory.
    """

    __slots__ = ("_entries", "_pushed", "live")

    def __init__(self) -> None:
        self._entries: list[tuple[Any, int, int, V]] = []
        self.live: dict[int, tuple[Any, int, int, V]] = {}
        """What is in, by id; to look at, never to change. Its truth is quicker than ``len``."""
        self._pushed = 0

    def __len__(self) -> int:
        return len(self.live)

    def __iter__(self) -> Iterator[V]:
        """All values, in no order."""
        return iter([entry[3] for entry in self.live.values()])

    def __contains__(self, value_id: int) -> bool:
        return value_id in self.live

    def push(self, key: Any, value_id: int, value: V) -> None:  # noqa: ANN401 - anything that compares
        """Put *value* in; its id must not be in use here."""
        # The number keeps a dead entry of the same key and id from being compared by value.
        self._pushed += 1
        entry = (key, value_id, self._pushed, value)
        self.live[value_id] = entry
        heapq.heappush(self._entries, entry)

    def peek(self) -> V | None:
        """The value of the smallest key, or None."""
        entries = self._entries
        while entries:
            entry = entries[0]
            if self.live.get(entry[1]) is entry:
                return entry[3]
            heapq.heappop(entries)
        return None

    def remove(self, value_id: int) -> None:
        """
        Take one out, wherever it is.

        Raises:
            KeyError: If there is none of that id.
        """
        del self.live[value_id]
        if len(self._entries) > 2 * len(self.live) + 16:
            self._entries = list(self.live.values())
            heapq.heapify(self._entries)
