"""Delivery by pulling: a subscriber takes batches, and acks when it is done."""

import math
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
import attrs

from dispatcher.broker._port import Port
from dispatcher.broker.errors import BrokerClosed
from dispatcher.broker.message import Delivery
from dispatcher.broker.options import SubscribeOptions
from dispatcher.errors import StoreError
from dispatcher.stores.base import Nack, Store

if TYPE_CHECKING:
    from dispatcher.broker.broker import Broker

__all__ = ["Subscription"]


@attrs.define(slots=True)
class Held:
    """A delivery without an ack."""

    delivery: Delivery
    deadline: float
    seen: bool = True
    """Its subscriber has got it: it counts as an attempt."""


class Subscription:
    """
    One subscriber that pulls; from `Broker.subscribe`. Any number may share a subscription.

    Leaving the block hands back what has no ack, to where it was.
    """

    def __init__(self, broker: "Broker", port: Port, store: Store, options: SubscribeOptions) -> None:
        self._broker = broker
        self._port = port
        self._store = store
        self._options = options
        self._open = False
        self._held: dict[str, Held] = {}
        self._taken: deque[Delivery] = deque()
        self._earliest = math.inf  # no deadline of what is held comes before
        self._settled: anyio.Event | None = None  # made only when somebody waits

    @property
    def topic(self) -> str:
        """Its name."""
        return self._port.topic.name

    @property
    def name(self) -> str:
        """Of the subscription."""
        return self._port.name

    @property
    def in_flight(self) -> int:
        """Deliveries without an ack, whose timeout has not come."""
        self._prune()
        return len(self._held)

    async def __aenter__(self) -> Self:
        """Begin."""
        self._open = True
        self._port.subscribers.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Hand back what has no ack.

        Raises:
            StoreError: If the store fails; what is not handed back comes back at its timeout.
        """
        self._open = False
        self._port.subscribers.discard(self)
        with anyio.CancelScope(shield=True):
            try:
                await self.hand_back()
            except StoreError:
                if error is None:
                    raise

    async def hand_back(self) -> int:
        """Hand back all that has no ack, as a reset does; how many came back."""
        held = list(self._held.values())
        for tag in list(self._held):
            self._broker.forget(tag)
        self._taken.clear()
        nacks = [Nack(one.delivery.tag, count=one.seen) for one in held]
        if not nacks or self._port.gone:
            return 0
        return len(nacks) - len(await self._store.settle(nacks=nacks))

    # Taking

    async def receive(self, limit: int | None = None) -> Sequence[Delivery]:
        """
        Wait for messages and take up to *limit*; those that are there, never none.

        For a deadline, use a cancel scope; cancelled, it has taken nothing.

        Args:
            limit: At most so many. None: ``batch_items_max``.

        Raises:
            UnknownSubscription: If it is removed meanwhile.

            StoreError: If the store fails.
        """
        if self._taken:
            count = len(self._taken) if limit is None else min(limit, len(self._taken))
            taken = [self._taken.popleft() for _ in range(count)]
            return [self._see(one) for one in taken]
        return await self.take(limit)

    async def take(self, limit: int | None = None, *, seen: bool = True) -> Sequence[Delivery]:
        """
        As `receive`, for what passes deliveries on.

        Args:
            limit: At most so many.

            seen: False: until `see`, it was no attempt.
        """
        while True:
            await self._wait_room()
            await self._port.wait_ready()
            taken = await self.poll(limit, seen=seen)
            if taken:
                return taken

    async def poll(self, limit: int | None = None, *, seen: bool = True) -> Sequence[Delivery]:
        """Take what is there, without waiting for it; perhaps none."""
        if not self._open:
            raise BrokerClosed
        options = self._options
        self._prune()
        room = min(options.in_flight_max - len(self._held), limit or options.batch_items_max)
        if room < 1:
            return []
        # As it is now: a lease does not change with the options that come after it.
        timeout = self._port.topic.options.ack_timeout
        asked = self._store.now()
        leased = await self._port.lease(room, bytes_max=options.batch_bytes_max, ack_timeout=timeout)
        deadline = math.inf if timeout is None else asked + timeout
        taken = [Delivery.of(self.topic, self.name, one) for one in leased]
        self._earliest = min(self._earliest, deadline)
        for one in taken:
            self._held[one.tag] = Held(one, deadline, seen)
            self._broker.remember(one.tag, self)
        return taken

    def see(self, deliveries: Sequence[Delivery]) -> None:
        """The subscriber has got these: they count as attempts."""
        for one in deliveries:
            self._see(one)

    def _see(self, delivery: Delivery) -> Delivery:
        held = self._held.get(delivery.tag)
        if held is not None:
            held.seen = True
        return delivery

    def __aiter__(self) -> Self:
        """One message after the other; ack each."""
        return self

    async def __anext__(self) -> Delivery:
        """The next one; ends when the subscription is left."""
        if not self._taken:
            self._taken.extend(await self.take(seen=False))
        return self._see(self._taken.popleft())

    async def _wait_room(self) -> None:
        while True:
            self._prune()
            if len(self._held) < self._options.in_flight_max:
                return
            if self._settled is None:
                self._settled = anyio.Event()
            with anyio.move_on_after(self._earliest - self._store.now()):
                await self._settled.wait()

    def _prune(self) -> None:
        """What was not acked in time is nobody's any more."""
        now = self._store.now()
        if now < self._earliest:
            return
        for tag in [tag for tag, held in self._held.items() if held.deadline <= now]:
            self._broker.forget(tag)
        self._earliest = min((held.deadline for held in self._held.values()), default=math.inf)

    # Settling

    async def ack(self, *deliveries: Delivery) -> Sequence[Delivery]:
        """
        Say that they are done; durable on return. Any of a batch, in any order.

        Returns:
            Those that were not this subscriber's any more (timeout, a newer one of the key): another
            delivery of them may come, or has.
        """
        return _stale(deliveries, await self._broker.ack([one.tag for one in deliveries]))

    async def nack(
        self, *deliveries: Delivery, delay: float = 0.0, error: str | None = None
    ) -> Sequence[Delivery]:
        """
        Hand them back, to their place: to be delivered again, after *delay* seconds.

        Args:
            deliveries: Which.

            delay: Seconds.

            error: Why; kept with the dead letter, should it become one.

        Returns:
            As `ack`.
        """
        stale = await self._broker.nack([one.tag for one in deliveries], delay=delay, error=error)
        return _stale(deliveries, stale)

    async def reject(self, *deliveries: Delivery, error: str) -> Sequence[Delivery]:
        """Give them up: dead letters, with *error*. Returns as `ack`."""
        return _stale(deliveries, await self._broker.reject([one.tag for one in deliveries], error=error))

    async def extend(self, *deliveries: Delivery) -> Sequence[Delivery]:
        """Begin their ack timeout anew. Returns as `ack`."""
        return _stale(deliveries, await self._broker.extend([one.tag for one in deliveries]))

    # For the broker

    def attempts(self, tag: str) -> int:
        """How often it was delivered."""
        return self._held[tag].delivery.attempts

    def drop(self, tag: str) -> None:
        """It is settled, one way or the other."""
        if self._held.pop(tag, None) is not None and self._settled is not None:
            self._settled.set()
            self._settled = None

    def extended(self, tag: str, deadline: float) -> None:
        """It has more time."""
        held = self._held.get(tag)
        if held is not None:
            held.deadline = deadline
            self._earliest = min(self._earliest, deadline)

    @property
    def port(self) -> Port:
        """Of which subscription it takes."""
        return self._port


def _stale(deliveries: Sequence[Delivery], tags: Sequence[str]) -> Sequence[Delivery]:
    void = set(tags)
    return [one for one in deliveries if one.tag in void]
