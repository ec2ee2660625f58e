"""The client alone, against a broker that says what the test wants."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from dispatcher.broker import BrokerClient, BrokerClosed, BrokerGone, Message, Refused

Answer = Callable[[dict[str, Any], Callable[[Any], Awaitable[None]]], Awaitable[None]]


@asynccontextmanager
async def broker(tmp_path: Path, answer: Answer) -> AsyncIterator[tuple[BrokerClient, list[dict[str, Any]]]]:
    """A client, and what it said; *answer* is called with each request, and a way to send."""
    said: list[dict[str, Any]] = []

    async def serve(stream: anyio.abc.ByteStream) -> None:
        rest = b""

        async def send(what: Any) -> None:
            await stream.send(what if isinstance(what, bytes) else json.dumps(what).encode() + b"\n")

        async with stream:
            try:
                while True:
                    rest += await stream.receive()
                    *lines, rest = rest.split(b"\n")
                    for line in lines:
                        said.append(json.loads(line))
                        await answer(said[-1], send)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass

    async def listen(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with await anyio.create_unix_listener(tmp_path / "b.sock") as listener:
            task_status.started()
            await listener.serve(serve)

    async with anyio.create_task_group() as group:
        await group.start(listen)
        async with BrokerClient(f"unix:{tmp_path}/b.sock") as client:
            yield client, said
        group.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - of another's doing, no event tells
            await anyio.sleep(0.002)


async def test_what_comes_for_a_cancelled_receive_is_given_back(tmp_path: Path) -> None:
    """The broker is told to stop waiting; if it has answered already, the messages go back, uncounted."""
    waiting: list[Any] = []

    async def late(request: dict[str, Any], send: Callable[[Any], Awaitable[None]]) -> None:
        if request["op"] == "receive":
            waiting.append(request["id"])
        elif request["op"] == "cancel":
            assert request["request"] == waiting[0]
            await send({"id": waiting[0], "ok": True, "deliveries": [{"tag": "late"}]})

    async with broker(tmp_path, late) as (client, said):
        with anyio.move_on_after(0.05):
            await client.subscribe("t", "s").receive()
        await until(lambda: len(said) == 3)

        assert (said[2]["op"], said[2]["tags"], said[2]["count"]) == ("nack", ["late"], False)


async def test_answers_find_their_requests_in_any_order(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    async def backwards(request: dict[str, Any], send: Callable[[Any], Awaitable[None]]) -> None:
        asked.append(request)
        if len(asked) == 3:
            for one in reversed(asked):
                await send({"id": one["id"], "ok": True, "count": one["tag"]})

    async with broker(tmp_path, backwards) as (client, _):
        got: dict[int, int] = {}

        async def ask(tag: int) -> None:
            got[tag] = (await client.request("ping", tag=tag))["count"]

        async with anyio.create_task_group() as group:
            for tag in range(3):
                group.start_soon(ask, tag)
        assert got == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize("nonsense", [b"nonsense\n", b"[]\n", b"x" * 1000])
async def test_a_broker_that_talks_nonsense_is_left(nonsense: bytes, tmp_path: Path) -> None:
    """Nobody waits for an answer that cannot come."""

    async def babble(request: dict[str, Any], send: Callable[[Any], Awaitable[None]]) -> None:
        await send(nonsense)
        if not nonsense.endswith(b"\n"):
            await send(b"\n")

    async with broker(tmp_path, babble) as (client, _):
        client._line_bytes_max = 500  # noqa: SLF001
        with pytest.raises(BrokerGone), anyio.fail_after(10):
            await client.publish("t", [Message(b"1")])


async def test_a_refusal_names_the_brokers_error(tmp_path: Path) -> None:
    async def refuse(request: dict[str, Any], send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"id": request["id"], "ok": False, "error": "QueueFull", "message": "no room"})

    async with broker(tmp_path, refuse) as (client, _):
        with pytest.raises(Refused, match="QueueFull: no room") as caught:
            await client.publish("t", [Message(b"1")])
        assert caught.value.kind == "QueueFull"


async def test_only_within_the_block(tmp_path: Path) -> None:
    client = BrokerClient(f"unix:{tmp_path}/none.sock")
    with pytest.raises(BrokerClosed):
        await client.publish("t", [Message(b"1")])
    with pytest.raises(BrokerGone, match="No such file"):
        async with client:
            pass
