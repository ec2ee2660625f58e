import asyncio
import base64
import contextlib
import smtplib
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest

from mailpipe import reply
from mailpipe.receivers.auth import hash_password
from mailpipe.receivers.tls import TlsOptions

Start = Callable[..., Awaitable[Any]]
Until = Callable[[Callable[[], Any]], Awaitable[None]]

HERE = ["127.0.0.0/8"]
ANY = ["*"]
USERS = {"ann": hash_password("secret")}


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class TestStartTls:
    async def test_a_real_client(self, start: Start, gateway: Any, certificates: Any) -> None:
        """smtplib turns TLS on and sends; the session says what was agreed."""
        address = (await start(tls=TlsOptions(**certificates.issue()))).addresses[0]
        context = certificates.client()

        def send() -> None:
            sock = socket.create_connection((address.host, address.port))
            with smtplib.SMTP(local_hostname="me.example") as smtp:
                smtp.sock = sock
                smtp._host = "mx.example.org"  # type: ignore[attr-defined]  # noqa: SLF001
                assert smtp.getreply()[0] == 220
                smtp.starttls(context=context)
                smtp.sendmail("a@b", ["c@d"], b"x" * 100_000 + b"\r\n")

        await asyncio.to_thread(send)
        assert gateway.saved[0].session.tls.startswith("TLSv1.3 TLS_")
        assert len(gateway.bodies[0]) == 100_002

    async def test_what_was_said_in_the_clear_is_forgotten(
        self, start: Start, connect: Any, certificates: Any
    ) -> None:
        """HELO and the transaction; the address is kept; STARTTLS is offered once."""
        client = await connect(await start(tls=TlsOptions(**certificates.issue())))
        await client.begin(data=False)
        assert "STARTTLS" in await client.command("EHLO me")
        await client.talk("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
        assert await client.command("STARTTLS") == str(reply.READY_FOR_TLS)
        await client.start_tls(certificates.client())
        assert await client.command("DATA") == str(reply.NEED_MAIL)
        assert await client.command("MAIL FROM:<a@b>") == str(reply.NEED_HELO)
        assert "STARTTLS" not in await client.command("EHLO me")
        assert await client.command("STARTTLS") == str(reply.TLS_ACTIVE)

    @pytest.mark.parametrize("cut", [False, True])
    async def test_injected_commands_are_dropped(
        self, start: Start, connect: Any, gateway: Any, certificates: Any, cut: bool
    ) -> None:
        """What came with STARTTLS in the clear is never run under TLS (CVE-2011-0411)."""
        client = await connect(await start(tls=TlsOptions(**certificates.issue())))
        await client.reply()
        await client.command("EHLO me")
        await client.send(b"STARTTLS\r\nEHLO evil\r\nMAIL FROM:<evil@b>\r\n" + (b"RCPT TO" if cut else b""))
        assert await client.reply() == str(reply.READY_FOR_TLS)
        await client.start_tls(certificates.client())
        assert await client.command("NOOP") == str(reply.OK)
        assert await client.command("RCPT TO:<c@d>") == str(reply.NEED_MAIL)
        assert gateway.admitted == []

    async def test_junk_for_a_handshake(
        self, start: Start, connect: Any, certificates: Any, until: Until
    ) -> None:
        """Closed; the server lives on."""
        server = await start(tls=TlsOptions(**certificates.issue()))
        client = await connect(server)
        await client.reply()
        await client.talk("EHLO me", "STARTTLS")
        await client.send(b"MAIL FROM:<a@b>\r\n" * 10)
        await client.rest()
        await until(lambda: server.statistics.connections == 0)
        assert (await (await connect(server)).reply())[:3] == "220"

    async def test_is_unknown_without_a_certificate(self, client: Any) -> None:
        """Not offered, not run."""
        await client.reply()
        assert await client.command("STARTTLS") == str(reply.UNKNOWN_COMMAND)

    async def test_can_be_required(self, start: Start, connect: Any, certificates: Any) -> None:
        """No mail in the clear; with TLS as ever."""
        client = await connect(await start(tls=TlsOptions(**certificates.issue(), mode="required")))
        await client.reply()
        await client.command("EHLO me")
        assert await client.command("MAIL FROM:<a@b>") == str(reply.NEED_TLS)
        await client.command("STARTTLS")
        await client.start_tls(certificates.client())
        assert (await client.talk("EHLO me", "MAIL FROM:<a@b>"))[1] == str(reply.MAIL_OK)

    async def test_shutdown_and_vanishing_under_tls(
        self, start: Start, connect: Any, certificates: Any, gateway: Any, until: Until
    ) -> None:
        """TLS has no half-closed state; ends are ends all the same."""
        server = await start(tls=TlsOptions(**certificates.issue()))
        idle, half = await connect(server), await connect(server)
        for client in (idle, half):
            await client.reply()
            await client.talk("EHLO me", "STARTTLS")
            await client.start_tls(certificates.client())
        await half.talk("EHLO me", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
        half.reset()
        await until(lambda: gateway.sinks[0].ended == "abort")
        assert await server.drain(5.0) == 0
        assert await idle.reply() == str(reply.SHUTTING_DOWN)


class TestImplicitTls:
    async def test_begins_with_tls(self, start: Start, gateway: Any, certificates: Any) -> None:
        """No word in the clear."""
        address = (await start(tls=TlsOptions(**certificates.issue("127.0.0.1"), mode="implicit"))).addresses[
            0
        ]
        context = certificates.client()

        def send() -> None:
            with smtplib.SMTP_SSL(address.host, address.port, context=context, local_hostname="me") as smtp:
                smtp.sendmail("a@b", ["c@d"], b"x\r\n")

        await asyncio.to_thread(send)
        assert gateway.saved[0].session.tls

    async def test_a_silent_client_holds_no_slot(
        self, start: Start, connect: Any, certificates: Any, until: Until
    ) -> None:
        """The handshake has its own, short patience; meanwhile others are served."""
        server = await start(
            tls=TlsOptions(**certificates.issue(), mode="implicit"),
            tls_handshake_timeout=0.3,
            max_connections=2,
        )
        silent, spoken = await connect(server), await connect(server)
        await spoken.start_tls(certificates.client())
        assert (await spoken.reply())[:3] == "220"
        assert await silent.rest() == b""
        await until(lambda: server.statistics.connections == 1)

    async def test_a_plain_client(self, start: Start, connect: Any, certificates: Any, until: Until) -> None:
        """Closed, without a greeting in the clear."""
        server = await start(tls=TlsOptions(**certificates.issue(), mode="implicit"))
        client = await connect(server)
        await client.send(b"EHLO me\r\n")
        assert b"220" not in await client.rest()
        await until(lambda: server.statistics.connections == 0)

    async def test_client_certificates(
        self, start: Start, connect: Any, certificates: Any, gateway: Any, until: Until
    ) -> None:
        """Shown, it is checked and known to the session; required, its lack ends the connection."""
        files = {**certificates.issue(), "client_ca": certificates.folder / "ca.pem"}
        server = await start(tls=TlsOptions(**files, client_certificate="optional", mode="implicit"))
        without, shown = await connect(server), await connect(server)
        await without.start_tls(certificates.client())
        await shown.start_tls(certificates.client(shows="me.example"))
        await shown.begin()
        await shown.command(".")
        assert "me.example" in str(gateway.saved[0].session.values["tls_client"]["subjectAltName"])
        assert (await without.reply())[:3] == "220"
        server.options = attrs.evolve(
            server.options, tls=TlsOptions(**files, client_certificate="required", mode="implicit")
        )
        refused = await connect(server)
        # TLS 1.3 tells a client only after it believes to be done.
        with contextlib.suppress(OSError):
            await refused.start_tls(certificates.client())
            assert await refused.reader.read(1) == b""
        await until(lambda: server.statistics.connections == 2)


class TestCertificateReload:
    async def test_new_connections_see_the_new_one(
        self, start: Start, connect: Any, certificates: Any, until: Until
    ) -> None:
        """Giving options reads the files anew; who is there goes on; bad files change nothing."""
        server = await start(tls=TlsOptions(**certificates.issue("old.example"), mode="implicit"))
        old = await connect(server)
        await old.start_tls(certificates.client(), "old.example")
        certificates.issue("new.example")
        server.options = server.options
        new = await connect(server)
        await new.start_tls(certificates.client(), "new.example")
        (certificates.folder / "cert.pem").write_text("junk")
        with pytest.raises(ValueError, match="PEM files"):
            server.options = attrs.evolve(server.options, max_size=1)
        assert server.options.max_size != 1
        newer = await connect(server)
        await newer.start_tls(certificates.client(), "new.example")
        for client in (old, new, newer):
            assert (await client.reply())[:3] == "220"


def plain(user: str, password: str) -> str:
    """The command, with its initial response."""
    return "AUTH PLAIN " + b64(f"\0{user}\0{password}")


@pytest.fixture
async def secured(start: Start, connect: Any, certificates: Any) -> Callable[..., Awaitable[Any]]:
    """A client under TLS, after EHLO, of a server with these options."""

    async def secure(**options: Any) -> Any:
        options = {"users": USERS, "allowed_hosts": ["example.org"]} | options
        client = await connect(await start(tls=TlsOptions(**certificates.issue()), **options))
        await client.reply()
        await client.talk("EHLO me", "STARTTLS")
        await client.start_tls(certificates.client())
        await client.command("EHLO me")
        return client

    return secure


class TestAuth:
    async def test_plain_and_login(self, secured: Any, gateway: Any) -> None:
        """With and without an initial response; the authenticated may send anywhere."""
        for talk in (
            [plain("ann", "secret")],
            ["AUTH plain", b64("\0ann\0secret")],
            [f"AUTH LOGIN {b64('ann')}", b64("secret")],
            ["AUTH LOGIN", b64("ann"), b64("secret")],
        ):
            client = await secured()
            assert "AUTH PLAIN LOGIN" in await client.command("EHLO me")
            replies = await client.talk(*talk)
            assert [text[:4] for text in replies] == ["334 "] * (len(talk) - 1) + ["235 "]
            await client.talk("MAIL FROM:<a@b>", "RCPT TO:<x@anywhere.example>", "DATA", ".")
            assert gateway.saved[-1].session.user == "ann"
            assert gateway.saved[-1].session.trusted
            assert await client.command("AUTH LOGIN") == str(reply.ALREADY_AUTHENTICATED)

    async def test_challenges(self, secured: Any) -> None:
        """The words that clients know, in base64; an empty one for PLAIN."""
        client = await secured()
        assert await client.command("AUTH LOGIN") == "334 " + b64("Username:")
        assert await client.command(b64("ann")) == "334 " + b64("Password:")
        assert await client.command("*") == str(reply.AUTH_ABORTED)
        assert await client.command("AUTH PLAIN") == "334 "
        assert await client.command("*") == str(reply.AUTH_ABORTED)

    async def test_a_real_client(self, start: Start, gateway: Any, certificates: Any) -> None:
        """smtplib logs in."""
        tls = TlsOptions(**certificates.issue("127.0.0.1"), mode="implicit")
        address = (await start(tls=tls, users=USERS, allowed_hosts=[])).addresses[0]
        context = certificates.client()

        def send() -> None:
            with smtplib.SMTP_SSL(address.host, address.port, context=context, local_hostname="me") as smtp:
                smtp.login("ann", "secret")
                smtp.sendmail("a@b", ["c@d"], b"x\r\n")

        await asyncio.to_thread(send)
        assert gateway.saved[0].session.user == "ann"

    async def test_never_in_the_clear(self, start: Start, connect: Any, certificates: Any) -> None:
        """Neither offered nor taken before TLS, and not even asked for."""
        client = await connect(await start(tls=TlsOptions(**certificates.issue()), users=USERS))
        await client.reply()
        assert "AUTH" not in await client.command("EHLO me")
        assert await client.command(plain("ann", "secret")) == str(reply.AUTH_NEEDS_TLS)

    async def test_three_failures_are_the_end(self, secured: Any) -> None:
        """Two are told 535; the third closes."""
        client = await secured()
        wrong = plain("ann", "wrong")
        assert await client.talk(wrong, wrong) == [str(reply.AUTH_FAILED)] * 2
        assert await client.command(wrong) == str(reply.AUTH_TOO_OFTEN)
        assert await client.closed()

    async def test_failed_is_not_trusted(self, secured: Any) -> None:
        """Relaying stays denied."""
        client = await secured()
        await client.talk(plain("ann", "wrong"), "MAIL FROM:<a@b>")
        assert await client.command("RCPT TO:<x@anywhere.example>") == str(reply.NO_RELAY)

    @pytest.mark.parametrize(
        ("talk", "told"),
        [
            (["AUTH"], reply.AUTH_MECHANISM),
            (["AUTH CRAM-MD5"], reply.AUTH_MECHANISM),
            (["AUTH PLAIN !!!"], reply.AUTH_BAD_BASE64),
            (["AUTH PLAIN", "!!!"], reply.AUTH_BAD_BASE64),
            (["AUTH LOGIN", b64("ann"), "!!!"], reply.AUTH_BAD_BASE64),
            (["AUTH PLAIN " + b64("root\0ann\0secret")], reply.AUTH_BAD_BASE64),
            (["MAIL FROM:<a@b>", "AUTH LOGIN"], reply.AUTH_IN_MAIL),
        ],
    )
    async def test_misuse(self, secured: Any, talk: list[str], told: Any) -> None:
        """Each is told, and commands are commands again afterwards."""
        client = await secured()
        assert (await client.talk(*talk))[-1] == str(told)
        assert await client.command("NOOP") == str(reply.OK)

    async def test_what_was_authenticated_before_starttls_is_forgotten(
        self, start: Start, connect: Any, certificates: Any
    ) -> None:
        """As XCLIENT's LOGIN is."""
        server = await start(
            tls=TlsOptions(**certificates.issue()), xclient=True, trusted=HERE, allowed_hosts=[]
        )
        client = await connect(server)
        await client.reply()
        await client.talk("XCLIENT LOGIN=ann", "EHLO me", "MAIL FROM:<a@b>")
        assert await client.command("RCPT TO:<c@d>") == str(reply.RCPT_OK)
        await client.talk("RSET", "STARTTLS")
        await client.start_tls(certificates.client())
        assert (await client.talk("EHLO me", "MAIL FROM:<a@b>", "RCPT TO:<c@d>"))[-1] == str(reply.NO_RELAY)

    async def test_a_hook_is_asked_in_a_thread(self, secured: Any) -> None:
        """It may block; it sees user and password; others are served meanwhile."""
        asked: list[tuple[str, str, bool]] = []
        proceed = threading.Event()

        def check(user: str, password: str) -> bool:
            asked.append((user, password, threading.current_thread() is threading.main_thread()))
            return proceed.wait(10)

        client = await secured(users={}, authenticator=check)
        await client.send((plain("eve", "pw") + "\r\n").encode())
        for _ in range(200):
            await asyncio.sleep(0.005)
            if asked:
                break
        proceed.set()
        assert await client.reply() == str(reply.AUTH_DONE)
        assert asked == [("eve", "pw", False)]

    async def test_a_broken_hook_is_our_trouble(self, secured: Any, caplog: pytest.LogCaptureFixture) -> None:
        """454, counted as nobody's failure; its words stay in the log."""

        def check(user: str, password: str) -> bool:
            msg = "database password is hunter2"
            raise RuntimeError(msg)

        client = await secured(users={}, authenticator=check)
        for _ in range(4):
            assert await client.command(plain("eve", "pw")) == str(reply.AUTH_TROUBLE)
        assert "hunter2" in caplog.text

    async def test_long_lines(self, secured: Any) -> None:
        """12 288 octets for AUTH, 2 048 for everything else."""
        client = await secured(users={}, authenticator=lambda user, password: len(password) == 9000)
        long = b64("\0ann\0" + "x" * 9000)
        assert len(long) > 12000
        assert await client.command(f"AUTH PLAIN {long}") == str(reply.AUTH_DONE)
        client = await secured(users={}, authenticator=lambda user, password: len(password) == 9000)
        assert (await client.talk("AUTH PLAIN", long))[-1] == str(reply.AUTH_DONE)
        assert await client.command("NOOP " + "x" * 2100) == str(reply.LINE_TOO_LONG)
        client = await secured()
        assert await client.command("AUTH PLAIN " + "x" * 12288) == str(reply.LINE_TOO_LONG)

    async def test_passwords_are_not_logged(self, secured: Any, caplog: pytest.LogCaptureFixture) -> None:
        """Neither right nor wrong ones, in no form."""
        caplog.set_level(0)
        client = await secured()
        await client.talk(plain("ann", "wrong-one"), plain("ann", "secret"))
        for word in ("wrong-one", "secret", b64("\0ann\0secret"), b64("\0ann\0wrong-one")):
            assert word not in caplog.text


class TestProxy:
    async def test_the_client_is_who_the_header_says(self, start: Start, connect: Any, gateway: Any) -> None:
        """Both versions, in one write with what follows; relay_from judges the client, not the proxy."""
        server = await start(proxy=True, trusted=HERE, allowed_hosts=ANY, relay_from=["192.0.2.0/24"])
        v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack(
            "!H4s4sHH", 12, bytes([198, 51, 100, 1]), bytes(4), 4000, 25
        )
        for header in (b"PROXY TCP4 192.0.2.7 10.0.0.1 4000 25\r\n", v2):
            client = await connect(server)
            await client.send(header + b"EHLO me\r\n")
            assert (await client.reply())[:3] == "220"
            await client.reply()
            await client.talk("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", ".")
        one, two = [envelope.session for envelope in gateway.saved]
        assert (one.peer, one.port, one.local, one.trusted) == ("192.0.2.7", 4000, "10.0.0.1", True)
        assert (two.peer, two.port, two.trusted) == ("198.51.100.1", 4000, False)

    @pytest.mark.parametrize("first", [b"EHLO me\r\n", b"PROXY TCP4 x y 1 2\r\n", b"PROXY " + b"x" * 300])
    async def test_is_mandatory_there(self, start: Start, connect: Any, first: bytes) -> None:
        """A trusted peer without a good header gets no greeting."""
        client = await connect(await start(proxy=True, trusted=HERE, allowed_hosts=ANY))
        await client.send(first)
        assert await client.reply() == str(reply.PROXY_BAD)
        assert await client.closed()

    async def test_once(self, start: Start, connect: Any, gateway: Any) -> None:
        """A second header, from the client behind the proxy, is a command nobody knows."""
        client = await connect(await start(proxy=True, trusted=HERE, allowed_hosts=ANY))
        await client.send(b"PROXY TCP4 192.0.2.7 10.0.0.1 4000 25\r\nPROXY TCP4 127.0.0.1 10.0.0.1 1 25\r\n")
        assert (await client.reply())[:3] == "220"
        assert await client.reply() == str(reply.UNKNOWN_COMMAND)
        await client.talk("EHLO me", "MAIL FROM:<a@b>")
        assert gateway.admitted[0][0].peer == "192.0.2.7"

    async def test_from_others_it_is_a_command_nobody_knows(
        self, start: Start, connect: Any, gateway: Any
    ) -> None:
        """They are greeted as themselves."""
        server = await start(proxy=True, trusted=["127.0.0.9/32"], allowed_hosts=ANY)
        client = await connect(server)
        assert (await client.reply())[:3] == "220"
        assert await client.command("PROXY TCP4 192.0.2.7 10.0.0.1 4000 25") == str(reply.UNKNOWN_COMMAND)
        await client.talk("EHLO me", "MAIL FROM:<a@b>")
        assert gateway.admitted[0][0].peer == "127.0.0.1"

    async def test_unknown_clients_are_nobody(self, start: Start, connect: Any) -> None:
        """PROXY UNKNOWN does not lend the client the proxy's own rights."""
        server = await start(proxy=True, trusted=HERE, relay_from=HERE, allowed_hosts=[])
        client = await connect(server)
        await client.send(b"PROXY UNKNOWN\r\n")
        await client.reply()
        assert (await client.talk("EHLO me", "MAIL FROM:<a@b>", "RCPT TO:<c@d>"))[-1] == str(reply.NO_RELAY)

    async def test_a_silent_one_is_closed(self, start: Start, connect: Any, clock: Any) -> None:
        """The header has the patience of a handshake."""
        server = await start(proxy=True, trusted=HERE, allowed_hosts=ANY)
        clock.rules(server)
        client = await connect(server)
        await client.send(b"PROXY TC")
        await clock.passes(9)
        await client.send(b"P4 ")
        await clock.passes(9)
        assert server.statistics.connections == 1
        await clock.passes(2)
        assert await client.reply() == str(reply.TIMEOUT)

    async def test_clients_are_counted_by_their_own_address(self, start: Start, connect: Any) -> None:
        """The proxy is exempt, its clients are not."""
        server = await start(proxy=True, trusted=HERE, allowed_hosts=ANY, max_connections_per_address=1)
        told = []
        for client_address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
            client = await connect(server)
            await client.send(f"PROXY TCP4 {client_address} 10.0.0.1 4000 25\r\n".encode())
            told.append((await client.reply())[:3])
        assert told == ["220", "421", "220"]

    async def test_before_implicit_tls(
        self, start: Start, connect: Any, certificates: Any, gateway: Any
    ) -> None:
        """The handshake may come in one segment with the header, or behind it."""
        tls = TlsOptions(**certificates.issue(), mode="implicit")
        server = await start(proxy=True, trusted=HERE, allowed_hosts=ANY, tls=tls)
        header = b"PROXY TCP4 192.0.2.7 10.0.0.1 4000 25\r\n"
        client = await connect(server)
        await client.send(header)
        await client.start_tls(certificates.client())
        await client.begin()
        await client.command(".")
        assert gateway.saved[0].session.peer == "192.0.2.7"

        address = server.addresses[0]

        def handshake_in_one_segment() -> bytes:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = certificates.client().wrap_bio(incoming, outgoing, server_hostname="mx.example.org")
            with socket.create_connection((address.host, address.port), timeout=10) as sock:
                first = header
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        sock.sendall(first + outgoing.read())
                        first = b""
                        incoming.write(sock.recv(65536))
                sock.sendall(outgoing.read())
                while True:
                    try:
                        return tls.read(100)
                    except ssl.SSLWantReadError:
                        incoming.write(sock.recv(65536))

        assert (await asyncio.to_thread(handshake_in_one_segment))[:3] == b"220"


class TestXclient:
    async def test_tells_who_the_client_is(self, start: Start, connect: Any, gateway: Any) -> None:
        """The session begins anew at 220; the proxy's own EHLO says nothing of the client."""
        server = await start(xclient=True, trusted=HERE, allowed_hosts=["d"], relay_from=["192.0.2.0/24"])
        client = await connect(server)
        await client.reply()
        assert "XCLIENT NAME ADDR" in await client.command("EHLO proxy")
        assert (await client.command("XCLIENT ADDR=192.0.2.7 PORT=4000 HELO=client.example NAME=x"))[
            :3
        ] == "220"
        assert await client.command("MAIL FROM:<a@b>") == str(reply.NEED_HELO)
        await client.talk("EHLO proxy", "MAIL FROM:<a@b>", "RCPT TO:<x@anywhere.example>", "DATA", ".")
        session = gateway.saved[0].session
        assert (session.peer, session.port, session.helo, session.user) == (
            "192.0.2.7",
            4000,
            "client.example",
            "",
        )
        assert session.trusted

    async def test_a_description_may_take_several_lines(
        self, start: Start, connect: Any, gateway: Any
    ) -> None:
        """Each adds to it; one with an address begins another client, who inherits nothing."""
        client = await connect(await start(xclient=True, trusted=HERE, allowed_hosts=[]))
        await client.reply()
        await client.talk("XCLIENT NAME=a.example ADDR=192.0.2.7", "XCLIENT HELO=a.example LOGIN=ann")
        await client.talk("EHLO proxy", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", ".")
        session = gateway.saved[0].session
        assert (session.peer, session.helo, session.user) == ("192.0.2.7", "a.example", "ann")
        await client.talk("XCLIENT ADDR=192.0.2.8", "EHLO proxy", "MAIL FROM:<a@b>")
        assert await client.command("RCPT TO:<c@d>") == str(reply.NO_RELAY)
        assert gateway.admitted[-1][0].user == ""
        await client.talk("RSET", "XCLIENT ADDR=192.0.2.9 LOGIN=ann", "XCLIENT LOGIN=[UNAVAILABLE]")
        assert (await client.talk("EHLO me", "MAIL FROM:<a@b>", "RCPT TO:<c@d>"))[-1] == str(reply.NO_RELAY)

    async def test_from_others_it_is_unknown(self, start: Start, connect: Any) -> None:
        """Not offered, not run, wherever else the client may send from."""
        server = await start(xclient=True, trusted=["127.0.0.9/32"], relay_from=HERE, allowed_hosts=ANY)
        client = await connect(server)
        await client.reply()
        assert "XCLIENT" not in await client.command("EHLO me")
        assert await client.command("XCLIENT ADDR=192.0.2.7") == str(reply.UNKNOWN_COMMAND)

    async def test_trust_is_the_sockets(self, start: Start, connect: Any) -> None:
        """A client that a header placed inside `trusted` is not a proxy."""
        server = await start(
            proxy=True, xclient=True, trusted=["127.0.0.9/32", "192.0.2.0/24"], allowed_hosts=ANY
        )
        client = await connect(server, "127.0.0.9")
        await client.send(b"PROXY TCP4 203.0.113.1 10.0.0.1 4000 25\r\n")
        await client.reply()
        assert "XCLIENT" in await client.command("EHLO proxy")
        stranger = await connect(server, "127.0.0.8")
        await stranger.reply()
        assert await stranger.command("XCLIENT ADDR=192.0.2.7") == str(reply.UNKNOWN_COMMAND)

    async def test_before_mail_only(self, start: Start, connect: Any) -> None:
        """Inside a transaction it is out of order; malformed it changes nothing."""
        client = await connect(await start(xclient=True, trusted=HERE, allowed_hosts=ANY))
        await client.reply()
        await client.talk("EHLO me", "MAIL FROM:<a@b>")
        assert (await client.command("XCLIENT ADDR=192.0.2.7"))[:3] == "503"
        await client.command("RSET")
        assert await client.command("XCLIENT ADDR=evil") == str(reply.SYNTAX)
        assert await client.command("MAIL FROM:<a@b>") == str(reply.MAIL_OK)

    async def test_is_off_unless_on(self, client: Any) -> None:
        """By default nobody may."""
        await client.reply()
        assert await client.command("XCLIENT ADDR=192.0.2.7") == str(reply.UNKNOWN_COMMAND)
