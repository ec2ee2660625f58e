"""Each option of a channel beyond the buffer's: refusals with rule and value."""

import functools
import math
from typing import Any

import attrs
import pytest
from aiolimiter import AsyncLimiter

from dispatcher import Channel, ChannelOptions, OptionError, Rate, RetryPolicy
from dispatcher.handlers import log_drops, log_errors


async def asynchronous(*args: object) -> None: ...


class Hook:
    def __call__(self, *args: object) -> None: ...

    async def flush(self) -> None: ...


class AsyncHook:
    async def __call__(self, *args: object) -> None: ...


SECONDS = "has to be more than 0 and finite, or None"
PLAIN = "has to be a plain function, not an async one"
SLOW_BUCKET = AsyncLimiter(0.5, 1)

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    *[({"retry": v}, "retry", "has to be a RetryPolicy, or None") for v in (3, RetryPolicy, "always")],
    *[({"min_qps": v}, "min_qps", SECONDS) for v in (0, -1, math.inf, math.nan, "1")],
    *[({"send_timeout": v}, "send_timeout", SECONDS) for v in (0, -1, math.inf, math.nan, True)],
    *[({"qps_limit": v}, "qps_limit", "needs an async method acquire(amount)") for v in (5, object)],
    *[
        ({name: value}, name, PLAIN)
        for name in ("on_error", "on_drop", "on_drained")
        for value in (asynchronous, AsyncHook(), functools.partial(asynchronous))
    ],
    *[({name: 5}, name, "has to be a function, or None") for name in ("on_error", "on_drop", "on_drained")],
    ({"on_drop": Hook()}, "on_drop", "has to have a plain flush(), not an async one"),
    ({"min_qps": 5.0, "qps_limit": Rate(4)}, "min_qps", "has to be at most the rate of qps_limit (4/s)"),
    (
        {"min_qps": 5.0, "qps_limit": AsyncLimiter(8, 2)},
        "min_qps",
        "has to be at most the rate of qps_limit (4/s)",
    ),
    ({"batch_items_max": 0}, "batch_items_max", "has to be a whole number of 1 or more, or None"),
]


@pytest.mark.parametrize(
    ("given", "option", "rule"), REFUSED, ids=[f"{n} {option}" for n, (_, option, _) in enumerate(REFUSED)]
)
def test_refusal(given: dict[str, Any], option: str, rule: str) -> None:
    """Option, rule and the value got, as attributes and in the text."""
    with pytest.raises(OptionError) as caught:
        ChannelOptions(**given)
    error = caught.value
    assert (error.option, error.rule, error.value) == (option, rule, given[option])
    assert str(error) == f"{option} {rule}, got {given[option]!r}"


def test_a_limiter_that_can_never_grant_1_is_refused() -> None:
    with pytest.raises(
        OptionError, match=r"qps_limit has to be able to grant 1, got 'AsyncLimiter\(0.5, ...\)'"
    ):
        ChannelOptions(qps_limit=AsyncLimiter(0.5, 1))


def test_a_heartbeat_as_fast_as_the_limit_is_fine() -> None:
    assert ChannelOptions(min_qps=4.0, qps_limit=Rate(4)).min_qps == 4.0


def test_a_limiter_of_unknown_rate_bounds_no_heartbeat() -> None:
    class Mine:
        async def acquire(self, amount: float = 1, /) -> None: ...

    assert ChannelOptions(min_qps=1e6, qps_limit=Mine()).min_qps == 1e6


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="batch_age"):
        ChannelOptions(batch_age=5)  # type: ignore[call-arg]


def test_defaults_are_as_written_down() -> None:
    options = ChannelOptions()
    assert isinstance(options.retry, RetryPolicy)
    assert (options.qps_limit, options.min_qps, options.send_timeout) == (None, None, None)
    assert (options.on_error, options.on_drop, options.on_drained) == (log_errors, log_drops, None)
    assert (options.batch_items_max, options.batch_age_max, options.max_leases) == (100, 0.2, 4)


def test_none_silences_hooks_and_turns_retries_off() -> None:
    options = ChannelOptions(retry=None, on_error=None, on_drop=None)
    assert (options.retry, options.on_error, options.on_drop) == (None, None, None)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ChannelOptions().min_qps = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("send_fn", [None, 5, "send"])
def test_a_channel_needs_something_to_call(send_fn: Any) -> None:
    with pytest.raises(OptionError, match="send_fn has to be an async function of one batch, got"):
        Channel(send_fn)
