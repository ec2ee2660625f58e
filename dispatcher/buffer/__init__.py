"""
Items in, batches out, leases back: the pure part of a channel.

Reads no clock, waits for nothing, and is not safe for use from several threads.
"""

from dispatcher.buffer.batch import Batch
from dispatcher.buffer.full import BlockNewItems, DropOldestBatch, FullBehavior, InfiniteGrowth
from dispatcher.buffer.outcome import DropReason, ItemDropped, ItemFailed, Outcome, OutcomeError, Status
from dispatcher.buffer.stats import ChannelStatistics

__all__ = [
    "Batch",
    "BlockNewItems",
    "ChannelStatistics",
    "DropOldestBatch",
    "DropReason",
    "FullBehavior",
    "InfiniteGrowth",
    "ItemDropped",
    "ItemFailed",
    "Outcome",
    "OutcomeError",
    "Status",
]
