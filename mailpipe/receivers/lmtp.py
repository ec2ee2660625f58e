"""
LMTP (RFC 2033): SMTP with LHLO for EHLO, and one reply per accepted recipient.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from mailpipe.envelope import Envelope
from mailpipe.receivers.smtp import SmtpConnection
from mailpipe.reply import Reply

__all__ = ["LmtpConnection"]


class LmtpConnection(SmtpConnection):
    """One LMTP client."""

    service: ClassVar[str] = "LMTP"
    verbs: ClassVar[dict[bytes, Callable[[Any, bytes], None]]]

    def lhlo(self, argument: bytes) -> None:
        """LHLO, and what we can do."""
        self.ehlo(argument)
        self.session.lmtp = True

    def tell(self, envelope: Envelope, verdict: Reply | tuple[Reply, ...]) -> None:
        """Answer a mail once per accepted recipient, in the order of RCPT (RFC 2033 section 4.2)."""
        count = len(envelope.recipients)
        for answer in (verdict,) * count if isinstance(verdict, Reply) else verdict:
            super().tell(envelope, answer)


LmtpConnection.verbs = {
    b"LHLO": LmtpConnection.lhlo,
    **{verb: run for verb, run in SmtpConnection.verbs.items() if verb not in {b"HELO", b"EHLO"}},
}
