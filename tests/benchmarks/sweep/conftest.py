"""The HTTP service of the examples, for whoever posts to it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.examples import http_events

ROOT = Path(__file__).parents[3]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs on a free port, and `http_events` knows it."""
    command = [sys.executable, "-m", "benchmarks.examples.http_service", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            monkeypatch.setattr(http_events, "PORT", int(line.rpartition(":")[2]))
            yield
        finally:
            process.terminate()
