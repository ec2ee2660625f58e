"""``maildir``: files that mail programs read, one sync of each folder for a whole batch."""

import errno
import imaplib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mailpipe.envelope import Envelope
from mailpipe.errors import Deferred, Rejected
from mailpipe.steps import Place
from mailpipe.storages.maildir import MaildirOptions, MaildirStorage

MakeEnvelope = Callable[..., Envelope]
Keep = Callable[..., Awaitable[Any]]


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[MaildirStorage]:
    """One Maildir for everything."""
    made = MaildirStorage()
    await made.setup(Place(data=tmp_path, hostname="mx.example.org"))
    yield made
    await made.teardown()


@pytest.fixture
async def by_recipient(tmp_path: Path) -> AsyncIterator[MaildirStorage]:
    """A Maildir for each recipient."""
    made = MaildirStorage(MaildirOptions(mailbox="{domain}/{user}"))
    await made.setup(Place(data=tmp_path, hostname="mx.example.org"))
    yield made
    await made.teardown()


def files(folder: Path) -> list[Path]:
    """Every file beneath *folder*."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


class TestFiles:
    async def test_is_prelude_and_body(
        self, storage: MaildirStorage, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """What we add stands before what was received, which is untouched."""
        envelope = make_envelope(b"Subject: x\r\n\r\nhello\r\n", to=["b@example.org", "c@example.org"])
        await keep(storage, envelope)

        (file,) = files(tmp_path / "maildir")
        assert file.parent.name == "new"
        assert file.read_bytes() == (
            envelope.prelude
            + b"X-Envelope-From: <a@example.org>\r\n"
            + b"X-Envelope-To: <b@example.org>, <c@example.org>\r\n"
            + b"Subject: x\r\n\r\nhello\r\n"
        )

    async def test_the_name_tells_time_id_host_and_size(
        self, storage: MaildirStorage, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """By the Maildir convention, with the size that quotas read."""
        envelope = make_envelope(received_at=1700000000.25)
        await keep(storage, envelope)

        (file,) = files(tmp_path / "maildir")
        size = file.stat().st_size
        head = size - len(envelope.body)
        assert file.name == f"1700000000.M250000Q{envelope.queue_id}.mx.example.org,S={size},P={head}"

    async def test_each_recipient_has_a_maildir(
        self, by_recipient: MaildirStorage, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """A copy for each, that does not name the others."""
        await keep(by_recipient, make_envelope(to=["b@Example.org", "c@example.org"]))

        found = files(tmp_path / "maildir")
        assert [str(file.parent.relative_to(tmp_path)) for file in found] == [
            "maildir/example.org/b/new",
            "maildir/example.org/c/new",
        ]
        assert b"X-Envelope-To: <b@Example.org>\r\n" in found[0].read_bytes()
        assert b"<c@" not in found[0].read_bytes()

    async def test_a_hostile_hostname_is_no_path(
        self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Names hold no separators, whatever we are called."""
        storage = MaildirStorage()
        await storage.setup(Place(data=tmp_path, hostname="../../x:y"))
        await keep(storage, make_envelope())

        (file,) = files(tmp_path / "maildir")
        assert file.parent == tmp_path / "maildir" / "new"
        assert ":" not in file.name
        await storage.teardown()


class TestSyncing:
    async def test_each_file_and_each_folder_once(
        self,
        storage: MaildirStorage,
        make_envelope: MakeEnvelope,
        keep: Keep,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Ten mails: ten syncs of files before any is renamed, then one of the folder."""
        steps: list[str] = []
        for name in ("fdatasync", "fsync", "rename"):
            monkeypatch.setattr(os, name, _recorded(name, getattr(os, name), steps))
        await keep(storage, *[make_envelope() for _ in range(10)])

        assert steps == ["fdatasync"] * 10 + ["rename"] * 10 + ["fsync"]

    async def test_a_failed_sync_of_the_folder_takes_all_back(
        self,
        storage: MaildirStorage,
        make_envelope: MakeEnvelope,
        keep: Keep,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """Nothing is kept of what is not known to be kept; a retry keeps it."""
        envelopes = [make_envelope() for _ in range(3)]
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _failing(errno.EIO))
            with pytest.raises(OSError, match="Input/output error"):
                await keep(storage, *envelopes)
        assert files(tmp_path / "maildir") == []

        await keep(storage, *envelopes, attempt=2)
        assert len(files(tmp_path / "maildir")) == 3

    async def test_a_full_disk_fails_those_that_found_no_room(
        self,
        storage: MaildirStorage,
        make_envelope: MakeEnvelope,
        keep: Keep,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """452 4.3.1 for one, the others are kept."""
        small, large = make_envelope(), make_envelope(b"x" * 300_000)
        write = os.write

        def full(fd: int, octets: bytes) -> int:
            if len(octets) > 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(fd, octets)

        monkeypatch.setattr(os, "write", full)
        view = await keep(storage, small, large)

        assert list(view.failed) == [1]
        assert isinstance(view.failed[1], Deferred)
        assert view.failed[1].reply.code == 452
        assert [file.parent.name for file in files(tmp_path / "maildir")] == ["new"]

    async def test_another_error_fails_all(
        self,
        storage: MaildirStorage,
        make_envelope: MakeEnvelope,
        keep: Keep,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """A disk that reports errors is trusted with nothing."""
        monkeypatch.setattr(os, "fdatasync", _failing(errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            await keep(storage, make_envelope(), make_envelope())

        assert files(tmp_path / "maildir") == []


class TestRetrying:
    async def test_finds_what_a_reader_moved(
        self, storage: MaildirStorage, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Read, flagged and moved to cur/ between two attempts, a mail is not delivered again."""
        envelope = make_envelope()
        await keep(storage, envelope)
        (file,) = files(tmp_path / "maildir")
        file.rename(file.parent.parent / "cur" / f"{file.name}:2,S")
        await keep(storage, envelope, attempt=2)

        (file,) = files(tmp_path / "maildir")
        assert file.parent.name == "cur"
        mail = await storage.get(envelope.queue_id)
        assert mail is not None
        assert mail.body is not None
        assert mail.body.read() == envelope.body.read()

    async def test_what_a_dead_process_left_in_tmp(
        self, storage: MaildirStorage, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Half a file of the same name is written anew; an old one is swept when opened."""
        envelope = make_envelope()
        await keep(storage, envelope)
        (file,) = files(tmp_path / "maildir")
        whole = file.read_bytes()
        file.unlink()
        (tmp_path / "maildir" / "tmp" / file.name).write_bytes(b"half of something longer" * 100)
        await keep(storage, envelope)
        assert file.read_bytes() == whole

        stale = tmp_path / "maildir" / "tmp" / "stale"
        stale.write_bytes(b"x")
        os.utime(stale, (0, 0))
        await storage.teardown()
        await storage.setup(Place(data=tmp_path))
        assert not stale.exists()


class TestHostility:
    @pytest.mark.parametrize(
        "address",
        ["../../../tmp/x@example.org", "..@example.org", "-x@example.org", "b@../example.org", "a\0b@x.y"],
    )
    async def test_recipients_that_are_no_names(
        self,
        by_recipient: MaildirStorage,
        make_envelope: MakeEnvelope,
        keep: Keep,
        tmp_path: Path,
        address: str,
    ) -> None:
        """550 5.1.3 for that mail, nothing outside of the root, the others are kept."""
        view = await keep(by_recipient, make_envelope(to=[address]), make_envelope())

        assert isinstance(view.failed[0], Rejected)
        assert view.failed[0].reply.enhanced == "5.1.3"
        assert list(view.failed) == [0]
        assert len(files(tmp_path)) == 1

    async def test_links_are_not_followed(
        self, by_recipient: MaildirStorage, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Somebody's link in the place of a Maildir leads nowhere."""
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (tmp_path / "maildir" / "example.org").symlink_to(elsewhere)
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            await keep(by_recipient, make_envelope())

        assert files(elsewhere) == []

    async def test_a_sender_writes_no_header_of_ours(
        self, storage: MaildirStorage, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Controls in addresses end no line."""
        await keep(storage, make_envelope(b"\r\nbody", mail_from="a\r\nX-Evil: 1@example.org"))

        (file,) = files(tmp_path / "maildir")
        assert b"\r\nX-Evil" not in file.read_bytes()


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "rule"),
        [
            ({"mailbox": "../{user}"}, "mailbox is names with .*got '../{user}'"),
            ({"mailbox": "/abs"}, "mailbox is names with .*got '/abs'"),
            ({"mailbox": "{address}"}, "mailbox is names with"),
            ({"threads": 0}, "threads must be more than 0, got 0"),
            ({"expire": 0.0}, "expire must be more than 0, got 0.0"),
        ],
    )
    def test_bad_ones_name_the_rule(self, options: dict[str, Any], rule: str) -> None:
        """Refused before anything was opened."""
        with pytest.raises(ValueError, match=rule):
            MaildirOptions(**options)

    async def test_many_maildirs_keep_few_descriptors(
        self, by_recipient: MaildirStorage, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """A thousand recipients do not use up the descriptors."""
        for start in range(0, 300, 50):
            await keep(
                by_recipient, *[make_envelope(to=[f"u{n}@example.org"]) for n in range(start, start + 50)]
            )

        assert len(by_recipient._folders) <= 64 + 50  # noqa: SLF001 - the bound is the promise
        assert len(await by_recipient.list()) == 300


class TestDovecot:
    async def test_reads_our_maildir(
        self, dovecot: Any, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """A real IMAP server finds the mails, their sizes and every octet of them."""
        storage = MaildirStorage(MaildirOptions(mailbox="{user}"))
        await storage.setup(Place(data=tmp_path, hostname="mx.example.org"))
        envelopes = [
            make_envelope(
                b"Subject: number %d\r\n\r\n%s\r\n" % (number, b"x" * number * 100), to=["bob@example.org"]
            )
            for number in range(5)
        ]
        await keep(storage, *envelopes)
        await storage.teardown()
        written = {file.read_bytes() for file in files(tmp_path / "maildir" / "bob")}
        hand_over(tmp_path / "maildir" / "bob", dovecot.root / "bob", dovecot.root)

        with imaplib.IMAP4("127.0.0.1", dovecot.port, timeout=20) as imap:
            imap.login("bob", "secret")
            assert imap.select("INBOX") == ("OK", [b"5"])
            _, found = imap.fetch("1:5", "(BODY.PEEK[] RFC822.SIZE)")
            bodies = [part[1] for part in found if isinstance(part, tuple)]
            _, subjects = imap.search(None, "SUBJECT", '"number 3"')

        assert set(bodies) == written
        assert len(subjects[0].split()) == 1


def hand_over(source: Path, target: Path, like: Path) -> None:
    """Move a Maildir to where an IMAP server looks, and make it its user's."""
    shutil.move(source, target)
    owner = like.stat()
    for path in (target, *target.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def _recorded(name: str, real: Callable[..., Any], steps: list[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        steps.append(name)
        return result

    return call


def _failing(number: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call
