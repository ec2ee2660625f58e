"""Everything at once, with one and with two workers: large and small mails, clients that vanish, oversize, a store in trouble."""

import contextlib
import random
import smtplib
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = """
data = "data"
workers = {workers}
spool_above = "32KiB"
[[servers]]
listen = "127.0.0.1:0"
max_size = "1MiB"
[gateways.default]
process = "mimeanalyzer | hasher | header | transformer | compressor | sql"
save_timeout = "1500ms"
[processors.sql]
timeout = "500ms"
"""


def large(letter: Callable[[int], bytes], number: int) -> bytes:
    """A mail that is streamed in many chunks, some of it through a file."""
    chance = random.Random(number)
    lines = [b"%d %x\r\n" % (number, chance.getrandbits(400)) for _ in range(chance.randint(10, 4000))]
    return letter(number) + b"".join(lines)


class Senders:
    """Clients that send whole mails, and what they were told."""

    def __init__(self, port: int, letter: Callable[[int], bytes]) -> None:
        self.port, self.letter = port, letter
        self.acknowledged: dict[str, int] = {}
        self.refused: list[bytes] = []
        self.oversize: list[int] = []
        self.failures: list[str] = []
        self.lock = threading.Lock()

    def good(self, first: int) -> None:
        """Ten mails, one after the other; a 4xx is sent again, as any client would."""
        with contextlib.closing(smtplib.SMTP("127.0.0.1", self.port, timeout=40)) as client:
            client.ehlo("good.example.org")
            for number in range(first, first + 10):
                body = large(self.letter, number)
                for _ in range(20):
                    client.mail(f"s{number}@example.org")
                    client.rcpt("a@example.org")
                    code, text = client.data(body)
                    if code == 250:
                        with self.lock:
                            self.acknowledged[text.decode()[-26:]] = number
                        break
                    with self.lock:
                        self.refused.append(b"%d %s" % (code, text))
                else:
                    with self.lock:
                        self.failures.append(f"mail {number} was never taken")

    def vanishing(self, first: int) -> None:
        """Half a mail, and the connection is reset; twenty times."""
        for number in range(first, first + 20):
            with socket.create_connection(("127.0.0.1", self.port), 30) as peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                for line in (
                    b"EHLO x.example.org\r\n",
                    b"MAIL FROM:<v@example.org>\r\n",
                    b"RCPT TO:<a@example.org>\r\n",
                ):
                    peer.recv(2000)
                    peer.sendall(line)
                peer.recv(2000)
                peer.sendall(b"DATA\r\n")
                peer.recv(2000)
                body = large(self.letter, number).replace(b"\r\n.", b"\r\n..")
                peer.sendall(body[: random.Random(number).randint(0, len(body) - 10)])

    def too_large(self, first: int) -> None:
        """More than max_size, without having said so; the connection is good for another mail."""
        with contextlib.closing(smtplib.SMTP("127.0.0.1", self.port, timeout=40)) as client:
            client.ehlo("large.example.org")
            for _ in range(3):
                client.mail("o@example.org")
                client.rcpt("a@example.org")
                code, _ = client.data(b"Subject: too large\r\n\r\n" + (b"o" * 76 + b"\r\n") * 16_000)
                with self.lock:
                    self.oversize.append(code)


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_gets_anything_but_their_own(
    workers: int, serve: Any, letter: Any, stored: Any, tmp_path: Path
) -> None:
    """What was acknowledged is there, whole and once; nothing else is; every reply is the right one."""
    (tmp_path / "mail.toml").write_text(CONFIG.format(workers=workers))
    running = serve("-c", "mail.toml")
    senders = Senders(running.port, letter)
    jobs: list[tuple[Callable[[int], None], int]] = [(senders.good, 1000 * n) for n in range(1, 9)]
    jobs += [(senders.vanishing, 100_000 * n) for n in range(1, 4)]
    jobs += [(senders.too_large, 0) for _ in range(2)]

    def run(work: Callable[[int], None], first: int) -> None:
        try:
            work(first)
        except (OSError, smtplib.SMTPException) as error:
            with senders.lock:
                senders.failures.append(f"{work.__name__}({first}): {error!r}")

    threads = [threading.Thread(target=run, args=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    # The store is out of reach for a while, in the middle of it.
    time.sleep(0.3)
    database = sqlite3.connect(tmp_path / "data" / "mail.db", isolation_level=None, timeout=30)
    database.execute("BEGIN IMMEDIATE")
    time.sleep(2.5)
    database.execute("ROLLBACK")
    database.close()
    for thread in threads:
        thread.join(50)
        assert not thread.is_alive(), "a client hangs"
    assert running.stop() == 0

    assert senders.failures == []
    assert sorted(senders.acknowledged.values()) == [1000 * n + m for n in range(1, 9) for m in range(10)]
    assert senders.oversize == [552] * 6
    assert {text[:3] for text in senders.refused} == {b"451"}
    found = stored(tmp_path / "data")
    for queue_id, number in senders.acknowledged.items():
        assert found.pop(queue_id) == large(letter, number)
    # What is left was told 451 and committed all the same: whole, and then sent again.
    assert len(found) <= len(senders.refused)
    whole = {large(letter, number) for number in senders.acknowledged.values()}
    assert set(found.values()) <= whole
