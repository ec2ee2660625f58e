"""
``memory``: mails in this process's memory, for tests and for what may be lost.

=============  ===============================================================
does           keeps mails until the process ends; when full, new ones are 452
hook           batch (storage), on the loop
options        `MemoryOptions`
reads          nothing
writes         nothing
durability     ``none``
largest body   ``max_octets``
=============  ===============================================================
"""

from collections.abc import Sequence

import anyio.to_thread
import attrs

from dispatcher import Batch
from mailpipe.envelope import Envelope, MemoryBody
from mailpipe.errors import Deferred
from mailpipe.reply import STORE_FULL
from mailpipe.steps import Durability, Place, StoredMail, processor
from mailpipe.storages._rows import decoded_subject, raw_subject
from mailpipe.storages._validators import positive

__all__ = ["MemoryOptions", "MemoryStorage"]

MIB = 1024 * 1024


@attrs.frozen(kw_only=True)
class MemoryOptions:
    """
    How much one ``memory`` storage keeps.

    Args:
        max_mails: So many at most; the next is answered 452 4.3.1.

        max_octets: Of all bodies together.

    Raises:
        ValueError: If a number is not positive.
    """

    max_mails: int = attrs.field(default=10_000, validator=positive)
    max_octets: int = attrs.field(default=256 * MIB, validator=positive)


@processor("memory", kind="batch", options=MemoryOptions, storage=True, rejects=False)
class MemoryStorage:
    """
    Keeps mails in memory; everything is gone with the process.

    Never forgets a mail by itself: what was acknowledged stays until it is deleted.
    """

    durability: Durability = "none"
    idempotent = True
    serial = True
    holds_body = True
    lasting = True

    def __init__(self, options: MemoryOptions | None = None) -> None:
        self.options = options or MemoryOptions()
        self.octets = 0
        """Of all bodies kept."""
        self._mails: dict[str, StoredMail] = {}

    @property
    def largest(self) -> int | None:
        """``max_octets``."""
        return self.options.max_octets

    async def setup(self, place: Place) -> None:
        """Nothing to open; mails kept before stay."""

    async def teardown(self) -> None:
        """Nothing to close."""

    async def __call__(self, batch: Batch[Envelope], /) -> None:
        """Keep what fits; the others are failed with 452 4.3.1."""
        for position, envelope in enumerate(batch.items):
            size = len(envelope.body)
            if envelope.queue_id in self._mails:
                continue
            if len(self._mails) >= self.options.max_mails or self.octets + size > self.options.max_octets:
                batch.fail(position, Deferred(STORE_FULL))
                continue
            self.octets += size
            try:
                mail = await _stored(envelope)
            except BaseException:
                self.octets -= size
                raise
            self._mails[envelope.queue_id] = mail

    async def get(self, queue_id: str) -> StoredMail | None:
        """One mail with its body, or None."""
        return self._mails.get(queue_id)

    async def list(self, *, after: str = "", limit: int = 1000) -> Sequence[StoredMail]:
        """Mails in the order of their ids, without bodies; from the one after *after*."""
        ids = sorted(queue_id for queue_id in self._mails if queue_id > after)[:limit]
        return [attrs.evolve(self._mails[queue_id], body=None) for queue_id in ids]

    async def delete(self, queue_ids: Sequence[str]) -> int:
        """Delete these; returns how many there were."""
        gone = [mail for queue_id in queue_ids if (mail := self._mails.pop(queue_id, None)) is not None]
        self.octets -= sum(mail.size for mail in gone)
        return len(gone)

    async def expire(self, before: float) -> int:
        """Delete what was received earlier than *before*; returns how many."""
        old = [mail.queue_id for mail in self._mails.values() if mail.received_at < before]
        return await self.delete(old)


async def _stored(envelope: Envelope) -> StoredMail:
    body = envelope.body
    if len(body) > MIB:
        data = await anyio.to_thread.run_sync(lambda: b"".join(body.chunks(MIB)))
    else:
        # One chunk of a body in memory is its own octets, not a copy.
        data = b"".join(body.chunks(MIB))
    return StoredMail(
        queue_id=envelope.queue_id,
        received_at=envelope.received_at,
        mail_from=envelope.mail_from,
        rcpt_to=envelope.rcpt_to,
        size=len(data),
        subject=decoded_subject(raw_subject(body)),
        prelude=envelope.prelude,
        hashes=dict(envelope.hashes),
        body=MemoryBody(data),
    )
