"""
What the embedded engines share: the sync core that a shell drives, and its bookkeeping.

An engine does one step at a time, is told the time, and neither waits nor knows an event loop.
"""

import math
import secrets
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import attrs

from dispatcher.stores.base import Amount, Counts, Dead, Leased, Nack, Peeked, Record, Shelf, Stored

__all__ = [
    "DEAD",
    "DELAYED",
    "LEASED",
    "QUARANTINED",
    "READY",
    "SHELVES",
    "TOTALS",
    "Engine",
    "Hint",
    "Ledger",
    "PutOptions",
    "Tags",
]

SHELVES = (Shelf.READY, Shelf.DELAYED, Shelf.LEASED, Shelf.DEAD, Shelf.QUARANTINED)
READY, DELAYED, LEASED, DEAD, QUARANTINED = range(5)

TOTALS = (
    "put",
    "acked",
    "expired",
    "replaced",
    "dropped",
    "purged",
    "redelivered",
    "died",
    "quarantined_ever",
    "redriven",
)


class Hint(NamedTuple):
    """What a waiter wants to know of a queue."""

    ready: int
    due: float
    """When the next one may become ready by itself, at the earliest; ``inf``: never."""

    expiry: float
    """When the next one that waits may expire, at the earliest; ``inf``: never."""

    live_bytes: int


@attrs.frozen(slots=True)
class PutOptions:
    """How records are put; see `dispatcher.stores.base.Store.put`."""

    replace: bool = False
    front: bool = False
    lease: bool = False
    bytes_max: int | None = None


@attrs.define(slots=True, eq=False)
class Ledger:
    """The numbers of one queue, kept step by step so that nobody has to count."""

    items: list[int] = attrs.field(factory=lambda: [0] * len(SHELVES))
    sizes: list[int] = attrs.field(factory=lambda: [0] * len(SHELVES))
    put: int = 0
    acked: int = 0
    expired: int = 0
    replaced: int = 0
    dropped: int = 0
    purged: int = 0
    redelivered: int = 0
    died: int = 0
    quarantined_ever: int = 0
    redriven: int = 0

    def add(self, shelf: int, items: int, size: int) -> None:
        """So many more (or less) lie on *shelf*."""
        self.items[shelf] += items
        self.sizes[shelf] += size

    def move(self, source: int, target: int, items: int, size: int) -> None:
        """So many went from one shelf to another."""
        self.add(source, -items, -size)
        self.add(target, items, size)

    @property
    def live_bytes(self) -> int:
        """Ready, delayed and leased."""
        return self.sizes[READY] + self.sizes[DELAYED] + self.sizes[LEASED]

    def copy(self) -> "Ledger":
        """One that can be put back if a step fails."""
        return Ledger(
            self.items.copy(),
            self.sizes.copy(),
            self.put,
            self.acked,
            self.expired,
            self.replaced,
            self.dropped,
            self.purged,
            self.redelivered,
            self.died,
            self.quarantined_ever,
            self.redriven,
        )

    def dump(self) -> list[int]:
        """All of it, for `load`."""
        return [*self.items, *self.sizes, *(getattr(self, name) for name in TOTALS)]

    @classmethod
    def load(cls, values: Sequence[int]) -> "Ledger":
        """What `dump` gave."""
        n = len(SHELVES)
        return cls(list(values[:n]), list(values[n : 2 * n]), *values[2 * n :])

    def counts(self, oldest_age: float | None) -> Counts:
        """For the user."""
        ready, delayed, leased, dead, quarantined = map(Amount, self.items, self.sizes)
        return Counts(
            ready=ready,
            delayed=delayed,
            leased=leased,
            dead=dead,
            quarantined=quarantined,
            oldest_age=oldest_age,
            **{name: getattr(self, name) for name in TOTALS},
        )


class Tags:
    """
    Makes the tags of deliveries, and reads them.

    Every opening of a store draws its own random word, so that no restart, and no file put back from a
    backup, ever gives out a tag again.
    """

    def __init__(self) -> None:
        self._word = secrets.token_hex(8)
        self._last = 0

    def next_lease(self) -> int:
        """A number that no delivery had before."""
        self._last += 1
        return self._last

    def tag(self, lease: int, entry: int) -> str:
        """What the user gets."""
        return f"{self._word}-{lease:x}-{entry:x}"

    def parse(self, tag: str) -> tuple[int, int] | None:
        """``(lease, entry)``, or None if it is from another opening, or no tag at all."""
        word, _, numbers = tag.partition("-")
        if word != self._word:
            return None
        first, _, second = numbers.partition("-")
        try:
            lease, entry = int(first, 16), int(second, 16)
        except ValueError:
            return None
        # int() takes more spellings than tag() writes
        return (lease, entry) if numbers == f"{lease:x}-{entry:x}" else None


def earlier(moment: float, other: float | None) -> float:
    """The earlier of the two; None is never."""
    return moment if other is None or other >= moment else other


def never(moment: float | None) -> float:
    """None as a moment."""
    return math.inf if moment is None else moment


class Engine(Protocol):
    """
    The steps of `dispatcher.stores.base.Store`, sync and told the time.

    All that can be refused is refused before anything changes. *now* never goes back.
    """

    def create(self, now: float, queues: Sequence[str]) -> None: ...

    def remove(self, now: float, queues: Sequence[str]) -> None: ...

    def queues(self, now: float) -> Sequence[str]: ...

    def put(
        self, now: float, records: Sequence[Record], queues: Sequence[str], options: PutOptions
    ) -> Sequence[Stored]: ...

    def drop_oldest(self, now: float, queue: str, size: int) -> Sequence[Peeked]: ...

    def lease(
        self, now: float, queue: str, limit: int, bytes_max: int | None, ack_timeout: float | None
    ) -> Sequence[Leased]: ...

    def settle(
        self, now: float, acks: Sequence[str], nacks: Sequence[Nack], dead: Sequence[Dead]
    ) -> Sequence[str]: ...

    def extend(self, now: float, tags: Sequence[str], ack_timeout: float | None) -> Sequence[str]: ...

    def release(self, now: float, queue: str) -> int: ...

    def peek(self, now: float, queue: str, limit: int, shelf: int, after: str | None) -> Sequence[Peeked]: ...

    def counts(self, now: float, queue: str) -> Counts: ...

    def sweep(self, now: float) -> int: ...

    def redrive(self, now: float, queue: str, ids: Sequence[str] | None, shelf: int) -> int: ...

    def purge(self, now: float, queue: str, ids: Sequence[str] | None, shelf: int) -> int: ...

    def take_hints(self) -> dict[str, Hint | None]:
        """Of the queues that changed since it was asked last; None: the queue is gone."""
        ...
