"""``compressor``: a compressed copy of the body, for storages that keep it instead."""

import os
from typing import Any

import pytest

from mailpipe.chain import ChainError, Settings, compile_chain
from mailpipe.encodings import decoded
from mailpipe.processors.compressor import CompressorOptions, compressor

TEXT = b"Subject: minutes\r\n\r\n" + b"The meeting was adjourned until further notice.\r\n" * 200


@pytest.mark.parametrize("encoding", ["zlib", "zstd"])
def test_the_copy_gives_the_body_back(mail: Any, attempts: Any, encoding: Any) -> None:
    """And the received body stays."""
    envelope = mail(TEXT)
    compressor(attempts([envelope]).next(), CompressorOptions(encoding=encoding))

    copy = envelope.copies["compressor"]
    assert copy.encoding == encoding
    assert len(copy) < len(TEXT) / 3
    assert b"".join(decoded(copy.chunks(), copy.encoding)) == TEXT == envelope.body.read()


@pytest.mark.parametrize("body", [TEXT[:4095], os.urandom(8000), b""])
def test_leaves_alone_what_gains_nothing(mail: Any, attempts: Any, body: bytes) -> None:
    """Mails under 4 KiB, and those that do not shrink."""
    envelope = mail(body)
    compressor(attempts([envelope]).next(), CompressorOptions())

    assert envelope.copies == {}


def test_a_retry_compresses_nothing_again(mail: Any, attempts: Any) -> None:
    """The copy made is the copy kept."""
    envelope = mail(TEXT)
    tries = attempts([envelope])
    compressor(tries.next(), CompressorOptions())
    copy = envelope.copies["compressor"]
    compressor(tries.next(), CompressorOptions())

    assert envelope.copies["compressor"] is copy


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"encoding": "gzip"}, "encoding"),
        ({"level": 10}, "a level of zlib is 1 to 9, got 10"),
        ({"level": 0}, "got 0"),
        ({"at_least": -1}, "at_least"),
    ],
)
def test_bad_options(options: dict[str, Any], rule: str) -> None:
    """Refused when the chain is compiled."""
    with pytest.raises(ChainError, match=rule):
        compile_chain("compressor | sql", settings={"compressor": Settings(options=options)})


def test_needs_no_read_of_large_bodies(mail: Any, attempts: Any) -> None:
    """Those stand in files, and are kept as they are."""
    envelope = mail(TEXT)
    compressor(attempts([envelope]).next(), CompressorOptions(at_most=len(TEXT) - 1))

    assert envelope.copies == {}
