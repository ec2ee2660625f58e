"""Bodies on their way: memory up to a bound, files above it, nothing left behind."""

import asyncio
import errno
import itertools
import os
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mailpipe import bodies
from mailpipe.bodies import BodyWriter, FileBody, HeldBody, Spool, SpoolOptions
from mailpipe.envelope import Body


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """Bodies above 1 000 octets are files; 10 000 octets are held in all."""
    made = Spool(tmp_path / "bodies", SpoolOptions(spool_above=1000, memory_max=10_000))
    yield made
    made.close()


async def fill(writer: BodyWriter, *chunks: bytes) -> None:
    for chunk in chunks:
        if (wait := writer.write(chunk)) is not None:
            await wait


async def body_of(spool: Spool, *chunks: bytes) -> Body:
    writer = spool.open()
    await fill(writer, *chunks)
    return await writer.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestSmallBodies:
    async def test_is_held_in_memory_as_written(self, spool: Spool) -> None:
        """Up to spool_above no file is opened, and the octets are those that came."""
        body = await body_of(spool, b"a" * 400, b"b" * 600)

        assert isinstance(body, HeldBody)
        assert body.read() == b"a" * 400 + b"b" * 600
        assert b"".join(body.chunks(7)) == body.read()
        assert len(body) == 1000
        assert os.listdir(spool.folder) == []

    async def test_an_empty_body_is_empty(self, spool: Spool) -> None:
        """An immediate dot is b""."""
        body = await body_of(spool)

        assert body.read() == b""
        assert list(body.chunks()) == []

    async def test_counts_until_released(self, spool: Spool) -> None:
        """What is held is known, and goes back to nothing."""
        body = await body_of(spool, b"x" * 900)
        assert isinstance(body, HeldBody)
        assert spool.held == 900

        body.release()
        assert spool.held == 0

    async def test_an_aborted_body_counts_no_longer(self, spool: Spool) -> None:
        """A client that vanishes gives its memory back, at once."""
        writer = spool.open()
        await fill(writer, b"x" * 900)
        writer.abort()
        writer.abort()

        assert spool.held == 0


class TestLargeBodies:
    async def test_becomes_a_file_one_octet_above(self, spool: Spool) -> None:
        """The bound is exact, and the octets are kept in order."""
        body = await body_of(spool, b"a" * 1000, b"b", b"c" * 500)

        assert isinstance(body, FileBody)
        assert len(body) == 1501
        assert b"".join(body.chunks(64)) == b"a" * 1000 + b"b" + b"c" * 500
        assert max(map(len, body.chunks(64))) == 64
        assert spool.held == 0
        body.release()

    async def test_refuses_to_be_read_at_once(self, spool: Spool) -> None:
        """What is too large for memory when it arrives stays too large."""
        body = await body_of(spool, b"x" * 1001)

        with pytest.raises(ValueError, match=r"1001 octets is read by chunks\(\), read\(\) takes up to 1000"):
            body.read()

    async def test_small_ones_are_files_while_memory_is_full(self, spool: Spool) -> None:
        """The bound over all bodies holds, and such a body can still be read at once."""
        held = [await body_of(spool, b"x" * 1000) for _ in range(10)]
        body = await body_of(spool, b"y" * 10)

        assert isinstance(body, FileBody)
        assert body.read() == b"y" * 10
        assert spool.held == sum(map(len, held)) == 10_000

    async def test_is_synced_before_it_is_a_body(self, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        """close() returns a FileBody only after fdatasync, off the loop's thread."""
        synced: list[threading.Thread] = []
        sync = os.fdatasync

        def record(fd: int) -> None:
            sync(fd)
            synced.append(threading.current_thread())

        monkeypatch.setattr(os, "fdatasync", record)
        await body_of(spool, b"x" * 5000)

        assert len(synced) == 1
        assert synced[0] is not threading.main_thread()

    async def test_is_synced_as_it_grows(self, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sync after the dot has little left to do, however large the mail."""
        monkeypatch.setattr(bodies, "_SYNC_EVERY", 600_000)
        sizes: list[int] = []
        sync = os.fdatasync

        def record(fd: int) -> None:
            sizes.append(os.fstat(fd).st_size)
            sync(fd)

        monkeypatch.setattr(os, "fdatasync", record)
        await body_of(spool, *[b"x" * 100_000] * 20)

        assert len(sizes) >= 4
        assert max(after - before for before, after in itertools.pairwise(sizes)) <= 900_000

    async def test_leaves_no_name_and_no_descriptor(self, spool: Spool) -> None:
        """A file under way has no name: a crash leaves nothing; a release leaves no descriptor."""
        before = open_files()
        body = await body_of(spool, b"x" * 5000)
        assert isinstance(body, FileBody)
        assert os.listdir(spool.folder) == []

        body.release()
        body.release()
        assert open_files() == before

    async def test_a_late_reader_never_reads_another_file(self, spool: Spool) -> None:
        """A release while a thread reads waits for it; afterwards reading is refused by name."""
        before = open_files()
        body = await body_of(spool, b"x" * 5000)
        assert isinstance(body, FileBody)
        chunks = body.chunks(1000)
        first = next(chunks)

        body.release()
        others = [await body_of(spool, b"o" * 5000) for _ in range(3)]

        assert first + b"".join(chunks) == b"x" * 5000
        with pytest.raises(ValueError, match="released"):
            next(body.chunks())
        assert open_files() == before + len(others)

    async def test_a_file_that_ends_early_is_an_error(self, spool: Spool, tmp_path: Path) -> None:
        """A short file is never taken for a short mail."""
        body = await body_of(spool, b"x" * 5000)
        assert isinstance(body, FileBody)
        body.link(tmp_path / "kept")
        os.truncate(tmp_path / "kept", 4000)

        with pytest.raises(OSError, match="ends at 4000 of 5000 octets"):
            b"".join(body.chunks())


class TestWithoutNamelessFiles:
    """File systems without O_TMPFILE: a named file in tmp/, the same promises."""

    @pytest.fixture(autouse=True)
    def _no_tmpfile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = os.open

        def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not supported")
            return opened(path, flags, mode)

        monkeypatch.setattr(os, "open", refuse)

    async def test_release_removes_the_name(self, spool: Spool) -> None:
        """Nothing stays of a body that nobody kept."""
        body = await body_of(spool, b"x" * 5000)
        assert isinstance(body, FileBody)
        assert len(os.listdir(spool.folder / "tmp")) == 1

        body.release()
        assert os.listdir(spool.folder / "tmp") == []

    async def test_a_kept_one_survives_its_release(self, spool: Spool, tmp_path: Path) -> None:
        """The kept name is another one."""
        body = await body_of(spool, b"x" * 5000)
        assert isinstance(body, FileBody)
        body.link(tmp_path / "kept")
        body.release()

        assert (tmp_path / "kept").read_bytes() == b"x" * 5000

    async def test_cancelled_while_a_thread_writes(
        self, spool: Spool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The name that the thread made meanwhile goes with the mail."""
        entered, go_on, ended = threading.Event(), threading.Event(), threading.Event()
        new_file, write = spool.new_file, BodyWriter._write  # noqa: SLF001 - to know when the thread ended

        def slow() -> object:
            entered.set()
            assert go_on.wait(30)
            return new_file()

        def watched(*args: Any) -> None:
            try:
                write(*args)
            finally:
                ended.set()

        monkeypatch.setattr(spool, "new_file", slow)
        monkeypatch.setattr(BodyWriter, "_write", watched)
        task = asyncio.ensure_future(_awaited(spool.open().write(b"x" * 5000)))
        await asyncio.to_thread(entered.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await asyncio.to_thread(ended.wait, 30)

        assert os.listdir(spool.folder / "tmp") == []

    async def test_the_sweep_takes_only_what_is_old(self, spool: Spool) -> None:
        """What dead processes left goes; another process's mail in progress stays."""
        dead = await body_of(spool, b"x" * 5000)
        (name,) = os.listdir(spool.folder / "tmp")
        os.utime(spool.folder / "tmp" / name, (0, 0))
        live = await body_of(spool, b"y" * 5000)

        assert spool.sweep() == 1
        assert name not in os.listdir(spool.folder / "tmp")
        assert len(os.listdir(spool.folder / "tmp")) == 1
        assert len(dead) == len(live)


class TestLink:
    async def test_may_be_repeated(self, spool: Spool, tmp_path: Path) -> None:
        """A retry finds its own file and leaves it."""
        body = await body_of(spool, b"x" * 5000)
        assert isinstance(body, FileBody)
        body.link(tmp_path / "kept")
        inode = (tmp_path / "kept").stat().st_ino
        body.link(tmp_path / "kept")

        assert (tmp_path / "kept").stat().st_ino == inode
        assert (tmp_path / "kept").read_bytes() == b"x" * 5000

    async def test_replaces_what_an_earlier_process_left(self, spool: Spool, tmp_path: Path) -> None:
        """Nothing written before a failure is trusted."""
        (tmp_path / "kept").write_bytes(b"half")
        body = await body_of(spool, b"x" * 5000)
        assert isinstance(body, FileBody)
        body.link(tmp_path / "kept")

        assert (tmp_path / "kept").read_bytes() == b"x" * 5000


class TestTrouble:
    async def test_a_full_disk_is_raised_and_leaves_nothing(
        self, spool: Spool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """ENOSPC reaches whoever writes, and gives descriptor and memory back."""
        before = open_files()
        write = os.write
        monkeypatch.setattr(
            os, "write", lambda fd, data: _full() if os.fstat(fd).st_nlink == 0 else write(fd, data)
        )
        writer = spool.open()

        with pytest.raises(OSError, match="No space left"):
            await fill(writer, b"x" * 5000)
        spool.close()
        assert (spool.held, open_files()) == (0, before)

    async def test_a_failed_sync_makes_no_body(self, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        """EIO at the end: no body, nothing held."""
        before = open_files()
        monkeypatch.setattr(os, "fdatasync", lambda fd: _broken())
        writer = spool.open()
        await fill(writer, b"x" * 5000)

        with pytest.raises(OSError, match="Input/output error"):
            await writer.close()
        spool.close()
        assert (spool.held, open_files()) == (0, before)

    async def test_cancelled_while_a_thread_writes(
        self, spool: Spool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The thread ends on its own file, which is closed then: none is left open."""
        entered, go_on = threading.Event(), threading.Event()
        new_file = spool.new_file

        def slow() -> object:
            entered.set()
            assert go_on.wait(30)
            return new_file()

        monkeypatch.setattr(spool, "new_file", slow)
        task = asyncio.ensure_future(_awaited(spool.open().write(b"x" * 5000)))
        await asyncio.to_thread(entered.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert spool.held == 0
        go_on.set()
        deadline = asyncio.get_running_loop().time() + 30
        while _nameless(spool) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - a thread's end
            await asyncio.sleep(0.001)
        assert _nameless(spool) == 0


class TestCopy:
    """Derived octets, made in a storage's thread."""

    def test_small_ones_stay_in_memory(self, spool: Spool) -> None:
        """No file for what fits."""
        copy = spool.copy([b"abc", b"def"], "zlib")

        assert (copy.read(), copy.encoding) == (b"abcdef", "zlib")

    def test_large_ones_are_files(self, spool: Spool) -> None:
        """As with bodies: never whole in memory."""
        copy = spool.copy(iter([b"x" * 800] * 5), "zlib")

        assert isinstance(copy, FileBody)
        assert (b"".join(copy.chunks()), copy.encoding) == (b"x" * 4000, "zlib")

    def test_a_source_that_fails_leaves_nothing(self, spool: Spool) -> None:
        """A broken step costs no descriptor."""
        before = open_files()

        def broken() -> Iterator[bytes]:
            yield b"x" * 5000
            msg = "broken"
            raise RuntimeError(msg)

        with pytest.raises(RuntimeError, match="broken"):
            spool.copy(broken(), "zlib")
        assert open_files() == before


class TestOptions:
    @pytest.mark.parametrize("name", ["spool_above", "memory_max"])
    def test_refuses_a_negative_number(self, name: str) -> None:
        """The rule and the value got."""
        with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1"):
            SpoolOptions(**{name: -1})


def _full() -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _broken() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


async def _awaited(wait: Awaitable[None] | None) -> None:
    assert wait is not None
    await wait


def _nameless(spool: Spool) -> int:
    """How many nameless files of the spool are open."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        found += target.startswith(f"{spool.folder}/#")
    return found
