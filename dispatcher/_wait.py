"""
The one waiting primitive, for both backends, and the little else that differs between them.

anyio's own events and checkpoints cost several microseconds each, because they look up the backend at
every call. Here it is looked up once, when a channel opens.
"""

import asyncio
import sys
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol

import attrs

__all__ = ["Backend", "Waiter", "current_backend", "wake"]


class Waiter(Protocol):
    """
    Waits once, for one task: an ``asyncio.Future``, or what looks like one on trio.

    To wake it: ``if not waiter.done(): waiter.set_result(None)``. Its wait may be cancelled even after
    that; whoever was handed something has to look.
    """

    def done(self) -> bool:
        """Woken, or no longer waited for."""
        ...

    def set_result(self, result: None, /) -> None:
        """End the wait, now or when it begins; once."""
        ...

    def __await__(self) -> Generator[Any, None, None]:
        """Return once woken."""
        ...


def wake(waiter: Waiter) -> None:
    """End a wait, if it has not ended."""
    if not waiter.done():
        waiter.set_result(None)


@attrs.frozen(slots=True, eq=False)
class Backend:
    """What the channel needs of the event loop it runs in."""

    name: str
    clock: Callable[[], float]
    """Monotonic seconds, the same clock that cancel scopes go by."""

    waiter: Callable[[], Waiter]
    pass_turn: Callable[[], Awaitable[None]]
    """Let every other task that is ready run once; may be cancelled."""

    cancelled: type[BaseException]
    forget_cancellation: Callable[[], None]
    """Make good for a cancellation of the current task that was caught and will not be passed on."""

    running: Callable[[], bool]
    """Whether this loop runs the caller; False where a coroutine is merely being thrown away."""


@types.coroutine
def _pass_turn() -> Generator[None, None, None]:
    yield


def _uncancel() -> None:
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def _asyncio() -> Backend:
    loop = asyncio.get_running_loop()

    def running() -> bool:
        try:
            return asyncio.get_running_loop() is loop
        except RuntimeError:
            return False

    return Backend(
        "asyncio", loop.time, loop.create_future, _pass_turn, asyncio.CancelledError, _uncancel, running
    )


def _trio() -> Backend:
    import trio

    class TrioWaiter:
        __slots__ = ("_done", "_task")

        def __init__(self) -> None:
            self._task: trio.lowlevel.Task | None = None
            self._done = False

        def done(self) -> bool:
            return self._done

        def set_result(self, result: None, /) -> None:
            self._done = True
            if self._task is not None:
                task, self._task = self._task, None
                trio.lowlevel.reschedule(task)

        def __await__(self) -> Generator[Any, None, None]:
            return self._wait().__await__()

        async def _wait(self) -> None:
            if self._done:
                await trio.lowlevel.checkpoint()
                return
            self._task = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self._done = True
                self._task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)

    def nothing() -> None:
        """A scope keeps no count."""

    return Backend(
        "trio",
        trio.current_time,
        TrioWaiter,
        trio.lowlevel.checkpoint,
        trio.Cancelled,
        nothing,
        trio.lowlevel.in_trio_run,
    )


def current_backend() -> Backend:
    """
    The backend of the running event loop.

    Raises:
        RuntimeError: If there is no running event loop.
    """
    module: Any = sys.modules.get("trio")
    if module is not None and module.lowlevel.in_trio_task():
        return _trio()
    return _asyncio()
