"""
Errors of the broker, by whose doing it is.

::

    Exception
    +-- BrokerError               the broker cannot do what it was asked; nothing has changed
    |   +-- UnknownTopic          (a LookupError)
    |   +-- UnknownSubscription   (a LookupError)
    |   +-- SubscriptionBusy      something delivers from it already
    |   +-- BrokerClosed          (a RuntimeError) used before ``async with``, or after it
    |   +-- BrokerOwned           another living broker listens at this address
    |   +-- Refused               what a `BrokerClient` was answered; .kind names the broker's error
    |   +-- BrokerGone            (a ConnectionError) no connection, or it broke before the answer came
    |
    ValueError                    the caller's doing; nothing has changed
    +-- MessageRefused            a message breaks a rule of its topic; .position of those published
    +-- BadRequest                a line over the socket that is no request
    +-- ConfigError               broker.toml: .problems, each with table and key

What a store raises (`dispatcher.errors.StoreError` and its kin) comes through as it is.
"""

from collections.abc import Sequence

__all__ = [
    "BadRequest",
    "BrokerClosed",
    "BrokerError",
    "BrokerGone",
    "BrokerOwned",
    "ConfigError",
    "MessageRefused",
    "Refused",
    "SubscriptionBusy",
    "UnknownSubscription",
    "UnknownTopic",
]


class BrokerError(Exception):
    """The broker cannot do what it was asked to; nothing has changed."""


class UnknownTopic(BrokerError, LookupError):
    """There is no topic of this name."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"there is no topic {topic!r}")
        self.topic = topic


class UnknownSubscription(BrokerError, LookupError):
    """The topic has no subscription of this name (any more)."""

    def __init__(self, topic: str, subscription: str) -> None:
        super().__init__(f"topic {topic!r} has no subscription {subscription!r}")
        self.topic, self.subscription = topic, subscription


class SubscriptionBusy(BrokerError):
    """One `dispatcher.broker.Broker.deliver` per subscription; it has one."""

    def __init__(self, topic: str, subscription: str) -> None:
        super().__init__(f"subscription {subscription!r} of topic {topic!r} is delivered from already")
        self.topic, self.subscription = topic, subscription


class BrokerClosed(BrokerError, RuntimeError):
    """The broker is not open: used before ``async with``, or after it."""

    def __init__(self) -> None:
        super().__init__("the broker is not open")


class BrokerOwned(BrokerError):
    """Another living broker listens at this address; nothing was touched."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(f"cannot listen at {address}: {why}")
        self.address, self.why = address, why


class Refused(BrokerError):
    """
    The broker answered that it did not do it.

    Args:
        kind: The name of the broker's error, as ``UnknownTopic``.

        message: What it said.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


class BrokerGone(BrokerError, ConnectionError):
    """There is no connection; if it broke before the answer came, whether it was done is not known."""

    def __init__(self, address: str, why: str = "it broke") -> None:
        super().__init__(f"no connection to the broker at {address}: {why}")
        self.address, self.why = address, why


class MessageRefused(ValueError):
    """A message breaks a rule of its topic; nothing of that publish was stored."""

    def __init__(self, position: int, rule: str, value: object) -> None:
        super().__init__(f"message {position}: {rule}, got {value!r}")
        self.position, self.rule, self.value = position, rule, value


class BadRequest(ValueError):
    """A line that is no request; nothing was done."""


class ConfigError(ValueError):
    """A configuration that cannot be used; nothing was changed."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
