"""
The command line of ``python -m benchmarks sweep``.
"""

import argparse
import importlib.util
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.sweep import plot, show
from benchmarks.sweep.advice import Advice, verdict
from benchmarks.sweep.cells import BadArgument, Grid, duration, durations, sizes, wholes, written_duration
from benchmarks.sweep.course import Course, NothingDelivered, Plan, Stopped
from benchmarks.sweep.goals import Goal
from benchmarks.sweep.progress import Progress, progress
from benchmarks.sweep.record import Record, Versus
from benchmarks.sweep.sinks import load_maker, load_sink
from benchmarks.sweep.trial import Load, TurnFailed

__all__ = ["add_arguments", "run"]

_EXAMPLES = """
examples:
  python -m benchmarks sweep my_service.sinks:send_rows --item make_row
  python -m benchmarks sweep sinks.py:open_client --goal latency --p99 50ms --rate 2000
  python -m benchmarks sweep scripted:a=5ms,b=50us,parallel=2 --plot sweep.svg --json sweep.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a sweep takes, and that `run` does it."""
    parser.set_defaults(do=run)
    parser.description = "Find the ChannelOptions that a SendFn runs best with."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "target",
        help="module:name or path/to/file.py:name of a SendFn or its opener, or scripted:a=2ms,b=20us,…",
    )
    add("--item", metavar="NAME", help="function (number, size) that makes items (default: octets)")
    add(
        "--item-size", metavar="SIZES", default="100", help="sizes to measure with, as 100,10kB (default 100)"
    )
    add(
        "--batch-items-max",
        metavar="AXIS",
        default="1..2048",
        help="as 1..2048 or 10,100,1000 (default 1..2048)",
    )
    add("--batch-age-max", metavar="AXIS", default="0,10ms,50ms,200ms", help="default 0,10ms,50ms,200ms")
    add("--max-leases", metavar="AXIS", default="1..16", help="as 1..16 or 1,4 (default 1..16)")
    add("--goal", choices=("throughput", "latency"), default="throughput", help="default throughput")
    add("--p99", metavar="TIME", help="bound from accepted to delivered, as 50ms")
    add("--rate", type=float, metavar="N", help="items offered per second (default: as many as are taken)")
    add("--producers", type=int, default=4, metavar="N", help="tasks that send (default 4)")
    add("--seconds", type=float, default=0.4, metavar="S", help="length of a turn's window (default 0.4)")
    add("--turns", type=int, default=3, metavar="N", help="turns per cell (default 3)")
    add("--finals", type=int, default=7, metavar="N", help="turns of each of the best (default 7; 0: none)")
    add("--pairs", type=int, default=9, metavar="N", help="turns beside the defaults (default 9; 0: none)")
    add("--tolerance", type=float, default=0.03, metavar="X", help="gains below it are none (default 0.03)")
    add("--every-cell", action="store_true", help="measure the whole grid instead of searching")
    add("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio", help="default asyncio")
    add("--json", type=Path, metavar="FILE", help="write everything there, every turn included")
    add("--plot", type=Path, metavar="FILE", help="write a picture there, PNG or SVG by its ending")


def _positive(name: str, value: float, least: float) -> None:
    if not least <= value < float("inf"):
        raise BadArgument(option=name, rule=f"has to be {least:g} or more", value=value)


def _goal(arguments: argparse.Namespace) -> Goal:
    p99 = None if arguments.p99 is None else duration(arguments.p99, "--p99")
    if p99 == 0:
        raise BadArgument(option="--p99", rule="has to be more than 0", value=arguments.p99)
    if arguments.rate is not None:
        _positive("--rate", arguments.rate, 0.1)
    if arguments.goal == "latency" and p99 is None and arguments.rate is None:
        raise BadArgument(
            option="--goal",
            rule="latency needs --p99 (the bound) or --rate (the load), or both",
            value="neither",
        )
    if arguments.goal == "throughput" and p99 is not None:
        raise BadArgument(option="--p99", rule="goes with --goal latency", value=arguments.p99)
    return Goal(what=arguments.goal, p99=p99, rate=arguments.rate)


def _ages(text: str, goal: Goal) -> tuple[float, ...]:
    """
    The axis of ages; under a bound only those that keep it.

    Where items come so seldom that no batch is full in time, each waits for the age. A setting that
    keeps the bound under full load alone is none to recommend.
    """
    ages = durations(text, "--batch-age-max")
    kept = tuple(age for age in ages if goal.p99 is None or age < goal.p99)
    if not kept:
        rule = f"needs an age below --p99 ({written_duration(goal.p99 or 0)}), which a lone item waits"
        raise BadArgument(option="--batch-age-max", rule=rule, value=text)
    return kept


def _backend(name: str) -> tuple[str, dict[str, Any]]:
    if importlib.util.find_spec(name) is None:
        raise BadArgument(
            option="--backend", rule=f"needs the package {name}, which is not installed", value=name
        )
    return ("asyncio", {"use_uvloop": True}) if name == "uvloop" else (name, {})


def _read(arguments: argparse.Namespace) -> tuple[Plan, Record]:
    """Check everything before anything runs."""
    goal = _goal(arguments)
    grid = Grid(
        wholes(arguments.batch_items_max, "--batch-items-max"),
        _ages(arguments.batch_age_max, goal),
        wholes(arguments.max_leases, "--max-leases"),
    )
    for name, least in (("producers", 1), ("seconds", 0.001), ("turns", 1), ("finals", 0), ("pairs", 0)):
        _positive(f"--{name}", getattr(arguments, name), least)
    if not 0 <= arguments.tolerance < 1:
        raise BadArgument(
            option="--tolerance", rule="has to be 0 or more, and less than 1", value=arguments.tolerance
        )
    for name in ("json", "plot"):
        file: Path | None = getattr(arguments, name)
        if file is not None and not file.absolute().parent.is_dir():
            raise BadArgument(option=f"--{name}", rule="needs a folder that exists", value=str(file))
    if arguments.plot is not None:
        plot.check(arguments.plot)
    backend, backend_options = _backend(arguments.backend)
    plan = Plan(
        sink=load_sink(arguments.target),
        make=load_maker(arguments.item, arguments.target),
        load=Load(rate=goal.rate, seconds=arguments.seconds, producers=arguments.producers),
        turns=arguments.turns,
        finals=arguments.finals,
        pairs=arguments.pairs,
        tolerance=arguments.tolerance,
        every_cell=arguments.every_cell,
        backend=backend,
        backend_options=backend_options,
    )
    return plan, Record(goal=goal, grid=grid, item_sizes=sizes(arguments.item_size, "--item-size"))


def _machine() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": str(os.cpu_count()),
    }


def _say(text: str) -> None:
    print(text)  # noqa: T201 -- the command's output


def run(arguments: argparse.Namespace) -> int:
    """
    Run a sweep and print what it found.

    Returns:
        The exit status: 0, 1 if the target does not work or a file cannot be written, 2 for wrong use, 130 after Ctrl-C.
    """
    try:
        plan, record = _read(arguments)
    except BadArgument as error:
        print(f"sweep: {error}", file=sys.stderr)  # noqa: T201
        return 2
    with progress() as told:
        try:
            advice, versus, stopped = _course(plan, record, told, arguments.target)
        except BadArgument as error:  # an opener shows what it opens when it is called
            told.say(f"sweep: {error}")
            return 2
        except (NothingDelivered, TurnFailed) as error:
            told.say(f"sweep: {error}")
            return 1
    _report(record, advice, versus, stopped=stopped)
    try:
        _write(arguments, record, advice, versus, stopped=stopped)
    except OSError as error:  # the figures have been shown; they are not lost
        print(f"sweep: {error.filename} cannot be written: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 1
    return 130 if stopped else 0


def _write(
    arguments: argparse.Namespace,
    record: Record,
    advice: Advice | None,
    versus: Versus | None,
    *,
    stopped: bool,
) -> None:
    """The files that were asked for."""
    if arguments.json is not None:
        about = {
            "target": arguments.target,
            "arguments": {
                name: str(value) for name, value in vars(arguments).items() if name not in ("command", "do")
            },
            "stopped": stopped,
        }
        text = show.as_json(record, advice, versus, about=about, machine=_machine())
        arguments.json.write_text(text + "\n", encoding="utf-8")
    if arguments.plot is not None and record.cells():
        plot.draw(record, advice, arguments.target, arguments.plot)


@contextmanager
def _until_ctrl_c(told: Progress) -> Iterator[Callable[[], bool]]:
    """
    Whether Ctrl-C was pressed.

    A handler of our own, for a KeyboardInterrupt may come up in a finalizer, where it is lost, and in
    the middle of a turn it would leave the user's sink half open. The second one is raised as always.
    """
    pressed = False

    def press(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        told.say("stopping after this turn; once more to stop at once")

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _course(
    plan: Plan, record: Record, told: Progress, target: str
) -> tuple[Advice | None, Versus | None, bool]:
    """Run it; Ctrl-C ends it with what there is."""
    advice: Advice | None = None
    with _until_ctrl_c(told) as stop:
        told.say(f"{target}: {record.goal}")
        course = Course(plan, record, told, stop)
        try:
            advice = course.run()
            if plan.pairs:
                told.say("beside the defaults:")
                return advice, course.against_defaults(advice.cell), False
        except (Stopped, KeyboardInterrupt):
            return advice, None, True
        except BaseExceptionGroup as group:
            # It came up in a task of the turn's: in the SendFn, for one.
            if group.subgroup(KeyboardInterrupt) is None:
                raise
            return advice, None, True
    return advice, None, False


def _report(record: Record, advice: Advice | None, versus: Versus | None, *, stopped: bool) -> None:
    cells = record.cells()
    if not cells:
        _say("stopped before anything was measured")
        return
    _say(show.as_table(record, advice.cell if advice is not None else None))
    _say(f"\n{show.as_map(record)}\n")
    _say(f"{len(cells)} of {len(record.grid)} cells of the grid were run; goal: {record.goal}")
    if raised := show.errors(record):
        _say(f"failed attempts:\n{raised}")
    if advice is not None:
        _say(f"\nrecommended:\n\n{advice.options}\n\n{advice.reason}")
        if advice.warning:
            _say(f"But {advice.warning}.")
    if versus is not None:
        _say(verdict(record, versus))
    if stopped:
        _say("stopped: this is what was measured so far")
