"""
A run as a picture: each row's ratio with its spread, beside its bar, on a logarithmic axis.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Bar, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NotDrawn", "draw"]

_HERE, _BAR, _EVEN = "#1f5fa8", "#c03020", "#888888"


class NotDrawn(Exception):
    """There is no picture; says why, and what helps."""


def draw(results: Sequence[Result], picture: Path) -> None:
    """
    Draw the rows that have a yardstick.

    Args:
        results: Of a run.

        picture: Where to; its ending, ``.svg`` or ``.png``, decides the form.

    Raises:
        NotDrawn: If matplotlib is missing, the ending is another, or no row has a ratio.
    """
    if picture.suffix not in (".svg", ".png"):
        msg = f"{picture}: a picture's name ends in .svg or .png, got {picture.suffix!r}"
        raise NotDrawn(msg)
    # A ratio of nothing or of infinity has no place on this axis.
    drawn = [result for result in results if result.ratio and 0 < result.lowest <= result.highest < math.inf]
    if not drawn:
        msg = f"{picture}: no row has a ratio to draw"
        raise NotDrawn(msg)
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.ticker import ScalarFormatter
    except ImportError:
        msg = f"{picture}: drawing needs matplotlib, which is not installed: pip install --group bench"
        raise NotDrawn(msg) from None
    drawn.reverse()  # the axis counts upwards, readers read downwards
    # Text stays text in an SVG, and the same run gives the same octets.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 8}):
        figure = Figure(figsize=(7, 0.9 + 0.24 * len(drawn)), layout="constrained")
        axes = figure.subplots()
        places = range(len(drawn))
        axes.axvline(1, color=_EVEN, linewidth=0.8)
        axes.hlines(
            places, [one.lowest for one in drawn], [one.highest for one in drawn], colors=_HERE, linewidth=0.8
        )
        axes.hlines(
            places, [one.lower for one in drawn], [one.upper for one in drawn], colors=_HERE, linewidth=4
        )
        axes.plot(
            [one.ratio or 0.0 for one in drawn],
            places,
            "o",
            color="white",
            markeredgecolor=_HERE,
            markersize=4,
        )
        _draw_bars(axes, drawn)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_yticks(places, [one.name for one in drawn])
        axes.set_ylim(-0.7, len(drawn) - 0.3)
        axes.set_xlabel("times the yardstick: median, middle half, lowest and highest; red: the bar")
        axes.grid(axis="x", which="major", linewidth=0.3)
        metadata = {"Date": None} if picture.suffix == ".svg" else {"Software": None}
        figure.savefig(picture, metadata=metadata, dpi=110)


def _draw_bars(axes: "Axes", drawn: Sequence[Result]) -> None:
    for place, one in enumerate(drawn):
        bar = Bar.parse(one.bar) if one.bar else None
        if bar is not None and bar.of == "ratio":
            edge = bar.lowest if bar.lowest is not None else bar.highest
            assert edge is not None
            axes.vlines(edge, place - 0.4, place + 0.4, colors=_BAR, linewidth=1.5)
