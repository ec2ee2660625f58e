"""What became of an item."""

import enum
from typing import Any, Generic, cast

import attrs
from typing_extensions import TypeVar

__all__ = ["DropReason", "ItemDropped", "ItemFailed", "Outcome", "OutcomeError", "Status", "Ticket"]

R_co = TypeVar("R_co", covariant=True, default=None)


class Status(enum.Enum):
    """How an item ended."""

    DELIVERED = "delivered"
    FAILED = "failed"
    DROPPED = "dropped"


class DropReason(enum.Enum):
    """Why an item was dropped, or why ``on_drop`` is told of it."""

    FULL = "full"
    """Made room for newer ones (`DropOldestBatch`)."""

    EXPIRED = "expired"
    """Became older than ``item_age_max``."""

    SUPERSEDED = "superseded"
    """A newer item of the same ``coalesce_by`` key took its place."""

    CANCELLED = "cancelled"
    """The channel was cancelled, or the item's owner withdrew it."""

    KEPT = "kept"
    """Left in a durable store; the next run sends it."""

    FAILED = "failed"
    """Given up or refused. Told to ``on_drop`` only: the outcome of such an item is FAILED."""


class OutcomeError(Exception):
    """An item was not delivered; raised by `Outcome.unwrap`, fresh each time."""


class ItemFailed(OutcomeError):
    """
    The item was tried and given up.

    Attributes:
        error: What the last attempt raised, or what the item was marked with; also ``__cause__``.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(f"the item failed: {error!r}")
        self.error = error


class ItemDropped(OutcomeError):
    """
    The item was dropped.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: DropReason) -> None:
        super().__init__(f"the item was dropped: {reason.value}")
        self.reason = reason


@attrs.frozen(slots=True)
class Outcome(Generic[R_co]):
    """What became of one item; the receipts of a batch without results share one."""

    status: Status
    result: R_co | None = None
    """Its entry of what the SendFn returned; None unless DELIVERED, and if nothing was returned."""

    error: Exception | None = None
    """Why it FAILED."""

    reason: DropReason | None = None
    """Why it was DROPPED."""

    def unwrap(self) -> R_co:
        """
        Return the result.

        Raises:
            ItemFailed: If the item failed; a fresh error at each call, so that tracebacks do not pile up.

            ItemDropped: If it was dropped.
        """
        if self.error is not None:
            raise ItemFailed(self.error) from self.error
        if self.reason is not None:
            raise ItemDropped(self.reason)
        return cast("R_co", self.result)


class Ticket:
    """
    What is known of one item beyond the item; made only where an option or a receipt needs it.

    Its owner may subclass it to hear of the outcome: while `listeners` is set, `tell` is called once the
    outcome is there. It has to return at once, and to call nothing of the buffer.
    """

    __slots__ = ("accepted_at", "batch", "key", "listeners", "outcome", "size", "superseded")

    wants_result = False
    """Whether the batch's results have to be looked at for this item's sake."""

    # Set by the buffer when it takes the item; all but the first only where an option asks.
    batch: Any
    size: int
    accepted_at: float
    key: Any
    superseded: bool
    """A newer item of the same key was accepted while this one was with a SendFn."""

    def __init__(self) -> None:
        self.outcome: Outcome[Any] | None = None
        self.listeners: Any = None

    def settle(self, outcome: Outcome[Any]) -> None:
        """The item has its outcome now; called once."""
        self.outcome = outcome
        if self.listeners is not None:
            self.tell()

    def tell(self) -> None:
        """Somebody listens, and `outcome` is there."""
