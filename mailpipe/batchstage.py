"""
The batch stage: how one attempt of a batch passes through its steps, decided without a loop.

The theory. Every envelope has its own `Progress`, kept in the batch's ``meta``: which step it comes
to next, and what steps answered. `passage` walks the steps in order; each gets a `View` of the
envelopes that have come to it and are still going, so a retry starts every envelope at the step
that failed it. It is a generator: it yields a `Call` (step and view), is sent what came of it, and
so runs on the loop, in a storage's thread, or from one to the other, as its driver likes.

What came of a call is judged by these rules:

1. Marked by the step (``view.fail``): that envelope alone, by the error it was marked with.
2. Returned: the unmarked ones passed. Results that do not fit (`BadResults`) fail them: the work is
   done, but nobody knows how it went.
3. Raised store trouble (`is_trouble`): the unmarked ones go to the Channel's retry. From attempt 2
   on they come in pieces, twice as many each time, each piece a call of its own; so a mail that
   only looks like store trouble (too large a packet) parts from the others. After two pieces in
   trouble running, the rest is not tried.
4. Raised anything else: bisected at once, each half a call of its own. If both halves of the first
   split raise alike, it is store trouble after all. The one left over is poison: 451 4.3.0.
   `Answer` raised for several is bisected too, for it was meant for one.

Pure: no clock, loop or log.
"""

import hashlib
import itertools
from collections.abc import Generator, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

import attrs

from dispatcher.buffer.batch import Batch, BufferedBatch
from dispatcher.errors import BadResults, TransientError
from mailpipe.chain import Step
from mailpipe.errors import Answer, Deferred, Rejected
from mailpipe.reply import Reply
from mailpipe.steps import Result

__all__ = ["Call", "Poisoned", "Progress", "StoreTrouble", "View", "is_trouble", "passage"]

T_co = TypeVar("T_co", covariant=True)

_THROUGH = 1 << 30
"""A `Progress.step` past every step."""

_TROUBLE_NAMES = frozenset({"ConnectionError", "TimeoutError", "OperationalError", "InterfaceError"})


class StoreTrouble(TransientError):
    """
    A step could not work for a reason that is no mail's fault; the Channel retries.

    Delimits itself from `Poisoned`, which is one mail's.
    """

    def __init__(self, step: str, error: BaseException) -> None:
        super().__init__(f"step {step!r}: {type(error).__name__}")
        self.step, self.error = step, error
        self.__cause__ = error


class Poisoned(Deferred):
    """A step fails on this one mail; answered 451 4.3.0, for it is our trouble, never a 5xx."""

    def __init__(self, step: str, error: BaseException) -> None:
        super().__init__(Reply(451, "4.3.0", "Local error in processing, try again later"))
        self.step, self.error = step, error
        self.__cause__ = error


def is_trouble(error: BaseException) -> bool:
    """
    Whether *error* is store trouble: a lost or refused connection, a timeout, a server in need.

    By class name through the ancestors, since every driver has classes of its own for what PEP 249
    calls OperationalError; a group is, if every leaf is.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_trouble(leaf) for leaf in error.exceptions)
    if isinstance(error, TransientError) or getattr(error, "connection_invalidated", False) is True:
        return True
    return any(cls.__name__ in _TROUBLE_NAMES for cls in type(error).__mro__)


@attrs.define(eq=False)
class Progress:
    """How far one envelope came; kept over retries in the batch's ``meta``."""

    item: Any
    step: int = 0
    """Index of the step it comes to next."""

    result: Result | None = None
    """What the last step that answered said of it."""

    error: Exception | None = None
    """What ended this attempt for it: an `Answer`, or `StoreTrouble`; None: still going or through."""

    judged: bool = False
    """The stages before let it pass."""

    troubles: int = 0
    """Attempts that store trouble ended for it."""


class View(Batch[T_co]):
    """
    What one step sees of a batch: the envelopes that have come to it, with marks of its own.

    A `dispatcher.Batch`, so that any SendFn is a step: ``done`` and ``fail`` speak for this step only.
    """

    __slots__ = ("_ids", "_step")

    def __init__(
        self,
        items: Sequence[T_co],
        *,
        batch: Batch[Any],
        step: str,
        meta: dict[Any, Any],
        owner: "_Marks",
    ) -> None:
        lot: BufferedBatch[T_co] = BufferedBatch(batch.id, batch.created_at, synthetic=batch.synthetic)
        lot.attempts, lot.meta = batch.attempt, meta
        lot.size = sum(len(getattr(item, "body", b"")) for item in items)
        self._step = step
        super().__init__(lot, tuple(items), owner, batch.key)

    @property
    def key(self) -> str:
        """Idempotency key: the same for the same envelopes at the same step, whatever the attempt."""
        names = [str(getattr(item, "queue_id", "")) for item in self.items]
        if not all(names):
            names = [self._ids, *(str(id(item)) for item in self.items)]
        return hashlib.sha256("\0".join([self._step, *names]).encode(errors="replace")).hexdigest()[:32]

    @key.setter
    def key(self, key: str) -> None:
        # Batch sets the key of the whole batch; ours is made only when asked for.
        self._ids = key

    def end(self) -> Mapping[int, Exception]:
        """End the call: marks are final. Returns those as failed."""
        self._owner = None
        return self.errors


class _Marks:
    """Hears of a view's ``done`` marks at once: they count even if the attempt is cancelled."""

    def __init__(self, piece: "list[Progress]", step: int) -> None:
        self.done: set[int] = set()
        self._piece, self._step = piece, step

    def mark_done(self, batch: Batch[Any], positions: Iterable[int]) -> None:
        for position in positions:
            self.done.add(position)
            self._piece[position].step = self._step + 1


@attrs.frozen(eq=False)
class Call:
    """What the driver is asked to do: call *step* (of index *index*) with *view*."""

    index: int
    step: Step
    view: View[Any]


Outcome = tuple[Any, Exception | None]
"""What came of a call: what it returned, or what it raised."""

Passage = Generator[Call, Outcome, None]


def passage(
    steps: Sequence[Step],
    going: Sequence[Progress],
    batch: Batch[Any],
    meta: MutableMapping[str, dict[Any, Any]],
) -> Passage:
    """
    Walk *going* through *steps*; what came of each stands in its `Progress` at the end.

    Closed early (the attempt was cancelled), marks made so far count.

    Args:
        steps: The batch steps in order.

        going: One per envelope, in the batch's order.

        batch: Whose ``id``, ``key``, ``attempt``, ``created_at``, ``synthetic`` and ``error`` the views tell.

        meta: By step name, what steps keep for themselves over retries.
    """
    for index, step in enumerate(steps):
        walk = _Walk(index, step, batch, meta)
        if batch.synthetic:
            error, _ = yield from walk.call([])
            if error is not None:
                raise error
            continue
        come = [progress for progress in going if progress.step == index and progress.error is None]
        running = 0
        for piece in _pieces(come, batch.attempt):
            if running >= 2:
                walk.trouble(piece, walk.last_trouble, tried=False)
                continue
            running = running + 1 if (yield from walk.attempt(piece)) else 0


def _pieces(come: list[Progress], attempt: int) -> list[list[Progress]]:
    if not come:
        return []
    # Those that trouble kept back least often come first: they were not reached, or not tried alone.
    if attempt > 1:
        come = sorted(come, key=lambda progress: progress.troubles)
    wanted = min(len(come), 1 << min(attempt - 1, 30))
    cuts = [len(come) * number // wanted for number in range(wanted + 1)]
    return [come[start:end] for start, end in itertools.pairwise(cuts)]


@attrs.define(eq=False)
class _Walk:
    """One step's part of a passage."""

    index: int
    step: Step
    batch: Batch[Any]
    meta: MutableMapping[str, dict[Any, Any]]
    last_trouble: Exception = attrs.field(factory=TransientError)

    def attempt(self, piece: list[Progress]) -> Generator[Call, Outcome, bool]:
        """One piece; True if store trouble met it."""
        error, rest = yield from self.call(piece)
        if error is None:
            return False
        if is_trouble(error) or len(rest) < 2:
            return self._judge_one_kind(error, rest)
        return (yield from self._split(rest, first=True))

    def _split(self, rest: list[Progress], *, first: bool) -> Generator[Call, Outcome, bool]:
        middle = len(rest) // 2
        head, tail = (yield from self.call(rest[:middle])), (yield from self.call(rest[middle:]))
        if (
            first
            and head[0] is not None
            and type(head[0]) is type(tail[0])
            and not isinstance(head[0], Answer)
        ):
            self.trouble([*head[1], *tail[1]], head[0])
            return True
        met = False
        for raised, left in (head, tail):
            if raised is None:
                continue
            if is_trouble(raised) or len(left) < 2:
                met |= self._judge_one_kind(raised, left)
            else:
                met |= yield from self._split(left, first=False)
        return met

    def _judge_one_kind(self, error: Exception, rest: list[Progress]) -> bool:
        if is_trouble(error):
            self.trouble(rest, error)
            return True
        for progress in rest:
            self._fail(progress, error)
        return False

    def trouble(self, rest: Sequence[Progress], error: Exception, *, tried: bool = True) -> None:
        """Leave *rest* to the Channel's retry."""
        self.last_trouble = error
        for progress in rest:
            progress.troubles += tried
            progress.error = StoreTrouble(self.step.name, error)

    def _fail(self, progress: Progress, error: Exception) -> None:
        if isinstance(error, Answer):
            progress.error = error
        elif is_trouble(error):
            self.trouble([progress], error)
        else:
            progress.error = Poisoned(self.step.name, error)

    def call(
        self, piece: list[Progress]
    ) -> Generator[Call, Outcome, tuple[Exception | None, list[Progress]]]:
        """Call the step; returns what it raised and whom that is about."""

        marks = _Marks(piece, self.index)
        view = View(
            [progress.item for progress in piece],
            batch=self.batch,
            step=self.step.name,
            meta=self.meta.setdefault(self.step.name, {}),
            owner=marks,
        )
        failed: Mapping[int, Exception] = {}
        try:
            results, error = yield Call(self.index, self.step, view)
        finally:
            failed = view.end()
            for position, mark in failed.items():
                self._fail(piece[position], mark)
        judged = marks.done | set(failed)
        rest = [progress for position, progress in enumerate(piece) if position not in judged]
        if error is None:
            try:
                answers = _checked(results, piece)
            except BadResults as bad:
                for progress in rest:
                    self._fail(progress, bad)
                return None, []
            for progress, result in zip(piece, answers, strict=True):
                if progress.error is None:
                    self._pass(progress, result)
        return error, rest

    def _pass(self, progress: Progress, result: Result | None) -> None:
        progress.step = self.index + 1
        if result is None:
            return
        if isinstance(result, Reply) and not result.positive:
            progress.error = Rejected(result) if result.permanent else Deferred(result)
            return
        progress.result = result
        if isinstance(result, tuple) and not any(reply.positive for reply in result):
            # Nobody's mail was taken: there is nothing to pass on, and each reply counts.
            progress.step = _THROUGH


def _checked(results: object, piece: list[Progress]) -> Sequence[Result | None]:
    if results is None:
        return [None] * len(piece)
    if isinstance(results, str | bytes | Mapping) or not isinstance(results, Sequence):
        msg = f"results are one Reply, tuple of Replies or None per envelope, got {type(results).__name__}"
        raise BadResults(msg)
    if len(results) != len(piece):
        msg = f"results are one per envelope ({len(piece)}), got {len(results)}"
        raise BadResults(msg)
    for result, progress in zip(results, piece, strict=True):
        if result is None or isinstance(result, Reply):
            continue
        if not isinstance(result, tuple) or not all(isinstance(reply, Reply) for reply in result):
            msg = f"a result is a Reply, a tuple of Replies or None, got {result!r}"
            raise BadResults(msg)
        recipients = getattr(progress.item, "recipients", result)
        if not result or len(result) != len(recipients):
            msg = f"a tuple has one Reply per accepted recipient ({len(recipients)}), got {len(result)}"
            raise BadResults(msg)
    return results
