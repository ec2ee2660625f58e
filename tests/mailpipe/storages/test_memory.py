"""``memory``: bounded, and nothing acknowledged is forgotten for it."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from mailpipe.envelope import Envelope, MemoryBody
from mailpipe.errors import Deferred
from mailpipe.storages.memory import MemoryOptions, MemoryStorage

MakeEnvelope = Callable[..., Envelope]
Keep = Callable[..., Awaitable[Any]]


class TestBounds:
    async def test_full_of_mails(self, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """452 for the next; those kept stay; a deletion makes room."""
        storage = MemoryStorage(MemoryOptions(max_mails=2))
        envelopes = [make_envelope() for _ in range(3)]
        view = await keep(storage, *envelopes)

        assert list(view.failed) == [2]
        assert isinstance(view.failed[2], Deferred)
        assert view.failed[2].reply.code == 452
        await storage.delete([envelopes[0].queue_id])
        assert (await keep(storage, envelopes[2])).failed == {}

    async def test_full_of_octets(self, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """Exactly as many as may be, counted down by deletions."""
        storage = MemoryStorage(MemoryOptions(max_octets=1000))
        one, two = make_envelope(b"x" * 600), make_envelope(b"x" * 401)
        view = await keep(storage, one, two, make_envelope(b"x" * 400))

        assert list(view.failed) == [1]
        assert storage.octets == 1000 == storage.largest
        await storage.delete([one.queue_id])
        assert storage.octets == 400

    async def test_a_body_that_cannot_be_read_counts_nothing(
        self, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """A broken mail takes no room from the others."""

        class Broken(MemoryBody):
            def chunks(self, size: int = 65536) -> Iterator[bytes]:
                raise OSError(5, "Input/output error")

        storage = MemoryStorage()
        with pytest.raises(OSError, match="Input/output"):
            await keep(storage, make_envelope(Broken(b"x" * 100)))

        assert storage.octets == 0

    @pytest.mark.parametrize("name", ["max_mails", "max_octets"])
    def test_bad_options_name_the_rule(self, name: str) -> None:
        """Nothing fits into no room."""
        with pytest.raises(ValueError, match=f"{name} must be more than 0, got 0"):
            MemoryOptions(**{name: 0})
