"""
One body on its way from the wire to its sink: end, size bound, bare CR and LF, sink trouble.
"""

import logging
from collections.abc import Awaitable
from typing import Literal

from mailpipe import reply
from mailpipe.envelope import BodySink
from mailpipe.receivers.dotted import DotReader
from mailpipe.reply import Reply

__all__ = ["BareLines", "Intake"]

log = logging.getLogger("mailpipe.receiver")

BareLines = Literal["reject", "keep"]
"""What becomes of a CR or LF that stands alone in a body."""


class Intake:
    """
    Feeds one sink; once the mail is lost, reads on to its end without storing.

    The sink is aborted at the moment the mail is lost, never later; `refusal` then says what the
    client is told at the end. Never calls the sink again after that.

    Args:
        sink: Where the octets go.

        max_size: Most octets of a body, dots unstuffed.

        bare: ``"reject"`` refuses bodies with a bare CR or LF, at their real end.

        max_line: Most octets of a line with its CRLF, dots unstuffed; None is any.

        patience: Octets of a lost body that are read and thrown away; as many as *max_size* if None.
    """

    __slots__ = (
        "_bare",
        "_dots",
        "_line",
        "_long",
        "_lost_for",
        "_max_line",
        "_max_size",
        "_patience",
        "_sink",
        "received",
        "size",
        "stall",
    )

    def __init__(
        self,
        sink: BodySink,
        max_size: int,
        bare: BareLines,
        *,
        max_line: int | None = None,
        patience: int | None = None,
    ) -> None:
        self._sink: BodySink | None = sink
        self._max_size = max_size
        self._patience = max_size if patience is None else patience
        self._bare = bare == "reject"
        self._dots = DotReader()
        self._lost_for: Reply | None = None
        self._long = False
        self._max_line = max_line
        self._line = 0  # octets of the line that is not whole yet
        self.size = 0
        """Octets of content so far."""
        self.received = 0
        """Octets from the wire so far."""
        self.stall: Awaitable[None] | None = None
        """What the sink wants awaited before it takes more."""

    @property
    def refusal(self) -> Reply | None:
        """
        Why the mail is lost, or None while it is not.

        Said by what came in all, never by how it was cut: too much before bare lines, these before
        long ones.
        """
        if self._lost_for is not None:
            return self._lost_for
        if self.size > self._max_size:
            return reply.TOO_BIG
        if self._bare and self._dots.bare:
            return reply.BARE_LINES
        return reply.BODY_LINE_TOO_LONG if self._long else None

    @property
    def hopeless(self) -> bool:
        """More came than patience allows: 421 and close."""
        return self.size > self._max_size + self._patience

    def feed(self, data: bytes) -> bytes | None:
        """Take octets from the wire; return what came behind the end, or None before it."""
        self.received += len(data)
        content, rest = self._dots.feed(data)
        self.size += len(content)
        if self._sink is None:
            return rest
        if self._max_line is not None:
            self._long = self._overlong(content, self._max_line)
        if self.refusal is not None:
            self._abort()
        elif content:
            try:
                self.stall = self._sink.write(content)
            except Exception as error:
                self.fail(error)
        return rest

    def _overlong(self, content: bytes, most: int) -> bool:
        lines = content.split(b"\n")
        first, self._line = self._line, len(lines[-1]) + (self._line if len(lines) == 1 else 0)
        # The last one has no LF yet, and counts without.
        return max(len(lines[0]) + first, *map(len, lines[1:-1]), 0) >= most or self._line > most

    def fail(self, error: Exception) -> None:
        """The sink raised *error*: trouble of ours."""
        log.error("a sink failed to take octets", exc_info=error)
        self.lose(reply.TROUBLE)

    def lose(self, refusal: Reply) -> None:
        """The mail is lost for another reason: abort the sink, throw away what comes."""
        if self._sink is not None:
            self._lost_for = refusal
            self._abort()

    def _abort(self) -> None:
        if self._sink is not None:
            sink, self._sink = self._sink, None
            sink.abort()

    def release(self) -> BodySink:
        """
        Hand the sink over to whoever closes it; nothing here touches it afterwards.

        Raises:
            RuntimeError: If the mail is lost.
        """
        if self._sink is None:
            msg = f"a lost mail has no sink: {self.refusal}"
            raise RuntimeError(msg)
        sink, self._sink = self._sink, None
        return sink
