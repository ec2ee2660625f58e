"""Envelopes as a receiver would make them."""

import itertools
import os
import time
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP

from mailpipe.envelope import Body, Envelope, MemoryBody, Recipient, Session, make_queue_id

__all__ = ["envelope"]

_numbers = itertools.count()


def envelope(
    body: bytes | str | EmailMessage | Body = "Hello.\r\n",
    *,
    subject: str = "hello",
    mail_from: str = "alice@example.net",
    rcpt_to: str | Sequence[str] = "bob@example.org",
    session: Session | None = None,
    queue_id: str = "",
    received_at: float | None = None,
    smtputf8: bool = False,
) -> Envelope:
    """
    Make an envelope whose mail is whole.

    Args:
        body:
            The octets as received (bytes, or a `Body`), or a text or message of which they are made.

        subject: Of the header that a text is given; other bodies have their own.

        mail_from: The sender; ``""`` is the null sender.

        rcpt_to: One recipient, or several.

        session: The connection; by default one from 192.0.2.1.

        queue_id: By default a fresh one, greater than those before.

        received_at: Seconds since the epoch; now by default.

        smtputf8: The client asked for it.
    """
    at = time.time() if received_at is None else received_at
    session = session or Session(
        peer="192.0.2.1", port=40_000, hostname="mx.example.org", helo="client.example.net", esmtp=True
    )
    made = Envelope(
        # Ids of one millisecond sort by the number, so that a list is in the order of making.
        queue_id=queue_id or make_queue_id(at, next(_numbers).to_bytes(4) + os.urandom(6)),
        session=session,
        received_at=at,
        mail_from=mail_from,
        body=_body(body, subject, mail_from),
        smtputf8=smtputf8,
    )
    addresses = (rcpt_to,) if isinstance(rcpt_to, str) else tuple(rcpt_to)
    made.recipients = [Recipient(address, (), made, session) for address in addresses]
    return made


def _body(body: bytes | str | EmailMessage | Body, subject: str, mail_from: str) -> Body:
    if isinstance(body, bytes):
        return MemoryBody(body)
    if isinstance(body, str):
        message = EmailMessage()
        message["From"] = mail_from or "<>"
        message["Subject"] = subject
        message.set_content(body)
        body = message
    if isinstance(body, EmailMessage):
        return MemoryBody(body.as_bytes(policy=SMTP))
    return body
