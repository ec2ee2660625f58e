import pytest

from mailpipe.receivers.content import WholeContent

LONG = "500 Line too long (see RFC5321 4.5.3.1.6)"
MUCH = "552 Error: Too much mail data"


class TestWholeContent:
    def test_is_whole(self) -> None:
        """Content in order, dots unstuffed; then what came behind the end."""
        content = WholeContent(100, 50)
        assert content.feed(b"one\r\n.") is None
        assert content.feed(b".two\r\n.\r\nNOOP\r\n") == b"NOOP\r\n"
        assert (b"".join(content.chunks), content.refusal) == (b"one\r\n.two\r\n", "")

    @pytest.mark.parametrize(
        ("max_size", "lines", "refusal"),
        [
            (100, [48], ""),
            (100, [49], LONG),
            (100, [48, 48], ""),
            (100, [48, 47, 1], MUCH),
            (None, [48] * 10, ""),
            (60, [10, 10, 10, 10, 10, 99], MUCH),
            (200, [10, 99, 99, 99], LONG),
        ],
    )
    @pytest.mark.parametrize("cut", [1, 7, 1000])
    def test_the_bound_reached_first_is_told(
        self, max_size: int | None, lines: list[int], refusal: str, cut: int
    ) -> None:
        """However the octets are cut; nothing is kept of what is refused."""
        content = WholeContent(max_size, 50)
        sent = b"".join(b"x" * length + b"\r\n" for length in lines) + b".\r\n"
        rests = [content.feed(sent[at : at + cut]) for at in range(0, len(sent), cut)]
        assert rests[-1] == b""
        assert content.refusal == refusal
        assert bool(content.chunks) is not bool(refusal)
