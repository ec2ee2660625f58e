"""What goes in, and what comes out: messages, deliveries, confirmations."""

import attrs

from dispatcher.errors import OptionError
from dispatcher.stores.base import Leased

__all__ = ["Delivery", "Message", "Published"]


@attrs.frozen(slots=True)
class Message:
    """
    What is published. The topic's rules are checked when it is.

    Args:
        payload: The bytes; kept as they are.

        key: Names what it is about: in a topic with ``dedupe`` the newest of a key wins. None: it is
            nobody's duplicate. At most 1024 characters.

        priority: 0 is the most urgent; below the topic's ``priorities``. Default: 0.

        expires_at: Unix seconds after which it is deleted and counted instead of delivered. None: the
            topic's ``ttl``.

        ttl: The same as seconds from when it is published; not with *expires_at*.
    """

    payload: bytes
    key: str | None = attrs.field(default=None, kw_only=True)
    priority: int = attrs.field(default=0, kw_only=True)
    expires_at: float | None = attrs.field(default=None, kw_only=True)
    ttl: float | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        payload: object = self.payload
        if not isinstance(payload, bytes):
            raise OptionError(option="Message.payload", rule="has to be bytes", value=type(payload).__name__)
        if self.ttl is not None and self.expires_at is not None:
            rule = "does not go together with expires_at"
            raise OptionError(option="Message.ttl", rule=rule, value=self.ttl)


@attrs.frozen(slots=True, kw_only=True)
class Delivery:
    """One message, delivered to one subscription."""

    topic: str
    subscription: str
    payload: bytes
    tag: str
    """Names this delivery, for ever; for its ack."""

    id: str
    """
    Names the message in this subscription: the same at every delivery, and in its dead letters. Given by
    the store, and not used again after a restart either.
    """

    key: str | None
    priority: int
    attempts: int
    """Deliveries so far, this one included; 1 the first time."""

    put_at: float
    """Unix seconds: when it took its place."""

    expires_at: float | None

    @classmethod
    def of(cls, topic: str, subscription: str, leased: Leased) -> "Delivery":
        """Of a record that was leased for *subscription*."""
        return cls(
            topic=topic,
            subscription=subscription,
            payload=leased.payload,
            tag=leased.tag,
            id=leased.id,
            key=leased.key,
            priority=leased.priority,
            attempts=leased.attempts,
            put_at=leased.put_at,
            expires_at=leased.expires_at,
        )


@attrs.frozen(slots=True, kw_only=True)
class Published:
    """What a publish has stored; it is durable."""

    messages: int
    """So many messages."""

    subscriptions: int
    """For so many subscriptions, each its own copy to be acked; 0: nobody wanted them, nothing is kept."""

    dropped: int = 0
    """Older entries that made room (``full="drop_oldest"``)."""
