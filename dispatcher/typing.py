"""What users implement."""

from collections.abc import Sequence
from typing import Any, Protocol

from typing_extensions import TypeVar

from dispatcher.buffer.batch import Batch
from dispatcher.buffer.outcome import DropReason

__all__ = ["Codec", "DropFn", "ErrorFn", "Limiter", "SendFn"]

T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True, default=None)


class SendFn(Protocol[T_contra, R_co]):
    """
    Sends one batch; the one function that every channel needs.

    Returning delivers every item that is not marked as failed. Raising fails every item that is not
    marked as done; whether it is tried again is the retry policy's business. It runs in the context
    (``contextvars``) of whoever opened the channel, as one of up to ``max_leases`` at once, and may be
    cancelled (``send_timeout``, ``cancel()``). It must not wait for its own channel.
    """

    async def __call__(self, batch: Batch[T_contra], /) -> Sequence[R_co] | None:
        """
        Send *batch*.

        Returns:
            None, or one result per item, which is what the items' receipts get. Looked at only if
            the batch carries receipts; entries of items that are marked are ignored.
        """
        ...


class ErrorFn(Protocol[T_contra]):
    """Hears of every failed attempt; a plain function, run on the stack of what caused it."""

    def __call__(self, batch: Batch[T_contra], error: Exception, /) -> bool | None:
        """
        Judge a failed attempt.

        Args:
            batch: Only what failed; `Batch.errors` has each item's own error.

            error: What the SendFn raised, else the single mark, else a group of the marks.

        Returns:
            True to try again (the policy's ``stop=`` still holds), False to give up, None to let the
            policy judge each item by its own error.
        """
        ...


class DropFn(Protocol[T_contra]):
    """
    Hears of everything that leaves undelivered; a plain function, run on the stack of what caused it.

    If it has a method ``flush()``, that is called once, when the channel is drained.
    """

    def __call__(self, batch: Batch[T_contra], reason: DropReason, /) -> object:
        """*batch* holds only what left; *reason* is FAILED for what was given up or refused."""
        ...


class Limiter(Protocol):
    """What limits the calls per second: ``aiolimiter.AsyncLimiter``, `dispatcher.limits.Rate`, or yours."""

    async def acquire(self, amount: float = 1, /) -> Any:  # noqa: ANN401 - whatever it returns is ignored
        """Return once *amount* calls may be made; it is asked for 1 at a time, by one task."""
        ...


T = TypeVar("T")


class Codec(Protocol[T]):
    """Items as bytes and back; `dispatcher.codecs` has some."""

    def encode(self, item: T, /) -> bytes:
        """Write *item*; what it raises refuses the item, as `CodecError`."""
        ...

    def decode(self, payload: bytes, /) -> T:
        """Read an item; what it raises sets the record aside as a dead letter."""
        ...


class Policy(Protocol):
    """What the coordinator asks of a retry policy; `dispatcher.retry.RetryPolicy` is the one there is."""

    def next_delay(
        self,
        error: Exception,
        *,
        attempt: int,
        first_at: float,
        now: float,
        at_least: float,
        wanted: bool,
    ) -> float | None:
        """
        Judge one error.

        Args:
            error: What the attempt failed with.

            attempt: Its number, from 1.

            first_at: When the first one began.

            now: When this one ended.

            at_least: What the receiver asked for (`RetryAfter`), in seconds.

            wanted: A hook asked for a retry; only the policy's ``stop=`` may refuse it.

        Returns:
            Seconds until the next attempt, or None to give up.
        """
        ...
