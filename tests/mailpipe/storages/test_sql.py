"""``sql`` on SQLite: one transaction per batch, idempotent, read back byte for byte."""

import os
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mailpipe.bodies import FileBody, Spool, SpoolOptions
from mailpipe.envelope import Envelope, MemoryBody, Recipient
from mailpipe.steps import Place
from mailpipe.storages.sql import SqlOptions, SqlStorage

MakeEnvelope = Callable[..., Envelope]
MIB = 1024 * 1024


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[SqlStorage]:
    """An open storage on a fresh SQLite file."""
    made = SqlStorage()
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


class _Lost(sqlite3.OperationalError):
    """What a driver raises when the connection is gone."""


class FailingConnection:
    """A connection that fails when it executes what contains *text*, before or after doing it."""

    def __init__(self, inner: Any, text: str, error: Exception, *, after: bool = False) -> None:
        self.inner, self.text, self.error, self.after = inner, text, error, after
        self.closed = False

    def cursor(self) -> Any:
        cursor = self.inner.cursor()

        class Cursor:
            def execute(_, sql: str, values: Any = ()) -> None:
                if self.text in sql and not self.after:
                    raise self.error
                cursor.execute(sql, values)
                if self.text in sql:
                    raise self.error

            def close(_) -> None:
                cursor.close()

        return Cursor()

    def rollback(self) -> None:
        self.inner.rollback()

    def close(self) -> None:
        self.inner.close()
        self.closed = True


class RecordingConnection:
    """A connection that notes the first word of what it executes."""

    def __init__(self, inner: Any, steps: list[str]) -> None:
        self.inner, self.steps = inner, steps

    def cursor(self) -> Any:
        cursor, steps = self.inner.cursor(), self.steps

        class Cursor:
            def execute(self, sql: str, values: Any = ()) -> None:
                steps.append(sql.split()[0])
                cursor.execute(sql, values)

            def close(self) -> None:
                cursor.close()

        return Cursor()


class TestStoring:
    async def test_keeps_every_octet(self, storage: SqlStorage, make_envelope: MakeEnvelope) -> None:
        """NUL, 8-bit, bare CR and LF, nothing at all: as received."""
        bodies = [
            b"",
            b"\r\n",
            bytes(range(256)) * 9,
            b"a\rb\nc\r\n.\r\n",
            b"Subject: x\r\n\r\n" + b"\0" * 999,
        ]
        envelopes = [make_envelope(body) for body in bodies]
        await store(storage, *envelopes)

        assert [await received(storage, envelope) for envelope in envelopes] == bodies

    async def test_keeps_the_envelope(self, storage: SqlStorage, make_envelope: MakeEnvelope) -> None:
        """Sender, every recipient in order, time, size, subject, digests, prelude."""
        envelope = make_envelope(
            b"From: x\r\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n =?utf-8?q?_dich?=\r\n\r\nx\r\n",
            to=["b@example.org", "ü@example.org", "c@example.org"],
            mail_from="",
        )
        envelope.hashes |= {"sha256": "ab" * 32, "md5": "cd" * 16}
        await store(storage, envelope)

        mail = await storage.get(envelope.queue_id)
        assert mail is not None
        assert mail.queue_id == envelope.queue_id
        assert mail.received_at == envelope.received_at
        assert mail.mail_from == ""
        assert mail.rcpt_to == ("b@example.org", "ü@example.org", "c@example.org")
        assert mail.size == len(envelope.body)
        assert mail.subject == "grüße dich"
        assert mail.hashes == envelope.hashes
        assert mail.prelude == envelope.prelude

    async def test_keeps_what_a_relay_needs(self, storage: SqlStorage, make_envelope: MakeEnvelope) -> None:
        """Parameters as written, and who the client was: a background job has no session any more."""
        envelope = make_envelope(to=["b@example.org", "c@example.org"])
        envelope.mail_params, envelope.smtputf8 = ("BODY=8BITMIME", "ENVID=x\0"), True
        envelope.recipients = [
            Recipient("b@example.org", ("NOTIFY=NEVER",), envelope, envelope.session),
            Recipient("c@example.org", (), envelope, envelope.session),
        ]
        envelope.session.user, envelope.session.tls = "me", "TLSv1.3"
        await store(storage, envelope)

        mail = await storage.get(envelope.queue_id)
        assert mail is not None
        assert mail.mail_params == ("BODY=8BITMIME", "ENVID=x\ufffd")
        assert mail.rcpt_params == (("NOTIFY=NEVER",), ())
        assert mail.smtputf8
        assert (mail.peer, mail.helo, mail.user, mail.tls) == (
            "192.0.2.1",
            "client.example.org",
            "me",
            "TLSv1.3",
        )

    async def test_many_at_once(self, storage: SqlStorage, make_envelope: MakeEnvelope) -> None:
        """More than one statement's worth is still one batch."""
        envelopes = [make_envelope(b"%d" % number) for number in range(257)]
        await store(storage, *envelopes)

        mails = await storage.list()
        assert [mail.queue_id for mail in mails] == [envelope.queue_id for envelope in envelopes]

    async def test_an_empty_batch_is_nothing(self, storage: SqlStorage) -> None:
        """A heartbeat stores nothing and fails nothing."""
        await store(storage)

        assert await storage.list() == []

    async def test_text_is_never_refused(self, storage: SqlStorage, make_envelope: MakeEnvelope) -> None:
        """NUL and surrogates do not reach a text column."""
        envelope = make_envelope(
            b"Subject: a\0b\xff\r\n\r\n", to=["x\0@example.org"], mail_from="\ud800@example.org"
        )
        envelope.session.helo = "evil\0"
        await store(storage, envelope)

        (mail,) = await storage.list()
        assert mail.mail_from == "\ufffd@example.org"
        assert mail.rcpt_to == ("x\ufffd@example.org",)
        assert "\0" not in mail.subject

    async def test_stores_the_compressors_copy(
        self, storage: SqlStorage, make_envelope: MakeEnvelope
    ) -> None:
        """The copy is what lies there; reading undoes it."""
        envelope = make_envelope(b"Subject: long\r\n\r\n" + b"hello " * 3000)
        envelope.copies["compressor"] = MemoryBody(zlib.compress(envelope.body.read()), "zlib")
        await store(storage, envelope)

        assert await received(storage, envelope) == envelope.body.read()
        mail = await storage.get(envelope.queue_id)
        assert mail is not None
        assert mail.size == len(envelope.body)
        (stored,) = query(storage, "SELECT length(body) FROM mails")
        assert stored == (len(envelope.copies["compressor"]),)

    async def test_stores_what_was_received_if_told(
        self, tmp_path: Path, make_envelope: MakeEnvelope
    ) -> None:
        """``body = "received"`` leaves the copy aside."""
        storage = SqlStorage(SqlOptions(body="received"))
        await storage.setup(Place(data=tmp_path))
        envelope = make_envelope(b"hello " * 3000)
        envelope.copies["compressor"] = MemoryBody(zlib.compress(envelope.body.read()), "zlib")
        await store(storage, envelope)

        assert query(storage, "SELECT encoding, length(body) FROM mails") == [("", 18000)]
        await storage.teardown()


class TestIdempotence:
    async def test_a_repeated_batch_changes_nothing(
        self, storage: SqlStorage, make_envelope: MakeEnvelope
    ) -> None:
        """A retry after a success, alone or among others, keeps one row each."""
        first, second = make_envelope(b"1"), make_envelope(b"2")
        await store(storage, first)
        await store(storage, first, second)

        assert [mail.queue_id for mail in await storage.list()] == [first.queue_id, second.queue_id]

    async def test_a_lost_reply_to_the_commit(self, storage: SqlStorage, make_envelope: MakeEnvelope) -> None:
        """Committed, but told that the connection is gone: the retry finds the rows and is done."""
        envelopes = [make_envelope(b"%d" % number) for number in range(3)]
        break_connection(storage, "INSERT", _Lost("gone"), after=True)
        with pytest.raises(_Lost):
            await store(storage, *envelopes)
        await store(storage, *envelopes)

        assert len(await storage.list()) == 3


class TestTrouble:
    async def test_a_failed_batch_leaves_nothing(
        self, storage: SqlStorage, make_envelope: MakeEnvelope
    ) -> None:
        """All or none: the second statement's failure takes the first one's rows along."""
        envelopes = [make_envelope(b"%d" % number) for number in range(150)]
        break_connection(storage, "COMMIT", sqlite3.OperationalError("disk I/O error"))
        with pytest.raises(sqlite3.OperationalError):
            await store(storage, *envelopes)

        assert await storage.list() == []

    async def test_a_broken_connection_is_replaced(
        self, storage: SqlStorage, make_envelope: MakeEnvelope
    ) -> None:
        """After a failed commit the connection is trusted no more, and the next batch has a new one."""
        broken = break_connection(storage, "INSERT", sqlite3.OperationalError("disk I/O error"))
        with pytest.raises(sqlite3.OperationalError):
            await store(storage, make_envelope())
        await store(storage, make_envelope())

        assert broken.closed
        assert len(await storage.list()) == 1

    async def test_a_rows_own_fault_keeps_the_connection(
        self, storage: SqlStorage, make_envelope: MakeEnvelope
    ) -> None:
        """What is wrong with a row says nothing about the store: rolled back, used again."""
        bad = make_envelope()
        bad.received_at = object()  # type: ignore[assignment] # what a careless step may do
        before = storage._connection  # noqa: SLF001 - that it is the same one is the promise
        with pytest.raises(sqlite3.Error) as caught:
            await store(storage, make_envelope(), bad)
        assert not isinstance(caught.value, sqlite3.OperationalError)
        await store(storage, make_envelope())

        assert storage._connection is before  # noqa: SLF001
        assert len(await storage.list()) == 1

    async def test_a_lock_held_too_long_is_store_trouble(
        self, tmp_path: Path, make_envelope: MakeEnvelope
    ) -> None:
        """The driver gives up before the attempt does, and nothing is stored."""
        storage = SqlStorage(SqlOptions(timeout=0.05))
        await storage.setup(Place(data=tmp_path))
        other = sqlite3.connect(tmp_path / "mail.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await store(storage, make_envelope())
        other.rollback()
        other.close()

        await store(storage, make_envelope())
        assert len(await storage.list()) == 1
        await storage.teardown()


class TestLargeBodies:
    @pytest.fixture
    def spool(self, tmp_path: Path) -> Spool:
        return Spool(tmp_path / "bodies", SpoolOptions(spool_above=1000))

    async def spooled(self, spool: Spool, data: bytes) -> FileBody:
        writer = spool.open()
        if (wait := writer.write(data)) is not None:
            await wait
        body = await writer.close()
        assert isinstance(body, FileBody)
        return body

    async def test_is_a_file_that_the_row_refers_to(
        self, storage: SqlStorage, spool: Spool, make_envelope: MakeEnvelope, tmp_path: Path
    ) -> None:
        """Linked, not copied; read back whole, also after the body under way was released."""
        data = bytes(range(256)) * 4100
        body = await self.spooled(spool, data)
        envelope = make_envelope(body)
        await store(storage, envelope)
        body.release()

        (file,) = body_files(tmp_path)
        assert file.name == envelope.queue_id
        assert file.read_bytes() == data
        assert query(storage, "SELECT body_file, body FROM mails") == [(envelope.queue_id, None)]
        assert await received(storage, envelope) == data

    async def test_is_linked_and_synced_before_the_row(
        self, storage: SqlStorage, spool: Spool, make_envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Link each, sync the folder once, then the row: at no moment does a row lack its file."""
        steps: list[str] = []
        for name in ("link", "fsync"):
            real = getattr(os, name)
            monkeypatch.setattr(
                os,
                name,
                lambda *args, _name=name, _real=real, **more: (steps.append(_name), _real(*args, **more)),
            )
        inner = storage._connection  # noqa: SLF001 - what it is asked for, and when, is the promise
        storage._connection = RecordingConnection(inner, steps)  # noqa: SLF001
        bodies = [await self.spooled(spool, b"x" * (MIB + 1)) for _ in range(3)]
        await store(storage, *[make_envelope(body) for body in bodies])
        storage._connection = inner  # noqa: SLF001

        assert steps == ["link"] * 3 + ["fsync", "INSERT"]

    async def test_a_small_file_stands_in_the_row(
        self, storage: SqlStorage, spool: Spool, make_envelope: MakeEnvelope, tmp_path: Path
    ) -> None:
        """A file because memory was short is no reason for a file for ever."""
        envelope = make_envelope(await self.spooled(spool, b"x" * 5000))
        await store(storage, envelope)

        assert body_files(tmp_path) == []
        assert await received(storage, envelope) == b"x" * 5000

    async def test_a_large_body_in_memory_becomes_a_file(
        self, storage: SqlStorage, make_envelope: MakeEnvelope, tmp_path: Path
    ) -> None:
        """A Channel of one's own may hold what it likes."""
        envelope = make_envelope(b"x" * (MIB + 1))
        await store(storage, envelope)

        assert len(body_files(tmp_path)) == 1
        assert await received(storage, envelope) == b"x" * (MIB + 1)

    async def test_delete_takes_the_file_along(
        self, storage: SqlStorage, make_envelope: MakeEnvelope, tmp_path: Path
    ) -> None:
        """Row first, file second, nothing left."""
        envelope = make_envelope(b"x" * (MIB + 1))
        await store(storage, envelope)

        assert await storage.delete([envelope.queue_id]) == 1
        assert body_files(tmp_path) == []
        assert await storage.get(envelope.queue_id) is None

    async def test_orphans_are_swept_when_opened(self, tmp_path: Path, make_envelope: MakeEnvelope) -> None:
        """A file whose row was never committed goes; one with a row stays."""
        storage = SqlStorage()
        await storage.setup(Place(data=tmp_path))
        kept, lost = make_envelope(b"x" * (MIB + 1)), make_envelope(b"y" * (MIB + 1))
        await store(storage, kept)
        break_connection(storage, "INSERT", sqlite3.OperationalError("disk I/O error"))
        with pytest.raises(sqlite3.OperationalError):
            await store(storage, lost)
        assert len(body_files(tmp_path)) == 2
        await storage.teardown()

        await storage.setup(Place(data=tmp_path))
        (file,) = body_files(tmp_path)
        assert file.name == kept.queue_id
        await storage.teardown()

    async def test_files_of_a_living_worker_are_left_alone(self, storage: SqlStorage, tmp_path: Path) -> None:
        """A second worker that starts between link and commit takes nothing away."""
        (folder,) = folders(tmp_path)
        (folder / "in-progress").write_bytes(b"x")
        other = SqlStorage()
        await other.setup(Place(data=tmp_path))
        await other.teardown()

        assert (folder / "in-progress").exists()


class TestReading:
    async def test_pages_in_order(self, storage: SqlStorage, make_envelope: MakeEnvelope) -> None:
        """Each page goes on after the last id of the one before."""
        envelopes = [make_envelope() for _ in range(5)]
        await store(storage, *reversed(envelopes))
        first = await storage.list(limit=3)
        rest = await storage.list(after=first[-1].queue_id, limit=3)

        assert [mail.queue_id for mail in (*first, *rest)] == [e.queue_id for e in envelopes]
        assert all(mail.body is None for mail in (*first, *rest))

    async def test_delete_counts_what_was_there(
        self, storage: SqlStorage, make_envelope: MakeEnvelope
    ) -> None:
        """An unknown id is no error, and takes nothing with it."""
        one, two = make_envelope(), make_envelope()
        await store(storage, one, two)

        assert await storage.delete([one.queue_id, "0" * 26]) == 1
        assert [mail.queue_id for mail in await storage.list()] == [two.queue_id]

    async def test_expire_takes_what_is_older(self, storage: SqlStorage, make_envelope: MakeEnvelope) -> None:
        """Strictly older; the others stay."""
        envelopes = [make_envelope(received_at=at) for at in (100.0, 200.0, 300.0)]
        await store(storage, *envelopes)

        assert await storage.expire(200.0) == 1
        assert [mail.received_at for mail in await storage.list()] == [200.0, 300.0]

    async def test_from_another_process_while_writing(
        self, storage: SqlStorage, make_envelope: MakeEnvelope, tmp_path: Path
    ) -> None:
        """``mailpipe list`` reads beside a running server, which goes on."""
        envelope = make_envelope()
        await store(storage, envelope)
        script = (
            "import asyncio, sys\n"
            "from mailpipe.steps import Place\n"
            "from mailpipe.storages.sql import SqlStorage\n"
            "async def main():\n"
            "    storage = SqlStorage()\n"
            "    await storage.setup(Place(data=sys.argv[1], reading=True))\n"
            "    print([mail.queue_id for mail in await storage.list()])\n"
            "    await storage.teardown()\n"
            "asyncio.run(main())\n"
        )
        done = subprocess.run(  # noqa: ASYNC221 - another process is the point
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            timeout=50,
        )
        await store(storage, make_envelope())

        assert done.stdout == f"['{envelope.queue_id}']\n"

    async def test_reading_where_nothing_was_stored(self, tmp_path: Path) -> None:
        """Opened for reading, nothing is made, and the archive is empty."""
        storage = SqlStorage()
        await storage.setup(Place(data=tmp_path, reading=True))

        assert await storage.list() == []
        assert await storage.get("0" * 26) is None
        assert os.listdir(tmp_path) == []
        await storage.teardown()


class TestOpening:
    async def test_durability_is_verified(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A database that does not sync its commits is refused with the rule and the value."""

        def careless(_: Any, connection: Any, __: Any) -> None:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")

        monkeypatch.setattr("mailpipe.storages._database.Database._prepare", careless)
        with pytest.raises(
            ValueError, match="durability 'disk' needs synchronous = 2 or 3, the server has '1'"
        ):
            await SqlStorage().setup(Place(data=tmp_path))

    async def test_less_durable_only_if_asked_for(self, tmp_path: Path) -> None:
        """``durability = "os"`` is said aloud, by the storage too."""
        storage = SqlStorage(SqlOptions(durability="os"))
        await storage.setup(Place(data=tmp_path))

        assert storage.durability == "os"
        await storage.teardown()

    async def test_each_commit_is_synced(self, storage: SqlStorage) -> None:
        """WAL with synchronous=FULL on the writer's own connection."""

        def settings() -> list[Any]:
            cursor = storage._connection.cursor()  # noqa: SLF001 - the writer's connection is meant
            return [
                cursor.execute("PRAGMA journal_mode").fetchone()[0],
                cursor.execute("PRAGMA synchronous").fetchone()[0],
            ]

        assert await storage.run(settings) == ["wal", 2]
        assert storage.durability == "disk"

    async def test_another_versions_schema_is_refused(self, storage: SqlStorage, tmp_path: Path) -> None:
        """Nothing is guessed about tables of another version."""
        await storage.teardown()
        with sqlite3.connect(tmp_path / "mail.db") as other:
            other.execute("UPDATE mailpipe_meta SET value = '99' WHERE name = 'mails.version'")
        other.close()

        with pytest.raises(
            ValueError, match="'mails' has version 99 of the schema, this program knows version 1"
        ):
            await storage.setup(Place(data=tmp_path))

    async def test_a_foreign_table_is_refused(self, tmp_path: Path) -> None:
        """A table of that name which is not ours is left alone."""
        with sqlite3.connect(tmp_path / "mail.db") as other:
            other.execute("CREATE TABLE mails (x)")
        other.close()

        with pytest.raises(ValueError, match="'mails' has no version of the schema"):
            await SqlStorage().setup(Place(data=tmp_path))

    async def test_use_before_opening_is_refused(self) -> None:
        """By name, not by an AttributeError."""
        with pytest.raises(RuntimeError, match="is not open"):
            await SqlStorage().run(lambda: None)

    async def test_two_stores_in_one_file(self, tmp_path: Path, make_envelope: MakeEnvelope) -> None:
        """Tables of different names do not know each other, nor each other's files."""
        one, two = SqlStorage(SqlOptions(table="one")), SqlStorage(SqlOptions(table="two"))
        envelope = make_envelope(b"x" * (MIB + 1))
        for storage in (one, two):
            await storage.setup(Place(data=tmp_path))
            await store(storage, envelope)
        await one.delete([envelope.queue_id])

        assert await received(two, envelope) == envelope.body.read()
        for storage in (one, two):
            await storage.teardown()


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "rule"),
        [
            ({"table": "a-b"}, "table is 1 to 40 letters, digits and '_'.*got 'a-b'"),
            ({"durability": "none"}, "durability must be one of 'disk', 'os', got 'none'"),
            ({"timeout": 0.0}, "timeout must be more than 0, got 0.0"),
            ({"expire": -1.0}, "expire must be more than 0, got -1.0"),
            ({"url": "sqlite://"}, "url must name a file"),
            ({"url": "oracle://x/y"}, "url must be of .*sqlite, got 'oracle'"),
            ({"url": "what"}, "url must be one that SQLAlchemy understands"),
        ],
    )
    def test_bad_ones_name_the_rule(self, options: dict[str, Any], rule: str) -> None:
        """Refused before anything was opened."""
        with pytest.raises(ValueError, match=rule):
            SqlStorage(SqlOptions(**options))

    def test_a_password_is_never_shown(self) -> None:
        """Neither in names nor in errors."""
        storage = SqlStorage(SqlOptions(url="postgresql://me:secret@db.example.org/mail"))

        assert storage.database.name == "postgresql+psycopg://me:***@db.example.org/mail"


def body_files(data: Path) -> list[Path]:
    return sorted(data.glob("bodies/*/*"))


def folders(data: Path) -> list[Path]:
    return sorted(data.glob("bodies/*"))


def query(storage: SqlStorage, sql: str) -> list[tuple[Any, ...]]:
    with storage.database.engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(sql)]


def break_connection(
    storage: SqlStorage, text: str, error: Exception, *, after: bool = False
) -> FailingConnection:
    """Put a failing connection in the place of the writer's."""
    inner = storage._connection  # noqa: SLF001 - the failure of a real one cannot be ordered
    broken = FailingConnection(inner, text, error, after=after)
    storage._connection = broken  # noqa: SLF001
    return broken


class TestRowsOnly:
    async def test_keeps_the_row_and_no_octets(self, tmp_path: Path, make_envelope: MakeEnvelope) -> None:
        """``body = "none"``: for a chain whose other storage keeps the octets."""
        storage = SqlStorage(SqlOptions(body="none"))
        await storage.setup(Place(data=tmp_path))
        envelope = make_envelope(b"Subject: x\r\n\r\n" + b"y" * (2 * MIB))
        await store(storage, envelope)

        mail = await storage.get(envelope.queue_id)
        assert mail is not None
        assert (mail.subject, mail.size, mail.body) == ("x", len(envelope.body), None)
        assert not storage.holds_body
        assert body_files(tmp_path) == []
        await storage.teardown()
