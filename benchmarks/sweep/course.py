"""
The course of a sweep: warm-up, search, finals, and the comparison with the defaults; a thin shell.
"""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio
import attrs

from benchmarks.sweep.advice import Advice, advise
from benchmarks.sweep.cells import DEFAULT, Cell, Point
from benchmarks.sweep.figures import Turn
from benchmarks.sweep.goals import carried, cost
from benchmarks.sweep.progress import Progress
from benchmarks.sweep.record import Record, Versus
from benchmarks.sweep.search import Estimate, choose, finalists, search
from benchmarks.sweep.show import line
from benchmarks.sweep.sinks import MakeItem, OpenSink
from benchmarks.sweep.trial import Load, run_turn

__all__ = ["Course", "NothingDelivered", "Plan", "Stopped"]


class NothingDelivered(Exception):
    """Neither the defaults nor the least setting delivered anything, so there is nothing to tune."""


class Stopped(Exception):
    """The run was asked to stop, and has done so after the turn that ran."""


@attrs.frozen(kw_only=True)
class Plan:
    """
    How a sweep is run.

    Args:
        sink: What it sends to.

        make: Makes items.

        load: How much is offered, and how long.

        turns: Per cell in the search.

        finals: Per cell among the best; 0 for no finals.

        pairs: Of the recommended setting and the defaults; 0 for none.

        tolerance: Relative gains below it are none.

        every_cell: Do not search, try all.

        backend: As ``anyio.run`` takes it.

        backend_options: As ``anyio.run`` takes them.
    """

    sink: OpenSink
    make: MakeItem
    load: Load
    turns: int = 3
    finals: int = 7
    pairs: int = 9
    tolerance: float = 0.03
    every_cell: bool = False
    backend: str = "asyncio"
    backend_options: dict[str, Any] = attrs.field(factory=dict)


FINALISTS = 4

PATIENCE = 10
"""So many times longer a turn may be in which nothing came back at first."""

NOISY = 0.08
"""A cell whose value may be off by more gets as many turns again, once."""


class Course:
    """
    One sweep. What was measured is in `record` at every moment, so that a run can end at any.

    Args:
        plan: How it is run.

        record: Where the turns go.

        told: Where progress goes.

        stop: Asked after each turn whether to end.
    """

    def __init__(self, plan: Plan, record: Record, told: Progress, stop: Callable[[], bool]) -> None:
        self.record = record
        self._stop = stop
        self._plan = plan
        self._told = told
        self._numbers = 0

    def run(self) -> Advice:
        """
        Search, and choose among the best.

        Raises:
            NothingDelivered: If the sink does not work; the text tells what happened.

            Stopped: If it was asked to.
        """
        record, plan = self.record, self._plan
        grid = record.grid
        start = self._start()
        price: Callable[[Point], tuple[float, ...]] = lambda point: cost(grid.cell(point))  # noqa: E731
        if plan.every_cell:
            items, ages, leases = (range(length) for length in grid.shape)
            points = [(item, age, lease) for item in items for age in ages for lease in leases]
            known = dict(zip(points, self._measure(points), strict=True))
        else:
            known = search(grid.shape, start, self._measure, tolerance=plan.tolerance, cost=price)
        if plan.finals:
            chosen = choose(known, tolerance=plan.tolerance, cost=price)
            best = finalists(known, chosen, tolerance=plan.tolerance, count=FINALISTS)
            if len(best) > 1:
                self._told.say(f"finals of {len(best)}:")
                self._interleave([grid.cell(point) for point in best], plan.finals, final=True)
        return advise(record, tolerance=plan.tolerance)

    def against_defaults(self, cell: Cell) -> Versus:
        """*cell* and the defaults, turn by turn; raises `Stopped` as `run`."""
        sides: tuple[list[Turn], list[Turn]] = ([], [])
        sizes = self.record.item_sizes
        self._told.expect(2 * self._plan.pairs * len(sizes))
        for number in range(self._plan.pairs):
            for size in sizes:
                pair = [(cell, sides[0]), (DEFAULT, sides[1])]
                # Who goes first alternates, so that neither always finds the other's warm caches.
                for one, samples in pair if number % 2 == 0 else reversed(pair):
                    samples.append(self._turn(one, size))
        return self.record.versus(*sides)

    def _start(self) -> Point:
        """
        Where to begin: near the defaults, or at the grid's least if nothing is delivered there.

        What these turns measure does not count: they are the warm-up.
        """
        grid = self.record.grid
        told = ""
        for start in dict.fromkeys([grid.nearest(DEFAULT), (0, 0, 0)]):
            cell = grid.cell(start)
            self._told.expect(1)
            turn = self._once(cell, self.record.item_sizes[0], None)
            if not turn.throughput and not turn.errors:  # the first call of all may take its time
                turn = self._once(cell, self.record.item_sizes[0], None, longer=PATIENCE)
            self._told.turn()
            if turn.throughput:
                return start
            raised = "; ".join(f"{count} x {text}" for text, count in turn.errors.items())
            failed = f"all attempts failed: {raised}" if raised else "no call of the SendFn returned in time"
            told = f"nothing was delivered with {cell}; {failed}"
            self._told.say(told)
        raise NothingDelivered(told)

    def _measure(self, points: Sequence[Point]) -> list[Estimate]:
        cells = [self.record.grid.cell(point) for point in points]
        self._interleave(cells, self._plan.turns)
        return [self.record.estimate(cell) for cell in cells]

    def _interleave(self, cells: Sequence[Cell], turns: int, *, final: bool = False) -> None:
        """Run all cells; on a busy machine some need more turns, and get them, but not without end."""
        self._rounds(cells, turns, final=final)
        noisy = [cell for cell in cells if self.record.estimate(cell).noise > NOISY]
        self._rounds(noisy, turns, final=final)
        for cell in cells:
            for size in self.record.item_sizes:
                self._told.say(f"  {line(cell, self.record.figures(cell, size))}")

    def _rounds(self, cells: Sequence[Cell], turns: int, *, final: bool) -> None:
        """All cells once, then all cells again, back and forth: what drifts, drifts for all."""
        self._told.expect(len(cells) * turns * len(self.record.item_sizes))
        for number in range(turns):
            for cell in cells if number % 2 == 0 else reversed(cells):
                for size in self.record.item_sizes:
                    self.record.add(cell, size, self._turn(cell, size), final=final)

    def _turn(self, cell: Cell, size: int) -> Turn:
        goal = self.record.goal
        run = partial(self._once, cell, size)
        turn = carried(run, goal.met) if goal.seeks_rate else run(goal.rate)
        self._told.turn()
        return turn

    def _once(self, cell: Cell, size: int, rate: float | None, *, longer: float = 1.0) -> Turn:
        if self._stop():
            raise Stopped
        gc.collect()
        given = self._plan.load
        load = attrs.evolve(given, rate=rate, seconds=given.seconds * longer)
        made = self._plan.make

        def make() -> object:
            self._numbers += 1
            return made(self._numbers, size)

        return anyio.run(
            run_turn,
            self._plan.sink,
            cell.options(),
            make,
            load,
            backend=self._plan.backend,
            backend_options=self._plan.backend_options,
        )
