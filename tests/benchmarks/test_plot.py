"""Pictures of a run."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.measure import Result, at_least, at_most, summarise_samples
from benchmarks.plot import NotDrawn, draw, line_of


def results() -> list[Result]:
    return [
        summarise_samples("send", "items/s", at_least(1.5), [2.0, 3.0, 4.0], [1.0, 1.0, 1.0]),
        summarise_samples("memory", "octets", at_most(2, of="ratio"), [2.0], [1.0]),
        summarise_samples("batch", "us", at_most(20), [11.0], []),
    ]


class TestPicture:
    def test_an_svg_names_the_rows_with_a_ratio(self, tmp_path: Path) -> None:
        """Its text is text; a row without a yardstick has no place on the axis."""
        draw(results(), tmp_path / "run.svg")

        texts = {
            "".join(node.itertext())
            for node in ET.parse(tmp_path / "run.svg").iter()
            if node.tag.endswith("text")
        }
        assert {"send", "memory"} <= texts
        assert "batch" not in texts

    def test_a_png_is_one_and_small(self, tmp_path: Path) -> None:
        """It can stand in a page of documentation."""
        draw(results(), tmp_path / "run.png")

        octets = (tmp_path / "run.png").read_bytes()
        assert octets.startswith(b"\x89PNG")
        assert len(octets) < 100_000

    def test_the_same_run_gives_the_same_octets(self, tmp_path: Path) -> None:
        """A picture in the repository changes when its figures do."""
        draw(results(), tmp_path / "a.svg")
        draw(results(), tmp_path / "b.svg")

        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


class TestLine:
    def test_rates_stand_as_they_are(self) -> None:
        """Three times the yardstick's rate is three times as good, beside the bar."""
        line = line_of(results()[0])

        assert (line.median, line.whole, line.bar) == (3.0, (2.0, 4.0), 1.5)

    def test_costs_stand_upside_down(self) -> None:
        """Twice the memory is half as good, and its bar is turned with it: right is better in every row."""
        line = line_of(summarise_samples("memory", "octets", at_most(4, of="ratio"), [2.0, 2.0], [1.0, 1.0]))

        assert (line.median, line.whole, line.bar) == (0.5, (0.5, 0.5), 0.25)


class TestRefusal:
    def test_without_matplotlib_it_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is in a dependency group that users do not have."""
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

        with pytest.raises(NotDrawn, match="pip install --group bench"):
            draw(results(), tmp_path / "run.svg")

    def test_another_ending_is_refused(self, tmp_path: Path) -> None:
        """Before a picture is half drawn."""
        with pytest.raises(NotDrawn, match=r"ends in \.svg or \.png, got '\.gif'"):
            draw(results(), tmp_path / "run.gif")

    def test_a_run_without_ratios_is_refused(self, tmp_path: Path) -> None:
        """An empty picture would look like a result."""
        with pytest.raises(NotDrawn, match="no row has a ratio"):
            draw(results()[2:], tmp_path / "run.svg")
