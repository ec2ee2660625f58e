"""How one attempt of a batch passes through its steps, driven by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import Batch, StaleBatch
from dispatcher.buffer.batch import BufferedBatch
from mailpipe.batchstage import Poisoned, Progress, StoreTrouble, is_trouble, passage
from mailpipe.chain import Step, compile_chain
from mailpipe.errors import Deferred, Discarded, Rejected
from mailpipe.reply import Reply

NO = Reply(550, "5.7.1", "no")
LATER = Reply(451, "4.7.1", "later")
OK = Reply(250, "2.0.0", "fine")


def steps_of(*functions: Callable[[Any], Any]) -> tuple[Step, ...]:
    names = [f"step{number}" for number in range(len(functions))]
    return compile_chain(
        " | ".join(names), steps=dict(zip(names, functions, strict=True)), purpose="any"
    ).batch


def run(
    steps: Sequence[Step], going: Sequence[Progress], batch: Any, meta: Any = None
) -> list[tuple[str, list[Any]]]:
    """Drive one attempt; returns who was called with what, in order."""
    calls: list[tuple[str, list[Any]]] = []
    walk = passage(steps, going, batch, {} if meta is None else meta)
    call = next(walk, None)
    while call is not None:
        calls.append((call.step.name, list(call.view)))
        try:
            outcome = call.step.target(call.view), None
        except Exception as error:
            outcome = None, error
        try:
            call = walk.send(outcome)
        except StopIteration:
            call = None
    return calls


def passes(batch: Any) -> None:
    """Let everything pass."""


class PoisonError(Exception):
    """What a step raises for a mail it cannot work on."""


def chokes_on(*poison: str, error: type[Exception] = PoisonError) -> Callable[[Any], None]:
    def step(batch: Any) -> None:
        if set(batch) & set(poison):
            raise error

    return step


@pytest.fixture
def attempt(attempts: Any) -> Callable[[str], Any]:
    """Make the first attempt of a batch of letters, and their progress."""

    def make(letters: str) -> Any:
        batch = attempts(list(letters)).next()
        return [Progress(letter) for letter in letters], batch

    return make


def fates(going: Sequence[Progress]) -> dict[str, str]:
    return {p.item: type(p.error).__name__ if p.error else str(p.step) for p in going}


class TestMarks:
    def test_speak_for_that_step_only(self, attempt: Any) -> None:
        """What one step failed is not passed on; what it finished goes on like the rest."""

        def marks(batch: Any) -> None:
            batch.fail(0, Rejected(NO))
            batch.done(1)

        going, batch = attempt("abc")

        assert run(steps_of(marks, passes), going, batch) == [
            ("step0", ["a", "b", "c"]),
            ("step1", ["b", "c"]),
        ]
        assert fates(going) == {"a": "Rejected", "b": "2", "c": "2"}

    def test_count_when_the_call_raises(self, attempt: Any) -> None:
        """Marked: those only; the raised error is about the others."""

        def step(batch: Any) -> None:
            batch.fail(0, Deferred(LATER))
            batch.done(1)
            raise ConnectionError

        going, batch = attempt("abc")
        run(steps_of(step), going, batch)

        assert fates(going) == {"a": "Deferred", "b": "1", "c": "StoreTrouble"}

    def test_count_when_the_attempt_is_cancelled(self, attempt: Any) -> None:
        """A relay that was sent is not sent again."""
        going, batch = attempt("ab")
        walk = passage(steps_of(passes), going, batch, {})
        call = next(walk)
        call.view.done(1)
        walk.close()

        assert fates(going) == {"a": "0", "b": "1"}

    def test_after_the_call_are_refused(self, attempt: Any) -> None:
        """A task left behind by a step changes nothing."""
        kept = []
        going, batch = attempt("ab")
        run(steps_of(kept.append), going, batch)

        with pytest.raises(StaleBatch):
            kept[0].fail(0, Rejected(NO))
        assert fates(going) == {"a": "1", "b": "1"}

    def test_with_an_unknown_error_are_poison(self, attempt: Any) -> None:
        """The step has named the one already; a 5xx it is not."""
        going, batch = attempt("a")
        run(steps_of(lambda view: view.fail(0, PoisonError("secret"))), going, batch)

        error = going[0].error
        assert isinstance(error, Poisoned)
        assert (error.reply.code, error.reply.enhanced) == (451, "4.3.0")
        assert "secret" not in error.reply.text

    def test_with_store_trouble_are_retried(self, attempt: Any) -> None:
        """Relay: one host is down, the others are not."""
        going, batch = attempt("ab")
        run(steps_of(lambda view: view.fail(0, TimeoutError())), going, batch)

        assert fates(going) == {"a": "StoreTrouble", "b": "1"}
        assert going[0].step == 0


class TestBisection:
    @given(st.integers(1, 40), st.data())
    def test_finds_the_one(self, size: int, data: st.DataObject) -> None:
        """One poisoned mail, wherever: it alone is answered 451, in about 2 log2 n calls."""
        poison = data.draw(st.integers(0, size - 1))
        lot: Any = BufferedBatch(1, 0.0)
        lot.attempts = 1
        going = [Progress(str(number)) for number in range(size)]
        calls = run(
            steps_of(chokes_on(str(poison))), going, Batch(lot, tuple(str(n) for n in range(size)), None, "k")
        )

        assert [p.item for p in going if isinstance(p.error, Poisoned)] == [str(poison)]
        assert sum(p.step == 1 for p in going) == size - 1
        assert len(calls) <= 1 + 2 * size.bit_length()

    def test_both_halves_alike_is_store_trouble(self, attempt: Any) -> None:
        """An error of no known name that hits everything blames no mail: three calls, no more."""

        def down(batch: Any) -> None:
            raise PoisonError

        going, batch = attempt("abcdefgh")

        assert len(run(steps_of(down), going, batch)) == 3
        assert set(fates(going).values()) == {"StoreTrouble"}

    def test_an_answer_for_several_was_meant_for_one(self, attempt: Any) -> None:
        """A step that raises Rejected in its loop refuses the right one only."""

        def loop(batch: Any) -> None:
            for letter in batch:
                if letter == "c":
                    raise Rejected(NO)

        going, batch = attempt("abcd")
        run(steps_of(loop), going, batch)

        assert fates(going) == {"a": "1", "b": "1", "c": "Rejected", "d": "1"}

    def test_answers_in_both_halves_are_no_store_trouble(self, attempt: Any) -> None:
        """Two mails may be refused alike."""

        def loop(batch: Any) -> None:
            for letter in batch:
                if letter in "ad":
                    raise Rejected(NO)

        going, batch = attempt("abcd")
        run(steps_of(loop), going, batch)

        assert fates(going) == {"a": "Rejected", "b": "1", "c": "1", "d": "Rejected"}

    def test_half_by_half_each_its_own_call(self, attempt: Any) -> None:
        """The innocent half passes as one transaction."""
        going, batch = attempt("abcd")

        assert run(steps_of(chokes_on("d")), going, batch) == [
            ("step0", ["a", "b", "c", "d"]),
            ("step0", ["a", "b"]),
            ("step0", ["c", "d"]),
            ("step0", ["c"]),
            ("step0", ["d"]),
        ]

    def test_survivors_go_on_together(self, attempt: Any) -> None:
        """The next step gets one view, not the pieces."""
        going, batch = attempt("abcd")

        assert run(steps_of(chokes_on("b"), passes), going, batch)[-1] == ("step1", ["a", "c", "d"])


class TestTrouble:
    def test_is_not_bisected_at_first(self, attempt: Any) -> None:
        """A store that is down is asked once per attempt."""
        going, batch = attempt("abcd")

        assert len(run(steps_of(chokes_on("a", error=ConnectionError)), going, batch)) == 1
        assert set(fates(going).values()) == {"StoreTrouble"}

    def test_comes_in_halves_from_attempt_two(self, attempts: Any) -> None:
        """What only looks like trouble parts from the others, a little more each time."""
        tries = attempts(list("abcdefgh"))
        going = [Progress(letter) for letter in "abcdefgh"]
        step = steps_of(chokes_on("g", error=ConnectionError))
        seen = []
        for _ in range(4):
            batch = tries.next()
            for progress in going:
                progress.error = None
            seen.append([len(items) for _, items in run(step, going, batch)])
            left = [position for position, progress in enumerate(going) if progress.error]
            going = [going[position] for position in left]
            tries.keep(left)

        assert seen == [[8], [4, 4], [1, 1, 1, 1], [1]]
        assert [progress.item for progress in going] == ["g"]

    def test_two_in_a_row_leave_the_rest_untried(self, attempts: Any) -> None:
        """A store that stays down is not hammered with every piece."""

        def down(batch: Any) -> None:
            raise TimeoutError

        tries = attempts(list("abcdefgh"))
        going = [Progress(letter) for letter in "abcdefgh"]
        for _ in range(3):
            batch = tries.next()
            for progress in going:
                progress.error = None
            calls = run(steps_of(down), going, batch)

        assert [items for _, items in calls] == [["a", "b"], ["c", "d"]]
        assert set(fates(going).values()) == {"StoreTrouble"}

    def test_those_not_reached_come_first_next_time(self, attempts: Any) -> None:
        """Troubled neighbours never starve the rest."""
        tries = attempts(list("abcdefgh"))
        going = everyone = [Progress(letter) for letter in "abcdefgh"]
        for _ in range(6):
            batch = tries.next()
            for progress in going:
                progress.error = None
            run(steps_of(chokes_on("a", "b", "c", "e", error=ConnectionError)), going, batch)
            left = [position for position, progress in enumerate(going) if progress.error]
            going = [going[position] for position in left]
            tries.keep(left)

        assert {progress.item for progress in everyone if progress.step == 1} == set("dfgh")

    def test_two_poisoned_mails_part_in_the_end(self, attempts: Any) -> None:
        """Both halves alike looks like trouble; smaller pieces tell."""
        tries = attempts(list("abcdefgh"))
        going = everyone = [Progress(letter) for letter in "abcdefgh"]
        for _ in range(4):
            batch = tries.next()
            run(steps_of(chokes_on("a", "h")), going, batch)
            left = [
                position
                for position, progress in enumerate(going)
                if isinstance(progress.error, StoreTrouble)
            ]
            going = [going[position] for position in left]
            for progress in going:
                progress.error = None
            tries.keep(left)

        assert {p.item for p in everyone if isinstance(p.error, Poisoned)} == {"a", "h"}
        assert sum(p.step == 1 for p in everyone) == 6

    @pytest.mark.parametrize(
        ("error", "trouble"),
        [
            (ConnectionResetError(), True),
            (TimeoutError(), True),
            (type("OperationalError", (Exception,), {})(), True),
            (type("Lost", (type("InterfaceError", (Exception,), {}),), {})(), True),
            (ExceptionGroup("all", [TimeoutError(), ConnectionError()]), True),
            (ExceptionGroup("some", [TimeoutError(), ValueError()]), False),
            (OSError(28, "No space left on device"), False),
            (ValueError(), False),
        ],
    )
    def test_is_known_by_name(self, error: Exception, trouble: bool) -> None:
        """Whatever the driver."""
        assert is_trouble(error) is trouble

    def test_a_lost_connection_is_trouble(self) -> None:
        """SQLAlchemy marks it on any error."""
        error = ValueError()
        error.connection_invalidated = True  # type: ignore[attr-defined]

        assert is_trouble(error)


class TestRetry:
    def test_starts_each_at_the_step_that_failed_it(self, attempts: Any) -> None:
        """What a step confirmed it is not asked again."""
        tries = attempts(list("ab"))
        going = [Progress("a"), Progress("b")]
        refusals = [True, False]

        def second(batch: Any) -> None:
            if refusals.pop(0):
                batch.done(0)
                raise ConnectionError

        steps = steps_of(passes, second, passes)
        first = run(steps, going, tries.next())
        going[1].error = None
        tries.keep([1])

        assert first == [("step0", ["a", "b"]), ("step1", ["a", "b"]), ("step2", ["a"])]
        assert run(steps, going[1:], tries.next()) == [("step1", ["b"]), ("step2", ["b"])]

    def test_key_is_of_the_envelopes_and_the_step(self, attempts: Any, mail: Any) -> None:
        """The same mails at the same step: the same key, however the batch shrank around them."""
        keys: list[tuple[int, str]] = []
        one, other = mail(), mail()
        steps = steps_of(
            lambda batch: keys.append((len(batch), batch.key)), lambda batch: keys.append((0, batch.key))
        )
        tries = attempts([one, other])
        run(steps, [Progress(one), Progress(other)], tries.next())
        tries.keep([0])
        run(steps, [Progress(one)], tries.next())
        run(steps, [Progress(one)], tries.next())

        assert [size for size, _ in keys] == [2, 0, 1, 0, 1, 0]
        assert keys[2] == keys[4]
        assert len({key for _, key in keys}) == 4

    def test_meta_is_the_steps_own(self, attempts: Any) -> None:
        """Kept over retries, never another step's."""
        seen = []

        def notes(batch: Any) -> None:
            seen.append(dict(batch.meta))
            batch.meta["note"] = batch.attempt

        tries, meta = attempts(["a"]), {}  # type: ignore[var-annotated]
        run(steps_of(notes, notes), [Progress("a")], tries.next(), meta)
        run(steps_of(notes, notes), [Progress("a")], tries.next(), meta)

        assert seen == [{}, {}, {"note": 1}, {"note": 1}]


class TestResults:
    def test_the_last_that_answers_counts(self, attempt: Any) -> None:
        """A storage's own reply, or one per recipient."""
        going, batch = attempt("ab")
        run(steps_of(lambda view: [OK, None], passes), going, batch)

        assert [progress.result for progress in going] == [OK, None]

    @pytest.mark.parametrize("bad", ["ok", {}, 7, [OK], [OK, OK, OK], [OK, "x"], [OK, ()]])
    def test_that_do_not_fit_are_not_believed(self, attempt: Any, bad: Any) -> None:
        """The work is done, but nobody knows how it went: 451, and no retry."""
        going, batch = attempt("ab")
        run(steps_of(lambda view: bad, passes), going, batch)

        assert set(fates(going).values()) == {"Poisoned"}

    def test_a_refusal_as_a_result_is_one(self, attempt: Any) -> None:
        """Returned or marked: it is not passed on."""
        going, batch = attempt("abc")

        assert run(steps_of(lambda view: [NO, LATER, OK], passes), going, batch)[1] == ("step1", ["c"])
        assert fates(going) == {"a": "Rejected", "b": "Deferred", "c": "2"}

    def test_one_reply_per_recipient(self, attempts: Any, mail: Any) -> None:
        """In their order; a mail that nobody took is not passed on."""
        some, none = mail(rcpt_to=("a@x.org", "b@x.org")), mail(rcpt_to=("a@x.org", "b@x.org"))
        going = [Progress(some), Progress(none)]
        results = [(OK, NO), (NO, LATER)]

        calls = run(steps_of(lambda view: results, passes), going, attempts([some, none]).next())

        assert [progress.result for progress in going] == results
        assert calls[1] == ("step1", [some])

    def test_one_reply_too_few(self, attempts: Any, mail: Any) -> None:
        """Nobody can tell whose is missing."""
        going = [Progress(mail(rcpt_to=("a@x.org", "b@x.org")))]
        run(steps_of(lambda view: [(OK,)]), going, attempts([going[0].item]).next())

        assert isinstance(going[0].error, Poisoned)


class TestEnds:
    def test_discarded_goes_no_further(self, attempt: Any) -> None:
        """250, and kept nowhere."""
        going, batch = attempt("ab")

        assert run(steps_of(lambda view: view.fail(0, Discarded()), passes), going, batch)[1] == (
            "step1",
            ["b"],
        )

    def test_a_heartbeat_reaches_every_step(self, attempts: Any) -> None:
        """Empty, and said to be synthetic."""
        seen = []
        run(steps_of(lambda view: seen.append((len(view), view.synthetic))), [], attempts([]).next())

        assert seen == [(0, True)]

    def test_a_failing_heartbeat_is_told(self, attempts: Any) -> None:
        """The Channel's hooks hear of it."""

        def down(batch: Any) -> None:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            run(steps_of(down), [], attempts([]).next())


class Judge:
    """A step that is transactional, and treats each item as drawn."""

    def __init__(self, fates: dict[str, str], troubles: list[bool]) -> None:
        self.fates, self.troubles = fates, troubles
        self.confirmed: list[str] = []
        self.seen: list[str] = []

    def __call__(self, batch: Any) -> None:
        self.seen += batch
        if self.troubles and self.troubles.pop():
            raise ConnectionError
        if any(self.fates[item] == "poison" for item in batch):
            raise PoisonError
        if any(self.fates[item] == "raises" for item in batch):
            raise Rejected(NO)
        for position, item in enumerate(batch):
            if self.fates[item] == "rejects":
                batch.fail(position, Rejected(NO))
            else:
                self.confirmed.append(item)


FATES = st.sampled_from(["pass"] * 6 + ["rejects", "raises", "poison"])


@given(st.integers(1, 20), st.integers(1, 3), st.data())
def test_every_item_has_the_fate_of_its_first_bad_step(size: int, depth: int, data: st.DataObject) -> None:
    """Whatever else is in the batch, and however often the store is in trouble; confirmed once, by each."""
    letters = [str(number) for number in range(size)]
    judges = [
        Judge(
            {letter: data.draw(FATES) for letter in letters}, data.draw(st.lists(st.booleans(), max_size=10))
        )
        for _ in range(depth)
    ]
    steps = steps_of(*judges)
    lot: Any = BufferedBatch(1, 0.0)
    everyone = going = [Progress(letter) for letter in letters]
    for _ in range(40):
        lot.attempts += 1
        for progress in going:
            progress.error = None
        run(steps, going, Batch(lot, tuple(progress.item for progress in going), None, "key"))
        going = [progress for progress in going if isinstance(progress.error, StoreTrouble)]
        if not going:
            break

    assert going == []
    for progress in everyone:
        fates_of_it = [judge.fates[progress.item] for judge in judges]
        first = next((at for at, fate in enumerate(fates_of_it) if fate != "pass"), depth)
        expected = "pass" if first == depth else fates_of_it[first]
        kind = {"pass": type(None), "rejects": Rejected, "raises": Rejected, "poison": Poisoned}[expected]
        assert type(progress.error) is kind
        for at, judge in enumerate(judges):
            assert judge.confirmed.count(progress.item) == (at < first)
            assert (progress.item in judge.seen) == (at <= first)
