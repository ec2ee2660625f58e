import asyncio
import logging
import smtplib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mailpipe import reply
from mailpipe.envelope import Envelope
from mailpipe.reply import Reply, queued_as

Start = Callable[..., Awaitable[Any]]
Until = Callable[[Callable[[], Any]], Awaitable[None]]

MAIL = b"Subject: hello\r\n\r\n..dots\r\n.\r\nend\r\n"


class TestConversation:
    async def test_a_real_client_sends_a_mail(self, start: Start, gateway: Any) -> None:
        """smtplib is content, and what it sent is what is saved."""
        server = await start(hostname="mx.example.org")
        address = server.addresses[0]

        def send() -> None:
            with smtplib.SMTP(address.host, address.port, local_hostname="me.example") as smtp:
                smtp.sendmail("a@example.com", ["b@example.org", "c@example.org"], MAIL)
                smtp.sendmail("", ["d@example.org"], b"x\r\n")

        await asyncio.to_thread(send)
        first, second = gateway.saved
        assert gateway.bodies == [MAIL, b"x\r\n"]
        assert (first.mail_from, first.rcpt_to) == ("a@example.com", ("b@example.org", "c@example.org"))
        assert (second.mail_from, second.rcpt_to) == ("", ("d@example.org",))
        assert (first.session.helo, first.session.peer, first.session.esmtp) == (
            "me.example",
            "127.0.0.1",
            True,
        )
        assert first.session.hostname == "mx.example.org"
        assert first.queue_id != second.queue_id

    async def test_replies(self, client: Any) -> None:
        """Every command's reply, word for word."""
        assert await client.reply() == "220 localhost ESMTP"
        assert await client.talk(
            *(
                "HELO me",
                "NOOP",
                "NOOP x",
                "RSET",
                "VRFY a",
                "HELP",
                "MAIL FROM:<a@b.c>",
                "RCPT TO:<x@y>",
                "DATA",
            ),
            *(".", "quit"),
        ) == [
            "250 localhost",
            "250 2.0.0 OK",
            "250 2.0.0 OK",
            "250 2.0.0 OK",
            "252 2.5.0 Cannot VRFY user, but will accept message and attempt delivery",
            "214 2.0.0 See RFC 5321",
            "250 2.1.0 OK",
            "250 2.1.5 OK",
            "354 End data with <CR><LF>.<CR><LF>",
            "250 2.0.0 OK: queued as 00000000z80000000000000000",
            "221 2.0.0 Bye",
        ]
        assert await client.closed()

    async def test_ehlo_lists_what_we_can(self, client: Any) -> None:
        """One extension a line; SIZE says the limit."""
        await client.reply()
        assert await client.command("EHLO me") == "\n".join(
            [
                *("250-localhost", "250-PIPELINING", "250-SIZE 26214400", "250-8BITMIME", "250-SMTPUTF8"),
                *("250-ENHANCEDSTATUSCODES", "250-DSN", "250 HELP"),
            ]
        )

    @pytest.mark.parametrize(
        ("line", "code"),
        [
            ("HELO", "501 5.5.4"),
            ("EHLO  ", "501 5.5.4"),
            ("MAIL FROM:a@b", "501 5.1.7"),
            ("MAIL TO:<a@b>", "501 5.5.4"),
            ("MAIL FROM:<a@b> SIZE=x", "501 5.5.4"),
            ("MAIL FROM:<a@b> SIZE=", "501 5.5.4"),
            ("MAIL FROM:<a@b> BODY=BINARYMIME", "501 5.5.4"),
            ("MAIL FROM:<a@b> SMTPUTF8=1", "501 5.5.4"),
            ("MAIL FROM:<a@b> XYZ=1", "555 5.5.4"),
            ("MAIL FROM:<a@b> SIZE=99999999", "552 5.3.4"),
            ("MAIL FROM:<a@b> SIZE=" + "9" * 25, "501 5.5.4"),
            ("RCPT TO:<a@b>", "503 5.5.1"),
            ("DATA", "503 5.5.1"),
            ("RSET x", "501 5.5.4"),
            ("QUIT x", "501 5.5.4"),
            ("VRFY", "501 5.5.4"),
            ("", "500 5.5.1"),
            ("WHAT", "500 5.5.1"),
            ("NOOPXYZ", "500 5.5.1"),
            (" NOOP", "500 5.5.1"),
            ("NOOP \r x", "500 5.5.2"),
            ("\0\0\xff", "500 5.5.1"),
        ],
    )
    async def test_errors(self, client: Any, line: str, code: str) -> None:
        """Each mistake is told by its own code, and the connection lives on."""
        await client.reply()
        await client.command("EHLO me")
        assert (await client.command(line))[: len(code)] == code
        assert await client.command("NOOP") == "250 2.0.0 OK"

    async def test_order_is_enforced(self, client: Any) -> None:
        """Nothing works before its turn, and nothing is inherited."""
        await client.reply()
        assert (await client.command("MAIL FROM:<a@b>"))[:3] == "503"
        await client.command("HELO me")
        assert (await client.command("MAIL FROM:<a@b>"))[:3] == "250"
        assert (await client.command("MAIL FROM:<a@b>"))[:3] == "503"
        assert (await client.command("DATA"))[:9] == "503 5.5.1"
        await client.command("RCPT TO:<a@b>")
        for forget in ("RSET", "HELO me", "EHLO me"):
            await client.command(forget)
            assert (await client.command("RCPT TO:<a@b>"))[:3] == "503"
            await client.command("MAIL FROM:<a@b>")

    async def test_parameters_need_ehlo(self, client: Any) -> None:
        """A HELO client has no extensions."""
        await client.reply()
        await client.command("HELO me")
        assert (await client.command("MAIL FROM:<a@b> SIZE=1"))[:3] == "501"

    async def test_parameters_are_carried_as_written(self, client: Any, gateway: Any) -> None:
        """DSN and all: on the envelope, and on each recipient."""
        await client.reply()
        await client.talk("EHLO me", "MAIL FROM:<a@b> RET=HDRS ENVID=x+20y Size=10", "RCPT TO:<c@d>")
        await client.talk("RCPT TO:<e@f> NOTIFY=success,DELAY ORCPT=rfc822;g+40h", "DATA", ".")
        assert gateway.saved[0].mail_params == ("RET=HDRS", "ENVID=x+20y", "Size=10")
        assert [recipient.params for recipient in gateway.saved[0].recipients] == [
            (),
            ("NOTIFY=success,DELAY", "ORCPT=rfc822;g+40h"),
        ]

    async def test_helo_that_is_no_name_is_unknown(self, client: Any, gateway: Any) -> None:
        """What would go into a header is a name, or says that there was none."""
        await client.reply()
        await client.talk("EHLO (evil\x7f) <name>", "MAIL FROM:<a@b>", "RCPT TO:<a@b>", "DATA", ".")
        assert gateway.saved[0].session.helo == "unknown"

    async def test_an_envelope_keeps_its_session(self, client: Any, gateway: Any) -> None:
        """A later EHLO does not rewrite who sent an earlier mail."""
        await client.begin()
        await client.talk(".", "EHLO other.example")
        assert gateway.saved[0].session.helo == "me.example"


class TestUtf8:
    async def test_needs_smtputf8(self, client: Any, gateway: Any) -> None:
        """Non-ASCII addresses with the parameter only, on both paths."""
        await client.reply()
        await client.command("EHLO me")
        assert (await client.command("MAIL FROM:<jörg@bücher.example>"))[:9] == "553 5.6.7"
        assert (await client.command("MAIL FROM:<a@b>"))[:3] == "250"
        assert (await client.command("RCPT TO:<jörg@b>"))[:9] == "553 5.6.7"
        await client.command("RSET")
        assert (await client.command("MAIL FROM:<jörg@bücher.example> SMTPUTF8"))[:3] == "250"
        assert (await client.command("RCPT TO:<jörg@b>"))[:3] == "250"
        await client.talk("DATA", ".")
        assert gateway.saved[0].smtputf8
        assert gateway.saved[0].mail_from == "jörg@bücher.example"

    @pytest.mark.parametrize("command", [b"MAIL FROM:<a\xff@b> SMTPUTF8", b"MAIL FROM:<a@b> SMTPUTF8=\xff"])
    async def test_invalid_utf8_is_refused(self, client: Any, command: bytes) -> None:
        """No surrogate ever gets into an envelope."""
        await client.reply()
        await client.command("EHLO me")
        assert (await client.command(command))[:9] == "553 5.6.7"


class TestRecipients:
    async def test_allowed_hosts(self, start: Start, connect: Any) -> None:
        """Listed hosts, patterns and literals are taken in any case; others are told 550 5.7.1."""
        server = await start(allowed_hosts=["example.org", "*.example.net", "[192.0.2.1]", "bücher.example"])
        client = await connect(server)
        await client.begin(data=False, to="x@EXAMPLE.org")
        for good in ("x@a.example.net", "x@[192.0.2.1]", "x@XN--bcher-kva.example"):
            assert await client.command(f"RCPT TO:<{good}>") == "250 2.1.5 OK", good
        for bad in ("x@example.com", "x@sub.example.org", "x@[192.0.2.2]", '"x@example.org"@evil.example'):
            assert await client.command(f"RCPT TO:<{bad}>") == "550 5.7.1 Relaying denied", bad

    async def test_source_routes_and_percent_do_not_relay(
        self, start: Start, connect: Any, gateway: Any
    ) -> None:
        """What counts is the domain at the end, and a percent sign means nothing."""
        client = await connect(await start(allowed_hosts=["example.org"]))
        await client.begin(data=False)
        assert (await client.command("RCPT TO:<@example.org:x@evil.example>"))[:3] == "550"
        assert (await client.command("RCPT TO:<x%evil.example@example.org>"))[:3] == "250"
        assert gateway.validated[-1] == "x%evil.example@example.org"

    async def test_bare_postmaster_always_passes(self, start: Start, connect: Any, gateway: Any) -> None:
        """RFC 5321 section 4.5.1; with a domain it is judged as any."""
        client = await connect(await start(allowed_hosts=[]))
        await client.reply()
        await client.talk("EHLO me", "MAIL FROM:<>")
        assert (await client.command("RCPT TO:<Postmaster>"))[:3] == "250"
        assert (await client.command("RCPT TO:<postmaster@evil.example>"))[:3] == "550"
        await client.talk("DATA", ".")
        assert gateway.saved[0].rcpt_to == ("Postmaster",)

    async def test_relay_from_may_send_anywhere(self, start: Start, connect: Any) -> None:
        """A listed client reaches any recipient; another does not."""
        server = await start(allowed_hosts=["example.org"], relay_from=["127.0.0.2/32"])
        listed, other = await connect(server, "127.0.0.2"), await connect(server, "127.0.0.3")
        await listed.begin(data=False, to="x@anywhere.example")
        await other.begin(data=False)
        assert (await other.command("RCPT TO:<x@anywhere.example>"))[:9] == "550 5.7.1"

    async def test_everybody_is_not_meant_for_mail_that_is_sent_on(self, start: Start, connect: Any) -> None:
        """With a relay behind us, * is for relay_from alone; named hosts are for all. No open relay."""
        server = await start(allowed_hosts=["*", "example.org"], relay_from=["127.0.0.2/32"], sends_on=True)
        listed, other = await connect(server, "127.0.0.2"), await connect(server, "127.0.0.3")
        await listed.begin(data=False, to="x@anywhere.example")
        await other.begin(data=False, to="x@example.org")
        assert await other.command("RCPT TO:<x@anywhere.example>") == str(reply.NO_RELAY)

    async def test_too_many(self, start: Start, connect: Any, gateway: Any) -> None:
        """The bound is exact, and the mail goes to those before it."""
        client = await connect(await start(max_recipients=2))
        await client.begin(data=False)
        assert await client.talk("RCPT TO:<c@b>", "RCPT TO:<d@b>", "RCPT TO:<e@b>") == [
            "250 2.1.5 OK",
            *["452 4.5.3 Too many recipients"] * 2,
        ]
        await client.talk("DATA", ".")
        assert len(gateway.saved[0].rcpt_to) == 2


class TestGatewayAnswers:
    @pytest.mark.parametrize("late", [False, True])
    async def test_no_room_at_mail(self, client: Any, gateway: Any, late: bool) -> None:
        """What the gateway says at MAIL is told, and no transaction begins."""

        async def full() -> Reply:
            return reply.STORE_FULL

        gateway.on_admit = lambda size: full() if late else reply.STORE_FULL
        await client.reply()
        await client.command("EHLO me")
        assert await client.command("MAIL FROM:<a@b> SIZE=77") == str(reply.STORE_FULL)
        assert gateway.admitted[0][1] == 77
        assert (await client.command("RCPT TO:<a@b>"))[:3] == "503"

    async def test_validation_is_told(self, client: Any, gateway: Any) -> None:
        """A refused recipient is refused with the gateway's own words, and only it."""
        gateway.on_validate = lambda to: Reply(550, "5.1.1", "no such user") if to[0] == "n" else None
        await client.begin(data=False)
        assert await client.command("RCPT TO:<n@b>") == "550 5.1.1 no such user"
        await client.talk("RCPT TO:<c@b>", "DATA", ".")
        assert gateway.saved[0].rcpt_to == ("b@example.org", "c@b")

    @pytest.mark.parametrize("where", ["on_admit", "on_validate", "on_open", "on_write", "on_save"])
    @pytest.mark.parametrize("late", [False, True])
    async def test_trouble_of_ours_is_451(
        self, client: Any, gateway: Any, where: str, late: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An exception is logged, never shown, never permanent; the next mail is not harmed."""

        async def later(*_: object) -> None:
            await asyncio.sleep(0)
            msg = "secret"
            raise RuntimeError(msg)

        def fail(*args: object) -> Any:
            if late and where != "on_open":
                return later()
            msg = "secret"
            raise RuntimeError(msg)

        gateway.at_once = not late
        good = getattr(gateway, where)
        setattr(gateway, where, fail)
        await client.reply()
        await client.command("EHLO me")
        replies = [await client.command("MAIL FROM:<a@b>")]
        if where != "on_admit":
            replies.append(await client.command("RCPT TO:<c@b>"))
        if where not in {"on_admit", "on_validate"}:
            replies.append(await client.command("DATA"))
        if where in {"on_write", "on_save"}:
            replies.append(await client.command("text\r\n."))
        assert [text[:3] for text in replies[:-1]] == ["250", "250", "354"][: len(replies) - 1]
        assert replies[-1].startswith("451 4.3.0 ")
        assert "secret" in caplog.text
        assert gateway.saved == []
        setattr(gateway, where, good)
        await client.talk("RSET", "MAIL FROM:<a@b>", "RCPT TO:<c@b>", "DATA")
        assert (await client.command("fine\r\n."))[:3] == "250"

    async def test_save_decides_the_reply(self, client: Any, gateway: Any) -> None:
        """One reply as it is; of several never 250 unless all are, and rather 4xx than 5xx."""
        ok, later, never = reply.OK, reply.TROUBLE, Reply(554, "5.0.0", "no")
        for verdict, told in [
            (never, never),
            ((ok, ok), ok),
            ((ok, never), never),
            ((never, later, ok), later),
        ]:

            async def save(envelope: Envelope, verdict: Any = verdict) -> Any:
                return verdict

            gateway.on_save = save
            if verdict is never:
                await client.begin()
            else:
                await client.talk("MAIL FROM:<a@b>", "RCPT TO:<c@b>", "DATA")
            assert await client.command(".") == str(told)

    async def test_a_verdict_without_waiting_is_told_in_the_same_write(
        self, start: Any, connect: Any, gateway: Any
    ) -> None:
        """A chain that waits for nothing costs no task, and nobody a turn of the loop."""
        gateway.at_once = True
        server = await start()
        client = await connect(server)
        await client.begin(data=False)
        (connection,) = server._connections  # noqa: SLF001
        connection.data_received(b"DATA\r\ntext\r\n.\r\nNOOP\r\n")

        assert not connection.suspended
        assert len(gateway.saved) == 1
        codes = [(await client.reply())[:3] for _ in range(3)]
        assert codes == ["354", "250", "250"]

    async def test_a_sink_that_cannot_close_is_451(
        self, client: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Trouble of ours, at once or later; the next mail is not harmed."""
        await client.begin()
        sink = type(gateway.sinks[0])

        async def later(_: object) -> None:
            msg = "secret"
            raise OSError(msg)

        def now(_: object) -> None:
            msg = "secret"
            raise OSError(msg)

        for close in (later, now):
            with monkeypatch.context() as patched:
                patched.setattr(sink, "close", close)
                assert (await client.command("text\r\n.")).startswith("451 4.3.0 ")
            await client.talk("MAIL FROM:<a@b>", "RCPT TO:<c@b>", "DATA")
        assert (await client.command("fine\r\n."))[:3] == "250"


class TestPipelining:
    async def test_replies_leave_together_at_the_end_of_a_turn(
        self, start: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What arrives in one turn of the loop is answered after all of it has run, and no later."""
        server = await start()
        clients = [await connect(server) for _ in range(3)]
        for client in clients:
            await client.reply()
        done: list[str] = []
        for number, connection in enumerate(server._connections):  # noqa: SLF001
            flush = connection.flush
            monkeypatch.setattr(
                connection, "flush", lambda n=number, f=flush: (done.append(f"sent {n}"), f())
            )
        for number, connection in enumerate(server._connections):  # noqa: SLF001
            connection.data_received(b"NOOP\r\nNOOP\r\n")
            done.append(f"ran {number}")
        asyncio.get_running_loop().call_soon(done.append, "next turn")
        await asyncio.sleep(0)

        assert done == ["ran 0", "ran 1", "ran 2", "sent 0", "sent 1", "sent 2", "next turn"]
        for client in clients:
            assert [await client.reply() for _ in range(2)] == ["250 2.0.0 OK"] * 2

    async def test_a_whole_mail_in_one_write(self, client: Any, gateway: Any) -> None:
        """Everything at once gives every reply in order, two mails and a QUIT."""
        mail = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<bad>\r\nDATA\r\n" + MAIL.replace(
            b"\r\n.", b"\r\n.."
        )
        await client.send(b"EHLO me\r\n" + (mail + b".\r\n") * 2 + b"QUIT\r\n")
        codes = [line[:4] for line in (await client.rest()).decode().splitlines()]
        assert codes == ["220 ", *["250-"] * 7, "250 ", *["250 ", "250 ", "501 ", "354 ", "250 "] * 2, "221 "]
        assert gateway.bodies == [MAIL.replace(b"\r\n.", b"\r\n..").replace(b"\r\n..", b"\r\n.")] * 2

    async def test_octet_by_octet(self, client: Any, gateway: Any) -> None:
        """The slowest client is served as the fastest."""
        client.writer.get_extra_info("socket").setsockopt(6, 1, 1)
        for octet in b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n..x\r\n.\r\nQUIT\r\n":
            await client.send(bytes([octet]))
            await asyncio.sleep(0)
        assert (await client.rest()).endswith(b"221 2.0.0 Bye\r\n")
        assert gateway.bodies == [b".x\r\n"]

    async def test_all_recipients_are_asked_before_one_is_awaited(
        self, client: Any, gateway: Any, until: Until
    ) -> None:
        """The answers keep their order, whichever comes first; DATA waits for all."""
        answers: dict[str, asyncio.Future[Reply | None]] = {}

        def validate(address: str) -> Any:
            return answers.setdefault(address, asyncio.get_running_loop().create_future())

        gateway.on_validate = validate
        await client.reply()
        await client.talk("EHLO me", "MAIL FROM:<a@b>")
        await client.send(
            b"RCPT TO:<a@b>\r\nRCPT TO:<nonsense>\r\nRCPT TO:<c@b>\r\nRCPT TO:<d@b>\r\nDATA\r\n"
        )
        await until(lambda: len(answers) == 3)
        answers["d@b"].set_result(None)
        answers["c@b"].set_result(Reply(550, "5.1.1", "no"))
        answers["a@b"].set_result(Reply(450, "4.2.1", "later"))
        codes = [(await client.reply())[:9] for _ in range(5)]
        assert codes == ["450 4.2.1", "501 5.1.3", "550 5.1.1", "250 2.1.5", "354 End d"]
        await client.command(".")
        assert gateway.saved[0].rcpt_to == ("d@b",)

    async def test_mixed_answers_keep_their_order(self, client: Any, gateway: Any) -> None:
        """An answer that is there at once does not overtake one that is awaited."""

        async def slow() -> Reply:
            await asyncio.sleep(0.01)
            return Reply(550, "5.1.1", "slow")

        gateway.on_validate = lambda to: slow() if to[0] == "s" else None
        await client.reply()
        await client.talk("EHLO me", "MAIL FROM:<a@b>")
        await client.send(
            b"RCPT TO:<a@b>\r\nRCPT TO:<s@b>\r\nRCPT TO:<c@b>\r\nNOOP\r\nRCPT TO:<s@b>\r\nRSET\r\n"
        )
        codes = [(await client.reply())[:9] for _ in range(6)]
        assert codes == ["250 2.1.5", "550 5.1.1", "250 2.1.5", "250 2.0.0", "550 5.1.1", "250 2.0.0"]

    async def test_recipients_in_question_count(self, start: Start, connect: Any, gateway: Any) -> None:
        """The bound on recipients holds while they are being validated."""

        async def fine() -> None:
            await asyncio.sleep(0)

        gateway.on_validate = lambda to: fine()
        client = await connect(await start(max_recipients=2))
        await client.reply()
        await client.talk("EHLO me", "MAIL FROM:<a@b>")
        await client.send(b"RCPT TO:<a@b>\r\n" * 4)
        assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "452", "452"]

    async def test_a_flood_of_commands_leaves_others_alone(self, start: Start, connect: Any) -> None:
        """Thousands of commands in one write are answered, with turns for others in between."""
        server = await start()
        busy, other = await connect(server), await connect(server)
        await busy.send(b"NOOP\r\n" * 20_000)
        assert await other.command("NOOP") == "220 localhost ESMTP"
        await busy.send(b"QUIT\r\n")
        assert (await busy.rest()).count(b"250 2.0.0 OK\r\n") == 20_000

    async def test_a_client_that_does_not_read_is_not_served(
        self, start: Start, connect: Any, until: Until, clock: Any
    ) -> None:
        """Its replies do not pile up: reading stops, then silence ends it."""
        server = await start()
        clock.rules(server)
        client = await connect(server)
        client.writer.transport.pause_reading()
        client.writer.write(b"EHLO me\r\n" * 200_000)
        await until(lambda: server.statistics.connections)
        (connection,) = server._connections  # noqa: SLF001
        await until(lambda: connection.clogged)
        assert connection._wire.get_write_buffer_size() < 1 << 20  # noqa: SLF001
        assert server.statistics.connections == 1
        clock.now += 302
        await until(lambda: server.statistics.connections == 0)


class TestBody:
    @pytest.mark.parametrize("cut", range(1, 6))
    async def test_every_cut_of_the_end(self, client: Any, gateway: Any, cut: int) -> None:
        """CRLF.CRLF is found when TCP cuts it anywhere."""
        await client.begin()
        client.writer.get_extra_info("socket").setsockopt(6, 1, 1)
        text = b"a\r\n.\r\nNOOP\r\n"
        await client.send(text[:cut])
        await asyncio.sleep(0.02)
        await client.send(text[cut:])
        assert (await client.reply())[:3] == "250"
        assert await client.reply() == "250 2.0.0 OK"
        assert gateway.bodies == [b"a\r\n"]

    @pytest.mark.parametrize("fake", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\n.\r"])
    @pytest.mark.parametrize("bare", ["reject", "keep"])
    async def test_smuggled_mail_stays_inside(
        self, start: Start, connect: Any, gateway: Any, fake: bytes, bare: str
    ) -> None:
        """A false end does not end; rejected at the real one, or kept octet for octet."""
        client = await connect(await start(bare_lines=bare))
        await client.begin()
        body = b"a" + fake + b"MAIL FROM:<evil@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nevil\r\n"
        answer = await client.command(body + b".")
        if bare == "keep":
            assert answer[:3] == "250"
            assert gateway.bodies == [body.replace(b"\r\n.", b"\r\n")]
        else:
            assert answer == str(reply.BARE_LINES)
            assert gateway.saved == []
            assert gateway.sinks[0].ended == "abort"
        assert await client.command("NOOP") == "250 2.0.0 OK"

    async def test_oversize_is_read_to_its_end(self, start: Start, connect: Any, gateway: Any) -> None:
        """One octet too many: not stored from then on, told 552 at the end; the session lives."""
        client = await connect(await start(max_size=1000))
        await client.begin()
        await client.send(b"x" * 998 + b"\r\n")
        await client.send(b"y")
        assert (await client.command(b"\r\n."))[:9] == "552 5.3.4"
        assert gateway.sinks[0].ended == "abort"
        assert sum(map(len, gateway.sinks[0].chunks)) <= 1000
        await client.talk("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
        assert (await client.command(b"x" * 998 + b"\r\n."))[:3] == "250"
        assert len(gateway.bodies[0]) == 1000

    async def test_far_too_much_is_cut_off(self, start: Start, connect: Any, gateway: Any) -> None:
        """Beyond twice the maximum patience ends: 421 and closed."""
        client = await connect(await start(max_size=1000))
        await client.begin()
        await client.send(b"x" * 100_000)
        assert (await client.reply())[:9] == "421 4.3.4"
        assert await client.closed()
        assert gateway.saved == []

    async def test_lines_may_be_limited(self, start: Start, connect: Any, gateway: Any) -> None:
        """Told at the end of the body; by default a line may be as long as the mail."""
        client = await connect(await start(max_line=1000))
        await client.begin()
        assert await client.command(b"x" * 999 + b"\r\n.") == str(reply.BODY_LINE_TOO_LONG)
        assert gateway.sinks[0].ended == "abort"

    async def test_a_line_without_end_takes_no_memory(self, start: Start, connect: Any, gateway: Any) -> None:
        """Chunks are handed on as they come; nothing waits for a line to end."""
        client = await connect(await start())
        await client.begin()
        await client.send(b"x" * 3_000_000)
        await client.command("\r\n.")
        assert gateway.bodies[0] == b"x" * 3_000_000 + b"\r\n"
        assert max(map(len, gateway.sinks[0].chunks)) <= 1 << 18

    async def test_a_sink_holds_the_client_back(self, client: Any, gateway: Any, until: Until) -> None:
        """While a write is awaited nothing is read, and nothing is lost or reordered."""
        gates: list[asyncio.Future[None]] = []

        def write(sink: Any) -> Any:
            gates.append(asyncio.get_running_loop().create_future())
            return gates[-1]

        gateway.on_write = write
        await client.begin()
        sent = b"".join(b"%06d\r\n" % number for number in range(200_000))
        client.writer.write(sent + b".\r\nNOOP\r\n")
        await until(lambda: gates)
        await asyncio.sleep(0.05)
        assert len(gateway.sinks[0].chunks) == 1
        while not gateway.saved:
            await until(lambda: gateway.saved or not gates[-1].done())
            gates[-1].done() or gates[-1].set_result(None)
        assert (await client.reply())[:3] == "250"
        assert await client.reply() == "250 2.0.0 OK"
        assert gateway.bodies == [sent]


class TestVanishing:
    @pytest.mark.parametrize("how", ["close", "half-close", "reset"])
    async def test_before_the_dot_leaves_nothing(
        self, client: Any, gateway: Any, until: Until, how: str
    ) -> None:
        """The sink is aborted, nothing saved."""
        await client.begin()
        await client.send(b"half a mail\r\n.")
        await until(lambda: gateway.sinks[0].chunks)
        if how == "close":
            client.writer.close()
        elif how == "half-close":
            client.writer.write_eof()
        else:
            client.reset()
        await until(lambda: gateway.sinks[0].ended)
        assert gateway.sinks[0].ended == "abort"
        assert gateway.saved == []

    @pytest.mark.parametrize("how", ["close", "reset"])
    async def test_after_the_dot_the_commit_goes_on(
        self, client: Any, gateway: Any, until: Until, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The mail is stored, and the log says that nobody was told."""
        proceed = asyncio.Event()

        async def save(envelope: Envelope) -> Reply:
            await proceed.wait()
            return queued_as(envelope.queue_id)

        gateway.on_save = save
        await client.begin()
        await client.send(b"whole\r\n.\r\n")
        await until(lambda: gateway.sinks[0].ended == "close")
        client.reset() if how == "reset" else client.writer.close()
        await asyncio.sleep(0.05)
        proceed.set()
        with caplog.at_level(logging.WARNING):
            await until(lambda: gateway.saved)
            await until(lambda: "client gone" in caplog.text)
        assert gateway.cancelled == 0
        assert gateway.saved[0].queue_id in caplog.text

    async def test_half_closed_after_the_dot_is_still_told(self, client: Any, gateway: Any) -> None:
        """A client that only listens gets all its replies, then the end."""

        async def save(envelope: Envelope) -> Reply:
            await asyncio.sleep(0.05)
            return reply.OK

        gateway.on_save = save
        await client.send(
            b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\nNOOP\r\nQUIT\r\n"
        )
        client.writer.write_eof()
        assert (await client.rest()).endswith(
            b"354 End data with <CR><LF>.<CR><LF>\r\n" + b"250 2.0.0 OK\r\n" * 2 + b"221 2.0.0 Bye\r\n"
        )

    async def test_while_recipients_are_in_question(self, client: Any, gateway: Any, until: Until) -> None:
        """What nobody waits for is cancelled."""
        asked: list[asyncio.Future[None]] = []

        def validate(_: str) -> Any:
            asked.append(asyncio.get_running_loop().create_future())
            return asked[-1]

        gateway.on_validate = validate
        await client.reply()
        await client.talk("EHLO me", "MAIL FROM:<a@b>")
        await client.send(b"RCPT TO:<a@b>\r\nRCPT TO:<b@b>\r\n")
        await until(lambda: len(asked) == 2)
        client.reset()
        await until(lambda: all(future.cancelled() for future in asked))


class TestBounds:
    async def test_command_line(self, start: Start, connect: Any) -> None:
        """A line of the limit passes; one octet more is 500, however long, and costs no memory."""
        client = await connect(await start(max_command_line=600))
        await client.reply()
        assert await client.command("NOOP " + "x" * 593) == "250 2.0.0 OK"
        assert (await client.command("NOOP " + "x" * 594))[:9] == "500 5.5.6"
        await client.send(b"x" * 500_000)
        await client.send(b"x" * 500_000)
        assert (await client.command("x"))[:9] == "500 5.5.6"
        assert await client.command("NOOP") == "250 2.0.0 OK"

    async def test_bare_lf(self, client: Any) -> None:
        """A command ends in CR LF, else 500."""
        await client.reply()
        await client.send(b"NOOP\nNOOP\r\n")
        assert (await client.reply())[:9] == "500 5.5.2"
        assert await client.reply() == "250 2.0.0 OK"

    async def test_errors(self, client: Any) -> None:
        """Ten are answered, the next is told to go."""
        await client.reply()
        assert [text[:3] for text in await client.talk(*["WHAT"] * 10)] == ["500"] * 10
        assert await client.command("WHAT") == str(reply.TOO_MANY_ERRORS)
        assert await client.closed()

    async def test_errors_in_a_flood(self, client: Any) -> None:
        """All at once is no way around, not even behind recipients in question."""
        await client.send(b"WHAT\r\n" * 1000)
        lines = (await client.rest()).decode().splitlines()
        assert [line[:3] for line in lines] == ["220", *["500"] * 10, "421"]

    async def test_refused_recipients_are_errors(self, start: Start, connect: Any, gateway: Any) -> None:
        """Whoever guesses addresses is stopped."""

        async def no() -> Reply:
            return Reply(550, "5.1.1", "no")

        gateway.on_validate = lambda to: no()
        client = await connect(await start(max_errors=3))
        await client.send(b"EHLO me\r\nMAIL FROM:<a@b>\r\n" + b"RCPT TO:<a@b>\r\n" * 9)
        assert [line[:3] for line in (await client.rest()).decode().splitlines()][-4:] == ["550"] * 3 + [
            "421"
        ]

    async def test_command_silence(self, start: Start, connect: Any, clock: Any) -> None:
        """A quiet client is told 421 and closed; one that speaks stays."""
        server = await start()
        clock.rules(server)
        quiet, awake = await connect(server), await connect(server)
        await quiet.reply()
        await awake.reply()
        await clock.passes(299)
        assert await awake.command("NOOP") == "250 2.0.0 OK"
        await clock.passes(2)
        assert await quiet.reply() == str(reply.TIMEOUT)
        assert await quiet.closed()
        assert await awake.command("NOOP") == "250 2.0.0 OK"

    async def test_data_silence(
        self, start: Start, connect: Any, gateway: Any, until: Until, clock: Any
    ) -> None:
        """Inside DATA too, and sooner; the mail leaves nothing."""
        server = await start()
        clock.rules(server)
        quiet, awake = await connect(server), await connect(server)
        for client in (quiet, awake):
            await client.begin()
            await client.send(b"half\r\n")
        await until(lambda: len(gateway.sinks) == 2 and all(sink.chunks for sink in gateway.sinks))
        # The minimum rate is looked at as well: 100 octets a second.
        await awake.send(b"x" * 20_000)
        await quiet.send(b"x" * 20_000)
        await until(lambda: all(len(b"".join(sink.chunks)) > 20_000 for sink in gateway.sinks))
        await clock.passes(179)
        await awake.send(b"more")
        await until(lambda: b"".join(gateway.sinks[1].chunks).endswith(b"more"))
        await clock.passes(2)
        assert await quiet.reply() == str(reply.TIMEOUT)
        assert await quiet.closed()
        assert gateway.sinks[0].ended == "abort"
        assert (await awake.command("\r\n."))[:3] == "250"

    async def test_data_in_all(self, start: Start, connect: Any, clock: Any) -> None:
        """However fast, half an hour is enough."""
        server = await start(min_rate=0)
        clock.rules(server)
        client = await connect(server)
        await client.begin()
        for _ in range(18):
            await client.send(b"x")
            await clock.passes(100)
        await client.send(b"x")
        assert not client.reader.at_eof()
        await clock.passes(2)
        assert await client.reply() == str(reply.TIMEOUT)

    async def test_minimum_rate(
        self, start: Start, connect: Any, clock: Any, gateway: Any, until: Until
    ) -> None:
        """Less than 100 octets a second after half a minute end it; more do not."""
        server = await start()
        clock.rules(server)
        slow, fast = await connect(server), await connect(server)
        for client, size in ((slow, 2900), (fast, 3300)):
            await client.begin()
            await client.send(b"x" * size)
        await until(lambda: sum(map(len, gateway.sinks[0].chunks + gateway.sinks[1].chunks)) == 6200)
        await clock.passes(29)
        assert server.statistics.connections == 2
        await clock.passes(2)
        assert await slow.reply() == str(reply.TOO_SLOW)
        assert (await fast.command("\r\n."))[:3] == "250"

    async def test_waiting_for_us_is_no_silence(
        self, start: Start, connect: Any, gateway: Any, clock: Any, until: Until
    ) -> None:
        """Timeouts are for clients; how long a store may take is the gateway's business."""
        proceed = asyncio.Event()

        async def save(envelope: Envelope) -> Reply:
            await proceed.wait()
            return reply.OK

        gateway.on_save = save
        server = await start()
        clock.rules(server)
        client = await connect(server)
        await client.begin()
        await client.send(b".\r\n")
        await until(lambda: gateway.sinks[0].ended)
        await clock.passes(3600)
        proceed.set()
        assert await client.reply() == str(reply.OK)
        await clock.passes(299)
        assert await client.command("NOOP") == str(reply.OK)
