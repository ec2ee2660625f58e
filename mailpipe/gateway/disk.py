"""
Whether there is room for mail.
"""

import os

__all__ = ["DiskSpace"]

_LOOK_EVERY = 1.0


class DiskSpace:
    """
    Whether a folder's disk has room; looks once a second at most.

    Args:
        folder: Where mail goes.

        reserve: Octets to be left free.
    """

    def __init__(self, folder: os.PathLike[str], reserve: int) -> None:
        self._folder, self._reserve = folder, reserve
        self._looked_at = float("-inf")
        self._free = 0

    def short(self, wanted: int, now: float) -> bool:
        """Whether fewer than *wanted* octets are free above the reserve, as of the last second."""
        if now - self._looked_at >= _LOOK_EVERY:
            found = os.statvfs(self._folder)
            self._free = found.f_bavail * found.f_frsize
            self._looked_at = now
        return self._free < wanted + self._reserve
