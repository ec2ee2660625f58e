"""
SMTP replies as values: code, enhanced status code (RFC 3463), one line of text.
"""

import re

import attrs

__all__ = ["Reply"]

_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\Z")
_TEXT = re.compile(r"[\x20-\x7e]*\Z")


@attrs.frozen
class Reply:
    """
    One reply to a client; checked when made, so a bad one never reaches the wire.

    Args:
        code: Three digits, 200 to 599 (RFC 5321 section 4.2).

        enhanced:
            Enhanced status code such as ``"5.7.1"``, its class equal to that of *code*;
            ``""`` for replies that carry none (220, 250 to HELO, 354).

        text: Printable ASCII, no CR, no LF, no controls; at most 400 characters.

    Raises:
        ValueError: If a part breaks its rule.
    """

    code: int
    enhanced: str
    text: str

    def __attrs_post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            msg = f"a reply code is 200 to 599, got {self.code!r}"
            raise ValueError(msg)
        if self.enhanced:
            if not _ENHANCED.match(self.enhanced):
                msg = f"an enhanced status code is class.subject.detail (RFC 3463), got {self.enhanced!r}"
                raise ValueError(msg)
            if self.enhanced[0] != str(self.code)[0]:
                msg = f"the class of {self.enhanced!r} is not that of {self.code}"
                raise ValueError(msg)
        if not _TEXT.match(self.text) or len(self.text) > 400:
            msg = f"a reply text is up to 400 printable ASCII characters, got {self.text!r}"
            raise ValueError(msg)

    @property
    def positive(self) -> bool:
        """2xx: responsibility was taken."""
        return self.code < 300

    @property
    def temporary(self) -> bool:
        """4xx: the client shall try again."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5xx: the client shall not try again."""
        return self.code >= 500

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced} {self.text}" if self.enhanced else f"{self.code} {self.text}"
