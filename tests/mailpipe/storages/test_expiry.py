"""Deleting what is too old, while the store is open."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mailpipe.envelope import Envelope
from mailpipe.steps import Place
from mailpipe.storages._expiry import Expiry
from mailpipe.storages.chunks import ChunksOptions, ChunksStorage
from mailpipe.storages.maildir import MaildirOptions, MaildirStorage
from mailpipe.storages.sql import SqlOptions, SqlStorage

MakeEnvelope = Callable[..., Envelope]
Keep = Callable[..., Awaitable[Any]]


class Recorder:
    """A storage that notes when it was asked, and may be in trouble."""

    def __init__(self, *troubles: Exception | None) -> None:
        self.asked: list[float] = []
        self.troubles = list(troubles)

    async def expire(self, before: float) -> int:
        self.asked.append(before)
        if self.troubles and (trouble := self.troubles.pop(0)) is not None:
            raise trouble
        return 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what another task does
            await asyncio.sleep(0.005)


class TestExpiry:
    async def test_asks_again_and_again(self) -> None:
        """For what is older than its age, until closed."""
        storage = Recorder()
        began = time.time()
        expiry = Expiry(storage, 0.05)
        await until(lambda: len(storage.asked) >= 3)
        await expiry.close()
        asked = len(storage.asked)
        await asyncio.sleep(0.02)

        assert len(storage.asked) == asked
        assert storage.asked == sorted(storage.asked)
        assert storage.asked[0] >= began - 0.05

    async def test_outlives_a_store_in_trouble(self, caplog: pytest.LogCaptureFixture) -> None:
        """What is old waits for the next look, and the log says so."""
        storage = Recorder(ConnectionError("gone"), None)
        expiry = Expiry(storage, 0.05)
        await until(lambda: len(storage.asked) >= 2)
        await expiry.close()

        assert "could not delete expired mails" in caplog.text


class TestStorages:
    @pytest.mark.parametrize(
        "make",
        [
            lambda expire: SqlStorage(SqlOptions(expire=expire)),
            lambda expire: ChunksStorage(ChunksOptions(expire=expire)),
            lambda expire: MaildirStorage(MaildirOptions(expire=expire)),
        ],
        ids=["sql", "chunks", "maildir"],
    )
    async def test_old_mails_go_by_themselves(
        self,
        make: Callable[[float | None], Any],
        make_envelope: MakeEnvelope,
        keep: Keep,
        tmp_path: Path,
    ) -> None:
        """Looked for when opened; younger ones stay, and a reader deletes nothing."""
        # Kept by one that expires nothing: the other looks at any time after it was opened.
        storage = make(None)
        await storage.setup(Place(data=tmp_path))
        now = time.time()
        young = make_envelope(received_at=now)
        await keep(storage, make_envelope(received_at=now - 7200), young)
        await storage.teardown()

        storage = make(3600.0)
        assert not storage.lasting
        await storage.setup(Place(data=tmp_path, reading=True))
        assert len(await storage.list()) == 2
        await storage.teardown()

        await storage.setup(Place(data=tmp_path))
        async with asyncio.timeout(30):
            while len(mails := await storage.list()) > 1:  # noqa: ASYNC110 - what another task does
                await asyncio.sleep(0.01)
        assert [mail.queue_id for mail in mails] == [young.queue_id]
        await storage.teardown()
