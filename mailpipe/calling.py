"""
Where and how steps are called: on the loop, in a worker thread, in a storage's own thread.

Neighbours that go to the same thread share one hop.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import attrs
from anyio import to_thread

from mailpipe.batchstage import Call, Outcome, Passage
from mailpipe.chain import Step

__all__ = ["Failed", "Way", "drive", "judge", "ways_of"]

_CALL = "__call__"
_WORKER = object()
"""The hop of plain functions: any worker thread."""


@attrs.frozen(eq=False)
class Way:
    """How one step is called, and where: None on the loop, else `_WORKER` or a storage's thread."""

    call: Callable[[Any], Any]
    hop: Any

    async def through(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the work returns
        """Run *work* in this way's thread."""
        if self.hop is _WORKER:
            return await to_thread.run_sync(work)
        return await self.hop.run(work)


def _call_of(step: Step) -> Callable[[Any], Any]:
    if step.spec.options is not None and not isinstance(step.spec.target, type):
        return lambda item: step.target(item, step.options)
    return step.target


def _is_async(target: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(
        getattr(type(target), _CALL, None)
    )


def ways_of(steps: Sequence[Step]) -> list[Way]:
    """Batch steps that stand right before a storage with a thread of its own go to that thread."""
    ways: list[Way] = []
    hop: Any = _WORKER
    for step in reversed(steps):
        if step.spec.inline or _is_async(step.target):
            hop = _WORKER
            ways.append(Way(_call_of(step), None))
            continue
        if _is_async(getattr(step.target, "run", len)):
            hop = step.target
        elif step.storage:
            hop = _WORKER  # it blocks; nobody else's thread shall wait for it
        ways.append(Way(_call_of(step), hop))
    return ways[::-1]


Failed = tuple[int, Exception]
"""The index of the step that raised, and what."""


def judge(ways: Sequence[Way], item: object) -> Failed | Coroutine[Any, Any, Failed | None] | None:
    """
    Call envelope steps in order, up to the first that raises.

    Returns:
        Which one that was, or None; at once if no step had to be waited for, else to be awaited.
    """
    for index, way in enumerate(ways):
        if way.hop is not None:
            return _judge_on(ways, index, item, None)
        outcome = _called(way, item)
        if outcome[1] is not None:
            return index, outcome[1]
        if outcome[0] is not None and inspect.isawaitable(outcome[0]):
            return _judge_on(ways, index + 1, item, outcome[0])
    return None


async def _judge_on(
    ways: Sequence[Way], index: int, item: object, pending: Awaitable[Any] | None
) -> Failed | None:
    """Go on at *index*, once *pending* of the step before it is there."""
    outcome: Outcome = (pending, None)
    while True:
        if inspect.isawaitable(outcome[0]):
            outcome = await _awaited(outcome[0])
        if outcome[1] is not None:
            return index - 1, outcome[1]
        if index == len(ways):
            return None
        if ways[index].hop is None:
            outcome = _called(ways[index], item)
            index += 1
        else:
            work = functools.partial(_judge_in_thread, ways, index, item)
            index, outcome = await to_thread.run_sync(work)


async def drive(ways: Sequence[Way], steps: Passage) -> None:
    """Make the calls that *steps* asks for, each where it belongs."""
    call: Call | None = next(steps, None)
    while call is not None:
        way = ways[call.index]
        if way.hop is None:
            outcome = _called(way, call.view)
        else:
            in_thread = functools.partial(_drive_in_thread, steps, call, ways)
            call, outcome = await way.through(in_thread)
            if outcome is None:
                continue
        if inspect.isawaitable(outcome[0]):
            outcome = await _awaited(outcome[0])
        call = _next(steps, outcome)


def _judge_in_thread(ways: Sequence[Way], index: int, item: object) -> tuple[int, Outcome]:
    outcome: Outcome = (None, None)
    while index < len(ways) and ways[index].hop is not None:
        outcome = _called(ways[index], item)
        index += 1
        if outcome[1] is not None or inspect.isawaitable(outcome[0]):
            break
    return index, outcome


def _called(way: Way, argument: object) -> Outcome:
    try:
        return way.call(argument), None
    except Exception as error:
        return None, error


async def _awaited(pending: Awaitable[Any]) -> Outcome:
    try:
        return await pending, None
    except Exception as error:
        return None, error


def _next(steps: Passage, outcome: Outcome) -> Call | None:
    try:
        return steps.send(outcome)
    except StopIteration:
        return None


def _drive_in_thread(steps: Passage, call: Call, ways: Sequence[Way]) -> tuple[Call | None, Outcome | None]:
    """
    Drive *steps* here until a call belongs elsewhere.

    Returns:
        That call, still to be made (or None at the end), and None; or a call made here whose
        outcome must be awaited on the loop, and that outcome.
    """
    hop = ways[call.index].hop
    while True:
        outcome = _called(ways[call.index], call.view)
        if inspect.isawaitable(outcome[0]):
            return call, outcome
        following = _next(steps, outcome)
        if following is None or ways[following.index].hop is not hop:
            return following, None
        call = following
