"""
A body as aiosmtpd hands it to its handlers: whole, of bounded lines, in memory.
"""

import sys

from mailpipe.receivers.dotted import DotReader

__all__ = ["WholeContent"]


class WholeContent:
    """
    Takes octets from the wire until the end is there; once refused, only the end is looked for.

    Args:
        max_size: Most octets; None or 0 is any.

        max_line: Most octets of a line with its CRLF.
    """

    def __init__(self, max_size: int | None, max_line: int) -> None:
        self._dots = DotReader()
        self._max_size = max_size or sys.maxsize
        self._max_line = max_line
        self._size = self._line = 0
        self.chunks: list[bytes] = []
        """The content, dots unstuffed."""
        self.refusal = ""
        """aiosmtpd's reply to what was too much, or ``""``."""
        self.discarded = 0
        """Octets thrown away since it was refused."""

    def feed(self, data: bytes) -> bytes | None:
        """Take octets; what came behind the end, or None before it."""
        content, rest = self._dots.feed(data)
        if not self.refusal and content:
            self.refusal = self._judge(content)
        if self.refusal:
            self.chunks.clear()
            self.discarded += len(content)
        else:
            self.chunks.append(content)
            self._size += len(content)
        return rest

    def _judge(self, content: bytes) -> str:
        room = self._max_size - self._size
        lengths = [len(line) + 1 for line in content.split(b"\n")]
        lengths[0] += self._line
        self._line = lengths[-1] - 1
        lengths[-1] -= 1
        if max(lengths) > self._max_line:
            # Whichever bound was reached first is told.
            first = next(index for index, length in enumerate(lengths) if length > self._max_line)
            if sum(lengths[:first]) + self._max_line < room:
                return "500 Line too long (see RFC5321 4.5.3.1.6)"
        return "552 Error: Too much mail data" if len(content) > room else ""
