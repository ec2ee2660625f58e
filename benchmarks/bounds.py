"""
What must stay small whatever arrives: the memory of one huge mail, and the wait of everybody else.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks import bodies
from benchmarks.load import Plan, command
from benchmarks.measure import Row, Sides, at_most
from benchmarks.process import memory
from benchmarks.servers import Server, folder, mailpipe

__all__ = ["ROWS"]

MIB = 1 << 20

_CONFIG = """
[[servers]]
listen = "127.0.0.1:0"
gateway = "default"
max_size = "2GiB"

[gateways.default]
process = "header | hasher | compressor | sql"
save_timeout = "120s"
"""


class _Client:
    """A blocking SMTP client that measures; smtplib would hold a whole mail in memory, twice."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=300)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")
        self.expect(b"220")
        self.command(b"HELO bench.example.net", b"250")

    def expect(self, code: bytes) -> None:
        reply = self._replies.readline()
        if not reply.startswith(code):
            msg = f"wanted {code.decode()}, got {reply!r}"
            raise RuntimeError(msg)

    def command(self, line: bytes, code: bytes) -> None:
        self._socket.sendall(line + b"\r\n")
        self.expect(code)

    def send_huge(self, octets: int) -> None:
        """One mail of so many octets, of which no more than one block is ever held here."""
        block = b"".join(bodies.mails(2048, MIB // 2048))
        self.command(b"MAIL FROM:<sender@example.net>", b"250")
        self.command(b"RCPT TO:<user@example.org>", b"250")
        self.command(b"DATA", b"354")
        for _ in range(max(1, octets // len(block))):
            self._socket.sendall(block)
        self.command(b".", b"250")

    def close(self) -> None:
        self._replies.close()
        self._socket.close()


def _growth(octets: int) -> float:
    """Of a fresh server, from before the mail to the highest point; MiB."""
    with folder() as place, mailpipe(place, "huge", _CONFIG) as server:
        client = _Client(server.port)
        client.command(b"NOOP", b"250")
        before = memory(server.pid, "VmRSS")
        client.send_huge(octets)
        client.close()
        return memory(server.pid, "VmHWM") - before


@contextmanager
def _huge(scale: float) -> Iterator[Sides]:
    yield Sides(partial(_growth, int(1024 * MIB * scale)))


def _longest_wait(server: Server, size: int) -> float:
    """The slowest NOOP while ten large mails arrive; milliseconds."""
    client = _Client(server.port)
    plan = Plan(port=server.port, sessions=10, mails=10, size=size)
    longest = 0.0
    with subprocess.Popen(command(plan), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
        while load.poll() is None:
            started = time.perf_counter()
            client.command(b"NOOP", b"250")
            longest = max(longest, time.perf_counter() - started)
            time.sleep(0.002)
        if load.returncode:
            _, errors = load.communicate()
            msg = f"the load failed: {errors[-800:]}"
            raise RuntimeError(msg)
    client.close()
    return longest * 1000


@contextmanager
def _stall(scale: float) -> Iterator[Sides]:
    with folder() as place, mailpipe(place, "stall", _CONFIG) as server:
        yield Sides(partial(_longest_wait, server, int(20_000_000 * scale)))


ROWS = (
    Row(
        name="huge-mail",
        what="growth of the process while it takes one message of 1 GiB",
        unit="MiB",
        bar=at_most(64),
        turns=2,
        open=_huge,
    ),
    Row(
        name="stall",
        what="the slowest NOOP on another connection while ten mails of 20 MB arrive at once",
        unit="ms",
        bar=at_most(100),
        turns=3,
        open=_stall,
    ),
)
