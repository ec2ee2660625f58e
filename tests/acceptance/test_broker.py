"""``dispatcher broker serve`` and ``dispatcher queue`` as processes of their own, over real sockets."""

import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dispatcher.stores import SQLiteStore

ROOT = Path(__file__).parents[2]

ROUNDS = int(os.environ.get("KILL_ROUNDS", "20"))
"""Of kill -9; 200 make up the whole proof."""

CONFIG = """
store = "broker.db"
durability = "os"
listen = "unix:b.sock"

[topics.t]
subscriptions = ["a", "b"]
ack_timeout = 60
max_attempts = 0
"""

Command = list[str]


def dispatcher(*arguments: object) -> Command:
    return [sys.executable, "-m", "dispatcher.cli", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    return subprocess.run(
        dispatcher(*arguments),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


class Wire:
    """A client that knows nothing but sockets and JSON."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")

    def ask(self, **what: Any) -> dict[str, Any]:
        """Send, and read the answer."""
        self.socket.sendall(json.dumps(what).encode() + b"\n")
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError
        got: dict[str, Any] = json.loads(line)
        return got

    def publish(self, *texts: str) -> dict[str, Any]:
        """To topic t."""
        return self.ask(op="publish", topic="t", messages=[{"payload": text} for text in texts])

    def receive(self, subscription: str, limit: int = 50) -> Sequence[dict[str, Any]]:
        """What is there."""
        got = self.ask(op="receive", topic="t", subscription=subscription, limit=limit)
        deliveries: Sequence[dict[str, Any]] = got["deliveries"]
        return deliveries

    def ack(self, deliveries: Sequence[dict[str, Any]]) -> Sequence[str]:
        """The stale ones."""
        got = self.ask(op="ack", tags=[one["tag"] for one in deliveries])
        stale: Sequence[str] = got["stale"]
        return stale

    def close(self) -> None:
        """Hang up."""
        self.file.close()
        self.socket.close()


class Daemon:
    """``dispatcher broker serve``, to be started again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "broker.toml"
        self.config.write_text(CONFIG)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "Daemon":
        """Start, and wait until it listens."""
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                dispatcher("broker", "serve", self.config),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"listening on unix:{self.folder}/b.sock\n", self.log
        return self

    @property
    def log(self) -> str:
        """What it said."""
        return (self.folder / "log").read_text()

    def connect(self) -> Wire:
        """A client."""
        return Wire(self.folder / "b.sock")

    def end(self, by: signal.Signals) -> int:
        """End it, and wait."""
        assert self.process is not None
        self.process.send_signal(by)
        status = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return status


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Not started yet; killed in the end."""
    made = Daemon(tmp_path)
    yield made
    if made.process is not None:
        made.end(signal.SIGKILL)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestServe:
    def test_from_start_to_stop(self, daemon: Daemon) -> None:
        """What is published before a stop is there after the next start, what was acked is not."""
        client = daemon.start().connect()
        assert client.publish("1", "2")["subscriptions"] == 2
        client.ack(client.receive("a", 1))
        assert daemon.end(signal.SIGTERM) == 0
        assert not (daemon.folder / "b.sock").exists()
        client.close()

        client = daemon.start().connect()
        assert [one["payload"] for one in client.receive("a")] == ["2"]
        assert [one["payload"] for one in client.receive("b")] == ["1", "2"]
        client.close()

    def test_sighup_adds_and_changes_and_loses_nothing(self, daemon: Daemon) -> None:
        client = daemon.start().connect()
        client.publish("1")
        daemon.config.write_text(
            CONFIG.replace('["a", "b"]', '["a", "c"]') + "priorities = 3\n[topics.u]\nsubscriptions=['x']\n"
        )
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "u" in client.ask(op="topics")["topics"])

        topics = client.ask(op="topics")["topics"]
        assert topics["t"]["subscriptions"] == ["a", "b", "c"]
        assert topics["t"]["priorities"] == 3
        assert [one["payload"] for one in client.receive("b")] == ["1"]
        client.close()

    def test_a_bad_file_at_sighup_changes_nothing(self, daemon: Daemon) -> None:
        client = daemon.start().connect()
        daemon.config.write_text(CONFIG.replace("ack_timeout = 60", "ack_timeout = -1\ncolour = 'red'"))
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "not used" in daemon.log)

        assert "topics.t.colour" in daemon.log
        assert "topics.t.ack_timeout" in daemon.log
        assert client.ask(op="topics")["topics"]["t"]["ack_timeout"] == 60
        client.close()

    def test_a_second_one_is_refused(self, daemon: Daemon) -> None:
        daemon.start()
        got = run("broker", "serve", daemon.config)

        assert got.returncode == 1
        assert f"owned by process {daemon.process and daemon.process.pid}" in got.stderr

    def test_a_file_that_cannot_be_used(self, tmp_path: Path) -> None:
        """Everything that is wrong with it, with its place."""
        path = tmp_path / "broker.toml"
        path.write_text('listen = "b.sock"\n[topics."a/b"]\n[topics.t]\nfull="maybe"\n[server]\nx=1\n')
        got = run("broker", "serve", path)

        assert got.returncode == 2
        for word in ("store:", "listen:", "topics.t.full", "server.x", str(path)):
            assert word in got.stderr
        assert list(tmp_path.iterdir()) == [path]


class TestQueue:
    def fill(self, daemon: Daemon) -> Wire:
        client = daemon.start().connect()
        client.publish("good", "bad")
        got = client.receive("a", 2)
        client.ask(op="reject", tags=[got[1]["tag"]], error="no\x1b[2J")
        return client

    def test_looks_beside_the_owner_and_through_it(self, daemon: Daemon) -> None:
        client = self.fill(daemon)
        store, address = daemon.folder / "broker.db", f"unix:{daemon.folder}/b.sock"
        for where in (store, address):
            lines = [json.loads(line) for line in run("queue", "ls", where, "--json").stdout.splitlines()]
            assert [(one["queue"], one["ready"]["items"]) for one in lines] == [("t/a", 0), ("t/b", 2)]
            assert "t/b" in run("queue", "ls", where).stdout
            peeked = run("queue", "peek", where, "t/b", "--json").stdout.splitlines()
            assert [json.loads(line)["payload"] for line in peeked] == ["good", "bad"]
            dead = run("queue", "dead", where, "t/a").stdout
            assert "'bad'" in dead
            assert "\x1b" not in dead, "no terminal obeys a message"
        client.close()

    def test_retry_and_purge_go_through_the_owner(self, daemon: Daemon) -> None:
        client = self.fill(daemon)
        store = daemon.folder / "broker.db"
        assert run("queue", "retry", store, "t/a", "--all").stdout == "1 put back\n"
        assert [one["payload"] for one in client.receive("a")] == ["bad"]
        got = run("queue", "purge", store, "t/b", "--all", "--shelf", "ready", "--json")
        assert got.stdout == '{"count": 2}\n'
        client.close()

    def test_without_an_owner_they_do_it_themselves(self, daemon: Daemon) -> None:
        self.fill(daemon).close()
        assert daemon.process is not None
        daemon.end(signal.SIGKILL)  # its note of the socket stays behind
        store = daemon.folder / "broker.db"
        dead = json.loads(run("queue", "dead", store, "t/a", "--json").stdout)

        assert run("queue", "retry", store, "t/a", dead["id"]).stdout == "1 put back\n"
        assert run("queue", "retry", store, "t/a", dead["id"]).stdout == "0 put back\n"

    async def test_an_owner_without_a_socket_is_named(self, tmp_path: Path) -> None:
        async with SQLiteStore(tmp_path / "q.db") as store:
            await store.create("q")
            got = run("queue", "purge", tmp_path / "q.db", "q", "--all")

        assert got.returncode == 1
        assert f"owned by process {os.getpid()}" in got.stderr

    def test_wrong_use(self, tmp_path: Path) -> None:
        assert run("queue", "retry", tmp_path / "none.db", "q").returncode == 2
        assert run("queue", "ls").returncode == 2
        assert run("queue", "peek", tmp_path / "none.db", "q", "--limit", "0").returncode == 2
        got = run("queue", "retry", tmp_path / "none.db", "q", "--all")
        assert got.returncode == 1
        assert "none.db" in got.stderr
        assert not list(tmp_path.iterdir())
        assert run("queue", "ls", f"unix:{tmp_path}/none.sock").returncode == 1


class Ledger:
    """What clients were told."""

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        self.delivered: dict[str, set[str]] = {"a": set(), "b": set()}
        self.acked: dict[str, set[str]] = {"a": set(), "b": set()}
        self.unsure: dict[str, set[str]] = {"a": set(), "b": set()}

    def work(self, client: Wire, name: str) -> None:
        """Publish, take, ack, until the broker is gone."""
        n = 0
        while True:
            texts = [f"{name}.{n}.{m}" for m in range(3)]
            assert client.publish(*texts)["ok"]
            self.confirmed.update(texts)
            for subscription in ("a", "b"):
                self.take(client, subscription)
            n += 1

    def take(self, client: Wire, subscription: str, limit: int = 5) -> int:
        """Take, and ack all but the last."""
        got = client.receive(subscription, limit)
        texts = {one["payload"] for one in got}
        assert not texts & self.acked[subscription], "delivered again after its ack was confirmed"
        self.delivered[subscription] |= texts
        done = got[:-1] if limit == 5 else got
        self.unsure[subscription] = {one["payload"] for one in done}
        assert client.ack(done) == []
        self.acked[subscription] |= self.unsure[subscription]
        return len(got)


@pytest.mark.timeout(60 + 5 * ROUNDS)
def test_kill_9_over_the_socket(daemon: Daemon) -> None:
    """
    Killed at random moments, in the middle of the work of its clients.

    Everything confirmed is delivered, nothing after its ack was confirmed, and the file is intact.
    """
    chance = random.Random(4)
    ledger = Ledger()
    for turn in range(ROUNDS):
        daemon.start()
        assert daemon.process is not None
        victim = daemon.process
        killer = threading.Timer(chance.uniform(0.0, 0.25), victim.kill)
        killer.start()
        try:
            client = daemon.connect()
            try:
                ledger.work(client, str(turn))
            finally:
                client.close()
        except (ConnectionError, TimeoutError):
            pass
        killer.join()
        assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
        db = sqlite3.connect(daemon.folder / "broker.db")
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()
    client = daemon.start().connect()
    for subscription in ("a", "b"):
        while ledger.take(client, subscription, 1000):
            pass
        assert ledger.confirmed <= ledger.delivered[subscription], "lost"
    client.close()
    assert len(ledger.confirmed) > ROUNDS
