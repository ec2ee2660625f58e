import pytest

from mailpipe import reply
from mailpipe.receivers.parameters import MailParameters, judge_mail, judge_rcpt
from mailpipe.reply import Reply


class TestMail:
    def test_are_carried_as_written(self) -> None:
        """In their order and case; what we need of them is read."""
        text = "SIZE=100 body=8bitMIME SMTPUTF8 RET=hdrs ENVID=a+2Bb AUTH=<>"
        assert judge_mail(text, esmtp=True, max_size=1000) == MailParameters(
            written=tuple(text.split()), size=100, smtputf8=True
        )

    @pytest.mark.parametrize(
        ("text", "refusal"),
        [
            *[
                (bad, reply.PARAMETER_VALUE)
                for bad in ("SIZE", "SIZE=-1", "SIZE=1x", "SIZE=" + "1" * 21, "BODY")
            ],
            *[
                (bad, reply.PARAMETER_VALUE)
                for bad in ("BODY=BINARYMIME", "SMTPUTF8=1", "RET=ALL", "RET", "ENVID")
            ],
            *[
                (bad, reply.PARAMETER_VALUE)
                for bad in ("ENVID=a+2", "ENVID=a+zz", "ENVID=" + "x" * 101, "AUTH=\xff")
            ],
            *[(bad, reply.PARAMETER_UNKNOWN) for bad in ("MT-PRIORITY=3", "NOTIFY=NEVER", "X")],
            *[(bad, reply.SYNTAX) for bad in ("=", "SIZE=1 SIZE=1", "A=\x01")],
            ("SIZE=1001", reply.TOO_BIG),
        ],
    )
    def test_bad_ones_are_refused(self, text: str, refusal: Reply) -> None:
        """Unknown, malformed, too big: each told apart."""
        assert judge_mail(text, esmtp=True, max_size=1000) == refusal

    def test_need_ehlo(self) -> None:
        """A HELO client has none."""
        assert judge_mail("SIZE=1", esmtp=False, max_size=1000) == reply.SYNTAX


class TestRcpt:
    @pytest.mark.parametrize(
        "text", ["NOTIFY=NEVER", "notify=Success,failure,DELAY ORCPT=rfc822;a+40b", "ORCPT=utf-8;jörg", ""]
    )
    def test_dsn_is_carried_as_written(self, text: str) -> None:
        """RFC 3461."""
        assert judge_rcpt(text, esmtp=True) == tuple(text.split())

    @pytest.mark.parametrize(
        ("text", "refusal"),
        [
            *[
                (bad, reply.PARAMETER_VALUE)
                for bad in ("NOTIFY", "NOTIFY=NEVER,DELAY", "NOTIFY=X", "NOTIFY=DELAY,DELAY")
            ],
            *[
                (bad, reply.PARAMETER_VALUE)
                for bad in ("ORCPT=a", "ORCPT=rfc822;", "ORCPT=x400;a", "ORCPT=rfc822;a+2")
            ],
            ("SIZE=1", reply.PARAMETER_UNKNOWN),
        ],
    )
    def test_bad_ones_are_refused(self, text: str, refusal: Reply) -> None:
        """Unknown or malformed."""
        assert judge_rcpt(text, esmtp=True) == refusal
