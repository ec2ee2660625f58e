"""A broker over real sockets: every request is answered, and no client is in another's way."""

import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from dispatcher import OptionError
from dispatcher.broker import (
    Address,
    Broker,
    BrokerClient,
    BrokerGone,
    BrokerOwned,
    BrokerServer,
    Message,
    Push,
    Refused,
    ServerOptions,
    SubscribeOptions,
    TopicOptions,
    UnknownTopic,
)
from dispatcher.errors import StoreTrouble
from dispatcher.stores import MemoryStore, Shelf

ONE = TopicOptions(subscriptions=("s",))


class Served:
    """A broker that listens, and ways to talk to it."""

    def __init__(self, broker: Broker, server: BrokerServer) -> None:
        self.broker, self.server = broker, server
        self.address = server.addresses[0]

    def client(self) -> BrokerClient:
        """One of ours."""
        return BrokerClient(self.address)

    @asynccontextmanager
    async def raw(self) -> AsyncIterator["Raw"]:
        """A client that sends what it likes."""
        async with await self.address.connect() as stream:
            yield Raw(stream)


class Raw:
    """Lines, out and in."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def line(self) -> dict[str, Any]:
        """The next line that comes."""
        with anyio.fail_after(20):
            while b"\n" not in self.buffer:
                self.buffer += await self.stream.receive()
        line, _, self.buffer = self.buffer.partition(b"\n")
        got: dict[str, Any] = json.loads(line)
        return got

    async def ask(self, **what: Any) -> dict[str, Any]:
        """Send a request; its answer."""
        await self.stream.send(json.dumps(what).encode() + b"\n")
        return await self.line()


@asynccontextmanager
async def serving(
    tmp_path: Path, *, store: MemoryStore | None = None, tcp: bool = False, **topics: TopicOptions
) -> AsyncIterator[Served]:
    where = Address.parse("tcp:127.0.0.1:0" if tcp else f"unix:{tmp_path}/b.sock")
    options = ServerOptions(line_bytes_max=2000, write_timeout=0.3, shutdown_timeout=0.5)
    async with (
        store or MemoryStore() as opened,
        Broker(opened, topics or {"t": ONE}) as broker,
        BrokerServer(broker, [where], options=options) as server,
    ):
        yield Served(broker, server)


@asynccontextmanager
async def in_a_task(
    tmp_path: Path, store: MemoryStore, *, tcp: bool = False
) -> AsyncIterator[tuple[Served, Callable[[], Awaitable[None]]]]:
    """A broker that can be stopped while its clients go on."""
    told, ended = anyio.Event(), anyio.Event()
    found: list[Served] = []

    async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with serving(tmp_path, store=store, tcp=tcp) as served:
            found.append(served)
            task_status.started()
            await told.wait()
        ended.set()

    async def stop() -> None:
        told.set()
        with anyio.fail_after(10):
            await ended.wait()

    async with anyio.create_task_group() as group:
        await group.start(run)
        yield found[0], stop
        await stop()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - of another's doing, no event tells
            await anyio.sleep(0.002)


class TestRequests:
    async def test_a_publish_is_answered_with_what_was_stored(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served, served.raw() as raw:
            got = await raw.ask(op="publish", id=7, topic="t", messages=[{"payload": "1"}, {"payload": "2"}])

            assert got == {"id": 7, "ok": True, "messages": 2, "subscriptions": 1, "dropped": 0}

    async def test_or_why_not(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served, served.raw() as raw:
            got = await raw.ask(op="publish", id="x", topic="u", messages=[{"payload": "1"}])

            assert got == {
                "id": "x",
                "ok": False,
                "error": "UnknownTopic",
                "message": "there is no topic 'u'",
            }

    @pytest.mark.parametrize(
        "line",
        [
            "{",
            "[]",
            "1",
            "nonsense",
            '{"op": "dance"}',
            '{"op": ["publish"]}',
            '{"op": "publish", "topic": "t"}',
            '{"op": "publish", "topic": "t", "messages": {}}',
            '{"op": "publish", "topic": "t", "messages": [{}]}',
            '{"op": "publish", "topic": "t", "messages": [{"payload": 1}]}',
            '{"op": "publish", "topic": "t", "messages": [{"payload": "1", "payload64": "MQ=="}]}',
            '{"op": "publish", "topic": "t", "messages": [{"payload64": "?"}]}',
            '{"op": "publish", "topic": "t", "messages": [{"payload": "1", "colour": "red"}]}',
            '{"op": "publish", "topic": "t", "messages": [{"payload": "1", "priority": 99}]}',
            '{"op": "publish", "topic": "t", "messages": [{"payload": "1", "priority": "0"}]}',
            '{"op": "publish", "topic": "t", "messages": [{"payload": "1", "key": 5}]}',
            '{"op": "publish", "topic": "t", "messages": [{"payload": "1", "ttl": "x"}]}',
            '{"op": "publish", "topic": "t", "messages": [{"payload": "\\ud800"}]}',
            '{"op": "ping", "colour": 1}',
            '{"op": "ping", "id": {}}',
            '{"op": "receive", "topic": "t", "subscription": "s", "limit": 0}',
            '{"op": "receive", "topic": "t", "subscription": "s", "wait": -1}',
            '{"op": "receive", "topic": "t", "subscription": "s", "wait": NaN}',
            '{"op": "ack", "tags": [1]}',
            '{"op": "nack", "tags": ["x"], "delay": -1}',
            '{"op": "peek", "queue": "t/s", "shelf": "top"}',
            '{"op": "purge", "queue": "t/s", "shelf": "leased"}',
            '{"op": "counts", "queue": "t/none"}',
            "[" * 1500,
        ],
    )
    async def test_a_bad_line_is_answered_and_the_connection_goes_on(self, line: str, tmp_path: Path) -> None:
        """It changes nothing, and says what is wrong with it."""
        async with serving(tmp_path) as served, served.raw() as raw:
            await raw.stream.send(line.encode() + b"\n")
            got = await raw.line()
            assert got["ok"] is False
            assert got["error"] != "InternalError"
            assert got["message"]

            assert (await raw.ask(op="ping", id=1)) == {"id": 1, "ok": True}
            assert (await served.broker.counts("t", "s")).put == 0

    async def test_a_line_that_is_too_long_is_skipped(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served, served.raw() as raw:
            await raw.stream.send(b'{"op": "' + b"x" * 100_000 + b'"}\n{"op": "ping", "id": 2}\n')

            assert "at most 2000 bytes" in (await raw.line())["message"]
            assert (await raw.line())["id"] == 2

    async def test_fields_of_one_request_do_not_stay_for_the_next(self, tmp_path: Path) -> None:
        """Messages, then an ack, on one connection: the messages are published once."""
        async with serving(tmp_path) as served, served.raw() as raw:
            await raw.ask(op="publish", topic="t", messages=[{"payload": "1"}])
            await raw.ask(op="ack", tags=["none"])

            assert (await served.broker.counts("t", "s")).put == 1

    async def test_what_was_sent_before_the_end_is_done(self, tmp_path: Path) -> None:
        """A client may write, close its side, and read: the last line needs no end."""
        async with serving(tmp_path) as served, served.raw() as raw:
            line = b'{"op":"publish","id":1,"topic":"t","messages":[{"payload":"1"}]}'
            await raw.stream.send(line + b"\n" + line)
            await raw.stream.send_eof()
            await raw.line()
            await raw.line()

            assert (await served.broker.counts("t", "s")).put == 2

    async def test_half_a_line_does_nothing(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served:
            async with served.raw() as raw:
                await raw.stream.send(b'{"op":"publish","topic":"t","messages":[{"payload":"1"}]')
            async with served.client() as client:
                await client.request("ping")
            assert (await served.broker.counts("t", "s")).put == 0

    async def test_payloads_come_back_byte_for_byte(self, tmp_path: Path) -> None:
        payloads = [b"", b"\x00\xff\xfe", "grüße\n\u2028".encode(), b'"\\{}']
        async with serving(tmp_path) as served, served.client() as client:
            await client.publish("t", [Message(one) for one in payloads])
            async with client.subscribe("t", "s") as puller:
                assert [one.payload for one in await puller.receive()] == payloads

    async def test_answers_and_pushes_are_bounded_too(self, tmp_path: Path) -> None:
        """Many large messages come in several lines, none of them lost."""
        there = Listener(tmp_path / "s.sock")
        async with (
            serving(tmp_path) as served,
            served.client() as client,
            anyio.create_task_group() as group,
        ):
            await served.broker.publish("t", [Message(b"%04d" % n * 100) for n in range(30)])
            seen: list[str] = []
            after = None
            while page := (await client.request("peek", queue="t/s", after=after))["messages"]:
                assert len(page) <= 10
                seen += [one["payload"] for one in page]
                after = page[-1]["cursor"]
            assert len(seen) == 30
            await group.start(there.run)
            served.server.push({("t", "s"): Push(Address.parse(f"unix:{there.path}"))})
            await until(lambda: len(there.seen) == 30)
            assert there.seen == seen
            assert max(there.batches) <= 2
            group.cancel_scope.cancel()

    async def test_trouble_of_the_store_is_not_told_to_strangers(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Failing(MemoryStore):
            async def put(self, *args: Any, **more: Any) -> Any:
                path, why = "/secret/path", "the disk said no"
                raise StoreTrouble(path, why)

        async with serving(tmp_path, store=Failing()) as served, served.client() as client:
            with pytest.raises(Refused, match="nothing was done") as refused:
                await client.publish("t", [Message(b"1")])

            assert refused.value.kind == "StoreTrouble"
            assert "secret" not in str(refused.value)
            assert "the disk said no" in caplog.text

    async def test_everything_can_be_asked(self, tmp_path: Path) -> None:
        """What a broker can do here, it can do over the socket."""
        async with serving(tmp_path) as served, served.client() as client:
            assert await client.add_subscription("t", "new")
            assert (await client.request("topics"))["topics"]["t"]["subscriptions"] == ["s", "new"]
            await client.publish("t", [Message(b"1", key="k")])
            await client.pause("t", "s")
            assert served.broker.paused("t", "s")
            await client.resume("t", "s")
            found = (await client.request("peek", queue="t/s"))["messages"]
            assert [(one["payload"], one["key"], one["shelf"]) for one in found] == [("1", "k", "ready")]
            async with client.subscribe("t", "s") as puller:
                got = await puller.receive()
                assert await puller.extend(*got) == []
                assert await client.reset("s") == 1
                await puller.reject(*await puller.receive(), error="no")
            assert (await client.request("counts", queue="t/s"))["counts"]["dead"]["items"] == 1
            assert (await client.request("retry", queue="t/s"))["count"] == 1
            assert (await client.request("purge", queue="t/s", shelf="ready"))["count"] == 1
            assert list((await client.request("queues"))["queues"]) == ["t/new", "t/s"]
            assert (await client.request("stats"))["published"] == 1
            await client.remove_subscription("t", "new")
            with pytest.raises(Refused, match="new"):
                await client.remove_subscription("t", "new")


class TestDelivering:
    async def test_pulled_over_tcp(self, tmp_path: Path) -> None:
        async with (
            serving(tmp_path, tcp=True) as served,
            served.client() as client,
            client.subscribe("t", "s", batch_items_max=2) as puller,
        ):
            await client.publish("t", [Message(b"1", key="k"), Message(b"2"), Message(b"3")])
            got = await puller.receive()
            assert [(one.payload, one.key, one.attempts) for one in got] == [(b"1", "k", 1), (b"2", None, 1)]
            assert await puller.ack(*got) == []
            assert await puller.ack(*got) == list(got), "again: nothing"
            assert [one.payload for one in await puller.receive()] == [b"3"]

    async def test_waits_and_is_woken(self, tmp_path: Path) -> None:
        """While one request waits, the same connection goes on."""
        async with (
            serving(tmp_path) as served,
            served.client() as client,
            client.subscribe("t", "s") as puller,
            anyio.create_task_group() as group,
        ):
            got: list[Any] = []

            async def pull() -> None:
                got.extend(await puller.receive())

            group.start_soon(pull)
            await until(lambda: served.server._connections)  # noqa: SLF001
            await client.publish("t", [Message(b"1")])
            await until(lambda: got)

    async def test_a_cancelled_receive_has_taken_nothing(self, tmp_path: Path) -> None:
        async with (
            serving(tmp_path) as served,
            served.client() as client,
            client.subscribe("t", "s") as puller,
        ):
            with anyio.move_on_after(0.05):
                await puller.receive()
            await client.publish("t", [Message(b"1")])
            async with served.client() as other, other.subscribe("t", "s") as fresh:
                with anyio.fail_after(10):
                    got = await fresh.receive()
                assert [one.attempts for one in got] == [1]

    async def test_a_client_that_goes_gives_back_at_once(self, tmp_path: Path) -> None:
        """Not after its ack timeout, and in the old place."""
        async with serving(tmp_path) as served, served.client() as client:
            await client.publish("t", [Message(b"1"), Message(b"2")])
            async with served.raw() as raw:
                got = await raw.ask(op="receive", topic="t", subscription="s", limit=1)
                assert got["deliveries"][0]["payload"] == "1"
            async with client.subscribe("t", "s") as puller:
                taken: list[Any] = []
                with anyio.fail_after(10):
                    while len(taken) < 2:
                        taken += await puller.receive()
                assert sorted((one.payload, one.attempts) for one in taken) == [(b"1", 2), (b"2", 1)]

    async def test_one_that_never_reads_delays_nobody(self, tmp_path: Path) -> None:
        """It is cut off, and what it had goes to others."""
        async with serving(tmp_path) as served, served.client() as client, served.raw() as raw:
            await client.publish("t", [Message(b"x" * 900)])
            async with anyio.create_task_group() as group:

                async def flood() -> None:
                    line = json.dumps({"op": "peek", "queue": "t/s"}).encode() + b"\n"
                    with pytest.raises((anyio.BrokenResourceError, anyio.ClosedResourceError)):
                        while True:
                            await raw.stream.send(line * 50)

                group.start_soon(flood)
                with anyio.fail_after(10):
                    for _ in range(20):
                        await client.request("ping")

    async def test_an_ack_may_come_from_another_connection(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served, served.raw() as raw, served.client() as client:
            await client.publish("t", [Message(b"1")])
            got = await raw.ask(op="receive", topic="t", subscription="s")

            assert await client.ack([got["deliveries"][0]["tag"]]) == []
            assert served.broker.statistics().in_flight == 0

    async def test_a_blocked_publish_does_not_block_acks(self, tmp_path: Path) -> None:
        options = TopicOptions(subscriptions=("s",), bytes_max=2, full="block")
        async with (
            serving(tmp_path, t=options) as served,
            served.client() as client,
            client.subscribe("t", "s") as puller,
            anyio.create_task_group() as group,
        ):
            await client.publish("t", [Message(b"12")])
            group.start_soon(client.publish, "t", [Message(b"34")])
            with anyio.fail_after(10):
                await puller.ack(*await puller.receive())
                assert [one.payload for one in await puller.receive()] == [b"34"]


class TestLife:
    @pytest.mark.parametrize("tcp", [False, True])
    async def test_at_the_end_nobody_is_left_without_a_word(self, tmp_path: Path, tcp: bool) -> None:
        """Who waits hears that it is over; who asks afterwards, that nobody is there."""
        async with in_a_task(tmp_path, MemoryStore(), tcp=tcp) as (served, stop), served.client() as client:
            heard: list[str] = []

            async def pull() -> None:
                with pytest.raises(BrokerGone):
                    await client.subscribe("t", "s").receive()
                heard.append("gone")

            async with anyio.create_task_group() as group:
                group.start_soon(pull)
                await until(lambda: served.server._connections)  # noqa: SLF001
                await client.request("ping")
                await stop()
            assert heard
            with pytest.raises(BrokerGone, match="failed" if tcp else "No such file"):
                await client.request("ping")

    async def test_a_client_finds_its_way_back(self, tmp_path: Path) -> None:
        store = MemoryStore()
        async with in_a_task(tmp_path, store) as (served, stop), served.client() as client:
            await client.publish("t", [Message(b"1")])
            await stop()
            async with in_a_task(tmp_path, store):
                await client.publish("t", [Message(b"2")])
                async with client.subscribe("t", "s") as puller:
                    assert [one.payload for one in await puller.receive()] == [b"1", b"2"]

    async def test_too_many_clients_are_told(self, tmp_path: Path) -> None:
        options = ServerOptions(connections_max=1)
        where = Address.parse(f"unix:{tmp_path}/b.sock")
        async with (
            MemoryStore() as store,
            Broker(store) as broker,
            BrokerServer(broker, [where], options=options),
            BrokerClient(where) as client,
        ):
            await client.request("ping")
            async with await where.connect() as stream:
                assert "1 clients" in (await Raw(stream).line())["message"]


class TestListening:
    async def test_a_unix_socket_has_its_mode_and_goes_with_the_broker(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served:
            assert served.address.path is not None
            assert stat.S_IMODE(os.stat(served.address.path).st_mode) == 0o600
        assert not (tmp_path / "b.sock").exists()

    async def test_one_that_is_in_use_is_left_alone(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served:
            with pytest.raises(BrokerOwned, match="somebody listens"):
                async with serving(tmp_path):
                    pass
            async with served.client() as client:
                await client.request("ping")

    async def test_one_that_a_dead_broker_left_is_taken_over(self, tmp_path: Path) -> None:
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(tmp_path / "b.sock"))
        dead.close()
        async with serving(tmp_path) as served, served.client() as client:
            await client.request("ping")

    async def test_a_file_in_its_place_is_not_deleted(self, tmp_path: Path) -> None:
        (tmp_path / "b.sock").write_text("precious")
        with pytest.raises(BrokerOwned, match="no socket"):
            async with serving(tmp_path):
                pass
        assert (tmp_path / "b.sock").read_text() == "precious"

    @pytest.mark.parametrize("text", ["tcp:0.0.0.0:0", "tcp:[::]:0", "tcp:192.0.2.1:70", "tcp:example.org:1"])
    def test_strangers_are_kept_out_unless_told(self, text: str) -> None:
        address = Address.parse(text)
        with pytest.raises(OptionError, match="loopback"):
            BrokerServer(Broker(MemoryStore()), [address])
        BrokerServer(Broker(MemoryStore()), [address], remote=True)

    @pytest.mark.parametrize(
        "text", ["", "x", "unix:", "tcp:1", "tcp:h:x", "tcp::1", "tcp:h:70000", "unix:" + "x" * 200, 5]
    )
    def test_an_address_that_is_none(self, text: Any) -> None:
        with pytest.raises(OptionError, match="unix"):
            Address.parse(text)


class Listener:
    """A subscriber that listens at its own socket."""

    def __init__(self, path: Path, *, ack: bool = True) -> None:
        self.path, self.ack = path, ack
        self.seen: list[str] = []
        self.batches: list[int] = []
        self.connections = 0
        self.answered = 0

    async def all_answered(self) -> None:
        """
        Until every ack has its answer.

        anyio on asyncio lets an octet that arrives in the turn in which its reader is cancelled fail a
        callback of the loop, so nothing may be on its way when a listener is.
        """
        await until(lambda: self.answered == len(self.batches))

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen, read, and ack, until cancelled."""
        async with await anyio.create_unix_listener(self.path) as listener:
            task_status.started()
            await listener.serve(self.take)

    async def take(self, stream: anyio.abc.ByteStream) -> None:
        """One connection."""
        self.connections += 1
        raw = Raw(stream)
        async with stream:
            try:
                while True:
                    got = await raw.line()
                    if "deliveries" not in got:
                        assert got["ok"]
                        self.answered += 1
                        continue
                    self.seen += [one["payload"] for one in got["deliveries"]]
                    self.batches.append(len(got["deliveries"]))
                    if self.ack:
                        tags = [one["tag"] for one in got["deliveries"]]
                        await stream.send(json.dumps({"op": "ack", "tags": tags}).encode() + b"\n")
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass


class TestPush:
    async def test_to_the_subscribers_own_socket(self, tmp_path: Path) -> None:
        """In batches; the acks come back on the same connection."""
        there = Listener(tmp_path / "s.sock")
        target = Push(Address.parse(f"unix:{there.path}"), SubscribeOptions(batch_items_max=2))
        async with serving(tmp_path) as served, anyio.create_task_group() as group:
            await group.start(there.run)
            await served.broker.publish("t", [Message(b"%d" % n) for n in range(5)])
            served.server.push({("t", "s"): target})
            await until(lambda: len(there.seen) == 5)
            await until(lambda: served.broker.statistics().acked == 5)
            await there.all_answered()

            assert there.seen == ["0", "1", "2", "3", "4"]
            assert max(there.batches) == 2
            group.cancel_scope.cancel()

    async def test_dials_again_until_it_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A dead subscriber costs no message and no attempt."""
        monkeypatch.setattr("dispatcher.broker.server.PAUSE_LEAST", 0.01)
        there = Listener(tmp_path / "s.sock")
        async with serving(tmp_path) as served, anyio.create_task_group() as group:
            served.server.push({("t", "s"): Push(Address.parse(f"unix:{there.path}"))})
            await served.broker.publish("t", [Message(b"1")])
            await anyio.sleep(0.05)
            assert (await served.broker.counts("t", "s")).ready.items == 1
            await group.start(there.run)
            await until(lambda: there.seen == ["1"])
            await there.all_answered()
            group.cancel_scope.cancel()

    async def test_what_a_broken_connection_had_comes_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In order, in front of what came later."""
        monkeypatch.setattr("dispatcher.broker.server.PAUSE_LEAST", 0.01)
        deaf = Listener(tmp_path / "s.sock", ack=False)
        async with serving(tmp_path) as served:
            served.server.push({("t", "s"): Push(Address.parse(f"unix:{deaf.path}"))})
            async with anyio.create_task_group() as group:
                await group.start(deaf.run)
                await served.broker.publish("t", [Message(b"1"), Message(b"2")])
                await until(lambda: deaf.seen == ["1", "2"])
                group.cancel_scope.cancel()
            deaf.path.unlink()
            await served.broker.publish("t", [Message(b"3")])
            better = Listener(deaf.path)
            async with anyio.create_task_group() as group:
                await group.start(better.run)
                await until(lambda: len(better.seen) >= 3)
                await better.all_answered()
                assert better.seen == ["1", "2", "3"]
                group.cancel_scope.cancel()

    async def test_one_that_accepts_and_never_reads_delays_nobody(self, tmp_path: Path) -> None:
        """Its connection is cut; other subscriptions and topics have gone on all the while."""
        path = tmp_path / "s.sock"
        stuck = socket.socket(socket.AF_UNIX)
        stuck.bind(str(path))
        stuck.listen(50)
        options = TopicOptions(subscriptions=("s", "fine"))
        target = Push(Address.parse(f"unix:{path}"), SubscribeOptions(in_flight_max=10_000))
        async with serving(tmp_path, t=options, u=ONE) as served, served.client() as client:
            served.server.push({("t", "s"): target})
            async with client.subscribe("t", "fine") as puller, client.subscribe("u", "s") as other:
                with anyio.fail_after(20):
                    for _ in range(20):
                        await served.broker.publish("t", [Message(b"x" * 1000)] * 50)
                        await served.broker.publish("u", [Message(b"y")])
                        await puller.ack(*await puller.receive())
                        await other.ack(*await other.receive())
        stuck.close()

    async def test_a_removed_subscription_is_not_pushed(self, tmp_path: Path) -> None:
        there = Listener(tmp_path / "s.sock")
        async with serving(tmp_path) as served, anyio.create_task_group() as group:
            await group.start(there.run)
            served.server.push({("t", "s"): Push(Address.parse(f"unix:{there.path}"))})
            await served.broker.publish("t", [Message(b"1")])
            await until(lambda: there.seen)
            await served.broker.remove_subscription("t", "s")
            served.server.push({})
            with pytest.raises(UnknownTopic):
                served.server.push({("x", "s"): Push(Address.parse("unix:/x"))})
            group.cancel_scope.cancel()

    async def test_dead_letters_of_a_push(self, tmp_path: Path) -> None:
        """A subscriber that refuses has its dead letters, as one that pulls."""
        async with serving(tmp_path) as served, anyio.create_task_group() as group:

            async def refuse(stream: anyio.abc.ByteStream) -> None:
                raw = Raw(stream)
                async with stream:
                    tags = [one["tag"] for one in (await raw.line())["deliveries"]]
                    await raw.ask(op="reject", tags=tags, error="not mine")
                    await anyio.sleep_forever()

            async def listen(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                async with await anyio.create_unix_listener(tmp_path / "s.sock") as listener:
                    task_status.started()
                    await listener.serve(refuse)

            await group.start(listen)
            served.server.push({("t", "s"): Push(Address.parse(f"unix:{tmp_path}/s.sock"))})
            await served.broker.publish("t", [Message(b"1")])
            await until(lambda: served.broker.statistics().dead)
            dead = await served.broker.peek("t", "s", shelf=Shelf.DEAD)
            assert dead[0].error == "not mine"
            group.cancel_scope.cancel()
