"""Envelopes to store, and the loop that storages run on."""

import itertools
from collections.abc import Callable, Sequence

import pytest

from mailpipe.envelope import Body, Envelope, MemoryBody, Recipient, Session, make_queue_id

MakeEnvelope = Callable[..., Envelope]


@pytest.fixture
def anyio_backend() -> str:
    """mailpipe runs on asyncio."""
    return "asyncio"


@pytest.fixture
def make_envelope() -> MakeEnvelope:
    """Make envelopes with ids in the order of making, one second apart."""
    numbers = itertools.count(1)

    def make(
        body: bytes | Body = b"Subject: hello\r\n\r\nworld\r\n",
        *,
        to: Sequence[str] = ("b@example.org",),
        mail_from: str = "a@example.org",
        received_at: float | None = None,
    ) -> Envelope:
        number = next(numbers)
        at = 1_700_000_000.0 + number if received_at is None else received_at
        session = Session(peer="192.0.2.1", helo="client.example.org")
        envelope = Envelope(
            queue_id=make_queue_id(at, number.to_bytes(10)),
            session=session,
            received_at=at,
            mail_from=mail_from,
            body=MemoryBody(body) if isinstance(body, bytes) else body,
            prelude=b"Received: from client.example.org\r\n",
        )
        envelope.recipients = [Recipient(address, (), envelope, session) for address in to]
        return envelope

    return make
