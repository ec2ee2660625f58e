"""The two sums of a snapshot."""

import attrs
import pytest

from dispatcher.buffer import ChannelStatistics, DropReason


@pytest.fixture
def stats() -> ChannelStatistics:
    return ChannelStatistics(
        unleased_items=1,
        unleased_size=10,
        leased_items=2,
        leased_size=20,
        dropped_leased_items=4,
        dropped_leased_size=40,
        leases=2,
        waiters=0,
        accepted=25,
        delivered=8,
        failed=1,
        dropped={**dict.fromkeys(DropReason, 0), DropReason.FULL: 6, DropReason.EXPIRED: 3},
        batches=5,
        attempts=6,
        retries=1,
        heartbeats=0,
    )


def test_sums_add_up(stats: ChannelStatistics) -> None:
    assert (stats.live, stats.dropped_items) == (7, 9)
    assert stats.accepted == stats.delivered + stats.failed + stats.dropped_items + stats.live


def test_a_snapshot_stays(stats: ChannelStatistics) -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        stats.accepted = 0  # type: ignore[misc]
