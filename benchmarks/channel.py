"""
The Channel beside what one would write by hand on asyncio.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.measure import Row, Sides, at_least, at_most
from benchmarks.turns import (
    awaited_tasks,
    channel_batches,
    channel_lone_items,
    channel_send,
    channel_send_nowait,
    channel_waiters,
    channel_wake_ups,
    channel_waves,
    idle_channels,
    idle_wakes,
    queue_lone_items,
    queue_put,
    queue_put_nowait,
    queue_waiters,
    queue_waves,
    timed,
)

__all__ = ["ROWS"]


@contextmanager
def _send(scale: float) -> Iterator[Sides]:
    count = int(100_000 * scale)
    yield Sides(partial(timed, partial(channel_send, count)), partial(timed, partial(queue_put, count)))


@contextmanager
def _send_nowait(scale: float) -> Iterator[Sides]:
    count = int(100_000 * scale)
    yield Sides(
        partial(timed, partial(channel_send_nowait, count)),
        partial(timed, partial(queue_put_nowait, count)),
    )


@contextmanager
def _submit_waves(scale: float) -> Iterator[Sides]:
    waves = max(1, int(40 * scale))
    yield Sides(partial(timed, partial(channel_waves, waves)), partial(timed, partial(queue_waves, waves)))


@contextmanager
def _submit_tasks(scale: float) -> Iterator[Sides]:
    each = max(1, int(250 * scale))
    yield Sides(
        partial(timed, partial(channel_waiters, each)),
        partial(timed, partial(queue_waiters, each)),
    )


@contextmanager
def _batch(scale: float) -> Iterator[Sides]:
    count = int(5_000 * scale)
    yield Sides(
        partial(timed, partial(channel_batches, count)), partial(timed, partial(awaited_tasks, count))
    )


@contextmanager
def _lone(scale: float) -> Iterator[Sides]:
    count = int(5_000 * scale)
    yield Sides(
        partial(timed, partial(channel_lone_items, count)), partial(timed, partial(queue_lone_items, count))
    )


@contextmanager
def _blocked(scale: float) -> Iterator[Sides]:
    many = max(200, int(10_000 * scale))
    yield Sides(
        partial(timed, partial(channel_wake_ups, many, 1)),
        partial(timed, partial(channel_wake_ups, 100, many // 100)),
    )


@contextmanager
def _idle(scale: float) -> Iterator[Sides]:
    yield Sides(partial(idle_wakes, idle_channels, 1.0 * scale))


ROWS = (
    Row(
        name="send",
        what="await send, room there, SendFn a no-op, batches of 100",
        yardstick="asyncio.Queue(1000): await put; get, then get_nowait up to 100",
        unit="items/s",
        bar=at_least(1.5),
        open=_send,
    ),
    Row(
        name="send_nowait",
        what="send_nowait until full, then let the others run",
        yardstick="the same queue with put_nowait",
        unit="items/s",
        bar=at_least(2.0),
        open=_send_nowait,
    ),
    Row(
        name="submit-waves",
        what="submit 1 000, then wait for each outcome, by one task",
        yardstick="one asyncio.Future per item through the same queue",
        unit="items/s",
        bar=at_least(1.0),
        open=_submit_waves,
    ),
    Row(
        name="submit-tasks",
        what="submit and wait, 100 tasks each for its own",
        yardstick="the same with one asyncio.Future per item",
        unit="items/s",
        bar=at_least(0.7),
        open=_submit_tasks,
    ),
    Row(
        name="batch",
        what="one batch of one item: cut, leased, sent, settled",
        yardstick="one asyncio task, made and awaited",
        unit="us",
        bar=at_most(20),
        open=_batch,
    ),
    Row(
        name="lone-item",
        what="a lone item, from submit to its outcome",
        yardstick="an item with an asyncio.Future, through the same queue",
        unit="us",
        open=_lone,
    ),
    Row(
        name="idle",
        what="wake-ups that 100 idle channels cause in a second",
        unit="wake-ups",
        bar=at_most(0),
        turns=3,
        open=_idle,
    ),
    Row(
        name="blocked-senders",
        what="time per wake-up with 10 000 senders blocked",
        yardstick="with 100 blocked",
        unit="us",
        bar=at_most(2, of="ratio"),
        turns=5,
        open=_blocked,
    ),
)
