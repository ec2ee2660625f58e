"""The control socket: who may use it, what it answers, whose it is."""

import asyncio
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mailpipe.daemon.control import ControlServer, DataFolderTaken, ask


async def hello(request: Mapping[str, Any]) -> dict[str, Any]:
    """A command that echoes."""
    return {"ok": True, "said": request.get("say")}


async def broken(request: Mapping[str, Any]) -> dict[str, Any]:
    """A command that fails with a secret in its text."""
    msg = "secret"
    raise RuntimeError(msg)


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlServer]:
    """A control socket that answers."""
    server = ControlServer(tmp_path, {"hello": hello, "broken": broken})
    await server.start()
    yield server
    await server.close()


async def say(path: Path, line: bytes) -> Any:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    answer = await reader.readline()
    writer.close()
    return json.loads(answer) if answer else None


class TestAnswers:
    async def test_a_command(self, control: ControlServer, tmp_path: Path) -> None:
        """From another thread, as from another process."""
        answer = await asyncio.to_thread(ask, tmp_path, {"command": "hello", "say": "x"})

        assert answer == {"ok": True, "said": "x"}

    @pytest.mark.parametrize(
        ("line", "rule"),
        [
            (b"nonsense\n", "one JSON object"),
            (b"[1]\n", "one JSON object"),
            (b"{}\n", "one JSON object"),
            (b'{"command": "x"}\n', "no such command: 'x'; known are broken, hello"),
            (b'{"command": []}\n', "no such command"),
        ],
    )
    async def test_what_is_no_command(
        self, line: bytes, rule: str, control: ControlServer, tmp_path: Path
    ) -> None:
        """Every request is answered."""
        answer = await say(tmp_path / "control.sock", line)

        assert answer["ok"] is False
        assert rule in answer["error"]

    async def test_a_failing_command_tells_no_secrets(
        self, control: ControlServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The text of its exception stays in the log."""
        caplog.set_level(logging.ERROR)
        answer = await say(tmp_path / "control.sock", b'{"command": "broken"}\n')

        assert answer == {"ok": False, "error": "broken failed: RuntimeError, see the log"}
        assert "secret" in caplog.text

    async def test_an_endless_line_is_hung_up_on(self, control: ControlServer, tmp_path: Path) -> None:
        """Memory is bounded."""
        assert await say(tmp_path / "control.sock", b"x" * 200_000 + b"\n") is None


class TestSocket:
    async def test_only_its_owner_may_use_it(self, control: ControlServer, tmp_path: Path) -> None:
        """Mode 0600."""
        assert stat.S_IMODE(os.stat(tmp_path / "control.sock").st_mode) == 0o600

    async def test_it_is_gone_after_close(self, tmp_path: Path) -> None:
        """A stopped daemon leaves nothing."""
        server = ControlServer(tmp_path, {})
        await server.start()
        await server.close()

        assert os.listdir(tmp_path) == []
        with pytest.raises(FileNotFoundError):
            ask(tmp_path, {"command": "hello"})

    async def test_a_dead_one_is_replaced(self, tmp_path: Path) -> None:
        """As after SIGKILL."""
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "control.sock"))
        server = ControlServer(tmp_path, {"hello": hello})
        await server.start()

        assert (await asyncio.to_thread(ask, tmp_path, {"command": "hello"}))["ok"]
        await server.close()

    async def test_a_living_one_is_not(self, control: ControlServer, tmp_path: Path) -> None:
        """One data folder has one daemon."""
        with pytest.raises(DataFolderTaken, match="another mailpipe serves"):
            await ControlServer(tmp_path, {}).start()
        assert (await asyncio.to_thread(ask, tmp_path, {"command": "hello"}))["ok"]

    async def test_a_long_path_is_no_obstacle(self, tmp_path: Path) -> None:
        """Unix sockets have short paths; data folders need not."""
        deep = tmp_path / ("d" * 120)
        deep.mkdir()
        server = ControlServer(deep, {"hello": hello})
        await server.start()

        assert (await asyncio.to_thread(ask, deep, {"command": "hello"}))["ok"]
        await server.close()
