"""The one waiting primitive, on both backends."""

from typing import Any

import anyio
import pytest

from dispatcher._wait import Backend, current_backend, wake

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
async def backend(anyio_backend: Any) -> Backend:
    """The running loop's."""
    return current_backend()


class TestWaiter:
    async def test_woken_later(self, backend: Backend) -> None:
        """The waiting task goes on; a second wake does nothing."""
        waiter = backend.waiter()
        log: list[str] = []

        async def waits() -> None:
            await waiter
            log.append("woken")

        async with anyio.create_task_group() as group:
            group.start_soon(waits)
            await anyio.sleep(1)
            assert log == []
            assert not waiter.done()
            wake(waiter)
            wake(waiter)
            assert waiter.done()
        assert log == ["woken"]

    async def test_woken_before_the_wait(self, backend: Backend) -> None:
        """Is not lost."""
        waiter = backend.waiter()
        wake(waiter)
        with anyio.fail_after(1):
            await waiter

    async def test_cancelled(self, backend: Backend) -> None:
        """Is done, and a late wake does nothing."""
        waiter = backend.waiter()
        with anyio.move_on_after(1) as scope:
            await waiter
        assert scope.cancelled_caught
        assert waiter.done()
        wake(waiter)

    async def test_woken_and_cancelled_in_one_turn(self, backend: Backend) -> None:
        """Either may win; whoever was handed something has to look, and nothing breaks."""
        waiter = backend.waiter()
        ended: list[str] = []

        async def waits() -> None:
            try:
                await waiter
                ended.append("woken")
            except BaseException:
                ended.append("cancelled")
                raise

        async with anyio.create_task_group() as group:
            group.start_soon(waits)
            await anyio.sleep(1)
            wake(waiter)
            group.cancel_scope.cancel()
        assert ended in (["woken"], ["cancelled"])
        assert waiter.done()


class TestBackend:
    async def test_names_itself(self, backend: Backend, anyio_backend_name: str) -> None:
        """As anyio does."""
        assert backend.name == anyio_backend_name

    async def test_clock_is_that_of_cancel_scopes(self, backend: Backend) -> None:
        """Deadlines are reckoned by it."""
        assert backend.clock() == pytest.approx(anyio.current_time(), abs=1e-6)

    async def test_pass_turn_lets_every_other_task_run(self, backend: Backend) -> None:
        """Once."""
        ran: list[int] = []

        async def other(number: int) -> None:
            ran.append(number)

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(other, number)
            await backend.pass_turn()
            await backend.pass_turn()
            assert sorted(ran) == list(range(5))

    async def test_pass_turn_may_be_cancelled(self, backend: Backend) -> None:
        """It is a checkpoint."""
        with anyio.CancelScope() as scope:
            scope.cancel()
            for _ in range(3):
                await backend.pass_turn()
            pytest.fail("not cancelled")
        assert scope.cancelled_caught

    async def test_cancelled_is_what_scopes_raise(self, backend: Backend) -> None:
        """The class to catch."""
        assert backend.cancelled is anyio.get_cancelled_exc_class()


def test_outside_a_loop() -> None:
    """There is no backend."""
    with pytest.raises(RuntimeError):
        current_backend()
