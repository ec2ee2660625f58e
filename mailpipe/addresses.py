"""
Recipients as parts of paths, keys and arguments: the one door through which they go.

Pure.
"""

import re
from typing import NamedTuple

from mailpipe.errors import Rejected
from mailpipe.reply import Reply

__all__ = ["Mailbox", "mailbox_of"]

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff/]")
_USER_MAX = 200
_DOMAIN_MAX = 255


class Mailbox(NamedTuple):
    """An address that is safe as a path component, key or argument, in its two parts."""

    user: str
    """Never empty, never starts with ``.`` or ``-``; no ``/``, no controls."""

    domain: str
    """Lower case; ``""`` for the bare ``<postmaster>``."""

    @property
    def address(self) -> str:
        """``user@domain``."""
        return f"{self.user}@{self.domain}" if self.domain else self.user


def mailbox_of(address: str) -> Mailbox:
    """
    Take a recipient's address apart for use outside of mail.

    Raises:
        Rejected: 550 5.1.3 if a part is no safe component: empty, more than 200 octets of user or
            255 of domain, a control, a surrogate or ``/`` in it, or ``.`` or ``-`` first.
    """
    user, at, domain = address.rpartition("@")
    if not at:
        user, domain = domain, ""
    domain = domain.lower()
    if not _fit(user, _USER_MAX) or (at and not _fit(domain, _DOMAIN_MAX)):
        raise Rejected(Reply(550, "5.1.3", "Recipient address not usable here"))
    return Mailbox(user, domain)


def _fit(part: str, limit: int) -> bool:
    return (
        part != ""
        and part[0] not in ".-"
        and _CONTROLS.search(part) is None
        and len(part.encode("utf-8")) <= limit
    )
