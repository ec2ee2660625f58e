"""
Rules of storages' options, each told with the value got.
"""

import re
from collections.abc import Callable
from typing import Any

import attrs

__all__ = ["one_of", "positive", "positive_or_none", "table_name"]

_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}\Z")


def positive(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    """More than 0."""
    if not value > 0:
        msg = f"{attribute.name} must be more than 0, got {value!r}"
        raise ValueError(msg)


def positive_or_none(_: object, attribute: "attrs.Attribute[Any]", value: float | None) -> None:
    """More than 0, or None."""
    if value is not None and not value > 0:
        msg = f"{attribute.name} must be more than 0, got {value!r}"
        raise ValueError(msg)


def one_of(*values: str) -> Callable[[object, "attrs.Attribute[Any]", str], None]:
    """One of *values*."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: str) -> None:
        if value not in values:
            msg = f"{attribute.name} must be one of {', '.join(map(repr, values))}, got {value!r}"
            raise ValueError(msg)

    return check


def table_name(_: object, attribute: "attrs.Attribute[Any]", value: str) -> None:
    """A name that needs no quoting, with room for what is put behind it."""
    if not _TABLE.match(value):
        msg = f"{attribute.name} is 1 to 40 letters, digits and '_', not starting with a digit, got {value!r}"
        raise ValueError(msg)
