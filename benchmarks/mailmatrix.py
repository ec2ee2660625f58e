"""
mailpipe beside other servers over sizes, sessions and kinds of connections, and what a mail costs it.

Every combination is a row, ``mail-MODE-SIZE-SESSIONS[-new]-PEER``. Those that tell something by themselves are in the
group *mail-matrix*, the others in *mail-rest*.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import attrs

from benchmarks import mail, others, postfix
from benchmarks.load import Plan
from benchmarks.measure import Row, Sides
from benchmarks.process import memory
from benchmarks.servers import Server, folder, mailpipe, stored

__all__ = ["ROWS", "Case", "ours"]

_CONFIG = """
[[servers]]
listen = "127.0.0.1:0"
gateway = "default"
max_size = "64MiB"

[gateways.default]
process = "{process}"
save_timeout = "120s"
"""

_CHAINS = {"accept": "discard", "durable": "header | hasher | compressor | sql"}

# How many mails make about a second of work for the slower side, from twenty sessions.
_SIZES = {
    "1k": (1_000, 2_000),
    "2k": (2_048, 2_000),
    "50k": (50_000, 500),
    "1m": (1_000_000, 40),
    "25m": (25_000_000, 2),
}

_SESSIONS = (1, 20, 100)

_PEERS = ("stock", "sink", "node")

_SAID = {
    "stock": "aiosmtpd as installed, a handler that answers 250",
    "sink": "smtp-sink, in C, which keeps nothing",
    "node": "nodemailer's smtp-server on node, a handler that keeps nothing",
    "postfix": "Postfix into Maildirs on the same disk, until the last mail is in",
}


@attrs.frozen(kw_only=True)
class Case:
    """One combination."""

    mode: str
    size: str
    sessions: int = 20
    kept: bool = True
    peer: str

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"mail-{self.mode}-{self.size}-{self.sessions}{'' if self.kept else '-new'}-{self.peer}"

    @property
    def what(self) -> str:
        """As a reader wants it."""
        mode = "accept only" if self.mode == "accept" else "the default chain into SQLite"
        sessions = f"{self.sessions} session{'' if self.sessions == 1 else 's'}"
        size = self.size.replace("k", " kB").replace("m", " MB")
        return f"{mode}, {size} from {sessions}, {'kept' if self.kept else 'new'} connections"

    def plan(self, scale: float) -> Plan:
        """
        The load of one turn: fewer mails where they go one after the other, and at least one each elsewhere.

        Below a tenth of the work the mails are smaller, too: such a run looks for breakage, not for figures.
        """
        octets, mails = _SIZES[self.size]
        octets = max(min(octets, 1_000), int(octets * min(1.0, scale * 10)))
        if self.sessions == 1:
            mails //= 4
        if self.mode == "durable" or not self.kept:
            mails //= 2
        mails = max(1, int(max(mails, self.sessions, 2) * scale))
        # A hundred mails of 25 MB take aiosmtpd a minute: nobody is slow before 5 MB/s.
        patience = 120 + mails * octets // 5_000_000
        return Plan(
            port=0, sessions=self.sessions, mails=mails, size=octets, kept=int(self.kept), within=patience
        )


def ours(place: Path, mode: str) -> AbstractContextManager[Server]:
    """mailpipe as installed, with what *mode* does to a mail."""
    return mailpipe(place, mode, _CONFIG.format(process=_CHAINS[mode]))


class _Counted:
    """Our side of a durable row: what it acknowledged has to be there at the end."""

    def __init__(self, place: Path, plan: Plan) -> None:
        self._place, self._plan = place, plan
        self._sent = 0

    def turn(self) -> float:
        self._sent += self._plan.mails
        return mail.accepted(self._plan)

    def check(self) -> None:
        if (kept := stored(self._place, "durable")) != self._sent:
            msg = f"{self._sent} mails were acknowledged, {kept} are stored"
            raise RuntimeError(msg)


@contextmanager
def _open(scale: float, *, case: Case) -> Iterator[Sides]:
    plan = case.plan(scale)
    with folder() as place, ExitStack() as stack:
        if case.peer == "postfix":
            post = stack.enter_context(postfix.running(place, users=plan.recipients))
            yardstick = partial(mail.into_maildir, attrs.evolve(plan, port=post.port), post)
        else:
            peers = {"stock": others.stock, "sink": others.sink, "node": others.nodemailer}
            theirs = stack.enter_context(peers[case.peer](place))
            yardstick = partial(mail.accepted, attrs.evolve(plan, port=theirs.port))
        mine = attrs.evolve(plan, port=stack.enter_context(ours(place, case.mode)).port)
        if case.mode == "accept":
            yield Sides(partial(mail.accepted, mine), yardstick)
        else:
            counted = _Counted(place, mine)
            yield Sides(counted.turn, yardstick)
            counted.check()


# --- what a mail costs, whatever the rate ---------------------------------------------------------


@contextmanager
def _open_cpu(scale: float, *, mode: str, size: str) -> Iterator[Sides]:
    plan = Case(mode=mode, size=size, peer="stock").plan(scale)
    with folder() as place, ours(place, mode) as mine, others.stock(place) as theirs:
        yield Sides(
            partial(mail.cpu_per_mail, attrs.evolve(plan, port=mine.port), mine),
            partial(mail.cpu_per_mail, attrs.evolve(plan, port=theirs.port), theirs),
        )


def _peak(start: Callable[[Path], AbstractContextManager[Server]], plan: Plan) -> float:
    """The most memory that a fresh server held, in MiB."""
    with folder() as place, start(place) as server:
        mail.send(attrs.evolve(plan, port=server.port))
        return memory(server.pid, "VmHWM")


@contextmanager
def _open_peak(scale: float, *, mode: str) -> Iterator[Sides]:
    plan = Case(mode=mode, size="1m", peer="stock").plan(scale * 2)
    yield Sides(partial(_peak, partial(ours, mode=mode), plan), partial(_peak, others.stock, plan))


def _cost_rows() -> Iterator[Row]:
    for mode, size in (("accept", "50k"), ("durable", "2k"), ("durable", "50k")):
        case = Case(mode=mode, size=size, peer="stock")
        yield Row(
            name=f"{mode}-{size}-cpu",
            what=f"CPU time of the server for a mail: {case.what}",
            yardstick=f"{_SAID['stock']}, which keeps nothing",
            unit="us",
            group="mail-matrix",
            turns=5,
            open=partial(_open_cpu, mode=mode, size=size),
        )
    for mode in ("accept", "durable"):
        case = Case(mode=mode, size="1m", peer="stock")
        yield Row(
            name=f"peak-memory-{mode}",
            what=f"the most memory that the server held: {case.what}",
            yardstick=f"{_SAID['stock']}, which keeps nothing",
            unit="MiB",
            group="mail-matrix",
            turns=3,
            open=partial(_open_peak, mode=mode),
        )
    yield Row(
        name="durable-slow-disk-2ms",
        what="the default chain into SQLite, 2 kB from 100 sessions, each fsync 2 ms longer",
        yardstick="one commit per mail (batch_items_max = 1)",
        unit="mails/s",
        group="mail-matrix",
        turns=3,
        open=partial(mail.slow_disk, milliseconds=2),
    )


# One value changed at a time, from 2 kB, twenty sessions and kept connections, and the large ones.
_TELLING = (
    Case(mode="accept", size="1k", peer="stock"),
    Case(mode="accept", size="2k", sessions=1, peer="stock"),
    Case(mode="accept", size="2k", sessions=100, peer="stock"),
    Case(mode="accept", size="2k", kept=False, peer="stock"),
    Case(mode="accept", size="1m", peer="stock"),
    Case(mode="accept", size="25m", sessions=1, peer="stock"),
    Case(mode="accept", size="2k", peer="sink"),
    Case(mode="accept", size="2k", kept=False, peer="sink"),
    Case(mode="accept", size="1m", peer="sink"),
    Case(mode="accept", size="2k", peer="node"),
    Case(mode="accept", size="1m", peer="node"),
    Case(mode="durable", size="1k", peer="postfix"),
    Case(mode="durable", size="2k", sessions=1, peer="postfix"),
    Case(mode="durable", size="2k", sessions=100, peer="postfix"),
    Case(mode="durable", size="2k", kept=False, peer="postfix"),
    Case(mode="durable", size="50k", peer="postfix"),
    Case(mode="durable", size="1m", peer="postfix"),
    Case(mode="durable", size="25m", sessions=1, peer="postfix"),
)


def _cases() -> Iterator[Case]:
    yield from _TELLING
    for mode, size, sessions, kept in product(_CHAINS, _SIZES, _SESSIONS, (True, False)):
        for peer in _PEERS if mode == "accept" else ("postfix",):
            case = Case(mode=mode, size=size, sessions=sessions, kept=kept, peer=peer)
            if case not in _TELLING:
                yield case


ROWS = (
    *(
        Row(
            name=case.name,
            what=case.what,
            yardstick=_SAID[case.peer],
            unit="mails/s",
            group="mail-matrix" if case in _TELLING else "mail-rest",
            turns=5,
            open=partial(_open, case=case),
        )
        for case in _cases()
    ),
    *_cost_rows(),
)
