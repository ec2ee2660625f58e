"""
A `Chain` opened and running: taps for the stream stage, a judge for the envelope stage, a SendFn.

A gateway calls `Chain.open` at DATA, `Chain.judge` after the dot, and gives `Chain.deliver` to its
Channel as the SendFn. Elsewhere `Chain.send` is all three, for any Channel.

Shell: the only part of a chain that knows threads, waits and logs. Plain functions run in worker
threads, neighbours sharing one hop; the batch steps before a storage that has a thread of its own
share that one's. What a step raises never reaches a client: it becomes 451 4.3.0 and a log line.
"""

import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import anyio
import attrs
from anyio import to_thread

from dispatcher import Batch
from mailpipe.batchstage import Poisoned, Progress, StoreTrouble, is_trouble, passage
from mailpipe.calling import Failed, drive, judge, ways_of
from mailpipe.chain import Plan, Settings, Step, compile_chain
from mailpipe.envelope import Envelope
from mailpipe.errors import Answer, Deferred, Discarded, Rejected
from mailpipe.reply import Reply
from mailpipe.sharing import SharedSteps, set_up, tear_down
from mailpipe.steps import Place, Result
from mailpipe.streamstage import Taps, opener_of

__all__ = ["Chain", "ChainStatistics", "EnvelopeTaps"]

_log = logging.getLogger("mailpipe.chain")

_HOP_FROM = 32_768
"""Octets from which a chunk is worth a hop to a thread for steps that are not inline."""

_META = "mailpipe.chain"

_KINDS = ((Discarded, "discarded"), (Rejected, "rejected"), (Deferred, "deferred"))

_TEARDOWN = 10.0
"""Seconds that one step's teardown may take."""


@attrs.frozen(kw_only=True)
class ChainStatistics:
    """Counts since the chain was made; envelopes, not attempts, except where said."""

    passed: int = 0
    """Through the last step."""

    rejected: int = 0
    """A step said `Rejected`."""

    deferred: int = 0
    """A step said `Deferred`."""

    discarded: int = 0
    """A step said `Discarded`."""

    poisoned: int = 0
    """A step fails on them and on them alone."""

    troubles: int = 0
    """Attempts ended by store trouble, per envelope."""


class EnvelopeTaps:
    """
    The stream stage of one mail on the loop; what a gateway's `BodySink` hands its chunks to.

    Large chunks go to a worker thread if a step is not inline, so that no mail holds the loop.
    """

    __slots__ = ("_aborted", "_busy", "_hops", "_size", "_taps")

    def __init__(self, taps: Taps, *, hops: bool) -> None:
        self._taps = taps
        self._hops = hops
        self._size = 0
        self._busy = False
        self._aborted = False

    @property
    def failed(self) -> bool:
        """A step ended it: the mail will not be taken, and need not be kept any longer."""
        return self._taps.failure is not None

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        """Hand on octets; an awaitable must be awaited before the next call. Never raises."""
        self._size += len(chunk)
        if self._hops and len(chunk) >= _HOP_FROM and not self._taps.ended:
            return self._off_loop(functools.partial(self._taps.write, chunk))
        self._taps.write(chunk)
        return None

    def close(self) -> Awaitable[None] | None:
        """
        The mail is whole; ``envelope.body`` may be set before or after.

        Returns:
            None if all is said; else something to await, which raises as this does.

        Raises:
            Answer: What a step said of it; 451 4.3.0 for one that failed.
        """
        if self._hops and self._size >= _HOP_FROM and not self._taps.ended:
            return self._close_off_loop()
        self._taps.close()
        self._raise_failure()
        return None

    async def _close_off_loop(self) -> None:
        await self._off_loop(self._taps.close)
        self._raise_failure()

    def _raise_failure(self) -> None:
        if (error := self._taps.failure) is not None:
            if isinstance(error, Answer):
                raise error
            raise Poisoned(self._taps.failed_step, error)

    def abort(self) -> None:
        """The mail will not be; twice is once. Never raises."""
        self._aborted = True
        if not self._busy:
            self._taps.abort()

    async def _off_loop(self, work: Callable[[], None]) -> None:
        self._busy = True
        try:
            await to_thread.run_sync(work)
        finally:
            self._busy = False
            if self._aborted:
                self._taps.abort()


class Chain:
    """
    A compiled chain, opened by ``async with`` and run.

    Args:
        chain: The text, or a `Plan`.

        settings: As `compile_chain` takes them; not with a Plan.

        steps: Steps of one's own by name, a plain SendFn among them; not with a Plan.

        place: Where it lives; by default ``./mail-data``.

        shared: Opened storages to share with other chains; by default its own.

    Raises:
        ChainError: If the text cannot be compiled.

    ::

        async with Chain("words | post", steps={"post": post}) as chain, Channel(chain.send) as channel:
            reply = await channel.call(envelope)
    """

    def __init__(
        self,
        chain: str | Plan,
        /,
        *,
        settings: Mapping[str, Settings] | None = None,
        steps: Mapping[str, Callable[..., Any]] | None = None,
        place: Place | None = None,
        shared: SharedSteps | None = None,
    ) -> None:
        if isinstance(chain, str):
            chain = compile_chain(chain, settings=settings, steps=steps, purpose="any")
        elif settings is not None or steps is not None:
            msg = "settings and steps are compiled in already where a Plan is given"
            raise TypeError(msg)
        self.plan = chain
        self.place = place if place is not None else Place()
        self._shared = shared if shared is not None else SharedSteps()
        self._exits: AsyncExitStack | None = None
        self._opens = any(callable(getattr(step.target, "setup", None)) for step in chain.steps)
        self._counts = dict.fromkeys(attrs.fields_dict(ChainStatistics), 0)
        self._hops_stream = not all(step.spec.inline for step in chain.stream)
        self._openers = [(step.name, opener_of(step.target, _arguments(step))) for step in chain.stream]
        self._prepare(chain.batch)

    def _prepare(self, batch: Sequence[Step]) -> None:
        self._batch = tuple(batch)
        self._batch_ways = ways_of(self._batch)
        self._envelope_ways = ways_of(self.plan.envelope)

    async def __aenter__(self) -> Self:
        if self._exits is not None:
            msg = "this chain is open already"
            raise RuntimeError(msg)
        async with AsyncExitStack() as exits:
            batch: list[Step] = []
            for step in self.plan.steps:
                if step.storage:
                    held = await self._shared.acquire(step, self.place)
                    exits.push_async_callback(self._shared.release, held, self.place)
                    # The instance may be another chain's; the name is ours.
                    batch.append(attrs.evolve(step, target=held.target))
                    continue
                await set_up(step, self.place)
                exits.push_async_callback(tear_down, step)
                if step.kind == "batch":
                    batch.append(step)
            self._prepare(batch)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        exits, self._exits = self._exits, None
        if exits is not None:
            await exits.aclose()

    @property
    def archive(self) -> Any | None:  # noqa: ANN401 - an Archive, by duck
        """The opened storage that reads mails back (`Archive`), or None."""
        wanted = self.plan.archive
        return next((step.target for step in self._batch if wanted and step.name == wanted.name), None)

    @property
    def storages(self) -> tuple[Step, ...]:
        """Those that keep mails, in order, with the instances that are open."""
        return tuple(step for step in self._batch if step.storage)

    def statistics(self) -> ChainStatistics:
        """Counts so far."""
        return ChainStatistics(**self._counts)

    # -- stream and envelope stages ---------------------------------------------------------

    def open(self, envelope: Envelope) -> EnvelopeTaps:
        """At DATA: the taps of one mail."""
        return EnvelopeTaps(Taps(self._openers, envelope, _abort_failed), hops=self._hops_stream)

    def judge(self, envelope: Envelope) -> Awaitable[None] | None:
        """
        After the dot: run the envelope steps, in order.

        Returns:
            None if they all let it pass; if one has to be waited for, something to await, which
            raises as this does.

        Raises:
            Answer: What a step said; 451 4.3.0 for one that failed.
        """
        failed = judge(self._envelope_ways, envelope)
        if isinstance(failed, Coroutine):
            return self._judge_later(envelope, failed)
        self._raise_judgement(envelope, self._judgement(failed))
        return None

    async def _judge_later(self, envelope: Envelope, failing: Awaitable[Failed | None]) -> None:
        self._raise_judgement(envelope, self._judgement(await failing))

    def _raise_judgement(self, envelope: Envelope, error: Exception | None) -> None:
        if error is None:
            return
        # No batch to retry: what would be the Channel's business is the client's now.
        answer = Poisoned(error.step, error.error) if isinstance(error, StoreTrouble) else error
        self._count(envelope, answer)
        raise answer

    async def _judged(self, item: Any) -> Exception | None:  # noqa: ANN401 - an Envelope or a Recipient
        failed = judge(self._envelope_ways, item)
        return self._judgement(await failed if isinstance(failed, Coroutine) else failed)

    def _judgement(self, failed: Failed | None) -> Exception | None:
        if failed is None or isinstance(failed[1], Answer):
            return failed and failed[1]
        return _trouble_of(self.plan.envelope[failed[0]].name, failed[1])

    # -- batch stage ------------------------------------------------------------------------

    async def deliver(self, batch: Batch[Any], /) -> Sequence[Result | None]:
        """
        Run the batch steps: the SendFn of a gateway's Channel.

        Returns:
            One entry per item: what a step said of it, else 250. Items that failed are marked
            with their `Answer`, or with `StoreTrouble`, which is transient.

        Raises:
            RuntimeError: If a step needs to be opened and the chain is not.
        """
        self._check_open()
        return await self._attempt(batch, self._going(batch))

    async def send(self, batch: Batch[Any], /) -> Sequence[Result | None]:
        """
        Run every stage over items that are whole: a SendFn for any Channel.

        See `deliver`; what the stream and envelope stages said once is not asked again.
        """
        self._check_open()
        going = self._going(batch)
        fresh = [progress for progress in going if not progress.judged]
        if len(fresh) == 1 or (fresh and all(way.hop is None for way in self._envelope_ways)):
            for progress in fresh:
                await self._front(progress)
        elif fresh:
            async with anyio.create_task_group() as tasks:
                for progress in fresh:
                    tasks.start_soon(self._front, progress)
        return await self._attempt(batch, going)

    def _check_open(self) -> None:
        if self._opens and self._exits is None:
            msg = f"open the chain first: async with Chain({self.plan.text!r})"
            raise RuntimeError(msg)

    def _going(self, batch: Batch[Any]) -> list[Progress]:
        kept: dict[int, Progress] = batch.meta.setdefault(_META, {})
        going = []
        for item in batch:
            # By identity, and the progress holds the item: its id cannot be another's meanwhile.
            progress = kept.setdefault(id(item), Progress(item))
            progress.error = None
            going.append(progress)
        return going

    async def _front(self, progress: Progress) -> None:
        item = progress.item
        error: Exception | None = None
        if self.plan.stream and isinstance(item, Envelope):
            taps = Taps(self._openers, item, _abort_failed)
            error = await to_thread.run_sync(_tap_all, taps, item)
            if error is not None and not isinstance(error, Answer):
                error = _trouble_of(taps.failed_step, error)
        progress.error = error if error is not None else await self._judged(item)
        progress.judged = progress.error is None

    async def _attempt(self, batch: Batch[Any], going: list[Progress]) -> Sequence[Result | None]:
        meta = batch.meta.setdefault(f"{_META}.steps", {})
        steps = passage(self._batch, going, batch, meta)
        try:
            await drive(self._batch_ways, steps)
        except BaseException:
            # Cancelled amidst. What is through must not be sent again, what was refused is refused;
            # what has replies of its own stays unmarked, for a mark cannot carry them.
            steps.close()
            for position, progress in enumerate(going):
                if isinstance(progress.error, Rejected | Deferred):
                    batch.fail(position, progress.error)
                elif progress.error is None and progress.result is None and progress.step >= len(self._batch):
                    batch.done(position)
            raise
        return [self._settled(batch, position, progress) for position, progress in enumerate(going)]

    def _settled(self, batch: Batch[Any], position: int, progress: Progress) -> Result | None:
        error = progress.error
        if error is None:
            self._counts["passed"] += 1
            return progress.result if progress.result is not None else _accepted(progress.item)
        self._count(progress.item, error)
        if isinstance(error, Discarded):
            return error.reply
        batch.fail(position, error)
        return None

    def _count(self, item: Any, error: Exception) -> None:  # noqa: ANN401 - an Envelope or a Recipient
        if isinstance(error, Poisoned):
            name = getattr(item, "queue_id", "") or getattr(item, "address", "") or "an item"
            self._counts["poisoned"] += 1
            _log.error("%s: step %s fails on it alone", name, error.step, exc_info=error.error)
        elif isinstance(error, StoreTrouble):
            self._counts["troubles"] += 1
        elif isinstance(error, Answer):
            for cls, kind in _KINDS:
                if isinstance(error, cls):
                    self._counts[kind] += 1


def _arguments(step: Step) -> tuple[object, ...]:
    function = not isinstance(step.spec.target, type)
    return (step.options,) if function and step.spec.options is not None else ()


def _abort_failed(envelope: Envelope, name: str, error: Exception) -> None:
    _log.error("%s: step %s: abort failed", envelope.queue_id, name, exc_info=error)


def _accepted(item: object) -> Reply:
    if isinstance(item, Envelope):
        return Reply(250, "2.0.0", f"OK: queued as {item.queue_id}")
    return Reply(250, "2.1.5", "OK")


def _tap_all(taps: Taps, envelope: Envelope) -> Exception | None:
    for chunk in envelope.body.chunks():
        taps.write(chunk)
        if taps.ended:
            break
    taps.close()
    return taps.failure


def _trouble_of(step: str, error: Exception) -> StoreTrouble | Poisoned:
    return StoreTrouble(step, error) if is_trouble(error) else Poisoned(step, error)
