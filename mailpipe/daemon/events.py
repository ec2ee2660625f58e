"""
What a daemon tells the program that embeds it.

Callbacks are plain functions, called on the loop in the order of subscription; one that raises is
logged and takes nothing down.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

__all__ = [
    "Event",
    "Events",
    "GatewayClosed",
    "GatewayOpened",
    "Listening",
    "ReloadRefused",
    "Reloaded",
    "Stopping",
]

log = logging.getLogger("mailpipe.daemon")


@attrs.frozen(kw_only=True)
class Event:
    """Something happened; subscribe to it for everything."""


@attrs.frozen(kw_only=True)
class Listening(Event):
    """A server accepts."""

    address: str
    """``HOST:PORT`` or ``unix:/path``."""


@attrs.frozen(kw_only=True)
class GatewayOpened(Event):
    """A gateway's storages are open; mail may come."""

    name: str


@attrs.frozen(kw_only=True)
class GatewayClosed(Event):
    """A gateway had its last outcome, and its storages are closed."""

    name: str


@attrs.frozen(kw_only=True)
class Reloaded(Event):
    """A new configuration holds."""

    changes: tuple[str, ...]
    """What became different, in words; empty if nothing did."""


@attrs.frozen(kw_only=True)
class ReloadRefused(Event):
    """A new configuration cannot be used; the old one holds, unchanged."""

    reason: str


@attrs.frozen(kw_only=True)
class Stopping(Event):
    """No more connections are taken; mail under way is finished."""


E = TypeVar("E", bound=Event)


class Events:
    """Subscriptions by kind of event."""

    def __init__(self) -> None:
        self._subscribed: list[tuple[type[Event], Callable[[Any], object]]] = []

    def subscribe(self, kind: type[E], callback: Callable[[E], object]) -> Callable[[], None]:
        """
        Call *callback* with every event of *kind* and its subclasses.

        Returns:
            A function that ends the subscription; called again it does nothing.
        """
        entry = (kind, callback)
        self._subscribed.append(entry)

        def unsubscribe() -> None:
            self._subscribed = [known for known in self._subscribed if known is not entry]

        return unsubscribe

    def publish(self, event: Event) -> None:
        """Tell whoever subscribed."""
        for kind, callback in list(self._subscribed):
            if isinstance(event, kind):
                try:
                    callback(event)
                except Exception:
                    fields = {"subscribed": kind.__name__}
                    log.exception("an event's callback raised", extra={"fields": fields})
