"""The benchmarks' harness: its statistics, its table, and one short turn of what needs no server."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks import bodies, channel
from benchmarks.__main__ import ROWS, main, measure
from benchmarks.measure import Row, Sides, at_least, at_most, subject_first, summarise
from benchmarks.report import as_json, as_table, number


def make_row(**changes: object) -> Row:
    @contextmanager
    def nothing(scale: float) -> Iterator[Sides]:
        yield Sides(lambda: 30.0 * scale, lambda: 10.0)

    given: dict[str, object] = {"name": "row", "what": "what", "unit": "items/s", "open": nothing, **changes}
    return Row(**given)  # type: ignore[arg-type]


class TestSummary:
    def test_the_ratio_is_the_median_of_neighbours(self) -> None:
        """A machine that slows down half way slows both sides, and the ratio stays."""
        result = summarise(make_row(bar=at_least(2)), [300.0, 200.0, 20.0], [100.0, 100.0, 10.0])

        assert (result.ratio, result.lowest, result.highest) == (2.0, 2.0, 3.0)
        assert result.holds is True

    def test_a_bar_on_the_value_needs_no_yardstick(self) -> None:
        """What is bounded in itself is judged by its median."""
        result = summarise(make_row(bar=at_most(20)), [19.0, 30.0, 21.0], [])

        assert (result.subject, result.ratio, result.holds) == (21.0, None, False)

    def test_unpaired_samples_are_refused(self) -> None:
        """A ratio of turns that were not neighbours says nothing."""
        with pytest.raises(ValueError, match="got 2 and 1"):
            summarise(make_row(), [1.0, 2.0], [1.0])

    def test_who_goes_first_alternates(self) -> None:
        """Neither side always runs after the other."""
        assert [subject_first(turn) for turn in range(3)] == [True, False, True]


class TestReport:
    def test_the_table_says_what_was_missed_and_what_did_not_run(self) -> None:
        """A reader sees every row that was asked for."""
        missed = summarise(make_row(bar=at_least(4)), [30.0], [10.0])

        table = as_table([missed], {"other": "not run: postfix is not installed"})

        assert "3.00" in table
        assert "MISSED" in table
        assert "other: not run: postfix is not installed" in table

    def test_json_keeps_every_sample(self) -> None:
        """Whoever doubts a median can look."""
        result = summarise(make_row(), [1.0, 2.0], [3.0, 4.0])

        read = json.loads(as_json([result], {}, {"python": "3"}))

        assert read["rows"][0]["samples"] == [[1.0, 2.0], [3.0, 4.0]]

    @pytest.mark.parametrize(
        ("value", "shown"),
        [(3_330_000.0, "3 330 000"), (123.4, "123"), (11.84, "11.8"), (0.0, "0"), (None, "-")],
    )
    def test_figures_have_three_places(self, value: float | None, shown: str) -> None:
        """More places than the measurement has would be a lie."""
        assert number(value) == shown


class TestRun:
    @pytest.mark.parametrize("row", channel.ROWS, ids=lambda row: row.name)
    def test_each_channel_row_runs(self, row: Row) -> None:
        """A turn of each ends with all items delivered; what it measured is nobody's business here."""
        result = measure(row, scale=0.01, turns=1)

        assert len(result.samples[0]) == 1

    def test_the_list_names_every_row(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`list` is the way to find out what there is."""
        assert main(["list"]) == 0
        listed = capsys.readouterr().out

        assert [line.split()[0] for line in listed.splitlines()] == [row.name for row in ROWS]

    def test_a_row_that_loses_something_fails_the_run_and_not_the_others(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A figure of work that was not done is worse than none."""

        @contextmanager
        def lossy(scale: float) -> Iterator[Sides]:
            msg = "99 of 100 items were delivered"
            raise RuntimeError(msg)
            yield

        monkeypatch.setattr(
            "benchmarks.__main__.ROWS", (make_row(name="lossy", open=lossy), make_row(name="good"))
        )

        assert main(["run", "--turns=1"]) == 1
        table = capsys.readouterr().out
        assert "lossy: FAILED: 99 of 100 items were delivered" in table
        assert "good" in table

    def test_an_unknown_name_is_wrong_use(self) -> None:
        """A typing error does not run an empty table."""
        with pytest.raises(SystemExit) as caught:
            main(["run", "nonsense"])

        assert caught.value.code == 2


class TestBodies:
    @pytest.mark.parametrize("octets", [2048, 50_000])
    def test_mails_have_the_size_asked_for_and_differ(self, octets: int) -> None:
        """Rates in mails per second are comparable, and nothing can be de-duplicated."""
        made = bodies.mails(octets, 20)

        assert len(set(made)) == 20
        assert all(0.9 * octets <= len(mail) <= 1.1 * octets for mail in made)

    def test_mails_need_no_stuffing(self) -> None:
        """The load can send them as they are."""
        for mail in [*bodies.mails(2048, 20), *bodies.mails(50_000, 5)]:
            lines = mail.split(b"\r\n")
            assert lines[-1] == b""
            assert not any(line.startswith(b".") or b"\n" in line or len(line) > 998 for line in lines)

    def test_the_same_seed_gives_the_same_mails(self) -> None:
        """Two runs send the same octets."""
        assert bodies.mails(2048, 3, seed=7) == bodies.mails(2048, 3, seed=7)
