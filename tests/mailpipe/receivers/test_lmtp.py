import asyncio
import smtplib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mailpipe import reply
from mailpipe.envelope import Envelope
from mailpipe.reply import Reply

Start = Callable[..., Awaitable[Any]]


class TestLmtp:
    async def test_conversation(self, start: Start, connect: Any, gateway: Any) -> None:
        """LHLO instead of EHLO; the session says so."""
        client = await connect(await start(protocol="lmtp"))
        assert await client.reply() == "220 localhost LMTP"
        assert (await client.command("EHLO me"))[:3] == "500"
        assert (await client.command("HELO me"))[:3] == "500"
        assert (await client.command("LHLO me")).startswith("250-localhost\n250-PIPELINING\n")
        await client.talk("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", ".")
        assert gateway.saved[0].session.lmtp

    async def test_one_reply_per_accepted_recipient(self, start: Start, connect: Any, gateway: Any) -> None:
        """In the order of RCPT; refused ones have had theirs."""
        verdicts = (reply.OK, reply.TROUBLE, Reply(550, "5.2.2", "full"))

        async def save(envelope: Envelope) -> Any:
            return verdicts

        gateway.on_save = save
        gateway.on_validate = lambda to: Reply(550, "5.1.1", "no") if to[0] == "n" else None
        client = await connect(await start(protocol="lmtp"))
        await client.send(b"LHLO me\r\nMAIL FROM:<a@b>\r\n")
        await client.send(
            b"RCPT TO:<x@d>\r\nRCPT TO:<n@d>\r\nRCPT TO:<y@d>\r\nRCPT TO:<z@d>\r\nDATA\r\n.\r\nNOOP\r\n"
        )
        replies = [await client.reply() for _ in range(12)]
        assert [text[:3] for text in replies[2:8]] == ["250", "250", "550", "250", "250", "354"]
        assert replies[8:11] == [str(verdict) for verdict in verdicts]
        assert replies[11] == str(reply.OK)

    async def test_one_verdict_is_told_to_each(self, start: Start, connect: Any, gateway: Any) -> None:
        """Whatever loses the mail loses it for all: the client counts replies."""
        client = await connect(await start(protocol="lmtp", max_size=10))
        await client.reply()
        await client.talk("LHLO me", "MAIL FROM:<a@b>", "RCPT TO:<x@d>", "RCPT TO:<y@d>", "DATA")
        await client.send(b"123456789\r\n.\r\nNOOP\r\n")
        assert [(await client.reply())[:9] for _ in range(3)] == ["552 5.3.4", "552 5.3.4", "250 2.0.0"]
        await client.talk("MAIL FROM:<a@b>", "RCPT TO:<x@d>", "RCPT TO:<y@d>", "DATA")
        await client.send(b"1\r\n.\r\n")
        assert [(await client.reply())[:16] for _ in range(2)] == ["250 2.0.0 OK: qu"] * 2

    async def test_data_without_recipient(self, start: Start, connect: Any) -> None:
        """RFC 2033 section 4.2: 503 if no RCPT was accepted."""
        client = await connect(await start(protocol="lmtp"))
        await client.reply()
        assert (await client.talk("LHLO me", "MAIL FROM:<a@b>", "RCPT TO:<bad>", "DATA"))[-1][:3] == "503"

    async def test_a_real_client_over_a_unix_socket(self, start: Start, gateway: Any, tmp_path: Path) -> None:
        """smtplib's LMTP is content."""
        await start(protocol="lmtp", listen=f"unix:{tmp_path}/lmtp")

        def send() -> None:
            with smtplib.LMTP(f"{tmp_path}/lmtp", local_hostname="me.example") as lmtp:
                lmtp.sendmail("a@b", ["c@d"], b"hello\r\n")

        await asyncio.to_thread(send)
        assert gateway.bodies == [b"hello\r\n"]
