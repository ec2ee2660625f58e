"""
What a running process has used, as the kernel counts it.
"""

import time
from pathlib import Path

from benchmarks.measure import Unavailable

__all__ = ["cpu_seconds", "memory"]

_PROC = Path("/proc")


def _parents() -> dict[int, int]:
    """Of every process there is."""
    found: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it ended meanwhile
                continue
            # The second field is the program's name in brackets, and may hold anything.
            found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def _family(pid: int) -> list[int]:
    """A process and all beneath it."""
    parents = _parents()
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


def cpu_seconds(pid: int) -> float:
    """
    Processor time that a process and its children have used, in the program and in the kernel.

    Read from the processes' own clocks, for ``/proc/PID/stat`` counts in hundredths of a second. A child that has ended
    is not counted any more.

    Raises:
        Unavailable: If this system has no such clocks.
    """
    if not _PROC.is_dir():
        reason = "there is no /proc to find a process's children in"
        raise Unavailable(reason)
    total = 0.0
    for member in _family(pid):
        try:
            total += time.clock_gettime((~member << 3) | 2)  # as clock_getcpuclockid(3) makes it on Linux
        except OSError:  # it ended meanwhile
            continue
    return total


def memory(pid: int, key: str) -> float:
    """
    A figure of a process's memory in MiB.

    Args:
        pid: The process.

        key: As in ``/proc/PID/status``: ``VmRSS`` is what it holds, ``VmHWM`` the most it ever held.

    Raises:
        Unavailable: If there is no ``/proc``.
    """
    status = _PROC / str(pid) / "status"
    if not status.exists():
        reason = "there is no /proc to read a process's memory from"
        raise Unavailable(reason)
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[key].split()[0]) / 1024
