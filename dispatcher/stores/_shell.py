"""
The async side of the embedded engines: checks arguments, reads the clock, and lets tasks wait.
"""

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Self, TypeVar

import anyio

from dispatcher._wait import Backend, Waiter, current_backend, wake
from dispatcher.errors import OptionError, StoreClosed, UnknownQueue
from dispatcher.stores._engine import DEAD, LEASED, QUARANTINED, SHELVES, Engine, Hint, PutOptions
from dispatcher.stores.base import Capabilities, Counts, Dead, Leased, Nack, Peeked, Record, Shelf, Stored

__all__ = ["EmbeddedStore", "wall_clock"]

T = TypeVar("T")

QUEUE_CHARS_MAX = 512


def wall_clock() -> Callable[[], float]:
    """Unix seconds: the wall clock as it stands now, plus the monotonic time from here on."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()


def _check_whole(option: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise OptionError(option=option, rule=f"has to be a whole number, {least} or more", value=value)


def _check_bytes_max(value: int | None) -> None:
    if value is not None:
        _check_whole("bytes_max", value, 1)


def _check_timeout(value: float | None) -> None:
    if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
        rule = "has to be None or finite seconds of more than 0"
        raise OptionError(option="ack_timeout", rule=rule, value=value)


def _check_names(queues: Sequence[str]) -> None:
    if isinstance(queues, str):
        raise OptionError(option="queues", rule="has to be a sequence of names, not one", value=queues)
    if len(set(queues)) < len(queues):
        raise OptionError(option="queues", rule="names each at most once", value=tuple(queues))


class EmbeddedStore(ABC):
    """
    A `dispatcher.stores.base.Store` over an `Engine` of this process; see there.

    Args:
        clock: Reads the time, in Unix seconds; called by the event loop's thread only. None: the wall
            clock at opening plus the monotonic time since. For tests.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self, *, clock: Callable[[], float] | None = None) -> None:
        self._given_clock = clock
        self._clock: Callable[[], float] = clock or time.time
        self._now = -math.inf
        self._backend: Backend | None = None
        self._open = False
        self._hints: dict[str, Hint] = {}
        self._waiting: dict[str, list[Waiter]] = {}

    @abstractmethod
    async def _start(self) -> dict[str, Hint | None]:
        """Open the engine, and say what is in it."""

    @abstractmethod
    async def _stop(self) -> None:
        """Finish what was asked for, and close the engine."""

    @abstractmethod
    async def _step(
        self,
        step: Callable[[Engine, float], T],
        *,
        durable: bool = True,
        light: bool = False,
        orphan: Callable[[T], None] | None = None,
    ) -> T:
        """
        Do one step in the engine, and answer once it counts.

        Args:
            step: What to do, given the engine and the time.

            durable: False: what it does may be forgotten if the power fails.

            light: True: it either refuses before it changes anything, or succeeds; so it needs no
                savepoint of its own.

            orphan: Takes the result if the step was done but its caller was cancelled.
        """

    # -- opening and closing

    async def __aenter__(self) -> Self:
        """See `dispatcher.stores.base.Store.__aenter__`."""
        if self._open:
            msg = "the store is open already"
            raise RuntimeError(msg)
        self._clock = self._given_clock or wall_clock()
        self._now = -math.inf
        self._backend = current_backend()
        self._hints.clear()
        hints = await self._start()
        self._open = True
        self._take(hints)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """`aclose`."""
        await self.aclose()

    async def aclose(self) -> None:
        """See `dispatcher.stores.base.Store.aclose`."""
        if not self._open:
            return
        self._open = False
        for queue in list(self._waiting):
            self._wake(queue)
        with anyio.CancelScope(shield=True):
            await self._stop()

    def _check_open(self) -> None:
        if not self._open:
            msg = "the store is not open"
            raise StoreClosed(msg)

    def now(self) -> float:
        """See `dispatcher.stores.base.Store.now`."""
        self._now = max(self._now, self._clock())
        return self._now

    # -- queues

    async def create(self, *queues: str) -> None:
        """See `dispatcher.stores.base.Store.create`."""
        for name in queues:
            if not isinstance(name, str) or not 1 <= len(name) <= QUEUE_CHARS_MAX or not name.isprintable():
                rule = f"is 1 to {QUEUE_CHARS_MAX} printable characters"
                raise OptionError(option="a queue's name", rule=rule, value=name)
        await self._step(lambda engine, now: engine.create(now, queues))

    async def remove(self, *queues: str) -> None:
        """See `dispatcher.stores.base.Store.remove`."""
        await self._step(lambda engine, now: engine.remove(now, queues))

    async def queues(self) -> Sequence[str]:
        """See `dispatcher.stores.base.Store.queues`."""
        return await self._step(lambda engine, now: engine.queues(now), durable=False)

    # -- in

    async def put(
        self,
        records: Sequence[Record],
        queues: Sequence[str],
        *,
        replace: bool = False,
        front: bool = False,
        lease: bool = False,
        bytes_max: int | None = None,
    ) -> Sequence[Stored]:
        """See `dispatcher.stores.base.Store.put`."""
        _check_names(queues)
        _check_bytes_max(bytes_max)
        if replace and (front or lease):
            raise OptionError(
                option="replace", rule="goes with neither front nor lease", value=(replace, front, lease)
            )
        options = PutOptions(replace, front, lease, bytes_max)
        records, queues = tuple(records), tuple(queues)  # the caller may go on with its lists
        return await self._step(
            lambda engine, now: engine.put(now, records, queues, options),
            light=not replace,
            orphan=self._hand_back_stored if lease else None,
        )

    def _hand_back_stored(self, stored: Sequence[Stored]) -> None:
        self._hand_back([one.tag for one in stored if one.tag is not None])

    async def drop_oldest(self, queue: str, size: int) -> Sequence[Peeked]:
        """See `dispatcher.stores.base.Store.drop_oldest`."""
        _check_whole("size", size, 1)
        return await self._step(lambda engine, now: engine.drop_oldest(now, queue, size))

    # -- out

    async def lease(
        self, queue: str, limit: int, *, bytes_max: int | None = None, ack_timeout: float | None = None
    ) -> Sequence[Leased]:
        """See `dispatcher.stores.base.Store.lease`."""
        _check_whole("limit", limit, 1)
        _check_bytes_max(bytes_max)
        _check_timeout(ack_timeout)
        return await self._step(
            lambda engine, now: engine.lease(now, queue, limit, bytes_max, ack_timeout),
            durable=False,
            orphan=lambda leased: self._hand_back([one.tag for one in leased]),
        )

    @abstractmethod
    def _hand_back(self, tags: Sequence[str]) -> None:
        """Nobody got these deliveries: ready again, and no attempt. Does not wait."""

    async def settle(
        self, acks: Sequence[str] = (), nacks: Sequence[Nack] = (), dead: Sequence[Dead] = ()
    ) -> Sequence[str]:
        """See `dispatcher.stores.base.Store.settle`."""
        acks, nacks, dead = tuple(acks), tuple(nacks), tuple(dead)
        return await self._step(lambda engine, now: engine.settle(now, acks, nacks, dead))

    async def extend(self, tags: Sequence[str], ack_timeout: float | None) -> Sequence[str]:
        """See `dispatcher.stores.base.Store.extend`."""
        _check_timeout(ack_timeout)
        tags = tuple(tags)
        return await self._step(lambda engine, now: engine.extend(now, tags, ack_timeout), durable=False)

    async def release(self, queue: str) -> int:
        """See `dispatcher.stores.base.Store.release`."""
        return await self._step(lambda engine, now: engine.release(now, queue), durable=False)

    # -- care

    async def peek(
        self, queue: str, limit: int, *, shelf: Shelf = Shelf.READY, after: str | None = None
    ) -> Sequence[Peeked]:
        """See `dispatcher.stores.base.Store.peek`."""
        _check_whole("limit", limit, 1)
        code = SHELVES.index(shelf)
        return await self._step(
            lambda engine, now: engine.peek(now, queue, limit, code, after), durable=False
        )

    async def counts(self, queue: str) -> Counts:
        """See `dispatcher.stores.base.Store.counts`."""
        return await self._step(lambda engine, now: engine.counts(now, queue), durable=False)

    async def sweep(self) -> int:
        """See `dispatcher.stores.base.Store.sweep`."""
        return await self._step(lambda engine, now: engine.sweep(now))

    async def redrive(
        self, queue: str, ids: Sequence[str] | None = None, *, shelf: Shelf = Shelf.DEAD
    ) -> int:
        """See `dispatcher.stores.base.Store.redrive`."""
        code = SHELVES.index(shelf)
        if code not in (DEAD, QUARANTINED):
            raise OptionError(option="shelf", rule="has to be DEAD or QUARANTINED", value=shelf)
        ids = None if ids is None else tuple(ids)
        return await self._step(lambda engine, now: engine.redrive(now, queue, ids, code))

    async def purge(self, queue: str, ids: Sequence[str] | None = None, *, shelf: Shelf = Shelf.DEAD) -> int:
        """See `dispatcher.stores.base.Store.purge`."""
        code = SHELVES.index(shelf)
        if code == LEASED:
            raise OptionError(option="shelf", rule="cannot be LEASED: somebody has it", value=shelf)
        ids = None if ids is None else tuple(ids)
        return await self._step(lambda engine, now: engine.purge(now, queue, ids, code))

    # -- waiting

    async def wait_ready(self, queue: str) -> None:
        """See `dispatcher.stores.base.Store.wait_ready`."""
        await anyio.lowlevel.checkpoint()
        while True:
            hint = self._hint(queue)
            left = hint.due - self.now()
            if hint.ready or left <= 0:
                return
            with anyio.move_on_after(left), self._parked(queue) as waiter:
                await waiter

    async def wait_room(self, queues: Sequence[str], size: int, bytes_max: int) -> None:
        """See `dispatcher.stores.base.Store.wait_room`."""
        _check_names(queues)
        _check_whole("size", size, 0)
        _check_whole("bytes_max", bytes_max, 1)
        if size > bytes_max:
            raise OptionError(option="size", rule=f"has to be within bytes_max ({bytes_max})", value=size)
        await anyio.lowlevel.checkpoint()
        while True:
            full = [queue for queue in queues if self._hint(queue).live_bytes + size > bytes_max]
            if not full:
                return
            # What has expired still counts, until a step looks at the queue.
            left = self._hints[full[0]].expiry - self.now()
            if left <= 0:
                await self.counts(full[0])
            else:
                with anyio.move_on_after(left), self._parked(full[0]) as waiter:
                    await waiter

    def _hint(self, queue: str) -> Hint:
        self._check_open()
        try:
            return self._hints[queue]
        except KeyError:
            raise UnknownQueue(queue) from None

    @contextlib.contextmanager
    def _parked(self, queue: str) -> Iterator[Waiter]:
        """Until the block ends, the waiter is woken at every change of *queue*."""
        assert self._backend is not None
        waiter = self._backend.waiter()
        waiting = self._waiting.setdefault(queue, [])
        waiting.append(waiter)
        try:
            yield waiter
        finally:
            if waiter in waiting:  # not woken
                waiting.remove(waiter)

    def _wake(self, queue: str) -> None:
        for waiter in self._waiting.pop(queue, ()):
            wake(waiter)

    def _take(self, hints: dict[str, Hint | None]) -> None:
        """What the engine says has changed."""
        for queue, hint in hints.items():
            if hint is None:
                self._hints.pop(queue, None)
            else:
                self._hints[queue] = hint
            self._wake(queue)
