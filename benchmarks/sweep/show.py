"""
Results as a table, as a heat map of letters, and as JSON. Pure.
"""

import json
from collections.abc import Mapping, Sequence

import attrs

from benchmarks.report import number
from benchmarks.sweep.advice import Advice
from benchmarks.sweep.cells import DEFAULT, Cell, written_duration
from benchmarks.sweep.figures import Figures
from benchmarks.sweep.record import Record, Versus

__all__ = ["as_json", "as_map", "as_table", "errors", "line", "map_values"]

_HEAD = (
    "",
    "items",
    "age",
    "leases",
    "size",
    "items/s",
    "spread",
    "p50",
    "p99",
    "fill",
    "errors",
    "retries",
    "failed",
)
_SHADES = " ░▒▓█"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else written_duration(seconds)


def _fill(cell: Cell, figures: Figures) -> str:
    return f"{figures.batch_items / cell.batch_items_max:.0%}"


def line(cell: Cell, figures: Figures) -> str:
    """One cell for the progress of a run."""
    speed = f"{number(figures.throughput)} items/s ({number(figures.lowest)}..{number(figures.highest)})"
    troubles = sum(figures.errors.values())
    return f"{cell}: {speed}, p99 {_time(figures.p99)}" + (f", {troubles} errors" if troubles else "")


def as_table(record: Record, chosen: Cell | None) -> str:
    """
    Draw the table: one line per cell and item size. Errors are failed attempts, failed are items given up.

    Args:
        record: What was measured.

        chosen: Marked with ``>``; the defaults are marked with ``d``.
    """
    rows = [_HEAD]
    for cell in record.cells():
        mark = ">" if cell == chosen else "d" if cell == DEFAULT else ""
        for size in record.item_sizes:
            figures = record.figures(cell, size)
            rows.append(
                (
                    mark,
                    str(cell.batch_items_max),
                    written_duration(cell.batch_age_max),
                    str(cell.max_leases),
                    str(size),
                    number(figures.throughput),
                    f"{number(figures.lowest)}..{number(figures.highest)}",
                    _time(figures.p50),
                    _time(figures.p99),
                    _fill(cell, figures),
                    str(sum(figures.errors.values())),
                    str(figures.retries),
                    str(figures.failed),
                )
            )
    if len(record.item_sizes) == 1:
        rows = [(*row[:4], *row[5:]) for row in rows]  # type: ignore[misc]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths).rstrip())
    return "\n".join(lines)


def errors(record: Record) -> str:
    """What was raised, most frequent first; ``""`` if nothing was."""
    counts: dict[str, int] = {}
    for turn in record.all_turns(record.cells()):
        for text, count in turn.errors.items():
            counts[text] = counts.get(text, 0) + count
    ranked = sorted(counts.items(), key=lambda pair: -pair[1])
    more = f"\n  and {len(ranked) - 10} other errors" if len(ranked) > 10 else ""
    return "\n".join(f"  {count} x {text}" for text, count in ranked[:10]) + more


def map_values(record: Record, *, down: str) -> tuple[list[float], list[float], list[list[float | None]]]:
    """
    The heat map's columns (items), rows and scores.

    Args:
        record: What was measured.

        down: The option that the rows stand for; of what differs in other options the best counts.

    Returns:
        The values across, the values down, and one list per row; None where nothing was tried.
    """
    cells = record.cells()
    across = sorted({cell.batch_items_max for cell in cells})
    rows = sorted({getattr(cell, down) for cell in cells})
    best: dict[tuple[float, float], float] = {}
    for cell in cells:
        place = (getattr(cell, down), cell.batch_items_max)
        best[place] = max(best.get(place, 0.0), record.estimate(cell).value)
    return [*map(float, across)], rows, [[best.get((row, item)) for item in across] for row in rows]


def _map(record: Record, down: str) -> str:
    across, rows, scores = map_values(record, down=down)
    top = max(value for row in scores for value in row if value is not None) or 1.0

    def box(value: float | None) -> str:
        if value is None:
            return "     ."
        share = value / top
        shade = _SHADES[min(len(_SHADES) - 1, int(share * (len(_SHADES) - 1) + 0.5))]
        return f" {shade * 2}{share * 100:3.0f}"

    names = [written_duration(row) if down == "batch_age_max" else f"{row:g}" for row in rows]
    width = max(len(down), *map(len, names))
    lines = [
        name.rjust(width) + "".join(map(box, row))
        for name, row in zip(reversed(names), reversed(scores), strict=True)
    ]
    foot = "".join(f"{item:6g}" for item in across)
    return "\n".join([down.rjust(width), *lines, " " * width + foot + "  batch_items_max"])


def as_map(record: Record) -> str:
    """Percent of the best, over batch length and each other option that was tried with several values."""
    cells = record.cells()
    options = [
        down for down in ("max_leases", "batch_age_max") if len({getattr(cell, down) for cell in cells}) > 1
    ] or ["max_leases"]
    return "\n\n".join(_map(record, down) for down in options)


def as_json(
    record: Record,
    advice: Advice | None,
    versus: Versus | None,
    *,
    about: Mapping[str, object],
    machine: Mapping[str, str],
) -> str:
    """
    Everything, every turn included.

    Args:
        record: What was measured.

        advice: What was recommended; None if the run ended before.

        versus: The comparison with the defaults; None if there was none.

        about: Target and arguments of the run.

        machine: What it ran on.
    """
    return json.dumps(
        {
            "machine": dict(machine),
            **about,
            "goal": attrs.asdict(record.goal),
            "grid": {
                "batch_items_max": list(record.grid.items),
                "batch_age_max": list(record.grid.ages),
                "max_leases": list(record.grid.leases),
                "cells": len(record.grid),
            },
            "cells": [
                {**attrs.asdict(cell), "item_size": size, **_figures(record, cell, size)}
                for cell in record.cells()
                for size in record.item_sizes
            ],
            "recommended": None
            if advice is None
            else {
                **attrs.asdict(advice.cell),
                "options": advice.options,
                "reason": advice.reason,
                "warning": advice.warning,
            },
            "against_defaults": None if versus is None else attrs.asdict(versus),
        },
        indent=2,
    )


def _figures(record: Record, cell: Cell, size: int) -> dict[str, object]:
    turns: Sequence[object] = [attrs.asdict(turn) for turn in record.turns[cell, size]]
    return {**attrs.asdict(record.figures(cell, size)), "turns": turns}
