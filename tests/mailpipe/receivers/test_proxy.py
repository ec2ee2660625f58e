import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpipe.receivers.proxy import BadProxy, ProxyHeader, parse_proxy, parse_xclient

V2 = b"\r\n\r\n\0\r\nQUIT\n"
FOUR = V2 + b"\x21\x11" + struct.pack("!H4s4sHH", 12, bytes([192, 0, 2, 1]), bytes([10, 0, 0, 1]), 4000, 25)
SIX = (
    V2
    + b"\x21\x21"
    + struct.pack("!H16s16sHH", 36, b"\x20\x01" + bytes(13) + b"\1", bytes(15) + b"\1", 4000, 25)
)


class TestProxy:
    @pytest.mark.parametrize(
        ("data", "header"),
        [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 4000 25\r\n", ("192.0.2.1", 4000, "10.0.0.1")),
            (b"PROXY TCP6 2001:DB8::1 ::1 4000 25\r\n", ("2001:db8::1", 4000, "::1")),
            (b"PROXY UNKNOWN\r\n", ("", 0, "")),
            (b"PROXY UNKNOWN anything at all\r\n", ("", 0, "")),
            (FOUR, ("192.0.2.1", 4000, "10.0.0.1")),
            (SIX, ("2001::1", 4000, "::1")),
            (V2 + b"\x20\x00\0\0", ("", 0, "")),
            (V2 + b"\x21\x31\0\3abc", ("", 0, "")),
            (FOUR[:15] + bytes([12 + 5]) + FOUR[16:] + b"\x04\0\2ab", ("192.0.2.1", 4000, "10.0.0.1")),
        ],
    )
    def test_good_at_every_cut(self, data: bytes, header: tuple[str, int, str]) -> None:
        """None until whole; then the header, and what came behind it untouched."""
        for cut in range(len(data)):
            assert parse_proxy(data[:cut]) is None
        peer, port, local = header
        assert parse_proxy(data + b"\r\nEHLO") == ProxyHeader(
            peer=peer, port=port, local=local, rest=b"\r\nEHLO"
        )

    @pytest.mark.parametrize(
        "data",
        [
            *(
                b"EHLO me\r\n",
                b"PROXX",
                b"proxy TCP4",
                b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
                b"PROXY TCP5 a b 1 2\r\n",
            ),
            *(
                b"PROXY TCP4 ::1 ::1 1 2\r\n",
                b"PROXY TCP4 1.2.3.4 1.2.3.400 1 2\r\n",
                b"PROXY  TCP4 1 2 3 4\r\n",
            ),
            *(b"PROXY TCP4 1.2.3.4 5.6.7.8 70000 2\r\n", b"PROXY " + b"x" * 200, b"PROXY UNKNOWN\nx\r\n"),
            *(V2 + b"\x11\x11\0\0", V2 + b"\x22\x11\0\0", V2 + b"\x21\x11\0\2ab", V2 + b"\x21\x11\xff\xff"),
        ],
    )
    def test_bad(self, data: bytes) -> None:
        """No guesses; no header without bound."""
        with pytest.raises(BadProxy):
            parse_proxy(data)

    @given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", V2, FOUR[:14]]))
    def test_any_input_is_answered(self, noise: bytes, begin: bytes) -> None:
        """A header, more to come, or BadProxy; nothing else."""
        with contextlib.suppress(BadProxy):
            parse_proxy(begin + noise)


class TestXclient:
    def test_good(self) -> None:
        """Values undone from xtext; what is not available is said to be."""
        assert parse_xclient(
            "ADDR=192.0.2.1 port=4000 NAME=[UNAVAILABLE] HELO=me.example LOGIN=ann+40example"
        ) == {
            "ADDR": "192.0.2.1",
            "PORT": "4000",
            "NAME": "",
            "HELO": "me.example",
            "LOGIN": "ann@example",
        }
        assert parse_xclient("ADDR=IPV6:2001:DB8::1 PROTO=esmtp") == {"ADDR": "2001:db8::1", "PROTO": "ESMTP"}
        assert parse_xclient("ADDR=[TEMPUNAVAIL]") == {"ADDR": ""}

    def test_helo_that_is_no_name_is_unknown(self) -> None:
        """As for EHLO."""
        assert parse_xclient("HELO=<evil>") == {"HELO": "unknown"}

    @pytest.mark.parametrize(
        "argument",
        [
            *(
                "",
                "ADDR",
                "ADDR=",
                "ADDR=x",
                "ADDR=1.2.3.4 ADDR=1.2.3.4",
                "FOO=1",
                "PORT=x",
                "PORT=99999",
                "PROTO=LMTP",
            ),
            *(
                "LOGIN=a+0Ab",
                "LOGIN=a+00",
                "LOGIN=\xff",
                "LOGIN=" + "a" * 300,
                "ADDR=1.2.3.4/8",
                "ADDR=1.2.3.4\x00",
            ),
        ],
    )
    def test_bad(self, argument: str) -> None:
        """One bad attribute and none counts."""
        assert parse_xclient(argument) is None
