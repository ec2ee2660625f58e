"""The tools that users test with: clocks that jump, senders that record, sinks that follow a script."""

import time
from typing import Any

import anyio
import anyio.to_thread
import pytest

from dispatcher import Channel, ChannelOptions, OptionError, RetryAfter, RetryPolicy
from dispatcher.handlers import quiet
from dispatcher.testing import RecordingSender, ScriptedSink

QUIET = ChannelOptions[int](batch_items_max=2, on_error=quiet, on_drop=quiet, max_leases=1)


class TestJumpingClocks:
    async def test_hours_take_no_time(self) -> None:
        began, start = time.monotonic(), anyio.current_time()
        await anyio.sleep(5 * 3600)
        with anyio.move_on_after(72 * 3600) as scope:
            await anyio.sleep_forever()

        assert scope.cancelled_caught
        assert anyio.current_time() - start == pytest.approx(77 * 3600)
        assert time.monotonic() - began < 30

    async def test_timers_fire_in_order(self) -> None:
        fired: list[int] = []

        async def later(seconds: int) -> None:
            await anyio.sleep(seconds)
            fired.append(seconds)

        async with anyio.create_task_group() as group:
            for seconds in (30, 10, 20):
                group.start_soon(later, seconds)
        assert fired == [10, 20, 30]

    async def test_what_is_ready_runs_before_the_clock_jumps(self) -> None:
        start, turns = anyio.current_time(), 0
        with anyio.move_on_after(1):
            while turns < 100:
                await anyio.lowlevel.checkpoint()
                turns += 1
        assert turns == 100
        assert anyio.current_time() == start

    async def test_threads_come_back(self) -> None:
        assert await anyio.to_thread.run_sync(lambda: 5) == 5


class TestRecordingSender:
    async def test_remembers_calls_and_how_many_ran_at_once(self) -> None:
        send = RecordingSender[int](latency=2.0, results=lambda batch: [item * 10 for item in batch])
        start = anyio.current_time()
        async with Channel(send, ChannelOptions(batch_items_max=2, max_leases=2)) as channel:
            receipts = [await channel.submit(number) for number in range(6)]
            results = [(await receipt.wait()).unwrap() for receipt in receipts]
            await channel.send(6)

        assert send.batches == [(0, 1), (2, 3), (4, 5), (6,)]
        assert send.items == list(range(7))
        assert [round(call.at - start, 3) for call in send.calls] == [0, 0, 2, 4]
        assert (send.running, send.running_max) == (0, 2)
        assert [call.batch.key for call in send.calls] == sorted({call.batch.key for call in send.calls})
        assert results == [number * 10 for number in range(6)]


async def play(sink: ScriptedSink[int], items: int = 4, **options: Any) -> list[float]:
    """Send 0, 1, …; when each call began, since the first."""
    await _fill(Channel(sink, ChannelOptions(**{"batch_items_max": 2, "on_error": quiet, "on_drop": quiet,
                                                "max_leases": 1, **options})), items)  # fmt: skip
    return [round(call.at - sink.calls[0].at, 3) for call in sink.calls]


async def _fill(channel: Channel[int], items: int) -> None:
    async with channel:
        for number in range(items):
            await channel.send(number)


class TestScriptedSink:
    async def test_takes_its_time_by_call_item_and_beyond_the_knee(self) -> None:
        sink = ScriptedSink[int](a=1.0, b=0.1, knee=2)
        assert await play(sink, 8, batch_items_max=4) == [0, 1 + 0.1 * (4 + 2)]
        assert sink.delivered == list(range(8))

    async def test_serves_so_many_at_once_and_lets_others_wait(self) -> None:
        sink = ScriptedSink[int](a=1.0, parallel=2)
        start = anyio.current_time()
        await play(sink, 8, max_leases=4)
        assert sink.running_max == 4
        assert anyio.current_time() - start == pytest.approx(2.0)

    def test_refuses_to_serve_nobody(self) -> None:
        with pytest.raises(OptionError, match=r"ScriptedSink.parallel has to be 1 or more, got 0"):
            ScriptedSink(parallel=0)

    async def test_fails_as_scripted_and_then_no_more(self) -> None:
        sink = ScriptedSink[int](failures=[ConnectionError("first"), None, ConnectionError("third")])
        await play(sink, 6, retry=RetryPolicy())
        assert sorted(sink.delivered) == list(range(6))
        assert len(sink.calls) == 5

    async def test_is_out_for_a_while(self) -> None:
        start = anyio.current_time()
        sink = ScriptedSink[int](a=1.0, outage=(start, start + 10))
        await play(sink, 2)
        assert sink.delivered == [0, 1]
        assert sink.calls[-1].at + 1.0 >= start + 10

    async def test_refuses_what_is_too_fast_with_retry_after(self) -> None:
        errors: list[Exception] = []
        sink = ScriptedSink[int](per_second=2, retry_after=5.0)
        calls = await play(sink, 6, on_error=lambda batch, error: errors.append(error))
        assert [type(error) for error in errors] == [RetryAfter]
        assert calls == [0, 0, 0, 5.0]
        assert sorted(sink.delivered) == list(range(6))

    @pytest.mark.parametrize("marks", [False, True])
    async def test_poison_fails_its_batch_or_only_itself(self, marks: bool) -> None:
        sink = ScriptedSink[int](poison=lambda item: item == 1, marks=marks)
        await play(sink, 4)
        assert sink.delivered == ([0, 2, 3] if marks else [2, 3])

    @pytest.mark.parametrize("option", ["a", "b", "retry_after"])
    def test_refuses_negative_times(self, option: str) -> None:
        with pytest.raises(OptionError, match=rf"ScriptedSink.{option} has to be 0 or more, got -1"):
            ScriptedSink(**{option: -1})  # type: ignore[arg-type]
