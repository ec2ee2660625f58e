"""One connection of a broker: reads requests, does them, answers each; and what it pushes."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import anyio.abc
import attrs

from dispatcher.broker import wire
from dispatcher.broker.address import shut
from dispatcher.broker.broker import Broker
from dispatcher.broker.errors import BadRequest, UnknownSubscription
from dispatcher.broker.message import Delivery
from dispatcher.broker.options import SubscribeOptions
from dispatcher.broker.subscription import Subscription
from dispatcher.errors import StoreError
from dispatcher.stores.base import Peeked, Shelf

__all__ = ["Connection", "ServerOptions"]

_LOG = logging.getLogger("dispatcher")

REQUESTS_MAX = 100
"""Requests of one connection at once; with more, its socket is not read."""

RECEIVES_MAX = 50


@attrs.frozen(kw_only=True)
class ServerOptions:
    """
    What a server allows its clients.

    Args:
        line_bytes_max: Bytes of one line. Longer ones are refused and skipped. Default: 4 MiB.

        connections_max: At once; more are refused. Default: 500.

        write_timeout: Seconds that a client has to take an answer or a push; then it is cut off, and
            what it had goes back. Default: 30.

        shutdown_timeout: Seconds that requests under way have at the end. Default: 5.
    """

    line_bytes_max: int = attrs.field(default=wire.LINE_BYTES_MAX, validator=attrs.validators.ge(1024))
    connections_max: int = attrs.field(default=500, validator=attrs.validators.ge(1))
    write_timeout: float = attrs.field(default=30.0, validator=attrs.validators.gt(0))
    shutdown_timeout: float = attrs.field(default=5.0, validator=attrs.validators.gt(0))


class Connection:
    """
    Serves one client, until it goes, or `stop`.

    What it was given and has not acked goes back when it ends.

    Args:
        broker: Open.

        stream: To the client.

        options: Of the server.
    """

    def __init__(self, broker: Broker, stream: anyio.abc.ByteStream, options: ServerOptions) -> None:
        self._broker = broker
        self._stream = stream
        self._options = options
        self._subscriptions: dict[tuple[str, str], Subscription] = {}
        self._writing = anyio.Lock()
        self._room = anyio.Semaphore(REQUESTS_MAX)
        self._receives: dict[Any, anyio.CancelScope] = {}
        self._pushing = anyio.CancelScope()
        self._stopping = False
        self._slow = False

    def stop(self) -> None:
        """Read no more; what was asked for is answered."""
        self._stopping = True
        shut(self._stream)

    async def run(self, push: Subscription | None = None) -> None:
        """
        Serve until it ends.

        Args:
            push: Push this, too.
        """
        if push is not None:
            self._subscriptions[(push.topic, push.name)] = push
        try:
            async with anyio.create_task_group() as group:
                if push is not None:
                    group.start_soon(self._push, push)
                await self._read(group)
                self._stopping = True
                self._pushing.cancel()
                for scope in self._receives.values():
                    scope.cancel()
                # Requests under way end, and are answered; a publish that waits for room may not.
                group.cancel_scope.deadline = anyio.current_time() + self._options.shutdown_timeout
        except* (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            pass  # the client has gone
        finally:
            if self._slow:
                _LOG.warning("a client did not read for %g s and was cut off", self._options.write_timeout)
            with anyio.CancelScope(shield=True):
                await self._end()

    async def _end(self) -> None:
        for subscription in self._subscriptions.values():
            try:
                await subscription.__aexit__(None, None, None)
            except StoreError as error:
                _LOG.error("deliveries of a client that has gone come back at their timeout: %s", error)
        await anyio.aclose_forcefully(self._stream)

    async def _read(self, group: anyio.abc.TaskGroup) -> None:
        lines = wire.Lines(self._options.line_bytes_max)
        while True:
            try:
                chunk = await self._stream.receive()
            except anyio.EndOfStream:
                rest = lines.end()
                if rest is not None:
                    await self._take_line(rest, group)
                return
            for line in lines.feed(chunk):
                await self._take_line(line, group)

    async def _take_line(self, line: "bytes | wire.Oversized", group: anyio.abc.TaskGroup) -> None:
        if isinstance(line, wire.Oversized):
            msg = f"a line may be at most {self._options.line_bytes_max} bytes long"
            await self._send(wire.refusal(None, BadRequest(msg)))
            return
        name, request = wire.request_from(line)
        if isinstance(request, BadRequest):
            await self._send(wire.refusal(name, request))
        elif request.op == "cancel":
            scope = self._receives.get(request.fields["request"])
            if scope is not None:
                scope.cancel()
            await self._send(wire.answer(name))
        elif request.op == "receive":
            if len(self._receives) >= RECEIVES_MAX or (name is not None and name in self._receives):
                msg = f"receive: at most {RECEIVES_MAX} at once, each with its own id"
                await self._send(wire.refusal(name, BadRequest(msg)))
                return
            scope = anyio.CancelScope()
            self._receives[object() if name is None else name] = scope
            group.start_soon(self._receive, request, scope)
        else:
            await self._room.acquire()
            group.start_soon(self._do, request)

    async def _send(self, what: Mapping[str, Any]) -> None:
        line = wire.encode(what)
        try:
            with anyio.move_on_after(self._options.write_timeout) as scope:
                async with self._writing:
                    await self._stream.send(line)
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            shut(self._stream, writing=True)  # the client has gone, as the reader will see, too
            raise anyio.BrokenResourceError from None
        if scope.cancelled_caught:
            self._slow = True
            shut(self._stream, writing=True)
            raise anyio.BrokenResourceError

    # Doing

    async def _do(self, request: wire.Request) -> None:
        try:
            try:
                done = await getattr(self, f"_{request.op}")(**request.fields)
            except Exception as error:
                await self._refuse(request, error)
            else:
                await self._send(wire.answer(request.id, **done))
        finally:
            self._room.release()

    async def _refuse(self, request: wire.Request, error: Exception) -> None:
        if not wire.is_told(error):
            _LOG.error("%s failed: %r", request.op, error, exc_info=error)
        await self._send(wire.refusal(request.id, error))

    async def _ping(self) -> dict[str, Any]:
        return {}

    async def _publish(self, topic: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
        made = [wire.message_from(one, position) for position, one in enumerate(messages)]
        return attrs.asdict(await self._broker.publish(topic, made))

    async def _ack(self, tags: Sequence[str]) -> dict[str, Any]:
        return {"stale": list(await self._broker.ack(tags))}

    async def _nack(self, tags: Sequence[str], **more: Any) -> dict[str, Any]:  # noqa: ANN401 - checked
        return {"stale": list(await self._broker.nack(tags, **more))}

    async def _reject(self, tags: Sequence[str], error: str) -> dict[str, Any]:
        return {"stale": list(await self._broker.reject(tags, error=error))}

    async def _extend(self, tags: Sequence[str]) -> dict[str, Any]:
        return {"stale": list(await self._broker.extend(tags))}

    async def _reset(self, subscription: str, topic: str | None) -> dict[str, Any]:
        return {"count": await self._broker.reset(subscription, topic)}

    async def _subscribe(self, topic: str, subscription: str) -> dict[str, Any]:
        return {"added": await self._broker.add_subscription(topic, subscription)}

    async def _unsubscribe(self, topic: str, subscription: str) -> dict[str, Any]:
        await self._broker.remove_subscription(topic, subscription)
        return {}

    async def _pause(self, topic: str, subscription: str) -> dict[str, Any]:
        self._broker.pause(topic, subscription)
        return {}

    async def _resume(self, topic: str, subscription: str) -> dict[str, Any]:
        self._broker.resume(topic, subscription)
        return {}

    async def _topics(self) -> dict[str, Any]:
        broker = self._broker
        return {
            "topics": {
                name: {**attrs.asdict(options), "subscriptions": list(broker.subscriptions(name))}
                for name, options in broker.topics.items()
            }
        }

    async def _stats(self) -> dict[str, Any]:
        return attrs.asdict(self._broker.statistics())

    async def _counts(self, queue: str) -> dict[str, Any]:
        return {"counts": wire.counts_to(await self._broker.store.counts(queue))}

    async def _queues(self) -> dict[str, Any]:
        store = self._broker.store
        return {"queues": {name: wire.counts_to(await store.counts(name)) for name in await store.queues()}}

    async def _peek(self, queue: str, shelf: str, limit: int, after: str | None) -> dict[str, Any]:
        store = self._broker.store
        found: list[Peeked] = []
        size = 0
        while len(found) < limit and size < self._options.line_bytes_max // 2:
            # A few at a time, for an answer is one line, and lines are bounded.
            page = await store.peek(queue, min(limit - len(found), 10), shelf=Shelf(shelf), after=after)
            if not page:
                break
            found += page
            after = page[-1].cursor
            size += sum(len(one.payload) for one in page)
        return {"messages": [wire.peeked_to(one) for one in found]}

    async def _retry(self, queue: str, ids: Sequence[str] | None, shelf: str) -> dict[str, Any]:
        return {"count": await self._broker.store.redrive(queue, ids, shelf=Shelf(shelf))}

    async def _purge(self, queue: str, ids: Sequence[str] | None, shelf: str) -> dict[str, Any]:
        return {"count": await self._broker.store.purge(queue, ids, shelf=Shelf(shelf))}

    # Delivering

    async def _pulled(self, topic: str, subscription: str) -> Subscription:
        found = self._subscriptions.get((topic, subscription))
        if found is None or found.port.gone:
            options = SubscribeOptions(
                batch_bytes_max=self._options.line_bytes_max // 2, in_flight_max=10 * wire.RECEIVE_MAX
            )
            found = await self._broker.subscribe(topic, subscription, options).__aenter__()
            self._subscriptions[(topic, subscription)] = found
        return found

    async def _receive(self, request: wire.Request, scope: anyio.CancelScope) -> None:
        asked = request.fields
        deliveries: Sequence[Delivery] = ()
        try:
            try:
                puller = await self._pulled(asked["topic"], asked["subscription"])
                deliveries = await puller.poll(asked["limit"])
                if not deliveries and not self._stopping:
                    scope.deadline = anyio.current_time() + asked["wait"]
                    with scope:
                        deliveries = await puller.take(asked["limit"])
            finally:
                self._receives = {key: one for key, one in self._receives.items() if one is not scope}
        except Exception as error:
            await self._refuse(request, error)
        else:
            await self._send(
                wire.answer(request.id, deliveries=[wire.delivery_to(one) for one in deliveries])
            )

    async def _push(self, puller: Subscription) -> None:
        while True:
            deliveries: Sequence[Delivery] = ()
            try:
                with anyio.CancelScope() as self._pushing:
                    if self._stopping:
                        return
                    deliveries = await puller.take(seen=False)
            except UnknownSubscription:  # it was removed
                self.stop()
            if not deliveries:
                return
            await self._send(
                {
                    "topic": puller.topic,
                    "subscription": puller.name,
                    "deliveries": [wire.delivery_to(one) for one in deliveries],
                }
            )
            puller.see(deliveries)
