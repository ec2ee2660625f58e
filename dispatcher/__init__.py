"""A batching dispatcher between producers and consumers that run at different speeds."""

from importlib.metadata import version

from dispatcher.buffer.batch import Batch
from dispatcher.buffer.full import BlockNewItems, DropOldestBatch, FullBehavior, InfiniteGrowth
from dispatcher.buffer.outcome import DropReason, ItemDropped, ItemFailed, Outcome, OutcomeError, Status
from dispatcher.buffer.stats import ChannelStatistics
from dispatcher.channel import BufferFull, Channel, ChannelEnded, Receipt, process
from dispatcher.durable import DurableChannel, DurableStatistics
from dispatcher.errors import (
    AddError,
    BadItemSize,
    BadResults,
    ChannelMisuse,
    CodecError,
    ForeignBatch,
    ItemTooLarge,
    ItemTooSmall,
    OptionError,
    QueueFull,
    RetryAfter,
    SendCancelled,
    StaleBatch,
    StoreClosed,
    StoreCorrupt,
    StoreDiskFull,
    StoreError,
    StoreOwned,
    StoreTrouble,
    StoreUnwritable,
    StoreVersionError,
    TransientError,
    UnknownPosition,
    UnknownQueue,
    WouldDeadlock,
)
from dispatcher.limits import Rate
from dispatcher.options import ChannelOptions
from dispatcher.retry import RetryPolicy, is_transient
from dispatcher.typing import Codec, DropFn, ErrorFn, Limiter, SendFn

__all__ = [
    "AddError",
    "BadItemSize",
    "BadResults",
    "Batch",
    "BlockNewItems",
    "BufferFull",
    "Channel",
    "ChannelEnded",
    "ChannelMisuse",
    "ChannelOptions",
    "ChannelStatistics",
    "Codec",
    "CodecError",
    "DropFn",
    "DropOldestBatch",
    "DropReason",
    "DurableChannel",
    "DurableStatistics",
    "ErrorFn",
    "ForeignBatch",
    "FullBehavior",
    "InfiniteGrowth",
    "ItemDropped",
    "ItemFailed",
    "ItemTooLarge",
    "ItemTooSmall",
    "Limiter",
    "OptionError",
    "Outcome",
    "OutcomeError",
    "QueueFull",
    "Rate",
    "Receipt",
    "RetryAfter",
    "RetryPolicy",
    "SendCancelled",
    "SendFn",
    "StaleBatch",
    "Status",
    "StoreClosed",
    "StoreCorrupt",
    "StoreDiskFull",
    "StoreError",
    "StoreOwned",
    "StoreTrouble",
    "StoreUnwritable",
    "StoreVersionError",
    "TransientError",
    "UnknownPosition",
    "UnknownQueue",
    "WouldDeadlock",
    "is_transient",
    "process",
]

__version__ = version("dispatcher-toolkit")
