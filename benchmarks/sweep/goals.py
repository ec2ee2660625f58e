"""
What a turn is worth, for a stated goal. Pure.
"""

import math
import statistics
from collections.abc import Callable, Sequence

import attrs

from benchmarks.sweep.cells import Cell, written_duration
from benchmarks.sweep.figures import Turn
from benchmarks.sweep.search import Estimate

__all__ = ["Goal", "carried", "cost", "estimate"]


LOSS_WEIGHT = 20
"""One percent of lost items costs a fifth of the score. Poison, which is lost in every cell, changes nothing."""


USED_MAX = 0.7
"""A setting that needs more of what it could carry falls behind at the next hiccup; queues grow beyond it."""


@attrs.frozen(kw_only=True)
class Goal:
    """
    What is wanted.

    Args:
        what: ``"throughput"`` or ``"latency"``.

        p99: Seconds that 99 % of the items may take from accepted to delivered; None: no bound.

        rate: Items offered per second; None: as many as are taken.
    """

    what: str
    p99: float | None = None
    rate: float | None = None

    @property
    def seeks_rate(self) -> bool:
        """Whether each cell has to be asked which rate it carries under the bound."""
        return self.what == "latency" and self.rate is None

    def carries(self, turn: Turn) -> bool:
        """Whether the turn delivered what was offered; at a given rate, with something to spare."""
        return turn.keeps_up() and (self.rate is None or turn.used <= USED_MAX)

    def met(self, turn: Turn) -> bool:
        """Whether the turn delivered what was offered, within the bound."""
        if not self.carries(turn):
            return False
        return self.p99 is None or (turn.p99 is not None and turn.p99 <= self.p99)

    def score(self, turn: Turn) -> float:
        """
        What the turn is worth; more is better.

        Without a given rate it is the items per second (under a bound, those of the highest rate that
        keeps it: see `carried`). At a given rate, what does not carry it, with something to spare, is
        next to nothing. What does is all alike for throughput; for latency it is the reciprocal of the
        p99. Whatever the goal, a setting that loses items which others deliver is worth little.
        """
        whole = (1 - turn.lost) ** LOSS_WEIGHT
        if self.rate is None:
            return whole * turn.throughput
        if turn.p99 is None or not self.carries(turn):
            return 1e-9 * whole * turn.throughput
        return whole * (self.rate if self.what == "throughput" else 1 / turn.p99)

    def __str__(self) -> str:
        bound = f"p99 of at most {written_duration(self.p99)}" if self.p99 is not None else ""
        if self.rate is not None:
            aim = "lowest p99" if self.what == "latency" else "smallest setting that carries it"
            return f"{aim} at {self.rate:g} items/s" + (f", {bound}" if bound else "")
        return f"most items/s with a {bound}" if self.seeks_rate else "most items/s"


def carried(run: Callable[[float | None], Turn], met: Callable[[Turn], bool], *, steps: int = 4) -> Turn:
    """
    The turn at the highest rate that meets a bound.

    First as fast as it goes: if even that meets the bound, there is no more to seek. Then rates below,
    by halving the interval; a rate that fails is given a second turn, for one slow moment is enough to
    spoil a p99, and would halve the answer.

    Args:
        run: Runs a turn at a rate; None: as fast as it goes.

        met: Whether a turn is within the bound.

        steps: How often the interval is halved; each costs a turn or two.

    Returns:
        The best turn that met the bound. If none did: the last one, with a throughput of 0, for this is
        what can be had under that bound.
    """
    full = turn = run(None)
    if met(turn):
        return turn
    low, high, best = 0.0, turn.throughput, None
    for _ in range(steps):
        if not high:
            break
        middle = (low + high) / 2
        turn = run(middle)
        if not met(turn):
            turn = run(middle)
        if met(turn):
            low, best = middle, turn
        else:
            high = middle
    if best is None:
        return attrs.evolve(turn, throughput=0.0)
    # What is lost at full speed (for a batch is too large, say) is lost in every rush, at whatever rate.
    return attrs.evolve(best, lost=max(best.lost, full.lost))


def cost(cell: Cell) -> tuple[float, ...]:
    """What a setting asks of receiver and memory: items in flight, then calls at once, then waiting."""
    return (cell.batch_items_max * cell.max_leases, cell.max_leases, cell.batch_age_max)


def estimate(scores: Sequence[Sequence[float]]) -> Estimate:
    """
    Reduce a cell's scores.

    Args:
        scores: One sequence per item size. With more than one size, the geometric mean of their medians
            is the value, so that a size with large figures does not outvote the others.
    """
    medians = [statistics.median(samples) for samples in scores]
    if not all(medians):
        return Estimate(0.0)
    value = math.exp(statistics.fmean(math.log(middle) for middle in medians))
    # Half the range over the root of the number: about the standard error of a median of few.
    noise = max(
        (max(samples) - min(samples)) / 2 / middle / math.sqrt(len(samples))
        for samples, middle in zip(scores, medians, strict=True)
    )
    return Estimate(value, noise)
