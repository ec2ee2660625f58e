"""Targets: what is accepted, and what is refused with rule and value."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from benchmarks.sweep.cells import BadArgument
from benchmarks.sweep.sinks import load_maker, load_sink, octets_item
from dispatcher import Channel, ChannelOptions
from dispatcher.handlers import quiet
from dispatcher.testing import ScriptedSink

SOURCE = """
import contextlib

opened, sent = [], []


async def send(batch):
    sent.extend(batch)


class Sender:
    async def __call__(self, batch):
        sent.extend(batch)


sender = Sender()


@contextlib.asynccontextmanager
async def open_client():
    opened.append("open")
    yield send
    opened.append("closed")


class Client:
    async def __aenter__(self):
        return send

    async def __aexit__(self, *caught):
        opened.append("closed")


def plain(batch):
    pass


async def no_arguments():
    pass


async def two(batch, more):
    pass


def returns_none():
    return None


@contextlib.asynccontextmanager
async def yields_text():
    yield "text"


def make_row(number, size):
    return (number, "x" * size)


def make_nothing():
    return None


async def make_async(number, size):
    return None


value = 5
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "sinks_of_a_user.py"
    path.write_text(SOURCE, encoding="utf-8")
    return str(path)


async def deliver(target: str) -> Any:
    """Send one item through it; its module."""
    async with load_sink(target)() as send, Channel(send) as channel:
        await channel.send(7)
    import sys

    return sys.modules["sinks_of_a_user"]


class TestTargets:
    @pytest.mark.parametrize("name", ["send", "sender", "open_client", "Client", "sender.__call__"])
    def test_a_send_fn_and_an_opener_are_understood(self, source: str, name: str) -> None:
        """Functions, objects, classes."""
        module = anyio.run(deliver, f"{source}:{name}")

        assert module.sent == [7]
        assert module.opened in ([], ["closed"], ["open", "closed"])

    def test_modules_are_found_by_name(self) -> None:
        assert load_sink("anyio:sleep") is not None

    @pytest.mark.parametrize("name", ["plain", "no_arguments", "two", "value"])
    def test_what_is_neither_is_refused(self, source: str, name: str) -> None:
        with pytest.raises(BadArgument, match=r"has to be an async function of one batch, or .*, got '.*:"):
            load_sink(f"{source}:{name}")

    @pytest.mark.parametrize("name", ["returns_none", "yields_text"])
    def test_an_opener_that_opens_something_else_is_refused_when_called(self, source: str, name: str) -> None:
        with pytest.raises(BadArgument, match="has to be an async function of one batch"):
            anyio.run(deliver, f"{source}:{name}")

    @pytest.mark.parametrize(
        ("target", "rule"),
        [
            ("nowhere.at_all:send", "needs a module that can be imported .*No module named 'nowhere'"),
            (
                "math:nothing_such",
                "needs a name that math has .nothing_such is none",
            ),
            ("no/such/file.py:send", "needs a file that exists"),
            ("math", "is written as module:name"),
            (":send", "is written as module:name"),
        ],
    )
    def test_what_does_not_exist_is_refused_by_name(self, target: str, rule: str) -> None:
        with pytest.raises(BadArgument, match=rule) as caught:
            load_sink(target)

        assert str(caught.value).endswith(f"got {target!r}")

    def test_a_file_that_breaks_says_how(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.py"
        broken.write_text("1 / 0\n", encoding="utf-8")

        with pytest.raises(BadArgument, match="ZeroDivisionError: division by zero"):
            load_sink(f"{broken}:send")


class TestItems:
    def test_are_octets_of_the_size_with_their_number(self) -> None:
        assert octets_item(258, 10) == b"\0\0\0\0\0\0\1\2.."
        assert [len(octets_item(1, size)) for size in (1, 7, 8, 1000)] == [1, 7, 8, 1000]
        assert load_maker(None, "scripted:") is octets_item

    @pytest.mark.parametrize("whole", [True, False])
    def test_are_made_by_a_function_of_the_user(self, source: str, whole: bool) -> None:
        """A bare name is looked for beside the SendFn."""
        make = load_maker(f"{source}:make_row" if whole else "make_row", f"{source}:send")

        assert make(3, 2) == (3, "xx")

    @pytest.mark.parametrize("name", ["make_nothing", "make_async", "value"])
    def test_by_a_plain_function_of_number_and_size_alone(self, source: str, name: str) -> None:
        with pytest.raises(BadArgument, match=r"--item has to be a plain function of \(number, size\), got"):
            load_maker(name, f"{source}:send")


async def run_script(target: str, items: int, **options: Any) -> tuple[ScriptedSink[bytes], float]:
    """The sink, and the seconds that it took."""
    start = anyio.current_time()
    plain: Any = {"on_error": quiet, "on_drop": quiet, "batch_items_max": 10, "max_leases": 2, **options}
    async with load_sink(target)() as send:
        assert isinstance(send, ScriptedSink)
        async with Channel(send, ChannelOptions(**plain)) as channel:
            for number in range(items):
                await channel.send(octets_item(number, 8))
    return send, anyio.current_time() - start


class TestScripted:
    @pytest.fixture
    def anyio_backend(self) -> Any:
        from dispatcher.testing import jumping_asyncio

        return jumping_asyncio()

    @pytest.mark.parametrize(
        ("habits", "seconds"),
        [
            ("", 0.0),
            ("a=1s", 1.0),
            ("a=1s,b=100ms", 2.0),
            ("a=1s,b=100ms,knee=5", 2.5),
            ("a=1s,parallel=1", 2.0),
        ],
    )
    async def test_takes_its_time(self, habits: str, seconds: float) -> None:
        """Two batches of ten, two at once."""
        _, took = await run_script(f"scripted:{habits}", 20)

        assert took == pytest.approx(seconds)

    async def test_an_outage_is_counted_from_the_turn_s_begin(self) -> None:
        """Each turn has its own."""
        await anyio.sleep(1000)
        sink, took = await run_script("scripted:outage=0..5s", 10)

        assert len(sink.calls) > 1
        assert took >= 5

    async def test_too_many_calls_are_asked_to_come_back(self) -> None:
        _, took = await run_script("scripted:per_second=1,retry_after=3s", 20)

        assert took >= 3

    async def test_poison_is_every_so_maniest_item(self) -> None:
        sink, _ = await run_script("scripted:poison=10", 30)

        assert len(sink.delivered) == 27

    @pytest.mark.parametrize(
        ("habits", "rule"),
        [
            ("speed=9", "scripted has the habits a, b, knee, .*, got 'speed=9'"),
            ("a=fast", "scripted:a is written as 50ms.*, got 'fast'"),
            ("knee=0", "scripted:knee has to be a whole number of 1 or more, got '0'"),
            ("outage=5s", "scripted:outage is written as 100ms..300ms, got '5s'"),
            ("outage=5s..1s", "scripted:outage has to end after its begin, got '5s..1s'"),
        ],
    )
    def test_unknown_habits_and_bad_values_are_refused(self, habits: str, rule: str) -> None:
        with pytest.raises(BadArgument, match=rule):
            load_sink(f"scripted:{habits}")
