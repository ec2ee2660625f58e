"""
Two worker processes beside one, on the same machine: what more of them are worth, and what they cost.

The machine is shared with the load, which takes CPU time for every mail as well. With two cores the most that two workers can be
worth is 2 s / (s + l), where s and l are the CPU times of server and load for a mail: so the load of the accept-only row sends a
mail's commands in one write with the body before them, which is the lightest there is, and both servers run on asyncio's own
loop, where a mail costs a server the most.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import attrs

from benchmarks.load import Plan
from benchmarks.mail import ACCEPT_ONLY, DURABLE, accepted, loaded
from benchmarks.measure import Row, Sides, at_least, at_most
from benchmarks.servers import folder, mailpipe

__all__ = ["ROWS"]


def _p99(plan: Plan) -> float:
    """Milliseconds."""
    return loaded(plan).p99 * 1e3


@contextmanager
def _two_beside_one(
    scale: float, *, config: str, mails: int, pipelining: int = 0, uvloop: bool = True, p99: bool = False
) -> Iterator[Sides]:
    plan = Plan(port=0, mails=max(100, int(mails * scale)), pipelining=pipelining)
    figure = _p99 if p99 else accepted
    with folder() as place, ExitStack() as stack:
        two = stack.enter_context(mailpipe(place, "two", config, workers=2, uvloop=uvloop))
        one = stack.enter_context(mailpipe(place, "one", config, uvloop=uvloop))
        yield Sides(
            partial(figure, attrs.evolve(plan, port=two.port)),
            partial(figure, attrs.evolve(plan, port=one.port)),
        )


ROWS = (
    Row(
        name="workers-accept-2k",
        what="two workers, accept only, asyncio's own loop, clients that use PIPELINING",
        yardstick="one worker",
        unit="mails/s",
        bar=at_least(1.6),
        turns=9,
        open=partial(_two_beside_one, config=ACCEPT_ONLY, mails=6000, pipelining=2, uvloop=False),
    ),
    Row(
        name="workers-durable-2k",
        what="two workers, the default chain into one SQLite file",
        yardstick="one worker",
        unit="mails/s",
        bar=at_least(1),
        turns=9,
        open=partial(_two_beside_one, config=DURABLE.format(more=""), mails=4000),
    ),
    Row(
        name="workers-durable-2k-p99",
        what="the longest of 99 % of the waits for the last reply, two workers",
        yardstick="one worker",
        unit="ms",
        bar=at_most(1, of="ratio"),
        turns=9,
        open=partial(_two_beside_one, config=DURABLE.format(more=""), mails=4000, p99=True),
    ),
)
