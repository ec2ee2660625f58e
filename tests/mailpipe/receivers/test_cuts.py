"""Whatever a client says, and however TCP cuts it: the same answers, the same mails."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailpipe.envelope import Envelope
from mailpipe.receivers.options import ServerOptions
from mailpipe.receivers.server import SmtpServer
from mailpipe.reply import Reply

WORDS = [
    *(b"EHLO me\r\n", b"HELO me\r\n", b"LHLO me\r\n", b"MAIL FROM:<a@b>\r\n", b"MAIL FROM:<> SIZE=9\r\n", b"RCPT TO:<c@d>\r\n"),
    *(b"RCPT TO:<slow@d>\r\n", b"RCPT TO:<no@d>\r\n", b"RCPT TO:<\xff>\r\n", b"RCPT TO:<evil@", b"DATA\r\n", b"RSET\r\n"),
    *(b"QUIT\r\n", b"NOOP\r\n", b"VRFY x\r\n", b"STARTTLS\r\n", b"AUTH PLAIN\r\n", b"XCLIENT ADDR=1.2.3.4\r\n", b"\0\xff\r\n"),
    *(b".\r\n", b"\r\n.\r\n", b"..text\r\n", b"text\r\n", b"\r", b"\n", b"\r\n", b"x" * 700, b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n"),
]  # fmt: skip

BEGIN = b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written; its client sends no more while reading is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.over = False

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write_eof(self) -> None:
        self.over = True

    def close(self) -> None:
        self.over = True

    def abort(self) -> None:
        self.over = True


async def converse(gateway: Any, pieces: list[bytes], protocol: str) -> bytes:
    """What a server answers to the pieces."""

    async def slow() -> None:
        await asyncio.sleep(0)

    def verdict(envelope: Envelope) -> Reply:
        return Reply(250, "2.0.0", f"{len(envelope.body)} octets")

    async def save(envelope: Envelope) -> Reply:
        await asyncio.sleep(0)
        return verdict(envelope)

    answers = {"slow@d": slow, "no@d": lambda: Reply(550, "5.1.1", "no")}
    gateway.on_validate = lambda address: answers[address]() if address in answers else None
    gateway.on_save = verdict if gateway.at_once else save
    server = SmtpServer(
        ServerOptions(listen="127.0.0.1:0", max_size=1000, max_command_line=600, protocol=protocol), gateway
    )
    await server.start()
    connection, transport = server._connect(), Transport()  # noqa: SLF001
    connection.connection_made(transport)
    for piece in pieces:
        while not transport.reading and not transport.over:  # noqa: ASYNC110  (the loop's turns are it)
            await asyncio.sleep(0)
        if transport.over:
            break
        connection.data_received(piece)
    while connection.suspended or not (transport.reading or transport.over):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0)  # replies leave at the end of a turn
    connection.connection_lost(None)
    await server.drain(0.0)
    assert server.statistics.connections == 0
    assert all(sink.ended for sink in gateway.sinks)
    return transport.written


class TestCuts:
    @pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
    @settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        words=st.lists(st.sampled_from(WORDS), max_size=40),
        begin=st.sampled_from([b"", BEGIN, BEGIN + b"DATA\r\n"]),
        cuts=st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=8),
    )
    def test_make_no_difference(
        self, protocol: str, gateway: Any, words: list[bytes], begin: bytes, cuts: list[int]
    ) -> None:
        """
        Any input, at once and in pieces: the same octets back, the same mails saved, nothing left open;
        whether the gateway has its verdict at once or has to be waited for.
        """
        if protocol == "lmtp":
            begin = begin.replace(b"EHLO", b"LHLO")
        said = begin + b"".join(words)
        pieces, at = [], 0
        while at < len(said):
            pieces.append(said[at : at + cuts[len(pieces) % len(cuts)]])
            at += len(pieces[-1])
        whole = type(gateway)()
        answered = asyncio.run(converse(whole, [said] if said else [], protocol))
        for one, sent in (
            (type(gateway)(), pieces),
            (type(gateway)(at_once=True), pieces),
            (type(gateway)(at_once=True), [said] if said else []),
        ):
            assert asyncio.run(converse(one, sent, protocol)) == answered
            assert one.bodies == whole.bodies
            assert [mail.rcpt_to for mail in one.saved] == [mail.rcpt_to for mail in whole.saved]
