"""``header``: the trace headers that a receiver adds, kept beside the body."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailpipe.chain import ChainError, Settings, compile_chain
from mailpipe.envelope import Session
from mailpipe.headers import Headers, header_fields
from mailpipe.processors.header import HeaderOptions, header


def fields(envelope: Any, **options: Any) -> Headers:
    header(envelope, HeaderOptions(**options))
    return Headers.parse(envelope.prelude)


class TestFields:
    def test_a_plain_mail(self, mail: Any) -> None:
        """RFC 5321 section 4.4, CRLF line ends, folded."""
        envelope = mail()
        body = envelope.body
        header(envelope, HeaderOptions())

        assert envelope.prelude == (
            b"Return-Path: <alice@example.net>\r\n"
            b"Delivered-To: bob@example.org\r\n"
            b"Received: from client.example.net ([192.0.2.7])\r\n"
            b" by mx.example.org with ESMTP id 00000000000000000000000001\r\n"
            b" for <bob@example.org>; Tue, 14 Nov 2023 22:13:20 -0000\r\n"
        )
        assert envelope.body is body

    def test_the_null_sender(self, mail: Any) -> None:
        """A bounce says so."""
        assert fields(mail(mail_from="")).get("return-path") == "<>"

    def test_several_recipients_are_not_named(self, mail: Any) -> None:
        """A Bcc must not leak to the others."""
        found = fields(mail(rcpt_to=("a@x.org", "secret@x.org")))

        assert found.get("delivered-to") == ""
        assert "for" not in found.get("received")
        assert b"secret" not in repr(list(found)).encode()

    def test_primary_mail_host(self, mail: Any) -> None:
        """go-guerrilla's option: every mailbox at one host."""
        assert fields(mail(), primary_mail_host="box.example").get("delivered-to") == "bob@box.example"

    @pytest.mark.parametrize("host", ["a b", "a\r\nb", "a\0"])
    def test_a_bad_primary_mail_host(self, host: str) -> None:
        """Refused when the chain is compiled."""
        with pytest.raises(ChainError, match="primary_mail_host is a domain"):
            compile_chain(
                "header | discard", settings={"header": Settings(options={"primary_mail_host": host})}
            )

    @pytest.mark.parametrize(
        ("session", "protocol"),
        [
            ({}, "SMTP"),
            ({"esmtp": True}, "ESMTP"),
            ({"esmtp": True, "tls": "TLSv1.3"}, "ESMTPS"),
            ({"esmtp": True, "tls": "TLSv1.3", "user": "u"}, "ESMTPSA"),
            ({"esmtp": True, "user": "u"}, "ESMTPA"),
            ({"lmtp": True}, "LMTP"),
            ({"lmtp": True, "tls": "x"}, "LMTPS"),
        ],
    )
    def test_protocol(self, mail: Any, session: dict[str, Any], protocol: str) -> None:
        """RFC 3848."""
        assert f" with {protocol} id" in fields(mail(session=Session(**session))).get("received")

    def test_smtputf8(self, mail: Any) -> None:
        """RFC 6531: UTF8SMTP, and addresses as they are."""
        found = fields(mail(session=Session(esmtp=True), smtputf8=True, rcpt_to=("jürgen@x.org",)))

        assert " with UTF8SMTP id" in found.get("received")
        assert found.get("delivered-to") == "jürgen@x.org"

    @pytest.mark.parametrize(
        ("peer", "written"),
        [
            ("192.0.2.7", "([192.0.2.7])"),
            ("2001:db8::1", "([IPv6:2001:db8::1])"),
            ("fe80::1%eth0", "([IPv6:fe80::1])"),
            ("", "(local)"),
            ("x) by evil (", "(unknown)"),
        ],
    )
    def test_the_peer(self, mail: Any, peer: str, written: str) -> None:
        """What is no address is not written."""
        assert written in fields(mail(session=Session(peer=peer))).get("received")


ANY = st.text(max_size=1200)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(helo=ANY, peer=ANY, hostname=ANY, sender=ANY, recipient=ANY, host=st.sampled_from(["", "x.org"]))
def test_no_value_breaks_a_line(
    mail: Any, helo: str, peer: str, hostname: str, sender: str, recipient: str, host: str
) -> None:
    """Whatever was said: three fields, CRLF only at their ends and folds, nothing above 998."""
    session = Session(helo=helo, peer=peer, hostname=hostname)
    envelope = mail(session=session, mail_from=sender, rcpt_to=(recipient,))
    header(envelope, HeaderOptions(primary_mail_host=host))

    names = [name for name, _ in header_fields(envelope.prelude)]
    assert names == [b"Return-Path", *([b"Delivered-To"] if recipient else []), b"Received"]
    lines = envelope.prelude.split(b"\r\n")
    assert lines[-1] == b""
    assert all(len(line) <= 998 for line in lines)
    assert not set(envelope.prelude.replace(b"\r\n", b"")) & set(range(32))
