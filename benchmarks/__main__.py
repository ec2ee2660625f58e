"""
Measure, keep, compare and draw: ``python -m benchmarks list | run | compare | table | plot | sweep``.
"""

import argparse
import gc
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

from benchmarks import bounds, channel, mail, mailmatrix, memory, peers, stores, workers
from benchmarks.compare import Verdict, changes, notes
from benchmarks.compare import as_table as as_comparison
from benchmarks.measure import GROUPS, Result, Row, Unavailable, subject_first, summarise
from benchmarks.plot import NotDrawn, check, draw
from benchmarks.progress import Lines, Progress, shown
from benchmarks.report import as_markdown, as_table, listing, number
from benchmarks.results import NotOurs, Run, as_json, read
from benchmarks.sweep import command as sweep

__all__ = ["main", "measure"]

T = TypeVar("T", int, float)

ROWS: tuple[Row, ...] = (
    *channel.ROWS,
    *memory.ROWS,
    *peers.ROWS,
    *stores.ROWS,
    *mail.ROWS,
    *workers.ROWS,
    *bounds.ROWS,
    *mailmatrix.ROWS,
)


def _print(text: str) -> None:
    print(text)  # noqa: T201 -- the command's output


def _refuse(text: str) -> SystemExit:
    print(text, file=sys.stderr)  # noqa: T201 -- as argparse says what is wrong
    return SystemExit(2)


def measure(
    row: Row,
    *,
    scale: float = 1.0,
    turns: int | None = None,
    warm_up: bool = True,
    progress: Progress | None = None,
) -> Result:
    """
    Run one row: a warm-up of each side, then the pairs.

    Args:
        row: What to run.

        scale: Of the amount of work; 1.0 as published.

        turns: Pairs to measure; None for the row's own number.

        warm_up: Whether a turn of each side is thrown away first; without it figures mean little.

        progress: Is told of each pair.

    Raises:
        Unavailable: If the row cannot run here.
    """
    told = progress if progress is not None else Lines()
    mine: list[float] = []
    theirs: list[float] = []
    count = row.turns if turns is None else turns
    told.begin(row.name, row.what, count)
    with row.open(scale) as sides:
        pairs = [(sides.subject, mine)]
        if sides.yardstick is not None:
            pairs.append((sides.yardstick, theirs))
        for side, _ in pairs if warm_up else ():
            side()
        for turn in range(count):
            for side, samples in pairs if subject_first(turn) else reversed(pairs):
                gc.collect()
                samples.append(side())
            figures = " against ".join(number(samples[-1]) for _, samples in pairs)
            told.turned(row.name, turn + 1, count, f"{figures} {row.unit}")
    return summarise(row, mine, theirs)


def _processor() -> str:
    """The processor's name, without which two virtual machines look alike."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "not told"
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "not told"
    )


def _machine() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "processors": str(os.cpu_count()),
    }


def _chosen(names: Sequence[str], groups: Sequence[str]) -> list[Row]:
    """
    Rows by name, by the beginning of a name, or by group.

    A whole name is that row alone: many a row has the beginning of its name from another.
    """
    if "all" in names:
        return list(ROWS)
    exact = {row.name for row in ROWS}
    unknown = [name for name in names if not any(row.name.startswith(name) for row in ROWS)]
    if unknown:
        msg = f"no benchmark is called {', '.join(unknown)}; `list` shows them"
        raise _refuse(msg)
    wanted = groups or ([] if names else ["core"])
    return [
        row
        for row in ROWS
        if row.group in wanted
        or any(row.name == name if name in exact else row.name.startswith(name) for name in names)
    ]


def _list(arguments: argparse.Namespace) -> int:
    _print(listing(ROWS))
    return 0


def _check_places(arguments: argparse.Namespace) -> None:
    """What would be wrong at the end of a run is said before it."""
    if arguments.plot is not None:
        try:
            check(arguments.plot)
        except NotDrawn as error:
            raise _refuse(str(error)) from None
    for file in (arguments.json, arguments.plot):
        if file is not None and not file.parent.is_dir():
            msg = f"{file}: {file.parent} is no folder"
            raise _refuse(msg)


def _more_than_0(kind: type[T]) -> Callable[[str], T]:
    """An option's type: a number of that kind, and more than 0."""

    def read(text: str) -> T:
        number = kind(text)
        if not 0 < number < math.inf:
            msg = f"must be more than 0, got {text}"
            raise argparse.ArgumentTypeError(msg)
        return number

    read.__name__ = kind.__name__  # argparse names it where the text is no number at all
    return read


def _run(arguments: argparse.Namespace) -> int:
    """Returns 1 if a row failed, or a bar was missed under ``--strict``."""
    rows = _chosen(arguments.names, arguments.group)
    _check_places(arguments)
    results: list[Result] = []
    absent: dict[str, str] = {}
    failed = False
    began = time.monotonic()
    with shown(len(rows)) as progress:
        if not arguments.names and not arguments.group:
            others = ", ".join(group for group in GROUPS if group != "core")
            progress.say(f"the rows of core; there are also --group {others}, and `run all`")
        for row in rows:
            try:
                results.append(measure(row, scale=arguments.scale, turns=arguments.turns, progress=progress))
            except Unavailable as reason:
                absent[row.name] = f"not run: {reason}"
            except KeyboardInterrupt:  # what was measured is worth the table
                absent[row.name] = "FAILED: interrupted, and with it the run"
                failed = True
                break
            except Exception as error:  # lost, refused, late, or a peer's own: the others still run
                absent[row.name] = f"FAILED: {error!r}" if not str(error) else f"FAILED: {error}"
                failed = True
            progress.ended()
        progress.say(f"{len(results)} rows in {time.monotonic() - began:.0f} s")
    _print(as_table(results, absent))
    run = Run(machine=_machine(), scale=arguments.scale, results=tuple(results), absent=absent)
    if arguments.json is not None:
        arguments.json.write_text(as_json(run) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        _draw(results, arguments.plot)
    missed = arguments.strict and any(result.holds is False for result in results)
    return 1 if failed or missed else 0


def _read(file: Path) -> Run:
    try:
        return read(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, NotOurs) as error:
        msg = f"{file}: {error}"
        raise _refuse(msg) from None


def _compare(arguments: argparse.Namespace) -> int:
    """Returns 1 if a row got worse beyond the spread."""
    old, new = _read(arguments.old), _read(arguments.new)
    found = changes(old, new)
    _print("\n".join([*notes(old, new), as_comparison(found)]))
    return 1 if any(one.verdict is Verdict.WORSE for one in found) else 0


def _part(arguments: argparse.Namespace) -> Run:
    """Of a kept run, the rows that are asked for; all of them if none are."""
    run = _read(arguments.file)
    if not arguments.names and not arguments.group:
        return run
    wanted = {row.name for row in _chosen(arguments.names, arguments.group)}
    return attrs.evolve(
        run,
        results=tuple(result for result in run.results if result.name in wanted),
        absent={name: reason for name, reason in run.absent.items() if name in wanted},
    )


def _table(arguments: argparse.Namespace) -> int:
    run = _part(arguments)
    _print(as_markdown(run.results, run.absent))
    return 0


def _draw(results: Sequence[Result], picture: Path) -> None:
    try:
        draw(results, picture)
    except NotDrawn as error:
        raise _refuse(str(error)) from None


def _plot(arguments: argparse.Namespace) -> int:
    _draw(_part(arguments).results, arguments.picture)
    return 0


def _add_choice(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"rows, or beginnings of their names, or all; none: {default}",
    )
    command.add_argument(
        "--group", action="append", default=[], choices=GROUPS, help="these rows; can be repeated"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is").set_defaults(do=_list)
    run = commands.add_parser("run", help="measure and print the table (also without a command)")
    _add_choice(run, "the core")
    run.add_argument(
        "--scale", type=_more_than_0(float), default=1.0, help="share of the work per turn (default 1)"
    )
    run.add_argument("--turns", type=_more_than_0(int), help="pairs per row (default: the row's own number)")
    run.add_argument("--json", type=Path, metavar="FILE", help="also write every sample there")
    run.add_argument("--plot", type=Path, metavar="FILE", help="also draw the ratios: .svg or .png")
    run.add_argument("--strict", action="store_true", help="exit with 1 if a bar is missed")
    run.set_defaults(do=_run)
    compare = commands.add_parser("compare", help="two runs; exit with 1 if one got worse beyond the spread")
    compare.add_argument("old", type=Path, metavar="OLD.json")
    compare.add_argument("new", type=Path, metavar="NEW.json")
    compare.set_defaults(do=_compare)
    table = commands.add_parser("table", help="a run as a markdown table")
    table.add_argument("file", type=Path, metavar="FILE.json")
    _add_choice(table, "what it has")
    table.set_defaults(do=_table)
    plot = commands.add_parser("plot", help="draw the ratios of a run")
    plot.add_argument("file", type=Path, metavar="FILE.json")
    plot.add_argument("picture", type=Path, metavar="PICTURE", help=".svg or .png")
    _add_choice(plot, "what it has")
    plot.set_defaults(do=_plot)
    sweep.add_arguments(commands.add_parser("sweep", help="find the options that a SendFn runs best with"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(list(sys.argv[1:] if argv is None else argv) or ["run"])
    status: int = arguments.do(arguments)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
