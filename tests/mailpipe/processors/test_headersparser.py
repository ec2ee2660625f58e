"""``headersparser``: the header fields of a mail, unfolded and decoded."""

from typing import Any

from mailpipe.processors.headersparser import HeadersParserOptions, headersparser


def test_fields_and_subject(mail: Any) -> None:
    """RFC 2047 words, folds, names in any case."""
    envelope = mail(
        b"SUBJECT: =?utf-8?q?caf=C3=A9?=\r\n =?utf-8?q?_bar?=\r\nTo: a@x.org,\r\n\tb@x.org\r\n\r\nSubject: no\r\n"
    )
    headersparser(envelope, HeadersParserOptions())

    assert envelope.values["subject"] == "café bar" == envelope.subject
    assert envelope.values["headers"].get("to") == "a@x.org, b@x.org"
    assert len(envelope.values["headers"]) == 2


def test_without_a_header(mail: Any) -> None:
    """No subject is an empty one."""
    envelope = mail(b"\r\nSubject: in the body\r\n")
    headersparser(envelope, HeadersParserOptions())

    assert envelope.values["subject"] == "" == envelope.subject
    assert len(envelope.values["headers"]) == 0


def test_looks_so_far(mail: Any) -> None:
    """Fields beyond ``size_max`` are not there."""
    envelope = mail(b"A: 1\r\n" * 100 + b"\r\n")
    headersparser(envelope, HeadersParserOptions(size_max=60))

    assert len(envelope.values["headers"]) == 10
