"""Each mail row with a bar runs: one short turn of it, with nothing lost."""

import pytest

from benchmarks import bounds, mail, workers
from benchmarks.__main__ import measure
from benchmarks.measure import Row, Unavailable


@pytest.mark.parametrize("row", [*mail.ROWS, *workers.ROWS, *bounds.ROWS], ids=lambda row: row.name)
def test_the_row_runs(row: Row) -> None:
    """What it measured is nobody's business here."""
    try:
        result = measure(row, scale=0.01, turns=1, warm_up=False)
    except Unavailable as reason:
        pytest.skip(f"{row.name}: {reason}")

    assert [len(side) for side in result.samples if side] == [1] * (2 if row.yardstick else 1)
