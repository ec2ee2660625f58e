"""Jobs beside mails: one transaction with them, at least once, and never lost by a crash."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from mailpipe.envelope import Envelope
from mailpipe.steps import Job, Place
from mailpipe.storages.chunks import ChunksOptions, ChunksStorage
from mailpipe.storages.sql import SqlOptions, SqlStorage

MakeEnvelope = Callable[..., Envelope]
Keep = Callable[..., Awaitable[Any]]
_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgres", "mariadb", "chunks"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A storage whose mails bring two jobs along."""
    made: Any
    if request.param == "chunks":
        made = ChunksStorage(ChunksOptions())
    else:
        url = "sqlite:///mail.db"
        if request.param != "sqlite":
            url = request.getfixturevalue(f"{request.param}_url")
        made = SqlStorage(SqlOptions(url=url, table=f"jobs{next(_numbers)}"))
    made.jobs = ("post", "index")
    await made.setup(Place(data=tmp_path))
    yield made
    await made.teardown()


class TestWriting:
    async def test_each_mail_brings_its_jobs(
        self, storage: Any, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """One of every name, due at once, the oldest mail first."""
        envelopes = [make_envelope() for _ in range(60)]
        await keep(storage, *reversed(envelopes))

        for name in ("post", "index"):
            jobs = await storage.outbox.due(name, envelopes[-1].received_at)
            assert [job.queue_id for job in jobs] == [envelope.queue_id for envelope in envelopes]
            assert {job.attempts for job in jobs} == {0}
        assert await storage.outbox.due("other", 1e12) == []

    async def test_no_mail_no_job(
        self, storage: Any, make_envelope: MakeEnvelope, keep: Keep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are one transaction: a failure behind the mails takes both back."""
        with monkeypatch.context() as patch:
            patch.setattr(type(storage), "_insert_jobs", _failing)
            with pytest.raises(RuntimeError, match="in between"):
                await keep(storage, make_envelope())

        assert list(await storage.list()) == []
        assert await storage.outbox.next_due("post") is None

    async def test_a_repeated_batch_brings_none_twice(
        self, storage: Any, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """A retry after a lost reply finds its jobs there."""
        one, two = make_envelope(), make_envelope()
        await keep(storage, one)
        await keep(storage, one, two, attempt=2)

        assert len(await storage.outbox.due("post", 1e12)) == 2

    async def test_a_repeated_batch_brings_no_done_one_back(
        self, storage: Any, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """Not even when the job was quicker than the retry."""
        envelope = make_envelope()
        await keep(storage, envelope)
        await storage.outbox.settle(done=await storage.outbox.due("post", 1e12))
        await keep(storage, envelope, attempt=2)

        assert await storage.outbox.due("post", 1e12) == []


class TestSettling:
    async def test_done_jobs_are_gone(self, storage: Any, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """Of that name only."""
        await keep(storage, make_envelope(), make_envelope())
        one, two = await storage.outbox.due("post", 1e12)
        await storage.outbox.settle(done=[one])

        assert await storage.outbox.due("post", 1e12) == [two]
        assert len(await storage.outbox.due("index", 1e12)) == 2

    async def test_again_later(self, storage: Any, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """Not before its time, with what its last attempt said."""
        await keep(storage, make_envelope())
        (job,) = await storage.outbox.due("post", 1e12)
        later = attrs.evolve(job, attempts=1, due_at=2e9, error="no route\0" + "x" * 5000)
        await storage.outbox.settle(again=[later])

        assert await storage.outbox.due("post", 1.9e9) == []
        assert await storage.outbox.next_due("post") == 2e9
        (found,) = await storage.outbox.due("post", 2e9)
        assert (found.attempts, found.error[:12], len(found.error)) == (1, "no routexxxx", 1000)

    async def test_dead_ones_wait_for_people(
        self, storage: Any, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """Never due, never lost; revived they are new."""
        await keep(storage, make_envelope(), make_envelope())
        one, two = await storage.outbox.due("post", 1e12)
        await storage.outbox.settle(dead=[attrs.evolve(one, attempts=9, error="refused")])

        assert await storage.outbox.due("post", 1e12) == [two]
        (dead,) = await storage.outbox.dead("post")
        assert (dead.queue_id, dead.attempts, dead.error) == (one.queue_id, 9, "refused")
        assert await storage.outbox.revive([dead, two], now=5.0) == 1
        assert await storage.outbox.dead("post") == []
        assert (await storage.outbox.due("post", 5.0))[0].attempts == 0

    async def test_all_fates_at_once(self, storage: Any, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """One transaction for a batch of them; a job nobody knows is no error."""
        await keep(storage, *[make_envelope() for _ in range(3)])
        one, two, three = await storage.outbox.due("post", 1e12)
        unknown = Job(name="post", queue_id="0" * 26)
        await storage.outbox.settle(done=[one, unknown], again=[attrs.evolve(two, due_at=3e9)], dead=[three])

        assert await storage.outbox.due("post", 2e9) == []
        assert await storage.outbox.next_due("post") == 3e9
        assert [job.queue_id for job in await storage.outbox.dead("post")] == [three.queue_id]

    async def test_a_deleted_mail_takes_its_jobs_along(
        self, storage: Any, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """There is nothing left to do them with."""
        one, two = make_envelope(), make_envelope()
        await keep(storage, one, two)
        await storage.delete([one.queue_id])

        assert [job.queue_id for job in await storage.outbox.due("post", 1e12)] == [two.queue_id]


def _failing(*_: Any) -> None:
    message = "in between"
    raise RuntimeError(message)
