"""Bounds: their defaults, and every refusal with its rule and value."""

import math
from typing import Any

import pytest

from dispatcher import OptionError
from dispatcher.buffer import BlockNewItems, DropOldestBatch, InfiniteGrowth
from dispatcher.buffer.full import Bounds

BOUNDED = pytest.mark.parametrize(
    ("behavior", "items", "size"),
    [
        (BlockNewItems, "BlockNewItems.max_items", "BlockNewItems.max_size"),
        (DropOldestBatch, "DropOldestBatch.max_live_items", "DropOldestBatch.max_live_size"),
    ],
)


@BOUNDED
class TestDefaults:
    def test_items_are_1000_or_one_batch(self, behavior: Any, items: str, size: str) -> None:
        assert behavior().bounds(100, None, sized=False) == Bounds(1000, math.inf)
        assert behavior().bounds(3000, None, sized=False) == Bounds(3000, math.inf)
        assert behavior().bounds(None, None, sized=False) == Bounds(1000, math.inf)

    def test_size_is_five_batches(self, behavior: Any, items: str, size: str) -> None:
        assert behavior().bounds(100, 20, sized=True) == Bounds(1000, 100)

    def test_sizes_are_unbounded_where_batches_are(self, behavior: Any, items: str, size: str) -> None:
        assert behavior().bounds(100, None, sized=True).size == math.inf

    def test_one_bound_is_enough(self, behavior: Any, items: str, size: str) -> None:
        assert behavior(math.inf, 50).bounds(100, None, sized=True) == Bounds(math.inf, 50)
        assert behavior(math.inf).bounds(100, 20, sized=True) == Bounds(math.inf, 100)


@BOUNDED
class TestRefusals:
    @pytest.mark.parametrize("value", [0, -1, 0.5, math.nan, "100", True])
    def test_a_bound_is_a_number_of_1_or_more(self, behavior: Any, items: str, size: str, value: Any) -> None:
        with pytest.raises(OptionError) as caught:
            behavior(value).bounds(None, None, sized=True)
        assert str(caught.value) == f"{items} has to be a number of 1 or more, got {value!r}"

        with pytest.raises(OptionError) as caught:
            behavior(10, value).bounds(None, None, sized=True)
        assert str(caught.value) == f"{size} has to be a number of 1 or more, got {value!r}"

    def test_no_bound_is_below_one_batch(self, behavior: Any, items: str, size: str) -> None:
        assert behavior(100, 20).bounds(100, 20, sized=True) == Bounds(100, 20)
        with pytest.raises(OptionError) as caught:
            behavior(99).bounds(100, None, sized=False)
        assert str(caught.value) == f"{items} has to be at least batch_items_max (100), got 99"
        with pytest.raises(OptionError) as caught:
            behavior(100, 19).bounds(100, 20, sized=True)
        assert str(caught.value) == f"{size} has to be at least batch_size_max (20), got 19"

    def test_a_bound_on_sizes_needs_sizes(self, behavior: Any, items: str, size: str) -> None:
        with pytest.raises(OptionError) as caught:
            behavior(100, 20).bounds(100, None, sized=False)
        assert str(caught.value) == f"{size} needs item_size, got 20"

    def test_no_bound_at_all_is_infinite_growth(self, behavior: Any, items: str, size: str) -> None:
        with pytest.raises(OptionError, match=r"is InfiniteGrowth\(\), got inf"):
            behavior(math.inf, math.inf).bounds(None, None, sized=True)


def test_infinite_growth_has_no_bounds() -> None:
    assert InfiniteGrowth().bounds(100, 20, sized=True) == Bounds(math.inf, math.inf)


@pytest.mark.parametrize("behavior", [BlockNewItems, DropOldestBatch, InfiniteGrowth])
def test_full_behaviors_are_final(behavior: type) -> None:
    """Users write none: a type checker refuses it, and the marker says so at run time."""
    assert behavior.__final__  # type: ignore[attr-defined]
