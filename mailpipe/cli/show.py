"""
A stored mail as a line of facts, and as a page for people.
"""

import email
import email.errors
import email.header
import email.message
import email.parser
import re
from datetime import UTC, datetime
from typing import Any

from mailpipe.steps import StoredMail

__all__ = ["plain", "rendered", "row", "stamp"]

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHOWN = ("Date", "From", "To", "Cc", "Reply-To", "Subject", "Message-ID")
_PARSED = 4 * 1024 * 1024
_TEXT_MAX = 100_000


def plain(text: str, *, keep: str = "") -> str:
    """*text* without anything that could move a cursor or forge a line; *keep* names what may stay."""
    return _CONTROLS.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def stamp(seconds: float) -> str:
    """A moment (seconds since the epoch) as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def row(mail: StoredMail) -> dict[str, Any]:
    """The fixed fields of ``list --json``."""
    return {
        "queue_id": mail.queue_id,
        "received_at": stamp(mail.received_at),
        "mail_from": mail.mail_from,
        "rcpt_to": list(mail.rcpt_to),
        "size": mail.size,
        "subject": mail.subject,
    }


def rendered(mail: StoredMail) -> str:
    """Envelope, headers that people look at, the parts, and the text."""
    facts = row(mail)
    lines = [
        f"Queue-ID:    {mail.queue_id}",
        f"Received-At: {facts['received_at']}",
        f"Mail-From:   <{plain(mail.mail_from)}>",
        *[f"Rcpt-To:     <{plain(address)}>" for address in mail.rcpt_to],
        f"Size:        {mail.size}",
    ]
    lines += [f"{name.upper()}: {plain(value)}" for name, value in sorted(mail.hashes.items())]
    message = _parsed(mail)
    lines.append("")
    lines += [f"{name}: {plain(_decoded(message[name]))}" for name in _SHOWN if name in message]
    parts = [part for part in message.walk() if not part.is_multipart()]
    if len(parts) > 1:
        lines += ["", *[f"[{number}] {_part(part)}" for number, part in enumerate(parts, 1)]]
    lines += ["", _text(parts)]
    return "\n".join(lines)


def _parsed(mail: StoredMail) -> email.message.Message:
    octets = b""
    for chunk in mail.body.chunks() if mail.body is not None else ():
        octets += chunk
        if len(octets) > _PARSED:
            break
    # compat32 takes whatever comes; the newer policies raise on some broken headers.
    try:
        return email.message_from_bytes(octets)
    except RecursionError:  # multiparts in multiparts in multiparts
        return email.parser.BytesHeaderParser().parsebytes(octets)


def _decoded(value: object) -> str:
    """A header's text with its encoded words undone (RFC 2047), or as it stands if that fails."""
    text = re.sub(r"[\r\n]+[ \t]*", " ", str(value))
    try:
        return str(email.header.make_header(email.header.decode_header(text)))
    except (ValueError, LookupError, email.errors.HeaderParseError):
        return text


def _part(part: email.message.Message) -> str:
    name = part.get_filename()
    return plain(f"{part.get_content_type()}{f' {name!r}' if name else ''}")


def _text(parts: list[email.message.Message]) -> str:
    for part in parts:
        if part.get_content_type() == "text/plain":
            payload = part.get_payload(decode=True)
            octets = payload if isinstance(payload, bytes) else b""
            try:
                text = octets.decode(part.get_content_charset("utf-8"), "replace")
            except LookupError:  # a charset nobody knows
                text = octets.decode("latin-1")
            return plain(text[:_TEXT_MAX].replace("\r\n", "\n"), keep="\n\t").rstrip("\n")
    return "(no plain text)"
