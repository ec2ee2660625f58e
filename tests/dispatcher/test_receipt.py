"""Receipts and outcomes: what a sender learns of its item."""

import gc
import traceback
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import tenacity

from dispatcher import (
    Batch,
    BlockNewItems,
    Channel,
    ChannelOptions,
    ChannelStatistics,
    DropReason,
    ItemDropped,
    ItemFailed,
    OutcomeError,
    RetryPolicy,
    Status,
)
from dispatcher.testing import RecordingSender, ScriptedSink

Law1 = Callable[[Channel[Any, Any]], ChannelStatistics]
NATURAL = ChannelOptions[Any](batch_age_max=0, on_error=None, on_drop=None)

pytestmark = pytest.mark.usefixtures("no_leaks")


class TestWait:
    async def test_outcome_is_none_until_settled(self, gate: Any) -> None:
        """Then it stays."""
        async with Channel(gate, NATURAL) as channel:
            receipt = await channel.submit(1)
            assert receipt.outcome is None
            assert repr(receipt) == "<Receipt waiting>"
            gate.open()
            outcome = await receipt.wait()
            assert receipt.outcome is outcome
            assert await receipt.wait() is outcome
            assert repr(receipt) == "<Receipt delivered>"

    async def test_many_may_wait_for_one(self, gate: Any) -> None:
        """All are woken."""
        async with Channel(gate, NATURAL) as channel:
            receipt = await channel.submit(1)
            woken = 0

            async def waits() -> None:
                nonlocal woken
                await receipt.wait()
                woken += 1

            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(waits)
                await anyio.sleep(1)
                gate.open()
            assert woken == 5

    async def test_cancelled_it_withdraws_nothing(self, gate: Any, law_1: Law1) -> None:
        """And takes no other waiter along."""
        async with Channel(gate, NATURAL) as channel:
            receipt = await channel.submit(1)
            with anyio.move_on_after(1) as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(receipt.wait)
                    group.start_soon(receipt.wait)
            assert scope.cancelled_caught
            assert receipt.outcome is None
            gate.open()
            assert (await receipt.wait()).status is Status.DELIVERED
        assert law_1(channel).delivered == 1

    async def test_of_a_channel_that_is_cancelled(self, gate: Any) -> None:
        """Everyone hears of the end."""
        async with Channel(gate, NATURAL) as channel, anyio.create_task_group() as group:
            receipts = [await channel.submit(number) for number in range(3)]
            for receipt in receipts:
                group.start_soon(receipt.wait)
            await anyio.sleep(1)
            channel.cancel()
        assert {receipt.outcome and receipt.outcome.reason for receipt in receipts} == {DropReason.CANCELLED}

    async def test_one_that_nobody_waits_for_says_nothing(self) -> None:
        """No warning of an outcome never fetched."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            send = ScriptedSink[int](failures=[ValueError()])
            async with Channel(send, NATURAL) as channel:
                await channel.submit(1)
            gc.collect()


class TestMemory:
    async def test_a_kept_receipt_keeps_no_items(self) -> None:
        """Neither its own nor its neighbours'; and garbage needs no collector."""

        class Item:
            pass

        async def forget(batch: Batch[Item]) -> None: ...

        gc.disable()
        try:
            async with Channel(forget, NATURAL) as channel:
                items = [Item() for _ in range(3)]
                gone = [weakref.ref(item) for item in items]
                receipts = [channel.submit_nowait(item) for item in items]
                del items
                await receipts[0].wait()
                await anyio.sleep(1)
                assert [item() for item in gone] == [None] * 3
                assert receipts[0].batch.tickets == []  # no way back to the receipts: no cycle
        finally:
            gc.enable()


class TestCancel:
    async def test_before_a_lease(self, law_1: Law1) -> None:
        """The item leaves: DROPPED, CANCELLED; the others go on."""
        send = RecordingSender[int]()
        async with Channel(send, ChannelOptions[int](on_drop=None)) as channel:
            receipts = [await channel.submit(number) for number in range(3)]
            assert receipts[1].cancel()
            assert receipts[1].outcome is not None
            assert receipts[1].outcome.reason is DropReason.CANCELLED
            assert not receipts[1].cancel()
            assert law_1(channel).live == 2
        assert send.batches == [(0, 2)]

    async def test_between_attempts(self, law_1: Law1) -> None:
        """The batch goes on without it, under a new key."""
        send = ScriptedSink[int](failures=[ConnectionError()])
        options = ChannelOptions[int](
            batch_items_max=2, retry=RetryPolicy(wait=tenacity.wait_fixed(10)), on_error=None, on_drop=None
        )
        async with Channel(send, options) as channel:
            receipts = [await channel.submit(number) for number in range(2)]
            await anyio.sleep(5)
            assert receipts[0].cancel()
            assert (await receipts[1].wait()).status is Status.DELIVERED
        assert send.batches == [(0, 1), (1,)]
        assert send.calls[0].batch.key != send.calls[1].batch.key
        assert law_1(channel).dropped[DropReason.CANCELLED] == 1

    async def test_the_last_of_a_waiting_batch(self, law_1: Law1) -> None:
        """Nothing is left to be tried again: the channel is idle at once."""
        send = ScriptedSink[int](failures=[ConnectionError()])
        options = ChannelOptions[int](
            batch_age_max=0, retry=RetryPolicy(wait=tenacity.wait_fixed(200)), on_error=None, on_drop=None
        )
        async with Channel(send, options) as channel:
            receipt = await channel.submit(1)
            await anyio.sleep(1)
            began = anyio.current_time()
            assert receipt.cancel()
            await channel.wait_idle()
            assert anyio.current_time() == began
        assert law_1(channel).attempts == 1

    async def test_not_with_a_send_fn(self, gate: Any, law_1: Law1) -> None:
        """False, and nothing changes."""
        async with Channel(gate, NATURAL) as channel:
            receipt = await channel.submit(1)
            await anyio.sleep(1)
            before = law_1(channel)
            assert not receipt.cancel()
            assert law_1(channel) == before
            gate.open()
        assert not receipt.cancel()
        assert receipt.outcome is not None
        assert receipt.outcome.status is Status.DELIVERED

    async def test_frees_room(self, gate: Any) -> None:
        """For the sender that waits."""
        options = ChannelOptions[int](
            batch_items_max=1, max_leases=1, full_behavior=BlockNewItems(max_items=2), on_drop=None
        )
        async with Channel(gate, options) as channel, anyio.create_task_group() as group:
            await channel.send(0)
            receipt = await channel.submit(1)
            group.start_soon(channel.send, 2)
            await anyio.sleep(1)
            assert channel.statistics().waiters == 1
            receipt.cancel()
            await anyio.sleep(1)
            assert channel.statistics().waiters == 0
            gate.open()


class TestCall:
    async def test_a_cancelled_call_withdraws_its_item(self, gate: Any, law_1: Law1) -> None:
        """No work is done for nobody."""
        async with Channel(gate, ChannelOptions[int](batch_age_max=60, on_drop=None)) as channel:
            with anyio.move_on_after(1):
                await channel.call(1)
            assert law_1(channel).dropped[DropReason.CANCELLED] == 1
            assert law_1(channel).live == 0
        assert gate.seen == []

    async def test_an_item_in_flight_stays_there(self, gate: Any, law_1: Law1) -> None:
        """What a SendFn has cannot be withdrawn."""
        async with Channel(gate, NATURAL) as channel:
            with anyio.move_on_after(1):
                await channel.call(1)
            assert law_1(channel).leased_items == 1
            gate.open()
        assert law_1(channel).delivered == 1

    async def test_failed(self) -> None:
        """ItemFailed, with the error, also as its cause; fresh each time."""
        error = ValueError("no")
        send = ScriptedSink[int](failures=[error])
        async with Channel(send, NATURAL) as channel:
            with pytest.raises(ItemFailed) as caught:
                await channel.call(1)
        assert caught.value.error is error
        assert caught.value.__cause__ is error
        assert isinstance(caught.value, OutcomeError)

    async def test_dropped(self, gate: Any) -> None:
        """ItemDropped, with the reason."""
        async with Channel(gate, NATURAL) as channel, anyio.create_task_group() as group:

            async def calls() -> None:
                with pytest.raises(ItemDropped) as caught:
                    await channel.call(1)
                assert caught.value.reason is DropReason.CANCELLED

            group.start_soon(calls)
            await anyio.sleep(1)
            channel.cancel()

    async def test_tracebacks_do_not_pile_up(self) -> None:
        """One error shared by a thousand receipts grows no longer with each (aiokafka#246)."""
        error = ValueError("shared")
        send = ScriptedSink[int](failures=[error])
        options = ChannelOptions[int](batch_items_max=1000, on_error=None, on_drop=None)
        async with Channel(send, options) as channel:
            receipts = [channel.submit_nowait(number) for number in range(1000)]
            lengths = []
            for receipt in receipts:
                outcome = await receipt.wait()
                with pytest.raises(ItemFailed) as failed:
                    outcome.unwrap()
                lengths.append(len(traceback.extract_tb(error.__traceback__)))
                assert len(traceback.extract_tb(failed.value.__traceback__)) == 2
        assert set(lengths) == {lengths[0]}

    async def test_a_request_and_its_response(self) -> None:
        """Batched: a hundred callers, one call of the SendFn."""

        async def double(batch: Batch[int]) -> list[int]:
            calls.append(len(batch))
            return [2 * item for item in batch]

        calls: list[int] = []
        answers: dict[int, int] = {}

        async def asks(number: int) -> None:
            answers[number] = await channel.call(number)

        async with Channel(double) as channel, anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(asks, number)
        assert answers == {number: 2 * number for number in range(100)}
        assert calls == [100]
