"""
For users' tests: a clock that jumps, SendFns that record or follow a script, the contract of stores.

With a jumping clock a test of hours takes milliseconds, and always the same course::

    @pytest.fixture(params=[jumping_asyncio(), jumping_trio], ids=["asyncio", "trio"])
    def anyio_backend(request): ...

Import it from tests only: trio's clock needs trio.
"""

import asyncio
import selectors
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic

import anyio
import attrs
from typing_extensions import TypeVar

from dispatcher.buffer.batch import Batch
from dispatcher.errors import OptionError, RetryAfter
from dispatcher.stores._contract import check_store
from dispatcher.stores._contract.rig import MakeStore

__all__ = [
    "JumpingLoop",
    "MakeStore",
    "RecordingSender",
    "ScriptedSink",
    "Sent",
    "check_store",
    "jumping_asyncio",
    "jumping_trio",
]

T = TypeVar("T")


class JumpingLoop(asyncio.SelectorEventLoop):
    """
    An asyncio event loop whose clock jumps to the next timer instead of waiting for it.

    Starts at 0. Sockets and subprocesses of this process work; whoever waits for another process, or
    for a thread, under a timeout will see the timeout first: use the real loop for those.
    """

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()
        super().__init__(selector)
        self._now = 0.0
        wait = selector.select

        def select(timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is None:  # no timer: only a real event can wake us
                return wait(None)
            events = wait(0)
            if not events:
                self._now += timeout
            return events

        selector.select = select  # type: ignore[method-assign]

    def time(self) -> float:
        """Seconds jumped over so far."""
        return self._now


def jumping_asyncio() -> tuple[str, dict[str, Any]]:
    """An ``anyio_backend`` for tests: asyncio, with a clock that jumps."""
    return "asyncio", {"loop_factory": JumpingLoop}


def jumping_trio() -> tuple[str, dict[str, Any]]:
    """An ``anyio_backend`` for tests: trio, with its own clock that jumps. Make one per test."""
    import trio.testing

    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


@attrs.frozen(slots=True)
class Sent(Generic[T]):
    """One call of a SendFn."""

    at: float
    """By the event loop's clock."""

    items: tuple[T, ...]
    batch: Batch[T]
    """The very one, whose marks and key can be looked at."""


class RecordingSender(Generic[T]):
    """
    A SendFn that delivers everything and remembers it.

    Args:
        latency: Seconds that a call takes.

        results: Makes the results from a batch; None: no results.
    """

    def __init__(
        self, latency: float = 0.0, *, results: Callable[[Batch[T]], Sequence[Any]] | None = None
    ) -> None:
        self._latency = latency
        self._results = results
        self.calls: list[Sent[T]] = []
        self.running = 0
        """Calls that have not returned."""

        self.running_max = 0
        """The most there were at once."""

    async def __call__(self, batch: Batch[T], /) -> Sequence[Any] | None:
        """Remember, take the time, and deliver."""
        self.calls.append(Sent(anyio.current_time(), batch.items, batch))
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            await self._act(batch)
        finally:
            self.running -= 1
        return None if self._results is None else self._results(batch)

    async def _act(self, batch: Batch[T]) -> None:
        if self._latency:
            await anyio.sleep(self._latency)

    @property
    def batches(self) -> list[tuple[T, ...]]:
        """What each call was given."""
        return [call.items for call in self.calls]

    @property
    def items(self) -> list[T]:
        """All of it, in the order of the calls; what was sent twice stands twice."""
        return [item for call in self.calls for item in call.items]


class ScriptedSink(RecordingSender[T]):
    """
    A receiver with habits, for tests and benchmarks of options.

    A call takes ``a + b * n`` seconds for n items, plus ``b * (n - knee)`` for those beyond *knee*, and
    before that waits its turn if *parallel* others are at it;
    then the first of these that applies happens: the outage, the next of *failures*, the refusal, the
    poison. What is delivered is in `delivered`.

    Args:
        a: Seconds per call.

        b: Seconds per item.

        knee: How many items go smoothly; None: any number.

        parallel: How many calls are served at once, in order of arrival; None: any number.

        failures:
            One entry per call, in order: an exception to raise, or None to go on. Afterwards: none.

        outage: (begin, end) by the event loop's clock; calls that end within raise ``ConnectionError``.

        per_second: Above so many calls in the last second, raise `RetryAfter`; None: no limit.

        retry_after: What those refusals ask for, in seconds.

        poison: Which items fail their batch-mates (``ValueError``) if *marks* is False, or only
            themselves, by a mark, if it is True.

        marks: See *poison*.

    Raises:
        OptionError: If a time is negative, or *parallel* less than 1.
    """

    def __init__(
        self,
        a: float = 0.0,
        b: float = 0.0,
        *,
        knee: int | None = None,
        parallel: int | None = None,
        failures: Iterable[Exception | None] = (),
        outage: tuple[float, float] | None = None,
        per_second: int | None = None,
        retry_after: float = 1.0,
        poison: Callable[[T], bool] | None = None,
        marks: bool = False,
        results: Callable[[Batch[T]], Sequence[Any]] | None = None,
    ) -> None:
        super().__init__(results=results)
        for option, value in (("a", a), ("b", b), ("retry_after", retry_after)):
            if not value >= 0:
                raise OptionError(option=f"ScriptedSink.{option}", rule="has to be 0 or more", value=value)
        if parallel is not None and not parallel >= 1:
            raise OptionError(option="ScriptedSink.parallel", rule="has to be 1 or more", value=parallel)
        self._a, self._b, self._knee = a, b, knee
        # Made in the first call: before it there may be no event loop to belong to.
        self._parallel = parallel
        self._turns: anyio.Semaphore | None = None
        self._failures = iter(failures)
        self._outage = outage
        self._per_second, self._retry_after = per_second, retry_after
        self._poison, self._marks = poison, marks
        self.delivered: list[T] = []

    async def _act(self, batch: Batch[T]) -> None:
        beyond = max(0, len(batch) - self._knee) if self._knee is not None else 0
        took = self._a + self._b * (len(batch) + beyond)
        if self._parallel is None:
            await self._work(took)
        else:
            if self._turns is None:
                self._turns = anyio.Semaphore(self._parallel)
            async with self._turns:
                await self._work(took)
        now = anyio.current_time()
        if self._outage is not None and self._outage[0] <= now < self._outage[1]:
            msg = "the receiver is out of order"
            raise ConnectionError(msg)
        failure = next(self._failures, None)
        if failure is not None:
            raise failure
        if self._per_second is not None:
            # Calls began in this order, so it is enough to look at the one that would be too many.
            limit = self._per_second
            if len(self.calls) > limit and self.calls[-limit - 1].at > now - 1.0:
                raise RetryAfter(self._retry_after)
        self._taste(batch)

    @staticmethod
    async def _work(seconds: float) -> None:
        if seconds:
            await anyio.sleep(seconds)
        else:
            await anyio.lowlevel.checkpoint()

    def _taste(self, batch: Batch[T]) -> None:
        """Deliver all but poison."""
        bad = [n for n, item in enumerate(batch) if self._poison is not None and self._poison(item)]
        if bad and not self._marks:
            msg = f"{len(bad)} of {len(batch)} items are poison"
            raise ValueError(msg)
        for position in bad:
            batch.fail(position, ValueError(f"poison: {batch[position]!r}"))
        self.delivered.extend(item for n, item in enumerate(batch) if n not in bad)
