"""The how-to page on tuning: what it shows is what there is, and its commands run."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.__main__ import main

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "how-to" / "tune-throughput.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ python -m benchmarks (sweep .*)$", PAGE, re.MULTILINE)
TINY = ["--seconds=0.02", "--turns=1", "--finals=1", "--pairs=0"]
TINY += ["--batch-items-max=50,100", "--batch-age-max=0", "--max-leases=4"]


@pytest.mark.parametrize("name", ["sqlite_rows", "http_events"])
def test_the_code_shown_is_the_code_that_is_run(name: str) -> None:
    """A reader who copies it has what the figures are of."""
    source = (ROOT / "benchmarks" / "examples" / f"{name}.py").read_text(encoding="utf-8")

    assert f"```python\n{source}```" in PAGE


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("service")
def test_each_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a tiny scale: for breakage, not for figures."""
    monkeypatch.chdir(tmp_path)

    assert main([*shlex.split(command), *TINY]) == 0
    pictures = re.findall(r"--plot (\S+)", command)
    assert [file.name for file in tmp_path.iterdir()] == pictures


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) >= 4
