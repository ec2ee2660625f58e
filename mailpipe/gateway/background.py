"""
What is done with a mail after its 250: jobs out of a storage's outbox, through a chain of their own.

A job is written in the mail's own transaction, so an acknowledged mail never lacks it, and it is there
until its chain is through: resumed after a crash, tried again later and later, given up into the outbox's
dead jobs. Nothing here can answer a client any more: a step that says `Rejected` buries the job.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import attrs

from dispatcher import Channel, ChannelOptions, Outcome, Status
from dispatcher.handlers import quiet
from mailpipe.config import GatewayConfig
from mailpipe.envelope import Envelope, Recipient, Session
from mailpipe.errors import Rejected
from mailpipe.gateway.outbox import FileOutbox
from mailpipe.runner import Chain
from mailpipe.steps import Job, Outbox, Result, StoredMail

__all__ = ["Background", "BackgroundStatistics", "envelope_of", "job_of"]

log = logging.getLogger("mailpipe.background")

_LOOK_EVERY = 60.0
"""Seconds between two looks at an outbox that nobody spoke of: other processes write there, too."""

_AT_ONCE = 50
"""Jobs taken at a time; their mails' bodies are read lazily."""


@attrs.define(kw_only=True)
class BackgroundStatistics:
    """Counts of one gateway's background jobs, so far."""

    done: int = 0
    again: int = 0
    """Attempts that failed and will be repeated."""

    dead: int = 0
    """Given up."""


class Background:
    """
    Works off one gateway's jobs; for use in an ``async with`` block.

    Args:
        chain: What is done with a mail; opened and closed here.

        storage: An opened `Archive`; one with an `Outbox` is told to write our jobs from now on.

        outbox: Where the jobs are, if not with *storage*.

        config: ``background_retry`` and ``background_timeout``.

        name: The gateway's; jobs are kept under it.

        hostname: What envelopes read back say of us.

        working: False writes jobs and leaves them to another process.
    """

    def __init__(
        self,
        chain: Chain,
        storage: Any,  # noqa: ANN401 - an Archive with an Outbox, by duck
        config: GatewayConfig,
        name: str,
        *,
        outbox: FileOutbox | None = None,
        hostname: str = "localhost",
        working: bool = True,
    ) -> None:
        self.statistics = BackgroundStatistics()
        self._chain, self._storage, self._config = chain, storage, config
        self._job, self._hostname, self._working = job_of(name), hostname, working
        self._own = outbox
        self._outbox: Outbox = storage.outbox if outbox is None else outbox
        options: ChannelOptions[Envelope] = ChannelOptions(
            batch_items_max=min(_AT_ONCE, config.batch_items_max),
            batch_age_max=0.0,
            retry=None,
            send_timeout=config.background_timeout,
            on_error=quiet,
            on_drop=quiet,
        )
        self._channel: Channel[Envelope, Result | None] = Channel(chain.send, options, name=self._job)
        self._news = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        if self._own is None:
            self._storage.jobs = (*self._storage.jobs, self._job)
        if not self._working:
            return self
        async with contextlib.AsyncExitStack() as opening:
            await opening.enter_async_context(self._chain)
            await opening.enter_async_context(self._channel)
            self._open = opening.pop_all()
        self._task = asyncio.create_task(self._run(), name=self._job)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            # What a storage does in a thread is over when the channel is.
            self._channel.cancel()
        await self._open.__aexit__(kind, error, trace)
        if self._own is not None:
            await self._own.close()

    def wake(self) -> None:
        """A mail was stored: there is a job."""
        self._news.set()

    def stop(self) -> None:
        """Begin no more jobs."""
        self._stopping = True
        self._news.set()

    async def wait_stopped(self) -> None:
        """Return when the jobs that were begun have ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            self._news.clear()
            try:
                if await self._work():
                    failures = 0
                    continue
                due = await self._outbox.next_due(self._job)
            except Exception:
                failures += 1
                log.exception("the outbox cannot be read", extra={"fields": {"job": self._job}})
                due = time.time() + min(_LOOK_EVERY, 2.0**failures)
            rest = _LOOK_EVERY if due is None else min(_LOOK_EVERY, due - time.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, rest)):
                    await self._news.wait()

    async def _work(self) -> int:
        """Do what is due; how many jobs that were."""
        jobs: Sequence[Job] = await self._outbox.due(self._job, time.time(), limit=_AT_ONCE)
        ends = await asyncio.gather(*(self._end(job) for job in jobs))
        fates: dict[str, list[Job]] = {"done": [], "again": [], "dead": []}
        for fate, job in ends:
            fates[fate].append(job)
        await self._outbox.settle(**fates)
        for fate, ended in fates.items():
            setattr(self.statistics, fate, getattr(self.statistics, fate) + len(ended))
        return len(jobs)

    async def _end(self, job: Job) -> tuple[str, Job]:
        """Do one job; its fate, and the job as it is to be kept."""
        fields: dict[str, object] = {"queue_id": job.queue_id, "job": job.name, "attempt": job.attempts + 1}
        try:
            mail = await self._storage.get(job.queue_id)
        except Exception as error:
            log.warning("a mail cannot be read back", extra={"fields": fields | {"error": repr(error)}})
            return self._failed(job, error, final=False)
        if mail is None:
            log.warning("a job's mail is gone", extra={"fields": fields})
            return "done", job
        receipt = await self._channel.submit(envelope_of(mail, self._hostname))
        outcome: Outcome[Result | None] = await receipt.wait()
        if outcome.status is Status.DELIVERED:
            log.info("job done", extra={"fields": fields})
            return "done", job
        reason = outcome.error or RuntimeError(f"dropped: {outcome.reason}")
        fate = self._failed(job, reason, final=isinstance(reason, Rejected))
        log.warning("job failed", extra={"fields": fields | {"error": repr(reason), "fate": fate[0]}})
        return fate

    def _failed(self, job: Job, error: Exception, *, final: bool) -> tuple[str, Job]:
        retry = self._config.background_retry
        attempts = job.attempts + 1
        late = min(retry.longest, retry.first * 2.0 ** min(job.attempts, 60))
        due_at = time.time() + random.uniform(late / 2, late)
        kept = attrs.evolve(job, attempts=attempts, due_at=due_at, error=f"{type(error).__name__}: {error}")
        given_up = final or (retry.attempts is not None and attempts >= retry.attempts)
        return ("dead" if given_up else "again"), kept


def job_of(gateway: str) -> str:
    """The name that a gateway's jobs have in an outbox."""
    return f"background {gateway}"


def envelope_of(mail: StoredMail, hostname: str = "localhost") -> Envelope:
    """
    The envelope of a mail read back; of its session only our own name is known.

    Args:
        mail: With its body.

        hostname: What we call ourselves.
    """
    session = Session(hostname=hostname, peer=mail.peer, helo=mail.helo, user=mail.user, tls=mail.tls)
    envelope = Envelope(mail.queue_id, session, mail.received_at, mail_from=mail.mail_from)
    envelope.mail_params = mail.mail_params
    params = mail.rcpt_params or ((),) * len(mail.rcpt_to)
    envelope.recipients = [
        Recipient(address, its, envelope, session) for address, its in zip(mail.rcpt_to, params, strict=True)
    ]
    envelope.smtputf8 = mail.smtputf8 or not all(
        address.isascii() for address in (mail.mail_from, *mail.rcpt_to)
    )
    if mail.body is not None:
        envelope.body = mail.body
    envelope.prelude = mail.prelude
    envelope.hashes = dict(mail.hashes)
    return envelope
