"""
Turns that processes take at something that stands one at a time.
"""

import fcntl
import os
import time
from pathlib import Path

__all__ = ["Turn"]

# Short at first, for a turn is about as long as a commit and nobody writes until the next one begins;
# then long enough to cost nothing.
_PAUSES = (0.00005, 0.0005)


class Turn:
    """
    ``with turn:`` is one process's turn; the others wait, by locks that die with their holders.

    There are two: of the turn, and of being the next. Who waits for the turn holds the second, so that a
    process that has just had its turn, and comes again, cannot overtake it while it looks away.

    Args:
        path: Of the lock's file, made if missing; a second one beside it ends in ``-next``.

        timeout: Seconds to wait at most.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path, self._timeout = path, timeout
        self._next = path.with_name(f"{path.name}-next")
        self._fd = -1

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

    def _locked(self, path: Path, deadline: float) -> int:
        """Open and lock the file; closing it gives the lock back."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        pause, longest = _PAUSES
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    msg = f"no turn at {self._path.name} within {self._timeout:g} s"
                    raise TimeoutError(msg) from None
                time.sleep(pause)
                pause = min(pause * 1.2, longest)
            else:
                return fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
