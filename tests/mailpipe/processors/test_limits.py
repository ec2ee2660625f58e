"""``limits``: refuses mails whose header, parts, recipients or hops are too many."""

from typing import Any

import pytest

from mailpipe.chain import ChainError, Settings, compile_chain
from mailpipe.errors import Rejected
from mailpipe.mime import MimeParser
from mailpipe.processors.limits import Limits, LimitsOptions

NESTED = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(9))


def refusal(envelope: Any, **options: Any) -> str:
    """The reply, or nothing."""
    parser = MimeParser()
    parser.feed(envelope.body.read())
    envelope.values["mime"] = parser.finish()
    try:
        Limits(LimitsOptions(**options))(envelope)
    except Rejected as rejected:
        return str(rejected.reply)[:9]
    return ""


@pytest.mark.parametrize(
    ("body", "options", "reply"),
    [
        (b"Received: a\r\n" * 50 + b"\r\n", {}, ""),
        (b"Received: a\r\n" * 51 + b"\r\n", {}, "554 5.4.6"),
        (b"Received: a\r\n" * 3 + b"\r\n", {"received": 2}, "554 5.4.6"),
        (b"X: y\r\n\r\n" + b"Received: a\r\n" * 99, {}, ""),
        (b"Received: a\r\n" * 99, {"received": None}, ""),
        (b"X: " + b"y" * 262_139 + b"\r\n\r\nbody\r\n", {}, ""),
        (b"X: " + b"y" * 262_140 + b"\r\n\r\nbody\r\n", {}, "552 5.3.4"),
        (b"X: yyyyy\r\n\r\n", {"header_size": 10}, ""),
        (b"X: yyyyyy\r\n\r\n", {"header_size": 10}, "552 5.3.4"),
        (b"X: yyyyyyyyyyyyyy", {"header_size": 10}, "552 5.3.4"),
        (b"\r\n" + b"body\r\n" * 100, {"header_size": 10}, ""),
        (b"X: y\r\n" * 99_999 + b"Received: a\r\n" * 51 + b"\r\n", {"header_size": None}, "554 5.4.6"),
        (NESTED, {"parts": 9, "depth": 9}, "554 5.6.0"),
        (NESTED, {"parts": 10, "depth": 9}, "554 5.6.0"),
        (NESTED, {"parts": 10, "depth": 10}, ""),
        (b"\r\n", {"recipients": 2}, ""),
        (b"\r\n", {"recipients": 1}, "552 5.5.3"),
    ],
)
def test_each_bound(mail: Any, body: bytes, options: dict[str, Any], reply: str) -> None:
    """At it, and one above it."""
    assert refusal(mail(body, rcpt_to=("a@x.org", "b@x.org")), **options) == reply


def test_what_the_analyzer_gave_up_on_is_too_much(mail: Any) -> None:
    """Its bound may be lower than ours."""
    envelope = mail(NESTED)
    parser = MimeParser(parts_max=3, depth_max=2)
    parser.feed(NESTED)
    envelope.values["mime"] = parser.finish()

    with pytest.raises(Rejected, match=r"554 5\.6\.0"):
        Limits(LimitsOptions(depth=100))(envelope)


def test_counting_parts_needs_the_analyzer() -> None:
    """The chain says so."""
    settings = {"limits": Settings(options={"parts": 5})}
    with pytest.raises(ChainError, match="limits: reads 'mime'"):
        compile_chain("limits | discard", settings=settings)
    assert compile_chain("limits | mimeanalyzer | discard", settings=settings).envelope[0].name == "limits"


@pytest.mark.parametrize("name", ["header_size", "received", "recipients", "parts", "depth"])
def test_bad_options(name: str) -> None:
    """The rule and the value got."""
    with pytest.raises(ValueError, match=f"{name} is 1 or more, or left out, got 0"):
        LimitsOptions(**{name: 0})
