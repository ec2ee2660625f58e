"""The SendFns that the how-to page tunes do what they say."""

from pathlib import Path

import anyio
import pytest

from benchmarks.examples import http_events, sqlite_rows
from dispatcher import Batch, Channel, ChannelOptions, Outcome, Status
from dispatcher.handlers import quiet


async def post(events: int, batch_items_max: int) -> list[Outcome[None]]:
    options = ChannelOptions[dict[str, object]](
        batch_items_max=batch_items_max, on_error=quiet, on_drop=quiet
    )
    async with http_events.open_client() as send, Channel(send, options) as channel:
        receipts = [await channel.submit(http_events.make_event(number, 10)) for number in range(events)]
        await channel.flush()
        return [await receipt.wait() for receipt in receipts]


class TestHttp:
    def test_events_are_posted(self, service: None) -> None:
        outcomes = anyio.run(post, 250, 100)

        assert {outcome.status for outcome in outcomes} == {Status.DELIVERED}

    def test_too_many_in_one_are_refused(self, service: None) -> None:
        """The cliff that a sweep has to find."""
        outcomes = anyio.run(post, 1001, 1001)

        assert {outcome.status for outcome in outcomes} == {Status.FAILED}
        assert str(outcomes[0].error) == "413 at most 1000 events, got 1001"


class TestSqlite:
    def test_rows_are_written_and_the_folder_goes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A turn leaves nothing behind."""
        monkeypatch.chdir(tmp_path)
        seen: list[int] = []

        async def run() -> None:
            async with sqlite_rows.open_database() as send:

                async def counted(batch: Batch[sqlite_rows.Row]) -> None:
                    await send(batch)
                    seen.append(len(batch))

                async with Channel(counted, ChannelOptions(batch_items_max=50)) as channel:
                    await channel.consume(sqlite_rows.make_row(number, 10) for number in range(120))

        anyio.run(run)

        assert sum(seen) == 120
        assert list(tmp_path.iterdir()) == []

    def test_a_number_twice_fails_its_batch_and_writes_nothing_of_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A transaction is all or nothing."""
        monkeypatch.chdir(tmp_path)
        errors: list[Exception] = []

        async def run() -> None:
            options = ChannelOptions[sqlite_rows.Row](
                batch_items_max=2,
                max_leases=1,
                on_error=lambda batch, error: errors.append(error),
                on_drop=quiet,
            )
            async with sqlite_rows.open_database() as send, Channel(send, options) as channel:
                await channel.consume(sqlite_rows.make_row(number, 10) for number in (1, 1, 1, 2))

        anyio.run(run)

        assert len(errors) == 1
        assert "UNIQUE" in str(errors[0])
