"""
tenacity's strategies as a pure function of an error and the time.

tenacity's own loop would sleep in the send slot and read the clock itself; here only its ``retry``,
``wait`` and ``stop`` strategy objects are used, on a call state whose times we set.
"""

import inspect
from typing import Any

import attrs
import tenacity

from dispatcher.errors import OptionError, TransientError

__all__ = ["RetryPolicy", "is_transient"]


def is_transient(error: BaseException) -> bool:
    """
    Whether the next attempt may fare better.

    True for `TransientError` (and its `RetryAfter`), ``ConnectionError``, ``TimeoutError``, and a group
    whose every leaf is one.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_transient(leaf) for leaf in error.exceptions)
    return isinstance(error, TransientError | ConnectionError | TimeoutError)


def _strategy(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    option = f"RetryPolicy.{attribute.name}"
    # A class is callable, too: wait_fixed is no strategy, wait_fixed(1) is.
    if not callable(value) or isinstance(value, type):
        raise OptionError(option=option, rule="has to be a tenacity strategy", value=value)
    if _has_async(value):
        raise OptionError(option=option, rule="cannot be async: it is asked between awaits", value=value)


def _has_async(strategy: object) -> bool:
    """Whether it, its predicate, or any strategy that it combines is an async function."""
    call = getattr(strategy, "__call__", None)  # noqa: B004 - the method itself is looked at
    parts = (strategy, call, getattr(strategy, "predicate", None))
    combined = [getattr(strategy, name, ()) for name in ("retries", "stops", "wait_funcs", "strategies")]
    return any(inspect.iscoroutinefunction(part) for part in parts) or any(
        _has_async(part) for some in combined for part in some
    )


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """
    When a failed batch is tried again, by tenacity's strategies.

    Each batch is judged by itself; while it waits it is back in the buffer and holds no sender.

    Args:
        retry: Which errors are tried again. Default: `is_transient`.

        wait:
            Seconds to the next attempt. Default: full jitter, 0.2 s doubled each time, at most 60 s
            (``wait_random_exponential(multiplier=0.2, max=60)``).

        stop:
            When to give up. Default: before the next attempt would begin 5 minutes or more after the
            first one did (``stop_before_delay(300)``).

    Raises:
        OptionError: If a strategy is async, or nothing to call.
    """

    retry: Any = attrs.field(factory=lambda: tenacity.retry_if_exception(is_transient), validator=_strategy)
    wait: Any = attrs.field(
        factory=lambda: tenacity.wait_random_exponential(multiplier=0.2, max=60), validator=_strategy
    )
    stop: Any = attrs.field(factory=lambda: tenacity.stop_before_delay(300), validator=_strategy)
    _retrying: tenacity.BaseRetrying = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(
            self, "_retrying", tenacity.Retrying(retry=self.retry, wait=self.wait, stop=self.stop)
        )

    def next_delay(
        self,
        error: Exception,
        *,
        attempt: int,
        first_at: float,
        now: float,
        at_least: float = 0.0,
        wanted: bool = False,
    ) -> float | None:
        """
        Judge one error; reads no clock.

        Args:
            error: What the attempt failed with.

            attempt: Its number, from 1.

            first_at: When the first attempt began, in seconds of any clock.

            now: When this one ended, by the same clock.

            at_least: What the receiver asked for (`RetryAfter`), in seconds; ``stop=`` sees it, too.

            wanted: Skip ``retry=``; somebody else has answered that.

        Returns:
            Seconds until the next attempt, or None to give up.
        """
        state = tenacity.RetryCallState(self._retrying, fn=None, args=(), kwargs={})
        state.attempt_number, state.start_time, state.outcome_timestamp = attempt, first_at, now
        state.outcome = tenacity.Future(attempt)
        state.outcome.set_exception(error)
        if not wanted and not self.retry(state):
            return None
        delay = max(float(self.wait(state)), at_least)
        state.upcoming_sleep = delay
        return None if self.stop(state) else delay


DEFAULT = RetryPolicy()
"""What a channel uses if nothing else is said; over a store, `FOREVER` stands in for it."""

FOREVER = RetryPolicy(stop=tenacity.stop_never)
"""The default, without an end."""
