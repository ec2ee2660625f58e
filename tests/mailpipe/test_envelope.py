"""Queue ids: what they are made of, and that both ways of making them agree on it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpipe.envelope import chances, make_queue_id, queue_id_of

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def value_of(queue_id: str) -> int:
    """The number that it spells."""
    value = 0
    for character in queue_id:
        value = value * 32 + ALPHABET.index(character)
    return value


class TestQueueId:
    @given(now=st.floats(0, 2**40), random=st.binary(min_size=10, max_size=10))
    def test_spells_time_then_chance(self, now: float, random: bytes) -> None:
        """48 bits of milliseconds, 80 of chance, in 26 characters that sort as they count."""
        queue_id = make_queue_id(now, random)

        assert len(queue_id) == 26
        assert value_of(queue_id) == int(now * 1000) % 2**48 << 80 | int.from_bytes(random)

    @given(now=st.floats(0, 2**40), random=st.binary(min_size=16, max_size=64))
    def test_of_chance_spelled_before(self, now: float, random: bytes) -> None:
        """The same form, and every one of the sixteen characters has its five bits."""
        spelled = chances(random[: len(random) // 16 * 16])

        for number, chance in enumerate(spelled):
            queue_id = queue_id_of(now, chance)
            assert len(queue_id) == 26
            assert queue_id[:10] == make_queue_id(now, bytes(10))[:10]
            octets = random[16 * number : 16 * number + 16]
            assert [ALPHABET.index(character) for character in queue_id[10:]] == [o % 32 for o in octets]

    def test_takes_ten_octets(self) -> None:
        """Less chance would be no id."""
        with pytest.raises(ValueError, match="takes 10 random bytes, got 9"):
            make_queue_id(1.0, bytes(9))
