"""
What a process owes the system it runs on: pid file, another user, the service manager.
"""

import contextlib
import grp
import logging
import os
import pwd
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["drop_privileges", "notify", "pid_file"]

log = logging.getLogger("mailpipe.daemon")


@contextlib.contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """
    Hold *path* with our process id while the block runs; None holds none.

    Raises:
        OSError: If it cannot be written.
    """
    if path is None:
        yield
        return
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(f"{os.getpid()}\n")
    fresh.replace(path)
    try:
        yield
    finally:
        # Only ours: a successor may have written its own by now.
        try:
            if path.read_text().strip() == str(os.getpid()):
                path.unlink()
        except OSError as error:
            fields = {"file": str(path), "error": error.strerror}
            log.warning("cannot remove the pid file", extra={"fields": fields})


def drop_privileges(user: str, group: str, own: tuple[Path, ...] = ()) -> None:
    """
    Become *user* for good; call it when sockets are bound and before anything else is opened.

    Args:
        user: Name; ``""`` does nothing.

        group: Name; ``""`` is the user's own.

        own: Folders that are given to the user, if they belong to us now.

    Raises:
        ValueError: If there is no such user or group.
        PermissionError: If we are not root, and not that user already.
    """
    if not user:
        return
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        msg = f"no such user: {user!r}"
        raise ValueError(msg) from error
    try:
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError as error:
        msg = f"no such group: {group!r}"
        raise ValueError(msg) from error
    if os.geteuid() == entry.pw_uid and os.getegid() == gid:
        return
    if os.geteuid() != 0:
        msg = f"only root can become {user!r}, this is user id {os.geteuid()}"
        raise PermissionError(msg)
    for folder in own:
        if folder.stat().st_uid == 0:
            os.chown(folder, entry.pw_uid, gid)
    # The groups first: once the user changed, nothing else may.
    os.initgroups(user, gid)
    os.setgid(gid)
    os.setuid(entry.pw_uid)


def notify(state: str, environment: Mapping[str, str] | None = None) -> bool:
    """
    Tell the service manager (sd_notify(3)); does nothing where there is none.

    Args:
        state: Such as ``"READY=1"``.

        environment: Where ``NOTIFY_SOCKET`` stands; None is the process's.

    Returns:
        Whether it was told.
    """
    address = (os.environ if environment is None else environment).get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    if state.startswith("RELOADING=1"):
        # Type=notify-reload wants to know when the reload began.
        state += f"\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
        try:
            peer.connect(address)
            peer.sendall(state.encode())
        except OSError as error:
            log.warning("the service manager cannot be told", extra={"fields": {"error": error.strerror}})
            return False
    return True
