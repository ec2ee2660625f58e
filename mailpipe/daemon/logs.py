"""
Log lines, written by a thread of their own.

The loop only puts a record into a bounded queue; a thread renders what has gathered there and
writes it at once, as whole lines. A full queue or a stuck terminal costs lines, which are counted
and reported, never mail and never time.

What a client said is data, never format: control characters are escaped, so one event is one line,
and passwords are masked wherever they stand in a URL or under a telling name.
"""

import functools
import logging
import queue
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import structlog

__all__ = ["LogWriter", "console_line", "event_of", "masked"]

# C0, DEL, C1 and what some terminals and viewers take for a line end or a change of direction.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_URL_PASSWORD = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://[^\s/:@]*):[^\s/@]*@")
_SECRET_NAME = re.compile(r"passw|secret|token|credential", re.IGNORECASE)
_MASK = "***"

_GATHER = 0.02
"""Seconds until the next look at the queue; what was in it is out already."""

_LINES_PER_WRITE = 500

_Render = Callable[[Any, str, dict[str, Any]], str | bytes]


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def masked(text: str) -> str:
    """*text* without the passwords of the URLs in it."""
    return _URL_PASSWORD.sub(rf"\1:{_MASK}@", text)


@functools.cache
def _is_secret(key: str) -> bool:
    # Keys are ours, and few; a mapping's own keys never come here.
    return _SECRET_NAME.search(key) is not None


def _clean(key: str, value: object) -> object:
    """*value* fit for a line: masked, without control characters or lone surrogates."""
    if value and _is_secret(key):
        return _MASK
    if type(value) is str and value.isprintable() and "://" not in value:
        return value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(key, item) for item in value]
    if isinstance(value, Mapping):
        return {
            str(_clean("", name)): _MASK if _SECRET_NAME.search(str(name)) else _clean("", item)
            for name, item in value.items()
        }
    return _CONTROLS.sub(_escape, masked(str(value)).encode("utf-8", "backslashreplace").decode())


@functools.lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def event_of(record: logging.LogRecord) -> dict[str, Any]:
    """
    The record as one flat mapping: when, how grave, who says so, what, and its ``fields``.

    Safe to write: every value is masked and escaped.
    """
    second = int(record.created)
    event: dict[str, Any] = {
        "timestamp": f"{_second(second)}.{int((record.created - second) * 1000):03d}Z",
        "level": record.levelname.lower(),
        "event": record.getMessage(),
        "logger": record.name,
    }
    event |= getattr(record, "fields", {})
    for key, value in event.items():
        # Nearly all are fit as they are, and to look here costs less than to ask.
        if type(value) is not str or not value.isprintable() or "://" in value or _is_secret(key):
            event[key] = _clean(key, value)
    if record.exc_info and record.exc_info[1] is not None:
        trace = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        # The only value of several lines; each is indented, so that none passes for an event.
        event["exception"] = "\n".join(f"  | {_clean('', line)}" for line in trace.split("\n"))
    return event


_QUOTED = re.compile(r"[\s='\"]")


def console_line(logger: object, level: str, event: dict[str, Any]) -> str:
    """
    The line that structlog's `ConsoleRenderer` makes without colours, at a fraction of its cost.

    Where nobody looks on there is a line for every mail, and rendering it was a third of the work for
    a small one.
    """
    parts = [
        f"{event.pop('timestamp')} [{event.pop('level'):<9}] {event.pop('event'):<24} [{event.pop('logger')}]"
    ]
    exception = event.pop("exception", None)
    for key in sorted(event):
        value = event[key]
        if type(value) is not str or _QUOTED.search(value):
            value = repr(value)
        parts.append(f"{key}={value}")
    line = " ".join(parts)
    return line if exception is None else f"{line}\n{exception}"


class LogWriter(logging.Handler):
    """
    A logging handler whose lines are rendered and written by a thread.

    Args:
        file: Path to append to; ``""`` for stderr.

        style: ``"json"``, ``"console"``, or ``"auto"``: console for a terminal or stderr, JSON for a file.

        capacity: Records waiting at most; what comes on top is dropped and counted.

    Raises:
        OSError: If *file* cannot be opened.
    """

    def __init__(
        self, file: str = "", style: Literal["auto", "console", "json"] = "auto", *, capacity: int = 20_000
    ) -> None:
        super().__init__()
        self._target = _Target(file, style)
        self._stream = self._target.open()
        self._render = self._target.renderer(self._stream)
        # None ends the thread; a target is where lines go from then on.
        self._queue: queue.SimpleQueue[logging.LogRecord | _Target | None] = queue.SimpleQueue()
        self._capacity = capacity
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="mailpipe-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records lost because the queue was full."""
        return self._dropped

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record; never waits."""
        # `handle` holds a lock around this, so that no two records take one place.
        if self._queue.qsize() < self._capacity:
            self._queue.put(record)
        else:
            self._dropped += 1

    def reopen(self, *, wait: float = 0.0) -> None:
        """
        Open the file anew, as a rotation tool asks for by SIGUSR1; nothing for stderr.

        Lines queued before still go to the old file.

        Args:
            wait: Seconds to wait until that has happened.
        """
        self._go_to(_Target(self._target.file, self._target.style), wait)

    def redirect(self, file: str, style: Literal["auto", "console", "json"], *, wait: float = 0.0) -> None:
        """
        Write to *file* in *style* from now on; if it cannot be opened, all stays as it is, and says so.

        Args:
            file: As when made.

            style: As when made.

            wait: Seconds to wait until that has happened.
        """
        if (file, style) != (self._target.file, self._target.style):
            self._go_to(_Target(file, style), wait)

    def _go_to(self, target: "_Target", wait: float) -> None:
        self._queue.put(target)
        if wait:
            target.reached.wait(wait)

    def close(self) -> None:
        """Write what is queued, within two seconds, and end the thread; more than once is fine."""
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._queue.put(None)
            self._thread.join(2.0)
        super().close()

    def _run(self) -> None:
        lines: list[str] = []
        while True:
            idle = self._queue.empty()
            if lines and (idle or len(lines) >= _LINES_PER_WRITE):
                self._write(lines)
                lines = []
                if idle:
                    # A line a mail would wake this thread for each, and every wake-up takes the
                    # interpreter from the loop: under load, lines gather for a moment instead.
                    time.sleep(_GATHER)
            entry = self._queue.get()
            if isinstance(entry, logging.LogRecord):
                self._render_into(lines, entry)
                continue
            self._write(lines)
            lines = []
            if entry is None:
                break
            self._change(entry)
            entry.reached.set()
        self._target.shut(self._stream)

    def _change(self, target: "_Target") -> None:
        try:
            fresh = target.open()
        except OSError as error:
            record = logging.makeLogRecord({"name": "mailpipe.log", "levelno": 40, "levelname": "ERROR"})
            record.msg = "cannot open the log file anew"
            record.__dict__["fields"] = {"file": target.file, "error": error.strerror}
            lines: list[str] = []
            self._render_into(lines, record)
            self._write(lines)
            return
        self._target.shut(self._stream)
        self._target, self._stream, self._render = target, fresh, target.renderer(fresh)

    def _render_into(self, lines: list[str], record: logging.LogRecord) -> None:
        try:
            event = event_of(record)
            if self._dropped:
                event["log_lines_dropped"] = self._dropped
            line = self._render(None, record.levelname.lower(), event)
            lines.append(f"{line if isinstance(line, str) else line.decode()}\n")
        except Exception:  # a record that cannot be rendered says so, and takes no thread down
            self.handleError(record)

    def _write(self, lines: list[str]) -> None:
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):
            # A closed pipe or a full disk: they are lost, and counted; the next may pass.
            self._dropped += len(lines)


class _Target:
    """Where lines go, and how they look."""

    def __init__(self, file: str, style: Literal["auto", "console", "json"]) -> None:
        self.file = file
        self.style = style
        self.reached = threading.Event()

    def open(self) -> TextIO:
        if not self.file:
            return sys.stderr
        # Rotated files are opened anew: the handle outlives any block.
        return open(self.file, "a", encoding="utf-8", errors="backslashreplace")

    def shut(self, stream: TextIO) -> None:
        if self.file:
            stream.close()

    def renderer(self, stream: TextIO) -> _Render:
        if self.style == "json" or (self.style == "auto" and self.file):
            return structlog.processors.JSONRenderer(sort_keys=False)
        if not stream.isatty():
            return console_line
        return structlog.dev.ConsoleRenderer(
            colors=True, pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
        )
