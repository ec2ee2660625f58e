"""The policy as a function of an error and literal times; nothing here reads a clock."""

import functools
import math
from typing import Any

import pytest
import tenacity
import tenacity.asyncio

from dispatcher import OptionError, RetryAfter, RetryPolicy, SendCancelled, TransientError, is_transient
from dispatcher.errors import BadResults


async def asynchronous(state: object) -> bool:
    return True


class AsyncCall:
    async def __call__(self, state: object) -> bool:
        return True


def delays(policy: RetryPolicy, *times: float) -> list[float | None]:
    """Of attempts that began at 0 and ended at *times*."""
    return [
        policy.next_delay(TransientError(), attempt=attempt, first_at=0.0, now=now)
        for attempt, now in enumerate(times, 1)
    ]


class TestIsTransient:
    @pytest.mark.parametrize(
        ("error", "transient"),
        [
            (TransientError(), True),
            (RetryAfter(1), True),
            (SendCancelled(), True),
            (ConnectionResetError(), True),
            (TimeoutError(), True),
            (OSError("disk full"), False),
            (ValueError(), False),
            (BadResults(), False),
            (ExceptionGroup("g", [TransientError(), TimeoutError()]), True),
            (ExceptionGroup("g", [TransientError(), ValueError()]), False),
            (ExceptionGroup("g", [ExceptionGroup("h", [ValueError()]), TimeoutError()]), False),
        ],
        ids=repr,
    )
    def test_by_kind_and_a_group_by_every_leaf(self, error: Exception, transient: bool) -> None:
        assert is_transient(error) is transient
        assert (RetryPolicy().next_delay(error, attempt=1, first_at=0.0, now=0.0) is not None) is transient


class TestSchedules:
    def test_exponential(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_exponential(multiplier=0.2, max=1), stop=tenacity.stop_never)
        assert delays(policy, 0, 0, 0, 0, 0) == [0.2, 0.4, 0.8, 1, 1]

    def test_a_chain_and_a_sum(self) -> None:
        chain = tenacity.wait_chain(*[tenacity.wait_fixed(seconds) for seconds in (1, 5, 9)])
        assert delays(RetryPolicy(wait=chain, stop=tenacity.stop_never), 0, 0, 0, 0) == [1, 5, 9, 9]
        both = tenacity.wait_fixed(1) + tenacity.wait_incrementing(0, 2)
        assert delays(RetryPolicy(wait=both, stop=tenacity.stop_never), 0, 0, 0) == [1, 3, 5]

    def test_stops_by_attempts(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_attempt(3))
        assert delays(policy, 0, 1, 2) == [1, 1, None]

    def test_stops_by_time_since_the_first_attempt_began(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_delay(10))
        assert delays(policy, 5, 9.9, 10) == [1, 1, None]

    def test_by_default_is_full_jitter_given_up_before_five_minutes(self) -> None:
        policy = RetryPolicy()
        for attempt, most in ((1, 0.2), (2, 0.4), (5, 3.2), (30, 60)):
            drawn = [
                policy.next_delay(TransientError(), attempt=attempt, first_at=0.0, now=0.0)
                for _ in range(200)
            ]
            known = [delay for delay in drawn if delay is not None]
            assert len(known) == 200
            assert 0 <= min(known) < most / 2 < max(known) <= most
        ends = functools.partial(policy.next_delay, RetryAfter(10), attempt=3, first_at=100.0, at_least=10.0)
        assert ends(now=389.0) == 10
        assert ends(now=390.0) is None

    def test_of_very_many_attempts_stays_at_its_longest(self) -> None:
        """Doubling overflows a float at about 1000."""
        policy = RetryPolicy(stop=tenacity.stop_never)
        delay = policy.next_delay(TransientError(), attempt=5000, first_at=0.0, now=0.0)
        assert delay is not None
        assert 0 <= delay <= 60

    def test_is_never_shorter_than_was_asked_for(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(5), stop=tenacity.stop_before_delay(100))
        ask = functools.partial(policy.next_delay, RetryAfter(1), attempt=1, first_at=0.0)
        assert ask(now=0.0, at_least=3.0) == 5
        assert ask(now=0.0, at_least=8.0) == 8
        assert ask(now=50.0, at_least=50.0) is None, "stop= sees what was asked for"

    def test_depends_on_differences_only(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_delay(10))
        for start in (-1e6, 0.0, 1e6):
            ask = functools.partial(policy.next_delay, TransientError(), attempt=2, first_at=start)
            assert (ask(now=start + 9), ask(now=start + 10)) == (1, None)


class TestVerdicts:
    def test_retry_is_asked_unless_a_hook_has_answered(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_attempt(2))
        ask = functools.partial(policy.next_delay, ValueError(), first_at=0.0, now=0.0)

        assert ask(attempt=1) is None
        assert ask(attempt=1, wanted=True) == 1
        assert ask(attempt=2, wanted=True) is None

    def test_strategies_of_users_see_the_error(self) -> None:
        seen: list[Any] = []

        def retry(state: tenacity.RetryCallState) -> bool:
            assert state.outcome is not None
            seen.append((state.outcome.exception(), state.attempt_number, state.seconds_since_start))
            return False

        error = KeyError("x")
        assert RetryPolicy(retry=retry).next_delay(error, attempt=4, first_at=2.0, now=9.0) is None
        assert seen == [(error, 4, 7.0)]

    def test_what_a_strategy_raises_comes_out(self) -> None:
        def wait(state: object) -> float:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            RetryPolicy(wait=wait).next_delay(TransientError(), attempt=1, first_at=0.0, now=0.0)


class TestRefusals:
    @pytest.mark.parametrize("name", ["retry", "wait", "stop"])
    @pytest.mark.parametrize(
        "value",
        [5, None, "3 times", tenacity.wait_fixed, ValueError],
        ids=["number", "None", "text", "a class", "an error"],
    )
    def test_what_is_no_strategy(self, name: str, value: Any) -> None:
        with pytest.raises(OptionError) as caught:
            RetryPolicy(**{name: value})
        assert str(caught.value) == f"RetryPolicy.{name} has to be a tenacity strategy, got {value!r}"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("retry", asynchronous),
            ("wait", AsyncCall()),
            ("stop", functools.partial(asynchronous)),
            ("retry", tenacity.asyncio.retry_if_exception(asynchronous)),
            ("retry", tenacity.retry_if_exception(asynchronous)),  # type: ignore[arg-type]
            ("retry", tenacity.retry_any(tenacity.retry_if_exception_type(), AsyncCall())),  # type: ignore[arg-type]
            ("retry", tenacity.retry_all(tenacity.retry_any(AsyncCall()))),  # type: ignore[arg-type]
            ("stop", tenacity.stop_any(tenacity.stop_never, AsyncCall())),  # type: ignore[arg-type]
            ("wait", tenacity.wait_combine(AsyncCall())),  # type: ignore[arg-type]
            ("wait", tenacity.wait_chain(AsyncCall())),  # type: ignore[arg-type]
        ],
        ids=[
            "function", "call", "partial", "tenacity's", "predicate", "any", "nested", "stop", "combine", "chain",
        ],
    )  # fmt: skip
    def test_what_is_async_wherever_it_hides(self, name: str, value: Any) -> None:
        """Called without an await it would be true, always."""
        with pytest.raises(OptionError, match=rf"RetryPolicy.{name} cannot be async"):
            RetryPolicy(**{name: value})


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan, "5", None])
def test_retry_after_takes_finite_seconds(seconds: Any) -> None:
    with pytest.raises(ValueError, match="RetryAfter takes finite seconds of 0 or more, got"):
        RetryAfter(seconds)
