"""
The sockets that a configuration's servers need.
"""

import socket
from collections import Counter
from collections.abc import Container, Mapping

from mailpipe.config import Config, ConfigError, Problem, ServerConfig
from mailpipe.daemon.sockets import bind
from mailpipe.receivers.options import Listen

__all__ = ["Key", "bind_servers", "by_key"]

Key = tuple[str, int]
"""A server's address as configured; and its number among those of the same (with port 0)."""


def by_key(config: Config) -> dict[Key, ServerConfig]:
    """Servers by their addresses, in their order."""
    seen: Counter[str] = Counter()
    keyed = {}
    for server in config.servers:
        listen = str(server.options.address)
        keyed[listen, seen[listen]] = server
        seen[listen] += 1
    return keyed


def bind_servers(
    config: Config,
    *,
    skip: Container[Key] = (),
    given: dict[Listen, socket.socket] | None = None,
    beside: Mapping[Key, socket.socket] | None = None,
    reuse_port: bool = False,
) -> dict[Key, socket.socket]:
    """
    Bind the servers of *config*; all or none.

    Args:
        skip: Servers that have a socket already.

        given: Sockets to use where their address is meant; what is used is taken out.

        beside: Sockets whose very address is wanted again, of another worker.

        reuse_port: Let sockets beside it have the same address.

    Raises:
        ConfigError: If an address cannot be had.
    """
    given, beside = given if given is not None else {}, beside or {}
    made: dict[Key, socket.socket] = {}
    for number, (key, server) in enumerate(by_key(config).items(), 1):
        if key in skip:
            continue
        listen = server.options.address
        try:
            if listen in given:
                made[key] = given.pop(listen)
            elif key in beside and listen.path:
                # A path has one socket: all workers accept from it.
                made[key] = beside[key].dup()
            else:
                if key in beside and not listen.port:
                    listen = Listen(listen.host, beside[key].getsockname()[1])
                made[key] = bind(listen, reuse_port=reuse_port)
        except OSError as error:
            for sock in made.values():
                sock.close()
            what = f"cannot listen on {listen}: {error.strerror or error}"
            raise ConfigError([Problem(config.file, f"[[servers]] {number}", "listen", what)]) from error
    return made
