from pathlib import Path

import pytest

from dispatcher.stores.base import Record
from dispatcher.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real loops: the store's thread knows no jumping clock."""
    return str(request.param)


class TestReopening:
    async def test_gives_back_what_was_not_acked(self, tmp_path: Path) -> None:
        """What a dead owner had leased comes back in front, that attempt counted; what was acked does not."""
        async with SQLiteStore(tmp_path / "q.db") as store:
            await store.create("q")
            await store.put([Record(b"1"), Record(b"2"), Record(b"3")], ["q"])
            first, second = await store.lease("q", 2)
            assert await store.settle([first.tag]) == []

        async with SQLiteStore(tmp_path / "q.db") as store:
            leased = await store.lease("q", 10)
            assert [(one.payload, one.attempts) for one in leased] == [(b"2", 2), (b"3", 1)]
            assert await store.settle([second.tag]) == [second.tag]
            assert await store.settle([one.tag for one in leased]) == []
            assert (await store.counts("q")).acked == 3
