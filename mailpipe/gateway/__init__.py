"""
The path of a mail: the one place that wires receiver → chain → Channel → storages.
"""

from mailpipe.gateway.background import Background, BackgroundStatistics, envelope_of, job_of
from mailpipe.gateway.core import Gateway, GatewayStatistics
from mailpipe.gateway.disk import DiskSpace
from mailpipe.gateway.options import channel_options, send_timeout, validate_options
from mailpipe.gateway.outbox import FileOutbox
from mailpipe.gateway.validation import Validation

__all__ = [
    "Background",
    "BackgroundStatistics",
    "DiskSpace",
    "FileOutbox",
    "Gateway",
    "GatewayStatistics",
    "Validation",
    "channel_options",
    "envelope_of",
    "job_of",
    "send_timeout",
    "validate_options",
]
