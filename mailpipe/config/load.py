"""
Reading a configuration: file, environment and command line become one `Config`, or a `ConfigError`.
"""

import os
import socket
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from mailpipe.chain import ChainError, Settings, find_spec
from mailpipe.config.schema import Config, DaemonConfig, GatewayConfig, ServerConfig
from mailpipe.config.together import check_together
from mailpipe.config.values import ConfigError, Problem, Reader
from mailpipe.receivers.options import ServerOptions
from mailpipe.receivers.paths import ascii_domain

__all__ = ["load_config", "make_config", "read_data"]

DEFAULT_DATA = "mail-data"
BUILT_IN = "built-in configuration"
_TABLES = frozenset({"servers", "gateways", "processors"})


def load_config(
    file: str | os.PathLike[str] | None = None,
    *,
    data: str | None = None,
    listen: str | None = None,
    steps: Mapping[str, Callable[..., Any]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """
    The configuration of *file*, or the built-in one.

    Args:
        file: A TOML file; None is zero configuration.

        data: Data folder of the command line; wins over all.

        listen: Where the first server listens instead, as of the command line.

        steps: Steps of one's own by name, for chains.

        environment: For ``${VAR}`` and ``MAILPIPE_DATA``; None is the process's.

    Raises:
        ConfigError: With everything that is wrong, by file, table and key.
    """
    name, raw = _read(file)
    return make_config(raw, file=name, data=data, listen=listen, steps=steps, environment=environment)


def _read(file: str | os.PathLike[str] | None) -> tuple[str, dict[str, Any]]:
    if file is None:
        return BUILT_IN, {}
    name = os.fspath(file)
    try:
        return name, tomllib.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 at octet {error.start}"
    except tomllib.TOMLDecodeError as error:
        what = f"is not TOML: {error}"
    raise ConfigError([Problem(name, "", "", what)])


def read_data(file: str | os.PathLike[str] | None, data: str | None = None) -> Path:
    """
    The data folder that a configuration means, whatever else is wrong in it.

    Raises:
        ConfigError: If *data* is None and *file* cannot be read.
    """
    if data is not None:
        return Path(data).expanduser().absolute()
    name, raw = _read(file)
    return _find_data(raw, name, None, os.environ)


def make_config(
    raw: Mapping[str, Any],
    *,
    file: str = BUILT_IN,
    data: str | None = None,
    listen: str | None = None,
    steps: Mapping[str, Callable[..., Any]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """
    The configuration of a mapping such as tomllib gives; see `load_config`.

    Raises:
        ConfigError: With everything that is wrong.
    """
    environment = os.environ if environment is None else environment
    folder = _find_data(raw, file, data, environment)
    reader = Reader(file, environment, folder)
    top = {key: value for key, value in raw.items() if key not in _TABLES}
    daemon = reader.structure(top, DaemonConfig, "", also=_TABLES)
    gateways = _gateways(reader, raw.get("gateways", {}))
    processors = _processors(reader, raw.get("processors", {}), _named_in_chains(gateways.values()))
    servers = _servers(reader, raw.get("servers", [{}]), listen)
    reader.finish()
    config = Config(
        file=file,
        data=folder,
        daemon=daemon if daemon is not None else DaemonConfig(),
        servers=servers,
        gateways=gateways,
        processors=processors,
        steps=dict(steps or {}),
    )
    outward = check_together(config, reader)
    reader.finish()
    servers = tuple(
        attrs.evolve(server, options=attrs.evolve(server.options, sends_on=server.gateway in outward))
        for server in servers
        if server.enabled
    )
    return attrs.evolve(config, servers=servers)


def _find_data(raw: Mapping[str, Any], file: str, data: str | None, environment: Mapping[str, str]) -> Path:
    """
    The data folder, absolute: ``./mail-data``, ``$MAILPIPE_DATA``, the file's ``data``, *data*; the last wins.

    Raises:
        ConfigError: If the file's is no string.
    """
    found = environment.get("MAILPIPE_DATA") or DEFAULT_DATA
    if "data" in raw:
        try:
            found = Reader(file, environment, Path()).text(raw["data"])
        except ValueError as error:
            raise ConfigError([Problem(file, "", "data", str(error))]) from error
    return Path(data or found).expanduser().absolute()


def _tables(reader: Reader, raw: object, name: str) -> dict[str, object]:
    if isinstance(raw, dict):
        return raw
    reader.problem("", name, f"must be tables [{name}.NAME], got {raw!r}")
    return {}


def _gateways(reader: Reader, raw: object) -> dict[str, GatewayConfig]:
    made = {}
    for name, table in _tables(reader, raw, "gateways").items():
        if (gateway := reader.structure(table, GatewayConfig, f"[gateways.{name}]")) is not None:
            made[name] = gateway
    return made or {"default": GatewayConfig()}


def _servers(reader: Reader, raw: object, listen: str | None) -> tuple[ServerConfig, ...]:
    if not isinstance(raw, list) or not raw:
        reader.problem("", "servers", f"must be at least one [[servers]], got {raw!r}")
        return ()
    own = {field.name for field in attrs.fields(ServerConfig)} - {"options"}
    made = []
    for index, table in enumerate(raw, 1):
        place = f"[[servers]] {index}"
        if not isinstance(table, dict):
            reader.problem(place, "", f"must be a table, got {table!r}")
            continue
        rest = {"hostname": _hostname()} | {key: value for key, value in table.items() if key not in own}
        if listen is not None and index == 1:
            rest["listen"] = listen
        options = reader.structure(rest, ServerOptions, place, also=own)
        server = reader.structure({key: table[key] for key in own & table.keys()}, ServerConfig, place)
        if options is not None and server is not None:
            made.append(attrs.evolve(server, options=options))
    return tuple(made)


def _hostname() -> str:
    """The system's own name, if it can stand in a greeting; no DNS is asked."""
    name = socket.gethostname()
    return name if name.isascii() and ascii_domain(name) else "localhost"


def _named_in_chains(gateways: Iterable[GatewayConfig]) -> dict[str, str]:
    """Instance → type, of each ``archive:sql`` in a chain: its table need not say it again."""
    texts = [text for one in gateways for text in (one.process, one.validate, one.background)]
    parts = [part.partition(":") for text in texts for part in text.split("|")]
    return {name.strip().lower(): kind.strip() for name, colon, kind in parts if colon}


def _processors(reader: Reader, raw: object, named: Mapping[str, str]) -> dict[str, Settings]:
    made = {}
    for name, table in _tables(reader, raw, "processors").items():
        place = f"[processors.{name}]"
        if not isinstance(table, dict):
            reader.problem(place, "", f"must be a table, got {table!r}")
            continue
        alias, _, kind = name.partition(":")
        implied = {} if "use" in table else {"type": kind or named.get(alias.lower(), "")}
        if (settings := _settings(reader, place, implied | table, alias)) is not None:
            made[alias] = settings
    return made


def _settings(reader: Reader, place: str, table: Mapping[str, Any], name: str) -> Settings | None:
    words = {}
    for key in ("type", "use"):
        try:
            words[key] = reader.text(table.get(key, ""))
        except ValueError as error:
            reader.problem(place, key, str(error))
            return None
    settings = Settings(**words)
    try:
        spec = find_spec(name, settings)
    except ChainError as error:
        reader.problem(place, "use" if words["use"] else "type" if words["type"] else "", error.rule)
        return None
    rest = {key: value for key, value in table.items() if key not in words}
    if spec.options is None:
        for key in rest:
            reader.problem(place, key, f"unknown key; {spec.name!r} takes no options")
        return settings
    options = reader.structure(rest, spec.options, place, also=set(words))
    return None if options is None else attrs.evolve(settings, options=options)
