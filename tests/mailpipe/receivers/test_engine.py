import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mailpipe.receivers.engine import Engine

Until = Callable[[Callable[[], Any]], Awaitable[None]]
Serve = Callable[..., Awaitable[Any]]


class Handler:
    """An aiosmtpd handler that remembers, and may be told to wait."""

    def __init__(self) -> None:
        self.contents: list[Any] = []
        self.began = asyncio.Event()
        self.proceed = asyncio.Event()
        self.proceed.set()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.began.set()
        await self.proceed.wait()
        self.contents.append(envelope.content)
        return "250 Stored"


@pytest.fixture
async def handler() -> Handler:
    return Handler()


@pytest.fixture
async def serve(connect: Any, handler: Handler) -> AsyncIterator[Serve]:
    """Serve an engine with these arguments of aiosmtpd's; a client that has been greeted."""
    servers = []

    async def serve(**settings: Any) -> Any:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Engine(handler, hostname="mx.example.org", loop=loop, **settings), "127.0.0.1", 0
        )
        servers.append(server)
        host, port = server.sockets[0].getsockname()

        class Address:
            path = ""

        Address.host, Address.port = host, port  # type: ignore[attr-defined]
        client = await connect(type("Server", (), {"addresses": [Address]}))
        assert (await client.reply())[:3] == "220"
        return client

    yield serve
    for server in servers:
        server.close()


async def begin(client: Any) -> None:
    """Up to 354."""
    replies = await client.talk("HELO me", "MAIL FROM: <a@b>", "RCPT TO: <c@d>", "DATA")
    assert [text[:3] for text in replies] == ["250", "250", "250", "354"]


class TestStandsInForAiosmtpd:
    async def test_handlers_see_what_they_know(self, serve: Serve, handler: Handler) -> None:
        """Content whole and unstuffed; replies in aiosmtpd's words; decoded if asked for."""
        client = await serve()
        await begin(client)
        assert await client.command("a\r\n..b\r\n.") == "250 Stored"
        assert await client.talk("NOOP", "FOO", "QUIT") == [
            "250 OK",
            '500 Error: command "FOO" not recognized',
            "221 Bye",
        ]
        assert await client.closed()
        client = await serve(decode_data=True)
        await begin(client)
        await client.command("text\r\n.")
        assert handler.contents == [b"a\r\n.b\r\n", "text\r\n"]

    async def test_pipelined_input_is_run_in_order(self, serve: Serve, handler: Handler) -> None:
        """Everything in one write, a body and a challenge of AUTH in between."""
        client = await serve(auth_require_tls=False, auth_callback=lambda *_: True)
        await client.send(
            b"EHLO me\r\nAUTH LOGIN\r\nYQ==\r\nYg==\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"
            b"one\r\n.\r\nNOOP\r\nQUIT\r\n"
        )
        lines = (await client.rest()).decode().splitlines()
        codes = [line[:3] for line in lines if line[3:4] != "-"]
        assert codes == ["250", "334", "334", "235", "250", "250", "354", "250", "250", "221"]
        assert handler.contents == [b"one\r\n"]

    @pytest.mark.timeout(120)
    def test_its_own_suite_passes(self, tmp_path: Path) -> None:
        """
        aiosmtpd's tests of its server class, by the copy that it installs.

        One is left out: it replaces a constant inside aiosmtpd's loop over lines, which we have not.
        """
        here = Path(__file__).parent
        modules = ["test_smtp", "test_starttls", "test_smtps", "test_lmtp", "test_smtpsmuggling"]
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "aiosmtpd_on_engine", "-p", "no:cacheprovider"),
                *("-c", os.devnull, "--rootdir", tmp_path, "--timeout", "20", "--tb", "short"),
                *("-k", "not test_long_line_leak", "--pyargs"),
                *[f"aiosmtpd.tests.{module}" for module in modules],
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
        assert int(re.search(r"(\d+) passed", ran.stdout)[1]) > 300  # type: ignore[index]


class TestRepaired:
    async def test_a_line_without_end_fills_no_memory(self, serve: Serve) -> None:
        """Refused at the line limit; what comes is thrown away, and far too much of it is the end."""
        client = await serve(data_size_limit=1_000_000)
        await begin(client)
        await client.send(b"x" * 3_000_000)
        assert await client.rest() == b"500 Line too long (see RFC5321 4.5.3.1.6)\r\n"

    async def test_a_client_that_leaves_does_not_cancel_its_mail(
        self, serve: Serve, handler: Handler, until: Until
    ) -> None:
        """After the dot the handler goes on."""
        handler.proceed.clear()
        client = await serve()
        await begin(client)
        await client.send(b"x\r\n.\r\n")
        await handler.began.wait()
        client.reset()
        await asyncio.sleep(0.02)
        handler.proceed.set()
        await until(lambda: handler.contents)

    async def test_a_body_that_makes_progress_is_not_cut(self, serve: Serve) -> None:
        """The timeout is of silence, not of the whole body; silence is cut."""
        client = await serve(timeout=0.5)
        await begin(client)
        for _ in range(8):
            await client.send(b"line\r\n")
            await asyncio.sleep(0.1)
        assert await client.command(".") == "250 Stored"
        assert await client.closed()

    async def test_limits_of_commands_are_each_connections_own(self, serve: Serve) -> None:
        """One client's EHLO does not lengthen another's lines."""
        one, two = await serve(), await serve()
        await one.command("EHLO me")
        await two.command("EHLO me")
        line = "MAIL FROM:<a@b> " + "x" * (512 + 26 - 16)
        assert (await two.command(line))[:3] != "500"
        assert await two.command(line + "x") == "500 Command line too long"
