"""
Passwords: how they are kept, and how a claim is checked.

Checking costs tens of milliseconds on purpose, so it runs in a thread; nothing here knows which.
Hashes are PHC strings, ``$scrypt$ln=14,r=8,p=1$SALT$HASH``, as other programs write them too.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Mapping

import attrs

__all__ = ["Authenticator", "BadResponse", "PasswordTable", "hash_password", "parse_plain", "parse_text"]

Authenticator = Callable[[str, str], bool]
"""
Says whether this user has this password; called in a thread, so it may block.

An exception is our trouble: the client is told 454 4.7.0, and tries again.
"""

_PHC = re.compile(
    r"\$scrypt\$ln=(?P<ln>\d{1,2}),r=(?P<r>\d{1,2}),p=(?P<p>\d{1,2})"
    r"\$(?P<salt>[A-Za-z0-9+/]{8,128})\$(?P<hash>[A-Za-z0-9+/]{22,128})\Z"
)
_LN, _R, _P = 14, 8, 1


class BadResponse(ValueError):
    """What the client sent cannot be decoded."""


def hash_password(password: str, *, salt: bytes | None = None) -> str:
    """
    Make the PHC string of *password*, for the table of users.

    Args:
        password: The password, hashed as UTF-8.

        salt: Sixteen octets of chance if None.
    """
    salt = os.urandom(16) if salt is None else salt
    derived = hashlib.scrypt(password.encode(), salt=salt, n=1 << _LN, r=_R, p=_P, dklen=32)
    return f"$scrypt$ln={_LN},r={_R},p={_P}${_b64(salt)}${_b64(derived)}"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


@attrs.frozen
class PasswordTable:
    """
    Users and the PHC strings of their passwords; an `Authenticator`.

    An unknown user takes as long as a known one.

    Args:
        users: User → ``$scrypt$…``, made by `hash_password`.

    Raises:
        ValueError: If a hash is none, or would take more than 64 MiB to check. The hash is not told.
    """

    users: Mapping[str, str] = attrs.field(repr=False)
    _nobody: str = attrs.field(init=False, repr=False, factory=lambda: hash_password("", salt=bytes(16)))

    def __attrs_post_init__(self) -> None:
        for user, hashed in self.users.items():
            match = _PHC.match(hashed)
            if match is None or not _affordable(match):
                msg = f"a password is kept as $scrypt$ln=14,r=8,p=1$SALT$HASH of at most 64 MiB, not so that of {user!r}"
                raise ValueError(msg)

    def __call__(self, user: str, password: str) -> bool:
        """Whether *user* has *password*."""
        hashed = self.users.get(user)
        match = _PHC.match(self._nobody if hashed is None else hashed)
        assert match is not None
        expected = _unb64(match["hash"])
        derived = hashlib.scrypt(
            password.encode(),
            salt=_unb64(match["salt"]),
            n=1 << int(match["ln"]),
            r=int(match["r"]),
            p=int(match["p"]),
            maxmem=128 << 20,
            dklen=len(expected),
        )
        return hmac.compare_digest(derived, expected) and hashed is not None


def _affordable(match: re.Match[str]) -> bool:
    ln, r, p = int(match["ln"]), int(match["r"]), int(match["p"])
    return 1 <= ln <= 20 and r >= 1 and p >= 1 and (128 * r << ln) <= 64 << 20 and len(match["salt"]) % 4 != 1


def parse_plain(response: bytes) -> tuple[str, str]:
    """
    Parse the response of PLAIN (RFC 4616): user and password.

    Raises:
        BadResponse: If it is malformed, or asks to act for somebody else.
    """
    parts = _decode(response).split("\0")
    if len(parts) != 3 or not parts[1] or parts[0] not in {"", parts[1]}:
        msg = "PLAIN takes [authzid] NUL authcid NUL password, and only authzid = authcid"
        raise BadResponse(msg)
    return _user(parts[1]), parts[2]


def parse_text(response: bytes, *, user: bool) -> str:
    """
    Parse one response of LOGIN: a user or a password.

    Raises:
        BadResponse: If it is malformed.
    """
    text = _decode(response)
    return _user(text) if user else text


def _user(text: str) -> str:
    # It goes into headers and logs.
    if not text.isprintable() or len(text) > 255:
        msg = "a user is up to 255 printable characters"
        raise BadResponse(msg)
    return text


def _decode(response: bytes) -> str:
    try:
        return base64.b64decode(b"" if response == b"=" else response, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        msg = "a response is UTF-8 in base64"
        raise BadResponse(msg) from error
