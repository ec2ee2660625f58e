"""
The picture of a sweep: a heat map of the grid, and throughput and p99 along the batch length.

The only module that knows matplotlib; it is in the dependency group ``bench``.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import number
from benchmarks.sweep.advice import Advice
from benchmarks.sweep.cells import DEFAULT, BadArgument, Cell, written_duration
from benchmarks.sweep.record import Record
from benchmarks.sweep.show import map_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check", "draw"]

_BEST, _PLAIN, _SECOND = "#d62728", "#1f77b4", "#7f7f7f"


def check(file: Path) -> None:
    """
    Refuse, before the sweep, what could not be drawn after it.

    Raises:
        BadArgument: If the ending is neither .png nor .svg, or matplotlib is not installed.
    """
    if file.suffix not in {".png", ".svg"}:
        raise BadArgument(option="--plot", rule="has to end in .png or .svg", value=str(file))
    if importlib.util.find_spec("matplotlib") is None:
        rule = "needs matplotlib, which is not installed (it is in the dependency group bench)"
        raise BadArgument(option="--plot", rule=rule, value=str(file))


def _label(option: str, value: float) -> str:
    return written_duration(value) if option == "batch_age_max" else f"{value:g}"


def _heat(axes: "Axes", record: Record, down: str, chosen: Cell | None) -> None:
    across, rows, scores = map_values(record, down=down)
    top = max(value for row in scores for value in row if value is not None) or 1.0
    shares: Any = [[float("nan") if value is None else value / top for value in row] for row in scores]
    axes.imshow(shares, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_facecolor("#eeeeee")
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            if share == share:  # not nan: tried
                colour = "white" if share < 0.6 else "black"
                axes.text(x, y, f"{share * 100:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(across)), [f"{value:g}" for value in across], rotation=45)
    axes.set_yticks(range(len(rows)), [_label(down, value) for value in rows])
    axes.set_xlabel("batch_items_max")
    axes.set_ylabel(down)
    axes.set_title("percent of the best (grey: not tried)", fontsize=10)
    if chosen is not None:
        x, y = across.index(chosen.batch_items_max), rows.index(getattr(chosen, down))
        axes.plot(x, y, "s", markersize=22, fillstyle="none", color=_BEST, markeredgewidth=2)


def _lines(axes: "Axes", record: Record, chosen: Cell) -> None:
    """Along the batch length, the best that was tried of each."""
    best: dict[int, Cell] = {}
    for cell in record.cells():
        known = best.get(cell.batch_items_max)
        if known is None or record.estimate(cell).value > record.estimate(known).value:
            best[cell.batch_items_max] = cell
    best[chosen.batch_items_max] = chosen
    line = [best[length] for length in sorted(best)]
    lengths = [cell.batch_items_max for cell in line]
    size = record.item_sizes[0]
    figures = [record.figures(cell, size) for cell in line]
    low = [one.throughput - one.lowest for one in figures]
    high = [one.highest - one.throughput for one in figures]
    axes.errorbar(
        lengths, [one.throughput for one in figures], yerr=[low, high], fmt="o-", color=_PLAIN, capsize=3
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths], rotation=45)
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    axes.set_xlabel("batch_items_max")
    axes.set_ylabel("items/s, median and spread", color=_PLAIN)
    axes.axvline(chosen.batch_items_max, color=_BEST, linewidth=1, linestyle="--")
    axes.set_title("the best of each length (dashed: recommended)", fontsize=10)
    delays = [(length, one.p99 * 1000) for length, one in zip(lengths, figures, strict=True) if one.p99]
    if delays:
        other = axes.twinx()
        other.plot([at for at, _ in delays], [delay for _, delay in delays], "^:", color=_SECOND)
        other.set_ylim(bottom=0)
        other.set_ylabel("p99, ms", color=_SECOND)


def draw(record: Record, advice: Advice | None, title: str, file: Path) -> None:
    """
    Write the picture.

    Args:
        record: What was measured; one cell at least.

        advice: What was recommended; None if the run ended before.

        title: Above it.

        file: Where to; PNG or SVG by its ending.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    chosen = advice.cell if advice is not None else None
    cells = record.cells()
    downs = [
        down for down in ("max_leases", "batch_age_max") if len({getattr(cell, down) for cell in cells}) > 1
    ] or ["max_leases"]
    # Text stays text, and the same figures give the same file: small, and fit for version control.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sweep", "font.family": ["DejaVu Sans"]}):
        figure = Figure(figsize=(5.2 * (len(downs) + 1), 4.2), layout="constrained")
        drawn = figure.subplots(1, len(downs) + 1)
        figure.suptitle(f"{title}: {record.goal}", fontsize=11)
        for axes, down in zip(drawn, downs, strict=False):
            _heat(axes, record, down, chosen)
        _lines(drawn[-1], record, chosen if chosen is not None else _best(record))
        metadata = {"Date": None} if file.suffix == ".svg" else {}
        figure.savefig(file, metadata=metadata)


def _best(record: Record) -> Cell:
    return max(record.cells(), key=lambda cell: (record.estimate(cell).value, cell == DEFAULT))
