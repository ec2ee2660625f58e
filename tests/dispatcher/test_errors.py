"""The tree of errors: as drawn in its docstring, with attributes first and text computed."""

import inspect
import re
from typing import Any

import pytest

from dispatcher import errors


def test_every_class_is_drawn_under_its_parent() -> None:
    """The tree in the docstring is the tree in the code."""
    parents: list[tuple[int, str]] = []
    drawn: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([| ]*)(\+-- )?([A-Z]\w+)(  |$)", line)
        if not found or not line.startswith("    "):
            continue
        depth = len(found[1]) + len(found[2] or "")
        parents = [entry for entry in parents if entry[0] < depth]
        if parents:
            drawn[found[3]] = parents[-1][1]
        parents.append((depth, found[3]))
    ours = {
        name: cls
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and cls.__module__ == errors.__name__
    }

    assert set(ours) == set(errors.__all__)
    assert {name: drawn.get(name) for name in ours} == {
        name: cls.__mro__[1].__name__ for name, cls in ours.items()
    }


@pytest.mark.parametrize(
    ("error", "attributes", "text"),
    [
        (errors.OptionError(option="o", rule="has to be", value=3), {"option": "o", "value": 3}, "o has to be, got 3"),
        (errors.ItemTooLarge(7, 5), {"size": 7, "limit": 5}, "an item may be at most 5 large, got 7"),
        (errors.ItemTooSmall(0), {"size": 0}, "an item's size is 1 or more, got 0"),
        (errors.BadItemSize("x"), {"size": "x"}, "item_size has to return a whole number, got 'x'"),
        (
            errors.UnknownPosition(9, 3),
            {"position": 9, "length": 3},
            "a position is 0 to 2 in this batch of 3, got 9",
        ),
        (
            errors.ForeignBatch(4),
            {"batch_id": 4},
            "batch 4 is not leased from this buffer (handed back twice?)",
        ),
        (errors.RetryAfter(2.5), {"seconds": 2.5}, "retry after 2.5 s"),
        (errors.RetryAfter(2.5, "busy"), {"seconds": 2.5}, "busy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_attributes_first_then_the_text(error: Exception, attributes: dict[str, Any], text: str) -> None:
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert str(error) == text


def test_misuse_is_a_builtin() -> None:
    """Whoever catches ValueError or RuntimeError catches ours."""
    for error in (errors.OptionError, errors.AddError, errors.UnknownPosition, errors.ForeignBatch):
        assert issubclass(error, ValueError)
    for misuse in (errors.StaleBatch, errors.ChannelMisuse, errors.WouldDeadlock):
        assert issubclass(misuse, RuntimeError)
