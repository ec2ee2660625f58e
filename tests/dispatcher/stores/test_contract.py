"""The contract, against both engines and on both backends, check by check."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dispatcher.stores._contract import CHECKS
from dispatcher.stores._contract.life import check_crashes
from dispatcher.stores._contract.rig import MakeStore, Rig
from dispatcher.stores.base import Store
from dispatcher.stores.memory import MemoryStore
from dispatcher.stores.sqlite import SQLiteStore
from dispatcher.testing import check_store

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Real loops: the store's thread knows no jumping clock."""
    return str(request.param)


def _memory(_: Path) -> MakeStore:
    made: dict[str, MemoryStore] = {}

    def make(name: str, clock: Callable[[], float]) -> Store:
        return made.setdefault(name, MemoryStore(clock=clock))

    return make


def _commit(folder: Path) -> MakeStore:
    return lambda name, clock: SQLiteStore(folder / name, clock=clock)


def _os(folder: Path) -> MakeStore:
    return lambda name, clock: SQLiteStore(folder / name, "os", clock=clock)


@pytest.mark.parametrize("engine", [_memory, _commit, _os], ids=["memory", "sqlite", "sqlite-os"])
@pytest.mark.parametrize("check", [check for check, _ in CHECKS], ids=lambda check: check.__name__[6:])
async def test_keeps_the_contract(
    check: Callable[[Rig], object], engine: Callable[[Path], MakeStore], tmp_path: Path
) -> None:
    """Each check's docstring says what is promised."""
    await check(Rig(engine(tmp_path), "store"))  # type: ignore[misc]


@pytest.mark.parametrize("engine", [_commit, _os], ids=["commit", "os"])
async def test_survives_a_crash_between_any_two_steps(
    engine: Callable[[Path], MakeStore], tmp_path: Path
) -> None:
    """The file and its log, copied while the owner lives, are what its death would leave."""

    def snapshot(source: str, target: str) -> None:
        for end in ("", "-wal"):
            if (tmp_path / (source + end)).exists():
                shutil.copy(tmp_path / (source + end), tmp_path / (target + end))

    await check_crashes(Rig(engine(tmp_path), "store"), snapshot)


class _Forgetful(MemoryStore):
    """Breaks one promise: an ack is confirmed, and nothing is done."""

    async def settle(self, *args: object, **kwargs: object) -> list[str]:
        """Forget it."""
        return []


class TestCheckStore:
    async def test_accepts_a_store_that_keeps_it(self, tmp_path: Path) -> None:
        """One call runs all of it."""
        await check_store(_memory(tmp_path))

    async def test_names_the_promise_that_is_broken(self) -> None:
        """Whoever writes an engine reads what is wrong with it."""
        with pytest.raises(AssertionError, match="check_ids: A record has one id"):
            await check_store(lambda name, clock: _Forgetful(clock=clock))
