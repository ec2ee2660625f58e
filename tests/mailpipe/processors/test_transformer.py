"""``transformer``: a derived copy in which texts are plain UTF-8; the original stays."""

import base64
import email
import email.policy
import quopri
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailpipe.envelope import Body, MemoryBody
from mailpipe.processors.transformer import TransformerOptions, transformer
from mailpipe.streamstage import opener_of

TEXT = "Grüße aus Köln, 10 € und 日本\r\n"


def transformed(envelope: Any, body: bytes, cuts: Any = (), **options: Any) -> Body:
    tap = opener_of(transformer, (TransformerOptions(**options),))(envelope)
    start = 0
    for end in [*cuts, len(body)]:
        if end > start:
            tap.write(body[start:end])
            start = end
    tap.close()
    envelope.body = MemoryBody(body)
    copy: Body = envelope.copies["transformer"]
    assert len(copy) == len(copy.read())
    assert copy.encoding == ""
    return copy


def part(content: bytes, *lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + content


class TestTexts:
    @pytest.mark.parametrize("charset", ["utf-8", "iso-2022-jp", "utf-16", "gb18030"])
    @pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
    def test_become_utf8(self, mail: Any, charset: str, encoding: str) -> None:
        """Whatever they were; the header says what they are now."""
        text = "日本語\r\n" * 30
        raw = text.encode(charset)
        coded = base64.encodebytes(raw) if encoding == "base64" else quopri.encodestring(raw)
        body = part(
            coded,
            "Subject: x",
            f'Content-Type: text/plain; charset="{charset}"',
            f"Content-Transfer-Encoding: {encoding}",
        )
        copy = transformed(mail(), body).read()

        message = email.message_from_bytes(copy, policy=email.policy.default)
        assert message.get_content_charset() == "utf-8"
        assert message["Content-Transfer-Encoding"] == "8bit"
        assert message["Subject"] == "x"
        assert copy.partition(b"\r\n\r\n")[2].decode() == text

    def test_8bit_of_another_charset(self, mail: Any) -> None:
        """Only the charset is converted."""
        body = part(b"caf\xe9\r\n", "Content-Type: text/plain; format=flowed; charset=latin1; x=y")

        assert transformed(mail(), body).read() == part(
            "café\r\n".encode(), "Content-Type: text/plain; format=flowed; charset=utf-8; x=y"
        )

    def test_in_a_multipart_and_a_forwarded_mail(self, mail: Any) -> None:
        """Every text of the tree; what stands between is untouched."""
        message = EmailMessage()
        message["Subject"] = "outer"
        message.set_content(TEXT, charset="utf-8", cte="base64")
        message.add_alternative(f"<p>{TEXT}</p>", subtype="html", charset="utf-8", cte="quoted-printable")
        message.add_attachment(bytes(range(256)), maintype="image", subtype="png", filename="x.png")
        inner = EmailMessage()
        inner.set_content(TEXT, charset="utf-8", cte="base64")
        message.add_attachment(inner)
        copy = transformed(mail(), message.as_bytes(policy=email.policy.SMTP)).read()

        found = email.message_from_bytes(copy, policy=email.policy.default)
        assert copy.decode().count("Köln") == 3
        assert [p.get_content_type() for p in found.walk()] == [p.get_content_type() for p in message.walk()]
        image = next(p for p in found.walk() if p.get_content_type() == "image/png")
        assert image["Content-Transfer-Encoding"] == "base64"
        assert image.get_content() == bytes(range(256))

    def test_types_are_chosen(self, mail: Any) -> None:
        """Pictures too, where wanted: their octets, said to be binary."""
        body = part(
            base64.b64encode(bytes(range(256))),
            "Content-Type: image/png",
            "Content-Transfer-Encoding: base64",
        )
        copy = transformed(mail(), body, types=("image/",)).read()

        assert copy == part(bytes(range(256)), "Content-Type: image/png", "Content-Transfer-Encoding: binary")


class TestLeavesAlone:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"Subject: x\r\n\r\nplain\r\n",
            part(b"caf\xc3\xa9", "Content-Type: text/plain; charset=utf-8"),
            part(b"YQ==YQ==", "Content-Type: text/plain", "Content-Transfer-Encoding: base64"),
            part(b"YQ", "Content-Type: text/plain", "Content-Transfer-Encoding: base64"),
            part(b"Y===", "Content-Type: text/plain", "Content-Transfer-Encoding: base64"),
            part(b"x" * 70_000, "Content-Type: text/plain", "Content-Transfer-Encoding: quoted-printable"),
            part(b"begin", "Content-Type: text/plain", "Content-Transfer-Encoding: x-uuencode"),
            part(b"YQ==", "Content-Type: image/png", "Content-Transfer-Encoding: base64"),
            part(b"caf\xe9", "Content-Type: text/plain; charset=no-such"),
        ],
    )
    def test_what_it_cannot_better(self, mail: Any, body: bytes) -> None:
        """Damaged, unknown or plain: octet for octet."""
        assert transformed(mail(), body).read() == body

    @pytest.mark.parametrize("line_end", ["\r\n", "\n", "\r"])
    @pytest.mark.parametrize("forged", ["--outer-boundary", "--outer-boundary--", "--outer-boXX"])
    def test_texts_that_would_forge_parts(self, mail: Any, forged: str, line_end: str) -> None:
        """Decoded, they would look like a boundary of the mail around them."""
        text = f"hello{line_end}{forged}{line_end}Content-Type: text/html{line_end * 2}<script>".encode()
        evil = part(base64.encodebytes(text), "Content-Type: text/plain", "Content-Transfer-Encoding: base64")
        good = part(
            base64.encodebytes(b"good"), "Content-Type: text/plain", "Content-Transfer-Encoding: base64"
        )
        body = b"Content-Type: multipart/mixed; boundary=outer-boundary\r\n\r\n"
        for piece in (evil, good):
            body += b"--outer-boundary\r\n" + piece + b"\r\n"
        body += b"--outer-boundary--\r\n"
        copy = transformed(mail(), body, cuts=range(1, len(body))).read()

        assert evil in copy
        assert b"\r\n\r\ngood\r\n--outer" in copy
        parts = [p.get_content_type() for p in email.message_from_bytes(copy).walk()]
        assert parts == ["multipart/mixed", "text/plain", "text/plain"]

    def test_the_received_body(self, mail: Any) -> None:
        """What came is what is stored."""
        body = part(b"caf\xe9\r\n", "Content-Type: text/plain; charset=latin1")
        envelope = mail()
        transformed(envelope, body)

        assert envelope.body.read() == body


class TestTheCopy:
    def test_comes_in_pieces_and_again(self, mail: Any) -> None:
        """It is made while it is read."""
        body = part(
            base64.encodebytes(TEXT.encode() * 9999),
            "Content-Type: text/plain; charset=utf-8",
            "Content-Transfer-Encoding: base64",
        )
        copy = transformed(mail(), body)

        assert max(len(piece) for piece in copy.chunks(1000)) <= 1000
        assert b"".join(copy.chunks(1000)) == b"".join(copy.chunks()) == copy.read()

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(
            st.sampled_from(
                [
                    b"\r\n",
                    b"\n",
                    b"--b\r\n",
                    b"\r\n--b--\r\n",
                    b"Content-Type: multipart/mixed; boundary=b\r\n",
                    b"Content-Type: text/plain; charset=utf-16\r\n",
                    b"Content-Type: text/plain; charset=latin1\r\n",
                    b"Content-Transfer-Encoding: base64\r\n",
                    b"Content-Transfer-Encoding: quoted-printable\r\n",
                    b"=E9=\r\n",
                    b"=",
                    b"==",
                    b"=C",
                    b"aGVs",
                    b"bG8=",
                    b"\xe9",
                ]
            ),
            max_size=30,
        ),
        st.data(),
    )
    def test_is_the_same_however_the_mail_was_cut(
        self, mail: Any, pieces: list[bytes], data: st.DataObject
    ) -> None:
        """And its length is told right, always."""
        body = b"".join(pieces)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=20)))

        assert transformed(mail(), body, cuts).read() == transformed(mail(), body).read()
