"""
A run as a picture: each row's ratio with its spread, beside its bar, on a logarithmic axis.
"""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from benchmarks.measure import Bar, Result, more_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Line", "NotDrawn", "check", "draw", "line_of"]

_HERE, _BAR, _EVEN = "#1f5fa8", "#c03020", "#888888"


class NotDrawn(Exception):
    """There is no picture; says why, and what helps."""


@attrs.frozen
class Line:
    """One row on the axis, where more is better whatever was measured."""

    name: str
    median: float
    middle: tuple[float, float]
    whole: tuple[float, float]
    bar: float | None


def line_of(result: Result) -> Line:
    """Where the row stands on the axis; its ratio is finite and not 0."""
    assert result.ratio
    bar = Bar.parse(result.bar) if result.bar else None
    edge = None
    if bar is not None and bar.of == "ratio":
        edge = bar.lowest if bar.lowest is not None else bar.highest

    def turned(ratio: float) -> float:
        return ratio if more_is_better(result.unit) else 1 / ratio

    return Line(
        result.name,
        turned(result.ratio),
        (turned(result.lower), turned(result.upper)),
        (turned(result.lowest), turned(result.highest)),
        turned(edge) if edge else None,
    )


def check(picture: Path) -> None:
    """
    Find out whether there could be such a picture, before anything is measured for it.

    Raises:
        NotDrawn: If its ending is another than ``.svg`` or ``.png``, or matplotlib is missing.
    """
    if picture.suffix not in (".svg", ".png"):
        msg = f"{picture}: a picture's name ends in .svg or .png, got {picture.suffix!r}"
        raise NotDrawn(msg)
    if importlib.util.find_spec("matplotlib") is None:
        msg = f"{picture}: drawing needs matplotlib, which is not installed: pip install --group bench"
        raise NotDrawn(msg)


def draw(results: Sequence[Result], picture: Path) -> None:
    """
    Draw the rows that have a yardstick.

    Args:
        results: Of a run.

        picture: Where to; its ending, ``.svg`` or ``.png``, decides the form.

    Raises:
        NotDrawn: If matplotlib is missing, the ending is another, or no row has a ratio.
    """
    check(picture)
    # A ratio of nothing or of infinity has no place on this axis.
    drawn = [result for result in results if result.ratio and 0 < result.lowest <= result.highest < math.inf]
    if not drawn:
        msg = f"{picture}: no row has a ratio to draw"
        raise NotDrawn(msg)
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    lines = [line_of(one) for one in reversed(drawn)]  # the axis counts upwards, readers read downwards
    # Text stays text in an SVG, and the same run gives the same octets.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 8}):
        figure = Figure(figsize=(7, 0.9 + 0.24 * len(lines)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(1, color=_EVEN, linewidth=0.8)
        for place, line in enumerate(lines):
            _draw_line(axes, place, line)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_yticks(range(len(lines)), [line.name for line in lines])
        axes.set_ylim(-0.7, len(lines) - 0.3)
        axes.set_xlabel(
            "times as good as the yardstick: median, middle half, lowest and highest; red: the bar\n"
            "(rates as they are, costs upside down, so that further right is better)"
        )
        axes.grid(axis="x", which="major", linewidth=0.3)
        metadata = {"Date": None} if picture.suffix == ".svg" else {"Software": None}
        figure.savefig(picture, metadata=metadata, dpi=110)


def _draw_line(axes: "Axes", place: int, line: Line) -> None:
    axes.hlines(place, *line.whole, colors=_HERE, linewidth=0.8)
    axes.hlines(place, *line.middle, colors=_HERE, linewidth=4)
    axes.plot([line.median], [place], "o", color="white", markeredgecolor=_HERE, markersize=4)
    if line.bar is not None:
        axes.vlines(line.bar, place - 0.4, place + 0.4, colors=_BAR, linewidth=1.5)
