"""``relay``: mails go on by SMTP or LMTP, the next hop's answers are ours."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mailpipe.bodies import Spool, SpoolOptions
from mailpipe.envelope import Envelope
from mailpipe.errors import Deferred, Rejected
from mailpipe.steps import Place
from mailpipe.storages._next_hop import stuffed
from mailpipe.storages.relay import RelayOptions, RelayStorage
from tests import servers

MakeEnvelope = Callable[..., Envelope]
Keep = Callable[..., Awaitable[Any]]


class NextHop:
    """A scripted server that records: commands, mails as they came over the wire, connections."""

    def __init__(self, lmtp: bool = False) -> None:
        self.lmtp = lmtp
        self.answers: dict[str, list[str]] = {}
        """By the beginning of a command (or ``"."``, ``"greeting"``), what is said, in turn; the last stays."""

        self.extensions = ["PIPELINING", "SIZE 1000000", "8BITMIME", "DSN", "SMTPUTF8"]
        self.commands: list[str] = []
        self.mails: list[bytes] = []
        self.connections = 0
        self.port = 0

    def said(self, command: str, default: str) -> str:
        for prefix, answers in self.answers.items():
            if command.startswith(prefix):
                return answers.pop(0) if len(answers) > 1 else answers[0]
        return default

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._session(reader, writer)
        writer.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = 0
        writer.write(self.said("greeting", "220 next.example ESMTP").encode() + b"\r\n")
        while line := await reader.readline():
            command = line.decode().rstrip("\r\n")
            self.commands.append(command)
            verb = command.split(" ")[0].upper()
            if verb in {"EHLO", "LHLO"}:
                answer = self.said(verb, "250 " + "|".join(["next.example", *self.extensions]))
                if answer.startswith("250"):
                    *more, last = answer[4:].split("|")
                    answer = "\r\n".join([*(f"250-{one}" for one in more), f"250 {last}"])
            elif verb == "DATA":
                answer = self.said("DATA", "354 go on")
            else:
                answer = self.said(command, "221 bye" if verb == "QUIT" else "250 2.0.0 ok")
            if answer == "drop":
                return
            if verb == "MAIL":
                accepted = 0
            accepted += verb == "RCPT" and answer.startswith("2")
            writer.write(f"{answer}\r\n".encode())
            if verb == "QUIT":
                return
            if answer.startswith("354"):
                self.mails.append(await reader.readuntil(b"\r\n.\r\n"))
                for _ in range(accepted if self.lmtp else 1):
                    if (answer := self.said(".", "250 2.0.0 taken")) == "drop":
                        return
                    writer.write(f"{answer}\r\n".encode())
            await writer.drain()


@contextlib.asynccontextmanager
async def listening(hop: NextHop) -> AsyncIterator[NextHop]:
    server = await asyncio.start_server(hop.serve, "127.0.0.1", 0, limit=1 << 24)
    hop.port = server.sockets[0].getsockname()[1]
    async with server:
        yield hop


@pytest.fixture(params=[False, True], ids=["smtp", "lmtp"])
async def hop(request: pytest.FixtureRequest) -> AsyncIterator[NextHop]:
    """A next hop that takes everything, by SMTP and by LMTP."""
    async with listening(NextHop(lmtp=request.param)) as made:
        yield made


@pytest.fixture
async def smtp_hop() -> AsyncIterator[NextHop]:
    """A next hop by SMTP."""
    async with listening(NextHop()) as made:
        yield made


@contextlib.asynccontextmanager
async def relaying(hop: NextHop, **options: Any) -> AsyncIterator[RelayStorage]:
    storage = RelayStorage(RelayOptions(host="127.0.0.1", port=hop.port, lmtp=hop.lmtp, **options))
    await storage.setup(Place(hostname="mx.example.org"))
    try:
        yield storage
    finally:
        await storage.teardown()


class TestHandingOn:
    async def test_every_octet_arrives(self, hop: NextHop, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """Dots are doubled on the wire and nothing else is changed; our Received goes along."""
        body = b".\r\n..two\r\n\xff\0 end\r\n." + b"\r\n" * 70_000 + b"no line end"
        envelope = make_envelope(body)
        async with relaying(hop) as storage:
            view = await keep(storage, envelope)

        assert (view.failed, view.finished) == ({}, {0})
        (mail,) = hop.mails
        assert unstuffed(mail) == envelope.prelude + body + b"\r\n"

    async def test_return_path_stays_here(
        self, hop: NextHop, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """Only trace fields that belong on the way go on."""
        envelope = make_envelope(b"Subject: x\r\n\r\n")
        envelope.prelude = (
            b"Return-Path: <a@example.org>\r\nDelivered-To: b@example.org\r\n"
            b"Received: from x by y\r\n\twith ESMTP; now\r\n"
        )
        async with relaying(hop) as storage:
            await keep(storage, envelope)

        assert unstuffed(hop.mails[0]) == b"Received: from x by y\r\n\twith ESMTP; now\r\nSubject: x\r\n\r\n"

    async def test_a_body_in_a_file(
        self, hop: NextHop, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Piece by piece, never whole in memory."""
        spool = Spool(tmp_path, SpoolOptions(spool_above=1000))
        writer = spool.open()
        data = b"".join(b".line %d\r\n" % number for number in range(100_000))
        wait = writer.write(data)
        assert wait is not None
        await wait
        envelope = make_envelope(await writer.close())
        hop.extensions.remove("SIZE 1000000")
        async with relaying(hop) as storage:
            await keep(storage, envelope)
        spool.close()

        assert unstuffed(hop.mails[0]) == envelope.prelude + data

    async def test_parameters_go_along_where_they_are_understood(
        self, smtp_hop: NextHop, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """DSN and BODY as the client wrote them, SIZE as it is."""
        envelope = make_envelope()
        envelope.mail_params = ("SIZE=5", "BODY=8BITMIME", "RET=HDRS", "ENVID=x", "X-OWN=1")
        size = len(envelope.body) + len(envelope.prelude)
        async with relaying(smtp_hop) as storage:
            await keep(storage, envelope)
        expected = f"MAIL FROM:<a@example.org> SIZE={size} BODY=8BITMIME RET=HDRS ENVID=x"
        assert expected in smtp_hop.commands

        smtp_hop.extensions = []
        async with relaying(smtp_hop) as storage:
            await keep(storage, envelope)
        assert "MAIL FROM:<a@example.org>" in smtp_hop.commands

    @pytest.mark.parametrize("pipelining", [True, False])
    async def test_with_and_without_pipelining(
        self, hop: NextHop, make_envelope: MakeEnvelope, keep: Keep, pipelining: bool
    ) -> None:
        """The same commands in the same order."""
        if not pipelining:
            hop.extensions = []
        async with relaying(hop) as storage:
            await keep(storage, make_envelope(to=["b@example.org", "c@example.org"]))

        verbs = [command.split(" ")[0] for command in hop.commands]
        assert verbs == ["LHLO" if hop.lmtp else "EHLO", "MAIL", "RCPT", "RCPT", "DATA", "QUIT"]

    async def test_connections_are_reused(
        self, hop: NextHop, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """One for mails one after another; no more than allowed for many at once."""
        async with relaying(hop, connections=3) as storage:
            for _ in range(5):
                await keep(storage, make_envelope())
            assert hop.connections == 1
            await keep(storage, *[make_envelope() for _ in range(20)])

        assert hop.connections <= 3
        assert len(hop.mails) == 25

    async def test_a_connection_that_died_meanwhile(
        self, hop: NextHop, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """Found out before a mail is trusted to it."""
        async with relaying(hop) as storage:
            await keep(storage, make_envelope())
            hop.answers["RSET"] = ["drop", "250 ok"]
            view = await keep(storage, make_envelope())

        assert view.failed == {}
        assert (hop.connections, len(hop.mails)) == (2, 2)


class TestAnswers:
    async def test_one_for_each_recipient(
        self, hop: NextHop, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """Refused at RCPT or, with LMTP, after the dot: each recipient's own, in their order."""
        hop.answers["RCPT TO:<no@"] = ["550 5.1.1 no such user"]
        hop.answers["."] = ["250 2.0.0 ok", "452 4.2.2 mailbox full"]
        async with relaying(hop) as storage:
            view = await keep(storage, make_envelope(to=["b@example.org", "no@example.org", "c@example.org"]))

        assert view.finished == {0}
        codes = [reply.code for reply in view.result[0]]
        assert codes == ([250, 550, 452] if hop.lmtp else [250, 550, 250])

    async def test_refused_for_everybody(self, hop: NextHop, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """The milder answer: whoever may yet be taken is tried again. The connection lives on."""
        hop.answers["RCPT TO:<no@"] = ["550 5.1.1 no such user"]
        hop.answers["RCPT TO:<later@"] = ["450 4.2.1 busy"]
        async with relaying(hop) as storage:
            first = await keep(storage, make_envelope(to=["no@example.org", "later@example.org"]))
            second = await keep(storage, make_envelope(to=["no@example.org"]))
            third = await keep(storage, make_envelope())

        assert isinstance(first.failed[0], Deferred)
        assert isinstance(second.failed[0], Rejected)
        assert str(second.failed[0].reply) == "550 5.1.1 no such user"
        assert third.failed == {}
        assert hop.connections == 1

    @pytest.mark.parametrize(
        ("command", "answer", "kind"),
        [
            ("MAIL", "550 5.7.1 not you", Rejected),
            ("MAIL", "451 4.3.0 later", Deferred),
            ("DATA", "554 5.5.1 no", Rejected),
            (".", "554 5.6.0 bad content", Rejected),
            (".", "451 4.3.0 later", Deferred),
            (".", "250-never\r\n250", None),
            ("MAIL", "999 what", Deferred),
        ],
    )
    async def test_what_the_next_hop_says(
        self,
        smtp_hop: NextHop,
        make_envelope: MakeEnvelope,
        keep: Keep,
        command: str,
        answer: str,
        kind: type[Exception] | None,
    ) -> None:
        """Its verdict on the mail is ours, and the next mail goes through."""
        smtp_hop.answers[command] = [answer, {"DATA": "354 go"}.get(command, "250 ok")]
        async with relaying(smtp_hop) as storage:
            first = await keep(storage, make_envelope())
            second = await keep(storage, make_envelope())

        assert (type(first.failed[0]) if first.failed else None) is kind
        assert second.failed == {}

    async def test_a_hostile_text_is_made_harmless(
        self, smtp_hop: NextHop, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """What we pass on to the client is one line of printable ASCII."""
        smtp_hop.answers["MAIL"] = ["550 5.7.1 no\x1b[31m\x07\xe9" + "x" * 1000]
        async with relaying(smtp_hop) as storage:
            view = await keep(storage, make_envelope())

        text = view.failed[0].reply.text
        assert text.startswith("no?[31m??")
        assert len(text) <= 400

    async def test_mail_that_cannot_go_there(
        self, smtp_hop: NextHop, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """Too large, or internationalized where that is unknown: refused before it is sent."""
        smtp_hop.extensions = ["SIZE 100"]
        large, foreign = make_envelope(b"x\r\n" * 100), make_envelope()
        foreign.smtputf8 = True
        async with relaying(smtp_hop) as storage:
            view = await keep(storage, large, foreign)

        assert [view.failed[position].reply.enhanced for position in (0, 1)] == ["5.3.4", "5.6.7"]
        assert smtp_hop.mails == []

    @pytest.mark.parametrize("body", [b"a\n.\nb\r\n", b"a\rb\r\n", b"a\r\n\r", b"a\n"])
    async def test_bare_line_ends_are_not_smuggled(
        self, smtp_hop: NextHop, make_envelope: MakeEnvelope, keep: Keep, body: bytes
    ) -> None:
        """Another server may see the end of a mail where there is none: refused."""
        async with relaying(smtp_hop) as storage:
            view = await keep(storage, make_envelope(body))

        assert view.failed[0].reply.enhanced == "5.6.0"
        assert smtp_hop.commands == []


class TestTrouble:
    async def test_nobody_listens(self, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """ConnectionError: the Channel tries again."""
        storage = RelayStorage(RelayOptions(host="127.0.0.1", port=servers.free_port()))
        await storage.setup(Place())
        with pytest.raises(ConnectionError, match="cannot be reached"):
            await keep(storage, make_envelope())
        await storage.teardown()

    async def test_a_silent_next_hop(self, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """TimeoutError after our own timeout."""

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            storage = RelayStorage(RelayOptions(host="127.0.0.1", port=port, timeout=0.1))
            await storage.setup(Place())
            with pytest.raises(TimeoutError):
                await keep(storage, make_envelope())
            await storage.teardown()

    @pytest.mark.parametrize("where", ["MAIL", "DATA", "."])
    async def test_dropped_in_the_middle(
        self, smtp_hop: NextHop, make_envelope: MakeEnvelope, keep: Keep, where: str
    ) -> None:
        """That mail is tried again; one that was taken before is not."""
        smtp_hop.answers[where] = ["354 go" if where == "DATA" else "250 ok", "drop"]
        async with relaying(smtp_hop, connections=1) as storage:
            envelopes = [make_envelope(), make_envelope()]
            with pytest.raises(ConnectionError):
                await keep(storage, *envelopes)
            taken = len(smtp_hop.mails) - (where == ".")

        assert taken == 1

    async def test_it_says_that_it_closes(
        self, smtp_hop: NextHop, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """421 speaks of the connection, not of the mail."""
        smtp_hop.answers["MAIL"] = ["421 4.3.2 closing", "250 ok"]
        async with relaying(smtp_hop) as storage:
            with pytest.raises(ConnectionError, match="closing"):
                await keep(storage, make_envelope())
            view = await keep(storage, make_envelope())

        assert view.failed == {}

    async def test_it_does_not_want_us(
        self, smtp_hop: NextHop, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """554 in the greeting is our trouble: never a 5xx for the client's mail."""
        smtp_hop.answers["greeting"] = ["554 5.7.1 go away"]
        async with relaying(smtp_hop) as storage:
            view = await keep(storage, make_envelope())

        assert isinstance(view.failed[0], Deferred)

    async def test_tls_is_not_hoped_for(
        self, smtp_hop: NextHop, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """Asked for and not there: nothing goes in the clear."""
        smtp_hop.answers["STARTTLS"] = ["502 5.5.1 what"]
        async with relaying(smtp_hop, tls="starttls") as storage:
            view = await keep(storage, make_envelope())

        assert isinstance(view.failed[0], Deferred)
        assert not any(command.startswith("MAIL") for command in smtp_hop.commands)


class TestRealServers:
    @pytest.mark.parametrize("lmtp", [False, True])
    async def test_smtp_sink(
        self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path, lmtp: bool
    ) -> None:
        """Postfix's sink takes a batch of mails with several recipients each, over few connections."""
        with servers.smtp_sink(*(["-L"] if lmtp else [])) as port:
            options = RelayOptions(host="127.0.0.1", port=port, lmtp=lmtp)
            storage = RelayStorage(options)
            await storage.setup(Place(hostname="mx.example.org"))
            envelopes = [
                make_envelope(
                    b"Subject: x\r\n\r\n" + b".dots\r\n" * number, to=["b@example.org", "c@example.org"]
                )
                for number in range(50)
            ]
            view = await keep(storage, *envelopes)
            await storage.teardown()

        assert view.failed == {}
        assert view.finished == set(range(50))

    async def test_postfix(self, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """A real next hop: everybody's mail arrives as it was, who is unknown is refused by name."""
        with servers.postfix(users=["b", "c"]) as hop:
            storage = RelayStorage(RelayOptions(host="127.0.0.1", port=hop.port, connections=2))
            await storage.setup(Place(hostname="mx.example.org"))
            envelopes = [
                make_envelope(
                    b"Subject: number %d\r\n\r\n.dot\r\n..dots\r\nend\r\n" % number,
                    to=["b@example.org", "unknown@example.org", "c@example.org"],
                )
                for number in range(20)
            ]
            view = await keep(storage, *envelopes, make_envelope(to=["unknown@example.org"]))
            await storage.teardown()
            deadline = time.monotonic() + 30
            while len(hop.delivered("b")) + len(hop.delivered("c")) < 40 and time.monotonic() < deadline:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

            assert view.finished == set(range(20))
            assert [[reply.code for reply in replies] for replies in view.result[:20]] == [
                [250, 550, 250]
            ] * 20
            assert view.failed[20].reply.code == 550
            for user in ("b", "c"):
                mails = hop.delivered(user)
                subjects = {mail.partition(b"Subject: ")[2].partition(b"\n")[0] for mail in mails}
                assert subjects == {b"number %d" % number for number in range(20)}
                assert {mail.partition(b"\n\n")[2] for mail in mails} == {b".dot\n..dots\nend\n"}


class TestStuffing:
    def test_wherever_the_chunks_are_cut(self) -> None:
        """The same octets go over the wire, however the body comes."""
        body = b".a\r\n..\r\n.\r\n\r.\r\n\r\n.x"
        whole = b"".join(stuffed([body]))
        assert whole == b"..a\r\n...\r\n..\r\n\r.\r\n\r\n..x\r\n.\r\n"
        for first, second in itertools.combinations(range(len(body) + 1), 2):
            assert b"".join(stuffed([body[:first], body[first:second], body[second:]])) == whole

    @pytest.mark.parametrize(
        ("body", "wire"), [(b"", b".\r\n"), (b"x", b"x\r\n.\r\n"), (b"x\r\n", b"x\r\n.\r\n")]
    )
    def test_the_end(self, body: bytes, wire: bytes) -> None:
        """One CRLF before the final dot, not two."""
        assert b"".join(stuffed([body])) == wire


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "rule"),
        [
            ({"host": ""}, "host must name the next hop, got ''"),
            ({"host": "x", "port": 70000}, "port must be 0 to 65535, got 70000"),
            ({"host": "x", "tls": "maybe"}, "tls must be one of .*got 'maybe'"),
            ({"host": "x", "user": "me"}, "user needs tls, .*got tls = ''"),
            ({"host": "x", "connections": 0}, "connections must be more than 0, got 0"),
        ],
    )
    def test_bad_ones_name_the_rule(self, options: dict[str, Any], rule: str) -> None:
        """Refused before anything was connected."""
        with pytest.raises(ValueError, match=rule):
            RelayOptions(**options)

    async def test_a_missing_certificate_file(self, tmp_path: Path) -> None:
        """Said at setup, with the name."""
        storage = RelayStorage(RelayOptions(host="x", tls="starttls", ca_file="missing.pem"))
        with pytest.raises(
            ValueError, match=r"ca_file must be a file of PEM certificates, got 'missing.pem'"
        ):
            await storage.setup(Place(data=tmp_path))


def unstuffed(mail: bytes) -> bytes:
    """What a mail over the wire means, without its end."""
    assert mail.endswith(b"\r\n.\r\n")
    lines = mail[:-3].split(b"\r\n")
    return b"\r\n".join(line.removeprefix(b".") for line in lines)
