"""Items in: room, backpressure, fairness, dropping, coalescing, ages."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest
import tenacity

from dispatcher import (
    AddError,
    BadItemSize,
    Batch,
    BlockNewItems,
    BufferFull,
    Channel,
    ChannelOptions,
    ChannelStatistics,
    DropOldestBatch,
    DropReason,
    InfiniteGrowth,
    ItemTooLarge,
    ItemTooSmall,
    RetryPolicy,
    Status,
)
from dispatcher.testing import RecordingSender, ScriptedSink

Law1 = Callable[[Channel[Any, Any]], ChannelStatistics]

pytestmark = pytest.mark.usefixtures("no_leaks")


def _full_of(items: int, **more: Any) -> ChannelOptions[Any]:
    """Blocks at so many items; batches of one."""
    return ChannelOptions(
        **{
            "batch_items_max": 1,
            "batch_age_max": 0,
            "full_behavior": BlockNewItems(max_items=items),
            "on_drop": None,
            **more,
        }
    )


class TestSend:
    async def test_returns_when_accepted_not_when_sent(self, gate: Any) -> None:
        """Backpressure comes with a full buffer only."""
        async with Channel(gate, ChannelOptions[int]()) as channel:
            began = anyio.current_time()
            for number in range(1000):
                await channel.send(number)
            assert anyio.current_time() - began == pytest.approx(0)
            assert channel.statistics().accepted == 1000
            gate.open()

    async def test_waits_while_full_and_is_let_in_when_room_comes(self, law_1: Law1) -> None:
        """Everything without an outcome counts, what is with a SendFn included."""
        send = RecordingSender[int](latency=1.0)
        entered: list[float] = []
        async with Channel(send, _full_of(2, max_leases=2)) as channel:
            for number in range(6):
                await channel.send(number)
                entered.append(anyio.current_time())
                assert law_1(channel).live <= 2
        gaps = [round(at - entered[0], 2) for at in entered]
        assert gaps == [0, 0, 1.0, 1.0, 2.0, 2.0]

    async def test_send_nowait_raises_and_leaves_no_trace(self, gate: Any, law_1: Law1) -> None:
        """A refused item is not accepted, and is not sent later."""
        async with Channel(gate, _full_of(1)) as channel:
            channel.send_nowait(1)
            before = channel.statistics()
            with pytest.raises(BufferFull):
                channel.send_nowait(2)
            with pytest.raises(anyio.WouldBlock):
                channel.submit_nowait(3)
            assert law_1(channel) == before
            gate.open()
        assert gate.batches == [(1,)]

    async def test_blocked_senders_enter_first_come_first_served(self, gate: Any) -> None:
        """Also against those who come when there is room again: nobody overtakes."""
        order: list[str] = []
        async with Channel(gate, _full_of(1, max_leases=1)) as channel:

            async def put(item: str) -> None:
                await channel.send(item)
                order.append(item)

            await channel.send("first")
            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(put, f"waiter {number}")
                    # One after the other: a sender that lets others run first is not in the queue yet.
                    while channel.statistics().waiters <= number:
                        await anyio.lowlevel.checkpoint()
                await anyio.sleep(1)
                gate.open()
                while len(order) < 5:
                    # A late comer tries at every turn; while anyone waits, all room is spoken for.
                    if channel.statistics().waiters:
                        with pytest.raises(BufferFull):
                            channel.send_nowait("late")
                    await anyio.lowlevel.checkpoint()
        assert order == [f"waiter {number}" for number in range(5)]

    @pytest.mark.parametrize("doomed", [None, 0, 2])
    async def test_senders_that_are_woken_at_once_enter_in_their_order(self, doomed: int | None) -> None:
        """trio runs them in any order; and one that is cancelled then does not hold up the others."""
        batches: list[Batch[int]] = []
        entered: list[int] = []
        scopes: list[anyio.CancelScope] = []
        over = anyio.Event()

        async def send(batch: Batch[int]) -> None:
            batches.append(batch)
            await over.wait()

        async def put(number: int) -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await channel.send(number)
                entered.append(number)

        options = ChannelOptions(
            batch_items_max=8, batch_age_max=0, max_leases=1, full_behavior=BlockNewItems(8)
        )
        async with Channel(send, options) as channel:
            for number in range(8):
                await channel.send(-number)
            async with anyio.create_task_group() as group:
                for number in range(8):
                    group.start_soon(put, number)
                    while channel.statistics().waiters <= number:
                        await anyio.lowlevel.checkpoint()
                batches[0].done(*range(8))  # room for all of them, in one step
                if doomed is not None:
                    scopes[doomed].cancel()
            over.set()
        # Cancelled in the turn in which it may enter, it may have entered all the same.
        assert [number for number in entered if number != doomed] == [n for n in range(8) if n != doomed]
        assert entered == sorted(entered)
        assert [item for batch in batches[1:] for item in batch] == entered

    async def test_a_cancelled_waiter_hands_its_room_on(self, gate: Any, law_1: Law1) -> None:
        """Cancelled in the very turn in which room was handed to it."""
        async with Channel(gate, _full_of(1)) as channel:
            receipt = await channel.submit("out")
            scopes: list[anyio.CancelScope] = []
            entered: list[str] = []

            async def put(item: str) -> None:
                with anyio.CancelScope() as scope:
                    scopes.append(scope)
                    await channel.send(item)
                    entered.append(item)

            async with anyio.create_task_group() as group:
                group.start_soon(put, "cancelled")
                await anyio.sleep(1)
                group.start_soon(put, "next")
                await anyio.sleep(1)
                scopes[0].cancel()
                gate.open()
                await receipt.wait()
            assert entered[-1] == "next"
            assert law_1(channel).waiters == 0

    async def test_a_sender_with_room_lets_others_run(self) -> None:
        """One that never has to wait yields now and then, before the next item is accepted."""
        turns = 0
        async with Channel(
            RecordingSender[int](), ChannelOptions[int](full_behavior=InfiniteGrowth())
        ) as channel:

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as group:
                group.start_soon(other)
                await anyio.lowlevel.checkpoint()
                before = turns
                for number in range(5000):
                    await channel.send(number)
                assert turns - before >= 4
                group.cancel_scope.cancel()

    async def test_a_channel_closed_in_that_turn_takes_nothing(self, law_1: Law1) -> None:
        """While a sender with room lets others run, one of them may close the channel."""
        at_close: list[int] = []

        async def closes() -> None:
            at_close.append(channel.statistics().accepted)
            channel.close()

        # Batches of one: a turn is owed before each but the first.
        async with Channel(RecordingSender[int](), ChannelOptions[int](batch_items_max=1)) as channel:
            async with anyio.create_task_group() as group:
                await channel.send(0)
                group.start_soon(closes)
                with pytest.raises(anyio.ClosedResourceError):
                    await channel.consume(range(1, 1000))
            assert at_close == [law_1(channel).accepted]

    @pytest.mark.parametrize("behavior", [BlockNewItems(), InfiniteGrowth()])
    async def test_the_default_bound(self, behavior: Any, gate: Any) -> None:
        """1 000 items, or one batch if that is more; InfiniteGrowth has none."""
        options = ChannelOptions[int](batch_items_max=1500, batch_age_max=60, full_behavior=behavior)
        async with Channel(gate, options) as channel:
            for number in range(1500):
                channel.send_nowait(number)
            if isinstance(behavior, BlockNewItems):
                with pytest.raises(BufferFull):
                    channel.send_nowait(1500)
            else:
                for number in range(10_000):
                    channel.send_nowait(number)
            gate.open()


class TestEarlyCut:
    async def test_while_a_sender_is_blocked_the_open_batch_is_cut(self) -> None:
        """Full, and lingering all the same, would be a standstill for the batch's age."""
        sent: list[tuple[int, ...]] = []

        async def send(batch: Batch[int]) -> None:
            sent.append(batch.items)
            await anyio.sleep(100 if 0 in batch else 1)

        options = ChannelOptions[int](
            batch_items_max=10, batch_age_max=3600, full_behavior=BlockNewItems(max_items=10)
        )
        async with Channel(send, options) as channel:
            await channel.consume(range(5))
            channel.cut()
            await channel.consume(range(5, 10))
            await anyio.sleep(5)
            assert len(sent) == 1
            began = anyio.current_time()
            await channel.send(10)
            assert anyio.current_time() - began == pytest.approx(1.0, abs=0.1)
            assert sent[1] == (5, 6, 7, 8, 9)

    async def test_producers_that_were_blocked_fill_whole_batches(self) -> None:
        """They take turns from then on; that one waits for its turn is no reason to send what is there."""
        send = RecordingSender[int]()
        options = ChannelOptions[int](batch_age_max=3600, full_behavior=BlockNewItems(max_items=500))
        async with Channel(send, options) as channel, anyio.create_task_group() as producers:
            for _ in range(4):
                producers.start_soon(channel.consume, range(5000))

        assert len(send.items) == 20_000
        assert len(send.batches) <= 220

    async def test_full_of_a_partial_batch(self) -> None:
        """Sizes fill the buffer before the batch is full."""
        send = RecordingSender[str]()
        options = ChannelOptions[str](
            batch_size_max=10,
            item_size=len,
            batch_age_max=3600,
            full_behavior=BlockNewItems(max_size=12),
        )
        async with Channel(send, options) as channel:
            await channel.send("x" * 6)
            await channel.send("x" * 5)  # does not fit the open batch, which is cut; opens the next one
            began = anyio.current_time()
            await channel.send("x" * 9)  # blocked until there is room: the open batch of 5 must go
            assert anyio.current_time() - began < 1

    async def test_a_refused_send_nowait_counts_as_blocked(self) -> None:
        """Who cannot wait wants room, too."""
        send = RecordingSender[str]()
        options = ChannelOptions[str](
            batch_size_max=10, item_size=len, batch_age_max=3600, full_behavior=BlockNewItems(max_size=10)
        )
        async with Channel(send, options) as channel:
            await channel.send("x" * 6)
            with pytest.raises(BufferFull):
                channel.send_nowait("x" * 9)
            await anyio.sleep(1)
            channel.send_nowait("x" * 9)


class TestSizes:
    @pytest.fixture
    def options(self) -> ChannelOptions[str]:
        """Batches of 10, a buffer of 20."""
        return ChannelOptions(
            batch_size_max=10, item_size=len, batch_age_max=60, full_behavior=BlockNewItems(max_size=20)
        )

    async def test_no_batch_is_larger(self, options: ChannelOptions[str]) -> None:
        """An item that does not fit cuts the batch first."""
        send = RecordingSender[str]()
        async with Channel(send, options) as channel:
            for item in ("aaaa", "bbbb", "cccc", "dddddddddd", "e"):
                await channel.send(item)
        assert sorted(send.batches) == [("aaaa", "bbbb"), ("cccc",), ("dddddddddd",), ("e",)]
        assert [call.batch.size for call in send.calls] == [8, 4, 10, 1]

    @pytest.mark.parametrize(
        ("item", "error"), [("x" * 11, ItemTooLarge), ("", ItemTooSmall)], ids=["too large", "too small"]
    )
    @pytest.mark.parametrize("way", ["send", "submit", "call", "send_nowait", "submit_nowait"])
    async def test_items_that_no_batch_can_take(
        self, options: ChannelOptions[str], item: str, error: type[AddError], way: str, law_1: Law1
    ) -> None:
        """Refused out of the call, with nothing accepted."""
        async with Channel(RecordingSender[str](), options) as channel:
            with pytest.raises(error) as caught:
                answer = getattr(channel, way)(item)
                if not way.endswith("nowait"):
                    await answer
            assert isinstance(caught.value, ValueError)
            assert str(len(item)) in str(caught.value)
            assert law_1(channel).accepted == 0

    @pytest.mark.parametrize("size", [1.5, "7", None, True])
    async def test_sizes_that_are_no_whole_numbers(self, size: Any) -> None:
        """Refused with the value got."""
        async with Channel(
            RecordingSender[str](), ChannelOptions[str](item_size=lambda item: size)
        ) as channel:
            with pytest.raises(BadItemSize, match="whole number"):
                await channel.send("x")
            assert channel.statistics().accepted == 0

    async def test_a_size_function_that_raises(self, law_1: Law1) -> None:
        """Comes out of send as it is; the channel lives."""
        send = RecordingSender[Any]()
        async with Channel(send, ChannelOptions[Any](item_size=len)) as channel:
            with pytest.raises(TypeError):
                await channel.send(5)
            with pytest.raises(TypeError):
                channel.send_nowait(5)
            await channel.send("x")
        assert law_1(channel).delivered == 1

    async def test_each_size_is_asked_once(self, gate: Any) -> None:
        """Blocked, retried or not."""
        asked: list[str] = []

        def size(item: str) -> int:
            asked.append(item)
            return len(item)

        send = ScriptedSink[str](a=1.0, failures=[ConnectionError()])
        options = ChannelOptions[str](
            batch_size_max=5,
            item_size=size,
            full_behavior=BlockNewItems(max_size=5),
            batch_age_max=0,
            on_error=None,
        )
        async with Channel(send, options) as channel:
            await channel.send("aaaaa")
            await channel.send("bbbbb")
        assert asked == ["aaaaa", "bbbbb"]

    async def test_a_large_item_is_not_starved_by_small_ones(self, gate: Any) -> None:
        """Freed room waits for the head of the queue."""
        options = ChannelOptions[str](
            batch_items_max=1,
            batch_size_max=10,
            item_size=len,
            batch_age_max=0,
            full_behavior=BlockNewItems(max_size=10),
            max_leases=10,
        )
        order: list[int] = []
        send = RecordingSender[str](latency=1.0)
        async with Channel(send, options) as channel:

            async def put(size: int) -> None:
                await channel.send("x" * size)
                order.append(size)

            async with anyio.create_task_group() as group:
                for size in (3, 3, 3, 10, 1, 1, 1):
                    group.start_soon(put, size)
                    await anyio.sleep(0.1)
        assert order == [3, 3, 3, 10, 1, 1, 1]


class TestConsume:
    async def test_an_iterable(self) -> None:
        """In its order."""
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](max_leases=1)) as channel:
            await channel.consume(range(250))
        assert send.items == list(range(250))

    async def test_an_async_iterable_with_backpressure(self, law_1: Law1) -> None:
        """It is asked for no more than fits."""
        drawn = 0

        async def source() -> AsyncGenerator[int, None]:
            nonlocal drawn
            while True:
                drawn += 1
                yield drawn

        send = RecordingSender[int](latency=1.0)
        async with Channel(send, _full_of(2, max_leases=1)) as channel, aclosing(source()) as items:
            with anyio.move_on_after(5.5):
                await channel.consume(items)
            assert drawn <= 2 + 5 + 1
            assert law_1(channel).accepted == drawn - 1

    async def test_what_the_source_raises_comes_out(self) -> None:
        """What came before is kept."""

        def source() -> Any:
            yield 1
            raise KeyError

        send = RecordingSender[int]()
        async with Channel(send) as channel:
            with pytest.raises(KeyError):
                await channel.consume(source())
        assert send.items == [1]


class TestDropOldest:
    async def test_nobody_waits_and_the_oldest_batch_goes(self, gate: Any, hooks: Any, law_1: Law1) -> None:
        """Waiting batches first; told with their reason; receipts hear of it."""
        options = ChannelOptions[int](
            batch_items_max=2,
            batch_age_max=60,
            max_leases=1,
            full_behavior=DropOldestBatch(max_live_items=6),
            **hooks.all,
        )
        async with Channel(gate, options) as channel:
            receipts = [await channel.submit(number) for number in range(6)]
            await anyio.sleep(1)  # (0, 1) is leased, (2, 3) and (4, 5) wait
            await channel.send(6)
            assert hooks.dropped == [((2, 3), DropReason.FULL)]
            assert receipts[2].outcome is not None
            assert receipts[2].outcome.reason is DropReason.FULL
            assert law_1(channel).live == 5
            gate.open()
        assert sorted(gate.batches) == [(0, 1), (4, 5), (6,)]

    async def test_drops_until_it_fits(self, gate: Any, hooks: Any, law_1: Law1) -> None:
        """However large the new item is: the ancestor dropped one batch per insert."""
        options = ChannelOptions[str](
            batch_items_max=1,
            batch_size_max=10,
            item_size=len,
            max_leases=1,
            full_behavior=DropOldestBatch(max_live_size=10),
            **hooks.all,
        )
        async with Channel(gate, options) as channel:
            for _ in range(4):
                await channel.send("ab")
            await anyio.sleep(1)
            await channel.send("x" * 10)
            statistics = law_1(channel)
            assert statistics.unleased_size + statistics.leased_size <= 10
            gate.open()
        assert hooks.dropped[:3] == [(("ab",), DropReason.FULL)] * 3

    async def test_a_leased_batch_is_only_marked(self, gate: Any, hooks: Any, law_1: Law1) -> None:
        """Sent, it is delivered after all."""
        options = ChannelOptions[int](
            batch_items_max=1,
            batch_age_max=0,
            max_leases=1,
            full_behavior=DropOldestBatch(max_live_items=1),
            **hooks.all,
        )
        async with Channel(gate, options) as channel:
            receipt = await channel.submit(1)
            await anyio.sleep(1)
            await channel.send(2)
            now = law_1(channel)
            assert (now.dropped_leased_items, now.leased_items, now.unleased_items) == (1, 0, 1)
            assert hooks.drops == []
            gate.open()
            assert (await receipt.wait()).status is Status.DELIVERED
        assert law_1(channel).delivered == 2

    async def test_a_marked_batch_that_fails_is_dropped_then(self, hooks: Any, law_1: Law1) -> None:
        """Its retry is void, and the hook runs at that moment."""
        opened = anyio.Event()

        async def send(batch: Batch[int]) -> None:
            if 1 in batch:
                await opened.wait()
                raise ConnectionError

        options = ChannelOptions[int](
            batch_items_max=1,
            batch_age_max=0,
            max_leases=1,
            full_behavior=DropOldestBatch(max_live_items=1),
            **hooks.all,
        )
        async with Channel(send, options) as channel:
            receipt = await channel.submit(1)
            await anyio.sleep(1)
            await channel.send(2)
            opened.set()
            assert (await receipt.wait()).reason is DropReason.FULL
            await anyio.sleep(1)
            assert hooks.dropped == [((1,), DropReason.FULL)]
        assert law_1(channel).retries == 0

    async def test_the_open_batch_goes_last(self, gate: Any, hooks: Any) -> None:
        """When nothing older is left."""
        options = ChannelOptions[str](
            batch_items_max=10,
            batch_size_max=10,
            item_size=len,
            batch_age_max=60,
            full_behavior=DropOldestBatch(max_live_size=10),
            **hooks.all,
        )
        async with Channel(gate, options) as channel:
            await channel.send("old")
            await channel.send("x" * 8)
            assert hooks.dropped == [(("old",), DropReason.FULL)]
            gate.open()


class TestCoalescing:
    @pytest.fixture
    def options(self, hooks: Any) -> ChannelOptions[Any]:
        """Pairs of a key and a value."""
        return ChannelOptions(
            batch_age_max=1.0,
            max_leases=1,
            coalesce_by=lambda item: item[0],
            on_error=None,
            on_drop=hooks.on_drop,
        )

    async def test_replaces_in_place(self, options: Any, hooks: Any, law_1: Law1) -> None:
        """The newest takes the place of the older one; the older is SUPERSEDED."""
        send = RecordingSender[Any]()
        async with Channel(send, options) as channel:
            first = await channel.submit(("a", 1))
            await channel.send(("b", 1))
            second = await channel.submit(("a", 2))
            assert first.outcome is not None
            assert first.outcome.reason is DropReason.SUPERSEDED
            assert (await second.wait()).status is Status.DELIVERED
        assert send.batches == [(("a", 2), ("b", 1))]
        assert hooks.dropped == [((("a", 1),), DropReason.SUPERSEDED)]
        assert law_1(channel).dropped[DropReason.SUPERSEDED] == 1

    async def test_one_that_waits_for_its_retry_leaves_its_batch(self, options: Any, law_1: Law1) -> None:
        """The batch that was sent once only shrinks; the newer item goes in another."""
        send = ScriptedSink[Any](failures=[ConnectionError()])
        async with Channel(send, options) as channel:
            first = await channel.submit(("a", 1))
            await channel.send(("b", 1))
            channel.cut()
            while not send.calls:
                await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            key = send.calls[0].batch.key
            while channel.statistics().leases:
                await anyio.lowlevel.checkpoint()
            await channel.send(("a", 2))
            assert first.outcome is not None
            assert first.outcome.reason is DropReason.SUPERSEDED
            await channel.flush()
        retried = next(call for call in send.calls if call.batch.attempt == 2)
        assert retried.items == (("b", 1),)
        assert retried.batch.key != key
        assert law_1(channel).delivered == 2

    async def test_one_in_flight_that_fails_is_superseded(self, options: Any, law_1: Law1) -> None:
        """If a newer one was accepted since; delivered, it is delivered."""
        opened = anyio.Event()
        attempts: list[Any] = []

        async def send(batch: Batch[Any]) -> None:
            attempts.append(batch.items)
            if len(attempts) == 1:
                await opened.wait()
                raise ConnectionError

        async with Channel(send, options) as channel:
            first = await channel.submit(("a", 1))
            beside = await channel.submit(("b", 1))
            channel.cut()
            await anyio.sleep(0.5)
            await channel.send(("a", 2))
            assert first.outcome is None
            opened.set()
            assert (await first.wait()).reason is DropReason.SUPERSEDED
            assert (await beside.wait()).status is Status.DELIVERED
        assert (("b", 1),) in attempts
        assert law_1(channel).delivered == 2

    async def test_a_full_buffer_takes_a_newer_one_of_a_key(self, gate: Any) -> None:
        """Replacing needs no room."""
        options = ChannelOptions[Any](
            batch_items_max=2,
            batch_age_max=60,
            max_leases=1,
            full_behavior=BlockNewItems(max_items=4),
            coalesce_by=lambda item: item[0],
            on_drop=None,
        )
        async with Channel(gate, options) as channel:
            for key in "abcd":
                channel.send_nowait((key, 1))
            await anyio.sleep(1)
            channel.send_nowait(("c", 2))
            with pytest.raises(BufferFull):
                channel.send_nowait(("e", 1))
            with pytest.raises(BufferFull):
                channel.send_nowait(("a", 2))  # in flight: a place of its own
            gate.open()
        assert gate.batches[1] == (("c", 2), ("d", 1))

    async def test_a_key_function_that_raises(self, law_1: Law1) -> None:
        """Or answers something without a hash: out of send, nothing accepted."""
        async with Channel(
            RecordingSender[Any](), ChannelOptions[Any](coalesce_by=lambda item: item["key"])
        ) as channel:
            with pytest.raises(KeyError):
                await channel.send({})
            with pytest.raises(TypeError):
                await channel.send({"key": []})
            await channel.send({"key": 1})
        assert law_1(channel).delivered == 1


class TestItemAge:
    async def test_stale_items_leave_by_the_timer(self, gate: Any, hooks: Any, law_1: Law1) -> None:
        """Counted from acceptance."""
        options = ChannelOptions[int](
            batch_items_max=1, max_leases=1, item_age_max=5.0, on_drop=hooks.on_drop
        )
        async with Channel(gate, options) as channel:
            await channel.send(0)
            began = anyio.current_time()
            await anyio.sleep(1)
            receipt = await channel.submit(1)
            assert (await receipt.wait()).reason is DropReason.EXPIRED
            assert anyio.current_time() - began == pytest.approx(6.0, abs=0.1)
            assert hooks.dropped == [((1,), DropReason.EXPIRED)]
            gate.open()
        assert law_1(channel).delivered == 1  # the one in flight

    async def test_over_retries(self, hooks: Any, law_1: Law1) -> None:
        """The clock runs from acceptance, and no attempt begins with a stale item."""

        async def send(batch: Batch[int]) -> None:
            starts.append(anyio.current_time() - began)
            raise ConnectionError

        starts: list[float] = []
        options = ChannelOptions[int](
            batch_age_max=0,
            item_age_max=5.0,
            retry=RetryPolicy(wait=tenacity.wait_fixed(2), stop=tenacity.stop_never),
            **hooks.all,
        )
        async with Channel(send, options) as channel:
            began = anyio.current_time()
            receipt = await channel.submit(1)
            assert (await receipt.wait()).reason is DropReason.EXPIRED
            assert anyio.current_time() - began == pytest.approx(5.0, abs=0.1)
        assert [round(start) for start in starts] == [0, 2, 4]

    async def test_when_room_is_wanted(self, jump: Callable[[float], None], gate: Any) -> None:
        """A full buffer of stale items is no full buffer, even before the timer has had its turn."""
        options = _full_of(2, max_leases=1, item_age_max=5.0)
        async with Channel(gate, options) as channel:
            channel.send_nowait(1)
            await anyio.sleep(1)
            channel.send_nowait(2)
            with pytest.raises(BufferFull):
                channel.send_nowait(3)
            jump(6)
            channel.send_nowait(3)
            assert channel.statistics().dropped[DropReason.EXPIRED] == 1
            gate.open()

    async def test_before_an_attempt(self, jump: Callable[[float], None]) -> None:
        """What became stale in the last moment is not sent."""
        send = RecordingSender[str]()
        options = ChannelOptions[str](batch_age_max=4.0, item_age_max=5.0, on_drop=None)
        async with Channel(send, options) as channel:
            await channel.send("stale")
            await anyio.sleep(3)
            await channel.send("fresh")
            jump(3)
        assert send.batches == [("fresh",)]
