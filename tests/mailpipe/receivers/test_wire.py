import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mailpipe.receivers.intake import Intake
from mailpipe.receivers.sweep import Sweep
from mailpipe.receivers.wire import Wire

Until = Callable[[Callable[[], Any]], Awaitable[None]]


class Transport(asyncio.Transport):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.reading = True
        self.ended = ""

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write_eof(self) -> None:
        self.ended = self.ended or "eof"

    def close(self) -> None:
        self.ended = "close"

    def abort(self) -> None:
        self.ended = "abort"


class Echo(Wire):
    """Answers each line with itself; ``wait`` waits, ``body`` reads one, ``fail`` fails."""

    def __init__(self, sweep: Sweep) -> None:
        self._init_wire(asyncio.get_running_loop(), sweep)
        self.lines: list[bytes] = []
        self.proceed = asyncio.Event()
        self.times_drained = self.times_gone = 0
        self.again = False

    def greet(self) -> None:
        self.reply(b"hello\r\n")

    def command(self, line: bytes) -> bool | None:
        if line == b"later" and not self.again:
            self.again = True
            self.suspend(self._wait(b"first this\r\n"))
            return True
        self.lines.append(line)
        if line == b"wait":
            self.suspend(self._wait(b"waited\r\n"))
        elif line == b"fail":
            self.suspend(self._fail())
        elif line == b"bye":
            self.reply(b"bye\r\n")
            self.hang_up()
        else:
            self.reply(line + b"\r\n")
        return None

    async def _wait(self, answer: bytes) -> None:
        await self.proceed.wait()
        self.reply(answer)

    async def _fail(self) -> None:
        msg = "secret"
        raise RuntimeError(msg)

    def refused_line(self, rule: str) -> None:
        self.reply(rule.encode() + b"\r\n")

    def body_end(self, intake: Intake) -> Awaitable[None] | None:
        raise NotImplementedError

    def drained(self) -> None:
        self.times_drained += 1

    def vanished(self) -> None:
        pass

    def gone(self) -> None:
        self.times_gone += 1

    def silent(self, now: float) -> None:
        pass


@pytest.fixture
async def wire() -> Echo:
    return Echo(Sweep(asyncio.get_running_loop(), 1.0))


@pytest.fixture
async def transport(wire: Echo) -> Any:
    transport = Transport()
    wire.connection_made(transport)
    assert transport.writes.pop() == b"hello\r\n"
    yield transport
    wire.connection_lost(None)


class TestWrites:
    async def test_replies_to_one_read_leave_in_one_write(self, wire: Echo, transport: Transport) -> None:
        """Pipelined input costs one write."""
        wire.data_received(b"one\r\ntwo\r\nthree\r\nfo")
        assert transport.writes == [b"one\r\ntwo\r\nthree\r\n"]
        wire.data_received(b"ur\r\n")
        assert transport.writes[1:] == [b"four\r\n"]

    async def test_many_replies_do_not_pile_up(self, wire: Echo, transport: Transport) -> None:
        """They leave in groups; whoever does not read them is not served on, and loses nothing."""
        wire.data_received(b"x\r\n" * 100)
        assert len(transport.writes) == 2
        wire.pause_writing()
        wire.data_received(b"y\r\n" * 3)
        assert wire.lines.count(b"y") == 0
        assert not transport.reading
        wire.resume_writing()
        assert wire.lines.count(b"y") == 3
        assert transport.reading


class TestSuspension:
    async def test_input_rests(self, wire: Echo, transport: Transport, until: Until) -> None:
        """One chunk is held, reading stops; then everything is run in order."""
        wire.data_received(b"wait\r\none\r\n")
        assert not transport.reading
        await asyncio.sleep(0.01)
        assert (wire.lines, transport.writes) == ([b"wait"], [])
        wire.proceed.set()
        await until(lambda: wire.lines == [b"wait", b"one"])
        assert b"".join(transport.writes) == b"waited\r\none\r\n"
        assert transport.reading

    async def test_a_line_may_ask_to_come_again(self, wire: Echo, transport: Transport, until: Until) -> None:
        """After what it waits for; the lines behind it stay behind it."""
        wire.data_received(b"a\r\nlater\r\nb\r\n")
        wire.proceed.set()
        await until(lambda: wire.lines == [b"a", b"later", b"b"])
        assert b"".join(transport.writes) == b"a\r\nfirst this\r\nlater\r\nb\r\n"

    async def test_what_fails_is_our_trouble(
        self, wire: Echo, transport: Transport, until: Until, caplog: pytest.LogCaptureFixture
    ) -> None:
        """451 without its words, and the connection goes on."""
        wire.data_received(b"fail\r\none\r\n")
        await until(lambda: wire.lines == [b"fail", b"one"])
        assert b"".join(transport.writes).startswith(b"451 4.3.0 ")
        assert b"secret" not in b"".join(transport.writes)
        assert "secret" in caplog.text

    async def test_turns_are_given(self, wire: Echo, transport: Transport, until: Until) -> None:
        """After 500 commands others may run."""
        wire.data_received(b"x\r\n" * 1200)
        assert len(wire.lines) == 500
        await until(lambda: len(wire.lines) == 1200)


class TestEnds:
    async def test_hanging_up_lingers(self, wire: Echo, transport: Transport) -> None:
        """Our side is closed first, what comes is dropped; the client's end or five seconds close."""
        wire.data_received(b"bye\r\none\r\n")
        assert (transport.writes, transport.ended, wire.lines) == ([b"bye\r\n"], "eof", [b"bye"])
        wire.data_received(b"two\r\n")
        assert wire.lines == [b"bye"]
        wire.swept(wire.heard_at + 4.9)
        assert transport.ended == "eof"
        wire.swept(wire.heard_at + 5.1)
        assert transport.ended == "abort"

    async def test_a_half_closed_client_is_answered(
        self, wire: Echo, transport: Transport, until: Until
    ) -> None:
        """What it said before its end is run; then we close."""
        wire.data_received(b"wait\r\none\r\nunfinished")
        assert wire.eof_received() is True
        assert transport.ended == ""
        wire.proceed.set()
        await until(lambda: transport.ended == "close")
        assert b"".join(transport.writes) == b"waited\r\none\r\n"

    async def test_gone_is_told_once(self, wire: Echo, transport: Transport, until: Until) -> None:
        """When the connection is lost and nothing is awaited any more, whichever is last."""
        wire.data_received(b"wait\r\n")
        wire.connection_lost(None)
        wire.connection_lost(None)
        assert wire.times_gone == 0
        wire.proceed.set()
        await until(lambda: wire.times_gone)
        await asyncio.sleep(0.01)
        assert wire.times_gone == 1

    async def test_cut_cancels(self, wire: Echo, transport: Transport, until: Until) -> None:
        """What is awaited is cancelled, what is unsent dropped."""
        wire.data_received(b"wait\r\n")
        await asyncio.sleep(0)
        wire.cut()
        assert transport.ended == "abort"
        await until(lambda: not wire.suspended)
        assert transport.writes == []
