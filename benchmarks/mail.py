"""
mailpipe beside other mail servers: both run during the whole row and take turns.

The load comes from a process of its own (`benchmarks.load`), the servers from theirs.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import attrs

from benchmarks import postfix
from benchmarks.load import Plan
from benchmarks.measure import Row, Sides, Unavailable, at_least

__all__ = ["ROWS"]

_ACCEPT_ONLY = """
[[servers]]
listen = "127.0.0.1:0"
gateway = "default"

[gateways.default]
process = "discard"
"""

_DURABLE = """
[[servers]]
listen = "127.0.0.1:0"
gateway = "default"

[gateways.default]
process = "header | hasher | compressor | sql"
{more}

[processors.sql]
url = "sqlite:///mail.db"
"""

_SLOW_DISK = (
    "strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
    "-e", "inject=fsync,fdatasync:delay_exit=10000",
)  # fmt: skip


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postfix's own user has to get through
        yield folder


@contextmanager
def _server(command: Sequence[str], log: Path) -> Iterator[int]:
    """Start a server that says where it listens; yields its port."""
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                process.kill()
                tail = log.read_text()[-800:]
                msg = f"{' '.join(command)} did not start: {line}{tail}"
                raise RuntimeError(msg)
            yield int(line.rsplit(":", 1)[1])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _mailpipe(folder: Path, name: str, config: str, *, under: Sequence[str] = ()) -> Iterator[int]:
    file = folder / f"{name}.toml"
    file.write_text(config)
    command = [
        *under,
        sys.executable,
        "-m",
        "mailpipe",
        "serve",
        "-c",
        str(file),
        "--data",
        str(folder / name),
    ]
    with _server(command, folder / f"{name}.log") as port:
        yield port


def _stored(folder: Path, name: str) -> int:
    command = [sys.executable, "-m", "mailpipe", "list", "--json", "--data", str(folder / name)]
    listed = subprocess.run(
        [*command, "-c", str(folder / f"{name}.toml")], capture_output=True, text=True, check=True
    )
    return len(listed.stdout.splitlines())


def _send(plan: Plan) -> tuple[float, float]:
    """Run the load in its own process; returns when it began and when the last 250 was there."""
    command = [sys.executable, "-m", "benchmarks.load", *plan.arguments()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"the load failed: {done.stderr[-800:]}"
        raise RuntimeError(msg)
    report = json.loads(done.stdout)
    return report["started"], report["ended"]


def _accepted(plan: Plan) -> float:
    started, ended = _send(plan)
    return plan.mails / (ended - started)


def _into_maildir(plan: Plan, server: postfix.Postfix) -> float:
    started, _ = _send(plan)
    ended = server.wait_delivered(plan.mails)
    server.clear()
    return plan.mails / (ended - started)


@contextmanager
def _accept_only(scale: float, *, size: int, mails: int, loop: str) -> Iterator[Sides]:
    plan = Plan(port=0, mails=max(40, int(mails * scale)), size=size)
    stock = [sys.executable, "-m", "benchmarks.stock", *([loop] if loop else [])]
    with _folder() as folder, ExitStack() as stack:
        ours = stack.enter_context(_mailpipe(folder, "accept", _ACCEPT_ONLY))
        theirs = stack.enter_context(_server(stock, folder / "stock.log"))
        yield Sides(
            partial(_accepted, attrs.evolve(plan, port=ours)),
            partial(_accepted, attrs.evolve(plan, port=theirs)),
        )


@contextmanager
def _durable(scale: float, *, mails: int) -> Iterator[Sides]:
    plan = Plan(port=0, mails=max(40, int(mails * scale)))
    sent = 0
    with _folder() as folder, ExitStack() as stack:
        theirs = stack.enter_context(postfix.running(folder, users=plan.recipients))
        ours = stack.enter_context(_mailpipe(folder, "durable", _DURABLE.format(more="")))

        def subject() -> float:
            nonlocal sent
            sent += plan.mails
            return _accepted(attrs.evolve(plan, port=ours))

        yield Sides(subject, partial(_into_maildir, attrs.evolve(plan, port=theirs.port), theirs))
        if (stored := _stored(folder, "durable")) != sent:
            msg = f"{sent} mails were acknowledged, {stored} are stored"
            raise RuntimeError(msg)


@contextmanager
def _slow_disk(scale: float) -> Iterator[Sides]:
    if shutil.which("strace") is None:
        reason = "strace, which slows fsync down, is not installed"
        raise Unavailable(reason)
    many = Plan(port=0, sessions=100, mails=max(200, int(4000 * scale)))
    few = attrs.evolve(many, mails=max(100, int(200 * scale)))
    with _folder() as folder, ExitStack() as stack:
        single = _DURABLE.format(more="batch_items_max = 1")
        ours = stack.enter_context(_mailpipe(folder, "group", _DURABLE.format(more=""), under=_SLOW_DISK))
        alone = stack.enter_context(_mailpipe(folder, "single", single, under=_SLOW_DISK))
        yield Sides(
            partial(_accepted, attrs.evolve(many, port=ours)),
            partial(_accepted, attrs.evolve(few, port=alone)),
        )


ROWS = (
    Row(
        name="accept-2k",
        what="accept only, as installed, 2 kB from 20 sessions",
        yardstick="aiosmtpd as installed, a handler that answers 250",
        unit="mails/s",
        bar=at_least(4),
        turns=5,
        open=partial(_accept_only, size=2048, mails=6000, loop=""),
    ),
    Row(
        name="accept-2k-same-loop",
        what="the same",
        yardstick="aiosmtpd on uvloop",
        unit="mails/s",
        turns=5,
        open=partial(_accept_only, size=2048, mails=6000, loop="--uvloop"),
    ),
    Row(
        name="accept-50k",
        what="accept only, as installed, 50 kB from 20 sessions",
        yardstick="aiosmtpd as installed, a handler that answers 250",
        unit="mails/s",
        bar=at_least(5),
        turns=5,
        open=partial(_accept_only, size=50_000, mails=2000, loop=""),
    ),
    Row(
        name="durable-2k",
        what="the default chain into SQLite, 2 kB from 20 sessions, until the last 250",
        yardstick="Postfix into Maildirs on the same disk, until the last mail is in",
        unit="mails/s",
        bar=at_least(5),
        turns=5,
        open=partial(_durable, mails=4000),
    ),
    Row(
        name="durable-slow-disk",
        what="the same from 100 sessions, each fsync 10 ms longer",
        yardstick="one commit per mail (batch_items_max = 1)",
        unit="mails/s",
        bar=at_least(20),
        turns=3,
        open=_slow_disk,
    ),
)
