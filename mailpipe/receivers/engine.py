"""
The engine: aiosmtpd's SMTP on the wire of ours. The only module that knows aiosmtpd.

`Engine` takes aiosmtpd's place: its constructor, handlers, hooks, mechanisms and reply texts, so that
aiosmtpd's own suite runs on it. What differs is under them: input is cut and bodies are read by
`Wire`, deadlines are kept by one sweep, plain addresses do not go through the standard library's
header parser. Repaired on the way: a line of a body without end no longer fills the memory, a body
that makes progress is not cut by the command timeout, and a client that leaves after the dot does
not cancel what stores its mail.

Theory of operation. aiosmtpd's commands are coroutines that write and read by themselves, so a run
of them (`_converse`) is suspended for as a whole: it takes line after line from the input until
none is left. Subclasses with commands of their own (`mailpipe.receivers.smtp`) replace `greet` and
`command`, and have no task per run.
"""

import asyncio
import collections
import inspect
import warnings
from collections.abc import Awaitable
from typing import Any, AnyStr
from weakref import WeakKeyDictionary

import aiosmtpd.smtp as stock
from aiosmtpd.proxy_protocol import get_proxy
from aiosmtpd.smtp import SMTP

from mailpipe.receivers.content import WholeContent
from mailpipe.receivers.intake import Intake
from mailpipe.receivers.paths import plain_address
from mailpipe.receivers.sweep import Sweep
from mailpipe.receivers.wire import Wire

__all__ = ["Engine"]

_PATIENCE = 1 << 20
_sweeps: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, Sweep]] = WeakKeyDictionary()


class Engine(Wire, SMTP):
    """
    aiosmtpd's SMTP, its input and output done by `Wire`. Arguments are aiosmtpd's.

    A connection's deadlines are noticed a fiftieth of its timeout late at most, and two seconds.
    """

    # aiosmtpd calls a task so; handlers may cancel it to end the connection.
    _handler_coroutine: "asyncio.Future[None] | None"  # type: ignore[assignment]

    def __init__(self, handler: object, **settings: Any) -> None:  # noqa: ANN401  (aiosmtpd's)
        # aiosmtpd shares one table between all connections, and clears it for each.
        self.command_size_limits = collections.defaultdict(lambda: self.command_size_limit)
        super().__init__(handler, **settings)
        shortest = min(self._timeout_duration, self._proxy_timeout or self._timeout_duration)
        tick = min(1.0, shortest / 100)
        sweeps = _sweeps.setdefault(self.loop, {})
        self._init_wire(self.loop, sweeps.setdefault(tick, Sweep(self.loop, tick)))
        self._input, self._at = b"", 0  # what `_converse` runs, and how far it is
        self._patience = self._timeout_duration
        self._bogus = stock.BOGUS_LIMIT
        self._shielded = False  # what runs outlives its client
        self._calls: dict[str, int] = {}

    # What Wire asks

    def greet(self) -> None:
        """The connection is there: begin the conversation."""
        self._set_rset_state()  # type: ignore[no-untyped-call]
        self.session = self._create_session()
        self.session.peer = self._wire.get_extra_info("peername")
        stock.log.info("Peer: %r", self.session.peer)
        self.transport = self._wire
        self._reader = _Input(self)  # type: ignore[assignment]  # what is used of one
        self._writer = asyncio.StreamWriter(self._wire, self, None, self._loop)
        self._handler_coroutine = self._loop.create_future()
        self._mode = self._read_client
        self.suspend(self._begin())

    def ended(self) -> None:
        """The client left: so does the command that runs, unless it stores a mail."""
        if self._task is not None and not self._shielded:
            self._task.cancel()

    def vanished(self) -> None:
        """The connection is gone: so is the command that runs, unless it stores a mail."""
        assert self.session is not None
        if self._task is not None and not self._shielded:
            self._task.cancel()
        stock.log.info("%r connection lost", self.session.peer)
        self._writer.close()
        self.transport = None
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    def silent(self, now: float) -> None:
        """Close in silence, as aiosmtpd does."""
        if now - self.heard_at - self.sweep.tick > self._patience:
            self._timeout_cb()  # type: ignore[no-untyped-call]
            self.hang_up(linger=False)

    def body_end(self, intake: Intake) -> Awaitable[None] | None:
        """Bodies are read by `smtp_DATA` itself."""
        raise NotImplementedError

    # What aiosmtpd's commands call

    async def push(self, status: AnyStr) -> None:
        """Send one reply; wait while the client does not read."""
        line = (
            status.encode("utf-8" if self.enable_SMTPUTF8 else "ascii") if isinstance(status, str) else status
        )
        assert self.session is not None
        stock.log.debug("%r << %r", self.session.peer, line)
        if not self._lost:
            self._wire.write(line + b"\r\n")
        if self.clogged:
            await self.unclogged()

    def _reset_timeout(self, duration: float | None = None) -> None:
        self._patience = duration or self._timeout_duration
        self.heard_at = self.sweep.now

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        if (plain := plain_address(arg)) is None:
            return super()._getaddr(arg)
        if self.local_part_limit and plain[0].rfind("@") > self.local_part_limit:
            return None, None
        return plain

    # The conversation

    async def _begin(self) -> None:
        assert self.session is not None
        if self._proxy_timeout is not None:
            self._reset_timeout(self._proxy_timeout)
            stock.log.debug("%r waiting PROXY handshake", self.session.peer)
            self.session.proxy_data = await get_proxy(self._reader)
            status: Any = False
            if self.session.proxy_data:
                stock.log.info("%r valid PROXY handshake", self.session.peer)
                status = await self._call_handler_hook("PROXY", self.session.proxy_data)
                stock.log.debug("%r handle_PROXY returned %r", self.session.peer, status)
            else:
                stock.log.warning("%r invalid PROXY handshake", self.session.peer)
            if status is stock.MISSING or not status:
                stock.log.info("%r rejected by handle_PROXY", self.session.peer)
                self._close()
                return
            self._reset_timeout()
        await self.push(f"220 {self.hostname} {self.__ident__}")
        await self._converse()

    def _read_client(self, data: bytes) -> bytes:
        """Hold *data* until there is a line in it; then run what there is."""
        if b"\n" in data:
            self._held = data
            self.suspend(self._converse())
        elif self._overlong or len(data) > self.line_length_limit:
            self._overlong = True
        else:
            self._held = data
        return b""

    async def _converse(self) -> None:
        while not self.closing:
            line = self.take_line()
            if line is None:
                break
            await self._execute(line)
        if not self.closing:
            self._held, self._input, self._at = self._input[self._at :] + self._held, b"", 0

    def take_line(self) -> bytes | None:
        """Take one line with its LF out of the input, or None while it is not whole."""
        end = self._input.find(b"\n", self._at)
        if end < 0:
            if not self._held:
                return None
            self._input, self._at, self._held = self._input[self._at :] + self._held, 0, b""
            if (end := self._input.find(b"\n")) < 0:
                return None
        line, self._at = self._input[self._at : end + 1], end + 1
        return line

    def take_all(self) -> bytes:
        """Take all input there is."""
        data, self._input, self._at, self._held = self._input[self._at :] + self._held, b"", 0, b""
        return data

    def put_back(self, data: bytes) -> None:
        """*data* was not meant for whoever took it."""
        self._input, self._at = data + self._input[self._at :], 0

    async def _execute(self, line: bytes) -> None:
        overlong, self._overlong = self._overlong, False
        try:
            if overlong or len(line) - 1 > self.line_length_limit:
                await self.push("500 Command line too long")
            else:
                await self._dispatch(line)
        except ConnectionResetError:
            self._close()
        except Exception as error:
            await self._answer_error(error)

    async def _dispatch(self, line: bytes) -> None:
        assert self.session is not None
        stock.sanitized_log(stock.log.debug, "_handle_client readline: %r", line)
        line = line.rstrip(b"\r\n")
        stock.sanitized_log(stock.log.info, "%r >> %r", self.session.peer, line)
        word, _, rest = line.partition(b" ")
        try:
            command = word.decode("ascii").upper()
        except UnicodeDecodeError:
            command = ""
        if not command:
            return await self.push("500 Error: bad syntax")
        arg = None
        if rest:
            try:
                arg = str(
                    rest.strip(), *(("utf-8", "surrogateescape") if self.enable_SMTPUTF8 else ("ascii",))
                )
            except UnicodeDecodeError:
                return await self.push("500 Error: strict ASCII mode")
        limits = self.command_size_limits if self.session.extended_smtp else {}
        if len(line) > limits.get(command, self.command_size_limit):
            return await self.push("500 Command line too long")
        if not self._tls_handshake_okay and command != "QUIT":
            return await self.push("554 Command refused due to lack of security")
        if self.require_starttls and not self._tls_protocol and command not in stock.ALLOWED_BEFORE_STARTTLS:
            return await self.push("530 Must issue a STARTTLS command first")
        if self._enforce_call_limit and not self._may_call(command):
            stock.log.warning("%r over limit for %s", self.session.peer, command)
            await self.push(f"421 4.7.0 {command} sent too many times")
            return self._close()
        method = self._smtp_methods.get(command)
        if method is None:
            return await self._unrecognized(command)
        self._reset_timeout()
        await method(arg)
        return None

    def _may_call(self, command: str) -> bool:
        budget = self._calls.get(command, self._call_limit_base.get(command, self._call_limit_default))
        self._calls[command] = budget - 1
        return budget > 0

    async def _unrecognized(self, command: str) -> None:
        assert self.session is not None
        stock.log.warning("%r unrecognised: %s", self.session.peer, command)
        self._bogus -= 1
        if self._bogus > 0:
            await self.push(f'500 Error: command "{command}" not recognized')
            return
        stock.log.warning("%r too many bogus commands", self.session.peer)
        await self.push("502 5.5.1 Too many unrecognized commands, goodbye.")
        self._close()

    async def _answer_error(self, error: Exception) -> None:
        assert self.session is not None
        try:
            status = await self.handle_exception(error)
        except Exception as inner:
            try:
                stock.log.exception("%r Exception in handle_exception()", self.session.peer)
                status = f"500 Error: ({type(inner).__name__}) {inner}"
            except Exception:
                status = "500 Error: Cannot describe error"
        if isinstance(error, stock.TLSSetupException):
            self._close()
        else:
            await self.push(status)

    def _close(self) -> None:
        self.hang_up(linger=False)
        if self.transport is not None:
            self.transport.close()

    # Commands that read or close by themselves

    @stock.syntax("QUIT")
    async def smtp_QUIT(self, arg: str) -> None:
        """QUIT, as aiosmtpd answers it."""
        if arg:
            await self.push("501 Syntax: QUIT")
            return
        status = await self._call_handler_hook("QUIT")
        await self.push("221 Bye" if status is stock.MISSING else status)
        self._close()
        assert self._handler_coroutine is not None
        self._handler_coroutine.cancel()

    @stock.syntax("STARTTLS", when="tls_context")
    async def smtp_STARTTLS(self, arg: str) -> None:
        """STARTTLS: what was read in the clear is dropped."""
        if arg:
            await self.push("501 Syntax: STARTTLS")
            return
        if not self.tls_context:
            await self.push("454 TLS not available")
            return
        self.pause_reading()
        await self.push("220 Ready to start TLS")
        self.take_all()
        self._shielded = True
        try:
            await self.upgrade(self.tls_context, 60.0)
        except OSError as error:
            raise stock.TLSSetupException from error
        finally:
            self._shielded = False
        self._set_rset_state()  # type: ignore[no-untyped-call]
        peer = self.session.peer if self.session else None
        self.session = self._create_session()
        self.session.peer = peer
        self._original_transport, self.transport = self.transport, self._wire
        self._tls_protocol = self._wire
        # Not a new writer: when the old one is collected it closes its transport.
        self._writer._transport = self._wire  # type: ignore[attr-defined]  # noqa: SLF001
        names = ("sslcontext", "ssl_object", "peercert", "cipher", "compression")
        self.session.ssl = {name: self._wire.get_extra_info(name) for name in names}
        hook = self._handle_hooks.get("STARTTLS")
        self._tls_handshake_okay = hook is None or hook(self, self.session, self.envelope)

    @stock.syntax("DATA")
    async def smtp_DATA(self, arg: str) -> None:
        """DATA, read in chunks; handlers see what aiosmtpd shows them."""
        if await self.check_helo_needed() or await self.check_auth_needed("DATA"):
            return
        assert self.envelope is not None
        if not self.envelope.rcpt_tos:
            await self.push("503 Error: need RCPT command")
            return
        if arg:
            await self.push("501 Syntax: DATA")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        if (content := await self._read_content()) is None:
            self._set_post_data_state()  # type: ignore[no-untyped-call]
            return
        self.envelope.original_content = self.envelope.content = content
        if self._decode_data:
            try:
                self.envelope.content = (
                    content.decode("utf-8", "surrogateescape")
                    if self.enable_SMTPUTF8
                    else content.decode("ascii")
                )
            except UnicodeDecodeError:
                self._set_post_data_state()  # type: ignore[no-untyped-call]
                await self.push("500 Error: strict ASCII mode")
                return
        self._shielded = True
        try:
            status = await self._handle_content()
        finally:
            self._shielded = False
        self._set_post_data_state()  # type: ignore[no-untyped-call]
        await self.push("250 OK" if status is stock.MISSING else status)

    async def _read_content(self) -> bytes | None:
        """Read a body to its end; None if it was refused, which the client was told."""
        content = WholeContent(self.data_size_limit, self.line_length_limit)
        rest = None
        while rest is None:
            if data := self.take_all():
                rest = content.feed(data)
            else:
                await self.more()
            if content.discarded > max(self.data_size_limit or 0, _PATIENCE):
                await self.push(content.refusal)
                self.hang_up()
                return None
        self.put_back(rest)
        if content.refusal:
            await self.push(content.refusal)
            return None
        return b"".join(content.chunks)

    async def _handle_content(self) -> Any:  # noqa: ANN401  (aiosmtpd's)
        if "DATA" in self._handle_hooks:
            return await self._call_handler_hook("DATA")
        process = getattr(self.event_handler, "process_message", None)
        if process is None:
            return stock.MISSING
        warnings.warn(
            "Use handler.handle_DATA() instead of .process_message()", DeprecationWarning, stacklevel=1
        )
        assert self.session is not None
        assert self.envelope is not None
        envelope = self.envelope
        status = process(self.session.peer, envelope.mail_from, envelope.rcpt_tos, envelope.content)
        if inspect.isawaitable(status):
            status = await status
        return stock.MISSING if status is None else status


class _Input:
    """What aiosmtpd's commands and mechanisms use of an `asyncio.StreamReader`, over an engine's input."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """One line with its LF."""
        assert separator == b"\n"
        while (line := self._engine.take_line()) is None:
            await self._engine.more()
        return line

    readline = readuntil

    async def read(self, count: int) -> bytes:
        """Up to *count* octets, one at least."""
        while not (data := self._engine.take_all()):
            await self._engine.more()
        self._engine.put_back(data[count:])
        return data[:count]

    async def readexactly(self, count: int) -> bytes:
        """*count* octets."""
        data = b""
        while len(data) < count:
            data += await self.read(count - len(data))
        return data
