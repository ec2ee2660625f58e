"""Clients that other people wrote, over real sockets."""

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mailpipe.receivers.auth import hash_password
from mailpipe.receivers.tls import TlsOptions

Start = Callable[..., Awaitable[Any]]

HERE = ["127.0.0.0/8"]


@pytest.fixture
def run() -> Callable[..., Awaitable[str]]:
    """Run a program to its end; what it said. Skips by its name where it is not installed."""

    async def run(program: str, *arguments: object, code: int = 0, said: str = "") -> str:
        path = shutil.which(program) or shutil.which(program, path="/usr/sbin")
        if path is None:
            pytest.skip(f"{program} is not installed")

        def wait() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [path, *map(str, arguments)],
                input=said, capture_output=True, text=True, timeout=40, check=False,
            )  # fmt: skip

        done = await asyncio.to_thread(wait)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


class TestSwaks:
    @pytest.fixture
    def swaks(self, run: Any) -> Callable[..., Awaitable[str]]:
        """Send one mail to a server."""

        async def swaks(server: Any, *arguments: object, code: int = 0, to: str = "b@example.org") -> str:
            where = server.addresses[0]
            place = ["--server", f"{where.host}:{where.port}"]
            common = ["--to", to, "--from", "a@example.com", "--helo", "me.example", "--body", "hello"]
            said: str = await run("swaks", *place, *common, *arguments, code=code)
            return said

        return swaks

    async def test_starttls_and_auth(self, start: Start, gateway: Any, swaks: Any, certificates: Any) -> None:
        """TLS, then AUTH, then to anywhere; a wrong password and no password relay nothing."""
        server = await start(
            tls=TlsOptions(**certificates.issue(), mode="required"),
            users={"ann": hash_password("secret")},
            allowed_hosts=[],
        )
        for mechanism in ("PLAIN", "LOGIN"):
            await swaks(
                server, "--tls", "--auth", mechanism, "--auth-user", "ann", "--auth-password", "secret"
            )
        await swaks(server, "--tls", "--auth", "PLAIN", "--auth-user", "ann", "--auth-password", "x", code=28)
        await swaks(server, "--tls", code=24)
        await swaks(server, code=23)
        assert [envelope.session.user for envelope in gateway.saved] == ["ann", "ann"]
        assert b"hello" in gateway.bodies[0]

    @pytest.mark.parametrize("version", [1, 2])
    async def test_proxy(self, start: Start, gateway: Any, swaks: Any, version: int) -> None:
        """Both versions of the header."""
        server = await start(proxy=True, trusted=HERE, allowed_hosts=["*"])
        header = ["--proxy-version", version, "--proxy-family", "TCP4" if version == 1 else "AF_INET"]
        addresses = ["--proxy-source", "192.0.2.7", "--proxy-source-port", "4000"]
        addresses += ["--proxy-dest", "192.0.2.1", "--proxy-dest-port", "25"]
        command = [] if version == 1 else ["--proxy-protocol", "STREAM", "--proxy-command", "PROXY"]
        await swaks(server, *header, *addresses, *command)
        session = gateway.saved[0].session
        assert (session.peer, session.port, session.local) == ("192.0.2.7", 4000, "192.0.2.1")

    async def test_xclient(self, start: Start, gateway: Any, swaks: Any) -> None:
        """Address, name of HELO and login."""
        server = await start(xclient=True, trusted=HERE, allowed_hosts=[])
        told = ["--xclient-addr", "192.0.2.7", "--xclient-helo", "client.example", "--xclient-login", "ann"]
        await swaks(server, *told)
        session = gateway.saved[0].session
        assert (session.peer, session.helo, session.user) == ("192.0.2.7", "client.example", "ann")

    async def test_lmtp_over_a_unix_socket(
        self, start: Start, gateway: Any, run: Any, tmp_path: Path
    ) -> None:
        """Two recipients, two replies."""
        await start(protocol="lmtp", listen=f"unix:{tmp_path}/lmtp")
        said = await run(
            *("swaks", "--protocol", "LMTP", "--socket", f"{tmp_path}/lmtp"),
            *("--to", "b@example.org,c@example.org", "--from", "a@example.com", "--helo", "me.example"),
        )
        assert said.count("queued as") == 2
        assert gateway.saved[0].rcpt_to == ("b@example.org", "c@example.org")

    async def test_pipelining(self, start: Start, gateway: Any, swaks: Any) -> None:
        """As swaks does it."""
        await swaks(await start(), "--pipeline")
        assert len(gateway.saved) == 1


class TestPostfix:
    @pytest.mark.parametrize("more", [(), ("-N",), ("-d",), ("-L",)])
    async def test_smtp_source(self, start: Start, gateway: Any, run: Any, more: tuple[str, ...]) -> None:
        """Many sessions, kept or not, over SMTP and LMTP."""
        server = await start(protocol="lmtp" if "-L" in more else "smtp")
        where = server.addresses[0]
        numbers = ("-s", 10, "-m", 200, "-l", 5000, "-r", 2, "-f", "a@example.com", "-t", "b@example.org")
        await run("smtp-source", *more, *numbers, f"{where.host}:{where.port}")
        assert len(gateway.saved) == 200
        assert {len(envelope.recipients) for envelope in gateway.saved} == {2}
        assert len({envelope.queue_id for envelope in gateway.saved}) == 200


class TestOpenssl:
    @pytest.mark.parametrize("mode", ["starttls", "implicit"])
    @pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
    async def test_s_client(self, start: Start, run: Any, certificates: Any, mode: str, version: str) -> None:
        """Both ways into TLS, both versions; older ones are refused."""
        server = await start(tls=TlsOptions(**certificates.issue(), mode=mode))
        where = server.addresses[0]
        ways = ["-starttls", "smtp"] if mode == "starttls" else []
        common = [
            "s_client",
            "-connect",
            f"{where.host}:{where.port}",
            "-CAfile",
            certificates.folder / "ca.pem",
        ]
        common += ["-verify_hostname", "mx.example.org", "-crlf", "-ign_eof", *ways]
        said = await run("openssl", *common, "-verify_return_error", version, said="EHLO me\nQUIT\n")
        assert "Verify return code: 0 (ok)" in said
        assert "221 2.0.0 Bye" in said
        await run("openssl", *common, "-tls1_1", code=1)
