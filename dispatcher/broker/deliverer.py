"""Delivery by pushing into a SendFn: a durable channel that takes in nothing but a subscription."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

from dispatcher.broker._port import Port
from dispatcher.broker.errors import UnknownSubscription
from dispatcher.broker.message import Delivery
from dispatcher.durable import DurableChannel, DurableStatistics
from dispatcher.errors import StoreError
from dispatcher.options import ChannelOptions
from dispatcher.stores.base import Leased, Store
from dispatcher.typing import SendFn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Deliverer"]

IDLE_LOOK = 0.05
"""Seconds between looks at the queue while somebody waits for it to be empty."""

_LOG = logging.getLogger("dispatcher")


class _Payload:
    """A delivery's bytes are the message's; only records of its own are ever written back."""

    def encode(self, item: Delivery, /) -> bytes:
        return item.payload

    def decode(self, payload: bytes, /) -> Delivery:
        raise NotImplementedError  # a delivery is more than its payload


class _Outlet(DurableChannel[Delivery, Any]):
    """Reads back from a subscription's queue, which others fill."""

    def __init__(
        self, port: Port, store: Store, send_fn: SendFn[Delivery, Any], options: ChannelOptions[Delivery]
    ) -> None:
        super().__init__(send_fn, store, queue=port.queue, codec=_Payload(), options=options, name=port.queue)
        self._port = port

    async def wait_idle(self) -> None:
        """As `DurableChannel.wait_idle`, and nothing that others put waits on disk."""
        while True:
            await super().wait_idle()
            counts = await self._store.counts(self._queue)
            if not counts.live.items:
                return
            # What changed while the store was asked wakes nobody; and what expires never does.
            with anyio.move_on_after(IDLE_LOOK):
                await self._wait("progress")

    async def _wait_ready(self) -> None:
        try:
            await self._port.wait_ready()
        except UnknownSubscription:
            await anyio.sleep_forever()  # whoever removes it ends this channel, too

    async def _lease(self, limit: int) -> Sequence[Leased]:
        return await self._port.lease(limit)

    def _decode(self, record: Leased) -> Delivery:
        return Delivery.of(self._port.topic.name, self._port.name, record)


class Deliverer:
    """
    One subscription, delivered in batches to a SendFn; from `Broker.deliver`.

    DELIVERED acks, FAILED makes a dead letter, the RetryPolicy decides which; what is left at its end
    goes back to its place, uncounted. While the channel has a message, its lease does not end.
    """

    def __init__(
        self, port: Port, store: Store, send_fn: SendFn[Delivery, Any], options: ChannelOptions[Delivery]
    ) -> None:
        self._port = port
        self._channel = _Outlet(port, store, send_fn, options)
        self._stopping = anyio.Event()
        self._ended = anyio.Event()
        self._trouble: StoreError | None = None

    async def run(
        self,
        gone: "Callable[[], None]",
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """For the broker alone: deliver until told to stop; *gone* is called in the end."""
        started = False
        try:
            async with self._channel:
                task_status.started()
                started = True
                await self._stopping.wait()
        except StoreError as error:
            if not started:
                raise
            _LOG.error(
                "delivery from %r: the store did not take everything back: %s", self._port.queue, error
            )
            self._trouble = error
        finally:
            gone()
            self._ended.set()

    def stop(self) -> None:
        """Lease no more; SendFns that run may end."""
        self._stopping.set()

    def cancel(self) -> None:
        """Lease no more; SendFns that run are cancelled."""
        self._channel.cancel()
        self._stopping.set()

    async def wait_ended(self) -> None:
        """Return when all is acked or back in its place."""
        await self._ended.wait()

    async def aclose(self) -> None:
        """
        Stop, and return when all is acked or back in its place.

        Raises:
            StoreError: If the store did not take everything back; it will when it is opened next.
        """
        self.stop()
        await self._ended.wait()
        if self._trouble is not None:
            raise self._trouble

    async def wait_idle(self) -> None:
        """Return when nothing (dead letters aside) is left in the subscription."""
        await self._channel.wait_idle()

    def statistics(self) -> DurableStatistics:
        """What it did; ``read_back`` are the deliveries."""
        return self._channel.statistics()

    def __repr__(self) -> str:
        return f"<Deliverer of {self._port.queue!r}>"
