"""Events to a service on loopback: one POST per batch, over connections that are kept."""

import http.client
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread

from dispatcher import Batch, SendFn, TransientError

PORT = int(os.environ.get("EVENTS_PORT", "8765"))


def make_event(number: int, size: int) -> dict[str, object]:
    return {"number": number, "text": "x" * size}


@asynccontextmanager
async def open_client() -> AsyncIterator[SendFn[dict[str, object]]]:
    idle: list[http.client.HTTPConnection] = []

    def post(events: tuple[dict[str, object], ...]) -> None:
        connection = idle.pop() if idle else http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
        try:
            connection.request("POST", "/events", json.dumps(events))
            response = connection.getresponse()
            response.read()
        except OSError:
            connection.close()
            raise
        idle.append(connection)
        if response.status == 503:
            raise TransientError(response.reason)
        if response.status != 200:
            msg = f"{response.status} {response.reason}"
            raise ValueError(msg)

    async def send(batch: Batch[dict[str, object]]) -> None:
        await anyio.to_thread.run_sync(post, batch.items)

    yield send
    for connection in idle:
        connection.close()
