"""
The control socket: how ``mailpipe reload`` and ``stats`` reach the daemon of a data folder.

``DATA/control.sock``, mode 0600: who may open it may rule. One JSON object a line each way,
``{"command": "reload"}`` → ``{"ok": true, ...}``; every request is answered, its size is bounded.
That the socket answers also says that the data folder is taken.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["CONTROL_NAME", "ControlServer", "DataFolderTaken", "ask"]

log = logging.getLogger("mailpipe.daemon")

CONTROL_NAME = "control.sock"
_REQUEST_MAX = 64 * 1024
_PATH_MAX = 100  # sun_path takes 108 octets on Linux, 104 elsewhere

Command = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


class DataFolderTaken(RuntimeError):
    """Another daemon serves this data folder."""

    def __init__(self, data: Path) -> None:
        super().__init__(f"another mailpipe serves the data folder {str(data)!r}; its control socket answers")
        self.data = data


@contextlib.contextmanager
def _reachable(data: Path, name: str) -> Iterator[str]:
    """A path of the socket that is short enough: long ones go through the folder's descriptor."""
    path = data / name
    if len(os.fsencode(path)) <= _PATH_MAX or not os.path.isdir("/proc/self/fd"):
        yield str(path)
        return
    folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{name}"
    finally:
        os.close(folder)


def ask(
    data: Path, request: Mapping[str, Any], *, name: str = CONTROL_NAME, timeout: float = 60.0
) -> dict[str, Any]:
    """
    Send one request to the daemon of a data folder and return its answer.

    Args:
        data: The data folder.

        request: At least ``command``.

        name: Of the socket in the folder.

        timeout: Seconds to wait for each octet of the answer.

    Raises:
        OSError: If nobody answers there.
        ValueError: If the answer is no JSON object.
    """
    with _reachable(data, name) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(timeout)
        peer.connect(path)
        peer.sendall(json.dumps(dict(request)).encode() + b"\n")
        with peer.makefile("rb") as stream:
            answer = json.loads(stream.readline() or b"null")
    if not isinstance(answer, dict):
        msg = f"the daemon's answer is no object: {answer!r}"
        raise ValueError(msg)  # noqa: TRY004 - of a value that came over a socket
    return answer


class ControlServer:
    """
    Answers on ``DATA/control.sock``.

    Args:
        data: The data folder; it must exist.

        commands: By name; what one raises is logged and answered ``{"ok": false}``.

        name: Of the socket in the folder.
    """

    def __init__(self, data: Path, commands: Mapping[str, Command], *, name: str = CONTROL_NAME) -> None:
        self._data, self._name = data, name
        self._commands = dict(commands)
        self._server: asyncio.Server | None = None
        self._identity: tuple[int, int] | None = None

    async def start(self) -> None:
        """
        Take the socket; one that a dead daemon left is replaced.

        Raises:
            DataFolderTaken: If a living one answers.
            OSError: If it cannot be bound.
        """
        with _reachable(self._data, self._name) as path:
            self._make_room(path)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                # Between bind and chmod anybody could connect: the mode comes with the bind.
                before = os.umask(0o177)
                try:
                    listening.bind(path)
                finally:
                    os.umask(before)
                listening.listen(16)
                listening.setblocking(False)
                found = os.stat(path)
                self._identity = (found.st_dev, found.st_ino)
            except BaseException:
                listening.close()
                raise
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=_REQUEST_MAX)

    async def close(self) -> None:
        """Stop answering and remove the socket, unless somebody else put theirs there."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        path = self._data / self._name
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if (found.st_dev, found.st_ino) == self._identity:
                path.unlink()

    def _make_room(self, path: str) -> None:
        try:
            if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
                return
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(5.0)
            try:
                probe.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                return
        raise DataFolderTaken(self._data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await self._line(reader):
                answer = await self._answer(line)
                writer.write(json.dumps(answer, default=str).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, TimeoutError):
            pass  # the asker went away; there is nobody to tell
        finally:
            writer.close()

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(60):
                return await reader.readline()
        except ValueError:  # longer than the bound
            return b""

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            name = request["command"]
        except (ValueError, TypeError, KeyError):
            return {"ok": False, "error": "a request is one JSON object with a command"}
        if not isinstance(name, str) or name not in self._commands:
            known = ", ".join(sorted(self._commands))
            return {"ok": False, "error": f"no such command: {name!r}; known are {known}"}
        try:
            return await self._commands[name](request)
        except Exception as error:
            log.exception("a control command failed", extra={"fields": {"command": name}})
            return {"ok": False, "error": f"{name} failed: {type(error).__name__}, see the log"}
