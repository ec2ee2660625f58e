"""
Where bodies are while mail is on its way: small ones in memory, large ones in files.

The rules:

- A file is complete and synced before anybody is told of its `FileBody`; it has no name yet
  (``O_TMPFILE``), so a crash leaves nothing behind.
- A store that keeps it links it into a folder of its own (`mailpipe.storages.shelf`).
- A descriptor closes when its last user is done, for numbers are reused: a thread that is
  late must find its own file or none.

Everything that touches the disk runs in a thread or is called from one, except what is named
in its docstring.
"""

import errno
import os
import threading
import time
from collections.abc import Awaitable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import anyio.to_thread
import attrs

from mailpipe.envelope import Body, MemoryBody

__all__ = ["BodyWriter", "FileBody", "Handle", "HeldBody", "Spool", "SpoolOptions"]

MIB = 1024 * 1024

# Octets that a writer collects before it bothers a thread with them.
_FLUSH_AT = 256 * 1024

# A file is synced each time this much was added: the sync after the dot, which runs against
# the client's patience, then has little left to do, and dirty pages stay bounded.
_SYNC_EVERY = 32 * MIB

# An unfinished file is somebody's mail in progress until it is this old (seconds): longer than
# DATA may take in all.
_SWEEP_AGE = 7200.0

# Answers of file systems that know no files without a name.
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})


def _positive(_: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if value < 0:
        msg = f"{attribute.name} must be 0 or more, got {value!r}"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class SpoolOptions:
    """
    How much of the mail under way is held in memory.

    Args:
        spool_above: Octets; a body larger than this becomes a file. 0 makes every body a file.

        memory_max: Octets over all bodies held at once; past it, even small ones become files.

    Raises:
        ValueError: If a number is negative.
    """

    spool_above: int = attrs.field(default=MIB, validator=_positive)
    memory_max: int = attrs.field(default=256 * MIB, validator=_positive)


class Handle:
    """
    A descriptor with users; closes when closed and unused.

    ``with handle as fd`` is a use. After `close` a new use is a ValueError.
    """

    __slots__ = ("_closed", "_fd", "_lock", "_users")

    def __init__(self, fd: int) -> None:
        self._fd, self._users, self._closed = fd, 0, False
        self._lock = threading.Lock()

    def __enter__(self) -> int:
        with self._lock:
            if self._closed:
                msg = "the body was released"
                raise ValueError(msg)
            self._users += 1
        return self._fd

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and self._users == 0
        if last:
            os.close(self._fd)

    def __del__(self) -> None:
        # A body that nobody released but everybody forgot.
        self.close()

    def close(self) -> None:
        """Take no new users; the last one closes. May be repeated."""
        with self._lock:
            last = not self._closed and self._users == 0
            self._closed = True
        if last:
            os.close(self._fd)


@attrs.frozen(slots=True, eq=False)
class HeldBody:
    """A body in memory that counts against its spool's `SpoolOptions.memory_max` until released."""

    data: bytes
    _spool: "Spool"
    encoding: str = ""

    def __len__(self) -> int:
        return len(self.data)

    def chunks(self, size: int = 65536) -> Iterator[bytes]:
        """Yield the octets in order, at most *size* at a time."""
        for start in range(0, len(self.data), size):
            yield self.data[start : start + size]

    def read(self) -> bytes:
        """Return all octets."""
        return self.data

    def release(self) -> None:
        """Count no longer. Once; on the loop's thread."""
        self._spool.held -= len(self.data)


class FileBody:
    """
    A body in a file: complete, synced, immutable.

    May be read by several threads at once. Holds a descriptor until `release`.
    """

    __slots__ = ("_handle", "_read_max", "_size", "_temporary", "encoding")

    def __init__(
        self,
        handle: Handle,
        size: int,
        *,
        encoding: str = "",
        read_max: int = 0,
        temporary: Path | None = None,
    ) -> None:
        self._handle, self._size, self._read_max = handle, size, read_max
        self._temporary = temporary
        self.encoding: str = encoding

    def __len__(self) -> int:
        return self._size

    def chunks(self, size: int = 65536) -> Iterator[bytes]:
        """
        Yield the octets in order, at most *size* at a time.

        Raises:
            ValueError: If the body was released.
            OSError: If the file cannot be read, or ends early.
        """
        with self._handle as fd:
            at = 0
            while at < self._size:
                chunk = os.pread(fd, min(size, self._size - at), at)
                if not chunk:
                    msg = f"body file ends at {at} of {self._size} octets"
                    raise OSError(msg)
                at += len(chunk)
                yield chunk

    def part(self, start: int, end: int) -> bytes:
        """
        Return the octets from *start* to before *end*.

        Raises:
            ValueError: If the body was released.
            OSError: If the file cannot be read, or ends early.
        """
        with self._handle as fd:
            octets = os.pread(fd, end - start, start)
        if len(octets) != end - start:
            msg = f"body file ends at {start + len(octets)} of {self._size} octets"
            raise OSError(msg)
        return octets

    def read(self) -> bytes:
        """
        Return all octets at once.

        Raises:
            ValueError: If there are more than a body in memory may have; use `chunks`.
        """
        if self._size > self._read_max:
            msg = f"a body of {self._size} octets is read by chunks(), read() takes up to {self._read_max}"
            raise ValueError(msg)
        return b"".join(self.chunks(MIB))

    def release(self) -> None:
        """Let the descriptor go, once its last user is done. May be repeated."""
        self._handle.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def link(self, target: Path) -> None:
        """
        Give the file a name; the folder is the caller's to sync.

        A file that stands there from an earlier attempt is replaced: nothing written before a
        failure is trusted.

        Raises:
            OSError: If it cannot be done: another file system, no space, no permission.
        """
        with self._handle as fd:
            source = self._temporary or f"/proc/self/fd/{fd}"
            try:
                _link(source, target, fd)
            except FileExistsError:
                if os.path.samestat(os.fstat(fd), target.stat()):
                    return
                target.unlink(missing_ok=True)
                _link(source, target, fd)


def _link(source: Path | str, target: Path, fd: int) -> None:
    # A folder's descriptor makes Python call linkat(2), which alone follows /proc's link to a
    # file without a name; for an absolute path it means nothing else.
    os.link(source, target, src_dir_fd=fd, follow_symlinks=True)


class Spool:
    """
    The bodies under way of one data folder.

    Counts what is held in memory; not thread-safe but where said, so it belongs to the loop's
    thread.

    Args:
        folder: Where files go, made if missing (0700). On the same file system as its shelves.

        options: Bounds of the memory.

    Raises:
        OSError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, options: SpoolOptions | None = None) -> None:
        self.folder = folder.absolute()
        self.options = options or SpoolOptions()
        self.held = 0
        """Octets in memory now, over all bodies."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The last close of a large file without a name frees its blocks, which takes the
        # file system longer than a loop may wait.
        self.lock = threading.Lock()
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="mailpipe-bodies")
        self.threads = anyio.CapacityLimiter(4)

    def open(self) -> "BodyWriter":
        """Start a body; opens no file yet."""
        return BodyWriter(self)

    def copy(self, chunks: Iterable[bytes], encoding: str) -> Body:
        """
        Keep derived octets: in memory up to `SpoolOptions.spool_above`, else in a synced file.

        Blocks on the disk, and is thread-safe: for a storage's thread. What is held in memory is
        not counted, for it lives no longer than its batch.

        Raises:
            OSError: If the disk refuses; nothing is left behind.
        """
        parts: list[bytes] = []
        size = 0
        source = iter(chunks)
        for chunk in source:
            parts.append(chunk)
            size += len(chunk)
            if size > self.options.spool_above:
                break
        else:
            return MemoryBody(b"".join(parts), encoding)
        handle, temporary = self.new_file()
        try:
            with handle as fd:
                _write(fd, b"".join(parts))
                for chunk in source:
                    _write(fd, chunk)
                    size += len(chunk)
                os.fdatasync(fd)
        except BaseException:
            handle.close()
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise
        return FileBody(
            handle, size, encoding=encoding, read_max=self.options.spool_above, temporary=temporary
        )

    def new_file(self) -> tuple[Handle, Path | None]:
        """
        Open a file without a name; where the system has none such, one in ``tmp/`` and its path.

        Thread-safe; blocks on the disk for as long as making an inode takes.
        """
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return Handle(os.open(self.folder, flags | os.O_TMPFILE, 0o600)), None
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_TMPFILE:
                raise
        folder = self.folder / "tmp"
        folder.mkdir(exist_ok=True, mode=0o700)
        path = folder / os.urandom(10).hex()
        return Handle(os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)), path

    def sweep(self) -> int:
        """
        Remove what processes that died left in ``tmp/``; returns how many files.

        Blocks on the disk. Files younger than two hours may be somebody's mail in progress.
        """
        folder, removed = self.folder / "tmp", 0
        if not folder.is_dir():
            return 0
        before = time.time() - _SWEEP_AGE
        for path in folder.iterdir():
            if path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def dispose(self, body: FileBody) -> None:
        """Release a file in a thread, without waiting for it."""
        self._closer.submit(body.release)

    def close(self) -> None:
        """Wait for the descriptors being closed. May be repeated."""
        self._closer.shutdown()


class BodyWriter:
    """
    Takes one body's octets; ends by exactly one of `close` and `abort`.

    Belongs to one task; its calls do not overlap. Cancelled in a `write` or `close`, it is
    aborted.
    """

    __slots__ = ("_aborted", "_file", "_parts", "_pending", "_spool", "_temporary", "_unsynced", "size")

    def __init__(self, spool: Spool) -> None:
        self.size = 0
        """Octets taken so far."""
        self._spool = spool
        self._parts: list[bytes] = []
        self._pending = 0
        self._file: Handle | None = None
        self._temporary: Path | None = None
        self._unsynced = 0
        self._aborted = False

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        """
        Take octets.

        Returns:
            None if they were just noted; else something to await before the next call, while a
            thread writes: the disk's pace becomes the client's.
        """
        spool, size = self._spool, len(chunk)
        self._parts.append(chunk)
        self.size += size
        self._pending += size
        spool.held += size
        if spool.held <= spool.options.memory_max and (
            self.size <= spool.options.spool_above if self._file is None else self._pending < _FLUSH_AT
        ):
            return None
        return self._flush()

    def close_nowait(self) -> Body | None:
        """The body is whole; None if it is in a file, which takes `close`."""
        if self._file is not None:
            return None
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._pending = [], 0
        return HeldBody(data, self._spool)

    async def close(self) -> Body:
        """
        The body is whole; a file is written out and synced when this returns.

        Raises:
            OSError: If the disk refused; the writer is aborted.
        """
        if (held := self.close_nowait()) is not None:
            return held
        await self._flush(sync=True)
        file, self._file = self._file, None
        assert file is not None
        return FileBody(file, self.size, read_max=self._spool.options.spool_above, temporary=self._temporary)

    def abort(self) -> None:
        """Forget everything. Never raises, never blocks; may be repeated."""
        self._spool.held -= self._pending
        self._parts, self._pending = [], 0
        with self._spool.lock:
            self._aborted = True
            file, self._file = self._file, None
        if file is not None:
            self._spool.dispose(FileBody(file, 0, temporary=self._temporary))

    async def _flush(self, *, sync: bool = False) -> None:
        parts, self._parts = self._parts, []
        pending, self._pending = self._pending, 0
        self._unsynced += pending
        if sync or self._unsynced >= _SYNC_EVERY:
            sync, self._unsynced = True, 0
        try:
            await anyio.to_thread.run_sync(self._write, parts, sync, limiter=self._spool.threads)
        except BaseException:
            # A cancelled task leaves the thread running: what it then opens, it closes itself.
            self.abort()
            raise
        finally:
            self._spool.held -= pending

    def _write(self, parts: list[bytes], sync: bool) -> None:
        file = self._file
        if file is None:
            file, temporary = self._spool.new_file()
            with self._spool.lock:
                aborted = self._aborted
                if not aborted:
                    self._file, self._temporary = file, temporary
            if aborted:
                FileBody(file, 0, temporary=temporary).release()
                return
        with file as fd:
            _write(fd, b"".join(parts))
            if sync:
                os.fdatasync(fd)


def _write(fd: int, data: bytes) -> None:
    """Write all of *data*; the system may take less at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
