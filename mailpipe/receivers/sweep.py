"""
One timer for all connections of a server.

A timer per command costs more than the command. Connections note when they last heard something
(`Sweep.now`, the clock as of the last tick), and one callback per tick looks them all over.
Silence is therefore noticed up to one tick late, never early.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

__all__ = ["Sweep", "Swept"]


class Swept(Protocol):
    """Something with deadlines."""

    def swept(self, now: float) -> None:
        """Look at the deadlines; *now* is the clock. Must not raise."""
        ...


class Sweep:
    """
    The timer: runs while somebody is joined, sleeps for ever else.

    Args:
        loop: The loop of those who join.

        tick: Seconds between two looks; the precision of every deadline.

        clock: What says the time; the loop's own if None.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, tick: float, clock: Callable[[], float] | None = None
    ) -> None:
        self.tick = tick
        self._clock = loop.time if clock is None else clock
        self.now = self._clock()
        """The clock as of the last tick; at most one tick old."""
        self._loop = loop
        self._members: set[Swept] = set()
        self._timer: asyncio.TimerHandle | None = None

    def join(self, member: Swept) -> None:
        """Look *member* over from now on."""
        self._members.add(member)
        if self._timer is None:
            self.now = self._clock()
            self._timer = self._loop.call_later(self.tick, self._run)

    def leave(self, member: Swept) -> None:
        """Look *member* over no more; one that never joined is no error."""
        self._members.discard(member)
        if not self._members and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        self.now = self._clock()
        self._timer = self._loop.call_later(self.tick, self._run)
        # A copy: who is closed leaves.
        for member in tuple(self._members):
            member.swept(self.now)
