"""Groups of calls, when the disk fails at the worst of moments."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.errors import StoreTrouble
from dispatcher.stores._engine import Engine, PutOptions
from dispatcher.stores._schema import connect
from dispatcher.stores._transactor import Call, Transactor
from dispatcher.stores.base import Record


class FailingConnection(sqlite3.Connection):
    """Fails the next so many statements that begin with a word, as a disk would."""

    word = ""
    times = 0

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        """Fail, or do it."""
        if self.word and sql.startswith(self.word) and self.times > 0:
            self.times -= 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            error.sqlite_errorname = "SQLITE_IOERR"
            raise error
        return super().execute(sql, *args)

    def fail(self, word: str, times: int) -> None:
        """From now on."""
        self.word, self.times = word, times


@pytest.fixture
def db(tmp_path: Path) -> Iterator[FailingConnection]:
    """A store's file, on a disk that can be told to fail."""
    path = tmp_path / "q.db"
    connect(path, synchronous="NORMAL", bytes_max=None).close()
    connection = sqlite3.connect(path, isolation_level=None, factory=FailingConnection)
    yield connection
    connection.close()


@pytest.fixture
def transactor(db: FailingConnection) -> Transactor:
    """With one queue."""
    transactor = Transactor(db, Path("q.db"), "NORMAL")
    transactor.work([_call(lambda engine: engine.create(0.0, ["q"]))])
    transactor.tables.take_hints()
    return transactor


def _call(step: Callable[[Engine], Any], *, light: bool = False) -> Call:
    return Call(lambda engine, _: step(engine), 0.0, waiter=None, durable=True, light=light, orphan=None)


def _put(text: bytes, *, light: bool = True) -> Call:
    return _call(lambda engine: engine.put(0.0, [Record(text)], ["q"], PutOptions()), light=light)


def _ready(transactor: Transactor) -> list[bytes]:
    peek = _call(lambda engine: engine.peek(0.0, "q", 99, 0, None))
    transactor.work([peek])
    return [one.payload for one in peek.result]


class TestTrouble:
    @pytest.mark.parametrize("word", ["BEGIN", "COMMIT"])
    def test_a_commit_that_fails_has_done_nothing(
        self, word: str, db: FailingConnection, transactor: Transactor
    ) -> None:
        """Every call of the group is told; afterwards it works."""
        calls = [_put(b"a"), _put(b"b", light=False), _put(b"c")]
        db.fail(word, 4)  # the group, then each by itself
        transactor.work(calls)
        assert [type(call.error) for call in calls] == [StoreTrouble] * 3
        assert _ready(transactor) == []
        transactor.work([_put(b"d")])
        assert _ready(transactor) == [b"d"]

    def test_a_group_that_fails_is_done_call_by_call(
        self, db: FailingConnection, transactor: Transactor
    ) -> None:
        """A passing trouble costs nobody anything."""
        calls = [_put(b"a"), _put(b"b", light=False), _put(b"c")]
        db.fail("COMMIT", 2)
        transactor.work(calls)
        assert isinstance(calls[0].error, StoreTrouble)
        assert [call.error for call in calls[1:]] == [None, None]
        assert _ready(transactor) == [b"b", b"c"]

    def test_what_waiters_go_by_is_right_at_once(self, db: FailingConnection, transactor: Transactor) -> None:
        """After a failure nobody is told of records that are not there."""
        db.fail("COMMIT", 1)
        transactor.work([_put(b"a")])
        hint = transactor.tables.take_hints()["q"]
        assert hint is not None
        assert (hint.ready, hint.live_bytes) == (0, 0)

    def test_a_failure_to_start_over_is_made_good_later(
        self, db: FailingConnection, transactor: Transactor
    ) -> None:
        """While the disk is away every call fails; when it is back, all is as it was."""
        transactor.work([_put(b"before")])
        db.fail("COMMIT", 1)
        rollback = db.execute

        def no_rollback(sql: str, *args: Any) -> sqlite3.Cursor:
            if sql == "ROLLBACK":
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error
            return rollback(sql, *args)

        db.execute = no_rollback  # type: ignore[method-assign]
        lost = [_put(b"a"), _put(b"b")]
        transactor.work(lost)
        assert all(isinstance(call.error, StoreTrouble) for call in lost)
        del db.execute
        transactor.work([_put(b"after")])
        assert _ready(transactor) == [b"before", b"after"]

    def test_an_error_in_a_step_is_its_callers(self, transactor: Transactor) -> None:
        """Whatever it is, its neighbours do not notice."""

        def broken(engine: Engine) -> None:
            engine.put(0.0, [Record(b"half")], ["q"], PutOptions())
            msg = "ours"
            raise KeyError(msg)

        calls = [_put(b"a"), _call(broken), _put(b"b")]
        transactor.work(calls)
        assert [type(call.error) for call in calls] == [type(None), KeyError, type(None)]
        assert _ready(transactor) == [b"a", b"b"]
