"""Timeouts by one timer: each at its own time, and nobody else's cancellation swallowed."""

import asyncio
from typing import Any

import pytest

from dispatcher.testing import jumping_asyncio
from mailpipe.gateway.patience import Patience


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Seconds pass when nothing else can."""
    return jumping_asyncio()


@pytest.fixture
async def patience() -> Patience:
    return Patience(asyncio.get_running_loop())


async def waits(patience: Patience, seconds: float, what: float) -> float:
    """Wait for *what* seconds, for *seconds* at most; when it ended."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        with patience.until(began + seconds):
            await asyncio.sleep(what)
    except TimeoutError:
        return -(loop.time() - began)
    return loop.time() - began


class TestUntil:
    async def test_each_ends_at_its_own_time(self, patience: Patience) -> None:
        """Whatever their order; who is done in time hears nothing of it."""
        limits = [25.0, 3.0, 25.0, 1.0, 60.0, 2.0]
        ended = await asyncio.gather(*(waits(patience, limit, 10.0) for limit in limits))

        assert ended == pytest.approx([10.0, -3.0, 10.0, -1.0, 10.0, -2.0], abs=0.01)

    async def test_one_after_another(self, patience: Patience) -> None:
        """A timer set for the first serves those that come later."""
        for _ in range(3):
            assert await waits(patience, 5.0, 4.0) == pytest.approx(4.0, abs=0.01)
            assert await waits(patience, 5.0, 6.0) == pytest.approx(-5.0, abs=0.01)

    async def test_a_deadline_that_is_over(self, patience: Patience) -> None:
        """As soon as the block waits."""
        assert await waits(patience, -1.0, 1.0) == pytest.approx(0.0, abs=0.01)

    async def test_a_foreign_cancellation_goes_through(self, patience: Patience) -> None:
        """It is no timeout, and the timeout that would have come does not come any more."""
        task = asyncio.create_task(waits(patience, 5.0, 100.0))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(10.0)

    async def test_a_cancellation_beside_the_timeout_goes_through(self, patience: Patience) -> None:
        """Both in one turn: whoever cancelled the task must not be ignored."""
        task = asyncio.create_task(waits(patience, 5.0, 100.0))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        loop.call_at(loop.time() + 5.0, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_an_error_at_the_same_time_is_told_as_it_is(self, patience: Patience) -> None:
        """And the task goes on uncancelled."""
        with (
            pytest.raises(ZeroDivisionError),
            patience.until(asyncio.get_running_loop().time() + 1.0),
        ):
            try:
                await asyncio.sleep(10.0)
            except asyncio.CancelledError:
                raise ZeroDivisionError from None
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
