"""
The path of a mail: the one place that wires receiver → chain → Channel → storages.

::

    open()   DATA began     octets → stream taps and a body of the spool
    save()   after the dot  envelope steps → submit → batch steps → commit → outcome → reply

The rules:

- No 250 before the commit: the reply comes of the receipt's outcome, and of nothing else.
- A sender never waits longer than ``save_timeout`` (and 5 s more for an attempt that is running).
  Past it the mail is withdrawn, or, if an attempt has it, answered 451 and followed up: a mail that is
  stored after all is sent again by its client, and a log line says so.
- Trouble of ours is 451; 5xx is said by steps alone.
- The body is released when nothing can touch it any more: after the outcome, whoever waited for it.
"""

import asyncio
import contextlib
import logging
import os
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio
import attrs

from dispatcher import BufferFull, Channel, ChannelStatistics, Outcome, Receipt, Status
from mailpipe import reply
from mailpipe.bodies import BodyWriter, FileBody, HeldBody, Spool
from mailpipe.config import GatewayConfig
from mailpipe.envelope import Body, Envelope, Recipient, Session, chances, queue_id_of
from mailpipe.errors import Answer
from mailpipe.gateway.background import Background, BackgroundStatistics
from mailpipe.gateway.disk import DiskSpace
from mailpipe.gateway.journal import JournalStore
from mailpipe.gateway.options import channel_options
from mailpipe.gateway.outbox import FileOutbox
from mailpipe.gateway.patience import Patience
from mailpipe.gateway.spooling import Spooling, SpoolStatistics
from mailpipe.gateway.validation import Validation
from mailpipe.reply import Reply
from mailpipe.runner import Chain, EnvelopeTaps
from mailpipe.steps import Result

__all__ = ["Gateway", "GatewayStatistics"]

log = logging.getLogger("mailpipe.mail")

_VERDICT_GRACE = 5.0
"""Seconds that a mail in an attempt is waited for past its save_timeout."""

_LOGGED_RECIPIENTS = 20

_IDS_AT_ONCE = 100

_Told = TypeVar("_Told", bound=Result | str)


@attrs.frozen(kw_only=True)
class GatewayStatistics:
    """Counts of one gateway."""

    channel: ChannelStatistics
    """The Channel between receivers and storages."""

    open_mails: int
    """Bodies being received or saved, now."""

    stored: int
    """Answered 250, so far."""

    rejected: int
    """Answered 5xx by a step, so far."""

    deferred: int
    """Answered 4xx, so far."""

    late: int
    """Answered 451 and stored all the same, so far: their clients send them again."""

    background: BackgroundStatistics | None
    """Of its background jobs, if it has such."""

    spool: SpoolStatistics | None
    """Of its journals, if it spools; `channel` then is our own journal's."""


class _Sink:
    """One mail's octets on their way into the spool, past the chain's taps."""

    __slots__ = ("_envelope", "_gateway", "_taps", "_writer")

    def __init__(
        self, gateway: "Gateway", envelope: Envelope, writer: BodyWriter, taps: EnvelopeTaps
    ) -> None:
        self._gateway, self._envelope, self._writer, self._taps = gateway, envelope, writer, taps

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        tapped = self._taps.write(chunk)
        written = self._writer.write(chunk)
        if tapped is None or written is None:
            return tapped or written
        return _both(tapped, written)

    def close(self) -> Awaitable[None] | None:
        body = self._writer.close_nowait()
        if body is None:
            return self._close(None)
        self._envelope.body = body
        try:
            closing = self._taps.close()
        except Answer as answer:
            # A stream step's: `Gateway.save` says it.
            self._gateway.refuse(self._envelope, answer)
            return None
        return None if closing is None else self._close(closing)

    async def _close(self, closing: Awaitable[None] | None) -> None:
        """Close what has to be waited for: the body's file, and then the taps; or these alone."""
        try:
            if closing is None:
                self._envelope.body = await self._writer.close()
                closing = self._taps.close()
            if closing is not None:
                await closing
        except Answer as answer:
            self._gateway.refuse(self._envelope, answer)
        except BaseException:
            # The receiver answers 451; it never calls `save` or `abort` after this.
            self._taps.abort()
            self._gateway.leave(self._envelope)
            raise

    def abort(self) -> None:
        self._taps.abort()
        self._writer.abort()
        self._gateway.leave(self._envelope)


async def _both(first: Awaitable[None], second: Awaitable[None]) -> None:
    await first
    await second


class Gateway:
    """
    One configured gateway, running; what receivers know as a `MailGateway`.

    `start` opens the storages, `aclose` ends it. Belongs to one event loop.

    Args:
        name: As in ``[gateways.NAME]``.

        config: Its knobs.

        chain: What happens to a mail; opened and closed by the gateway.

        spool: Where bodies are while they are under way.

        disk: The data folder's disk.

        validate: Asked about recipients; opened and closed by the gateway.

        background: Done with a mail after its 250; opened and closed by the gateway.

        outbox: Where background jobs are, if the storage keeps none; a step of *chain* writes them.

        working: Whether background jobs are worked off here; else they are only written.

        max_size: Tells the octets of the largest mail that any server takes.

        on_crash: Called if a step ends the gateway by something that is no `Exception`.
    """

    def __init__(
        self,
        name: str,
        config: GatewayConfig,
        chain: Chain,
        *,
        spool: Spool,
        disk: DiskSpace,
        validate: Chain | None = None,
        background: Chain | None = None,
        outbox: FileOutbox | None = None,
        working: bool = True,
        max_size: Callable[[], int] = lambda: 0,
        on_crash: Callable[[], object] = lambda: None,
    ) -> None:
        self.name = name
        self.config = config
        self._chain = chain
        self._spool, self._disk, self._max_size, self._on_crash = spool, disk, max_size, on_crash
        self._journals: Spooling | None = None
        if (spooled := config.spooling) is not None:
            self._journals = Spooling(
                chain.place.data / (spooled.path or f"spool/{name}"),
                chain,
                config,
                name,
                read_max=spool.options.spool_above,
                on_stored=self._went_through,
                on_crash=on_crash,
            )
        options = channel_options(config, serial=chain.plan.serial)
        self._channel: Channel[Envelope, Result | None] = Channel(chain.deliver, options, name=name)
        self._validation = None if validate is None else Validation(validate, config, name)
        self._background_chain, self._outbox, self._working = background, outbox, working
        self._background: Background | None = None
        # A storage that decides per recipient, and SMTP with its one reply: one recipient a mail.
        # A journal keeps the recipients that are left.
        self._one_recipient = self._journals is None and any(
            getattr(step.target, "per_recipient", False) for step in chain.plan.storages
        )
        self._taken: weakref.WeakSet[Envelope] = weakref.WeakSet()
        self._opened_once = False
        self._closing = asyncio.Event()
        self._quiet = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._followers: set[asyncio.Task[None]] = set()
        self._handed: set[Envelope] = set()
        self._refused: dict[str, Answer] = {}
        self._chance: list[str] = []
        self._active = self._begun = self._opened = self._waiting = 0
        self._counts = dict.fromkeys(("stored", "rejected", "deferred", "late"), 0)

    @property
    def statistics(self) -> GatewayStatistics:
        """Counts, now."""
        background = None if self._background is None else attrs.evolve(self._background.statistics)
        spool, channel = None, self._channel.statistics()
        if self._journals is not None:
            spool, channel = self._journals.statistics()
        return GatewayStatistics(
            background=background, channel=channel, spool=spool, open_mails=self._active, **self._counts
        )

    @property
    def archive(self) -> Any:  # noqa: ANN401 - an Archive, by duck
        """The opened storage that reads mails back (`mailpipe.steps.Archive`), or None."""
        return self._chain.archive

    async def start(self) -> None:
        """
        Open the storages, then the Channel.

        Raises:
            Exception: Whatever a step's setup raised; nothing is left open.
        """
        self._loop = asyncio.get_running_loop()
        self._patience = Patience(self._loop)
        opened: asyncio.Future[None] = self._loop.create_future()
        self._task = self._loop.create_task(self._run(opened), name=f"gateway {self.name}")
        self._task.add_done_callback(self._ended)
        await opened

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._closing.is_set() or not self._opened_once:
            return
        error = None if task.cancelled() else task.exception()
        fields = {"gateway": self.name}
        log.critical("a gateway did not survive", exc_info=error, extra={"fields": fields})
        self._on_crash()

    async def _run(self, opened: asyncio.Future[None]) -> None:
        # A task of its own: whoever closes the gateway need not be the task that opened it.
        try:
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(self._chain)
                if self._background_chain is not None:
                    self._background = await stack.enter_async_context(
                        Background(
                            self._background_chain,
                            self._chain.archive,
                            self.config,
                            self.name,
                            outbox=self._outbox,
                            hostname=self._chain.place.hostname,
                            working=self._working,
                        )
                    )
                if self._validation is not None:
                    await stack.enter_async_context(self._validation)
                await stack.enter_async_context(self._journals or self._channel)
                opened.set_result(None)
                self._opened_once = True
                await self._closing.wait()
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)

    async def wait_idle(self, deadline: float) -> None:
        """
        Return when no mail is under way here, or at *deadline* (of the loop's clock).

        A client that said MAIL to this gateway may still send its DATA; one that gave up after MAIL
        is waited for until the deadline, for nobody tells.
        """
        self._quiet.clear()
        self._look()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._quiet.wait()

    def no_more_clients(self) -> None:
        """Whoever said MAIL here and never came to DATA is gone."""
        self._begun = self._opened
        self._look()

    async def aclose(self, deadline: float) -> None:
        """
        Take no more, let every accepted mail have its outcome, close the storages.

        Args:
            deadline: Loop's time past which what waits is given up; its clients were told 451.
        """
        self.stop_jobs()
        if self._journals is None:
            self._channel.close()
        else:
            await self._journals.aclose(deadline)
        try:
            async with asyncio.timeout_at(deadline):
                if self._journals is None:
                    await self._channel.wait_drained()
                await asyncio.gather(*self._followers)
                if self._background is not None:
                    await self._background.wait_stopped()
        except TimeoutError:
            self._give_up()
        self._closing.set()
        if self._task is not None:
            await self._task

    def journal(self, folder: str) -> JournalStore | None:
        """The queue of the journal in *folder*, if it is open here."""
        journals = () if self._journals is None or not self._opened_once else self._journals.journals
        return next((one.store for one in journals if str(one.folder) == folder), None)

    def stop_jobs(self) -> None:
        """Begin no more background jobs: another gateway does."""
        if self._background is not None:
            self._background.stop()

    def _give_up(self) -> None:
        if self._journals is not None:
            fields: dict[str, object] = {"gateway": self.name, "mails": len(self._followers)}
            log.error(
                "shutdown_timeout is over, and the journal's word is not there", extra={"fields": fields}
            )
            return
        live = self._channel.statistics().live
        fields = {"gateway": self.name, "mails": live}
        log.error("shutdown_timeout is over, mails are given up", extra={"fields": fields})
        self._channel.cancel()

    # What receivers ask for

    def new_queue_id(self) -> str:
        """A fresh queue id, asked for at MAIL."""
        self._begun += 1
        if not self._chance:
            # In one call for many: each lets go of the interpreter, and other threads take it.
            self._chance = chances(os.urandom(16 * _IDS_AT_ONCE))
        return queue_id_of(time.time(), self._chance.pop())

    def admit(self, session: Session, size: int) -> Reply | None:
        """At MAIL: 452 4.3.1 if nothing can be taken now, because the Channel or the disk is full."""
        if self._disk.short(2 * max(size, self._max_size()), self._loop.time()):
            self._begun -= 1
            fields = {"gateway": self.name}
            log.error("short of disk space, mail is deferred", extra={"fields": fields})
            return reply.STORE_FULL
        if self._waiting or (self._journals is not None and self._journals.own.full(size)):
            # Somebody waits for room already: this client would wait behind them.
            self._begun -= 1
            return reply.STORE_FULL
        return None

    def validate(self, recipient: Recipient) -> Reply | Awaitable[Reply | None] | None:
        """At RCPT, after the receiver's own checks: at once where nobody has to be asked."""
        if self._one_recipient and not recipient.session.lmtp:
            if recipient.envelope in self._taken:
                # One reply cannot say that one recipient was taken and the other was not.
                return reply.TOO_MANY_RECIPIENTS
            self._taken.add(recipient.envelope)
        if self._validation is None or self._validation.knows(recipient):
            return None
        return self._ask(self._validation, recipient)

    async def _ask(self, validation: Validation, recipient: Recipient) -> Reply | None:
        refusal = await validation.ask(recipient)
        if refusal is not None:
            self._taken.discard(recipient.envelope)
        return refusal

    def open(self, envelope: Envelope) -> _Sink:
        """At DATA: where this envelope's octets go."""
        self._opened += 1
        sink = _Sink(self, envelope, self._spool.open(), self._chain.open(envelope))
        self._active += 1
        return sink

    def save(self, envelope: Envelope) -> Result | Awaitable[Result]:
        """
        After the dot: the verdict, once the mail is durable, or refused.

        At once if a stream or envelope step answered without waiting; else to be awaited. Cancelled,
        that leaves a submitted mail to its fate; the log tells it.
        """
        began = self._loop.time()
        try:
            if (refused := self._refused.pop(envelope.queue_id, None)) is not None:
                return self._over(envelope, refused.reply, began)
            return self._save(envelope, self._chain.judge(envelope), began)
        except Answer as answer:
            return self._over(envelope, answer.reply, began)
        except BaseException as error:
            self._over(envelope, f"{type(error).__name__}", began)
            raise

    async def _save(self, envelope: Envelope, judging: Awaitable[None] | None, began: float) -> Result:
        try:
            answer = await self._verdict(envelope, judging, began + self.config.save_timeout)
        except BaseException as error:
            self._over(envelope, f"{type(error).__name__}", began)
            raise
        return self._over(envelope, answer, began)

    async def _verdict(self, envelope: Envelope, judging: Awaitable[None] | None, deadline: float) -> Result:
        if judging is not None:
            try:
                await judging
            except Answer as answer:
                return answer.reply
        if self._journals is not None:
            return await self._kept(envelope, self._journals.own.keep(envelope), deadline)
        try:
            receipt = self._channel.submit_nowait(envelope)
        except BufferFull:
            self._waiting += 1
            try:
                async with asyncio.timeout_at(deadline):
                    receipt = await self._channel.submit(envelope)
            except TimeoutError:
                return reply.TROUBLE
            finally:
                self._waiting -= 1
        except anyio.ClosedResourceError:
            return reply.TROUBLE
        return await self._outcome(envelope, receipt, deadline)

    async def _kept(self, envelope: Envelope, keeping: Coroutine[Any, Any, Reply], deadline: float) -> Reply:
        """The journal's word; a write that has begun is never broken off, for nobody would know its end."""
        task = self._loop.create_task(keeping)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(task)
        except (TimeoutError, asyncio.CancelledError) as error:
            self._handed.add(envelope)
            told = reply.TROUBLE if isinstance(error, TimeoutError) else None
            late = self._loop.create_task(self._kept_late(envelope, task, told))
            self._followers.add(late)
            late.add_done_callback(self._followers.discard)
            if told is None:
                raise
            return told

    async def _kept_late(self, envelope: Envelope, task: asyncio.Task[Reply], told: Reply | None) -> None:
        try:
            answer = await task
        finally:
            self._handed.discard(envelope)
            self.leave(envelope)
        if answer.positive and told is not None:
            self._counts["late"] += 1
        fields = {"queue_id": envelope.queue_id, "gateway": self.name, "reply": str(answer)}
        log.warning("the journal's word came with nobody waiting", extra={"fields": fields})

    async def _outcome(self, envelope: Envelope, receipt: Receipt[Result | None], deadline: float) -> Result:
        try:
            try:
                with self._patience.until(deadline):
                    outcome = await receipt.wait()
            except TimeoutError:
                if receipt.cancel():
                    return reply.TROUBLE
                # An attempt has it, and may be committing: its verdict is worth a moment.
                async with asyncio.timeout_at(deadline + _VERDICT_GRACE):
                    outcome = await receipt.wait()
        except TimeoutError:
            self._follow(envelope, receipt, told=reply.TROUBLE)
            return reply.TROUBLE
        except asyncio.CancelledError:
            self._follow(envelope, receipt, told=None)
            raise
        return _answer_of(envelope, outcome)

    def _follow(self, envelope: Envelope, receipt: Receipt[Result | None], told: Reply | None) -> None:
        """Nobody waits any more for this mail: keep its body until the outcome, and log that."""
        self._handed.add(envelope)
        task = self._loop.create_task(self._followed(envelope, receipt, told))
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

    async def _followed(
        self, envelope: Envelope, receipt: Receipt[Result | None], told: Reply | None
    ) -> None:
        outcome = await receipt.wait()
        self._handed.discard(envelope)
        self.leave(envelope)
        fields: dict[str, object] = {"queue_id": envelope.queue_id, "gateway": self.name}
        if outcome.status is Status.DELIVERED and told is not None:
            self._counts["late"] += 1
            if self._background is not None:
                self._background.wake()
            log.warning("stored after all, and its client was told to send again", extra={"fields": fields})
        else:
            fields["status"] = outcome.status.name.lower()
            log.warning("ended with nobody waiting", extra={"fields": fields})

    # A mail's resources

    def refuse(self, envelope: Envelope, answer: Answer) -> None:
        """For a sink: what a stream step said; `save` answers it."""
        if (cause := answer.__cause__) is not None:
            fields = {"queue_id": envelope.queue_id, "gateway": self.name}
            log.error("a stream step failed", exc_info=cause, extra={"fields": fields})
        self._refused[envelope.queue_id] = answer

    def _went_through(self) -> None:
        if self._background is not None:
            self._background.wake()

    def _look(self) -> None:
        if not self._active and self._begun <= self._opened:
            self._quiet.set()

    def leave(self, envelope: Envelope) -> None:
        """The mail is over here: nothing touches its bodies from now on."""
        self._active -= 1
        self._refused.pop(envelope.queue_id, None)
        self._look()
        self._release(envelope.body)
        for copy in envelope.copies.values():
            self._release(copy)

    def _release(self, body: Body) -> None:
        if isinstance(body, HeldBody):
            body.release()
        elif isinstance(body, FileBody):
            self._spool.dispose(body)

    def _over(self, envelope: Envelope, answer: _Told, began: float) -> _Told:
        """The client is to be told *answer*, or nothing any more."""
        # Cancelled, or told 451, with the mail in an attempt, its resources are a follower's.
        if envelope not in self._handed:
            self.leave(envelope)
        self._tell(envelope, answer, began)
        return answer

    def _tell(self, envelope: Envelope, answer: Result | str, began: float) -> None:
        first = answer if isinstance(answer, Reply | str) else _worst(answer)
        kind = "cancelled"
        if isinstance(first, Reply):
            if first.positive and self._background is not None:
                self._background.wake()
            kind = "stored" if first.positive else "rejected" if first.permanent else "deferred"
            self._counts[kind] += 1
        if not log.isEnabledFor(logging.INFO):
            return
        session = envelope.session
        fields = {
            "queue_id": envelope.queue_id,
            "gateway": self.name,
            "peer": session.peer,
            "helo": session.helo,
            "mail_from": envelope.mail_from,
            "rcpt_to": [one.address for one in envelope.recipients[:_LOGGED_RECIPIENTS]],
            "recipients": len(envelope.recipients),
            "size": len(envelope.body),
            "reply": str(first),
            "ms": round((self._loop.time() - began) * 1000, 1),
        }
        log.info(kind, extra={"fields": fields})


def _worst(answers: tuple[Reply, ...]) -> Reply:
    return next((one for one in answers if not one.positive), answers[0])


def _answer_of(envelope: Envelope, outcome: Outcome[Result | None]) -> Result:
    """The reply that an outcome means; only DELIVERED takes responsibility."""
    if outcome.status is Status.DELIVERED:
        return reply.queued_as(envelope.queue_id) if outcome.result is None else outcome.result
    if isinstance(outcome.error, Answer):
        return outcome.error.reply
    return reply.TROUBLE
