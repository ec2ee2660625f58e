"""
Results as a table for people and as JSON for machines. Pure.
"""

import json
from collections.abc import Mapping, Sequence

import attrs

from benchmarks.measure import Result, Row

__all__ = ["as_json", "as_table", "listing", "number"]

_HEAD = ("row", "here", "yardstick", "unit", "ratio", "spread", "bar", "")


def number(value: float | None) -> str:
    """A figure with three significant places, in full: ``1 230 000``, ``12.3``, ``0.45``."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        places = len(str(int(abs(value)))) - 3
        return f"{round(value, -places):,.0f}".replace(",", " ")
    return f"{value:.3g}"


def _cells(result: Result) -> tuple[str, ...]:
    verdict = {True: "holds", False: "MISSED", None: ""}[result.holds]
    ratio = f"{result.ratio:.2f}" if result.ratio is not None else "-"
    spread = (
        f"{result.lowest:.2f}..{result.highest:.2f}"
        if result.ratio is not None
        else f"{number(result.lowest)}..{number(result.highest)}"
    )
    return (
        result.name,
        number(result.subject),
        number(result.yardstick),
        result.unit,
        ratio,
        spread,
        result.bar,
        verdict,
    )


def as_table(results: Sequence[Result], absent: Mapping[str, str]) -> str:
    """
    Draw the table.

    Args:
        results: The rows that ran.

        absent: Names of those that gave no figure, each with the reason.
    """
    rows = [_HEAD, *[_cells(result) for result in results]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths).rstrip())
    lines += [f"{name}: {reason}" for name, reason in absent.items()]
    return "\n".join(lines)


def as_json(results: Sequence[Result], absent: Mapping[str, str], machine: Mapping[str, str]) -> str:
    """The same with every sample, and what it ran on."""
    return json.dumps(
        {
            "machine": dict(machine),
            "rows": [attrs.asdict(result) for result in results],
            "without_figures": dict(absent),
        },
        indent=2,
    )


def listing(rows: Sequence[Row]) -> str:
    """One line per row: what it is and what it is measured against."""
    width = max(len(row.name) for row in rows)
    return "\n".join(
        f"{row.name.ljust(width)}  {row.what}"
        + (f" | {row.yardstick}" if row.yardstick else "")
        + (f" | {row.bar}" if row.bar is not None else "")
        for row in rows
    )
