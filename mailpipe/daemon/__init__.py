"""
The daemon: servers, gateways, signals, reload, drain, control socket.
"""

from mailpipe.daemon.core import Daemon
from mailpipe.daemon.events import (
    Event,
    GatewayClosed,
    GatewayOpened,
    Listening,
    Reloaded,
    ReloadRefused,
    Stopping,
)

__all__ = [
    "Daemon",
    "Event",
    "GatewayClosed",
    "GatewayOpened",
    "Listening",
    "ReloadRefused",
    "Reloaded",
    "Stopping",
]
