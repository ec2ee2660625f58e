"""
The way to the disk: what is put into one queue of a store, in order, as many at once as wait.

While one transaction runs, writes pile up; the next one takes them all. So a hundred tasks that send one
item each cost the store one call, and what is done for one of them is an append and a wake-up.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence

import anyio
import attrs

from dispatcher._wait import Waiter, wake
from dispatcher.buffer.outcome import Ticket
from dispatcher.errors import QueueFull, StoreDiskFull, StoreError
from dispatcher.stores.base import Peeked, Record, Store, Stored

__all__ = ["GROUP_MAX", "DiskWriter", "Word", "Write"]

_LOG = logging.getLogger("dispatcher")

GROUP_MAX = 1000
"""Records in one transaction."""

PAUSE = 1.0
"""Seconds until a write that nobody waits for is tried again."""


class Write:
    """
    One record on its way.

    Args:
        record: What is written.

        ticket: Of its item.

        receipt: Whether somebody was given the ticket.

        lease: Put with a delivery that has begun.

        waiter: Is woken once it is done; None: nobody waits, and it is tried until it works.
    """

    __slots__ = ("begun", "done", "error", "lease", "receipt", "record", "ticket", "waiter")

    def __init__(
        self, record: Record, ticket: Ticket, *, receipt: bool, lease: bool, waiter: Waiter | None
    ) -> None:
        self.record, self.ticket, self.waiter = record, ticket, waiter
        self.receipt, self.lease = receipt, lease
        self.begun = self.done = False
        self.error: Exception | None = None
        """Why it was not written."""

    @property
    def abandoned(self) -> bool:
        """Nobody wants it any more."""
        return self.waiter is not None and self.ticket.outcome is not None

    def end(self, error: Exception | None = None) -> None:
        """Written, or not to be written."""
        self.error, self.done = error, True
        if self.waiter is not None:
            wake(self.waiter)


@attrs.frozen(kw_only=True)
class Word:
    """What is said of writes; each is called in the turn in which it is known, and has to return at once."""

    written: Callable[[Sequence[Write], Sequence[Stored], Sequence[Write]], None]
    """The first are stored; the last are not, for a newer one of their key is among the first."""

    forgotten: Callable[[Write], None]
    """It was abandoned, and will not be written."""

    dropped: Callable[[Sequence[Peeked]], None]
    """These records made room."""

    tried: Callable[[], None]
    """A transaction has ended, one way or the other; after `written`."""


class DiskWriter:
    """
    Writes for one channel, one transaction at a time.

    Args:
        store: Open.

        queue: There.

        word: Who is told.

        replace: The newest of a key wins.

        bytes_max: Bound on what lives in the queue; no single write may be larger. None: no bound.

        drop_oldest: At that bound: drop records, or else wait for room.
    """

    def __init__(
        self,
        store: Store,
        queue: str,
        word: Word,
        *,
        replace: bool,
        bytes_max: int | None,
        drop_oldest: bool,
    ) -> None:
        self._store, self._queue, self._word = store, queue, word
        self._replace, self._bytes_max, self._drop_oldest = replace, bytes_max, drop_oldest
        self._waiting: deque[Write] = deque()
        self._current: list[Write] = []
        self._most = GROUP_MAX
        self._idle: Waiter | None = None
        self._closed = self._halting = False
        self._room: anyio.CancelScope | None = None
        self._turn = anyio.Lock()
        self.registering = False
        """Records without a delivery are being put; their tickets are not known by their ids yet."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._current)

    def add(self, write: Write) -> None:
        """Write it soon."""
        self._waiting.append(write)
        if self._idle is not None:
            wake(self._idle)

    def withdrawn(self) -> None:
        """A write was abandoned; if it was the one that waited for room, others may fit."""
        if self._room is not None:
            self._room.cancel()

    def close(self) -> None:
        """Nothing more will be added: whoever waits for room waits in vain."""
        self._closed = True
        if self._room is not None:
            self._room.cancel()

    def halt(self) -> None:
        """Likewise, and what nobody waits for was accepted: it is written whatever the bound."""
        self.close()
        self._halting = True

    def _refuse(self) -> None:
        waiting = list(self._waiting)
        self._waiting.clear()
        for write in waiting:
            if write.waiter is None:
                self._waiting.append(write)
            else:
                write.end(anyio.ClosedResourceError())

    async def run(self, waiter: Callable[[], Waiter]) -> None:
        """Write whatever comes, until cancelled; a transaction that has begun is finished."""
        while True:
            if not self._waiting:
                self._idle = waiter()
                try:
                    await self._idle
                finally:
                    self._idle = None
            try:
                await self.write_all()
            except StoreError as error:
                _LOG.error("queue %r: the store failed, trying again: %s", self._queue, error)
                await anyio.sleep(PAUSE)

    async def write_all(self) -> None:
        """
        Return when nothing waits.

        Raises:
            StoreError: If it fails, and nobody waits for what it failed at; that is still waiting.
        """
        async with self._turn:
            while self._waiting:
                await self._write_some()

    async def _write_some(self) -> None:
        group = self._current = self._take()
        if not group:
            return
        full = False
        try:
            with anyio.CancelScope(shield=True):
                full = not await self._put(group)
            if full:
                await self._make_room(group)
        except StoreError as error:
            self._fail(group, error)
        finally:
            if self._current:  # not written: back to its place
                for write in group:
                    write.begun = False
                self._waiting.extendleft(reversed(group))
                self._current = []

    def _take(self) -> list[Write]:
        """The first that wait: alike, within a quarter of the bound (a whole group may never find room)."""
        group: list[Write] = []
        size = 0
        while self._waiting and len(group) < self._most:
            write = self._waiting[0]
            if not write.abandoned:
                size += write.record.size
                too_large = self._bytes_max is not None and size > self._bytes_max // 4
                if group and (write.lease != group[0].lease or too_large):
                    break
                group.append(write)
            else:
                self._word.forgotten(write)
            self._waiting.popleft()
        return group

    async def _put(self, group: list[Write]) -> bool:
        """Whether there was room; if so, all is written and told."""
        chosen, outdone = self._newest(group) if self._replace else (group, ())
        lease = group[0].lease
        self.registering = not lease
        for write in group:
            write.begun = True
        try:
            stored = await self._store.put(
                [write.record for write in chosen],
                [self._queue],
                lease=lease,
                replace=self._replace and not lease,
                bytes_max=None if self._halting else self._bytes_max,
            )
            self._current = []
            self._most = GROUP_MAX
            self._word.written(chosen, stored, outdone)
        except QueueFull:
            return False
        finally:
            self.registering = False
            self._word.tried()
        for write in group:
            write.end()
        return True

    @staticmethod
    def _newest(group: list[Write]) -> tuple[list[Write], list[Write]]:
        """Of several of one key only the last; and the others."""
        newest = {write.record.key: write for write in group}
        chosen = [write for write in group if newest[write.record.key] is write]
        return chosen, [write for write in group if newest[write.record.key] is not write]

    async def _make_room(self, group: list[Write]) -> None:
        size = sum(write.record.size for write in group)
        if self._drop_oldest:
            with anyio.CancelScope(shield=True):
                dropped = await self._store.drop_oldest(self._queue, size)
                self._word.dropped(dropped)
            if dropped:
                return
        if len(group) > 1:
            self._most = len(group) // 2
            return
        if self._closed and group[0].waiter is not None:
            self._current = []
            group[0].end(anyio.ClosedResourceError())
            self._refuse()
            return
        if self._halting:
            return
        assert self._bytes_max is not None
        # Back in its place meanwhile: who waits for room may leave, or be refused.
        group[0].begun = False
        self._waiting.appendleft(group[0])
        self._current = []
        try:
            with anyio.CancelScope() as self._room:
                await self._store.wait_room([self._queue], size, self._bytes_max)
        finally:
            self._room = None

    def _fail(self, group: list[Write], error: StoreError) -> None:
        if isinstance(error, StoreDiskFull) and len(group) > 1:
            self._most = len(group) // 2  # the smaller ones may fit
            return
        self._most = GROUP_MAX
        if group[0].waiter is None:
            raise error
        self._current = []
        for write in group:
            write.end(error)
