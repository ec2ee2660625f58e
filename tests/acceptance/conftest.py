"""
A real ``mailpipe`` process for each test, and real clients.

The program is ``python -m mailpipe`` of the interpreter that runs the tests, started in a folder of its
own: so the same tests judge the source tree and an installed wheel.
"""

import contextlib
import os
import random
import select
import shutil
import signal
import smtplib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from mailpipe.cli.reading import Reading
from mailpipe.config import load_config

STARTUP = 30.0
"""Seconds that a start may take on a busy machine; waiting ends as soon as it is up."""


@attrs.define
class Running:
    """One ``mailpipe serve``: its process, where it listens, and where its logs go."""

    process: subprocess.Popen[str]
    log: Path
    addresses: list[str] = attrs.field(factory=list)

    @property
    def port(self) -> int:
        """Port of the first server."""
        return int(self.addresses[0].rpartition(":")[2])

    def logged(self) -> str:
        """What it wrote to stderr so far."""
        return self.log.read_text("utf-8", "replace")

    def stop(self, number: int = signal.SIGTERM, *, within: float = 40.0) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within)

    def wait_listening(self, servers: int = 1) -> None:
        """Read stdout until so many servers accept."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + STARTUP
        while len(self.addresses) < servers:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            line = self.process.stdout.readline() if ready else ""
            if not line.startswith("listening on "):
                self.process.kill()
                self.process.wait()
                pytest.fail(f"no listening line but {line!r}, stderr:\n{self.logged()}")
            self.addresses.append(line.removeprefix("listening on ").strip())


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment of the program: ours, without what would configure it."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("MAILPIPE_", "LISTEN_"))
    }


@pytest.fixture
def mailpipe(
    tmp_path: Path, environment: dict[str, str]
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run one command of the command line to its end."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "mailpipe", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, timeout=40, check=False, **options
        )

    return run


@pytest.fixture
def serve(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Running]]:
    """Start ``mailpipe serve``; whatever still runs at the test's end is killed."""
    started: list[Running] = []

    def start(*arguments: str, servers: int = 1, **options: Any) -> Running:
        log = tmp_path / f"serve-{len(started)}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "mailpipe", "serve", *arguments],
                cwd=tmp_path,
                env=environment | options.pop("env", {}),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                bufsize=1,
                **options,
            )
        running = Running(process, log)
        started.append(running)
        running.wait_listening(servers)
        return running

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()
        if running.process.stdout is not None:
            running.process.stdout.close()


@pytest.fixture
def letter() -> Callable[[int], bytes]:
    """Make mail number *n*: realistic, different from all others, with dots where they hurt."""
    words = [
        "please",
        "find",
        "attached",
        "the",
        "figures",
        "for",
        "the",
        "last",
        "quarter",
        "which",
        "we",
        "discussed",
        "on",
        "Tuesday",
        "regards",
        "invoice",
        "delivery",
        "meeting",
        "moved",
        "to",
        "the",
        "larger",
        "room",
        "because",
        "more",
        "people",
        "signed",
        "up",
    ]

    def make(number: int) -> bytes:
        chance = random.Random(number)
        head = [
            f"From: Sender {number} <sender{number}@example.org>",
            "To: a@example.org",
            f"Subject: {' '.join(chance.choices(words, k=5))}",
            f"Message-ID: <{number}.{chance.getrandbits(64):x}@example.org>",
            "",
        ]
        lines = [
            " ".join(chance.choices(words, k=chance.randint(1, 14))) for _ in range(chance.randint(3, 60))
        ]
        lines[chance.randrange(len(lines))] = "."
        lines[chance.randrange(len(lines))] = "..two dots"
        return "\r\n".join([*head, *lines, f"-- {number}", ""]).encode()

    return make


@attrs.define
class Load:
    """Many connections that each send mail after mail, and what became of each."""

    port: int
    letter: Callable[[int], bytes]
    connections: int = 20
    acknowledged: dict[str, int] = attrs.field(factory=dict)
    """Queue id of each 250 → number of the mail."""

    refused: list[bytes] = attrs.field(factory=list)
    broken: int = 0
    """Connections that ended in the middle."""

    first: int = 0
    _stop: threading.Event = attrs.field(factory=threading.Event)
    _threads: list[threading.Thread] = attrs.field(factory=list)
    _changed: threading.Condition = attrs.field(factory=threading.Condition)

    def start(self, each: int) -> "Load":
        """Let every connection send *each* mails."""
        for index in range(self.connections):
            thread = threading.Thread(target=self._send, args=(self.first + index * each, each), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def wait_acknowledged(self, count: int, within: float = 50.0) -> None:
        """Wait until so many mails got their 250."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.acknowledged) >= count, within), (
                f"{len(self.acknowledged)} of {count} acknowledged, refused {self.refused[:3]}"
            )

    def join(self, within: float = 50.0) -> "Load":
        """Wait until every connection is through."""
        deadline = time.monotonic() + within
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a client hangs"
        return self

    def _send(self, first: int, each: int) -> None:
        try:
            with contextlib.ExitStack() as stack:
                client = smtplib.SMTP("127.0.0.1", self.port, timeout=30)
                stack.callback(client.close)
                client.ehlo("client.example.org")
                for number in range(first, first + each):
                    self._one(client, number)
                client.quit()
        except (OSError, smtplib.SMTPException):
            with self._changed:
                self.broken += 1

    def _one(self, client: smtplib.SMTP, number: int) -> None:
        client.mail(f"sender{number}@example.org")
        client.rcpt("a@example.org")
        code, text = client.data(self.letter(number))
        with self._changed:
            if code == 250:
                self.acknowledged[text.decode().rpartition(" ")[2]] = number
            else:
                self.refused.append(b"%d %s" % (code, text))
            self._changed.notify_all()


@pytest.fixture
def load(letter: Callable[[int], bytes]) -> Callable[..., Load]:
    """Make a `Load` on a port."""
    return lambda port, **options: Load(port, letter, **options)


@pytest.fixture
def program() -> Callable[[str], str]:
    """The path of a client program; skips by its name when it is not installed."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if path is None:
            pytest.skip(f"{name} is not installed")
        return path

    return find


@pytest.fixture
def stored(environment: dict[str, str]) -> Callable[[Path], dict[str, bytes]]:
    """Read every mail of a data folder: queue id → octets as received."""

    def read(data: Path) -> dict[str, bytes]:
        with Reading(load_config(data=str(data), environment=environment)) as reading:
            found = {}
            for queue_id in [mail.queue_id for mail in reading.mails()]:
                mail = reading.get(queue_id)
                assert mail is not None
                assert mail.body is not None
                found[queue_id] = b"".join(mail.body.chunks())
            return found

    return read
