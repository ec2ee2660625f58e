"""The MIME structure of a mail, found while its octets pass."""

import email
import email.policy
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpipe.mime import MimeParser, MimePart, MimeTree, parse_parameters

NESTED = b"""From: x\r
Content-Type: multipart/mixed; boundary="outer"\r
\r
preamble\r
--outer\r
Content-Type: multipart/alternative; boundary=inner\r
\r
--inner\r
\r
text\r
--inner  \r
Content-Type: text/html; charset="ISO-8859-1"\r
Content-Transfer-Encoding: quoted-printable\r
\r
<b>h=E9</b>\r
--inner--\r
\r
--outer\r
Content-Type: message/rfc822\r
Content-Disposition: attachment; filename*=utf-8''na%C3%AFve.eml\r
\r
Subject: fwd\r
\r
hi\r
--outer--\r
epilogue\r
"""


def parsed(mail: bytes, cuts: Iterator[int] | None = None, **bounds: Any) -> MimeTree:
    """Parse, cut at *cuts*; every octet must be told once, in order."""
    told = bytearray()
    parser = MimeParser(on_span=lambda kind, part, octets: told.extend(octets), **bounds)
    start = 0
    for end in [*(cuts or ()), len(mail)]:
        parser.feed(mail[start:end])
        start = max(start, end)
    tree = parser.finish()
    assert bytes(told) == mail
    return tree


def shape(tree: MimeTree, mail: bytes) -> list[Any]:
    return [
        (part.path, part.content_type, part.start, mail[part.body_start : part.end]) for part in tree.parts
    ]


class TestStructure:
    def test_nested(self) -> None:
        """Paths, types, offsets, file names; the line end before a boundary is the boundary's."""
        tree = parsed(NESTED)

        assert [(part.path, part.content_type) for part in tree.parts] == [
            ("1", "multipart/mixed"),
            ("1.1", "multipart/alternative"),
            ("1.1.1", "text/plain"),
            ("1.1.2", "text/html"),
            ("1.2", "message/rfc822"),
            ("1.2.1", "text/plain"),
        ]
        assert tree.errors == ()
        contents = {part.path: NESTED[part.body_start : part.end] for part in tree.parts}
        assert contents["1.1.1"] == b"text"
        assert contents["1.1.2"] == b"<b>h=E9</b>"
        assert contents["1.2.1"] == b"hi"
        assert contents["1"].endswith(b"epilogue\r\n")
        html = tree.first("text/html")
        assert html is not None
        assert (html.charset, html.transfer_encoding) == ("iso-8859-1", "quoted-printable")
        assert [part.filename for part in tree.attachments] == ["naïve.eml"]
        assert NESTED[tree.parts[3].start :].startswith(b"Content-Type: text/html")

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
    def test_however_it_is_cut(self, size: int) -> None:
        """TCP cuts anywhere (go-guerrilla missed boundaries in small slices)."""
        tree = parsed(NESTED, iter(range(size, len(NESTED), size)))

        assert shape(tree, NESTED) == shape(parsed(NESTED), NESTED)

    def test_bare_line_feeds(self) -> None:
        """With ``keep`` they arrive; the structure is the same."""
        mail = NESTED.replace(b"\r\n", b"\n")

        assert [p.path for p in parsed(mail).parts] == [p.path for p in parsed(NESTED).parts]

    def test_no_mime_at_all(self) -> None:
        """One part of plain text, headers or not."""
        for mail, body in ((b"Subject: x\r\n\r\nhi\r\n", b"hi\r\n"), (b"\r\nhi\r\n", b"hi\r\n"), (b"", b"")):
            tree = parsed(mail)
            assert shape(tree, mail) == [("1", "text/plain", 0, body)]
            assert tree.errors == ()

    def test_header_without_an_end(self) -> None:
        """All of it is header."""
        assert shape(parsed(b"Subject: x"), b"Subject: x") == [("1", "text/plain", 0, b"")]

    def test_part_without_empty_line(self) -> None:
        """The boundary ends its header too."""
        mail = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n--b--"
        tree = parsed(mail)

        assert shape(tree, mail)[1] == ("1.1", "text/html", 50, b"")
        assert tree.errors == ()

    def test_empty_parts(self) -> None:
        """Nothing between two boundaries is a part of nothing."""
        mail = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n--b\r\n\r\n--b\r\n\r\n\r\n--b--\r\n"

        assert [body for *_, body in shape(parsed(mail), mail)[1:]] == [b"", b"", b""]

    def test_digest(self) -> None:
        """Its parts are mails unless they say otherwise (RFC 2046 section 5.1.5)."""
        mail = (
            b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\nSubject: a\r\n\r\nhi\r\n--b--\r\n"
        )

        assert [p.content_type for p in parsed(mail).parts][1:] == ["message/rfc822", "text/plain"]

    def test_after_the_close_nothing_is_a_boundary(self) -> None:
        """The epilogue is nobody's content."""
        mail = NESTED + b"--outer\r\n\r\nno part\r\n--inner\r\n"

        assert len(parsed(mail).parts) == 6

    def test_a_parents_boundary_ends_all_within(self) -> None:
        """What an unclosed child called a boundary is none any more."""
        mail = (
            b"Content-Type: multipart/mixed; boundary=outer\r\n\r\n--outer\r\n"
            b"Content-Type: multipart/mixed; boundary=inner\r\n\r\n--inner\r\n\r\none\r\n"
            b"--outer\r\n\r\ntwo\r\n--inner\r\nthree\r\n--outer--\r\n"
        )
        tree = parsed(mail)

        assert [part.path for part in tree.parts] == ["1", "1.1", "1.1.1", "1.2"]
        assert shape(tree, mail)[3][3] == b"two\r\n--inner\r\nthree"

    def test_cuts_are_where_equal_parts_are_cut_alike(self) -> None:
        """Header ends and part ends, sorted."""
        tree = parsed(NESTED)
        cuts = tree.cuts()

        assert cuts == sorted(set(cuts))
        assert {tree.parts[3].start, tree.parts[3].body_start, tree.parts[3].end} <= set(cuts)

    def test_as_json(self) -> None:
        """Plain values."""
        told = parsed(NESTED).as_json()
        assert told["parts"][4]["filename"] == "naïve.eml"


TOKEN = st.text("abcDEF019'()+_,-./:=? ", min_size=1, max_size=20).map(str.strip).filter(bool)
LINES = st.lists(
    st.sampled_from([b"text", b"--", b"--x", b"-", b"", b"--outer", b"a: b", b" ", b"--b1--"]), max_size=5
)


@st.composite
def trees(draw: st.DrawFn, depth: int = 0) -> tuple[bytes, list[Any]]:
    """A well-formed mail, and the paths and contents it must have."""
    if depth == 3 or draw(st.booleans()):
        lines = [line for line in draw(LINES) if not line.startswith(b"--")]
        return b"Content-Type: text/plain\r\n\r\n" + b"\r\n".join(lines), [
            ("", "text/plain", b"\r\n".join(lines))
        ]
    boundary = b"level%d" % depth
    parts = draw(st.lists(trees(depth + 1), min_size=1, max_size=3))
    mail = b"Content-Type: multipart/mixed; boundary=%s\r\n\r\n" % boundary
    shape: list[Any] = [("", "multipart/mixed", None)]
    for number, (part, inner) in enumerate(parts, 1):
        mail += b"--%s\r\n%s\r\n" % (boundary, part)
        shape += [(f".{number}{path}", kind, body) for path, kind, body in inner]
    return mail + b"--%s--" % boundary, shape


class TestAnyMail:
    @given(trees(), st.data())
    def test_a_built_one_is_read_back(self, built: Any, data: st.DataObject) -> None:
        """Whatever was nested in what, and however it is cut."""
        mail, wanted = built
        cuts = sorted(data.draw(st.lists(st.integers(0, len(mail)), max_size=10)))
        tree = parsed(mail, iter(cuts))

        found = [
            (p.path[1:], p.content_type, None if p.multipart else mail[p.body_start : p.end])
            for p in tree.parts
        ]
        assert found == wanted
        assert tree.errors == ()

    @given(
        st.lists(
            st.sampled_from(
                [
                    b"\r\n",
                    b"\n",
                    b"\r",
                    b"--",
                    b"b",
                    b"--b",
                    b"\r\n--b\r\n",
                    b"\r\n--b--\r\n",
                    b"x: y",
                    b" ",
                    b"\r\n\r\n",
                    b"Content-Type: multipart/mixed; boundary=b",
                    b"Content-Type: message/rfc822",
                    b"Content-Type: m",
                ]
            ),
            max_size=30,
        ),
        st.data(),
    )
    def test_hostile_ones_give_the_same_however_cut(self, pieces: list[bytes], data: st.DataObject) -> None:
        """No octet is lost, no part is outside of its parent, no cut changes anything."""
        mail = b"".join(pieces)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(mail)), max_size=20)))
        tree = parsed(mail, iter(cuts))

        assert shape(tree, mail) == shape(parsed(mail), mail)
        by_path: dict[str, MimePart] = {part.path: part for part in tree.parts}
        for part in tree.parts:
            assert 0 <= part.start <= part.body_start <= part.end <= len(mail)
            parent = by_path.get(part.path.rpartition(".")[0])
            assert parent is None or parent.body_start <= part.start <= part.end <= parent.end

    def test_agrees_with_the_standard_library(self) -> None:
        """On what is well-formed."""
        message = email.message_from_bytes(NESTED, policy=email.policy.default)
        theirs = [part.get_content_type() for part in message.walk()]

        assert [part.content_type for part in parsed(NESTED).parts] == theirs


class TestBounds:
    @pytest.mark.parametrize(
        ("mail", "parts", "error"),
        [
            (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n" * 5000, 100, "too-many-parts"),
            (
                b"".join(
                    b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
                    for n in range(99)
                ),
                5,
                "too-deep",
            ),
            (b"Content-Type: message/rfc822\r\n\r\n" * 99, 5, "too-deep"),
            (b"Content-Type: multipart/mixed\r\n\r\n--b\r\n", 1, "boundary-missing"),
            (b"Content-Type: multipart/mixed; boundary=" + b"b" * 201 + b"\r\n\r\n", 1, "boundary-too-long"),
            (
                b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: multipart/x; boundary=b\r\n\r\n",
                2,
                "boundary-repeated",
            ),
            (b"a: b\r\n" * 20_000 + b"\r\n", 1, "header-too-long"),
            (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n", 2, "unclosed"),
        ],
    )
    def test_wrong_mail_is_noted(self, mail: bytes, parts: int, error: str) -> None:
        """And read as far as its bounds go."""
        tree = parsed(mail, parts_max=100, depth_max=5)

        assert len(tree.parts) == parts
        assert error in tree.errors

    def test_values_are_bounded_and_clean(self) -> None:
        """A file name is text for people, whatever it was."""
        mail = (
            b'Content-Type: a/b; name="'
            + b"x\x00" * 9999
            + b'"\r\nContent-ID: <'
            + b"y" * 9999
            + b">\r\n\r\n"
        )
        part = parsed(mail).parts[0]

        assert len(part.filename) <= 255
        assert "\0" not in part.filename
        assert len(part.content_id) <= 255

    @pytest.mark.parametrize(
        "hostile",
        [
            b"\n--",
            b"--b\r\n",
            b"--x\r\n",
            b"--b--\r\n",
            b"\r",
            b"\n",
            b"-",
            b"Content-Type: message/rfc822\r\n\r\n",
            b"Content-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n",
            b'Content-Type: a/b; x="',
            b';a="\\"',
        ],
    )
    @pytest.mark.parametrize("head", [b"", b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"])
    def test_no_input_is_superlinear(self, head: bytes, hostile: bytes) -> None:
        """Eight times the input takes about eight times as long, not sixty-four."""

        def spent(size: int) -> float:
            mail = head + hostile * (size // len(hostile))
            begun = time.process_time()
            parser = MimeParser()
            for start in range(0, len(mail), 4096):
                parser.feed(mail[start : start + 4096])
            parser.finish()
            return time.process_time() - begun

        small = min(spent(50_000) for _ in range(3))
        assert min(spent(400_000) for _ in range(3)) < 30 * max(small, 0.002)


class TestParameters:
    @pytest.mark.parametrize(
        ("value", "found"),
        [
            ("text/plain", {}),
            ("text/plain; charset=utf-8", {"charset": "utf-8"}),
            ('a/b; name="x; y=\\"z\\""; Q = r ', {"name": 'x; y="z"', "q": "r"}),
            ("a/b; n=1; n=2", {"n": "1"}),
            ("a/b; name*=utf-8'en'%C3%A9", {"name": "é"}),
            ("a/b; name*0*=iso-8859-1''%E9; name*1=t%41; name*2*=%E9", {"name": "ét%41é"}),
            ("a/b; name*1=b; name*0=a", {"name": "ab"}),
            ('a/b; name="unclosed', {"name": "unclosed"}),
            ("a/b;;; =x; y", {}),
            ("a/b; name*=nope''x", {"name": "x"}),
        ],
    )
    def test_as_written(self, value: str, found: dict[str, str]) -> None:
        """RFC 2045, RFC 2231, and what programs write."""
        assert dict(parse_parameters(value)) == found

    @given(st.text())
    def test_nothing_breaks_them(self, value: str) -> None:
        """Any text gives some parameters."""
        for name, _ in parse_parameters(value):
            assert name == name.lower()
