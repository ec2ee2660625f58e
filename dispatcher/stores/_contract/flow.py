"""How records come in, go out, and end."""

from dispatcher.errors import OptionError, UnknownQueue
from dispatcher.stores._contract.rig import Rig, expect, payloads, records, refusal, tags
from dispatcher.stores.base import Dead, Nack, Record, Shelf

__all__ = [
    "check_dead_letters",
    "check_fanout",
    "check_front",
    "check_ids",
    "check_lease_bytes",
    "check_nacks",
    "check_nothing",
    "check_order",
    "check_payloads",
    "check_priorities",
    "check_put_leased",
    "check_quarantine",
    "check_release",
    "check_settle",
    "check_timeout",
]


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
