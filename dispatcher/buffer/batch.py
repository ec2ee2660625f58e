"""
A batch, twice: `BufferedBatch` is what the buffer keeps over all attempts, `Batch` what one attempt gets.

Positions mean something within one attempt only: what the attempt delivered is gone from the next one.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Protocol, overload

from typing_extensions import TypeVar

from dispatcher.buffer.outcome import Ticket
from dispatcher.errors import StaleBatch, UnknownPosition

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Batch", "BufferedBatch", "Watch", "Where"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_NO_ERRORS: Mapping[int, Exception] = MappingProxyType({})


class Where(enum.Enum):
    """Where a buffered batch is; OPEN -> WAITING -> LEASED -> WAITING (a retry) or GONE."""

    OPEN = "open"
    WAITING = "waiting"
    LEASED = "leased"
    GONE = "gone"


class Watch:
    """Counts down as batches go; its maker subclasses it to hear of the last one."""

    __slots__ = ("remaining",)

    def __init__(self) -> None:
        self.remaining = 0

    def gone(self) -> None:
        """One of the watched batches has all its outcomes."""
        self.remaining -= 1


class BufferedBatch(Generic[T]):
    """One batch from its first item to its last outcome; plain state, changed by the buffer alone."""

    # Set by the buffer where items have an age.
    expires_at: float

    __slots__ = (
        "attempts",
        "created_at",
        "dropped",
        "expires_at",
        "first_leased_at",
        "id",
        "items",
        "lease",
        "meta",
        "next_send_at",
        "revision",
        "size",
        "synthetic",
        "tickets",
        "watches",
        "where",
    )

    def __init__(self, batch_id: int, now: float, *, synthetic: bool = False) -> None:
        self.id = batch_id
        self.items: list[T] = []
        # Shorter than items where the last ones have none; padded by whoever needs a position.
        self.tickets: list[Ticket | None] = []
        self.size = 0
        self.created_at = now
        self.next_send_at = now
        self.first_leased_at = now
        self.attempts = 0
        # How often items left between attempts: part of the idempotency key.
        self.revision = 0
        self.meta: dict[Any, Any] | None = None
        self.where = Where.OPEN
        self.lease: Batch[T] | None = None
        self.dropped = False
        self.synthetic = synthetic
        self.watches: list[Watch] | None = None

    def pad(self) -> list[Ticket | None]:
        """The tickets, one entry per item."""
        tickets = self.tickets
        missing = len(self.items) - len(tickets)
        if missing:
            tickets.extend([None] * missing)
        return tickets


class Owner(Protocol):
    """Whoever leased a batch out and hears of its marks."""

    def mark_done(self, batch: "Batch[Any]", positions: "Iterable[int]") -> None:
        """These are delivered."""
        ...


class Batch(Sequence[T_co]):
    """
    One attempt at one batch: a sequence over `items`, which stays as it is.

    Made by the channel, never by users (in tests, a `dispatcher.testing.RecordingSender` gets real ones).
    Marks may be set while the SendFn runs; what stays unmarked shares the attempt's fate.
    """

    __slots__ = (
        "_done",
        "_errors",
        "_lot",
        "_owner",
        "_revision",
        "_run",
        "attempt",
        "created_at",
        "error",
        "id",
        "items",
        "size",
        "synthetic",
    )

    def __init__(
        self,
        lot: BufferedBatch[T_co],
        items: tuple[T_co, ...],
        owner: Owner | None,
        run: str,
        of: "Batch[Any] | None" = None,
    ) -> None:
        self.items = items
        """The items, in the order of acceptance."""
        self.id = lot.id
        """Grows by one from batch to batch within a run of the channel."""
        self.attempt = lot.attempts
        """1 at first."""
        self.size = lot.size
        """Sum of the items' sizes by ``item_size``; 0 without it."""
        self.synthetic = lot.synthetic
        """A heartbeat (``min_qps``): there are no items."""
        self.created_at = lot.created_at
        """When the first item came, by the clock of the event loop (seconds)."""
        self.error: Exception | None = None
        """For hooks: what the attempt failed with."""
        self._lot = lot
        self._owner = owner  # None: the attempt has ended
        self._run = run
        self._revision: int = lot.revision if of is None else of._revision  # noqa: SLF001 - its own kind
        self._done: set[int] | None = None
        self._errors: dict[int, Exception] | None = None

    @property
    def key(self) -> str:
        """
        An idempotency key: unique over processes, the same while the items are the same.

        A retry of the same items has the same key; once some of them left, it is new.
        """
        return f"{self._run}-{self.id}-{self._revision}"

    @property
    def meta(self) -> dict[Any, Any]:
        """Yours to write: a dict that stays with the batch over its retries."""
        lot = self._lot
        if lot.meta is None:
            lot.meta = {}
        return lot.meta

    @property
    def errors(self) -> Mapping[int, Exception]:
        """Position -> error, of the items marked as failed; for hooks, of every item that failed."""
        return _NO_ERRORS if self._errors is None else MappingProxyType(self._errors)

    def done(self, *positions: int) -> None:
        """
        Mark items as delivered, at once; a mark as failed is taken back.

        Raises:
            UnknownPosition: If there is no such item; then none is marked.

            StaleBatch: If the attempt has ended; nothing is changed.
        """
        owner = self._check(positions)
        already = self._done
        fresh = set(positions) if already is None else set(positions) - already
        if not fresh:
            return
        if self._errors:
            for position in fresh:
                self._errors.pop(position, None)
        self._done = fresh if already is None else already | fresh
        owner.mark_done(self, fresh)

    def fail(self, position: int, error: Exception) -> None:
        """
        Mark one item as failed; what becomes of it is judged when the attempt ends.

        Args:
            position: Its index in this batch.

            error: The Exception that the retry policy and the hooks will see; a second mark replaces
                the first.

        Raises:
            UnknownPosition: If there is no such item.

            StaleBatch: If the attempt has ended, or the item is delivered; nothing is changed.

            TypeError: If *error* is no Exception.
        """
        self._check((position,))
        _check_error(error)
        if self._done is not None and position in self._done:
            msg = f"item {position} of batch {self.id} is delivered already"
            raise StaleBatch(msg)
        if self._errors is None:
            self._errors = {}
        self._errors[position] = error

    def _check(self, positions: tuple[int, ...]) -> Owner:
        if self._owner is None:
            msg = f"attempt {self.attempt} of batch {self.id} has ended"
            raise StaleBatch(msg)
        length = len(self.items)
        for position in positions:
            if not isinstance(position, int) or not 0 <= position < length:
                raise UnknownPosition(position, length)
        return self._owner

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T_co, ...]: ...
    def __getitem__(self, index: int | slice) -> T_co | tuple[T_co, ...]:
        return self.items[index]

    def __iter__(self) -> Iterator[T_co]:
        return iter(self.items)

    def __contains__(self, value: object) -> bool:
        return value in self.items

    def __repr__(self) -> str:
        return f"<Batch {self.id}, attempt {self.attempt}, {len(self.items)} items>"


def _check_error(error: object) -> None:
    if not isinstance(error, Exception):  # a class instead of an instance, most often
        msg = f"a mark takes an Exception, got {error!r}"
        raise TypeError(msg)
