"""
Real mail through a real process: what is answered 250 is stored, byte for byte, and nothing else.
"""

import json
import re
import signal
import smtplib
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUEUED = re.compile(rb"2\.0\.0 OK: queued as ([0-9a-z]{26})\Z")


def listed(mailpipe: Callable[..., subprocess.CompletedProcess[bytes]]) -> dict[str, dict[str, Any]]:
    """What ``list --json`` shows, by queue id."""
    result = mailpipe("list", "--json", "--data", "data")
    assert result.returncode == 0, result.stderr
    return {mail["queue_id"]: mail for mail in map(json.loads, result.stdout.splitlines())}


class TestZeroConfiguration:
    def test_a_mail_is_stored_listed_shown_and_exported(
        self,
        tmp_path: Path,
        serve: Callable[..., Any],
        mailpipe: Callable[..., Any],
        letter: Callable[..., bytes],
    ) -> None:
        """Two commands from nothing: serve, and the mail is there."""
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        with smtplib.SMTP("127.0.0.1", running.port, timeout=20) as client:
            client.ehlo("client.example.org")
            client.mail("sender@example.org")
            client.rcpt("a@example.org")
            client.rcpt("b@example.org")
            code, text = client.data(letter(1))

        assert code == 250
        match = QUEUED.match(text)
        assert match, text
        queue_id = match[1].decode()
        mail = listed(mailpipe)[queue_id]
        assert mail["mail_from"] == "sender@example.org"
        assert mail["rcpt_to"] == ["a@example.org", "b@example.org"]
        assert mail["size"] == len(letter(1))
        assert mail["subject"] in letter(1).decode()
        assert mail["received_at"]
        assert mailpipe("export", queue_id, "--data", "data").stdout == letter(1)
        shown = mailpipe("show", queue_id, "--data", "data").stdout.decode()
        assert "a@example.org" in shown
        assert mail["subject"] in shown
        assert queue_id in running.logged()

    def test_the_data_folder_is_mail_data_of_the_current_folder(
        self, tmp_path: Path, serve: Callable[..., Any]
    ) -> None:
        """Nothing is written elsewhere when nothing is said."""
        serve("--listen", "127.0.0.1:0").stop()

        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["mail-data"]

    def test_deleted_mails_are_gone(
        self, serve: Callable[..., Any], mailpipe: Callable[..., Any], load: Any, stored: Any, tmp_path: Path
    ) -> None:
        """Beside the running daemon; the rest stays as it was."""
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        sent = load(running.port, connections=1).start(2).join()
        first, second = sorted(sent.acknowledged)

        assert mailpipe("delete", first, "--data", "data").returncode == 0
        assert stored(tmp_path / "data") == {second: sent.letter(sent.acknowledged[second])}


class TestLoad:
    def test_every_mail_of_twenty_connections_is_stored_byte_for_byte(
        self,
        serve: Callable[..., Any],
        load: Callable[..., Any],
        stored: Callable[..., dict[str, bytes]],
        tmp_path: Path,
    ) -> None:
        """Four hundred mails through shared commits: each under the id its own sender was told."""
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        sent = load(running.port).start(20).join()

        assert sent.refused == []
        assert sent.broken == 0
        assert len(sent.acknowledged) == 400
        assert stored(tmp_path / "data") == {
            key: sent.letter(number) for key, number in sent.acknowledged.items()
        }

    def test_a_mail_above_the_spool_threshold_is_stored_byte_for_byte(
        self, serve: Callable[..., Any], stored: Callable[..., dict[str, bytes]], tmp_path: Path
    ) -> None:
        """A body that goes through a file is the same as one that stays in memory."""
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        body = b"Subject: large\r\n\r\n" + b"".join(
            b"%08d %s\r\n" % (n, b"x" * (n % 70)) for n in range(90_000)
        )
        with smtplib.SMTP("127.0.0.1", running.port, timeout=30) as client:
            client.sendmail("sender@example.org", ["a@example.org"], body)

        assert list(stored(tmp_path / "data").values()) == [body]

    def test_swaks_is_served(
        self, program: Callable[[str], str], serve: Callable[..., Any], mailpipe: Callable[..., Any]
    ) -> None:
        """The tool that people try first."""
        swaks = program("swaks")
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        result = subprocess.run(
            [swaks, "--server", f"127.0.0.1:{running.port}", "--to", "a@example.org", "--pipeline"],
            capture_output=True,
            timeout=40,
            check=False,
        )

        assert result.returncode == 0, result.stdout
        assert re.search(rb"250 2\.0\.0 OK: queued as [0-9a-z]{26}\r?\n", result.stdout)
        assert [mail["rcpt_to"] for mail in listed(mailpipe).values()] == [["a@example.org"]]

    def test_smtp_source_is_served(
        self, program: Callable[[str], str], serve: Callable[..., Any], mailpipe: Callable[..., Any]
    ) -> None:
        """Postfix's own load generator: pipelining, twenty sessions, three hundred mails."""
        source = program("smtp-source")
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        result = subprocess.run(
            [
                source,
                "-s",
                "20",
                "-m",
                "300",
                "-l",
                "2000",
                "-t",
                "a@example.org",
                f"inet:127.0.0.1:{running.port}",
            ],
            capture_output=True,
            timeout=50,
            check=False,
        )

        assert result.returncode == 0, result.stderr
        assert len(listed(mailpipe)) == 300


class TestCrash:
    @pytest.mark.parametrize("round_", range(3))
    def test_sigkill_loses_nothing_acknowledged(
        self,
        round_: int,
        serve: Callable[..., Any],
        load: Callable[..., Any],
        stored: Callable[..., dict[str, bytes]],
        tmp_path: Path,
    ) -> None:
        """Killed under load: every mail that got its 250 is there and whole; the next start works."""
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        sent = load(running.port, first=round_ * 100_000).start(5_000)
        sent.wait_acknowledged(60 + 70 * round_)
        running.stop(signal.SIGKILL)
        sent.join()
        again = serve("--listen", "127.0.0.1:0", "--data", "data")
        more = load(again.port, connections=1, first=90_000_000).start(1).join()

        found = stored(tmp_path / "data")
        for queue_id, number in (sent.acknowledged | more.acknowledged).items():
            assert found[queue_id] == sent.letter(number)
        # What was committed but not yet answered may be there as well, never in parts.
        whole = {
            sent.letter(base + n)
            for base in range(round_ * 100_000, round_ * 100_000 + 100_000, 5_000)
            for n in range(400)
        }
        whole.add(sent.letter(90_000_000))
        assert set(found.values()) <= whole


class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_mail_under_way_is_finished(
        self, number: int, serve: Callable[..., Any], stored: Callable[..., dict[str, bytes]], tmp_path: Path
    ) -> None:
        """A client in the middle of DATA gets its 250, nobody new is taken, the status is 0."""
        running = serve("--listen", "127.0.0.1:0", "--data", "data")
        client = smtplib.SMTP("127.0.0.1", running.port, timeout=20)
        client.ehlo("client.example.org")
        client.mail("sender@example.org")
        client.rcpt("a@example.org")
        client.putcmd("data")
        assert client.getreply()[0] == 354
        client.send(b"Subject: half\r\n\r\none\r\n")
        running.process.send_signal(number)
        # The same wish over again, as from make and from a shell; of the other kind, for two alike may be one.
        running.process.send_signal(signal.SIGTERM if number == signal.SIGINT else signal.SIGINT)
        wait_refused(running.port)
        client.send(b"two\r\n.\r\n")
        code, text = client.getreply()

        assert code == 250
        assert running.process.wait(30) == 0
        client.close()
        assert stored(tmp_path / "data") == {text.decode()[-26:]: b"Subject: half\r\n\r\none\r\ntwo\r\n"}

    def test_what_hangs_is_cut_off_at_the_deadline(self, serve: Callable[..., Any], tmp_path: Path) -> None:
        """A client that never ends its mail holds the stop up to shutdown_timeout and no longer."""
        (tmp_path / "mail.toml").write_text('shutdown_timeout = "1s"\n[[servers]]\nlisten = "127.0.0.1:0"\n')
        running = serve("-c", "mail.toml")
        with socket.create_connection(("127.0.0.1", running.port), 20) as client:
            client.recv(1000)
            for line in (
                b"HELO x.example.org\r\n",
                b"MAIL FROM:<>\r\n",
                b"RCPT TO:<a@example.org>\r\n",
                b"DATA\r\n",
            ):
                client.sendall(line)
                client.recv(1000)
            client.sendall(b"never ends\r\n")

            assert running.stop(within=20) == 0
        assert "shutdown_timeout" in running.logged()


class TestStoreTrouble:
    def test_a_locked_database_is_a_451_and_never_a_250(
        self,
        serve: Callable[..., Any],
        load: Callable[..., Any],
        stored: Callable[..., dict[str, bytes]],
        tmp_path: Path,
    ) -> None:
        """The store hangs: a temporary error within save_timeout, and afterwards mail flows again."""
        import sqlite3

        (tmp_path / "mail.toml").write_text(
            'data = "data"\n[[servers]]\nlisten = "127.0.0.1:0"\n[gateways.default]\nsave_timeout = "1s"\n'
            '[processors.sql]\ntimeout = "500ms"\n'
        )
        running = serve("-c", "mail.toml")
        database = sqlite3.connect(tmp_path / "data" / "mail.db", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        held = load(running.port, connections=3).start(1).join()
        database.execute("ROLLBACK")
        database.close()

        assert held.acknowledged == {}
        assert held.broken == 0
        assert [text[:9] for text in held.refused] == [b"451 4.3.0"] * 3
        freed = load(running.port, connections=3, first=100).start(1).join()
        assert len(freed.acknowledged) == 3
        # Law 2 has no other half: a mail refused here may be stored once if its commit came late.
        assert freed.acknowledged.keys() <= stored(tmp_path / "data").keys()

    def test_a_disk_that_refuses_is_a_451(
        self, serve: Callable[..., Any], load: Callable[..., Any], tmp_path: Path
    ) -> None:
        """Writing fails with an error of the system: a temporary error, no text of it in the reply."""
        import resource

        (tmp_path / "mail.toml").write_text(
            'data = "data"\n[[servers]]\nlisten = "127.0.0.1:0"\n[gateways.default]\nsave_timeout = "250ms"\n'
        )
        serve("-c", "mail.toml").stop()
        limit = (tmp_path / "data" / "mail.db").stat().st_size

        def bounded() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        running = serve("-c", "mail.toml", preexec_fn=bounded)
        sent = load(running.port, connections=2).start(8).join()

        assert sent.refused
        assert {text[:3] for text in sent.refused} <= {b"451", b"452"}
        assert not any(b"disk" in text or b"sqlite" in text.lower() for text in sent.refused)


def wait_refused(port: int) -> None:
    """Return once nobody accepts on the port."""
    import time

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.01)
    pytest.fail(f"port {port} still accepts")
