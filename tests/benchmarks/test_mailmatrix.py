"""The matrix of mail rows: every combination has a row, and those that tell something run."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path

import pytest

from benchmarks import mailmatrix, others, postfix
from benchmarks.__main__ import measure
from benchmarks.mailmatrix import ROWS, Case
from benchmarks.measure import Row, Unavailable
from benchmarks.servers import folder

TELLING = [row for row in ROWS if row.group == "mail-matrix"]


@pytest.fixture(scope="module")
def mailboxes() -> Iterator[postfix.Postfix]:
    """One Postfix for all rows that want one; it takes two seconds to start."""
    try:
        with folder() as place, postfix.running(place) as server:
            yield server
    except Unavailable as reason:
        pytest.skip(str(reason))


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
def test_the_row_runs(row: Row, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One short turn, with nothing lost; what it measured is nobody's business here."""
    if row.name.endswith("-postfix"):
        server = request.getfixturevalue("mailboxes")

        def running(place: Path, *, users: int) -> AbstractContextManager[postfix.Postfix]:
            return nullcontext(server)

        monkeypatch.setattr(mailmatrix.postfix, "running", running)
    try:
        result = measure(row, scale=0.01, turns=1, warm_up=False)
    except Unavailable as reason:
        pytest.skip(f"{row.name}: {reason}")

    assert [len(side) for side in result.samples] == [1, 1]
