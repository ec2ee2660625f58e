"""The command line's own parts: what is shown of a mail, what `check` tells, what is missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mailpipe.cli import app
from mailpipe.cli.reading import CannotRead, Reading
from mailpipe.cli.report import explain
from mailpipe.cli.show import plain, rendered, row
from mailpipe.config import load_config, make_config
from mailpipe.envelope import MemoryBody
from mailpipe.steps import StoredMail


def stored(body: bytes, **more: str) -> StoredMail:
    """A mail as a storage gives it back."""
    facts = {"mail_from": "a@example.org", "subject": "hello"} | more
    return StoredMail(
        queue_id="q" * 26,
        received_at=1_700_000_000.123,
        rcpt_to=("b@example.org",),
        size=len(body),
        body=MemoryBody(body),
        **facts,  # type: ignore[arg-type] # strings
    )


class TestRow:
    def test_the_fixed_fields(self) -> None:
        """Other programs read them."""
        assert row(stored(b"x")) == {
            "queue_id": "q" * 26,
            "received_at": "2023-11-14T22:13:20.123Z",
            "mail_from": "a@example.org",
            "rcpt_to": ["b@example.org"],
            "size": 1,
            "subject": "hello",
        }


class TestShow:
    def test_headers_and_text_are_decoded(self) -> None:
        """Encoded words, quoted-printable, charsets."""
        shown = rendered(
            stored(
                b"From: =?utf-8?q?J=C3=BCrgen?= <a@example.org>\r\nSubject: =?iso-8859-1?q?Gr=FC=DFe?=\r\n folded\r\n"
                b"Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
                b"Stra=DFe\r\n"
            )
        )

        assert "From: Jürgen <a@example.org>" in shown
        assert "Subject: Grüße folded" in shown
        assert shown.endswith("Straße")

    def test_parts_are_named(self) -> None:
        """What is attached, and the text."""
        shown = rendered(
            stored(
                b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n'
                b'--b\r\nContent-Type: image/png\r\nContent-Disposition: attachment; filename="x.png"\r\n\r\nxx\r\n--b--\r\n'
            )
        )

        assert "[1] text/plain" in shown
        assert "[2] image/png 'x.png'" in shown
        assert shown.endswith("hello")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\r\n",
            b"no header at all",
            b"Subject: =?utf-8?b?!!!?=\r\n\r\n",
            b"Subject: =?nonsense?q?x?=\r\n\r\n",
            b"Content-Type: text/plain; charset=nonsense\r\n\r\n\xff\xfe",
            b"Content-Type: ;;;=\r\nFrom: (((((\r\nTo: <<<\r\n\r\nx",
            b"From: \x1b[2J\x9b\r\nSubject: a\xe2\x80\xaeb\r\n\r\n\x1b]0;title\x07text\x00\xc2\x9b",
            b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + b"--b\r\n" * 1000,
            b"".join(
                b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n) for n in range(2000)
            ),
        ],
    )
    def test_a_hostile_mail_is_shown_harmlessly(self, body: bytes) -> None:
        """Something comes out, and nothing that a terminal would obey."""
        shown = rendered(stored(body, mail_from="\x1b[2J@x", subject="\x07"))

        assert shown
        assert not {character for character in shown if ord(character) < 32} - {"\n", "\t"}
        assert not any("\x7f" <= character <= "\x9f" for character in shown)
        assert "\u202e" not in shown

    def test_plain_keeps_what_it_is_told(self) -> None:
        """Lines of our own stay lines."""
        assert plain("a\nb\x1b", keep="\n") == "a\nb\\x1b"


class TestCheck:
    def test_it_names_every_step_and_its_durability(self, tmp_path: Path) -> None:
        """For people, and as JSON."""
        report = explain(load_config(data=str(tmp_path), environment={}))

        assert "a 250 means durability 'disk'" in report.text
        assert "compressor" in report.text
        facts = json.loads(json.dumps(report.facts))
        chain = facts["gateways"]["default"]["chains"]["process"]
        assert [step["stage"] for step in chain["steps"]] == ["stream", "envelope", "batch", "batch"]
        assert chain["record"] == "sql"

    def test_a_driver_slower_than_an_attempt_is_warned_of(self, tmp_path: Path) -> None:
        """Its mails may be stored after their 451."""
        raw = {"gateways": {"default": {"save_timeout": 5}}}
        report = explain(make_config(raw, data=str(tmp_path), environment={}))

        assert "warning: sql: timeout = 10 s is not below the gateway's send_timeout = 4 s" in report.text

    def test_a_spool_names_what_may_reject_too_late(self, tmp_path: Path) -> None:
        """And that the 250 is the journal's."""
        raw = {"gateways": {"default": {"process": "header | maildir", "spool": True}}}
        report = explain(make_config(raw, data=str(tmp_path), environment={}))

        assert "a 250 means durability 'disk' (the journal's: it spools)" in report.text
        assert "warning: maildir: runs after the 250 of the spool" in report.text
        assert "warning: header" not in report.text

    def test_no_password_is_told(self, tmp_path: Path) -> None:
        """Neither of a database nor of a user."""
        raw = {"processors": {"sql": {"url": "postgresql://u:hunter2@127.0.0.1/x"}}}
        report = explain(make_config(raw, data=str(tmp_path), environment={}))

        assert "hunter2" not in report.text + json.dumps(report.facts)


class TestExitCodes:
    @pytest.mark.parametrize(
        ("arguments", "rule"),
        [
            (["serve", "--listen", "0.0.0.0:0"], "allowed_hosts"),
            (["serve", "--listen", "nowhere"], "nowhere"),
            (["serve", "--workers", "0"], "--workers"),
            (["serve", "-c", "missing.toml"], "missing.toml: cannot be read"),
            (["serve", "--nonsense"], "nonsense"),
            (["nonsense"], "nonsense"),
            (["check", "-c", "bad.toml"], "bad.toml: nonsense: unknown key"),
            (["delete", "--data", "data"], "--older-than"),
            (["delete", "x", "--older-than", "1d", "--data", "data"], "--older-than"),
            (["delete", "--older-than", "30", "--data", "data"], "a duration is written like"),
        ],
    )
    def test_wrong_use_is_2(
        self, arguments: list[str], rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The rule and the value, no traceback."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "bad.toml").write_text("nonsense = 1\n")
        result = CliRunner().invoke(app, arguments)

        assert result.exit_code == 2
        assert rule in result.stderr
        assert result.exception is None or isinstance(result.exception, SystemExit)

    @pytest.mark.parametrize("command", ["show", "export", "delete"])
    def test_no_such_mail_is_1(self, command: str, tmp_path: Path) -> None:
        """Nothing to read on stdout, the id on stderr."""
        result = CliRunner().invoke(app, [command, "0" * 26, "--data", str(tmp_path)])

        assert result.exit_code == 1
        assert f"no such mail: {'0' * 26}" in result.stderr

    @pytest.mark.parametrize("command", ["stats", "reload"])
    def test_no_daemon_is_1(self, command: str, tmp_path: Path) -> None:
        """Where it was looked for."""
        result = CliRunner().invoke(app, [command, "--data", str(tmp_path)])

        assert result.exit_code == 1
        assert f"no daemon answers at {tmp_path}/control.sock" in result.stderr


class TestReading:
    def test_nothing_stored_is_nothing_listed(self, tmp_path: Path) -> None:
        """Asking makes nothing."""
        with Reading(load_config(data=str(tmp_path / "none"), environment={})) as reading:
            assert list(reading.mails()) == []
            assert reading.get("0" * 26) is None
            assert not reading.delete("0" * 26)
            assert reading.expire(0) == 0
        assert list(tmp_path.iterdir()) == []

    def test_a_storage_in_trouble_is_named(self, tmp_path: Path) -> None:
        """Not a traceback, and not an empty list."""
        (tmp_path / "mail.db").write_bytes(b"this is no database" * 100)
        with (
            pytest.raises(CannotRead, match=r"\[gateways.default\] sql: "),
            Reading(load_config(data=str(tmp_path), environment={})) as reading,
        ):
            list(reading.mails())


class TestMissingExtra:
    def test_it_says_what_to_install(self) -> None:
        """One line instead of an ImportError from somewhere deep."""
        program = (
            "import sys\n"
            "from importlib.machinery import PathFinder\n"
            "find = PathFinder.find_spec\n"
            "PathFinder.find_spec = lambda name, *rest: None if name in ('cattrs', 'typer') else find(name, *rest)\n"
            "from mailpipe.__main__ import main\n"
            "main()\n"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=40, check=False)

        assert result.returncode == 1
        assert result.stderr == b"mailpipe needs typer, cattrs: pip install 'dispatcher-toolkit[mail]'\n"
