"""
Turns that processes take at something that stands one at a time.
"""

import fcntl
import os
import threading
import time
from pathlib import Path
from queue import SimpleQueue

__all__ = ["Turn"]


class Turn:
    """
    ``with turn:`` is one process's turn; the others wait, by locks that die with their holders.

    There are two: of the turn, and of being the next. Who waits for the turn holds the second, so that a
    process that has just had its turn, and comes again, cannot overtake it.

    The system has no end for a wait for such a lock, and to look again and again costs more than a turn
    does: each look lets go of the interpreter and asks for it again. So a thread waits, and is waited for.

    Args:
        path: Of the lock's file, made if missing; a second one beside it ends in ``-next``.

        timeout: Seconds to wait at most.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path, self._timeout = path, timeout
        self._next = path.with_name(f"{path.name}-next")
        self._fd = -1
        self._waits: SimpleQueue[_Wait | None] | None = None

    def __enter__(self) -> None:
        """
        Wait for the turn.

        Raises:
            TimeoutError: If it does not come in time.
        """
        deadline = time.monotonic() + self._timeout
        following = self._locked(self._next, deadline)
        try:
            self._fd = self._locked(self._path, deadline)
        finally:
            os.close(following)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def close(self) -> None:
        """End the thread, once it waits for nothing any more. May be repeated."""
        if self._waits is not None:
            self._waits.put(None)
            self._waits = None

    def _locked(self, path: Path, deadline: float) -> int:
        """Open and lock the file; closing it gives the lock back."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if self._waits is None:
                self._waits = SimpleQueue()
                name = f"mailpipe-turn {self._path.name}"
                # A daemon: what it waits for may never come.
                threading.Thread(target=_serve, args=(self._waits,), name=name, daemon=True).start()
            wait = _Wait(fd)
            self._waits.put(wait)
            if not wait.came(deadline - time.monotonic()):
                msg = f"no turn at {self._path.name} within {self._timeout:g} s"
                raise TimeoutError(msg) from None
        return fd


class _Wait:
    """One lock that is waited for; who gives up leaves its file to the thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = threading.Lock()
        self._end.acquire()
        self._deciding = threading.Lock()
        self._has = self._given_up = False
        self._error: OSError | None = None

    def run(self) -> None:
        """In the thread: wait, for as long as it takes."""
        try:
            if not self._given_up:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError as error:
            self._error = error
        with self._deciding:
            self._has = not self._given_up
        if not self._has:
            os.close(self._fd)
        self._end.release()

    def came(self, seconds: float) -> bool:
        """Whether the lock is there within *seconds*."""
        if not self._end.acquire(timeout=max(0.0, seconds)):
            with self._deciding:
                self._given_up = not self._has
        if self._has and self._error is not None:
            os.close(self._fd)
            raise self._error
        return self._has


def _serve(waits: "SimpleQueue[_Wait | None]") -> None:
    while (wait := waits.get()) is not None:
        wait.run()
