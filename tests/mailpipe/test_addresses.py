"""Recipients outside of mail: what is safe passes, what is hostile is refused."""

import pytest

from mailpipe.addresses import Mailbox, mailbox_of
from mailpipe.errors import Rejected


class TestMailboxOf:
    @pytest.mark.parametrize(
        ("address", "mailbox"),
        [
            ("bob@Example.ORG", Mailbox("bob", "example.org")),
            ("Bob+tag@example.org", Mailbox("Bob+tag", "example.org")),
            ('"a@b"@example.org', Mailbox('"a@b"', "example.org")),
            ("üser@xn--bcher-kva.example", Mailbox("üser", "xn--bcher-kva.example")),
            ("bob@[192.0.2.1]", Mailbox("bob", "[192.0.2.1]")),
            ("postmaster", Mailbox("postmaster", "")),
            ("x" * 200 + "@example.org", Mailbox("x" * 200, "example.org")),
        ],
    )
    def test_takes_safe_ones_apart(self, address: str, mailbox: Mailbox) -> None:
        """The domain in lower case, the user as it is."""
        assert mailbox_of(address) == mailbox

    @pytest.mark.parametrize(
        "address",
        [
            "../../etc/passwd@example.org",
            "a/b@example.org",
            "..@example.org",
            ".hidden@example.org",
            "-rf@example.org",
            "a\0b@example.org",
            "a\nb@example.org",
            "a\x85b@example.org",
            "a\udc80@example.org",
            "@example.org",
            "bob@",
            "bob@..",
            "bob@../x",
            "bob@-x",
            "bob@a/b",
            "bob@a\0",
            "",
            "x" * 201 + "@example.org",
            "ü" * 101 + "@example.org",
            "bob@" + "x" * 256,
        ],
    )
    def test_refuses_the_rest(self, address: str) -> None:
        """550 5.1.3, with nothing of the address in it."""
        with pytest.raises(Rejected) as caught:
            mailbox_of(address)
        assert str(caught.value.reply) == "550 5.1.3 Recipient address not usable here"
