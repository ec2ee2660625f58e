"""What a run leaves in a file: every sample, and read back as it was."""

import json

import pytest

from benchmarks.measure import Bar, at_least, at_most, summarise_samples
from benchmarks.results import NotOurs, Run, as_json, read


def make_run() -> Run:
    results = (
        summarise_samples("send", "items/s", at_least(1.5), [3.0, 4.0], [1.0, 2.0]),
        summarise_samples("batch", "us", at_most(20), [11.5], []),
        summarise_samples("bare", "us", None, [1.0], []),
    )
    return Run(machine={"python": "3"}, scale=0.5, results=results, absent={"gone": "not run: no strace"})


class TestRoundTrip:
    def test_a_run_comes_back_as_it_was(self) -> None:
        """Medians, spreads, bars and verdicts are worked out again and are the same."""
        assert read(as_json(make_run())) == make_run()

    def test_json_keeps_every_sample(self) -> None:
        """Whoever doubts a median can look."""
        assert json.loads(as_json(make_run()))["rows"][0]["samples"] == [[3.0, 4.0], [1.0, 2.0]]

    def test_derived_figures_are_not_believed(self) -> None:
        """A file whose median was edited shows the median of its samples."""
        whole = json.loads(as_json(make_run()))
        whole["rows"][0]["ratio"] = 99.0

        assert read(json.dumps(whole)).results[0].ratio == 2.5

    def test_files_from_before_there_was_a_format_are_read(self) -> None:
        """A run that was kept for comparison stays good for it."""
        whole = json.loads(as_json(make_run()))
        del whole["format"], whole["scale"]

        assert read(json.dumps(whole)).scale == 1.0


class TestRefusal:
    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "the file: JSON as `run --json` writes it is wanted"),
            ("[]", "the file: an object is wanted, got []"),
            ("{}", "rows: a list is wanted, got null"),
            ('{"format": "other 1"}', "format: 'dispatcher benchmarks 1' is wanted, got \"other 1\""),
            ('{"rows": [7]}', r"rows[0]: an object is wanted, got 7"),
            ('{"rows": [], "machine": {}}', "without_figures: an object of texts is wanted, got null"),
            ('{"rows": [], "machine": {"a": 1}}', 'machine: an object of texts is wanted, got {"a": 1}'),
            ('{"rows": [], "scale": "1"}', 'scale: a number is wanted, got "1"'),
        ],
    )
    def test_another_file_is_refused_with_the_place_the_rule_and_the_value(
        self, text: str, told: str
    ) -> None:
        """Nobody has to guess which part of which file is meant."""
        with pytest.raises(NotOurs) as caught:
            read(text)

        assert str(caught.value).startswith(told)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"name": None}, "rows[0].name: a text is wanted, got null"),
            ({"bar": "about 3"}, "rows[0]: a bar and its samples is wanted, got a bar reads like"),
            ({"samples": [[1.0]]}, "rows[0].samples: a list of two lists is wanted, got [[1.0]]"),
            ({"samples": [[True], []]}, "rows[0].samples[0]: a list of numbers is wanted, got [true]"),
            (
                {"samples": [[1.0], [float("nan")]]},
                "rows[0].samples[1]: a list of numbers is wanted, got [NaN]",
            ),
            ({"samples": [[1.0, 2.0], [1.0]]}, "rows[0]: a bar and its samples is wanted, got send: pairs"),
            ({"samples": [[], []]}, "rows[0]: a bar and its samples is wanted, got send: pairs"),
            ({"name": "batch"}, 'rows: each name once is wanted, got ["batch"]'),
        ],
    )
    def test_a_damaged_row_is_refused(self, change: dict[str, object], told: str) -> None:
        """Half a file is not compared as if it were whole."""
        whole = json.loads(as_json(make_run()))
        whole["rows"][0].update(change)

        with pytest.raises(NotOurs) as caught:
            read(json.dumps(whole))

        assert str(caught.value).startswith(told)


class TestBar:
    @pytest.mark.parametrize(
        "bar", [at_least(1.5), at_least(20), at_most(0), at_most(20), at_most(2, of="ratio"), at_most(1e-5)]
    )
    def test_a_bar_reads_as_it_is_written(self, bar: Bar) -> None:
        """A file holds bars as people read them."""
        assert Bar.parse(str(bar)) == bar
