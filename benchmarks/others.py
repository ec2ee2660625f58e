"""
Other servers that take mails and keep none, each in a process of its own.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.measure import Unavailable
from benchmarks.postfix import free_port
from benchmarks.servers import Server, listening

__all__ = ["nodemailer", "sink", "stock"]

_NODE = Path(__file__).with_name("node")


@contextmanager
def stock(place: Path) -> Iterator[Server]:
    """aiosmtpd as it is installed, with a handler that answers 250."""
    with listening([sys.executable, "-m", "benchmarks.stock"], place / "stock.log") as server:
        yield server


def _answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def sink(place: Path) -> Iterator[Server]:
    """
    smtp-sink, in C, which reads mails and answers, and does nothing else.

    Raises:
        Unavailable: If Postfix's package, which it is part of, is not installed.
    """
    program = shutil.which("smtp-sink", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        reason = "smtp-sink is not installed: it comes with postfix"
        raise Unavailable(reason)
    port = free_port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to stay root
    with (
        (place / "sink.log").open("w") as log,
        subprocess.Popen([program, *user, f"127.0.0.1:{port}", "1000"], stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + 20
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    msg = f"smtp-sink did not start: {(place / 'sink.log').read_text()[-800:]}"
                    raise RuntimeError(msg)
                time.sleep(0.01)
            yield Server(port, process.pid)
        finally:
            process.terminate()


@contextmanager
def nodemailer(place: Path) -> Iterator[Server]:
    """
    nodemailer's smtp-server, on node.

    Raises:
        Unavailable: If node or the module is not installed.
    """
    if shutil.which("node") is None:
        reason = "node is not installed, and smtp-server runs on it"
        raise Unavailable(reason)
    if not (_NODE / "node_modules" / "smtp-server").is_dir():
        reason = "smtp-server is not installed: npm install --prefix benchmarks/node"
        raise Unavailable(reason)
    with listening(["node", str(_NODE / "server.js")], place / "node.log") as server:
        yield server
