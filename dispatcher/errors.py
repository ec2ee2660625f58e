"""
Every error of ours, by whose doing it is.

::

    Exception
    +-- TransientError            raise it from a SendFn: the world's doing, worth another attempt
    |   +-- RetryAfter            the same, and the whole channel waits so many seconds
    |   +-- SendCancelled         a SendFn was cancelled and nobody had asked for it
    |   +-- StoreTrouble          (a StoreError) the disk is full, or fails
    +-- StoreError                a store cannot do what it was asked; it has not done half of it
    |   +-- StoreOwned            another living process has it open
    |   +-- StoreVersionError     written by a version that this one does not understand
    |   +-- StoreCorrupt          damaged beyond single records, or no store at all
    |   +-- StoreUnwritable       a read-only file or folder, or none there
    |   +-- StoreTrouble          the world's doing, the same may work later
    |   |   +-- StoreDiskFull
    |   +-- QueueFull             a put beyond the queue's bytes_max
    |   +-- UnknownQueue          (a LookupError)
    |   +-- StoreClosed           (a RuntimeError) not open yet, or no longer
    +-- BadResults                a SendFn returned something else than one result per item
    +-- OutcomeError              what Outcome.unwrap() and Channel.call() raise
        +-- ItemFailed            .error: the item was tried and given up
        +-- ItemDropped           .reason: the item was never delivered, and nothing failed

    ValueError                    the caller's doing; nothing has changed
    +-- OptionError               an option breaks its rule
    +-- AddError                  an item that no batch can take
    |   +-- ItemTooLarge
    |   +-- ItemTooSmall
    |   +-- BadItemSize           item_size answered something else than a whole number
    |   +-- CodecError            an item that its codec cannot write, or a record that it cannot read
    +-- UnknownPosition           a mark for an item that the batch does not have
    +-- ForeignBatch              a batch that this buffer has not leased out

    RuntimeError                  the caller's doing; nothing has changed
    +-- StaleBatch                a mark on an attempt that has ended, or on a settled item
    +-- ChannelMisuse             entered twice, used before ``async with``
        +-- WouldDeadlock         a SendFn waits for its own channel

`OutcomeError` and its kin stand beside `Outcome` in `dispatcher.buffer.outcome`; ``BufferFull`` (an
``anyio.WouldBlock``) and ``ChannelEnded`` (an ``anyio.ClosedResourceError``) in `dispatcher.channel`,
because this module knows no foreign one.
"""

import math

__all__ = [
    "AddError",
    "BadItemSize",
    "BadResults",
    "ChannelMisuse",
    "CodecError",
    "ForeignBatch",
    "ItemTooLarge",
    "ItemTooSmall",
    "OptionError",
    "QueueFull",
    "RetryAfter",
    "SendCancelled",
    "StaleBatch",
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
]


class TransientError(Exception):
    """Raised by a SendFn: this attempt failed, the next one may not. Retried by default."""


class RetryAfter(TransientError):
    """
    Raised by a SendFn: the receiver wants to be left alone for a while.

    Holds the whole channel, not only this batch; the batch waits at least as long, and longer where
    its retry policy says so.

    Args:
        seconds: How long, from the end of the attempt; 0 or more, finite.

        message: For logs.

    Raises:
        ValueError: If *seconds* is negative or not finite.
    """

    def __init__(self, seconds: float, message: str = "") -> None:
        # A header's text is the likeliest mistake.
        if not (isinstance(seconds, int | float) and 0 <= seconds < math.inf):
            msg = f"RetryAfter takes finite seconds of 0 or more, got {seconds!r}"
            raise ValueError(msg)
        super().__init__(message or f"retry after {seconds:g} s")
        self.seconds = seconds


class SendCancelled(TransientError):
    """A cancellation came out of a SendFn, though neither the channel nor its owner had asked for one."""


class BadResults(Exception):
    """
    A SendFn returned something else than one result per item.

    The unmarked items of the batch fail with it and are not retried: the work is done, only its
    results are lost.
    """


class StoreError(Exception):
    """A store cannot do what it was asked to; it has not done half of it either."""


class StoreOwned(StoreError):
    """Another living process (or another store of this one) has the file open; nothing was touched."""

    def __init__(self, path: str, pid: int | None) -> None:
        owner = "another process" if pid is None else f"process {pid}"
        super().__init__(f"{path} is owned by {owner}, which is alive; a store has one owner")
        self.path, self.pid = path, pid


class StoreVersionError(StoreError):
    """The file was written by a version that this one does not understand; nothing was touched."""

    def __init__(self, path: str, found: int, known: int) -> None:
        super().__init__(f"{path} has format version {found}, this is version {known}")
        self.path, self.found, self.known = path, found, known


class StoreCorrupt(StoreError):
    """The file is damaged beyond single records, or is no store of ours."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} cannot be used: {why}")
        self.path, self.why = path, why


class StoreUnwritable(StoreError):
    """The file or its folder cannot be written to, or is not there."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} cannot be written to: {why}")
        self.path, self.why = path, why


class StoreTrouble(StoreError, TransientError):
    """The world's doing: nothing was changed, and the same call may work later."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


class StoreDiskFull(StoreTrouble):
    """There is no room left on the disk (or in the quota); nothing was stored."""


class QueueFull(StoreError):
    """The records would not fit into the queue; nothing was stored."""

    def __init__(self, queue: str, size: int, held: int, limit: int) -> None:
        super().__init__(
            f"queue {queue!r} may hold bytes_max={limit} bytes and holds {held}; {size} more do not fit"
        )
        self.queue, self.size, self.held, self.limit = queue, size, held, limit


class UnknownQueue(StoreError, LookupError):
    """There is no queue of this name; nothing was done."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"there is no queue {queue!r}")
        self.queue = queue


class StoreClosed(StoreError, RuntimeError):
    """The store is not open: used before ``async with``, or after it."""


class OptionError(ValueError):
    """
    An option breaks its rule; nothing was made.

    Args:
        option: Its name.

        rule: What it has to be.

        value: What it was.
    """

    def __init__(self, *, option: str, rule: str, value: object) -> None:
        super().__init__(f"{option} {rule}, got {value!r}")
        self.option, self.rule, self.value = option, rule, value


class AddError(ValueError):
    """An item that no batch can take; it was not accepted."""


class ItemTooLarge(AddError):
    """The item alone is larger than a whole batch, or the whole buffer, may be."""

    def __init__(self, size: int, limit: float) -> None:
        super().__init__(f"an item may be at most {limit} large, got {size}")
        self.size, self.limit = size, limit


class ItemTooSmall(AddError):
    """The item's size is zero or negative, so no bound on sizes could ever count it."""

    def __init__(self, size: int) -> None:
        super().__init__(f"an item's size is 1 or more, got {size}")
        self.size = size


class BadItemSize(AddError):
    """``item_size`` answered something else than a whole number."""

    def __init__(self, size: object) -> None:
        super().__init__(f"item_size has to return a whole number, got {size!r}")
        self.size = size


class CodecError(AddError):
    """An item that its codec cannot write, so it was not accepted; or a record that it cannot read."""


class UnknownPosition(ValueError):
    """A mark names a position that this attempt does not have."""

    def __init__(self, position: object, length: int) -> None:
        super().__init__(f"a position is 0 to {length - 1} in this batch of {length}, got {position!r}")
        self.position, self.length = position, length


class ForeignBatch(ValueError):
    """A batch was handed back to a buffer that has not leased it out, or has it back already."""

    def __init__(self, batch_id: int) -> None:
        super().__init__(f"batch {batch_id} is not leased from this buffer (handed back twice?)")
        self.batch_id = batch_id


class StaleBatch(RuntimeError):
    """A mark came too late: the attempt has ended, or the item has its outcome already."""


class ChannelMisuse(RuntimeError):
    """A channel was entered twice, or used before ``async with``."""


class WouldDeadlock(ChannelMisuse):
    """A SendFn (or what it started) waits for something that only its own end can bring about."""
