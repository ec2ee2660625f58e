"""
``python -m benchmarks list`` and ``python -m benchmarks run [NAME…]``.
"""

import argparse
import gc
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import bounds, channel, mail, stores
from benchmarks.measure import Result, Row, Unavailable, subject_first, summarise
from benchmarks.report import as_json, as_table, listing, number

__all__ = ["main", "measure"]

ROWS: tuple[Row, ...] = (*channel.ROWS, *stores.ROWS, *mail.ROWS, *bounds.ROWS)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 -- progress belongs beside the table, not in it


def measure(row: Row, *, scale: float = 1.0, turns: int | None = None) -> Result:
    """
    Run one row: a warm-up of each side, then the pairs.

    Args:
        row: What to run.

        scale: Of the amount of work; 1.0 as published.

        turns: Pairs to measure; None for the row's own number.

    Raises:
        Unavailable: If the row cannot run here.
    """
    mine: list[float] = []
    theirs: list[float] = []
    with row.open(scale) as sides:
        pairs = [(sides.subject, mine)]
        if sides.yardstick is not None:
            pairs.append((sides.yardstick, theirs))
        for side, _ in pairs:
            side()
        count = row.turns if turns is None else turns
        for turn in range(count):
            for side, samples in pairs if subject_first(turn) else reversed(pairs):
                gc.collect()
                samples.append(side())
            shown = " against ".join(number(samples[-1]) for _, samples in pairs)
            _say(f"  {row.name} {turn + 1}/{count}: {shown} {row.unit}")
    return summarise(row, mine, theirs)


def _machine() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": str(os.cpu_count()),
    }


def _chosen(names: Sequence[str]) -> list[Row]:
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names if not any(row.startswith(name) for row in known)]
    if unknown:
        _say(f"no benchmark is called {', '.join(unknown)}; `list` shows them")
        raise SystemExit(2)
    return [row for row in ROWS if not names or any(row.name.startswith(name) for name in names)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 if a row failed, or a bar was missed under ``--strict``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="what there is")
    run = commands.add_parser("run", help="measure and print the table (also without a command)")
    run.add_argument("names", nargs="*", metavar="NAME", help="rows, or beginnings of their names; none: all")
    run.add_argument("--scale", type=float, default=1.0, help="share of the work per turn (default 1)")
    run.add_argument("--turns", type=int, help="pairs per row (default: the row's own number)")
    run.add_argument("--json", type=Path, metavar="FILE", help="also write every sample there")
    run.add_argument("--strict", action="store_true", help="exit with 1 if a bar is missed")
    arguments = parser.parse_args(list(sys.argv[1:] if argv is None else argv) or ["run"])
    if arguments.command == "list":
        print(listing(ROWS))  # noqa: T201 -- the command's output
        return 0
    results: list[Result] = []
    absent: dict[str, str] = {}
    failed = False
    for row in _chosen(arguments.names):
        _say(f"{row.name}: {row.what}")
        try:
            results.append(measure(row, scale=arguments.scale, turns=arguments.turns))
        except Unavailable as reason:
            absent[row.name] = f"not run: {reason}"
        except (RuntimeError, TimeoutError) as error:  # lost, refused or late: the others still run
            absent[row.name] = f"FAILED: {error}"
            failed = True
    print(as_table(results, absent))  # noqa: T201 -- the command's output
    if arguments.json is not None:
        arguments.json.write_text(as_json(results, absent, _machine()) + "\n", encoding="utf-8")
    missed = arguments.strict and any(result.holds is False for result in results)
    return 1 if failed or missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
