"""
The stream stage of one mail: each step taps the octets as they arrive.

Every step gets the same immutable chunks; nothing one does changes what the next one sees. A step
that fails ends the stage for this mail: the others are aborted, and what is still to come is
ignored, for the receiver must read to the final dot before it may answer.

Pure: time and threads are the caller's.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from mailpipe.envelope import Envelope

__all__ = ["Tap", "Taps"]

_STREAM_STEP = Callable[[Envelope], "Tap"]


class Tap(Protocol):
    """One step's state of one mail; what a class's ``open(envelope)`` returns."""

    def write(self, chunk: bytes) -> None:
        """Take octets; *chunk* is never empty."""
        ...

    def close(self) -> None:
        """The mail is whole."""
        ...

    def abort(self) -> None:
        """The mail will not be; leave nothing behind."""
        ...


class _GeneratorTap:
    """A generator as a tap: chunks are sent in, None at the end."""

    def __init__(self, generator: Generator[Any, bytes | None, Any]) -> None:
        self._generator = generator
        self._ended = False
        self._send(None)

    def _send(self, chunk: bytes | None) -> None:
        try:
            self._generator.send(chunk)
        except StopIteration:
            # Returning early is fine: it has seen enough of this mail.
            self._ended = True

    def write(self, chunk: bytes) -> None:
        if not self._ended:
            self._send(chunk)

    def close(self) -> None:
        if self._ended:
            return
        self._send(None)
        if not self._ended:
            self._generator.close()
            msg = "a stream step returns once it was sent None, this one yielded again"
            raise RuntimeError(msg)

    def abort(self) -> None:
        self._generator.close()


def opened(target: Callable[..., Any], envelope: Envelope, arguments: Sequence[Any] = ()) -> Tap:
    """Open a stream step for one mail: a generator function, or an object with ``open``."""
    opener = getattr(target, "open", None)
    if callable(opener):
        tap: Tap = opener(envelope)
        return tap
    return _GeneratorTap(target(envelope, *arguments))


class Taps:
    """
    All stream steps of one mail.

    Args:
        names: The steps' names, for `failed_step`.

        openers: One per step: makes the tap, in the order of the chain.

    Never raises for a step's sake: `failure` tells, and *on_abort_error* hears what an abort
    raised.
    """

    def __init__(
        self,
        names: Sequence[str],
        openers: Sequence[Callable[[], Tap]],
        *,
        on_abort_error: Callable[[str, Exception], None],
    ) -> None:
        self._names = names
        self._taps: list[Tap] = []
        self._open = 0
        """Taps before this index were closed."""

        self._on_abort_error = on_abort_error
        self.failure: Exception | None = None
        self.failed_step = ""
        self.ended = False
        for name, opener in zip(names, openers, strict=True):
            try:
                self._taps.append(opener())
            except Exception as error:
                self._fail(name, error)
                break

    def write(self, chunk: bytes) -> None:
        """Hand *chunk* to every tap, in order."""
        if self.ended or not chunk:
            return
        for index, tap in enumerate(self._taps):
            try:
                tap.write(chunk)
            except Exception as error:
                self._fail(self._names[index], error)
                return

    def close(self) -> None:
        """Close every tap, in order; the first that fails aborts those after it."""
        if self.ended:
            return
        for index, tap in enumerate(self._taps):
            self._open = index + 1
            try:
                tap.close()
            except Exception as error:
                self._fail(self._names[index], error)
                return
        self.ended = True

    def abort(self) -> None:
        """Abort every tap not closed yet; twice is once."""
        if self.ended:
            return
        self.ended = True
        for index in range(self._open, len(self._taps)):
            try:
                self._taps[index].abort()
            except Exception as error:
                self._on_abort_error(self._names[index], error)

    def _fail(self, name: str, error: Exception) -> None:
        self.failure, self.failed_step = error, name
        self.abort()
