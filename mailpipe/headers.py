"""
Header lines: found, unfolded, decoded (RFC 5322, RFC 2047), and written safely.

Pure, and linear in what it is given: a hostile header costs what an honest one of its length does.
"""

import binascii
import codecs
import encodings.aliases
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

__all__ = [
    "HEAD_MAX",
    "Headers",
    "clean_text",
    "decode_words",
    "find_header",
    "header_block",
    "header_fields",
    "header_line",
    "header_value",
    "text_codec",
    "unfolded",
]

HEAD_MAX = 262_144
"""Octets searched for a header; what lies beyond is not looked at."""

_VALUE_MAX = 900
"""Octets of one value of ours, so that any line with one stays below 998 (RFC 5322 section 2.1.1)."""

_FOLD_AT = 78
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_SPACES = re.compile(r"[ \t]+")
_NAME = re.compile(rb"[!-9;-~]+")
_WORD = re.compile(r"=\?([^?\s]+)\?([bBqQ])\?([^?]*)\?=")
_QUOTED = re.compile(rb"=([0-9A-Fa-f]{2})")

# Only codecs that Python lists: looking an unknown name up imports modules and remembers the
# name for ever, so that mail could fill the memory with invented charsets. Left out are those
# that are no charsets of mail and may be slow or yield anything.
_NO_CHARSETS = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"}
_CODECS = {
    alias: codec
    for alias, codec in {
        **encodings.aliases.aliases,
        **{c: c for c in encodings.aliases.aliases.values()},
    }.items()
    if codec not in _NO_CHARSETS and not codec.endswith("_codec") and codec != "rot_13"
}
# What senders write and mean: the Windows sets are supersets of these.
_CODECS |= {
    "iso_8859_1": "cp1252",
    "latin1": "cp1252",
    "us_ascii": "ascii",
    "ks_c_5601_1987": "cp949",
    "gb2312": "gb18030",
}


def text_codec(charset: str) -> codecs.CodecInfo | None:
    """Look a charset of mail up; None if it is none that we decode."""
    name = charset.partition("*")[0].strip().lower().replace("-", "_").replace(" ", "_")
    codec = _CODECS.get(name)
    return None if codec is None else codecs.lookup(codec)


def clean_text(text: str) -> str:
    """Replace each run of controls, line ends and surrogates by one space."""
    return _CONTROLS.sub(" ", text)


def header_value(text: str, *, limit: int = _VALUE_MAX) -> str:
    """
    Make *text* safe as a value in a header line of ours.

    No controls, no surrogates, runs of blanks as one, at most *limit* octets of UTF-8; what is
    longer is cut. Folding is `header_line`'s.
    """
    if text.isascii() and text.isprintable() and len(text) <= limit and " " not in text:
        return text  # nearly every value: one plain word
    value = _SPACES.sub(" ", clean_text(text)).strip(" ")
    if len(value) * 4 > limit:
        value = value.encode()[:limit].decode(errors="ignore")
    return value


def header_line(name: str, value: str) -> bytes:
    """
    Write ``name: value`` folded at blanks where it is longer than 78, CRLF at its end.

    The value is made safe by `header_value` word by word, so no line exceeds 998 octets.
    """
    line = f"{name}: {value}"
    if len(line) <= _FOLD_AT and line.isascii() and line.isprintable() and value == value.strip():
        return f"{line}\r\n".encode()
    lines: list[str] = []
    line = f"{name}:"
    for word in clean_text(value).split():
        word = header_value(word)
        if len(line) + 1 + len(word) > _FOLD_AT and line != f"{name}:":
            lines.append(line)
            line = ""
        line = f"{line} {word}"
    return "".join([f"{line}\r\n" for line in [*lines, line]]).encode()


def header_fields(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """
    Yield name and raw value of each field until the empty line; folds stay in the value.

    Lines that are no header are skipped, as mail programs do. Ends of line may be CRLF or LF.
    """
    name, parts = b"", list[bytes]()
    start, length = 0, len(head)
    while start < length:
        end = head.find(b"\n", start)
        end = length if end < 0 else end + 1
        line = head[start:end]
        start = end
        if line in (b"\r\n", b"\n"):
            break
        if line[:1] in (b" ", b"\t"):
            if name:
                parts.append(line)
            continue
        if name:
            yield name, b"".join(parts)
        found = _NAME.match(line)
        name = b""
        if found and (colon := line[found.end() :].lstrip(b" \t")).startswith(b":"):
            name, parts = found.group(), [colon[1:]]
    if name:
        yield name, b"".join(parts)


def header_block(chunks: Iterable[bytes], limit: int = HEAD_MAX) -> bytes:
    """The octets up to the empty line that ends the header, or *limit* of them; cut not exactly there."""
    head = bytearray(b"\n")  # so that an empty first line is like any other
    for chunk in chunks:
        seen = max(0, len(head) - 3)
        head += chunk[: limit + 1 - len(head)]
        if len(head) > limit or head.find(b"\n\r\n", seen) >= 0 or head.find(b"\n\n", seen) >= 0:
            break
    return bytes(head[1:])


def find_header(chunks: Iterable[bytes], name: str) -> str | None:
    """
    Find the first field *name*, unfolded, words decoded; None if there is none.

    Looks at the first 256 KiB only.
    """
    head = header_block(chunks)
    wanted = name.lower().encode()
    for found, value in header_fields(head):
        if found.lower() == wanted:
            return decode_words(unfolded(value))
    return None


def decode_words(text: str) -> str:
    """
    Unfold *text* and decode its RFC 2047 words; what cannot be decoded stays as it is.

    Neighbouring words of one charset are joined before decoding, for senders cut characters in
    two (forbidden, and common). The result has no controls.
    """
    pieces: list[str] = []
    pending, charset, last = b"", "", 0
    for found in _WORD.finditer(text):
        between = text[last : found.start()]
        raw = _word_octets(found[2], found[3])
        if raw is None or text_codec(found[1]) is None:
            continue
        name = found[1].partition("*")[0].lower()
        joined = bool(charset) and not between.strip()
        if not joined or name != charset:
            pieces.append(_decoded(pending, charset))
            pieces.append("" if joined else between)
            pending = b""
        pending, charset, last = pending + raw, name, found.end()
    pieces += [_decoded(pending, charset), text[last:]]
    return header_text("".join(pieces))


def header_text(text: str) -> str:
    """One line for people: folds and controls as a blank, nothing at the ends."""
    return clean_text(text.replace("\r\n", "")).replace("\t", " ").strip()


def unfolded(value: bytes) -> str:
    """
    A raw field value as text: unfolded, UTF-8 where it is, else Windows-1252.

    A line end before a blank goes, the blank stays (RFC 5322 section 2.2.3).
    """
    value = value.replace(b"\r\n", b"").replace(b"\n", b"")
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("cp1252", "replace")


def _decoded(octets: bytes, charset: str) -> str:
    codec = text_codec(charset) if octets else None
    return "" if codec is None else octets.decode(codec.name, "replace")


def _word_octets(encoding: str, text: str) -> bytes | None:
    try:
        octets = text.encode("ascii")
    except UnicodeEncodeError:
        return None
    if encoding in "qQ":
        return _QUOTED.sub(lambda hexed: bytes([int(hexed[1], 16)]), octets.replace(b"_", b" "))
    try:
        return binascii.a2b_base64(octets + b"=" * (-len(octets) % 4))
    except binascii.Error:
        return None


class Headers(Sequence[tuple[str, str]]):
    """
    The fields of one header block in order, decoded; names in any case.

    Args:
        fields: Name as written and value as decoded.
    """

    __slots__ = ("_by_name", "_fields")

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self._fields = tuple(fields)
        self._by_name: dict[str, list[str]] = {}
        for name, value in self._fields:
            self._by_name.setdefault(name.lower(), []).append(value)

    @classmethod
    def parse(cls, head: bytes) -> "Headers":
        """Parse a header block, which ends at the empty line or at the end of *head*."""
        return cls([(name.decode(), decode_words(unfolded(value))) for name, value in header_fields(head)])

    def get(self, name: str, default: str = "") -> str:
        """The first value of *name*."""
        return self._by_name.get(name.lower(), [default])[0]

    def get_all(self, name: str) -> tuple[str, ...]:
        """Every value of *name* in order."""
        return tuple(self._by_name.get(name.lower(), ()))

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[str, str], ...]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, str] | tuple[tuple[str, str], ...]:
        return self._fields[index]

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Headers({list(self._fields)!r})"
