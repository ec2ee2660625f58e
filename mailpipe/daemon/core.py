"""
`Daemon`: servers and gateways of one configuration, and the way from one configuration to the next.

Theory of a reload. Everything new is made beside the old: sockets bound, certificates read, gateways
opened. Only when nothing can fail any more are they swapped, in one turn of the loop: a connection
keeps the options it began with, a mail the gateway of its MAIL. What is old then ends by itself, after
its last outcome or ``shutdown_timeout``. Storages that both configurations name stay open between them.
A reload that fails has changed nothing.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from mailpipe.bodies import Spool, SpoolOptions
from mailpipe.chain import Plan
from mailpipe.config import (
    Config,
    ConfigError,
    GatewayConfig,
    Problem,
    ServerConfig,
    load_config,
    make_config,
)
from mailpipe.daemon.binding import Key, bind_servers, by_key
from mailpipe.daemon.events import (
    Event,
    Events,
    GatewayClosed,
    GatewayOpened,
    Listening,
    Reloaded,
    ReloadRefused,
    Stopping,
)
from mailpipe.daemon.sockets import spell
from mailpipe.gateway import DiskSpace, FileOutbox, Gateway, job_of
from mailpipe.gateway.deadletters import act, left_in
from mailpipe.receivers.options import Listen
from mailpipe.receivers.server import SmtpServer
from mailpipe.runner import Chain
from mailpipe.sharing import SharedSteps
from mailpipe.steps import Place

__all__ = ["Daemon"]

log = logging.getLogger("mailpipe.daemon")

_STORES_GRACE = 5.0
"""Seconds that storages have to close past shutdown_timeout, before the daemon gives up on them."""

_FINAL = ("data", "user", "group", "workers", "pid_file")
"""Keys that only a start can change."""


@attrs.define(eq=False)
class _Serving:
    """A server that accepts."""

    config: ServerConfig
    server: SmtpServer
    address: str


@attrs.frozen(eq=False)
class _Open:
    """A gateway that is open, and what it was made of."""

    gateway: Gateway
    effective: object


class Daemon:
    """
    Receives mail as configured, until it is stopped.

    ::

        async with Daemon() as daemon:          # zero configuration
            print(daemon.addresses)
            await daemon.wait_stopped()

    Args:
        config:
            Path of a TOML file, a mapping as tomllib gives it, a `Config`, or None for zero
            configuration. A file is read again by `reload`.

        data: Data folder; wins over what *config* says.

        listen: Where the first server listens instead.

        steps: Processors of one's own by name, for the chains.

        load: How to come by a configuration, instead of all above; called again by `reload`.

        workers: How many processes serve this data folder.

        working: Whether background jobs are done here, and not by another of them.

    Raises:
        ConfigError: If the configuration cannot be used.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any] | Config | None = None,
        *,
        data: str | os.PathLike[str] | None = None,
        listen: str | None = None,
        steps: Mapping[str, Callable[..., Any]] | None = None,
        load: Callable[[], Config] | None = None,
        workers: int = 1,
        working: bool = True,
    ) -> None:
        self._load = load or _loader(config, data, listen, steps)
        self._config = self._load()
        self._workers, self._working = workers, working
        self.events = Events()
        """What happens; see `mailpipe.daemon.events`."""
        self._bound: dict[Key, socket.socket] = {}
        self._servers: dict[Key, _Serving] = {}
        self._gateways: dict[str, _Open] = {}
        self._shared = SharedSteps()
        self._retiring: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self._stop_wanted = asyncio.Event()
        self._crashed = False
        self._leaving: set[Gateway] = set()
        self._reloads = Counter({"done": 0, "refused": 0})
        self._spool: Spool

    @property
    def config(self) -> Config:
        """The configuration that holds."""
        return self._config

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where its servers listen: ``HOST:PORT`` or ``unix:/path``."""
        return tuple(serving.address for serving in self._servers.values())

    def gateway(self, name: str = "default") -> Gateway:
        """
        The gateway of that name, as of now: a reload may replace it.

        Raises:
            KeyError: If there is none.
        """
        return self._gateways[name].gateway

    def subscribe(self, kind: type[Event], callback: Callable[[Any], object]) -> Callable[[], None]:
        """Call *callback* at every event of *kind*; returns what ends that."""
        return self.events.subscribe(kind, callback)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def bind(self, given: Mapping[Listen, socket.socket] | None = None) -> tuple[Listen, ...]:
        """
        Bind every server's address, as a privileged user may have to; `start` does it otherwise.

        Args:
            given: Sockets of socket activation, taken where their address is meant; others are closed.

        Returns:
            The addresses of sockets that were given for nothing.

        Raises:
            ConfigError: If an address cannot be had; no socket is kept then.
        """
        left = dict(given or {})
        self._bound |= bind_servers(self._config, given=left)
        for sock in left.values():
            sock.close()
        return tuple(left)

    def adopt(self, sockets: Sequence[socket.socket]) -> None:
        """
        Take listening sockets instead of binding; one per server, in their order.

        Raises:
            ConfigError: If there are not as many as servers.
        """
        keys = list(by_key(self._config))
        if len(sockets) != len(keys):
            what = f"has {len(keys)} servers, and {len(sockets)} sockets were handed on"
            raise ConfigError([Problem(self._config.file, "", "servers", what)])
        self._bound |= dict(zip(keys, sockets, strict=True))

    async def start(self) -> None:
        """
        Open the storages, then accept.

        Raises:
            ConfigError: If an address cannot be had, or a storage cannot be opened.
        """
        config = self._config
        if len(self._bound) < len(config.servers):
            self.bind()
        try:
            config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._spool = Spool(config.data / "bodies", _spool_options(config))
            await asyncio.to_thread(self._spool.sweep)
            self._gateways = await self._open_gateways(config, {})
            try:
                for key, server in by_key(config).items():
                    made = _server(config, server, self._gateways)
                    await self._serve(key, server, made, self._bound.pop(key))
            except BaseException:
                await self.stop()
                raise
        finally:
            for left in self._bound.values():
                left.close()
            self._bound.clear()

    @property
    def crashed(self) -> bool:
        """A step ended its gateway by something that is no `Exception`; the daemon stops for it."""
        return self._crashed

    @property
    def stopping(self) -> bool:
        """Somebody asked for a stop."""
        return self._stop_wanted.is_set()

    def request_stop(self) -> None:
        """Let `wait_stopped` return; a signal handler may call it."""
        self._stop_wanted.set()

    async def wait_stopped(self) -> None:
        """Return once somebody asked for a stop."""
        await self._stop_wanted.wait()

    async def stop(self) -> bool:
        """
        Stop accepting, finish what is under way, close the storages; within ``shutdown_timeout``.

        Returns:
            Whether all of it ended; False: something hangs, the log says what.
        """
        self._stop_wanted.set()
        async with self._changing:
            loop = asyncio.get_running_loop()
            patience = self._config.daemon.shutdown_timeout
            deadline = loop.time() + patience
            self.events.publish(Stopping())
            serving = list(self._servers.values())
            for one in serving:
                one.server.stop_accepting()
            cut = sum(await asyncio.gather(*(one.server.drain(patience) for one in serving)))
            if cut:
                fields: dict[str, object] = {"connections": cut, "shutdown_timeout": patience}
                log.warning("shutdown_timeout is over, connections were cut", extra={"fields": fields})
            self._servers.clear()
            for gateway in self._leaving:
                gateway.no_more_clients()
            for name, opened in self._gateways.items():
                self._retire(name, opened.gateway, deadline, grace=False)
            self._gateways = {}
            ended = True
            if self._retiring:
                wait = max(0.0, deadline - loop.time()) + _STORES_GRACE
                _, hanging = await asyncio.wait(self._retiring, timeout=wait)
                for task in hanging:
                    ended = False
                    fields = {"gateway": task.get_name()}
                    log.error("this does not end, its storages hang", extra={"fields": fields})
            if ended:
                await asyncio.to_thread(self._spool.close)
        return ended

    async def reload(self) -> Reloaded:
        """
        Read the configuration again and change over to it.

        Raises:
            ConfigError: If it cannot be used; nothing has changed then.
        """
        async with self._changing:
            try:
                new = self._load()
                self._refuse_final(new)
                changes = await self._change_to(new)
            except ConfigError as error:
                self._tell_refused(str(error))
                raise
            self._reloads["done"] += 1
            log.info("configuration reloaded", extra={"fields": {"changes": list(changes)}})
            event = Reloaded(changes=changes)
            self.events.publish(event)
            return event

    def statistics(self) -> dict[str, Any]:
        """Counts of servers and gateways as plain values, as ``mailpipe stats --json`` shows them."""
        return {
            "pid": os.getpid(),
            "data": str(self._config.data),
            "servers": {
                one.address: {"gateway": one.config.gateway} | attrs.asdict(one.server.statistics)
                for one in self._servers.values()
            },
            "gateways": {
                name: attrs.asdict(opened.gateway.statistics, value_serializer=_plain)
                for name, opened in self._gateways.items()
            },
            "bodies_in_memory": self._spool.held,
            "reloads": dict(self._reloads),
        }

    async def dead(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """
        Try dead letters of an open journal again, or drop them; what ``mailpipe dead`` asks for.

        Args:
            request: ``deed`` (``"retry"`` or ``"drop"``), ``journal`` and ``records``.
        """
        deed, records = request.get("deed"), request.get("records")
        if deed not in ("retry", "drop") or not isinstance(records, list):
            return {"ok": False, "error": "a request has a deed (retry or drop), a journal and records"}
        gateways = [*(opened.gateway for opened in self._gateways.values()), *self._leaving]
        for gateway in gateways:
            store = gateway.journal(str(request.get("journal")))
            if store is not None:
                return {"ok": True, "count": await act(store, deed, [str(one) for one in records])}
        return {"ok": False, "error": f"no such journal is open here, got {request.get('journal')!r}"}

    # Changing over

    def _tell_refused(self, reason: str) -> None:
        self._reloads["refused"] += 1
        log.error("the new configuration is refused", extra={"fields": {"reason": reason}})
        self.events.publish(ReloadRefused(reason=reason))

    def _refuse_final(self, new: Config) -> None:
        problems = []
        if new.data != self._config.data:
            problems.append(
                Problem(
                    new.file, "", "data", f"changes only at a start, from {self._config.data} to {new.data}"
                )
            )
        for key in _FINAL[1:]:
            was, is_ = getattr(self._config.daemon, key), getattr(new.daemon, key)
            if was != is_:
                problems.append(
                    Problem(new.file, "", key, f"changes only at a start, from {was!r} to {is_!r}")
                )
        if problems:
            raise ConfigError(problems)

    async def _change_to(self, new: Config) -> tuple[str, ...]:
        old = self._config
        async with contextlib.AsyncExitStack() as undo:
            bound = bind_servers(new, skip=self._servers)
            for sock in bound.values():
                undo.callback(sock.close)
            gateways = await self._open_gateways(new, self._gateways)
            made = [name for name, opened in gateways.items() if self._gateways.get(name) is not opened]
            for name in made:
                undo.push_async_callback(_close_unused, gateways[name].gateway)
            fresh = {
                key: _server(new, server, gateways)
                for key, server in by_key(new).items()
                if key not in self._servers
            }
            # From here on nothing can fail.
            undo.pop_all()
        wanted = by_key(new)
        gone = [key for key in self._servers if key not in wanted]
        changes = _changes(old, new, made, gateways)
        self._config = new
        retired = {name: o for name, o in self._gateways.items() if gateways.get(name) is not o}
        self._gateways = gateways
        self._spool.options = _spool_options(new)
        for key in gone:
            self._drop(self._servers.pop(key))
        for key, server in wanted.items():
            if (serving := self._servers.get(key)) is not None:
                serving.server.gateway = gateways[server.gateway].gateway
                self._give_options(serving, server)
            else:
                await self._serve(key, server, fresh[key], bound[key])
        deadline = asyncio.get_running_loop().time() + new.daemon.shutdown_timeout
        for name, opened in retired.items():
            opened.gateway.stop_jobs()
            self._retire(name, opened.gateway, deadline, grace=True)
        return changes

    def _give_options(self, serving: _Serving, config: ServerConfig) -> None:
        # The same options are given too: that reads the certificates anew.
        try:
            serving.server.options = config.options
        except ValueError as error:  # readable a moment ago, when the configuration was checked
            log.error("%s keeps its old options: %s", serving.address, error)  # noqa: TRY400 - no news in a trace
            return
        serving.config = config

    async def _serve(self, key: Key, config: ServerConfig, server: SmtpServer, sock: socket.socket) -> None:
        address = spell(sock)
        await server.start(sock)
        self._servers[key] = _Serving(config, server, address)
        self.events.publish(Listening(address=address))

    def _drop(self, serving: _Serving) -> None:
        serving.server.stop_accepting()

        async def drain() -> None:
            await serving.server.drain(self._config.daemon.shutdown_timeout)

        self._keep(asyncio.create_task(drain(), name=serving.address))

    async def _open_gateways(self, config: Config, running: Mapping[str, _Open]) -> dict[str, _Open]:
        """
        The gateways of *config*: those of *running* that are the same, and new ones.

        Raises:
            ConfigError: If one cannot be opened; new ones are closed again.
        """
        opened: dict[str, _Open] = {}
        async with contextlib.AsyncExitStack() as undo:
            for name, gateway_config in config.gateways.items():
                effective = _effective(config, name, gateway_config)
                if name in running and running[name].effective == effective:
                    opened[name] = running[name]
                    continue
                gateway = self._make_gateway(config, name, gateway_config)
                try:
                    await gateway.start()
                except Exception as error:
                    log.debug("a gateway cannot be opened", exc_info=True)
                    what = f"cannot be opened: {type(error).__name__}: {error}"
                    raise ConfigError(
                        [Problem(config.file, f"[gateways.{name}]", "process", what)]
                    ) from error
                undo.push_async_callback(_close_unused, gateway)
                opened[name] = _Open(gateway, effective)
                self.events.publish(GatewayOpened(name=name))
            undo.pop_all()
        for folder in await asyncio.to_thread(left_in, config.data / "spool", _spools(config)):
            fields = {"folder": str(folder)}
            log.error("mails wait in a journal that no gateway's spool reads", extra={"fields": fields})
        return opened

    def _make_gateway(self, config: Config, name: str, gateway: GatewayConfig) -> Gateway:
        hostname = _hostname_of(config, name)
        place = Place(data=config.data, hostname=hostname, gateway=name, workers=self._workers)

        # A storage that writes jobs writes them for every mail it gets: it is no other gateway's.
        shared = SharedSteps() if gateway.background else self._shared

        def chain(plan: Plan) -> Chain:
            return Chain(plan, place=place, shared=shared)

        plan, outbox = config.plan(gateway.process), None
        if gateway.background and not hasattr(plan.archive and plan.archive.target, "outbox"):
            outbox = FileOutbox(config.data / "outbox.db")
            plan = attrs.evolve(plan, batch=(*plan.batch, outbox.step(job_of(name))))
        return Gateway(
            name,
            gateway,
            chain(plan),
            spool=self._spool,
            disk=DiskSpace(config.data, config.daemon.reserve),
            validate=chain(config.plan(gateway.validate, "validate")) if gateway.validate else None,
            background=chain(config.plan(gateway.background, "background")) if gateway.background else None,
            outbox=outbox,
            working=self._working,
            max_size=self._max_size,
            on_crash=self._gateway_crashed,
        )

    def _gateway_crashed(self) -> None:
        self._crashed = True
        self.request_stop()

    def _max_size(self) -> int:
        return self._config.max_size

    def _retire(self, name: str, gateway: Gateway, deadline: float, *, grace: bool) -> None:
        async def end() -> None:
            self._leaving.add(gateway)
            try:
                if grace:
                    await gateway.wait_idle(deadline)
                await gateway.aclose(deadline)
            finally:
                self._leaving.discard(gateway)
            self.events.publish(GatewayClosed(name=name))

        self._keep(asyncio.create_task(end(), name=name))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._retiring.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._retiring.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s did not end well", task.get_name(), exc_info=error)


def _server(config: Config, server: ServerConfig, gateways: Mapping[str, _Open]) -> SmtpServer:
    """A server that does not listen yet."""
    try:
        return SmtpServer(server.options, gateways[server.gateway].gateway)
    except ValueError as error:  # its certificate was readable a moment ago
        raise ConfigError([Problem(config.file, "[[servers]]", "tls", str(error))]) from error


def _spools(config: Config) -> frozenset[Path]:
    return frozenset([config.spool_folder(name) for name, one in config.gateways.items() if one.spooling])


async def _close_unused(gateway: Gateway) -> None:
    await gateway.aclose(asyncio.get_running_loop().time() + _STORES_GRACE)


def _plain(_: object, __: object, value: object) -> object:
    """Counts by enum as counts by name."""
    if isinstance(value, Mapping):
        return {getattr(key, "name", str(key)).lower(): count for key, count in value.items()}
    return value


def _loader(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config | None,
    data: str | os.PathLike[str] | None,
    listen: str | None,
    steps: Mapping[str, Callable[..., Any]] | None,
) -> Callable[[], Config]:
    if isinstance(config, Config):
        return lambda: config
    folder = None if data is None else os.fspath(data)
    if isinstance(config, Mapping):
        return lambda: make_config(config, file="configuration", data=folder, listen=listen, steps=steps)
    return lambda: load_config(config, data=folder, listen=listen, steps=steps)


def _spool_options(config: Config) -> SpoolOptions:
    return SpoolOptions(spool_above=config.daemon.spool_above, memory_max=config.daemon.spool_memory)


def _hostname_of(config: Config, gateway: str) -> str:
    return next((one.options.hostname for one in config.servers if one.gateway == gateway), "localhost")


def _effective(config: Config, name: str, gateway: GatewayConfig) -> object:
    """All that a gateway is made of: equal means that it need not be made anew."""
    plans = [config.plan(gateway.process)]
    if gateway.validate:
        plans.append(config.plan(gateway.validate, "validate"))
    if gateway.background:
        plans.append(config.plan(gateway.background, "background"))
    steps = [(step.name, step.spec, step.options) for plan in plans for step in plan.steps]
    return gateway, steps, _hostname_of(config, name)


def _changes(old: Config, new: Config, made: list[str], gateways: Mapping[str, _Open]) -> tuple[str, ...]:
    """What is different, in words."""
    was, is_ = by_key(old), by_key(new)
    words = [f"server {is_[key].options.listen} added" for key in is_ if key not in was]
    words += [f"server {was[key].options.listen} removed" for key in was if key not in is_]
    words += [
        f"server {is_[key].options.listen} changed" for key in is_ if key in was and was[key] != is_[key]
    ]
    words += [f"gateway {name} {'changed' if name in old.gateways else 'added'}" for name in made]
    words += [f"gateway {name} removed" for name in old.gateways if name not in gateways]
    if old.daemon != new.daemon:
        words += [
            f"{field.name} changed"
            for field in attrs.fields(type(new.daemon))
            if getattr(old.daemon, field.name) != getattr(new.daemon, field.name)
        ]
    return tuple(words)
