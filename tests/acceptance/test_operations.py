"""What an operator does to a running daemon: signals, reload, logs, sockets, users."""

import json
import os
import pwd
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = """
data = "data"
{top}
[[servers]]
listen = "127.0.0.1:0"
{server}
[gateways.default]
{gateway}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write ``mail.toml``."""

    def text(top: str = "", server: str = "", gateway: str = "") -> Path:
        path = tmp_path / "mail.toml"
        path.write_text(CONFIG.format(top=top, server=server, gateway=gateway))
        return path

    return text


def until(condition: Callable[[], Any], what: str, within: float = 30.0) -> None:
    """Return once *condition* holds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"waited {within:g} s for {what}"
        time.sleep(0.02)


def size_told(port: int) -> str:
    """SIZE, as a new connection is told it."""
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.ehlo("client.example.org")
        return client.esmtp_features["size"]


class TestReload:
    def test_the_command_answers_with_the_result(self, write: Any, serve: Any, mailpipe: Any) -> None:
        """What changed, or what is wrong; a bad file changes nothing."""
        write(server='max_size = "1MiB"')
        running = serve("-c", "mail.toml")
        write(server='max_size = "2MiB"')
        good = mailpipe("reload", "-c", "mail.toml")
        write(server='max_size = "three"')
        bad = mailpipe("reload", "-c", "mail.toml")

        assert good.returncode == 0, good.stderr
        assert good.stdout == b"server 127.0.0.1:0 changed\n"
        assert bad.returncode == 1
        assert b"mail.toml: [[servers]] 1 max_size: a size is written like" in bad.stderr
        assert size_told(running.port) == str(2 << 20)

    def test_sighup_reloads(self, write: Any, serve: Any) -> None:
        """As every daemon does."""
        write(server='max_size = "1MiB"')
        running = serve("-c", "mail.toml")
        write(server='max_size = "2MiB"')
        running.process.send_signal(signal.SIGHUP)

        until(lambda: "configuration reloaded" in running.logged(), "the reload")
        assert size_told(running.port) == str(2 << 20)

    def test_without_a_daemon_it_fails(self, mailpipe: Any) -> None:
        """Nobody there is said, with where it was looked for."""
        result = mailpipe("reload", "--data", "data")

        assert result.returncode == 1
        assert b"no daemon answers at" in result.stderr


class TestStatistics:
    def test_they_count(self, serve: Any, mailpipe: Any, load: Any) -> None:
        """One JSON object with servers and gateways."""
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        load(running.port, connections=2).start(3).join()
        counted = json.loads(mailpipe("stats", "--json", "--data", "data").stdout)

        assert counted["pid"] == running.process.pid
        assert counted["gateways"]["default"]["stored"] == 6
        assert counted["servers"][f"127.0.0.1:{running.port}"]["accepted"] == 2


class TestLogs:
    def test_sigusr1_follows_a_rotation(self, write: Any, serve: Any, load: Any, tmp_path: Path) -> None:
        """JSON lines in a file, one per mail with its queue id; then in the new file."""
        write(top='[log]\nfile = "log"')
        running = serve("-c", "mail.toml")
        first = load(running.port, connections=1).start(1).join()
        path = tmp_path / "data" / "log"
        until(lambda: set(first.acknowledged) <= queue_ids(path), "the line of the first mail")
        path.rename(tmp_path / "data" / "log.1")
        running.process.send_signal(signal.SIGUSR1)
        until(path.exists, "the new file")
        second = load(running.port, connections=1, first=5).start(1).join()

        until(lambda: set(second.acknowledged) <= queue_ids(path), "the line of the second mail")
        assert running.logged() == ""

    def test_what_a_client_says_cannot_forge_a_line(self, write: Any, serve: Any, tmp_path: Path) -> None:
        """Escape sequences in HELO and addresses are written as text."""
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        with socket.create_connection(("127.0.0.1", running.port), 20) as client:
            stream = client.makefile("rwb")
            stream.readline()
            for line in (
                b"HELO \x1b[2Jevil\r\n",
                b'MAIL FROM:<"\x07a"@example.org>\r\n',
                b"MAIL FROM:<a@example.org>\r\n",
                b"RCPT TO:<b@example.org>\r\n",
                b"DATA\r\n",
            ):
                stream.write(line)
                stream.flush()
                stream.readline()
            stream.write(b"x\r\n.\r\n")
            stream.flush()
            assert stream.readline().startswith(b"250 ")
        until(lambda: "stored" in running.logged(), "the mail's line")

        assert "\x1b" not in running.logged()
        assert "\x07" not in running.logged()


def queue_ids(path: Path) -> set[str]:
    """Queue ids of the stored mails in a log of JSON lines."""
    if not path.exists():
        return set()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return {event["queue_id"] for event in events if event["event"] == "stored"}


class TestProcess:
    def test_the_pid_file_is_there_while_it_runs(self, write: Any, serve: Any, tmp_path: Path) -> None:
        """And gone afterwards."""
        write(top='pid_file = "pid"')
        running = serve("-c", "mail.toml")
        path = tmp_path / "data" / "pid"

        assert path.read_text() == f"{running.process.pid}\n"
        assert running.stop() == 0
        assert not path.exists()

    def test_one_data_folder_has_one_daemon(self, serve: Any, mailpipe: Any) -> None:
        """The second one says so and leaves; the first one goes on."""
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        second = mailpipe("serve", "--listen", "127.0.0.1:0", "--data", "data")

        assert second.returncode == 2
        assert b"another mailpipe serves the data folder" in second.stderr
        assert size_told(running.port)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_privileges_are_dropped(self, write: Any, serve: Any, load: Any, tmp_path: Path) -> None:
        """Sockets as root, storages as the user."""
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o011)
        write(top='user = "nobody"')
        running = serve("-c", "mail.toml")
        load(running.port, connections=1).start(1).join()
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        (uids,) = [line.split()[1:] for line in status.splitlines() if line.startswith("Uid:")]

        uid = pwd.getpwnam("nobody").pw_uid
        assert uids == [str(uid)] * 4
        assert (tmp_path / "data" / "mail.db").stat().st_uid == uid

    def test_the_service_manager_is_told(self, serve: Any, tmp_path: Path) -> None:
        """READY=1 once mail is taken, STOPPING=1 at the end (sd_notify)."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            name = f"\0mailpipe-test-{os.getpid()}-{time.monotonic_ns()}"
            manager.bind(name)
            manager.settimeout(20)
            running = serve(
                "--listen", "127.0.0.1:0", "--data", "data", env={"NOTIFY_SOCKET": name.replace("\0", "@")}
            )
            assert manager.recv(1000).startswith(b"READY=1")
            running.process.send_signal(signal.SIGHUP)
            assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(1000) == b"READY=1"
            running.process.send_signal(signal.SIGTERM)
            assert manager.recv(1000) == b"STOPPING=1"
            assert running.process.wait(30) == 0

    def test_an_activated_socket_is_used(self, tmp_path: Path, environment: dict[str, str]) -> None:
        """systemd binds, we accept (LISTEN_FDS)."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            program = (
                "import os, sys; os.dup2(int(sys.argv[1]), 3); "
                "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
                "os.execv(sys.executable, [sys.executable, '-m', 'mailpipe', 'serve', *sys.argv[2:]])"
            )
            options = ["--listen", f"127.0.0.1:{port}", "--data", "data"]
            process = subprocess.Popen(
                [sys.executable, "-c", program, str(listening.fileno()), *options],
                cwd=tmp_path,
                env=environment,
                pass_fds=[listening.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"listening on 127.0.0.1:{port}\n".encode()
            assert size_told(port)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=30)[0] == b""
        assert process.returncode == 0


class TestWrongUse:
    def test_is_2_and_says_why(self, mailpipe: Any, tmp_path: Path) -> None:
        """The rule and the value on stderr, no traceback, nothing started."""
        (tmp_path / "bad.toml").write_text("nonsense = 1\n")
        result = mailpipe("serve", "-c", "bad.toml")

        assert result.returncode == 2
        assert result.stdout == b""
        assert result.stderr.startswith(b"bad.toml: nonsense: unknown key")
        assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]
