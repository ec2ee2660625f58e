"""The process around a daemon, where no real process is needed."""

import logging
import signal
from pathlib import Path

from mailpipe.config import make_config
from mailpipe.daemon.process import SAME_WISH, _logging, _Stop


class TestStop:
    def test_one_wish_that_comes_twice_is_one(self) -> None:
        """`make` and a shell both pass the signal on: the mails under way are still finished."""
        done: list[str] = []
        now = 10.0
        stop = _Stop(lambda: done.append("asked"), lambda: done.append("hurried"), lambda: now)

        stop(signal.SIGTERM)
        now += SAME_WISH / 2
        stop(signal.SIGTERM)
        assert done == ["asked"]

        now = 10.0 + SAME_WISH
        stop(signal.SIGINT)
        assert done == ["asked", "hurried"]


class TestLogging:
    def test_the_switches_of_logging_are_put_back(self, tmp_path: Path) -> None:
        """Whoever calls `run` in a process of his own finds its logging as it was."""
        before = (logging._srcfile, logging.logThreads, logging.logProcesses)  # type: ignore[attr-defined]  # noqa: SLF001
        with _logging(make_config({"log": {"file": "log"}}, data=str(tmp_path))):
            during = (logging._srcfile, logging.logThreads, logging.logProcesses)  # type: ignore[attr-defined]  # noqa: SLF001
            logging.getLogger("mailpipe.mail").warning("where?")

        assert during == (None, False, False)
        assert (logging._srcfile, logging.logThreads, logging.logProcesses) == before  # type: ignore[attr-defined]  # noqa: SLF001
        assert "where?" in (tmp_path / "log").read_text()
