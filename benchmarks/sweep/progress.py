"""
What a run shows while it goes on: a bar on a terminal where rich is installed, plain lines elsewhere.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Progress", "progress"]


class Progress(Protocol):
    """Where a run tells how far it is."""

    def expect(self, turns: int) -> None:
        """So many turns more than known so far."""
        ...

    def turn(self) -> None:
        """One of them is over."""
        ...

    def say(self, text: str) -> None:
        """A line for who watches."""
        ...


class _Lines:
    def expect(self, turns: int) -> None:
        pass

    def turn(self) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - beside the results, not in them


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("turns"), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("sweep", total=0)

        class Bar:
            total = 0

            def expect(self, turns: int) -> None:
                self.total += turns
                bar.update(task, total=self.total)

            def turn(self) -> None:
                bar.advance(task)

            def say(self, text: str) -> None:
                bar.console.print(text, markup=False, highlight=False)

        yield Bar()


@contextmanager
def progress() -> Iterator[Progress]:
    """Open the one that fits stderr."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        with _bar() as bar:
            yield bar
    else:
        yield _Lines()
