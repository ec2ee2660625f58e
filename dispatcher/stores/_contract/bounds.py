"""Bounds, time, numbers; looking, and queues that come and go."""

import inspect
from collections.abc import Awaitable, Callable

from dispatcher.errors import OptionError, QueueFull, UnknownQueue
from dispatcher.stores._contract.rig import Rig, expect, payloads, records, refusal, tags
from dispatcher.stores.base import Counts, Dead, Nack, Record, Shelf

__all__ = [
    "check_bounds",
    "check_counts",
    "check_drop_oldest",
    "check_expiry",
    "check_now",
    "check_peek",
    "check_purge",
    "check_queues",
    "check_refusals",
]


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
        await store.purge("q", shelf=Shelf.READY)
        await store.put([Record(b"d" * 30, key="d")], ["q"], replace=True)
        await store.settle(dead=[Dead(one.tag, "no") for one in await store.lease("q", 9)])
        async with refusal(QueueFull, "a dead one that gives way makes no room"):
            await store.put([Record(b"n" * 31, key="d")], ["q"], replace=True, bytes_max=30)
        await store.put([Record(b"n" * 30, key="d")], ["q"], replace=True, bytes_max=30)


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

        await store.purge("idle", shelf=Shelf.READY)
        await store.put([Record(b"dead", expires_at=rig.time + 20)], ["idle"])
        await store.settle(dead=[Dead(one.tag, "no") for one in await store.lease("idle", 9)])
        await store.put([Record(b"soon", expires_at=rig.time + 5)], ["idle"])
        rig.time += 10
        expect((await store.counts("idle")).dead.items, 1, "a dead letter does not expire")
        await store.redrive("idle")
        expect((await store.counts("idle")).ready.items, 1, "redriven in time")
        rig.time += 10
        expect(list(await store.lease("idle", 9)), [], "it expires after all")


async def check_now(rig: Rig) -> None:
    """The time never goes back while a store is open, whatever its clock does."""
    async with rig.opened("q") as store:
        expect(store.now(), rig.time, "it goes by its clock")
        rig.time += 100
        expect(store.now(), rig.time, "and on with it")
        rig.time -= 50
        expect(store.now(), rig.time + 50, "but not back")
        await store.put([Record(b"x", expires_at=rig.time + 50)], ["q"])
        expect(list(await store.lease("q", 1)), [], "what has expired stays expired")


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
