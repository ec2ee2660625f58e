"""
Results as a table for people: in a terminal, and in markdown. Pure.
"""

import textwrap
from collections.abc import Mapping, Sequence

from benchmarks.measure import GROUPS, Result, Row, is_behind

__all__ = ["aligned", "as_markdown", "as_table", "listing", "number"]

_HEAD = ("row", "here", "yardstick", "unit", "ratio", "middle half", "spread", "bar", "")


def number(value: float | None) -> str:
    """A figure with three significant places, in full: ``1 230 000``, ``12.3``, ``0.45``."""
    if value is None:
        return "-"
    if abs(value) >= 100 and value not in (float("inf"), float("-inf")):
        places = len(str(int(abs(value)))) - 3
        return f"{round(value, -places):,.0f}".replace(",", " ")
    return f"{value:.3g}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns beneath one another, the first line as their heads."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    drawn = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    drawn.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in drawn)


def _range(result: Result, low: float, high: float, between: str) -> str:
    if result.ratio is not None:
        return f"{low:.2f}{between}{high:.2f}"
    return f"{number(low)}{between}{number(high)}"


def _cells(result: Result) -> tuple[str, ...]:
    verdict = {True: "holds", False: "MISSED", None: ""}[result.holds]
    if is_behind(result):
        verdict = f"{verdict}, yardstick ahead".removeprefix(", ")
    return (
        result.name,
        number(result.subject),
        number(result.yardstick),
        result.unit,
        f"{result.ratio:.2f}" if result.ratio is not None else "-",
        _range(result, result.lower, result.upper, ".."),
        _range(result, result.lowest, result.highest, ".."),
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
    table = aligned([_HEAD, *[_cells(result) for result in results]])
    return "\n".join([table, *[f"{name}: {reason}" for name, reason in absent.items()]])


def _measured(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{number(value)}/s" if unit.endswith("/s") else f"{number(value)} {unit.replace('us', 'µs')}"


def as_markdown(results: Sequence[Result], absent: Mapping[str, str]) -> str:
    """The same as a table for a page of documentation, so that nobody types a figure."""
    lines = [
        "| row | here | yardstick | ratio | middle half | spread | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        bar = result.bar.replace(">=", "≥").replace("<=", "≤").removesuffix("x")
        said = [
            bar,
            "**missed**" if result.holds is False else "",
            "yardstick ahead" if is_behind(result) else "",
        ]
        cells = (
            f"`{result.name}`",
            _measured(result.subject, result.unit),
            _measured(result.yardstick, result.unit),
            f"{result.ratio:.2f}" if result.ratio is not None else "",
            _range(result, result.lower, result.upper, " .. "),
            _range(result, result.lowest, result.highest, " .. "),
            ", ".join(text for text in said if text),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *[f"\n`{name}`: {reason}" for name, reason in absent.items()]])


def listing(rows: Sequence[Row]) -> str:
    """One line per row beneath its group: what it is and what it is measured against; of *mail-rest*, names alone."""
    width = max(len(row.name) for row in rows)
    lines: list[str] = []
    for group, what in GROUPS.items():
        members = [row for row in rows if row.group == group]
        if members:
            lines += ["", f"{group}: {what}"]
        if group == "mail-rest":
            names = " ".join(row.name for row in members)
            lines += textwrap.wrap(
                names, 110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
            )
            continue
        lines += [
            f"  {row.name.ljust(width)}  {row.what}"
            + (f" | {row.yardstick}" if row.yardstick else "")
            + (f" | {row.bar}" if row.bar is not None else "")
            for row in members
        ]
    return "\n".join(lines[1:])
