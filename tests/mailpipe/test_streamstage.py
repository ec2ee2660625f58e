"""All stream steps of one mail, driven without a loop."""

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailpipe.streamstage import Taps, opener_of

ANY: Any = object()
"""An envelope that nobody looks at."""


class Sink:
    """Records what it is told; fails as told."""

    def __init__(self, fails_at: str = "") -> None:
        self.told: list[Any] = []
        self.fails_at = fails_at

    def _hear(self, what: str, chunk: bytes = b"") -> None:
        self.told.append(chunk or what)
        if what == self.fails_at:
            raise ValueError(what)

    def write(self, chunk: bytes) -> None:
        self._hear("write", chunk)

    def close(self) -> None:
        self._hear("close")

    def abort(self) -> None:
        self._hear("abort")


class Heard:
    def __init__(self) -> None:
        self.errors: list[tuple[str, Exception]] = []

    def __call__(self, envelope: Any, name: str, error: Exception) -> None:
        self.errors.append((name, error))


def taps_of(*sinks: Sink, heard: Heard | None = None) -> Taps:
    openers = [(f"tap{number}", lambda _, sink=sink: sink) for number, sink in enumerate(sinks)]
    return Taps(openers, ANY, heard or Heard())


class TestTaps:
    @given(st.lists(st.binary(max_size=20), max_size=20))
    def test_everyone_gets_every_octet_once(self, chunks: list[bytes]) -> None:
        """In order, then the end; empty chunks are nobody's business."""
        one, two = Sink(), Sink()
        taps = taps_of(one, two)
        for chunk in chunks:
            taps.write(chunk)
        taps.close()

        assert one.told == two.told == [*filter(None, chunks), "close"]

    @pytest.mark.parametrize("when", ["write", "close"])
    def test_a_failure_aborts_the_others(self, when: str) -> None:
        """Each sink ends once: closed, aborted, or by its own error."""
        first, failing, last = Sink(), Sink(when), Sink()
        taps = taps_of(first, failing, last)
        taps.write(b"x")
        taps.close()
        taps.write(b"y")
        taps.abort()

        assert isinstance(taps.failure, ValueError)
        assert taps.failed_step == "tap1"
        if when == "write":
            assert (first.told, failing.told, last.told) == ([b"x", "abort"], [b"x", "abort"], ["abort"])
        else:
            assert (first.told, failing.told, last.told) == (
                [b"x", "close"],
                [b"x", "close"],
                [b"x", "abort"],
            )

    def test_a_failure_to_open_is_one(self) -> None:
        """Those opened before are aborted, those after never opened."""
        first = Sink()

        def opener(envelope: Any) -> Sink:
            raise KeyError

        def never(envelope: Any) -> Sink:
            pytest.fail("not opened")

        taps = Taps([("a", lambda _: first), ("b", opener), ("c", never)], ANY, Heard())

        assert isinstance(taps.failure, KeyError)
        assert first.told == ["abort"]

    def test_abort_is_once_and_never_raises(self) -> None:
        """What an abort raised is told, and the others are aborted still."""
        failing, last, heard = Sink("abort"), Sink(), Heard()
        taps = taps_of(failing, last, heard=heard)
        taps.abort()
        taps.abort()

        assert last.told == ["abort"]
        assert [name for name, _ in heard.errors] == ["tap0"]

    def test_closed_is_not_aborted(self) -> None:
        """A mail that was whole stays so."""
        sink = Sink()
        taps = taps_of(sink)
        taps.close()
        taps.abort()

        assert sink.told == ["close"]


class TestGenerators:
    def test_none_is_the_end_and_abort_is_generator_exit(self, mail: Any) -> None:
        """As the contract says."""
        seen: list[Any] = []

        def step(envelope: Any, word: str) -> Generator[None, bytes | None, None]:
            try:
                while (chunk := (yield)) is not None:
                    seen.append(chunk)
                seen.append(word)
            except GeneratorExit:
                seen.append("aborted")
                raise

        tap = opener_of(step, ("end",))(mail())
        tap.write(b"x")
        tap.close()
        opener_of(step, ("end",))(mail()).abort()

        assert seen == [b"x", "end", "aborted"]

    def test_may_return_early(self, mail: Any) -> None:
        """It has seen enough."""

        def step(envelope: Any) -> Generator[None, bytes | None, None]:
            yield

        tap = opener_of(step)(mail())
        for _ in range(3):
            tap.write(b"x")
        tap.close()

    def test_that_yields_after_the_end_is_broken(self, mail: Any) -> None:
        """It would wait for what never comes."""

        def step(envelope: Any) -> Generator[None, bytes | None, None]:
            while True:
                yield

        with pytest.raises(RuntimeError, match="yielded again"):
            opener_of(step)(mail()).close()
