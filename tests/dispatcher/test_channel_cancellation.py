"""
Cancellation at every turn: each call is cancelled after 0, 1, 2, … turns of the loop until it gets through.

Whatever the turn: every accepted item has one outcome in the end (law 1), a cancelled call has left no
trace (law 5), the channel ends and leaves no task (law 6).
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio
import pytest

from dispatcher import Batch, BlockNewItems, Channel, ChannelOptions, ChannelStatistics, DropReason, Status

pytestmark = pytest.mark.usefixtures("no_leaks")

TURNS = 200
"""More than any scenario here takes."""

Law1 = Callable[[Channel[Any, Any]], ChannelStatistics]
Act = Callable[[], Awaitable[object]]


async def _by_scope(act: Act, turns: int) -> bool:
    """Run *act*, cancelled by its scope after so many turns; whether it got through."""
    through = False
    with anyio.CancelScope() as scope:

        async def aim() -> None:
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(aim)
            await act()
            through = True
            group.cancel_scope.cancel()
    return through


async def _by_task(act: Act, turns: int) -> bool:
    """The same by asyncio's own means."""

    async def run() -> None:
        await act()

    task = asyncio.create_task(run())
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    task.cancel()
    await asyncio.wait([task])
    return not task.cancelled() and task.exception() is None


@pytest.fixture(params=["scope", "task"])
def hit(request: pytest.FixtureRequest, on_trio: bool) -> Callable[[Act, int], Awaitable[bool]]:
    """Both ways to cancel; trio has one."""
    return _by_task if request.param == "task" and not on_trio else _by_scope


class World:
    """A full channel of two items, one of them with a SendFn that takes a few turns, and a queue outside."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.entered: list[str] = []
        options = ChannelOptions[str](
            batch_items_max=2,
            batch_age_max=0,
            max_leases=1,
            full_behavior=BlockNewItems(max_items=2),
            on_drop=None,
        )
        self.channel: Channel[str, str] = Channel(self.send, options)

    async def send(self, batch: Batch[str]) -> list[str]:
        """Take five turns, and answer."""
        self.seen.extend(batch)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        return [item.upper() for item in batch]

    async def put(self, item: str) -> None:
        """Send, and remember that it was accepted."""
        await self.channel.send(item)
        self.entered.append(item)


def _acts(world: World) -> dict[str, Act]:
    channel = world.channel

    async def items() -> AsyncGenerator[str, None]:
        for number in range(6):
            await anyio.lowlevel.checkpoint()
            yield f"async {number}"

    async def consume_all() -> None:
        async with contextlib.aclosing(items()) as source:
            await channel.consume(source)

    async def wait_for_receipt() -> object:
        return await channel.submit_nowait("receipt").wait()

    async def close_and_wait() -> None:
        channel.close()
        await channel.wait_drained()

    return {
        "send": lambda: channel.send("mine"),
        "submit": lambda: channel.submit("mine"),
        "call": lambda: channel.call("mine"),
        "consume": lambda: channel.consume([f"item {number}" for number in range(6)]),
        "consume async": consume_all,
        "flush": channel.flush,
        "aclose": channel.aclose,
        "wait_idle": channel.wait_idle,
        "wait_drained": close_and_wait,
        "wait": wait_for_receipt,
    }


NAMES = list(_acts(World()))


@pytest.mark.parametrize("name", NAMES)
async def test_each_call_at_every_turn(
    name: str, hit: Callable[[Act, int], Awaitable[bool]], law_1: Law1
) -> None:
    """A call that is cancelled at any turn leaves the channel as exact as before."""
    for turns in range(TURNS):
        world = World()
        with anyio.fail_after(1000):
            async with world.channel as channel, anyio.create_task_group() as group:
                if name != "wait":
                    await world.put("one")
                    await anyio.lowlevel.checkpoint()
                    await world.put("two")
                if name not in ("aclose", "wait_drained", "wait"):
                    act = _acts(world)[name]
                    before = channel.statistics().accepted

                    async def neighbour(world: World = world) -> None:
                        await world.put("behind")

                    group.start_soon(neighbour)
                else:
                    act = _acts(world)[name]
                    before = 2
                through = await hit(act, turns)
                _check_trace(world, name, before, through=through)
                law_1(channel)
            statistics = law_1(channel)
        assert statistics.live == 0
        assert statistics.waiters == 0
        _check_end(world, name, through=through)
        if through:
            assert turns > 0
            return
    pytest.fail("never got through")


def _check_trace(world: World, name: str, before: int, *, through: bool) -> None:
    """Right after the call: what was cancelled has not entered."""
    if name in ("send", "submit") and not through:
        assert world.channel.statistics().accepted - before in (0, 1)  # the neighbour's


def _check_end(world: World, name: str, *, through: bool) -> None:
    """After the end: everything was sent once, and what never entered was not."""
    statistics = world.channel.statistics()
    assert len(world.seen) == len(set(world.seen))
    assert set(world.entered) <= set(world.seen) or name in ("aclose", "wait_drained")
    if name in ("send", "submit") and not through:
        assert "mine" not in world.seen
        assert statistics.accepted == len(world.entered)
    if name == "call" and not through:
        withdrawn = statistics.dropped[DropReason.CANCELLED]
        assert statistics.accepted == len(world.entered) + withdrawn + ("mine" in world.seen)
        assert not (withdrawn and "mine" in world.seen)
    if name == "aclose" and not through:
        assert statistics.delivered + statistics.dropped[DropReason.CANCELLED] == 2
    if through:
        assert statistics.delivered == statistics.accepted


async def test_the_block_at_every_turn(hit: Callable[[Act, int], Awaitable[bool]], law_1: Law1) -> None:
    """A block that is cancelled at any turn, its draining included, drops the rest with a reason."""
    for turns in range(TURNS):
        world = World()
        receipts: list[Any] = []

        async def block(world: World = world, receipts: list[Any] = receipts) -> None:
            async with world.channel as channel:
                for number in range(5):
                    receipts.append(await channel.submit(f"item {number}"))
                    await anyio.lowlevel.checkpoint()

        with anyio.fail_after(1000):
            through = await hit(block, turns)
        if world.channel.closed:
            statistics = law_1(world.channel)
            assert statistics.live == 0
            assert world.channel.drained
            assert statistics.accepted == len(receipts)
        for receipt in receipts:
            assert receipt.outcome is not None
            assert (
                receipt.outcome.status is Status.DELIVERED or receipt.outcome.reason is DropReason.CANCELLED
            )
        if through:
            assert all(receipt.outcome.status is Status.DELIVERED for receipt in receipts)
            return
    pytest.fail("never got through")


@pytest.mark.parametrize("close_first", [False, True])
async def test_the_send_fn_at_every_turn(law_1: Law1, close_first: bool) -> None:
    """`cancel()` at any turn of a SendFn: it is cancelled, and its items are dropped or delivered."""
    for turns in range(TURNS):
        world = World()
        with anyio.fail_after(1000):
            async with world.channel as channel:
                receipts = [await channel.submit("one"), await channel.submit("two")]
                if close_first:
                    channel.close()
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                done = channel.statistics().delivered == 2
                channel.cancel()
                await anyio.lowlevel.checkpoint()  # the block runs on
        assert law_1(channel).live == 0
        for receipt in receipts:
            assert receipt.outcome is not None
            assert (
                receipt.outcome.status is Status.DELIVERED or receipt.outcome.reason is DropReason.CANCELLED
            )
        if done:
            assert [receipt.outcome.unwrap() for receipt in receipts if receipt.outcome] == ["ONE", "TWO"]
            return
    pytest.fail("never got through")


async def test_ten_thousand_cancellations_at_random(law_1: Law1) -> None:
    """Law 1 under a storm: a hundred senders, each cancelled now and then, at whatever turn."""
    chance = random.Random(7)
    entered = 0

    async def send(batch: Batch[int]) -> None:
        for _ in range(chance.randrange(4)):
            await anyio.lowlevel.checkpoint()

    options = ChannelOptions[int](
        batch_items_max=3,
        batch_age_max=0,
        max_leases=2,
        full_behavior=BlockNewItems(max_items=5),
        on_drop=None,
    )
    async with Channel(send, options) as channel:

        async def sender() -> None:
            nonlocal entered
            for number in range(100):
                with anyio.CancelScope() as scope:
                    if chance.random() < 0.5:
                        group.start_soon(_cancel_later, scope, chance.randrange(6))
                    if chance.random() < 0.2:
                        await channel.call(number)
                    else:
                        await channel.send(number)
                        entered += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(sender)
        assert law_1(channel).waiters == 0
    statistics = law_1(channel)
    assert statistics.live == 0
    assert statistics.delivered >= entered


async def _cancel_later(scope: anyio.CancelScope, turns: int) -> None:
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()
