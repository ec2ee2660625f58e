"""What turns say."""

from typing import Any

import pytest

from benchmarks.sweep.figures import Turn, percentile, rate, ratio, sink_cost, summarise
from benchmarks.sweep.goals import Goal, carried, estimate


def make_turn(**changes: Any) -> Turn:
    given: dict[str, Any] = {
        "offered": None,
        "throughput": 1000.0,
        "p50": 0.01,
        "p99": 0.02,
        "batch_items": 10.0,
        "call_seconds": 0.01,
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


class TestRate:
    def test_lumps_are_counted_whole(self) -> None:
        """Calls of 0.1 s with 100 items each: 1 000 a second, wherever the window begins."""
        for begin in (0.3, 0.34, 0.399):
            ends = [0.4 + n / 10 for n in range(10) if 0.4 + n / 10 <= begin + 1.0]

            assert rate(0.3, ends, begin, begin + 1.0, 100 * len(ends)) == pytest.approx(1000)

    def test_an_outage_is_not_cut_out(self) -> None:
        """Silence at the end of the window lowers the rate."""
        assert rate(None, [0.1, 0.2, 0.3], 0.0, 3.0, 300) == pytest.approx(100)

    def test_silence_before_the_window_is_not_counted(self) -> None:
        assert rate(0.1, [2.1, 2.2, 2.3], 2.0, 2.3, 300) == pytest.approx(1000)

    def test_no_call_is_no_rate(self) -> None:
        assert rate(None, [], 0.0, 1.0, 0) == 0.0

    def test_one_call_is_spread_over_the_window(self) -> None:
        assert rate(None, [0.5], 0.0, 1.0, 100) == pytest.approx(200)


class TestStatistics:
    def test_percentiles_are_values_that_occurred(self) -> None:
        values = [float(n) for n in range(1, 101)]

        assert (percentile(values, 0.5), percentile(values, 0.99), percentile([], 0.5)) == (50.0, 99.0, None)
        assert percentile([7.0], 0.99) == 7.0

    def test_a_cell_is_medians_with_the_spread_and_sums_of_trouble(self) -> None:
        turns = [
            make_turn(throughput=speed, p99=None if speed == 1.0 else 0.1, errors={"E: x": 2}, failed=1)
            for speed in (3.0, 1.0, 2.0)
        ]
        figures = summarise(turns)

        assert (figures.throughput, figures.lowest, figures.highest) == (2.0, 1.0, 3.0)
        assert (figures.p99, figures.errors, figures.failed, figures.turns) == (0.1, {"E: x": 6}, 3, 3)

    def test_ratios_are_of_neighbours(self) -> None:
        """A machine that slows down slows both."""
        assert ratio([30.0, 3.0, 60.0], [10.0, 1.0, 10.0]) == (3.0, 3.0, 6.0)
        assert ratio([1.0], [0.0]) is None

    def test_the_cost_of_calls_is_a_line(self) -> None:
        turns = [make_turn(batch_items=n, call_seconds=0.002 + 0.0001 * n) for n in (1.0, 10.0, 100.0)]
        cost = sink_cost(turns)

        assert cost is not None
        assert (cost.per_call, cost.per_item) == (pytest.approx(0.002), pytest.approx(0.0001))

    @pytest.mark.parametrize(
        "points",
        [
            [(10, 1.0), (20, 2.0), (30, 3.0)],
            [(1, 1.0), (100, 2.0)],
            [(1, 1.0), (10, 9.0), (100, 2.0), (200, 1.0)],
        ],
        ids=["too alike", "too few", "no line"],
    )
    def test_no_line_is_claimed_where_there_is_none(self, points: list[tuple[float, float]]) -> None:
        assert sink_cost(make_turn(batch_items=n, call_seconds=took) for n, took in points) is None


class TestGoal:
    def test_throughput_is_the_score(self) -> None:
        assert Goal(what="throughput").score(make_turn(throughput=5.0)) == 5.0

    @pytest.mark.parametrize("goal", [Goal(what="throughput"), Goal(what="latency", rate=1000.0)])
    def test_what_loses_items_is_worth_little(self, goal: Goal) -> None:
        """However fast it is; what is lost in all cells alike leaves their order as it is."""
        fast = goal.score(make_turn(throughput=2000.0, p99=0.01, lost=0.2))
        slow = goal.score(make_turn(throughput=1000.0, p99=0.02))

        assert fast < slow
        assert goal.score(make_turn(throughput=2000.0, p99=0.01, lost=0.001)) > slow

    def test_what_full_speed_loses_counts_at_every_rate(self) -> None:
        """Batches that are small at the rate that was found are large in the next rush."""

        def run(rate: float | None) -> Turn:
            if rate is None:
                return make_turn(p99=9.0, lost=0.5)
            return make_turn(offered=rate, throughput=rate, p99=0.01)

        assert carried(run, Goal(what="latency", p99=0.05).met).lost == 0.5

    def test_at_a_rate_the_lowest_p99_wins_if_the_rate_is_carried(self) -> None:
        goal = Goal(what="latency", rate=1000.0)
        fast, slow, late = (
            goal.score(make_turn(offered=1000.0, throughput=speed, p99=p99))
            for speed, p99 in ((1000.0, 0.01), (1000.0, 0.02), (500.0, 0.001))
        )

        assert fast > slow > late

    @pytest.mark.parametrize("what", ["throughput", "latency"])
    def test_what_just_carries_the_rate_is_not_enough(self, what: str) -> None:
        """It falls behind at the next hiccup."""
        goal = Goal(what=what, rate=1000.0)
        edgy, easy = (
            goal.score(make_turn(offered=1000.0, p99=p99, used=used))
            for p99, used in ((0.01, 0.9), (0.02, 0.5))
        )

        assert edgy < easy / 100
        assert Goal(what="throughput").score(make_turn(used=1.0)) == 1000.0

    def test_for_throughput_at_a_rate_all_that_carry_it_are_alike(self) -> None:
        """So that the smallest of them is taken."""
        goal = Goal(what="throughput", rate=1000.0)
        scores = {
            goal.score(make_turn(offered=1000.0, throughput=speed, p99=0.01)) for speed in (980.0, 1010.0)
        }

        assert len(scores) == 1

    def test_a_bound_is_met_by_who_delivers_what_was_offered_in_time(self) -> None:
        goal = Goal(what="latency", rate=1000.0, p99=0.05)

        assert goal.met(make_turn(offered=1000.0, throughput=990.0, p99=0.05))
        assert not goal.met(make_turn(offered=1000.0, throughput=990.0, p99=0.06))
        assert not goal.met(make_turn(offered=1000.0, throughput=500.0, p99=0.01))
        assert not goal.met(make_turn(p99=None))

    def test_the_highest_rate_under_the_bound_is_sought_by_halving(self) -> None:
        """A receiver that takes 1 000 a second, in time up to 700 of them."""
        asked: list[float | None] = []

        def run(rate: float | None) -> Turn:
            asked.append(rate)
            speed = 1000.0 if rate is None else rate
            return make_turn(offered=rate, throughput=speed, p99=0.01 if speed <= 700 else 0.5)

        turn = carried(run, Goal(what="latency", p99=0.05).met, steps=4)

        assert turn.throughput == pytest.approx(700, rel=0.1)
        assert turn.throughput <= 700
        # Full speed; 500; 750, twice, for it fails; 625; 687.5.
        assert asked == [None, 500.0, 750.0, 750.0, 625.0, 687.5]

    def test_one_slow_moment_does_not_halve_the_answer(self) -> None:
        slow = iter([True, True])

        def run(rate: float | None) -> Turn:
            late = rate is None or (rate == 500 and next(slow, False) and next(slow))
            late = late or (rate is not None and rate > 700)
            return make_turn(offered=rate, throughput=rate or 1000.0, p99=0.5 if late else 0.01)

        assert carried(run, Goal(what="latency", p99=0.05).met).throughput > 600

    def test_if_full_speed_is_in_time_there_is_nothing_to_seek(self) -> None:
        turns = iter([make_turn(p99=0.001)])

        assert carried(lambda rate: next(turns), Goal(what="latency", p99=0.05).met).throughput == 1000.0

    def test_a_bound_that_no_rate_meets_is_worth_nothing(self) -> None:
        turn = carried(lambda rate: make_turn(p99=9.0), Goal(what="latency", p99=0.05).met)

        assert turn.throughput == 0.0
        assert turn.p99 == 9.0

    def test_several_sizes_count_alike(self) -> None:
        """A size with large figures does not outvote the others."""
        assert estimate([[100.0], [1.0]]).value == pytest.approx(10.0)
        assert estimate([[100.0], [0.0]]).value == 0.0
        assert estimate([[90.0, 100.0, 110.0]]).noise == pytest.approx(0.1 / 3**0.5)
