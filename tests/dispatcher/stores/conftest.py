"""What the tests of stores share."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dispatcher.stores import _thread

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real loops: the store's thread knows no jumping clock."""
    return str(request.param)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that stores run from here on, in order, as SQLite understood it."""
    seen: list[str] = []
    connect = _thread.connect

    def tapped(path: Path, *, synchronous: str, bytes_max: int | None) -> sqlite3.Connection:
        connection = connect(path, synchronous=synchronous, bytes_max=bytes_max)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(_thread, "connect", tapped)
    return seen


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts another Python, with some code and arguments; all of them are killed in the end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *args: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
