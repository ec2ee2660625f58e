"""
Which cells to try: finds the best of a grid without running all of it.

Pure, and knows nothing of channels: points are indices, *measure* is asked for values.

1. **Climb.** From the start, walk along one axis after the other in long strides, both ways, until two
   steps in a row gain nothing worth having; go on from the best, until no axis gains any more. Strides
   are counted in places of the axis; where values double from place to place, that is doubling.
2. **Refine.** Halve the strides and climb again round the best, down to single places.
3. **Shrink.** Take the cheapest point that is as good as the best within the tolerance or the noise.
   It is compared with the best of all, never with the last step, or small losses would add up.

A gain counts if it is above *tolerance* and above the noise of what gains. Points that are asked for together are to be measured in turns, so that a machine that slows down slows all of them.
"""

from collections.abc import Callable, Mapping, Sequence

import attrs

from benchmarks.sweep.cells import Point

__all__ = ["Estimate", "Measure", "choose", "finalists", "search"]

PATIENCE = 2
"""A walk ends after so many steps without a gain: one step may be noise."""

NOISE_MAX = 0.2
"""A point that is worse by more than this is worse, however much the samples vary."""


@attrs.frozen
class Estimate:
    """What is known of one point."""

    value: float
    """More is better; 0 is as bad as it gets."""

    noise: float = 0.0
    """By how much *value* may be off, relative to it."""


Measure = Callable[[Sequence[Point]], Sequence[Estimate]]
"""Is asked for some points at once, each of them only once in a search."""


def choose(
    known: Mapping[Point, Estimate], *, tolerance: float, cost: Callable[[Point], tuple[float, ...]]
) -> Point:
    """The cheapest of the points that are as good as the best of *known*, within tolerance or noise."""
    best = max(known.values(), key=lambda estimate: estimate.value)
    return min((point for point in known if _as_good(known[point], best, tolerance)), key=cost)


def finalists(known: Mapping[Point, Estimate], chosen: Point, *, tolerance: float, count: int) -> list[Point]:
    """The chosen point, and the best of those that more samples could still put first."""
    ranked = sorted(known, key=lambda point: -known[point].value)
    best = known[ranked[0]]
    near = [point for point in ranked if point != chosen and _as_good(known[point], best, 2 * tolerance)]
    return [chosen, *near][:count]


def _as_good(estimate: Estimate, best: Estimate, tolerance: float) -> bool:
    noise = min(max(estimate.noise, best.noise), NOISE_MAX)
    return estimate.value >= best.value * (1 - max(tolerance, noise))


class _Search:
    def __init__(self, shape: Point, measure: Measure, tolerance: float) -> None:
        self.known: dict[Point, Estimate] = {}
        self._shape = shape
        self._measure = measure
        self._tolerance = tolerance

    def look(self, points: Sequence[Point]) -> None:
        """Measure those of *points* that are new, together."""
        new = [point for point in dict.fromkeys(points) if point not in self.known]
        if new:
            self.known.update(zip(new, self._measure(new), strict=True))

    def value(self, point: Point) -> float:
        return self.known[point].value

    def _way(self, at: Point, axis: int, stride: int) -> list[Point]:
        """From *at* along the axis; the last step, to the axis's end, may be a shorter one."""
        here, end = at[axis], self._shape[axis] - 1 if stride > 0 else 0
        places = [*range(here + stride, end, stride), end] if here != end else []
        return [_moved(at, axis, place) for place in places]

    def climb(self, at: Point, axis: int, stride: int) -> Point:
        """The best point on the axis through *at*, as far as a walk in strides can tell."""
        ways = [self._way(at, axis, stride), self._way(at, axis, -stride)]
        self.look([at, *(point for way in ways for point in way[:PATIENCE])])
        line = [at]
        for way in ways:
            peak, dull = self.value(at), 0
            for place, point in enumerate(way):
                if point not in self.known:
                    self.look(way[place : place + PATIENCE])
                line.append(point)
                # The peak stays until it is passed for certain: many small gains are one in the end.
                if self._gains(point, peak):
                    peak, dull = self.value(point), 0
                else:
                    dull += 1
                if dull == PATIENCE:
                    break
        top = max(line, key=self.value)
        return top if self._gains(top, self.value(at)) else at

    def _gains(self, point: Point, over: float) -> bool:
        noise = min(self.known[point].noise, NOISE_MAX)
        return self.value(point) > over * (1 + max(self._tolerance, noise))

    def ascend(self, at: Point, strides: Sequence[int]) -> Point:
        """Climb along all axes until none gains any more; each move gains, so that it ends."""
        while True:
            before = at
            for axis, stride in enumerate(strides):
                if self._shape[axis] > 1:
                    at = self.climb(at, axis, stride)
            if at == before:
                return at

    def shrink(self, cost: Callable[[Point], tuple[float, ...]]) -> Point:
        """Try what is cheaper than the cheapest good point, in long steps first."""
        at = choose(self.known, tolerance=self._tolerance, cost=cost)
        stride = max(self._shape) // 2
        while stride:
            cheaper = [
                point
                for axis in range(len(self._shape))
                if at[axis] >= stride and cost(point := _moved(at, axis, at[axis] - stride)) < cost(at)
            ]
            self.look(cheaper)
            was, at = at, choose(self.known, tolerance=self._tolerance, cost=cost)
            if at == was:
                stride //= 2
        return at


def _moved(point: Point, axis: int, place: int) -> Point:
    moved = list(point)
    moved[axis] = place
    return moved[0], moved[1], moved[2]


def _stride(length: int) -> int:
    """About five steps from end to end, as a power of two, which can be halved."""
    stride = 1
    while stride * 2 * 5 <= length + 4:
        stride *= 2
    return stride


def search(
    shape: Point,
    start: Point,
    measure: Measure,
    *,
    tolerance: float,
    cost: Callable[[Point], tuple[float, ...]],
) -> dict[Point, Estimate]:
    """
    Find the best point of a grid, and the cheapest that is as good.

    Args:
        shape: How many places each axis has.

        start: Where to begin.

        measure: What a point is worth.

        tolerance: A relative gain below this is none.

        cost: Ranks points that are equally good; the least is taken.

    Returns:
        Every point that was measured; `choose` tells the one to take.
    """
    run = _Search(shape, measure, tolerance)
    strides = [_stride(length) for length in shape]
    run.look([start])
    at = run.ascend(start, strides)
    while max(strides) > 1:
        strides = [max(1, stride // 2) for stride in strides]
        at = run.ascend(at, strides)
    run.shrink(cost)
    return run.known
