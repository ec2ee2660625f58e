"""
A thread that owns something: a connection, a folder, whatever stands one user at a time.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import anyio

__all__ = ["OwnThread"]

T = TypeVar("T")


class _Job:
    """One piece of work; `started` and `withdrawn` exclude each other, under the thread's lock."""

    __slots__ = ("ended", "error", "loop", "result", "started", "waiter", "withdrawn", "work")

    def __init__(self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.work, self.loop = work, loop
        self.waiter: asyncio.Future[None] = loop.create_future()
        self.started = self.withdrawn = self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None

    def end(self) -> None:
        """On the loop: wake whoever waits."""
        self.ended = True
        if not self.waiter.done():
            self.waiter.set_result(None)


class OwnThread:
    """
    Runs work in the order of its arrival, in one daemon thread that sleeps while there is none.

    A daemon, so that a store that hangs for ever cannot keep the process from ending.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[], T]) -> T:
        """
        Call *work* in the thread and return what it returns.

        Cancelled before it started, it never starts. Cancelled later, it is waited for, and its end
        counts: work that was done has been done, whatever we wished meanwhile.

        Raises:
            RuntimeError: If the thread was closed.
        """
        if self._closed:
            msg = f"{self._thread.name} is closed"
            raise RuntimeError(msg)
        job = _Job(work, asyncio.get_running_loop())
        self._jobs.put(job)
        try:
            await job.waiter
        except asyncio.CancelledError:
            with self._lock:
                job.withdrawn = not job.started
            if job.withdrawn:
                raise
            await _ended(job)
        if job.error is not None:
            try:
                raise job.error
            finally:
                # The error's traceback holds this frame, and the frame the error.
                job.error = None
        result: T = job.result
        return result

    async def close(self) -> None:
        """Take no more work and return when the last has ended. May be repeated."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        while self._thread.is_alive():
            await anyio.to_thread.run_sync(self._thread.join, 0.1)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                if job.withdrawn:
                    continue
                job.started = True
            try:
                job.result = job.work()
            except BaseException as error:
                # Raised where it is waited for.
                job.error = error
            # The loop may have been closed under a store that hung: nobody is left to be told.
            with contextlib.suppress(RuntimeError):
                job.loop.call_soon_threadsafe(job.end)
            del job


async def _ended(job: _Job) -> None:
    # Shielded, for anyio repeats a cancellation at every turn of the loop.
    with anyio.CancelScope(shield=True):
        while not job.ended:
            job.waiter = job.loop.create_future()
            try:
                await job.waiter
            except asyncio.CancelledError:
                continue
