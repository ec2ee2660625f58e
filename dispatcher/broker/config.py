"""broker.toml: read as a whole, or refused with everything that is wrong with it."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from dispatcher.broker.address import Address
from dispatcher.broker.connection import ServerOptions
from dispatcher.broker.errors import ConfigError
from dispatcher.broker.options import SubscribeOptions, TopicOptions, check_name
from dispatcher.broker.server import Push
from dispatcher.errors import OptionError

__all__ = ["ServerConfig", "load_config", "make_config"]


@attrs.frozen(kw_only=True)
class ServerConfig:
    """What ``dispatcher broker serve`` needs to know."""

    store: Path | None
    """The SQLite file; None: in memory, for tests."""

    durability: Literal["commit", "os"] = "commit"
    listen: tuple[Address, ...] = ()
    mode: int = 0o600
    remote: bool = False
    server: ServerOptions = attrs.field(factory=ServerOptions)
    topics: Mapping[str, TopicOptions] = attrs.field(factory=dict)
    pushes: Mapping[tuple[str, str], Push] = attrs.field(factory=dict)


def load_config(path: Path) -> ServerConfig:
    """
    Read a file; relative paths in it begin at its folder.

    Raises:
        ConfigError: Naming the file, and in it table and key of every problem.
    """
    try:
        got = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise ConfigError([msg]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path}: {error}"
        raise ConfigError([msg]) from error
    try:
        return make_config(got, folder=path.parent)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def make_config(got: Mapping[str, Any], *, folder: Path | None = None) -> ServerConfig:
    """
    Make one of what a TOML file says.

    Raises:
        ConfigError: With all problems, each with its table and key.
    """
    return _Reader(folder or Path()).read(got)


class _Reader:
    """Collects problems instead of stopping at the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._problems: list[str] = []

    def read(self, got: Mapping[str, Any]) -> ServerConfig:
        known = {"store", "durability", "listen", "mode", "remote", "server", "topics"}
        self._unknown("", got, known)
        config: dict[str, Any] = {"store": self._store(got.get("store"))}
        durability = got.get("durability", "commit")
        if durability not in ("commit", "os"):
            self._problem("durability", 'has to be "commit" or "os"', durability)
        config["durability"] = durability
        config["listen"] = self._listen(got.get("listen"))
        config["mode"] = self._mode(got.get("mode", "0600"))
        config["remote"] = got.get("remote", False)
        if not isinstance(config["remote"], bool):
            self._problem("remote", "has to be true or false", config["remote"])
        elif not config["remote"]:
            for address in config["listen"]:
                if not address.is_local:
                    rule = "has to be a loopback address, unless remote = true (there is no authentication)"
                    self._problem("listen", rule, str(address))
        config["server"] = self._server(got.get("server", {}))
        config["topics"], config["pushes"] = self._topics(got.get("topics", {}))
        if self._problems:
            raise ConfigError(self._problems)
        return ServerConfig(**config)

    def _problem(self, where: str, rule: str, value: object) -> None:
        self._problems.append(f"{where}: {rule}, got {value!r}")

    def _unknown(self, where: str, got: Mapping[str, Any], known: set[str]) -> None:
        for key in got:
            if key not in known:
                name = f"{where}.{key}" if where else key
                self._problems.append(f"{name}: there is no such key; known are {', '.join(sorted(known))}")

    def _table(self, where: str, got: object) -> Mapping[str, Any]:
        if isinstance(got, dict):
            return got
        self._problem(where, "has to be a table", got)
        return {}

    def _store(self, got: object) -> Path | None:
        if not isinstance(got, str) or not got:
            self._problem("store", 'has to be the path of a file, or ":memory:"', got)
            return None
        return None if got == ":memory:" else self._folder / got

    def _listen(self, got: object) -> tuple[Address, ...]:
        texts = got if isinstance(got, list) else [got]
        found: list[Address] = []
        for text in texts:
            try:
                found.append(Address.parse(text, option="listen", folder=self._folder))
            except OptionError as error:
                self._problem("listen", error.rule, error.value)
        if not texts:
            self._problem("listen", "has to name an address", got)
        return tuple(found)

    def _mode(self, got: object) -> int:
        if isinstance(got, str) and len(got) <= 5 and got.isascii() and got.isdigit():
            try:
                mode = int(got, 8)
            except ValueError:
                mode = -1
            if 0 < mode <= 0o777:
                return mode
        self._problem("mode", 'has to be an octal mode as text, as "0660"', got)
        return 0o600

    def _server(self, got: object) -> ServerOptions:
        table = self._table("server", got)
        known = {field.name for field in attrs.fields(ServerOptions)}
        self._unknown("server", table, known)
        values = {key: value for key, value in table.items() if key in known}
        for key, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                self._problem(f"server.{key}", "has to be a number", value)
                return ServerOptions()
        try:
            return ServerOptions(**values)
        except ValueError as error:
            self._problems.append(f"server: {error.args[0] if error.args else error}")
            return ServerOptions()

    def _topics(self, got: object) -> tuple[dict[str, TopicOptions], dict[tuple[str, str], Push]]:
        topics: dict[str, TopicOptions] = {}
        pushes: dict[tuple[str, str], Push] = {}
        known = {field.name for field in attrs.fields(TopicOptions)}
        for name, raw in self._table("topics", got).items():
            where = f"topics.{name}"
            try:
                check_name("its name", name)
            except OptionError as error:
                self._problem(where, error.rule, error.value)
            table = dict(self._table(where, raw))
            self._unknown(where, table, known)
            subscriptions = table.pop("subscriptions", {})
            if isinstance(subscriptions, list):
                subscriptions = {str(one): {} for one in subscriptions}
            values = {key: value for key, value in table.items() if key in known}
            for key in ("ack_timeout", "max_attempts", "ttl", "bytes_max"):
                if values.get(key) == 0 and not isinstance(values[key], bool):
                    values[key] = None  # TOML has no word for it
            try:
                topics[name] = TopicOptions(subscriptions=tuple(subscriptions), **values)
            except OptionError as error:
                self._problem(f"{where}.{error.option}", error.rule, error.value)
            for one, more in self._table(f"{where}.subscriptions", subscriptions).items():
                push = self._push(f"{where}.subscriptions.{one}", more)
                if push is not None:
                    pushes[(name, one)] = push
        return topics, pushes

    def _push(self, where: str, got: object) -> Push | None:
        table = dict(self._table(where, got))
        sizes = {field.name for field in attrs.fields(SubscribeOptions)}
        self._unknown(where, table, {"push", *sizes})
        target = table.pop("push", None)
        if target is None:
            if table:
                self._problems.append(f"{where}: {', '.join(table)} needs push: who pulls says it itself")
            return None
        try:
            address = Address.parse(target, option="push", folder=self._folder)
            options = SubscribeOptions(**{key: value for key, value in table.items() if key in sizes})
        except OptionError as error:
            self._problem(f"{where}.{error.option}", error.rule, error.value)
            return None
        return Push(address, options)
