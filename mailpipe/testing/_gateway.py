"""A real gateway in a thread of its own, for programs under test to send mail to."""

import asyncio
import email
import email.policy
import threading
from collections.abc import Mapping
from email.message import EmailMessage
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mailpipe.envelope import Envelope
from mailpipe.testing._stores import FailingStore

__all__ = ["LocalGateway"]

_PATIENCE = 30.0


class LocalGateway:
    """
    Receives mail on a free port of 127.0.0.1 and keeps it in memory.

    Runs on a loop in a thread of its own, so the program under test may block. Enter it with ``with``.

    Args:
        data: Its data folder.

        process: Steps before the one that keeps; ``""`` for none.

        config: More of the configuration, as tomllib would give it; ``servers`` and ``gateways`` are
            merged into ours.

    Raises:
        ConfigError: If the configuration cannot be used.
    """

    host = "127.0.0.1"

    def __init__(
        self, data: Path, *, process: str = "header | hasher", config: Mapping[str, Any] | None = None
    ) -> None:
        self.store = FailingStore(durability="none")
        """Where mails end; make it fail to see what the program under test does."""
        given = dict(config or {})
        server = {"listen": f"{self.host}:0", "hostname": "localhost", **given.pop("server", {})}
        gateway = {
            "process": f"{process} | caught" if process else "caught",
            "durability": "none",
            **given.pop("gateway", {}),
        }
        self._config = {"servers": [server], "gateways": {"default": gateway}, **given}
        self._data = data
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self.port = 0
        """Where it listens, once entered."""

    @property
    def mails(self) -> list[Envelope]:
        """What was received and answered 250, or is about to be, in order."""
        return self.store.kept

    @property
    def messages(self) -> list[EmailMessage]:
        """The same, parsed."""
        return [_message(envelope) for envelope in self.mails]

    def wait_for(self, count: int = 1, timeout: float = 10.0) -> list[Envelope]:
        """
        Return the mails once there are *count* or more.

        Raises:
            TimeoutError: If there are fewer after *timeout* seconds.
        """
        return self.store.wait_for(count, timeout)

    def clear(self) -> None:
        """Forget the mails so far."""
        self.store.clear()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="mailpipe gateway", daemon=True)
        self._thread.start()
        if not self._ready.wait(_PATIENCE):
            msg = f"the gateway did not start within {_PATIENCE} s"
            raise TimeoutError(msg)
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        thread.join(_PATIENCE)
        if thread.is_alive():
            msg = f"the gateway did not end within {_PATIENCE} s"
            raise TimeoutError(msg)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        # Here, not above: the rest of mailpipe.testing works without what a daemon needs.
        from mailpipe.daemon import Daemon

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with Daemon(self._config, data=self._data, steps={"caught": self.store}) as daemon:
            self.port = int(daemon.addresses[0].rpartition(":")[2])
            self._ready.set()
            await self._stop.wait()


def _message(envelope: Envelope) -> EmailMessage:
    return email.message_from_bytes(envelope.body.read(), policy=email.policy.default)
