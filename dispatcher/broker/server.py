"""A broker behind sockets: listens, serves each client, pushes to subscribers' own sockets."""

import contextlib
import logging
import os
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc
import attrs

from dispatcher.broker import wire
from dispatcher.broker.address import Address, listen
from dispatcher.broker.broker import Broker
from dispatcher.broker.connection import Connection, ServerOptions
from dispatcher.broker.errors import BrokerClosed, BrokerError
from dispatcher.broker.options import SubscribeOptions
from dispatcher.broker.subscription import Subscription
from dispatcher.errors import OptionError

__all__ = ["BrokerServer", "Push"]

_LOG = logging.getLogger("dispatcher")

PAUSE_LEAST, PAUSE_MOST = 0.1, 30.0
"""Seconds until a subscriber's socket that did not answer is tried again; doubled each time, with jitter."""

CONNECT_TIMEOUT = 10.0


@attrs.frozen
class Push:
    """
    Where one subscription is pushed to.

    Args:
        address: The socket at which the subscriber listens. It is dialled when there is something for it.

        options: Of what it gets at once.
    """

    address: Address
    options: SubscribeOptions = attrs.field(factory=SubscribeOptions)


class _Pusher:
    """Keeps one subscription's messages going to its subscriber's socket."""

    def __init__(
        self, broker: Broker, topic: str, subscription: str, push: Push, options: ServerOptions
    ) -> None:
        self.push = push
        self._broker = broker
        self._topic, self._name = topic, subscription
        self._options = options
        self._scope = anyio.CancelScope()
        self._connection: Connection | None = None
        self._stopping = False

    def stop(self) -> None:
        """End it; what the subscriber has and does not ack now goes back."""
        self._stopping = True
        if self._connection is None:
            self._scope.cancel()
        else:
            self._connection.stop()

    async def run(self, serve: Callable[[Connection, Subscription], Awaitable[None]]) -> None:
        """Push until stopped, or until the subscription is removed."""
        pause = PAUSE_LEAST
        with self._scope:
            while not self._stopping:
                try:
                    await self._broker.port(self._topic, self._name).wait_ready()
                except (LookupError, BrokerClosed):
                    return
                began = anyio.current_time()
                stream = await self._connect()
                if stream is not None:
                    await self._serve(stream, serve)
                    if anyio.current_time() - began > pause:
                        pause = PAUSE_LEAST  # it was there for a while
                if not self._stopping:
                    await anyio.sleep(pause * random.uniform(0.5, 1))
                    pause = min(2 * pause, PAUSE_MOST)

    async def _connect(self) -> anyio.abc.ByteStream | None:
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                return await self.push.address.connect()
        except (OSError, TimeoutError) as error:
            _LOG.warning("cannot push %s/%s to %s: %s", self._topic, self._name, self.push.address, error)
            return None

    async def _serve(
        self,
        stream: anyio.abc.ByteStream,
        serve: Callable[[Connection, Subscription], Awaitable[None]],
    ) -> None:
        options = self.push.options
        if options.batch_bytes_max is None:  # a push is a line, and lines are bounded
            options = attrs.evolve(options, batch_bytes_max=self._options.line_bytes_max // 2)
        try:
            puller = self._broker.subscribe(self._topic, self._name, options)
        except (LookupError, BrokerClosed):
            await anyio.aclose_forcefully(stream)
            return
        await puller.__aenter__()  # the connection leaves it, with all else that its client has
        self._connection = Connection(self._broker, stream, self._options)
        try:
            await serve(self._connection, puller)
        finally:
            self._connection = None


class BrokerServer:
    """
    Serves a broker over sockets, within ``async with``.

    Args:
        broker: Open, and for longer than this block.

        addresses: Where to listen. Only this machine is let in, unless *remote*.

        mode: Of unix sockets. Default: 0o600.

        remote: Allow TCP addresses that others can reach; there is no authentication. Default: False.

        options: What clients are allowed.

    Raises:
        OptionError: If an address is not local, and *remote* is False.
    """

    def __init__(
        self,
        broker: Broker,
        addresses: Sequence[Address],
        *,
        mode: int = 0o600,
        remote: bool = False,
        options: ServerOptions | None = None,
    ) -> None:
        for address in addresses:
            if not address.is_local and not remote:
                rule = "has to be a loopback address unless remote clients are allowed"
                raise OptionError(option="address", rule=rule, value=str(address))
        self._broker = broker
        self._addresses = tuple(addresses)
        self._mode = mode
        self._options = ServerOptions() if options is None else options
        self._listeners: list[anyio.abc.Listener[Any]] = []
        self._sockets: list[tuple[str, int]] = []
        self._connections: set[Connection] = set()
        self._pushes: dict[tuple[str, str], _Pusher] = {}
        self._stopping = False
        self._group: anyio.abc.TaskGroup
        self._listening: anyio.CancelScope

    async def __aenter__(self) -> Self:
        """
        Listen.

        Raises:
            BrokerOwned: If somebody living listens at one of the addresses.
        """
        found = []
        try:
            for address in self._addresses:
                listener, real = await listen(address, self._mode)
                self._listeners.append(listener)
                found.append(real)
                if real.path is not None:
                    self._sockets.append((real.path, os.stat(real.path).st_ino))
        except BaseException:
            await self._close_listeners()
            raise
        self._addresses = tuple(found)
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._listening = anyio.CancelScope()
        for listener in self._listeners:
            self._group.start_soon(self._listen, listener)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Accept nobody; requests under way end and are answered; what clients have goes back."""
        self._stopping = True
        self._listening.cancel()
        for connection in list(self._connections):
            connection.stop()
        for pusher in self._pushes.values():
            pusher.stop()
        if error is not None:
            self._group.cancel_scope.cancel()
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        try:
            if cancelled:
                await self._group.__aexit__(kind, error, trace)
            else:
                await self._group.__aexit__(None, None, None)
        finally:
            with anyio.CancelScope(shield=True):
                await self._close_listeners()

    async def _close_listeners(self) -> None:
        for listener in self._listeners:
            await listener.aclose()
        for path, inode in self._sockets:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)

    @property
    def addresses(self) -> Sequence[Address]:
        """Where it listens; ports that were 0 are told."""
        return self._addresses

    # Clients

    async def _listen(self, listener: anyio.abc.Listener[Any]) -> None:
        with self._listening:
            await listener.serve(self._serve, self._group)

    async def _serve(self, stream: anyio.abc.ByteStream) -> None:
        if len(self._connections) >= self._options.connections_max:
            msg = f"{self._options.connections_max} clients are connected, more are not allowed"
            with anyio.move_on_after(1), contextlib.suppress(anyio.BrokenResourceError):
                await stream.send(wire.encode(wire.refusal(None, BrokerError(msg))))
            await anyio.aclose_forcefully(stream)
            return
        connection = Connection(self._broker, stream, self._options)
        await self.run(connection)

    async def run(self, connection: Connection, push: Subscription | None = None) -> None:
        """For its pushers: serve *connection* until it ends."""
        self._connections.add(connection)
        try:
            if self._stopping:
                connection.stop()
            await connection.run(push)
        except Exception:  # a fault of ours: it costs this client its connection, and nobody else
            _LOG.exception("a connection failed")
        finally:
            self._connections.discard(connection)

    # Pushing

    def push(self, targets: Mapping[tuple[str, str], Push]) -> None:
        """
        Push these subscriptions, and no others; those that stay the same are not disturbed.

        Raises:
            UnknownTopic, UnknownSubscription: If there is none of this name; nothing is changed then.
        """
        for topic, subscription in targets:
            self._broker.port(topic, subscription)
        for name, pusher in list(self._pushes.items()):
            if targets.get(name) != pusher.push:
                pusher.stop()
                del self._pushes[name]
        for name, push in targets.items():
            if name not in self._pushes:
                pusher = self._pushes[name] = _Pusher(self._broker, *name, push, self._options)
                self._group.start_soon(pusher.run, self.run)
