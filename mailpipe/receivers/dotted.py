"""
The body of a DATA command, taken out of the stream however TCP cuts it (RFC 5321 section 4.5.2).

Only CRLF.CRLF ends a body: every other way of writing a lone dot (LF.LF, CR.CR, CRLF.LF, ...) is
content, else two servers would disagree on where a mail ends, which is SMTP smuggling.
"""

__all__ = ["DotReader"]

_END = b"\r\n.\r\n"


class DotReader:
    """
    Takes octets, gives back content with the dots unstuffed, and finds the end.

    Keeps at most four octets back between two calls, whatever arrives. Reads no clock, does no
    I/O. One reader per body.
    """

    __slots__ = ("_carry", "_start", "bare")

    bare: bool
    """A CR without LF, or a LF without CR, was in the content so far."""

    def __init__(self) -> None:
        # The CRLF that ended the DATA line is the one before a dot on the first line. It is put in
        # front here, and taken off the first content.
        self._carry = b"\r\n"
        self._start = 2
        self.bare = False

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """
        Take *data*; return the content that is certain by now, and the rest.

        The rest is None until the end is there; then it is what came behind CRLF.CRLF.
        """
        if self._carry:
            data = self._carry + data
        end = data.find(_END)
        rest: bytes | None = None
        if end >= 0:
            content, rest = data[: end + 2], data[end + 5 :]
        elif keep := _unfinished(data):
            content, self._carry = data[:-keep], data[-keep:]
        else:
            content, self._carry = data, b""
        if not content:
            return content, rest
        if not self.bare:
            lines = content.count(b"\r\n")
            self.bare = content.count(b"\n") != lines or content.count(b"\r") != lines
        content = content.replace(b"\r\n.", b"\r\n")
        if self._start:
            # The content is not empty, so that the CRLF put in front is whole.
            content, self._start = content[2:], 0
        return content, rest


def _unfinished(data: bytes) -> int:
    """How many octets at the end of *data* may yet become a terminator or a stuffed dot."""
    for length in (4, 3, 2, 1):
        if data.endswith(_END[:length]):
            return length
    return 0
