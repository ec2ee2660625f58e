"""
The load: SMTP sessions from a process of its own (``python -m benchmarks.load``).

Each session stays connected, unless it is told to come anew for every mail, and goes step by step (MAIL, RCPT, DATA, body),
waiting for every reply, unless it is told to use PIPELINING where that is offered. A reply that is not the expected one ends
the run. Prints one JSON object: when it started and ended on the system's monotonic clock, what CPU time it took itself, and
how long its sessions waited from the body to its reply.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count as counter
from itertools import islice
from typing import cast

import attrs

from benchmarks.bodies import mails

__all__ = ["Plan", "Report", "command"]


@attrs.frozen(kw_only=True)
class Plan:
    """What is sent where."""

    host: str = "127.0.0.1"
    port: int
    sessions: int = 20
    mails: int = 1000
    size: int = 2048
    recipients: int = 20
    """Mails go to user0@example.org and its neighbours in turn, one each."""

    pipelining: int = 0
    """
    1: MAIL, RCPT and DATA go in one write where the server offers PIPELINING, as real senders do.
    2: They go in one write with the body before them (RFC 2920 section 3.1); no load is lighter.
    """

    kept: int = 1
    """0: every mail comes over a connection of its own; as many at once as there are sessions."""

    within: int = 120
    """Seconds; a run that takes longer fails."""


@attrs.frozen(kw_only=True)
class Report:
    """What came of a plan; seconds throughout."""

    started: float
    """On the system's monotonic clock."""

    ended: float
    """When the last mail was answered."""

    mails: int
    cpu: float
    """Of this process, user and system."""

    p50: float
    """Half of the mails were answered sooner, from the body's write to the reply."""

    p99: float
    """All but one in a hundred were."""


def command(plan: Plan) -> list[str]:
    """The command line that carries *plan* out."""
    options = [f"--{name}={value}" for name, value in attrs.asdict(plan).items()]
    return [sys.executable, "-m", "benchmarks.load", *options]


_BEGUN = (b"250", b"250", b"354")
"""The codes of MAIL, RCPT and DATA."""


class _Session(asyncio.Protocol):
    """One client; sends the next thing when the reply to the last one is whole."""

    def __init__(
        self,
        tickets: Iterator[int],
        bodies: list[bytes],
        plan: Plan,
        over: Callable[[str], None],
        waits: list[float],
    ) -> None:
        self._tickets, self._bodies, self._plan, self._over = tickets, bodies, plan, over
        self._waits = waits
        self._offered = b""
        self._unread = b""
        self._steps = self._dialogue()
        self._wanted: tuple[bytes, ...] = (b"220",)
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def _dialogue(self) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
        """What to send, and the codes that have to come back."""
        yield b"EHLO load.example.net\r\n", (b"250",)
        bodies, tickets = self._bodies, self._tickets
        at_once = self._plan.pipelining if b"PIPELINING" in self._offered else 0
        ticket, begun = next(tickets, None), False
        while ticket is not None:
            commands = self._commands(ticket)
            if not begun and at_once:
                yield b"".join(commands), _BEGUN
            elif not begun:
                yield from [(line, (code,)) for line, code in zip(commands, _BEGUN, strict=True)]
            sent = time.monotonic()
            following = next(tickets, None) if at_once == 2 else None
            if begun := following is not None:
                yield bodies[ticket % len(bodies)] + b"".join(self._commands(following)), (b"250", *_BEGUN)
            else:
                yield bodies[ticket % len(bodies)], (b"250",)
            self._waits.append(time.monotonic() - sent)
            ticket = following if begun else next(tickets, None)
        yield b"QUIT\r\n", (b"221",)

    def _commands(self, ticket: int) -> tuple[bytes, ...]:
        recipient = b"RCPT TO:<user%d@example.org>\r\n" % (ticket % self._plan.recipients)
        return b"MAIL FROM:<sender@example.net>\r\n", recipient, b"DATA\r\n"

    def data_received(self, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            if line[3:4] == b"-":
                self._offered += line
                continue
            if not line.startswith(self._wanted[0]):
                self._end(f"wanted {self._wanted[0].decode()}, got {line!r}")
                return
            self._wanted = self._wanted[1:]
        if not self._wanted:
            self._go_on()

    def _go_on(self) -> None:
        step = next(self._steps, None)
        if step is None:
            self._end("")
            return
        octets, self._wanted = step
        self._transport.write(octets)

    def _end(self, fault: str) -> None:
        if not self._ended:
            self._ended = True
            self._over(fault)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"connection lost: {exc}")


async def _run(plan: Plan) -> Report:
    # A body each would only fill this process's memory; up to 64 different ones are uneven enough.
    different = max(2, min(64, 64_000_000 // plan.size))
    bodies = [mail + b".\r\n" for mail in mails(plan.size, different)]
    left = plan.mails
    numbers = counter()
    waits: list[float] = []

    def tickets() -> Iterator[int]:
        nonlocal left
        while left:
            left -= 1
            yield next(numbers)

    loop = asyncio.get_running_loop()
    done = loop.create_future()
    open_sessions = plan.sessions

    visits: set[asyncio.Task[None]] = set()

    async def visit() -> None:
        mine = tickets() if plan.kept else islice(tickets(), 1)
        try:
            await loop.create_connection(
                lambda: _Session(mine, bodies, plan, over, waits), plan.host, plan.port
            )
        except OSError as error:
            over(f"no connection: {error}")

    def over(fault: str) -> None:
        nonlocal open_sessions
        if left and not fault:  # the server told goodbye, and there is more: only without kept connections
            visits.add(task := loop.create_task(visit()))
            task.add_done_callback(visits.discard)
            return
        open_sessions -= 1
        if fault and not done.done():
            done.set_exception(RuntimeError(fault))
        elif not open_sessions and not done.done():
            done.set_result(None)

    # A fault in a callback would otherwise be printed and waited out.
    loop.set_exception_handler(lambda _, context: over(str(context.get("exception", context["message"]))))
    gc.collect()
    gc.freeze()
    started, cpu = time.monotonic(), time.process_time()
    for _ in range(plan.sessions):
        await visit()
    async with asyncio.timeout(plan.within):
        await done
    ended, cpu = time.monotonic(), time.process_time() - cpu
    waits.sort()
    return Report(
        started=started,
        ended=ended,
        mails=plan.mails,
        cpu=cpu,
        p50=waits[len(waits) // 2],
        p99=waits[len(waits) * 99 // 100],
    )


def _main() -> None:
    parser = argparse.ArgumentParser()
    for field in attrs.fields(Plan):
        kind = str if field.name == "host" else int
        required = field.default is attrs.NOTHING
        parser.add_argument(
            f"--{field.name}", type=kind, required=required, default=None if required else field.default
        )
    plan = Plan(**vars(parser.parse_args()))
    factory = None
    with contextlib.suppress(ImportError):  # the load must not be the slowest part
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(attrs.asdict(runner.run(_run(plan)))))  # noqa: T201 -- the program's output


if __name__ == "__main__":
    _main()
