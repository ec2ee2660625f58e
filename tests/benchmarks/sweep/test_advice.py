"""One setting and its reason, from turns that are known; and how results are shown."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.sweep.advice import advise, verdict
from benchmarks.sweep.cells import DEFAULT, Cell, Grid, Point
from benchmarks.sweep.figures import Turn
from benchmarks.sweep.goals import Goal
from benchmarks.sweep.record import Record
from benchmarks.sweep.show import as_json, as_map, as_table, errors, line, map_values

GRID = Grid((1, 4, 16, 64, 256, 1024), (0.0, 0.2), (1, 2, 4))

Answer = Callable[[Cell], dict[str, Any]]


def make_turn(cell: Cell, **changes: Any) -> Turn:
    n = cell.batch_items_max
    took = 0.005 + 0.0001 * n
    given: dict[str, Any] = {
        "offered": None,
        "throughput": min(cell.max_leases, 2) * n / took,
        "p50": 0.01,
        "p99": 0.02,
        "batch_items": float(n),
        "call_seconds": took,
        "used": 0.5,
        "cpu": 0.5,
        "calls": 20,
        "retries": 0,
        "failed": 0,
        "lost": 0.0,
        "left": 0,
        "errors": {},
        **changes,
    }
    return Turn(**given)


def nothing_else(cell: Cell) -> dict[str, Any]:
    return {}


def make_record(
    answer: Answer = nothing_else, *, grid: Grid = GRID, goal: Goal | None = None, **more: Any
) -> Record:
    """Two at once, 5 ms a call and 0.1 ms an item, unless *answer* says otherwise; every cell tried."""
    record = Record(goal=goal or Goal(what="throughput"), grid=grid, item_sizes=(100,), **more)
    for items in grid.items:
        for age in grid.ages:
            for leases in grid.leases:
                cell = Cell(items, age, leases)
                for _ in range(3):
                    record.add(cell, 100, make_turn(cell, **answer(cell)))
    return record


class TestAdvice:
    def test_takes_the_cheapest_within_the_tolerance(self) -> None:
        """More than two leases gain nothing, and age makes no difference."""
        advice = advise(make_record(), tolerance=0.03)

        assert advice.cell == Cell(1024, 0.0, 2)
        assert "beyond 2 leases the gain is 0.0% at most" in advice.reason.lower()
        assert "a call costs about 5ms and each item 100µs more" in advice.reason.lower()

    def test_says_what_a_larger_batch_would_gain(self) -> None:
        advice = advise(make_record(), tolerance=0.25)

        assert advice.cell == Cell(256, 0.0, 2)
        assert "beyond 256 items a batch the gain is 14.0% at most" in advice.reason.lower()

    def test_or_lose(self) -> None:
        def answer(cell: Cell) -> dict[str, Any]:
            return {"throughput": 1.0} if cell.batch_items_max > 256 else {}

        assert (
            "Beyond 256 items a batch it gets worse (-100% at best)"
            in advise(make_record(answer), tolerance=0.03).reason
        )

    def test_one_is_no_plural(self) -> None:
        record = make_record(lambda cell: {"throughput": 100.0 / cell.max_leases})

        assert advise(record, tolerance=0.03).reason.startswith(
            "Beyond 1 item a batch the gain is 0.0% at most; beyond 1 lease it gets worse (-50% at best)."
        )

    def test_warns_where_the_axis_ends(self) -> None:
        """The best of what was tried need not be the best there is."""
        assert "it stands at the end of batch_items_max:" in advise(make_record(), tolerance=0.03).warning
        assert advise(make_record(), tolerance=0.25).warning == ""

    def test_names_the_processor_where_it_is_the_limit(self) -> None:
        reason = advise(make_record(lambda cell: {"cpu": 0.99}), tolerance=0.03).reason

        assert "this process uses 99% of a processor: it is the limit" in reason

    def test_finals_decide_where_there_were_some(self) -> None:
        """What looked good by luck is out."""
        record = make_record()
        for cell, speed in ((Cell(256, 0.0, 2), 500.0), (Cell(1024, 0.0, 2), 100.0)):
            record.add(cell, 100, make_turn(cell, throughput=speed), final=True)

        assert advise(record, tolerance=0.03).cell == Cell(256, 0.0, 2)

    def test_says_so_if_nothing_reaches_the_goal(self) -> None:
        goal = Goal(what="latency", p99=0.001)
        advice = advise(make_record(lambda cell: {"throughput": 0.0}, goal=goal), tolerance=0.03)

        assert advice.warning == "nothing that was tried reaches the goal"

    def test_says_so_if_the_bound_is_not_kept(self) -> None:
        goal = Goal(what="latency", p99=0.001, rate=10.0)
        advice = advise(make_record(goal=goal), tolerance=0.03)

        assert "a p99 of 1ms is not reached" in advice.warning

    def test_noise_is_told(self) -> None:
        """A recommendation that rests on chance says so."""
        record = make_record()
        for cell in record.cells():
            record.add(cell, 100, make_turn(cell, throughput=5 * make_turn(cell).throughput))

        assert "its figure may be off by " in advise(record, tolerance=0.03).warning

    def test_a_single_cell_is_advice_enough(self) -> None:
        record = make_record(grid=Grid((16,), (0.0,), (1,)))

        assert advise(record, tolerance=0.03).reason == "Nothing that was tried did better."


class TestVerdict:
    def compare(self, mine: list[float], theirs: list[float], goal: Goal | None = None) -> str:
        record = make_record(goal=goal)
        return verdict(
            record,
            record.versus(
                [make_turn(DEFAULT, throughput=speed) for speed in mine],
                [make_turn(DEFAULT, throughput=speed) for speed in theirs],
            ),
        )

    def test_is_the_median_ratio_of_neighbours_with_its_spread(self) -> None:
        told = self.compare([300.0, 64.0, 290.0] * 2, [100.0, 20.0, 100.0] * 2)

        assert told == (
            "recommended against defaults: 3.00x (2.90-3.20) the items per second, better in 6 of 6 pairs; "
            "290 items/s at a p99 of 20ms against 100 items/s at a p99 of 20ms"
        )

    @pytest.mark.parametrize(("better", "chance"), [(9, False), (8, False), (7, True), (4, True), (0, True)])
    def test_says_if_it_may_be_chance(self, better: int, chance: bool) -> None:
        """One slow moment takes nothing away, a draw is none."""
        told = self.compare([200.0] * better + [50.0] * (9 - better), [100.0] * 9)

        assert f"better in {better} of 9 pairs" in told
        assert ("which may be chance" in told) is chance

    def test_says_if_the_defaults_did_not_do_what_was_asked(self) -> None:
        """A ratio to nothing is none."""
        told = self.compare([5.0, 5.0], [0.0, 2.0])

        assert "better in 2 of 2 pairs" in told
        assert "the defaults did not always do what was asked" in told

    def test_at_a_rate_it_is_about_the_delay(self) -> None:
        goal = Goal(what="latency", rate=10.0)
        record = make_record(goal=goal)
        mine, theirs = make_turn(DEFAULT, p99=0.01, offered=10.0), make_turn(DEFAULT, p99=0.03, offered=10.0)
        late = make_turn(DEFAULT, p99=0.03, offered=10.0, throughput=5.0)

        told = verdict(record, record.versus([mine, mine], [theirs, theirs]))
        assert told.startswith(
            "recommended against defaults: a p99 3.00x (3.00-3.00) shorter, better in 2 of 2 "
        )
        assert "did not always do what was asked" in verdict(record, record.versus([mine], [late]))


class TestShown:
    def test_the_table_marks_the_chosen_and_the_defaults(self) -> None:
        grid = Grid((100, 1000), (0.2,), (4,))
        lines = as_table(make_record(grid=grid), Cell(1000, 0.2, 4)).splitlines()

        assert len(lines) == 2 + 2
        assert [line.split()[0] for line in lines[2:]] == ["d", ">"]
        assert "100%" in lines[2]

    def test_sizes_have_a_column_where_there_are_several(self) -> None:
        record = Record(goal=Goal(what="throughput"), grid=GRID, item_sizes=(10, 1000))
        for size in record.item_sizes:
            record.add(DEFAULT, size, make_turn(DEFAULT))

        lines = as_table(record, None).splitlines()
        assert "size" in lines[0]
        assert len(lines) == 4

    def test_a_cell_counts_when_all_sizes_were_measured(self) -> None:
        """What was cut short by Ctrl-C is not half shown."""
        record = Record(goal=Goal(what="throughput"), grid=GRID, item_sizes=(10, 1000))
        record.add(DEFAULT, 10, make_turn(DEFAULT))

        assert record.cells() == []

    def test_the_map_is_percent_of_the_best_and_empty_where_nothing_was_tried(self) -> None:
        record = make_record(grid=Grid((1, 1024), (0.0,), (2,)))
        record.grid = Grid((1, 16, 1024), (0.0,), (1, 2))
        record.add(Cell(16, 0.0, 1), 100, make_turn(Cell(16, 0.0, 1)))

        across, rows, scores = map_values(record, down="max_leases")
        assert (across, rows) == ([1, 16, 1024], [1, 2])
        assert [[value is None for value in row] for row in scores] == [
            [True, False, True],
            [False, True, False],
        ]
        drawn = as_map(record).splitlines()
        assert drawn[0].strip() == "max_leases"
        assert drawn[1].split() == ["2", "2", ".", "██100"]

    def test_errors_are_ranked(self) -> None:
        record = make_record(
            lambda cell: {"errors": {"KeyError: x": 1, "OSError: y": 5}}, grid=Grid((1,), (0.0,), (1,))
        )

        assert errors(record).splitlines() == ["  15 x OSError: y", "  3 x KeyError: x"]
        assert "18 errors" in line(Cell(1, 0.0, 1), record.figures(Cell(1, 0.0, 1), 100))

    def test_json_has_every_turn(self) -> None:
        record = make_record()
        advice = advise(record, tolerance=0.03)
        read = json.loads(as_json(record, advice, None, about={"stopped": False}, machine={"python": "3"}))

        assert len(read["cells"]) == len(GRID)
        assert {len(cell["turns"]) for cell in read["cells"]} == {3}
        assert read["recommended"]["batch_items_max"] == 1024
        assert read["against_defaults"] is None


def test_points_and_cells_are_one_to_one() -> None:
    """The search speaks of points, the record of cells."""
    record = make_record()
    points: set[Point] = set(record.estimates())

    assert len(points) == len(GRID) == len(record.cells())


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_stderr_alone(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar on a terminal, lines elsewhere; the results stay clean either way."""
    import sys

    from benchmarks.sweep.progress import progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with progress() as told:
        told.expect(2)
        told.turn()
        told.say("[96] items")
        told.turn()
    captured = capsys.readouterr()

    assert "[96] items" in captured.err
    assert captured.out == ""
