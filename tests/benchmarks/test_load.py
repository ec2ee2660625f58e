"""The load: so many mails, over kept or over new connections, and a fault that is told."""

import json
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.load import Plan, Report, command


class _Sink(socketserver.ThreadingTCPServer):
    """Takes mails by the letter of SMTP, and counts them and the connections."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answer: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Talk)
        self.answer = answer
        self.visits: list[int] = []
        self.lock = threading.Lock()

    @property
    def port(self) -> int:
        port: int = self.server_address[1]
        return port


class _Talk(socketserver.StreamRequestHandler):
    server: _Sink

    def handle(self) -> None:
        mails = 0
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            if line.startswith(b"DATA"):
                self.wfile.write(b"354 go\r\n")
                while self.rfile.readline() != b".\r\n":
                    pass
                mails += 1
                self.wfile.write(self.server.answer)
            elif line.startswith(b"EHLO"):
                self.wfile.write(b"250-here\r\n250-PIPELINING\r\n250 HELP\r\n")
            elif line.startswith(b"QUIT"):
                with self.server.lock:
                    self.server.visits.append(mails)
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 yes\r\n")


@contextmanager
def sink(answer: bytes = b"250 taken\r\n") -> Iterator[_Sink]:
    with _Sink(answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def run(plan: Plan) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(plan), capture_output=True, text=True, check=False, timeout=50)


class TestLoad:
    @pytest.mark.parametrize("pipelining", [0, 1, 2])
    @pytest.mark.parametrize(("kept", "visits"), [(1, 4), (0, 30)])
    def test_every_mail_is_sent_once(self, kept: int, visits: int, pipelining: int) -> None:
        """Over connections that stay, or over one for each mail; step by step, or with PIPELINING."""
        with sink() as server:
            plan = Plan(port=server.port, sessions=4, mails=30, size=1000, kept=kept, pipelining=pipelining)
            done = run(plan)

        assert done.returncode == 0, done.stderr
        report = Report(**json.loads(done.stdout))
        assert report.mails == 30
        assert 0 < report.p50 <= report.p99 < report.ended - report.started
        assert report.cpu > 0
        assert sum(server.visits) == 30
        # A visit that finds no mail left to send says goodbye at once.
        assert visits <= len(server.visits) <= visits + 4
        assert kept or max(server.visits) == 1

    def test_an_unexpected_reply_ends_the_run(self) -> None:
        """A mail that was refused is no mail per second."""
        with sink(b"451 later\r\n") as server:
            done = run(Plan(port=server.port, sessions=2, mails=10, size=1000, kept=0))

        assert done.returncode != 0
        assert "wanted 250, got b'451 later" in done.stderr

    def test_nobody_there_ends_the_run(self) -> None:
        """At once, and not by its time limit."""
        with sink() as server:
            port = server.port

        done = run(Plan(port=port, sessions=2, mails=10, size=1000))

        assert done.returncode != 0
        assert "no connection" in done.stderr
