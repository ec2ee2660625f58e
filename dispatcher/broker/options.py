"""Settings of topics and subscriptions."""

import math
import re
from collections.abc import Iterable
from typing import Any, Literal

import attrs

from dispatcher.errors import OptionError
from dispatcher.stores.base import PRIORITY_MAX, Capabilities

__all__ = ["SubscribeOptions", "TopicOptions", "check_capabilities", "check_name"]

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


def check_name(option: str, value: object) -> None:
    """Refuse what cannot name a topic or a subscription."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        rule = "has to be 1 to 128 letters, digits, '_', '-' or '.', the first a letter, a digit or '_'"
        raise OptionError(option=option, rule=rule, value=value)


def _seconds(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        rule = "has to be None or finite seconds of more than 0"
        raise OptionError(option=attribute.name, rule=rule, value=value)


def _whole(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if type(value) is not int or value < 1:
        raise OptionError(option=attribute.name, rule="has to be a whole number, 1 or more", value=value)


def _whole_or_none(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None:
        _whole(instance, attribute, value)


def _flag(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, bool):
        raise OptionError(option=attribute.name, rule="has to be true or false", value=value)


def _names(value: Iterable[str]) -> tuple[str, ...]:
    # Not the class tuple itself, whose signature tells a type checker nothing.
    return tuple(value)


@attrs.frozen(kw_only=True)
class TopicOptions:
    """
    Settings of one topic; checked when made.

    Args:
        subscriptions: Names of those that always exist. Others may be added while it runs.

        ack_timeout: Seconds that a subscriber has for its ack. Later the message is delivered again,
            from its old place. None waits until the subscriber has gone. Default: 30.

        max_attempts: Deliveries after which a message without an ack becomes a dead letter of its
            subscription. None: never. Default: 10.

        priorities: How many there are; 0 is the most urgent, and drained before 1. Default: 1.

        dedupe: The newest message of a key wins: it replaces the older one where that waits, and voids
            its delivery where it is being delivered. Default: False.

        expiry: False: messages that expire are refused. Default: True.

        ttl: Seconds that a message without its own expiry lives. None: for ever.

        bytes_max: Bound on the payloads that one subscription holds, those being delivered included.
            None: the disk is the bound.

        full: What a publish does that breaks the bound of any subscription: "refuse" it
            (`dispatcher.errors.QueueFull`), "block" until there is room, or "drop_oldest" of the
            subscriptions that are full, so that those that keep up never wait for the others. What is
            being delivered is not dropped: if that alone fills the bound, the newest stands on top of
            it. Default: "refuse".

    Raises:
        OptionError: If a value breaks its rule.
    """

    subscriptions: tuple[str, ...] = attrs.field(default=(), converter=_names)
    ack_timeout: float | None = attrs.field(default=30.0, validator=_seconds)
    max_attempts: int | None = attrs.field(default=10, validator=_whole_or_none)
    priorities: int = attrs.field(default=1, validator=_whole)
    dedupe: bool = attrs.field(default=False, validator=_flag)
    expiry: bool = attrs.field(default=True, validator=_flag)
    ttl: float | None = attrs.field(default=None, validator=_seconds)
    bytes_max: int | None = attrs.field(default=None, validator=_whole_or_none)
    full: Literal["refuse", "block", "drop_oldest"] = attrs.field(default="refuse")

    @subscriptions.validator
    def _names(self, attribute: "attrs.Attribute[Any]", value: tuple[object, ...]) -> None:
        for name in value:
            check_name("a subscription's name", name)
        if len(set(value)) < len(value):
            raise OptionError(option=attribute.name, rule="names each at most once", value=value)

    @full.validator
    def _policy(self, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value not in ("refuse", "block", "drop_oldest"):
            rule = 'has to be "refuse", "block" or "drop_oldest"'
            raise OptionError(option=attribute.name, rule=rule, value=value)

    def __attrs_post_init__(self) -> None:
        if self.priorities > PRIORITY_MAX:
            rule = f"has to be at most {PRIORITY_MAX}"
            raise OptionError(option="priorities", rule=rule, value=self.priorities)
        if self.ttl is not None and not self.expiry:
            raise OptionError(option="ttl", rule="needs expiry", value=self.ttl)


def check_capabilities(options: TopicOptions, able: Capabilities) -> None:
    """
    Refuse what the store cannot do.

    Raises:
        OptionError: Naming the option and the capability.
    """
    wanted = (
        ("subscriptions", True, "fanout", able.fanout),
        ("priorities", options.priorities > 1, "priority", able.priority),
        ("dedupe", options.dedupe, "replace", able.replace),
        ("expiry", options.expiry, "expiry", able.expiry),
    )
    for option, asked, capability, there in wanted:
        if asked and not there:
            rule = f"needs a store with the capability {capability}"
            raise OptionError(option=option, rule=rule, value=getattr(options, option))


@attrs.frozen(kw_only=True)
class SubscribeOptions:
    """
    How one subscriber pulls.

    Args:
        batch_items_max: Messages per batch. Default: 50.

        batch_bytes_max: Payload bytes per batch; one message is taken in any case. None: any.

        in_flight_max: Messages that it may have without an ack; with so many, `receive` waits.
            Acks may come in any order, and each makes room. Default: twice *batch_items_max*.

    Raises:
        OptionError: If a value breaks its rule.
    """

    batch_items_max: int = attrs.field(default=50, validator=_whole)
    batch_bytes_max: int | None = attrs.field(default=None, validator=_whole_or_none)
    in_flight_max: int = attrs.field(
        default=attrs.Factory(lambda self: 2 * self.batch_items_max, takes_self=True), validator=_whole
    )
