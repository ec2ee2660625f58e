"""The other end: a broker in another process, as if it were here."""

import contextlib
import itertools
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc

from dispatcher.broker import wire
from dispatcher.broker.address import Address, shut
from dispatcher.broker.errors import BrokerClosed, BrokerGone, Refused
from dispatcher.broker.message import Delivery, Message, Published

__all__ = ["BrokerClient", "ClientSubscription"]

LINE_BYTES_MAX = 64 * 1024 * 1024
WAIT = 30.0
"""Seconds that one request to receive waits at the broker; then it is asked again."""

WRITE_TIMEOUT = 30.0


class _Answer:
    __slots__ = ("got", "ready")

    def __init__(self) -> None:
        self.ready = anyio.Event()
        self.got: dict[str, Any] | None = None


class BrokerClient:
    """
    Talks to a broker's socket, within ``async with``.

    Any number of tasks may use one at once. A connection that breaks is made anew by the next request;
    the requests that waited for an answer raise `BrokerGone`, for nobody knows whether they were done.

    Args:
        address: ``unix:/path`` or ``tcp:host:port``.

        line_bytes_max: Bytes that a line of the broker may have. Default: 64 MiB.

    Raises:
        OptionError: If *address* is none.
    """

    def __init__(self, address: str | Address, *, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._address = address if isinstance(address, Address) else Address.parse(address)
        self._line_bytes_max = line_bytes_max
        self._stream: anyio.abc.ByteStream | None = None
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Answer] = {}
        self._open = False
        self._group: anyio.abc.TaskGroup
        self._connecting: anyio.Lock
        self._writing: anyio.Lock

    async def __aenter__(self) -> Self:
        """
        Connect.

        Raises:
            BrokerGone: If nobody answers there.
        """
        self._connecting, self._writing = anyio.Lock(), anyio.Lock()
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._open = True
        try:
            await self._connect()
        except BaseException:
            self._open = False
            await self._group.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect; what was received and not acked goes back."""
        self._open = False
        if self._stream is not None:
            shut(self._stream, writing=True)  # the reader ends by itself
        if isinstance(error, anyio.get_cancelled_exc_class()):
            await self._group.__aexit__(kind, error, trace)
        else:
            await self._group.__aexit__(None, None, None)

    async def _connect(self) -> anyio.abc.ByteStream:
        async with self._connecting:
            if self._stream is None:
                try:
                    stream = await self._address.connect()
                except OSError as error:
                    raise BrokerGone(str(self._address), error.strerror or str(error)) from error
                self._stream = stream
                self._group.start_soon(self._read, stream)
            return self._stream

    async def _read(self, stream: anyio.abc.ByteStream) -> None:
        lines = wire.Lines(self._line_bytes_max)
        try:
            while True:
                for line in lines.feed(await stream.receive()):
                    got = None if isinstance(line, wire.Oversized) else _parse(line)
                    if got is None:
                        return  # it is no broker, or not one of ours
                    self._take(got)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            if self._stream is stream:
                self._stream = None
            waiting, self._waiting = self._waiting, {}
            for one in waiting.values():
                one.ready.set()
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)

    def _take(self, got: dict[str, Any]) -> None:
        answer = self._waiting.pop(got["id"], None) if isinstance(got.get("id"), int) else None
        if answer is not None:
            answer.got = got
            answer.ready.set()
        elif got.get("deliveries"):  # for one that was cancelled meanwhile
            tags = [one["tag"] for one in got["deliveries"]]
            self._group.start_soon(self._tell, {"op": "nack", "tags": tags, "count": False})

    async def _tell(self, what: dict[str, Any]) -> None:
        """Send it, if that can be; nobody waits for the answer."""
        stream = self._stream
        if stream is not None:
            # If not, the broker takes everything back by itself.
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await self._send(stream, wire.encode(what))

    async def _send(self, stream: anyio.abc.ByteStream, line: bytes) -> None:
        async with self._writing:
            # Half a line would spoil the next one, so a line that was begun is ended, or the connection is.
            with anyio.move_on_after(WRITE_TIMEOUT, shield=True) as scope:
                await stream.send(line)
            if scope.cancelled_caught:
                await anyio.aclose_forcefully(stream)
                raise anyio.BrokenResourceError

    async def request(self, op: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - see wire.REQUESTS
        """
        Ask the broker anything; `dispatcher.broker.wire.REQUESTS` names what there is.

        Returns:
            The answer's fields.

        Raises:
            Refused: If the broker did not do it; ``kind`` names its error.

            BrokerGone: If the connection broke before the answer, or nobody answers there any more.
        """
        if not self._open:
            raise BrokerClosed
        stream = await self._connect()
        name = next(self._ids)
        answer = self._waiting[name] = _Answer()
        try:
            await self._send(stream, wire.encode({"op": op, "id": name, **fields}))
            await answer.ready.wait()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise BrokerGone(str(self._address)) from error
        except BaseException:
            if op == "receive" and self._waiting.pop(name, None) is not None:
                self._group.start_soon(self._tell, {"op": "cancel", "request": name})
            raise
        finally:
            self._waiting.pop(name, None)
        if answer.got is None:
            raise BrokerGone(str(self._address))
        got = answer.got
        if not got.pop("ok", False):
            raise Refused(got.get("error", ""), got.get("message", ""))
        del got["id"]
        return got

    # Messages

    async def publish(self, topic: str, messages: Sequence[Message]) -> Published:
        """As `Broker.publish`, with `Refused` for its errors."""
        messages = [messages] if isinstance(messages, Message) else messages
        return Published(
            **await self.request("publish", topic=topic, messages=[wire.message_to(m) for m in messages])
        )

    def subscribe(self, topic: str, subscription: str, *, batch_items_max: int = 50) -> "ClientSubscription":
        """As `Broker.subscribe`: ``async with client.subscribe(...) as subscription``."""
        return ClientSubscription(self, topic, subscription, batch_items_max)

    async def ack(self, tags: Sequence[str]) -> Sequence[str]:
        """As `Broker.ack`."""
        return list((await self.request("ack", tags=list(tags)))["stale"])

    async def nack(
        self,
        tags: Sequence[str],
        *,
        delay: float = 0.0,
        front: bool = True,
        count: bool = True,
        error: str | None = None,
    ) -> Sequence[str]:
        """As `Broker.nack`."""
        done = await self.request("nack", tags=list(tags), delay=delay, front=front, count=count, error=error)
        return list(done["stale"])

    async def reject(self, tags: Sequence[str], *, error: str) -> Sequence[str]:
        """As `Broker.reject`."""
        return list((await self.request("reject", tags=list(tags), error=error))["stale"])

    async def extend(self, tags: Sequence[str]) -> Sequence[str]:
        """As `Broker.extend`."""
        return list((await self.request("extend", tags=list(tags)))["stale"])

    async def reset(self, subscription: str, topic: str | None = None) -> int:
        """As `Broker.reset`."""
        return int((await self.request("reset", subscription=subscription, topic=topic))["count"])

    async def add_subscription(self, topic: str, subscription: str) -> bool:
        """As `Broker.add_subscription`."""
        return bool((await self.request("subscribe", topic=topic, subscription=subscription))["added"])

    async def remove_subscription(self, topic: str, subscription: str) -> None:
        """As `Broker.remove_subscription`."""
        await self.request("unsubscribe", topic=topic, subscription=subscription)

    async def pause(self, topic: str, subscription: str) -> None:
        """As `Broker.pause`."""
        await self.request("pause", topic=topic, subscription=subscription)

    async def resume(self, topic: str, subscription: str) -> None:
        """As `Broker.resume`."""
        await self.request("resume", topic=topic, subscription=subscription)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        got = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return got if isinstance(got, dict) else None


class ClientSubscription:
    """Pulls a subscription over the socket; as `Subscription`."""

    def __init__(self, client: BrokerClient, topic: str, name: str, batch_items_max: int) -> None:
        self._client = client
        self._topic = topic
        self._name = name
        self._limit = batch_items_max
        self._held: set[str] = set()

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hand back what has no ack; if the connection broke, that has been done."""
        if self._held:
            with anyio.move_on_after(5, shield=True):
                with contextlib.suppress(OSError, BrokerClosed):
                    await self._client.nack(list(self._held))

    async def receive(self, limit: int | None = None) -> Sequence[Delivery]:
        """As `Subscription.receive`."""
        while True:
            got = await self._client.request(
                "receive",
                topic=self._topic,
                subscription=self._name,
                limit=self._limit if limit is None else limit,
                wait=WAIT,
            )
            taken = [wire.delivery_from(self._topic, self._name, one) for one in got["deliveries"]]
            if taken:
                self._held.update(one.tag for one in taken)
                return taken

    async def ack(self, *deliveries: Delivery) -> Sequence[Delivery]:
        """As `Subscription.ack`."""
        return self._ended(deliveries, await self._client.ack([one.tag for one in deliveries]))

    async def nack(
        self, *deliveries: Delivery, delay: float = 0.0, error: str | None = None
    ) -> Sequence[Delivery]:
        """As `Subscription.nack`."""
        stale = await self._client.nack([one.tag for one in deliveries], delay=delay, error=error)
        return self._ended(deliveries, stale)

    async def reject(self, *deliveries: Delivery, error: str) -> Sequence[Delivery]:
        """As `Subscription.reject`."""
        return self._ended(
            deliveries, await self._client.reject([one.tag for one in deliveries], error=error)
        )

    async def extend(self, *deliveries: Delivery) -> Sequence[Delivery]:
        """As `Subscription.extend`."""
        stale = set(await self._client.extend([one.tag for one in deliveries]))
        return [one for one in deliveries if one.tag in stale]

    def _ended(self, deliveries: Sequence[Delivery], tags: Sequence[str]) -> Sequence[Delivery]:
        self._held.difference_update(one.tag for one in deliveries)
        stale = set(tags)
        return [one for one in deliveries if one.tag in stale]
