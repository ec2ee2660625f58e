"""
``mailpipe serve``: one process from its first line to its exit status.

SIGTERM, SIGINT   stop accepting, finish, close; a second one does not wait
SIGHUP            reload; a file that cannot be used changes nothing
SIGUSR1           open the log file anew
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mailpipe.config import Config, ConfigError, Problem
from mailpipe.daemon.control import ControlServer, DataFolderTaken
from mailpipe.daemon.core import Daemon
from mailpipe.daemon.events import Listening, Reloaded
from mailpipe.daemon.logs import LogWriter
from mailpipe.daemon.sockets import take_activated
from mailpipe.daemon.system import drop_privileges, notify, pid_file

__all__ = ["run"]

log = logging.getLogger("mailpipe.daemon")

_HANGS = 1
"""Exit status when something had to be left behind."""


def run(load: Callable[[], Config]) -> int:
    """
    Serve until told to stop.

    Args:
        load: Reads the configuration; again at each reload.

    Returns:
        The exit status: 0 if all ended well.

    Raises:
        ConfigError: If the configuration cannot be used; nothing was started then.
    """
    daemon = Daemon(load=load)
    config = daemon.config
    for_nothing = daemon.bind(take_activated(os.environ, os.getpid()))
    try:
        config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with pid_file(_path(config, config.daemon.pid_file)):
            drop_privileges(config.daemon.user, config.daemon.group, (config.data,))
            with _logging(config) as writer, asyncio.Runner(loop_factory=_loop_factory()) as runner:
                for listen in for_nothing:
                    log.warning("a socket that was handed over is nobody's: %s", listen)
                return runner.run(_main(daemon, writer))
    except (OSError, ValueError, DataFolderTaken) as error:
        raise ConfigError([Problem(config.file, "", "", str(error))]) from error


def _path(config: Config, text: str) -> Path | None:
    return config.data / text if text else None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # it does not exist for every platform
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


@contextlib.contextmanager
def _logging(config: Config) -> Iterator[LogWriter]:
    wanted = config.daemon.log
    path = _path(config, wanted.file)
    writer = LogWriter(str(path) if path else "", wanted.format)
    root = logging.getLogger()
    root.addHandler(writer)
    root.setLevel(wanted.level.upper())
    # asyncio and libraries speak at info of what is no news to an operator.
    for name in ("asyncio", "mail.log"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield writer
    finally:
        root.removeHandler(writer)
        writer.close()


async def _main(daemon: Daemon, writer: LogWriter) -> int:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any]] = set()

    async def reload() -> Reloaded:
        notify("RELOADING=1")
        try:
            event = await daemon.reload()
            logging.getLogger().setLevel(daemon.config.daemon.log.level.upper())
            return event
        finally:
            notify("READY=1")

    async def reload_logged() -> None:
        with contextlib.suppress(ConfigError):  # told by the daemon itself
            await reload()

    def start_reload() -> None:
        task = loop.create_task(reload_logged())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    control = ControlServer(daemon.config.data, _commands(daemon, reload))
    await control.start()
    try:
        daemon.subscribe(Listening, _say_listening)
        loop.add_signal_handler(signal.SIGHUP, start_reload)
        loop.add_signal_handler(signal.SIGUSR1, writer.reopen)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _asked_to_stop, daemon, number, writer)
        await daemon.start()
        notify("READY=1\nSTATUS=accepting mail")
        await daemon.wait_stopped()
        notify("STOPPING=1")
        ended = await daemon.stop()
    finally:
        await control.close()
    if not ended:
        _leave(writer)
    log.info("stopped")
    return 0


def _asked_to_stop(daemon: Daemon, number: int, writer: LogWriter) -> None:
    if daemon.stopping:
        log.warning("stopped by a second signal")
        _leave(writer)
    log.info("stopping", extra={"fields": {"signal": signal.Signals(number).name}})
    daemon.request_stop()


def _leave(writer: LogWriter) -> None:
    """Exit now: a thread that hangs in a store would hold an ordinary exit for ever."""
    writer.close()
    os._exit(_HANGS)


def _say_listening(event: Listening) -> None:
    sys.stdout.write(f"listening on {event.address}\n")
    sys.stdout.flush()
    log.info("listening", extra={"fields": {"address": event.address}})


def _commands(daemon: Daemon, reload: Callable[[], Any]) -> dict[str, Any]:
    async def reload_(_: Mapping[str, Any]) -> dict[str, Any]:
        try:
            event = await reload()
        except ConfigError as error:
            return {"ok": False, "error": str(error), "problems": [str(one) for one in error.problems]}
        return {"ok": True, "changes": list(event.changes)}

    async def stats(_: Mapping[str, Any]) -> dict[str, Any]:
        return {"ok": True} | daemon.statistics()

    return {"reload": reload_, "stats": stats}
