"""
ESMTP parameters of MAIL and RCPT: which we know, what they may say.

Pure. What passes is carried as written.
"""

import re

import attrs

from mailpipe import reply
from mailpipe.receivers.paths import split_parameters
from mailpipe.reply import Reply

__all__ = ["MailParameters", "judge_mail", "judge_rcpt"]

_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})"
_ENVID = re.compile(rf"{_XTEXT}{{1,100}}\Z")
_AUTH = re.compile(rf"(?:<>|{_XTEXT}{{1,500}})\Z")
_ORCPT = re.compile(r"(?i:rfc822;" + _XTEXT + r"{1,500}|utf-8;[!-<>-~\u00a0-\U0010ffff]{1,500})\Z")
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})
_MAIL = frozenset({"SIZE", "BODY", "SMTPUTF8", "RET", "ENVID", "AUTH"})
_RCPT = frozenset({"NOTIFY", "ORCPT"})


@attrs.frozen(kw_only=True)
class MailParameters:
    """The parameters of one MAIL."""

    written: tuple[str, ...]
    size: int
    smtputf8: bool


def judge_mail(text: str, *, esmtp: bool, max_size: int) -> MailParameters | Reply:
    """
    Judge the parameters of MAIL (RFC 1870, 6152, 6531, 3461, 4954).

    Args:
        text: What came behind the path.

        esmtp: Whether the client said EHLO; without, there are no parameters.

        max_size: The largest SIZE taken.

    Returns:
        The parameters, or the refusal.
    """
    found = split_parameters(text)
    if found is None or (found and not esmtp):
        return reply.SYNTAX
    if not found.keys() <= _MAIL:
        return reply.PARAMETER_UNKNOWN
    size = found.get("SIZE", "0") or ""
    good = (
        (size.isascii() and size.isdigit() and len(size) <= 20)
        and ("BODY" not in found or (found["BODY"] or "").upper() in {"7BIT", "8BITMIME"})
        and ("RET" not in found or (found["RET"] or "").upper() in {"FULL", "HDRS"})
        and ("ENVID" not in found or _ENVID.match(found["ENVID"] or "") is not None)
        and ("AUTH" not in found or _AUTH.match(found["AUTH"] or "") is not None)
        and found.get("SMTPUTF8") is None
    )
    if not good:
        return reply.PARAMETER_VALUE
    if int(size) > max_size:
        return reply.TOO_BIG
    return MailParameters(written=tuple(text.split()), size=int(size), smtputf8="SMTPUTF8" in found)


def judge_rcpt(text: str, *, esmtp: bool) -> tuple[str, ...] | Reply:
    """
    Judge the parameters of RCPT (RFC 3461).

    Returns:
        The parameters as written, or the refusal.
    """
    found = split_parameters(text)
    if found is None or (found and not esmtp):
        return reply.SYNTAX
    if not found.keys() <= _RCPT:
        return reply.PARAMETER_UNKNOWN
    if "NOTIFY" in found:
        words = (found["NOTIFY"] or "").upper().split(",")
        if words != ["NEVER"] and not (set(words) <= _NOTIFY and len(words) == len(set(words))):
            return reply.PARAMETER_VALUE
    if "ORCPT" in found and not _ORCPT.match(found["ORCPT"] or ""):
        return reply.PARAMETER_VALUE
    return tuple(text.split())
