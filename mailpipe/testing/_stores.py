"""A storage that fails as it is told, and remembers what it kept."""

import copy
import threading
from collections.abc import Callable, Iterable, Sequence

import anyio

from dispatcher import Batch
from mailpipe.bodies import FileBody
from mailpipe.envelope import Body, Envelope, MemoryBody
from mailpipe.steps import Durability, Place, StoredMail, processor

__all__ = ["FailingStore"]


@processor("failingstore", kind="batch", storage=True)
class FailingStore:
    """
    Keeps mails in memory, one transaction per call, and fails as told.

    Give it as a step: ``steps={"store": FailingStore([ConnectionError()])}``, and end the chain in
    ``store``.

    Args:
        script:
            What the next calls do, in turn: an exception is raised and nothing kept, None works.
            Calls past its end work.

        poison: Tells a mail that makes every transaction fail which it is in, by ValueError.

        delay: Seconds that each call takes.

        durability: What it claims.
    """

    largest: int | None = None
    idempotent = True
    serial = True
    holds_body = True
    lasting = True

    def __init__(
        self,
        script: Iterable[Exception | None] = (),
        *,
        poison: Callable[[Envelope], bool] = lambda envelope: False,
        delay: float = 0.0,
        durability: Durability = "disk",
    ) -> None:
        self.script = list(script)
        """What is left of the script; append to it at any time."""
        self.poison, self.delay, self.durability = poison, delay, durability
        self.down: Exception | None = None
        """While set, every call raises it."""
        self.calls: list[tuple[str, ...]] = []
        """The queue ids of each call so far, failed ones too."""
        self.opened = 0
        self._kept: dict[str, Envelope] = {}
        self._changed = threading.Condition()

    @property
    def kept(self) -> list[Envelope]:
        """What was kept, in the order of keeping."""
        with self._changed:
            return list(self._kept.values())

    def wait_for(self, count: int, timeout: float = 10.0) -> list[Envelope]:
        """
        Return what was kept once that is *count* mails or more; blocks, so not for the loop's thread.

        Raises:
            TimeoutError: If it is fewer after *timeout* seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._kept) >= count, timeout):
                msg = f"{len(self._kept)} of {count} mails were kept within {timeout} s"
                raise TimeoutError(msg)
            return list(self._kept.values())

    def clear(self) -> None:
        """Forget what was kept."""
        with self._changed:
            self._kept.clear()
            self.calls.clear()

    async def setup(self, place: Place) -> None:
        """Count the openings."""
        self.opened += 1

    async def teardown(self) -> None:
        """Keep what was kept."""

    async def __call__(self, batch: Batch[Envelope]) -> None:
        """Keep the batch, or fail as told."""
        with self._changed:
            self.calls.append(tuple(envelope.queue_id for envelope in batch))
            told = self.script.pop(0) if self.script else None
        if self.delay:
            await anyio.sleep(self.delay)
        failure = self.down or told
        if failure is not None:
            raise failure
        if any(self.poison(envelope) for envelope in batch):
            msg = "poisoned"
            raise ValueError(msg)
        with self._changed:
            for envelope in batch:
                if envelope.queue_id not in self._kept:
                    self._kept[envelope.queue_id] = _outlasting(envelope)
            self._changed.notify_all()

    async def get(self, queue_id: str) -> StoredMail | None:
        """One mail with its body, or None."""
        kept = self._kept.get(queue_id)
        return None if kept is None else _stored(kept, kept.body)

    async def list(self, *, after: str = "", limit: int = 1000) -> Sequence[StoredMail]:
        """Mails in the order of their ids, without bodies."""
        ids = sorted(queue_id for queue_id in self._kept if queue_id > after)[:limit]
        return [_stored(self._kept[queue_id], None) for queue_id in ids]

    async def delete(self, queue_ids: Sequence[str]) -> int:
        """Forget these."""
        return sum(self._kept.pop(queue_id, None) is not None for queue_id in queue_ids)

    async def expire(self, before: float) -> int:
        """Forget what is older."""
        old = [queue_id for queue_id, kept in self._kept.items() if kept.received_at < before]
        return await self.delete(old)


def _outlasting(envelope: Envelope) -> Envelope:
    """The envelope, or a copy whose bodies stay readable after a gateway let go of its files."""
    if not isinstance(envelope.body, FileBody):
        return envelope
    kept = copy.copy(envelope)
    kept.body = _held(envelope.body)
    kept.copies = {name: _held(body) for name, body in envelope.copies.items()}
    return kept


def _held(body: Body) -> MemoryBody:
    return MemoryBody(b"".join(body.chunks()), body.encoding)


def _stored(kept: Envelope, body: Body | None) -> StoredMail:
    return StoredMail(
        queue_id=kept.queue_id,
        received_at=kept.received_at,
        mail_from=kept.mail_from,
        rcpt_to=kept.rcpt_to,
        size=len(kept.body),
        subject=kept.subject,
        prelude=kept.prelude,
        hashes=dict(kept.hashes),
        body=body,
    )
