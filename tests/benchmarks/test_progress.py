"""How far a run is: bars in a terminal, lines everywhere else."""

import io
import sys

import pytest

from benchmarks.progress import Progress, shown


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def go_through(progress: Progress) -> None:
    progress.say("said")
    progress.begin("send", "await send", 2)
    progress.turned("send", 1, 2, "3 against 1 items/s")
    progress.turned("send", 2, 2, "4 against 1 items/s")
    progress.ended()


class TestLines:
    def test_a_pipe_gets_one_line_per_event(self, capsys: pytest.CaptureFixture[str]) -> None:
        """And none of them on standard output, where the table goes."""
        with shown(1) as progress:
            go_through(progress)

        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.splitlines() == [
            "said",
            "send: await send",
            "  send 1/2: 3 against 1 items/s",
            "  send 2/2: 4 against 1 items/s",
        ]

    def test_a_terminal_without_rich_gets_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """rich is part of an extra."""
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setitem(sys.modules, "rich.progress", None)

        with shown(1) as progress:
            go_through(progress)

        assert "  send 2/2: 4 against 1 items/s" in sys.stderr.getvalue()  # type: ignore[attr-defined]


class TestBars:
    def test_a_terminal_gets_bars(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Over the rows and over the turns of the one that runs; what is said stands above them."""
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")

        with shown(1) as progress:
            go_through(progress)

        told = sys.stderr.getvalue()  # type: ignore[attr-defined]
        assert "said" in told
        assert "\x1b[" in told
