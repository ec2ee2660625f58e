"""
The Channel beside other packages that do the same, or a part of it.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial

from benchmarks import turns, uses
from benchmarks.measure import Row, Sides

__all__ = ["ROWS"]

Turn = Callable[[int], Awaitable[float]]

# How much a turn of ours does, of each kind: as much as in the rows with a bar.
_SUBJECTS: dict[str, tuple[Turn, int]] = {
    "send": (turns.channel_send, 100_000),
    "send_nowait": (turns.channel_send_nowait, 100_000),
    "submit-waves": (turns.channel_waves, 40),
    "submit-tasks": (turns.channel_waiters, 250),
    "batch": (turns.channel_batches, 5_000),
    "lone-item": (turns.channel_lone_items, 5_000),
    "blocked-senders": (partial(turns.channel_wake_ups, rounds=1), 10_000),
}
_WHAT = {
    "send": ("items/s", "await send, batches of 100"),
    "send_nowait": ("items/s", "send_nowait until full, then let the others run"),
    "submit-waves": ("items/s", "submit 1 000, then wait for each outcome, by one task"),
    "submit-tasks": ("items/s", "submit and wait, 100 tasks each for its own"),
    "batch": ("us", "one batch of one item"),
    "lone-item": ("us", "a lone item, from submit to its outcome"),
    "blocked-senders": ("us", "time per wake-up with 10 000 senders blocked"),
}


@contextmanager
def _open(scale: float, *, kind: str, use: Turn, amount: int, needs: str) -> Iterator[Sides]:
    if needs:
        uses.package(needs)
    subject, ours = _SUBJECTS[kind]
    yield Sides(
        partial(turns.timed, partial(subject, max(1, int(ours * scale)))),
        partial(turns.timed, partial(use, max(1, int(amount * scale)))),
    )


@contextmanager
def _open_idle(
    scale: float, *, use: Callable[[AsyncExitStack], Awaitable[None]], needs: str
) -> Iterator[Sides]:
    uses.package(needs)
    yield Sides(partial(turns.idle_wakes, turns.idle_channels, scale), partial(turns.idle_wakes, use, scale))


def _row(kind: str, peer: str, use: Turn, amount: int, *, needs: str = "") -> Row:
    """
    Describe one comparison; the yardstick's words are the use's own.

    Args:
        kind: Which row of the channel.

        peer: The name's second half.

        use: What the peer does, given an amount of work.

        amount: So much that a turn takes a fraction of a second.

        needs: The package, if it is one that may be missing.
    """
    unit, what = _WHAT[kind]
    told = (use.__doc__ or "").strip().rstrip(".")
    return Row(
        name=f"{kind}-{peer}",
        what=what,
        yardstick=f"{peer.removesuffix('-untimed')}: {told}",
        unit=unit,
        group="peers",
        turns=11,
        open=partial(_open, kind=kind, use=use, amount=amount, needs=needs),
    )


def _idle_row(peer: str, use: Callable[[AsyncExitStack], Awaitable[None]], needs: str) -> Row:
    return Row(
        name=f"idle-{peer}",
        what="wake-ups that 100 idle channels cause in a second",
        yardstick=f"{peer}: {(use.__doc__ or '').strip().rstrip('.')}",
        unit="wake-ups",
        group="peers",
        turns=3,
        open=partial(_open_idle, use=use, needs=needs),
    )


ROWS = (
    _row("batch", "queue", turns.queue_batches, 10_000),
    _row("blocked-senders", "queue", turns.queue_wake_ups, 10_000),
    _row("send", "anyio", uses.anyio_send, 10_000),
    _row("send_nowait", "anyio", uses.anyio_send_nowait, 100_000),
    _row("submit-waves", "anyio", uses.anyio_waves, 10),
    _row("submit-tasks", "anyio", uses.anyio_waiters, 100),
    _row("batch", "anyio", uses.anyio_batches, 5_000),
    _row("lone-item", "anyio", uses.anyio_lone_items, 5_000),
    _row("blocked-senders", "anyio", uses.anyio_wake_ups, 10_000),
    _row("send", "batchit", uses.batchit_timed, 10_000, needs="batchit"),
    _row("send", "batchit-untimed", uses.batchit_untimed, 50_000, needs="batchit"),
    _row("send", "streamable", uses.streamable_timed, 10_000, needs="streamable"),
    _row("send", "streamable-untimed", uses.streamable_untimed, 100_000, needs="streamable"),
    _row("send", "aiostream-untimed", uses.aiostream_chunks, 30_000, needs="aiostream"),
    _row("submit-waves", "async-batcher", uses.async_batcher_waves, 10, needs="async_batcher"),
    _row("submit-tasks", "async-batcher", uses.async_batcher_waiters, 100, needs="async_batcher"),
    _row("lone-item", "async-batcher", uses.async_batcher_lone_items, 3_000, needs="async_batcher"),
    _idle_row("async-batcher", uses.async_batcher_idle, "async_batcher"),
    _row("submit-waves", "batched", uses.batched_waves, 10, needs="batched"),
    _row("submit-tasks", "batched", uses.batched_waiters, 100, needs="batched"),
    _row("batch", "batched", uses.batched_batches, 5_000, needs="batched"),
    _row("lone-item", "batched", uses.batched_lone_items, 3_000, needs="batched"),
    _idle_row("batched", uses.batched_idle, "batched"),
)
