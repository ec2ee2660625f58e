"""
Maildirs on disk: opened beneath a root without following links, named, found again.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import attrs

from mailpipe.bodies import Handle

__all__ = ["FileName", "Folder", "StoredBody", "found_files", "name_of"]

_NAME = re.compile(r"(\d+)\.M(\d{6})Q([0-9a-z]{1,64})\.[^,:/]*,S=(\d+),P=(\d+)(?:[,:].*)?\Z")
_UNFIT = re.compile(r"[^A-Za-z0-9.\-]")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STALE = 36 * 3600.0
"""Seconds after which a file in ``tmp/`` is nobody's any more, by the Maildir convention."""


class FileName(NamedTuple):
    """What a file's name tells."""

    received_at: float
    queue_id: str
    size: int
    """Octets of the file."""

    head: int
    """Octets before the body."""


def name_of(queue_id: str, received_at: float, host: str, size: int, head: int) -> str:
    """Name a file; the same for every attempt at the same mail."""
    seconds, _, fraction = f"{received_at:.6f}".partition(".")
    return f"{seconds}.M{fraction}Q{queue_id}.{_UNFIT.sub('_', host)[:64]},S={size},P={head}"


def parsed(name: str) -> FileName | None:
    """Read a name, as we wrote it or as a reader changed it; None if it is none of ours."""
    if (found := _NAME.match(name)) is None:
        return None
    return FileName(float(f"{found[1]}.{found[2]}"), found[3], int(found[4]), int(found[5]))


class Folder:
    """
    One Maildir: descriptors of its three folders, so that nothing renamed above it matters.

    Args:
        root: Descriptor of the folder beneath which it lies.

        parts: Names from there down; made if missing, and never followed where they are links.

    Raises:
        OSError: If a part cannot be made or is a link (ELOOP, ENOTDIR).
    """

    def __init__(self, root: int, parts: Sequence[str]) -> None:
        self.tmp = self.new = self.cur = -1
        top = os.dup(root)
        try:
            for part in parts:
                below = _subfolder(top, part)
                os.close(top)
                top = below
            self.tmp, self.new, self.cur = (_subfolder(top, name) for name in ("tmp", "new", "cur"))
            self._sweep()
        except BaseException:
            self.close()
            raise
        finally:
            os.close(top)

    def close(self) -> None:
        """Let the descriptors go. May be repeated."""
        for fd in (self.tmp, self.new, self.cur):
            if fd >= 0:
                os.close(fd)
        self.tmp = self.new = self.cur = -1

    def ids(self) -> set[str]:
        """Queue ids of the mails in ``new/`` and ``cur/``."""
        return {
            name.queue_id
            for fd in (self.new, self.cur)
            for entry in os.listdir(fd)
            if (name := parsed(entry)) is not None
        }

    def _sweep(self) -> None:
        before = time.time() - _STALE
        for name in os.listdir(self.tmp):
            if os.stat(name, dir_fd=self.tmp, follow_symlinks=False).st_mtime < before:
                os.unlink(name, dir_fd=self.tmp)


def _subfolder(above: int, name: str) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=above)
    except FileNotFoundError:
        pass
    try:
        os.mkdir(name, 0o700, dir_fd=above)
        # A mail is no safer than the name of the folder it lies in.
        os.fsync(above)
    except FileExistsError:
        pass
    return os.open(name, _DIRECTORY, dir_fd=above)


def found_files(root: Path) -> Iterator[tuple[Path, FileName]]:
    """Every mail in every Maildir beneath *root*; folders that are links are passed by."""
    for top, folders, files in os.walk(root):
        if os.path.basename(top) == "tmp":
            folders.clear()
        elif os.path.basename(top) in {"new", "cur"}:
            for file in files:
                if (name := parsed(file)) is not None:
                    yield Path(top, file), name


@attrs.frozen(eq=False)
class StoredBody:
    """The body in a file of ours: what follows its head."""

    handle: Handle
    head: int
    size: int
    encoding: str = ""

    def __len__(self) -> int:
        return self.size

    def chunks(self, size: int = 65536) -> Iterator[bytes]:
        """
        Yield the octets in order, at most *size* at a time.

        Raises:
            OSError: If the file cannot be read, or ends early.
        """
        with self.handle as fd:
            at = 0
            while at < self.size:
                chunk = os.pread(fd, min(size, self.size - at), self.head + at)
                if not chunk:
                    msg = f"mail file ends at {at} of {self.size} octets"
                    raise OSError(msg)
                at += len(chunk)
                yield chunk

    def read(self) -> bytes:
        """Return all octets at once, however many: `chunks` is for large ones."""
        return b"".join(self.chunks(1 << 20))
