"""
What the ancestor's tests promise (LUCI's dispatcher), and each fault of it, by name.

The numbers are the ancestor's; the clock jumps.
"""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
import tenacity

from dispatcher import (
    Batch,
    BlockNewItems,
    BufferFull,
    Channel,
    ChannelOptions,
    ChannelStatistics,
    DropOldestBatch,
    DropReason,
    ItemTooLarge,
    ItemTooSmall,
    Rate,
    RetryPolicy,
    TransientError,
)
from dispatcher.testing import RecordingSender

Law1 = Callable[[Channel[Any, Any]], ChannelStatistics]

pytestmark = pytest.mark.usefixtures("no_leaks")


class TestPromises:
    async def test_serial_sending_keeps_order_without_errors(self) -> None:
        """One lease, batches of one: as they came."""
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](batch_items_max=1, max_leases=1)) as channel:
            await channel.consume(range(20))
        assert send.items == list(range(20))

    async def test_a_failed_item_comes_after_the_others(self) -> None:
        """Serial, but not fifo."""

        async def send(batch: Batch[int]) -> None:
            if batch.items == (0,) and batch.attempt == 1:
                raise TransientError
            sent.extend(batch)

        sent: list[int] = []
        options = ChannelOptions[int](
            batch_items_max=1, max_leases=1, retry=RetryPolicy(wait=tenacity.wait_fixed(1)), on_error=None
        )
        async with Channel(send, options) as channel:
            await channel.consume(range(20))
        assert sent == [*range(1, 20), 0]

    async def test_a_full_blocking_buffer_blocks_and_a_cancelled_one_drops(
        self, gate: Any, law_1: Law1
    ) -> None:
        """The ancestor's became writable again (and dropped what came); ours says that it is closed."""
        options = ChannelOptions[int](
            batch_items_max=1, max_leases=1, full_behavior=BlockNewItems(max_items=5), on_drop=None
        )
        async with Channel(gate, options) as channel:
            for number in range(5):
                await channel.send(number)
            with anyio.move_on_after(60) as scope:
                await channel.send(5)
            assert scope.cancelled_caught
            channel.cancel()
            with pytest.raises(anyio.ClosedResourceError):
                await channel.send(5)
        assert law_1(channel).dropped[DropReason.CANCELLED] == 5

    async def test_twenty_items_at_one_per_ten_ms_take_190_ms(self) -> None:
        """The first is free."""
        options = ChannelOptions[int](batch_items_max=1, max_leases=1, qps_limit=Rate(100))
        began = anyio.current_time()
        async with Channel(RecordingSender[int](), options) as channel:
            await channel.consume(range(20))
        assert anyio.current_time() - began == pytest.approx(0.19, abs=0.001)

    async def test_with_four_parallel_senders_and_a_burst_of_ten(self) -> None:
        """At least 45 ms at 200 per second: ten are free, ten are paid for."""
        options = ChannelOptions[int](batch_items_max=1, max_leases=4, qps_limit=Rate(200, burst=10))
        began = anyio.current_time()
        async with Channel(RecordingSender[int](), options) as channel:
            await channel.consume(range(20))
        assert 0.045 <= anyio.current_time() - began <= 0.06

    async def test_error_fn_false_sends_odd_and_drops_even_items_in_order(self, hooks: Any) -> None:
        """Refused ones are told, in their order."""

        async def send(batch: Batch[int]) -> None:
            (item,) = batch
            if item % 2 == 0:
                raise TransientError
            sent.append(item)

        sent: list[int] = []
        hooks.verdict = False
        options = ChannelOptions[int](batch_items_max=1, max_leases=1, **hooks.all)
        async with Channel(send, options) as channel:
            await channel.consume(range(20))
        assert sent == list(range(1, 20, 2))
        assert hooks.dropped == [((item,), DropReason.FAILED) for item in range(0, 20, 2)]

    async def test_drop_oldest_of_one_under_a_closed_limiter_delivers_exactly_one(
        self, hooks: Any, law_1: Law1
    ) -> None:
        """Of 20, the newest."""

        class Closed:
            opened = anyio.Event()

            async def acquire(self, amount: float = 1, /) -> None:
                await self.opened.wait()

        limiter = Closed()
        limiter.opened = anyio.Event()
        send = RecordingSender[int]()
        options = ChannelOptions[int](
            batch_items_max=1,
            max_leases=1,
            qps_limit=limiter,
            full_behavior=DropOldestBatch(max_live_items=1),
            **hooks.all,
        )
        async with Channel(send, options) as channel:
            await channel.consume(range(20))
            await anyio.sleep(1)
            limiter.opened.set()
        assert send.items == [19]
        assert [items for items, _ in hooks.dropped] == [(item,) for item in range(19)]
        assert law_1(channel).delivered == 1

    @pytest.mark.parametrize("attempt", range(10))
    async def test_no_deadlock_when_cancelled_and_closed_inside_a_send(
        self, attempt: int, law_1: Law1
    ) -> None:
        """Ten times, with ever more buffered."""

        async def send(batch: Batch[int]) -> None:
            channel.cancel()
            channel.close()

        options = ChannelOptions[int](batch_items_max=1, max_leases=1, on_drop=None)
        with anyio.fail_after(60):
            async with Channel(send, options) as channel:
                for number in range(attempt + 1):
                    channel.send_nowait(number)
        statistics = law_1(channel)
        assert (statistics.delivered, statistics.dropped_items) == (1, attempt)

    async def test_100_items_in_batches_of_3_with_10_leases_all_arrive(self) -> None:
        """Under a settable clock."""
        send = RecordingSender[int](latency=0.05)
        options = ChannelOptions[int](batch_items_max=3, max_leases=10)
        async with Channel(send, options) as channel:
            await channel.consume(range(100))
        assert sorted(send.items) == list(range(100))
        assert send.running_max == 10
        assert len(send.batches) == 34

    async def test_a_size_bounded_channel_blocks_the_eleventh(self, gate: Any, law_1: Law1) -> None:
        """100 per batch, five batches: ten items of 50 fill it; 500 and 0 are refused by name."""
        options = ChannelOptions[int](
            batch_items_max=None,
            batch_size_max=100,
            item_size=lambda item: item,
            full_behavior=BlockNewItems(max_items=1000),
        )
        async with Channel(gate, options) as channel, anyio.create_task_group() as group:
            for _ in range(10):
                channel.send_nowait(50)
            with pytest.raises(BufferFull):
                channel.send_nowait(50)
            group.start_soon(channel.send, 50)
            await anyio.sleep(1)
            assert channel.statistics().waiters == 1
            with pytest.raises(ItemTooLarge):
                await channel.send(500)
            with pytest.raises(ItemTooSmall):
                await channel.send(0)
            assert law_1(channel).accepted == 10
            gate.open()
        assert law_1(channel).delivered == 11
        assert all(batch.size == 100 for batch in gate.seen[:5])

    async def test_heartbeats_appear_in_a_gap_and_never_while_sends_are_out(self) -> None:
        """2 s of nothing at one per 100 ms; sends of 200 ms."""
        send = RecordingSender[int](latency=0.2)
        options = ChannelOptions[int](batch_items_max=1, max_leases=1, min_qps=10.0)
        async with Channel(send, options) as channel:
            await channel.consume(range(5))
            await channel.flush()
            assert not any(call.batch.synthetic for call in send.calls)
            await anyio.sleep(2)
            beats = [call for call in send.calls if call.batch.synthetic]
            assert len(beats) == 7  # 100 ms of nothing, 200 ms of sending, again and again
            before = len(send.calls)
            await channel.consume(range(5))
            await channel.flush()
        assert not any(call.batch.synthetic for call in send.calls[before + 1 :])

    @pytest.mark.parametrize("limited", [False, True])
    async def test_closing_under_a_heartbeat_of_a_nanosecond_is_clean(self, limited: bool) -> None:
        """A hundred times."""
        for _ in range(100):
            options = ChannelOptions[int](
                min_qps=1e9, on_error=None, qps_limit=Rate(2e9, burst=5) if limited else None
            )
            send = RecordingSender[int]()
            async with Channel(send, options):
                for _ in range(3):
                    await anyio.lowlevel.checkpoint()


class TestFaults:
    async def test_panic_when_nothing_undropped_is_left(self, law_1: Law1) -> None:
        """
        Dropped-but-leased items counted as live, so it tried to drop where nothing was left to drop.

        One live item, two leases: A is leased, B drops it, B is leased and delivered, C comes.
        """
        opened = anyio.Event()

        async def send(batch: Batch[str]) -> None:
            if "A" in batch:
                await opened.wait()

        options = ChannelOptions[str](
            batch_items_max=1,
            max_leases=2,
            full_behavior=DropOldestBatch(max_live_items=1),
            on_drop=None,
        )
        async with Channel(send, options) as channel:
            await channel.send("A")
            await anyio.sleep(1)
            await channel.send("B")
            await anyio.sleep(1)
            assert law_1(channel).delivered == 1
            await channel.send("C")
            await channel.send("D")
            assert law_1(channel).live <= 2
            opened.set()
        assert law_1(channel).live == 0

    async def test_a_batch_whose_policy_gives_up_vanished_without_drop_fn(
        self, hooks: Any, law_1: Law1
    ) -> None:
        """It is told, as FAILED, once."""

        async def send(batch: Batch[int]) -> None:
            raise TransientError

        options = ChannelOptions[int](
            batch_items_max=2,
            retry=RetryPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_delay(3)),
            **hooks.all,
        )
        async with Channel(send, options) as channel:
            await channel.consume([1, 2])
        assert hooks.dropped == [((1, 2), DropReason.FAILED)]
        assert law_1(channel).failed == 2

    async def test_one_batch_was_dropped_per_insert_whatever_its_size(self, gate: Any, law_1: Law1) -> None:
        """Drops until it fits: the bound is exact at every moment."""
        options = ChannelOptions[int](
            batch_items_max=1,
            batch_size_max=100,
            item_size=lambda item: item,
            max_leases=1,
            full_behavior=DropOldestBatch(max_live_items=100, max_live_size=100),
            on_drop=None,
        )
        async with Channel(gate, options) as channel:
            for size in (1, 1, 1, 50, 49, 100, 3, 98, 100, 1):
                await channel.send(size)
                now = law_1(channel)
                assert now.unleased_size + now.leased_size <= 100
            gate.open()

    async def test_block_new_items_admitted_one_item_past_a_size_bound(self, gate: Any, law_1: Law1) -> None:
        """Never."""
        options = ChannelOptions[int](
            batch_size_max=10, item_size=lambda item: item, full_behavior=BlockNewItems(max_size=25)
        )
        async with Channel(gate, options) as channel:
            for _ in range(2):
                channel.send_nowait(10)
            with pytest.raises(BufferFull):
                channel.send_nowait(6)
            channel.send_nowait(5)
            with pytest.raises(BufferFull):
                channel.send_nowait(1)
            assert law_1(channel).live == 3
            gate.open()

    async def test_hooks_that_send_deadlocked(self) -> None:
        """They may send_nowait, from each hook."""
        sent: list[str] = []

        async def send(batch: Batch[str]) -> None:
            sent.extend(batch)
            if "fails" in batch:
                raise ValueError

        options = ChannelOptions[str](
            batch_items_max=1,
            on_error=lambda batch, error: channel.send_nowait("from on_error"),
            on_drop=lambda batch, reason: channel.send_nowait("from on_drop"),
        )
        with anyio.fail_after(10):
            async with Channel(send, options) as channel:
                await channel.send("fails")
                await channel.wait_idle()
        assert sorted(sent) == ["fails", "from on_drop", "from on_error"]

    async def test_there_was_no_timeout_per_attempt(self) -> None:
        """A SendFn that hangs gave its lease back never."""

        async def send(batch: Batch[int]) -> None:
            if batch.attempt == 1:
                await anyio.sleep_forever()

        options = ChannelOptions[int](batch_age_max=0, max_leases=1, send_timeout=30, on_error=None)
        with anyio.fail_after(1000):
            async with Channel(send, options) as channel:
                await channel.call(1)

    async def test_there_was_no_jitter(self) -> None:
        """By default delays are drawn, so that batches that failed together do not come back together."""

        async def send(batch: Batch[int]) -> None:
            if batch.attempt == 1:
                raise ConnectionError
            starts.append(anyio.current_time())

        starts: list[float] = []
        options = ChannelOptions[int](batch_items_max=1, max_leases=10, on_error=None)
        async with Channel(send, options) as channel:
            await channel.consume(range(10))
        assert len(set(starts)) == 10

    async def test_retries_had_no_total_deadline(self, hooks: Any) -> None:
        """By default a batch is given up before 5 minutes."""

        async def send(batch: Batch[int]) -> None:
            raise ConnectionError

        began = anyio.current_time()
        async with Channel(send, ChannelOptions[int](batch_age_max=0, **hooks.all)) as channel:
            await channel.send(1)
        assert anyio.current_time() - began < 300
        assert len(hooks.errors) > 5

    async def test_cancel_needed_close_too(self, gate: Any) -> None:
        """Or the loop never ended."""
        async with Channel(gate, ChannelOptions[int](batch_age_max=0, on_drop=None)) as channel:
            await channel.send(1)
            channel.cancel()
            with anyio.fail_after(10):
                await channel.wait_drained()

    async def test_ten_seconds_of_age_surprised(self) -> None:
        """The default is 0.2 s, and none at all with natural batching."""
        assert ChannelOptions[int]().batch_age_max == 0.2

    async def test_tokens_were_counted_at_a_stale_now(self) -> None:
        """A long SendFn does not make the next ones late or early: one token per 100 ms, after a pause too."""
        send = RecordingSender[int](latency=0.35)
        options = ChannelOptions[int](batch_items_max=1, max_leases=4, qps_limit=Rate(10))
        async with Channel(send, options) as channel:
            await anyio.sleep(5)
            began = anyio.current_time()
            await channel.consume(range(6))
        assert [round(call.at - began, 2) for call in send.calls] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
