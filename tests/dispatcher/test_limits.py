"""The token bucket by literal times, and Rate on both backends by clocks that jump."""

import math
from typing import Any

import anyio
import pytest

from dispatcher import OptionError, Rate
from dispatcher.limits import Tokens


class TestTokens:
    def test_are_all_there_at_first(self) -> None:
        tokens = Tokens(interval=0.5, burst=3)
        for _ in range(3):
            assert tokens.ready_at(10.0, 1) <= 10.0
            tokens.take(10.0, 1)
        assert tokens.ready_at(10.0, 1) == 10.5

    def test_come_one_by_one(self) -> None:
        tokens = Tokens(interval=0.5, burst=1)
        at, taken = 10.0, []
        for _ in range(4):
            at = max(at, tokens.ready_at(at, 1))
            tokens.take(at, 1)
            taken.append(at)
        assert taken == [10.0, 10.5, 11.0, 11.5]

    def test_are_never_more_than_the_burst(self) -> None:
        tokens = Tokens(interval=1.0, burst=2)
        tokens.take(0.0, 2)
        assert tokens.ready_at(1000.0, 2) <= 1000.0
        tokens.take(1000.0, 2)
        assert tokens.ready_at(1000.0, 1) == 1001.0

    def test_come_in_parts_and_are_taken_in_parts(self) -> None:
        tokens = Tokens(interval=2.0, burst=4)
        tokens.take(0.0, 4)
        assert tokens.ready_at(0.0, 0.5) == 1.0
        assert tokens.ready_at(0.0, 4) == 8.0


async def times(rate: Rate, count: int, amount: float = 1) -> list[float]:
    """When *count* acquires return, since now."""
    start, out = anyio.current_time(), []
    for _ in range(count):
        await rate.acquire(amount)
        out.append(round(anyio.current_time() - start, 6))
    return out


class TestRate:
    async def test_spaces_calls(self) -> None:
        assert await times(Rate(10), 5) == [0, 0.1, 0.2, 0.3, 0.4]

    async def test_lets_a_burst_through_and_again_after_a_pause(self) -> None:
        rate = Rate(10, burst=3)
        assert await times(rate, 5) == [0, 0, 0, 0.1, 0.2]
        await anyio.sleep(60)
        assert await times(rate, 4) == [0, 0, 0, 0.1]

    async def test_takes_larger_amounts(self) -> None:
        assert await times(Rate(10, burst=4), 3, amount=2) == [0, 0, 0.2]

    async def test_serves_in_the_order_of_arrival(self) -> None:
        """A large request is not put off by small ones that came later."""
        rate = Rate(1, burst=5)
        await rate.acquire(5)
        served: list[tuple[float, float]] = []
        start = anyio.current_time()

        async def ask(amount: float) -> None:
            await rate.acquire(amount)
            served.append((amount, round(anyio.current_time() - start, 6)))

        async with anyio.create_task_group() as group:
            for n, amount in enumerate([5, 1, 2]):
                group.start_soon(ask, amount)
                await anyio.sleep(0.001 * (n + 1))
        assert served == [(5, 5.0), (1, 6.0), (2, 8.0)]

    async def test_cancelled_has_spent_nothing(self) -> None:
        rate = Rate(1)
        await rate.acquire()
        with anyio.move_on_after(0.5) as scope:
            await rate.acquire()
        assert scope.cancelled_caught
        assert await times(rate, 2) == [0.5, 1.5]

    async def test_grants_no_more_than_its_rate_under_a_crowd(self) -> None:
        rate, granted = Rate(100, burst=10), 0

        async def ask() -> None:
            nonlocal granted
            while True:
                await rate.acquire()
                granted += 1

        with anyio.move_on_after(1.995):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(ask)
        assert granted == 10 + 199

    @pytest.mark.parametrize("amount", [0, -1, 3.5, math.nan, math.inf])
    async def test_refuses_an_amount_that_it_could_never_grant(self, amount: float) -> None:
        rate = Rate(10, burst=3)
        with pytest.raises(ValueError, match=r"an amount is more than 0 and at most burst=3, got"):
            await rate.acquire(amount)
        assert await times(rate, 3) == [0, 0, 0]


class TestRefusals:
    @pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "5", None, True])
    def test_of_a_rate(self, value: Any) -> None:
        with pytest.raises(OptionError) as caught:
            Rate(value)
        assert str(caught.value) == f"Rate.per_second has to be more than 0 and finite, got {value!r}"

    @pytest.mark.parametrize("value", [0, 0.5, math.inf, math.nan, "5", None])
    def test_of_a_burst(self, value: Any) -> None:
        with pytest.raises(OptionError) as caught:
            Rate(1, burst=value)
        assert str(caught.value) == f"Rate.burst has to be 1 or more and finite, got {value!r}"

    def test_its_repr_is_how_it_is_made(self) -> None:
        assert repr(Rate(50, burst=2)) == "Rate(per_second=50, burst=2)"
