"""
A channel over a store: what it holds survives a full buffer, a halt and, as a journal, ``kill -9``.

Theory of operation. An ordinary channel does the sending. Around it run, in one task group: the pump,
which leases records as memory has room and puts them into the channel; the writer (`dispatcher._disk`),
which puts what has to be on disk, in order and many at a time; the settler, which tells the store what
became of records, all that waits in one transaction. An item's ticket carries the tag of its delivery, so that
the channel's core knows nothing of all this.

Leaving the block *halts*: intake ends, running SendFns end, and what is left goes back into the store.
Nothing leaves the store but on word of its outcome.
"""

import logging
import uuid
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, cast

import anyio
import anyio.abc
import attrs
from typing_extensions import TypeVar

from dispatcher._disk import DiskWriter, Word, Write
from dispatcher._wait import Waiter, wake
from dispatcher.buffer.batch import Batch, BufferedBatch
from dispatcher.buffer.full import BlockNewItems
from dispatcher.buffer.outcome import DropReason, Outcome, Status, Ticket
from dispatcher.buffer.stats import ChannelStatistics
from dispatcher.channel import Channel, ChannelEnded, Receipt
from dispatcher.codecs import JSON
from dispatcher.errors import ChannelMisuse, CodecError, ItemTooLarge, OptionError, StoreError
from dispatcher.options import ChannelOptions
from dispatcher.retry import DEFAULT, FOREVER
from dispatcher.stores.base import (
    KEY_CHARS_MAX,
    Counts,
    Dead,
    Leased,
    Nack,
    Peeked,
    Record,
    Shelf,
    Store,
    Stored,
)
from dispatcher.typing import Codec, SendFn

__all__ = ["DurableChannel", "DurableStatistics"]

T = TypeVar("T")
R = TypeVar("R", default=None)
R_co = TypeVar("R_co", covariant=True, default=None)

_LOG = logging.getLogger("dispatcher")

SPILL_MAX = 1000
"""Items on their way to the disk, in overflow mode; with more, senders wait."""

PUMP_MAX = 1000
"""Records leased at once."""

PAUSES = (0.05, 0.2, 1.0, 5.0)
"""Seconds between attempts at a store that fails; the last repeats, but a halt gives up after it."""

_KEPT: Outcome[Any] = Outcome(Status.DROPPED, reason=DropReason.KEPT)
_FULL: Outcome[Any] = Outcome(Status.DROPPED, reason=DropReason.FULL)
_WITHDRAWN: Outcome[Any] = Outcome(Status.DROPPED, reason=DropReason.CANCELLED)
_EXPIRED: Outcome[Any] = Outcome(Status.DROPPED, reason=DropReason.EXPIRED)
_SUPERSEDED: Outcome[Any] = Outcome(Status.DROPPED, reason=DropReason.SUPERSEDED)


@attrs.frozen(kw_only=True, slots=True)
class DurableStatistics:
    """A snapshot of a durable channel's own counts; `DurableChannel.counts` has the store's."""

    channel: ChannelStatistics
    """Of the channel in memory: what was read back counts as accepted there, once more."""

    accepted: int
    """Items taken by this run."""

    direct: int
    """Of these, straight into memory."""

    spilled: int
    """Of these, to the disk first."""

    read_back: int
    """Records that came from the disk into memory, those of former runs included."""

    in_memory: int
    """Items without an outcome in memory, with a SendFn included."""

    waiting_for_disk: int
    """Items on their way to the disk."""

    kept: int
    """Items that a halt left in the store."""

    quarantined: int
    """Records that the codec could not read."""

    dead: int
    """Items that became dead letters."""

    dropped_full: int
    """Records dropped from the disk to make room."""

    unsettled: int
    """Outcomes that the store does not know of yet."""


class _Ticket(Receipt[R_co]):
    """A receipt that knows its record, and always tells its channel."""

    __slots__ = ("_durable", "item", "pending", "record_id", "tag")

    def __init__(self, durable: "DurableChannel[Any, Any]", channel: "Channel[Any, Any]") -> None:
        super().__init__(channel)
        self.listeners = []
        self._durable = durable
        self.tag: str | None = None
        self.record_id: str | None = None
        self.item: Any = None
        self.pending = False
        """On disk, but its sender, who may yet be cancelled, has not heard of it."""

    def tell(self) -> None:
        super().tell()
        self._durable._told(self)  # noqa: SLF001 - one module

    def cancel(self) -> bool:
        """Withdraw the item, if it is with no SendFn; its record goes, too."""
        return self._durable._withdraw(self)  # noqa: SLF001


class _Inner(Channel[T, R]):
    """The channel that sends; cancelled, it halts, for what it holds is not its own to drop."""

    def __init__(self, send_fn: SendFn[T, R], options: ChannelOptions[T], name: str | None) -> None:
        super().__init__(send_fn, options, name=name)
        self.quiet: Waiter | None = None

    def _give_up(self, now: float) -> None:
        self._core.halt(now)

    def _take_back(
        self, batch: Batch[T], error: Exception | None, results: object, *, ask: bool = True
    ) -> None:
        super()._take_back(batch, error, results, ask=ask)
        if self.quiet is not None and not self._core.buffer.leased:
            wake(self.quiet)


class DurableChannel(Generic[T, R]):
    """
    A `Channel` whose items survive in a store.

    Leaving the block halts: running SendFns end, the rest stays on disk (receipts: DROPPED, KEPT), and
    the next run sends it. ``close()`` and ``wait_drained()`` before the end empty the disk, too. Items
    that failed for good become dead letters of the queue, with their error, and are never deleted.
    Delivery is at least once: after a crash, what was being sent is sent again.

    Args:
        send_fn: Sends one batch, as for `Channel`.

        store: Open, and stays so; has to be open for longer than this block.

        queue: Its queue in the store; made if it is not there. One channel at a time.

        mode:
            "overflow": memory first, the disk when memory is full; a crash loses what is in memory, a
            halt nothing. "journal": ``send`` returns once the item is durable.

        codec: Items as bytes and back. Default: `dispatcher.codecs.JSON`.

        options:
            As for `Channel`, with `BlockNewItems` as the bound on memory. The default retry never
            stops here. ``fifo`` keeps the order over memory and disk; without it, memory overtakes
            the disk. ``coalesce_by`` reaches the disk, too, where keys are compared by their repr.

        disk_bytes_max: Bound on the queue's live payloads, in bytes; None: the disk is the bound.

        disk_full: At that bound: "block" the senders, or "drop_oldest" records (FULL).

        name: For logs.

    Raises:
        OptionError: If a value breaks its rule, or two do not go together.
    """

    def __init__(
        self,
        send_fn: SendFn[T, R],
        store: Store,
        queue: str = "default",
        mode: Literal["overflow", "journal"] = "overflow",
        codec: Codec[T] | None = None,
        options: ChannelOptions[T] | None = None,
        *,
        disk_bytes_max: int | None = None,
        disk_full: Literal["block", "drop_oldest"] = "block",
        name: str | None = None,
    ) -> None:
        options = ChannelOptions() if options is None else options
        if options.retry is DEFAULT:
            options = attrs.evolve(options, retry=FOREVER)
        _check(store, mode, options, disk_bytes_max, disk_full)
        self._store = store
        self._queue = queue
        self._journal = mode == "journal"
        self._codec: Codec[T] = cast("Codec[T]", JSON()) if codec is None else codec
        self._options = options
        self._coalesce_by = options.coalesce_by
        self._in_order = options.fifo or options.coalesce_by is not None
        self._bytes_max = disk_bytes_max
        self._inner: _Inner[T, R] = _Inner(send_fn, options, name)
        self._run = uuid.uuid4().hex[:12]
        self._writer = DiskWriter(
            store,
            queue,
            Word(written=self._take_word, forgotten=self._forget, dropped=self._dropped, tried=self._tried),
            replace=options.coalesce_by is not None,
            bytes_max=disk_bytes_max,
            drop_oldest=disk_full == "drop_oldest",
        )

        self._group: anyio.abc.TaskGroup
        self._pump_scope = anyio.CancelScope()
        self._closed = False
        self._halting = False
        self._ended = False
        self._trouble: StoreError | None = None
        # On disk, or on the way there, and not read back: exact but for what expires there unseen.
        self._backlog = 0
        self._held: deque[Leased] = deque()
        self._reading = False
        self._fates: list[_Ticket[R]] = []
        self._settling = 0
        # Receipts of what is on disk, by record; and when they expire, in that order.
        self._awaited: dict[str, _Ticket[R]] = {}
        self._newest_receipts: dict[str, _Ticket[R]] = {}
        self._deadlines: deque[tuple[float, _Ticket[R]]] = deque()
        # Senders whose items are on their way into the journal.
        self._arriving = 0
        self._stayed: list[_Ticket[R]] = []
        self._put_away = False  # what has no outcome by now is kept
        self._written = 0
        self._waiting: dict[str, list[Waiter]] = {
            what: [] for what in ("room", "fate", "progress", "registered", "deadline")
        }
        self._tally = dict.fromkeys(
            ("accepted", "direct", "spilled", "read_back", "kept", "quarantined", "dead", "full"), 0
        )
        self._drained = False

    # Life

    async def __aenter__(self) -> Self:
        """
        Start; what former runs left is sent at once.

        Raises:
            ChannelMisuse: If it was entered before.

            StoreError: If the store fails.
        """
        await self._store.create(self._queue)
        counts = await self._store.counts(self._queue)
        self._backlog = counts.ready.items + counts.delayed.items
        await self._inner.__aenter__()
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group = group
        group.start_soon(self._pump)
        group.start_soon(self._settler)
        group.start_soon(self._writer.run, self._inner._make_waiter)  # noqa: SLF001
        if self._options.item_age_max is not None:
            group.start_soon(self._expirer, self._options.item_age_max)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """
        Halt; after an exception or a cancellation, running SendFns are cancelled.

        Raises:
            StoreError: If the store could not take what was left; what is lost then was logged.
        """
        ending = exc
        try:
            await self._halt(cancel=exc is not None)
        except BaseException as error:
            ending = error if ending is None else ending
        self._group.cancel_scope.cancel()
        try:
            await self._group.__aexit__(None, None, None)
        except BaseException as error:
            ending = error if ending is None else ending
        self._ended = True
        await self._inner.__aexit__(
            None if ending is None else type(ending), ending, None if ending is None else ending.__traceback__
        )
        if ending is not None and ending is not exc:
            raise ending
        if self._trouble is not None and exc is None:
            raise self._trouble

    async def _halt(self, *, cancel: bool) -> None:
        """Stop everything, and put back what is left."""
        self._closed = self._halting = True
        self._writer.halt()
        for name in self._waiting:
            self._wake(name)
        self._pump_scope.cancel()
        inner = self._inner
        core = inner._core  # noqa: SLF001 - its keeper
        core.halt(inner._clock())  # noqa: SLF001
        if cancel:
            inner.cancel()
        quiet = inner._make_waiter()  # noqa: SLF001
        inner.quiet = quiet
        try:
            if core.buffer.leased:
                await quiet
        except BaseException:
            inner.cancel()
            with anyio.CancelScope(shield=True):
                if core.buffer.leased:
                    inner.quiet = inner._make_waiter()  # noqa: SLF001
                    await inner.quiet
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await self._put_back()
            core.keep(inner._clock())  # noqa: SLF001
            for ticket in self._awaited.values():
                if ticket.outcome is None:
                    ticket.settle(_KEPT)
            self._awaited.clear()
            self._drained = self._drained or (not self._backlog and not self._tally["kept"])
            inner._after(inner._clock())  # noqa: SLF001
            self._wake("progress")

    async def _put_back(self) -> None:
        """Everything in memory goes to the store, in its order; what the store does not know yet is told."""
        try:
            await self._writer.write_all()
            while self._arriving:  # written by now; their senders have yet to hear of it
                await anyio.lowlevel.checkpoint()
            self._put_away = True
            contents = self._inner._core.buffer.contents()  # noqa: SLF001
            mine = [(item, cast("_Ticket[R]", ticket)) for item, ticket in contents]
            held: list[Nack] = []
            withdrawn: list[str] = []
            for record in self._held:
                waiting = self._awaited.get(record.id)
                if waiting is None or waiting.outcome is None:
                    held.append(Nack(record.tag, count=False))
                else:
                    withdrawn.append(record.tag)
            held += [Nack(ticket.tag or "", count=False) for ticket in self._stayed]
            loose = [self._record(item, ticket) for item, ticket in mine if ticket.tag is None]
            tags = [ticket.tag for _, ticket in mine if ticket.tag is not None]
            if loose and tags and self._in_order:
                # What has no record came while the disk was empty: it may go to the front with the rest,
                # and is between them. The old records go after the new ones are safe.
                loose = [self._record(item, ticket) for item, ticket in mine]
                await self._insist(lambda: self._store.put(loose, [self._queue], front=True))
                await self._insist(lambda: self._store.settle(acks=[*tags, *withdrawn], nacks=held))
            else:
                if loose:
                    await self._insist(lambda: self._store.put(loose, [self._queue], front=True))
                back = [*[Nack(tag, count=False) for tag in tags], *held]
                if back or withdrawn:
                    await self._insist(lambda: self._store.settle(acks=withdrawn, nacks=back))
            self._tally["kept"] += len(mine) + len(self._stayed)
            self._held.clear()
            await self._settle_all()
            # What was withdrawn while the pump had it, and came back to the disk unseen.
            gone = [name for name, ticket in self._awaited.items() if ticket.outcome and not ticket.tag]
            if gone:
                await self._insist(self._purge, gone)
        except StoreError as error:
            self._trouble = error
            _LOG.exception(
                "%r: the store failed while halting; items in memory that it did not take are lost", self
            )

    # Items in

    async def send(self, item: T) -> None:
        """
        Take *item*: into memory, or onto the disk (overflow); onto the disk in any case (journal).

        Waits only while the disk is full, or does not keep up. Cancelled, it has accepted nothing: what
        is being written at that moment is deleted again, though a crash in between may leave it.

        Raises:
            AddError: If no batch can take the item; `CodecError` if its codec cannot write it.

            StoreError: If the store fails (journal); nothing was accepted.

            anyio.ClosedResourceError, ChannelMisuse: As `Channel.send`.
        """
        await self._offer(item, _Ticket(self, self._inner), receipt=False)

    async def submit(self, item: T) -> Receipt[R]:
        """As `send`, with a receipt; KEPT if a halt comes before its outcome."""
        ticket: _Ticket[R] = _Ticket(self, self._inner)
        await self._offer(item, ticket, receipt=True)
        return ticket

    async def call(self, item: T) -> R:
        """Submit *item*, wait, return its result; cancelled, it withdraws the item if no SendFn has it."""
        self._inner._refuse_inside("call")  # noqa: SLF001
        receipt = await self.submit(item)
        try:
            outcome = await receipt.wait()
        except BaseException:
            receipt.cancel()
            raise
        return outcome.unwrap()

    async def consume(self, source: Iterable[T] | AsyncIterable[T]) -> None:
        """`send` everything that *source* yields."""
        if isinstance(source, AsyncIterable):
            async for item in source:
                await self.send(item)
        else:
            for item in source:
                await self.send(item)

    async def _offer(self, item: T, ticket: _Ticket[R], *, receipt: bool) -> None:
        inner = self._inner
        core = inner._core  # noqa: SLF001
        self._check_open()
        if not self._journal and len(core.items) < core.limit and not (self._in_order and self._backlog):
            ticket.item = item
            inner._append(item, ticket)  # noqa: SLF001
            self._tally["accepted"] += 1
            self._tally["direct"] += 1
            return
        if core.yield_owed:
            await inner._backend.pass_turn()  # noqa: SLF001
            core.yielded()
            self._check_open()
        if core.per_item:
            refusal = core.weigh(item, ticket)
            if refusal is not None:
                raise refusal
        if self._journal:
            await self._write(item, ticket, receipt=receipt)
        elif not (self._in_order and self._backlog) and core.fits(ticket, inner._clock()):  # noqa: SLF001
            ticket.item = item
            self._enter(item, ticket)
            self._tally["direct"] += 1
        else:
            await self._spill(item, ticket, receipt=receipt)
        self._tally["accepted"] += 1

    def _enter(self, item: T, ticket: Ticket, accepted_at: float | None = None) -> None:
        inner = self._inner
        now = inner._clock()  # noqa: SLF001
        inner._core.accept(item, ticket, now, accepted_at)  # noqa: SLF001
        inner._after_entry(now)  # noqa: SLF001

    def _record(self, item: T, ticket: Ticket) -> Record:
        try:
            payload = self._codec.encode(item)
        except CodecError:
            raise
        except Exception as error:
            msg = f"the codec could not write {type(item).__name__}: {type(error).__name__}: {error}"
            raise CodecError(msg) from error
        key = repr(ticket.key)[:KEY_CHARS_MAX] if self._coalesce_by is not None else None
        return Record(payload, key=key)

    async def _write(self, item: T, ticket: _Ticket[R], *, receipt: bool) -> None:
        """The journal's way in: durable first, then straight into memory if there is room."""
        core = self._inner._core  # noqa: SLF001
        record = self._fitting_record(item, ticket)
        size: int = getattr(ticket, "size", 0)
        direct = (
            self._coalesce_by is None
            and not (self._in_order and self._backlog)
            and core.reserve(size, ticket, self._inner._clock())  # noqa: SLF001
        )
        if not direct:  # memory is full, or order counts: the pump will read it back
            self._backlog += 1
        self._arriving += 1
        waiter = self._inner._make_waiter()  # noqa: SLF001
        write = Write(record, ticket, receipt=receipt, lease=direct, waiter=waiter)
        self._writer.add(write)
        try:
            await waiter
        except BaseException:
            self._abandon(write, size)
            raise
        if write.error is not None:
            self._abandon(write, size)
            raise write.error
        self._arriving -= 1
        if direct:
            core.unreserve(size)
            self._enter_written(item, ticket)
            return
        self._tally["spilled"] += 1
        self._heard(ticket)
        if not receipt:  # nobody will ask for it again
            self._awaited.pop(ticket.record_id or "", None)

    def _heard(self, ticket: _Ticket[R]) -> None:
        if ticket.pending:
            ticket.pending = False
            self._wake("registered")

    def _abandon(self, write: Write, size: int) -> None:
        self._heard(cast("_Ticket[R]", write.ticket))
        self._arriving -= 1
        if write.lease:
            self._inner._core.unreserve(size)  # noqa: SLF001
            self._inner._core.hand_room()  # noqa: SLF001
        if write.error is not None:
            self._backlog -= not write.lease
        elif self._withdraw(
            cast("_Ticket[R]", write.ticket)
        ):  # if it is written, or will be, its record goes
            self._writer.withdrawn()

    def _enter_written(self, item: T, ticket: _Ticket[R]) -> None:
        core = self._inner._core  # noqa: SLF001
        if core.closed:  # halted while it was written: it is on disk, and stays there
            self._stayed.append(ticket)
            ticket.settle(_KEPT)
            return
        self._tally["direct"] += 1
        if len(core.items) < core.limit:
            self._inner._append(item, ticket)  # noqa: SLF001
        else:
            self._enter(item, ticket)

    def _fitting_record(self, item: T, ticket: Ticket) -> Record:
        record = self._record(item, ticket)
        if self._bytes_max is not None and record.size > self._bytes_max:
            raise ItemTooLarge(record.size, self._bytes_max)
        return record

    # What becomes of writes

    def _take_word(self, writes: Sequence[Write], stored: Sequence[Stored], outdone: Sequence[Write]) -> None:
        """Records are on disk, and nobody else has run since."""
        for write, entry in zip(writes, stored, strict=True):
            ticket = cast("_Ticket[R]", write.ticket)
            if not write.lease:
                self._register(write, entry.id)
                continue
            ticket.tag = entry.tag
            if ticket.outcome is not None:  # withdrawn while it was written
                self._told(ticket)
        self._backlog -= len(outdone)
        for write in outdone:
            if write.ticket.outcome is None:
                write.ticket.settle(_SUPERSEDED)

    def _tried(self) -> None:
        self._wake("registered")
        self._wake("room")

    def _forget(self, write: Write) -> None:
        if not write.lease:
            self._backlog -= 1

    def _register(self, write: Write, record_id: str) -> None:
        """A record is on disk; its receipt, if there is one, waits for it, and so may its sender."""
        self._written += 1
        key, ticket = write.record.key, cast("_Ticket[R]", write.ticket)
        if key is not None:
            old = self._newest_receipts.pop(key, None)
            if old is not None and old.outcome is None and old.tag is None:  # its record is gone
                self._awaited.pop(old.record_id or "", None)
                old.record_id = None
                old.settle(_SUPERSEDED)
        ticket.record_id = record_id
        if ticket.outcome is not None:  # withdrawn while it was written
            self._awaited[record_id] = ticket
            self._told(ticket)
            return
        ticket.pending = write.waiter is not None
        if write.receipt or ticket.pending:
            self._awaited[record_id] = ticket
        if write.receipt:
            if key is not None:
                self._newest_receipts[key] = ticket
            if self._options.item_age_max is not None:
                deadline = self._inner._clock() + self._options.item_age_max  # noqa: SLF001
                self._deadlines.append((deadline, ticket))
                self._wake("deadline")

    def _dropped(self, dropped: Sequence[Peeked]) -> None:
        """Records made room; their receipts and the hook are told."""
        self._tally["full"] += len(dropped)
        self._backlog = max(0, self._backlog - len(dropped))
        items: list[T] = []
        for record in dropped:
            ticket = self._awaited.pop(record.id, None)
            if ticket is not None and ticket.outcome is None:
                ticket.settle(_FULL)
            try:
                items.append(self._codec.decode(record.payload))
            except Exception:
                _LOG.warning("%r: dropped a record that its codec cannot read", self)
        if items and self._options.on_drop is not None:
            lot: BufferedBatch[T] = BufferedBatch(0, self._inner._clock())  # noqa: SLF001
            view = Batch(lot, tuple(items), None, self._run)
            self._inner._guarded(self._options.on_drop, view, DropReason.FULL)  # noqa: SLF001

    async def _spill(self, item: T, ticket: _Ticket[R], *, receipt: bool) -> None:
        """Overflow's second way in: accepted at once, and written soon."""
        record = self._fitting_record(item, ticket)
        while len(self._writer) >= SPILL_MAX:
            self._inner._refuse_inside("send to a full disk")  # noqa: SLF001
            await self._wait("room")
            self._check_open()
        self._writer.add(Write(record, ticket, receipt=receipt, lease=False, waiter=None))
        self._backlog += 1
        self._tally["spilled"] += 1

    # Tasks

    async def _pump(self) -> None:
        with self._pump_scope:
            while True:
                try:
                    await self._pump_once()
                except anyio.ClosedResourceError:
                    if not self._halting:
                        raise
                    return  # halted while it waited for room in memory; what it holds goes back
                except StoreError as error:
                    _LOG.error("%r: the store failed, trying again: %s", self, error)
                    await anyio.sleep(PAUSES[-2])

    async def _pump_once(self) -> None:
        inner = self._inner
        core = inner._core  # noqa: SLF001
        if self._closed:
            if await self._emptied():
                inner.close()
                await anyio.sleep_forever()
            with anyio.move_on_after(PAUSES[0]):
                await self._wait_ready()
        else:
            with anyio.CancelScope() as self._pump_wait:
                await self._wait_ready()
        if core.free < 1:
            await inner._wait_for_room(None, inner._clock())  # noqa: SLF001
        limit = int(min(max(core.free, 1), PUMP_MAX))
        self._reading = True
        self._held.extend(await self._lease(limit))
        while self._writer.registering:  # their receipts may be among these
            await self._wait("registered")
        while self._held:
            await self._enter_record(self._held[0])
            self._held.popleft()
            self._backlog = max(0, self._backlog - 1)
            self._tally["read_back"] += 1
        self._reading = False
        if self._coalesce_by is not None:
            await self._recount()
        self._wake("progress")

    # What the broker's channels do otherwise

    async def _wait_ready(self) -> None:
        await self._store.wait_ready(self._queue)

    async def _lease(self, limit: int) -> Sequence[Leased]:
        return await self._store.lease(self._queue, limit)

    def _decode(self, record: Leased) -> T:
        return self._codec.decode(record.payload)

    async def _recount(self) -> None:
        """Records that were replaced on disk are nobody's backlog any more."""
        written = self._written
        counts = await self._store.counts(self._queue)
        if written == self._written and not self._writer.registering:  # else: there is more to read back
            self._backlog = counts.ready.items + counts.delayed.items + len(self._writer)

    async def _emptied(self) -> bool:
        """Whether neither the disk nor the way there holds anything for this run."""
        counts = await self._store.counts(self._queue)
        on_disk = counts.ready.items or counts.delayed.items
        return not (on_disk or self._held or self._writer or self._arriving)

    async def _enter_record(self, record: Leased) -> None:
        """Put a record into the channel; one that cannot go there is set aside."""
        inner = self._inner
        core = inner._core  # noqa: SLF001
        while (there := self._awaited.get(record.id)) is not None and there.pending:
            await self._wait("registered")
        ticket = self._awaited.pop(record.id, None)
        if ticket is None:
            ticket = _Ticket(self, inner)
        elif record.key is not None and self._newest_receipts.get(record.key) is ticket:
            del self._newest_receipts[record.key]
        ticket.tag = record.tag
        if ticket.outcome is not None:  # withdrawn or expired while it was on disk
            self._told(ticket)
            return
        try:
            item = self._decode(record)
        except Exception as error:
            await self._set_aside(ticket, error, quarantine=True)
            return
        try:
            refusal: Exception | None = core.weigh(item, ticket) if core.per_item else None
        except Exception as error:
            refusal = error
        if refusal is not None:
            await self._set_aside(ticket, refusal, quarantine=False)
            return
        if not core.fits(ticket, inner._clock()):  # noqa: SLF001
            try:
                await inner._wait_for_room(ticket, inner._clock())  # noqa: SLF001
            except BaseException:
                self._awaited[record.id] = ticket  # it stays on disk
                raise
            if self._withdrawn(ticket):
                core.hand_room()
                return
        age = max(0.0, self._store.now() - record.put_at)
        self._enter(item, ticket, inner._clock() - age)  # noqa: SLF001

    @staticmethod
    def _withdrawn(ticket: _Ticket[R]) -> bool:
        return ticket.outcome is not None

    async def _set_aside(self, ticket: _Ticket[R], error: Exception, *, quarantine: bool) -> None:
        _LOG.error("%r: a record cannot be sent and is set aside: %s", self, error)
        self._tally["quarantined" if quarantine else "dead"] += 1
        dead = Dead(ticket.tag or "", f"{type(error).__name__}: {error}", quarantine=quarantine)
        with anyio.CancelScope(shield=True):
            await self._insist(lambda: self._store.settle(dead=[dead]))
        ticket.tag = None
        ticket.settle(Outcome(Status.FAILED, error=error))

    async def _expirer(self, age: float) -> None:
        """Tell the receipts of what becomes too old on disk; the pump deletes the records."""
        clock = self._inner._clock  # noqa: SLF001
        while True:
            if not self._deadlines:
                await self._wait("deadline")
                continue
            deadline, ticket = self._deadlines[0]
            if ticket.outcome is None and not hasattr(ticket, "batch"):
                if clock() < deadline:
                    await anyio.sleep_until(deadline)
                    continue
                ticket.settle(_EXPIRED)
            self._deadlines.popleft()

    async def _settler(self) -> None:
        while True:
            if not self._fates:
                await self._wait("fate")
                continue
            with anyio.CancelScope(shield=True):
                await self._settle_all()

    async def _settle_all(self) -> None:
        """Tell the store what became of records: one transaction for all that waits."""
        while self._fates:
            fates, self._fates = self._fates, []
            self._settling = len(fates)
            acks: list[str] = []
            dead: list[Dead] = []
            unread: list[str] = []
            loose: list[tuple[Record, str]] = []
            for ticket in fates:
                outcome = ticket.outcome
                error = outcome.error if outcome is not None else None
                if ticket.tag is None and ticket.record_id is not None:
                    unread.append(ticket.record_id)
                    continue
                if error is None:
                    acks.append(cast("str", ticket.tag))
                    continue
                text = f"{type(error).__name__}: {error}"
                if ticket.tag is not None:
                    dead.append(Dead(ticket.tag, text))
                else:
                    loose.append((attrs.evolve(self._record(ticket.item, ticket), key=None), text))
            if loose:
                stored = await self._insist(self._put_leased, [record for record, _ in loose])
                dead.extend(
                    Dead(cast("str", entry.tag), text) for entry, (_, text) in zip(stored, loose, strict=True)
                )
            await self._insist(self._store.settle, acks, (), dead)
            if unread:
                gone = await self._insist(self._purge, unread)
                self._backlog = max(0, self._backlog - gone)
            self._tally["dead"] += len(dead)
            self._settling = 0
            self._wake("progress")

    async def _purge(self, record_ids: Sequence[str]) -> int:
        """Delete what was withdrawn or expired on disk; what the pump has by now, it sees itself."""
        gone = 0
        # While it reads, some may be gone and some not: then each by itself, for it has to be known which.
        parts = [[record_id] for record_id in record_ids] if self._reading else [record_ids]
        for part in parts:
            purged = await self._store.purge(self._queue, part, shelf=Shelf.READY)
            gone += purged
            if purged == len(part):
                for record_id in part:
                    self._awaited.pop(record_id, None)
        return gone

    async def _put_leased(self, records: Sequence[Record]) -> Sequence[Stored]:
        return await self._store.put(records, [self._queue], lease=True)

    async def _insist(self, step: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401
        """Repeat a step of the store until it works; a halt gives up in the end."""
        attempt = 0
        while True:
            try:
                return await step(*args)
            except StoreError as error:
                if self._halting and attempt >= len(PAUSES):
                    raise
                _LOG.error("%r: the store failed, trying again: %s", self, error)
                await anyio.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
                attempt += 1

    # Word from tickets

    def _told(self, ticket: _Ticket[R]) -> None:
        """A ticket has its outcome: the store has to know, if there is a record, or has to be one."""
        outcome = ticket.outcome
        if outcome is None or outcome.reason is DropReason.KEPT or outcome.reason is DropReason.FULL:
            return
        on_disk = ticket.tag is not None or ticket.record_id is not None
        if on_disk or (outcome.error is not None and ticket.item is not None):
            self._fates.append(ticket)
            self._wake("fate")

    def _withdraw(self, ticket: _Ticket[R]) -> bool:
        if ticket.outcome is not None or self._put_away:
            return False
        if hasattr(ticket, "batch"):
            return self._inner._withdraw(ticket)  # noqa: SLF001
        ticket.settle(_WITHDRAWN)  # on disk, or on the way there: the settler will delete it
        return True

    # Ends

    def cut(self) -> None:
        """Cut the open batch in memory now."""
        self._inner.cut()

    async def flush(self) -> None:
        """Cut, and return when everything accepted before, on disk too, has its outcome."""
        self._inner._refuse_inside("flush")  # noqa: SLF001
        target = self._tally["read_back"] + self._backlog
        while self._tally["read_back"] < target and self._backlog:
            await self._wait("progress")
        await self._inner.flush()
        while self._fates or self._settling:
            await self._wait("progress")

    def close(self) -> None:
        """Take no more; what is in memory and on disk is sent."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        if hasattr(self, "_pump_wait"):
            self._pump_wait.cancel()
        for name in ("room", "progress"):
            self._wake(name)

    async def aclose(self) -> None:
        """Close, and return when memory and disk are empty; cancelled, it halts at the block's end."""
        self.close()
        await self.wait_drained()

    async def wait_drained(self) -> None:
        """Return when it is closed, and memory and disk are empty, dead letters aside."""
        await self._inner.wait_drained()
        while self._fates or self._settling:
            await self._wait("progress")
        self._drained = True

    async def wait_idle(self) -> None:
        """Return when nothing is in memory, in flight or (dead letters aside) on disk."""
        self._inner._refuse_inside("wait_idle")  # noqa: SLF001
        while self._backlog or self._held or self._fates or self._settling or not self._inner._core.idle:  # noqa: SLF001
            if self._backlog or self._held or self._fates or self._settling:
                await self._wait("progress")
            else:
                await self._inner.wait_idle()

    def cancel(self) -> None:
        """Take no more, and cancel the SendFns that run; all that is left is kept at the block's end."""
        self._closed = True
        self._pump_scope.cancel()
        self._inner.cancel()

    def _check_open(self) -> None:
        if self._ended:
            raise ChannelEnded
        if not hasattr(self, "_group"):
            msg = f"{self!r} is used before its 'async with' block"
            raise ChannelMisuse(msg)
        if self._closed:
            raise anyio.ClosedResourceError

    @property
    def closed(self) -> bool:
        """No more items are taken."""
        return self._closed

    @property
    def drained(self) -> bool:
        """Closed, and memory and disk were empty."""
        return self._drained

    def statistics(self) -> DurableStatistics:
        """A snapshot of what this process did; at any time."""
        channel, tally = self._inner.statistics(), self._tally
        return DurableStatistics(
            channel=channel,
            accepted=tally["accepted"],
            direct=tally["direct"],
            spilled=tally["spilled"],
            read_back=tally["read_back"],
            in_memory=channel.live + len(self._held),
            waiting_for_disk=len(self._writer),
            kept=tally["kept"],
            quarantined=tally["quarantined"],
            dead=tally["dead"],
            dropped_full=tally["full"],
            unsettled=len(self._fates) + self._settling,
        )

    async def counts(self) -> Counts:
        """What lies in the store: items and bytes per shelf, the oldest's age, dead letters."""
        return await self._store.counts(self._queue)

    def __repr__(self) -> str:
        return f"<DurableChannel on queue {self._queue!r} over {self._inner!r}>"

    # Waiting

    async def _wait(self, what: str) -> None:
        waiter = self._inner._make_waiter()  # noqa: SLF001
        waiters = self._waiting[what]
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in waiters:
                waiters.remove(waiter)

    def _wake(self, what: str) -> None:
        waiters, self._waiting[what] = self._waiting[what], []
        for waiter in waiters:
            wake(waiter)


def _check(
    store: Store,
    mode: str,
    options: ChannelOptions[Any],
    disk_bytes_max: int | None,
    disk_full: str,
) -> None:
    """All refusals, before anything is made."""
    if mode not in ("overflow", "journal"):
        raise OptionError(option="mode", rule='has to be "overflow" or "journal"', value=mode)
    if disk_full not in ("block", "drop_oldest"):
        raise OptionError(option="disk_full", rule='has to be "block" or "drop_oldest"', value=disk_full)
    if disk_bytes_max is not None and disk_bytes_max < 1:
        raise OptionError(option="disk_bytes_max", rule="has to be 1 or more, or None", value=disk_bytes_max)
    if not isinstance(options.full_behavior, BlockNewItems):
        rule = "has to be BlockNewItems over a store, which takes what memory has no room for"
        raise OptionError(option="full_behavior", rule=rule, value=options.full_behavior)
    if options.coalesce_by is not None and not store.capabilities.replace:
        rule = "needs a store with the capability replace"
        raise OptionError(option="coalesce_by", rule=rule, value=options.coalesce_by)
