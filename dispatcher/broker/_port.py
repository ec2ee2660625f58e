"""One subscription's way out, shared by whoever delivers from it: pausing, giving up, the end."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from dispatcher.broker.errors import UnknownSubscription
from dispatcher.broker.topic import Topic
from dispatcher.errors import UnknownQueue
from dispatcher.stores.base import Leased, Store

if TYPE_CHECKING:
    from dispatcher.broker.deliverer import Deliverer
    from dispatcher.broker.subscription import Subscription

__all__ = ["Port"]

_LOG = logging.getLogger("dispatcher")


class Port:
    """
    Takes deliveries of one subscription out of the store.

    Args:
        store: Open.

        topic: Which it belongs to.

        name: Of the subscription.
    """

    def __init__(self, store: Store, topic: Topic, name: str) -> None:
        self.topic = topic
        self.name = name
        self.queue = topic.queue(name)
        self.paused = False
        self.gone = False
        self.dead = 0
        self.deliverer: Deliverer | None = None
        self.subscribers: set[Subscription] = set()
        self._store = store
        self._changed = anyio.Event()

    def change(self, *, paused: bool | None = None, gone: bool | None = None) -> None:
        """Pause, resume or end it; who waits looks again."""
        self.paused = self.paused if paused is None else paused
        self.gone = self.gone if gone is None else gone
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def wait_ready(self) -> None:
        """
        Wait until there may be something to lease, and it is not paused.

        Raises:
            UnknownSubscription: If it is, or will be, removed.
        """
        while True:
            if self.gone:
                raise UnknownSubscription(self.topic.name, self.name)
            if self.paused:
                await self._changed.wait()
                continue
            try:
                await self._store.wait_ready(self.queue)
            except UnknownQueue:
                raise UnknownSubscription(self.topic.name, self.name) from None
            if not self.paused:
                return

    async def lease(
        self, limit: int, *, bytes_max: int | None = None, ack_timeout: float | None = None
    ) -> Sequence[Leased]:
        """Take what is ready; what was delivered too often becomes a dead letter instead."""
        if self.paused:
            return ()
        try:
            leased = await self._store.lease(self.queue, limit, bytes_max=bytes_max, ack_timeout=ack_timeout)
        except UnknownQueue:
            raise UnknownSubscription(self.topic.name, self.name) from None
        leased, dead = self.topic.judge(leased)
        if dead:
            _LOG.error("%d messages of queue %r are given up: %s", len(dead), self.queue, dead[0].error)
            self.dead += len(dead)
            with anyio.CancelScope(shield=True):  # else the others would be lost until their timeout
                await self._store.settle(dead=dead)
        return leased
