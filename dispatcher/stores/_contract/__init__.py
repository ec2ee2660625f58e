"""
The contract of `dispatcher.stores.base.Store`, as a suite that any engine can run; see `check_store`.
"""

from collections.abc import Awaitable, Callable, Sequence

from dispatcher.stores._contract import bounds, flow, life, newest
from dispatcher.stores._contract.rig import MakeStore, Rig, promise

__all__ = ["CHECKS", "check_store"]

CHECKS: Sequence[tuple[Callable[[Rig], Awaitable[None]], Sequence[str]]] = (
    (flow.check_order, ()),
    (flow.check_ids, ("peek",)),
    (flow.check_payloads, ()),
    (flow.check_priorities, ("priority",)),
    (flow.check_lease_bytes, ()),
    (flow.check_front, ()),
    (flow.check_put_leased, ()),
    (flow.check_nothing, ()),
    (flow.check_fanout, ("fanout",)),
    (flow.check_settle, ()),
    (flow.check_nacks, ()),
    (flow.check_timeout, ()),
    (flow.check_release, ("fanout",)),
    (flow.check_dead_letters, ("peek",)),
    (flow.check_quarantine, ("peek",)),
    (newest.check_replace_new, ("replace",)),
    (newest.check_replace_waiting, ("replace", "priority")),
    (newest.check_replace_delayed, ("replace",)),
    (newest.check_replace_leased, ("replace",)),
    (newest.check_replace_done, ("replace", "fanout")),
    (newest.check_replace_once, ("replace",)),
    (newest.check_replace_keyless, ("replace",)),
    (newest.check_replace_dead, ("replace",)),
    (newest.check_plain_keys, ()),
    (bounds.check_bounds, ("replace", "fanout")),
    (bounds.check_drop_oldest, ("priority", "peek")),
    (bounds.check_expiry, ("expiry", "fanout")),
    (bounds.check_now, ("expiry",)),
    (bounds.check_counts, ("peek", "priority", "replace")),
    (bounds.check_peek, ("peek", "priority")),
    (bounds.check_purge, ("peek",)),
    (bounds.check_queues, ("fanout", "peek")),
    (bounds.check_refusals, ("peek", "replace")),
    (life.check_wait_ready, ()),
    (life.check_wait_room, ("expiry",)),
    (life.check_cancelled, ()),
    (life.check_many_tasks, ()),
    (life.check_closed, ()),
    (life.check_reopened, ("fanout", "peek")),
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
            with promise(check):
                await check(Rig(make_store, check.__name__))
    if snapshot is not None:
        with promise(life.check_crashes):
            await life.check_crashes(Rig(make_store, "check_crashes"), snapshot)
