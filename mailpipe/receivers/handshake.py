"""
TLS put under a connection that already speaks.
"""

import asyncio
import ssl
from typing import cast

__all__ = ["shake_hands"]


async def shake_hands(
    transport: asyncio.Transport,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    patience: float,
    early: bytes,
) -> asyncio.Transport:
    """
    Begin TLS as a server; return the transport to use from then on.

    Args:
        transport: What *protocol* uses now.

        protocol: Who goes on with the transport returned.

        context: Our side's settings.

        patience: Seconds for the handshake.

        early: Octets of the handshake that were read already, behind a PROXY header.

    Raises:
        OSError: If the handshake failed or took too long; `ssl.SSLError` is one.
    """
    loop = asyncio.get_running_loop()
    transport.pause_reading()
    handshake = loop.create_task(
        loop.start_tls(transport, protocol, context, server_side=True, ssl_handshake_timeout=patience)
    )
    try:
        if early:
            await asyncio.sleep(0)  # until the transport has its new protocol, not yet any input
            loop.call_soon(_feed, transport, early)
        secured = await handshake
    except BaseException:
        handshake.cancel()
        raise
    if secured is None:
        msg = "closed during the handshake"
        raise ConnectionAbortedError(msg)
    return secured


def _feed(transport: asyncio.Transport, data: bytes) -> None:
    """Hand *data* to the transport's TLS protocol as if it had just been received."""
    protocol = cast("asyncio.BufferedProtocol", transport.get_protocol())
    while data:
        room = memoryview(protocol.get_buffer(len(data)))
        count = min(len(room), len(data))
        room[:count] = data[:count]
        protocol.buffer_updated(count)
        data = data[count:]
