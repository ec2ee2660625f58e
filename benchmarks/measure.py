"""
What a benchmark is, and what its samples say.

Pure: runs nothing and reads no clock. A row has a subject and, mostly, a yardstick; the two take
turns, and what counts is the ratio of neighbours, for a machine that slows down slows both.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import attrs

__all__ = [
    "Bar",
    "Result",
    "Row",
    "Sides",
    "Unavailable",
    "at_least",
    "at_most",
    "subject_first",
    "summarise",
]


class Unavailable(Exception):
    """A row cannot run here (a program is not installed); says which."""


@attrs.frozen(kw_only=True)
class Bar:
    """What a row has to reach: a bound on its ratio, or on its own value."""

    of: str
    """``"ratio"`` (subject / yardstick) or ``"value"``."""

    lowest: float | None = None
    highest: float | None = None

    def holds(self, number: float) -> bool:
        """Whether *number* is inside the bound."""
        above = self.lowest is None or number >= self.lowest
        return above and (self.highest is None or number <= self.highest)

    def __str__(self) -> str:
        sign, number = (">=", self.lowest) if self.lowest is not None else ("<=", self.highest)
        return f"{sign} {number:g}{'x' if self.of == 'ratio' else ''}"


def at_least(ratio: float) -> Bar:
    """The subject does at least *ratio* times what the yardstick does."""
    return Bar(of="ratio", lowest=ratio)


def at_most(number: float, *, of: str = "value") -> Bar:
    """The subject's value (or its ratio to the yardstick) is at most *number*."""
    return Bar(of=of, highest=number)


@attrs.frozen
class Sides:
    """The two things that take turns; each call is one turn and returns one number in the row's unit."""

    subject: Callable[[], float]
    yardstick: Callable[[], float] | None = None


@attrs.frozen(kw_only=True)
class Row:
    """
    One line of the table.

    Args:
        name: How it is asked for on the command line.

        what: What is measured.

        yardstick: What it is measured against; ``""`` for nothing.

        unit: Of the numbers that the sides return.

        bar: What it has to reach; None for a figure that is only shown.

        turns: How many pairs are measured. Many short ones beat few long ones: a disturbance spoils few.

        open:
            Takes a scale (1.0: as published; less: shorter) and sets the sides up; what it
            started, it ends.
    """

    name: str
    what: str
    yardstick: str = ""
    unit: str
    bar: Bar | None = None
    turns: int = 25
    open: Callable[[float], AbstractContextManager[Sides]]


@attrs.frozen(kw_only=True)
class Result:
    """What one row came to: medians, and the ratio of neighbouring turns with its spread."""

    name: str
    unit: str
    subject: float
    yardstick: float | None
    ratio: float | None
    lowest: float
    """Of the ratios; of the subject's own numbers where there is no yardstick."""

    highest: float
    bar: str
    holds: bool | None
    """None where there is no bar."""

    samples: tuple[tuple[float, ...], tuple[float, ...]]
    """Every turn as measured: the subject's, the yardstick's."""


def subject_first(turn: int) -> bool:
    """Who goes first alternates, so that neither always finds the other's warm caches."""
    return turn % 2 == 0


def summarise(row: Row, subject: Sequence[float], yardstick: Sequence[float]) -> Result:
    """
    Reduce a row's samples.

    Args:
        row: The row they belong to.

        subject: One number per turn.

        yardstick: The neighbours, in the same order; empty where there is none.

    Raises:
        ValueError: If there is no sample, or the two differ in number.
    """
    if not subject or (yardstick and len(yardstick) != len(subject)):
        msg = f"{row.name}: pairs of samples are wanted, got {len(subject)} and {len(yardstick)}"
        raise ValueError(msg)
    ratios = [mine / theirs for mine, theirs in zip(subject, yardstick, strict=True)] if yardstick else []
    spread = ratios or subject
    value, ratio = statistics.median(subject), statistics.median(ratios) if ratios else None
    judged = ratio if row.bar is not None and row.bar.of == "ratio" else value
    return Result(
        name=row.name,
        unit=row.unit,
        subject=value,
        yardstick=statistics.median(yardstick) if yardstick else None,
        ratio=ratio,
        lowest=min(spread),
        highest=max(spread),
        bar=str(row.bar) if row.bar is not None else "",
        holds=row.bar.holds(judged) if row.bar is not None and judged is not None else None,
        samples=(tuple(subject), tuple(yardstick)),
    )
