"""Header lines found, decoded, and written safely."""

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpipe.headers import (
    Headers,
    clean_text,
    decode_words,
    find_header,
    header_fields,
    header_line,
    header_value,
    text_codec,
)

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class TestWriting:
    @given(st.text())
    def test_a_value_never_contains_controls(self, text: str) -> None:
        """Whatever a client said: no line of ours can be broken by it."""
        value = header_value(text)

        assert not CONTROL.search(value)
        assert len(value.encode()) <= 900
        assert header_value(value) == value

    @given(st.text(min_size=1, max_size=3000))
    def test_a_line_is_one_field_of_short_lines(self, text: str) -> None:
        """Folded at blanks; 998 octets at most; it reads back as one field."""
        line = header_line("X-Test", text)

        assert line.endswith(b"\r\n")
        lines = line[:-2].split(b"\r\n")
        assert all(len(part) <= 998 for part in lines)
        assert all(part.startswith(b" ") for part in lines[1:])
        assert not CONTROL.search(line.replace(b"\r\n", b"").decode())
        assert [name for name, _ in header_fields(line)] == [b"X-Test"]

    def test_folds_at_78(self) -> None:
        """For people, and for old programs."""
        assert header_line(
            "Received", "from a.example.org (client [192.0.2.1]) by mx.example.org with ESMTP id x"
        ) == (b"Received: from a.example.org (client [192.0.2.1]) by mx.example.org with ESMTP\r\n id x\r\n")


class TestReading:
    def test_fields_until_the_empty_line(self) -> None:
        """Folds belong to their field; what is no field is skipped."""
        head = b"A: 1\r\n\t2\r\nnonsense\r\n still\r\nB : 3\nC:4\r\n\r\nD: 5\r\n"

        assert list(header_fields(head)) == [(b"A", b" 1\r\n\t2\r\n"), (b"B", b" 3\n"), (b"C", b"4\r\n")]

    @given(st.binary())
    def test_no_octets_break_it(self, head: bytes) -> None:
        """Hostile headers give some fields, clean ones."""
        for name, value in Headers.parse(head):
            assert name.isascii()
            assert not CONTROL.search(value)

    @pytest.mark.parametrize("size", [1, 3, 65536])
    def test_finds_across_chunks(self, size: int) -> None:
        """However the body is cut."""
        body = b"From: a\r\nsubJECT: one\r\n  two\r\n\r\nSubject: not me\r\n"
        chunks = [body[start : start + size] for start in range(0, len(body), size)]

        assert find_header(chunks, "Subject") == "one  two"
        assert find_header(chunks, "To") is None

    def test_looks_so_far_and_no_further(self) -> None:
        """A header without end costs 256 KiB, not the mail."""
        taken = []

        def endless() -> Any:
            while True:
                taken.append(1)
                yield b"X: y\r\n" * 10_000

        assert find_header(endless(), "Subject") is None
        assert len(taken) <= 5

    def test_headers_by_name(self) -> None:
        """In any case, the first or all."""
        headers = Headers.parse(b"Received: a\r\nReceived: b\r\nTo: =?utf-8?q?J=C3=BCrgen?= <j@x>\r\n")

        assert headers.get("RECEIVED") == "a"
        assert headers.get_all("received") == ("a", "b")
        assert headers.get("to") == "Jürgen <j@x>"
        assert headers.get("none") == ""
        assert len(headers) == 3
        assert headers[0] == ("Received", "a")


class TestWords:
    @pytest.mark.parametrize(
        ("text", "decoded"),
        [
            ("plain", "plain"),
            ("=?utf-8?q?caf=C3=A9?=", "café"),
            ("=?UTF-8?B?Y2Fmw6k=?= bar", "café bar"),
            ("=?utf-8?b?Y2Fmw6k?=", "café"),  # padding forgotten
            ("=?iso-8859-1?q?a?= =?utf-8?q?b?=", "ab"),
            ("=?utf-8?q?a=C3?= \r\n =?utf-8?q?=A9?=", "aé"),  # a character cut in two
            ("a =?utf-8?q?b?= c =?utf-8?q?d?=", "a b c d"),
            ("=?utf-8*en?q?hi?=", "hi"),
            ("=?x-none?q?a?=", "=?x-none?q?a?="),
            ("=?utf-8?x?a?=", "=?utf-8?x?a?="),
            ("=?utf-8?q?a=zz?=", "a=zz"),
            ("=?utf-8?q?a_b?=", "a b"),
            ("=?utf-8?q?a b?=", "a b"),  # a blank, which RFC 2047 forbids
            ("=?utf-8?q?=00=0D=0A?=x", "x"),
            ("=?iso-2022-jp?b?GyRCRnxLXBsoQg==?=", "日本"),
            ("=?utf-8?q?=FF?=", "\ufffd"),
            ("=?utf-7?q?+2AA-?=", ""),  # a lone surrogate
        ],
    )
    def test_decode(self, text: str, decoded: str) -> None:
        """As senders write them, not only as they should."""
        assert decode_words(text).replace("\ufffd" if decoded == "" else "\0", "") == decoded

    @given(st.text(alphabet="=?utf-8qQbB_ \r\nA" + "é\ud800\x00", max_size=200))
    def test_nothing_breaks_it(self, text: str) -> None:
        """And the result is always clean."""
        assert not CONTROL.search(decode_words(text))

    @pytest.mark.parametrize(
        "piece", ["=?", "=?a?q?", "=?utf-8?q?", "?=", "=?utf-8?q?a?= ", "=?utf-8?b?", "=?a", " \t"]
    )
    def test_is_linear(self, piece: str) -> None:
        """Ten times the input takes about ten times as long, not a hundred."""

        def spent(times: int) -> float:
            text = piece * times
            begun = time.process_time()
            decode_words(text)
            return time.process_time() - begun

        small = min(spent(2_000) for _ in range(3))
        assert min(spent(20_000) for _ in range(3)) < 30 * max(small, 0.001)

    @pytest.mark.parametrize(
        "name", ["idna", "punycode", "unicode_escape", "rot13", "zlib", "base64", "no-such", "hex", ""]
    )
    def test_no_codec_that_is_no_charset(self, name: str) -> None:
        """Some are slow, some yield anything, and unknown ones would be remembered for ever."""
        assert text_codec(name) is None

    def test_known_charsets(self) -> None:
        """Under the names that mail uses."""
        for name in (
            "UTF-8",
            "us-ascii",
            "ISO-8859-15",
            "windows-1252",
            "koi8-r",
            "gb2312",
            "shift_jis",
            "euc-kr",
            "big5",
        ):
            codec = text_codec(name)
            assert codec is not None, name
            assert b"abc".decode(codec.name) == "abc"


def test_clean_text_joins_runs() -> None:
    """Line ends and controls become one blank."""
    assert clean_text("a\r\n\x00b\u2028c") == "a b c"
