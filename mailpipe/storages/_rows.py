"""
An envelope as a row of values, and back. Pure.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mailpipe.envelope import Body, Envelope
from mailpipe.headers import decode_words

__all__ = [
    "clean",
    "decoded_subject",
    "encode",
    "envelope_values",
    "hashes_of",
    "raw_subject",
    "statements_of",
    "stored_body",
]

# One statement has so many rows and octets at most: below every driver's count of parameters and
# MariaDB's max_allowed_packet (16 MiB).
ROWS_MAX = 100
OCTETS_MAX = 4 * 1024 * 1024

# How much of a body is looked at for its subject, and how much of a subject is kept.
_HEAD = 65536
_SUBJECT_MAX = 2000

_SUBJECT = re.compile(rb"^subject[ \t]*:", re.IGNORECASE | re.MULTILINE)
_UNFIT = re.compile("[\0\ud800-\udfff]")

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def clean(text: str) -> str:
    """Replace what no text column takes: NUL and surrogates become U+FFFD."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNFIT.sub("\ufffd", text)


def raw_subject(body: Body) -> str:
    """
    Find the Subject field by a scan; still encoded (RFC 2047), unfolded, cut at 2 000 characters.

    Octets outside ASCII are read as UTF-8, else as Latin-1, which every octet string is.
    """
    head = next(body.chunks(_HEAD), b"")
    if head.startswith(b"\r\n"):
        return ""
    # The usual spelling first: find() is many times faster than an expression.
    at = head.find(b"\nSubject:")
    if at >= 0 and head.find(b"\r\n\r\n", 0, at + 1) < 0:
        start = at + 9
    else:
        end_of_header = head.find(b"\r\n\r\n")
        found = _SUBJECT.search(head, 0, end_of_header if end_of_header >= 0 else len(head))
        if found is None:
            return ""
        start = found.end()
    end = head.find(b"\n", start)
    # Folded lines go on with a blank or a tab (RFC 5322 section 2.2.3).
    while end >= 0 and head[end + 1 : end + 2] in (b" ", b"\t"):
        end = head.find(b"\n", end + 1)
    value = head[start : end if end >= 0 else len(head)]
    if b"\n" in value:
        value = value.replace(b"\r\n", b"").replace(b"\n", b"")
    value = value.strip()[:_SUBJECT_MAX]
    try:
        return clean(value.decode())
    except UnicodeDecodeError:
        return clean(value.decode("latin-1"))


def decoded_subject(raw: str) -> str:
    """Undo RFC 2047; what cannot be decoded stays as it is. No controls."""
    return decode_words(raw)


def stored_body(envelope: Envelope, wanted: str) -> Body:
    """
    Choose what is stored.

    Args:
        wanted: ``"received"``, the name of a copy, or ``""`` for the compressor's copy if there is
            one, else what was received.

    Raises:
        KeyError: If a copy is wanted by a name that no step wrote.
    """
    if wanted == "received":
        return envelope.body
    if wanted == "":
        return envelope.copies.get("compressor", envelope.body) if envelope.copies else envelope.body
    return envelope.copies[wanted]


def detail_of(envelope: Envelope) -> str | None:
    """Facts that have no column of their own, as JSON; None if there are none, which is usual."""
    session = envelope.session
    detail: dict[str, Any] = {}
    if envelope.mail_params:
        detail["mail_params"] = [clean(param) for param in envelope.mail_params]
    if any(recipient.params for recipient in envelope.recipients):
        detail["rcpt_params"] = [
            [clean(param) for param in recipient.params] for recipient in envelope.recipients
        ]
    if len(envelope.hashes) > 1 or (envelope.hashes and "sha256" not in envelope.hashes):
        detail["hashes"] = envelope.hashes
    if envelope.smtputf8:
        detail["smtputf8"] = True
    if session.lmtp:
        detail["lmtp"] = True
    return encode(detail) if detail else None


def hashes_of(sha256: str, detail: Mapping[str, Any]) -> dict[str, str]:
    """The digests of a row."""
    hashes: dict[str, str] = dict(detail.get("hashes", {}))
    if sha256:
        hashes["sha256"] = sha256
    return hashes


def envelope_values(envelope: Envelope) -> tuple[Any, ...]:
    """One mail's values in the order of `mailpipe.storages._schema.ENVELOPE_COLUMNS`."""
    session = envelope.session
    return (
        envelope.queue_id,
        envelope.received_at,
        clean(envelope.mail_from),
        encode([clean(address) for address in envelope.rcpt_to]),
        len(envelope.body),
        raw_subject(envelope.body),
        clean(session.peer),
        clean(session.helo),
        clean(session.user),
        clean(session.tls),
        envelope.hashes.get("sha256", ""),
        detail_of(envelope),
        envelope.prelude,
    )


def statements_of(rows: Sequence[tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Rows, their octets last, as flat lists of values, each for one statement."""
    values: list[Any] = []
    octets = count = 0
    for row in rows:
        size = len(row[-1] or b"")
        if count and (count == ROWS_MAX or octets + size > OCTETS_MAX):
            yield values
            values, octets, count = [], 0, 0
        values += row
        octets += size
        count += 1
    if values:
        yield values
