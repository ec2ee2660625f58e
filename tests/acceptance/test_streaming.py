"""
Mails in streaming mode, many at once, with everything going wrong beside them.

Each of these lost, mixed or truncated mail in the gateway's ancestor, and answered 250 for it: two
mails on one worker, two workers, a client that drops, one that sends too much, a store that fails.
"""

import base64
import contextlib
import hashlib
import random
import smtplib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mailpipe.envelope import Envelope
from mailpipe.mime import MimeTree
from mailpipe.testing import LocalGateway

CHAIN = "mimeanalyzer | hasher | transformer | headersparser | header | limits | compressor"
MAX_SIZE = 300_000
CONNECTIONS, MAILS = 10, 12


@pytest.fixture
def streaming(tmp_path: Path) -> Iterator[LocalGateway]:
    """A gateway with every stream step, and a store that fails now and then."""
    config = {"server": {"max_size": MAX_SIZE}, "gateway": {"batch_items_max": 7}, "spool_above": 30_000}
    with LocalGateway(tmp_path, process=CHAIN, config=config) as gateway:
        gateway.store.poison = lambda envelope: "poison" in envelope.subject
        yield gateway


def compose(name: str, chance: random.Random) -> bytes:
    """A mail that no other is like: a base64 text and an attachment, of any length."""
    text = f"{name} grüßt\r\n" * chance.randrange(1, 2000)
    blob = chance.randbytes(chance.randrange(0, 60_000))
    boundary = f"b{chance.getrandbits(64):x}"
    return (
        f"Subject: {name}\r\nContent-Type: multipart/mixed; boundary={boundary}\r\n\r\n"
        f"--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Transfer-Encoding: base64\r\n\r\n"
        f"{base64.encodebytes(text.encode()).decode().replace(chr(10), chr(13) + chr(10))}"
        f"\r\n--{boundary}\r\nContent-Type: application/octet-stream; name={name}\r\n"
        f"Content-Transfer-Encoding: base64\r\n\r\n"
        f"{base64.encodebytes(blob).decode().replace(chr(10), chr(13) + chr(10))}"
        f"\r\n--{boundary}--\r\n"
    ).encode()


class Clients:
    """Many connections at once; remembers what each mail was answered."""

    def __init__(self, gateway: LocalGateway) -> None:
        self.gateway = gateway
        self.sent: dict[str, bytes] = {}
        self.replies: dict[str, int] = {}
        self._lock = threading.Lock()

    def one(self, number: int) -> None:
        """One connection: several mails after each other, some of them bad."""
        chance = random.Random(number)
        with smtplib.SMTP(self.gateway.host, self.gateway.port, timeout=30) as client:
            for count in range(MAILS):
                kind = chance.choices(("good", "poison", "oversize", "drop"), (8, 1, 1, 1))[0]
                name = f"{kind}-{number}-{count}"
                mail = compose(name, chance)
                if kind == "oversize":
                    mail += b"x" * MAX_SIZE
                if kind == "drop":
                    self._drop(mail, chance)
                    continue
                with self._lock:
                    self.sent[name] = mail
                self._send(client, name, mail)

    def _send(self, client: smtplib.SMTP, name: str, mail: bytes) -> None:
        # Without SIZE=, which would have the large ones refused before their DATA.
        client.ehlo_or_helo_if_needed()
        client.mail("a@example.net")
        client.rcpt(f"{name}@example.org")
        self.replies[name], _ = client.data(mail)

    def _drop(self, mail: bytes, chance: random.Random) -> None:
        """A client that vanishes amidst its DATA, on a connection of its own."""
        with socket.create_connection((self.gateway.host, self.gateway.port), timeout=30) as wire:
            reader = wire.makefile("rb")
            reader.readline()
            for line in (b"HELO x", b"MAIL FROM:<a@example.net>", b"RCPT TO:<drop@example.org>", b"DATA"):
                wire.sendall(line + b"\r\n")
                reader.readline()
            wire.sendall(mail[: chance.randrange(len(mail))])
            reader.close()


def run(clients: Clients, trouble: bool) -> None:
    stop = threading.Event()

    def fail_now_and_then() -> None:
        while not stop.wait(0.02):
            clients.gateway.store.script += [
                ConnectionResetError(),
                None,
                TimeoutError(),
                OSError(5, "I/O"),
                None,
            ]

    with contextlib.ExitStack() as stack:
        if trouble:
            failing = threading.Thread(target=fail_now_and_then)
            failing.start()
            stack.callback(failing.join)
            stack.callback(stop.set)
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            list(threads.map(clients.one, range(CONNECTIONS)))


def check_whole(envelope: Envelope, mail: bytes) -> None:
    """Everything that the chain found out is of this mail and of no other."""
    name = envelope.subject
    assert envelope.rcpt_to == (f"{name}@example.org",)
    assert b"".join(envelope.body.chunks()) == mail
    assert envelope.hashes["sha256"] == hashlib.sha256(mail).hexdigest()
    assert f"Delivered-To: {name}@example.org\r\n".encode() in envelope.prelude
    assert envelope.values["subject"] == name
    tree: MimeTree = envelope.values["mime"]
    assert tree.errors == ()
    text, blob = tree.parts[1:]
    assert blob.filename == name
    plain = base64.b64decode(mail[text.body_start : text.end])
    assert plain in envelope.copies["transformer"].read()
    assert mail[blob.start : blob.end] in envelope.copies["transformer"].read()


@pytest.mark.parametrize("trouble", [False, True], ids=["a good store", "a failing store"])
def test_no_mail_is_lost_mixed_or_truncated(streaming: LocalGateway, trouble: bool) -> None:
    """And every client is told the truth about every one of its mails."""
    clients = Clients(streaming)
    run(clients, trouble)
    kept = {envelope.subject: envelope for envelope in streaming.mails}

    assert len(clients.replies) == len(clients.sent) > CONNECTIONS * MAILS / 2
    assert len(kept) == len(streaming.mails)
    for name, code in clients.replies.items():
        kind = name.partition("-")[0]
        # I/O errors of a store that fails for everybody are no mail's fault; one that meets a mail alone is.
        expected = {"good": {250, 451} if trouble else {250}, "poison": {451}, "oversize": {552}}[kind]
        assert code in expected, name
        assert (code == 250) == (name in kept), name
    for name, envelope in kept.items():
        check_whole(envelope, clients.sent[name])
    assert sum(code == 250 for code in clients.replies.values()) > len(clients.replies) / 3


def test_two_mails_at_once_stay_two(streaming: LocalGateway) -> None:
    """Octet by octet in turn, over two connections."""
    chance = random.Random(1)
    mails = {name: compose(name, chance)[:3000] for name in ("one", "two")}
    wires = {}
    with contextlib.ExitStack() as stack:
        for name in mails:
            wire = stack.enter_context(socket.create_connection((streaming.host, streaming.port), timeout=30))
            reader = stack.enter_context(wire.makefile("rb"))
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wires[name] = wire, reader
            reader.readline()
            for line in ("HELO x", "MAIL FROM:<>", f"RCPT TO:<{name}@example.org>", "DATA"):
                wire.sendall(f"{line}\r\n".encode())
                reader.readline()
        for start in range(0, 3000, 7):
            for name, (wire, _) in wires.items():
                wire.sendall(mails[name][start : start + 7])
        for wire, reader in wires.values():
            wire.sendall(b"\r\n.\r\n")
            assert reader.readline().startswith(b"250 2.0.0 OK: queued as ")

    kept = {envelope.subject: envelope for envelope in streaming.mails}
    for name, mail in mails.items():
        assert b"".join(kept[name].body.chunks()) == mail + b"\r\n"
        assert kept[name].hashes["sha256"] == hashlib.sha256(mail + b"\r\n").hexdigest()
