"""
``mailpipe dead``: mails that were acknowledged and could not be delivered, and background jobs given up.

Journals are read beside a living daemon; what it has open, it changes itself, asked over its control
socket. Background jobs lie with the storages, which several processes may use.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from dispatcher.errors import StoreError
from mailpipe.batchstage import is_trouble
from mailpipe.cli.reading import CannotRead
from mailpipe.cli.show import stamp
from mailpipe.config import Config
from mailpipe.daemon.control import ask
from mailpipe.gateway import FileOutbox, job_of
from mailpipe.gateway.deadletters import Deed, SpooledLetter, act_alone, letters_in
from mailpipe.steps import Job, Place

__all__ = ["DeadLetter", "DeadLetters"]


@attrs.frozen(kw_only=True)
class DeadLetter:
    """One dead letter, wherever it lies."""

    gateway: str
    at: SpooledLetter | Job

    @property
    def name(self) -> str:
        """What ``retry`` and ``drop`` take."""
        return self.at.name if isinstance(self.at, SpooledLetter) else self.at.queue_id

    def row(self) -> dict[str, Any]:
        """As ``mailpipe dead list --json`` tells it."""
        facts: dict[str, Any] = {"id": self.name, "gateway": self.gateway}
        if isinstance(self.at, Job):
            return facts | {"kind": "background", "queue_id": self.at.queue_id, "error": self.at.error}
        head = self.at.head
        return facts | {
            "kind": "spool",
            "queue_id": head.get("queue_id", ""),
            "mail_from": head.get("mail_from", ""),
            "rcpt_to": [address for address, _ in head.get("recipients", ())],
            "size": head.get("size", 0),
            "failed_at": stamp(self.at.failed_at),
            "error": self.at.error,
        }


async def _dead_in(job: str, outbox: Any) -> Sequence[Job]:  # noqa: ANN401 - an Outbox, by duck
    found: Sequence[Job] = await outbox.dead(job)
    return found


class DeadLetters:
    """
    The dead letters of a configuration's gateways.

    Args:
        config: Says which.

    Raises:
        CannotRead: Out of every method, if a journal or a storage is in trouble.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.unread: list[str] = []
        """Why some could not be looked at; the others were."""

    def all(self) -> list[DeadLetter]:
        """Those of the journals, then background jobs."""
        found: list[DeadLetter] = []
        for name in self._config.gateways:
            with self._noted(f"[gateways.{name}] spool"):
                letters = letters_in(self._config.spool_folder(name))
                found += [DeadLetter(gateway=name, at=letter) for letter in letters]
        for name, gateway in self._config.gateways.items():
            if gateway.background:
                with self._noted(f"[gateways.{name}] background"):
                    jobs = asyncio.run(self._jobs(name, functools.partial(_dead_in, job_of(name))))
                    found += [DeadLetter(gateway=name, at=job) for job in jobs or ()]
        return found

    def act(self, deed: Deed, names: Iterable[str]) -> tuple[int, list[str]]:
        """
        Try those again, or drop them.

        Returns:
            How many there were, and the names that nothing is known by.
        """
        wanted = set(names)
        chosen = [letter for letter in self.all() if letter.name in wanted]
        done = 0
        journals: dict[Path, list[str]] = {}
        jobs: dict[str, list[Job]] = {}
        for letter in chosen:
            if isinstance(letter.at, SpooledLetter):
                journals.setdefault(letter.at.journal, []).append(letter.at.record)
            else:
                jobs.setdefault(letter.gateway, []).append(letter.at)
        for journal, records in journals.items():
            done += self._in_journal(journal, deed, records)
        for name, its in jobs.items():
            done += self._in_outbox(name, deed, its)
        return done, sorted(wanted - {letter.name for letter in chosen})

    def _in_journal(self, journal: Path, deed: Deed, records: Sequence[str]) -> int:
        try:
            done = act_alone(journal, deed, records)
            if done is not None:
                return done
            request = {"command": "dead", "deed": deed, "journal": str(journal), "records": list(records)}
            answer = ask(self._config.data, request)
        except (StoreError, OSError, ValueError) as error:
            msg = f"{journal}: {type(error).__name__}: {error}"
            raise CannotRead(msg) from error
        if not answer.get("ok"):
            msg = f"{journal}: the daemon answers: {answer.get('error')}"
            raise CannotRead(msg)
        return int(answer["count"])

    def _in_outbox(self, gateway: str, deed: Deed, jobs: Sequence[Job]) -> int:
        async def change(outbox: Any) -> int:  # noqa: ANN401 - an Outbox, by duck
            if deed == "retry":
                revived: int = await outbox.revive(jobs, time.time())
                return revived
            await outbox.settle(done=jobs)
            return len(jobs)

        with self._told(f"[gateways.{gateway}] background"):
            return asyncio.run(self._jobs(gateway, change)) or 0

    async def _jobs(self, gateway: str, work: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - what *work* gives
        async with self._outbox(gateway) as outbox:
            return None if outbox is None else await work(outbox)

    @contextlib.asynccontextmanager
    async def _outbox(self, gateway: str) -> AsyncIterator[Any]:
        """The outbox of a gateway, opened; None if there is none yet."""
        data = self._config.data
        archive = self._config.plan(self._config.gateways[gateway].process).archive
        target: Any = archive.target if archive is not None else None
        if not hasattr(target, "outbox"):
            own = FileOutbox(data / "outbox.db")
            try:
                yield own if (data / "outbox.db").exists() else None
            finally:
                await own.close()
            return
        await target.setup(Place(data=data, gateway=gateway, reading=True))
        try:
            yield target.outbox
        finally:
            await target.teardown()

    @contextlib.contextmanager
    def _told(self, what: str) -> Any:  # noqa: ANN401 - a context manager's own
        try:
            yield
        except Exception as error:
            # Bugs keep their traceback; what the world did is told in a line.
            if not (is_trouble(error) or isinstance(error, OSError | StoreError)):
                raise
            msg = f"{what}: {type(error).__name__}: {error}"
            raise CannotRead(msg) from error

    @contextlib.contextmanager
    def _noted(self, what: str) -> Any:  # noqa: ANN401 - a context manager's own
        """One that cannot be read hides no other."""
        try:
            with self._told(what):
                yield
        except CannotRead as error:
            self.unread.append(str(error))
