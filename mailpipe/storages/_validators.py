"""
Rules of storages' options, each told with the value got.
"""

from collections.abc import Callable
from typing import Any

import attrs

__all__ = ["one_of", "positive", "positive_or_none"]


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
