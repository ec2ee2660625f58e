"""A put with ``replace=True``: the newest wins."""

from collections.abc import Sequence

from dispatcher.stores._contract.rig import Rig, expect, payloads, records, tags
from dispatcher.stores.base import Dead, Nack, Record

__all__ = [
    "check_plain_keys",
    "check_replace_dead",
    "check_replace_delayed",
    "check_replace_done",
    "check_replace_keyless",
    "check_replace_leased",
    "check_replace_new",
    "check_replace_once",
    "check_replace_waiting",
]


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
