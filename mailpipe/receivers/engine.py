"""
The engine: aiosmtpd's SMTP on a callback protocol. The only module that knows aiosmtpd.
"""

from aiosmtpd.smtp import SMTP

from mailpipe.receivers.wire import Wire

__all__ = ["Engine"]


class Engine(Wire, SMTP):
    """aiosmtpd's SMTP, its input and output done by `Wire`."""
