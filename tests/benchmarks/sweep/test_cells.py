"""The grid and its notation."""

import pytest

from benchmarks.sweep.cells import (
    DEFAULT,
    BadArgument,
    Cell,
    Grid,
    duration,
    durations,
    octets,
    pasted,
    wholes,
    written_duration,
)
from dispatcher import BlockNewItems, ChannelOptions


class TestNotation:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("50ms", 0.05), ("0.2s", 0.2), ("20us", 2e-5), ("3", 3.0), ("0", 0.0), (".5", 0.5)],
    )
    def test_durations(self, text: str, seconds: float) -> None:
        assert duration(text) == pytest.approx(seconds)

    @pytest.mark.parametrize("text", ["", "fast", "-1", "1h", "nan", "inf", "1 2"])
    def test_what_is_no_duration_is_refused(self, text: str) -> None:
        with pytest.raises(BadArgument, match="is written as 50ms"):
            duration(text)

    @pytest.mark.parametrize(
        ("text", "size"), [("100", 100), ("10kB", 10_000), ("1MiB", 1 << 20), ("1.5kB", 1500)]
    )
    def test_sizes(self, text: str, size: int) -> None:
        assert octets(text) == size

    @pytest.mark.parametrize("text", ["0", "-5", "much", "10XB"])
    def test_what_is_no_size_is_refused(self, text: str) -> None:
        with pytest.raises(BadArgument, match="1 or more, got"):
            octets(text)

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0, "0"), (0.2, "0.2s"), (3.25, "3.25s"), (0.05, "50ms"), (0.0015, "1.5ms"), (2e-5, "20µs")],
    )
    def test_written_durations_read_back(self, seconds: float, text: str) -> None:
        assert written_duration(seconds) == text
        assert duration(text) == pytest.approx(seconds)


class TestAxes:
    def test_a_range_doubles_with_a_step_between(self) -> None:
        assert wholes("1..16", "axis") == (1, 2, 3, 4, 6, 8, 12, 16)

    def test_a_range_has_both_its_ends(self) -> None:
        assert wholes("10..100", "axis") == (10, 12, 16, 24, 32, 48, 64, 96, 100)
        assert wholes("5..5", "axis") == (5,)

    def test_a_list_is_taken_as_it_is(self) -> None:
        assert wholes("10,100,1000", "axis") == (10, 100, 1000)
        assert durations("0,5ms,0.2", "axis") == (0.0, 0.005, 0.2)

    @pytest.mark.parametrize(
        ("text", "rule"),
        [
            ("8..1", "has to rise"),
            ("4,4", "has to rise"),
            ("0..8", "1 or more"),
            ("1,two", "1 or more"),
            ("", "1 or"),
        ],
    )
    def test_bad_ones_are_refused_with_rule_and_value(self, text: str, rule: str) -> None:
        with pytest.raises(BadArgument, match=rule) as caught:
            wholes(text, "--max-leases")

        assert str(caught.value).startswith("--max-leases ")


class TestCell:
    def test_the_defaults_are_the_channel_s_own(self) -> None:
        """The comparison is with what a user gets who sets nothing."""
        swept = ("batch_items_max", "batch_age_max", "max_leases")
        plain, ours = ChannelOptions[object](), DEFAULT.options()

        assert [getattr(ours, name) for name in swept] == [getattr(plain, name) for name in swept]
        assert ours.bounds == plain.bounds

    def test_the_buffer_holds_what_the_senders_hold_and_the_next_batch(self) -> None:
        """A bound of one batch would make all senders but one wait."""
        assert Cell(1000, 0.0, 4).options().bounds.items == 5000

    @pytest.mark.parametrize("cell", [DEFAULT, Cell(1, 0.0, 1), Cell(2048, 0.05, 2)])
    def test_what_is_pasted_is_what_was_measured(self, cell: Cell) -> None:
        names = {"ChannelOptions": ChannelOptions, "BlockNewItems": BlockNewItems}
        made = eval(pasted(cell), names)

        assert (made.batch_items_max, made.batch_age_max, made.max_leases) == (
            cell.batch_items_max,
            cell.batch_age_max,
            cell.max_leases,
        )
        assert made.bounds == cell.options().bounds

    def test_nearest_goes_by_ratio(self) -> None:
        grid = Grid((1, 64, 128, 1000), (0.0, 0.01, 0.2), (1, 2, 16))

        assert grid.cell(grid.nearest(DEFAULT)) == Cell(128, 0.2, 2)
        for point in [(0, 0, 0), (3, 1, 2), (2, 2, 1)]:
            assert grid.nearest(grid.cell(point)) == point
        assert len(grid) == 36
