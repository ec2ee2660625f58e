"""Faults of ppMQ, each found by running it, that do not come back here. Numbers as in the documentation."""

import logging
import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest

from dispatcher.broker import Broker, Message, TopicOptions
from dispatcher.stores import MemoryStore, SQLiteStore

Open = Callable[..., AbstractAsyncContextManager[Broker]]

ONE = TopicOptions(subscriptions=("s",))
NEWEST = TopicOptions(subscriptions=("s",), dedupe=True)


async def take(broker: Broker, topic: str = "t", subscription: str = "s") -> list[bytes]:
    """Everything that is ready, acked."""
    taken: list[bytes] = []
    async with broker.subscribe(topic, subscription) as puller:
        while batch := await puller.poll():
            taken += [one.payload for one in batch]
            await puller.ack(*batch)
    return taken


async def test_w1_goes_on_after_timeouts_and_restarts(open_broker: Open, time: Any) -> None:
    """Redelivery, again and again, with publishes in between, leaves every queue usable."""
    for turn in range(3):
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as puller:
            for _ in range(3):
                await broker.publish("t", [Message(b"%d" % turn)])
                await puller.poll()
                time.pass_(60)
        async with open_broker(t=ONE) as broker:
            assert await take(broker) == [b"%d" % turn] * 3


async def test_w2_topics_do_not_share_messages(open_broker: Open) -> None:
    """The same key in two topics is two messages."""
    async with open_broker(t=NEWEST, u=NEWEST) as broker:
        await broker.publish("t", [Message(b"of t", key="k")])
        await broker.publish("u", [Message(b"of u", key="k")])

        assert await take(broker, "t") == [b"of t"]
        assert await take(broker, "u") == [b"of u"]


async def test_w3_a_restart_overwrites_nothing(open_broker: Open) -> None:
    async with open_broker(t=ONE) as broker:
        await broker.publish("t", [Message(b"A"), Message(b"B")])
    async with open_broker(t=ONE) as broker:
        await broker.publish("t", [Message(b"C")])
        assert await take(broker) == [b"A", b"B", b"C"]


async def test_w4_nobodys_key_is_special(open_broker: Open, time: Any) -> None:
    """What is done is gone; no key reaches another's record; an expired key can come again."""
    keys = ["x", "meta:x", "ack:s", "id:x", "t/s", "%", "'; --"]
    async with open_broker(t=NEWEST) as broker:
        await broker.publish("t", [Message(key.encode(), key=key) for key in keys])
        assert await take(broker) == [key.encode() for key in keys]
        assert (await broker.counts("t", "s")).live.items == 0
        await broker.publish("t", [Message(b"old", key="x", ttl=1)])
        time.pass_(2)
        await broker.publish("t", [Message(b"new", key="x")])
        assert await take(broker) == [b"new"]


async def test_w4_what_is_done_is_deleted_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with SQLiteStore(path, "os") as store, Broker(store, {"t": ONE}) as broker:
        await broker.publish("t", [Message(b"%d" % n) for n in range(100)])
        await take(broker)
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM bodies").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM entries").fetchone() == (0,)
    db.close()


async def test_w5_deliveries_are_not_forgotten_before_their_timeout(open_broker: Open, time: Any) -> None:
    """A look at the queue in between takes nothing away: the ack counts, the others come again."""
    options = TopicOptions(subscriptions=("s",), ack_timeout=300)
    async with open_broker(t=options) as broker, broker.subscribe("t", "s") as puller:
        await broker.publish("t", [Message(b"1"), Message(b"2")])
        one, _ = await puller.poll()
        for _ in range(4):
            time.pass_(60)
            assert (await broker.counts("t", "s")).leased.items == 2
        assert await puller.ack(one) == []
        time.pass_(60)
        assert [again.payload for again in await puller.poll()] == [b"2"]


async def test_w7_what_was_redelivered_is_deleted_with_its_ack(open_broker: Open, time: Any) -> None:
    async with open_broker(t=TopicOptions(subscriptions=("s", "r"))) as broker:
        await broker.publish("t", [Message(b"1")])
        async with broker.subscribe("t", "s") as puller:
            for _ in range(3):
                await puller.poll()
                time.pass_(30)
        assert await take(broker) == [b"1"]
        assert await take(broker, subscription="r") == [b"1"]
        for name in ("s", "r"):
            assert (await broker.counts("t", name)).live.items == 0


async def test_w13_what_waited_over_a_restart_is_delivered_at_once(open_broker: Open) -> None:
    """Not at the next tick of a timer."""
    async with open_broker(t=ONE) as broker:
        await broker.publish("t", [Message(b"1")])
    async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as puller:
        with anyio.fail_after(5):
            assert [one.payload for one in await puller.receive()] == [b"1"]


async def test_w16_poison_ends_up_aside(open_broker: Open) -> None:
    """It is tried so often, with a delay if one likes, and is in nobody's way."""
    options = TopicOptions(subscriptions=("s",), max_attempts=3)
    async with open_broker(t=options) as broker, broker.subscribe("t", "s") as puller:
        await broker.publish("t", [Message(b"poison"), Message(b"good")])
        tries = 0
        while batch := await puller.poll(1):
            if batch[0].payload == b"poison":
                tries += 1
                await puller.nack(*batch, error="no")
            else:
                await puller.ack(*batch)
        assert tries == 3
        assert (await broker.counts("t", "s")).dead.items == 1


async def test_w19_payloads_are_not_logged(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], time: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    options = TopicOptions(subscriptions=("s",), max_attempts=1, bytes_max=20, full="drop_oldest")
    async with (
        MemoryStore(clock=time) as store,
        Broker(store, {"t": options}) as broker,
        broker.subscribe("t", "s") as puller,
    ):
        for _ in range(4):
            await broker.publish("t", [Message(b"secret word")])
            await puller.poll()
            time.pass_(30)
        await puller.poll()
    assert "given up" in caplog.text
    assert "secret" not in caplog.text
    assert capfd.readouterr() == ("", "")


async def test_w20_fewer_priorities_strand_nothing(open_broker: Open) -> None:
    """Nor does a restart with them."""
    async with open_broker(t=TopicOptions(subscriptions=("s",), priorities=5)) as broker:
        await broker.publish("t", [Message(b"4", priority=4), Message(b"2", priority=2)])
    async with open_broker(t=ONE) as broker:
        await broker.publish("t", [Message(b"0")])
        assert await take(broker) == [b"0", b"2", b"4"]


async def test_w20_subscribers_that_are_not_named_any_more_keep_their_messages(open_broker: Open) -> None:
    async with open_broker(t=TopicOptions(subscriptions=("s", "old"))) as broker:
        await broker.publish("t", [Message(b"1")])
    async with open_broker(t=ONE) as broker:
        assert await take(broker, subscription="old") == [b"1"]
        await broker.remove_subscription("t", "old")
    async with open_broker(t=ONE) as broker:
        assert broker.subscriptions("t") == ("s",)
