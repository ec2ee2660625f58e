"""``sql`` on every database that it claims: the same promises, against real servers."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mailpipe.envelope import Envelope
from mailpipe.steps import Place
from mailpipe.storages.sql import SqlOptions, SqlStorage

MakeEnvelope = Callable[..., Envelope]
_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    """Each database in turn."""
    if request.param == "sqlite":
        return "sqlite:///mail.db"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture(params=["postgres", "mariadb"])
def remote_url(request: pytest.FixtureRequest) -> str:
    """Each database that is a server."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


def fresh(url: str, **options: Any) -> SqlStorage:
    """A storage with tables of its own, so that tests share a server and nothing else."""
    return SqlStorage(SqlOptions(url=url, table=f"mails{next(_numbers)}", **options))


@pytest.fixture
async def storage(url: str, tmp_path: Path) -> AsyncIterator[SqlStorage]:
    made = fresh(url)
    await made.setup(Place(data=tmp_path))
    yield made
    await made.teardown()


@pytest.fixture
async def remote(remote_url: str, tmp_path: Path) -> AsyncIterator[SqlStorage]:
    made = fresh(remote_url)
    await made.setup(Place(data=tmp_path))
    yield made
    await made.teardown()


async def store(storage: SqlStorage, *envelopes: Envelope) -> None:
    await storage.run(lambda: storage(envelopes))


async def received(storage: SqlStorage, envelope: Envelope) -> bytes:
    mail = await storage.get(envelope.queue_id)
    assert mail is not None
    assert mail.body is not None
    return b"".join(mail.body.chunks())


class TestEveryDatabase:
    async def test_keeps_the_envelope(self, storage: SqlStorage, make_envelope: MakeEnvelope) -> None:
        """Text beyond the basic plane, a thousand recipients, NUL and a lone surrogate."""
        to = [f"recipient-number-{number}-\U0001f4e7@example.org" for number in range(1000)]
        envelope = make_envelope(
            b"Subject: \xf0\x9f\x93\xa7 a\0b\r\n\r\n", to=to, mail_from="a\0\ud800@example.org"
        )
        await store(storage, envelope)

        (mail,) = await storage.list()
        assert mail.rcpt_to == tuple(to)
        assert mail.mail_from == "a\ufffd\ufffd@example.org"
        assert mail.subject == "\U0001f4e7 a\ufffdb"
        assert mail.received_at == envelope.received_at
        assert mail.prelude == envelope.prelude

    async def test_a_large_batch_is_one_transaction(
        self, storage: SqlStorage, make_envelope: MakeEnvelope
    ) -> None:
        """More rows and octets than one statement takes, with bodies in pieces among them."""
        envelopes = [make_envelope(b"%06d" % number * 10_000) for number in range(150)]
        envelopes.append(make_envelope(b"y" * 1_500_000))
        await store(storage, *envelopes)

        assert len(await storage.list()) == 151
        assert await received(storage, envelopes[-1]) == b"y" * 1_500_000

    async def test_a_bad_row_takes_the_batch_along(
        self, storage: SqlStorage, make_envelope: MakeEnvelope
    ) -> None:
        """All or none; the error is no store trouble, and the next batch goes through."""
        bad = make_envelope()
        bad.hashes["sha256"] = "x" * 65 if storage.database.dialect.name != "sqlite" else object()  # type: ignore[assignment]
        with pytest.raises(Exception) as caught:
            await store(storage, make_envelope(), bad)
        assert not {"OperationalError", "InterfaceError"} & {
            kind.__name__ for kind in type(caught.value).__mro__
        }
        good = make_envelope()
        await store(storage, good)

        assert [mail.queue_id for mail in await storage.list()] == [good.queue_id]

    async def test_delete_and_expire(self, storage: SqlStorage, make_envelope: MakeEnvelope) -> None:
        """Rows and pieces go; the others stay."""
        envelopes = [make_envelope(b"x" * 1_100_000, received_at=at) for at in (100.0, 200.0, 300.0)]
        await store(storage, *envelopes)

        assert await storage.delete([envelopes[2].queue_id, "0" * 26]) == 1
        assert await storage.expire(200.0) == 1
        assert [mail.received_at for mail in await storage.list()] == [200.0]
        assert await received(storage, envelopes[1]) == b"x" * 1_100_000
        with storage.database.engine.connect() as connection:
            ids = set(connection.execute(sa.select(storage.tables.pieces.c.queue_id)).scalars())
        assert ids <= {envelopes[1].queue_id}

    async def test_opened_twice_at_once(self, url: str, tmp_path: Path, make_envelope: MakeEnvelope) -> None:
        """Two workers that make the schema at the same time end with the same one."""
        one = fresh(url)
        two = SqlStorage(one.options)
        await asyncio.gather(one.setup(Place(data=tmp_path)), two.setup(Place(data=tmp_path)))
        await store(one, make_envelope())
        await store(two, make_envelope())

        assert len(await one.list()) == len(await two.list()) == 2
        await one.teardown()
        await two.teardown()

    async def test_opened_again_it_is_the_same(
        self, storage: SqlStorage, tmp_path: Path, make_envelope: MakeEnvelope
    ) -> None:
        """What was stored is there after a restart, for readers too."""
        envelope = make_envelope()
        await store(storage, envelope)
        await storage.teardown()
        await storage.setup(Place(data=tmp_path, reading=True))

        assert [mail.queue_id for mail in await storage.list()] == [envelope.queue_id]


class TestServers:
    async def test_a_lost_connection_is_store_trouble(
        self, remote: SqlStorage, make_envelope: MakeEnvelope
    ) -> None:
        """The server ends our connection: OperationalError, then a new one, nothing twice."""
        await store(remote, make_envelope())
        end_connections(remote)
        envelope = make_envelope()
        with pytest.raises(Exception) as caught:
            await store(remote, envelope)
        assert {"OperationalError", "InterfaceError"} & {kind.__name__ for kind in type(caught.value).__mro__}
        await store(remote, envelope)

        assert len(await remote.list()) == 2

    async def test_a_lock_held_too_long_is_store_trouble(
        self, remote_url: str, tmp_path: Path, make_envelope: MakeEnvelope
    ) -> None:
        """The driver gives up at its own timeout."""
        remote = fresh(remote_url, timeout=1.0)
        await remote.setup(Place(data=tmp_path))
        envelope = make_envelope()
        with remote.database.engine.connect() as other:
            lock = (
                f"LOCK TABLE {remote.tables.name} IN ACCESS EXCLUSIVE MODE"
                if remote.database.dialect.name == "postgresql"
                else f"LOCK TABLES {remote.tables.name} WRITE"
            )
            other.exec_driver_sql(lock)
            with pytest.raises(Exception) as caught:
                await store(remote, envelope)
        assert "OperationalError" in {kind.__name__ for kind in type(caught.value).__mro__}
        await store(remote, envelope)

        assert len(await remote.list()) == 1
        await remote.teardown()

    async def test_bodies_never_become_files(
        self, remote: SqlStorage, make_envelope: MakeEnvelope, tmp_path: Path
    ) -> None:
        """A server elsewhere keeps all of a mail."""
        await store(remote, make_envelope(b"x" * 3_000_000))

        assert remote.shelf is None
        with remote.database.engine.connect() as connection:
            sizes = connection.execute(sa.select(sa.func.length(remote.tables.pieces.c.data))).scalars().all()
        assert max(sizes) <= 512 * 1024
        assert sum(sizes) == 3_000_000


class TestDurability:
    async def test_mariadb_that_does_not_flush_is_refused(self, mariadb_url: str, tmp_path: Path) -> None:
        """The rule and the value got; ``durability = "os"`` takes it as it is."""
        storage = fresh(mariadb_url)
        engine = sa.create_engine(mariadb_url.replace("mysql:", "mysql+pymysql:"))
        with engine.begin() as connection:
            connection.exec_driver_sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
            try:
                with pytest.raises(
                    ValueError, match=r"needs innodb_flush_log_at_trx_commit = 1, the server has '2'"
                ):
                    await storage.setup(Place(data=tmp_path))
                lax = fresh(mariadb_url, durability="os")
                await lax.setup(Place(data=tmp_path))
                await lax.teardown()
            finally:
                connection.exec_driver_sql("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
        engine.dispose()

    async def test_postgres_commits_synchronously(self, postgres_url: str, tmp_path: Path) -> None:
        """Whatever the server's default, the writer's connection waits for the disk."""
        engine = sa.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ALTER SYSTEM SET synchronous_commit = off")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        storage = fresh(postgres_url)
        await storage.setup(Place(data=tmp_path))

        def setting() -> Any:
            cursor = storage._connection.cursor()  # noqa: SLF001 - the writer's connection is meant
            return cursor.execute("SHOW synchronous_commit").fetchone()[0]

        assert await storage.run(setting) == "on"
        await storage.teardown()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ALTER SYSTEM RESET synchronous_commit")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        engine.dispose()

    async def test_an_unreachable_server_is_named(self, tmp_path: Path) -> None:
        """At setup, with an error that says so, and nothing left running."""
        storage = fresh("postgresql://mail@127.0.0.1:1/mail", timeout=2.0)
        with pytest.raises(Exception, match="refused"):
            await storage.setup(Place(data=tmp_path))
        with pytest.raises(RuntimeError, match="not open"):
            await storage.run(lambda: None)


def end_connections(storage: SqlStorage) -> None:
    """Have the server end every connection but the one that asks for it."""
    with storage.database.engine.connect() as connection:
        if storage.database.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            )
            return
        query = "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND user = 'mail'"
        for number in connection.exec_driver_sql(query).scalars().all():
            connection.exec_driver_sql(f"KILL {number}")
