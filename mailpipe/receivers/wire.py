"""
The line protocol under the engine: input cut into commands and bodies, replies gathered.

Theory of operation. `data_received` runs everything that the input holds, synchronously: command
after command, body after body. Replies gather in a list and leave in one write when the input is
used up (or, if a subclass says so by `answered`, with those of other connections at the end of the
loop's turn). Only what must be awaited leaves the callback: `suspend` runs an awaitable in a task, and
until it is done the input rests. One chunk of it at most, because reading stops with it.

Rules. Between two calls at most one line, four octets of a body, or one chunk is kept. A client
that does not read its replies is not served further. Whoever closes says so once: `hang_up`.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from mailpipe import reply
from mailpipe.receivers.handshake import shake_hands
from mailpipe.receivers.intake import Intake
from mailpipe.receivers.sweep import Sweep

__all__ = ["Wire", "log"]

log = logging.getLogger("mailpipe.receiver")

_REPLIES_PER_WRITE = 64
_COMMANDS_PER_TURN = 500
_LINGER = 5.0
_TROUBLE = reply.TROUBLE.wire


class Wire(asyncio.Protocol):
    """
    One connection as a callback protocol; subclasses say what commands and bodies mean.

    Subclasses implement `greet`, `command`, `refused_line`, `body_end`, `body_overflow`,
    `vanished` and `silent`, and may implement `drained` and `answered`.
    """

    line_limit = 2048
    """Octets of a command line with its CRLF."""

    def _init_wire(self, loop: asyncio.AbstractEventLoop, sweep: Sweep) -> None:
        self._loop = loop
        self.sweep = sweep
        self.heard_at = sweep.now
        """When something was last heard, to the tick."""
        self.intake: Intake | None = None
        """The body being read."""
        self.closing = False
        """No more is read; it ends once what is awaited is done."""
        self._wire: Any = None
        self._held = b""  # input not yet run
        self._out: list[bytes] = []
        self._mode: Callable[[bytes], bytes] = self._read_commands
        self._overlong = False  # inside a line that was too long, up to its LF
        self._task: asyncio.Task[None] | None = None  # what is awaited
        self.clogged = False
        """The client does not read its replies; nothing is run until it does."""
        self._reading = True
        self._encrypted = False
        self._hungry: asyncio.Future[None] | None = None  # what is awaited awaits input
        self._unclogged: asyncio.Future[None] | None = None  # or that the client reads
        self._turn_owed = False
        self._ended = False  # the client will say no more
        self._lost = False

    # What subclasses say

    def greet(self) -> None:
        """The connection is there."""
        raise NotImplementedError

    def command(self, line: bytes) -> bool | None:
        """
        Run one command line, without its CRLF.

        Returns:
            True if the line must wait: it comes again when what was suspended is done.
        """
        raise NotImplementedError

    def line_limit_of(self, line: bytes) -> int:
        """Octets that *line*, possibly unfinished and without its LF, may have with its CRLF."""
        return self.line_limit

    def refused_line(self, rule: str) -> None:
        """Answer a line that is no command: *rule* is ``"too long"`` or ``"bare CR or LF"``."""
        raise NotImplementedError

    def body_end(self, intake: Intake) -> Awaitable[None] | None:
        """A body is whole, or lost and read to its end; an awaitable is suspended for."""
        raise NotImplementedError

    def body_overflow(self) -> None:
        """A lost body does not end: say so; the connection closes."""
        raise NotImplementedError

    def drained(self) -> None:
        """The input is used up and nothing is awaited."""

    def answered(self) -> None:
        """Replies have gathered, the input is used up and nothing is awaited: send them, or have it done soon."""
        self.flush()

    def ended(self) -> None:
        """The client will say no more, while something is awaited. It may still listen."""

    def vanished(self) -> None:
        """The connection is gone. What is awaited goes on unless it is cancelled here."""
        raise NotImplementedError

    def gone(self) -> None:
        """The connection is gone, and nothing is awaited any more. Called once."""

    def silent(self, now: float) -> None:
        """Once a tick while nothing is awaited: is this connection too old, too slow, too quiet?"""
        raise NotImplementedError

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, greet."""
        self._wire = transport
        self.sweep.join(self)
        self.heard_at = self.sweep.now
        self.greet()
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Run what is in *data*, or hold it."""
        if self.closing:
            return
        self.heard_at = self.sweep.now
        if self._held:
            data = self._held + data
            self._held = b""
        self._run(data)

    def eof_received(self) -> bool:
        """The client will say no more: what it said is still run, then we close."""
        self._ended = True
        if self._hungry is not None:
            self._hungry.cancel()
        if self._task is None and not self.clogged and not self._turn_owed:
            self.hang_up(linger=False)
        elif self._task is not None:
            self.ended()
        # True keeps our side open for the replies; TLS has no such state.
        return not self._encrypted

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if self._lost:
            return
        self._lost = self.closing = True
        self._held = b""
        self._out.clear()
        self.sweep.leave(self)
        self._mode = _read_nothing  # a bound method would keep us alive
        for future in (self._hungry, self._unclogged):
            if future is not None:
                future.cancel()
        self.vanished()
        if self._task is None:
            self.gone()

    def pause_writing(self) -> None:
        """The client does not read: serve it no further."""
        self.clogged = True

    def resume_writing(self) -> None:
        """The client reads again."""
        self.clogged = False
        _wake(self._unclogged)
        self._go_on()

    def swept(self, now: float) -> None:
        """Called once a tick."""
        if self._task is not None and self._hungry is None:
            return
        if not self.closing:
            self.silent(now)
        elif now - self.heard_at > _LINGER:
            self._wire.abort()

    # For subclasses

    @property
    def suspended(self) -> bool:
        """Something is awaited; the input rests."""
        return self._task is not None

    @property
    def departed(self) -> bool:
        """The client closed its side, or all of it: whether it still listens cannot be known."""
        return self._lost or self._ended

    def reply(self, line: bytes) -> None:
        """Gather *line*, whole with its CRLF; it leaves when the input is used up."""
        self._out.append(line)
        if len(self._out) > _REPLIES_PER_WRITE:
            self.flush()

    def flush(self) -> None:
        """Send what has gathered."""
        out = self._out
        if out:
            if not self._lost:
                self._wire.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def suspend(self, awaitable: Awaitable[None]) -> None:
        """Run *awaitable* in a task; the input rests until it is done."""
        self._task = self._loop.create_task(self._suspended(awaitable))

    async def more(self) -> None:
        """For what is awaited: wait for more input, which is held then. Cancelled when the client is gone."""
        self._hungry = self._loop.create_future()
        self._resume_reading()
        try:
            await self._hungry
        finally:
            self._hungry = None

    async def unclogged(self) -> None:
        """For what is awaited: wait until the client reads. Cancelled when it is gone."""
        while self.clogged and not self._lost:
            self._unclogged = self._loop.create_future()
            await self._unclogged

    async def upgrade(self, context: ssl.SSLContext, patience: float, early: bytes = b"") -> None:
        """
        Speak TLS from now on; what was read in the clear and not yet run is dropped (RFC 3207).

        Call it with reading paused, so that no octet of the handshake is taken for input. (A
        connection that was just made reads on uvloop all the same: what is held then is *early*.)

        Args:
            context: Our side's settings.

            patience: Seconds for the handshake.

            early: Octets of the handshake that were read already (behind a PROXY header).

        Raises:
            OSError: If the handshake failed or took too long; `ssl.SSLError` is one. The connection
                is gone then.
        """
        self._held = b""
        try:
            self._wire = await shake_hands(self._wire, self, context, patience, early)
        except BaseException:
            self._wire.abort()
            if not self._lost:
                self.connection_lost(None)
            raise
        self._reading = self._encrypted = True

    def cut(self) -> None:
        """End now: cancel what is awaited, drop what is unsent."""
        self.closing = True
        if self._task is not None:
            self._task.cancel()
        if not self._lost:
            self._wire.abort()

    def begin_body(self, intake: Intake) -> None:
        """What follows is a body, up to CRLF.CRLF."""
        self.intake = intake
        self._mode = self._read_body

    def hang_up(self, *, linger: bool = True) -> None:
        """
        Send what has gathered, and close; while something is awaited, close after it.

        Lingering, our side is closed first and the client's end is waited for: a close with
        input unread would reset the connection, and could take the reply with it.
        """
        self.closing = True
        self._held = b""
        if self.intake is not None:
            self.intake.lose(reply.TROUBLE)
        self.flush()
        if self._lost or self._task is not None:
            return
        self.heard_at = self.sweep.now
        if self.clogged:
            self._wire.abort()
        elif linger and not self._ended and not self._encrypted:
            self._resume_reading()
            self._wire.write_eof()
        else:
            self._wire.close()

    # The engine

    def _run(self, data: bytes) -> None:
        while data and not self.closing:
            if self._task is not None or self.clogged or self._turn_owed:
                # One chunk at most is held: no other comes before reading is resumed.
                self._held = data
                self.pause_reading()
                _wake(self._hungry)
                break
            data = self._mode(data)
        if self._task is None and not self.closing and not self._turn_owed:
            self.drained()
            if self._ended and self._task is None and not self.clogged:
                self.hang_up(linger=False)
        if self._out:
            # A task may be about to put TLS under us: what was said before it leaves now.
            if self._task is None:
                self.answered()
            else:
                self.flush()

    def _go_on(self) -> None:
        """Something that held the input is over."""
        if self.closing or self._task is not None or self.clogged or self._turn_owed:
            return
        self._resume_reading()
        data, self._held = self._held, b""
        self._run(data)

    def _turn(self) -> None:
        self._turn_owed = False
        self._go_on()

    def _read_commands(self, data: bytes) -> bytes:
        start = count = 0
        find = data.find
        while (end := find(b"\n", start)) >= 0:
            line = data[start:end]
            if self._overlong:
                self._overlong = False
                self.refused_line("too long")
            elif end - start >= self.line_limit and end - start >= self.line_limit_of(line):
                self.refused_line("too long")
            elif line.find(b"\r") != end - start - 1:
                self.refused_line("bare CR or LF")
            elif self.command(line[:-1]):
                return data[start:]
            start = end + 1
            count += 1
            if self._task is not None or self.closing or self.clogged or self.intake is not None:
                return data[start:]
            if count == _COMMANDS_PER_TURN:
                # Others want the loop as well.
                self._turn_owed = True
                self._loop.call_soon(self._turn)
                return data[start:]
        rest = data[start:]
        if len(rest) >= self.line_limit and len(rest) >= self.line_limit_of(rest):
            self._overlong = True
            rest = b""
        self._held = b"" if self._overlong else rest
        return b""

    def _read_body(self, data: bytes) -> bytes:
        intake = self.intake
        assert intake is not None
        rest = intake.feed(data)
        if intake.hopeless:
            self.body_overflow()
            self.hang_up()
            return b""
        if intake.stall is not None:
            self.suspend(self._stalled(intake, ended=rest is not None))
        elif rest is not None and (awaitable := self._end_body(intake)) is not None:
            self.suspend(awaitable)
        return rest or b""

    def _end_body(self, intake: Intake) -> Awaitable[None] | None:
        self.intake = None
        self._mode = self._read_commands
        return self.body_end(intake)

    async def _stalled(self, intake: Intake, *, ended: bool) -> None:
        stall, intake.stall = intake.stall, None
        assert stall is not None
        try:
            await stall
        except Exception as error:
            intake.fail(error)
        if ended and not self._lost and (awaitable := self._end_body(intake)) is not None:
            await awaitable

    async def _suspended(self, awaitable: Awaitable[None]) -> None:
        try:
            await awaitable
        except asyncio.CancelledError:
            # Whoever cancels a command ends its connection: what the client was told is unknown.
            self.closing = True
            raise
        except Exception:
            log.exception("a command failed")
            self.reply(_TROUBLE)
        finally:
            self._task = None
            # While we were at work the client was not to speak.
            self.heard_at = self.sweep.now
            if self._lost:
                self.gone()
            elif self.closing:
                self.hang_up()
            else:
                self.flush()
                self._go_on()

    def pause_reading(self) -> None:
        """Read no more until what is awaited is done."""
        if self._reading and not self._lost:
            self._reading = False
            self._wire.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._lost:
            self._reading = True
            self._wire.resume_reading()


def _wake(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _read_nothing(data: bytes) -> bytes:
    return b""
