"""Every processor over any octets: an answer, never trouble."""

from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from mailpipe.chain import Settings
from mailpipe.testing import FailingStore, envelope, run_async

CHAIN = (
    "mimeanalyzer | hasher | transformer | headersparser | debugger | header | limits | compressor | store"
)
TABLES = {
    "limits": Settings(options={"parts": 20, "depth": 4}),
    "debugger": Settings(options={"log_headers": True, "log_body": 100}),
    "compressor": Settings(options={"at_least": 0}),
    "transformer": Settings(options={"types": ("",)}),
}
PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"--b",
    b"--b--",
    b" ",
    b"Subject: =?utf-16?b?//8=?= =?utf-7?q?+2AA-?=",
    b"Subject: =?iso-2022-kr?q?=1B=24=29C=0E?=",
    b"Content-Type: multipart/mixed; boundary=b",
    b"Content-Type: text/plain; charset=utf-16",
    b"Content-Type: text/html; charset*=utf-8''hz; name*0*=x'y'%FF",
    b"Content-Type: message/rfc822",
    b"Content-Transfer-Encoding: base64",
    b"Content-Transfer-Encoding: quoted-printable",
    b"Content-Disposition: attachment; filename==?utf-8?q?=00?=",
    b"Received: x",
    b"=",
    b"=C3=",
    b"QUJD",
    b"\xff\xfe",
    b"x" * 5000,
]


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=50),
            st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join),
            st.lists(st.sampled_from(PIECES), max_size=40).map(b"\r\n".join),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_no_octets_are_trouble(bodies: list[bytes]) -> None:
    """Kept as they came, or refused for good; a 451 would come back for ever."""
    store = FailingStore()
    mails = [envelope(body) for body in bodies]

    async def main() -> Any:
        return await run_async(CHAIN, *mails, steps={"store": store}, settings=TABLES)

    replies = anyio.run(main)

    assert {reply.code for reply in replies} <= {250, 554}
    for mail, body, reply in zip(mails, bodies, replies, strict=True):
        assert mail.body.read() == body
        assert (mail in store.kept) == (reply.code == 250)
        if reply.code == 250:
            copy = mail.copies["transformer"]
            assert len(copy) == len(copy.read())
