"""
The MIME structure of a mail, found while its octets pass (RFC 2045, 2046, 2183, 2231).

How it works. Two searches are all there is: in a header for the empty line, in a body for a line
that starts with ``--``; both are done by the regular library at its own speed. A line that starts so
is looked up in the table of open boundaries, which costs the same however many are open. So the
work is linear in the octets, whatever they are; what is remembered is bounded by `parts_max` and
`depth_max`, and headers are read up to 64 KiB each.

Wrong mail is no error here, it is noted in `MimeTree.errors` and read as mail programs read it.

Pure. Offsets count octets of the body from 0.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

import attrs

from mailpipe.headers import clean_text, decode_words, header_fields, text_codec, unfolded

__all__ = ["MimeParser", "MimePart", "MimeTree", "parse_parameters"]

Kind = Literal["head", "body", "other"]
Span = Callable[[Kind, "MimePart", bytes], None]

_HEAD_MAX = 65_536
_LINE_MAX = 1_000
_VALUE_MAX = 8_192
_NAME_MAX = 255
_HEAD_EVENT = re.compile(rb"\n(?:\r?\n|--)")
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"?|[^;]*)', re.DOTALL)
_CONTINUED = re.compile(r"([^*]+)\*(\d{1,3})?(\*)?")
_TYPE = re.compile(r"\s*([!-.0-~]+/[!-.0-:<-~]+)")
_IDENTITY = {"", "7bit", "8bit", "binary"}


@attrs.define(eq=False)
class MimePart:
    """One part: where it is, and what its header says of it."""

    path: str
    """``"1"`` is the mail itself, ``"1.2"`` the second part in it."""

    start: int
    """Of its header."""

    body_start: int = 0
    """After the empty line that ends the header."""

    end: int = 0
    """Of its body; the line end before a boundary is the boundary's."""

    content_type: str = "text/plain"
    charset: str = ""
    """In lower case, as named; ``""`` if not."""

    transfer_encoding: str = "7bit"
    disposition: str = ""
    """``"inline"``, ``"attachment"`` or ``""``."""

    filename: str = ""
    """Decoded, without controls; never a path to be used as one."""

    content_id: str = ""
    boundary: str = ""
    """Of a multipart."""

    children: int = 0

    @property
    def multipart(self) -> bool:
        """It has parts, not a content of its own."""
        return bool(self.boundary)


@attrs.frozen(eq=False)
class MimeTree:
    """What was found: parts in the order of the mail, and what is wrong with it."""

    parts: tuple[MimePart, ...]
    errors: tuple[str, ...]
    """
    Of ``too-many-parts``, ``too-deep``, ``boundary-missing``, ``boundary-too-long``,
    ``boundary-repeated``, ``header-too-long``, ``unclosed``; each once.
    """

    def first(self, content_type: str) -> MimePart | None:
        """The first part of that type that is not an attachment."""
        return next(
            (p for p in self.parts if p.content_type == content_type and p.disposition != "attachment"), None
        )

    @property
    def attachments(self) -> tuple[MimePart, ...]:
        """Parts with a file name, or said to be attachments."""
        return tuple(
            p for p in self.parts if not p.multipart and (p.filename or p.disposition == "attachment")
        )

    def cuts(self) -> list[int]:
        """Offsets at which headers and bodies end, sorted, each once: where equal parts are cut alike."""
        return sorted(
            {offset for part in self.parts for offset in (part.start, part.body_start, part.end)} - {0}
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"parts": [attrs.asdict(part) for part in self.parts], "errors": list(self.errors)}


class MimeParser:
    """
    Finds the parts of one mail as its octets are fed in.

    Args:
        parts_max: Parts found at most; what follows belongs to the last one.

        depth_max: Parts within parts at most; deeper ones are not looked into.

        on_span:
            Called with every octet once, in order: ``head`` with a part's whole header, ``body`` with
            pieces of a content, ``other`` with boundaries and what stands outside of parts.
    """

    def __init__(self, *, parts_max: int = 1000, depth_max: int = 32, on_span: Span | None = None) -> None:
        self._parts_max, self._depth_max, self._on_span = parts_max, depth_max, on_span
        self._root = MimePart("1", 0)
        self._parts = [self._root]
        self._stack = [self._root]
        self._boundaries: dict[bytes, int] = {}
        self._errors: dict[str, None] = {}
        self._state: Literal["head", "body", "rest"] = "head"
        self._head = bytearray()
        # A line end that is not there: so that the first line starts like any other.
        self._data, self._base = b"\n", -1
        self._mark, self._from = 1, 0

    def feed(self, chunk: bytes) -> None:
        """Take the next octets, however cut."""
        self._run(self._data + chunk if self._data else chunk, final=False)

    def finish(self) -> MimeTree:
        """The mail is whole."""
        self._run(self._data, final=True)
        end = self._base
        if self._state == "head":
            self._head_ended(end, at_end=True)
        for part in self._stack:
            part.end = max(part.body_start, end)
        if self._boundaries:
            self._note("unclosed")
        return MimeTree(tuple(self._parts), tuple(self._errors))

    def _note(self, error: str) -> None:
        self._errors[error] = None

    # The search. _data[_mark:] was not told to _span yet; no event starts before _from.

    def _run(self, data: bytes, *, final: bool) -> None:
        waiting = -1
        while self._state != "rest":
            at = self._next_event(data)
            if at < 0:
                break
            if data[at + 1] != 0x2D:
                self._empty_line(data, at)
                continue
            eol = data.find(b"\n", at + 3, at + 3 + _LINE_MAX)
            if eol < 0 and len(data) - at <= _LINE_MAX:
                if not final:
                    waiting = at
                    break
                eol = len(data) - 1
            found = self._boundary_of(data[at + 1 : eol + 1]) if eol > 0 else None
            if found is None:
                self._from = at + 3
            else:
                self._delimiter(data, at, eol + 1, *found)
        self._keep(data, waiting, final=final)

    def _next_event(self, data: bytes) -> int:
        if self._state == "body":
            return data.find(b"\n--", self._from)
        found = _HEAD_EVENT.search(data, self._from)
        return found.start() if found else -1

    def _keep(self, data: bytes, waiting: int, *, final: bool) -> None:
        length = len(data)
        if final or self._state == "rest":
            keep = resume = length
        elif waiting >= 0:
            keep, resume = max(0, waiting - 1), waiting
        else:
            # The last octets may begin an event: "\r\n-" and what comes.
            keep, resume = max(0, length - 4), max(self._from, length - 2)
        if keep > self._mark:
            self._content(data[self._mark : keep])
        self._mark = max(self._mark, keep) - keep
        self._from = max(0, resume - keep)
        self._data, self._base = data[keep:], self._base + keep

    def _empty_line(self, data: bytes, at: int) -> None:
        end = data.index(b"\n", at + 1) + 1
        self._content(data[self._mark : end])
        self._mark, self._from = end, end - 1
        self._head_ended(self._base + end)

    def _boundary_of(self, line: bytes) -> tuple[int, bool] | None:
        text = line[2:].rstrip(b" \t\r\n")
        if (level := self._boundaries.get(text)) is not None:
            return level, False
        if text.endswith(b"--") and (level := self._boundaries.get(text[:-2])) is not None:
            return level, True
        return None

    def _delimiter(self, data: bytes, at: int, end: int, level: int, closing: bool) -> None:
        cut = at - 1 if at > self._mark and data[at - 1] == 0x0D else at
        cut = max(cut, self._mark)
        self._content(data[self._mark : cut])
        if self._state == "head":
            self._head_ended(self._base + cut, at_end=True)
        for part in self._stack[level + 1 :]:
            part.end = max(part.body_start, self._base + cut)
            self._boundaries.pop(part.boundary.encode(), None)
        del self._stack[level + 1 :]
        owner = self._stack[level]
        self._span("other", owner, data[cut:end])
        self._mark, self._from = end, end - 1
        if closing:
            self._boundaries.pop(owner.boundary.encode(), None)
            self._state = "body" if self._boundaries else "rest"
        elif not self._open(owner, self._base + end):
            self._boundaries.clear()
            self._state = "rest"

    def _open(self, owner: MimePart, start: int) -> bool:
        """Begin a part within *owner*; False if there are too many."""
        if len(self._parts) >= self._parts_max:
            self._note("too-many-parts")
            return False
        owner.children += 1
        part = MimePart(f"{owner.path}.{owner.children}", start, body_start=start, end=start)
        if owner.content_type == "multipart/digest":
            part.content_type = "message/rfc822"
        self._parts.append(part)
        self._stack.append(part)
        self._state = "head"
        return True

    # What was found.

    def _content(self, octets: bytes) -> None:
        part = self._stack[-1]
        if self._state != "head":
            # Before the first and after the last boundary of a multipart is nobody's content.
            self._span("other" if part.multipart else "body", part, octets)
        elif len(self._head) <= _HEAD_MAX:
            self._head += octets
            if len(self._head) > _HEAD_MAX:
                self._note("header-too-long")
                self._span("other", part, bytes(self._head))
        else:
            self._span("other", part, octets)

    def _span(self, kind: Kind, part: MimePart, octets: bytes) -> None:
        if self._on_span is not None and octets:
            self._on_span(kind, part, octets)

    def _head_ended(self, end: int, *, at_end: bool = False) -> None:
        part, head = self._stack[-1], bytes(self._head)
        self._head.clear()
        part.body_start = part.end = end
        _describe(part, head[:_HEAD_MAX])
        boundary, part.boundary = part.boundary, ""
        if len(head) <= _HEAD_MAX:
            self._span("head", part, head)
        self._state = "body" if self._boundaries else "rest"
        if at_end:
            return
        if part.content_type.startswith("multipart/"):
            self._begin_multipart(part, boundary)
        elif part.content_type == "message/rfc822" and part.transfer_encoding in _IDENTITY:
            if len(self._stack) >= self._depth_max:
                self._note("too-deep")
            else:
                self._open(part, end)

    def _begin_multipart(self, part: MimePart, boundary: str) -> None:
        key = boundary.encode(errors="replace")
        if not boundary:
            self._note("boundary-missing")
        elif len(key) > 200:
            # RFC 2046 says 70; some programs write more, and are read.
            self._note("boundary-too-long")
        elif key in self._boundaries:
            self._note("boundary-repeated")
        elif len(self._stack) >= self._depth_max:
            self._note("too-deep")
        else:
            part.boundary = boundary
            self._boundaries[key] = len(self._stack) - 1
            self._state = "body"


def _describe(part: MimePart, head: bytes) -> None:
    seen: set[bytes] = set()
    name = ""
    for field, raw in header_fields(head):
        key = field.lower()
        if not key.startswith(b"content-") or key in seen:
            continue  # of a field given twice the first counts
        seen.add(key)
        value = unfolded(raw[:_VALUE_MAX])
        if key == b"content-type":
            found = _TYPE.match(value)
            parameters = dict(parse_parameters(value))
            part.content_type = found[1].lower()[:_NAME_MAX] if found else "text/plain"
            part.charset = clean_text(parameters.get("charset", "")).strip().lower()[:_NAME_MAX]
            part.boundary = parameters.get("boundary", "").rstrip()
            name = parameters.get("name", "")
        elif key == b"content-transfer-encoding":
            part.transfer_encoding = clean_text(value).partition("(")[0].strip().lower()[:_NAME_MAX]
        elif key == b"content-disposition":
            kind = value.partition(";")[0].strip().lower()
            part.disposition = kind if kind in {"", "inline"} else "attachment"
            part.filename = _named(dict(parse_parameters(value)).get("filename", ""))
        elif key == b"content-id":
            part.content_id = clean_text(value).strip().strip("<>")[:_NAME_MAX]
    part.filename = part.filename or _named(name)


def _named(text: str) -> str:
    return decode_words(text)[:_NAME_MAX]


def parse_parameters(value: str) -> Iterator[tuple[str, str]]:
    """
    Yield the parameters of a Content-Type or Content-Disposition; names in lower case.

    Quoted strings are unquoted, RFC 2231 pieces joined and decoded; of a name given twice the first
    counts.
    """
    plain: dict[str, str] = {}
    pieces: dict[str, dict[int, tuple[str, bool]]] = {}
    for found in _PARAMETER.finditer(value):
        name, text = found[1].lower(), found[2].strip()
        if text.startswith('"'):
            text = re.sub(r"\\(.)", r"\1", text[1:].removesuffix('"'), flags=re.DOTALL)
        continued = _CONTINUED.fullmatch(name)
        if continued is None:
            plain.setdefault(name, text)
            continue
        number = int(continued[2] or 0)
        coded = continued[2] is None or continued[3] is not None
        pieces.setdefault(continued[1], {}).setdefault(number, (text, coded))
    for name, numbered in pieces.items():
        plain[name] = _joined([numbered[number] for number in sorted(numbered)])
    yield from plain.items()


def _joined(pieces: list[tuple[str, bool]]) -> str:
    charset, raw = "utf-8", b""
    for index, (text, coded) in enumerate(pieces):
        if coded and index == 0 and text.count("'") >= 2:
            charset, _, text = text.split("'", 2)
        octets = text.encode(errors="replace")
        raw += unquote_to_bytes(octets) if coded else octets
    codec = text_codec(charset or "utf-8") or text_codec("utf-8")
    return raw.decode(codec.name if codec else "utf-8", "replace")
