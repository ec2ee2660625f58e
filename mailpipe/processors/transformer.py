"""
``transformer``: a derived copy in which texts are plain UTF-8; the original stays.

=========  ==========================================================
stage      stream; large chunks in a worker thread
options    `TransformerOptions`
reads      --
writes     ``transformer`` (`Envelope.copies`)
=========  ==========================================================

Base64 and quoted-printable become 8bit, charsets become UTF-8, and the two header fields that say
so are rewritten. go-guerrilla changed the mail itself; here a later step asks for it by
``body = "transformer"``.

The copy is not kept anywhere: it is made again from the received body whenever it is read, in pieces,
so a large mail costs no memory. The pass while the mail streams counts its octets, and finds the
parts that must stay as they are: damaged ones, and those whose decoded text would look like a
boundary of the mail around it and so forge parts.
"""

import binascii
import codecs
import re
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

import attrs

from mailpipe.envelope import Envelope
from mailpipe.headers import text_codec
from mailpipe.mime import Kind, MimeParser, MimePart
from mailpipe.steps import processor

__all__ = ["TransformedBody", "TransformerOptions", "transformer"]

_LINE_MAX = 65_536
_PREFIX = 8
"""Octets by which boundaries are told apart from decoded text: fewer than any that programs write."""

_READ_MAX = 64 * 1024 * 1024
_LINE = re.compile(rb"[\r\n]--")
_IDENTITY = frozenset({"", "7bit", "8bit", "binary"})
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_NOT_BASE64 = bytes(set(range(256)) - set(_ALPHABET))
_CHARSET = re.compile(rb'(;\s*charset\s*=\s*)("[^"]*"|[^;\s]*)', re.IGNORECASE)
_FIELD = re.compile(rb"[^\n]*(?:\n[ \t][^\n]*)*\n?")


@attrs.frozen(kw_only=True)
class TransformerOptions:
    """
    Settings of ``transformer``.

    Args:
        types:
            Content types that are converted, by how they begin; ``("text/", "image/")`` undoes the
            base64 of pictures too.

        parts_max: Parts looked at, at most.

        depth_max: Parts within parts, at most.
    """

    types: tuple[str, ...] = attrs.field(default=("text/",), converter=tuple)
    parts_max: int = attrs.field(default=1000, validator=attrs.validators.ge(1))
    depth_max: int = attrs.field(default=32, validator=[attrs.validators.ge(1), attrs.validators.le(1000)])


class _Damaged(ValueError):
    """A content is not what its header says; it stays as it is."""


class _Coding(Protocol):
    def feed(self, octets: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class _Identity:
    def feed(self, octets: bytes) -> bytes:
        return octets

    def finish(self) -> bytes:
        return b""


class _Base64:
    """Whole groups of four at a time; what is no base64 is skipped (RFC 2045 section 6.8)."""

    def __init__(self) -> None:
        self._rest = b""
        self._ended = False

    def feed(self, octets: bytes) -> bytes:
        data = self._rest + octets.translate(None, _NOT_BASE64)
        if not data:
            return b""
        whole = len(data) & ~3
        self._rest = data[whole:]
        if self._ended or (padding := data.find(b"=")) >= 0:
            return self._last(data, -1 if self._ended else padding)
        return binascii.a2b_base64(data[:whole])

    def _last(self, data: bytes, padding: int) -> bytes:
        if padding < 0:
            msg = "base64 goes on after its end"
            raise _Damaged(msg)
        end = (padding | 3) + 1
        if len(data) > end:
            msg = "base64 goes on after its end"
            raise _Damaged(msg)
        if len(data) < end:  # the last group is not whole yet
            self._rest = data[padding & ~3 :]
            return binascii.a2b_base64(data[: padding & ~3])
        self._ended = True
        self._rest = b""
        try:
            return binascii.a2b_base64(data)
        except binascii.Error as error:
            raise _Damaged(str(error)) from error

    def finish(self) -> bytes:
        if self._rest:
            msg = "base64 ends within a group"
            raise _Damaged(msg)
        return b""


class _QuotedPrintable:
    """Whole lines at a time, so that no escape is cut in two."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, octets: bytes) -> bytes:
        data = self._rest + octets
        whole = data.rfind(b"\n") + 1
        self._rest = data[whole:]
        if len(self._rest) > _LINE_MAX:
            msg = "a quoted-printable line has no end"
            raise _Damaged(msg)
        return binascii.a2b_qp(data[:whole])

    def finish(self) -> bytes:
        return binascii.a2b_qp(self._rest)


class _Charset:
    """Octets of a charset to UTF-8; what cannot be decoded becomes U+FFFD."""

    def __init__(self, inner: _Coding, codec: codecs.CodecInfo) -> None:
        self._inner = inner
        self._decoder = codecs.getincrementaldecoder(codec.name)("replace")

    def feed(self, octets: bytes) -> bytes:
        return self._decoded(self._inner.feed(octets), final=False)

    def finish(self) -> bytes:
        return self._decoded(self._inner.finish(), final=True)

    def _decoded(self, octets: bytes, *, final: bool) -> bytes:
        try:
            return self._decoder.decode(octets, final).encode(errors="replace")
        except UnicodeError as error:  # UTF-16 that does not say which
            raise _Damaged(str(error)) from error


def _coding_of(part: MimePart, types: tuple[str, ...]) -> tuple[_Coding, bool] | None:
    """How *part* is converted, and whether its charset is; None if it stays as it is."""
    kind = part.content_type
    if kind.startswith(("multipart/", "message/")) or not kind.startswith(types):
        return None
    coding: _Coding
    if part.transfer_encoding == "base64":
        coding = _Base64()
    elif part.transfer_encoding == "quoted-printable":
        coding = _QuotedPrintable()
    elif part.transfer_encoding in _IDENTITY:
        coding = _Identity()
    else:
        return None
    codec = text_codec(part.charset) if kind.startswith("text/") else None
    if codec is not None and codec.name not in {"utf-8", "ascii"}:
        return _Charset(coding, codec), True
    return None if isinstance(coding, _Identity) else (coding, False)


def _rewritten(head: bytes, part: MimePart, *, charset: bool) -> bytes:
    """The header of a converted part: its two fields say what the content is now."""
    lines, seen = [], set[bytes]()
    for field in _FIELD.findall(head):
        name = field.partition(b":")[0].rstrip().lower()
        if name not in {b"content-type", b"content-transfer-encoding"}:
            lines.append(field)
            continue
        if name in seen:
            continue  # of a field given twice the first counts, here as for the parser
        seen.add(name)
        if name == b"content-type":
            lines.append(_CHARSET.sub(rb"\1utf-8", field, count=1) if charset else field)
        else:
            text = part.content_type.startswith("text/")
            lines.append(b"Content-Transfer-Encoding: %s\r\n" % (b"8bit" if text else b"binary"))
    return b"".join(lines)


class _Converter:
    """Turns the spans of a mail into those of its copy; parts in *keep* stay as they are."""

    def __init__(
        self, options: TransformerOptions, keep: frozenset[str], write: Callable[[bytes], None]
    ) -> None:
        self._options, self._keep, self._write = options, keep, write
        self._parser = MimeParser(
            parts_max=options.parts_max, depth_max=options.depth_max, on_span=self._span
        )
        self._part: MimePart | None = None
        self._coding: _Coding = _Identity()

    def feed(self, chunk: bytes) -> None:
        self._parser.feed(chunk)

    def finish(self) -> None:
        self._parser.finish()
        self._end_part()

    def _span(self, kind: Kind, part: MimePart, octets: bytes) -> None:
        if kind == "body" and part is self._part:
            self._content(self._coding.feed, octets)
            return
        self._end_part()
        found = None
        if kind == "head" and part.path not in self._keep:
            found = _coding_of(part, self._options.types)
        if found is None:
            self._write(octets)
            return
        self._part, (self._coding, charset) = part, found
        self._write(_rewritten(octets, part, charset=charset))

    def _content(self, coding: Callable[[bytes], bytes], octets: bytes) -> None:
        if piece := coding(octets):
            self._write(piece)

    def _end_part(self) -> None:
        if self._part is not None:
            self._content(lambda _: self._coding.finish(), b"")
            self._part = None


class _Survey(_Converter):
    """The pass while the mail streams: how long the copy will be, and which parts stay as they are."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__(options, frozenset(), self._count)
        self.size = 0
        self.converted: set[str] = set()
        self.kept: set[str] = set()
        self._raw = self._before = 0
        self._spoilt = False
        self._line = b""
        self._prefixes: dict[int, set[bytes]] = {}

    def _count(self, octets: bytes) -> None:
        self.size += len(octets)

    def _span(self, kind: Kind, part: MimePart, octets: bytes) -> None:
        if part.boundary:
            prefix = part.boundary.encode(errors="replace")[:_PREFIX]
            self._prefixes.setdefault(len(prefix), set()).add(prefix)
        if kind == "body" and part is self._part:
            self._raw += len(octets)
        before = self.size
        super()._span(kind, part, octets)
        if kind == "head" and part is self._part:
            self._before, self._raw = before, len(octets)
            self._spoilt, self._line = False, b"\n"

    def _content(self, coding: Callable[[bytes], bytes], octets: bytes) -> None:
        if self._spoilt:
            return
        try:
            piece = coding(octets)
        except _Damaged:
            self._spoilt = True
            return
        self.size += len(piece)
        self._spoilt = self._forges(piece)

    def _forges(self, piece: bytes) -> bool:
        """Whether a line begins like one of the mail's boundaries."""
        data = self._line + piece
        keep = max(0, len(data) - 2)
        for found in _LINE.finditer(data):
            start = found.end()
            if any(data[start : start + length] in known for length, known in self._prefixes.items()):
                return True
            if len(data) < start + _PREFIX:
                keep = min(keep, found.start())
        self._line = data[keep:]
        return False

    def _end_part(self) -> None:
        part = self._part
        if part is None:
            return
        super()._end_part()
        if self._spoilt:
            self.kept.add(part.path)
            self.size = self._before + self._raw
        else:
            self.converted.add(part.path)


@attrs.frozen(eq=False)
class TransformedBody:
    """
    The copy: made again from the envelope's body at each reading, never held whole.

    Args:
        envelope: Whose body it is made of.

        options: What is converted.

        kept: Paths of parts that stay as they are.

        size: Octets.

        changes: Some part is converted; else the copy is the body.
    """

    envelope: Envelope
    options: TransformerOptions
    kept: frozenset[str]
    size: int
    changes: bool
    encoding: str = attrs.field(default="", init=False)

    def __len__(self) -> int:
        return self.size

    def chunks(self, size: int = 65536) -> Iterator[bytes]:
        """Yield the octets in order, at most *size* at a time."""
        if not self.changes:
            yield from self.envelope.body.chunks(size)
            return
        pieces: list[bytes] = []
        converter = _Converter(self.options, self.kept, pieces.append)
        for chunk in self.envelope.body.chunks():
            converter.feed(chunk)
            yield from _cut(pieces, size)
        converter.finish()
        yield from _cut(pieces, size)

    def read(self) -> bytes:
        """
        Return all octets at once.

        Raises:
            ValueError: If the body is too large to be held in memory; use `chunks`.
        """
        if self.size > _READ_MAX:
            msg = f"a copy of {self.size} octets is not read at once; use chunks()"
            raise ValueError(msg)
        return b"".join(self.chunks())


def _cut(pieces: list[bytes], size: int) -> Iterator[bytes]:
    data = b"".join(pieces)
    pieces.clear()
    for start in range(0, len(data), size):
        yield data[start : start + size]


@processor("transformer", options=TransformerOptions, writes=("transformer",), rejects=False)
def transformer(envelope: Envelope, options: TransformerOptions) -> Generator[None, bytes | None, None]:
    """Put a `TransformedBody` into ``envelope.copies["transformer"]``."""
    survey = _Survey(options)
    while (chunk := (yield)) is not None:
        survey.feed(chunk)
    survey.finish()
    envelope.copies["transformer"] = TransformedBody(
        envelope, options, frozenset(survey.kept), survey.size, bool(survey.converted)
    )
