"""
Courses of a topic told in a small language, run over every store.

A script is a list of steps: ``m<priority>:<key>[+<ttl>] ...`` publishes, ``r<subscription>:<n>:<keys>``
takes up to n and expects these, ``a<subscription>:<keys>`` acks, ``t<subscription>`` resets, ``c<seconds>``
lets time pass, ``!`` closes and opens everything again. After it: what waits, and what has no ack.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Self

import anyio
import pytest

from dispatcher.broker import Broker, Delivery, Message, SubscribeOptions, Subscription, TopicOptions
from dispatcher.stores import Shelf

Open = Callable[..., AbstractAsyncContextManager[Broker]]


class Course:
    """Runs a script."""

    def __init__(self, open_broker: Open, time: Any, options: TopicOptions) -> None:
        self.open_broker, self.time, self.options = open_broker, time, options
        self.held: dict[str, dict[str, Delivery]] = {}
        self.version = 0

    async def __aenter__(self) -> Self:
        """Open."""
        self.stack = AsyncExitStack()
        self.broker = await self.stack.enter_async_context(self.open_broker(t=self.options))
        self.pullers: dict[str, Subscription] = {}
        for name in self.options.subscriptions:
            puller = self.broker.subscribe("t", name, SubscribeOptions(in_flight_max=1000))
            self.pullers[name] = await self.stack.enter_async_context(puller)
            self.held[name] = {}
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close."""
        await self.stack.aclose()

    async def run(self, script: str) -> None:
        """Do every step."""
        for step in script.split(";"):
            word = step.strip()
            if word:
                await self.step(word)

    async def step(self, word: str) -> None:
        """Do one step."""
        kind, rest = word[0], word[1:]
        if kind == "m":
            priority, _, keys = rest.partition(":")
            await self.broker.publish("t", [self.message(key, int(priority)) for key in keys.split()])
        elif kind == "r":
            name, count, keys = rest.split(":")
            await self.receive(name, int(count), keys.split())
        elif kind == "a":
            name, _, keys = rest.partition(":")
            for key in keys.split():
                if key in self.held[name]:
                    await self.pullers[name].ack(self.held[name].pop(key))
        elif kind == "t":
            await self.broker.reset(rest, "t")
            self.held[rest].clear()
        elif kind == "c":
            self.time.pass_(float(rest))
        elif kind == "!":
            await self.__aexit__()
            await self.__aenter__()
        else:
            raise AssertionError(word)

    def message(self, word: str, priority: int) -> Message:
        """*word* is a key, its payload's version behind a slash, its ttl behind a plus."""
        key, _, ttl = word.partition("+")
        return Message(
            key.encode(), key=key.partition("/")[0], priority=priority, ttl=float(ttl) if ttl else None
        )

    async def receive(self, name: str, count: int, wanted: list[str]) -> None:
        """Take, and compare."""
        got: list[Delivery] = []
        if (await self.broker.counts("t", name)).ready.items:
            with anyio.fail_after(10):
                got = list(await self.pullers[name].receive(count))
        assert [one.payload.decode() for one in got] == wanted
        self.held[name].update({str(one.key): one for one in got})

    async def state(self) -> str:
        """``name:waiting:without an ack`` of each subscription (those sorted), joined by ``|``."""
        parts = []
        for name in self.options.subscriptions:
            waiting = [one.payload.decode() for one in await self.broker.peek("t", name, 1000)]
            leased = await self.broker.peek("t", name, 1000, shelf=Shelf.LEASED)
            unacked = sorted(one.payload.decode() for one in leased)
            parts.append(f"{name}:{' '.join(waiting)}:{' '.join(unacked)}")
        return "|".join(parts)


ONE = TopicOptions(subscriptions=("x",))
LEVELS = TopicOptions(subscriptions=("x", "y"), priorities=2)
NEWEST = TopicOptions(subscriptions=("x", "y"), priorities=2, dedupe=True)

COURSES = {
    "a batch, some acked": (
        ONE,
        "m0:0 1 2 3 4 5 6 7 8 9; rx:5:0 1 2 3 4; ax:1 2 3",
        "x:5 6 7 8 9:0 4",
    ),
    "the rest acked, the next batch": (
        ONE,
        "m0:0 1 2 3 4 5 6; rx:5:0 1 2 3 4; ax:1 2 3; ax:0 4; rx:10:5 6; ax:5 6; rx:10:",
        "x::",
    ),
    "acks before a delivery, and of nothing": (ONE, "m0:0 1; ax:0 1 7; rx:9:0 1; ax:1; ax:1; ax:0", "x::"),
    "urgent ones first, each at its own pace": (
        LEVELS,
        "m1:a b; m0:c; rx:2:c a; m0:d; rx:9:d b; ax:a b c d; ry:9:c d a b",
        "x::|y::a b c d",
    ),
    "newest wins: never stored": (NEWEST, "m1:a/1 b/1; ry:9:a/1 b/1", "x:a/1 b/1:|y::a/1 b/1"),
    "newest wins: it waits, and keeps its place though less urgent now": (
        NEWEST,
        "m0:a/1 b/1; m1:a/2; rx:9:a/2 b/1",
        "x::a/2 b/1|y:a/2 b/1:",
    ),
    "newest wins: more urgent now, it moves up": (
        NEWEST,
        "m1:a/1 b/1; m0:b/2; rx:9:b/2 a/1",
        "x::a/1 b/2|y:b/2 a/1:",
    ),
    "newest wins: it is under way, and comes anew; per subscriber": (
        NEWEST,
        "m0:a/1 b/1; rx:1:a/1; m0:a/2; ax:a; rx:9:b/1 a/2; ry:9:a/2 b/1; ax:a b; ay:a b",
        "x::|y::",
    ),
    "newest wins: acked by one of two, delivered to it again": (
        NEWEST,
        "m0:a/1; rx:9:a/1; ax:a; m0:a/2; rx:9:a/2; ry:9:a/2",
        "x::a/2|y::a/2",
    ),
    "newest wins: twice in one publish": (NEWEST, "m0:a/1 b/1 a/2; rx:9:a/2 b/1", "x::a/2 b/1|y:a/2 b/1:"),
    "a late ack of the old version acks nothing": (
        NEWEST,
        "m0:a/1; rx:9:a/1; m0:a/2; ax:a; rx:9:a/2; tx; rx:9:a/2",
        "x::a/2|y:a/2:",
    ),
    "expired for one, delivered to the other": (
        LEVELS,
        "m0:a+5 b; c2; rx:9:a b; c8; ry:9:b; ax:a b; ay:b",
        "x::|y::",
    ),
    "a reset gives all back, in order": (ONE, "m0:1 2 3; rx:2:1 2; tx; rx:9:1 2 3", "x::1 2 3"),
    "a timeout gives all back, each to its level": (
        LEVELS,
        "m1:a b; m0:c d; rx:3:c d a; c30; m0:e; rx:9:c d e a b",
        "x::a b c d e|y:c d e a b:",
    ),
    "over a restart": (
        NEWEST,
        "m0:a/1 b/1; m1:c/1; rx:2:a/1 b/1; ax:a; !; m0:b/2; m0:d/1; rx:9:b/2 d/1 c/1",
        "x::b/2 c/1 d/1|y:a/1 b/2 d/1 c/1:",
    ),
}


@pytest.mark.parametrize("course", COURSES)
async def test_course(course: str, open_broker: Open, time: Any) -> None:
    """Every engine goes the same way."""
    options, script, end = COURSES[course]
    async with Course(open_broker, time, options) as run:
        await run.run(script)

        assert await run.state() == end
