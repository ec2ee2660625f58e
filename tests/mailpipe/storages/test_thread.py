"""A thread that owns something: order, results, errors, and what a cancellation means."""

import asyncio
import threading

import anyio
import pytest

from mailpipe.storages._thread import OwnThread


class Gate:
    """Work that waits to be let through."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.ended = False

    def __call__(self) -> str:
        self.entered.set()
        assert self.open.wait(30)
        self.ended = True
        return "through"


class TestRunning:
    async def test_works_in_order_in_one_thread(self) -> None:
        """Whatever waits is done in the order it came, in a thread that is not the loop's."""
        thread, order = OwnThread("test"), list[tuple[int, int]]()

        def work(number: int) -> None:
            order.append((number, threading.get_ident()))

        await asyncio.gather(*[thread.run(lambda number=number: work(number)) for number in range(20)])
        await thread.close()

        assert [number for number, _ in order] == list(range(20))
        assert len({ident for _, ident in order}) == 1
        assert order[0][1] != threading.get_ident()

    async def test_gives_back_what_the_work_gives(self) -> None:
        """Results and errors reach who asked for them; the thread lives on."""
        thread = OwnThread("test")
        with pytest.raises(ZeroDivisionError):
            await thread.run(lambda: 1 // 0)

        assert await thread.run(lambda: 42) == 42
        await thread.close()

    async def test_closed_takes_no_more(self) -> None:
        """By name, and closing twice is harmless."""
        thread = OwnThread("test")
        await thread.close()
        await thread.close()

        with pytest.raises(RuntimeError, match="test is closed"):
            await thread.run(lambda: None)


class TestCancellation:
    async def test_before_it_starts_it_never_starts(self) -> None:
        """What waits behind others is taken back."""
        thread, gate, ran = OwnThread("test"), Gate(), list[int]()
        first = asyncio.ensure_future(thread.run(gate))
        second = asyncio.ensure_future(thread.run(lambda: ran.append(1)))
        await asyncio.to_thread(gate.entered.wait, 30)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second

        gate.open.set()
        assert await first == "through"
        await thread.close()
        assert ran == []

    @pytest.mark.parametrize("times", [1, 3])
    async def test_while_it_runs_its_end_counts(self, times: int) -> None:
        """A commit on its way is waited for, however often we are cancelled, and its result is the truth."""
        thread, gate = OwnThread("test"), Gate()
        task = asyncio.ensure_future(thread.run(gate))
        await asyncio.to_thread(gate.entered.wait, 30)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        gate.open.set()

        assert await task == "through"
        await thread.close()

    async def test_a_cancelled_scope_waits_too(self) -> None:
        """The same under anyio, without turning the loop meanwhile."""
        thread, gate = OwnThread("test"), Gate()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while not gate.ended:
                turns += 1
                await asyncio.sleep(0.01)

        counter = asyncio.ensure_future(count())
        threading.Timer(0.2, gate.open.set).start()
        with anyio.move_on_after(0.01):
            result = await thread.run(gate)
            assert result == "through"
        await counter
        await thread.close()

        assert gate.ended
        assert turns < 40
