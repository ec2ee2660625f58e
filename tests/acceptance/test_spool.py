"""The spool: mail is taken while the storage is down, and survives ``kill -9`` until it is delivered."""

import contextlib
import signal
import smtplib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
