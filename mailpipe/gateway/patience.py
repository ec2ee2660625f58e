"""
Timeouts that cost nothing while nothing times out.

`asyncio.timeout_at` sets and clears a timer of the loop for each block. Of the mails that wait for
their commit nearly none ever wait as long as they may, so they share one timer: it rings when the
first of those that wait *then* may be due, seconds after most that waited when it was set.
"""

import asyncio
from types import TracebackType

__all__ = ["Patience"]


class Patience:
    """
    The timeouts of one loop's tasks, by one timer.

    Args:
        loop: Of the tasks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waits: dict[_Until, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def until(self, deadline: float) -> "_Until":
        """
        Limit a ``with`` block, which raises TimeoutError at *deadline* of the loop's clock.

        As `asyncio.timeout_at`, whose rules about foreign cancellations are kept; for one use.
        """
        return _Until(self, deadline)

    def enter(self, wait: "_Until") -> None:
        """For `_Until`."""
        self._waits[wait] = None
        if self._timer is None or wait.deadline < self._timer.when():
            self._set(wait.deadline)

    def leave(self, wait: "_Until") -> None:
        """For `_Until`."""
        self._waits.pop(wait, None)

    def _set(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        for wait in [wait for wait in self._waits if wait.deadline <= now]:
            del self._waits[wait]
            wait.expire()
        if self._waits:
            self._set(min(wait.deadline for wait in self._waits))


class _Until:
    __slots__ = ("_cancelling", "_expired", "_patience", "_task", "deadline")

    def __init__(self, patience: Patience, deadline: float) -> None:
        self._patience, self.deadline = patience, deadline
        self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._patience.enter(self)

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._expired:
            self._patience.leave(self)
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            # Nobody else cancelled the task meanwhile.
            raise TimeoutError from error
