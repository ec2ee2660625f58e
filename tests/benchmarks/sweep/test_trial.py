"""One turn: its figures are those of a receiver that is known. On a clock that jumps, so exactly."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest

from benchmarks.sweep.cells import Cell
from benchmarks.sweep.figures import Turn
from benchmarks.sweep.trial import Load, run_turn
from dispatcher import Batch, ChannelOptions, TransientError
from dispatcher.testing import ScriptedSink, jumping_asyncio, jumping_trio
from dispatcher.typing import SendFn


@pytest.fixture(params=[jumping_asyncio, jumping_trio], ids=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    backend: tuple[str, dict[str, Any]] = request.param()
    return backend


def opener(send: SendFn[Any, Any]) -> Callable[[], AbstractAsyncContextManager[SendFn[Any, Any]]]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[SendFn[Any, Any]]:
        yield send

    return opened


async def play(
    send: SendFn[Any, Any], cell: Cell, options: ChannelOptions[Any] | None = None, **load: Any
) -> Turn:
    numbers = itertools.count()
    given = {"seconds": 2.0, **load}
    return await run_turn(opener(send), options or cell.options(), lambda: next(numbers), Load(**given))


class TestSaturated:
    async def test_throughput_is_what_the_receiver_can_do(self) -> None:
        """
        Two at once, 0.1 s a call of 50 items: 1 000 a second.

        Both end at the same moment, and the window's edge may come between them: a batch more or less.
        """
        turn = await play(ScriptedSink(a=0.1), Cell(50, 0.2, 2))

        assert turn.throughput == pytest.approx(1000, abs=1.01 * 50 / 2)
        assert (turn.batch_items, turn.call_seconds) == (50, pytest.approx(0.1))
        assert (turn.failed, turn.errors, turn.offered) == (0, {}, None)

    async def test_latency_is_the_time_in_the_full_buffer(self) -> None:
        """1 000 items wait for 1 000 a second: about a second each."""
        turn = await play(ScriptedSink(a=0.1), Cell(50, 0.2, 2))

        assert turn.p50 == pytest.approx(1.0, rel=0.15)

    async def test_few_calls_make_the_window_longer(self) -> None:
        """A call of 3 s in a window of 2 says nothing."""
        turn = await play(ScriptedSink(a=3.0), Cell(100, 0.0, 1))

        assert turn.throughput == pytest.approx(100 / 3, rel=0.01)
        assert turn.calls >= 2


class TestAtARate:
    async def test_what_is_offered_is_delivered_and_timed(self) -> None:
        """0.01 s in the SendFn, and up to 0.1 s of waiting for the batch to get old."""
        turn = await play(ScriptedSink(a=0.01), Cell(100, 0.1, 4), rate=200.0)

        assert turn.throughput == pytest.approx(200, rel=0.06)
        assert turn.keeps_up()
        assert turn.used == pytest.approx(200 * 0.01 / (4 * 100), rel=0.06)
        assert turn.p99 is not None
        assert 0.1 <= turn.p99 <= 0.12
        assert turn.p50 == pytest.approx(0.06, abs=0.01)

    async def test_natural_batching_does_not_wait(self) -> None:
        turn = await play(ScriptedSink(a=0.01), Cell(100, 0.0, 4), rate=200.0)

        assert turn.p99 is not None
        assert turn.p99 <= 0.021

    async def test_what_is_too_much_is_seen(self) -> None:
        """The receiver does 100 a second; the waiting grows for as long as the turn lasts."""
        turn = await play(ScriptedSink(a=0.1), Cell(10, 0.0, 1), rate=300.0)

        assert not turn.keeps_up()
        assert turn.throughput == pytest.approx(100, rel=0.05)
        assert turn.p99 is not None
        assert turn.p99 > 1
        assert turn.left > 0


class TestTrouble:
    async def test_a_send_fn_that_raises_is_counted(self) -> None:
        async def fails(batch: Batch[Any]) -> None:
            await anyio.sleep(0.1)
            msg = "no such table"
            raise ValueError(msg)

        turn = await play(fails, Cell(10, 0.0, 1))

        assert turn.throughput == 0
        assert turn.p99 is None
        assert turn.failed > 0
        assert list(turn.errors) == ["ValueError: no such table"]

    async def test_retries_are_counted_and_the_item_s_time_goes_on(self) -> None:
        seen: set[int] = set()

        async def at_second(batch: Batch[int]) -> None:
            await anyio.sleep(0.01)
            if batch.attempt == 1:
                msg = "busy"
                raise TransientError(msg)
            seen.update(batch)

        turn = await play(at_second, Cell(10, 0.0, 4), rate=100.0)

        assert turn.retries > 0
        assert turn.errors["TransientError: busy"] >= turn.retries
        assert len(seen) > 100

    async def test_marked_items_are_counted_as_they_were_marked(self) -> None:
        """Every tenth is poison, and no other item suffers."""
        sink = ScriptedSink[int](a=0.1, poison=lambda item: item % 10 == 0, marks=True)
        turn = await play(sink, Cell(100, 0.2, 1))

        assert turn.throughput == pytest.approx(900, rel=0.02)
        assert turn.failed > 0
        assert turn.lost == pytest.approx(0.1, rel=0.02)
        assert all(text.startswith("ExceptionGroup") or "poison" in text for text in turn.errors)

    async def test_items_that_are_done_before_the_attempt_fails_count(self) -> None:
        async def half(batch: Batch[int]) -> None:
            await anyio.sleep(0.1)
            batch.done(*range(len(batch) // 2))
            msg = "the other half"
            raise ValueError(msg)

        turn = await play(half, Cell(100, 0.2, 1))

        assert turn.throughput == pytest.approx(500, rel=0.02)

    async def test_a_send_fn_that_hangs_is_cancelled_in_the_end(self) -> None:
        async def hangs(batch: Batch[int]) -> None:
            await anyio.sleep_forever()

        start = anyio.current_time()
        turn = await play(hangs, Cell(10, 0.0, 2))

        assert (turn.throughput, turn.calls) == (0, 0)
        assert turn.left > 0
        assert anyio.current_time() - start < 30

    async def test_items_that_never_arrive_are_among_the_slow_ones(self) -> None:
        """A receiver that stalls does not look fast for what it did before."""
        calls = 0

        async def stalls(batch: Batch[int]) -> None:
            nonlocal calls
            calls += 1
            await (anyio.sleep(0.01) if calls < 100 else anyio.sleep_forever())

        turn = await play(stalls, Cell(10, 0.0, 1), rate=100.0)

        assert turn.p50 is not None
        assert turn.p50 > 1

    async def test_results_are_nobody_s_business(self) -> None:
        """With a plain send they would not be looked at; timed items do not change that."""

        async def chatty(batch: Batch[int]) -> list[int]:
            await anyio.sleep(0.1)
            return [1]

        turn = await play(chatty, Cell(10, 0.0, 1), rate=50.0)

        assert turn.throughput == pytest.approx(50, rel=0.1)
        assert (turn.errors, turn.failed) == ({}, 0)
