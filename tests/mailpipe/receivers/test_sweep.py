import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from mailpipe.receivers.sweep import Sweep


class Member:
    def __init__(self) -> None:
        self.looks: list[float] = []

    def swept(self, now: float) -> None:
        self.looks.append(now)


class TestSweep:
    async def test_looks_at_those_who_joined(
        self, until: Callable[[Callable[[], Any]], Awaitable[None]]
    ) -> None:
        """Every tick, with a clock that only grows; not after they left."""
        sweep, one, two = Sweep(asyncio.get_running_loop(), 0.01), Member(), Member()
        sweep.join(one)
        sweep.join(two)
        await until(lambda: len(one.looks) >= 3)
        assert one.looks == sorted(one.looks)
        assert sweep.now >= one.looks[-1]
        sweep.leave(one)
        seen = len(one.looks)
        count = len(two.looks)
        await until(lambda: len(two.looks) >= count + 2)
        assert len(one.looks) == seen
        sweep.leave(two)

    async def test_sleeps_when_nobody_is_there(self) -> None:
        """An idle server wakes never, and its clock is fresh for who comes next."""
        loop = asyncio.get_running_loop()
        sweep, member = Sweep(loop, 0.01), Member()
        sweep.join(member)
        sweep.leave(member)
        sweep.leave(member)
        await asyncio.sleep(0.03)
        assert member.looks == []
        before = sweep.now
        sweep.join(member)
        assert sweep.now > before
        sweep.leave(member)
