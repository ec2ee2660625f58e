"""
``spool``: mails are answered when a journal has them, and go to the storages after that.

Every process has a journal of its own, a folder that it locks; whatever journals nobody has locked are
adopted: their mails are delivered here, and new ones go to our own. After the 250 nobody can be answered
any more, so what a step rejects, what it fails on, and what it deferred too often are dead letters.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import attrs
import tenacity

from dispatcher import Batch, ChannelStatistics, DurableChannel, RetryPolicy
from dispatcher.errors import StoreDiskFull, StoreError
from mailpipe import reply
from mailpipe.batchstage import Poisoned
from mailpipe.bodies import MIB
from mailpipe.config import GatewayConfig, SpoolConfig
from mailpipe.envelope import Envelope, MemoryBody, Recipient
from mailpipe.errors import Answer, Deferred
from mailpipe.gateway.journal import INLINE_MAX, QUEUE, JournalStore, Left, MailCodec, Spooled, new_name
from mailpipe.gateway.options import channel_options
from mailpipe.reply import Reply
from mailpipe.runner import Chain
from mailpipe.steps import Result

__all__ = ["Journal", "SpoolStatistics", "Spooling", "claim"]

log = logging.getLogger("mailpipe.mail")

_LOOK_EVERY = 30.0
"""Seconds between two looks for journals that nobody has: another process may have died."""

_CHUNK = 256 * 1024


@attrs.frozen(kw_only=True)
class SpoolStatistics:
    """Counts of one gateway's journals."""

    journals: int
    """Ours, and those adopted."""

    octets: int
    """In them, files and dead letters included."""

    dead: int
    """Mails that became dead letters, since they were opened."""


def claim(folder: Path) -> int | None:
    """
    Lock a journal's folder; None if a living process has it, or it is gone.

    Returns:
        A descriptor; closing it gives the folder back.

    Raises:
        OSError: If the lock's file cannot be made.
    """
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None  # its adopter has just removed it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), (folder / "lock").stat()):
            os.close(descriptor)
            return None
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Journal:
    """
    One journal, open: mails in, batches out of it.

    Args:
        folder: Its own, existing.

        lock: As `claim` gave it; closed with the journal.

        chain: Opened; its batch steps take the mails.

        config: The gateway's.

        name: The gateway's.

        on_stored: Called when mails went through.

        on_crash: Called if a step ends the journal by something that is no `Exception`.
    """

    def __init__(
        self,
        folder: Path,
        lock: int,
        chain: Chain,
        config: GatewayConfig,
        name: str,
        *,
        read_max: int = MIB,
        on_stored: Callable[[], object] = lambda: None,
        on_crash: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder = folder
        self._lock, self._chain = lock, chain
        self._on_stored, self._on_crash = on_stored, on_crash
        spool = config.spooling
        assert spool is not None
        self._spool: SpoolConfig = spool
        self.store = JournalStore(folder, self._delay, read_max)
        options = attrs.evolve(
            channel_options(config, serial=chain.plan.serial),
            item_age_max=None,
            retry=RetryPolicy(
                wait=tenacity.wait_random_exponential(
                    multiplier=config.retry.first, max=config.retry.longest
                ),
                stop=tenacity.stop_never,
            ),
        )
        codec = MailCodec(self.store.bodies.folder, read_max)
        self.channel: DurableChannel[Envelope, Result | None] = DurableChannel(
            self._send, self.store, QUEUE, "journal", codec, options, name=f"{name} {folder.name}"
        )
        self._again_chain = bool(chain.plan.stream or chain.plan.envelope)
        self._coming = 0
        self._opened = self._unneeded = False
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def _delay(self, attempts: int) -> float | None:
        retry = self._spool.retry
        if retry.attempts is not None and attempts >= retry.attempts:
            return None
        late = min(retry.longest, retry.first * 2.0 ** min(attempts - 1, 60))
        return random.uniform(late / 2, late)

    async def start(self) -> None:
        """
        Open it; what it holds is sent from now on.

        Raises:
            StoreError, OSError: If it cannot be opened; the lock is given back.
        """
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(opened), name=f"journal {self.folder.name}")
        self._task.add_done_callback(self._ended)
        await opened

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._closing.is_set() or not self._opened:
            return
        error = None if task.cancelled() else task.exception()
        fields = {"journal": str(self.folder)}
        log.critical("a journal did not survive", exc_info=error, extra={"fields": fields})
        self._on_crash()

    async def _run(self, opened: asyncio.Future[None]) -> None:
        try:
            async with self.store:
                await self.store.prepare()
                async with self.channel:
                    opened.set_result(None)
                    self._opened = True
                    await self._closing.wait()
            if self._unneeded:
                # Under its lock: whoever waits for that sees that the folder is gone.
                await asyncio.to_thread(shutil.rmtree, self.folder)
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)
        finally:
            os.close(self._lock)

    async def aclose(self, deadline: float) -> None:
        """
        Let what runs end, and keep the rest.

        Args:
            deadline: Loop's time past which what runs is cancelled.

        Raises:
            StoreError: If the disk refused to the end what has to be noted.
        """
        self._closing.set()
        if self._task is None:
            return
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self._task)
        except TimeoutError:
            if self._task.done():
                raise
            self.channel.cancel()
            await self._task

    async def empty(self) -> bool:
        """Whether there is nothing in it, dead letters included."""
        counts = await self.channel.counts()
        return not (counts.live.items or counts.dead.items or counts.quarantined.items)

    async def remove(self) -> None:
        """Close it and delete its folder; for one that takes no mail and is `empty`."""
        self._unneeded = True
        await self.aclose(asyncio.get_running_loop().time() + 5.0)

    def full(self, size: int) -> bool:
        """Whether *size* octets more are too many."""
        return self.store.octets + self._coming + size > self._spool.max_size

    async def keep(self, envelope: Envelope) -> Reply:
        """
        Write a mail; 250 once it is durable, 452 if there is no room, 451 if it cannot be.

        Not to be cancelled: nobody would know whether it is kept.
        """
        size = len(envelope.body)
        if self.full(size):
            return reply.STORE_FULL
        self._coming += size
        try:
            return await self._keep(envelope, size)
        except StoreDiskFull:
            return reply.STORE_FULL
        except (StoreError, OSError) as error:
            fields = {"queue_id": envelope.queue_id, "error": repr(error)}
            log.error("the journal does not take a mail", extra={"fields": fields})  # noqa: TRY400 - said in fields
            return reply.TROUBLE
        except anyio.ClosedResourceError:
            return reply.TROUBLE
        finally:
            self._coming -= size

    async def _keep(self, envelope: Envelope, size: int) -> Reply:
        mail = _mail_of(envelope, envelope.queue_id, envelope.recipients)
        mail.prelude, mail.hashes = envelope.prelude, envelope.hashes
        mail.values, mail.copies = envelope.values, {}
        # Its copies may be views of the received body, which is the session's: derived again.
        mail.derived = not envelope.copies
        large = size > INLINE_MAX
        if large:
            await self.store.shelve(mail.name, envelope.body)
        try:
            mail.body = self.stored_body(mail, envelope)
            await self.channel.send(mail)
        except BaseException:
            if large:
                await self.store.drop_file(mail.name, size)
            raise
        return reply.queued_as(envelope.queue_id)

    def stored_body(self, mail: Spooled, envelope: Envelope) -> Any:  # noqa: ANN401 - a Body
        """The body that outlives the session's."""
        if len(envelope.body) <= INLINE_MAX:
            return MemoryBody(b"".join(envelope.body.chunks()))
        return self.store.body_of(mail.name, len(envelope.body))

    async def _send(self, batch: Batch[Envelope]) -> Sequence[Result | None]:
        results: Sequence[Result | None] = ()
        try:
            for envelope in batch:
                if isinstance(envelope, Spooled) and not envelope.derived:
                    await self._derive(envelope)
            results = await self._chain.deliver(batch)
        finally:
            for position, error in batch.errors.items():
                mail = batch[position]
                if isinstance(error, Deferred) and not isinstance(error, Poisoned):
                    assert isinstance(mail, Spooled)
                    self.store.again(mail)
        for position, result in enumerate(results):
            mail = batch[position]
            if isinstance(result, tuple) and isinstance(mail, Spooled) and position not in batch.errors:
                self.store.leave(mail, self._left(mail, result))
        self._on_stored()
        return results

    async def _derive(self, mail: Spooled) -> None:
        """What the stream and envelope steps left, again; what they answer was answered before the 250."""
        if self._again_chain:
            taps = self._chain.open(mail)
            try:
                chunks = iter(mail.body.chunks(_CHUNK))
                while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                    if (stall := taps.write(chunk)) is not None:
                        await stall
                if (closing := taps.close()) is not None:
                    await closing
                if (judging := self._chain.judge(mail)) is not None:
                    await judging
            except Answer as answer:
                fields = {"queue_id": mail.queue_id, "answer": str(answer)}
                log.warning("a step would answer otherwise than before the 250", extra={"fields": fields})
            except Exception:
                # One unreadable mail fails no batch: the step that needs its body fails on it alone.
                taps.abort()
                fields = {"queue_id": mail.queue_id}
                log.exception("a mail's steps cannot run again", extra={"fields": fields})
            except BaseException:
                taps.abort()
                raise
        mail.derived = True

    def _left(self, mail: Spooled, replies: tuple[Reply, ...]) -> list[Left]:
        """Whom a storage did not take: to be tried again, and those it refused."""
        left = []
        for wanted, delay in ((False, self.store.first_delay()), (True, None)):
            pairs = [
                (recipient, said)
                for recipient, said in zip(mail.recipients, replies, strict=True)
                if not said.positive and said.permanent is wanted
            ]
            if pairs:
                rest = _mail_of(mail, new_name(mail.queue_id), [recipient for recipient, _ in pairs])
                rest.body = mail.body
                left.append(Left(rest, "; ".join(f"{one.address}: {said}" for one, said in pairs), delay))
        return left


def _mail_of(envelope: Envelope, name: str, recipients: Sequence[Recipient]) -> Spooled:
    mail = Spooled(
        queue_id=envelope.queue_id, session=envelope.session, received_at=envelope.received_at, name=name
    )
    mail.mail_from, mail.mail_params = envelope.mail_from, envelope.mail_params
    mail.smtputf8 = envelope.smtputf8
    mail.recipients = [attrs.evolve(one, envelope=mail) for one in recipients]
    return mail


class Spooling:
    """
    A gateway's journals: one of our own, and those that nobody else has; for use in an ``async with`` block.

    Args:
        folder: Of all journals of the gateway.

        chain, config, name, read_max, on_stored, on_crash: As of `Journal`.
    """

    def __init__(
        self,
        folder: Path,
        chain: Chain,
        config: GatewayConfig,
        name: str,
        *,
        read_max: int = MIB,
        on_stored: Callable[[], object] = lambda: None,
        on_crash: Callable[[], object] = lambda: None,
    ) -> None:
        self._folder = folder
        self._make: Callable[[Path, int], Journal] = lambda place, lock: Journal(
            place, lock, chain, config, name, read_max=read_max, on_stored=on_stored, on_crash=on_crash
        )
        self._name = name
        self.own: Journal
        self.adopted: list[Journal] = []
        self._looking: asyncio.Task[None] | None = None

    @property
    def journals(self) -> tuple[Journal, ...]:
        """Ours first."""
        return (self.own, *self.adopted)

    def statistics(self) -> tuple[SpoolStatistics, ChannelStatistics]:
        """Counts of all, and of our own journal's channel."""
        told = [journal.channel.statistics() for journal in self.journals]
        spool = SpoolStatistics(
            journals=len(told),
            octets=sum(journal.store.octets for journal in self.journals),
            dead=sum(one.dead for one in told),
        )
        return spool, told[0].channel

    async def __aenter__(self) -> Self:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened: list[Journal] = []
        try:
            for journal in self._orphans():
                await journal.start()
                opened.append(journal)
            if not opened:
                journal = self._fresh()
                await journal.start()
                opened.append(journal)
        except BaseException:
            for one in opened:
                await one.aclose(asyncio.get_running_loop().time() + 5.0)
            raise
        self.own, *self.adopted = opened
        self._looking = asyncio.create_task(self._look(), name=f"journals {self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose(asyncio.get_running_loop().time() + 5.0)

    async def aclose(self, deadline: float) -> None:
        """Halt all journals; see `Journal.aclose`. Again: nothing."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
            self._looking = None
            ends = await asyncio.gather(
                *(journal.aclose(deadline) for journal in self.journals), return_exceptions=True
            )
            for end in ends:
                if isinstance(end, BaseException):
                    # What it holds it still holds: the next start goes on from there.
                    fields = {"gateway": self._name}
                    log.error("a journal did not end well", exc_info=end, extra={"fields": fields})

    def _orphans(self) -> Iterator[Journal]:
        """Journals of the folder that nobody has, each locked when it is asked for."""
        for place in sorted(self._folder.iterdir()):
            if place.is_dir() and place.name.isdigit() and (lock := claim(place)) is not None:
                yield self._make(place, lock)

    def _fresh(self) -> Journal:
        number = 0
        while True:
            place = self._folder / str(number)
            with contextlib.suppress(FileExistsError):
                place.mkdir(mode=0o700)
                _sync(self._folder)
                if (lock := claim(place)) is not None:
                    return self._make(place, lock)
            number += 1

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                for journal in list(self.adopted):
                    if await journal.empty():
                        self.adopted.remove(journal)
                        await journal.remove()
                for journal in self._orphans():
                    await journal.start()
                    self.adopted.append(journal)
                    log.warning("adopted a journal", extra={"fields": {"journal": str(journal.folder)}})
            except (StoreError, OSError):
                log.exception("a journal cannot be adopted", extra={"fields": {"gateway": self._name}})


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
