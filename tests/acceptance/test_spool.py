"""The spool: mail is taken while the storage is down, and survives ``kill -9`` until it is delivered."""

import contextlib
import os
import signal
import smtplib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = """
data = "data"
[[servers]]
listen = "127.0.0.1:0"
[gateways.default]
process = "header | hasher | compressor | sql"
spool = true
save_timeout = "5s"
[processors.sql]
timeout = "500ms"
"""


def send(port: int, bodies: list[bytes]) -> dict[str, bytes]:
    """Queue id of each mail's 250 → what was sent."""
    taken = {}
    with contextlib.closing(smtplib.SMTP("127.0.0.1", port, timeout=40)) as client:
        client.ehlo("client.example.org")
        for body in bodies:
            client.mail("s@example.org")
            client.rcpt("a@example.org")
            code, text = client.data(body)
            assert code == 250, text  # taken, though nobody can store it
            taken[text.decode()[-26:]] = body
    return taken


def wait_until(what: Callable[[], object]) -> None:
    """For thirty seconds at most."""
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.05)


def test_nothing_acknowledged_is_lost(
    serve: Any, letter: Any, stored: Any, mailpipe: Any, tmp_path: Path
) -> None:
    """Storage down, mails taken, SIGKILL, storage back, restart: all there, byte for byte."""
    (tmp_path / "mail.toml").write_text(CONFIG)
    running = serve("-c", "mail.toml")
    bodies = [letter(number) for number in range(20)]
    bodies += [letter(99) + b"0123456789abcdef\r\n" * 20_000, letter(98) + b"fedcba9876543210\r\n" * 200_000]
    # Whoever holds SQLite's lock keeps all others out.
    database = sqlite3.connect(tmp_path / "data" / "mail.db", isolation_level=None, timeout=30)
    with contextlib.closing(database):
        database.execute("BEGIN IMMEDIATE")
        taken = send(running.port, bodies)
        running.stop(signal.SIGKILL)
        assert stored(tmp_path / "data") == {}
        database.execute("ROLLBACK")

    running = serve("-c", "mail.toml")
    wait_until(lambda: len(stored(tmp_path / "data")) == len(bodies))

    assert stored(tmp_path / "data") == taken
    files = tmp_path / "data" / "spool" / "default" / "0" / "bodies"
    wait_until(lambda: not list(files.iterdir()))
    assert running.stop() == 0
    explained = mailpipe("check", "-c", "mail.toml").stdout.decode()
    assert "a 250 means durability 'disk' (the journal's: it spools)" in explained


STEP = """
from pathlib import Path

from dispatcher import Batch
from mailpipe.envelope import Envelope
from mailpipe.errors import Rejected
from mailpipe.reply import Reply
from mailpipe.steps import processor


@processor("gate")
async def gate(batch: Batch[Envelope]) -> None:
    if Path("closed").exists():
        for position in range(len(batch)):
            batch.fail(position, Rejected(Reply(550, "5.7.1", "closed")))
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_dead_letters_of_a_living_daemon(
    workers: str, serve: Any, letter: Any, stored: Any, mailpipe: Any, tmp_path: Path
) -> None:
    """Listed beside it, tried again and dropped by it, whichever worker has them."""
    text = CONFIG.replace("| sql", "| gate | sql") + '[processors.gate]\nuse = "my_gate:gate"\n'
    (tmp_path / "mail.toml").write_text(text)
    (tmp_path / "my_gate.py").write_text(STEP)
    (tmp_path / "closed").touch()
    path = os.pathsep.join(part for part in (str(tmp_path), os.environ.get("PYTHONPATH")) if part)
    running = serve("-c", "mail.toml", "--workers", workers, env={"PYTHONPATH": path})
    taken: dict[str, bytes] = {}
    for number in range(6):  # a connection each, so that more than one worker gets some
        taken |= send(running.port, [letter(number)])

    def dead(*arguments: str) -> Any:
        return mailpipe("dead", *arguments, "-c", "mail.toml")

    wait_until(lambda: len(dead("list").stdout.splitlines()) == len(taken))
    first, *others = taken
    (tmp_path / "closed").unlink()
    assert dead("drop", first).returncode == 0
    told = dead("retry", *others)
    assert told.returncode == 0, told.stderr

    wait_until(lambda: len(stored(tmp_path / "data")) == len(others))
    assert stored(tmp_path / "data") == {name: taken[name] for name in others}
    assert dead("list").stdout == b""
    assert running.stop() == 0
