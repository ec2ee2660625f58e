"""
Listening sockets: bound by us, or handed over by whoever started us (socket activation).
"""

import contextlib
import os
import socket
import stat
from collections.abc import Mapping

from mailpipe.receivers.options import Listen

__all__ = ["bind", "spell", "take_activated"]

_FIRST_ACTIVATED = 3  # sd_listen_fds(3): SD_LISTEN_FDS_START


def bind(listen: Listen, *, backlog: int = 1024, reuse_port: bool = False) -> socket.socket:
    """
    A bound, listening, non-blocking socket.

    A unix socket that a dead process left behind is replaced; one that answers is not.

    Args:
        listen: Where.

        backlog: Connections that may wait to be accepted.

        reuse_port: Let several sockets share the address (one per worker).

    Raises:
        OSError: If the address cannot be had.
    """
    if listen.path:
        return _bind_unix(listen.path, backlog)
    kind = socket.SOCK_STREAM
    found = socket.getaddrinfo(
        listen.host or None, listen.port, type=kind, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    # One listener per entry: with no host, the IPv6 wildcard takes IPv4 as well, where there is IPv6.
    found.sort(key=lambda entry: entry[0] != (socket.AF_INET6 if not listen.host else socket.AF_INET))
    error: OSError | None = None
    for family, _, protocol, _, address in found:
        made = None
        try:
            made = socket.socket(family, kind, protocol)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if not listen.host else 1)
            made.bind(address)
            made.listen(backlog)
            made.setblocking(False)
        except OSError as caught:
            error = caught
            if made is not None:
                made.close()
            continue
        return made
    raise error if error is not None else OSError(f"no address for {listen}")


def _bind_unix(path: str, backlog: int) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead(path)
        made.bind(path)
        made.listen(backlog)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _remove_dead(path: str) -> None:
    """Remove a socket nobody listens on; leave anything else for `bind` to stumble over."""
    try:
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except FileNotFoundError:
            pass


def spell(listening: socket.socket) -> str:
    """The socket's address as `listening on` says it: ``HOST:PORT``, ``[IPV6]:PORT``, ``unix:/path``."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name if isinstance(name, str) else os.fsdecode(name)}"
    return f"[{name[0]}]:{name[1]}" if listening.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def take_activated(environment: Mapping[str, str], pid: int) -> dict[Listen, socket.socket]:
    """
    The listening sockets that systemd handed over (``LISTEN_FDS``), by their addresses.

    Args:
        environment: Where ``LISTEN_PID`` and ``LISTEN_FDS`` stand.

        pid: Our own; sockets meant for another process are not touched.

    Raises:
        ValueError: If the variables are no numbers.
    """
    if environment.get("LISTEN_PID") != str(pid):
        return {}
    count = int(environment.get("LISTEN_FDS", "0"))
    taken = {}
    for descriptor in range(_FIRST_ACTIVATED, _FIRST_ACTIVATED + count):
        os.set_inheritable(descriptor, False)
        given = socket.socket(fileno=descriptor)
        given.setblocking(False)
        taken[Listen.parse(spell(given))] = given
    return taken
