"""`mailpipe dead`: what is listed, tried again and dropped, of journals and of background jobs."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dispatcher.stores import Dead, Record, Shelf, SQLiteView
from mailpipe.cli import app
from mailpipe.envelope import Envelope, MemoryBody, Recipient, Session
from mailpipe.gateway import FileOutbox, job_of
from mailpipe.gateway.journal import INLINE_MAX, QUEUE, JournalStore, MailCodec, Spooled
from mailpipe.gateway.spooling import claim
from mailpipe.steps import Job

CONFIG = """
[gateways.default]
process = "header | maildir"
spool = true
[gateways.jobs]
process = "header | maildir"
background = "exec"
[processors.exec]
command = ["true"]
"""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal with two dead letters, a small and a large one, and one live mail."""
    folder = tmp_path / "data" / "spool" / "default" / "0"
    folder.mkdir(parents=True)
    (tmp_path / "mail.toml").write_text(CONFIG)

    async def fill() -> None:
        codec = MailCodec(folder / "bodies", 0)
        async with JournalStore(folder, lambda _: None, 0) as store:
            await store.prepare()
            for name, size in (("small", 10), ("large", INLINE_MAX + 1), ("live", 10)):
                session = Session()
                mail = Spooled(queue_id=name, session=session, received_at=1.0, name=name)
                mail.mail_from = "a@example.org"
                mail.recipients = [Recipient("b@example.org", (), mail, session)]
                mail.body = MemoryBody(b"x" * size)
                if size > INLINE_MAX:
                    await store.shelve(name, mail.body)
                (entry,) = await store.put([Record(codec.encode(mail))], [QUEUE], lease=True)
                if name != "live":
                    await store.settle(dead=[Dead(entry.tag or "", "Rejected: 550 5.7.1 no\n")])

    asyncio.run(fill())
    return folder


@pytest.fixture
def dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``mailpipe dead ...`` in the folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["dead", *arguments, "-c", "mail.toml", "--data", "data"])

    return run


def on(journal: Path, shelf: Shelf) -> int:
    """How many mails lie there."""
    with SQLiteView(journal / "queue.db") as view:
        return len(view.peek(QUEUE, 10, shelf=shelf))


class TestJournals:
    def test_they_are_listed(self, journal: Path, dead: Any) -> None:
        """Also while somebody has the journal; nothing forges a line."""
        lock = claim(journal)
        assert lock is not None
        told = dead("list", "--json")
        os.close(lock)

        assert told.exit_code == 0
        rows = [json.loads(line) for line in told.stdout.splitlines()]
        assert [row["id"] for row in rows] == ["small", "large"]
        assert rows[1]["size"] == INLINE_MAX + 1
        assert (rows[0]["mail_from"], rows[0]["rcpt_to"]) == ("a@example.org", ["b@example.org"])
        assert (rows[0]["gateway"], rows[0]["kind"]) == ("default", "spool")
        assert "550" in rows[0]["error"]
        assert len(dead("list").stdout.splitlines()) == 2

    def test_retry_makes_them_live(self, journal: Path, dead: Any) -> None:
        """For the next start of the daemon; their bodies stay."""
        assert dead("retry", "large").exit_code == 0

        assert (on(journal, Shelf.DEAD), on(journal, Shelf.READY)) == (1, 2)
        assert os.listdir(journal / "bodies") == ["large"]

    def test_drop_deletes_them_and_their_bodies(self, journal: Path, dead: Any) -> None:
        """And nothing else."""
        assert dead("drop", "large").exit_code == 0

        assert (on(journal, Shelf.DEAD), on(journal, Shelf.READY)) == (1, 1)
        assert os.listdir(journal / "bodies") == []

    def test_live_mails_cannot_be_dropped(self, journal: Path, dead: Any) -> None:
        """They are no dead letters; those named beside them are done."""
        told = dead("drop", "live", "small")

        assert told.exit_code == 1
        assert "no such dead letter: live" in told.output
        assert (on(journal, Shelf.DEAD), on(journal, Shelf.READY)) == (1, 1)

    def test_a_journal_in_use_is_its_users(self, journal: Path, dead: Any) -> None:
        """Without a daemon that answers, nothing is changed."""
        lock = claim(journal)
        assert lock is not None
        told = dead("drop", "small")
        os.close(lock)

        assert told.exit_code == 1
        assert on(journal, Shelf.DEAD) == 2

    def test_without_any_there_is_nothing(self, tmp_path: Path, dead: Any) -> None:
        """No journal, no outbox: no error."""
        (tmp_path / "mail.toml").write_text(CONFIG)
        told = dead("list")

        assert (told.exit_code, told.stdout) == (0, "")


class TestBackground:
    @pytest.fixture
    def outbox(self, journal: Path, tmp_path: Path) -> FileOutbox:
        """With one dead job."""
        outbox = FileOutbox(tmp_path / "data" / "outbox.db")

        async def fill() -> None:
            envelope = Envelope("q1", Session(), 1.0)
            target: Any = outbox.step(job_of("jobs")).target
            await target([envelope])
            await outbox.settle(dead=[Job(name=job_of("jobs"), queue_id="q1", attempts=3, error="no way")])
            await outbox.close()

        asyncio.run(fill())
        return outbox

    def test_jobs_given_up_are_dead_letters(self, outbox: FileOutbox, dead: Any) -> None:
        """Listed, tried again."""
        rows = [json.loads(line) for line in dead("list", "--json").stdout.splitlines()]
        assert rows[-1] == {
            "id": "q1",
            "gateway": "jobs",
            "kind": "background",
            "queue_id": "q1",
            "error": "no way",
        }
        assert dead("retry", "q1").exit_code == 0
        (job,) = asyncio.run(self._due(outbox))

        assert (job.queue_id, job.attempts) == ("q1", 0)

    async def _due(self, outbox: FileOutbox) -> Any:
        found = await outbox.due(job_of("jobs"), 1e12)
        await outbox.close()
        return found

    def test_jobs_are_dropped(self, outbox: FileOutbox, dead: Any) -> None:
        """For good."""
        assert dead("drop", "q1").exit_code == 0

        assert "background" not in dead("list").stdout
        assert asyncio.run(self._due(outbox)) == []

    def test_an_empty_database_has_none(self, tmp_path: Path, dead: Any) -> None:
        """Nothing was ever stored: no error."""
        (tmp_path / "mail.toml").write_text(CONFIG.replace("maildir", "sql"))
        told = dead("list")

        assert (told.exit_code, told.stdout) == (0, "")
