"""Encodings of copies, done and undone piece by piece."""

import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpipe.encodings import DecodedBody, EncodingMissing, decoded, encoded
from mailpipe.envelope import MemoryBody

ENCODINGS = ["", "zlib", "zstd"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(chunks=st.lists(st.binary(max_size=300)), cut=st.integers(1, 50), size=st.integers(1, 100))
def test_comes_back_however_it_is_cut(encoding: str, chunks: list[bytes], cut: int, size: int) -> None:
    """Byte for byte."""
    packed = b"".join(encoded(chunks, encoding))
    pieces = [packed[start : start + cut] for start in range(0, len(packed), cut)]

    assert b"".join(decoded(pieces, encoding, size=size)) == b"".join(chunks)


@pytest.mark.parametrize("encoding", ["zlib", "zstd"])
class TestBroken:
    def test_cut_short(self, encoding: str) -> None:
        """Half a mail is never given for a whole one."""
        packed = b"".join(encoded([b"x" * 1000], encoding))
        with pytest.raises(ValueError, match="end too early"):
            list(decoded([packed[:-1]], encoding))

    def test_other_octets(self, encoding: str) -> None:
        """The rule, not zlib's own error."""
        with pytest.raises(ValueError, match=f"not of encoding '{encoding}'"):
            list(decoded([b"no such thing"], encoding))

    def test_nothing(self, encoding: str) -> None:
        """No octets are no stream of any encoding."""
        with pytest.raises(ValueError, match="end too early"):
            list(decoded([], encoding))


def test_a_bomb_comes_in_pieces() -> None:
    """Ten kilobytes that unpack to ten megabytes are never held whole."""
    packed = zlib.compress(bytes(10_000_000), 9)
    sizes = [len(piece) for piece in decoded([packed], "zlib", size=65536)]

    assert max(sizes) <= 65536
    assert sum(sizes) == 10_000_000
    assert b"".join(decoded([zlib.compress(b"a" * 10_000)], "zlib", size=10)) == b"a" * 10_000


def test_octets_after_the_end() -> None:
    """They are nobody's."""
    with pytest.raises(ValueError, match="2 octets follow"):
        list(decoded([zlib.compress(b"x") + b"yz"], "zlib"))


@pytest.mark.parametrize("coder", [encoded, decoded])
def test_unknown(coder: type) -> None:
    """The rule and the value got."""
    with pytest.raises(EncodingMissing, match="'lzma' is none of"):
        list(coder([b"x"], "lzma"))


def test_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(EncodingMissing, match="needs the extra 'zstd'"):
        list(encoded([b"x"], "zstd"))


def test_a_decoded_body_reads_as_received() -> None:
    """Its chunks are no larger than asked for, and may be read again."""
    body = DecodedBody(MemoryBody(zlib.compress(b"abc" * 100), "zlib"), 300)

    assert (len(body), body.encoding) == (300, "")
    assert b"".join(body.chunks(7)) == body.read() == b"abc" * 100
    assert max(map(len, body.chunks(7))) == 7
