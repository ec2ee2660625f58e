"""The benchmarks' harness: its statistics, its table, and one short turn of what needs no server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import bodies
from benchmarks.__main__ import ROWS, main
from benchmarks.measure import Row, Sides, at_least, at_most, subject_first, summarise
from benchmarks.report import as_markdown, as_table, number
from benchmarks.results import Run, as_json


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


class TestBehind:
    @pytest.mark.parametrize(
        ("unit", "ratios", "behind"),
        [
            ("items/s", [0.8, 0.9, 0.9, 0.95], True),
            ("items/s", [0.8, 0.9, 1.1, 1.2], False),  # it depends on the turn
            ("items/s", [2.0, 2.0, 2.0, 2.0], False),
            ("us", [0.5, 0.5, 0.5, 0.5], False),  # half the cost
            ("us", [2.0, 2.0, 2.0, 2.0], True),
        ],
    )
    def test_a_yardstick_that_does_better_is_said_to(
        self, unit: str, ratios: list[float], behind: bool
    ) -> None:
        """In the table and on the page, beside whatever the bar says."""
        result = summarise(make_row(unit=unit), ratios, [1.0] * 4)

        assert ("yardstick ahead" in as_table([result], {})) is behind
        assert ("yardstick ahead" in as_markdown([result], {})) is behind

    def test_a_bar_below_one_can_hold_and_the_yardstick_be_ahead(self) -> None:
        """Both are said."""
        result = summarise(make_row(bar=at_least(0.7)), [0.9] * 4, [1.0] * 4)

        assert "holds, yardstick ahead" in as_table([result], {})
        assert "| ≥ 0.7, yardstick ahead |" in as_markdown([result], {})


class TestReport:
    def test_the_table_says_what_was_missed_and_what_did_not_run(self) -> None:
        """A reader sees every row that was asked for."""
        missed = summarise(make_row(bar=at_least(4)), [30.0], [10.0])

        table = as_table([missed], {"other": "not run: postfix is not installed"})

        assert "3.00" in table
        assert "MISSED" in table
        assert "other: not run: postfix is not installed" in table

    def test_the_table_shows_the_middle_half_beside_the_whole_spread(self) -> None:
        """One disturbed turn moves the lowest, not the quartiles."""
        result = summarise(make_row(), [30.0, 31.0, 32.0, 33.0, 3.0], [10.0] * 5)

        table = as_table([result], {})

        assert "3.00..3.20" in table
        assert "0.30..3.30" in table

    def test_markdown_carries_figures_units_and_the_verdict(self) -> None:
        """A page of documentation is filled by the program, not by hand."""
        missed = summarise(make_row(bar=at_least(4)), [1_234_567.0], [411_522.0])
        alone = summarise(make_row(name="alone", unit="us", bar=at_most(20)), [11.84], [])

        lines = as_markdown([missed, alone], {"other": "not run: postfix is not installed"}).splitlines()

        assert (
            lines[2]
            == "| `row` | 1 230 000/s | 412 000/s | 3.00 | 3.00 .. 3.00 | 3.00 .. 3.00 | ≥ 4, **missed** |"
        )
        assert lines[3] == "| `alone` | 11.8 µs | - |  | 11.8 .. 11.8 | 11.8 .. 11.8 | ≤ 20 |"
        assert lines[-1] == "`other`: not run: postfix is not installed"

    @pytest.mark.parametrize(
        ("value", "shown"),
        [(3_330_000.0, "3 330 000"), (123.4, "123"), (11.84, "11.8"), (0.0, "0"), (None, "-")],
    )
    def test_figures_have_three_places(self, value: float | None, shown: str) -> None:
        """More places than the measurement has would be a lie."""
        assert number(value) == shown


class TestRun:
    def test_the_list_names_every_row(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`list` is the way to find out what there is."""
        assert main(["list"]) == 0
        listed = capsys.readouterr().out

        described, names_alone = listed.split("\nmail-rest: ")
        shown = [line.split()[0] for line in described.splitlines() if line.startswith("  ")]
        shown += [name for name in names_alone.split() if name.startswith("mail-")]
        assert sorted(shown) == sorted(row.name for row in ROWS)

    def test_nothing_asked_for_is_the_core(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`run` stays short, and says what else there is."""
        monkeypatch.setattr(
            "benchmarks.__main__.ROWS", (make_row(name="mine"), make_row(name="theirs", group="peers"))
        )

        assert main(["run", "--turns=1"]) == 0
        shown = capsys.readouterr()
        assert "mine" in shown.out
        assert "theirs" not in shown.out
        assert "--group peers" in shown.err

    @pytest.mark.parametrize(
        ("asked", "run"),
        [
            (["all"], ["send", "send-peer", "other"]),
            (["send"], ["send"]),
            (["send-"], ["send-peer"]),
            (["se"], ["send", "send-peer"]),
            (["--group=peers"], ["send-peer"]),
            (["other", "--group=peers"], ["send-peer", "other"]),
        ],
    )
    def test_rows_are_chosen_by_name_beginning_and_group(
        self,
        asked: list[str],
        run: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """A whole name is one row, although other names begin with it."""
        rows = (make_row(name="send"), make_row(name="send-peer", group="peers"), make_row(name="other"))
        monkeypatch.setattr("benchmarks.__main__.ROWS", rows)

        assert main(["run", "--turns=1", *asked]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == run

    def test_a_run_can_be_kept_and_compared_with_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What `run --json` writes is what `compare` and `table` read."""
        monkeypatch.setattr("benchmarks.__main__.ROWS", (make_row(),))
        kept = str(tmp_path / "run.json")

        assert main(["run", "--turns=2", f"--json={kept}"]) == 0
        assert main(["compare", kept, kept]) == 0
        assert "within the spread" in capsys.readouterr().out
        assert main(["table", kept]) == 0
        assert "| `row` | 30/s | 10/s | 3.00 |" in capsys.readouterr().out

    def test_a_part_of_a_kept_run_can_be_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One page shows the core, another the peers, from one run."""
        rows = (make_row(name="mine"), make_row(name="theirs", group="peers"))
        monkeypatch.setattr("benchmarks.__main__.ROWS", rows)
        kept = str(tmp_path / "run.json")
        main(["run", "all", "--turns=1", f"--json={kept}"])
        capsys.readouterr()

        assert main(["table", kept, "--group=peers"]) == 0
        shown = capsys.readouterr().out
        assert "`theirs`" in shown
        assert "`mine`" not in shown

        assert main(["plot", kept, str(tmp_path / "run.svg"), "mine"]) == 0
        picture = (tmp_path / "run.svg").read_text()
        assert ">mine<" in picture
        assert ">theirs<" not in picture

    def test_compare_fails_on_a_regression(self, tmp_path: Path) -> None:
        """A script that calls it can stop there."""
        machine = {"python": "3"}
        for name, rate in (("old", 100.0), ("new", 80.0)):
            result = summarise(make_row(), [rate] * 7, [10.0] * 7)
            run = Run(machine=machine, results=(result,), absent={})
            (tmp_path / name).write_text(as_json(run))

        assert main(["compare", str(tmp_path / "old"), str(tmp_path / "new")]) == 1
        assert main(["compare", str(tmp_path / "new"), str(tmp_path / "old")]) == 0

    def test_a_file_that_is_not_ours_is_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The file, the rule and what stands there."""
        (tmp_path / "other.json").write_text('{"rows": 7}')

        with pytest.raises(SystemExit) as caught:
            main(["table", str(tmp_path / "other.json")])

        assert caught.value.code == 2
        assert "other.json: rows: a list is wanted, got 7" in capsys.readouterr().err

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

    @pytest.mark.parametrize(
        ("fault", "told", "goes_on"),
        [
            (OSError("no route"), "faulty: FAILED: no route", True),
            (ZeroDivisionError(), "faulty: FAILED: ZeroDivisionError()", True),
            (KeyboardInterrupt(), "faulty: FAILED: interrupted", False),
        ],
    )
    def test_what_was_measured_survives_a_fault(
        self,
        fault: BaseException,
        told: str,
        goes_on: bool,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """A run of a quarter of an hour is not lost to a peer's error or to Ctrl-C."""

        @contextmanager
        def faulty(scale: float) -> Iterator[Sides]:
            raise fault
            yield

        rows = (make_row(name="before"), make_row(name="faulty", open=faulty), make_row(name="after"))
        monkeypatch.setattr("benchmarks.__main__.ROWS", rows)

        assert main(["run", "--turns=1"]) == 1
        table = capsys.readouterr().out
        assert told in table
        assert "before" in table
        assert ("after" in table) is goes_on

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--turns=0"], "--turns: must be more than 0, got 0"),
            (["--turns=two"], "--turns: invalid int value: 'two'"),
            (["--scale=-1"], "--scale: must be more than 0, got -1"),
            (["--scale=nan"], "--scale: must be more than 0, got nan"),
            (["--group=none"], "--group: invalid choice: 'none'"),
            (["--json=/no/such/folder/run.json"], "/no/such/folder/run.json: /no/such/folder is no folder"),
            (["--plot=/no/such/folder/run.svg"], "/no/such/folder/run.svg: /no/such/folder is no folder"),
            (["--plot=run.gif"], "run.gif: a picture's name ends in .svg or .png, got '.gif'"),
        ],
    )
    def test_what_cannot_be_is_said_before_anything_runs(
        self,
        options: list[str],
        told: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Not after a quarter of an hour."""

        @contextmanager
        def never(scale: float) -> Iterator[Sides]:
            pytest.fail("a row was opened")
            yield

        monkeypatch.setattr("benchmarks.__main__.ROWS", (make_row(open=never),))

        with pytest.raises(SystemExit) as caught:
            main(["run", *options])

        assert caught.value.code == 2
        assert told in capsys.readouterr().err

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
