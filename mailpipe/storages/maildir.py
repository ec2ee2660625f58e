"""
``maildir``: one file for each mail, as mail programs and IMAP servers read them.

=============  ==========================================================================
does           all of a batch to ``tmp/``, synced side by side, renamed to ``new/``, each
               folder synced once
hook           batch (storage); sync, in a thread of its own
options        `MaildirOptions`
reads          nothing
writes         nothing
durability     ``disk``
largest body   no bound of its own
=============  ==========================================================================

A file is the prelude, two fields of ours (``X-Envelope-From``, ``X-Envelope-To``) and the body as
received. Its name tells where the body begins, so that what was received can be given back byte
for byte: ``1700000000.M123456QID.host,S=1234,P=100``.

A name is made of the mail's own id, so a retry finds what an earlier attempt wrote: by the same
name in ``new/``, by the id in ``cur/``, where readers move it.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import anyio.to_thread
import attrs

from dispatcher import Batch
from mailpipe.addresses import mailbox_of
from mailpipe.bodies import Handle
from mailpipe.envelope import Body, Envelope
from mailpipe.errors import Deferred, Rejected
from mailpipe.headers import find_header, header_line
from mailpipe.reply import STORE_FULL
from mailpipe.steps import Durability, Place, StoredMail, processor
from mailpipe.storages._expiry import Expiry
from mailpipe.storages._maildir_folder import FileName, Folder, StoredBody, found_files, name_of
from mailpipe.storages._thread import OwnThread
from mailpipe.storages._validators import positive, positive_or_none

__all__ = ["MaildirOptions", "MaildirStorage"]

T = TypeVar("T")
_Mailboxes = dict[tuple[str, ...], list[str]]
_Mails = list[StoredMail]
_Found = list[tuple[Path, FileName]]

_PIECE = 256 * 1024
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_OPEN_FOLDERS = 64
_FIELD = b"X-Envelope-From:"
_ADDRESS = re.compile(r"<([^<>]*)>")


def _template(_: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    parts = value.split("/") if value else []
    for part in parts:
        rest = part.replace("{user}", "u").replace("{domain}", "d")
        if not rest or rest.startswith(".") or "{" in rest or "}" in rest:
            msg = f"{attribute.name} is names with {{user}} and {{domain}}, parted by '/', got {value!r}"
            raise ValueError(msg)


@attrs.frozen(kw_only=True)
class MaildirOptions:
    """
    Settings of one ``maildir`` storage; checked when made.

    Args:
        path: The Maildir, or the root of many; relative to the data folder.

        mailbox:
            ``""``: one Maildir at *path* for everything. Else the Maildir of each recipient beneath
            *path*, such as ``"{domain}/{user}"``; a mail goes once into each.

        threads: So many files are written and synced side by side.

        expire: Seconds after which a mail is deleted, read or not; None keeps it.

    Raises:
        ValueError: If a value breaks its rule.
    """

    path: str = "maildir"
    mailbox: str = attrs.field(default="", validator=_template)
    threads: int = attrs.field(default=4, validator=positive)
    expire: float | None = attrs.field(default=None, validator=positive_or_none)


@attrs.define(eq=False)
class _File:
    """One file to be written: a mail in one Maildir."""

    position: int
    folder: Folder
    name: str
    head: bytes
    body: Body
    fd: int = -1
    error: OSError | None = None
    """What the disk said."""

    renamed: bool = False

    def write(self) -> None:
        """Write it in ``tmp/``; leaves it open to be synced."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.fd = os.open(self.name, flags, 0o600, dir_fd=self.folder.tmp)
            _write(self.fd, self.head)
            for chunk in self.body.chunks(_PIECE):
                _write(self.fd, chunk)
        except OSError as error:
            self.error = error

    def sync(self) -> None:
        """Sync and close it."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        try:
            if self.error is None:
                os.fdatasync(fd)
        except OSError as error:
            self.error = error
        finally:
            os.close(fd)

    def rename(self) -> None:
        """Make it a mail."""
        os.rename(self.name, self.name, src_dir_fd=self.folder.tmp, dst_dir_fd=self.folder.new)
        self.renamed = True

    def undo(self) -> None:
        """Take it away, wherever it is; it stays where even that fails."""
        try:
            os.unlink(self.name, dir_fd=self.folder.new if self.renamed else self.folder.tmp)
        except OSError:
            return


@processor("maildir", kind="batch", options=MaildirOptions, storage=True)
class MaildirStorage:
    """
    Keeps mails as files in Maildirs; a whole batch pays for one sync of each folder.

    Idempotent by the file's name.
    """

    durability: Durability = "disk"
    largest: int | None = None
    idempotent = True
    serial = True
    holds_body = True

    def __init__(self, options: MaildirOptions | None = None) -> None:
        self.options = options or MaildirOptions()
        self._root = -1
        self._path = Path()
        self._host = "localhost"
        self._folders: dict[tuple[str, ...], Folder] = {}
        self._thread: OwnThread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._expiry: Expiry | None = None

    @property
    def lasting(self) -> bool:
        """False if it expires."""
        return self.options.expire is None

    async def setup(self, place: Place) -> None:
        """
        Open the root, and the Maildir if there is only one.

        Raises:
            OSError: If a folder cannot be made.
        """
        self._path, self._host = place.data / self.options.path, place.hostname
        if place.reading:
            return
        self._thread = OwnThread(f"mailpipe-maildir-{place.gateway}")
        self._pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="mailpipe-maildir")
        try:
            await self.run(self._open)
        except BaseException:
            await self.teardown()
            raise
        if self.options.expire is not None:
            self._expiry = Expiry(self, self.options.expire)

    async def teardown(self) -> None:
        """Close, after what runs. May be repeated."""
        if self._expiry is not None:
            await self._expiry.close()
            self._expiry = None
        if self._thread is not None:
            thread, self._thread = self._thread, None
            await thread.run(self._close)
            await thread.close()

    async def run(self, work: Callable[[], T]) -> T:
        """Call *work* in the storage's thread; see `OwnThread.run`."""
        if self._thread is None:
            msg = "storage maildir is not open"
            raise RuntimeError(msg)
        return await self._thread.run(work)

    def __call__(self, batch: Batch[Envelope], /) -> None:
        """
        Keep the batch; blocks, in the storage's thread.

        A full disk fails the mails that found no room (452 4.3.1); any other error of the disk fails
        all, and what was renamed already is taken back.
        """
        if self._pool is None or not len(batch):
            return
        files = list(self._files(batch))
        try:
            # One after another here: threads that write would mostly wait for the interpreter's lock.
            for file in files:
                file.write()
        finally:
            tuple(self._pool.map(_File.sync, files))
        full = {file.position for file in files if file.error and file.error.errno in _FULL}
        others = [file.error for file in files if file.error and file.error.errno not in _FULL]
        try:
            self._finish([file for file in files if file.position not in full], others)
        except BaseException:
            for file in files:
                file.undo()
            raise
        for file in files:
            if file.position in full:
                file.undo()
        for position in sorted(full):
            batch.fail(position, Deferred(STORE_FULL))

    async def get(self, queue_id: str) -> StoredMail | None:
        """One mail with its body as received, or None."""
        return await anyio.to_thread.run_sync(self._get, queue_id)

    async def list(self, *, after: str = "", limit: int = 1000) -> Sequence[StoredMail]:
        """Mails in the order of their ids, without bodies; from the one after *after*."""
        return await anyio.to_thread.run_sync(self._list, after, limit)

    async def delete(self, queue_ids: Sequence[str]) -> int:
        """Delete these from every Maildir; returns how many there were."""
        wanted = frozenset(queue_ids)
        return await anyio.to_thread.run_sync(self._remove, lambda name: name.queue_id in wanted)

    async def expire(self, before: float) -> int:
        """Delete what was received earlier than *before*; returns how many."""
        return await anyio.to_thread.run_sync(self._remove, lambda name: name.received_at < before)

    def _open(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if not self.options.mailbox:
            self._folder(())

    def _close(self) -> None:
        for folder in self._folders.values():
            folder.close()
        self._folders.clear()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _folder(self, parts: tuple[str, ...]) -> Folder:
        folder = self._folders.pop(parts, None) or Folder(self._root, parts)
        self._folders[parts] = folder
        return folder

    def _files(self, batch: Batch[Envelope]) -> Iterator[_File]:
        """What is to be written; fails those whose recipients have no place."""
        # Not while a batch is written: its files hold descriptors of their folders.
        while len(self._folders) > _OPEN_FOLDERS:
            self._folders.pop(next(iter(self._folders))).close()
        there: dict[Folder, set[str]] = {}
        for position, envelope in enumerate(batch.items):
            try:
                mailboxes = self._mailboxes(envelope)
            except (Rejected, ValueError) as error:
                batch.fail(position, error)
                continue
            for parts, recipients in mailboxes.items():
                folder = self._folder(parts)
                if batch.attempt > 1:
                    if folder not in there:
                        there[folder] = folder.ids()
                    if envelope.queue_id in there[folder]:
                        continue
                head = envelope.prelude + _envelope_fields(envelope.mail_from, recipients)
                size = len(head) + len(envelope.body)
                name = name_of(envelope.queue_id, envelope.received_at, self._host, size, len(head))
                yield _File(position, folder, name, head, envelope.body)

    def _finish(self, files: Sequence[_File], errors: Sequence[OSError]) -> None:
        """Rename what was written, and sync each folder once; or raise the first error."""
        if errors:
            raise errors[0]
        for file in files:
            file.rename()
        if self._pool is not None:
            # Iterated to the end, for map() raises only what is asked for.
            tuple(self._pool.map(os.fsync, {file.folder.new for file in files}))

    def _mailboxes(self, envelope: Envelope) -> _Mailboxes:
        """
        Maildirs of a mail, and the recipients that each stands for.

        Raises:
            Rejected: If a recipient is no safe name.
            ValueError: If there is no recipient to whom the mail could go.
        """
        if not self.options.mailbox:
            return {(): list(envelope.rcpt_to)}
        found: _Mailboxes = {}
        for address in envelope.rcpt_to:
            user, domain = mailbox_of(address)
            parts = tuple(
                part.replace("{domain}", domain or self._host).replace("{user}", user)
                for part in self.options.mailbox.split("/")
            )
            found.setdefault(parts, []).append(address)
        if not found:
            msg = f"mail {envelope.queue_id} has no recipient, and the storage keeps mails by recipient"
            raise ValueError(msg)
        return found

    def _get(self, queue_id: str) -> StoredMail | None:
        found = [(path, name) for path, name in found_files(self._path) if name.queue_id == queue_id]
        if not found:
            return None
        path, name = found[0]
        try:
            handle = Handle(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            mail = _mail(found)
        except FileNotFoundError:
            # Deleted, or moved by a reader, between the two looks.
            return None
        return attrs.evolve(mail, body=StoredBody(handle, name.head, name.size - name.head))

    def _list(self, after: str, limit: int) -> Sequence[StoredMail]:
        files: dict[str, _Found] = {}
        for path, name in found_files(self._path):
            if name.queue_id > after:
                files.setdefault(name.queue_id, []).append((path, name))
        mails: _Mails = []
        for queue_id in sorted(files)[:limit]:
            # Deleted, or moved by a reader, between the two looks.
            with contextlib.suppress(FileNotFoundError):
                mails.append(_mail(files[queue_id]))
        return mails

    def _remove(self, doomed: Callable[[FileName], bool]) -> int:
        removed = set()
        for path, name in found_files(self._path):
            if doomed(name):
                path.unlink(missing_ok=True)
                removed.add(name.queue_id)
        return len(removed)


def _write(fd: int, octets: bytes) -> None:
    view = memoryview(octets)
    while view:
        view = view[os.write(fd, view) :]


def _envelope_fields(sender: str, recipients: Sequence[str]) -> bytes:
    """Who sent it and for whom this copy is, for those who read the file."""
    to = ", ".join(f"<{address}>" for address in recipients)
    return header_line("X-Envelope-From", f"<{sender}>") + header_line("X-Envelope-To", to)


def _head_of(path: Path, name: FileName) -> tuple[bytes, str, tuple[str, ...], bytes]:
    """Prelude, sender, recipients, and the beginning of the body."""
    with path.open("rb") as file:
        head, begin = file.read(name.head), file.read(65536)
    at = head.rfind(_FIELD)
    fields = head[at:] if at >= 0 else b""
    sender = _ADDRESS.findall(find_header([fields], "X-Envelope-From") or "")
    recipients = _ADDRESS.findall(find_header([fields], "X-Envelope-To") or "")
    return head[: at if at >= 0 else len(head)], (sender or [""])[0], tuple(recipients), begin


def _mail(found: _Found) -> StoredMail:
    """One mail out of its files, one in each Maildir; each knows its own recipients only."""
    name = found[0][1]
    heads = [_head_of(path, its) for path, its in found]
    prelude, sender, _, begin = heads[0]
    return StoredMail(
        queue_id=name.queue_id,
        received_at=name.received_at,
        mail_from=sender,
        rcpt_to=tuple(dict.fromkeys(address for _, _, recipients, _ in heads for address in recipients)),
        size=name.size - name.head,
        subject=find_header([begin], "subject") or "",
        prelude=prelude,
    )
