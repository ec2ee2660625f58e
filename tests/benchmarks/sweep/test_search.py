"""The search: finds the best of surfaces that are known, without trying all of them."""

import math
import random
from collections.abc import Callable, Sequence

import pytest

from benchmarks.sweep.cells import Cell, Grid, Point, wholes
from benchmarks.sweep.goals import cost
from benchmarks.sweep.search import Estimate, choose, finalists, search

GRID = Grid(wholes("1..4096", ""), (0.0, 0.01, 0.05, 0.2), wholes("1..16", ""))
START = GRID.nearest(Cell(100, 0.2, 4))
TOLERANCE = 0.03

Surface = Callable[[Cell], float]


def price(point: Point) -> tuple[float, ...]:
    return cost(GRID.cell(point))


def linear(a: float, b: float, parallel: int = 4) -> Surface:
    """A call takes a + b * n seconds, and so many run at once."""
    return lambda cell: min(cell.max_leases, parallel) * cell.batch_items_max / (a + b * cell.batch_items_max)


def cliff(cell: Cell) -> float:
    """Grows with the batch up to 600, and beyond it every call is refused."""
    return linear(1e-3, 1e-5)(cell) if cell.batch_items_max <= 600 else 0.0


def knee(cell: Cell) -> float:
    n = cell.batch_items_max
    return n / (2e-3 + 1e-5 * n + 1e-4 * max(0, n - 300)) * min(cell.max_leases, 2)


def crowded(cell: Cell) -> float:
    """More leases than three get in each other's way, and old batches cost."""
    return linear(1e-2, 1e-6, 3)(cell) / (1 + max(0, cell.max_leases - 3) / 4) / (1 + cell.batch_age_max)


def dented(cell: Cell) -> float:
    """One length that the receiver does not like (a page and a bit), on the way to better ones."""
    return linear(5e-3, 5e-5)(cell) * (0.5 if cell.batch_items_max == GRID.items[START[0] + 4] else 1.0)


class Bench:
    """Answers with the surface's values, and remembers what it was asked."""

    def __init__(self, surface: Surface, noise: float = 0.0, seed: int = 1) -> None:
        self.surface, self.noise = surface, noise
        self.chance = random.Random(seed)
        self.asked: list[Point] = []

    def __call__(self, points: Sequence[Point]) -> list[Estimate]:
        self.asked += points
        return [self._one(GRID.cell(point)) for point in points]

    def _one(self, cell: Cell) -> Estimate:
        off = self.chance.uniform(-self.noise, self.noise)
        return Estimate(self.surface(cell) * (1 + off), self.noise / 2)


def best(surface: Surface) -> float:
    items, ages, leases = (range(length) for length in GRID.shape)
    return max(surface(GRID.cell((i, a, m))) for i in items for a in ages for m in leases)


def found(bench: Bench) -> Cell:
    known = search(GRID.shape, START, bench, tolerance=TOLERANCE, cost=price)
    return GRID.cell(choose(known, tolerance=TOLERANCE, cost=price))


SURFACES = [
    pytest.param(linear(5e-3, 5e-5), id="cost per call"),
    pytest.param(linear(1e-4, 1e-3), id="cost per item"),
    pytest.param(linear(1e-1, 1e-6, 16), id="the far corner"),
    pytest.param(linear(1e-6, 1e-3, 1), id="the near corner"),
    pytest.param(cliff, id="a cliff"),
    pytest.param(knee, id="a knee"),
    pytest.param(crowded, id="leases that hinder each other"),
    pytest.param(dented, id="a dent on the way"),
    pytest.param(lambda cell: 1000.0, id="a plateau"),
]


class TestSearch:
    @pytest.mark.parametrize("surface", SURFACES)
    def test_finds_what_is_as_good_as_the_best(self, surface: Surface) -> None:
        """Within the tolerance, at a small part of the grid."""
        bench = Bench(surface)

        assert surface(found(bench)) >= best(surface) * (1 - TOLERANCE)
        assert len(bench.asked) < len(GRID) / 10

    @pytest.mark.parametrize("surface", SURFACES)
    def test_noise_costs_little(self, surface: Surface) -> None:
        """Samples that are off by up to 5 % cost a few percent of the best, whichever they are."""
        kept = [surface(found(Bench(surface, 0.05, seed))) / best(surface) for seed in range(20)]

        assert min(kept) >= 0.85
        assert sum(kept) / len(kept) >= 0.93

    def test_never_asks_twice(self) -> None:
        """A cell costs seconds."""
        bench = Bench(knee, 0.05)
        found(bench)

        assert len(bench.asked) == len(set(bench.asked))

    def test_of_equals_the_cheapest_is_taken(self) -> None:
        """On a plateau nothing speaks for a large batch, many leases or waiting."""
        assert found(Bench(lambda cell: 1000.0)) == Cell(1, 0.0, 1)

    def test_small_losses_do_not_add_up(self) -> None:
        """Each step down is cheaper by less than the tolerance; all of them are not."""

        def slope(cell: Cell) -> float:
            return 1000 * 1.02 ** math.log2(cell.batch_items_max) * 1.02 ** math.log2(cell.max_leases)

        assert slope(found(Bench(slope))) >= best(slope) * (1 - TOLERANCE)

    def test_a_grid_of_one_cell_is_measured_once(self) -> None:
        """Whoever fixes all options just measures."""
        asked: list[Point] = []

        def measure(points: Sequence[Point]) -> list[Estimate]:
            asked.extend(points)
            return [Estimate(1.0) for _ in points]

        search((1, 1, 1), (0, 0, 0), measure, tolerance=0.03, cost=lambda point: point)

        assert asked == [(0, 0, 0)]

    def test_where_nothing_works_it_ends(self) -> None:
        """A receiver that is down gives zeros everywhere."""
        bench = Bench(lambda cell: 0.0)
        found(bench)

        assert len(bench.asked) < len(GRID) / 10

    def test_neighbours_are_asked_for_together(self) -> None:
        """So that the bench can take turns between them."""
        sizes: list[int] = []
        bench = Bench(knee)

        def measure(points: Sequence[Point]) -> list[Estimate]:
            sizes.append(len(points))
            return bench(points)

        search(GRID.shape, START, measure, tolerance=TOLERANCE, cost=price)

        assert sum(size > 1 for size in sizes) >= len(sizes) / 2


class TestChoose:
    KNOWN = {  # noqa: RUF012 - nobody changes it
        (0, 0, 0): Estimate(90.0, 0.01),
        (1, 0, 0): Estimate(98.0, 0.01),
        (2, 0, 0): Estimate(100.0, 0.01),
    }

    def test_takes_the_cheapest_within_the_tolerance(self) -> None:
        assert choose(self.KNOWN, tolerance=0.03, cost=lambda point: point) == (1, 0, 0)
        assert choose(self.KNOWN, tolerance=0.0, cost=lambda point: point) == (2, 0, 0)

    def test_noise_widens_the_tolerance(self) -> None:
        """What the samples cannot tell apart is no reason for a larger setting."""
        noisy = {**self.KNOWN, (0, 0, 0): Estimate(91.0, 0.095)}

        assert choose(noisy, tolerance=0.03, cost=lambda point: point) == (0, 0, 0)

    def test_but_not_without_end(self) -> None:
        """A wild cell does not pass for a good one."""
        wild = {**self.KNOWN, (0, 0, 0): Estimate(70.0, 0.5)}

        assert choose(wild, tolerance=0.03, cost=lambda point: point) == (1, 0, 0)

    def test_finalists_are_the_chosen_and_those_near_the_best(self) -> None:
        assert finalists(self.KNOWN, (1, 0, 0), tolerance=0.03, count=4) == [(1, 0, 0), (2, 0, 0)]
        assert finalists(self.KNOWN, (1, 0, 0), tolerance=0.1, count=2) == [(1, 0, 0), (2, 0, 0)]
