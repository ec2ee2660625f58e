"""
Files that a store keeps for good: bodies too large for a row.

A file is linked and its folder synced *before* the row that refers to it is committed, and
removed *after* that row is gone. So a row never lacks its file; a file may lack its row (the
commit failed, the process died), and is swept at the next start.
"""

import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from mailpipe.bodies import FileBody, Handle
from mailpipe.envelope import Body

__all__ = ["Shelf"]

# A file without a row is another process's commit in progress until it is this old (seconds).
_SWEEP_AGE = 900.0


class Shelf:
    """
    One store's folder of bodies by name. Everything here blocks on the disk.

    Args:
        folder: Made by `open`; its parent is the folder of the spool, so that linking works.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    def open(self, known: Callable[[Collection[str]], Collection[str]]) -> int:
        """
        Make the folder, become one of its users, and sweep what has no row.

        Args:
            known: Of the names given, which have a row.

        Returns:
            How many files were swept.

        Raises:
            OSError: If the folder cannot be made or locked.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sync_folder(self.folder.parent)
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            before = float("inf")
        except BlockingIOError:
            # Other workers live: what is young may be a row of theirs in a moment.
            before = time.time() - _SWEEP_AGE
        swept = self._sweep(known, before)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        return swept

    def close(self) -> None:
        """Stop being a user of the folder. May be repeated."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def keep(self, bodies: Iterable[tuple[str, Body]]) -> None:
        """
        Put bodies on the shelf for good: on return, files and names are on stable storage.

        Repeating it is harmless.

        Raises:
            OSError: If the disk refuses; names already given are swept later.
        """
        kept = False
        for name, body in bodies:
            kept = True
            path = self.folder / name
            if isinstance(body, FileBody):
                body.link(path)
            else:
                _write_file(path, body)
        if kept:
            _sync_folder(self.folder)

    def get(self, name: str, encoding: str) -> FileBody:
        """
        Open one.

        Raises:
            FileNotFoundError: If there is none of that name.
        """
        handle = Handle(os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC))
        with handle as fd:
            return FileBody(handle, os.fstat(fd).st_size, encoding=encoding)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, those that are gone already included."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _sweep(self, known: Callable[[Collection[str]], Collection[str]], before: float) -> int:
        found = [entry.name for entry in os.scandir(self.folder) if entry.stat().st_ctime < before]
        orphans = set(found) - set(known(found)) if found else set()
        self.remove(orphans)
        return len(orphans)


def _write_file(path: Path, body: Body) -> None:
    # An octet sink of our own kind of file: written and synced under another name, so that the
    # name never stands for half a body.
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            for chunk in body.chunks():
                file.write(chunk)
            file.flush()
            os.fdatasync(file.fileno())
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
