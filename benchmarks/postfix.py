"""
A Postfix of our own: its configuration, queue, port and Maildirs in one folder, ended with the block.
"""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs

from benchmarks.measure import Unavailable

__all__ = ["Postfix", "free_port", "running"]

_SERVICES = """\
{listen}  inet  n - n - -    smtpd
pickup     unix  n - n 60 1   pickup
cleanup    unix  n - n - 0    cleanup
qmgr       unix  n - n 300 1  qmgr
rewrite    unix  - - n - -    trivial-rewrite
bounce     unix  - - n - 0    bounce
defer      unix  - - n - 0    bounce
trace      unix  - - n - 0    bounce
verify     unix  - - n - 1    verify
flush      unix  n - n 1000? 0 flush
proxymap   unix  - - n - -    proxymap
error      unix  - - n - -    error
retry      unix  - - n - -    error
virtual    unix  - n n - -    virtual
anvil      unix  - - n - 1    anvil
postlog    unix-dgram n - n - 1 postlogd
"""

# Nothing that Postfix does for a mail is turned off; only what would hold back or refuse this
# much from one client, and name lookups, of which mailpipe makes none either.
_MAIN = """\
compatibility_level = 3.6
command_directory = {commands}
daemon_directory = {daemons}
queue_directory = {root}/queue
data_directory = {root}/data
maillog_file_prefixes = {root}
maillog_file = {root}/postfix.log
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.example.org
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination =
alias_maps =
local_recipient_maps =
disable_dns_lookups = yes
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_recipient_restrictions = permit_mynetworks, reject
in_flow_delay = 0
virtual_mailbox_domains = example.org
virtual_mailbox_base = {root}/mail
virtual_mailbox_maps = texthash:{root}/etc/users
virtual_mailbox_limit = 0
message_size_limit = 0
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_transport = virtual
"""


@attrs.frozen
class Postfix:
    """A running instance."""

    root: Path
    port: int

    def mailboxes(self) -> list[Path]:
        """The ``new`` folder of every Maildir there is."""
        return list((self.root / "mail").glob("*/new"))

    def delivered(self) -> int:
        """Mails in the Maildirs."""
        return sum(len(os.listdir(folder)) for folder in self.mailboxes())

    def wait_delivered(self, count: int, *, within: float = 120.0) -> float:
        """
        Wait until *count* mails are in the Maildirs; returns the time on the monotonic clock.

        Raises:
            TimeoutError: If they are not after *within* seconds.
        """
        deadline = time.monotonic() + within
        while (here := self.delivered()) < count:
            if time.monotonic() > deadline:
                msg = f"{here} of {count} mails were delivered within {within:g} s"
                raise TimeoutError(msg)
            time.sleep(0.005)
        return time.monotonic()

    def clear(self) -> None:
        """Delete the delivered mails."""
        for folder in self.mailboxes():
            for name in os.listdir(folder):
                (folder / name).unlink()


def free_port() -> int:
    """A port of the loopback that nobody listens on right now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write(root: Path, port: int, users: int) -> None:
    owner = pwd.getpwnam("postfix")
    for name in ("etc", "queue", "data", "mail"):
        (root / name).mkdir(parents=True)
    for name in ("data", "mail"):
        os.chown(root / name, owner.pw_uid, owner.pw_gid)
    daemons = subprocess.run(
        ["postconf", "-h", "daemon_directory"], capture_output=True, text=True, check=True
    )
    commands = subprocess.run(
        ["postconf", "-h", "command_directory"], capture_output=True, text=True, check=True
    )
    main = _MAIN.format(
        root=root,
        uid=owner.pw_uid,
        gid=owner.pw_gid,
        daemons=daemons.stdout.strip(),
        commands=commands.stdout.strip(),
    )
    (root / "etc" / "main.cf").write_text(main)
    (root / "etc" / "master.cf").write_text(_SERVICES.format(listen=f"127.0.0.1:{port}"))
    lines = [f"user{n}@example.org user{n}/" for n in range(users)]
    (root / "etc" / "users").write_text("\n".join(lines) + "\n")


@contextmanager
def running(folder: Path, *, users: int = 20) -> Iterator[Postfix]:
    """
    Start a private Postfix beneath *folder*, and stop it.

    Raises:
        Unavailable: If Postfix is not installed, or we may not start it.
    """
    if shutil.which("postfix") is None:
        reason = "postfix is not installed"
        raise Unavailable(reason)
    if os.geteuid() != 0:
        reason = "postfix can be started by root only"
        raise Unavailable(reason)
    root, port = folder / "postfix", free_port()
    _write(root, port, users)
    command = ["postfix", "-c", str(root / "etc")]
    started = subprocess.run([*command, "start"], capture_output=True, text=True, check=False)
    if started.returncode:
        reason = f"postfix did not start: {started.stderr[-500:]}"
        raise Unavailable(reason)
    try:
        yield Postfix(root, port)
    finally:
        subprocess.run([*command, "abort"], capture_output=True, check=False)
