"""Log lines: one event is one line, nobody's password, nobody's wait."""

import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from mailpipe.daemon.logs import LogWriter, console_line, event_of


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[logging.Logger, LogWriter]]]:
    """A logger of its own that writes through a `LogWriter`."""
    made: list[tuple[logging.Logger, LogWriter]] = []

    def start(*arguments: str, **options: int) -> tuple[logging.Logger, LogWriter]:
        writer = LogWriter(*arguments, **options)  # type: ignore[arg-type] # as given
        logger = logging.getLogger(f"{__name__}.{len(made)}")
        logger.propagate = False
        logger.setLevel(logging.INFO)
        logger.addHandler(writer)
        made.append((logger, writer))
        return logger, writer

    yield start
    for logger, writer in made:
        logger.removeHandler(writer)
        writer.close()


def record(text: str, **fields: object) -> logging.LogRecord:
    """A record as our loggers make it."""
    return logging.makeLogRecord(
        {"name": "mailpipe.mail", "msg": text, "levelname": "INFO", "fields": fields}
    )


class TestEvent:
    @pytest.mark.parametrize(
        ("said", "written"),
        [
            ("a\r\nforged line", "a\\x0d\\x0aforged line"),
            ("\x1b[2J", "\\x1b[2J"),
            ("\x9b2J", "\\x9b2J"),
            ("abc\u202etxt.exe", "abc\\u202etxt.exe"),
            ("line\u2028break", "line\\u2028break"),
            ("lone \udcff", "lone \\udcff"),
            ("Grüße 漢字", "Grüße 漢字"),
        ],
    )
    def test_control_characters_are_escaped(self, said: str, written: str) -> None:
        """In fields, in lists of them, and in the text."""
        event = event_of(record(said, helo=said, rcpt_to=[said]))

        assert event["event"] == written
        assert event["helo"] == written
        assert event["rcpt_to"] == [written]

    def test_passwords_are_masked(self) -> None:
        """In URLs wherever they stand, and under telling names."""
        event = event_of(
            record("cannot reach mysql://u:hunter2@db/x", url="redis://:hunter2@h", password="hunter2")
        )

        assert "hunter2" not in json.dumps(event)
        assert event["event"] == "cannot reach mysql://u:***@db/x"

    def test_an_exception_is_indented(self) -> None:
        """No line of it can pass for an event of its own."""
        made = record("failed")
        try:
            int("x\n2026-01-01 forged")
        except ValueError:
            made.exc_info = sys.exc_info()

        assert all(line.startswith("  | ") for line in event_of(made)["exception"].split("\n"))


class TestFile:
    def test_a_file_gets_json(
        self, make: Callable[..., tuple[logging.Logger, LogWriter]], tmp_path: Path
    ) -> None:
        """One object a line, fields flat."""
        logger, writer = make(str(tmp_path / "log"))
        logger.info("stored", extra={"fields": {"queue_id": "q1", "size": 7}})
        writer.close()

        (line,) = (tmp_path / "log").read_text().splitlines()
        event = json.loads(line)
        assert (event["event"], event["queue_id"], event["size"], event["level"]) == (
            "stored",
            "q1",
            7,
            "info",
        )
        assert event["timestamp"].endswith("Z")

    def test_reopen_follows_a_rotation(
        self, make: Callable[..., tuple[logging.Logger, LogWriter]], tmp_path: Path
    ) -> None:
        """Lines before it are in the old file, lines after it in the new one."""
        path = tmp_path / "log"
        logger, writer = make(str(path))
        logger.info("before")
        writer.reopen(wait=10)
        path.rename(tmp_path / "log.1")
        writer.reopen(wait=10)
        logger.info("after")
        writer.close()

        assert "before" in (tmp_path / "log.1").read_text()
        assert "after" not in (tmp_path / "log.1").read_text()
        assert "after" in path.read_text()

    def test_a_folder_that_is_gone_keeps_the_old_file(
        self, make: Callable[..., tuple[logging.Logger, LogWriter]], tmp_path: Path
    ) -> None:
        """A rotation gone wrong costs no line."""
        folder = tmp_path / "logs"
        folder.mkdir()
        logger, writer = make(str(folder / "log"))
        folder.rename(tmp_path / "moved")
        writer.reopen(wait=10)
        logger.info("after")
        writer.close()

        text = (tmp_path / "moved" / "log").read_text()
        assert "cannot open the log file anew" in text
        assert "after" in text

    def test_it_may_be_changed_for_another(
        self, make: Callable[..., tuple[logging.Logger, LogWriter]], tmp_path: Path
    ) -> None:
        """As a reload wants; what cannot be opened changes nothing."""
        logger, writer = make(str(tmp_path / "one"))
        writer.redirect(str(tmp_path / "missing" / "log"), "json", wait=10)
        logger.info("still one")
        writer.redirect(str(tmp_path / "two"), "console", wait=10)
        logger.info("two")
        writer.close()

        assert "still one" in (tmp_path / "one").read_text()
        assert '"two"' not in (tmp_path / "two").read_text()
        assert "two" in (tmp_path / "two").read_text()


class TestStderr:
    def test_it_is_for_people(
        self, make: Callable[..., tuple[logging.Logger, LogWriter]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Console style: the event, then its fields."""
        written = io.StringIO()
        monkeypatch.setattr(sys, "stderr", written)
        logger, writer = make()
        logger.warning("stored", extra={"fields": {"queue_id": "q1"}})
        writer.close()

        assert "queue_id=q1" in written.getvalue()
        assert written.getvalue().count("\n") == 1

    def test_it_is_as_structlog_writes_it(self) -> None:
        """Only the cost differs: who reads these lines by program sees no difference."""
        event = {
            "timestamp": "2026-11-20T11:27:55.617Z",
            "level": "info",
            "event": "stored",
            "logger": "mailpipe.mail",
            "reply": "250 2.0.0 OK",
            "helo": "it's",
            "peer": "",
            "none": None,
            "rcpt_to": ["a@example.org"],
            "ms": 1.5,
            "exception": "  | one\n  | two",
        }
        structlogs = structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
        )

        assert console_line(None, "info", dict(event)) == structlogs(None, "info", dict(event))


class TestPressure:
    def test_what_gathered_is_one_write(
        self, make: Callable[..., tuple[logging.Logger, LogWriter]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Under load a line costs no system call of its own, and a lone one is out at once."""
        let_go, entered = threading.Event(), threading.Event()
        writes: list[str] = []

        class Slow(io.StringIO):
            def write(self, text: str) -> int:
                writes.append(text)
                entered.set()
                assert let_go.wait(30)
                return len(text)

        monkeypatch.setattr(sys, "stderr", Slow())
        logger, writer = make("", "json")
        logger.warning("alone")
        assert entered.wait(30)
        for number in range(3):
            logger.warning("more %d", number)
        let_go.set()
        writer.close()

        assert [text.count("\n") for text in writes if text] == [1, 3]

    def test_a_stuck_writer_holds_nobody(
        self, make: Callable[..., tuple[logging.Logger, LogWriter]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What does not fit is counted, and the next line tells how much."""
        stuck, entered = threading.Event(), threading.Event()

        class Stuck(io.StringIO):
            def write(self, text: str) -> int:
                entered.set()
                assert stuck.wait(30)
                return super().write(text)

        written = Stuck()
        monkeypatch.setattr(sys, "stderr", written)
        logger, writer = make("", "json", capacity=2)
        logger.warning("one")
        assert entered.wait(30)
        for number in range(10):
            logger.warning("more %d", number)
        assert writer.dropped == 8
        stuck.set()
        writer.close()

        lines = [json.loads(line) for line in written.getvalue().splitlines()]
        assert [line["event"] for line in lines] == ["one", "more 0", "more 1"]
        assert lines[-1]["log_lines_dropped"] == 8
