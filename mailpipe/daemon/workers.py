"""
``--workers N``: a parent that holds the sockets, and N processes that serve them.

Theory of operation. The parent binds one socket per slot and server (SO_REUSEPORT) before it drops its
privileges, and holds them for as long as it lives: a connection that waits in a slot's socket outlives
the slot's process. A worker is an ordinary ``mailpipe serve`` that is handed its slot's sockets; its
first lines on stdout say that it accepts.

A reload starts new workers beside the old: each slot gets a new process, and only when all of them
accept do the old ones drain. If one does not, the new ones go and the old ones stay, unchanged. A worker
that dies is started again, later and later while it keeps dying. A parent that dies takes its workers
with it: they read the end of a pipe.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import attrs

from mailpipe.config import Config, ConfigError, Problem
from mailpipe.daemon.binding import Key, bind_servers, by_key
from mailpipe.daemon.control import ask
from mailpipe.daemon.sockets import spell

__all__ = ["ENVIRONMENT", "Slot", "Workers", "slot_from"]

log = logging.getLogger("mailpipe.daemon")

ENVIRONMENT = "MAILPIPE_WORKER"
"""Variable in which a worker finds its `Slot`."""

_READY_WITHIN = 60.0
_BACK_OFF = (0.1, 30.0)
"""Seconds before the first restart and before the later ones; doubled in between."""

_STABLE_AFTER = 60.0
"""A worker that lived so long is restarted without delay, as if it had never died."""


@attrs.frozen(kw_only=True)
class Slot:
    """What a worker is told."""

    number: int
    workers: int
    sockets: list[int]
    """Descriptors of the listening sockets, in the order of the servers."""

    alive: int
    """Descriptor of a pipe that ends when the parent does."""

    def encode(self) -> str:
        """As the environment carries it."""
        return json.dumps(attrs.asdict(self))


def slot_from(environment: Mapping[str, str]) -> Slot | None:
    """The slot that we are the worker of, or None for an ordinary process."""
    text = environment.get(ENVIRONMENT)
    return None if not text else Slot(**json.loads(text))


@attrs.define(eq=False)
class _Worker:
    """One process of a slot."""

    slot: int
    process: asyncio.subprocess.Process
    started_at: float


class Workers:
    """
    The processes of all slots.

    Args:
        command: Starts a worker: the program and its arguments.

        load: Reads the configuration.

        count: Slots; at least 1.
    """

    def __init__(self, command: Sequence[str], load: Callable[[], Config], count: int) -> None:
        self._command = list(command)
        self._load = load
        self._count = count
        self.config = load()
        self._sockets = [bind_servers(self.config, reuse_port=True)]
        try:
            for _ in range(1, count):
                self._sockets.append(bind_servers(self.config, beside=self._sockets[0], reuse_port=True))
        except BaseException:
            self._close(self._sockets)
            raise
        self._alive, self._held = os.pipe()
        self._running: dict[int, _Worker] = {}
        self._watching: set[asyncio.Task[None]] = set()
        self._delays = dict.fromkeys(range(count), 0.0)
        self._living: set[_Worker] = set()
        self._stopping = asyncio.Event()
        self._closed = False
        self._changing = asyncio.Lock()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the servers listen."""
        return tuple(spell(sock) for sock in self._sockets[0].values())

    async def __aenter__(self) -> Self:
        started = await self._start_all()
        for worker in started:
            self._adopt(worker)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def reload(self) -> tuple[str, ...]:
        """
        Read the configuration and put new workers in the old ones' places.

        Raises:
            ConfigError: If it cannot be used; the old workers go on.
        """
        async with self._changing:
            new = self._load()
            old_sockets, old = self._sockets, self.config
            if new.data != old.data:
                what = f"changes only at a start, from {old.data} to {new.data}"
                raise ConfigError([Problem(new.file, "", "data", what)])
            fresh: list[dict[Key, socket.socket]] = []
            try:
                for slot in range(self._count):
                    first = old_sockets[0] | (fresh[0] if fresh else {})
                    fresh.append(bind_servers(new, skip=old_sockets[slot], beside=first, reuse_port=True))
                self._sockets = [
                    {key: (old_sockets[slot] | fresh[slot])[key] for key in by_key(new)}
                    for slot in range(self._count)
                ]
                started = await self._start_all()
            except BaseException:
                self._sockets = old_sockets
                self._close(fresh)
                raise
            self.config = new
            before = list(self._running.values())
            for worker in started:
                self._adopt(worker)
            for worker in before:
                _signal(worker, signal.SIGTERM)
            kept = {id(sock) for slots in self._sockets for sock in slots.values()}
            for slots in old_sockets:
                for sock in slots.values():
                    if id(sock) not in kept:
                        sock.close()
        return (f"{len(started)} workers replaced",)

    def reopen_logs(self) -> None:
        """Pass SIGUSR1 on."""
        for worker in self._running.values():
            _signal(worker, signal.SIGUSR1)

    async def statistics(self) -> dict[str, Any]:
        """Each worker's own, by slot."""
        answers = {}
        for number, worker in sorted(self._running.items()):
            name = f"control-{worker.process.pid}.sock"
            try:
                answers[str(number)] = await asyncio.to_thread(
                    ask, self.config.data, {"command": "stats"}, name=name, timeout=10.0
                )
            except (OSError, ValueError) as error:
                answers[str(number)] = {"ok": False, "error": str(error)}
        return {"pid": os.getpid(), "data": str(self.config.data), "workers": answers}

    async def dead(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Pass a request about dead letters on, to whichever worker has the journal; see `Daemon.dead`."""
        answer: dict[str, Any] = {"ok": False, "error": "no worker has that journal"}
        for worker in list(self._living):
            name = f"control-{worker.process.pid}.sock"
            try:
                answer = await asyncio.to_thread(ask, self.config.data, request, name=name)
            except (OSError, ValueError) as error:
                answer = {"ok": False, "error": str(error)}
            if answer.get("ok"):
                break
        return answer

    async def stop(self) -> bool:
        """
        Let all workers drain, and kill those that do not.

        Returns:
            Whether all ended by themselves, well.
        """
        self._stopping.set()
        async with self._changing:
            for worker in self._running.values():
                _signal(worker, signal.SIGTERM)
            living = list(self._living)
            ended = await self._wait(living, self.config.daemon.shutdown_timeout + 10.0)
            if not ended:
                self.kill()
                await self._wait(living, 10.0)
            for task in self._watching:
                task.cancel()
            await asyncio.gather(*self._watching, return_exceptions=True)
            if not self._closed:
                self._closed = True
                self._close(self._sockets)
                os.close(self._held)
                os.close(self._alive)
            return ended and all(worker.process.returncode == 0 for worker in living)

    async def _wait(self, workers: Sequence[_Worker], patience: float) -> bool:
        """Whether all of them ended within so many seconds."""
        try:
            async with asyncio.timeout(patience):
                await asyncio.gather(*(worker.process.wait() for worker in workers))
        except TimeoutError:
            return False
        return True

    def kill(self) -> None:
        """End all workers now, those that drain as well."""
        self._stopping.set()
        for worker in self._living:
            _signal(worker, signal.SIGKILL)

    async def _start_all(self) -> list[_Worker]:
        """One new worker for each slot, all accepting; or none."""
        results = await asyncio.gather(
            *(self._start(slot) for slot in range(self._count)), return_exceptions=True
        )
        started = [result for result in results if isinstance(result, _Worker)]
        failed = [result for result in results if isinstance(result, BaseException)]
        if failed:
            for worker in started:
                _signal(worker, signal.SIGTERM)
            await asyncio.gather(*(worker.process.wait() for worker in started))
            raise failed[0]
        return started

    async def _start(self, number: int) -> _Worker:
        sockets = [sock.fileno() for sock in self._sockets[number].values()]
        slot = Slot(number=number, workers=self._count, sockets=sockets, alive=self._alive)
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[*sockets, self._alive],
            env=_environment(slot),
        )
        try:
            async with asyncio.timeout(_READY_WITHIN):
                ready = await _accepts(process, len(sockets))
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if not ready:
            status = await process.wait()
            what = f"worker {number} ended with status {status} before it accepted; see the log"
            raise ConfigError([Problem(self.config.file, "", "", what)])
        return _Worker(number, process, asyncio.get_running_loop().time())

    def _adopt(self, worker: _Worker) -> None:
        self._running[worker.slot] = worker
        self._living.add(worker)
        fields = {"slot": worker.slot, "pid": worker.process.pid}
        log.info("worker accepts", extra={"fields": fields})
        task = asyncio.create_task(self._watch(worker))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _watch(self, worker: _Worker) -> None:
        """Until the worker ends; if nobody wished that, start another."""
        status = await worker.process.wait()
        self._living.discard(worker)
        if self._unwanted(worker):
            return
        fields = {"slot": worker.slot, "pid": worker.process.pid, "status": status}
        log.error("worker died, and is started again", extra={"fields": fields})
        if asyncio.get_running_loop().time() - worker.started_at > _STABLE_AFTER:
            self._delays[worker.slot] = 0.0
        while not await self._restarted(worker):
            pass

    def _unwanted(self, worker: _Worker) -> bool:
        """Nobody wants this one back: we stop, or another has its slot."""
        return self._stopping.is_set() or self._running.get(worker.slot) is not worker

    async def _restarted(self, worker: _Worker) -> bool:
        """Wait, try to start another in its slot; False to be called again."""
        delay = self._delays[worker.slot]
        first, most = _BACK_OFF
        self._delays[worker.slot] = min(most, max(first, delay * 2))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        async with self._changing:
            if self._unwanted(worker):
                return True
            try:
                fresh = await self._start(worker.slot)
            except (ConfigError, OSError, TimeoutError) as error:
                fields = {"slot": worker.slot, "error": str(error)}
                log.error("worker cannot be started", extra={"fields": fields})  # noqa: TRY400 - no news in a trace
                return False
            self._adopt(fresh)
            return True

    @staticmethod
    def _close(slots: Sequence[Mapping[Key, socket.socket]]) -> None:
        for sockets in slots:
            for sock in sockets.values():
                sock.close()


async def _accepts(process: asyncio.subprocess.Process, servers: int) -> bool:
    """Read a line per server; False if the process ends before."""
    assert process.stdout is not None
    for _ in range(servers):
        if not await process.stdout.readline():
            return False
    return True


def _environment(slot: Slot) -> dict[str, str]:
    """Ours, but for whom the service manager talks to; and what we can import, a worker can."""
    kept = {name: value for name, value in os.environ.items() if name not in {"NOTIFY_SOCKET", "LISTEN_PID"}}
    return kept | {
        ENVIRONMENT: slot.encode(),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def _signal(worker: _Worker, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.process.send_signal(number)
