"""``dispatcher broker serve``: one process that owns a store and serves it, until told to stop."""

import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio

from dispatcher.broker.broker import Broker
from dispatcher.broker.config import ServerConfig, load_config
from dispatcher.broker.errors import ConfigError
from dispatcher.broker.server import BrokerServer
from dispatcher.errors import OptionError, StoreError
from dispatcher.stores.base import Store
from dispatcher.stores.memory import MemoryStore
from dispatcher.stores.sqlite import SQLiteStore

__all__ = ["serve", "socket_note"]

_LOG = logging.getLogger("dispatcher")


def socket_note(store: Path) -> Path:
    """Beside the store: where its owner listens, for ``dispatcher queue``."""
    return store.with_name(store.name + "-socket")


async def serve(path: Path) -> None:
    """
    Serve what the file at *path* says, until SIGTERM or SIGINT; at SIGHUP read it again.

    Raises:
        ConfigError: If the file cannot be used.

        StoreError: If the store cannot be opened.

        BrokerOwned: If somebody listens there already.
    """
    config = load_config(path)
    store: Store = MemoryStore() if config.store is None else SQLiteStore(config.store, config.durability)
    # From here on, so that no signal is missed.
    with anyio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
        async with (
            store,
            Broker(store, config.topics) as broker,
            BrokerServer(
                broker, config.listen, mode=config.mode, remote=config.remote, options=config.server
            ) as server,
        ):
            server.push(config.pushes)
            with _noted(config, server):
                for address in server.addresses:
                    sys.stdout.write(f"listening on {address}\n")
                sys.stdout.flush()
                await _obey(signals, path, config, broker, server)


@contextlib.contextmanager
def _noted(config: ServerConfig, server: BrokerServer) -> Iterator[None]:
    if config.store is None:
        yield
        return
    note = socket_note(config.store)
    note.write_text(f"{server.addresses[0]}\n", encoding="utf-8")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


async def _obey(
    signals: AsyncIterator[signal.Signals],
    path: Path,
    config: ServerConfig,
    broker: Broker,
    server: BrokerServer,
) -> None:
    async for one in signals:
        if one != signal.SIGHUP:
            _LOG.info("stopping: %s", one.name)
            return
        try:
            config = await reload(path, config, broker, server)
        except (ConfigError, OptionError, StoreError, LookupError) as error:
            _LOG.error("the new configuration is not used: %s", error)


async def reload(path: Path, old: ServerConfig, broker: Broker, server: BrokerServer) -> ServerConfig:
    """
    Read the file again: add topics and subscriptions, change options and pushes; remove nothing.

    Raises:
        ConfigError: If the file cannot be used; nothing is changed then.
    """
    new = load_config(path)
    fixed = ("store", "durability", "listen", "mode", "remote", "server")
    moved = [name for name in fixed if getattr(new, name) != getattr(old, name)]
    if moved:
        problem = f"{', '.join(moved)}: cannot be changed while it runs; start it anew"
        raise ConfigError([f"{path}: {problem}"])
    for name, options in new.topics.items():
        await broker.add_topic(name, options)
    server.push(new.pushes)
    for name in broker.topics:
        if name not in new.topics:
            _LOG.warning("topic %r is not in the file any more; it goes on, for nothing is removed", name)
            continue
        for subscription in broker.subscriptions(name):
            if subscription not in new.topics[name].subscriptions:
                _LOG.info("subscription %r of topic %r is not in the file, and goes on", subscription, name)
    _LOG.info("%s was read again: %d topics", path, len(new.topics))
    return new
