"""Storages in chains, over a real Channel: one after another, in halves, and back to the caller."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dispatcher import Channel, ChannelOptions, ItemFailed
from mailpipe.chain import Settings
from mailpipe.envelope import Envelope
from mailpipe.runner import Chain
from mailpipe.steps import Place

MakeEnvelope = Callable[..., Envelope]
_numbers = itertools.count()


@pytest.fixture
def settings(redis_url: str, mariadb_url: str) -> dict[str, Settings]:
    """Octets in Redis, rows in MariaDB."""
    number = next(_numbers)
    return {
        "redis": Settings(options={"url": redis_url, "prefix": f"chain{number}:"}),
        "mysql": Settings(
            type="sql", options={"url": mariadb_url, "table": f"chain{number}", "body": "none"}
        ),
    }


async def kept(chain: Chain, name: str) -> list[str]:
    """Ids of what the storage *name* has."""
    target: Any = next(step.target for step in chain.storages if step.name == name)
    return [mail.queue_id for mail in await target.list()]


class TestRedisThenMySql:
    async def test_octets_in_one_rows_in_the_other(
        self, settings: dict[str, Settings], make_envelope: MakeEnvelope, tmp_path: Path
    ) -> None:
        """go-guerrilla's chain, by its names; what is read back comes from whoever has the octets."""
        envelopes = [make_envelope(b"Subject: %d\r\n\r\nx\r\n" % number) for number in range(30)]
        async with (
            Chain("Redis|MySql", settings=settings, place=Place(data=tmp_path)) as chain,
            Channel(chain.send, ChannelOptions(batch_items_max=10, batch_age_max=0)) as channel,
        ):
            await asyncio.gather(*[channel.call(envelope) for envelope in envelopes])
            ids = [envelope.queue_id for envelope in envelopes]
            assert await kept(chain, "redis") == await kept(chain, "mysql") == ids

            archive = chain.archive
            assert archive is not None
            mail = await archive.get(ids[7])
            assert mail.body.read() == envelopes[7].body.read()
            rows = next(step.target for step in chain.storages if step.name == "mysql")
            row = await rows.get(ids[7])
            assert (row.subject, row.body) == ("7", None)

    async def test_what_failed_in_the_first_is_not_passed_on(
        self, settings: dict[str, Settings], make_envelope: MakeEnvelope, tmp_path: Path
    ) -> None:
        """One poisoned mail among many: found by halving, kept nowhere, and the others everywhere."""
        envelopes = [make_envelope() for _ in range(10)]
        bad = envelopes[6]
        async with (
            Chain("redis | mysql", settings=settings, place=Place(data=tmp_path)) as chain,
            Channel(chain.send, ChannelOptions(batch_items_max=10, batch_age_max=1.0)) as channel,
        ):
            redis: Any = next(step.target for step in chain.storages if step.name == "redis")
            redis._client.set(redis._key("mail:", bad.queue_id), "in the way")  # noqa: SLF001
            results = await asyncio.gather(
                *[channel.call(envelope) for envelope in envelopes], return_exceptions=True
            )
            failed = [
                position for position, result in enumerate(results) if isinstance(result, BaseException)
            ]
            rows = await kept(chain, "mysql")

        assert failed == [6]
        assert isinstance(results[6], ItemFailed)
        assert rows == [envelope.queue_id for envelope in envelopes if envelope is not bad]

    async def test_a_retry_goes_on_where_it_failed(
        self, settings: dict[str, Settings], make_envelope: MakeEnvelope, tmp_path: Path
    ) -> None:
        """A lost database costs its own step an attempt, not the one before."""
        async with (
            Chain("redis | mysql", settings=settings, place=Place(data=tmp_path)) as chain,
            Channel(chain.send, ChannelOptions(batch_age_max=0)) as channel,
        ):
            redis, mysql = (step.target for step in chain.storages)
            calls: list[str] = []
            for name, storage in (("redis", redis), ("mysql", mysql)):
                _record(storage, name, calls)
            with mysql.database.engine.connect() as connection:
                query = "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND user = 'mail'"
                for number in connection.exec_driver_sql(query).scalars().all():
                    connection.exec_driver_sql(f"KILL {number}")
            envelope = make_envelope()
            await channel.call(envelope)
            rows = await kept(chain, "mysql")

        assert calls == ["redis", "mysql", "mysql"]
        assert rows == [envelope.queue_id]


def _record(storage: Any, name: str, calls: list[str]) -> None:
    """Note every batch that comes to a storage."""
    insert = "_insert" if hasattr(storage, "_insert") else "_queue"
    real = getattr(storage, insert)

    def recorded(*args: Any) -> Any:
        calls.append(name)
        return real(*args)

    setattr(storage, insert, recorded)


class TestOneAfterAnother:
    async def test_every_storage_at_once(self, make_envelope: MakeEnvelope, tmp_path: Path) -> None:
        """Different storages in one chain do not get in each other's way."""
        text = "mimeanalyzer | memory | chunks | maildir | other:sql | sql"
        settings = {"other": Settings(type="sql", options={"table": "other"})}
        envelopes = [make_envelope(b"x" * 100_000 * number) for number in range(13)]
        async with (
            Chain(text, settings=settings, place=Place(data=tmp_path)) as chain,
            Channel(chain.send, ChannelOptions(batch_items_max=5, batch_age_max=0)) as channel,
        ):
            await asyncio.gather(*[channel.call(envelope) for envelope in envelopes])
            for step in chain.storages:
                target: Any = step.target
                for envelope in envelopes:
                    mail = await target.get(envelope.queue_id)
                    assert b"".join(mail.body.chunks()) == envelope.body.read(), step.name
