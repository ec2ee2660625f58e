"""
What a turn came to, and what many of them say. Pure.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import attrs

__all__ = ["Call", "Cost", "Figures", "Turn", "percentile", "rate", "ratio", "sink_cost", "summarise"]


@attrs.frozen
class Call:
    """One call of the SendFn."""

    began: float
    ended: float
    items: int


@attrs.frozen(kw_only=True)
class Turn:
    """One run of one cell; the counts of attempts and items are those of its window."""

    offered: float | None
    """Items per second; None: as many as were taken."""

    throughput: float
    """Items delivered per second."""

    p50: float | None
    """Seconds from accepted to delivered, of a sample of the items; None where none was delivered."""

    p99: float | None
    batch_items: float
    """Mean length of a batch."""

    call_seconds: float
    """Mean time in the SendFn."""

    used: float
    """Share of what the senders could carry at this pace: at 1.0 all are busy with full batches, always."""

    cpu: float
    """CPU seconds of this process per second: at 1.0 it has no more to give."""

    calls: int
    retries: int
    failed: int
    """Items that were given up, in the whole turn."""

    lost: float
    """Share of the items that were given up, of those that got their outcome in the window."""

    left: int
    """Items that were still not delivered when the turn's time to drain was over."""

    errors: Mapping[str, int]
    """Failed attempts by what was raised, in the whole turn."""

    def keeps_up(self, share: float = 0.97) -> bool:
        """Whether what was offered was delivered; the share leaves room for the grain of batches."""
        return self.offered is None or self.throughput >= share * self.offered


@attrs.frozen(kw_only=True)
class Figures:
    """A cell's turns, each figure a median; ``lowest`` and ``highest`` of the throughput."""

    turns: int
    throughput: float
    lowest: float
    highest: float
    p50: float | None
    p99: float | None
    batch_items: float
    cpu: float
    retries: int
    failed: int
    errors: Mapping[str, int]
    """These four are sums."""


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of *values*, which are sorted; None of nothing."""
    if not values:
        return None
    return values[max(0, math.ceil(share * len(values)) - 1)]


def rate(before: float | None, ends: Sequence[float], begin: float, end: float, delivered: int) -> float:
    """
    Items per second over a window, from the ends of the calls that delivered them.

    Batches come in lumps, and a window that begins or ends within a lump would count it in part. So
    the window is moved to the last end before each of its edges, unless there was none for so long
    that the silence itself is the finding (an outage).

    Args:
        before: The last end before the window; None if there was none.

        ends: When the calls ended that ended in the window, in order.

        begin: The window's begin.

        end: Its end.

        delivered: Items in the window.
    """
    if not ends or not delivered:
        return 0.0
    longest = max((late - early for early, late in itertools.pairwise(ends)), default=math.inf)
    first = before if before is not None and begin - before <= 2 * longest else begin
    last = ends[-1] if end - ends[-1] <= 2 * longest else end
    if last <= first:
        first, last = begin, end
    return delivered / (last - first)


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float] | None:
    """Median, least and greatest ratio of neighbours; None if one of theirs is 0."""
    if not theirs or not all(theirs):
        return None
    ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def summarise(turns: Sequence[Turn]) -> Figures:
    """Reduce a cell's turns, of which there is at least one."""
    errors: dict[str, int] = {}
    for turn in turns:
        for text, count in turn.errors.items():
            errors[text] = errors.get(text, 0) + count
    speeds = [turn.throughput for turn in turns]
    return Figures(
        turns=len(turns),
        throughput=statistics.median(speeds),
        lowest=min(speeds),
        highest=max(speeds),
        p50=_middle(turn.p50 for turn in turns),
        p99=_middle(turn.p99 for turn in turns),
        batch_items=statistics.median(turn.batch_items for turn in turns),
        cpu=statistics.median(turn.cpu for turn in turns),
        retries=sum(turn.retries for turn in turns),
        failed=sum(turn.failed for turn in turns),
        errors=errors,
    )


@attrs.frozen
class Cost:
    """A straight line through what calls took."""

    per_call: float
    """Seconds."""

    per_item: float
    """Seconds."""


def sink_cost(turns: Iterable[Turn]) -> Cost | None:
    """
    What a call costs and what an item adds, by least squares over turns with batches of different length.

    None if the lengths tell too little (less than 1 to 4), or if a straight line is no description
    (half of the variance, or more, stays unexplained; or a cost would be negative).
    """
    points = [(turn.batch_items, turn.call_seconds) for turn in turns if turn.calls]
    lengths = [length for length, _ in points]
    if len(points) < 3 or max(lengths) < 4 * min(lengths):
        return None
    fit = statistics.linear_regression(lengths, [took for _, took in points])
    mean = statistics.fmean(took for _, took in points)
    whole = sum((took - mean) ** 2 for _, took in points)
    rest = sum((took - fit.intercept - fit.slope * length) ** 2 for length, took in points)
    if fit.slope < 0 or fit.intercept < 0 or rest > whole / 2:
        return None
    return Cost(fit.intercept, fit.slope)
