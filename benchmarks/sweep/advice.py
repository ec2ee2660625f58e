"""
One setting, and why. Pure.
"""

import statistics

import attrs

from benchmarks.report import number
from benchmarks.sweep.cells import Cell, pasted, written_duration
from benchmarks.sweep.figures import Turn, sink_cost
from benchmarks.sweep.goals import cost
from benchmarks.sweep.record import Record, Versus
from benchmarks.sweep.search import choose

__all__ = ["Advice", "advise", "verdict"]


@attrs.frozen(kw_only=True)
class Advice:
    """What to set."""

    cell: Cell
    options: str
    """Python, to be pasted."""

    reason: str
    warning: str
    """What speaks against trusting it; ``""`` for nothing."""


_AXES = (("batch_items_max", "item{} a batch"), ("max_leases", "lease{}"))


def _beyond(record: Record, cell: Cell, name: str, noun: str, tolerance: float) -> str:
    """What more of one option brings, at best, whatever the others are; ``""`` if more was not tried."""
    value, here = getattr(cell, name), record.estimate(cell).value
    more = [record.estimate(other).value for other in record.cells() if getattr(other, name) > value]
    if not more or not here:
        return ""
    gain = max(more) / here - 1
    noun = noun.format("" if value == 1 else "s")
    if gain < -tolerance:
        return f"beyond {value} {noun} it gets worse ({gain:+.0%} at best)"
    noise = ", which is within the noise" if gain > tolerance else ""
    return f"beyond {value} {noun} the gain is {max(gain, 0):.1%} at most{noise}"


def _ends(record: Record, cell: Cell) -> list[str]:
    """The axes at whose far end the cell stands."""
    grid = record.grid
    ends = [("batch_items_max", grid.items), ("max_leases", grid.leases)]
    return [name for name, values in ends if len(values) > 1 and getattr(cell, name) == values[-1]]


def _sink(record: Record, cell: Cell) -> str:
    line = sink_cost(
        record.all_turns(other for other in record.cells() if other.max_leases == cell.max_leases)
    )
    if line is None:
        return ""
    call, item = written_duration(line.per_call), written_duration(line.per_item)
    return f"a call costs about {call} and each item {item} more"


def advise(record: Record, *, tolerance: float) -> Advice:
    """
    Recommend the cheapest cell that is as good as the best.

    Args:
        record: What was measured; one cell at least.

        tolerance: Relative differences below it are none.
    """
    known = record.estimates()
    final = {point: estimate for point, estimate in known.items() if _in_final(record, point)}
    point = choose(final or known, tolerance=tolerance, cost=lambda point: cost(record.grid.cell(point)))
    cell = record.grid.cell(point)
    why = [_beyond(record, cell, name, noun, tolerance) for name, noun in _AXES]
    sentences = [_sentence([part for part in why if part])]
    processor = statistics.median(turn.cpu for turn in record.all_turns([cell]))
    seen = _sink(record, cell)
    if processor >= 0.9:  # all of its threads together
        seen += f"{'; ' if seen else ''}this process uses {processor:.0%} of a processor: it is the limit"
    sentences.append(_sentence([seen] if seen else []))
    warnings = []
    if not known[point].value:
        warnings.append("nothing that was tried reaches the goal")
    elif record.goal.p99 is not None and not _met(record, cell):
        warnings.append(f"a p99 of {written_duration(record.goal.p99)} is not reached")
    if known[point].noise > 2 * tolerance:
        off = f"{known[point].noise:.0%}"
        warnings.append(f"its figure may be off by {off}: a quieter machine or more --turns would tell more")
    if known[point].value and (ends := _ends(record, cell)):
        warnings.append(f"it stands at the end of {' and '.join(ends)}: a wider axis may hold a better one")
    return Advice(
        cell=cell,
        options=pasted(cell),
        reason=" ".join(filter(None, sentences)) or "Nothing that was tried did better.",
        warning="; ".join(warnings),
    )


def _in_final(record: Record, point: tuple[int, int, int]) -> bool:
    return any((record.grid.cell(point), size) in record.finals for size in record.item_sizes)


def _met(record: Record, cell: Cell) -> bool:
    """Whether most turns were within the bound."""
    return statistics.median(record.goal.met(turn) for turn in record.all_turns([cell])) >= 0.5


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _figure(turns: tuple[Turn, ...]) -> str:
    p99 = [turn.p99 for turn in turns if turn.p99 is not None]
    speed = f"{number(statistics.median(turn.throughput for turn in turns))} items/s"
    return speed + (f" at a p99 of {written_duration(statistics.median(p99))}" if p99 else "")


def verdict(record: Record, versus: Versus) -> str:
    """The recommended setting beside the defaults, in a line."""
    sides = f"{_figure(versus.recommended)} against {_figure(versus.defaults)}"
    pairs = f"better in {versus.better} of {len(versus.recommended)} pairs"
    if not versus.sure:
        pairs += ", which may be chance"
    if versus.ratio is None:
        return (
            f"recommended against defaults: {pairs}; {sides}; the defaults did not always do what was asked"
        )
    middle, low, high = versus.ratio
    by_latency = record.goal.what == "latency" and record.goal.rate is not None
    times = f"{middle:.2f}x ({low:.2f}-{high:.2f})"
    what = f"a p99 {times} shorter" if by_latency else f"{times} the items per second"
    return f"recommended against defaults: {what}, {pairs}; {sides}"
