"""
One listening server: its connections, their bounds, its end.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import attrs

from mailpipe import reply
from mailpipe.envelope import MailGateway
from mailpipe.receivers.entrance import Entrance
from mailpipe.receivers.lmtp import LmtpConnection
from mailpipe.receivers.options import Listen, ServerOptions
from mailpipe.receivers.rules import Networks
from mailpipe.receivers.smtp import SmtpConnection
from mailpipe.receivers.sweep import Sweep
from mailpipe.receivers.tls import make_context
from mailpipe.receivers.wire import log
from mailpipe.reply import Reply

__all__ = ["ServerStatistics", "SmtpServer"]

_LOOPBACK = Networks.parse(("127.0.0.0/8", "::1/128"))


@attrs.frozen(kw_only=True)
class ServerStatistics:
    """Counts of one server."""

    connections: int
    """Connections now."""

    accepted: int
    """Connections so far, refused ones not counted."""

    refused: int
    """Connections told 421 for a bound, so far."""


class SmtpServer:
    """
    Listens, makes a connection of each client, and ends them.

    `options` and `gateway` may be replaced while it runs (a reload): options hold for connections
    made from then on, a gateway for mails from the next MAIL on. `ServerOptions.listen` alone is
    read once, by `start`. Giving options, the same ones too, reads the certificates anew.

    Args:
        options: See `ServerOptions`.

        gateway: What takes the mails.

    Raises:
        ValueError: If a certificate cannot be used; what was before stays.
    """

    def __init__(self, options: ServerOptions, gateway: MailGateway) -> None:
        self.options = options
        self.gateway = gateway
        self.context: ssl.SSLContext | None
        self.closing = False
        """Shutting down: nobody is served any more."""
        self.loop: asyncio.AbstractEventLoop
        self.sweep: Sweep
        self._server: asyncio.Server | None = None
        self._addresses: tuple[Listen, ...] = ()
        self._connections: dict[Entrance, str] = {}  # and what they are counted under
        self._by_address: Counter[str] = Counter()
        self._accepted = self._refused = 0
        self._answering: list[Entrance] = []  # whose replies leave at the end of this turn
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def options(self) -> ServerOptions:
        """Settings of connections to come."""
        return self._options

    @options.setter
    def options(self, options: ServerOptions) -> None:
        # First what may raise: bad options change nothing.
        context = None if options.tls is None else make_context(options.tls)
        self._options, self.context = options, context
        self._connection_class = LmtpConnection if options.protocol == "lmtp" else SmtpConnection
        self.greeting = f"220 {options.hostname} {self._connection_class.service}\r\n".encode()

    async def start(self, sock: socket.socket | None = None) -> None:
        """
        Accept from now on.

        Args:
            sock: A bound socket to use instead of `ServerOptions.listen`; it is ours then.

        Raises:
            OSError: If the address cannot be bound.

            RuntimeError: If it was started before.
        """
        if self._server is not None:
            msg = "a server starts once"
            raise RuntimeError(msg)
        self.loop = asyncio.get_running_loop()
        self.sweep = Sweep(self.loop, self.options.tick)
        address = self.options.address
        if sock is not None and sock.family == socket.AF_UNIX:
            self._server = await self.loop.create_unix_server(self._connect, sock=sock, backlog=1024)
        elif sock is not None:
            self._server = await self.loop.create_server(self._connect, sock=sock, backlog=1024)
        elif address.path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address.path)
            self._server = await self.loop.create_unix_server(self._connect, address.path, backlog=1024)
        else:
            self._server = await self.loop.create_server(
                self._connect, address.host, address.port, backlog=1024
            )

        names = [bound.getsockname() for bound in self._server.sockets]
        self._addresses = tuple(
            [Listen("", 0, name) if isinstance(name, str) else Listen(name[0], name[1]) for name in names]
        )

    def _connect(self) -> SmtpConnection:
        return self._connection_class(self)

    @cached_property
    def threads(self) -> ThreadPoolExecutor:
        """Where passwords are checked; made when the first is."""
        return ThreadPoolExecutor(2, "mailpipe-auth")

    @property
    def addresses(self) -> tuple[Listen, ...]:
        """
        Where it listens, with the port that the system chose.

        Raises:
            RuntimeError: Before `start`.
        """
        if self._server is None:
            msg = "a server has no address before start"
            raise RuntimeError(msg)
        return self._addresses

    @property
    def statistics(self) -> ServerStatistics:
        """Counts, now."""
        return ServerStatistics(
            connections=len(self._connections), accepted=self._accepted, refused=self._refused
        )

    def stop_accepting(self) -> None:
        """Close the listening sockets; clients that are there are served on."""
        if self._server is not None:
            self._server.close()

    async def drain(self, timeout: float) -> int:  # noqa: ASYNC109  (the deadline is told to clients)
        """
        End every connection: 421 4.3.2 at once, or after the mail that is on its way.

        Args:
            timeout: Seconds until those that are left are cut.

        Returns:
            How many were cut.
        """
        self.stop_accepting()
        self.closing = True
        for connection in tuple(self._connections):
            connection.shut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        cut = tuple(self._connections)
        for connection in cut:
            log.warning("%s: cut at the deadline", connection.session.peer)
            connection.cut()
        if cut:
            # They end within the next turns of the loop, unless a storage swallows its cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._empty.wait()
        if "threads" in self.__dict__:
            self.threads.shutdown(wait=False, cancel_futures=True)
        return len(cut)

    # For connections

    def enter(self, connection: Entrance, address: str, *, exempt: bool) -> Reply | None:
        """Count *connection* in under *address*; or say why it may not stay, and count it as refused."""
        refusal = None
        if self.closing:
            refusal = reply.SHUTTING_DOWN
        elif len(self._connections) >= self.options.max_connections or (
            not exempt and self._crowded(address)
        ):
            refusal = reply.TOO_MANY_CONNECTIONS
        if refusal is not None:
            self._refused += 1
            return refusal
        self._accepted += 1
        self._connections[connection] = address
        self._by_address[address] += 1
        self._empty.clear()
        return None

    def flush_soon(self, connection: Entrance) -> None:
        """
        Send the replies of *connection* once all that was received in this turn of the loop has run.

        A reply wakes its client, and waking a process costs more than writing to it: clients that run
        already, for another's reply, need not be woken.
        """
        if not self._answering:
            self.loop.call_soon(self._flush)
        self._answering.append(connection)

    def _flush(self) -> None:
        connections, self._answering = self._answering, []
        for connection in connections:
            connection.flush()

    def rename(self, connection: Entrance, address: str) -> Reply | None:
        """A trusted proxy said that *connection* is of *address*: count it there, or say why not."""
        self._uncount(self._connections[connection])
        self._connections[connection] = address
        crowded = self._crowded(address)
        self._by_address[address] += 1
        self._refused += crowded
        return reply.TOO_MANY_CONNECTIONS if crowded else None

    def _crowded(self, peer: str) -> bool:
        if self._by_address[peer] < self.options.max_connections_per_address:
            return False
        return peer != "" and peer not in _LOOPBACK

    def leave(self, connection: Entrance) -> None:
        """*connection* is gone; one that never entered is no error."""
        if (address := self._connections.pop(connection, None)) is None:
            return
        self._uncount(address)
        if not self._connections:
            self._empty.set()

    def _uncount(self, address: str) -> None:
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
