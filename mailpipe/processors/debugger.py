"""
``debugger``: one log line per mail that says who, to whom and what.

=========  ==========================================================
stage      envelope
options    `DebuggerOptions`
reads      --
writes     --
=========  ==========================================================

Logs by ``mailpipe.debugger`` at INFO. Values stand as `repr` writes them, so that no mail can write
a log line of its own.
"""

import logging

import anyio
import attrs

from mailpipe.envelope import Envelope
from mailpipe.headers import Headers, header_block
from mailpipe.steps import processor

__all__ = ["DebuggerOptions", "debugger"]

_log = logging.getLogger("mailpipe.debugger")


@attrs.frozen(kw_only=True)
class DebuggerOptions:
    """
    Settings of ``debugger``; the first two are go-guerrilla's.

    Args:
        log_received_mails: Log each mail; off, the step does nothing but wait.

        sleep_seconds: Wait so long for each mail, to see how a slow step behaves.

        log_headers: Log every header field too.

        log_body: Log so many octets of the body too.
    """

    log_received_mails: bool = True
    sleep_seconds: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    log_headers: bool = False
    log_body: int = attrs.field(default=0, validator=attrs.validators.ge(0))


@processor("debugger", options=DebuggerOptions, rejects=False)
async def debugger(envelope: Envelope, options: DebuggerOptions) -> None:
    """Log the mail."""
    if options.sleep_seconds:
        await anyio.sleep(options.sleep_seconds)
    if not options.log_received_mails:
        return
    _log.info(
        "%s: from %r to %r, subject %r, %d octets, client %r, helo %r",
        envelope.queue_id,
        envelope.mail_from,
        list(envelope.rcpt_to),
        envelope.subject,
        len(envelope.body),
        envelope.session.peer,
        envelope.session.helo,
    )
    if options.log_headers:
        for name, value in Headers.parse(header_block(envelope.body.chunks())):
            _log.info("%s: header %r: %r", envelope.queue_id, name, value)
    if options.log_body:
        _log.info("%s: body %r", envelope.queue_id, next(envelope.body.chunks(options.log_body), b""))
