"""
The contract of `dispatcher.stores.base.Store`, as a suite that any engine can run; see `check_store`.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import anyio

from dispatcher.errors import OptionError, QueueFull, StoreClosed, UnknownQueue
from dispatcher.stores.base import Counts, Dead, Leased, Nack, Record, Shelf, Store
from dispatcher.stores.memory import MemoryStore

__all__ = ["MakeStore", "Rig", "check_store", "expect", "picture"]

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


# -- in and out


async def check_order(rig: Rig) -> None:
    """First in, first out; each is leased by one at a time."""
    async with rig.opened("q") as store:
        await store.put(records("ab"), ["q"])
        await store.put(records("c"), ["q"])
        first = await store.lease("q", 2)
        expect(payloads(first), [b"a", b"b"], "leased in the order they were put")
        expect([(one.attempts, one.put_at) for one in first], [(1, rig.time)] * 2, "first attempt, put now")
        expect(payloads(await store.lease("q", 5)), [b"c"], "nothing is leased twice at once")
        expect(list(await store.lease("q", 5)), [], "an empty queue gives nothing, at once")


async def check_ids(rig: Rig) -> None:
    """A record has one id in its queue, whatever happens to it."""
    async with rig.opened("q") as store:
        (stored,) = await store.put(records("a"), ["q"])
        expect(stored.tag, None, "not leased: no tag")
        (leased,) = await store.lease("q", 1)
        expect(leased.id, stored.id, "leased under the id it was stored under")
        await store.settle(nacks=[Nack(leased.tag, front=False)])
        (leased,) = await store.lease("q", 1)
        expect(leased.id, stored.id, "and again after a nack to the end")
        await store.settle(dead=[Dead(leased.tag, "no")])
        (peeked,) = await store.peek("q", 1, shelf=Shelf.DEAD)
        expect(peeked.id, stored.id, "and as a dead letter")


async def check_payloads(rig: Rig) -> None:
    """Bytes are kept as they are, whatever they are."""
    odd = [b"", b"\0", bytes(range(256)), b"\xff" * 100_000, "key".encode("utf-16")]
    async with rig.opened("q") as store:
        await store.put([Record(one, key="k\u00e9y\0") for one in odd], ["q"])
        leased = await store.lease("q", 10)
        expect(payloads(leased), odd, "payloads are kept byte for byte")
        expect({one.key for one in leased}, {"k\u00e9y\0"}, "keys are kept")


async def check_priorities(rig: Rig) -> None:
    """The more urgent first, in order within one level; what comes back keeps its place."""
    async with rig.opened("q") as store:
        await store.put([Record(b"low", priority=7), Record(b"a"), Record(b"b")], ["q"])
        (first,) = await store.lease("q", 1)
        await store.put([Record(b"c"), Record(b"mid", priority=3)], ["q"])
        await store.settle(nacks=[Nack(first.tag)])
        leased = await store.lease("q", 10)
        expect(payloads(leased), [b"a", b"b", b"c", b"mid", b"low"], "0 is the most urgent")
        expect([one.priority for one in leased], [0, 0, 0, 3, 7], "and is told")


async def check_lease_bytes(rig: Rig) -> None:
    """A lease stops before it is too large, but always takes one."""
    async with rig.opened("q") as store:
        await store.put([Record(b"x" * 10) for _ in range(5)], ["q"])
        expect(len(await store.lease("q", 9, bytes_max=29)), 2, "29 bytes hold two of 10")
        expect(len(await store.lease("q", 9, bytes_max=20)), 2, "20 bytes hold two of 10")
        expect(len(await store.lease("q", 9, bytes_max=1)), 1, "one is taken in any case")


async def check_front(rig: Rig) -> None:
    """What is put in front is leased first, in its order, and is as old as what it overtook."""
    async with rig.opened("q") as store:
        await store.put(records("c"), ["q"])
        rig.time += 10
        await store.put(records("ab"), ["q"], front=True)
        await store.put(records("z"), ["q"], front=True)
        leased = await store.lease("q", 10)
        expect(payloads(leased), [b"z", b"a", b"b", b"c"], "in front of everything, in the given order")
        expect({one.put_at for one in leased}, {rig.time - 10}, "put_at never grows towards the front")
        async with refusal(OptionError, "front and replace exclude each other"):
            await store.put(records("x"), ["q"], front=True, replace=True)


async def check_put_leased(rig: Rig) -> None:
    """``lease=True`` stores and leases in one step."""
    async with rig.opened("q") as store:
        await store.put(records("a"), ["q"])
        stored = await store.put(records("bc"), ["q"], lease=True)
        expect((await store.counts("q")).leased.items, 2, "stored as leased")
        expect(payloads(await store.lease("q", 9)), [b"a"], "and nobody else gets them")
        expect(list(await store.settle([stored[0].tag or ""])), [], "its tag acks")
        expect(list(await store.settle(nacks=[Nack(stored[1].tag or "")])), [], "or nacks")
        (again,) = await store.lease("q", 9)
        expect((again.payload, again.attempts), (b"c", 2), "having been attempt 1")


async def check_nothing(rig: Rig) -> None:
    """No records, no queues, no tags: nothing happens."""
    async with rig.opened("q") as store:
        expect(list(await store.put([], ["q"])), [], "no records")
        expect(list(await store.put(records("a"), [])), [], "no queues: nobody wants it")
        expect(list(await store.settle()), [], "no tags")
        expect(list(await store.extend([], None)), [], "no tags")
        expect((await store.counts("q")).put, 0, "nothing was put")


async def check_fanout(rig: Rig) -> None:
    """Each queue goes at its own pace; all of a put is there, or nothing."""
    async with rig.opened("a", "b") as store:
        stored = await store.put(records("xy"), ["a", "b"])
        expect(len({one.id for one in stored}), 4, "one id per record and queue")
        in_a = await store.lease("a", 9)
        expect(
            [one.id for one in in_a], [stored[0].id, stored[2].id], "all queues of the first, then the second"
        )
        await store.settle(tags(in_a))
        expect(payloads(await store.lease("b", 1)), [b"x"], "b has not lost what a is done with")
        async with refusal(UnknownQueue, "a queue that is not there"):
            await store.put(records("z"), ["a", "nope"])
        async with refusal(OptionError, "one queue twice"):
            await store.put(records("z"), ["a", "a"])
        expect((await store.counts("a")).put, 2, "a refused put has stored nothing anywhere")


# -- fates


async def check_settle(rig: Rig) -> None:
    """Acks, nacks and dead letters in one step; what did nothing is named."""
    async with rig.opened("q") as store:
        await store.put(records("abc"), ["q"])
        a, b, c = tags(await store.lease("q", 3))
        stale = await store.settle([a, "nonsense", a], [Nack(b), Nack(a)], [Dead(c, "why"), Dead(b, "no")])
        expect(list(stale), ["nonsense", a, a, b], "each tag counts once, the first time")
        counts = await store.counts("q")
        expect((counts.acked, counts.died, counts.ready.items), (1, 1, 1), "acked, dead and handed back")
        expect(list(await store.settle([a, b, c])), [a, b, c], "ended deliveries do nothing")
        (again,) = await store.lease("q", 9)
        expect((again.payload, again.attempts), (b"b", 2), "what was handed back comes again")
        expect(again.tag != b, True, "under another tag")


async def check_nacks(rig: Rig) -> None:
    """To the front in the old order, to the end, after a delay, counted or not."""
    async with rig.opened("q") as store:
        await store.put(records("abcde"), ["q"])
        a, b, c, d = tags(await store.lease("q", 4))
        await store.settle(
            nacks=[Nack(c), Nack(b, count=False), Nack(a, front=False), Nack(d, delay=5.0)],
        )
        leased = await store.lease("q", 9)
        expect(
            [(one.payload, one.attempts) for one in leased],
            [(b"b", 1), (b"c", 2), (b"e", 1), (b"a", 2)],
            "nacks keep the old order, or go to the end",
        )
        expect((await store.counts("q")).delayed.items, 1, "the delayed one waits")
        rig.time += 4.9
        expect(list(await store.lease("q", 9)), [], "until its delay is over")
        await store.settle(nacks=[Nack(tag) for tag in tags(leased)])
        rig.time += 0.1
        expect(
            payloads(await store.lease("q", 9)), [b"b", b"c", b"d", b"e", b"a"], "then it has its old place"
        )


async def check_timeout(rig: Rig) -> None:
    """An ack timeout ends the delivery: back in its place, counted, its tag without effect."""
    async with rig.opened("q") as store:
        await store.put(records("abc"), ["q"])
        a, b = tags(await store.lease("q", 2, ack_timeout=30.0))
        rig.time += 20
        expect(list(await store.extend([b, "nonsense"], 30.0)), ["nonsense"], "extend names what did nothing")
        rig.time += 9.9
        expect(payloads(await store.lease("q", 1)), [b"c"], "not before the timeout")
        rig.time += 0.1
        expect(list(await store.settle([a])), [a], "at the timeout the delivery has ended")
        (again,) = await store.lease("q", 9)
        expect((again.payload, again.attempts), (b"a", 2), "redelivered, the attempt counted")
        expect(list(await store.extend([a], 1.0)), [a], "the old tag extends nothing")
        expect(list(await store.extend([b], None)), [], "None takes the timeout off")
        rig.time += 10_000
        expect(list(await store.lease("q", 9)), [], "without a timeout it lasts")
        expect(list(await store.settle([b, again.tag])), [], "and acks")


async def check_release(rig: Rig) -> None:
    """All leases of a queue at once: back in their places, attempts counted, tags void."""
    async with rig.opened("q", "other") as store:
        await store.put(records("abc"), ["q", "other"])
        old = tags(await store.lease("q", 2))
        kept = tags(await store.lease("other", 2))
        expect(await store.release("q"), 2, "as many as there were")
        expect(list(await store.settle(old)), old, "their tags do nothing")
        expect(list(await store.settle(kept)), [], "other queues are not touched")
        again = await store.lease("q", 9)
        expect(
            [(o.payload, o.attempts) for o in again], [(b"a", 2), (b"b", 2), (b"c", 1)], "in order, counted"
        )


async def check_dead_letters(rig: Rig) -> None:
    """Kept with their errors until redriven or purged, all or some."""
    async with rig.opened("q") as store:
        await store.put(records("abcd"), ["q"])
        leased = await store.lease("q", 4)
        await store.settle(dead=[Dead(one.tag, "no " + one.payload.decode()) for one in leased])
        dead = await store.peek("q", 9, shelf=Shelf.DEAD)
        expect(
            [(d.payload, d.error, d.attempts, d.failed_at, d.shelf) for d in dead],
            [(p, "no " + p.decode(), 1, rig.time, Shelf.DEAD) for p in (b"a", b"b", b"c", b"d")],
            "dead letters know their errors",
        )
        rig.time += 5
        await store.put(records("z"), ["q"])
        expect(await store.redrive("q", [dead[1].id, "99999", "x", dead[1].id]), 1, "only what is there")
        expect(await store.purge("q", [dead[2].id]), 1, "purged by id")
        expect(await store.redrive("q"), 2, "all the others")
        again = await store.lease("q", 9)
        expect(payloads(again), [b"z", b"b", b"a", b"d"], "redriven ones go to the end")
        expect([(one.attempts, one.put_at) for one in again], [(1, rig.time)] * 4, "and begin anew")
        counts = await store.counts("q")
        expect((counts.dead.items, counts.died, counts.redriven), (0, 4, 3), "counted")


async def check_quarantine(rig: Rig) -> None:
    """What its owner cannot read is put aside, and may come back."""
    async with rig.opened("q") as store:
        await store.put(records("ab"), ["q"])
        (first, _) = await store.lease("q", 2)
        await store.settle(dead=[Dead(first.tag, "unknown codec \udcff", quarantine=True)])
        (aside,) = await store.peek("q", 9, shelf=Shelf.QUARANTINED)
        expect((aside.payload, aside.error), (b"a", "unknown codec \\udcff"), "with its error, as text")
        counts = await store.counts("q")
        expect((counts.quarantined.items, counts.quarantined_ever, counts.died), (1, 1, 0), "counted apart")
        expect(await store.redrive("q", shelf=Shelf.QUARANTINED), 1, "redriven")
        expect(payloads(await store.lease("q", 9)), [b"a"], "and leased")


# -- the newest wins


async def check_replace_new(rig: Rig) -> None:
    """Rule 1: a key that is not there is put at the end."""
    async with rig.opened("q") as store:
        await store.put(records("a", key="a"), ["q"], replace=True)
        await store.put(records("b", key="b"), ["q"], replace=True)
        expect(payloads(await store.lease("q", 9)), [b"a", b"b"], "new keys stand in line")
        expect((await store.counts("q")).replaced, 0, "nothing was replaced")


async def check_replace_waiting(rig: Rig) -> None:
    """Rule 2: what waits is replaced in its place; it moves up if more urgent, never down."""
    async with rig.opened("q") as store:
        for key in "abc":
            await store.put([Record(b"old " + key.encode(), key=key, priority=5)], ["q"], replace=True)
        rig.time += 9
        await store.put([Record(b"same", key="a", priority=5)], ["q"], replace=True)
        await store.put([Record(b"less", key="b", priority=8)], ["q"], replace=True)
        await store.put([Record(b"more", key="c", priority=2)], ["q"], replace=True)
        leased = await store.lease("q", 9)
        expect(
            [(o.payload, o.priority, o.put_at - rig.time) for o in leased],
            [(b"more", 2, 0.0), (b"same", 5, -9.0), (b"less", 5, -9.0)],
            "replaced in place, or at the end of a more urgent level",
        )
        expect((await store.counts("q")).replaced, 3, "counted")


async def check_replace_delayed(rig: Rig) -> None:
    """Rule 2, for what was handed back: the new one waits for nothing and has no attempts."""
    async with rig.opened("q") as store:
        await store.put([Record(b"old", key="k"), Record(b"z")], ["q"], replace=True)
        (old,) = await store.lease("q", 1)
        await store.settle(nacks=[Nack(old.tag, delay=60.0)])
        await store.put([Record(b"new", key="k")], ["q"], replace=True)
        leased = await store.lease("q", 9)
        expect([(o.payload, o.attempts) for o in leased], [(b"new", 1), (b"z", 1)], "in its old place, anew")
        rig.time += 61
        expect(list(await store.lease("q", 9)), [], "the old one never comes back")


async def check_replace_leased(rig: Rig) -> None:
    """Rule 3: what is being delivered is void, whatever its ack; the new one is a fresh delivery."""
    for fate in ("ack", "nack", "dead", "extend", "timeout", "release", "none"):
        async with rig.opened("q" + fate) as store:
            queue = "q" + fate
            await store.put([Record(b"old", key="k"), Record(b"z")], [queue], replace=True)
            (old,) = await store.lease(queue, 1, ack_timeout=30.0)
            await store.put([Record(b"new", key="k")], [queue], replace=True)
            stale: Sequence[str] = [old.tag]
            match fate:
                case "ack":
                    stale = await store.settle([old.tag])
                case "nack":
                    stale = await store.settle(nacks=[Nack(old.tag)])
                case "dead":
                    stale = await store.settle(dead=[Dead(old.tag, "no")])
                case "extend":
                    stale = await store.extend([old.tag], 60.0)
                case "timeout":
                    rig.time += 31
                case "release":
                    await store.release(queue)
            expect(list(stale), [old.tag], f"a late {fate} of the old delivery does nothing")
            leased = await store.lease(queue, 9)
            expect([(o.payload, o.attempts) for o in leased], [(b"z", 1), (b"new", 1)], "new, at the end")
            expect(list(await store.settle(tags(leased))), [], "the new delivery acks")
            rig.time += 100
            expect(list(await store.lease(queue, 9)), [], "the old one is never redelivered")
            counts = await store.counts(queue)
            expect((counts.replaced, counts.acked, counts.live.items), (1, 2, 0), "replaced, not acked")


async def check_replace_done(rig: Rig) -> None:
    """Rule 4: who is done with the old one gets the new one again; each queue by itself."""
    async with rig.opened("a", "b", "c") as store:
        await store.put([Record(b"old", key="k")], ["a", "b", "c"], replace=True)
        await store.settle(tags(await store.lease("a", 1)))
        (in_b,) = await store.lease("b", 1)
        await store.put([Record(b"new", key="k")], ["a", "b"], replace=True)
        expect(payloads(await store.lease("a", 9)), [b"new"], "acked before: delivered again")
        expect(list(await store.settle([in_b.tag])), [in_b.tag], "leased before: void")
        expect(payloads(await store.lease("b", 9)), [b"new"], "and delivered again")
        expect(payloads(await store.lease("c", 9)), [b"old"], "a queue that was not named keeps its own")


async def check_replace_once(rig: Rig) -> None:
    """Rule 5: never two of one key, not even within one put."""
    async with rig.opened("q") as store:
        same = [Record(b"1", key="k"), Record(b"x", key="x"), Record(b"2", key="k"), Record(b"3", key="k")]
        stored = await store.put(same, ["q"], replace=True)
        expect(len(stored), 4, "each is answered for")
        leased = await store.lease("q", 9)
        expect(payloads(leased), [b"3", b"x"], "the last of one put wins, in the first one's place")
        counts = await store.counts("q")
        expect((counts.put, counts.replaced), (4, 2), "counted")


async def check_replace_keyless(rig: Rig) -> None:
    """A record without a key is nobody's duplicate."""
    async with rig.opened("q") as store:
        await store.put(records("ab"), ["q"], replace=True)
        await store.put(records("c"), ["q"], replace=True)
        expect(payloads(await store.lease("q", 9)), [b"a", b"b", b"c"], "all of them are delivered")


async def check_replace_dead(rig: Rig) -> None:
    """A dead letter gives way to a newer one, so that no redrive delivers it afterwards."""
    async with rig.opened("q") as store:
        await store.put([Record(b"old", key="k")], ["q"], replace=True)
        await store.settle(dead=[Dead(one.tag, "no") for one in await store.lease("q", 1)])
        await store.put([Record(b"new", key="k")], ["q"], replace=True)
        expect(await store.redrive("q"), 0, "the old one has gone")
        expect(payloads(await store.lease("q", 9)), [b"new"], "the new one has not")


async def check_plain_keys(rig: Rig) -> None:
    """Without *replace* a key is only told."""
    async with rig.opened("q") as store:
        await store.put(records("ab", key="k"), ["q"])
        await store.put([Record(b"c", key="k")], ["q"])
        expect(payloads(await store.lease("q", 9)), [b"a", b"b", b"c"], "all are delivered")


# -- bounds and time


async def check_bounds(rig: Rig) -> None:
    """A put beyond *bytes_max* stores nothing; live bytes count, leased ones too, dead ones not."""
    async with rig.opened("q", "empty") as store:
        await store.put([Record(b"x" * 60)], ["q"], bytes_max=60)
        (one,) = await store.lease("q", 1)
        async with refusal(QueueFull, "61 of 60 bytes"):
            await store.put([Record(b"")], ["empty", "q"], bytes_max=60)
        expect((await store.counts("empty")).put, 0, "nothing went into the other queue either")
        await store.put([Record(b"")], ["q"], bytes_max=61)
        await store.settle(dead=[Dead(one.tag, "no")])
        await store.put([Record(b"y" * 60)], ["q"], bytes_max=61)
        async with refusal(QueueFull, "an empty record counts as one byte"):
            await store.put([Record(b"")], ["q"], bytes_max=61)
        await store.put([Record(b"k" * 10, key="k")], ["q"], replace=True)
        await store.put([Record(b"n" * 12, key="k")], ["q"], replace=True, bytes_max=73)
        async with refusal(QueueFull, "a replacement that is larger by one too many"):
            await store.put([Record(b"n" * 13, key="k")], ["q"], replace=True, bytes_max=73)
        expect((await store.counts("q")).live.bytes, 73, "a refused replacement has replaced nothing")


async def check_drop_oldest(rig: Rig) -> None:
    """The least urgent first, of those the oldest; what is delayed last, what is leased never."""
    async with rig.opened("q") as store:
        await store.put([Record(b"late")], ["q"])
        await store.settle(nacks=[Nack(one.tag, delay=60.0) for one in await store.lease("q", 1)])
        await store.put([Record(b"held")], ["q"])
        await store.lease("q", 1)
        await store.put([Record(b"u1"), Record(b"l1", priority=4), Record(b"l2", priority=4)], ["q"])
        gone = await store.drop_oldest("q", 3)
        expect(payloads(gone), [b"l1", b"l2"], "as many as it takes, told")
        gone = await store.drop_oldest("q", 1000)
        expect(payloads(gone), [b"u1", b"late"], "until nothing waits")
        counts = await store.counts("q")
        expect((counts.dropped, counts.live.bytes, counts.leased.items), (4, 4, 1), "counted")


async def check_expiry(rig: Rig) -> None:
    """Expired is never delivered, and counted; a delivery that has begun is not broken off."""
    async with rig.opened("q", "idle") as store:
        soon = Record(b"soon", expires_at=rig.time + 10)
        await store.put([soon, Record(b"ever"), soon, soon], ["q", "idle"])
        leased = await store.lease("q", 1)
        rig.time += 9.9
        expect((await store.counts("q")).ready.items, 3, "not before")
        rig.time += 0.1
        rest = await store.lease("q", 9)
        expect(payloads(rest), [b"ever"], "at its moment it is gone")
        expect((await store.counts("q")).expired, 2, "counted")
        expect(
            list(await store.settle(nacks=[Nack(one.tag) for one in (*leased, *rest)])), [], "still leased"
        )
        expect(payloads(await store.lease("q", 9)), [b"ever"], "handed back, it expires")
        expect((await store.counts("q")).expired, 3, "counted")
        expect(await store.sweep(), 3, "a sweep finds them in idle queues")
        expect((await store.counts("idle")).ready.items, 1, "and leaves the others")
        await store.put([Record(b"past", expires_at=rig.time - 1)], ["q"])
        expect(list(await store.lease("q", 9)), [], "already expired when put")


async def check_counts(rig: Rig) -> None:
    """The numbers add up, at every step, and the oldest is the oldest."""
    async with rig.opened("q") as store:
        expect((await store.counts("q")).oldest_age, None, "nothing there, no age")
        for n in range(12):
            await store.put([Record(b"x" * (n + 1), priority=n % 3, key=str(n % 5))], ["q"])
            rig.time += 1
        expect((await store.counts("q")).oldest_age, 12.0, "since the first put")
        leased = await store.lease("q", 8)
        await store.settle(tags(leased[:2]), [Nack(leased[2].tag), Nack(leased[3].tag, delay=9)])
        await store.settle(dead=[Dead(leased[4].tag, "no"), Dead(leased[5].tag, "no", quarantine=True)])
        await store.redrive("q")
        await store.put([Record(b"yy", key="3"), Record(b"zz", key="4")], ["q"], replace=True)
        await store.drop_oldest("q", 1)
        await store.purge("q", shelf=Shelf.DELAYED)
        counts = await store.counts("q")
        gone = counts.acked + counts.expired + counts.replaced + counts.dropped + counts.purged
        gone += counts.died + counts.quarantined_ever
        expect(counts.put + counts.redriven, gone + counts.live.items, "all that came in is accounted for")
        for shelf in Shelf:
            lying = await store.peek("q", 99, shelf=shelf)
            amount = getattr(counts, shelf.value)
            seen = (len(lying), sum(len(one.payload) for one in lying))
            expect((amount.items, amount.bytes), seen, f"what is counted lies there ({shelf.value})")


# -- looking, queues


async def check_peek(rig: Rig) -> None:
    """Looking changes nothing, goes on where it stopped, and sees every shelf."""
    async with rig.opened("q") as store:
        await store.put([Record(b"%d" % n, priority=n % 2) for n in range(7)], ["q"])
        order = [b"0", b"2", b"4", b"6", b"1", b"3", b"5"]
        seen: list[bytes] = []
        after = None
        while page := await store.peek("q", 3, after=after):
            seen += payloads(page)
            after = page[-1].cursor
        expect(seen, order, "page by page, in the order of leases")
        page = await store.peek("q", 2)
        await store.settle(tags(await store.lease("q", 2)))
        expect(
            payloads(await store.peek("q", 1, after=page[-1].cursor)), [b"4"], "behind what has gone by now"
        )
        await store.lease("q", 2)
        expect(payloads(await store.peek("q", 9, shelf=Shelf.LEASED)), [b"4", b"6"], "leased ones, too")
        expect(payloads(await store.lease("q", 9)), [b"1", b"3", b"5"], "peeking takes nothing")
        async with refusal(OptionError, "a cursor of ours"):
            await store.peek("q", 1, after="x")


async def check_purge(rig: Rig) -> None:
    """A shelf is emptied; what is leased stays."""
    async with rig.opened("q") as store:
        await store.put(records("abc"), ["q"])
        held = await store.lease("q", 1)
        expect(await store.purge("q", shelf=Shelf.READY), 2, "all that was ready")
        async with refusal(OptionError, "what is leased is somebody's"):
            await store.purge("q", shelf=Shelf.LEASED)
        expect(list(await store.settle(tags(held))), [], "and can be acked")
        expect((await store.counts("q")).purged, 2, "counted")


async def check_queues(rig: Rig) -> None:
    """Queues come and go at run time."""
    async with rig.opened("b", "a") as store:
        await store.create("a", "c")
        expect(list(await store.queues()), ["a", "b", "c"], "sorted, each once")
        await store.put(records("x"), ["a", "b"])
        (held,) = await store.lease("a", 1)
        await store.remove("a", "nope")
        expect(list(await store.queues()), ["b", "c"], "gone")
        expect(list(await store.settle([held.tag])), [held.tag], "its deliveries are void")
        expect(payloads(await store.lease("b", 1)), [b"x"], "the other queue keeps the record")
        await store.create("a")
        expect((await store.counts("a")), Counts(), "made again, it is empty")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.lease("nope", 1),
            lambda: store.counts("nope"),
            lambda: store.peek("nope", 1),
            lambda: store.release("nope"),
            lambda: store.redrive("nope"),
            lambda: store.purge("nope"),
            lambda: store.drop_oldest("nope", 1),
            lambda: store.wait_ready("nope"),
            lambda: store.wait_room(["nope"], 1, 1),
            lambda: store.put(records("x"), ["nope"]),
        ]
        for call in calls:
            async with refusal(UnknownQueue, "a queue that is not there"):
                await call()


async def check_refusals(rig: Rig) -> None:
    """Bad arguments are refused by name, and nothing is done."""
    async with rig.opened("q") as store:
        await store.put(records("a"), ["q"])
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.lease("q", 0),
            lambda: store.lease("q", True),
            lambda: store.lease("q", 1, ack_timeout=0.0),
            lambda: store.lease("q", 1, ack_timeout=float("nan")),
            lambda: store.lease("q", 1, bytes_max=0),
            lambda: store.extend([], -1.0),
            lambda: store.peek("q", 0),
            lambda: store.drop_oldest("q", 0),
            lambda: store.redrive("q", shelf=Shelf.READY),
            lambda: store.put(records("x"), "q"),
            lambda: store.put(records("x"), ["q"], bytes_max=0),
            lambda: store.put(records("x"), ["q"], replace=True, lease=True),
            lambda: store.wait_room(["q"], 2, 1),
            lambda: store.create(""),
            lambda: store.create("line\nbreak"),
        ]
        for call in calls:
            async with refusal(OptionError, inspect.getsource(call).strip()):
                await call()
        expect(payloads(await store.lease("q", 9)), [b"a"], "nothing was done")


# -- tasks


async def check_wait_ready(rig: Rig) -> None:
    """A waiter is woken by a put, a nack, a delay and a timeout that end, and by the queue's end."""
    rig.flows = True
    async with rig.opened("q", "other") as store:

        async def woken(cause: Callable[[], Awaitable[object]], promise: str) -> None:
            done = anyio.Event()

            async def wait() -> None:
                await store.wait_ready("q")
                done.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                expect(done.is_set(), False, f"waits while nothing is ready ({promise})")
                await cause()
                with anyio.fail_after(DEADLINE):
                    await done.wait()

        await woken(lambda: store.put(records("a"), ["q"]), "a put")
        await store.wait_ready("q")
        (one,) = await store.lease("q", 1)
        await woken(lambda: store.settle(nacks=[Nack(one.tag)]), "a nack")
        (one,) = await store.lease("q", 1)
        await woken(lambda: store.settle(nacks=[Nack(one.tag, delay=0.2)]), "a delay")
        expect(len(await store.lease("q", 1, ack_timeout=0.2)), 1, "the delay is over when it wakes")
        await woken(lambda: store.put(records("x"), ["other"]), "a timeout")
        expect(len(await store.lease("q", 1)), 1, "the timeout is over when it wakes")
        async with refusal(UnknownQueue, "the queue's end"):
            with fails_alone():
                await woken(lambda: store.remove("q"), "the queue's end")


class fails_alone:
    """A task group's single error as itself."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is not None:
            raise error


async def check_wait_room(rig: Rig) -> None:
    """A waiter is woken when enough has been settled, or has expired."""
    rig.flows = True
    async with rig.opened("q") as store:
        await store.wait_room(["q"], 10, 10)
        await store.put([Record(b"x" * 6), Record(b"y" * 4, expires_at=store.now() + 3600)], ["q"])
        (first,) = await store.lease("q", 1)
        done = anyio.Event()

        async def wait() -> None:
            await store.wait_room(["q"], 5, 10)
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            expect(done.is_set(), False, "waits while there is no room")
            await store.settle([first.tag])
            with anyio.fail_after(DEADLINE):
                await done.wait()
        rig.time += 3601
        with anyio.fail_after(DEADLINE):
            await store.wait_room(["q"], 10, 10)


async def check_cancelled(rig: Rig) -> None:
    """A cancelled lease is handed back uncounted; a cancelled put happened wholly, or not at all."""
    async with rig.opened("q") as store:
        await store.put(records("abc"), ["q"])
        got: list[Leased] = []

        async def lease() -> None:
            got.extend(await store.lease("q", 2))

        for turns in range(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lease)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            await store.settle(nacks=[Nack(tag, count=False) for tag in tags(got)])  # it was in time
            got.clear()
            with anyio.fail_after(DEADLINE):
                while (await store.counts("q")).leased.items:
                    await anyio.lowlevel.checkpoint()
        leased = await store.lease("q", 9)
        expect(
            [(o.payload, o.attempts) for o in leased], [(b"a", 1), (b"b", 1), (b"c", 1)], "as if untouched"
        )
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.put(records("xyz"), ["q"])
        expect((await store.counts("q")).ready.items in (0, 3), True, "all of the put, or nothing")


async def check_many_tasks(rig: Rig) -> None:
    """Whatever tasks do at once, each record is acked exactly once."""
    async with rig.opened("q") as store:
        got: list[bytes] = []

        async def produce(n: int) -> None:
            for m in range(10):
                await store.put([Record(b"%d.%d" % (n, m))], ["q"])

        async def consume() -> None:
            while len(got) < 100:
                leased = await store.lease("q", 7)
                stale = await store.settle(tags(leased))
                expect(list(stale), [], "nobody else has acked it")
                got.extend(payloads(leased))
                if not leased:
                    await anyio.lowlevel.checkpoint()

        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                for n in range(10):
                    tasks.start_soon(produce, n)
                for _ in range(3):
                    tasks.start_soon(consume)
        expect(sorted(got), sorted(b"%d.%d" % (n, m) for n in range(10) for m in range(10)), "each once")
        for n in range(10):
            mine = [one for one in got if one.startswith(b"%d." % n)]
            expect(len(mine), 10, "nothing is lost")


# -- opening, closing, dying


async def check_closed(rig: Rig) -> None:
    """Closed is closed, and says so; to close again is nothing."""
    store = rig._make_store(rig.name, rig.clock)  # noqa: SLF001 - a Rig opens what it makes
    async with refusal(StoreClosed, "before it is opened"):
        await store.queues()
    await store.aclose()
    async with store:
        await store.create("q")
        async with refusal(RuntimeError, "opened twice"):
            await store.__aenter__()
        await store.aclose()
        await store.aclose()
        async with refusal(StoreClosed, "after it is closed"):
            await store.put(records("a"), ["q"])
        async with refusal(StoreClosed, "after it is closed"):
            await store.wait_ready("q")


async def check_reopened(rig: Rig) -> None:
    """What was there is there again; leases are void, delays go on, tags of before do nothing."""
    async with rig.opened("q", "r") as store:
        await store.put(records("abcdef"), ["q", "r"])
        a, b, c, d = tags(await store.lease("q", 4, ack_timeout=1000.0))
        await store.settle([a], [Nack(b, delay=50.0)], [Dead(d, "no")])
        before = await store.counts("q")
    async with rig.opened() as store:
        counts = await store.counts("q")
        expect((counts.put, counts.acked, counts.died), (before.put, 1, 1), "the numbers are kept")
        expect(list(await store.settle([c, b, a, d])), [c, b, a, d], "tags of before do nothing")
        leased = await store.lease("q", 9)
        expect(
            [(o.payload, o.attempts) for o in leased], [(b"c", 2), (b"e", 1), (b"f", 1)], "in its old place"
        )
        expect(set(tags(leased)) & {a, b, c, d}, set(), "no tag is used again")
        rig.time += 50
        expect(payloads(await store.lease("q", 9)), [b"b"], "the delay has gone on")
        expect(payloads(await store.peek("q", 9, shelf=Shelf.DEAD)), [b"d"], "dead letters are kept")
        expect(payloads(await store.lease("r", 9)), [b"a", b"b", b"c", b"d", b"e", b"f"], "the other queue")


Step = Callable[[Store, dict[str, list[str]]], Awaitable[object]]


def _script(rig: Rig) -> list[Step]:
    """A life of two queues, with everything that changes something."""

    async def lease(store: Store, held: dict[str, list[str]]) -> None:
        held["q"] = tags(await store.lease("q", 4))
        held["r"] = tags(await store.lease("r", 2, ack_timeout=5.0))

    async def put_leased(store: Store, held: dict[str, list[str]]) -> None:
        held["put"] = [one.tag or "" for one in await store.put(records("LM"), ["q"], lease=True)]

    return [
        lambda store, held: store.create("q", "r"),
        lambda store, held: store.put(records("abcdef"), ["q", "r"]),
        lambda store, held: store.put(records("uv", priority=2, key="k"), ["q"]),
        lease,
        lambda store, held: store.settle(
            held["q"][:1], [Nack(held["q"][1], delay=100.0)], [Dead(held["q"][2], "no")]
        ),
        put_leased,
        lambda store, held: store.settle(held["put"][:1] + held["r"][:1]),
        lambda store, held: store.extend(held["r"][1:], 50.0),
        lambda store, held: store.put([Record(b"K", key="k", priority=1)], ["q", "r"], replace=True),
        lambda store, held: store.put(records("12"), ["r"], front=True),
        lambda store, held: store.redrive("q"),
        lambda store, held: store.put([Record(b"E", expires_at=rig.time)], ["r"]),
        lambda store, held: store.sweep(),
        lambda store, held: store.drop_oldest("r", 2),
        lambda store, held: store.release("r"),
        lambda store, held: store.remove("r"),
        lambda store, held: store.purge("q", shelf=Shelf.DELAYED),
    ]


async def check_crashes(rig: Rig, snapshot: Callable[[str, str], None]) -> None:
    """A crash after any step: all of it is there, and nothing of the next."""
    script = _script(rig)
    held: dict[str, list[str]] = {}
    async with rig.opened() as store:
        for n, step in enumerate(script):
            await step(store, held)
            crashed = f"{rig.name}-{n}"
            snapshot(rig.name, crashed)

            model = MemoryStore(clock=rig.clock)
            async with model:
                model_held: dict[str, list[str]] = {}
                for before in script[: n + 1]:
                    await before(model, model_held)
            async with model:
                wanted = await picture(model)
            other = Rig(rig._make_store, crashed)  # noqa: SLF001 - the same medium, as it was left
            other.time = rig.time
            async with other.opened() as found:
                expect(await picture(found), wanted, f"after a crash behind step {n}")


CHECKS: Sequence[tuple[Callable[[Rig], Awaitable[None]], Sequence[str]]] = (
    (check_order, ()),
    (check_ids, ("peek",)),
    (check_payloads, ()),
    (check_priorities, ("priority",)),
    (check_lease_bytes, ()),
    (check_front, ()),
    (check_put_leased, ()),
    (check_nothing, ()),
    (check_fanout, ("fanout",)),
    (check_settle, ()),
    (check_nacks, ()),
    (check_timeout, ()),
    (check_release, ("fanout",)),
    (check_dead_letters, ("peek",)),
    (check_quarantine, ("peek",)),
    (check_replace_new, ("replace",)),
    (check_replace_waiting, ("replace", "priority")),
    (check_replace_delayed, ("replace",)),
    (check_replace_leased, ("replace",)),
    (check_replace_done, ("replace", "fanout")),
    (check_replace_once, ("replace",)),
    (check_replace_keyless, ("replace",)),
    (check_replace_dead, ("replace",)),
    (check_plain_keys, ()),
    (check_bounds, ("replace", "fanout")),
    (check_drop_oldest, ("priority", "peek")),
    (check_expiry, ("expiry", "fanout")),
    (check_counts, ("peek", "priority", "replace")),
    (check_peek, ("peek", "priority")),
    (check_purge, ("peek",)),
    (check_queues, ("fanout", "peek")),
    (check_refusals, ("peek", "replace")),
    (check_wait_ready, ()),
    (check_wait_room, ("expiry",)),
    (check_cancelled, ()),
    (check_many_tasks, ()),
    (check_closed, ()),
    (check_reopened, ("fanout", "peek")),
)
"""Each with the capabilities that it needs."""


async def check_store(make_store: MakeStore, *, snapshot: Callable[[str, str], None] | None = None) -> None:
    """
    Run the whole contract of `dispatcher.stores.base.Store` against an engine.

    On a medium of its own for every check, also across closing and opening again. For a test of yours,
    on asyncio and on trio; takes seconds.

    Args:
        make_store: Makes a store, not opened, on the medium of a name: the same for the same name.

        snapshot: Copies the medium of one name, while it is open, to another name, just as a crash
            would leave it: then a crash between any two steps is checked, too. None: it is not.

    Raises:
        AssertionError: Naming the promise that is broken.
    """
    able = make_store("capabilities", lambda: 0.0).capabilities
    for check, needs in CHECKS:
        if all(getattr(able, need) for need in needs):
            with _promise(check):
                await check(Rig(make_store, check.__name__))
    if snapshot is not None:
        with _promise(check_crashes):
            await check_crashes(Rig(make_store, "check_crashes"), snapshot)


@contextmanager
def _promise(check: Callable[..., object]) -> Iterator[None]:
    """Whatever goes wrong breaks what the check's docstring promises."""
    try:
        yield
    except Exception as error:
        msg = f"{check.__name__}: {inspect.getdoc(check)} {error!r}"
        raise AssertionError(msg) from error
