"""Tasks that wait, are cancelled, or are many; opening, closing, dying."""

from collections.abc import Awaitable, Callable

import anyio

from dispatcher.errors import StoreClosed, UnknownQueue
from dispatcher.stores._contract.rig import (
    DEADLINE,
    Rig,
    expect,
    payloads,
    picture,
    records,
    refusal,
    tags,
)
from dispatcher.stores.base import Dead, Leased, Nack, Record, Shelf, Store
from dispatcher.stores.memory import MemoryStore

__all__ = [
    "check_cancelled",
    "check_closed",
    "check_crashes",
    "check_many_tasks",
    "check_reopened",
    "check_wait_ready",
    "check_wait_room",
]


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
