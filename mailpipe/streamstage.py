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

__all__ = ["Opener", "Tap", "Taps", "opener_of"]


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


Opener = Callable[[Envelope], Tap]


def opener_of(target: Callable[..., Any], arguments: Sequence[Any] = ()) -> Opener:
    """What opens a stream step for one mail: a generator function, or an object with ``open``."""
    opener = getattr(target, "open", None)
    if callable(opener):
        made: Opener = opener
        return made
    return lambda envelope: _GeneratorTap(target(envelope, *arguments))


class Taps:
    """
    All stream steps of one mail.

    Args:
        openers: The steps' names, and what opens each, in the order of the chain.

        envelope: The mail.

        on_abort_error: Hears what an abort raised: envelope, name, error.

    Never raises for a step's sake: `failure` tells.
    """

    __slots__ = (
        "_envelope",
        "_on_abort_error",
        "_open",
        "_openers",
        "_taps",
        "ended",
        "failed_step",
        "failure",
    )

    def __init__(
        self,
        openers: Sequence[tuple[str, Opener]],
        envelope: Envelope,
        on_abort_error: Callable[[Envelope, str, Exception], None],
    ) -> None:
        self._openers = openers
        self._envelope = envelope
        self._taps: list[Tap] = []
        self._open = 0  # taps before this index were closed
        self._on_abort_error = on_abort_error
        self.failure: Exception | None = None
        self.failed_step = ""
        self.ended = False
        for name, opener in openers:
            try:
                self._taps.append(opener(envelope))
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
                self._fail(self._openers[index][0], error)
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
                self._fail(self._openers[index][0], error)
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
                self._on_abort_error(self._envelope, self._openers[index][0], error)

    def _fail(self, name: str, error: Exception) -> None:
        self.failure, self.failed_step = error, name
        self.abort()
