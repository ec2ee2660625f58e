"""Lines, cut from whatever pieces come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.broker.wire import Lines, Oversized


def cut(stream: bytes, pieces: list[int], limit: int = 1000) -> tuple[list[bytes | Oversized], bytes | None]:
    lines = Lines(limit)
    found: list[bytes | Oversized] = []
    at = 0
    for size in pieces:
        found += lines.feed(stream[at : at + size])
        at += size
    found += lines.feed(stream[at:])
    return found, lines.end()


class TestLines:
    @given(
        st.lists(st.binary(min_size=1, max_size=9).filter(lambda b: b"\n" not in b and b.strip())),
        st.lists(st.integers(0, 7)),
    )
    def test_come_whole_however_they_are_cut(self, wanted: list[bytes], pieces: list[int]) -> None:
        found, rest = cut(b"".join(line + b"\n" for line in wanted), pieces)

        assert found == wanted
        assert rest is None

    @pytest.mark.parametrize("pieces", [[], [1] * 40, [12], [11, 1, 1]])
    def test_one_that_is_too_long_is_told_once_and_skipped(self, pieces: list[int]) -> None:
        found, rest = cut(b"short\n" + b"x" * 11 + b"\nfine\n" + b"end", pieces, limit=10)

        assert [type(one) for one in found] == [bytes, Oversized, bytes]
        assert found[2] == b"fine"
        assert rest == b"end"

    def test_of_exactly_the_limit(self) -> None:
        assert cut(b"x" * 10 + b"\n", [3, 7], limit=10)[0] == [b"x" * 10]

    def test_memory_is_bounded(self) -> None:
        """A line without end is not collected."""
        lines = Lines(10)
        for _ in range(100):
            lines.feed(b"x" * 10)
        assert len(lines._rest) <= 10  # noqa: SLF001
