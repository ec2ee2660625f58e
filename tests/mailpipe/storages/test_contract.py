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
