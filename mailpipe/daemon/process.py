"""
``mailpipe serve``: one process from its first line to its exit status.

SIGTERM, SIGINT   stop accepting, finish, close; a second one does not wait
SIGHUP            reload; a file that cannot be used changes nothing
SIGUSR1           open the log file anew
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mailpipe.config import Config, ConfigError, Problem
from mailpipe.daemon.control import CONTROL_NAME, ControlServer, DataFolderTaken
from mailpipe.daemon.core import Daemon
from mailpipe.daemon.events import Listening, Reloaded
from mailpipe.daemon.logs import LogWriter, masked
from mailpipe.daemon.sockets import take_activated
from mailpipe.daemon.system import drop_privileges, notify, pid_file
from mailpipe.daemon.workers import Slot, Workers, slot_from

__all__ = ["run"]

log = logging.getLogger("mailpipe.daemon")

_FAILED = 1
"""Exit status when something had to be left behind, or did not survive."""


def run(load: Callable[[], Config], *, workers: int | None = None, command: Sequence[str] = ()) -> int:
    """
    Serve until told to stop.

    Args:
        load: Reads the configuration; again at each reload.

        workers: Processes; None is what the configuration says.

        command: Starts this very program again, as a worker.

    Returns:
        The exit status: 0 if all ended well.

    Raises:
        ConfigError: If the configuration cannot be used; nothing was started then.
    """
    slot = slot_from(os.environ)
    config = load()
    count = workers or config.daemon.workers
    with contextlib.ExitStack() as stack:
        main: Callable[[LogWriter], Coroutine[Any, Any, int]]
        with _told(config):
            if slot is not None:
                main = _worker(load, slot)
            elif count > 1:
                main = _parent(Workers(command, load, count))
            else:
                main = _alone(load)
            config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            if slot is None:
                stack.enter_context(pid_file(_path(config, config.daemon.pid_file)))
            drop_privileges(config.daemon.user, config.daemon.group, (config.data,))
            writer = stack.enter_context(_logging(config))
        runner = stack.enter_context(asyncio.Runner(loop_factory=_loop_factory()))
        return runner.run(main(writer))


@contextlib.contextmanager
def _told(config: Config) -> Iterator[None]:
    """What the system refuses at the start is told as a problem of the configuration."""
    try:
        yield
    except (OSError, ValueError, DataFolderTaken) as error:
        raise ConfigError([Problem(config.file, "", "", str(error))]) from error


def _alone(load: Callable[[], Config]) -> Callable[[LogWriter], Coroutine[Any, Any, int]]:
    daemon = Daemon(load=load)
    for_nothing = daemon.bind(take_activated(os.environ, os.getpid()))

    async def main(writer: LogWriter) -> int:
        for listen in for_nothing:
            log.warning("a socket that was handed over is nobody's: %s", listen)
        return await _serve(daemon, writer)

    return main


def _worker(load: Callable[[], Config], slot: Slot) -> Callable[[LogWriter], Coroutine[Any, Any, int]]:
    daemon = Daemon(load=load, workers=slot.workers, working=slot.number == 0)
    daemon.adopt([socket.socket(fileno=descriptor) for descriptor in slot.sockets])

    async def main(writer: LogWriter) -> int:
        # Nothing is ever written there: it ends when the parent does.
        asyncio.get_running_loop().add_reader(slot.alive, daemon.request_stop)
        return await _serve(daemon, writer, name=f"control-{os.getpid()}.sock")

    return main


def _parent(workers: Workers) -> Callable[[LogWriter], Coroutine[Any, Any, int]]:
    async def main(writer: LogWriter) -> int:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        asked_to_stop = _Stop(stop.set, workers.kill, loop.time)

        async def reload() -> Reloaded:
            return Reloaded(changes=await workers.reload())

        async def stats(_: Mapping[str, Any]) -> dict[str, Any]:
            return {"ok": True} | await workers.statistics()

        def reopen() -> None:
            writer.reopen()
            workers.reopen_logs()

        reloads = _Reloads(reload)
        control = ControlServer(
            workers.config.data, {"reload": reloads.command, "stats": stats, "dead": workers.dead}
        )
        with _told(workers.config):
            await control.start()
        try:
            loop.add_signal_handler(signal.SIGHUP, reloads.start)
            loop.add_signal_handler(signal.SIGUSR1, reopen)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, asked_to_stop, number)
            async with workers:
                for address in workers.addresses:
                    _say_listening(Listening(address=address))
                notify("READY=1\nSTATUS=accepting mail")
                await stop.wait()
                notify("STOPPING=1")
                ended = await workers.stop()
        finally:
            await control.close()
        log.info("stopped")
        return 0 if ended else _FAILED

    return main


class _Reloads:
    """Reloads by signal and by command, each told to whom it concerns."""

    def __init__(self, reload: Callable[[], Awaitable[Reloaded]]) -> None:
        self._reload = reload
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """As a signal handler does: the log tells what comes of it."""
        task = asyncio.get_running_loop().create_task(self.command({}))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def command(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """As the control socket's command."""
        notify("RELOADING=1")
        try:
            event = await self._reload()
        except ConfigError as error:
            problems = [masked(str(problem)) for problem in error.problems]
            return {"ok": False, "error": "\n".join(problems), "problems": problems}
        finally:
            notify("READY=1")
        return {"ok": True, "changes": list(event.changes)}


def _path(config: Config, text: str) -> Path | None:
    return config.data / text if text else None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # it does not exist for every platform
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _log_file(config: Config) -> str:
    return str(_path(config, config.daemon.log.file) or "")


@contextlib.contextmanager
def _logging(config: Config) -> Iterator[LogWriter]:
    wanted = config.daemon.log
    writer = LogWriter(_log_file(config), wanted.format)
    root = logging.getLogger()
    root.addHandler(writer)
    root.setLevel(wanted.level.upper())
    # asyncio and libraries speak at info of what is no news to an operator.
    for name in ("asyncio", "mail.log"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _no_call_sites():
            yield writer
    finally:
        root.removeHandler(writer)
        writer.close()


@contextlib.contextmanager
def _no_call_sites() -> Iterator[None]:
    """
    Let log records not say which line of code, thread and process they are of: our lines do not tell.

    Finding out costs more than all else about the line of a mail. These are the switches that the
    logging HOWTO names for the purpose, under "Optimization".
    """
    switches = {"_srcfile": None, "logThreads": False, "logProcesses": False, "logMultiprocessing": False}
    before = {name: getattr(logging, name) for name in switches}
    for name, value in switches.items():
        setattr(logging, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(logging, name, value)


SAME_WISH = 1.0
"""Seconds after the first SIGTERM or SIGINT in which another one asks for nothing more."""


async def _serve(daemon: Daemon, writer: LogWriter, *, name: str = CONTROL_NAME) -> int:
    loop = asyncio.get_running_loop()

    async def reload() -> Reloaded:
        event = await daemon.reload()
        wanted = daemon.config.daemon.log
        logging.getLogger().setLevel(wanted.level.upper())
        writer.redirect(_log_file(daemon.config), wanted.format)
        return event

    async def stats(_: Mapping[str, Any]) -> dict[str, Any]:
        return {"ok": True} | daemon.statistics()

    reloads = _Reloads(reload)
    commands = {"reload": reloads.command, "stats": stats, "dead": daemon.dead}
    control = ControlServer(daemon.config.data, commands, name=name)
    with _told(daemon.config):
        await control.start()
    try:
        daemon.subscribe(Listening, _say_listening)
        loop.add_signal_handler(signal.SIGHUP, reloads.start)
        loop.add_signal_handler(signal.SIGUSR1, writer.reopen)
        stop = _Stop(daemon.request_stop, lambda: _leave(writer), loop.time)
        loop.add_signal_handler(signal.SIGTERM, stop, signal.SIGTERM)
        # A terminal's ^C reaches workers too, whose parent will tell them.
        interrupt = (stop, signal.SIGINT) if name == CONTROL_NAME else (_ignored,)
        loop.add_signal_handler(signal.SIGINT, *interrupt)
        await daemon.start()
        # What was imported and opened by now stays for good: no collection has to go through it, which
        # would hold up every client for as long.
        gc.collect()
        gc.freeze()
        notify("READY=1\nSTATUS=accepting mail")
        await daemon.wait_stopped()
        notify("STOPPING=1")
        ended = await daemon.stop()
    finally:
        await control.close()
    if not ended:
        _leave(writer)
    log.info("stopped")
    return _FAILED if daemon.crashed else 0


def _ignored() -> None:
    pass


class _Stop:
    """
    Asks for the end at the first SIGTERM or SIGINT, and for an end at once at a later one.

    One wish may come twice: to the whole process group, and from a parent (``make``, a shell's job
    control) that passes it on. So a second signal within `SAME_WISH` is the first one over again.
    """

    def __init__(
        self, ask: Callable[[], object], hurry: Callable[[], object], clock: Callable[[], float]
    ) -> None:
        self._ask = ask
        self._hurry = hurry
        self._clock = clock
        self._asked_at: float | None = None

    def __call__(self, number: int) -> None:
        now = self._clock()
        if self._asked_at is None:
            self._asked_at = now
            log.info("stopping", extra={"fields": {"signal": signal.Signals(number).name}})
            self._ask()
        elif now - self._asked_at >= SAME_WISH:
            log.warning("stopped by a second signal")
            self._hurry()


def _leave(writer: LogWriter) -> None:
    """Exit now: a thread that hangs in a store would hold an ordinary exit for ever."""
    writer.close()
    os._exit(_FAILED)


def _say_listening(event: Listening) -> None:
    sys.stdout.write(f"listening on {event.address}\n")
    sys.stdout.flush()
    log.info("listening", extra={"fields": {"address": event.address}})
