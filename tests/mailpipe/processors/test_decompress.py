"""``decompress``: takes the compressor's copy back."""

import zlib
from typing import Any

import pytest

from mailpipe.chain import ChainError, compile_chain
from mailpipe.envelope import MemoryBody
from mailpipe.processors.decompress import decompress

BODY = b"Subject: x\r\n\r\n" + b"text " * 40_000


def test_the_storage_after_it_keeps_the_mail_plain(mail: Any, attempts: Any) -> None:
    """The copy is gone, what it gave is left, for whoever names it."""
    envelope, small = mail(BODY), mail()
    envelope.copies["compressor"] = MemoryBody(zlib.compress(BODY), "zlib")
    decompress(attempts([envelope, small]).next())

    assert list(envelope.copies) == ["decompress"]
    assert envelope.copies["decompress"].read() == BODY
    assert small.copies == {}


@pytest.mark.parametrize("wrong", [BODY[:-1], BODY + b"x", b"y" + BODY[1:], b""])
def test_a_copy_that_is_not_the_body_fails_that_mail(mail: Any, attempts: Any, wrong: bytes) -> None:
    """Instead of being kept; its neighbours go on."""
    envelope, other = mail(BODY), mail(BODY)
    envelope.copies["compressor"] = MemoryBody(zlib.compress(wrong), "zlib")
    other.copies["compressor"] = MemoryBody(zlib.compress(BODY), "zlib")
    batch = attempts([envelope, other]).next()
    decompress(batch)

    assert list(batch.errors) == [0]
    assert "decompress" in other.copies


def test_needs_a_compressor() -> None:
    """What nobody wrote cannot be read."""
    with pytest.raises(ChainError, match="reads 'compressor'"):
        compile_chain("decompress | sql")
