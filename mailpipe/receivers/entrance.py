"""
Who is it? A connection from its first octet to its name: counts, PROXY, TLS, XCLIENT, AUTH.

Rules. Every connection is accepted plain and counted, then PROXY, then TLS. What is believed of a
proxy depends on the *socket's* peer alone, never on what an earlier header said. Facts of the
connection survive STARTTLS; HELO, AUTH, the envelope and the input do not. No DNS is asked.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import attrs

from mailpipe import reply
from mailpipe.envelope import Envelope, Session
from mailpipe.receivers.auth import BadResponse, parse_plain, parse_text
from mailpipe.receivers.engine import Engine
from mailpipe.receivers.proxy import BadProxy, parse_proxy, parse_xclient
from mailpipe.receivers.wire import log
from mailpipe.reply import Reply

if TYPE_CHECKING:
    from mailpipe.receivers.server import SmtpServer

__all__ = ["Entrance"]


class Entrance(Engine):
    """One client up to the point where it is known; subclasses speak SMTP with it."""

    session: Session  # type: ignore[assignment]  # ours, in place of aiosmtpd's
    envelope: Envelope | None  # type: ignore[assignment]

    # aiosmtpd's constructor is not called: it looks its handler over by introspection, a tenth of a
    # millisecond for each connection, for commands that are all replaced here.
    def __init__(self, server: "SmtpServer") -> None:
        self.server = server
        self.options = server.options
        self.line_limit = server.options.max_command_line
        self._init_wire(server.loop, server.sweep)
        self.session = Session(hostname=server.options.hostname)
        self.envelope = None
        self._context = server.context
        self._greeting = server.greeting
        self._behind_proxy = False  # the socket's peer is in `trusted`
        self._client = ""  # whose address decides on `relay_from`; "" while that is unknown
        self._told_helo = ""  # by XCLIENT; the proxy's own says nothing of its client
        self._told_login = ""
        self._known = False  # greeted
        self._expect: Callable[[bytes], None] | None = None  # who takes the next line, in AUTH
        self._failures = 0

    # What subclasses say

    def reset(self) -> None:
        """Forget the transaction."""
        self.envelope = None

    def refuse(self, refusal: Reply) -> None:
        """Tell the client of its error."""
        raise NotImplementedError

    def give_up(self, refusal: Reply) -> None:
        """Tell the client, and hang up."""
        self.reply(refusal.wire)
        self.hang_up()

    # Coming in

    def greet(self) -> None:
        """Count the connection; then PROXY, TLS and the greeting, or a refusal."""
        peer = self._wire.get_extra_info("peername")
        local = self._wire.get_extra_info("sockname")
        if isinstance(peer, tuple):
            # An IPv4 client of a socket for both families is one of IPv4.
            self.session.peer, self.session.port = peer[0].removeprefix("::ffff:"), peer[1]
        if isinstance(local, tuple):
            self.session.local = local[0]
        self._behind_proxy = self.session.peer in self.options.proxies
        refusal = self.server.enter(self, self.session.peer, exempt=self._behind_proxy)
        if refusal is not None:
            # The client has nothing to say yet, so that nothing unread can take the reply along.
            self.reply(refusal.wire)
            self.hang_up(linger=False)
        elif self.options.proxy and self._behind_proxy:
            self._mode = self._read_proxy
        else:
            self._is_client(self.session.peer)
            self._welcome(b"")

    def _read_proxy(self, data: bytes) -> bytes:
        try:
            header = parse_proxy(data)
        except BadProxy as error:
            log.warning("%s: bad PROXY header: %s", self.session.peer, error)
            self.give_up(reply.PROXY_BAD)
            return b""
        if header is None:
            self._held = data
            return b""
        self._mode = self._read_commands
        if header.peer:
            self.session.peer, self.session.port, self.session.local = header.peer, header.port, header.local
            if (refusal := self.server.rename(self, header.peer)) is not None:
                self.give_up(refusal)
                return b""
            self._is_client(header.peer)
        # Under TLS the rest is the begin of the handshake.
        return b"" if self._welcome(header.rest) else header.rest

    def _is_client(self, peer: str) -> None:
        self._client = peer
        self.session.trusted = peer in self.options.relays

    def _welcome(self, early: bytes) -> bool:
        """Greet, after a handshake that *early* begins if TLS is implicit: True then."""
        tls = self.options.tls
        if tls is not None and tls.mode == "implicit":
            self.pause_reading()
            self.suspend(self._secure(early, greet=True))
            return True
        self._known = True
        self.reply(self._greeting)
        return False

    # Going

    def answered(self) -> None:
        """Send together with the server's other connections."""
        self.server.flush_soon(self)

    def ended(self) -> None:
        """What was said before is still run, and answered."""

    def shut(self) -> None:
        """The server is shutting down: end now, or after the mail that is on its way."""
        if self.suspended or self.intake is not None:
            return
        if not self.closing:
            self.reply(reply.SHUTTING_DOWN.wire)
        self.hang_up(linger=False)

    def gone(self) -> None:
        """Free the slot."""
        self.server.leave(self)

    def silent(self, now: float) -> None:
        """Hang up on a client that is too quiet."""
        patience = self.options.command_timeout if self._known else self.options.tls_handshake_timeout
        if now - self.heard_at - self.sweep.tick > patience:
            self.give_up(reply.TIMEOUT)

    # STARTTLS

    def starttls(self, argument: bytes) -> None:
        """STARTTLS: RFC 3207."""
        if argument.strip():
            return self.refuse(reply.SYNTAX)
        if self._context is None:
            return self.refuse(reply.UNKNOWN_COMMAND)
        if self.session.tls:
            return self.refuse(reply.TLS_ACTIVE)
        # Paused before the client is told to go on: the handshake is read by TLS alone.
        self.pause_reading()
        self.reply(reply.READY_FOR_TLS.wire)
        return self.suspend(self._secure(b"", greet=False))

    async def _secure(self, early: bytes, *, greet: bool) -> None:
        assert self._context is not None
        if greet:  # nothing was to be said in the clear, so that all there is belongs to the handshake
            early += self._held
        try:
            await self.upgrade(self._context, self.options.tls_handshake_timeout, early)
        except OSError as error:
            log.info("%s: TLS handshake failed: %s", self.session.peer, type(error).__name__)
            return
        secured = self._wire.get_extra_info("ssl_object")
        # Everything the client said in the clear is forgotten.
        self.reset()
        self._forget()
        self.session.tls = f"{secured.version()} {secured.cipher()[0]}"
        if (certificate := secured.getpeercert()) is not None:
            self.session.values["tls_client"] = certificate
        if greet:
            self._known = True
            self.reply(self._greeting)

    def _forget(self) -> None:
        """A new session with the old one's facts, without what the client said."""
        self.session = attrs.evolve(self.session, helo="", esmtp=False, user="", values={})
        self._is_client(self._client)

    # XCLIENT

    def xclient(self, argument: bytes) -> None:
        """XCLIENT: a trusted proxy says who its client is; the session begins anew."""
        if not (self.options.xclient and self._behind_proxy):
            return self.refuse(reply.UNKNOWN_COMMAND)
        if self.envelope is not None:
            return self.refuse(reply.NESTED_MAIL)
        said = parse_xclient(argument.decode("latin-1"))
        if said is None:
            return self.refuse(reply.SYNTAX)
        if said.keys() & {"ADDR", "NAME"}:
            # Another client; a description that is too long for one line goes on without these.
            self._told_helo = self._told_login = ""
        self._told_helo = said.get("HELO", self._told_helo)
        self._told_login = said.get("LOGIN", self._told_login)
        self._forget()
        session = self.session
        if "ADDR" in said:
            session.peer, session.port = said["ADDR"], 0
            self._is_client(session.peer)
            if (refusal := self.server.rename(self, session.peer)) is not None:
                return self.give_up(refusal)
        session.port = int(said.get("PORT") or session.port)
        session.local = said.get("DESTADDR", session.local)
        session.user, session.trusted = self._told_login, session.trusted or bool(self._told_login)
        return self.reply(self._greeting)

    # AUTH

    @property
    def offers_auth(self) -> bool:
        """AUTH is listed: somebody can be asked, and the line is encrypted."""
        return self.options.authenticate is not None and bool(self.session.tls)

    def auth(self, argument: bytes) -> None:
        """AUTH: RFC 4954, mechanisms PLAIN and LOGIN."""
        mechanism, _, initial = argument.strip().partition(b" ")
        if self.options.authenticate is None:
            return self.refuse(reply.UNKNOWN_COMMAND)
        if not self.session.tls:
            return self.refuse(reply.AUTH_NEEDS_TLS)
        if not self.session.esmtp:
            return self.refuse(reply.NEED_HELO)
        if self.session.user:
            return self.refuse(reply.ALREADY_AUTHENTICATED)
        if self.envelope is not None:
            return self.refuse(reply.AUTH_IN_MAIL)
        take = {b"PLAIN": self._auth_plain, b"LOGIN": self._auth_login}.get(mechanism.upper())
        if take is None:
            return self.refuse(reply.AUTH_MECHANISM)
        if initial:
            return take(initial.strip())
        self.reply(b"334 \r\n" if take == self._auth_plain else b"334 VXNlcm5hbWU6\r\n")
        self._expect = take
        return None

    def line_limit_of(self, line: bytes) -> int:
        """Lines of AUTH may be longer (RFC 4954 section 4)."""
        may_be_long = self._expect is not None or line[:5].upper() == b"AUTH "
        return self.options.max_auth_line if may_be_long and self.offers_auth else self.line_limit

    def expected(self, line: bytes) -> None:
        """Take the line that AUTH waits for."""
        expect, self._expect = self._expect, None
        assert expect is not None
        if line == b"*":
            self.refuse(reply.AUTH_ABORTED)
        else:
            expect(line)

    def _auth_plain(self, response: bytes) -> None:
        try:
            user, password = parse_plain(response)
        except BadResponse:
            return self.refuse(reply.AUTH_BAD_BASE64)
        return self.suspend(self._check(user, password))

    def _auth_login(self, response: bytes) -> None:
        try:
            user = parse_text(response, user=True)
        except BadResponse:
            return self.refuse(reply.AUTH_BAD_BASE64)

        def take_password(response: bytes) -> None:
            try:
                password = parse_text(response, user=False)
            except BadResponse:
                return self.refuse(reply.AUTH_BAD_BASE64)
            return self.suspend(self._check(user, password))

        self.reply(b"334 UGFzc3dvcmQ6\r\n")
        self._expect = take_password
        return None

    async def _check(self, user: str, password: str) -> None:
        authenticate = self.options.authenticate
        assert authenticate is not None
        try:
            good = await self._in_thread(authenticate, user, password)
        except Exception:
            log.exception("%s: authentication failed for trouble of ours", self.session.peer)
            return self.reply(reply.AUTH_TROUBLE.wire)
        if good:
            self.session = attrs.evolve(self.session, user=user, trusted=True)
            return self.reply(reply.AUTH_DONE.wire)
        log.warning("%s: authentication failed", self.session.peer)
        self._failures += 1
        if self._failures >= self.options.max_auth_failures:
            return self.give_up(reply.AUTH_TOO_OFTEN)
        return self.refuse(reply.AUTH_FAILED)

    def _in_thread(self, ask: Callable[[str, str], bool], user: str, password: str) -> Awaitable[bool]:
        # A pool of its own: guessers must not keep the storages waiting for a thread.
        return asyncio.wrap_future(self.server.threads.submit(ask, user, password), loop=self._loop)
