"""
Real servers for tests: started on free ports in temporary folders, and ended again.

Each is a context manager that yields where it listens. A server whose binary is missing is
skipped by name. Nothing here touches what already runs on the machine.
"""

import contextlib
import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import pytest

__all__ = [
    "Maildirs",
    "Postfix",
    "binary",
    "dovecot",
    "free_port",
    "mariadb",
    "postfix",
    "postgres",
    "redis",
    "running",
    "smtp_sink",
]

_START_TIMEOUT = 50.0
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/usr/lib/dovecot", "/usr/libexec/dovecot")


def binary(name: str, *more: str) -> str:
    """Path of a program; the test is skipped by the program's name if there is none."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *more, *_PLACES))
    if (found := shutil.which(name, path=path)) is None:
        pytest.skip(f"{name} is not installed")
    return found


def free_port() -> int:
    """A port of the loopback that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once *ready*; fail with the server's own words if it ends or takes too long."""
    deadline = time.monotonic() + _START_TIMEOUT
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-4000:] if log.exists() else ""
            pytest.fail(f"{process.args!r} did not start ({process.poll()}):\n{said}")
        time.sleep(0.02)


def answers(port: int, greeting: bytes | None = None) -> bool:
    """Whether something accepts on the loopback's *port* (and, if asked for, greets so)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return greeting is None or connection.recv(200).startswith(greeting)
    except OSError:
        return False


@contextlib.contextmanager
def folder(owner: str | None = None) -> Iterator[Path]:
    """A temporary folder that the user *owner* can reach."""
    path = Path(tempfile.mkdtemp(prefix="mailpipe-test-"))
    try:
        if owner is not None:
            os.chmod(path, 0o755)
            shutil.chown(path, owner)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    ready: Callable[[], bool],
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, from *ready* to its end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=user,
            group=None if user is None else pwd.getpwnam(user).pw_gid,
            extra_groups=None if user is None else [],
            env=None if env is None else {**os.environ, **env},
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        wait_until(ready, process, log)
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _unprivileged(*names: str) -> str | None:
    """Servers that refuse to run as root get the user their package made."""
    if os.geteuid() != 0:
        return None
    for name in (*names, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own; yields a URL."""
    places = sorted((str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    initdb, server = binary("initdb", *places), binary("postgres", *places)
    user = _unprivileged("postgres")
    with folder(user) as path:
        data, port = path / "data", free_port()
        subprocess.run(
            [initdb, "-D", str(data), "-U", "mail", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
            check=True,
            capture_output=True,
            user=user,
            cwd=path,
            timeout=_START_TIMEOUT,
        )
        command = [server, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(path)]
        log = path / "log"
        ready = lambda: b"ready to accept" in log.read_bytes()  # noqa: E731 - a line says it all
        # At once, without a last checkpoint: the folder is thrown away.
        with running(command, log, ready=ready, user=user, stop=signal.SIGQUIT):
            yield f"postgresql://mail@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def mariadb() -> Iterator[str]:
    """A MariaDB of its own; yields a URL."""
    install, server = binary("mariadb-install-db"), binary("mariadbd")
    user = _unprivileged("mysql")
    with folder(user) as path:
        data, port, log = path / "data", free_port(), path / "log"
        account = user or getpass.getuser()
        subprocess.run(
            [
                install,
                "--no-defaults",
                f"--datadir={data}",
                f"--user={account}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            check=True,
            capture_output=True,
            cwd=path,
            timeout=_START_TIMEOUT,
        )
        command = [
            server,
            "--no-defaults",
            f"--datadir={data}",
            f"--port={port}",
            "--bind-address=127.0.0.1",
            f"--socket={path}/socket",
            f"--pid-file={path}/pid",
            "--skip-name-resolve",
            "--innodb-log-file-size=16M",
            "--innodb-buffer-pool-size=64M",
            f"--init-file={path}/init.sql",
        ]
        (path / "init.sql").write_text(
            "CREATE DATABASE mail;\nCREATE USER mail@'127.0.0.1' IDENTIFIED BY 'secret';\n"
            "GRANT ALL ON *.* TO mail@'127.0.0.1';\n"
        )
        ready = lambda: b"ready for connections" in log.read_bytes()  # noqa: E731 - a line says it all
        # It would take its time for a folder that is thrown away.
        with running(command, log, ready=ready, user=user, stop=signal.SIGKILL):
            yield f"mysql://mail:secret@127.0.0.1:{port}/mail"


@contextlib.contextmanager
def redis(*arguments: str) -> Iterator[str]:
    """A Redis of its own, syncing every write unless told otherwise; yields a URL."""
    server = binary("redis-server")
    with folder() as path:
        port = free_port()
        command = [server, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(path), "--save", ""]
        command += arguments or ("--appendonly", "yes", "--appendfsync", "always")
        with running(command, path / "log", ready=lambda: answers(port)):
            yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def smtp_sink(*arguments: str, log_name: str = "log") -> Iterator[int]:
    """Postfix's smtp-sink, which takes any mail; yields its port."""
    sink = binary("smtp-sink")
    with folder() as path:
        port = free_port()
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        command = [sink, *user, *arguments, f"127.0.0.1:{port}", "100"]
        with running(command, path / log_name, ready=lambda: answers(port)):
            yield port


@attrs.frozen
class Maildirs:
    """A dovecot that reads Maildirs: IMAP on *port* for any user with the password ``secret``."""

    port: int
    root: Path
    """Where the users' Maildirs are, by name."""


@contextlib.contextmanager
def dovecot() -> Iterator[Maildirs]:
    """A dovecot of its own over a folder of Maildirs."""
    server = binary("dovecot")
    root_runs = os.geteuid() == 0
    owner = _unprivileged("mail", "nobody") if root_runs else getpass.getuser()
    with folder() as path:
        os.chmod(path, 0o755)
        port, root = free_port(), path / "mail"
        root.mkdir()
        shutil.chown(root, owner) if root_runs else None
        account = pwd.getpwnam(str(owner))
        login = "dovenull" if root_runs else owner
        internal = "dovecot" if root_runs else owner
        config = path / "dovecot.conf"
        config.write_text(
            f"""
protocols = imap
listen = 127.0.0.1
base_dir = {path}/run
state_dir = {path}/state
log_path = {path}/dovecot.log
ssl = no
disable_plaintext_auth = no
first_valid_uid = 1
default_login_user = {login}
default_internal_user = {internal}
default_internal_group = {internal}
mail_location = maildir:{root}/%u
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid={account.pw_uid} gid={account.pw_gid} home={root}/%u
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service anvil {{
  chroot =
}}
"""
        )
        command = [server, "-F", "-c", str(config)]
        with running(command, path / "log", ready=lambda: answers(port, b"* OK")):
            yield Maildirs(port, root)


@attrs.frozen
class Postfix:
    """A Postfix: SMTP on *port*, mail for ``USER@example.org`` into ``mail/USER/`` under *root*."""

    port: int
    root: Path

    def delivered(self, user: str) -> list[bytes]:
        """What lies in a user's Maildir, without line ends of the wire."""
        return [path.read_bytes() for path in sorted((self.root / "mail" / user / "new").glob("*"))]


_POSTFIX_SERVICES = {
    "pickup": "unix n - n 60 1 pickup",
    "cleanup": "unix n - n - 0 cleanup",
    "qmgr": "unix n - n 300 1 qmgr",
    "rewrite": "unix - - n - - trivial-rewrite",
    "bounce": "unix - - n - 0 bounce",
    "defer": "unix - - n - 0 bounce",
    "trace": "unix - - n - 0 bounce",
    "flush": "unix n - n 1000? 0 flush",
    "proxymap": "unix - - n - - proxymap",
    "smtp": "unix - - n - - smtp",
    "error": "unix - - n - - error",
    "retry": "unix - - n - - error",
    "discard": "unix - - n - - discard",
    "virtual": "unix - n n - - virtual",
    "anvil": "unix - - n - 1 anvil",
    "postlog": "unix-dgram n - n - 1 postlogd",
}


@contextlib.contextmanager
def postfix(users: Sequence[str] = (), **settings: str) -> Iterator[Postfix]:
    """
    A Postfix of its own; only root can start one.

    Args:
        users: Who has a mailbox at example.org; others there are unknown.

        settings: More of main.cf, such as ``relayhost``.
    """
    control = binary("postfix")
    if os.geteuid() != 0:
        pytest.skip("postfix is started by root only")
    owner = pwd.getpwnam("postfix")
    with folder() as path:
        os.chmod(path, 0o755)
        port, etc = free_port(), path / "etc"
        for name in ("etc", "queue", "data", "mail"):
            (path / name).mkdir()
        for name in ("data", "mail"):
            os.chown(path / name, owner.pw_uid, owner.pw_gid)
        (etc / "users").write_text("".join(f"{user}@example.org {user}/\n" for user in users))
        main = {
            "compatibility_level": "3.6",
            "queue_directory": f"{path}/queue",
            "data_directory": f"{path}/data",
            "maillog_file_prefixes": str(path),
            "maillog_file": f"{path}/log",
            "myhostname": "hop.example.net",
            "mydestination": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mynetworks": "127.0.0.0/8",
            "alias_maps": "",
            "local_recipient_maps": "",
            "disable_dns_lookups": "yes",
            "smtpd_peername_lookup": "no",
            "smtpd_client_connection_count_limit": "0",
            "smtpd_recipient_restrictions": "reject_unlisted_recipient, permit_mynetworks, reject",
            "virtual_mailbox_domains": "example.org",
            "virtual_mailbox_base": f"{path}/mail",
            "virtual_mailbox_maps": f"texthash:{path}/etc/users",
            "virtual_minimum_uid": "1",
            "virtual_uid_maps": f"static:{owner.pw_uid}",
            "virtual_gid_maps": f"static:{owner.pw_gid}",
            **settings,
        }
        (etc / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in main.items()))
        services = {f"127.0.0.1:{port}": "inet n - n - - smtpd", **_POSTFIX_SERVICES}
        (etc / "master.cf").write_text("".join(f"{name} {rest}\n" for name, rest in services.items()))
        command = [control, "-c", str(etc)]
        done = subprocess.run([*command, "start"], capture_output=True, check=False, timeout=_START_TIMEOUT)
        if done.returncode:
            pytest.fail(f"postfix did not start:\n{done.stderr.decode(errors='replace')[-4000:]}")
        try:
            deadline = time.monotonic() + _START_TIMEOUT
            while not answers(port, b"220") and time.monotonic() < deadline:
                time.sleep(0.02)
            yield Postfix(port, path)
        finally:
            subprocess.run([*command, "abort"], capture_output=True, check=False, timeout=_START_TIMEOUT)
