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
    ``with turn:`` is one process's turn; the others wait, by a lock that dies with its holder.

    Args:
        path: Of the lock's file, made if missing.

        timeout: Seconds to wait at most.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path, self._timeout = path, timeout
        self._fd = -1

    def __enter__(self) -> None:
        """
        Wait for the turn.

        Raises:
            TimeoutError: If it does not come in time.
        """
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + self._timeout
        pause, longest = _PAUSES
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(self._fd)
                    msg = f"no turn at {self._path.name} within {self._timeout:g} s"
                    raise TimeoutError(msg) from None
                time.sleep(pause)
                pause = min(pause * 1.2, longest)
            else:
                return

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
