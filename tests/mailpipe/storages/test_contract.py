"""What every storage that gives mails back promises, whichever it is."""

import itertools
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mailpipe.bodies import FileBody, Spool, SpoolOptions
from mailpipe.envelope import Envelope, MemoryBody
from mailpipe.steps import Place
from mailpipe.storages.chunks import ChunksOptions, ChunksStorage
from mailpipe.storages.maildir import MaildirOptions, MaildirStorage
from mailpipe.storages.memory import MemoryStorage
from mailpipe.storages.redis import RedisOptions, RedisStorage
from mailpipe.storages.sql import SqlOptions, SqlStorage
from mailpipe.testing import check_storage

MakeEnvelope = Callable[..., Envelope]
Keep = Callable[..., Awaitable[Any]]
_numbers = itertools.count()


def sql_on(fixture: str) -> Callable[[pytest.FixtureRequest], Any]:
    def make(request: pytest.FixtureRequest) -> SqlStorage:
        url = request.getfixturevalue(fixture)
        return SqlStorage(SqlOptions(url=url, table=f"contract{next(_numbers)}"))

    return make


def chunks_on(fixture: str) -> Callable[[pytest.FixtureRequest], Any]:
    def make(request: pytest.FixtureRequest) -> ChunksStorage:
        url = request.getfixturevalue(fixture)
        return ChunksStorage(ChunksOptions(url=url, table=f"chunked{next(_numbers)}"))

    return make


def redis(request: pytest.FixtureRequest) -> RedisStorage:
    url = request.getfixturevalue("redis_url")
    return RedisStorage(RedisOptions(url=url, prefix=f"test{next(_numbers)}:", durability="disk"))


STORAGES: dict[str, Callable[[pytest.FixtureRequest], Any]] = {
    "memory": lambda _: MemoryStorage(),
    "sqlite": lambda _: SqlStorage(),
    "postgres": sql_on("postgres_url"),
    "mariadb": sql_on("mariadb_url"),
    "chunks on sqlite": lambda _: ChunksStorage(),
    "chunks on postgres": chunks_on("postgres_url"),
    "chunks on mariadb": chunks_on("mariadb_url"),
    "redis": redis,
    "maildir": lambda _: MaildirStorage(),
    "maildir by recipient": lambda _: MaildirStorage(MaildirOptions(mailbox="{domain}/{user}")),
}


@pytest.fixture(params=STORAGES)
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Each storage in turn, open and empty."""
    made = STORAGES[request.param](request)
    await made.setup(Place(data=tmp_path, hostname="mx.example.org"))
    yield made
    await made.teardown()


async def received(storage: Any, envelope: Envelope) -> bytes:
    mail = await storage.get(envelope.queue_id)
    assert mail is not None
    assert mail.body.encoding == ""
    octets = b"".join(mail.body.chunks())
    assert len(octets) == len(mail.body) == mail.size
    return octets


async def test_the_contract(storage: Any, tmp_path: Path) -> None:
    """What users may check their own storages by, ours pass."""
    await check_storage(
        lambda: type(storage)(storage.options),
        place=Place(data=tmp_path, hostname="mx.example.org"),
        chain="mimeanalyzer | storage" if isinstance(storage, ChunksStorage) else "storage",
    )


class TestKeeping:
    async def test_every_octet(self, storage: Any, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """None, few and many, whatever they are, come back as they were."""
        bodies = [b"", b"\r\n", b"a\rb\nc\0\xff.\r\n..\r\n", bytes(range(256)) * 5000]
        envelopes = [make_envelope(body) for body in bodies]
        view = await keep(storage, *envelopes)

        assert view.failed == {}
        assert [await received(storage, envelope) for envelope in envelopes] == bodies

    async def test_the_envelope(self, storage: Any, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """Sender, recipients, time, size, subject, and what we add, beside the body."""
        envelope = make_envelope(
            b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n\r\nx\r\n", to=["b@example.org", "ü@example.org"]
        )
        await keep(storage, envelope)

        for mail in [await storage.get(envelope.queue_id), *await storage.list()]:
            assert mail.queue_id == envelope.queue_id
            assert mail.received_at == pytest.approx(envelope.received_at, abs=1e-5)
            assert mail.mail_from == "a@example.org"
            assert mail.size == len(envelope.body)
            assert mail.subject == "grüße"
            assert mail.prelude == envelope.prelude
        assert sorted(mail.rcpt_to) == ["b@example.org", "ü@example.org"]

    async def test_a_body_in_a_file(
        self, storage: Any, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """What was spooled is kept after the spool let go of it."""
        spool = Spool(tmp_path / "bodies", SpoolOptions(spool_above=1000))
        data = os.urandom(3000) * 500
        writer = spool.open()
        wait = writer.write(data)
        assert wait is not None
        await wait
        body = await writer.close()
        assert isinstance(body, FileBody)
        envelope = make_envelope(body)
        await keep(storage, envelope)
        body.release()
        spool.close()

        assert await received(storage, envelope) == data

    async def test_a_compressed_copy(self, storage: Any, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """Whatever lies in the store, what comes back is what was received."""
        envelope = make_envelope(b"hello " * 3000)
        envelope.copies["compressor"] = MemoryBody(zlib.compress(envelope.body.read()), "zlib")
        await keep(storage, envelope)

        assert await received(storage, envelope) == b"hello " * 3000

    async def test_nothing_is_nothing(self, storage: Any, keep: Keep) -> None:
        """An empty batch, as a heartbeat is, keeps nothing and fails nothing."""
        await keep(storage)

        assert list(await storage.list()) == []
        assert await storage.get("0" * 26) is None


class TestRetrying:
    async def test_a_repeated_batch_changes_nothing(
        self, storage: Any, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """Idempotent by queue id: one mail each, whole, alone or among new ones."""
        one, two = make_envelope(b"1" * 600_000), make_envelope(b"2")
        await keep(storage, one)
        await keep(storage, one, two, attempt=2)
        await keep(storage, one, two, attempt=1)

        assert [mail.queue_id for mail in await storage.list()] == [one.queue_id, two.queue_id]
        assert await received(storage, one) == b"1" * 600_000


class TestArchive:
    async def test_pages_in_order(self, storage: Any, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """Each page goes on after the last id of the one before; lists carry no bodies."""
        envelopes = [make_envelope() for _ in range(5)]
        await keep(storage, *reversed(envelopes))
        first = await storage.list(limit=3)
        rest = await storage.list(after=first[-1].queue_id, limit=3)

        assert [mail.queue_id for mail in (*first, *rest)] == [envelope.queue_id for envelope in envelopes]
        assert all(mail.body is None for mail in (*first, *rest))

    async def test_delete_counts_what_was_there(
        self, storage: Any, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """An unknown id is no error; what is deleted is gone, body and all."""
        one, two = make_envelope(b"x" * 1_200_000), make_envelope()
        await keep(storage, one, two)

        assert await storage.delete([one.queue_id, "0" * 26]) == 1
        assert await storage.get(one.queue_id) is None
        assert [mail.queue_id for mail in await storage.list()] == [two.queue_id]
        assert await storage.delete([]) == 0

    async def test_expire_takes_what_is_older(
        self, storage: Any, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """Strictly older; the others stay."""
        await keep(storage, *[make_envelope(received_at=at) for at in (100.0, 200.0, 300.0)])

        assert await storage.expire(200.0) == 1
        assert [mail.received_at for mail in await storage.list()] == [200.0, 300.0]


class TestOpening:
    async def test_again(self, storage: Any, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path) -> None:
        """Closed and opened, it still has its mails, and takes more."""
        one, two = make_envelope(), make_envelope()
        await keep(storage, one)
        await storage.teardown()
        await storage.teardown()
        await storage.setup(Place(data=tmp_path, hostname="mx.example.org"))
        await keep(storage, two)

        assert [mail.queue_id for mail in await storage.list()] == [one.queue_id, two.queue_id]

    async def test_states_its_promises(self, storage: Any) -> None:
        """Durability and largest body are told before any mail comes."""
        assert storage.durability in {"disk", "os", "none"}
        assert storage.largest is None or storage.largest > 0
        assert storage.holds_body
        assert storage.idempotent
