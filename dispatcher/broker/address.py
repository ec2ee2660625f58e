"""Where a broker, or a subscriber, listens: ``unix:/path`` or ``tcp:host:port``."""

import contextlib
import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import attrs

from dispatcher.broker.errors import BrokerOwned
from dispatcher.errors import OptionError

__all__ = ["Address", "listen", "shut"]

_RULE = "has to be unix:/path or tcp:host:port"


@attrs.frozen
class Address:
    """
    A unix socket's path, or a host and port.

    Raises:
        OptionError: Out of `parse`, if it is neither.
    """

    path: str | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: object, *, option: str = "address", folder: Path | None = None) -> "Address":
        """Read *text*; a relative path begins at *folder*."""
        if not isinstance(text, str):
            raise OptionError(option=option, rule=_RULE, value=text)
        kind, _, rest = text.partition(":")
        if kind == "unix" and rest and "\0" not in rest:
            path = os.path.normpath(os.path.join(folder or "", rest))
            if len(os.fsencode(path)) > 107:
                rule = "has a path that is too long for a unix socket (at most 107 bytes)"
                raise OptionError(option=option, rule=rule, value=text)
            return cls(path=path)
        host, _, port = rest.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if kind != "tcp" or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise OptionError(option=option, rule=_RULE, value=text)
        return cls(host=host, port=int(port))

    @property
    def is_local(self) -> bool:
        """Only this machine can reach it."""
        if self.path is not None or self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    async def connect(self) -> anyio.abc.ByteStream:
        """
        Connect.

        Raises:
            OSError: If nobody answers there.
        """
        if self.path is not None:
            return await anyio.connect_unix(self.path)
        return await anyio.connect_tcp(self.host, self.port)

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


def _clear(path: str) -> None:
    """Take away the socket of a broker that died; nothing else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    address = f"unix:{path}"
    if not stat.S_ISSOCK(mode):
        raise BrokerOwned(address, "there is a file that is no socket")
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.settimeout(1)
        probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise BrokerOwned(address, f"the socket there cannot be asked ({error.strerror})") from error
    else:
        raise BrokerOwned(address, "somebody listens there already")
    finally:
        probe.close()


async def listen(address: Address, mode: int) -> tuple[anyio.abc.Listener[Any], Address]:
    """
    Listen at *address*; the second is where it really is, if the port was 0.

    Raises:
        BrokerOwned: If somebody living listens there, or something else is in the way.
    """
    try:
        if address.path is not None:
            await anyio.to_thread.run_sync(_clear, address.path)
            return await anyio.create_unix_listener(address.path, mode=mode), address
        listener = await anyio.create_tcp_listener(local_host=address.host, local_port=address.port)
    except OSError as error:
        raise BrokerOwned(str(address), error.strerror or str(error)) from error
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    return listener, attrs.evolve(address, port=port)


def shut(stream: anyio.abc.ByteStream, *, writing: bool = False) -> None:
    """
    Let who reads from *stream* see its end; with *writing*, who writes to it, too.

    Gentler than a cancellation: with a readable unix socket asyncio's reader may call back for a
    future that was cancelled a moment before, and complains.
    """
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    with contextlib.suppress(OSError):  # closed, or the other side has gone
        raw.shutdown(socket.SHUT_RDWR if writing else socket.SHUT_RD)
