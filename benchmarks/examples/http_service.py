"""
A service to post to: takes 5 ms a request and 20 µs an event, four requests at once, 1 000 events in one.

``python -m benchmarks.examples.http_service [PORT]`` runs it until Ctrl-C.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.examples.http_events import PORT

PER_REQUEST, PER_EVENT = 0.005, 0.00002
AT_ONCE, EVENTS_MAX = 4, 1000

Work = Callable[[int], Awaitable[None]]


async def _answer(body: bytes, work: Work) -> tuple[int, str]:
    try:
        events = json.loads(body)
    except ValueError:
        return 400, "this is no JSON"
    if len(events) > EVENTS_MAX:
        return 413, f"at most {EVENTS_MAX} events, got {len(events)}"
    await work(len(events))
    return 200, "OK"


async def _serve(work: Work, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: requests one after the other, as long as the client likes."""
    try:
        while head := await _head(reader):
            length = next(int(line[15:]) for line in head if line.lower().startswith(b"content-length:"))
            status, reason = await _answer(await reader.readexactly(length), work)
            writer.write(f"HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client has gone
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> list[bytes]:
    """A request's lines; none if the client has closed the connection."""
    lines = []
    while (line := await reader.readline()) not in (b"\r\n", b""):
        lines.append(line)
    return lines


async def main(port: int) -> None:
    """Serve on loopback; *port* 0: one that is free. Prints the port once it listens."""
    free = asyncio.Semaphore(AT_ONCE)

    async def work(events: int) -> None:
        async with free:
            await asyncio.sleep(PER_REQUEST + PER_EVENT * events)

    server = await asyncio.start_server(partial(_serve, work), "127.0.0.1", port)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else PORT))
