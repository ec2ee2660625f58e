"""What a channel is told when it is made."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Generic

import attrs
from aiolimiter import AsyncLimiter
from typing_extensions import TypeVar

from dispatcher.buffer.options import BufferOptions, plain_function, seconds
from dispatcher.errors import OptionError
from dispatcher.handlers import log_drops, log_errors
from dispatcher.limits import Rate
from dispatcher.retry import DEFAULT, RetryPolicy
from dispatcher.typing import DropFn, ErrorFn, Limiter

__all__ = ["ChannelOptions"]

T_contra = TypeVar("T_contra", contravariant=True, default=object)


def _hook(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:  # noqa: ANN401
    plain_function(instance, attribute, value)
    if inspect.iscoroutinefunction(getattr(value, "flush", None)):
        rule = "has to have a plain flush(), not an async one"
        raise OptionError(option=attribute.name, rule=rule, value=value)


def _known_rate(limiter: Limiter | None) -> float:
    """Calls per second that *limiter* allows in the long run, where it can be known; else ``inf``."""
    if isinstance(limiter, Rate):
        return limiter.per_second
    if isinstance(limiter, AsyncLimiter):
        return limiter.max_rate / limiter.time_period
    return math.inf


@attrs.frozen(kw_only=True)
class ChannelOptions(BufferOptions[T_contra], Generic[T_contra]):
    """
    Settings of one channel; checked when made, never changed.

    Those about buffering are `BufferOptions`'.

    Args:
        retry:
            Judges failed attempts; None: each batch gets one attempt. Default: transient errors are
            tried again with full jitter, 0.2 s doubled up to 60 s, given up before 5 minutes.

        qps_limit:
            Limits the calls of the SendFn, retries and heartbeats included, over all leases: an
            ``aiolimiter.AsyncLimiter`` (asyncio only), a `dispatcher.limits.Rate`, or anything with
            ``async acquire(amount)``. One that raises is logged, and asked again after a second.

        min_qps:
            Heartbeat: after 1 / min_qps seconds with nothing buffered or in flight, an empty batch is
            sent (``Batch.synthetic``). Not above the limiter's rate.

        send_timeout: Seconds for one attempt; past it the SendFn is cancelled and the attempt failed
            with ``TimeoutError``. None: as long as it takes.

        on_error: Hears of, and may judge, every failed attempt (`ErrorFn`). Default: logs. None: silent.

        on_drop: Hears of everything that leaves undelivered (`DropFn`). Default: logs. None: silent.

        on_drained: Called once when the channel is closed and everything is out, after ``on_drop.flush()``.

    Raises:
        OptionError: If a value breaks its rule, or two do not go together.
    """

    retry: RetryPolicy | None = attrs.field(default=DEFAULT)
    qps_limit: Limiter | None = attrs.field(default=None)
    min_qps: float | None = attrs.field(default=None, validator=seconds)
    send_timeout: float | None = attrs.field(default=None, validator=seconds)
    on_error: ErrorFn[T_contra] | None = attrs.field(default=log_errors, validator=_hook)
    on_drop: DropFn[T_contra] | None = attrs.field(default=log_drops, validator=_hook)
    on_drained: Callable[[], object] | None = attrs.field(default=None, validator=_hook)

    @retry.validator
    def _retry(self, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value is not None and not isinstance(value, RetryPolicy):
            raise OptionError(option=attribute.name, rule="has to be a RetryPolicy, or None", value=value)

    @qps_limit.validator
    def _limiter(self, attribute: "attrs.Attribute[Any]", value: Any) -> None:  # noqa: ANN401
        if value is None:
            return
        if not callable(getattr(value, "acquire", None)):
            raise OptionError(
                option=attribute.name, rule="needs an async method acquire(amount)", value=value
            )
        if isinstance(value, AsyncLimiter) and value.max_rate < 1:
            raise OptionError(
                option=attribute.name,
                rule="has to be able to grant 1",
                value=f"AsyncLimiter({value.max_rate}, ...)",
            )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        rate = _known_rate(self.qps_limit)
        if self.min_qps is not None and self.min_qps > rate:
            raise OptionError(
                option="min_qps",
                rule=f"has to be at most the rate of qps_limit ({rate:g}/s)",
                value=self.min_qps,
            )
