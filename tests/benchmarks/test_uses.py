"""Other packages beside ours: they are there, or it is said how they come."""

import pytest

from benchmarks.measure import Unavailable
from benchmarks.peers import ROWS
from benchmarks.uses import package


class TestPackages:
    def test_a_missing_one_is_named_with_what_installs_it(self) -> None:
        """The row is left out, and the reader knows what to do."""
        with pytest.raises(Unavailable, match=r"no_such_batcher.*pip install --group bench"):
            package("no_such_batcher")

    def test_every_row_says_how_the_peer_is_used(self) -> None:
        """Who knows a faster way can tell."""
        assert [row.name for row in ROWS if len(row.yardstick.split(": ", 1)[-1]) < 20] == []
