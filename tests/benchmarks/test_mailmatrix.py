"""The matrix of mail rows: every combination has a row, and those that tell something run."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import product
from pathlib import Path
from typing import TypeVar, cast

import pytest

from benchmarks import mailmatrix, others, postfix
from benchmarks.__main__ import measure
from benchmarks.mailmatrix import ROWS, Case
from benchmarks.measure import Row, Unavailable
from benchmarks.servers import Server, folder

T = TypeVar("T")

TELLING = [row for row in ROWS if row.group == "mail-matrix"]


class Shared:
    """Servers that serve all rows, each started when the first row wants it: that takes longer than a short turn."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self._place, self._stack = place, stack
        self._running: dict[object, object] = {}

    def __call__(self, start: Callable[..., AbstractContextManager[T]], *arguments: str) -> T:
        key = (start, *arguments)
        if key not in self._running:
            self._running[key] = self._stack.enter_context(start(self._place, *arguments))
        return cast("T", self._running[key])


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with folder() as place, ExitStack() as stack:
        yield Shared(place, stack)


@pytest.fixture
def sharing(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps no count of its own is shared; a durable server's mails are counted at the end of its row."""
    mailpipe, stock, post = mailmatrix.ours, others.stock, postfix.running

    def our(place: Path, mode: str) -> AbstractContextManager[Server]:
        return nullcontext(shared(mailpipe, mode)) if mode == "accept" else mailpipe(place, mode)

    monkeypatch.setattr(mailmatrix, "ours", our)
    monkeypatch.setattr(others, "stock", lambda place: nullcontext(shared(stock)))
    monkeypatch.setattr(postfix, "running", lambda place, users: nullcontext(shared(post)))


class TestCases:
    def test_every_combination_is_one_row(self) -> None:
        """Whatever size, sessions and connections somebody has, there is a name to ask for."""
        names = [row.name for row in ROWS]
        wanted = [
            f"mail-{mode}-{size}-{sessions}{new}-{peer}"
            for mode, peer in (
                ("accept", "stock"),
                ("accept", "sink"),
                ("accept", "node"),
                ("durable", "postfix"),
            )
            for size, sessions, new in product(
                ("1k", "2k", "50k", "1m", "25m"), ("1", "20", "100"), ("", "-new")
            )
        ]

        assert sorted(name for name in names if name.startswith("mail-")) == sorted(wanted)
        assert len(set(names)) == len(names)

    def test_a_plan_is_what_the_name_says(self) -> None:
        """Octets, sessions and connections; the number of mails is ours to choose."""
        plan = Case(mode="accept", size="25m", sessions=100, kept=False, peer="sink").plan(1.0)

        assert (plan.size, plan.sessions, plan.kept) == (25_000_000, 100, 0)
        assert plan.mails >= plan.sessions

    @pytest.mark.parametrize("size", ["1k", "2k", "50k", "1m", "25m"])
    def test_a_short_run_still_sends_a_mail(self, size: str) -> None:
        """Breakage shows in one as well as in many, and sooner."""
        plan = Case(mode="durable", size=size, sessions=1, kept=False, peer="postfix").plan(0.01)

        assert plan.mails >= 1
        assert 1_000 <= plan.size <= 2_500_000


class TestPeers:
    def test_a_missing_module_of_node_is_named_with_what_installs_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The row is left out, and the reader knows what to do."""
        monkeypatch.setattr(others, "_NODE", tmp_path)
        monkeypatch.setattr("shutil.which", lambda name: "/bin/sh")

        with (
            pytest.raises(Unavailable, match="npm install --prefix benchmarks/node"),
            others.nodemailer(tmp_path),
        ):
            pass

    def test_a_missing_smtp_sink_is_named_with_its_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has none of its own name."""
        monkeypatch.setattr("shutil.which", lambda name, path="": None)

        with pytest.raises(Unavailable, match="it comes with postfix"), others.sink(tmp_path):
            pass


@pytest.mark.parametrize("row", TELLING, ids=lambda row: row.name)
def test_the_row_runs(row: Row, request: pytest.FixtureRequest) -> None:
    """One short turn, with nothing lost; what it measured is nobody's business here."""
    if not row.name.startswith("peak-memory-"):  # the most that a fresh server holds
        request.getfixturevalue("sharing")
    try:
        result = measure(row, scale=0.01, turns=1, warm_up=False)
    except Unavailable as reason:
        pytest.skip(f"{row.name}: {reason}")

    assert [len(side) for side in result.samples] == [1, 1]


@pytest.mark.usefixtures("sharing")
def test_mails_that_were_acknowledged_and_are_not_stored_fail_the_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A false 250 is the fastest there is."""
    monkeypatch.setattr(mailmatrix, "stored", lambda place, name: 0)
    (row,) = (row for row in TELLING if row.name == "mail-durable-1k-20-postfix")

    try:
        with pytest.raises(RuntimeError, match=r"\d+ mails were acknowledged, 0 are stored"):
            measure(row, scale=0.01, turns=1, warm_up=False)
    except Unavailable as reason:
        pytest.skip(f"{row.name}: {reason}")
