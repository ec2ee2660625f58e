"""An envelope as a row: subjects found by a scan, text that any column takes."""

import pytest

from mailpipe.envelope import MemoryBody
from mailpipe.storages._rows import clean, decoded_subject, raw_subject


class TestRawSubject:
    @pytest.mark.parametrize(
        ("head", "subject"),
        [
            (b"Subject: first\r\nTo: x\r\n\r\n", "first"),
            (b"To: x\r\nSubject: later\r\n\r\nbody", "later"),
            (b"To: x\r\nsUbJeCt \t:odd\r\n\r\n", "odd"),
            (b"To: x\r\nSubject: folded\r\n line\r\n\tmore\r\nCc: y\r\n\r\n", "folded line\tmore"),
            (b"To: x\r\n\r\nSubject: in the body\r\n", ""),
            (b"To: x\r\nsubject: small\r\n\r\nSubject: in the body\r\n", "small"),
            (b"\r\nSubject: in the body\r\n", ""),
            (b"X-Subject: no\r\n\r\n", ""),
            (b"To: x\r\nSubject: unended", "unended"),
            (b"To: x\r\nSubject: caf\xc3\xa9\r\n\r\n", "café"),
            (b"To: x\r\nSubject: caf\xe9\r\n\r\n", "café"),
            (b"To: x\r\nSubject: a\0b\r\n\r\n", "a\ufffdb"),
            (b"To: x\nSubject: bare\n\n", "bare"),
            (b"Subject:\r\n\r\n", ""),
            (b"", ""),
        ],
    )
    def test_finds_the_field(self, head: bytes, subject: str) -> None:
        """In the header only, any case, unfolded, whatever the octets."""
        assert raw_subject(MemoryBody(head)) == subject

    def test_is_bounded(self) -> None:
        """A subject of a megabyte is no reason for a column of a megabyte."""
        body = MemoryBody(b"Subject: " + b"x" * 1_000_000 + b"\r\n\r\n")

        assert raw_subject(body) == "x" * 2000


class TestDecodedSubject:
    @pytest.mark.parametrize(
        ("raw", "shown"),
        [
            ("plain", "plain"),
            ("=?utf-8?q?gr=C3=BC=C3=9Fe?=", "grüße"),
            ("=?utf-8?b?Z3LDvMOfZQ==?= =?iso-8859-1?q?_d=FC?= end", "grüße dü end"),
            ("=?no-such-charset?q?x?=", "=?no-such-charset?q?x?="),
            ("=?utf-8?q?never ended", "=?utf-8?q?never ended"),
            ("=?utf-8?q?=1B[31mred=0D=0A?=", "[31mred"),
        ],
    )
    def test_undoes_rfc_2047(self, raw: str, shown: str) -> None:
        """What cannot be decoded stays; controls never reach a terminal."""
        assert decoded_subject(raw) == shown


class TestClean:
    @pytest.mark.parametrize(
        ("text", "fit"), [("plain", "plain"), ("ü\U0001f600", "ü\U0001f600"), ("\0a\udc80", "\ufffda\ufffd")]
    )
    def test_leaves_what_is_fit(self, text: str, fit: str) -> None:
        """NUL and surrogates alone are replaced."""
        assert clean(text) == fit
