"""
A client's side of SMTP and LMTP, for `mailpipe.storages.relay`.

Our own, for what a relay must not do and ready-made clients do: change line ends, hold the whole
mail in memory, wait for each RCPT by itself, forget that LMTP answers once per recipient.
"""

import asyncio
import base64
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

import attrs

from mailpipe.reply import Reply

__all__ = ["Answered", "Connection", "Hop", "stuffed"]

_LINE_MAX = 8192
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?: |\Z)")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


class Answered(Exception):
    """The next hop said no to a command of the session; carries its reply."""

    def __init__(self, reply: Reply, command: str) -> None:
        super().__init__(f"{command}: {reply}")
        self.command, self.reply = command, reply


@attrs.frozen(kw_only=True)
class Hop:
    """
    Where mail goes next.

    Args:
        host: Name or address; a path means a unix socket.

        port: Of a TCP connection.

        lmtp: Speak LMTP (RFC 2033).

        tls: ``""``, ``"starttls"`` (required, not hoped for) or ``"implicit"``.

        context: For TLS; verifies.

        user: For AUTH; ``""`` for none.

        password: For AUTH.

        hostname: What we call ourselves.

        timeout: Seconds for the connection and for each answer.
    """

    host: str
    port: int
    lmtp: bool
    tls: str
    context: ssl.SSLContext | None
    user: str
    password: str = attrs.field(repr=False)
    hostname: str
    timeout: float


class Connection:
    """
    One open session with the next hop, used by one mail at a time.

    Any error out of its methods but `Answered` leaves it useless: close it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hop: Hop) -> None:
        self._reader, self._writer, self._hop = reader, writer, hop
        self.extensions: dict[str, str] = {}
        """What EHLO offered: keyword in upper case and its parameters."""

        self.used_at = asyncio.get_running_loop().time()
        """The loop's time of the last answer."""

    @classmethod
    async def open(cls, hop: Hop) -> "Connection":
        """
        Connect, greet, and do TLS and AUTH as the hop says.

        Raises:
            OSError: If there is no connection to be had.
            TimeoutError: If an answer takes longer than the hop's timeout.
            Answered: If the next hop refuses us.
        """
        implicit = hop.context if hop.tls == "implicit" else None
        async with asyncio.timeout(hop.timeout):
            if "/" in hop.host:
                streams = await asyncio.open_unix_connection(hop.host, limit=_LINE_MAX)
            else:
                streams = await asyncio.open_connection(hop.host, hop.port, ssl=implicit, limit=_LINE_MAX)
        connection = cls(*streams, hop)
        try:
            connection._expect("greeting", await connection._reply(), 220)
            await connection._greet()
            if hop.tls == "starttls":
                await connection._start_tls()
            if hop.user:
                await connection._authenticate()
        except BaseException:
            connection.abort()
            raise
        return connection

    @property
    def lmtp(self) -> bool:
        """One answer per recipient after the dot."""
        return self._hop.lmtp

    async def begin(self, sender: str, recipients: Sequence[str]) -> tuple[Reply, list[Reply]]:
        """
        Send MAIL and every RCPT, in one go if the next hop can take that.

        Args:
            sender: Argument of ``MAIL FROM:``, brackets and parameters included.

            recipients: Arguments of ``RCPT TO:``.

        Returns:
            The answer to MAIL, and those to RCPT.
        """
        commands = [f"MAIL FROM:{sender}", *[f"RCPT TO:{recipient}" for recipient in recipients]]
        if "PIPELINING" in self.extensions:
            await self._write("".join([f"{command}\r\n" for command in commands]).encode())
            replies = [await self._reply() for _ in commands]
        else:
            replies = []
            for command in commands:
                await self._write(f"{command}\r\n".encode())
                replies.append(await self._reply())
                if len(replies) == 1 and not replies[0].positive:
                    replies += [replies[0]] * len(recipients)
                    break
        return replies[0], replies[1:]

    async def data(self, chunks: AsyncIterator[bytes], answers: int) -> list[Reply]:
        """
        Send DATA and the octets, already stuffed and ended.

        Args:
            chunks: What goes over the wire, the final dot included.

            answers: How many replies follow the dot: 1, or with LMTP one per accepted recipient.

        Raises:
            Answered: If the next hop does not want the octets.
        """
        await self._write(b"DATA\r\n")
        self._expect("DATA", await self._reply(), 354)
        async for chunk in chunks:
            self._writer.write(chunk)
            async with asyncio.timeout(self._hop.timeout):
                await self._writer.drain()
        return [await self._reply() for _ in range(answers)]

    async def reset(self) -> None:
        """Forget a transaction that did not come to its end."""
        await self._write(b"RSET\r\n")
        self._expect("RSET", await self._reply(), 250)

    async def quit(self) -> None:
        """Say good-bye and close; never raises for the other side's sake."""
        with contextlib.suppress(OSError, Answered):
            await self._write(b"QUIT\r\n")
            await self._reply()
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._writer.close()

    async def _greet(self) -> None:
        verb = "LHLO" if self._hop.lmtp else "EHLO"
        await self._write(f"{verb} {self._hop.hostname}\r\n".encode())
        lines = await self._lines()
        reply = _reply_of(lines)
        if reply.permanent and not self._hop.lmtp:
            await self._write(f"HELO {self._hop.hostname}\r\n".encode())
            reply, lines = await self._reply(), []
        self._expect(verb, reply, 250)
        self.extensions = {}
        for line in lines[1:]:
            keyword, _, parameters = line[4:].strip().partition(" ")
            self.extensions[keyword.upper()] = parameters

    async def _start_tls(self) -> None:
        await self._write(b"STARTTLS\r\n")
        self._expect("STARTTLS", await self._reply(), 220)
        context = self._hop.context or ssl.create_default_context()
        async with asyncio.timeout(self._hop.timeout):
            await self._writer.start_tls(context, server_hostname=self._hop.host)
        await self._greet()

    async def _authenticate(self) -> None:
        secret = base64.b64encode(f"\0{self._hop.user}\0{self._hop.password}".encode())
        await self._write(b"AUTH PLAIN " + secret + b"\r\n")
        self._expect("AUTH", await self._reply(), 235)

    async def _write(self, octets: bytes) -> None:
        self._writer.write(octets)
        async with asyncio.timeout(self._hop.timeout):
            await self._writer.drain()

    async def _reply(self) -> Reply:
        return _reply_of(await self._lines())

    async def _lines(self) -> list[str]:
        """The lines of one reply."""
        lines: list[str] = []
        async with asyncio.timeout(self._hop.timeout):
            while True:
                try:
                    line = (await self._reader.readuntil(b"\n")).decode("ascii", "replace").rstrip("\r\n")
                except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                    msg = "the next hop closed the connection or answered nonsense"
                    raise ConnectionResetError(msg) from error
                if not line[:3].isdigit() or line[3:4] not in ("", " ", "-") or len(lines) > 100:
                    msg = "the next hop answered no SMTP"
                    raise ConnectionResetError(msg)
                lines.append(line)
                if line[3:4] != "-":
                    self.used_at = asyncio.get_running_loop().time()
                    return lines

    def _expect(self, command: str, reply: Reply, code: int) -> None:
        if reply.code != code:
            raise Answered(reply, command)


def _reply_of(lines: Sequence[str]) -> Reply:
    """Another server's reply as ours: printable, bounded, its class in agreement with its code."""
    code, text = int(lines[-1][:3]), lines[-1][4:]
    if not 200 <= code <= 599:
        return Reply(451, "4.5.0", "Next hop answered out of protocol")
    enhanced = ""
    if (found := _ENHANCED.match(text)) and found[1][0] == str(code)[0]:
        enhanced, text = found[1], text[found.end() :]
    return Reply(code, enhanced, _UNPRINTABLE.sub("?", text)[:400])


def stuffed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Octets as they go over the wire: dots doubled at the start of lines, ended by CRLF.CRLF."""
    # The last two octets sent: a line begins after CRLF, which may come in two chunks.
    tail = b"\r\n"
    for chunk in chunks:
        if not chunk:
            continue
        joined = (tail + chunk).replace(b"\r\n.", b"\r\n..")
        yield joined[2:]
        tail = joined[-2:]
    yield b".\r\n" if tail == b"\r\n" else b"\r\n.\r\n"
