"""The ready-made hooks: what they log, count and pass on, and that they never raise."""

import logging
import math
from typing import Any

import anyio
import pytest

from dispatcher import Batch, Channel, ChannelOptions, DropReason
from dispatcher.buffer.batch import BufferedBatch
from dispatcher.handlers import log_drops, log_errors, quiet, report, summarized


def batch_of(*items: str) -> Batch[str]:
    lot: BufferedBatch[str] = BufferedBatch(7, 0.0)
    lot.attempts = 2
    return Batch(lot, items, None, "run")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "dispatcher")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in log.records]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestLogErrors:
    def test_is_a_warning_with_the_errors_type_and_text(self, log: pytest.LogCaptureFixture) -> None:
        assert log_errors(batch_of("a", "b"), ValueError("no such thing")) is None  # type: ignore[func-returns-value]
        assert lines(log) == [
            ("WARNING", "batch 7, attempt 2: 2 items failed: ValueError: no such thing"),
        ]


class TestLogDrops:
    @pytest.mark.parametrize(
        ("reason", "level"),
        [
            (DropReason.FAILED, "ERROR"),
            (DropReason.CANCELLED, "WARNING"),
            (DropReason.FULL, "INFO"),
            (DropReason.EXPIRED, "INFO"),
            (DropReason.KEPT, "INFO"),
            (DropReason.SUPERSEDED, "DEBUG"),
        ],
    )
    def test_has_a_level_for_each_reason(
        self, log: pytest.LogCaptureFixture, reason: DropReason, level: str
    ) -> None:
        log_drops(batch_of("a"), reason)
        assert lines(log) == [(level, f"batch 7: 1 items dropped: {reason.value}")]


def test_quiet_is_either_hook_and_says_nothing(log: pytest.LogCaptureFixture) -> None:
    options = ChannelOptions[str](on_error=quiet, on_drop=quiet)
    assert options.on_error is options.on_drop is quiet
    quiet(batch_of("a"), ValueError())
    quiet(batch_of("a"), DropReason.FULL)
    assert lines(log) == []


class TestSummarized:
    def test_logs_sums_at_most_so_often(self, log: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        hook = summarized(60.0, clock=clock)
        hook(batch_of("a", "b"), DropReason.FULL)
        clock.now = 59.9
        hook(batch_of("c"), DropReason.EXPIRED)
        assert lines(log) == []
        clock.now = 60.0
        hook(batch_of("d"), DropReason.FULL)

        assert lines(log) == [("INFO", "items dropped in 60.0 s: expired 1, full 3")]
        clock.now = 100.0
        hook(batch_of("e"), DropReason.FULL)
        assert len(lines(log)) == 1

    def test_has_the_level_of_the_worst(self, log: pytest.LogCaptureFixture) -> None:
        hook = summarized(0.0, clock=Clock())
        hook(batch_of("a"), DropReason.FAILED)
        assert lines(log) == [("ERROR", "items dropped in 0.0 s: failed 1")]

    def test_flush_logs_the_rest_once(self, log: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        hook = summarized(60.0, clock=clock)
        hook(batch_of("a"), DropReason.FULL)
        clock.now = 2.0
        hook.flush()
        hook.flush()
        assert lines(log) == [("INFO", "items dropped in 2.0 s: full 1")]

    async def test_is_flushed_when_the_channel_is_drained(self, log: pytest.LogCaptureFixture) -> None:
        async def send(batch: Batch[str]) -> None:
            raise ValueError("no")  # noqa: EM101 - the text is of no matter

        options = ChannelOptions[str](on_error=quiet, on_drop=summarized(math.inf, clock=Clock()))
        async with Channel(send, options) as channel:
            await channel.send("a")
            await channel.send("b")
        assert lines(log) == [("ERROR", "items dropped in 0.0 s: failed 2")]


class TestReport:
    async def test_passes_batch_and_what_on(self) -> None:
        inlet, outlet = anyio.create_memory_object_stream[Any](2)
        hook = report(inlet)
        error, batch = ValueError("x"), batch_of("a")
        hook(batch, error)
        hook(batch, DropReason.FULL)

        assert [outlet.receive_nowait(), outlet.receive_nowait()] == [
            (batch, error),
            (batch, DropReason.FULL),
        ]
        assert hook.missed == 0
        inlet.close()
        outlet.close()

    async def test_counts_what_does_not_fit_and_what_comes_too_late(self) -> None:
        inlet, outlet = anyio.create_memory_object_stream[Any](1)
        hook = report(inlet)
        hook(batch_of("a"), DropReason.FULL)
        hook(batch_of("b"), DropReason.FULL)
        assert hook.missed == 1
        outlet.close()
        hook(batch_of("c"), DropReason.FULL)
        inlet.close()
        hook(batch_of("d"), DropReason.FULL)
        assert hook.missed == 3

    async def test_into_a_channel_never_raises(self) -> None:
        """Not before it is open, not with an item that it refuses, not when it is over."""
        got: list[Any] = []

        async def send(batch: Batch[Any]) -> None:
            got.extend(batch)

        other: Channel[Any] = Channel(
            send, ChannelOptions(item_size=lambda pair: len(pair[0]), batch_size_max=2)
        )
        hook = report(other)
        hook(batch_of("early"), DropReason.FULL)
        async with other:
            hook(batch_of("a", "b", "c"), DropReason.FULL)
            hook(batch_of("a"), DropReason.FULL)
        hook(batch_of("late"), DropReason.FULL)

        assert hook.missed == 3
        assert [batch.items for batch, _ in got] == [("a",)]
