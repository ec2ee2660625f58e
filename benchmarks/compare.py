"""
Whether a newer run is worse than an older one beyond what the turns scatter by themselves. Pure.

What is compared is a row's ratio to its yardstick, turn by turn, for ratios travel between runs; only
where a row has no yardstick, its own figures are. A change counts if both hold:

- the medians are more than `FLOOR` apart: two runs of the same code differ by a few per cent because
  memory lies elsewhere, which no number of turns inside one run shows;
- the turns rank apart: were the two runs alike, so uneven an order of all their turns would come about by
  chance less often than `CHANCE` (Mann and Whitney's rank test, worked out exactly). It asks nothing of how
  the turns are distributed, and a disturbed turn weighs no more than its place.

Fewer than six turns a side cannot rank so far apart. There the whole ranges must not touch, and the medians be
more than twice `FLOOR` apart; of rows with three turns, one in twenty is called changed by chance even so.

A time without a yardstick is shown and not judged, for it tells of the machine's mood as well as of the code; nor is any
other figure without one if the two machines differ.
"""

import enum
import math
import statistics
from collections.abc import Sequence

import attrs

from benchmarks.measure import Result, Spread, more_is_better, ratios
from benchmarks.report import aligned, number
from benchmarks.results import Run

__all__ = ["Change", "Verdict", "as_table", "changes", "is_apart", "notes"]

FLOOR = 0.05
CHANCE = 0.005


class Verdict(enum.Enum):
    """What a row's change comes to."""

    SAME = "within the spread"
    BETTER = "better"
    WORSE = "REGRESSION"
    NEW = "new"
    GONE = "gone"
    UNJUDGED = "not judged"


@attrs.frozen(kw_only=True)
class Change:
    """One row in both runs; what it has not stays None."""

    name: str
    kind: str
    """``"ratio"``, or the unit where the row's own figures are compared."""

    old: Spread | None
    new: Spread | None
    change: float | None
    """Of the median, as a share: 0.1 is a tenth more."""

    verdict: Verdict
    reason: str = ""


def _orders(mine: int, theirs: int) -> list[int]:
    """
    Count in how many orders of both runs' turns one run's turn precedes the other's 0, 1, 2… times.

    The counts are the coefficients of a Gaussian binomial, built up by one factor over another.
    """
    most = mine * theirs
    counts = [1] + [0] * most
    for step in range(1, mine + 1):
        for at in range(most, theirs + step - 1, -1):
            counts[at] -= counts[at - theirs - step]
        for at in range(step, most + 1):
            counts[at] += counts[at - step]
    return counts


def by_chance(old: Sequence[float], new: Sequence[float]) -> float:
    """
    How likely two runs of the same thing rank as far apart as these, in either direction: 0 to 1.

    Args:
        old: One number per turn; at least one.

        new: Likewise; equal numbers count as half before, half after.
    """
    before = sum((one < other) + (one == other) / 2 for one in old for other in new)
    rarer = math.ceil(min(before, len(old) * len(new) - before))
    counts = _orders(len(old), len(new))
    return min(1.0, 2 * sum(counts[: rarer + 1]) / sum(counts))


def is_apart(old: Sequence[float], new: Sequence[float]) -> bool:
    """Whether the two differ by more than they scatter; the rule stands at the module's head."""
    share = abs(_share(statistics.median(old), statistics.median(new)))
    if share <= FLOOR:
        return False
    if by_chance(range(len(old)), range(len(old), len(old) + len(new))) > CHANCE:
        return share > 2 * FLOOR and (max(old) < min(new) or max(new) < min(old))
    return by_chance(old, new) < CHANCE


def _share(old: float, new: float) -> float:
    if old == new:
        return 0.0
    return new / old - 1 if old else math.inf


def _is_time(unit: str) -> bool:
    return unit in ("s", "ms", "us") or unit.endswith("/s")


def _turns(result: Result) -> Sequence[float]:
    subject, yardstick = result.samples
    return ratios(subject, yardstick) if yardstick else subject


def _spread(result: Result) -> Spread:
    return Spread.over(_turns(result))


def _change(old: Result, new: Result, *, same_machine: bool) -> Change:
    before, after = _spread(old), _spread(new)
    kind = "ratio" if new.ratio is not None else new.unit
    if old.unit != new.unit or (old.ratio is None) != (new.ratio is None):
        was = "ratio" if old.ratio is not None else "no ratio"
        reason = f"was measured otherwise: {was}, in {old.unit}"
        return Change(
            name=new.name,
            kind=kind,
            old=None,
            new=after,
            change=None,
            verdict=Verdict.UNJUDGED,
            reason=reason,
        )
    share = _share(before.median, after.median)
    reason = ""
    if new.ratio is None and _is_time(new.unit):
        verdict, reason = Verdict.UNJUDGED, "a time without a yardstick"
    elif new.ratio is None and not same_machine:
        verdict, reason = Verdict.UNJUDGED, "no yardstick, and another machine"
    elif not is_apart(_turns(old), _turns(new)):
        verdict = Verdict.SAME
    else:
        verdict = Verdict.BETTER if (share > 0) == more_is_better(new.unit) else Verdict.WORSE
    return Change(
        name=new.name, kind=kind, old=before, new=after, change=share, verdict=verdict, reason=reason
    )


def changes(old: Run, new: Run) -> list[Change]:
    """What became of every row, in the newer run's order; rows that vanished come last."""
    before = {result.name: result for result in old.results}
    same_machine = old.machine == new.machine
    found: list[Change] = []
    for result in new.results:
        if (was := before.pop(result.name, None)) is not None:
            found.append(_change(was, result, same_machine=same_machine))
        else:
            kind = "ratio" if result.ratio is not None else result.unit
            found.append(
                Change(
                    name=result.name,
                    kind=kind,
                    old=None,
                    new=_spread(result),
                    change=None,
                    verdict=Verdict.NEW,
                    reason=old.absent.get(result.name, ""),
                )
            )
    for result in before.values():
        kind = "ratio" if result.ratio is not None else result.unit
        reason = new.absent.get(result.name, "")
        found.append(
            Change(
                name=result.name,
                kind=kind,
                old=_spread(result),
                new=None,
                change=None,
                verdict=Verdict.GONE,
                reason=reason,
            )
        )
    return found


def notes(old: Run, new: Run) -> list[str]:
    """What a reader has to know before the table: other machines, other amounts of work."""
    said = [
        f"another machine: {key} was {old.machine.get(key, 'not told')}, is {new.machine.get(key, 'not told')}"
        for key in sorted({*old.machine, *new.machine})
        if old.machine.get(key) != new.machine.get(key)
    ]
    if old.scale != new.scale:
        said.append(f"another amount of work: --scale was {old.scale:g}, is {new.scale:g}")
    return said


def _middle(spread: Spread | None, kind: str) -> tuple[str, str]:
    if spread is None:
        return "-", "-"
    if kind == "ratio":
        return f"{spread.median:.2f}", f"{spread.lower:.2f}..{spread.upper:.2f}"
    return number(spread.median), f"{number(spread.lower)}..{number(spread.upper)}"


def as_table(found: Sequence[Change]) -> str:
    """One line per row: medians with their middle halves, the change, and what it comes to."""
    head = ("row", "of", "old", "middle half", "new", "middle half", "change", "")
    lines = [head]
    for one in found:
        share = f"{one.change:+.1%}" if one.change is not None else "-"
        verdict = f"{one.verdict.value}: {one.reason}" if one.reason else one.verdict.value
        lines.append(
            (one.name, one.kind, *_middle(one.old, one.kind), *_middle(one.new, one.kind), share, verdict)
        )
    return aligned(lines)
