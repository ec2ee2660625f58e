"""
Ready-made hooks for ``on_error`` and ``on_drop``.

The first two are the defaults. All of them are quick and never raise.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import anyio

from dispatcher.buffer.batch import Batch
from dispatcher.buffer.outcome import DropReason
from dispatcher.errors import AddError, ChannelMisuse

__all__ = ["Report", "Summarized", "log_drops", "log_errors", "quiet", "report", "summarized"]

_LOG = logging.getLogger("dispatcher")

_LEVELS = {
    DropReason.FULL: logging.INFO,
    DropReason.EXPIRED: logging.INFO,
    DropReason.SUPERSEDED: logging.DEBUG,
    DropReason.CANCELLED: logging.WARNING,
    DropReason.KEPT: logging.INFO,
    DropReason.FAILED: logging.ERROR,
}


def log_errors(batch: Batch[Any], error: Exception) -> None:
    """Log a failed attempt as a warning, with its error's type and text; the default ``on_error``."""
    _LOG.warning(
        "batch %d, attempt %d: %d items failed: %s: %s",
        batch.id,
        batch.attempt,
        len(batch),
        type(error).__name__,
        error,
    )


def log_drops(batch: Batch[Any], reason: DropReason) -> None:
    """
    Log what is lost; the default ``on_drop``.

    As an error what was given up, as a warning what a cancellation dropped, else as information.
    """
    _LOG.log(_LEVELS[reason], "batch %d: %d items dropped: %s", batch.id, len(batch), reason.value)


def quiet(batch: Batch[Any], what: object) -> None:
    """Say nothing, as ``on_error`` or as ``on_drop``."""


class Summarized:
    """Counts drops, and logs the counts now and then; made by `summarized`."""

    def __init__(self, every: float, clock: Callable[[], float]) -> None:
        self._every = every
        self._clock = clock
        self._since = clock()
        self._counts: Counter[DropReason] = Counter()

    def __call__(self, batch: Batch[Any], reason: DropReason) -> None:
        """Count, and log if the last time is long enough ago."""
        self._counts[reason] += len(batch)
        if self._clock() - self._since >= self._every:
            self.flush()

    def flush(self) -> None:
        """Log what has been counted since the last time, if anything was."""
        now = self._clock()
        if self._counts:
            counts = ", ".join(f"{reason.value} {count}" for reason, count in sorted_counts(self._counts))
            level = max(_LEVELS[reason] for reason in self._counts)
            _LOG.log(level, "items dropped in %.1f s: %s", now - self._since, counts)
        self._counts.clear()
        self._since = now


def sorted_counts(counts: Counter[DropReason]) -> list[tuple[DropReason, int]]:
    """By name of the reason, so that lines can be compared."""
    return sorted(counts.items(), key=lambda entry: entry[0].value)


def summarized(every: float, *, clock: Callable[[], float] = time.monotonic) -> Summarized:
    """
    Make an ``on_drop`` that logs sums instead of batches.

    Args:
        every: Seconds between two log lines, at least; what is left is logged when the channel is
            drained.

        clock: Monotonic seconds.
    """
    return Summarized(every, clock)


class Sink(Protocol):
    """Where `report` puts things: one of anyio's object send streams, or a Channel."""

    def send_nowait(self, item: Any, /) -> object:  # noqa: ANN401 - whatever the stream carries
        """Take *item* or raise ``anyio.WouldBlock``."""
        ...


class Report:
    """Passes (batch, error or reason) on; made by `report`."""

    def __init__(self, stream: Sink) -> None:
        self._stream = stream
        self.missed = 0
        """How many did not fit, or came while the stream was closed."""

    def __call__(self, batch: Batch[Any], what: Any) -> None:  # noqa: ANN401 - an error or a reason
        """Put the pair into the stream, or count it as missed."""
        try:
            self._stream.send_nowait((batch, what))
        except (
            anyio.WouldBlock,
            anyio.ClosedResourceError,
            anyio.BrokenResourceError,
            AddError,  # by a Channel with item_size
            ChannelMisuse,  # by a Channel that is not open yet
        ):
            self.missed += 1


def report(stream: Sink) -> Report:
    """
    Make a hook, for ``on_error`` or ``on_drop``, that puts ``(batch, error or reason)`` into *stream*.

    Never waits: what does not fit is counted in ``missed``.
    """
    return Report(stream)
