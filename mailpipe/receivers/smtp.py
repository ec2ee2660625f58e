"""
SMTP as we speak it (RFC 5321): policy and replies on top of the engine.

Every command is a plain function. What a gateway answers at once is answered at once; only what it
must be waited for is. All RCPTs in the input are submitted before one is awaited; their replies,
and the command behind them, wait in line.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from mailpipe import reply
from mailpipe.envelope import Envelope, MailGateway, Recipient, Verdict
from mailpipe.receivers.entrance import Entrance
from mailpipe.receivers.intake import Intake
from mailpipe.receivers.parameters import judge_mail, judge_rcpt
from mailpipe.receivers.paths import BadPath, Path, helo_name, parse_path
from mailpipe.receivers.wire import log
from mailpipe.reply import Reply

if TYPE_CHECKING:
    from mailpipe.receivers.server import SmtpServer

__all__ = ["SmtpConnection"]

_OK = reply.OK.wire
_MAIL_OK = reply.MAIL_OK.wire
_RCPT_OK = reply.RCPT_OK.wire
_START_DATA = reply.START_DATA.wire

_Wait = tuple[Recipient, "asyncio.Future[Reply | None]"] | Reply
_Verdict = Reply | Awaitable[Reply | None] | None


class SmtpConnection(Entrance):
    """
    One client: its transaction and its errors.

    Made by an `SmtpServer`, which knows the options, the gateway and how many there are.
    """

    verbs: ClassVar[dict[bytes, Callable[[Any, bytes], None]]]
    service: ClassVar[str] = "ESMTP"
    """What the greeting calls us."""

    def __init__(self, server: "SmtpServer") -> None:
        super().__init__(server)
        self._gateway: MailGateway = server.gateway
        self._waits: list[_Wait] = []  # RCPTs being validated, and refusals that wait behind them
        self._asked = 0  # how many of them are being validated
        self._settling: list[_Wait] = []
        self._saving = False  # after the dot
        self._errors = 0
        self._body_since = 0.0

    # The connection

    def vanished(self) -> None:
        """Leave nothing of a mail whose dot never came; what came after the dot goes on."""
        if self.intake is not None:
            self.intake.lose(reply.TROUBLE)
            self.intake = None
        for wait in (*self._waits, *self._settling):
            if not isinstance(wait, Reply):
                wait[1].cancel()
        if self._task is not None and not self._saving:
            self._task.cancel()

    def silent(self, now: float) -> None:
        """Hang up on a client that is too quiet, too slow, or in DATA for too long."""
        if self.intake is None:
            return super().silent(now)
        options, quiet = self.options, now - self.heard_at - self.sweep.tick
        lasts = now - self._body_since - self.sweep.tick
        if quiet > options.data_timeout or lasts > options.data_total_timeout:
            self.give_up(reply.TIMEOUT)
        elif lasts > options.min_rate_after and self.intake.received < options.min_rate * lasts:
            self.give_up(reply.TOO_SLOW)
        return None

    def drained(self) -> None:
        """Await the recipients that are being validated, once no more are in the input."""
        if self._waits:
            self.suspend(self._settle())
        elif self.server.closing:
            self.shut()

    # Lines

    def command(self, line: bytes) -> bool | None:
        """Run one command."""
        if self.server.closing:
            self.shut()
            return None
        if self._expect is not None:
            self.expected(line)
            return None
        verb, _, argument = line.partition(b" ")
        run = self.verbs.get(verb) or self.verbs.get(verb.upper())
        if self._waits and run is not SmtpConnection.rcpt:
            self.suspend(self._settle())
            return True
        if run is None:
            self.refuse(reply.UNKNOWN_COMMAND)
            return None
        return run(self, argument)

    def refused_line(self, rule: str) -> None:
        """Answer a line that is no command."""
        self.refuse(reply.LINE_TOO_LONG if rule == "too long" else reply.BARE_LF)

    def refuse(self, refusal: Reply) -> None:
        """Tell the client of its error; after one too many it is told to go."""
        if self._waits:
            self._waits.append(refusal)
            return
        self._errors += 1
        if self._errors > self.options.max_errors:
            self.give_up(reply.TOO_MANY_ERRORS)
        else:
            self.reply(refusal.wire)

    # Commands

    def helo(self, argument: bytes) -> None:
        """HELO: RFC 5321 section 4.1.1.1."""
        if self._hello(argument, esmtp=False):
            self.reply(f"250 {self.options.hostname}\r\n".encode())

    def ehlo(self, argument: bytes) -> None:
        """EHLO, and what we can do."""
        if self._hello(argument, esmtp=True):
            *first, last = self.capabilities()
            lines = [f"250-{line}\r\n" for line in (self.options.hostname, *first)]
            self.reply("".join([*lines, f"250 {last}\r\n"]).encode())

    def capabilities(self) -> list[str]:
        """What EHLO lists, in order."""
        found = [
            "PIPELINING",
            f"SIZE {self.options.max_size}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "DSN",
        ]
        if self.options.tls is not None and not self.session.tls:
            found.append("STARTTLS")
        if self.offers_auth:
            found.append("AUTH PLAIN LOGIN")
        if self.options.xclient and self._behind_proxy:
            found.append("XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT")
        return [*found, "HELP"]

    def _hello(self, argument: bytes, *, esmtp: bool) -> bool:
        name = argument.strip()
        if not name:
            self.refuse(reply.SYNTAX)
            return False
        self.reset()
        # A new one: an envelope on its way keeps the session it came in.
        helo = self._told_helo or helo_name(name.decode("latin-1"))
        self.session = attrs.evolve(self.session, helo=helo, esmtp=esmtp)
        return True

    def mail(self, argument: bytes) -> None:
        """MAIL: parse, then ask the gateway whether there is room."""
        if not self.session.helo:
            return self.refuse(reply.NEED_HELO)
        if self.envelope is not None:
            return self.refuse(reply.NESTED_MAIL)
        if argument[:5].upper() != b"FROM:":
            return self.refuse(reply.SYNTAX)
        try:
            text = argument[5:].decode()
            path = parse_path(text, lone=True)
        except UnicodeDecodeError:
            return self.refuse(reply.NOT_UTF8)
        except BadPath:
            return self.refuse(reply.BAD_SENDER)
        if self.options.tls_required and not self.session.tls:
            return self.refuse(reply.NEED_TLS)
        envelope, size = self._new_envelope(path), 0
        if path.parameters:
            judged = judge_mail(path.parameters, esmtp=self.session.esmtp, max_size=self.options.max_size)
            if isinstance(judged, Reply):
                return self.refuse(judged)
            envelope.mail_params, envelope.smtputf8, size = judged.written, judged.smtputf8, judged.size
        if not envelope.smtputf8 and not text.isascii():
            return self.refuse(reply.NOT_UTF8)
        try:
            verdict = self._gateway.admit(self.session, size)
        except Exception:
            verdict = self._trouble(envelope)
        if verdict is None or isinstance(verdict, Reply):
            return self._admitted(envelope, verdict)
        return self.suspend(self._admit(envelope, verdict))

    def _new_envelope(self, path: Path) -> Envelope:
        self._gateway = self.server.gateway
        return Envelope(
            queue_id=self._gateway.new_queue_id(),
            session=self.session,
            received_at=time.time(),
            mail_from=path.address,
        )

    async def _admit(self, envelope: Envelope, verdict: Awaitable[Reply | None]) -> None:
        try:
            answer = await verdict
        except Exception:
            log.exception("%s: admission failed", envelope.queue_id)
            answer = reply.TROUBLE
        if not self.closing:
            self._admitted(envelope, answer)

    def _admitted(self, envelope: Envelope, refusal: Reply | None) -> None:
        if refusal is not None:
            # Not an error of the client's: it is not counted.
            self.reply(refusal.wire)
        else:
            self.envelope = envelope
            self.reply(_MAIL_OK)

    def rcpt(self, argument: bytes) -> None:
        """RCPT: our own checks, then the gateway's."""
        envelope = self.envelope
        if envelope is None:
            return self.refuse(reply.NEED_MAIL)
        if argument[:3].upper() != b"TO:":
            return self.refuse(reply.SYNTAX)
        try:
            text = argument[3:].decode()
            path = parse_path(text, lone=False)
        except UnicodeDecodeError:
            return self.refuse(reply.NOT_UTF8)
        except BadPath:
            return self.refuse(reply.BAD_RECIPIENT)
        if not envelope.smtputf8 and not text.isascii():
            return self.refuse(reply.NOT_UTF8)
        parameters = judge_rcpt(path.parameters, esmtp=self.session.esmtp) if path.parameters else ()
        if isinstance(parameters, Reply):
            return self.refuse(parameters)
        if path.domain and not self.session.trusted and path.domain not in self.options.hosts:
            return self.refuse(reply.NO_RELAY)
        if len(envelope.recipients) + self._asked >= self.options.max_recipients:
            return self._answer(reply.TOO_MANY_RECIPIENTS)
        recipient = Recipient(path.address, parameters, envelope, self.session)
        try:
            verdict = self._gateway.validate(recipient)
        except Exception:
            verdict = self._trouble(envelope)
        if verdict is None or isinstance(verdict, Reply):
            if self._waits:
                verdict = _done(verdict)
            else:
                return self._validated(recipient, verdict)
        # A task of its own starts it now, together with the others.
        self._asked += 1
        self._waits.append((recipient, asyncio.ensure_future(verdict, loop=self._loop)))
        return None

    def _validated(self, recipient: Recipient, refusal: Reply | None) -> None:
        if refusal is None:
            recipient.envelope.recipients.append(recipient)
            self.reply(_RCPT_OK)
        else:
            self._answer(refusal)

    def _answer(self, refusal: Reply) -> None:
        """Tell a refusal; only what is the client's fault counts as its error."""
        if refusal.permanent or self._waits:
            self.refuse(refusal)
        else:
            self.reply(refusal.wire)

    async def _settle(self) -> None:
        self._settling, self._waits, self._asked = self._waits, [], 0
        for wait in self._settling:
            if isinstance(wait, Reply):
                self._answer(wait)
            else:
                try:
                    refusal = await wait[1]
                except Exception:
                    log.exception("%s: validation failed", wait[0].envelope.queue_id)
                    refusal = reply.VALIDATE_TROUBLE
                self._validated(wait[0], refusal)
            if self.closing:
                break
        for wait in self._settling:
            if not isinstance(wait, Reply):
                wait[1].cancel()  # no harm to those that are done
        self._settling = []

    def data(self, argument: bytes) -> None:
        """DATA: open the sink, ask for the body."""
        envelope = self.envelope
        if argument.strip():
            return self.refuse(reply.SYNTAX)
        if envelope is None:
            return self.refuse(reply.NEED_MAIL)
        if not envelope.recipients:
            return self.refuse(reply.NEED_RCPT)
        try:
            sink = self._gateway.open(envelope)
        except Exception:
            log.exception("%s: cannot open a sink", envelope.queue_id)
            self.reset()
            self.reply(reply.TROUBLE.wire)
            return None
        self._body_since = self.heard_at
        options = self.options
        self.begin_body(Intake(sink, options.max_size, options.bare_lines, max_line=options.max_line))
        self.reply(_START_DATA)
        return None

    def body_end(self, intake: Intake) -> Awaitable[None] | None:
        """The dot came: close, save, answer; at once if neither has to be waited for."""
        envelope = self.envelope
        assert envelope is not None
        self.envelope = None
        if intake.refusal is not None:
            self.tell(envelope, intake.refusal)
            return None
        verdict: Verdict | Awaitable[Verdict]
        try:
            gateway = self._gateway
            closing = intake.release().close()
            verdict = gateway.save(envelope) if closing is None else _saved(closing, gateway, envelope)
        except Exception:
            verdict = self._not_stored(envelope)
        if isinstance(verdict, Reply | tuple):
            self.tell(envelope, verdict)
            return None
        self._saving = True
        return self._finish(envelope, verdict)

    async def _finish(self, envelope: Envelope, pending: Awaitable[Verdict]) -> None:
        verdict: Verdict
        try:
            verdict = await pending
        except Exception:
            verdict = self._not_stored(envelope)
        finally:
            self._saving = False
        self.tell(envelope, verdict)

    def _not_stored(self, envelope: Envelope) -> Reply:
        log.exception("%s: not stored", envelope.queue_id)
        return reply.TROUBLE

    def tell(self, envelope: Envelope, verdict: Verdict) -> None:
        """Answer a mail."""
        answer = verdict if isinstance(verdict, Reply) else _one_of(verdict)
        if self.departed:
            log.warning("%s: client gone before it was told %s", envelope.queue_id, answer)
        self.reply(answer.wire)

    def body_overflow(self) -> None:
        """More than twice the maximum came: no patience is left."""
        self.reply(reply.TOO_BIG_CLOSING.wire)

    def rset(self, argument: bytes) -> None:
        """RSET: forget the transaction."""
        if argument.strip():
            return self.refuse(reply.SYNTAX)
        self.reset()
        return self.reply(_OK)

    def noop(self, argument: bytes) -> None:
        """NOOP: whatever the argument."""
        self.reply(_OK)

    def vrfy(self, argument: bytes) -> None:
        """VRFY: no telling (RFC 5321 section 7.3)."""
        if argument.strip():
            self.reply(reply.VRFY.wire)
        else:
            self.refuse(reply.SYNTAX)

    def help(self, argument: bytes) -> None:
        """HELP: where the rules are written."""
        self.reply(reply.HELP.wire)

    def quit(self, argument: bytes) -> None:
        """QUIT: a polite end."""
        if argument.strip():
            return self.refuse(reply.SYNTAX)
        self.reply(reply.BYE.wire)
        return self.hang_up(linger=False)

    # Neighbours

    def _trouble(self, envelope: Envelope) -> "_Verdict":
        log.exception("%s: the gateway failed", envelope.queue_id)
        return reply.TROUBLE


async def _saved(closing: Awaitable[None], gateway: MailGateway, envelope: Envelope) -> Verdict:
    await closing
    verdict = gateway.save(envelope)
    return verdict if isinstance(verdict, Reply | tuple) else await verdict


async def _done(verdict: Reply | None) -> Reply | None:
    return verdict


def _one_of(verdicts: tuple[Reply, ...]) -> Reply:
    """SMTP has one reply: never 250 unless all are, and rather again than never."""
    worst = [verdict for verdict in verdicts if not verdict.positive]
    return next((verdict for verdict in worst if verdict.temporary), worst[0] if worst else verdicts[0])


SmtpConnection.verbs = {
    b"HELO": SmtpConnection.helo,
    b"EHLO": SmtpConnection.ehlo,
    b"MAIL": SmtpConnection.mail,
    b"RCPT": SmtpConnection.rcpt,
    b"DATA": SmtpConnection.data,
    b"RSET": SmtpConnection.rset,
    b"NOOP": SmtpConnection.noop,
    b"VRFY": SmtpConnection.vrfy,
    b"HELP": SmtpConnection.help,
    b"QUIT": SmtpConnection.quit,
    b"STARTTLS": SmtpConnection.starttls,
    b"AUTH": SmtpConnection.auth,
    b"XCLIENT": SmtpConnection.xclient,
}
