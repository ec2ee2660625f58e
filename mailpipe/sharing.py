"""
Steps opened and closed, and opened storages shared by the chains of one process.
"""

import inspect
import logging

import anyio
import attrs

from mailpipe.chain import Step
from mailpipe.steps import Place

__all__ = ["SharedSteps", "set_up", "tear_down"]

_log = logging.getLogger("mailpipe.chain")

_TEARDOWN = 10.0
"""Seconds that one step's teardown may take."""


@attrs.define(eq=False)
class _Held:
    step: Step
    lock: anyio.Lock = attrs.field(factory=anyio.Lock)
    users: int = 0
    opened: bool = False


class SharedSteps:
    """
    Opened storages, shared by chains that name the same one with the same options.

    Counts its users: the first opens, the last closes. A reload thus keeps a store open that both
    the old and the new configuration have.
    """

    def __init__(self) -> None:
        self._held: dict[object, _Held] = {}

    async def acquire(self, step: Step, place: Place) -> Step:
        """
        Return the step to use, opened.

        Raises:
            Exception: Whatever its ``setup`` raised; it is not held then.
        """
        key = _shared_key(step, place)
        held = self._held.setdefault(key, _Held(step))
        held.users += 1
        try:
            async with held.lock:
                if not held.opened:
                    await set_up(held.step, place)
                    held.opened = True
        except BaseException:
            held.users -= 1
            if not held.users and self._held.get(key) is held:
                del self._held[key]
            raise
        return held.step

    async def release(self, step: Step, place: Place) -> None:
        """Give back what `acquire` returned; the last user's release closes it."""
        key = _shared_key(step, place)
        held = self._held[key]
        held.users -= 1
        async with held.lock:
            if held.users or not held.opened:
                return
            held.opened = False
            if self._held.get(key) is held:
                del self._held[key]
            await tear_down(held.step)


def _shared_key(step: Step, place: Place) -> object:
    if not isinstance(step.spec.target, type):
        return id(step.target)  # an instance, made by its user: nobody else's is the same
    try:
        hash(step.options)
    except TypeError:
        return id(step.target)
    return step.spec.target, step.options, place.data, place.reading


async def set_up(step: Step, place: Place) -> None:
    """Call the step's ``setup``, with the place if it takes one; sync or async, or none."""
    hook = getattr(step.target, "setup", None)
    if hook is not None:
        wanted = len(inspect.signature(hook).parameters)
        result = hook(place) if wanted else hook()
        if inspect.isawaitable(result):
            await result


async def tear_down(step: Step) -> None:
    """Call the step's ``teardown``; what it raises is logged. Runs when cancelled too, but not for ever."""
    hook = getattr(step.target, "teardown", None)
    if hook is None:
        return
    try:
        # Cancelled as we may be, what was opened is closed; but nobody waits for it for ever.
        with anyio.move_on_after(_TEARDOWN, shield=True) as scope:
            result = hook()
            if inspect.isawaitable(result):
                await result
        if scope.cancelled_caught:
            _log.error("step %s: teardown did not end within %s s", step.name, _TEARDOWN)
    except Exception:
        _log.exception("step %s: teardown failed", step.name)
