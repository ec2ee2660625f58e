"""Several processes on one address and one data folder: nothing acknowledged is lost, whoever dies."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailpipe.daemon.control import ask


@pytest.fixture
def two(serve: Any) -> Any:
    """A daemon of two workers."""
    return serve("--listen", "127.0.0.1:0", "--data", "data", "--workers", "2")


def until(condition: Callable[[], Any], what: str, within: float = 40.0) -> None:
    """Return once *condition* holds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"waited {within:g} s for {what}"
        time.sleep(0.05)


def pids(folder: Path) -> list[int]:
    """Process ids of the workers that answer."""
    answer = ask(folder / "data", {"command": "stats"})
    return [one["pid"] for one in answer["workers"].values() if one["ok"]]


def alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


class TestWorkers:
    def test_both_take_mail_into_one_store(
        self, two: Any, load: Any, stored: Any, mailpipe: Any, tmp_path: Path
    ) -> None:
        """One line on stdout, one address, one database; all of it byte for byte."""
        sent = load(two.port).start(15).join()
        counted = json.loads(mailpipe("stats", "--json", "--data", "data").stdout)["workers"]

        assert sent.refused == []
        assert len(sent.acknowledged) == 300
        assert stored(tmp_path / "data") == {
            key: sent.letter(number) for key, number in sent.acknowledged.items()
        }
        assert sum(one["gateways"]["default"]["stored"] for one in counted.values()) == 300
        assert two.stop() == 0

    def test_a_dead_worker_comes_back_and_lost_nothing(
        self, two: Any, load: Any, stored: Any, tmp_path: Path
    ) -> None:
        """SIGKILL under load: its clients break, its socket waits, what it acknowledged is there."""
        sent = load(two.port).start(100)
        sent.wait_acknowledged(100)
        victim, other = pids(tmp_path)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(pids(tmp_path)) == 2 and victim not in pids(tmp_path), "the new worker")
        workers = pids(tmp_path)
        assert other in workers
        # Nobody is left behind, even by a parent that is killed.
        two.stop(signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in workers), "the workers' end with their parent")
        sent.join()

        found = stored(tmp_path / "data")
        for queue_id, number in sent.acknowledged.items():
            assert found[queue_id] == sent.letter(number)

    def test_a_reload_replaces_them_and_loses_nothing(
        self, serve: Any, load: Any, stored: Any, mailpipe: Any, tmp_path: Path
    ) -> None:
        """New ones beside the old, then the old ones drain; a bad file changes nothing."""
        path = tmp_path / "mail.toml"
        path.write_text('data = "data"\nworkers = 2\n[[servers]]\nlisten = "127.0.0.1:0"\n')
        running = serve("-c", "mail.toml")
        before = pids(tmp_path)
        sent = load(running.port).start(100)
        sent.wait_acknowledged(50)
        result = mailpipe("reload", "-c", "mail.toml")
        assert (result.returncode, result.stdout) == (0, b"2 workers replaced\n")
        until(lambda: not any(alive(pid) for pid in before), "the old workers' end")
        sent.join()
        now = pids(tmp_path)
        path.write_text("nonsense = 1\n" + path.read_text())
        result = mailpipe("reload", "-c", "mail.toml")
        assert result.returncode == 1
        assert b"nonsense: unknown key" in result.stderr
        assert pids(tmp_path) == now
        after = load(running.port, connections=3, first=10_000_000).start(3).join()
        assert len(after.acknowledged) == 9
        running.stop()

        found = stored(tmp_path / "data")
        for queue_id, number in (sent.acknowledged | after.acknowledged).items():
            assert found[queue_id] == sent.letter(number)
