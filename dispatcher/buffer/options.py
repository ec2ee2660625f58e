"""What the buffer is told when it is made."""

import inspect
import math
from collections.abc import Callable, Hashable
from typing import Any, Generic

import attrs
from typing_extensions import TypeVar

from dispatcher.buffer.full import BlockNewItems, Bounds, DropOldestBatch, FullBehavior, InfiniteGrowth
from dispatcher.errors import OptionError

__all__ = ["BufferOptions"]

T_contra = TypeVar("T_contra", contravariant=True, default=object)


def whole(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """A whole number of 1 or more, or None where None is the default."""
    if value is None and attribute.name != "max_leases":
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        rule = "has to be a whole number of 1 or more"
        raise OptionError(
            option=attribute.name,
            rule=rule if attribute.name == "max_leases" else f"{rule}, or None",
            value=value,
        )


def number(value: object) -> bool:
    """A real number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def seconds(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:  # noqa: ANN401
    """More than 0 and finite, or None."""
    if value is not None and not (number(value) and 0 < value < math.inf):
        raise OptionError(
            option=attribute.name, rule="has to be more than 0 and finite, or None", value=value
        )


def plain_function(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Something to call that answers at once, or None."""
    if value is not None and not callable(value):
        raise OptionError(option=attribute.name, rule="has to be a function, or None", value=value)
    for part in (value, getattr(value, "__call__", None)):  # noqa: B004 - the method itself is looked at
        if inspect.iscoroutinefunction(part):
            rule = "has to be a plain function, not an async one"
            raise OptionError(option=attribute.name, rule=rule, value=value)


def flag(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise OptionError(option=attribute.name, rule="has to be True or False", value=value)


@attrs.frozen(kw_only=True)
class BufferOptions(Generic[T_contra]):
    """
    How items become batches, and what happens when there are too many; checked when made.

    Args:
        batch_items_max: A batch is cut at so many items; None: not by count.

        batch_size_max:
            No batch is larger, in units of *item_size*; a single larger item is refused. None: not by
            size. Needs *item_size*.

        item_size:
            Size of an item, a whole number of 1 or more; asked once for each. What it raises comes
            out of ``send``.

        batch_age_max:
            Seconds from a batch's first item until it is cut, if a sender is free then. 0 is natural
            batching: a free sender takes what is there, so that a lone item never waits, and a busy
            sender finds a full batch. ``math.inf``: not by age.

        max_leases: SendFns at once.

        full_behavior:
            `BlockNewItems`, `DropOldestBatch` or `InfiniteGrowth`.

        fifo:
            Oldest data first, always: a batch that waits for its retry holds up all later ones. Needs
            ``max_leases=1``.

        item_age_max:
            Seconds from acceptance, over all retries; older items are dropped (EXPIRED) before the
            next attempt. None: never.

        coalesce_by:
            Latest wins: an item takes the place of an undelivered older one of the same key. What it
            raises comes out of ``send``.

    Raises:
        OptionError: If a value breaks its rule, or two do not go together.
    """

    batch_items_max: int | None = attrs.field(default=100, validator=whole)
    batch_size_max: int | None = attrs.field(default=None, validator=whole)
    item_size: Callable[[T_contra], int] | None = attrs.field(default=None, validator=plain_function)
    batch_age_max: float = attrs.field(default=0.2)
    max_leases: int = attrs.field(default=4, validator=whole)
    full_behavior: FullBehavior = attrs.field(factory=BlockNewItems)
    fifo: bool = attrs.field(default=False, validator=flag)
    item_age_max: float | None = attrs.field(default=None, validator=seconds)
    coalesce_by: Callable[[T_contra], Hashable] | None = attrs.field(default=None, validator=plain_function)

    @batch_age_max.validator
    def _age(self, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not (number(value) and value >= 0):  # type: ignore[operator]
            raise OptionError(
                option=attribute.name, rule="has to be 0 or more (math.inf allowed)", value=value
            )

    @full_behavior.validator
    def _full(self, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not isinstance(value, BlockNewItems | DropOldestBatch | InfiniteGrowth):
            rule = "has to be BlockNewItems(), DropOldestBatch() or InfiniteGrowth()"
            raise OptionError(option=attribute.name, rule=rule, value=value)

    def __attrs_post_init__(self) -> None:
        if self.batch_size_max is not None and self.item_size is None:
            raise OptionError(option="batch_size_max", rule="needs item_size", value=self.batch_size_max)
        if self.fifo and self.max_leases != 1:
            raise OptionError(option="max_leases", rule="has to be 1 with fifo=True", value=self.max_leases)
        _ = self.bounds

    @property
    def bounds(self) -> Bounds:
        """The full behavior's bounds, defaults filled in."""
        return self.full_behavior.bounds(
            self.batch_items_max, self.batch_size_max, sized=self.item_size is not None
        )

    @property
    def item_size_limit(self) -> float:
        """The largest item that can be taken at all."""
        return min(self.bounds.size, math.inf if self.batch_size_max is None else self.batch_size_max)
