"""
A rate limit that runs on asyncio and on trio.

``aiolimiter.AsyncLimiter`` is asyncio's alone, grants large requests last, and cannot say when the next
token comes. `Rate` serves in order of arrival.
"""

import math

import anyio
import attrs

from dispatcher.buffer.options import number
from dispatcher.errors import OptionError

__all__ = ["Rate"]


@attrs.define(slots=True, eq=False)
class Tokens:
    """
    The pure part: a token bucket kept as one moment, the one at which it was (or will be) full again.

    The generic cell rate algorithm (ITU-T I.371): no timer fills anything.

    Args:
        interval: Seconds that one token takes to come.

        burst: Tokens that a full bucket holds.
    """

    interval: float
    burst: float
    full_at: float = -math.inf

    def ready_at(self, now: float, amount: float) -> float:
        """When *amount* can be taken, at the earliest; *now* or before it if at once."""
        return max(self.full_at, now) + (amount - self.burst) * self.interval

    def take(self, now: float, amount: float) -> None:
        """Take *amount*, at a time that `ready_at` allows."""
        self.full_at = max(self.full_at, now) + amount * self.interval


class Rate:
    """
    So many calls per second, with bursts; may be shared by several channels of one event loop.

    Args:
        per_second: More than 0, finite.

        burst: How many may come at once after a pause; 1 or more.

    Raises:
        OptionError: If a value breaks its rule.
    """

    def __init__(self, per_second: float, burst: float = 1) -> None:
        if not (number(per_second) and 0 < per_second < math.inf):
            raise OptionError(
                option="Rate.per_second", rule="has to be more than 0 and finite", value=per_second
            )
        if not (number(burst) and 1 <= burst < math.inf):
            raise OptionError(option="Rate.burst", rule="has to be 1 or more and finite", value=burst)
        self.per_second = per_second
        self.burst = burst
        self._tokens = Tokens(1 / per_second, burst)
        self._turn: anyio.Lock | None = None

    async def acquire(self, amount: float = 1, /) -> None:
        """
        Return once *amount* may be spent, first come first served; cancelled, it has spent nothing.

        Raises:
            ValueError: If *amount* is more than ``burst``, which no waiting could ever grant, or not
                more than 0.
        """
        if not 0 < amount <= self.burst:
            msg = f"an amount is more than 0 and at most burst={self.burst}, got {amount!r}"
            raise ValueError(msg)
        if self._turn is None:
            self._turn = anyio.Lock()
        async with self._turn:
            now = anyio.current_time()
            ready_at = self._tokens.ready_at(now, amount)
            if ready_at > now:
                await anyio.sleep_until(ready_at)
                now = max(anyio.current_time(), ready_at)
            self._tokens.take(now, amount)

    def __repr__(self) -> str:
        return f"Rate(per_second={self.per_second}, burst={self.burst})"
