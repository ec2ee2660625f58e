"""
``header``: the trace headers that a receiver adds (RFC 5321 section 4.4), kept beside the body.

=========  ==========================================================
stage      envelope, inline
options    `HeaderOptions`
reads      --
writes     ``prelude`` (`Envelope.prelude`)
=========  ==========================================================

go-guerrilla's processor and stream decorator of the same name, with CRLF line ends, and the queue
id in place of a hash. Delivered-To and ``for`` only with a single recipient: a Bcc must not leak.
"""

import functools
import ipaddress
import re
from email.utils import formatdate

import attrs

from mailpipe.envelope import Envelope, Session
from mailpipe.headers import header_line, header_value
from mailpipe.steps import processor

__all__ = ["HeaderOptions", "header"]

_NO_WORD = re.compile(r'[\s()<>;"\\,]')


@attrs.frozen(kw_only=True)
class HeaderOptions:
    """
    Settings of ``header``.

    Args:
        primary_mail_host:
            Domain that Delivered-To names instead of the recipient's own; ``""`` keeps it.
    """

    primary_mail_host: str = attrs.field(default="")

    @primary_mail_host.validator
    def _is_one_word(self, _: object, value: str) -> None:
        if header_value(value) != value or " " in value:
            msg = f"primary_mail_host is a domain, got {value!r}"
            raise ValueError(msg)


@processor("header", options=HeaderOptions, writes=("prelude",), inline=True, rejects=False)
def header(envelope: Envelope, options: HeaderOptions) -> None:
    """Write Return-Path, Delivered-To and Received into ``envelope.prelude``."""
    single = envelope.recipients[0].address if len(envelope.recipients) == 1 else ""
    lines = _return_path(envelope.mail_from)
    if single:
        lines += _delivered_to(single, options.primary_mail_host)
    envelope.prelude = lines + _received(envelope, single)


def _received(envelope: Envelope, single: str) -> bytes:
    """Folded where its parts end, not at 78: each has one value of at most 900 octets."""
    session = envelope.session
    protocol = _protocol(session, smtputf8=envelope.smtputf8)
    told = _session_part(session.helo, session.peer, session.hostname, protocol)
    recipient = _for(single) if single else ""
    date = _date(int(envelope.received_at))
    return f"{told} id {_word(envelope.queue_id)}\r\n {recipient}; {date}\r\n".encode()


# All bounded, and of few values at a time: addresses come again, and these are the mails of one
# connection, of one second.
@functools.lru_cache(maxsize=1024)
def _return_path(sender: str) -> bytes:
    return header_line("Return-Path", f"<{sender}>")


@functools.lru_cache(maxsize=1024)
def _delivered_to(recipient: str, host: str) -> bytes:
    return header_line(
        "Delivered-To", f"{recipient.rpartition('@')[0] or recipient}@{host}" if host else recipient
    )


@functools.lru_cache(maxsize=1024)
def _for(recipient: str) -> str:
    return f"for <{header_value(recipient)}>"


@functools.lru_cache(maxsize=1024)
def _session_part(helo: str, peer: str, hostname: str, protocol: str) -> str:
    return f"Received: from {_word(helo)} ({_address(peer)})\r\n by {_word(hostname)} with {protocol}"


@functools.lru_cache(maxsize=64)
def _date(second: int) -> str:
    return formatdate(second)


def _word(text: str) -> str:
    # Blanks and brackets end words in a Received line; a name with one is no name.
    value = header_value(text)
    return "unknown" if not value or _NO_WORD.search(value) else value


def _address(peer: str) -> str:
    """The TCP-info of RFC 5321: an address literal, made from what parses as an address only."""
    if not peer:
        return "local"
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return "unknown"
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


def _protocol(session: Session, *, smtputf8: bool) -> str:
    """RFC 3848 and RFC 6531: what the session spoke, S for TLS, A for an authenticated one."""
    if not (session.esmtp or session.lmtp):
        return "SMTP"
    name = "LMTP" if session.lmtp else "ESMTP"
    if smtputf8:
        name = f"UTF8{name.removeprefix('E')}"
    return name + ("S" if session.tls else "") + ("A" if session.user else "")
