"""A gateway that records, a server of it on a free port, and a client that shows what it reads."""

import asyncio
import contextlib
import itertools
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme

from mailpipe.envelope import Envelope, MemoryBody, Recipient, Session, Verdict, make_queue_id
from mailpipe.receivers.options import ServerOptions
from mailpipe.receivers.server import SmtpServer
from mailpipe.receivers.sweep import Sweep
from mailpipe.reply import Reply, queued_as

PATIENCE = 10.0

Answer = Reply | Awaitable[Reply | None] | None


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Receivers run on asyncio, its own loop and uvloop's."""
    backend: tuple[str, dict[str, bool]] = request.param
    if backend[1]["use_uvloop"]:
        pytest.importorskip("uvloop")
    return backend


@attrs.define(eq=False)
class RecordingSink:
    """Keeps what it is told; raises or stalls when told to."""

    gateway: "RecordingGateway"
    envelope: Envelope
    chunks: list[bytes] = attrs.field(factory=list)
    ended: str = ""

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        assert not self.ended, f"write after {self.ended}"
        assert chunk, "an empty chunk"
        self.chunks.append(chunk)
        return self.gateway.on_write(self)

    def close(self) -> Awaitable[None] | None:
        assert not self.ended, f"close after {self.ended}"
        self.ended = "close"
        self.envelope.body = MemoryBody(b"".join(self.chunks))
        return None if self.gateway.at_once else asyncio.sleep(0)

    def abort(self) -> None:
        assert not self.ended, f"abort after {self.ended}"
        self.ended = "abort"


@attrs.define(eq=False)
class RecordingGateway:
    """Takes everything unless told otherwise; remembers all of it."""

    admitted: list[tuple[Session, int]] = attrs.field(factory=list)
    validated: list[str] = attrs.field(factory=list)
    sinks: list[RecordingSink] = attrs.field(factory=list)
    saved: list[Envelope] = attrs.field(factory=list)
    cancelled: int = 0

    on_admit: "Callable[[int], Answer]" = lambda size: None
    on_validate: "Callable[[str], Answer]" = lambda address: None
    on_open: Callable[[], None] = lambda: None
    on_write: Callable[[RecordingSink], Awaitable[None] | None] = lambda sink: None
    on_save: Callable[[Envelope], Verdict | Awaitable[Verdict]] | None = None
    at_once: bool = False
    """Sinks close, and verdicts that need no waiting are given, without any."""

    _count: Any = attrs.field(factory=itertools.count)

    def new_queue_id(self) -> str:
        return make_queue_id(1.0, next(self._count).to_bytes(10))

    def admit(self, session: Session, size: int) -> "Answer":
        self.admitted.append((session, size))
        return self.on_admit(size)

    def validate(self, recipient: Recipient) -> "Answer":
        self.validated.append(recipient.address)
        return self.on_validate(recipient.address)

    def open(self, envelope: Envelope) -> RecordingSink:
        self.on_open()
        self.sinks.append(RecordingSink(self, envelope))
        return self.sinks[-1]

    def save(self, envelope: Envelope) -> Verdict | Awaitable[Verdict]:
        if not self.at_once:
            return self._save(envelope)
        verdict = self.on_save(envelope) if self.on_save else queued_as(envelope.queue_id)
        assert isinstance(verdict, Reply | tuple)
        self.saved.append(envelope)
        return verdict

    async def _save(self, envelope: Envelope) -> Verdict:
        try:
            verdict = self.on_save(envelope) if self.on_save else queued_as(envelope.queue_id)
            if not isinstance(verdict, Reply | tuple):
                verdict = await verdict
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.saved.append(envelope)
        return verdict

    @property
    def bodies(self) -> list[bytes]:
        return [envelope.body.read() for envelope in self.saved]


class Client:
    """A raw connection; every read has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE):
            await self.writer.drain()

    async def reply(self) -> str:
        """One reply, its lines joined by newlines; "" at the end of the connection."""
        lines = []
        async with asyncio.timeout(PATIENCE):
            while line := (await self.reader.readline()).decode():
                assert line.endswith("\r\n"), f"a torn reply: {line!r}"
                lines.append(line[:-2])
                if line[3:4] != "-":
                    break
        return "\n".join(lines)

    async def command(self, line: str | bytes) -> str:
        await self.send((line if isinstance(line, bytes) else line.encode()) + b"\r\n")
        return await self.reply()

    async def talk(self, *lines: str | bytes) -> list[str]:
        """Send lines one by one; the replies."""
        return [await self.command(line) for line in lines]

    async def begin(self, *, data: bool = True, to: str = "b@example.org") -> None:
        """From the greeting up to 354."""
        assert (await self.reply())[:3] == "220"
        replies = await self.talk("EHLO me.example", "MAIL FROM:<a@example.com>", f"RCPT TO:<{to}>")
        assert [text[:3] for text in replies] == ["250"] * 3, replies
        if data:
            assert (await self.command("DATA"))[:3] == "354"

    async def rest(self) -> bytes:
        """Everything up to the end of the connection; a reset counts as one."""
        found = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE):
                while data := await self.reader.read(65536):
                    found += data
        return found

    async def closed(self) -> bool:
        return await self.rest() == b""

    def reset(self) -> None:
        """Vanish, and tell the server's kernel so."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def start_tls(self, context: ssl.SSLContext, name: str = "mx.example.org") -> None:
        async with asyncio.timeout(PATIENCE):
            await self.writer.start_tls(context, server_hostname=name)

    async def close(self) -> None:
        self.writer.close()
        # The server may be gone, or TLS half up.
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self.writer.wait_closed()


@pytest.fixture
def gateway() -> RecordingGateway:
    """A gateway that takes all and records."""
    return RecordingGateway()


class Clock:
    """Says what it is told to, so that no test waits for minutes; a server's sweep reads it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sweeps: list[Sweep] = []

    def __call__(self) -> float:
        return self.now

    def rules(self, server: SmtpServer) -> None:
        """From now on, for connections to come."""
        server.sweep = Sweep(asyncio.get_running_loop(), 0.01, self)
        self._sweeps.append(server.sweep)

    async def passes(self, seconds: float) -> None:
        """Time passes, and servers notice."""
        self.now += seconds
        await asyncio.sleep(0.03)
        # A machine that is busy may not have come to a tick yet; what nobody joined has none.
        async with asyncio.timeout(PATIENCE):
            while any(sweep.now < self.now and sweep._timer is not None for sweep in self._sweeps):  # noqa: ASYNC110, SLF001
                await asyncio.sleep(0.01)


@pytest.fixture
def clock() -> Clock:
    """A clock for a server's sweep."""
    return Clock()


@pytest.fixture
async def start(gateway: RecordingGateway) -> AsyncIterator[Callable[..., Awaitable[SmtpServer]]]:
    """Start a server with these options; drained at the end of the test."""
    servers: list[SmtpServer] = []

    async def start_server(cls: type[SmtpServer] = SmtpServer, /, **options: object) -> SmtpServer:
        server = cls(ServerOptions(**{"listen": "127.0.0.1:0", **options}), gateway)
        await server.start()
        servers.append(server)
        return server

    yield start_server
    for server in servers:
        await server.drain(0.0)
        assert server.statistics.connections == 0


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[Client]]]:
    """Connect to a server; closed at the end of the test."""
    clients: list[Client] = []

    async def connect_to(server: SmtpServer, local: str | None = None) -> Client:
        address = server.addresses[0]
        if address.path:
            streams = await asyncio.open_unix_connection(address.path)
        else:
            streams = await asyncio.open_connection(
                address.host, address.port, local_addr=(local, 0) if local else None
            )
        clients.append(Client(*streams))
        return clients[-1]

    yield connect_to
    for client in clients:
        await client.close()


@pytest.fixture
async def client(
    start: Callable[..., Awaitable[SmtpServer]], connect: Callable[..., Awaitable[Client]]
) -> Client:
    """A client of a server with default options, not yet greeted."""
    return await connect(await start())


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Awaitable[None]]:
    """Wait until a condition holds; fail when it does not come to hold."""

    async def wait(condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110  (conditions of any kind)
                await asyncio.sleep(0.005)

    return wait


@attrs.frozen
class Certificates:
    """Files of a certificate of ours and of its authority, and contexts of clients."""

    authority: trustme.CA
    folder: Path

    def issue(self, name: str = "mx.example.org") -> dict[str, Path]:
        """A new pair for *name*, in the same files as the last one."""
        pair = self.authority.issue_cert(name)
        pair.private_key_pem.write_to_path(self.folder / "key.pem")
        pair.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
        self.authority.cert_pem.write_to_path(self.folder / "ca.pem")
        return {"certificate": self.folder / "cert.pem", "key": self.folder / "key.pem"}

    def client(self, *, shows: str = "") -> ssl.SSLContext:
        """A client that trusts the authority, and shows a certificate of it if wanted."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if shows:
            self.authority.issue_cert(shows).configure_cert(context)
        return context


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Signs what the tests use."""
    return trustme.CA()


@pytest.fixture
def certificates(authority: trustme.CA, tmp_path: Path) -> Certificates:
    """A folder for a server's certificate."""
    return Certificates(authority, tmp_path)
