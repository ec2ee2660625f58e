"""
The body of a DATA command, taken out of the stream however TCP cuts it (RFC 5321 section 4.5.2).

Only CRLF.CRLF ends a body: every other way of writing a lone dot (LF.LF, CR.CR, CRLF.LF, ...) is
content, else two servers would disagree on where a mail ends, which is SMTP smuggling.
"""

import re

__all__ = ["DotReader"]

_END = b"\r\n.\r\n"

# Compiled patterns that begin with a literal find it by memchr; bytes.find and bytes.count look at
# each octet, and take up to four times as long on lines of text. A body without stuffed dots is gone
# through twice: for what may follow a CR, and for what may stand before a LF.
_find_lone_cr_or_dot = re.compile(rb"\r(?:[^\n]|\n\.)").search
_find_dot = re.compile(rb"\r\n\.").search
_find_lone_cr = re.compile(rb"\r[^\n]").search
_find_lone_lf = re.compile(rb"\n(?<!\r\n)").search


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
        if self._start and len(self._carry) == 2 and data[:1] != b".":
            # Nothing was read yet, and no dot begins the first line.
            self._carry, self._start = b"", 0
        elif self._carry:
            data = self._carry + data
        content, stuffed = data, -1
        rest: bytes | None = None
        dot = _find_lone_cr_or_dot(data)
        if dot is not None and dot.end() - dot.start() == 2:
            self.bare = True
            dot = _find_dot(data, dot.start())
        if dot is not None:
            at = dot.start()
            if not data.startswith(b"\r\n", at + 3):
                stuffed, at = at, data.find(_END, at)
            if at >= 0:
                content, rest = data[: at + 2], data[at + 5 :]
        if rest is None:
            if keep := _unfinished(data):
                content, self._carry = data[:-keep], data[-keep:]
            else:
                self._carry = b""
        if not content:
            return content, rest
        if stuffed < 0:
            self.bare = self.bare or _find_lone_lf(content) is not None
        else:
            # What follows the first stuffed dot was not looked at yet. A CR that ends the content has no
            # LF behind it, for one that may yet get its own is kept back: so one octet more is seen.
            self.bare = (
                self.bare
                or _find_lone_cr(data, stuffed, len(content) + 1) is not None
                or _find_lone_lf(content) is not None
            )
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
