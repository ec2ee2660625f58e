"""
Encodings of a body's copies: what `Body.encoding` names, done and undone piece by piece.

Pure. ``"zlib"`` is always there; ``"zstd"`` needs the extra of that name.
"""

import importlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import attrs

__all__ = ["DecodedBody", "EncodingMissing", "decoded", "encoded"]

_PIECE = 65536


class EncodingMissing(ValueError):
    """An encoding that nobody knows, or whose extra is not installed."""

    def __init__(self, encoding: str) -> None:
        rule = "needs the extra 'zstd'" if encoding == "zstd" else "is none of '', 'zlib' and 'zstd'"
        super().__init__(f"encoding {encoding!r} {rule}")
        self.encoding = encoding


def encoded(chunks: Iterable[bytes], encoding: str, *, level: int | None = None) -> Iterator[bytes]:
    """
    Encode *chunks*; the parts of the result, never held whole.

    Args:
        chunks: The octets in order.

        encoding: ``""`` (as they are), ``"zlib"`` or ``"zstd"``.

        level: The encoding's own; None for its fast one (1).

    Raises:
        EncodingMissing: If it is unknown or its extra is not installed.
    """
    if encoding == "":
        yield from chunks
        return
    if encoding == "zlib":
        coder: Any = zlib.compressobj(1 if level is None else level)
    elif encoding == "zstd":
        coder = _zstd().ZstdCompressor(level=1 if level is None else level).compressobj()
    else:
        raise EncodingMissing(encoding)
    for chunk in chunks:
        if piece := coder.compress(chunk):
            yield piece
    if piece := coder.flush():
        yield piece


def decoded(chunks: Iterable[bytes], encoding: str, *, size: int = _PIECE) -> Iterator[bytes]:
    """
    Undo `encoded`; pieces of about *size* octets, never the whole, whatever the ratio.

    Raises:
        EncodingMissing: If the encoding is unknown or its extra is not installed.
        ValueError: If the octets are not of that encoding, or end too early.
    """
    if encoding == "":
        yield from chunks
    elif encoding == "zlib":
        yield from _inflated(chunks, size)
    elif encoding == "zstd":
        yield from _unzstd(chunks)
    else:
        raise EncodingMissing(encoding)


def _inflated(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj()
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if piece := inflater.decompress(rest, size):
                    yield piece
                rest = inflater.unconsumed_tail
    except zlib.error as error:
        msg = f"octets are not of encoding 'zlib': {error}"
        raise ValueError(msg) from error
    if not inflater.eof:
        msg = "octets of encoding 'zlib' end too early"
        raise ValueError(msg)
    if inflater.unused_data:
        msg = f"{len(inflater.unused_data)} octets follow the end of encoding 'zlib'"
        raise ValueError(msg)


def _unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    zstd = _zstd()
    inflater = zstd.ZstdDecompressor().decompressobj()
    ended = False
    try:
        for chunk in chunks:
            # Small bites: decompressobj has no bound of its own for what one call returns.
            for start in range(0, len(chunk), 4096):
                if piece := inflater.decompress(chunk[start : start + 4096]):
                    yield piece
            ended = inflater.eof
    except zstd.ZstdError as error:
        msg = f"octets are not of encoding 'zstd': {error}"
        raise ValueError(msg) from error
    if not ended:
        msg = "octets of encoding 'zstd' end too early"
        raise ValueError(msg)


def _zstd() -> Any:  # noqa: ANN401 - a module that may be missing
    name = "zstd"
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        raise EncodingMissing(name) from None


class _Chunked(Protocol):
    @property
    def encoding(self) -> str: ...

    def __len__(self) -> int: ...

    def chunks(self, size: int = _PIECE) -> Iterator[bytes]: ...


@attrs.frozen(eq=False)
class DecodedBody:
    """
    A body whose encoding is undone while it is read.

    Args:
        inner: The encoded body.

        size: Octets once decoded, as the storage noted them.
    """

    inner: _Chunked
    size: int
    encoding: str = attrs.field(default="", init=False)

    def __len__(self) -> int:
        return self.size

    def chunks(self, size: int = _PIECE) -> Iterator[bytes]:
        """Yield the decoded octets in order, at most *size* at a time."""
        for piece in decoded(self.inner.chunks(), self.inner.encoding, size=size):
            for start in range(0, len(piece), size):
                yield piece[start : start + size]

    def read(self) -> bytes:
        """Return all decoded octets at once; for bodies known to be small."""
        return b"".join(self.chunks())
