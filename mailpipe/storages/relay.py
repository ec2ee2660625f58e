"""
``relay``: mails go on to another server, by SMTP or LMTP.

=============  ===========================================================================
does           hands each mail to the next hop; its answers are ours, one per recipient
hook           batch (storage), on the loop; connections are kept and reused
options        `RelayOptions`
reads          nothing
writes         nothing
durability     ``disk``: the next hop's 250 takes responsibility (RFC 5321 section 4.2.5);
               say less if you know it keeps less
largest body   what the next hop says (SIZE)
=============  ===========================================================================

Of our prelude only the Received fields go along: Return-Path and Delivered-To are the final
server's to write (RFC 5321 section 4.4).
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Literal

import anyio.to_thread
import attrs

from dispatcher import Batch
from mailpipe.bodies import FileBody
from mailpipe.envelope import Body, Envelope
from mailpipe.errors import Answer, Deferred, Rejected
from mailpipe.headers import header_fields
from mailpipe.reply import BARE_LINES, Reply
from mailpipe.steps import Durability, Place, processor
from mailpipe.storages._next_hop import Answered, Connection, Hop, stuffed
from mailpipe.storages._validators import one_of, positive

__all__ = ["RelayOptions", "RelayStorage"]

_PIECE = 65536
_NO_UTF8 = Reply(550, "5.6.7", "Next hop takes no internationalized mail")
_TOO_LARGE = Reply(552, "5.3.4", "Message too big for the next hop")
_NOT_NOW = Reply(451, "4.4.1", "Next hop is not available, try again later")


@attrs.frozen(kw_only=True)
class RelayOptions:
    """
    Settings of one ``relay`` storage; checked when made.

    Args:
        host: Of the next hop; a path is a unix socket.

        port: 25 for SMTP, 24 for LMTP where 0 is given.

        lmtp: Speak LMTP: one answer per recipient.

        tls: ``""``, ``"starttls"`` (a next hop without it is refused) or ``"implicit"``.

        ca_file: Certificates to trust instead of the system's.

        user: For AUTH PLAIN, which needs TLS; ``""`` for none.

        password: For AUTH.

        connections: So many at once.

        keep: Seconds that an idle connection is trusted to be alive.

        timeout: Seconds for each answer; below the gateway's send_timeout.

        durability: What the next hop's 250 means.

    Raises:
        ValueError: If a value breaks its rule.
    """

    host: str
    port: int = 0
    lmtp: bool = False
    tls: Literal["", "starttls", "implicit"] = attrs.field(
        default="", validator=one_of("", "starttls", "implicit")
    )
    ca_file: str = ""
    user: str = ""
    password: str = attrs.field(default="", repr=False)
    connections: int = attrs.field(default=4, validator=positive)
    keep: float = attrs.field(default=20.0, validator=positive)
    timeout: float = attrs.field(default=15.0, validator=positive)
    durability: Literal["disk", "os", "none"] = attrs.field(
        default="disk", validator=one_of("disk", "os", "none")
    )

    def __attrs_post_init__(self) -> None:
        if not self.host:
            msg = f"host must name the next hop, got {self.host!r}"
            raise ValueError(msg)
        if not 0 <= self.port <= 65535:
            msg = f"port must be 0 to 65535, got {self.port!r}"
            raise ValueError(msg)
        if self.user and not self.tls:
            msg = f"user needs tls, or the password would go in the clear, got tls = {self.tls!r}"
            raise ValueError(msg)


@processor("relay", kind="batch", options=RelayOptions, storage=True)
class RelayStorage:
    """
    Hands mails to the next hop, several at once over connections that stay open.

    Not idempotent: when the connection breaks after the final dot, nobody knows whether the mail
    was taken, and it is sent again (at least once). Each mail is reported as it finishes.
    """

    largest: int | None = None
    idempotent = False
    serial = False
    holds_body = True
    lasting = True

    def __init__(self, options: RelayOptions) -> None:
        self.options = options
        self._hop: Hop | None = None
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(options.connections)

    @property
    def durability(self) -> Durability:
        """What the next hop's 250 means, by the options' word."""
        return self.options.durability

    @property
    def per_recipient(self) -> bool:
        """Recipients of one mail may have different results."""
        return True

    async def setup(self, place: Place) -> None:
        """
        Read certificates; connects when there is mail.

        Raises:
            ValueError: If ``ca_file`` holds no certificates.
        """
        options, context = self.options, None
        if options.tls:
            try:
                cafile = str(place.data / options.ca_file) if options.ca_file else None
                context = ssl.create_default_context(cafile=cafile)
            except OSError as error:
                msg = f"ca_file must be a file of PEM certificates, got {options.ca_file!r}"
                raise ValueError(msg) from error
        host = str(Path(place.data) / options.host) if "/" in options.host else options.host
        self._hop = Hop(
            host=host,
            port=options.port or (24 if options.lmtp else 25),
            lmtp=options.lmtp,
            tls=options.tls,
            context=context,
            user=options.user,
            password=options.password,
            hostname=place.hostname,
            timeout=options.timeout,
        )

    async def teardown(self) -> None:
        """Say good-bye on every connection. May be repeated."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*[connection.quit() for connection in idle])

    async def __call__(self, batch: Batch[Envelope], /) -> Sequence[tuple[Reply, ...] | None]:
        """
        Hand each mail on; marks each as it finishes.

        Raises:
            ConnectionError: If the next hop is not to be had, for those not marked.
            TimeoutError: If it does not answer.
        """
        results = await asyncio.gather(
            *[self._mail(batch, position, envelope) for position, envelope in enumerate(batch.items)],
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]

    async def _mail(
        self, batch: Batch[Envelope], position: int, envelope: Envelope
    ) -> tuple[Reply, ...] | None:
        async with self._free:
            try:
                replies = await self._hand_on(envelope)
            except Answer as answer:
                batch.fail(position, answer)
                return None
        taken = [reply for reply in replies if reply.positive]
        if not taken:
            # The milder one: the client tries again if any recipient may yet be taken.
            batch.fail(position, _answer(min(replies, key=lambda reply: reply.code)))
            return None
        batch.done(position)
        return tuple(replies) if len(taken) < len(replies) else None

    async def _hand_on(self, envelope: Envelope) -> list[Reply]:
        """
        One reply per recipient.

        Raises:
            Answer: If the next hop has one answer for the whole mail.
            OSError: If it cannot be reached, TimeoutError included.
        """
        if await _has_bare_lines(envelope.body):
            # Another server may take a bare LF for the end of a line, and so see another mail's
            # commands in this one's text.
            raise Rejected(BARE_LINES)
        connection = await self._connection()
        try:
            replies = await _transaction(connection, envelope)
        except Answered as error:
            if error.reply.code == 421:
                connection.abort()
                msg = "the next hop is closing"
                raise ConnectionResetError(msg) from error
            await self._put_back(connection)
            raise _answer(error.reply) from error
        except Answer:
            await self._put_back(connection)
            raise
        except BaseException:
            connection.abort()
            raise
        self._idle.append(connection)
        return replies

    async def _connection(self) -> Connection:
        """
        One that is alive, as far as can be known.

        Raises:
            OSError: If there is none to be had.
            Deferred: If the next hop refuses us.
        """
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.used_at < self.options.keep:
                try:
                    await connection.reset()
                except (OSError, Answered):
                    connection.abort()
                else:
                    return connection
            else:
                await connection.quit()
        if self._hop is None:
            msg = "storage relay is not open"
            raise RuntimeError(msg)
        try:
            return await Connection.open(self._hop)
        except ssl.SSLError as error:
            msg = f"no TLS with the next hop: {error.reason}"
            raise ConnectionRefusedError(msg) from error
        except TimeoutError:
            raise
        except OSError as error:
            msg = f"the next hop cannot be reached: {error.strerror or type(error).__name__}"
            raise ConnectionRefusedError(msg) from error
        except Answered as error:
            # That it does not want *us* is no fault of the mail's.
            raise Deferred(_NOT_NOW) from error

    async def _put_back(self, connection: Connection) -> None:
        try:
            await connection.reset()
        except (OSError, Answered):
            connection.abort()
        else:
            self._idle.append(connection)


async def _transaction(connection: Connection, envelope: Envelope) -> list[Reply]:
    """Hand one mail over an open connection; one reply per recipient."""
    offers = connection.extensions
    if envelope.smtputf8 and "SMTPUTF8" not in offers:
        raise Rejected(_NO_UTF8)
    head = b"".join(_received_fields(envelope.prelude))
    size = len(head) + len(envelope.body)
    limit = offers.get("SIZE", "0")
    if limit.isdigit() and 0 < int(limit) < size:
        raise Rejected(_TOO_LARGE)
    sender = f"<{envelope.mail_from}>" + "".join(_mail_params(envelope, offers, size))
    recipients = [
        f"<{recipient.address}>" + ("".join(f" {p}" for p in recipient.params) if "DSN" in offers else "")
        for recipient in envelope.recipients
    ]
    mail, replies = await connection.begin(sender, recipients)
    if not mail.positive:
        raise Answered(mail, "MAIL")
    accepted = [position for position, reply in enumerate(replies) if reply.positive]
    if not accepted:
        await connection.reset()
        return replies
    lmtp = connection.lmtp
    answers = await connection.data(_wire(head, envelope.body), len(accepted) if lmtp else 1)
    for number, position in enumerate(accepted):
        replies[position] = answers[number if lmtp else 0]
    return replies


def _mail_params(envelope: Envelope, offers: dict[str, str], size: int) -> Iterator[str]:
    if "SIZE" in offers:
        yield f" SIZE={size}"
    for parameter in envelope.mail_params:
        keyword = parameter.partition("=")[0].upper()
        if (keyword == "BODY" and "8BITMIME" in offers) or (keyword in {"RET", "ENVID"} and "DSN" in offers):
            yield f" {parameter}"
    if envelope.smtputf8:
        yield " SMTPUTF8"


def _received_fields(prelude: bytes) -> Iterator[bytes]:
    for name, value in header_fields(prelude):
        if name.lower() == b"received":
            yield name + b":" + value


async def _wire(head: bytes, body: Body) -> AsyncIterator[bytes]:
    pieces = stuffed(_joined(head, body))
    if not isinstance(body, FileBody):
        for piece in pieces:
            yield piece
        return
    while piece := await anyio.to_thread.run_sync(next, pieces, b""):
        yield piece


def _joined(head: bytes, body: Body) -> Iterator[bytes]:
    yield head
    yield from body.chunks(_PIECE)


async def _has_bare_lines(body: Body) -> bool:
    if isinstance(body, FileBody):
        return await anyio.to_thread.run_sync(_bare, body)
    return _bare(body)


def _bare(body: Body) -> bool:
    last = b""
    for chunk in body.chunks(_PIECE):
        text = last + chunk
        # A CR at the end may find its LF in the next chunk.
        last = b"\r" if text.endswith(b"\r") else b""
        pairs = text.count(b"\r\n")
        if text.count(b"\n") != pairs or text.count(b"\r") - len(last) != pairs:
            return True
    return last != b""


def _answer(reply: Reply) -> Answer:
    if reply.permanent:
        return Rejected(reply)
    if reply.temporary:
        return Deferred(reply)
    return Deferred(_NOT_NOW)
