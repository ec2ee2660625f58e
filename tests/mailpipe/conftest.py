"""Fakes of what travels through a gateway, for the tests of its parts."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from dispatcher import Batch
from dispatcher.buffer.batch import BufferedBatch
from mailpipe.envelope import Envelope, MemoryBody, Recipient, Session


class Marks:
    """Stands for the channel that leased a batch: records what it hears."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def mark_done(self, batch: Batch[Any], positions: Iterable[int]) -> None:
        self.done += positions


class Attempts:
    """One batch over its attempts, as a channel would hand it out."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.lot: BufferedBatch[Any] = BufferedBatch(1, 0.0, synthetic=not items)
        self.lot.items = list(items)
        self.marks = Marks()

    def next(self) -> Batch[Any]:
        """The next attempt, over the items still there."""
        self.lot.attempts += 1
        self.marks = Marks()
        return Batch(self.lot, tuple(self.lot.items), self.marks, f"key-{self.lot.attempts}")

    def keep(self, positions: Iterable[int]) -> None:
        """Only these of the last attempt's items are tried again."""
        self.lot.items = [self.lot.items[position] for position in positions]


@pytest.fixture
def attempts() -> Callable[[Sequence[Any]], Attempts]:
    """Make one batch of items, to be tried again and again."""
    return Attempts


@pytest.fixture
def mail() -> Callable[..., Envelope]:
    """Make an envelope: ``mail(body, mail_from=…, rcpt_to=(…))``; queue ids count up."""
    made = 0

    def make(
        body: bytes = b"Subject: hello\r\n\r\nhi\r\n",
        *,
        rcpt_to: Sequence[str] = ("bob@example.org",),
        **more: Any,
    ) -> Envelope:
        nonlocal made
        made += 1
        session = more.pop("session", None) or Session(
            peer="192.0.2.7", hostname="mx.example.org", helo="client.example.net", esmtp=True
        )
        envelope = Envelope(
            queue_id=f"{made:026d}",
            session=session,
            received_at=1_700_000_000.0,
            body=MemoryBody(body),
            **{"mail_from": "alice@example.net", **more},
        )
        envelope.recipients = [Recipient(address, (), envelope, session) for address in rcpt_to]
        return envelope

    return make
