import pytest

from mailpipe import reply
from mailpipe.reply import Reply, queued_as

CONSTANTS = {name: value for name, value in vars(reply).items() if isinstance(value, Reply)}


class TestReply:
    def test_text_and_wire(self) -> None:
        """One line, with its enhanced code if it has one."""
        assert str(Reply(250, "2.1.0", "OK")) == "250 2.1.0 OK"
        assert Reply(354, "", "Go").wire == b"354 Go\r\n"

    @pytest.mark.parametrize(
        ("code", "enhanced", "text", "rule"),
        [
            (199, "", "x", "200 to 599"),
            (600, "", "x", "200 to 599"),
            (550, "5.7", "x", "class.subject.detail"),
            (550, "5.7.1\n", "x", "class.subject.detail"),
            (550, "4.7.1", "x", "class of '4.7.1'"),
            (550, "5.7.1", "a\r\nb", "printable"),
            (550, "5.7.1", "a\nb", "printable"),
            (550, "5.7.1", "a\0b", "printable"),
            (550, "5.7.1", "ä", "printable"),
            (550, "5.7.1", "x" * 401, "printable"),
        ],
    )
    def test_bad_ones_cannot_be_made(self, code: int, enhanced: str, text: str, rule: str) -> None:
        """A reply that would break the protocol, or forge another, never reaches the wire."""
        with pytest.raises(ValueError, match=rule):
            Reply(code, enhanced, text)

    def test_classes(self) -> None:
        """Each reply is one of the three, or none (354)."""
        assert Reply(250, "", "x").positive
        assert Reply(451, "", "x").temporary
        assert Reply(550, "", "x").permanent
        assert not any(
            [Reply(354, "", "x").positive, Reply(354, "", "x").temporary, Reply(354, "", "x").permanent]
        )


class TestConstants:
    def test_are_exported(self) -> None:
        """Every one, sorted."""
        assert set(reply.__all__) == {"Reply", "queued_as", *CONSTANTS}

    @pytest.mark.parametrize("name", sorted(CONSTANTS))
    def test_carry_an_enhanced_code(self, name: str) -> None:
        """RFC 2034: every reply but 354."""
        assert CONSTANTS[name].enhanced or CONSTANTS[name].code == 354

    def test_queued_as(self) -> None:
        """The words that other programs look for."""
        assert str(queued_as("01abc")) == "250 2.0.0 OK: queued as 01abc"
