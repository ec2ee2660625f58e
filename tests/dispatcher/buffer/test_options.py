"""Each buffer option: what it may be, and the refusal with rule and value."""

import functools
import math
from typing import Any

import attrs
import pytest

from dispatcher import OptionError
from dispatcher.buffer import BlockNewItems, DropOldestBatch, InfiniteGrowth
from dispatcher.buffer.options import BufferOptions


async def asynchronous(item: object) -> int:
    return 1


class AsyncCall:
    async def __call__(self, item: object) -> int:
        return 1


WHOLE = "has to be a whole number of 1 or more"
AGE = "has to be 0 or more (math.inf allowed)"
SECONDS = "has to be more than 0 and finite, or None"
FULL = "has to be BlockNewItems(), DropOldestBatch() or InfiniteGrowth()"
PLAIN = "has to be a plain function, not an async one"

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    *[({"batch_items_max": v}, "batch_items_max", f"{WHOLE}, or None") for v in (0, -1, 1.0, "5", True)],
    *[({"batch_size_max": v}, "batch_size_max", f"{WHOLE}, or None") for v in (0, 2.5)],
    *[({"max_leases": v}, "max_leases", WHOLE) for v in (0, None, 1.5, False)],
    *[({"batch_age_max": v}, "batch_age_max", AGE) for v in (-0.1, math.nan, "1", None, True)],
    *[({"item_age_max": v}, "item_age_max", SECONDS) for v in (0, -1, math.inf, math.nan, "1")],
    *[({"full_behavior": v}, "full_behavior", FULL) for v in (None, BlockNewItems, "block")],
    ({"fifo": 1, "max_leases": 1}, "fifo", "has to be True or False"),
    ({"item_size": 5}, "item_size", "has to be a function, or None"),
    ({"coalesce_by": "key"}, "coalesce_by", "has to be a function, or None"),
    *[({name: asynchronous}, name, PLAIN) for name in ("item_size", "coalesce_by")],
    ({"coalesce_by": AsyncCall()}, "coalesce_by", PLAIN),
    ({"item_size": functools.partial(asynchronous)}, "item_size", PLAIN),
    ({"batch_size_max": 10}, "batch_size_max", "needs item_size"),
    ({"fifo": True, "max_leases": 4}, "max_leases", "has to be 1 with fifo=True"),
    (
        {"full_behavior": BlockNewItems(99)},
        "BlockNewItems.max_items",
        "has to be at least batch_items_max (100)",
    ),
    (
        {"full_behavior": DropOldestBatch(5), "batch_items_max": 6},
        "DropOldestBatch.max_live_items",
        "has to be at least batch_items_max (6)",
    ),
]


@pytest.mark.parametrize(("given", "option", "rule"), REFUSED)
def test_refusal(given: dict[str, Any], option: str, rule: str) -> None:
    """Option, rule and the value got, as attributes and in the text."""
    with pytest.raises(OptionError) as caught:
        BufferOptions(**given)

    error = caught.value
    assert (error.option, error.rule) == (option, rule)
    assert str(error) == f"{option} {rule}, got {error.value!r}"
    if option in given:
        assert error.value is given[option]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="batch_item_max"):
        BufferOptions(batch_item_max=5)  # type: ignore[call-arg]


class TestDefaults:
    def test_are_as_written_down(self) -> None:
        options = BufferOptions()

        assert (options.batch_items_max, options.batch_size_max, options.batch_age_max) == (100, None, 0.2)
        assert (options.max_leases, options.fifo, options.item_age_max) == (4, False, None)
        assert options.full_behavior == BlockNewItems()
        assert (options.bounds.items, options.bounds.size) == (1000, math.inf)

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            BufferOptions().fifo = True  # type: ignore[misc]


class TestSpecialValues:
    def test_none_and_inf_and_zero_are_taken(self) -> None:
        options = BufferOptions(batch_items_max=None, batch_age_max=math.inf, full_behavior=InfiniteGrowth())
        assert options.bounds.items == math.inf
        assert BufferOptions(batch_age_max=0).batch_age_max == 0

    def test_the_largest_item_is_the_smaller_of_batch_and_buffer(self) -> None:
        def sized(**more: Any) -> float:
            return BufferOptions(item_size=len, **more).item_size_limit

        assert sized(batch_size_max=10) == 10
        assert sized(full_behavior=BlockNewItems(100, 7)) == 7
        assert sized(batch_size_max=10, full_behavior=BlockNewItems(100, 12)) == 10
        assert sized(full_behavior=InfiniteGrowth()) == math.inf
