"""
mailpipe beside other mail servers: both run during the whole row and take turns.

The load comes from a process of its own (`benchmarks.load`), the servers from theirs.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import attrs

from benchmarks import postfix
from benchmarks.load import Plan, Report, command
from benchmarks.measure import Row, Sides, Unavailable, at_least
from benchmarks.process import cpu_seconds
from benchmarks.servers import Server, folder, listening, mailpipe, stored

__all__ = [
    "ACCEPT_ONLY",
    "DURABLE",
    "ROWS",
    "accepted",
    "cpu_per_mail",
    "into_maildir",
    "loaded",
    "send",
    "slow_disk",
]

ACCEPT_ONLY = """
[[servers]]
listen = "127.0.0.1:0"
gateway = "default"

[gateways.default]
process = "discard"
"""

DURABLE = """
[[servers]]
listen = "127.0.0.1:0"
gateway = "default"

[gateways.default]
process = "header | hasher | compressor | sql"
{more}

[processors.sql]
url = "sqlite:///mail.db"
"""


def _slowed(milliseconds: int) -> tuple[str, ...]:
    """What makes every fsync of a server so much longer."""
    delayed = f"inject=fsync,fdatasync:delay_exit={milliseconds * 1000}"
    return (
        "strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null",
        "-e", "trace=fsync,fdatasync", "-e", delayed,
    )  # fmt: skip


def loaded(plan: Plan) -> Report:
    """
    Run the load in its own process, to its end.

    Raises:
        RuntimeError: If a mail was not taken, or too late.
    """
    done = subprocess.run(command(plan), capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"the load failed: {done.stderr[-800:]}"
        raise RuntimeError(msg)
    return Report(**json.loads(done.stdout))


def send(plan: Plan) -> tuple[float, float]:
    """Run the load; returns when it began and when the last 250 was there."""
    report = loaded(plan)
    return report.started, report.ended


def accepted(plan: Plan) -> float:
    """Mails per second until the last one is acknowledged."""
    started, ended = send(plan)
    return plan.mails / (ended - started)


def cpu_per_mail(plan: Plan, server: Server) -> float:
    """Microseconds of CPU, user and system, that *server* takes for a mail."""
    before = cpu_seconds(server.pid)
    loaded(plan)
    return (cpu_seconds(server.pid) - before) / plan.mails * 1e6


def into_maildir(plan: Plan, server: postfix.Postfix) -> float:
    """Mails per second until the last one is in its Maildir; the Maildirs are empty afterwards."""
    started, _ = send(plan)
    ended = server.wait_delivered(plan.mails)
    server.clear()
    return plan.mails / (ended - started)


@contextmanager
def _accept_only(
    scale: float, *, size: int, mails: int, loop: str = "", pipelining: int = 0, of_cpu: bool = False
) -> Iterator[Sides]:
    plan = Plan(port=0, mails=max(40, int(mails * scale)), size=size, pipelining=pipelining)
    stock = [sys.executable, "-m", "benchmarks.stock", *([loop] if loop else [])]
    with folder() as place, ExitStack() as stack:
        ours = stack.enter_context(mailpipe(place, "accept", ACCEPT_ONLY))
        theirs = stack.enter_context(listening(stock, place / "stock.log"))

        def side(server: Server) -> Callable[[], float]:
            one = attrs.evolve(plan, port=server.port)
            return partial(cpu_per_mail, one, server) if of_cpu else partial(accepted, one)

        yield Sides(side(ours), side(theirs))


@contextmanager
def _durable(scale: float, *, mails: int) -> Iterator[Sides]:
    plan = Plan(port=0, mails=max(40, int(mails * scale)))
    sent = 0
    with folder() as place, ExitStack() as stack:
        theirs = stack.enter_context(postfix.running(place, users=plan.recipients))
        ours = stack.enter_context(mailpipe(place, "durable", DURABLE.format(more="")))

        def subject() -> float:
            nonlocal sent
            sent += plan.mails
            return accepted(attrs.evolve(plan, port=ours.port))

        yield Sides(subject, partial(into_maildir, attrs.evolve(plan, port=theirs.port), theirs))
        if (kept := stored(place, "durable")) != sent:
            msg = f"{sent} mails were acknowledged, {kept} are stored"
            raise RuntimeError(msg)


@contextmanager
def slow_disk(scale: float, *, milliseconds: int = 10) -> Iterator[Sides]:
    """A hundred sessions into SQLite, every fsync so much longer, beside one commit per mail."""
    if shutil.which("strace") is None:
        reason = "strace, which slows fsync down, is not installed"
        raise Unavailable(reason)
    many = Plan(port=0, sessions=100, mails=max(200, int(4000 * scale)))
    few = attrs.evolve(many, mails=max(100, int(200 * scale)))
    with folder() as place, ExitStack() as stack:
        single = DURABLE.format(more="batch_items_max = 1")
        ours = stack.enter_context(
            mailpipe(place, "group", DURABLE.format(more=""), under=_slowed(milliseconds))
        )
        alone = stack.enter_context(mailpipe(place, "single", single, under=_slowed(milliseconds)))
        yield Sides(
            partial(accepted, attrs.evolve(many, port=ours.port)),
            partial(accepted, attrs.evolve(few, port=alone.port)),
        )


ROWS = (
    Row(
        name="accept-2k",
        what="accept only, as installed, 2 kB from 20 sessions",
        yardstick="aiosmtpd as installed, a handler that answers 250",
        unit="mails/s",
        bar=at_least(4),
        turns=7,
        open=partial(_accept_only, size=2048, mails=3000),
    ),
    Row(
        name="accept-2k-same-loop",
        what="the same",
        yardstick="aiosmtpd on uvloop",
        unit="mails/s",
        turns=7,
        open=partial(_accept_only, size=2048, mails=3000, loop="--uvloop"),
    ),
    Row(
        name="accept-2k-pipelining",
        what="the same, from clients that use PIPELINING where it is offered",
        yardstick="aiosmtpd as installed, which does not offer it",
        unit="mails/s",
        turns=7,
        open=partial(_accept_only, size=2048, mails=3000, pipelining=1),
    ),
    Row(
        name="accept-2k-cpu",
        what="CPU time of the server for a mail of 2 kB that is not kept",
        yardstick="aiosmtpd as installed",
        unit="us",
        turns=7,
        open=partial(_accept_only, size=2048, mails=3000, of_cpu=True),
    ),
    Row(
        name="accept-50k",
        what="accept only, as installed, 50 kB from 20 sessions",
        yardstick="aiosmtpd as installed, a handler that answers 250",
        unit="mails/s",
        bar=at_least(5),
        turns=7,
        open=partial(_accept_only, size=50_000, mails=800),
    ),
    Row(
        name="durable-2k",
        what="the default chain into SQLite, 2 kB from 20 sessions, until the last 250",
        yardstick="Postfix into Maildirs on the same disk, until the last mail is in",
        unit="mails/s",
        bar=at_least(5),
        turns=7,
        open=partial(_durable, mails=4000),
    ),
    Row(
        name="durable-slow-disk",
        what="the same from 100 sessions, each fsync 10 ms longer",
        yardstick="one commit per mail (batch_items_max = 1)",
        unit="mails/s",
        bar=at_least(20),
        turns=3,
        open=slow_disk,
    ),
)
