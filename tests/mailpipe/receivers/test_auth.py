import base64

import pytest

from mailpipe.receivers.auth import BadResponse, PasswordTable, hash_password, parse_plain, parse_text


class TestPasswords:
    def test_a_hash_knows_its_password(self) -> None:
        """The right one and no other, non-ASCII too; the same password hashes differently each time."""
        table = PasswordTable({"ann": hash_password("pässword"), "bob": hash_password("pässword")})
        assert table("ann", "pässword")
        assert not table("ann", "password")
        assert not table("ann", "")
        assert table.users["ann"] != table.users["bob"]

    def test_unknown_users_have_no_password(self) -> None:
        """Not even the empty one, which nobody's placeholder is made of."""
        table = PasswordTable({"ann": hash_password("x")})
        assert not table("eve", "x")
        assert not table("eve", "")

    @pytest.mark.parametrize(
        "hashed",
        [
            *("", "plain text", "$scrypt$ln=14,r=8,p=1$abc", "$1$salt$hash"),
            "$scrypt$ln=30,r=8,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$scrypt$ln=20,r=32,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$scrypt$ln=0,r=8,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
        ],
    )
    def test_what_is_no_hash_is_refused(self, hashed: str) -> None:
        """At construction, naming the user and not the hash; a hash must be affordable."""
        with pytest.raises(ValueError, match="that of 'ann'") as caught:
            PasswordTable({"ann": hashed})
        assert not hashed or hashed not in str(caught.value)

    def test_hashes_are_not_shown(self) -> None:
        """No log of options shows them."""
        table = PasswordTable({"ann": hash_password("x")})
        assert "scrypt" not in repr(table)


def b64(text: str) -> bytes:
    return base64.b64encode(text.encode())


class TestResponses:
    def test_plain(self) -> None:
        """With and without who to act for."""
        assert parse_plain(b64("\0ann\0secret")) == ("ann", "secret")
        assert parse_plain(b64("ann\0ann\0")) == ("ann", "")

    @pytest.mark.parametrize(
        "response",
        [
            b"",
            b"=",
            b"!!",
            b64("ann"),
            b64("\0ann"),
            b64("\0\0x"),
            b64("bob\0ann\0x"),
            b64("\0a\0b\0c"),
            b64("\0a\nb\0x"),
            base64.b64encode(b"\0\xff\0x"),
            b64("\0" + "a" * 300 + "\0x"),
        ],
    )
    def test_bad_plain(self, response: bytes) -> None:
        """Malformed, for somebody else, or a user that could not stand in a log."""
        with pytest.raises(BadResponse):
            parse_plain(response)

    def test_login(self) -> None:
        """One text each; a user is printable, a password may be anything."""
        assert parse_text(b64("ann"), user=True) == "ann"
        assert parse_text(b64("a\nb"), user=False) == "a\nb"
        with pytest.raises(BadResponse):
            parse_text(b64("a\nb"), user=True)
