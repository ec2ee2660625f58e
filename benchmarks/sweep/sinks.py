"""
What a sweep sends to: a SendFn by its name, or a scripted receiver by its habits.

A target is named ``module:name`` or ``path/to/file.py:name`` and is one of two things:

- a **SendFn**: an async callable of one batch;
- an **opener**: callable without arguments, returns an async context manager that yields a SendFn
  (a function under ``contextlib.asynccontextmanager``, say). It is opened and closed once a turn, in the
  turn's own event loop, and what that takes is not in the figures.

Items come from a function ``make_item(number: int, size: int) -> item``, which is called once per item.
The numbers never repeat within a sweep, so that keys made from them are unique. Without such a function
items are `octets_item`'s.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import anyio

from benchmarks.sweep.cells import BadArgument, duration
from dispatcher.testing import ScriptedSink
from dispatcher.typing import SendFn

__all__ = ["MakeItem", "OpenSink", "load_maker", "load_sink", "octets_item", "scripted"]


class OpenSink(Protocol):
    """Opens a SendFn for one turn."""

    def __call__(self) -> AbstractAsyncContextManager[SendFn[Any, Any]]:
        """Is entered in the turn's event loop before the load begins, and left after the channel's end."""
        ...


class MakeItem(Protocol):
    """Makes the items of a load."""

    def __call__(self, number: int, size: int, /) -> object:
        """
        Make an item; runs in the producers, and its time is theirs.

        Args:
            number: Of the item; never the same again within a sweep.

            size: From the axis of item sizes; what it means is the function's business.
        """
        ...


def octets_item(number: int, size: int, /) -> bytes:
    """*size* octets, the first 8 of which (if there are so many) are the number."""
    return number.to_bytes(8, "big").ljust(size, b".")[:size] if size >= 8 else b"." * size


def _module(name: str, target: str) -> ModuleType:
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise BadArgument(
                option="the target", rule=f"needs a file that exists ({name} does not)", value=target
            )
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None  # it ends in .py
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses, for one, look their module up
        load: Callable[[], object] = lambda: spec.loader.exec_module(module)  # type: ignore[union-attr]  # noqa: E731
    else:
        load = lambda: importlib.import_module(name)  # noqa: E731
    try:
        loaded = load()
    except Exception as error:
        rule = f"needs a module that can be imported ({name}: {type(error).__name__}: {error})"
        raise BadArgument(option="the target", rule=rule, value=target) from error
    return loaded if isinstance(loaded, ModuleType) else sys.modules[Path(name).stem]


def _named(target: str) -> tuple[Any, str]:
    """The object that *target* names, and its module part."""
    module_name, colon, name = target.rpartition(":")
    if not colon or not module_name or not name:
        raise BadArgument(
            option="the target",
            rule="is written as module:name, path/to/file.py:name or scripted:…",
            value=target,
        )
    if not module_name.endswith(".py") and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it; a console script has not
    found: Any = _module(module_name, target)
    for part in name.split("."):
        if not hasattr(found, part):
            where = getattr(found, "__name__", part)
            raise BadArgument(
                option="the target", rule=f"needs a name that {where} has ({part} is none)", value=target
            )
        found = getattr(found, part)
    return found, module_name


def _required(function: Callable[..., Any]) -> int:
    """How many positional arguments a call needs."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(1 for one in parameters if one.kind in kinds and one.default is one.empty)


def _is_async(function: object) -> bool:
    if isinstance(function, type):  # calling it makes an instance, whatever that one's call is
        return False
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is looked at
    )


def _refusal(target: str, why: str) -> BadArgument:
    rule = "has to be an async function of one batch, or a function without arguments that returns an async"
    return BadArgument(option="the target", rule=f"{rule} context manager of one; {why}", value=target)


def load_sink(target: str) -> OpenSink:
    """
    Find the SendFn that *target* names, or its opener.

    Raises:
        BadArgument: If there is none, or it is something else.
    """
    if target.partition(":")[0] == "scripted":
        return scripted(target.partition(":")[2])
    found, _ = _named(target)
    if not callable(found):
        raise _refusal(target, f"it is {type(found).__name__} {found!r:.80}")
    needed = _required(found)
    if _is_async(found) and needed == 1:

        @asynccontextmanager
        async def plain() -> AsyncIterator[SendFn[Any, Any]]:
            yield found

        return plain
    if needed or _is_async(found):
        kind = "async" if _is_async(found) else "no async"
        raise _refusal(target, f"it is {kind} function and needs {needed} arguments")

    @asynccontextmanager
    async def opened() -> AsyncIterator[SendFn[Any, Any]]:
        manager = found()
        if not (hasattr(manager, "__aenter__") and hasattr(manager, "__aexit__")):
            raise _refusal(target, f"it returned {manager!r:.80}")
        async with manager as send:
            if not _is_async(send):
                raise _refusal(target, f"its context manager yielded {send!r:.80}")
            yield send

    return opened


def load_maker(name: str | None, target: str) -> MakeItem:
    """
    Find the function that makes items.

    Args:
        name: ``module:name``, or a bare name in *target*'s own module; None: `octets_item`.

        target: What is swept.

    Raises:
        BadArgument: If there is none, or it is not a plain function of number and size.
    """
    if name is None:
        return octets_item
    module = target.rpartition(":")[0]
    found, _ = _named(name if ":" in name else f"{module}:{name}")
    rule = "has to be a plain function of (number, size)"
    if not callable(found) or _is_async(found):
        raise BadArgument(option="--item", rule=rule, value=name)
    try:
        inspect.signature(found).bind(0, 1)
    except TypeError as error:
        raise BadArgument(option="--item", rule=rule, value=name) from error
    maker: MakeItem = found
    return maker


# --- scripted --------------------------------------------------------------------------------


def _count(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise BadArgument(option=name, rule="has to be a whole number of 1 or more", value=text)
    return int(text)


def _window(text: str, name: str) -> tuple[float, float]:
    first, dots, last = text.partition("..")
    if not dots:
        raise BadArgument(option=name, rule="is written as 100ms..300ms", value=text)
    window = duration(first, name), duration(last, name)
    if window[0] >= window[1]:
        raise BadArgument(option=name, rule="has to end after its begin", value=text)
    return window


_HABITS: dict[str, Callable[[str, str], Any]] = {
    "a": duration,
    "b": duration,
    "knee": _count,
    "parallel": _count,
    "per_second": _count,
    "retry_after": duration,
    "outage": _window,
    "poison": _count,
}


def scripted(text: str) -> OpenSink:
    """
    A receiver with habits, a `dispatcher.testing.ScriptedSink`, fresh in each turn.

    Args:
        text:
            ``a=2ms,b=20us,knee=500,parallel=2,per_second=50,retry_after=100ms,outage=100ms..200ms,poison=1000``,
            of which any may be left out. A call of n items takes a + b * n, and b more for each item beyond
            the knee; ``parallel`` calls run at once, others wait; above ``per_second`` calls a second it
            asks to be left alone for ``retry_after``; within ``outage``, counted from the turn's begin, it
            fails; every ``poison``-th item is refused.

    Raises:
        BadArgument: If a habit is unknown, or its value breaks its rule.
    """
    habits: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in _HABITS:
            raise BadArgument(option="scripted", rule=f"has the habits {', '.join(_HABITS)}", value=part)
        habits[name] = _HABITS[name](value, f"scripted:{name}")
    poison: int | None = habits.pop("poison", None)
    outage: tuple[float, float] | None = habits.pop("outage", None)

    def bad(item: object) -> bool:
        return poison is not None and _number(item) % poison == poison - 1

    @asynccontextmanager
    async def opened() -> AsyncIterator[SendFn[Any, Any]]:
        now = anyio.current_time()
        yield ScriptedSink[Any](
            **habits,
            outage=None if outage is None else (now + outage[0], now + outage[1]),
            poison=None if poison is None else bad,
            marks=True,
        )

    return opened


def _number(item: object) -> int:
    return int.from_bytes(item[:8], "big") if isinstance(item, bytes) else hash(item)
