"""
What a gateway with ``spool`` keeps between its 250 and its storages: a queue in a folder of its own.

A mail is one record: a head of JSON, and a small body behind it. A large body is a file beside the
queue, linked and synced before the record is committed, and removed once the record is gone for good:
so a record never lacks its file, and a file without a record is swept when the journal is opened.

What steps derived (``values``, ``copies``, hashes, our header lines) is not written: the stream and
envelope steps derive it again for a mail that is read back.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from dispatcher.errors import CodecError
from dispatcher.stores import Dead, Leased, Nack, Record, Shelf, SQLiteStore, Stored
from mailpipe.bodies import FileBody, Handle
from mailpipe.envelope import Envelope, MemoryBody, Recipient, Session
from mailpipe.storages._shelf import Shelf as BodyFolder

__all__ = ["INLINE_MAX", "QUEUE", "JournalStore", "Left", "MailCodec", "Spooled", "head_of", "new_name"]

log = logging.getLogger("mailpipe.mail")

QUEUE = "mail"
INLINE_MAX = 64 * 1024
"""Octets of the largest body that is kept inside its record: many records are read at a time."""

_MAGIC = b"mailpipe 1\n"
_PAGE = 200
_SESSION = ("peer", "port", "local", "hostname", "helo", "esmtp", "lmtp", "tls", "user", "trusted")


@attrs.define(slots=True, eq=False, kw_only=True)
class Spooled(Envelope):
    """An envelope that a journal keeps."""

    name: str = ""
    """Names its record: the queue id, with a suffix if it is what was left of a mail."""

    derived: bool = True
    """What the stream and envelope steps leave is there."""


def new_name(queue_id: str) -> str:
    """A name for what is left of a mail."""
    return f"{queue_id}-{secrets.token_hex(4)}"


def head_of(payload: bytes) -> dict[str, Any]:
    """
    The facts of a record.

    Raises:
        CodecError: If it is none of ours.
    """
    if not payload.startswith(_MAGIC):
        msg = f"a record of the journal begins with {_MAGIC!r}, got {payload[:16]!r}"
        raise CodecError(msg)
    line, _, _ = payload[len(_MAGIC) :].partition(b"\n")
    try:
        head = json.loads(line)
        if isinstance(head, dict) and isinstance(head["name"], str) and isinstance(head["size"], int):
            return head
    except (ValueError, KeyError):
        pass
    msg = "a record of the journal has a head of JSON with name and size"
    raise CodecError(msg)


class _NamedHandle(Handle):
    """Opens its file for as long as somebody reads: many mails wait, descriptors are few."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd, self._users, self._closed = -1, 0, False
        self._lock = threading.Lock()

    def __enter__(self) -> int:
        with self._lock:
            if not self._users:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._users += 1
            return self._fd

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                os.close(self._fd)

    def close(self) -> None:
        """Nothing is held."""


def named_body(path: Path, size: int, read_max: int) -> FileBody:
    """A body in a file that is opened whenever it is read."""
    return FileBody(_NamedHandle(path), size, read_max=read_max)


class MailCodec:
    """
    Mails as records and back.

    Args:
        folder: Of the large bodies.

        read_max: Octets of the largest body that ``read()`` gives at once.
    """

    def __init__(self, folder: Path, read_max: int) -> None:
        self._folder, self._read_max = folder, read_max

    def encode(self, item: Envelope, /) -> bytes:
        """Write a `Spooled`; its large body is on the shelf already."""
        assert isinstance(item, Spooled)
        inline = len(item.body) <= INLINE_MAX
        head = {
            "name": item.name,
            "queue_id": item.queue_id,
            "received_at": item.received_at,
            "mail_from": item.mail_from,
            "mail_params": item.mail_params,
            "recipients": [(one.address, one.params) for one in item.recipients],
            "smtputf8": item.smtputf8,
            "size": len(item.body),
            "file": not inline,
            "session": {field: getattr(item.session, field) for field in _SESSION},
        }
        text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
        body = b"".join(item.body.chunks()) if inline else b""
        return b"".join((_MAGIC, text, b"\n", body))

    def decode(self, payload: bytes, /) -> Envelope:
        """
        Read one back.

        Raises:
            CodecError: If it is none of ours, or damaged.
        """
        head = head_of(payload)
        session = Session(**head["session"])
        mail = Spooled(
            queue_id=head["queue_id"],
            session=session,
            received_at=head["received_at"],
            name=head["name"],
            derived=False,
        )
        mail.mail_from, mail.smtputf8 = head["mail_from"], head["smtputf8"]
        mail.mail_params = tuple(head["mail_params"])
        mail.recipients = [
            Recipient(address, tuple(params), mail, session) for address, params in head["recipients"]
        ]
        size: int = head["size"]
        if head["file"]:
            mail.body = named_body(self._folder / mail.name, size, self._read_max)
            return mail
        body = payload[payload.index(b"\n", len(_MAGIC)) + 1 :]
        if len(body) != size:
            msg = f"the record of {mail.name} has a body of {len(body)} octets instead of {size}"
            raise CodecError(msg)
        mail.body = MemoryBody(body)
        return mail


@attrs.define(eq=False)
class Left:
    """Recipients that a storage did not take: a record of their own."""

    mail: Spooled
    error: str
    delay: float | None
    """Seconds to its next attempt; None: it is a dead letter."""

    tag: str = ""


@attrs.frozen
class _Held:
    name: str
    size: int
    file: bool
    attempts: int


class JournalStore(SQLiteStore):
    """
    The queue of one journal; also keeps its bodies' files, and counts octets.

    Verdicts (`again`, `leave`) are noted while a batch is sent, and hold when its outcome is settled.

    Args:
        folder: The journal's, existing.

        delay: Seconds until the next attempt, by the number of the last; None: give up.

        read_max: Octets of the largest body that ``read()`` gives at once.
    """

    def __init__(self, folder: Path, delay: Callable[[int], float | None], read_max: int) -> None:
        super().__init__(folder / "queue.db")
        self._read_max = read_max
        self.bodies = BodyFolder(folder / "bodies")
        self.octets = 0
        """Of all records and files, dead letters included."""
        self._delay = delay
        self._held: dict[str, _Held] = {}
        self._again: set[str] = set()
        self._left: dict[str, list[Left]] = {}

    async def prepare(self) -> None:
        """
        After it was opened: count what is there, and sweep files without a record.

        Raises:
            OSError: If the folder of the bodies cannot be used.
            StoreError: If the queue cannot.
        """
        await self.create(QUEUE)
        counts = await self.counts(QUEUE)
        self.octets = counts.live.bytes + counts.dead.bytes + counts.quarantined.bytes
        known: set[str] = set()
        whole = True
        if self.bodies.folder.is_dir() and any(self.bodies.folder.iterdir()):
            for shelf in Shelf:
                whole &= await self._names(shelf, known)
        # A damaged record cannot say which file is its own: then none goes.
        await asyncio.to_thread(self.bodies.open, lambda names: known.intersection(names) if whole else names)
        self.octets += sum(path.stat().st_size for path in self.bodies.folder.iterdir())

    async def _names(self, shelf: Shelf, names: set[str]) -> bool:
        """Add the names of all records there; whether all had one."""
        whole = True
        after: str | None = None
        while page := await self.peek(QUEUE, _PAGE, shelf=shelf, after=after):
            after = page[-1].cursor
            for one in page:
                try:
                    names.add(head_of(one.payload)["name"])
                except CodecError:
                    whole = False
        return whole

    async def shelve(self, name: str, body: Any) -> None:  # noqa: ANN401 - a Body
        """Put a large body's file beside the queue, durably; blocks nobody."""
        await asyncio.to_thread(self.bodies.keep, [(name, body)])
        self.octets += len(body)

    def body_of(self, name: str, size: int) -> FileBody:
        """The large body of that name."""
        return named_body(self.bodies.folder / name, size, self._read_max)

    async def drop_file(self, name: str, size: int) -> None:
        """Remove a large body's file: nothing refers to it."""
        await asyncio.to_thread(self.bodies.remove, [name])
        self.octets -= size

    def again(self, mail: Spooled) -> None:
        """A step said "later" of this one."""
        self._again.add(mail.name)

    def leave(self, mail: Spooled, left: Iterable[Left]) -> None:
        """A storage took *mail* but for these."""
        self._left[mail.name] = list(left)

    def first_delay(self) -> float | None:
        """Until the second attempt."""
        return self._delay(1)

    # The store's own steps, looked at on their way

    async def put(self, records: Sequence[Record], queues: Sequence[str], **options: Any) -> Sequence[Stored]:  # noqa: ANN401 - as the store's
        """See `dispatcher.stores.Store.put`."""
        stored = await super().put(records, queues, **options)
        for record, entry in zip(records, stored, strict=True):
            self.octets += record.size
            if entry.tag is not None:
                self._note(entry.tag, record.payload, 1)
        return stored

    async def lease(self, queue: str, limit: int, **options: Any) -> Sequence[Leased]:  # noqa: ANN401 - as the store's
        """See `dispatcher.stores.Store.lease`."""
        leased = await super().lease(queue, limit, **options)
        for one in leased:
            self._note(one.tag, one.payload, one.attempts)
        return leased

    def _note(self, tag: str, payload: bytes, attempts: int) -> None:
        try:
            head = head_of(payload)
        except CodecError:
            return  # decoding will fail as well, and set it aside
        size = len(payload) + (head["size"] if head["file"] else 0)
        self._held[tag] = _Held(head["name"], size, head["file"], attempts)

    async def settle(
        self, acks: Sequence[str] = (), nacks: Sequence[Nack] = (), dead: Sequence[Dead] = ()
    ) -> Sequence[str]:
        """See `dispatcher.stores.Store.settle`; "later" is a delay, until there were too many."""
        # Repeated as a whole if the disk fails in it: what was noted goes only when all of it held.
        given_back, given_up = list(nacks), []
        for one in dead:
            held = self._held.get(one.tag)
            later = self._delay(held.attempts) if held is not None and held.name in self._again else None
            if later is None or one.quarantine:
                given_up.append(one)
            else:
                given_back.append(Nack(one.tag, delay=later))
        for tag in acks:
            held = self._held.get(tag)
            for left in self._left.get(held.name, ()) if held is not None else ():
                await self._put_left(left)
                if left.delay is None:
                    given_up.append(Dead(left.tag, left.error))
                else:
                    given_back.append(Nack(left.tag, delay=left.delay))
        unknown = await super().settle(acks, given_back, given_up)
        gone: list[_Held] = []
        for tag in (*acks, *(back.tag for back in given_back), *(up.tag for up in given_up)):
            if (held := self._held.pop(tag, None)) is None:
                continue
            self._again.discard(held.name)
            self._left.pop(held.name, None)
            if tag in acks and tag not in unknown:
                gone.append(held)
        self.octets -= sum(held.size for held in gone)
        if files := [held.name for held in gone if held.file]:
            try:
                await asyncio.to_thread(self.bodies.remove, files)
            except OSError:
                # The mails are delivered; the next opening sweeps.
                log.exception("files of delivered mails cannot be removed")
        return unknown

    async def drop_dead(self, records: Sequence[str], shelf: Shelf) -> int:
        """Delete dead letters for good, their files after them; returns how many there were."""
        dropped: list[tuple[str, int]] = []
        size, wanted, after = 0, set(records), None
        while page := await self.peek(QUEUE, _PAGE, shelf=shelf, after=after):
            after = page[-1].cursor
            for one in page:
                if one.id not in wanted:
                    continue
                size += len(one.payload)
                with contextlib.suppress(CodecError):  # damaged: it cannot say which file is its own
                    head = head_of(one.payload)
                    if head["file"]:
                        dropped.append((head["name"], head["size"]))
        count = await self.purge(QUEUE, records, shelf=shelf)
        self.octets -= size
        for name, octets in dropped:
            await self.drop_file(name, octets)
        return count

    async def _put_left(self, left: Left) -> None:
        if left.tag:
            return
        mail = left.mail
        codec = MailCodec(self.bodies.folder, 0)
        if len(mail.body) > INLINE_MAX:
            await self.shelve(mail.name, mail.body)
        stored = await self.put([Record(codec.encode(mail))], [QUEUE], lease=True)
        assert stored[0].tag is not None
        left.tag = stored[0].tag

    async def aclose(self) -> None:
        """See `dispatcher.stores.Store.aclose`."""
        await super().aclose()
        self.bodies.close()
