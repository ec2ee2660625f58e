"""Each row that needs no server runs: one short turn of it ends with everything delivered."""

import pytest

from benchmarks import channel, memory, peers, stores
from benchmarks.__main__ import measure
from benchmarks.measure import Row, Unavailable

ROWS = (*channel.ROWS, *memory.ROWS, *peers.ROWS, *stores.ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_row_runs(row: Row) -> None:
    """What it measured is nobody's business here."""
    try:
        result = measure(row, scale=0.01, turns=1)
    except Unavailable as reason:
        pytest.skip(f"{row.name}: {reason}")

    assert [len(side) for side in result.samples if side] == [1] * (2 if row.yardstick else 1)
