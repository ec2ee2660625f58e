"""
``exec``: a program for each mail, which gets it on its standard input.

=============  ==========================================================================
does           runs ``command`` for each mail; its exit status is the answer (sysexits.h)
hook           batch (storage), on the loop
options        `ExecOptions`
reads          nothing
writes         nothing
durability     ``none``: nobody knows what the program does; say more if you know more
largest body   no bound of its own
=============  ==========================================================================

The program is started by its argument list, never through a shell; what the mail brings
(addresses) enters arguments only through `mailpipe.addresses.mailbox_of`. Standard input is the
prelude and the body as received. Exit status 0 takes the mail; 64 to 78 are answered as
sysexits.h means them, but what is trouble of *ours* (no memory, bad configuration, our bug) stays
temporary; anything else, a signal or the timeout is 451.
"""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
from collections.abc import Sequence
from typing import Literal

import anyio.to_thread
import attrs

from dispatcher import Batch
from mailpipe.addresses import Mailbox, mailbox_of
from mailpipe.envelope import Envelope
from mailpipe.errors import Answer, Deferred, Rejected
from mailpipe.reply import Reply
from mailpipe.steps import Durability, Place, processor
from mailpipe.storages._validators import one_of, positive

__all__ = ["ExecOptions", "ExecStorage", "answer_of"]

_logger = logging.getLogger("mailpipe.storages")
_PIECE = 65536
_FAILED = Reply(451, "4.3.0", "Local error in processing, try again later")

# sysexits.h, where the program speaks of the mail or its recipient. All others are our trouble:
# 4xx, whatever the number (64 usage, 66 no input, 70 software, 71 system, 72 and 73 files, 74
# input/output, 75 try again, 76 protocol, 78 configuration).
_PERMANENT = {
    65: Reply(550, "5.6.0", "Message content not accepted"),
    67: Reply(550, "5.1.1", "No such user here"),
    68: Reply(550, "5.1.2", "No such host"),
    69: Reply(550, "5.3.0", "Service unavailable"),
    77: Reply(550, "5.7.0", "Permission denied"),
}


def answer_of(status: int) -> Answer | None:
    """
    What an exit status says of a mail: None for 0, else the answer.

    Args:
        status: As `subprocess` tells it: negative for a signal.
    """
    if status == 0:
        return None
    if status in _PERMANENT:
        return Rejected(_PERMANENT[status])
    return Deferred(_FAILED)


_PLACEHOLDER = re.compile(r"\{\w*\}")
_PER_RECIPIENT = ("{recipient}", "{user}", "{domain}")


def _arguments_of(value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        msg = f"command is a list of arguments, not one text for a shell, got {value!r}"
        raise ValueError(msg)  # noqa: TRY004 - as every other rule of the options
    return tuple(value)


def _command(_: object, attribute: "attrs.Attribute[tuple[str, ...]]", value: tuple[str, ...]) -> None:
    if not value or not all(isinstance(part, str) and part for part in value):
        msg = f"{attribute.name} is a list of arguments, the program first, got {value!r}"
        raise ValueError(msg)
    if "{" in value[0]:
        msg = f"{attribute.name} names its program without placeholders, got {value[0]!r}"
        raise ValueError(msg)
    for part in value:
        try:
            part == "{recipients}" or _filled(part, Mailbox("u", "d"), "id", "s")
        except KeyError as error:
            msg = f"{attribute.name} knows {{sender}}, {{recipient}}, {{user}}, {{domain}} and {{queue_id}}, got {part!r}"
            raise ValueError(msg) from error


@attrs.frozen(kw_only=True)
class ExecOptions:
    """
    Settings of one ``exec`` storage; checked when made.

    Args:
        command:
            The program and its arguments. ``{sender}``, ``{recipient}``, ``{user}``, ``{domain}`` and
            ``{queue_id}`` are filled in; an argument ``{recipients}`` alone becomes one argument for
            each recipient.

        timeout: Seconds for one mail; then the program and its children are killed. Below the
            gateway's send_timeout.

        processes: So many run at once.

        durability: What the program does with a mail before it ends with 0, by your word.

    Raises:
        ValueError: If a value breaks its rule.
    """

    command: tuple[str, ...] = attrs.field(converter=_arguments_of, validator=_command)
    timeout: float = attrs.field(default=15.0, validator=positive)
    processes: int = attrs.field(default=4, validator=positive)
    durability: Literal["disk", "os", "none"] = attrs.field(
        default="none", validator=one_of("disk", "os", "none")
    )

    @property
    def per_recipient(self) -> bool:
        """The program runs once for each recipient, and each has a result of its own."""
        return any(name in part for part in self.command for name in _PER_RECIPIENT)


@processor("exec", kind="batch", options=ExecOptions, storage=True)
class ExecStorage:
    """
    Hands each mail to a program.

    Not idempotent: a program that was killed at its timeout may have done its work. Each mail is
    reported as its program ends, so a retry runs only the others.
    """

    largest: int | None = None
    idempotent = False
    serial = False
    holds_body = True
    lasting = True

    def __init__(self, options: ExecOptions) -> None:
        self.options = options
        self._running = asyncio.Semaphore(options.processes)

    @property
    def durability(self) -> Durability:
        """By the options' word."""
        return self.options.durability

    @property
    def per_recipient(self) -> bool:
        """Recipients of one mail may have different results."""
        return self.options.per_recipient

    async def setup(self, place: Place) -> None:
        """
        See whether there is such a program.

        Raises:
            ValueError: If there is none that may be run.
        """
        if shutil.which(self.options.command[0]) is None:
            msg = f"command names a program that can be run, got {self.options.command[0]!r}"
            raise ValueError(msg)

    async def teardown(self) -> None:
        """Nothing to close: programs end with the calls that started them."""

    async def __call__(self, batch: Batch[Envelope], /) -> Sequence[tuple[Reply, ...] | None]:
        """Run the program for each mail, some at once; marks each mail when its program ended."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._mail(batch, position, envelope))
                for position, envelope in enumerate(batch.items)
            ]
        return [task.result() for task in tasks]

    async def _mail(
        self, batch: Batch[Envelope], position: int, envelope: Envelope
    ) -> tuple[Reply, ...] | None:
        if not self.options.per_recipient:
            if (answer := await self._run(envelope, envelope.rcpt_to)) is not None:
                batch.fail(position, answer)
            else:
                batch.done(position)
            return None
        answers = [await self._run(envelope, [address]) for address in envelope.rcpt_to]
        refusals = [answer for answer in answers if answer is not None]
        if len(refusals) == len(answers):
            # The milder one: the client tries again if any recipient may yet be taken.
            batch.fail(position, min(refusals, key=lambda answer: answer.reply.code))
            return None
        batch.done(position)
        return tuple([Reply(250, "2.0.0", "OK") if answer is None else answer.reply for answer in answers])

    async def _run(self, envelope: Envelope, recipients: Sequence[str]) -> Answer | None:
        """Run the program once; its answer, None if it took the mail."""
        try:
            command = _arguments(self.options.command, envelope, recipients)
        except Rejected as answer:
            return answer
        async with self._running:
            try:
                async with asyncio.timeout(self.options.timeout):
                    status = await _finished(command, envelope)
            except TimeoutError:
                _logger.warning(
                    "%s: %s killed after %g s", envelope.queue_id, command[0], self.options.timeout
                )
                return Deferred(_FAILED)
            except OSError as error:
                _logger.warning("%s: %s could not be run: %s", envelope.queue_id, command[0], error)
                return Deferred(_FAILED)
        return answer_of(status)


def _arguments(command: Sequence[str], envelope: Envelope, recipients: Sequence[str]) -> list[str]:
    """
    The argument list for one run.

    Raises:
        Rejected: If an address is none that may become an argument.
    """
    sender = mailbox_of(envelope.mail_from).address if envelope.mail_from else ""
    mailboxes = [mailbox_of(address) for address in recipients]
    made: list[str] = []
    for part in command:
        if part == "{recipients}":
            made += [mailbox.address for mailbox in mailboxes]
        else:
            made.append(
                _filled(part, mailboxes[0] if mailboxes else Mailbox("", ""), envelope.queue_id, sender)
            )
    return made


def _filled(part: str, mailbox: Mailbox, queue_id: str, sender: str) -> str:
    values = {
        "{sender}": sender,
        "{recipient}": mailbox.address,
        "{user}": mailbox.user,
        "{domain}": mailbox.domain,
        "{queue_id}": queue_id,
    }
    # Once over the text: a value with a placeholder's name in it stays a value.
    return _PLACEHOLDER.sub(lambda found: values[found[0]], part)


async def _finished(command: Sequence[str], envelope: Envelope) -> int:
    """Run *command* over the mail; its exit status. Killed with its children if cancelled."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    said = asyncio.ensure_future(_words(process.stderr))
    try:
        # A program may have seen enough before the end: its status decides.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await _feed(process.stdin, envelope)
        status = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())
        raise
    finally:
        # What it started may live on and hold the pipe.
        await asyncio.wait([said], timeout=1 if process.returncode else 0)
        said.cancel()
    if status != 0:
        words = said.result() if said.done() and not said.cancelled() else ""
        _logger.warning("%s: %s ended with %d: %s", envelope.queue_id, command[0], status, words)
    return status


async def _feed(stdin: asyncio.StreamWriter | None, envelope: Envelope) -> None:
    if stdin is None:
        return
    try:
        stdin.write(envelope.prelude)
        chunks = envelope.body.chunks(_PIECE)
        while chunk := await anyio.to_thread.run_sync(next, chunks, b""):
            stdin.write(chunk)
            await stdin.drain()
    finally:
        stdin.close()
    await stdin.wait_closed()


async def _words(stderr: asyncio.StreamReader | None) -> str:
    """The first words of what the program says; the rest is read and forgotten."""
    kept = b""
    while stderr is not None and (chunk := await stderr.read(4096)):
        kept = (kept + chunk)[:500]
    return kept.decode(errors="replace").strip()
