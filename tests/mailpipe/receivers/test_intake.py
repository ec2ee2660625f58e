from collections.abc import Awaitable

import pytest

from mailpipe import reply
from mailpipe.receivers.intake import BareLines, Intake


class Sink:
    """Remembers; raises on the write it is told to."""

    def __init__(self, fails_at: int = -1) -> None:
        self.chunks: list[bytes] = []
        self.aborted = 0
        self.fails_at = fails_at

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        assert not self.aborted
        self.chunks.append(chunk)
        if len(self.chunks) == self.fails_at:
            msg = "disk full"
            raise OSError(msg)
        return None

    async def close(self) -> None:
        raise AssertionError

    def abort(self) -> None:
        self.aborted += 1


class TestIntake:
    @pytest.mark.parametrize("bare", ["reject", "keep"])
    def test_hands_on_until_the_end(self, bare: BareLines) -> None:
        """Content to the sink as it comes; the sink is the caller's then."""
        sink = Sink()
        intake = Intake(sink, 100, bare)
        assert intake.feed(b"one\r\n") is None
        assert intake.feed(b"two\r\n.\r\nQUIT") == b"QUIT"
        assert b"".join(sink.chunks) == b"one\r\ntwo\r\n"
        assert (intake.size, intake.received, intake.refusal) == (10, 17, None)
        assert intake.release() is sink
        with pytest.raises(RuntimeError, match="no sink"):
            intake.release()

    @pytest.mark.parametrize(("size", "lost"), [(98, False), (99, True)])
    def test_the_size_is_exact(self, size: int, lost: bool) -> None:
        """The bound passes, one octet more does not, with or without dots; nothing above it is stored."""
        for dots in (b"", b"."):
            sink = Sink()
            intake = Intake(sink, 100, "reject")
            body = (dots + b"x" * size)[:size] + b"\r\n"
            assert intake.feed((b"." + body if dots else body) + b".\r\n") == b""
            assert (intake.refusal is reply.TOO_BIG, sink.aborted == 1) == (lost, lost)
            assert sum(map(len, sink.chunks)) <= 100

    def test_a_lost_mail_is_read_for_as_long_again(self) -> None:
        """Exactly the patience; then it is hopeless."""
        for patience, most in ((None, 200), (50, 150)):
            intake = Intake(Sink(), 100, "reject", patience=patience)
            for _ in range(most - 1):
                assert intake.feed(b"x") is None
            intake.feed(b"x")
            assert not intake.hopeless
            intake.feed(b"x")
            assert intake.hopeless

    @pytest.mark.parametrize(("bare", "lost"), [("reject", True), ("keep", False)])
    def test_bare_lines(self, bare: BareLines, lost: bool) -> None:
        """Lost at once, told at the real end; or kept."""
        sink = Sink()
        intake = Intake(sink, 100, bare)
        assert intake.feed(b"one\ntwo") is None
        assert sink.aborted == lost
        assert intake.feed(b"\r\n.\r\n") == b""
        assert (intake.refusal is reply.BARE_LINES) is lost

    @pytest.mark.parametrize("cut", [1, 3, 100])
    @pytest.mark.parametrize(
        ("body", "lost"),
        [
            (b"x" * 8 + b"\r\n", False),
            (b"x" * 9 + b"\r\n", True),
            (b"a\r\n" + b"x" * 8 + b"\r\nb\r\n", False),
            (b"a\r\n" + b"x" * 9 + b"\r\nb\r\n", True),
            (b"." * 9 + b"\r\n", False),
            (b"x" * 40, True),
        ],
    )
    def test_long_lines_if_a_limit_is_set(self, body: bytes, lost: bool, cut: int) -> None:
        """With its CRLF and without stuffing a line may have so many octets, however TCP cuts it."""
        intake = Intake(Sink(), 100, "keep", max_line=10)
        for at in range(0, len(body), cut):
            intake.feed(body[at : at + cut])
        intake.feed(b".\r\n")
        assert (intake.refusal is reply.BODY_LINE_TOO_LONG) is lost

    def test_a_failing_sink_is_our_trouble(self, caplog: pytest.LogCaptureFixture) -> None:
        """Aborted, logged, 451 at the end; the first refusal stays."""
        sink = Sink(fails_at=2)
        intake = Intake(sink, 100, "reject")
        intake.feed(b"one\r\n")
        intake.feed(b"two\r\n")
        assert intake.feed(b"x" * 200 + b"\n" + b"\r\n.\r\n") == b""
        assert (intake.refusal, sink.aborted) == (reply.TROUBLE, 1)
        assert "disk full" in caplog.text
