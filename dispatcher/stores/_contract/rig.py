"""One medium under test, and what the checks share."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import anyio

from dispatcher.stores.base import Counts, Leased, Record, Shelf, Store

__all__ = [
    "DEADLINE",
    "MakeStore",
    "Rig",
    "expect",
    "payloads",
    "picture",
    "promise",
    "records",
    "refusal",
    "tags",
]

DEADLINE = 20.0
"""Seconds until something that has to happen soon counts as not happening."""


class MakeStore(Protocol):
    """Makes a store on the medium of this name: a new one, or the one that was there before."""

    def __call__(self, name: str, clock: Callable[[], float], /) -> Store:
        """Not opened yet; it has to go by *clock*, which tells Unix seconds."""
        ...


def expect(got: object, wanted: object, promise: str) -> None:
    """Fail, saying what was promised."""
    if got != wanted:
        msg = f"{promise}: expected {wanted!r}, got {got!r}"
        raise AssertionError(msg)


@asynccontextmanager
async def refusal(kind: type[Exception], promise: str) -> AsyncIterator[None]:
    """The block has to raise *kind*."""
    try:
        yield
    except kind:
        return
    msg = f"{promise}: expected {kind.__name__}, and nothing was raised"
    raise AssertionError(msg)


class Rig:
    """
    One medium under test, and its clock.

    Args:
        make_store: Makes the stores.

        name: Of the medium.
    """

    def __init__(self, make_store: MakeStore, name: str) -> None:
        self._make_store = make_store
        self.name = name
        self.time = 1_800_000_000.0
        self.flows = False
        """True: the time also goes by with the event loop's."""

    def clock(self) -> float:
        """What the stores go by."""
        return self.time + (anyio.current_time() if self.flows else 0.0)

    @asynccontextmanager
    async def opened(self, *queues: str) -> AsyncIterator[Store]:
        """The store, open, with these queues."""
        async with self._make_store(self.name, self.clock) as store:
            await store.create(*queues)
            yield store


def payloads(entries: Sequence[Any]) -> list[bytes]:
    """Of leased or peeked ones."""
    return [entry.payload for entry in entries]


def tags(leased: Sequence[Leased]) -> list[str]:
    """Of leased ones."""
    return [one.tag for one in leased]


def records(text: str, **more: Any) -> list[Record]:  # noqa: ANN401 - whatever a Record takes
    """One record per letter."""
    return [Record(letter.encode(), **more) for letter in text]


async def picture(store: Store) -> dict[str, Any]:
    """All that can be seen of a store, but ids, tags and times."""
    seen: dict[str, Any] = {}
    for queue in await store.queues():
        counts = await store.counts(queue)
        numbers = {name: getattr(counts, name) for name in Counts.__slots__ if not name.startswith("_")}
        numbers["oldest_age"] = counts.oldest_age is not None
        for shelf in Shelf:
            lying = await store.peek(queue, 1000, shelf=shelf)
            numbers["on " + shelf.value] = [
                (one.payload, one.key, one.priority, one.attempts, one.expires_at, one.error) for one in lying
            ]
        seen[queue] = numbers
    return seen


@contextmanager
def promise(check: Callable[..., object]) -> Iterator[None]:
    """Whatever goes wrong breaks what the check's docstring promises."""
    try:
        yield
    except Exception as error:
        msg = f"{check.__name__}: {inspect.getdoc(check)} {error!r}"
        raise AssertionError(msg) from error
