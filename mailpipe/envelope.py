"""
What travels through a gateway: sessions, envelopes, recipients, bodies, queue ids.

Pure: time and chance are arguments. Receivers make these, and reach a gateway only
through `MailGateway`, so that neither knows the other.
"""

import functools
from collections.abc import Awaitable, Iterator
from typing import Any, Protocol

import attrs

from mailpipe.headers import find_header
from mailpipe.reply import Reply

__all__ = [
    "Body",
    "BodySink",
    "Envelope",
    "MailGateway",
    "MemoryBody",
    "Recipient",
    "Session",
    "Verdict",
    "chances",
    "make_queue_id",
    "queue_id_of",
]

# Crockford's base32 in lower case: its characters sort as their values do.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_FIVE_BITS = _ALPHABET.encode() * 8
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def make_queue_id(now: float, random: bytes) -> str:
    """
    Make a queue id: 26 lower-case base32 characters, 48 bits of time, then 80 of chance.

    Sorts by time to the millisecond; safe as a file name and as a key; unique over workers,
    restarts and machines.

    Args:
        now: Seconds since the epoch.

        random: Ten random bytes.

    Raises:
        ValueError: If *random* is not ten bytes long.
    """
    if len(random) != 10:
        msg = f"a queue id takes 10 random bytes, got {len(random)}"
        raise ValueError(msg)
    return queue_id_of(now, _spell(int.from_bytes(random), 8))


def queue_id_of(now: float, chance: str) -> str:
    """The same of chance that was spelled before, one of `chances`: for those who make many."""
    return _time_part(int(now * 1000)) + chance


def chances(random: bytes) -> list[str]:
    """Spell the chance of queue ids, each of 16 random bytes, of which five bits are taken: 80."""
    spelled = random.translate(_FIVE_BITS).decode()
    return [spelled[at : at + 16] for at in range(0, len(spelled), 16)]


# Time is ten characters, 50 bits of which two are none; chance is sixteen. No character has both.
@functools.lru_cache(maxsize=16)
def _time_part(milliseconds: int) -> str:
    return _spell(milliseconds & (1 << 48) - 1, 5)


def _spell(value: int, pairs: int) -> str:
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(10 * pairs - 10, -10, -10)])


class Body(Protocol):
    """The octets of one mail as received (or a copy derived from them); immutable."""

    @property
    def encoding(self) -> str:
        """``""`` for the octets themselves, else what undoes it: ``"zlib"``, ``"zstd"``."""
        ...

    def __len__(self) -> int:
        """Octets."""
        ...

    def chunks(self, size: int = 65536) -> Iterator[bytes]:
        """Yield the octets in order, at most *size* at a time; may be called again."""
        ...

    def read(self) -> bytes:
        """
        Return all octets at once.

        Raises:
            ValueError: If the body is not held in memory; use `chunks`.
        """
        ...


@attrs.frozen(slots=True, eq=False)
class MemoryBody:
    """A body held in memory."""

    data: bytes
    encoding: str = ""

    def __len__(self) -> int:
        return len(self.data)

    def chunks(self, size: int = 65536) -> Iterator[bytes]:
        """Yield the octets in order, at most *size* at a time."""
        for start in range(0, len(self.data), size):
            yield self.data[start : start + size]

    def read(self) -> bytes:
        """Return all octets."""
        return self.data


@attrs.define(slots=True, eq=False)
class Session:
    """
    What is known of one client connection.

    Facts of the connection (addresses, TLS) survive STARTTLS; what the client said before it
    (HELO, AUTH) does not (RFC 3207 section 4.2).
    """

    peer: str = ""
    """Client address, after PROXY or XCLIENT where trusted; ``""`` for a unix socket."""

    port: int = 0
    local: str = ""
    """Address of our own end."""

    hostname: str = "localhost"
    """What we call ourselves in greeting and Received."""

    helo: str = ""
    esmtp: bool = False
    lmtp: bool = False
    tls: str = ""
    """Protocol version and cipher, ``""`` in the clear."""

    user: str = ""
    """Who authenticated, ``""`` for nobody."""

    trusted: bool = False
    """May send to any recipient: authenticated, or from a listed network."""

    values: dict[str, Any] = attrs.field(factory=dict)
    """Whatever steps and hooks want to keep per connection."""


@attrs.define(slots=True, eq=False)
class Envelope:
    """
    One mail on its way: who, to whom, what, and what steps derived from it.

    Holds no surrogates. Equality is identity.
    """

    queue_id: str
    session: Session
    received_at: float
    """Seconds since the epoch, at MAIL."""

    mail_from: str = ""
    """Reverse path without brackets; ``""`` is the null sender."""

    mail_params: tuple[str, ...] = ()
    """ESMTP parameters of MAIL as written (SIZE, BODY, RET, ENVID, ...)."""

    recipients: "list[Recipient]" = attrs.field(factory=list)
    smtputf8: bool = False
    body: Body = MemoryBody(b"")
    """As received: dots unstuffed, up to and with the CRLF before the final dot."""

    prelude: bytes = b""
    """Header lines that we add (Return-Path, Delivered-To, Received), stored beside the body."""

    copies: dict[str, Body] = attrs.field(factory=dict)
    """Derived bodies by name, each with its `encoding`."""

    hashes: dict[str, str] = attrs.field(factory=dict)
    """Hex digests of the received body by algorithm; never an identity."""

    values: dict[str, Any] = attrs.field(factory=dict)
    """What steps found out, by name."""

    _subject: str | None = attrs.field(default=None, init=False, repr=False)

    @property
    def subject(self) -> str:
        """
        The Subject, unfolded and decoded (RFC 2047); ``""`` without one.

        Found by a scan of the header when first asked for, then kept; no mail is parsed for it.
        """
        if self._subject is None:
            found = find_header(self.body.chunks(), "Subject") or ""
            if not len(self.body):
                return found  # the body is still to come
            self._subject = found
        return self._subject

    @property
    def rcpt_to(self) -> tuple[str, ...]:
        """The accepted recipients' addresses, in the order of RCPT."""
        return tuple([recipient.address for recipient in self.recipients])


@attrs.frozen(slots=True, eq=False)
class Recipient:
    """One RCPT; what a ``validate`` chain judges."""

    address: str
    params: tuple[str, ...]
    """ESMTP parameters as written (NOTIFY, ORCPT)."""

    envelope: Envelope
    session: Session


Verdict = Reply | tuple[Reply, ...]
"""What a client is told of its mail: one reply, or one per accepted recipient in their order."""


class BodySink(Protocol):
    """Takes one mail's octets while DATA arrives; ends by exactly one of `close` and `abort`."""

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        """Take octets, already unstuffed; an awaitable returned holds the client back until it is done."""
        ...

    def close(self) -> Awaitable[None] | None:
        """
        The mail is whole: set ``envelope.body`` and what the stream steps found.

        Done at once or awaited; ``async def`` does as well.
        """
        ...

    def abort(self) -> None:
        """The mail will not be: leave nothing behind. Never raises."""
        ...


class MailGateway(Protocol):
    """
    What a receiver needs of a gateway.

    None of these raises for a mail's sake; an exception is our trouble (the receiver answers
    451 4.3.0 and logs).
    """

    def new_queue_id(self) -> str:
        """A fresh queue id, asked for at MAIL."""
        ...

    def admit(self, session: Session, size: int) -> Reply | Awaitable[Reply | None] | None:
        """
        At MAIL: None, or why no mail of *size* octets (0: not declared) is taken now (452 4.3.1).

        Answered at once or awaited, as for `validate`; ``async def`` does as well.
        """
        ...

    def validate(self, recipient: Recipient) -> Reply | Awaitable[Reply | None] | None:
        """
        At RCPT, after the receiver's own checks: None to accept, or the refusal.

        What is awaited is started at once, while further RCPTs are read; what needs no waiting is
        answered without a task.
        """
        ...

    def open(self, envelope: Envelope) -> BodySink:
        """At DATA: where this envelope's octets go."""
        ...

    def save(self, envelope: Envelope) -> "Verdict | Awaitable[Verdict]":
        """
        After the dot and `BodySink.close`: the verdict, once the mail is durable or refused.

        One reply, or one per accepted recipient; at once or awaited, ``async def`` does as well.
        Cancelled (the server ends), the mail is left to its fate.
        """
        ...
