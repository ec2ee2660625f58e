"""Counts of one channel, as of one moment."""

from collections.abc import Mapping

import attrs

from dispatcher.buffer.outcome import DropReason

__all__ = ["ChannelStatistics"]


@attrs.frozen(kw_only=True, slots=True)
class ChannelStatistics:
    """
    A snapshot of one channel; exact at every moment.

    ``accepted == delivered + failed + dropped_items + live``, always. Heartbeats are in no item count.
    """

    unleased_items: int
    """Buffered: in the open batch, or in batches that wait for a sender or for their retry."""

    unleased_size: int
    leased_items: int
    """With a SendFn at this moment, those marked for dropping not counted."""

    leased_size: int
    dropped_leased_items: int
    """With a SendFn, and to be dropped should it fail (`DropOldestBatch`)."""

    dropped_leased_size: int
    leases: int
    """SendFns running now, heartbeats included."""

    waiters: int
    """Senders blocked on a full buffer."""

    accepted: int
    """Items taken so far; the counts below are of so far, too."""

    delivered: int
    failed: int
    dropped: Mapping[DropReason, int]
    """By reason; a reason that never occurred is 0."""

    batches: int
    """Batches sent or dropped so far plus those waiting, heartbeats not counted."""

    attempts: int
    """Calls of SendFn, retries and heartbeats included."""

    retries: int
    """Attempts beyond each batch's first."""

    heartbeats: int
    """Synthetic batches sent to keep up ``min_qps``."""

    @property
    def live(self) -> int:
        """Items without an outcome: buffered or leased."""
        return self.unleased_items + self.leased_items + self.dropped_leased_items

    @property
    def dropped_items(self) -> int:
        """Items dropped so far, for whatever reason."""
        return sum(self.dropped.values())
