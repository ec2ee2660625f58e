"""
Topics and subscriptions over a store: one stream of messages feeds many, each at its own pace.

Theory of operation. Each subscription has a queue of its own in the store, named ``topic/subscription``.
A publish is one `put` into all queues of the topic: all or nothing, durable on return, and the payload
is stored once, until every subscription is done with it. From then on the subscriptions know nothing of
each other. What a subscription is, is that queue: it is still there after a restart, with its place, its
dead letters, and its numbers. Topics are what their options say at the moment; who opens a broker names
them.

Out of a queue leads one `Port`, through which everybody leases: pullers (`Subscription`), whose leases
time out, and at most one `Deliverer`, whose leases last for as long as its channel has the message.
"""

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import anyio
import anyio.abc
import attrs

from dispatcher.broker._port import Port
from dispatcher.broker.deliverer import Deliverer
from dispatcher.broker.errors import BrokerClosed, SubscriptionBusy, UnknownSubscription, UnknownTopic
from dispatcher.broker.message import Delivery, Message, Published
from dispatcher.broker.options import SubscribeOptions, TopicOptions, check_capabilities, check_name
from dispatcher.broker.subscription import Subscription
from dispatcher.broker.topic import Topic, queue_name, split_queue
from dispatcher.errors import ItemTooLarge, OptionError, QueueFull, StoreError, UnknownQueue
from dispatcher.options import ChannelOptions
from dispatcher.stores.base import Counts, Dead, Nack, Peeked, Record, Shelf, Store
from dispatcher.typing import SendFn

__all__ = ["Broker", "BrokerStatistics"]

_LOG = logging.getLogger("dispatcher")


@attrs.frozen(kw_only=True, slots=True)
class BrokerStatistics:
    """What this broker did since it was opened; `Broker.counts` has what lies in the store."""

    published: int
    """Messages stored."""

    unwanted: int
    """Of these, for topics without subscriptions: not kept."""

    refused: int
    """Publishes refused because a subscription was full."""

    dropped: int
    """Entries dropped to make room."""

    acked: int
    """By pullers."""

    stale: int
    """Acks, nacks and the like that came too late."""

    dead: int
    """Deliveries given up, by those who pull or because of ``max_attempts``."""

    in_flight: int
    """Deliveries that pullers have now."""


class Broker:
    """
    Topics and their subscriptions in a store.

    Args:
        store: Open, and stays so; has to be open for longer than this block. One broker at a time.

        topics: Those that are there from the start.

        sweep_every: Seconds between looks for what has expired in queues that nobody reads. Default: 60.

    Raises:
        OptionError: If the store lacks what a topic needs, or a value breaks its rule.
    """

    def __init__(
        self,
        store: Store,
        topics: Mapping[str, TopicOptions] | None = None,
        *,
        sweep_every: float = 60.0,
    ) -> None:
        topics = {} if topics is None else topics
        if not sweep_every > 0:
            rule = "has to be seconds of more than 0"
            raise OptionError(option="sweep_every", rule=rule, value=sweep_every)
        for name, options in topics.items():
            _check_topic(store, name, options)
        self._store = store
        self._sweep_every = sweep_every
        self._topics = {name: Topic(name, options) for name, options in topics.items()}
        self._ports: dict[tuple[str, str], Port] = {}
        self._turns: dict[str, anyio.Lock] = {}
        self._holders: dict[str, Subscription] = {}
        self._tally = dict.fromkeys(
            ("published", "unwanted", "refused", "dropped", "acked", "stale", "dead"), 0
        )
        self._state: Literal["new", "open", "ended"] = "new"
        self._group: anyio.abc.TaskGroup
        self._admin: anyio.Lock
        self._care: anyio.CancelScope

    # Life

    async def __aenter__(self) -> Self:
        """
        Open it; subscriptions that were added in former runs are there again.

        Raises:
            StoreError: If the store fails.
        """
        if self._state != "new":
            raise BrokerClosed
        self._admin = anyio.Lock()
        for topic in self._topics.values():
            await self._open_topic(topic)
        for queue in await self._store.queues():
            parts = split_queue(queue)
            if parts is not None and parts[0] not in self._topics:
                _LOG.warning("queue %r belongs to no topic that is named here, and is left alone", queue)
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group = group
        self._care = anyio.CancelScope()
        group.start_soon(self._sweeper)
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Stop what delivers: running SendFns end (after an exception: are cancelled), the rest goes back.

        The block's exception leaves as itself.
        """
        self._state = "ended"
        self._care.cancel()
        for port in self._ports.values():
            if port.deliverer is not None:
                if exc is None:
                    port.deliverer.stop()
                else:
                    port.deliverer.cancel()
        cancelled = isinstance(exc, anyio.get_cancelled_exc_class())
        try:
            if cancelled:
                await self._group.__aexit__(kind, exc, trace)
            else:
                await self._group.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            if exc is not None and not cancelled:
                _LOG.exception("%r failed beside its block", self)
                return
            if len(group.exceptions) > 1:
                raise
            raise _only(group) from None  # what one SendFn raised beyond Exception leaves as itself
        finally:
            for port in self._ports.values():
                port.change(gone=True)

    async def _open_topic(self, topic: Topic) -> None:
        for name in topic.options.subscriptions:
            topic.add(name)
        for queue in await self._store.queues():
            parts = split_queue(queue)
            if parts is not None and parts[0] == topic.name:
                topic.add(parts[1])
        await self._store.create(*topic.queues)
        for name in topic.subscriptions:
            self._ports.setdefault((topic.name, name), Port(self._store, topic, name))
        self._turns.setdefault(topic.name, anyio.Lock())

    async def _sweeper(self) -> None:
        with self._care:
            while True:
                await anyio.sleep(self._sweep_every)
                try:
                    await self._store.sweep()
                except StoreError as error:
                    _LOG.error("looking for what has expired: %s", error)

    def _check_open(self) -> None:
        if self._state != "open":
            raise BrokerClosed

    def _topic(self, name: str) -> Topic:
        self._check_open()
        try:
            return self._topics[name]
        except KeyError:
            raise UnknownTopic(name) from None

    def port(self, topic: str, subscription: str) -> Port:
        """For what delivers: the way out of one subscription."""
        found = self._topic(topic)
        port = self._ports.get((topic, subscription))
        if port is None or subscription not in found.subscriptions:
            raise UnknownSubscription(topic, subscription)
        return port

    @property
    def store(self) -> Store:
        """Where it keeps everything."""
        return self._store

    # Topics

    @property
    def topics(self) -> Mapping[str, TopicOptions]:
        """What there is, and its options."""
        return {name: topic.options for name, topic in self._topics.items()}

    def subscriptions(self, topic: str) -> Sequence[str]:
        """Names of all subscriptions of *topic*."""
        return self._topic(topic).subscriptions

    async def add_topic(self, name: str, options: TopicOptions | None = None) -> None:
        """
        Add a topic, or give one that is there new options; nothing that is stored is lost by it.

        Its subscriptions are those of *options*, and all that it had.

        Raises:
            OptionError: If the store lacks what it needs, or its name breaks the rule.
        """
        self._check_open()
        options = TopicOptions() if options is None else options
        _check_topic(self._store, name, options)
        async with self._admin:
            topic = self._topics.get(name)
            if topic is None:
                topic = Topic(name, options)
                await self._open_topic(topic)
                self._topics[name] = topic
            else:
                for subscription in options.subscriptions:
                    await self._add(topic, subscription)
                topic.options = options

    async def remove_topic(self, name: str) -> None:
        """Delete a topic with its subscriptions, and all that they hold, dead letters included."""
        topic = self._topic(name)
        async with self._admin:
            for subscription in topic.subscriptions:
                await self._remove(self.port(name, subscription))
            self._topics.pop(name, None)

    async def add_subscription(self, topic: str, subscription: str) -> bool:
        """
        Add one: it gets what is published from now on, until it is removed, also after a restart.

        Returns:
            False if it was there.
        """
        found = self._topic(topic)
        check_name("a subscription's name", subscription)
        async with self._admin:
            return await self._add(found, subscription)

    async def _add(self, topic: Topic, name: str) -> bool:
        if name in topic.subscriptions:
            return False
        await self._store.create(queue_name(topic.name, name))
        topic.add(name)
        self._ports[(topic.name, name)] = Port(self._store, topic, name)
        return True

    async def remove_subscription(self, topic: str, subscription: str) -> None:
        """Delete one, with all that it holds, dead letters included; who delivers from it is stopped."""
        self.port(topic, subscription)
        async with self._admin:
            await self._remove(self.port(topic, subscription))

    async def _remove(self, port: Port) -> None:
        port.topic.remove(port.name)
        port.change(gone=True)
        if port.deliverer is not None:
            port.deliverer.cancel()
            await port.deliverer.wait_ended()
        for tag in [tag for tag, holder in self._holders.items() if holder.port is port]:
            self.forget(tag)
        await self._store.remove(port.queue)
        self._ports.pop((port.topic.name, port.name), None)

    # In

    async def publish(self, topic: str, messages: Sequence[Message]) -> Published:
        """
        Store all of *messages* for all subscriptions of *topic*, or none for any; durable on return.

        Cancelled while it waits for room, it has stored nothing; a write that has begun is waited for.

        Raises:
            UnknownTopic: If there is none of this name.

            MessageRefused: If one of them breaks a rule of the topic; nothing was stored.

            QueueFull: If a subscription is full, and the topic refuses then; nothing was stored.

            ItemTooLarge: If all of them together are larger than its bound.

            StoreError: If the store fails; nothing was stored.
        """
        found = self._topic(topic)
        if isinstance(messages, Message):
            messages = [messages]
        records = found.records(messages, now=self._store.now())
        options = found.options
        dropped = 0
        if options.bytes_max is None or not records or not found.queues:
            subscriptions = await self._put(found, records, None)
        elif options.full == "refuse":
            try:
                subscriptions = await self._put(found, records, options.bytes_max)
            except QueueFull:
                self._tally["refused"] += 1
                raise
        else:
            size = sum(record.size for record in records)
            if size > options.bytes_max:
                raise ItemTooLarge(size, options.bytes_max)
            async with self._turns[topic]:  # nobody overtakes who waits for room
                if options.full == "block":
                    subscriptions = await self._put_waiting(found, records, size, options.bytes_max)
                else:
                    subscriptions, dropped = await self._put_dropping(found, records, options.bytes_max)
        self._tally["published"] += len(records)
        self._tally["unwanted"] += 0 if subscriptions else len(records)
        return Published(messages=len(records), subscriptions=subscriptions, dropped=dropped)

    async def _put(self, topic: Topic, records: Sequence[Record], bytes_max: int | None) -> int:
        """Put into all queues that there are; how many."""
        while True:
            queues = topic.queues
            try:
                with anyio.CancelScope(shield=True):  # a cancelled call would not know what it has done
                    await self._store.put(records, queues, replace=topic.options.dedupe, bytes_max=bytes_max)
                return len(queues)
            except UnknownQueue as error:
                if error.queue in topic.queues:  # it was not removed by us
                    raise

    async def _put_waiting(self, topic: Topic, records: Sequence[Record], size: int, bytes_max: int) -> int:
        while True:
            self._check_open()
            try:
                return await self._put(topic, records, bytes_max)
            except QueueFull as error:
                full = error.queue
            try:
                await self._store.wait_room([full], size, bytes_max)
            except UnknownQueue:  # it was removed: it is in nobody's way
                continue

    async def _put_dropping(self, topic: Topic, records: Sequence[Record], bytes_max: int) -> tuple[int, int]:
        dropped = 0
        while True:
            try:
                return await self._put(topic, records, bytes_max), dropped
            except QueueFull as error:
                full = error.queue
                gone = await self._store.drop_oldest(full, error.held + error.size - error.limit)
            dropped += len(gone)
            self._tally["dropped"] += len(gone)
            if gone:
                _LOG.warning("dropped %d messages from the full queue %r", len(gone), full)
                continue
            # All that is left there is being delivered. It is the slow one's own business: the others
            # are given room, and this one takes the newest on top.
            size = sum(record.size for record in records)
            for queue in topic.queues:
                over = (await self._store.counts(queue)).live.bytes + size - bytes_max
                if over > 0:
                    more = await self._store.drop_oldest(queue, over)
                    dropped += len(more)
                    self._tally["dropped"] += len(more)
            return await self._put(topic, records, None), dropped

    # Out

    async def deliver(
        self,
        topic: str,
        subscription: str,
        send_fn: SendFn[Delivery, Any],
        options: ChannelOptions[Delivery] | None = None,
    ) -> Deliverer:
        """
        Deliver a subscription in batches to *send_fn*, until the broker's block ends.

        It runs beside the caller. The RetryPolicy decides when a message has failed, and the default
        one retries for ever; ``max_attempts`` counts here only the deliveries that a crash has ended.

        Args:
            topic: Of which topic.

            subscription: Which; one deliverer each, though others may pull beside it.

            send_fn: Sends one batch of `Delivery`.

            options: As for `DurableChannel`.

        Raises:
            SubscriptionBusy: If something is delivering from it.

            OptionError: As `DurableChannel`.

            StoreError: If the store fails.
        """
        port = self.port(topic, subscription)
        if port.deliverer is not None:
            raise SubscriptionBusy(topic, subscription)
        deliverer = Deliverer(port, self._store, send_fn, ChannelOptions() if options is None else options)
        port.deliverer = deliverer

        def gone() -> None:
            port.deliverer = None

        await self._group.start(deliverer.run, gone)
        return deliverer

    def subscribe(
        self, topic: str, subscription: str, options: SubscribeOptions | None = None
    ) -> Subscription:
        """
        Pull from a subscription: ``async with broker.subscribe(...) as subscription``.

        Raises:
            UnknownTopic, UnknownSubscription: If there is none of this name.
        """
        port = self.port(topic, subscription)
        return Subscription(self, port, self._store, SubscribeOptions() if options is None else options)

    async def ack(self, tags: Sequence[str]) -> Sequence[str]:
        """
        Say that these deliveries are done; durable on return.

        Returns:
            The tags that did nothing, because their deliveries had ended.
        """
        stale = await self._settle(tags, acks=tags)
        self._tally["acked"] += len(set(tags)) - len(set(stale))
        return stale

    async def nack(
        self,
        tags: Sequence[str],
        *,
        delay: float = 0.0,
        front: bool = True,
        count: bool = True,
        error: str | None = None,
    ) -> Sequence[str]:
        """
        Hand these deliveries back; those delivered ``max_attempts`` times become dead letters.

        Args:
            tags: Which.

            delay: Seconds until they may be delivered again.

            front: True: in their old place; False: at the end.

            count: False: it was no attempt.

            error: Why; kept with the dead letter, should it become one.

        Returns:
            As `ack`.
        """
        nacks: list[Nack] = []
        dead: list[Dead] = []
        for tag in tags:
            verdict: Nack | Dead = Nack(tag, delay=delay, front=front, count=count)
            holder = self._holders.get(tag)
            if holder is not None and isinstance(verdict, Nack):
                verdict = holder.port.topic.judge_nack(verdict, holder.attempts(tag), error)
            if isinstance(verdict, Nack):
                nacks.append(verdict)
            else:
                dead.append(verdict)
        return await self._settle(tags, nacks=nacks, dead=dead)

    async def reject(self, tags: Sequence[str], *, error: str) -> Sequence[str]:
        """Give these deliveries up: dead letters, with *error*. Returns as `ack`."""
        return await self._settle(tags, dead=[Dead(tag, error) for tag in tags])

    async def _settle(
        self,
        tags: Sequence[str],
        *,
        acks: Sequence[str] = (),
        nacks: Sequence[Nack] = (),
        dead: Sequence[Dead] = (),
    ) -> Sequence[str]:
        self._check_open()
        stale: Sequence[str] = ()
        with anyio.CancelScope(shield=True):
            stale = await self._store.settle(acks, nacks, dead)
        for tag in tags:
            self.forget(tag)
        self._tally["stale"] += len(stale)
        self._tally["dead"] += len({one.tag for one in dead} - set(stale))
        return stale

    async def extend(self, tags: Sequence[str]) -> Sequence[str]:
        """Begin the ack timeouts of these deliveries anew. Returns as `ack`."""
        self._check_open()
        stale = [tag for tag in tags if tag not in self._holders]
        by_timeout: dict[float | None, list[str]] = {}
        for tag in tags:
            if tag in self._holders:
                timeout = self._holders[tag].port.topic.options.ack_timeout
                by_timeout.setdefault(timeout, []).append(tag)
        for timeout, group in by_timeout.items():
            asked = self._store.now()
            void = await self._store.extend(group, timeout)
            stale += void
            for tag in group:
                holder = self._holders.get(tag)
                if holder is not None and tag not in void and timeout is not None:
                    holder.extended(tag, asked + timeout)
        self._tally["stale"] += len(stale)
        return stale

    def remember(self, tag: str, holder: Subscription) -> None:
        """For what delivers: *holder* has this delivery."""
        self._holders[tag] = holder

    def forget(self, tag: str) -> None:
        """For what delivers: this delivery has ended."""
        holder = self._holders.pop(tag, None)
        if holder is not None:
            holder.drop(tag)

    # Care

    def pause(self, topic: str, subscription: str) -> None:
        """Deliver nothing more from it; what is being delivered goes on. Until `resume`, or a restart."""
        self.port(topic, subscription).change(paused=True)

    def resume(self, topic: str, subscription: str) -> None:
        """Deliver again."""
        self.port(topic, subscription).change(paused=False)

    def paused(self, topic: str, subscription: str) -> bool:
        """Whether it is."""
        return self.port(topic, subscription).paused

    async def reset(self, subscription: str, topic: str | None = None) -> int:
        """
        Hand back all that pullers of a subscription have, to its place: it begins anew.

        For one that has lost its memory. What a deliverer has is not touched.

        Args:
            subscription: Which.

            topic: Of which topic; None: of every one that has it.

        Returns:
            How many came back.

        Raises:
            UnknownSubscription: If *topic*, or (None) not one topic, has it.
        """
        if topic is not None:
            ports = [self.port(topic, subscription)]
        else:
            self._check_open()
            ports = [port for (_, name), port in self._ports.items() if name == subscription]
            if not ports:
                raise UnknownSubscription(topic or "*", subscription)
        return sum([await one.hand_back() for port in ports for one in list(port.subscribers)])

    async def counts(self, topic: str, subscription: str) -> Counts:
        """One subscription in numbers."""
        return await self._store.counts(self.port(topic, subscription).queue)

    async def peek(
        self,
        topic: str,
        subscription: str,
        limit: int = 50,
        *,
        shelf: Shelf = Shelf.READY,
        after: str | None = None,
    ) -> Sequence[Peeked]:
        """Look at messages; changes nothing. See `dispatcher.stores.base.Store.peek`."""
        return await self._store.peek(self.port(topic, subscription).queue, limit, shelf=shelf, after=after)

    async def redrive(self, topic: str, subscription: str, ids: Sequence[str] | None = None) -> int:
        """Put dead letters (all, or *ids*) back to the end, attempts at 0. Returns how many."""
        return await self._store.redrive(self.port(topic, subscription).queue, ids)

    async def purge(
        self,
        topic: str,
        subscription: str,
        ids: Sequence[str] | None = None,
        *,
        shelf: Shelf = Shelf.DEAD,
    ) -> int:
        """Delete what lies on *shelf*, or only *ids* of it. Returns how many."""
        return await self._store.purge(self.port(topic, subscription).queue, ids, shelf=shelf)

    def statistics(self) -> BrokerStatistics:
        """What it did since it was opened."""
        given_up = sum(port.dead for port in self._ports.values())
        tally = {**self._tally, "dead": self._tally["dead"] + given_up}
        return BrokerStatistics(**tally, in_flight=len(self._holders))

    def __repr__(self) -> str:
        return f"<Broker of {len(self._topics)} topics>"


def _only(error: BaseException) -> BaseException:
    """What is in a group of one, of one, of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _check_topic(store: Store, name: str, options: TopicOptions) -> None:
    check_name("a topic's name", name)
    if not isinstance(options, TopicOptions):
        raise OptionError(option=f"topic {name!r}", rule="has to be a TopicOptions", value=options)
    check_capabilities(options, store.capabilities)
