import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from mailpipe import reply
from mailpipe.envelope import Envelope
from mailpipe.reply import Reply

Start = Callable[..., Awaitable[Any]]
Until = Callable[[Callable[[], Any]], Awaitable[None]]


class TestListening:
    async def test_address(self, start: Start) -> None:
        """The port that the system chose is told."""
        server = await start()
        assert server.addresses[0].host == "127.0.0.1"
        assert server.addresses[0].port > 0

    async def test_unix_socket(self, start: Start, connect: Any, gateway: Any, tmp_path: Path) -> None:
        """A path works as a port does; the client has no address; a stale file is no obstacle."""
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        client = await connect(await start(listen=f"unix:{path}"))
        await client.begin()
        await client.command(".")
        assert gateway.saved[0].session.peer == ""

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    async def test_a_bound_socket_is_used(
        self, gateway: Any, connect: Any, family: str, tmp_path: Path
    ) -> None:
        """Handed on by a parent or by socket activation."""
        from mailpipe.receivers.options import ServerOptions
        from mailpipe.receivers.server import SmtpServer

        if family == "tcp":
            sock = socket.create_server(("127.0.0.1", 0))
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(tmp_path / "s"))
            sock.listen()
        server = SmtpServer(ServerOptions(), gateway)
        await server.start(sock)
        client = await connect(server)
        assert (await client.reply())[:3] == "220"
        with pytest.raises(RuntimeError, match="starts once"):
            await server.start()
        await server.drain(0.0)

    async def test_has_no_address_before(self, gateway: Any) -> None:
        """Asking too early is an error."""
        from mailpipe.receivers.options import ServerOptions
        from mailpipe.receivers.server import SmtpServer

        with pytest.raises(RuntimeError, match="before start"):
            _ = SmtpServer(ServerOptions(), gateway).addresses


class TestConnections:
    async def test_in_all(self, start: Start, connect: Any, until: Until) -> None:
        """One too many is told 421 and closed; a freed place is free."""
        server = await start(max_connections=2)
        one, _two, three = [await connect(server) for _ in range(3)]
        assert await three.reply() == str(reply.TOO_MANY_CONNECTIONS)
        assert await three.closed()
        assert attrs.astuple(server.statistics) == (2, 2, 1)
        await one.reply()
        await one.command("QUIT")
        await until(lambda: server.statistics.connections == 1)
        assert (await (await connect(server)).reply())[:3] == "220"

    async def test_per_address(self, start: Start, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each address has its own count."""
        monkeypatch.setattr("mailpipe.receivers.server._LOOPBACK", ())
        server = await start(max_connections_per_address=1)
        for address in ("127.0.0.2", "127.0.0.3"):
            one, two = await connect(server, address), await connect(server, address)
            assert (await one.reply())[:3] == "220"
            assert await two.reply() == str(reply.TOO_MANY_CONNECTIONS)

    async def test_loopback_is_exempt_per_address(self, start: Start, connect: Any) -> None:
        """A local client is no stranger."""
        server = await start(max_connections_per_address=1)
        for _ in range(3):
            assert (await (await connect(server)).reply())[:3] == "220"


class TestReload:
    async def test_gateway_changes_at_the_next_mail(self, start: Start, connect: Any, gateway: Any) -> None:
        """A mail ends where it began; the next goes to the new gateway."""
        server = await start()
        client = await connect(server)
        await client.begin()
        new = type(gateway)()
        server.gateway = new
        await client.command(".")
        await client.talk("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", ".")
        assert (len(gateway.saved), len(new.saved)) == (1, 1)

    async def test_options_change_for_new_connections(self, start: Start, connect: Any) -> None:
        """Who is there keeps what it was told."""
        server = await start(max_size=1000)
        old = await connect(server)
        await old.reply()
        server.options = attrs.evolve(server.options, max_size=2000, hostname="new.example")
        new = await connect(server)
        assert await new.reply() == "220 new.example ESMTP"
        assert "SIZE 2000" in await new.command("EHLO me")
        assert "SIZE 1000" in await old.command("EHLO me")


class TestDrain:
    async def test_idle_ones_are_told_421(self, start: Start, connect: Any, gateway: Any) -> None:
        """Between commands, at once; a transaction that has no mail yet is lost."""
        server = await start()
        idle, begun = await connect(server), await connect(server)
        await idle.reply()
        await begun.begin(data=False)
        assert await server.drain(5.0) == 0
        assert await idle.reply() == str(reply.SHUTTING_DOWN)
        assert await begun.reply() == str(reply.SHUTTING_DOWN)
        assert await idle.closed()
        with pytest.raises(OSError):
            await connect(server)

    async def test_a_mail_on_its_way_is_finished(
        self, start: Start, connect: Any, gateway: Any, until: Until
    ) -> None:
        """In DATA or after the dot, it is told its 250 before the 421."""
        proceed = asyncio.Event()

        async def save(envelope: Envelope) -> Reply:
            await proceed.wait()
            return reply.OK

        gateway.on_save = save
        server = await start()
        saving, sending = await connect(server), await connect(server)
        await saving.begin()
        await saving.send(b"x\r\n.\r\n")
        await sending.begin()
        await sending.send(b"x\r\n")
        await until(lambda: gateway.sinks[0].ended)
        draining = asyncio.ensure_future(server.drain(10.0))
        await asyncio.sleep(0.05)
        assert not draining.done()
        proceed.set()
        assert (await saving.reply(), await saving.reply()) == (str(reply.OK), str(reply.SHUTTING_DOWN))
        await sending.send(b".\r\n")
        assert (await sending.reply(), await sending.reply()) == (str(reply.OK), str(reply.SHUTTING_DOWN))
        assert await draining == 0

    async def test_ends_at_the_deadline(self, start: Start, connect: Any, gateway: Any, until: Until) -> None:
        """What hangs is cut: its save is cancelled, its client closed."""

        async def save(envelope: Envelope) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

        gateway.on_save = save
        server = await start()
        saving, sending = await connect(server), await connect(server)
        await saving.begin()
        await saving.send(b"x\r\n.\r\n")
        await sending.begin()
        await until(lambda: gateway.sinks[0].ended)
        assert await server.drain(0.05) == 2
        assert gateway.cancelled == 1
        assert gateway.sinks[1].ended == "abort"
        assert await saving.closed()

    async def test_waits_for_mails_whose_client_is_gone(
        self, start: Start, connect: Any, gateway: Any, until: Until
    ) -> None:
        """A commit that goes on is waited for, so that stores close after it."""
        proceed = asyncio.Event()

        async def save(envelope: Envelope) -> Reply:
            await proceed.wait()
            return reply.OK

        gateway.on_save = save
        server = await start()
        client = await connect(server)
        await client.begin()
        await client.send(b"x\r\n.\r\n")
        await until(lambda: gateway.sinks[0].ended)
        client.writer.transport.abort()
        await asyncio.sleep(0.05)
        draining = asyncio.ensure_future(server.drain(10.0))
        await asyncio.sleep(0.05)
        assert not draining.done()
        proceed.set()
        assert await draining == 0
        assert len(gateway.saved) == 1
