"""
SMTP replies as values: code, enhanced status code (RFC 3463), one line of text; and our replies.

Our trouble is 4xx, theirs is 5xx; no reply shows an exception's text.
"""

import re

import attrs

__all__ = [
    "ALREADY_AUTHENTICATED",
    "AUTH_ABORTED",
    "AUTH_BAD_BASE64",
    "AUTH_DONE",
    "AUTH_FAILED",
    "AUTH_IN_MAIL",
    "AUTH_MECHANISM",
    "AUTH_NEEDS_TLS",
    "AUTH_TOO_OFTEN",
    "AUTH_TROUBLE",
    "BAD_RECIPIENT",
    "BAD_SENDER",
    "BARE_LF",
    "BARE_LINES",
    "BODY_LINE_TOO_LONG",
    "BYE",
    "HELP",
    "LINE_TOO_LONG",
    "MAIL_OK",
    "NEED_HELO",
    "NEED_MAIL",
    "NEED_RCPT",
    "NEED_TLS",
    "NESTED_MAIL",
    "NOT_UTF8",
    "NO_RELAY",
    "OK",
    "PARAMETER_UNKNOWN",
    "PARAMETER_VALUE",
    "PROXY_BAD",
    "RCPT_OK",
    "READY_FOR_TLS",
    "SHUTTING_DOWN",
    "START_DATA",
    "STORE_FULL",
    "SYNTAX",
    "TIMEOUT",
    "TLS_ACTIVE",
    "TOO_BIG",
    "TOO_BIG_CLOSING",
    "TOO_MANY_CONNECTIONS",
    "TOO_MANY_ERRORS",
    "TOO_MANY_RECIPIENTS",
    "TOO_SLOW",
    "TROUBLE",
    "UNKNOWN_COMMAND",
    "VALIDATE_TROUBLE",
    "VRFY",
    "Reply",
    "queued_as",
]

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

    @property
    def wire(self) -> bytes:
        """The reply as one line for the wire, with its CRLF."""
        return f"{self}\r\n".encode("ascii")

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced} {self.text}" if self.enhanced else f"{self.code} {self.text}"


def queued_as(queue_id: str) -> Reply:
    """Make the reply that takes responsibility for a mail."""
    return Reply(250, "2.0.0", f"OK: queued as {queue_id}")


OK = Reply(250, "2.0.0", "OK")
MAIL_OK = Reply(250, "2.1.0", "OK")
RCPT_OK = Reply(250, "2.1.5", "OK")
AUTH_DONE = Reply(235, "2.7.0", "Authentication successful")
BYE = Reply(221, "2.0.0", "Bye")
READY_FOR_TLS = Reply(220, "2.0.0", "Ready to start TLS")
START_DATA = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
VRFY = Reply(252, "2.5.0", "Cannot VRFY user, but will accept message and attempt delivery")
HELP = Reply(214, "2.0.0", "See RFC 5321")

# Ours: the client shall try again.
SHUTTING_DOWN = Reply(421, "4.3.2", "Shutting down, try again later")
STORE_FULL = Reply(452, "4.3.1", "Storage is full, try again later")
TROUBLE = Reply(451, "4.3.0", "Local trouble, try again later")
VALIDATE_TROUBLE = Reply(451, "4.3.0", "Cannot check the recipient now, try again later")
AUTH_TROUBLE = Reply(454, "4.7.0", "Cannot check the credentials now, try again later")

# A bound was reached.
TOO_MANY_CONNECTIONS = Reply(421, "4.7.0", "Too many connections, try again later")
TIMEOUT = Reply(421, "4.4.2", "Timeout, closing")
TOO_SLOW = Reply(421, "4.4.2", "Too slow, closing")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors, closing")
AUTH_TOO_OFTEN = Reply(421, "4.7.0", "Too many failed authentications, closing")
TOO_BIG_CLOSING = Reply(421, "4.3.4", "Message far exceeds the maximum size, closing")
TOO_BIG = Reply(552, "5.3.4", "Message exceeds the maximum size")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")
LINE_TOO_LONG = Reply(500, "5.5.6", "Line too long")

# Theirs.
UNKNOWN_COMMAND = Reply(500, "5.5.1", "Command not recognized")
SYNTAX = Reply(501, "5.5.4", "Syntax error")
BARE_LF = Reply(500, "5.5.2", "A command ends in CR LF")
NEED_HELO = Reply(503, "5.5.1", "Send HELO or EHLO first")
NEED_MAIL = Reply(503, "5.5.1", "Send MAIL first")
NEED_RCPT = Reply(503, "5.5.1", "No valid recipients")
NESTED_MAIL = Reply(503, "5.5.1", "Nested MAIL command")
PARAMETER_UNKNOWN = Reply(555, "5.5.4", "Parameter not recognized")
PARAMETER_VALUE = Reply(501, "5.5.4", "Parameter value not allowed")
BAD_SENDER = Reply(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT = Reply(501, "5.1.3", "Bad recipient address syntax")
NOT_UTF8 = Reply(553, "5.6.7", "Non-ASCII address needs SMTPUTF8 and valid UTF-8")
NO_RELAY = Reply(550, "5.7.1", "Relaying denied")
BARE_LINES = Reply(550, "5.6.0", "Message contains bare CR or LF")
BODY_LINE_TOO_LONG = Reply(554, "5.6.0", "Message has a line that is too long")
PROXY_BAD = Reply(421, "4.7.0", "PROXY header missing or malformed")

NEED_TLS = Reply(530, "5.7.0", "Must issue a STARTTLS command first")
TLS_ACTIVE = Reply(503, "5.5.1", "TLS already active")
AUTH_NEEDS_TLS = Reply(538, "5.7.11", "Encryption required for authentication")
AUTH_FAILED = Reply(535, "5.7.8", "Authentication credentials invalid")
AUTH_MECHANISM = Reply(504, "5.5.4", "Unrecognized authentication mechanism")
AUTH_ABORTED = Reply(501, "5.7.0", "Authentication aborted")
AUTH_BAD_BASE64 = Reply(501, "5.5.2", "Cannot decode base64")
AUTH_IN_MAIL = Reply(503, "5.5.1", "No AUTH during a mail transaction")
ALREADY_AUTHENTICATED = Reply(503, "5.5.1", "Already authenticated")
