import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailpipe.receivers.dotted import DotReader


def read(*pieces: bytes) -> tuple[bytes, bytes | None, bool]:
    """Feed the pieces; the content, what came behind the end, and whether a bare CR or LF was there."""
    reader, content = DotReader(), b""
    for number, piece in enumerate(pieces):
        some, rest = reader.feed(piece)
        content += some
        if rest is not None:
            return content, rest + b"".join(pieces[number + 1 :]), reader.bare
    return content, None, reader.bare


CASES = [
    (b".\r\n", b""),
    (b"\r\n.\r\n", b"\r\n"),
    (b"a\r\n.\r\n", b"a\r\n"),
    (b"a\r\n..\r\n.\r\n", b"a\r\n.\r\n"),
    (b"..a\r\n.\r\n", b".a\r\n"),
    (b"...\r\n.\r\n", b"..\r\n"),
    (b".a\r\n..b\r\n.\r\n", b"a\r\n.b\r\n"),
    (b"a\r\n\r\n\r\n.\r\n", b"a\r\n\r\n\r\n"),
    (b"a.\r\n.\r\n", b"a.\r\n"),
]


class TestEnd:
    @pytest.mark.parametrize(("sent", "content"), CASES)
    def test_is_found_however_tcp_cuts(self, sent: bytes, content: bytes) -> None:
        """Every cut into two and into three, and octet by octet, give the same."""
        sent += b"NOOP\r\n"
        assert read(sent) == (content, b"NOOP\r\n", False)
        assert read(*[sent[i : i + 1] for i in range(len(sent))]) == (content, b"NOOP\r\n", False)
        for one in range(1, len(sent)):
            assert read(sent[:one], sent[one:]) == (content, b"NOOP\r\n", False)
            for two in range(one + 1, len(sent)):
                assert read(sent[:one], sent[one:two], sent[two:]) == (content, b"NOOP\r\n", False)

    @pytest.mark.parametrize(
        "fake",
        [
            *(b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\n.\r", b"\r.\n", b"\r\n.\r"),
            *(b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n. \r\n", b"\r\r\n.\r\r\n", b"\r\n.\r\r\n"),
        ],
    )
    def test_is_nothing_else(self, fake: bytes) -> None:
        """No other lone dot ends a body, alone or cut in two: no smuggling."""
        sent = b"a" + fake + b"MAIL FROM:<x@y>\r\n.\r\n"
        for cut in range(1, len(sent)):
            content, rest, bare = read(sent[:cut], sent[cut:])
            assert rest == b""
            assert b"MAIL FROM:<x@y>" in content
            assert bare is (b"\n" in fake.replace(b"\r\n", b"") or b"\r" in fake.replace(b"\r\n", b""))


def stuffed(body: bytes) -> bytes:
    """What a client sends for *body*, which ends in CRLF or is empty."""
    return (b"\r\n" + body).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


class TestContent:
    @given(
        body=st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"a", b"..", b"\0"])).map(b"".join),
        cuts=st.lists(st.integers(min_value=1, max_value=7), min_size=1),
    )
    @example(body=b"\n\r", cuts=[3])  # a lone LF and a lone CR, as many of these as of those
    def test_comes_out_as_it_was_before_stuffing(self, body: bytes, cuts: list[int]) -> None:
        """Unstuffing undoes stuffing octet for octet; bare CR and LF are noticed whatever the cuts."""
        body += b"\r\n"
        sent, pieces, at = stuffed(body) + b"QUIT\r\n", [], 0
        while at < len(sent):
            pieces.append(sent[at : at + cuts[len(pieces) % len(cuts)]])
            at += len(pieces[-1])
        left = body.replace(b"\r\n", b"")
        assert read(*pieces) == (body, b"QUIT\r\n", b"\r" in left or b"\n" in left)

    def test_is_handed_on_at_once(self) -> None:
        """At most four octets are kept back, whatever comes."""
        reader, given_out = DotReader(), 0
        for piece in (b"x" * 1000, b"\r" * 1000, b"\r\n" * 500, b"\r\n.x" * 250, b"." * 1000, b"\n" * 1000):
            content, rest = reader.feed(piece)
            given_out += len(content) + (250 if piece.startswith(b"\r\n.x") else 0)
            assert rest is None
        assert given_out >= 6000 - 4
