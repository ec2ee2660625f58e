"""
What happens to a new item when the buffer is full.

Three small values; they hold bounds, and the coordinator acts on them. Users write none of their own.
"""

import math
from typing import final

import attrs

from dispatcher.errors import OptionError

__all__ = ["BlockNewItems", "Bounds", "DropOldestBatch", "FullBehavior", "InfiniteGrowth"]


@attrs.frozen(slots=True)
class Bounds:
    """The bounds that hold once the batch options are known; ``inf`` where there is none."""

    items: float
    size: float


def _bounds(
    names: tuple[str, str],
    items: float | None,
    size: float | None,
    batch_items_max: int | None,
    batch_size_max: int | None,
    sized: bool,
) -> Bounds:
    """Fill in the defaults, and refuse bounds that one batch could break."""
    if items is None:
        items = max(1000, batch_items_max or 0)
    if size is None:
        size = 5 * batch_size_max if batch_size_max is not None else math.inf
    for option, value, least, of in (
        (names[0], items, batch_items_max, "batch_items_max"),
        (names[1], size, batch_size_max, "batch_size_max"),
    ):
        # "not" for nan
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 1:
            raise OptionError(option=option, rule="has to be a number of 1 or more", value=value)
        if least is not None and value < least:
            raise OptionError(option=option, rule=f"has to be at least {of} ({least})", value=value)
    if size != math.inf and not sized:
        raise OptionError(option=names[1], rule="needs item_size", value=size)
    if items == math.inf and size == math.inf:
        raise OptionError(
            option=names[0], rule="without a bound, sizes without one, is InfiniteGrowth()", value=items
        )
    return Bounds(items, size)


@final
@attrs.frozen(slots=True)
class BlockNewItems:
    """
    Senders wait, first come first served; nothing is ever dropped.

    Everything without an outcome counts, what is with a SendFn included.

    Args:
        max_items: Default max(1000, ``batch_items_max``); ``math.inf`` for no bound on items.

        max_size:
            In units of ``item_size``. Default 5 x ``batch_size_max`` where that is set, else no bound.
    """

    max_items: float | None = None
    max_size: float | None = None

    def bounds(self, batch_items_max: int | None, batch_size_max: int | None, *, sized: bool) -> Bounds:
        """
        The bounds for these batch options.

        Raises:
            OptionError: If one batch alone could break them.
        """
        names = ("BlockNewItems.max_items", "BlockNewItems.max_size")
        return _bounds(names, self.max_items, self.max_size, batch_items_max, batch_size_max, sized)


@final
@attrs.frozen(slots=True)
class DropOldestBatch:
    """
    Nobody ever waits: the oldest batches are dropped until the new item fits.

    Waiting batches go first, the lowest id before the others; then leased ones (they run on, and are
    delivered if they succeed, but get no further attempt); the open one last. Leased batches that are
    marked so do not count as live.

    Args:
        max_live_items: Default max(1000, ``batch_items_max``); ``math.inf`` for no bound on items.

        max_live_size:
            In units of ``item_size``. Default 5 x ``batch_size_max`` where that is set, else no bound.
    """

    max_live_items: float | None = None
    max_live_size: float | None = None

    def bounds(self, batch_items_max: int | None, batch_size_max: int | None, *, sized: bool) -> Bounds:
        """
        The bounds for these batch options.

        Raises:
            OptionError: If one batch alone could break them.
        """
        names = ("DropOldestBatch.max_live_items", "DropOldestBatch.max_live_size")
        return _bounds(names, self.max_live_items, self.max_live_size, batch_items_max, batch_size_max, sized)


@final
@attrs.frozen(slots=True)
class InfiniteGrowth:
    """The buffer takes everything, as long as there is memory."""

    def bounds(self, batch_items_max: int | None, batch_size_max: int | None, *, sized: bool) -> Bounds:
        """No bounds."""
        return Bounds(math.inf, math.inf)


FullBehavior = BlockNewItems | DropOldestBatch | InfiniteGrowth
