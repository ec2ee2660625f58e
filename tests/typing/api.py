"""
Checked by ``mypy --strict``, never run: code as users write it needs no hint.
"""

from collections.abc import AsyncIterator, Sequence
from typing import assert_type

import anyio.abc
from aiolimiter import AsyncLimiter
from tenacity import retry_if_exception_type, stop_after_attempt, wait_fixed

from dispatcher import (
    Batch,
    BlockNewItems,
    Channel,
    ChannelOptions,
    ChannelStatistics,
    DropReason,
    DurableChannel,
    DurableStatistics,
    InfiniteGrowth,
    Outcome,
    Rate,
    Receipt,
    RetryPolicy,
    SendFn,
    codecs,
    process,
)
from dispatcher.stores import Store


class Animal:
    weight = 1


class Dog(Animal):
    pass


async def send_animals(batch: Batch[Animal]) -> None:
    for animal in batch:
        assert_type(animal, Animal)
    batch.done(0, 1)
    batch.fail(2, ValueError("no"))
    assert_type(batch.items, tuple[Animal, ...])
    assert_type(batch.key, str)
    assert_type(batch.attempt, int)
    assert_type(batch.synthetic, bool)


async def weigh(batch: Batch[Animal]) -> list[int]:
    return [animal.weight for animal in batch]


async def maybe(batch: Batch[str]) -> Sequence[bytes] | None:
    return [item.encode() for item in batch] if batch[0] else None


class Poster:
    async def __call__(self, batch: Batch[str], /) -> None: ...


async def the_item_type_comes_from_the_send_fn() -> None:
    options = ChannelOptions[Animal](batch_items_max=500, batch_age_max=0.2, qps_limit=AsyncLimiter(50, 1))
    async with Channel(send_animals, options) as channel:
        assert_type(channel, Channel[Animal, None])
        await channel.send(Dog())
        channel.send_nowait(Dog())
        receipt = await channel.submit(Animal())
        assert_type(receipt, Receipt[None])
        outcome = await receipt.wait()
        assert_type(outcome, Outcome[None])
        assert_type(receipt.cancel(), bool)
        await channel.call(Animal())
        assert_type(channel.statistics(), ChannelStatistics)


async def options_need_no_hint() -> None:
    async with Channel(
        send_animals, ChannelOptions(batch_items_max=500, batch_age_max=0.2, qps_limit=AsyncLimiter(50, 1))
    ) as channel:
        await channel.send(Dog())


async def the_result_type_comes_from_the_send_fn() -> None:
    async with Channel(weigh) as channel:
        assert_type(channel, Channel[Animal, int])
        assert_type(await channel.call(Dog()), int)
        outcome = (await channel.submit(Dog())).outcome
        assert_type(outcome, Outcome[int] | None)
        if outcome is not None:
            assert_type(outcome.unwrap(), int)
            assert_type(outcome.reason, DropReason | None)


async def results_may_be_left_out() -> None:
    async with Channel(maybe) as channel:
        assert_type(await channel.call("a"), bytes)


async def objects_send_too() -> None:
    async with Channel(Poster(), name="posts") as channel:
        await channel.send("text")


async def hooks_and_functions_are_typed_by_the_item() -> None:
    def on_error(batch: Batch[Animal], error: Exception) -> bool | None:
        return None

    def on_drop(batch: Batch[object], reason: DropReason) -> None: ...

    options = ChannelOptions(
        item_size=lambda animal: animal.weight,
        batch_size_max=100,
        coalesce_by=lambda animal: animal.weight,
        on_error=on_error,
        on_drop=on_drop,
        on_drained=lambda: None,
        full_behavior=InfiniteGrowth(),
        qps_limit=Rate(per_second=50, burst=5),
        retry=RetryPolicy(
            retry=retry_if_exception_type(OSError), wait=wait_fixed(1), stop=stop_after_attempt(3)
        ),
    )
    async with Channel(send_animals, options) as channel:
        await channel.send(Dog())


async def options_for_anything_fit_every_channel() -> None:
    quick: ChannelOptions[object] = ChannelOptions(
        batch_age_max=0, full_behavior=BlockNewItems(max_items=200)
    )
    async with Channel(weigh, quick) as channel, Channel(maybe, quick) as other:
        await channel.send(Dog())
        await other.send("b")


async def a_send_fn_for_animals_serves_dogs() -> None:
    send_dogs: SendFn[Dog, None] = send_animals
    channel: Channel[Dog, None]
    async with Channel(send_dogs) as channel:
        stream: anyio.abc.UnreliableObjectSendStream[Dog] = channel
        await stream.send(Dog())


async def over_a_store_the_types_are_the_same(store: Store) -> None:
    async with DurableChannel(
        weigh, store, "animals", mode="journal", codec=codecs.Msgspec(Animal)
    ) as channel:
        assert_type(channel, DurableChannel[Animal, int])
        await channel.send(Dog())
        assert_type(await channel.submit(Dog()), Receipt[int])
        assert_type(channel.statistics(), DurableStatistics)


async def sources_of_both_kinds() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"

    assert_type(await process(["a", "b"], maybe), ChannelStatistics)
    assert_type(await process(source(), maybe, ChannelOptions(batch_items_max=1)), ChannelStatistics)


async def a_batch_of_dogs_is_a_batch_of_animals(dogs: Batch[Dog]) -> None:
    animals: Batch[Animal] = dogs
    sequence: Sequence[Animal] = dogs
    await send_animals(animals)
    assert_type(sequence[0], Animal)


async def what_must_not_type_check() -> None:
    async with Channel(maybe) as channel:
        await channel.send(1)  # type: ignore[arg-type]
        _: str = await channel.call("a")  # type: ignore[assignment]
    _send: SendFn[Animal, None] = maybe  # type: ignore[assignment]
