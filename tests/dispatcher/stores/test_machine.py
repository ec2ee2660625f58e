"""A random life of both engines, step by step the same; the one on SQLite in groups, with steps that fail."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.errors import QueueFull
from dispatcher.stores._engine import SHELVES, Engine, Ledger, PutOptions
from dispatcher.stores._schema import COUNTERS, SCHEMA
from dispatcher.stores._transactor import Call, Transactor
from dispatcher.stores.base import Dead, Leased, Nack, Record, Stored
from dispatcher.stores.memory import MemoryStore

QUEUES = ("a", "b")

records = st.builds(
    Record,
    st.binary(max_size=6),
    key=st.sampled_from([None, None, "k", "l", "m"]),
    priority=st.integers(0, 3),
    expires_at=st.one_of(st.none(), st.integers(0, 60).map(float)),
)
queues = st.lists(st.sampled_from(QUEUES), unique=True, max_size=2)
options = st.sampled_from(
    [
        PutOptions(),
        PutOptions(front=True),
        PutOptions(lease=True),
        PutOptions(front=True, lease=True),
        PutOptions(replace=True),
        PutOptions(bytes_max=20),
        PutOptions(replace=True, bytes_max=20),
    ]
)
Step = Callable[[Engine], Any]


class Broken(Exception):
    """Raised by a step in the middle of its work."""


class SameLives(RuleBasedStateMachine):
    """
    The model is the engine in memory.

    Ids and tags differ, so deliveries are known by their number, and records by what they are.
    """

    @initialize()
    def open(self) -> None:
        """Two empty queues."""
        self.now = 0.0
        self.model: Any = MemoryStore()._engine  # noqa: SLF001 - the sync engine
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for statement in SCHEMA.split(";\n"):
            self.db.execute(statement)
        self.transactor = Transactor(self.db, Path("memory"), "FULL")
        self.deliveries: list[tuple[str, str]] = []
        self.waiting: list[tuple[Step, Step, bool]] = []
        self.both(lambda engine: engine.create(self.now, QUEUES))

    # -- doing the same in both

    def both(self, step: Step, real: Step | None = None, *, light: bool = False) -> None:
        """Do it at the end of the group; *real* is the same for SQLite, where tags differ."""
        self.waiting.append((step, real or step, light))

    @rule()
    def commit(self) -> None:
        """All that waits, in one transaction; then compare each answer."""
        steps, self.waiting = self.waiting, []
        calls = [
            Call(
                lambda engine, _, real=real: real(engine),
                self.now,
                waiter=None,
                durable=True,
                light=light,
                orphan=None,
            )
            for _, real, light in steps
        ]
        self.transactor.work(calls)
        for (step, _, _), call in zip(steps, calls, strict=True):
            error = None
            wanted = None
            try:
                wanted = step(self.model)
            except (QueueFull, Broken) as refused:
                error = refused
            assert (type(call.error), str(call.error)) == (type(error), str(error))
            if error is None:
                self.compare(wanted, call.result)

    def compare(self, wanted: Any, got: Any) -> None:
        """Equal but for ids and tags; those are kept, in pairs."""
        if isinstance(wanted, Sequence) and not isinstance(wanted, str):
            assert len(wanted) == len(got), (wanted, got)
            for one, other in zip(wanted, got, strict=True):
                self.compare_one(one, other)
        else:
            assert wanted == got

    def compare_one(self, one: Any, other: Any) -> None:
        """One stored, leased or peeked record, or a tag that did nothing."""
        if isinstance(one, Stored | Leased):
            assert (one.tag is None) == (other.tag is None)
            if one.tag is not None:
                self.deliveries.append((one.tag, other.tag))
        if isinstance(one, Leased):
            assert one._replace(tag="", id="") == other._replace(tag="", id="")
        elif isinstance(one, str):
            assert (one, other) in self.deliveries or one == other == "no tag"

    def tags(self, numbers: Sequence[int]) -> tuple[list[str], list[str]]:
        """Deliveries by number, ended ones among them; as the model knows them, and as SQLite does."""
        known = [*self.deliveries, ("no tag", "no tag")]
        pairs = [known[-1 - number % len(known)] for number in numbers]
        return [one for one, _ in pairs], [other for _, other in pairs]

    # -- what may happen

    @rule(records=st.lists(records, max_size=4), queues=queues, options=options)
    def put(self, records: list[Record], queues: list[str], options: PutOptions) -> None:
        """In all the ways there are."""
        self.both(lambda e: e.put(self.now, records, queues, options), light=not options.replace)

    @rule(record=records, options=options)
    def fail_half_way(self, record: Record, options: PutOptions) -> None:
        """A step that has done much already, and then raises, has done nothing."""

        def real(engine: Engine) -> None:
            engine.put(self.now, [record], QUEUES, PutOptions(replace=options.replace))
            engine.lease(self.now, "a", 1, None, None)
            engine.purge(self.now, "b", None, 0)
            engine.remove(self.now, ["a"])
            engine.create(self.now, ["c"])
            raise Broken

        def step(engine: Engine) -> None:
            raise Broken

        self.both(step, real)

    @rule(
        queue=st.sampled_from(QUEUES),
        limit=st.integers(1, 4),
        bytes_max=st.sampled_from([None, 3, 8]),
        ack_timeout=st.sampled_from([None, None, 5.0, 20.0]),
    )
    def lease(self, queue: str, limit: int, bytes_max: int | None, ack_timeout: float | None) -> None:
        """And commit, for its tags to be known."""
        self.both(lambda e: e.lease(self.now, queue, limit, bytes_max, ack_timeout))
        self.commit()

    @precondition(lambda self: self.deliveries)
    @rule(
        acks=st.lists(st.integers(0, 12), max_size=3),
        nacks=st.lists(
            st.tuples(st.integers(0, 12), st.sampled_from([0.0, 7.0]), st.booleans(), st.booleans()),
            max_size=3,
        ),
        dead=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=2),
    )
    def settle(
        self,
        acks: list[int],
        nacks: list[tuple[int, float, bool, bool]],
        dead: list[tuple[int, bool]],
    ) -> None:
        """Deliveries that live, that have ended, twice the same."""

        def settling(which: int) -> Step:
            to_ack = self.tags(acks)[which]
            to_nack = [
                Nack(self.tags([number])[which][0], delay=delay, front=front, count=count)
                for number, delay, front, count in nacks
            ]
            to_bury = [Dead(self.tags([number])[which][0], "no", quarantine=aside) for number, aside in dead]
            return lambda e: e.settle(self.now, to_ack, to_nack, to_bury)

        self.both(settling(0), settling(1))

    @precondition(lambda self: self.deliveries)
    @rule(numbers=st.lists(st.integers(0, 12), max_size=3), ack_timeout=st.sampled_from([None, 4.0]))
    def extend(self, numbers: list[int], ack_timeout: float | None) -> None:
        """Likewise."""
        wanted, real = self.tags(numbers)
        self.both(
            lambda e: e.extend(self.now, wanted, ack_timeout), lambda e: e.extend(self.now, real, ack_timeout)
        )

    @rule(queue=st.sampled_from(QUEUES))
    def release(self, queue: str) -> None:
        """All leases of a queue."""
        self.both(lambda e: e.release(self.now, queue))

    @rule(queue=st.sampled_from(QUEUES), shelf=st.sampled_from([3, 4]))
    def redrive(self, queue: str, shelf: int) -> None:
        """All of a shelf."""
        self.both(lambda e: e.redrive(self.now, queue, None, shelf))

    @rule(queue=st.sampled_from(QUEUES), shelf=st.sampled_from([0, 1, 3, 4]), nth=st.integers(0, 3))
    def care(self, queue: str, shelf: int, nth: int) -> None:
        """One by its id: redriven or purged."""

        def step(engine: Engine) -> int:
            ids = [one.id for one in engine.peek(self.now, queue, 9, shelf, None)][nth : nth + 2]
            if shelf > 2 and nth % 2:
                return engine.redrive(self.now, queue, ids, shelf)
            return engine.purge(self.now, queue, ids, shelf)

        self.both(step)

    @rule(queue=st.sampled_from(QUEUES), size=st.integers(1, 9))
    def drop_oldest(self, queue: str, size: int) -> None:
        """Some bytes."""
        self.both(lambda e: [(one.payload, one.priority) for one in e.drop_oldest(self.now, queue, size)])

    @rule(queue=st.sampled_from(QUEUES))
    def start_over(self, queue: str) -> None:
        """A queue is removed and made again."""
        self.both(lambda e: e.remove(self.now, [queue]))
        self.both(lambda e: e.create(self.now, [queue]))

    @rule(seconds=st.sampled_from([1.0, 5.0, 12.0]))
    def wait(self, seconds: float) -> None:
        """Delays, timeouts and expiries pass."""
        self.commit()
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        """What has expired."""
        self.both(lambda e: e.sweep(self.now))

    @rule()
    def reopen(self) -> None:
        """The owner dies."""
        self.commit()
        self.model.reopen()
        self.transactor = Transactor(self.db, Path("memory"), "FULL")
        self.transactor.void_leases()

    # -- what holds

    @invariant()
    def looks_the_same(self) -> None:
        """Between the groups: all that can be seen."""
        if not hasattr(self, "model") or self.waiting:
            return
        hints = self.transactor.tables.take_hints()
        for queue in self.model.queues(self.now):
            wanted, real = (self.seen(e, queue) for e in (self.model, self.transactor.tables))
            assert wanted == real
            hint = hints.get(queue)
            if hint is not None:  # bounds may be too early, never too late
                exact = self.model._queues[queue].hint()  # noqa: SLF001 - the model's own
                assert hint.ready >= exact.ready or hint.expiry <= self.now or hint.due <= self.now
                assert hint.due <= exact.due
                assert hint.expiry <= exact.expiry

    def seen(self, engine: Engine, queue: str) -> Any:
        """Counts, and every shelf in its order."""
        shelves = [
            [
                (p.payload, p.key, p.priority, p.attempts, p.put_at, p.expires_at, p.error, p.failed_at)
                for p in engine.peek(self.now, queue, 999, code, None)
            ]
            for code in range(len(SHELVES))
        ]
        return engine.counts(self.now, queue), shelves

    @invariant()
    def numbers_are_what_is_there(self) -> None:
        """The counters in the file, against the rows; and no body without an entry."""
        if not hasattr(self, "model") or self.waiting:
            return
        self.transactor.tables.flush()
        for number, *counters in self.db.execute(f"SELECT id, {', '.join(COUNTERS)} FROM queues"):
            ledger = Ledger.load(counters)
            for shelf in range(len(SHELVES)):
                row = self.db.execute(
                    "SELECT count(*), coalesce(sum(size), 0) FROM entries WHERE queue = ? AND shelf = ?",
                    (number, shelf),
                ).fetchone()
                assert row == (ledger.items[shelf], ledger.sizes[shelf])
        refs = "SELECT body, count(*) FROM entries GROUP BY body ORDER BY body"
        bodies = "SELECT id, refs FROM bodies ORDER BY id"
        assert self.db.execute(refs).fetchall() == self.db.execute(bodies).fetchall()


SameLives.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, print_blob=True
)
TestSameLives = SameLives.TestCase
