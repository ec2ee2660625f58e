"""Topics, subscriptions, and what comes of what is published: over both stores, on both backends."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import tenacity

from dispatcher import Batch, BlockNewItems, ChannelOptions, OptionError, QueueFull, RetryPolicy
from dispatcher.broker import (
    Broker,
    BrokerClosed,
    Delivery,
    Message,
    MessageRefused,
    SubscribeOptions,
    SubscriptionBusy,
    TopicOptions,
    UnknownSubscription,
    UnknownTopic,
)
from dispatcher.errors import ItemTooLarge, UnknownQueue
from dispatcher.stores import Capabilities, MemoryStore, Shelf

Open = Callable[..., AbstractAsyncContextManager[Broker]]

ONE = TopicOptions(subscriptions=("s",))
TWO = TopicOptions(subscriptions=("a", "b"))


def messages(text: str, **more: Any) -> list[Message]:
    """One message per word."""
    return [Message(word.encode(), **more) for word in text.split()]


def words(deliveries: Sequence[Any]) -> str:
    return " ".join(one.payload.decode() for one in deliveries)


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - of another's doing, no event tells
            await anyio.sleep(0.002)


async def take(broker: Broker, subscription: str = "s", topic: str = "t") -> str:
    """Everything that is ready, acked."""
    taken: list[Delivery] = []
    async with broker.subscribe(topic, subscription) as puller:
        while (await broker.counts(topic, subscription)).ready.items:
            batch = await puller.receive()
            taken += batch
            await puller.ack(*batch)
    return words(taken)


class TestPublish:
    async def test_every_subscription_gets_everything(self, open_broker: Open) -> None:
        """Each at its own pace, in order."""
        async with open_broker(t=TWO) as broker:
            done = await broker.publish("t", messages("1 2 3"))

            assert (done.messages, done.subscriptions) == (3, 2)
            assert await take(broker, "a") == "1 2 3"
            assert (await broker.counts("t", "b")).ready.items == 3
            assert await take(broker, "b") == "1 2 3"

    async def test_is_whole_or_not_at_all(self, open_broker: Open) -> None:
        """A message that breaks a rule is named, and nothing is stored."""
        async with open_broker(t=ONE) as broker:
            with pytest.raises(MessageRefused, match=r"message 1: the priority .* got 7") as refused:
                await broker.publish("t", [Message(b"1"), Message(b"2", priority=7)])

            assert refused.value.position == 1
            assert (await broker.counts("t", "s")).ready.items == 0

    @pytest.mark.parametrize(
        ("message", "rule"),
        [
            ({"priority": -1}, "priority"),
            ({"priority": True}, "priority"),
            ({"ttl": 0}, "ttl"),
            ({"ttl": float("nan")}, "ttl"),
            ({"expires_at": float("inf")}, "expires_at"),
            ({"key": ""}, "key"),
            ({"key": "k" * 1025}, "key"),
        ],
    )
    async def test_refuses_by_rule_and_value(self, message: Any, rule: str) -> None:
        """Nothing that a client sends can break the broker."""
        async with MemoryStore() as store, Broker(store, {"t": ONE}) as broker:
            with pytest.raises(MessageRefused, match=rule):
                await broker.publish("t", [Message(b"1", **message)])

    async def test_to_nobody_keeps_nothing(self, open_broker: Open) -> None:
        """A topic without subscriptions takes messages, and says that nobody wanted them."""
        async with open_broker(t=TopicOptions()) as broker:
            assert (await broker.publish("t", messages("1"))).subscriptions == 0
            await broker.add_subscription("t", "late")

            assert (await broker.counts("t", "late")).ready.items == 0
            assert broker.statistics().unwanted == 1

    async def test_unknown_names(self, open_broker: Open) -> None:
        async with open_broker(t=ONE) as broker:
            with pytest.raises(UnknownTopic, match="'x'"):
                await broker.publish("x", messages("1"))
            with pytest.raises(UnknownSubscription, match="'y'"):
                broker.subscribe("t", "y")

    async def test_only_within_the_block(self) -> None:
        async with MemoryStore() as store:
            broker = Broker(store, {"t": ONE})
            with pytest.raises(BrokerClosed):
                await broker.publish("t", messages("1"))
            async with broker:
                pass
            with pytest.raises(BrokerClosed):
                await broker.publish("t", messages("1"))

    async def test_a_payload_is_stored_once_until_all_are_done(self, open_broker: Open) -> None:
        """Deleted when the last subscription has acked it, and not before."""
        async with open_broker(t=TWO) as broker:
            await broker.publish("t", messages("1"))
            await take(broker, "a")
            assert words(await broker.peek("t", "b")) == "1"
            await take(broker, "b")
            assert not await broker.peek("t", "b")


class TestOptions:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"ack_timeout": 0},
            {"ack_timeout": float("inf")},
            {"max_attempts": 0},
            {"priorities": 0},
            {"priorities": 2**40},
            {"dedupe": 1},
            {"ttl": -1},
            {"ttl": 5, "expiry": False},
            {"bytes_max": 0},
            {"full": "drop"},
            {"subscriptions": ["a/b"]},
            {"subscriptions": ["a", "a"]},
            {"subscriptions": [""]},
        ],
        ids=str,
    )
    def test_are_checked_when_made(self, wrong: Any) -> None:
        with pytest.raises(OptionError):
            TopicOptions(**wrong)

    @pytest.mark.parametrize("lacks", ["fanout", "priority", "replace", "expiry"])
    def test_what_the_store_cannot_do_is_refused_at_once(self, lacks: str) -> None:
        class Lesser(MemoryStore):
            capabilities = Capabilities(**{lacks: False})

        with pytest.raises(OptionError, match=lacks):
            Broker(Lesser(), {"t": TopicOptions(priorities=2, dedupe=True)})

    async def test_names_of_topics(self) -> None:
        with pytest.raises(OptionError, match="topic"):
            Broker(MemoryStore(), {"a/b": ONE})


class TestPulling:
    async def test_acks_may_be_partial_and_in_any_order(self, open_broker: Open) -> None:
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as puller:
            await broker.publish("t", messages("0 1 2 3 4"))
            got = await puller.receive()

            assert await puller.ack(got[3], got[1]) == []
            assert await puller.ack(got[2]) == []
            assert (await broker.counts("t", "s")).leased.items == 2

    async def test_no_ack_holds_up_what_comes_behind(self, open_broker: Open) -> None:
        """One message without an ack is not in the way of the others."""
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as puller:
            await broker.publish("t", messages("1 2 3"))
            first = await puller.receive(1)

            assert words(first) == "1"
            assert words(await puller.receive(1)) == "2"

    async def test_batches_are_bounded(self, open_broker: Open) -> None:
        options = SubscribeOptions(batch_items_max=2, in_flight_max=3)
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s", options) as puller:
            await broker.publish("t", messages("1 2 3 4"))

            assert words(await puller.receive()) == "1 2"
            second = await puller.receive()
            assert words(second) == "3"
            with anyio.move_on_after(0.05) as waited:
                await puller.receive()
            assert waited.cancelled_caught
            await puller.ack(*second)
            assert words(await puller.receive()) == "4"

    async def test_waits_for_what_is_published(self, open_broker: Open) -> None:
        async with (
            open_broker(t=ONE) as broker,
            broker.subscribe("t", "s") as puller,
            anyio.create_task_group() as group,
        ):

            async def later() -> None:
                await anyio.lowlevel.checkpoint()
                await broker.publish("t", messages("1"))

            group.start_soon(later)
            with anyio.fail_after(10):
                assert words(await puller.receive()) == "1"

    async def test_leaving_hands_back(self, open_broker: Open) -> None:
        """What has no ack goes to its place; what nobody saw yet was no attempt."""
        async with open_broker(t=ONE) as broker:
            await broker.publish("t", messages("1 2 3"))
            async with broker.subscribe("t", "s") as puller:
                async for one in puller:
                    assert one.payload == b"1"
                    break
            async with broker.subscribe("t", "s") as puller:
                assert [(one.payload, one.attempts) for one in await puller.receive()] == [
                    (b"1", 2),
                    (b"2", 1),
                    (b"3", 1),
                ]

    async def test_one_after_the_other(self, open_broker: Open) -> None:
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as puller:
            await broker.publish("t", messages("1 2 3"))
            seen = []
            async for one in puller:
                seen.append(one.payload)
                await puller.ack(one)
                if len(seen) == 3:
                    break

            assert seen == [b"1", b"2", b"3"]
            assert puller.in_flight == 0

    async def test_a_look_does_not_wait(self, open_broker: Open) -> None:
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as puller:
            assert await puller.poll() == []
            await broker.publish("t", messages("1"))
            assert words(await puller.poll()) == "1"

    async def test_two_share_one_subscription(self, open_broker: Open) -> None:
        """Each message goes to one of them."""
        async with (
            open_broker(t=ONE) as broker,
            broker.subscribe("t", "s") as one,
            broker.subscribe("t", "s") as other,
        ):
            await broker.publish("t", messages("1 2"))

            assert words(await one.receive(1)) + words(await other.receive(1)) == "12"


class TestRedelivery:
    async def test_comes_back_at_the_ack_timeout_in_front(self, open_broker: Open, time: Any) -> None:
        """A subscriber that dies does not take its messages along."""
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as dead:
            await broker.publish("t", messages("1 2"))
            await dead.receive()
            await broker.publish("t", messages("3"))
            time.pass_(29.9)
            assert (await broker.counts("t", "s")).ready.items == 1
            time.pass_(0.1)

            async with broker.subscribe("t", "s") as alive:
                got = await alive.receive()
            assert words(got) == "1 2 3"
            assert [one.attempts for one in got] == [2, 2, 1]

    async def test_a_late_ack_acks_nothing(self, open_broker: Open, time: Any) -> None:
        """Nor does it end the delivery that came after it."""
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as slow:
            await broker.publish("t", messages("1"))
            old = await slow.receive()
            time.pass_(30)
            async with broker.subscribe("t", "s") as fast:
                new = await fast.receive()

                assert await slow.ack(*old) == list(old)
                assert await fast.ack(*new) == []
            assert broker.statistics().stale == 1

    async def test_timed_out_ones_give_room(self, open_broker: Open, time: Any) -> None:
        """The window of a subscriber that lost track is free again."""
        options = SubscribeOptions(batch_items_max=1, in_flight_max=1)
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s", options) as puller:
            await broker.publish("t", messages("1"))
            await puller.receive()
            time.pass_(30)

            assert [one.attempts for one in await puller.receive()] == [2]

    async def test_no_timeout_waits_for_ever(self, open_broker: Open, time: Any) -> None:
        options = TopicOptions(subscriptions=("s",), ack_timeout=None)
        async with open_broker(t=options) as broker, broker.subscribe("t", "s") as puller:
            await broker.publish("t", messages("1"))
            got = await puller.receive()
            time.pass_(1e9)

            assert (await broker.counts("t", "s")).ready.items == 0
            assert await puller.ack(*got) == []

    async def test_extend_gives_time(self, open_broker: Open, time: Any) -> None:
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as puller:
            await broker.publish("t", messages("1"))
            got = await puller.receive()
            time.pass_(20)
            assert await puller.extend(*got) == []
            time.pass_(20)
            assert puller.in_flight == 1
            assert await puller.ack(*got) == []
            assert await puller.extend(*got) == list(got)

    async def test_nack_with_delay(self, open_broker: Open, time: Any) -> None:
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as puller:
            await broker.publish("t", messages("1 2"))
            await puller.nack(*await puller.receive(1), delay=5)
            assert words(await puller.receive()) == "2"
            time.pass_(5)
            assert words(await puller.receive()) == "1"

    async def test_reset_begins_anew(self, open_broker: Open) -> None:
        """One that restarted gets what it had, in order, before all else; on all its topics at once."""
        async with (
            open_broker(t=ONE, u=ONE, v=TWO) as broker,
            broker.subscribe("t", "s") as one,
            broker.subscribe("u", "s") as other,
        ):
            await broker.publish("t", messages("1 2 3"))
            await broker.publish("u", messages("x"))
            first = await one.receive(2)
            await other.receive()

            assert await broker.reset("s") == 3
            assert words(await one.receive()) == "1 2 3"
            assert words(await other.receive()) == "x"
            assert await one.ack(*first) == list(first)
            assert await broker.reset("s", "t") == 3
            with pytest.raises(UnknownSubscription):
                await broker.reset("s", "v")
            with pytest.raises(UnknownSubscription):
                await broker.reset("nobody")

    async def test_a_restart_keeps_queue_acks_and_what_was_under_way(self, open_broker: Open) -> None:
        async with open_broker(t=TWO) as broker:
            await broker.publish("t", messages("1 2 3 4"))
            async with broker.subscribe("t", "a") as puller:
                got = await puller.receive(3)
                await puller.ack(got[1])
            tags, ids = [one.tag for one in got], [one.id for one in got]
        async with open_broker(t=TWO) as broker:
            assert await broker.ack(tags) == tags, "deliveries of the dead are void"
            async with broker.subscribe("t", "a") as puller:
                again = await puller.receive()
                assert [one.id for one in again][:2] == [ids[0], ids[2]]
            assert await take(broker, "a") == "1 3 4"
            assert await take(broker, "b") == "1 2 3 4"

    async def test_ids_are_never_given_again(self, open_broker: Open) -> None:
        """Messages published after a restart do not take the names of those before it."""
        seen: list[str] = []
        for _ in range(3):
            async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as puller:
                await broker.publish("t", messages("1 2"))
                got = await puller.receive()
                seen += [one.id for one in got]
                await puller.ack(*got)
        assert len(set(seen)) == 6


class TestDeadLetters:
    async def test_after_max_attempts(self, open_broker: Open, time: Any) -> None:
        """Poison is delivered so often and no more, and is kept."""
        options = TopicOptions(subscriptions=("s",), max_attempts=2)
        async with open_broker(t=options) as broker, broker.subscribe("t", "s") as puller:
            await broker.publish("t", messages("poison good"))
            for _ in range(2):
                await puller.receive(1)
                time.pass_(30)
            assert words(await puller.receive()) == "good"
            dead = await broker.peek("t", "s", shelf=Shelf.DEAD)

            assert words(dead) == "poison"
            assert dead[0].error == "delivered 2 times without an ack"
            assert broker.statistics().dead == 1

    async def test_of_the_last_nack_keeps_its_error(self, open_broker: Open) -> None:
        options = TopicOptions(subscriptions=("s",), max_attempts=2)
        async with open_broker(t=options) as broker, broker.subscribe("t", "s") as puller:
            await broker.publish("t", messages("poison"))
            await puller.nack(*await puller.receive(), error="first")
            await puller.nack(*await puller.receive(), error="second")

            assert [one.error for one in await broker.peek("t", "s", shelf=Shelf.DEAD)] == ["second"]

    async def test_are_redriven_and_purged(self, open_broker: Open) -> None:
        async with open_broker(t=ONE) as broker, broker.subscribe("t", "s") as puller:
            await broker.publish("t", messages("1 2 3"))
            await puller.reject(*await puller.receive(), error="no")
            dead = await broker.peek("t", "s", shelf=Shelf.DEAD)

            assert await broker.redrive("t", "s", [dead[1].id]) == 1
            got = await puller.receive()
            assert [(one.payload, one.attempts) for one in got] == [(b"2", 1)]
            assert await broker.purge("t", "s", [dead[0].id]) == 1
            assert await broker.redrive("t", "s") == 1
            assert words(await puller.receive()) == "3"

    async def test_are_each_subscriptions_own(self, open_broker: Open) -> None:
        async with open_broker(t=TWO) as broker, broker.subscribe("t", "a") as puller:
            await broker.publish("t", messages("1"))
            await puller.reject(*await puller.receive(), error="no")

            assert await take(broker, "b") == "1"


class TestCare:
    async def test_pause_and_resume(self, open_broker: Open) -> None:
        """A paused subscription keeps what is published; the others go on."""
        async with (
            open_broker(t=TWO) as broker,
            broker.subscribe("t", "a") as puller,
            anyio.create_task_group() as group,
        ):
            broker.pause("t", "a")
            got: list[Delivery] = []

            async def pull() -> None:
                got.extend(await puller.receive())

            group.start_soon(pull)
            await broker.publish("t", messages("1"))
            assert await take(broker, "b") == "1"
            assert not got
            assert await puller.poll() == []
            assert broker.paused("t", "a")
            broker.resume("t", "a")
            await until(lambda: got)

    async def test_subscriptions_come_and_go(self, open_broker: Open) -> None:
        """One that is added gets what is published from then on; one that is removed is in nobody's way."""
        async with open_broker(t=ONE) as broker:
            await broker.publish("t", messages("1"))
            assert await broker.add_subscription("t", "new")
            assert not await broker.add_subscription("t", "new")
            await broker.publish("t", messages("2"))

            assert await take(broker, "new") == "2"
            await broker.remove_subscription("t", "s")
            assert broker.subscriptions("t") == ("new",)
            assert (await broker.publish("t", messages("3"))).subscriptions == 1
            with pytest.raises(UnknownSubscription):
                broker.subscribe("t", "s")

    async def test_an_added_subscription_is_there_after_a_restart(self, open_broker: Open) -> None:
        async with open_broker(t=ONE) as broker:
            await broker.add_subscription("t", "new")
            await broker.publish("t", messages("1"))
        async with open_broker(t=ONE) as broker:
            assert broker.subscriptions("t") == ("s", "new")
            assert await take(broker, "new") == "1"

    async def test_who_waits_hears_of_a_removal(self, open_broker: Open) -> None:
        async with (
            open_broker(t=ONE) as broker,
            broker.subscribe("t", "s") as puller,
            anyio.create_task_group() as group,
        ):
            heard = anyio.Event()

            async def pull() -> None:
                with pytest.raises(UnknownSubscription):
                    await puller.receive()
                heard.set()

            group.start_soon(pull)
            await anyio.lowlevel.checkpoint()
            await broker.remove_subscription("t", "s")
            with anyio.fail_after(10):
                await heard.wait()

    async def test_topics_come_change_and_go(self, open_broker: Open) -> None:
        """New options lose nothing; with fewer priorities, what is stored is delivered all the same."""
        async with open_broker() as broker:
            await broker.add_topic("t", TopicOptions(subscriptions=("s",), priorities=3))
            await broker.publish("t", [Message(b"low", priority=2), Message(b"high")])
            await broker.add_topic("t", TopicOptions(subscriptions=("n",), priorities=1))

            assert broker.subscriptions("t") == ("s", "n")
            with pytest.raises(MessageRefused):
                await broker.publish("t", [Message(b"x", priority=2)])
            assert await take(broker) == "high low"
            await broker.remove_topic("t")
            with pytest.raises(UnknownTopic):
                await broker.publish("t", messages("1"))
            assert broker.topics == {}

    async def test_a_publish_that_meets_a_removal_goes_to_the_others(self, time: Any) -> None:
        """The queue is gone between the look at the subscriptions and the write."""

        class Between(MemoryStore):
            async def put(self, *args: Any, **more: Any) -> Any:
                if "x" in broker.subscriptions("t"):
                    await broker.remove_subscription("t", "x")
                return await super().put(*args, **more)

        topics = {"t": TopicOptions(subscriptions=("s", "x"))}
        async with Between(clock=time) as store, Broker(store, topics) as broker:
            assert (await broker.publish("t", messages("1"))).subscriptions == 1
            assert await take(broker) == "1"
            await store.remove("t/s")
            with pytest.raises(UnknownQueue):
                await broker.publish("t", messages("2"))

    async def test_a_publish_beside_a_removal_is_whole(self, open_broker: Open) -> None:
        """Nobody who stays misses a message because somebody goes."""
        async with open_broker(t=ONE) as broker:
            for n in range(10):
                await broker.add_subscription("t", f"x{n}")
            async with anyio.create_task_group() as group:
                for n in range(10):
                    group.start_soon(broker.publish, "t", messages(f"{n}"))
                    group.start_soon(broker.remove_subscription, "t", f"x{n}")

            assert sorted((await take(broker)).split()) == [str(n) for n in range(10)]


class TestExpiry:
    async def test_is_per_message_and_counted(self, open_broker: Open, time: Any) -> None:
        async with open_broker(t=TWO) as broker:
            await broker.publish("t", [Message(b"short", ttl=5), Message(b"long")])
            time.pass_(2)
            async with broker.subscribe("t", "a") as puller:
                got = await puller.receive()
                assert words(got) == "short long"
                time.pass_(8)
                assert await take(broker, "b") == "long"
                assert (await broker.counts("t", "b")).expired == 1
                await puller.ack(*got)

    async def test_of_the_topic(self, open_broker: Open, time: Any) -> None:
        options = TopicOptions(subscriptions=("s",), ttl=10)
        async with open_broker(t=options) as broker:
            await broker.publish("t", [Message(b"1"), Message(b"2", expires_at=time() + 20)])
            time.pass_(10)

            assert await take(broker) == "2"

    async def test_can_be_switched_off(self, open_broker: Open) -> None:
        async with open_broker(t=TopicOptions(subscriptions=("s",), expiry=False)) as broker:
            with pytest.raises(MessageRefused, match="do not expire"):
                await broker.publish("t", [Message(b"1", ttl=1)])

    async def test_is_looked_for_where_nobody_reads(self, time: Any) -> None:
        """An idle subscriber's expired messages leave the store all the same."""
        store = MemoryStore(clock=time)
        async with store, Broker(store, {"t": ONE}, sweep_every=0.01) as broker:
            await broker.publish("t", [Message(b"1", ttl=1)])
            time.pass_(1)
            engine = store._engine  # noqa: SLF001 - counts() would look itself
            await until(lambda: not engine._queues["t/s"].entries)  # noqa: SLF001


class TestBounds:
    async def test_refuse(self, open_broker: Open) -> None:
        options = TopicOptions(subscriptions=("a", "b"), bytes_max=4)
        async with open_broker(t=options) as broker:
            await broker.publish("t", messages("12 34"))
            await take(broker, "a")
            with pytest.raises(QueueFull, match="t/b"):
                await broker.publish("t", messages("5"))

            assert (await broker.counts("t", "a")).ready.items == 0, "nothing anywhere"
            assert broker.statistics().refused == 1

    async def test_block(self, open_broker: Open) -> None:
        """Publishers wait in order, and go on when there is room."""
        options = TopicOptions(subscriptions=("s",), bytes_max=2, full="block")
        async with open_broker(t=options) as broker, anyio.create_task_group() as group:
            await broker.publish("t", messages("12"))
            done: list[str] = []

            async def publish(text: str) -> None:
                await broker.publish("t", messages(text))
                done.append(text)

            for text in ("34", "56"):
                group.start_soon(publish, text)
                await anyio.lowlevel.checkpoint()
            assert not done
            got = ""
            while len(got) < 6:
                got += (await take(broker)).replace(" ", "")
                await anyio.sleep(0.001)
            assert got == "123456"
            assert done == ["34", "56"]
            with pytest.raises(ItemTooLarge):
                await broker.publish("t", messages("123"))

    async def test_a_small_one_does_not_overtake_a_large_one(self, open_broker: Open) -> None:
        """Who waits for much room is not starved by those who need little."""
        options = TopicOptions(subscriptions=("s",), bytes_max=3, full="block")
        async with (
            open_broker(t=options) as broker,
            broker.subscribe("t", "s") as puller,
            anyio.create_task_group() as group,
        ):
            await broker.publish("t", messages("1 2 3"))
            got = await puller.receive()
            group.start_soon(broker.publish, "t", messages("abc"))
            for _ in range(5):
                await anyio.sleep(0.002)
            group.start_soon(broker.publish, "t", messages("x"))
            await puller.ack(got[0])
            for _ in range(10):
                await anyio.sleep(0.002)
            assert (await broker.counts("t", "s")).put == 3
            await puller.ack(*got[1:])
            got = await puller.receive()
            assert words(got) == "abc"
            await puller.ack(*got)
            assert words(await puller.receive()) == "x"

    async def test_a_blocked_publish_that_is_cancelled_left_nothing(self, open_broker: Open) -> None:
        options = TopicOptions(subscriptions=("s",), bytes_max=2, full="block")
        async with open_broker(t=options) as broker:
            await broker.publish("t", messages("12"))
            with anyio.move_on_after(0.05):
                await broker.publish("t", messages("34"))

            assert await take(broker) == "12"
            await broker.publish("t", messages("56"))

    async def test_drop_oldest_of_those_that_are_full(self, open_broker: Open) -> None:
        """One that keeps up loses nothing because of one that does not."""
        options = TopicOptions(subscriptions=("fast", "dead"), bytes_max=3, full="drop_oldest")
        async with open_broker(t=options) as broker:
            got = ""
            dropped = 0
            for word in "abcdef":
                dropped += (await broker.publish("t", messages(word))).dropped
                got += await take(broker, "fast")

            assert got == "abcdef"
            assert dropped == 3
            assert await take(broker, "dead") == "d e f"
            assert (await broker.counts("t", "dead")).dropped == 3

    async def test_a_full_hand_of_the_slow_is_nobodys_hindrance(self, open_broker: Open) -> None:
        """All that a subscription holds is being delivered: the newest stands on top, no more."""
        options = TopicOptions(subscriptions=("fast", "slow"), bytes_max=2, full="drop_oldest")
        async with open_broker(t=options) as broker, broker.subscribe("t", "slow") as slow:
            await broker.publish("t", messages("12"))
            await slow.receive()
            for word in ("34", "56"):
                await broker.publish("t", messages(word))
                assert (await take(broker, "fast")).endswith(word)

            assert (await broker.counts("t", "slow")).live.bytes == 4
            assert words(await slow.receive()) == "56"


class Gate:
    """A SendFn that records, and holds while it is shut."""

    def __init__(self, *, shut: bool = False) -> None:
        self.seen: list[str] = []
        self.opened = anyio.Event()
        if not shut:
            self.opened.set()

    async def __call__(self, batch: Batch[Delivery], /) -> None:
        """Record, and wait."""
        self.seen.append(words(batch))
        await self.opened.wait()

    @property
    def all(self) -> list[str]:
        """Every payload."""
        return " ".join(self.seen).split()


def small(**more: Any) -> ChannelOptions[Delivery]:
    return ChannelOptions[Delivery](**{"batch_items_max": 2, "batch_age_max": 0, "max_leases": 1, **more})


class TestDeliver:
    async def test_in_batches_and_acked(self, open_broker: Open) -> None:
        async with open_broker(t=TWO) as broker:
            one, other = Gate(), Gate()
            await broker.publish("t", messages("1 2 3"))
            await broker.deliver("t", "a", one, small())
            await broker.deliver("t", "b", other, small(batch_items_max=3))
            await broker.publish("t", messages("4"))
            await until(lambda: len(one.all) == 4 == len(other.all))

            assert sorted(one.all) == ["1", "2", "3", "4"]
            assert max(len(text.split()) for text in one.seen) == 2
        async with open_broker(t=TWO) as broker:
            assert (await broker.counts("t", "a")).acked == 4
            assert (await broker.counts("t", "a")).live.items == 0

    async def test_a_delivery_tells_what_it_is(self, open_broker: Open) -> None:
        async with open_broker(t=TopicOptions(subscriptions=("s",), priorities=2)) as broker:
            seen: list[Delivery] = []

            async def send(batch: Batch[Delivery]) -> None:
                seen.extend(batch)

            await broker.publish("t", [Message(b"1", key="k", priority=1)])
            await broker.deliver("t", "s", send)
            await until(lambda: seen)

            one = seen[0]
            assert (one.topic, one.subscription, one.key, one.priority, one.attempts) == ("t", "s", "k", 1, 1)

    async def test_one_that_hangs_delays_nobody(self, open_broker: Open) -> None:
        """Neither other subscriptions, nor other topics, nor publishers."""
        async with open_broker(t=TWO, u=ONE) as broker:
            stuck, fine, other = Gate(shut=True), Gate(), Gate()
            await broker.deliver("t", "a", stuck, small())
            await broker.deliver("t", "b", fine, small())
            await broker.deliver("u", "s", other, small())
            with anyio.fail_after(10):
                for n in range(20):
                    await broker.publish("t", messages(f"{n}"))
                    await broker.publish("u", messages(f"{n}"))
            await until(lambda: len(fine.all) == 20 == len(other.all))

            assert len(stuck.seen) == 1
            stuck.opened.set()

    async def test_no_ack_timeout_while_the_channel_has_it(self, open_broker: Open, time: Any) -> None:
        async with open_broker(t=ONE) as broker:
            slow = Gate(shut=True)
            await broker.publish("t", messages("1"))
            await broker.deliver("t", "s", slow, small())
            await until(lambda: slow.seen)
            time.pass_(1000)
            assert (await broker.counts("t", "s")).ready.items == 0
            slow.opened.set()
        async with open_broker(t=ONE) as broker:
            assert (await broker.counts("t", "s")).acked == 1
            assert slow.seen == ["1"]

    async def test_failed_ones_are_dead_letters(self, open_broker: Open) -> None:
        async def refuse(batch: Batch[Delivery]) -> None:
            for position, one in enumerate(batch):
                if one.payload == b"poison":
                    batch.fail(position, ValueError("no"))

        async with open_broker(t=ONE) as broker:
            await broker.publish("t", messages("1 poison 2"))
            deliverer = await broker.deliver("t", "s", refuse, small(on_error=None, on_drop=None))
            with anyio.fail_after(20):
                await deliverer.wait_idle()

            assert [one.error for one in await broker.peek("t", "s", shelf=Shelf.DEAD)] == ["ValueError: no"]
            assert (await broker.counts("t", "s")).acked == 2
            assert deliverer.statistics().dead == 1

    async def test_the_retry_policy_decides(self, open_broker: Open) -> None:
        attempts: list[int] = []

        async def fail(batch: Batch[Delivery]) -> None:
            attempts.append(batch.attempt)
            raise ConnectionError

        retry = RetryPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())
        async with open_broker(t=TopicOptions(subscriptions=("s",), max_attempts=1)) as broker:
            await broker.publish("t", messages("1"))
            options = small(retry=retry, on_error=None, on_drop=None)
            deliverer = await broker.deliver("t", "s", fail, options)
            with anyio.fail_after(20):
                await deliverer.wait_idle()

            assert attempts == [1, 2, 3]
            assert (await broker.counts("t", "s")).dead.items == 1

    async def test_the_end_hands_back_in_order_uncounted(self, open_broker: Open) -> None:
        async with open_broker(t=ONE) as broker:
            gate = Gate(shut=True)
            await broker.publish("t", messages("1 2 3 4 5"))
            options = small(full_behavior=BlockNewItems(max_items=4))
            deliverer = await broker.deliver("t", "s", gate, options)
            await until(lambda: gate.seen)
            gate.opened.set()
            await deliverer.aclose()
            done = len(gate.all)
            async with broker.subscribe("t", "s") as puller:
                got = await puller.receive()
                assert words(got).split() == ["1", "2", "3", "4", "5"][done:]
                assert {one.attempts for one in got} == {1}

    async def test_an_exception_cancels_what_runs_and_loses_nothing(self, open_broker: Open) -> None:
        gate = Gate(shut=True)
        with pytest.raises(ZeroDivisionError):
            async with open_broker(t=ONE) as broker:
                await broker.publish("t", messages("1"))
                await broker.deliver("t", "s", gate, small())
                await until(lambda: gate.seen)
                raise ZeroDivisionError
        async with open_broker(t=ONE) as broker:
            assert await take(broker) == "1"

    async def test_a_cancelled_block_loses_nothing(self, open_broker: Open) -> None:
        gate = Gate(shut=True)
        with anyio.CancelScope() as scope:
            async with open_broker(t=ONE) as broker:
                await broker.publish("t", messages("1"))
                await broker.deliver("t", "s", gate, small())
                await until(lambda: gate.seen)
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        async with open_broker(t=ONE) as broker:
            assert await take(broker) == "1"

    async def test_what_a_send_raises_beyond_exception_leaves_as_itself(self, open_broker: Open) -> None:
        """It ends the broker; what was under way is not lost."""

        class Stop(BaseException):
            pass

        async def stop(batch: Batch[Delivery]) -> None:
            raise Stop

        with pytest.raises(Stop), anyio.fail_after(20):
            async with open_broker(t=ONE) as broker:
                await broker.publish("t", messages("1"))
                await broker.deliver("t", "s", stop, small())
                await anyio.sleep_forever()
        async with open_broker(t=ONE) as broker:
            assert await take(broker) == "1"

    async def test_once_per_subscription(self, open_broker: Open) -> None:
        async with open_broker(t=ONE) as broker:
            first = await broker.deliver("t", "s", Gate(), small())
            with pytest.raises(SubscriptionBusy):
                await broker.deliver("t", "s", Gate(), small())
            await first.aclose()
            await broker.deliver("t", "s", Gate(), small())

    async def test_pauses(self, open_broker: Open) -> None:
        async with open_broker(t=ONE) as broker:
            gate = Gate()
            await broker.deliver("t", "s", gate, small())
            broker.pause("t", "s")
            await broker.publish("t", messages("1"))
            for _ in range(20):
                await anyio.sleep(0.001)
            assert not gate.seen
            broker.resume("t", "s")
            await until(lambda: gate.seen)

    async def test_a_removal_waits_for_its_sends_to_end(self, open_broker: Open) -> None:
        started, ended = anyio.Event(), anyio.Event()

        async def linger(batch: Batch[Delivery]) -> None:
            started.set()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.02)
                ended.set()

        async with open_broker(t=ONE) as broker:
            await broker.publish("t", messages("1"))
            await broker.deliver("t", "s", linger, small())
            await started.wait()
            await broker.remove_subscription("t", "s")
            assert ended.is_set()

    async def test_a_removed_subscription_ends_it(self, open_broker: Open) -> None:
        async with open_broker(t=ONE) as broker:
            gate = Gate(shut=True)
            await broker.publish("t", messages("1"))
            await broker.deliver("t", "s", gate, small())
            await until(lambda: gate.seen)
            with anyio.fail_after(10):
                await broker.remove_subscription("t", "s")
            await broker.add_subscription("t", "s")
            await broker.publish("t", messages("2"))
            again = Gate()
            await broker.deliver("t", "s", again, small())
            await until(lambda: again.seen == ["2"])

    async def test_what_crashed_too_often_is_given_up(self, open_broker: Open, time: Any) -> None:
        """A message that kills its process is delivered ``max_attempts`` times."""
        options = TopicOptions(subscriptions=("s",), max_attempts=1)
        async with open_broker(t=options) as broker:
            await broker.publish("t", messages("bomb"))
            async with broker.subscribe("t", "s") as puller:
                await puller.receive()
            gate = Gate()
            await broker.deliver("t", "s", gate, small())
            await broker.publish("t", messages("good"))
            await until(lambda: gate.seen)

            assert gate.all == ["good"]
            assert (await broker.counts("t", "s")).dead.items == 1
