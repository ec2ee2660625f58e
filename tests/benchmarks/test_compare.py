"""Telling a regression from noise: by synthetic runs whose truth is known."""

import random

import attrs
import pytest

from benchmarks.compare import Change, Verdict, as_table, by_chance, changes, is_apart, notes
from benchmarks.measure import Result, summarise_samples
from benchmarks.results import Run

MACHINE = {"python": "3.11", "processors": "2"}


def make_run(*results: Result, machine: dict[str, str] = MACHINE, **more: str) -> Run:
    return Run(machine=machine, results=results, absent=more)


def noisy(
    seed: int, *, ratio: float = 2.0, noise: float = 0.05, turns: int = 25, unit: str = "items/s"
) -> Result:
    """A row whose true ratio is known; both sides also share the machine's slow and fast moments."""
    chance = random.Random(seed)
    mood = [chance.uniform(0.5, 1.5) for _ in range(turns)]
    subject = [1e6 * ratio * one * chance.gauss(1, noise) for one in mood]
    yardstick = [1e6 * one * chance.gauss(1, noise) for one in mood]
    return summarise_samples("row", unit, None, subject, yardstick)


def alone(values: list[float], unit: str = "MiB") -> Result:
    return summarise_samples("row", unit, None, values, [])


def only(old: Run, new: Run) -> Change:
    (change,) = changes(old, new)
    return change


class TestNoise:
    @pytest.mark.parametrize("turns", [7, 25])
    @pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
    def test_without_a_change_regressions_are_rarer_than_one_in_two_hundred(
        self, turns: int, noise: float
    ) -> None:
        """Four hundred pairs of runs of the same thing, as steady or as wild as machines are."""
        verdicts = [
            only(
                make_run(noisy(seed, turns=turns, noise=noise)),
                make_run(noisy(seed + 1000, turns=turns, noise=noise)),
            ).verdict
            for seed in range(400)
        ]

        assert verdicts.count(Verdict.WORSE) <= 2

    @pytest.mark.parametrize(("turns", "noise"), [(7, 0.03), (25, 0.05), (25, 0.08)])
    def test_a_loss_of_15_percent_is_a_regression(self, turns: int, noise: float) -> None:
        """Told at least nine times in ten with the scatter that such rows have on a quiet machine."""
        verdicts = [
            only(
                make_run(noisy(seed, turns=turns, noise=noise)),
                make_run(noisy(seed + 1000, ratio=1.7, turns=turns, noise=noise)),
            ).verdict
            for seed in range(200)
        ]

        assert verdicts.count(Verdict.WORSE) >= 180
        assert Verdict.BETTER not in verdicts

    def test_a_gain_is_told_too(self) -> None:
        """The other direction is no regression."""
        assert only(make_run(noisy(1)), make_run(noisy(2, ratio=2.6))).verdict is Verdict.BETTER

    def test_a_small_change_of_steady_figures_is_within_the_spread(self) -> None:
        """Turns that agree to the thousandth still differ between runs by where memory lies."""
        old, new = alone([100.0, 100.1, 99.9, 100.0, 100.1]), alone([104.0, 104.1, 104.0, 103.9, 104.1])

        assert only(make_run(old), make_run(new)).verdict is Verdict.SAME


class TestRule:
    @pytest.mark.parametrize(
        ("old", "new", "apart"),
        [
            ([100, 100, 100, 100, 100], [105, 105, 105, 105, 105], False),  # the floor itself
            (
                [100, 100, 100, 100, 100],
                [106, 106, 106, 106, 106],
                False,
            ),  # five turns are few, see below
            ([100, 101, 102, 103, 104, 105], [110, 111, 112, 113, 114, 115], True),
            ([100, 101, 102, 103, 104, 110], [109, 111, 112, 113, 114, 115], True),  # one turn out of place
            ([100, 101, 102, 103, 104, 150], [110, 111, 112, 113, 114, 90], False),  # two, and far out
            ([100, 101, 102], [112, 113, 114], True),  # few turns: the whole ranges…
            ([100, 101, 113], [112, 113, 114], False),
            ([100, 101, 102], [107, 108, 109], False),  # …and twice the floor
            ([100, 101], [120, 121], True),
            ([0, 0, 0], [0, 0, 0], False),
            ([0, 0, 0], [3, 3, 3], True),
        ],
    )
    def test_what_counts_as_a_change(self, old: list[float], new: list[float], apart: bool) -> None:
        """Medians beyond the floor, and an order of the turns that chance hardly gives."""
        assert is_apart(old, new) is apart
        assert is_apart(new, old) is apart

    @pytest.mark.parametrize(
        ("old", "new", "likely"),
        [
            ([1, 2, 3], [4, 5, 6], 2 / 20),
            ([1, 2, 4], [3, 5, 6], 4 / 20),
            ([1, 3, 5], [2, 4, 6], 14 / 20),
            ([1, 1, 1], [1, 1, 1], 1.0),
            ([1], [2, 3], 2 / 3),
        ],
    )
    def test_the_chance_is_that_of_counting_all_orders(
        self, old: list[float], new: list[float], likely: float
    ) -> None:
        """As the tables of Mann and Whitney's test have it."""
        assert by_chance(old, new) == pytest.approx(likely)
        assert by_chance(new, old) == pytest.approx(likely)

    @pytest.mark.parametrize(
        ("unit", "verdict"), [("mails/s", Verdict.BETTER), ("us", Verdict.WORSE), ("octets", Verdict.WORSE)]
    )
    def test_more_is_better_of_rates_alone(self, unit: str, verdict: Verdict) -> None:
        """Twice the time per batch is a regression although the number rose."""
        assert (
            only(make_run(noisy(1, unit=unit)), make_run(noisy(2, ratio=4.0, unit=unit))).verdict is verdict
        )


class TestRows:
    def test_rows_that_came_and_went_are_told_and_not_judged(self) -> None:
        """With the reason, where the newer run gives one."""
        old = make_run(attrs.evolve(noisy(1), name="went"))
        new = make_run(attrs.evolve(noisy(1), name="came"), went="not run: postfix is not installed")

        came, went = changes(old, new)

        assert (came.name, came.verdict) == ("came", Verdict.NEW)
        assert (went.name, went.verdict) == ("went", Verdict.GONE)
        assert "postfix is not installed" in as_table([came, went])

    def test_figures_without_a_yardstick_do_not_travel(self) -> None:
        """Another machine is told, its ratios are judged, its bare figures are not."""
        other = {**MACHINE, "processors": "64"}
        bare = only(make_run(alone([1.0] * 5)), make_run(alone([9.0] * 5), machine=other))
        ratio = only(make_run(noisy(1)), make_run(noisy(2, ratio=1.0), machine=other))

        assert bare.verdict is Verdict.UNJUDGED
        assert ratio.verdict is Verdict.WORSE

    @pytest.mark.parametrize(
        ("unit", "verdict"), [("us", Verdict.UNJUDGED), ("items/s", Verdict.UNJUDGED), ("MiB", Verdict.WORSE)]
    )
    def test_times_without_a_yardstick_are_not_judged(self, unit: str, verdict: Verdict) -> None:
        """A busier machine is no slower code; memory does not depend on its mood."""
        assert only(make_run(alone([1.0] * 9, unit)), make_run(alone([2.0] * 9, unit))).verdict is verdict

    def test_a_row_that_was_measured_otherwise_is_not_judged(self) -> None:
        """A ratio and a rate are no two values of one thing."""
        found = only(make_run(alone([1.0] * 5, "items/s")), make_run(noisy(1)))

        assert (found.verdict, found.change) == (Verdict.UNJUDGED, None)

    def test_other_machines_and_amounts_of_work_are_noted(self) -> None:
        """A reader sees them before the table."""
        old = make_run()
        new = attrs.evolve(make_run(machine={"python": "3.14", "processors": "2"}), scale=0.5)

        assert notes(old, old) == []
        assert notes(old, new) == [
            "another machine: python was 3.11, is 3.14",
            "another amount of work: --scale was 1, is 0.5",
        ]

    def test_the_table_tells_the_regression(self) -> None:
        """Median and middle half of both, the change, the verdict."""
        table = as_table(changes(make_run(alone([10.0] * 5)), make_run(alone([20.0] * 5))))

        assert table.splitlines()[-1].split() == [
            "row", "MiB", "10", "10..10", "20", "20..20", "+100.0%", "REGRESSION",
        ]  # fmt: skip
