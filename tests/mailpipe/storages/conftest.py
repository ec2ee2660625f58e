"""Envelopes to store, and the loop that storages run on."""

import asyncio
import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest

from mailpipe.envelope import Body, Envelope, MemoryBody, Recipient, Session, make_queue_id

MakeEnvelope = Callable[..., Envelope]


class Attempt:
    """What a step sees of a batch: the envelopes, and a record of its marks."""

    def __init__(self, items: Sequence[Envelope], attempt: int = 1) -> None:
        self.items, self.attempt = tuple(items), attempt
        self.failed: dict[int, Exception] = {}
        self.finished: set[int] = set()
        self.meta: dict[Any, Any] = {}
        self.synthetic = not items
        self.result: Any = None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Envelope]:
        return iter(self.items)

    def fail(self, position: int, error: Exception) -> None:
        self.failed[position] = error

    def done(self, *positions: int) -> None:
        self.finished.update(positions)


Keep = Callable[..., Awaitable[Attempt]]


@pytest.fixture
def keep() -> Keep:
    """Call a storage as the runner does: in its own thread, in a worker thread, or on the loop."""

    async def call(storage: Any, *envelopes: Envelope, attempt: int = 1) -> Attempt:
        view = Attempt(envelopes, attempt)
        if hasattr(storage, "run"):
            view.result = await storage.run(lambda: storage(view))
        elif inspect.iscoroutinefunction(type(storage).__call__):
            view.result = await storage(view)
        else:
            view.result = await asyncio.to_thread(storage, view)
        return view

    return call


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
