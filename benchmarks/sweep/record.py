"""
What has been measured so far, and what it says of cells and of the defaults. Pure.
"""

import math
from collections.abc import Iterable, Sequence

import attrs

from benchmarks.sweep.cells import Cell, Grid, Point
from benchmarks.sweep.figures import Figures, Turn, ratio, summarise
from benchmarks.sweep.goals import Goal, estimate
from benchmarks.sweep.search import Estimate

__all__ = ["Record", "Versus"]


@attrs.frozen(kw_only=True)
class Versus:
    """The recommended setting beside the defaults, turn by turn, neighbours in time."""

    recommended: tuple[Turn, ...]
    defaults: tuple[Turn, ...]
    ratio: tuple[float, float, float] | None
    """Of the scores: median, least, greatest; None if a turn of the defaults scored nothing."""

    better: int
    """Pairs in which the recommended setting scored more."""

    @property
    def sure(self) -> bool:
        """Whether chance alone would bring as many better pairs in less than one of twenty runs (a sign test)."""
        pairs = len(self.recommended)
        ways = sum(math.comb(pairs, better) for better in range(self.better, pairs + 1))
        return ways * 0.5**pairs < 0.05


@attrs.define(kw_only=True)
class Record:
    """
    All turns, by cell and item size.

    Args:
        goal: What a turn is judged by.

        grid: What could be tried.

        item_sizes: Each cell is measured with all of them.
    """

    goal: Goal
    grid: Grid
    item_sizes: tuple[int, ...]
    turns: dict[tuple[Cell, int], list[Turn]] = attrs.field(factory=dict)
    finals: dict[tuple[Cell, int], list[Turn]] = attrs.field(factory=dict)
    """Those of `turns` in which the best were compared once more; the choice stands on these alone."""

    def add(self, cell: Cell, item_size: int, turn: Turn, *, final: bool = False) -> None:
        """One more turn."""
        self.turns.setdefault((cell, item_size), []).append(turn)
        if final:
            self.finals.setdefault((cell, item_size), []).append(turn)

    def cells(self) -> list[Cell]:
        """All that were tried with every item size, in order."""
        tried = {
            cell for cell, _ in self.turns if all((cell, size) in self.turns for size in self.item_sizes)
        }
        return sorted(tried, key=lambda cell: (cell.batch_items_max, cell.batch_age_max, cell.max_leases))

    def figures(self, cell: Cell, item_size: int) -> Figures:
        """A cell's medians with one size."""
        return summarise(self.turns[cell, item_size])

    def estimate(self, cell: Cell) -> Estimate:
        """What the cell is worth: by its final turns, if there were any, else by all."""
        return estimate(
            [
                [self.goal.score(turn) for turn in self.finals.get((cell, size)) or self.turns[cell, size]]
                for size in self.item_sizes
            ]
        )

    def estimates(self) -> dict[Point, Estimate]:
        """Of all cells on the grid that were tried."""
        return {self.grid.nearest(cell): self.estimate(cell) for cell in self.cells()}

    def all_turns(self, cells: Iterable[Cell]) -> list[Turn]:
        """Theirs, whatever the size."""
        return [turn for cell in cells for size in self.item_sizes for turn in self.turns[cell, size]]

    def versus(self, recommended: Sequence[Turn], defaults: Sequence[Turn]) -> Versus:
        """Compare neighbours; the turns of one pair have the same item size."""

        def scores(turns: Sequence[Turn]) -> list[float]:
            return [self.goal.score(turn) if self.goal.carries(turn) else 0.0 for turn in turns]

        mine, theirs = scores(recommended), scores(defaults)
        return Versus(
            recommended=tuple(recommended),
            defaults=tuple(defaults),
            ratio=ratio(mine, theirs),
            better=sum(one > other for one, other in zip(mine, theirs, strict=True)),
        )
