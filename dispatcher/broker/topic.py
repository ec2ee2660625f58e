"""
One topic's decisions: which messages it takes, and which deliveries it gives up.

Does no I/O and reads no clock; what needs the time takes it as *now*.
"""

import math
from collections.abc import Iterable, Sequence

from dispatcher.broker.errors import MessageRefused, UnknownSubscription
from dispatcher.broker.message import Message
from dispatcher.broker.options import TopicOptions
from dispatcher.errors import OptionError
from dispatcher.stores.base import Dead, Leased, Nack, Record

__all__ = ["Topic", "queue_name", "split_queue"]


def queue_name(topic: str, subscription: str) -> str:
    """The store's queue of one subscription."""
    return f"{topic}/{subscription}"


def split_queue(queue: str) -> tuple[str, str] | None:
    """Topic and subscription of a queue, or None if it is none of a broker's."""
    topic, slash, subscription = queue.partition("/")
    return (topic, subscription) if slash and topic and subscription and "/" not in subscription else None


class Topic:
    """
    What is published once, and delivered to each of its subscriptions.

    Args:
        name: Of the topic.

        options: May be replaced at any time; they hold for what comes after.
    """

    def __init__(self, name: str, options: TopicOptions) -> None:
        self.name = name
        self.options = options
        self._subscriptions: dict[str, str] = {}

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """Their names, in the order in which they were added."""
        return tuple(self._subscriptions)

    @property
    def queues(self) -> tuple[str, ...]:
        """The queue of each subscription."""
        return tuple(self._subscriptions.values())

    def add(self, subscription: str) -> None:
        """From now on it gets what is published; again: nothing."""
        self._subscriptions.setdefault(subscription, queue_name(self.name, subscription))

    def remove(self, subscription: str) -> None:
        """It gets nothing more."""
        self._subscriptions.pop(subscription, None)

    def queue(self, subscription: str) -> str:
        """
        Its queue.

        Raises:
            UnknownSubscription: If it is none of this topic's.
        """
        try:
            return self._subscriptions[subscription]
        except KeyError:
            raise UnknownSubscription(self.name, subscription) from None

    def records(self, messages: Iterable[Message], *, now: float) -> list[Record]:
        """
        What to store for *messages*.

        Raises:
            MessageRefused: If one of them breaks a rule; none is to be stored then.
        """
        return [self._record(position, message, now) for position, message in enumerate(messages)]

    def _record(self, position: int, message: Message, now: float) -> Record:
        options = self.options
        if not isinstance(message, Message):
            raise MessageRefused(position, "has to be a Message", type(message).__name__)
        if type(message.priority) is not int or not 0 <= message.priority < options.priorities:
            rule = f"the priority has to be a whole number, 0 to {options.priorities - 1}"
            raise MessageRefused(position, rule, message.priority)
        expires_at = message.expires_at
        if message.ttl is not None:
            ttl: object = message.ttl
            if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl < math.inf:
                raise MessageRefused(position, "ttl has to be finite seconds of more than 0", ttl)
            expires_at = now + ttl
        if expires_at is not None and not options.expiry:
            raise MessageRefused(position, "messages of this topic do not expire", expires_at)
        if expires_at is None and options.ttl is not None:
            expires_at = now + options.ttl
        try:
            return Record(message.payload, key=message.key, priority=message.priority, expires_at=expires_at)
        except OptionError as error:
            raise MessageRefused(position, f"{error.option} {error.rule}", error.value) from None

    def judge(self, leased: Sequence[Leased]) -> tuple[Sequence[Leased], list[Dead]]:
        """Who is to be delivered, and who has been often enough."""
        most = self.options.max_attempts
        if most is None or all(one.attempts <= most for one in leased):
            return leased, []
        dead = [
            Dead(one.tag, f"delivered {one.attempts - 1} times without an ack")
            for one in leased
            if one.attempts > most
        ]
        return [one for one in leased if one.attempts <= most], dead

    def judge_nack(self, nack: Nack, attempts: int, error: str | None) -> Nack | Dead:
        """Whether it may come back; *attempts* is how often it was delivered."""
        most = self.options.max_attempts
        if most is None or attempts < most or not nack.count:
            return nack
        text = f"handed back {attempts} times" if attempts > 1 else "handed back"
        return Dead(nack.tag, text if error is None else error)
