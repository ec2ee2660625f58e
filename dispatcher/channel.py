"""
The channel: a thin shell that gives the coordinator a clock, workers, a timer and waiters.

It holds no counts of its own. Each public method is one step of the coordinator, followed by `_after`,
which looks at what the step left to do. The event loop makes steps atomic; nothing here may be called
from another thread.

Tasks, all children of one group that lives as long as the ``async with`` block: a keeper, which sleeps
until something becomes due by the passing of time, and up to ``max_leases`` workers, started when first
needed, which take batches and park when there is none. One worker is sent for at a time; having taken
its batch, it sends for the next one if there is more to do.
"""

import logging
import math
import uuid
from collections.abc import AsyncIterable, Callable, Iterable
from contextvars import Context, ContextVar, copy_context
from types import TracebackType
from typing import Any, Generic, Self

import anyio
import anyio.abc
from aiolimiter import AsyncLimiter
from typing_extensions import TypeVar

from dispatcher._coordinator import Blocked, Coordinator
from dispatcher._wait import Backend, Waiter, current_backend, wake
from dispatcher.buffer.batch import Batch, Watch
from dispatcher.buffer.buffer import Failure
from dispatcher.buffer.outcome import Outcome, Ticket
from dispatcher.buffer.stats import ChannelStatistics
from dispatcher.errors import ChannelMisuse, OptionError, SendCancelled, WouldDeadlock
from dispatcher.options import ChannelOptions
from dispatcher.typing import SendFn

__all__ = ["BufferFull", "Channel", "ChannelEnded", "Receipt", "process"]

T = TypeVar("T")
R = TypeVar("R", default=None)
R_co = TypeVar("R_co", covariant=True, default=None)

_LOG = logging.getLogger("dispatcher")

_INSIDE: "ContextVar[tuple[Channel[Any, Any], ...]]" = ContextVar("dispatcher_inside", default=())
"""The channels whose SendFn the current context belongs to."""

LIMITER_PAUSE = 1.0
"""Seconds until a limiter that raised is asked again."""

BATCHES_PER_TURN = 50
"""A worker whose SendFn never suspends lets others run after so many batches, and after each failure."""


class BufferFull(anyio.WouldBlock):
    """The item would have to wait; it was not accepted."""


class ChannelEnded(anyio.ClosedResourceError, ChannelMisuse):
    """The channel's ``async with`` block is over."""


class Receipt(Ticket, Generic[R_co]):
    """
    Tells one item's fate; from `Channel.submit`.

    One that nobody waits for costs nothing more, and says nothing.
    """

    __slots__ = ("_channel",)

    wants_result = True
    outcome: Outcome[R_co] | None
    """None until the item has its outcome."""

    listeners: Waiter | list[Waiter] | None
    """For the channel alone: who waits."""

    def __init__(self, channel: "Channel[Any, R_co]") -> None:
        # Ticket.__init__, spelled out: this is made once per item.
        self.outcome = None
        self.listeners = None
        self._channel = channel

    async def wait(self) -> Outcome[R_co]:
        """
        Return the outcome once there is one; at once if there is one already.

        Cancelled, it withdraws nothing: see `cancel`.

        Raises:
            WouldDeadlock: If called from the channel's own SendFn for an unsettled item.
        """
        outcome = self.outcome
        if outcome is None:
            channel = self._channel
            if _INSIDE.get():
                channel._refuse_inside("Receipt.wait")  # noqa: SLF001 - one module
            waiter = channel._make_waiter()  # noqa: SLF001
            listeners = self.listeners
            if listeners is None:
                self.listeners = waiter
            elif isinstance(listeners, list):
                listeners.append(waiter)
            else:
                self.listeners = [listeners, waiter]
            try:
                await waiter
            except BaseException:
                self._forget(waiter)
                raise
            outcome = self.outcome
            assert outcome is not None  # woken by settle alone
        return outcome

    def _forget(self, waiter: Waiter) -> None:
        if self.listeners is waiter:
            self.listeners = None
        elif isinstance(self.listeners, list) and waiter in self.listeners:
            self.listeners.remove(waiter)

    def cancel(self) -> bool:
        """
        Withdraw the item, if it is with no SendFn: before its lease, or between attempts.

        Returns:
            True if it left: its outcome is DROPPED, CANCELLED. False if it has an outcome already, or
            is with a SendFn now.
        """
        return self._channel._withdraw(self)  # noqa: SLF001

    def tell(self) -> None:
        """For the channel alone: wake who waits."""
        listeners = self.listeners
        self.listeners = None
        if isinstance(listeners, list):
            for waiter in listeners:
                wake(waiter)
        elif listeners is not None and not listeners.done():
            listeners.set_result(None)

    def __repr__(self) -> str:
        state = "waiting" if self.outcome is None else self.outcome.status.value
        return f"<Receipt {state}>"


class _BlockedSender(Blocked):
    __slots__ = ("waiter",)

    def __init__(self, size: int, waiter: Waiter) -> None:
        super().__init__(size)
        self.waiter = waiter

    def wake(self) -> None:
        wake(self.waiter)

    def turn(self) -> None:
        wake(self.waiter)


class _Flush(Watch):
    __slots__ = ("waiter",)

    def __init__(self, waiter: Waiter) -> None:
        super().__init__()
        self.waiter = waiter

    def gone(self) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            wake(self.waiter)


class Channel(anyio.abc.UnreliableObjectSendStream[T], Generic[T, R]):
    """
    Buffers items, and sends them in batches through *send_fn*.

    Every accepted item gets exactly one outcome: delivered, failed or dropped. Runs on asyncio and on
    trio; belongs to the event loop, and the thread, in which it was entered.

    Args:
        send_fn: Sends one batch (`SendFn`).

        options: Default: `ChannelOptions()`.

        name: For logs.

    Raises:
        OptionError: If *send_fn* cannot be called, or *options* are something else.
    """

    def __init__(
        self,
        send_fn: SendFn[T, R],
        options: ChannelOptions[T] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        if not callable(send_fn):
            raise OptionError(
                option="send_fn", rule="has to be an async function of one batch", value=send_fn
            )
        if options is not None and not isinstance(options, ChannelOptions):
            raise OptionError(option="options", rule="has to be a ChannelOptions, or None", value=options)
        self._send_fn = send_fn
        self._options: ChannelOptions[T] = ChannelOptions() if options is None else options
        self._name = name
        self._timeout = self._options.send_timeout
        self._limiter = self._options.qps_limit
        self._on_error = self._options.on_error
        self._on_drop = self._options.on_drop
        min_qps = self._options.min_qps
        self._core: Coordinator[T] = Coordinator(
            self._options,
            run=uuid.uuid4().hex,
            policy=self._options.retry,
            heartbeat_every=None if min_qps is None else 1 / min_qps,
            limited=self._limiter is not None,
        )
        self._state = "new"
        self._backend: Backend
        self._make_waiter: Callable[[], Waiter]
        self._clock: Callable[[], float]
        self._context: Context
        self._group: anyio.abc.TaskGroup
        self._workers_group: anyio.abc.TaskGroup
        self._timer: anyio.CancelScope | None = None
        self._alarm = math.inf
        self._back_soon = False
        self._workers = 0
        self._parked: list[Waiter] = []
        self._sent_for = False
        self._telling = False
        self._finished = False
        self._crash: BaseException | None = None
        self._idle_waiters: list[Waiter] = []
        self._drained_waiters: list[Waiter] = []

    # Life

    async def __aenter__(self) -> Self:
        """
        Start the channel.

        Raises:
            ChannelMisuse: If it was entered before.

            OptionError: If the limiter is asyncio's alone and this is not asyncio.
        """
        if self._state != "new":
            msg = f"{self!r} was entered before; a channel lives once"
            raise ChannelMisuse(msg)
        backend = current_backend()
        if backend.name != "asyncio" and isinstance(self._limiter, AsyncLimiter):
            raise OptionError(
                option="qps_limit",
                rule=f"has to run on {backend.name}, as limits.Rate does",
                value=self._limiter,
            )
        self._backend = backend
        self._make_waiter = backend.waiter
        self._clock = backend.clock
        self._context = copy_context()
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group = group
        self._state = "open"
        self._core.begin(backend.clock())
        group.start_soon(self._run, name=f"{self!r} keeper")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """
        Drain (after an exception: cancel), and end.

        The block's exception leaves as itself. What a SendFn or a hook raised beyond ``Exception``
        leaves in its place.
        """
        ending = exc
        if exc is None:
            try:
                await self.aclose()
            except BaseException as error:
                ending = error
        else:
            self.cancel()
        cancelled = self._backend.cancelled
        try:
            # The group has to see a cancellation, or its scope would not; it would wrap all else.
            if isinstance(ending, cancelled):
                await self._group.__aexit__(type(ending), ending, ending.__traceback__)
            else:
                await self._group.__aexit__(None, None, None)
        except BaseException as error:
            # The scope around is cancelled, and that was met once more; the block's own exception leaves.
            known = isinstance(error, cancelled) and not (ending is None or isinstance(ending, cancelled))
            if self._crash is None and not known:
                raise
        finally:
            self._state = "ended"
        if self._crash is not None:
            raise self._crash
        if ending is not None and ending is not exc:
            raise ending

    async def _run(self) -> None:
        # Shielded, for the block alone decides when the channel ends: where a scope around both is
        # cancelled, but the block is shielded from it, its items still have to be sent.
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as workers:
                self._workers_group = workers
                self._after(self._clock())
                await self._keep()
                workers.cancel_scope.cancel()

    async def _keep(self) -> None:
        """Sleep until something is due by the passing of time; look; sleep again."""
        core, clock = self._core, self._clock
        while not self._finished:
            at = core.outlook(clock())
            if at == -math.inf:
                # Due by now, though perhaps not yet when `_after` looked: hooks take their time.
                if not self._sent_for:
                    self._send_for_worker()
                at = math.inf
            self._alarm = -math.inf if self._back_soon else at
            try:
                # Once the workers are dismissed, the keeper stays until they are gone.
                with anyio.CancelScope(deadline=self._alarm, shield=self._dismissed) as self._timer:
                    await anyio.sleep_forever()
            except self._backend.cancelled:
                # By cancel(), or because a stranger (asyncio's loop at its end, for one) cancelled this
                # task, or a worker before it had begun, with which the whole group falls.
                if not self._dismissed:
                    self._backend.forget_cancellation()
                self.cancel()
            self._back_soon = False
            # A timer may fire early by the clock's resolution, and what is due then is due.
            now = max(self._alarm, clock())
            core.tick(now)
            self._after(now)

    def _set_alarm(self, at: float) -> None:
        """Only ever earlier: a late alarm that fires in vain costs less than moving it each time."""
        if at < self._alarm:
            self._alarm = at
            if self._timer is not None:
                self._timer.deadline = at

    def _come_back(self) -> None:
        """Have the keeper look in the next turn of the loop."""
        self._back_soon = True
        self._set_alarm(-math.inf)

    # Items in

    async def send(self, item: T) -> None:
        """
        Take *item*; wait, first come first served, while the buffer is full.

        Does not suspend while there is room, but for a turn of the loop now and then. Cancelled, it has
        accepted nothing.

        Raises:
            AddError: If no batch can take the item, by its size.

            anyio.ClosedResourceError: If the channel is or becomes closed.

            ChannelMisuse: If used outside the ``async with`` block; `WouldDeadlock` if it would have to
                wait inside the channel's own SendFn.
        """
        core = self._core
        items = core.items
        if len(items) < core.limit:
            items.append(item)
            return
        await self._enter(item, None)

    def send_nowait(self, item: T) -> None:
        """
        Take *item* now or not at all.

        Raises:
            BufferFull: If it would have to wait.

            AddError, anyio.ClosedResourceError, ChannelMisuse: As `send`.
        """
        core = self._core
        items = core.items
        if len(items) < core.limit:
            items.append(item)
            return
        self._enter_nowait(item, None)

    async def submit(self, item: T) -> Receipt[R]:
        """As `send`, with a receipt."""
        receipt: Receipt[R] = Receipt(self)
        core = self._core
        if len(core.items) < core.limit:
            self._append(item, receipt)
        else:
            await self._enter(item, receipt)
        return receipt

    def submit_nowait(self, item: T) -> Receipt[R]:
        """As `send_nowait`, with a receipt."""
        receipt: Receipt[R] = Receipt(self)
        core = self._core
        if len(core.items) < core.limit:
            self._append(item, receipt)
        else:
            self._enter_nowait(item, receipt)
        return receipt

    async def call(self, item: T) -> R:
        """
        Submit *item*, wait, and return its result: request and response, batched.

        Cancelled, it withdraws the item if no SendFn has it.

        Raises:
            ItemFailed: If it failed.

            ItemDropped: If it was dropped.

            AddError, anyio.ClosedResourceError, ChannelMisuse: As `send`.
        """
        self._refuse_inside("call")
        receipt = await self.submit(item)
        try:
            outcome = await receipt.wait()
        except BaseException:
            receipt.cancel()
            raise
        return outcome.unwrap()

    async def consume(self, source: Iterable[T] | AsyncIterable[T]) -> None:
        """`send` everything that *source* yields; raises what it raises, and as `send`."""
        if isinstance(source, AsyncIterable):
            async for item in source:
                await self.send(item)
        else:
            for item in source:
                await self.send(item)

    def _append(self, item: T, receipt: Receipt[R]) -> None:
        """The short way in for an item with a receipt; there has to be room."""
        core = self._core
        lot = core.buffer.open
        assert lot is not None  # its list is core.items
        items, tickets = lot.items, lot.tickets
        if len(tickets) != len(items):
            lot.pad()
        items.append(item)
        tickets.append(receipt)
        receipt.batch = lot

    def _check_open(self) -> None:
        if self._state != "open":
            if self._state == "ended":
                raise ChannelEnded
            msg = f"{self!r} is used before its 'async with' block"
            raise ChannelMisuse(msg)
        if self._core.closed:
            raise anyio.ClosedResourceError

    async def _enter(self, item: T, ticket: Ticket | None) -> None:
        """The way in where something has to be looked at."""
        core = self._core
        if self._state != "open" or core.closed:
            self._check_open()
        if core.yield_owed:
            await self._backend.pass_turn()
            core.yielded()
            self._check_open()
        if core.per_item:
            ticket = self._weigh(item, ticket)
        now = self._clock()
        if not core.fits(ticket, now):
            self._refuse_inside("send to a full buffer")
            await self._wait_for_room(ticket, now)
            now = self._clock()
        core.accept(item, ticket, now)
        self._after_entry(now)

    def _enter_nowait(self, item: T, ticket: Ticket | None) -> None:
        core = self._core
        if self._state != "open" or core.closed:
            self._check_open()
        if core.per_item:
            ticket = self._weigh(item, ticket)
        now = self._clock()
        if not core.fits(ticket, now):
            core.refuse()
            self._after(now)
            raise BufferFull
        core.accept(item, ticket, now)
        self._after_entry(now)

    def _weigh(self, item: T, ticket: Ticket | None) -> Ticket:
        if ticket is None:
            ticket = Ticket()
        refusal = self._core.weigh(item, ticket)
        if refusal is not None:
            raise refusal
        self._check_open()  # the options' functions are the user's: they may have closed it
        return ticket

    async def _wait_for_room(self, ticket: Ticket | None, now: float) -> None:
        """Return with room for this one item, which nobody else can take before the next await."""
        core = self._core
        size = getattr(ticket, "size", 0)
        blocked = _BlockedSender(size, self._backend.waiter())
        core.block(blocked)
        self._after(now)
        try:
            await blocked.waiter
            # trio runs what is woken at once in any order; each sends for the next.
            while not core.may_enter(blocked):
                blocked.waiter = self._make_waiter()
                await blocked.waiter
        except BaseException:
            core.unblock(blocked)
            core.hand_room()
            raise
        core.unblock(blocked)
        if core.closed:
            raise anyio.ClosedResourceError

    def _withdraw(self, receipt: Receipt[Any]) -> bool:
        if receipt.outcome is not None:
            return False
        now = self._clock()
        gone = self._core.withdraw(receipt, now)
        self._after(now)
        return gone

    # Ends

    def cut(self) -> None:
        """
        Cut the open batch now, whatever its age; does nothing if there is none.

        Raises:
            ChannelMisuse: If used outside the ``async with`` block.
        """
        self._check_entered()
        if self._state == "ended":
            raise ChannelEnded
        now = self._clock()
        self._core.cut(now)
        self._after(now)

    async def flush(self) -> None:
        """
        Cut, and return when every item accepted before has its outcome.

        Raises:
            ChannelMisuse: If used outside the ``async with`` block; `WouldDeadlock` if called from the
                channel's own SendFn.
        """
        self._check_entered()
        self._refuse_inside("flush")
        self.cut()
        flush = _Flush(self._backend.waiter())
        self._core.watch(flush)
        if flush.remaining:
            await flush.waiter

    def close(self) -> None:
        """
        Take no more; what is there is cut and sent. A second call does nothing.

        Senders that wait get ``anyio.ClosedResourceError``; a heartbeat that waits is dropped.
        """
        if self._state == "ended":
            return
        self._check_entered()
        now = self._clock()
        self._core.close(now)
        self._after(now)

    def cancel(self) -> None:
        """
        Close, drop what waits (CANCELLED), and cancel the SendFns that run.

        The caller's own block runs on. What a SendFn delivers all the same is delivered.
        """
        if self._state == "ended":
            return
        self._check_entered()
        now = self._clock()
        self._give_up(now)
        if hasattr(self, "_workers_group"):
            self._workers_group.cancel_scope.cancel()
        self._after(now)

    def _give_up(self, now: float) -> None:
        """What a cancellation means; over a store it means something else."""
        self._core.cancel(now)

    async def aclose(self) -> None:
        """
        Close, and return when everything is out.

        Cancelled, it is `cancel`, returns once everything is out, and passes the cancellation on: so
        ``move_on_after(10)`` around it is a deadline.

        Raises:
            WouldDeadlock: If called from the channel's own SendFn.
        """
        if self._state == "ended":
            return
        self._check_entered()
        self._refuse_inside("aclose")
        self.close()
        try:
            await self._wait_for(self._drained_waiters, over=self._finished)
        except BaseException:
            self.cancel()
            with anyio.CancelScope(shield=True):
                if not self._finished:
                    await self._wait_for(self._drained_waiters, over=False)
            raise

    async def wait_drained(self) -> None:
        """Return when the channel is closed, everything is out and ``on_drained`` has run."""
        self._check_entered()
        self._refuse_inside("wait_drained")
        await self._wait_for(self._drained_waiters, over=self._finished)

    async def wait_idle(self) -> None:
        """Return when nothing is buffered or in flight."""
        self._check_entered()
        self._refuse_inside("wait_idle")
        await self._wait_for(self._idle_waiters, over=self._core.idle)

    async def _wait_for(self, waiters: list[Waiter], *, over: bool) -> None:
        if over:
            await anyio.lowlevel.checkpoint()
            return
        waiter = self._backend.waiter()
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in waiters:
                waiters.remove(waiter)

    def _check_entered(self) -> None:
        if self._state == "new":
            msg = f"{self!r} is used before its 'async with' block"
            raise ChannelMisuse(msg)

    def _refuse_inside(self, what: str) -> None:
        if self in _INSIDE.get():
            msg = f"{what} inside the SendFn of {self!r} would wait for its own end"
            raise WouldDeadlock(msg)

    @property
    def closed(self) -> bool:
        """No more items are taken."""
        return self._core.closed

    @property
    def drained(self) -> bool:
        """Closed, everything is out, and ``on_drained`` has run."""
        return self._finished

    def statistics(self) -> ChannelStatistics:
        """A snapshot of all counts; at any time."""
        return self._core.statistics()

    def __repr__(self) -> str:
        name = f" {self._name!r}" if self._name else ""
        return f"<Channel{name} at {id(self):#x}>"

    # After each step

    def _after(self, now: float) -> None:
        """Look at what a step left to do; awaits nothing."""
        self._after_entry(now)
        if self._core.buffer.empty:
            self._on_empty()

    def _after_entry(self, now: float) -> None:
        """The same where the buffer cannot have become empty."""
        core = self._core
        if core.buffer.told or core.faults:
            self._tell()
        at = core.outlook(now)
        if at == -math.inf:
            if not self._sent_for:
                self._send_for_worker()
        elif at < self._alarm:
            self._set_alarm(at)

    def _send_for_worker(self) -> None:
        while self._parked:
            waiter = self._parked.pop()
            if not waiter.done():
                self._sent_for = True
                wake(waiter)
                return
        if self._workers < self._options.max_leases and hasattr(self, "_workers_group"):
            self._sent_for = True
            self._workers += 1
            # In the opener's context, not in that of whoever happened to send.
            # A copy, for a context cannot be entered twice, and tasks may start eagerly.
            self._context.copy().run(self._workers_group.start_soon, self._work)

    def _on_empty(self) -> None:
        if self._core.buffer.told:  # hooks that wait for the next turn come first
            return
        for waiter in self._idle_waiters:
            wake(waiter)
        self._idle_waiters.clear()
        if self._core.closed and not self._finished:
            if self._telling:
                self._come_back()
                return
            self._finish()

    def _finish(self) -> None:
        """Everything is out: the last hooks, then those who wait for it."""
        self._telling = True
        flush = getattr(self._on_drop, "flush", None)
        if flush is not None:
            self._guarded(flush)
        if self._options.on_drained is not None:
            self._guarded(self._options.on_drained)
        self._telling = False
        self._finished = True
        for waiter in self._drained_waiters:
            wake(waiter)
        self._drained_waiters.clear()
        self._set_alarm(-math.inf)

    # Hooks

    def _tell(self) -> None:
        """Call ``on_drop`` for what is there now; what hooks cause waits for the next turn of the loop."""
        core = self._core
        while core.faults:
            _LOG.error("%r: the retry policy raised; no retry", self, exc_info=core.faults.pop(0))
        if self._telling or self._back_soon:
            self._come_back()
            return
        told = core.buffer.told
        self._telling = True
        for _ in range(len(told)):
            batch, reason = told.popleft()
            if self._on_drop is not None:
                self._guarded(self._on_drop, batch, reason)
        self._telling = False
        if told:
            self._come_back()

    def _guarded(self, hook: Any, *args: object, judges: bool = False) -> Any:  # noqa: ANN401 - as hooks like
        """Call a hook; what it raises is logged, and beyond ``Exception`` ends the channel."""
        try:
            answer = hook(*args)
            # Its truth is the user's code, too.
            return bool(answer) if judges and answer is not None else None
        except Exception:
            _LOG.exception("%r: hook %r raised", self, hook)
        except BaseException as error:
            self._collapse(error)
        return None

    def _collapse(self, error: BaseException) -> None:
        """Something beyond ``Exception``: cancel everything, and let the block raise it."""
        if self._crash is None:
            self._crash = error
        self.cancel()
        self._group.cancel_scope.cancel()

    # Workers

    async def _work(self) -> None:
        _INSIDE.set((*_INSIDE.get(), self))
        while True:
            try:
                await self._serve()
            except self._backend.cancelled:
                if self._dismissed:
                    raise
                self._backend.forget_cancellation()  # a stranger's; nothing was in hand

    @property
    def _dismissed(self) -> bool:
        """The workers are cancelled; any other cancellation of theirs is a stranger's."""
        return self._workers_group.cancel_scope.cancel_called

    async def _serve(self) -> None:
        core, clock, timeout = self._core, self._clock, self._timeout
        error: Exception | None = None
        results: object = None
        sent = 0
        while True:
            # A SendFn need not suspend; others have to run all the same.
            if sent >= BATCHES_PER_TURN:
                sent = 0
                await self._backend.pass_turn()
            self._sent_for = False
            now = clock()
            if core.limited and core.wants_token(now):
                await self._acquire(now)
                continue
            batch = core.take(now)
            self._after_entry(now)
            if batch is None:
                if core.buffer.empty:  # all that was due had expired
                    self._on_empty()
                error = results = None  # they may hold on to what was sent
                waiter = self._backend.waiter()
                self._parked.append(waiter)
                await waiter
                continue
            error = results = None
            try:
                if timeout is None:
                    results = await self._send_fn(batch)
                else:
                    returned = False
                    with anyio.CancelScope(deadline=now + timeout):
                        results = await self._send_fn(batch)
                        returned = True
                    if not returned:
                        error = TimeoutError(f"the SendFn took longer than send_timeout={timeout:g} s")
            except Exception as raised:
                error = raised
            except BaseException as raised:
                self._interrupted(batch, raised)
                sent = BATCHES_PER_TURN
                continue
            sent = BATCHES_PER_TURN if error is not None else sent + 1
            self._take_back(batch, error, results)

    def _interrupted(self, batch: Batch[T], raised: BaseException) -> None:
        """
        Take back what a SendFn ended by something beyond ``Exception``.

        A cancellation is the channel's own if it is being cancelled: no scope but its own reaches the
        workers. The next await will meet it again.
        """
        if isinstance(raised, GeneratorExit) and not self._backend.running():
            raise raised  # the loop is gone, and nobody is left to be told
        cancelled = self._backend.cancelled
        rest: BaseException | None = raised
        if isinstance(raised, cancelled):
            rest = None
        elif isinstance(raised, BaseExceptionGroup) and _holds(raised, cancelled):
            rest = raised.split(cancelled)[1]  # trio: errors beside the cancellation
        if isinstance(rest, Exception):
            self._take_back(batch, rest, None)
            return
        lost = SendCancelled("the SendFn was cancelled, and not by the channel")
        lost.__cause__ = raised
        if rest is not None:
            self._collapse(rest)
        elif not self._dismissed:
            self._backend.forget_cancellation()
            self._take_back(batch, lost, None)
            return
        self._take_back(batch, lost, None, ask=False)

    def _take_back(
        self, batch: Batch[T], error: Exception | None, results: object, *, ask: bool = True
    ) -> None:
        """End an attempt; `_after` is left out, because the worker looks for the next batch anyway."""
        core = self._core
        now = self._clock()
        failure = core.end(batch, error, results, now)
        if failure is not None:
            core.judge(failure, self._ask(failure) if ask else None, now)
        if core.buffer.told or core.faults:
            self._tell()
        if core.buffer.empty:
            self._on_empty()

    def _ask(self, failure: Failure[T]) -> bool | None:
        view = failure.batch
        if self._on_error is None or view.error is None:
            return None
        self._telling = True
        verdict: bool | None = self._guarded(self._on_error, view, view.error, judges=True)
        self._telling = False
        return verdict

    async def _acquire(self, now: float) -> None:
        """Acquire one token; while one task does, no other looks for work."""
        core = self._core
        limiter = self._limiter
        assert limiter is not None  # wants_token says so
        core.acquiring = True
        self._after_entry(now)  # items may expire meanwhile
        try:
            await limiter.acquire(1)
            core.token = True
        except Exception:
            await self._pause_limiter()
        except self._backend.cancelled:
            if self._dismissed:
                raise
            self._backend.forget_cancellation()
            await self._pause_limiter()
        except GeneratorExit:
            raise
        except BaseException as error:
            self._collapse(error)
        finally:
            core.acquiring = False

    async def _pause_limiter(self) -> None:
        _LOG.exception("%r: the limiter raised; asking again in %g s", self, LIMITER_PAUSE)
        await anyio.sleep(LIMITER_PAUSE)


async def process(
    source: Iterable[T] | AsyncIterable[T],
    send_fn: SendFn[T, R],
    options: ChannelOptions[T] | None = None,
) -> ChannelStatistics:
    """
    Send everything that *source* yields through a channel of its own; return when all is out.

    Args:
        source: An iterable or async iterable; what it raises cancels the channel and comes out.

        send_fn: Sends one batch.

        options: The channel's.

    Returns:
        The channel's statistics at the end.
    """
    channel = Channel(send_fn, options)
    async with channel:
        await channel.consume(source)
    return channel.statistics()


def _holds(error: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_holds(leaf, kind) for leaf in error.exceptions)
    return isinstance(error, kind)
