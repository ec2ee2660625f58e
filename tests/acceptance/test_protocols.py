"""Clients of every kind against a real process: TLS, AUTH, LMTP, unix sockets; and a store that hangs."""

import os
import signal
import smtplib
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from mailpipe.receivers.auth import hash_password


@pytest.fixture
def authority() -> trustme.CA:
    """Who signs certificates."""
    return trustme.CA()


@pytest.fixture
def renew(authority: trustme.CA, tmp_path: Path) -> Callable[[], None]:
    """Write a new certificate to ``cert.pem``."""

    def write() -> None:
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
            str(tmp_path / "cert.pem")
        )

    write()
    return write


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def shown(port: int, authority: trustme.CA) -> bytes:
    """The certificate that a client is shown by STARTTLS."""
    with smtplib.SMTP("localhost", port, timeout=20) as client:
        client.starttls(context=trusting(authority))
        found = client.sock.getpeercert(binary_form=True)  # type: ignore[union-attr] # connected
        assert isinstance(found, bytes)
        return found


TLS = """
data = "data"
[[servers]]
listen = "127.0.0.1:0"
hostname = "localhost"
allowed_hosts = ["example.org"]
{more}
[servers.tls]
certificate = "{folder}/cert.pem"
mode = "{mode}"
"""


class TestTls:
    def test_starttls_and_auth(self, renew: Any, authority: trustme.CA, serve: Any, tmp_path: Path) -> None:
        """Who authenticated under TLS may send anywhere; nobody else may."""
        users = f'users = {{ alice = "{hash_password("wonder")}" }}'
        (tmp_path / "mail.toml").write_text(TLS.format(more=users, folder=tmp_path, mode="required"))
        running = serve("-c", "mail.toml")
        with smtplib.SMTP("localhost", running.port, timeout=20) as client:
            client.ehlo("client.example.org")
            assert client.mail("a@example.org")[0] == 530
            client.starttls(context=trusting(authority))
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("alice", "wrong")
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                client.sendmail("a@example.org", ["b@elsewhere.example"], "x\r\n")
            client.login("alice", "wonder")
            assert client.sendmail("a@example.org", ["b@elsewhere.example"], "x\r\n") == {}
        assert "wonder" not in running.logged()

    def test_a_renewed_certificate_is_shown_after_a_reload(
        self, renew: Any, authority: trustme.CA, serve: Any, mailpipe: Any, tmp_path: Path
    ) -> None:
        """Without a restart, and nothing else changes; a broken one is refused and the old one stays."""
        (tmp_path / "mail.toml").write_text(TLS.format(more="", folder=tmp_path, mode="starttls"))
        running = serve("-c", "mail.toml")
        first = shown(running.port, authority)
        renew()
        assert shown(running.port, authority) == first
        assert mailpipe("reload", "-c", "mail.toml").returncode == 0
        second = shown(running.port, authority)
        assert second != first
        (tmp_path / "cert.pem").write_text("no certificate")
        result = mailpipe("reload", "-c", "mail.toml")

        assert result.returncode == 1
        assert b"[[servers]] 1 tls: certificate and key" in result.stderr
        assert shown(running.port, authority) == second

    def test_swaks_speaks_implicit_tls(
        self, renew: Any, program: Any, serve: Any, stored: Any, tmp_path: Path
    ) -> None:
        """SMTPS by a client of others' making."""
        (tmp_path / "mail.toml").write_text(TLS.format(more="", folder=tmp_path, mode="implicit"))
        running = serve("-c", "mail.toml")
        result = subprocess.run(
            [
                program("swaks"),
                "--server",
                "127.0.0.1",
                "--port",
                str(running.port),
                "--tls-on-connect",
                "--to",
                "a@example.org",
                "--from",
                "b@example.org",
            ],
            capture_output=True,
            timeout=40,
            check=False,
        )

        assert result.returncode == 0, result.stdout
        assert len(stored(tmp_path / "data")) == 1

    def test_openssl_can_talk_to_it(
        self, renew: Any, authority: trustme.CA, program: Any, serve: Any, tmp_path: Path
    ) -> None:
        """The handshake verifies, and the session goes on."""
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        (tmp_path / "mail.toml").write_text(TLS.format(more="", folder=tmp_path, mode="starttls"))
        running = serve("-c", "mail.toml")
        result = subprocess.run(
            [
                program("openssl"),
                "s_client",
                "-starttls",
                "smtp",
                "-connect",
                f"127.0.0.1:{running.port}",
                "-CAfile",
                str(tmp_path / "ca.pem"),
                "-verify_hostname",
                "localhost",
                "-quiet",
                "-crlf",
            ],
            input=b"EHLO x.example.org\nquit\n",
            capture_output=True,
            timeout=40,
            check=False,
        )

        assert b"250 " in result.stdout
        assert b"verify error" not in result.stderr


class TestLmtp:
    def test_one_reply_for_each_recipient(self, serve: Any, stored: Any, tmp_path: Path) -> None:
        """Over a unix socket, as a mail server hands mail on."""
        path = tmp_path / "s"
        text = f'data = "data"\n[[servers]]\nlisten = "unix:{path}"\nprotocol = "lmtp"\n'
        (tmp_path / "mail.toml").write_text(text)
        running = serve("-c", "mail.toml")
        assert running.addresses == [f"unix:{path}"]
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(os.path.relpath(path))
            stream = peer.makefile("rwb")
            stream.write(
                b"LHLO x.example.org\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nRCPT TO:<c@example.org>\r\n"
                b"DATA\r\n"
            )
            stream.flush()
            lines = []
            while not lines or not lines[-1].startswith(b"354"):
                lines.append(stream.readline())
            stream.write(b"x\r\n.\r\nQUIT\r\n")
            stream.flush()
            replies = [stream.readline()[:4] for _ in range(3)]
        assert replies == [b"250 ", b"250 ", b"221 "]
        assert list(stored(tmp_path / "data").values()) == [b"x\r\n"]


class TestHangingStore:
    def test_the_stop_ends_all_the_same(self, serve: Any, tmp_path: Path) -> None:
        """A thread that no one can cancel: past the deadline it is named, and the process exits with 1."""
        (tmp_path / "hangs.py").write_text(
            "import logging, time\n"
            "from mailpipe import Envelope, processor\n"
            "from dispatcher import Batch\n"
            "@processor('hang')\n"
            "def hang(batch: Batch[Envelope]) -> None:\n"
            "    logging.getLogger('mailpipe').warning('began to hang')\n"
            "    time.sleep(1000)\n"
        )
        (tmp_path / "mail.toml").write_text(
            'data = "data"\nshutdown_timeout = "500ms"\n[[servers]]\nlisten = "127.0.0.1:0"\n'
            '[gateways.default]\nprocess = "hang | sql"\nsave_timeout = "1s"\n'
            '[processors.hang]\nuse = "hangs:hang"\n'
        )
        running = serve("-c", "mail.toml")
        client = smtplib.SMTP("127.0.0.1", running.port, timeout=30)
        client.ehlo("client.example.org")
        client.mail("a@example.org")
        client.rcpt("b@example.org")
        client.putcmd("data")
        assert client.getreply()[0] == 354
        client.send(b"x\r\n.\r\n")
        until_logged(running, "began to hang")
        began = time.monotonic()

        assert running.stop(signal.SIGTERM, within=30) == 1
        client.close()
        assert time.monotonic() - began < 20
        assert "this does not end, its storages hang" in running.logged()


def until_logged(running: Any, text: str) -> None:
    """Return once the log says so."""
    deadline = time.monotonic() + 20
    while text not in running.logged():
        assert time.monotonic() < deadline, f"waited for {text!r}, got {running.logged()}"
        time.sleep(0.02)
