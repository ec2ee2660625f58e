"""
The grid: settings of a channel that a sweep compares, and how they are written on a command line. Pure.
"""

import math
import re
from collections.abc import Callable, Sequence

import attrs

from dispatcher import BlockNewItems, ChannelOptions, OptionError

__all__ = [
    "DEFAULT",
    "BadArgument",
    "Cell",
    "Grid",
    "Point",
    "duration",
    "durations",
    "octets",
    "pasted",
    "sizes",
    "wholes",
    "written_duration",
]

Point = tuple[int, int, int]
"""A cell's place on the grid: indices on the axes of items, age and leases."""

_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_SIZES = {"": 1, "B": 1, "kB": 1000, "KiB": 1024, "MB": 1000_000, "MiB": 1024 * 1024}


class BadArgument(OptionError):
    """An argument of the command line breaks its rule; nothing was run."""


def duration(text: str, name: str = "a duration") -> float:
    """
    Seconds from ``50ms``, ``0.2s``, ``20us`` or a bare number of seconds.

    Raises:
        BadArgument: If it is written otherwise, or negative.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|ms|us|µs|)", text.strip())
    if found is None:
        raise BadArgument(option=name, rule="is written as 50ms, 0.2s, 20us or seconds", value=text)
    return float(found[1]) * _UNITS[found[2]]


def octets(text: str, name: str = "a size") -> int:
    """
    Octets from ``100``, ``10kB`` or ``1MiB``.

    Raises:
        BadArgument: If it is written otherwise, or less than 1.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*(B|kB|KiB|MB|MiB|)", text.strip())
    value = int(float(found[1]) * _SIZES[found[2]]) if found is not None else 0
    if value < 1:
        raise BadArgument(option=name, rule="is written as 100, 10kB or 1MiB, and is 1 or more", value=text)
    return value


def written_duration(seconds: float) -> str:
    """The shortest spelling that people read at a glance: ``0``, ``20µs``, ``1.5ms``, ``0.2s``."""
    if seconds == 0:
        return "0"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.1 * scale * (10 if unit == "ms" else 1):
            return f"{seconds / scale:.3g}{unit}"
    return f"{seconds / 1e-6:.3g}µs"


def _listed(text: str, name: str, read: Callable[[str, str], float]) -> tuple[float, ...]:
    values = tuple(read(part, name) for part in text.split(","))
    if sorted(set(values)) != list(values):
        raise BadArgument(option=name, rule="has to rise from value to value", value=text)
    return values


def _whole(text: str, name: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise BadArgument(
            option=name, rule="takes whole numbers of 1 or more, as 1..1024 or 10,100,1000", value=text
        )
    return int(text)


def wholes(text: str, name: str) -> tuple[int, ...]:
    """
    An axis of whole numbers.

    Args:
        text: ``10,100,1000``: these; ``1..1024``: both ends, and in between the powers of two and their
            middles (1, 2, 3, 4, 6, 8, 12, …).

        name: Of the option, for errors.

    Raises:
        BadArgument: If it is written otherwise, or does not rise.
    """
    first, dots, last = text.partition("..")
    if not dots:
        return tuple(int(value) for value in _listed(text, name, _whole))
    low, high = _whole(first, name), _whole(last, name)
    if low > high:
        raise BadArgument(option=name, rule="has to rise from value to value", value=text)
    steps = {value for power in range(high.bit_length()) for value in (1 << power, 3 << power >> 1)}
    return tuple(sorted({low, high} | {value for value in steps if low < value < high}))


def durations(text: str, name: str) -> tuple[float, ...]:
    """An axis of times, as ``0,5ms,0.2s``; raises `BadArgument` as `duration`, or if it does not rise."""
    return _listed(text, name, duration)


def sizes(text: str, name: str) -> tuple[int, ...]:
    """Sizes as ``100,10kB``; raises `BadArgument` as `octets`, or if they do not rise."""
    return tuple(int(value) for value in _listed(text, name, octets))


@attrs.frozen
class Cell:
    """One setting of the options that are swept, under their own names in `ChannelOptions`."""

    batch_items_max: int
    batch_age_max: float
    max_leases: int

    @property
    def max_items(self) -> int:
        """
        Room for what all senders hold and the batch that is being filled, the default's 1 000 at least.

        With less, a sender could not fill the next batch while the others are busy, and the sweep
        would measure the buffer.
        """
        return max(1000, self.batch_items_max * (self.max_leases + 1))

    def options(self) -> ChannelOptions[object]:
        """The channel's options, hooks and retry policy as they are by default."""
        return ChannelOptions(
            batch_items_max=self.batch_items_max,
            batch_age_max=self.batch_age_max,
            max_leases=self.max_leases,
            full_behavior=BlockNewItems(max_items=self.max_items),
        )

    def __str__(self) -> str:
        age = written_duration(self.batch_age_max)
        return f"{self.batch_items_max} items, age {age}, {self.max_leases} leases"


_PLAIN = ChannelOptions[object]()
DEFAULT = Cell(_PLAIN.batch_items_max or 100, _PLAIN.batch_age_max, _PLAIN.max_leases)
"""What a channel does if it is told nothing."""


def pasted(cell: Cell) -> str:
    """The setting as Python, to be pasted; ``full_behavior`` only where the default has too little room."""
    lines = [
        f"batch_items_max={cell.batch_items_max}",
        f"batch_age_max={cell.batch_age_max:g}",
        f"max_leases={cell.max_leases}",
    ]
    if cell.max_items > max(1000, cell.batch_items_max):
        lines.append(f"full_behavior=BlockNewItems(max_items={cell.max_items})")
    return "ChannelOptions(\n" + "".join(f"    {line},\n" for line in lines) + ")"


@attrs.frozen
class Grid:
    """Every cell that could be tried."""

    items: Sequence[int]
    ages: Sequence[float]
    leases: Sequence[int]

    @property
    def shape(self) -> Point:
        """How many values each axis has."""
        return len(self.items), len(self.ages), len(self.leases)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def cell(self, point: Point) -> Cell:
        """The setting at *point*."""
        item, age, lease = point
        return Cell(self.items[item], self.ages[age], self.leases[lease])

    def nearest(self, cell: Cell) -> Point:
        """The point next to *cell*, by ratio where that makes sense."""

        def index(values: Sequence[float], wanted: float) -> int:
            return min(range(len(values)), key=lambda n: abs(math.log((values[n] + 1e-4) / (wanted + 1e-4))))

        return (
            index(self.items, cell.batch_items_max),
            index(self.ages, cell.batch_age_max),
            index(self.leases, cell.max_leases),
        )
