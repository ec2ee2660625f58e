"""
What a benchmark is, and what its samples say.

Pure: runs nothing and reads no clock. A row has a subject and, mostly, a yardstick; the two take
turns, and what counts is the ratio of neighbours, for a machine that slows down slows both.
"""

import re
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Self

import attrs

__all__ = [
    "GROUPS",
    "Bar",
    "Result",
    "Row",
    "Sides",
    "Spread",
    "Unavailable",
    "at_least",
    "at_most",
    "is_behind",
    "more_is_better",
    "ratios",
    "subject_first",
    "summarise",
    "summarise_samples",
]

GROUPS = {
    "core": "what has a bar, and what stands beside it",
    "peers": "the channel beside other packages",
    "mail-matrix": "sizes, sessions, connections and other mail servers",
    "mail-rest": "the other combinations of these",
}
"""Which rows run together, and what they are; `core` runs when nothing is asked for."""


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

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read what `str` wrote: ``>= 1.5x`` bounds a ratio, ``<= 20`` a value.

        Raises:
            ValueError: If it is something else.
        """
        if (found := re.fullmatch(r"(>=|<=) ([0-9.e+-]+)(x?)", text)) is None:
            msg = f"a bar reads like '>= 1.5x' or '<= 20', got {text!r}"
            raise ValueError(msg)
        sign, number, ratio = found.groups()
        bound = "lowest" if sign == ">=" else "highest"
        return cls(of="ratio" if ratio else "value", **{bound: float(number)})

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

        unit: Of the numbers that the sides return. A rate ends in ``/s``, and more of it is better; of all else less is.

        bar: What it has to reach; None for a figure that is only shown.

        turns: How many pairs are measured. Many short ones beat few long ones: a disturbance spoils few.

        group: One of `GROUPS`.

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
    group: str = attrs.field(default="core", validator=attrs.validators.in_(GROUPS))
    open: Callable[[float], AbstractContextManager[Sides]]


@attrs.frozen(kw_only=True)
class Spread:
    """What a row's turns say together."""

    median: float
    lower: float
    """A quarter of the turns lies below; with one turn, that one."""

    upper: float
    """A quarter of the turns lies above."""

    lowest: float
    highest: float

    @classmethod
    def over(cls, samples: Sequence[float]) -> Self:
        """
        Take it from the turns.

        Raises:
            ValueError: If there is none.
        """
        if not samples:
            msg = "a spread is taken over at least one sample, got 0"
            raise ValueError(msg)
        median = statistics.median(samples)
        lower, _, upper = (
            statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [median] * 3
        )
        return cls(
            median=median,
            lower=lower,
            upper=upper,
            lowest=min(samples),
            highest=max(samples),
        )


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
    lower: float
    """Of the same: a quarter of the turns lies below."""

    upper: float
    """A quarter lies above."""

    bar: str
    """As `Bar` writes it; ``""`` for none."""

    holds: bool | None
    """None where there is no bar."""

    samples: tuple[tuple[float, ...], tuple[float, ...]]
    """Every turn as measured: the subject's, the yardstick's."""


def more_is_better(unit: str) -> bool:
    """Whether a higher number is the better one: of rates; of seconds, octets and wake-ups it is not."""
    return unit.endswith("/s")


def is_behind(result: Result) -> bool:
    """Whether the yardstick does better, and in more than three quarters of the turns: nothing to leave unsaid."""
    if result.ratio is None:
        return False
    return result.upper < 1 if more_is_better(result.unit) else result.lower > 1


def subject_first(turn: int) -> bool:
    """Who goes first alternates, so that neither always finds the other's warm caches."""
    return turn % 2 == 0


def ratios(subject: Sequence[float], yardstick: Sequence[float]) -> list[float]:
    """
    Compare neighbours, turn by turn; a yardstick of nothing counts as infinitely less.

    Raises:
        ValueError: If the two differ in number.
    """
    return [
        mine / theirs if theirs else (1.0 if not mine else float("inf"))
        for mine, theirs in zip(subject, yardstick, strict=True)
    ]


def summarise_samples(
    name: str, unit: str, bar: Bar | None, subject: Sequence[float], yardstick: Sequence[float]
) -> Result:
    """
    Reduce the samples of a row, whether it just ran or was read from a file.

    Args:
        name: The row's.

        unit: Of the samples.

        bar: What the row has to reach, if anything.

        subject: One number per turn.

        yardstick: The neighbours, in the same order; empty where there is none.

    Raises:
        ValueError: If there is no sample, or the two differ in number.
    """
    if not subject or (yardstick and len(yardstick) != len(subject)):
        msg = f"{name}: pairs of samples are wanted, got {len(subject)} and {len(yardstick)}"
        raise ValueError(msg)
    spread = Spread.over(ratios(subject, yardstick) if yardstick else subject)
    value, ratio = statistics.median(subject), spread.median if yardstick else None
    judged = ratio if bar is not None and bar.of == "ratio" else value
    return Result(
        name=name,
        unit=unit,
        subject=value,
        yardstick=statistics.median(yardstick) if yardstick else None,
        ratio=ratio,
        lowest=spread.lowest,
        highest=spread.highest,
        lower=spread.lower,
        upper=spread.upper,
        bar=str(bar) if bar is not None else "",
        holds=bar.holds(judged) if bar is not None and judged is not None else None,
        samples=(tuple(subject), tuple(yardstick)),
    )


def summarise(row: Row, subject: Sequence[float], yardstick: Sequence[float]) -> Result:
    """The same for a row that just ran."""
    return summarise_samples(row.name, row.unit, row.bar, subject, yardstick)
