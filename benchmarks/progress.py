"""
How far a run is: a bar where one can be drawn, lines everywhere else. On standard error, beside the table.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars

__all__ = ["Lines", "Progress", "shown"]


class Progress(Protocol):
    """What a run tells while it goes on."""

    def say(self, text: str) -> None:
        """Anything for the reader."""

    def begin(self, name: str, what: str, turns: int) -> None:
        """A row begins."""

    def turned(self, name: str, turn: int, turns: int, figures: str) -> None:
        """One pair of turns is measured, the *turn*-th from 1 on."""

    def ended(self) -> None:
        """The row is over, whatever became of it."""


class Lines:
    """One line for each event; for files, pipes and terminals without rich."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 -- progress belongs beside the table, not in it

    def begin(self, name: str, what: str, turns: int) -> None:
        self.say(f"{name}: {what}")

    def turned(self, name: str, turn: int, turns: int, figures: str) -> None:
        self.say(f"  {name} {turn}/{turns}: {figures}")

    def ended(self) -> None:
        """Nothing to take down."""


class _Bars:
    """One bar over all rows, and one over the turns of the row that runs."""

    def __init__(self, bars: "RichBars", rows: int) -> None:
        self._bars = bars
        self._rows = bars.add_task("rows", total=rows, figures="")
        self._turns = bars.add_task("", total=None, figures="")

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def begin(self, name: str, what: str, turns: int) -> None:
        self._bars.reset(self._turns, total=turns, description=name, figures="warming up")

    def turned(self, name: str, turn: int, turns: int, figures: str) -> None:
        self._bars.update(self._turns, completed=turn, figures=figures)

    def ended(self) -> None:
        self._bars.advance(self._rows)


@contextlib.contextmanager
def shown(rows: int) -> Iterator[Progress]:
    """
    Show the progress of so many rows: with bars if rich is installed and standard error is a terminal.

    Args:
        rows: How many will run.
    """
    if not sys.stderr.isatty():
        yield Lines()
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichBars
    except ImportError:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with RichBars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars, rows)
