"""
Reading storages from outside the daemon: the configuration's archives, opened for one command.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from mailpipe.batchstage import is_trouble
from mailpipe.chain import Step
from mailpipe.config import Config
from mailpipe.steps import Archive, Place, StoredMail

__all__ = ["CannotRead", "Reading"]

T = TypeVar("T")
_PAGE = 500


class CannotRead(Exception):
    """A storage that cannot be opened or asked, and why."""


class Reading:
    """
    The archives of every gateway, each once, for use in a ``with`` block.

    Args:
        config: Says which.

    Raises:
        CannotRead: Out of every method, if a storage is in trouble.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._runner = asyncio.Runner()
        self._archives: list[Archive] = []
        self._steps: list[Step] = []

    def __enter__(self) -> Self:
        self._runner.__enter__()
        try:
            self._run(self._open())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._close())
        finally:
            self._runner.__exit__(kind, error, trace)

    def mails(self) -> Iterator[StoredMail]:
        """All mails in the order of their ids, without bodies; one mail in several archives comes once."""
        pages = [self._pages(archive) for archive in self._archives]
        if len(pages) == 1:
            yield from pages[0]
            return
        import heapq

        last = ""
        for mail in heapq.merge(*pages, key=lambda mail: mail.queue_id):
            if mail.queue_id != last:
                last = mail.queue_id
                yield mail

    def get(self, queue_id: str) -> StoredMail | None:
        """One mail, with its body if any archive has that."""
        found: StoredMail | None = None
        for archive in self._archives:
            mail = self._run(archive.get(queue_id))
            if mail is not None and mail.body is not None:
                return mail
            found = found or mail
        return found

    def delete(self, queue_id: str) -> bool:
        """Delete one mail from every archive; whether there was one."""
        return sum(self._run(archive.delete([queue_id])) for archive in self._archives) > 0

    def expire(self, age: float) -> int:
        """Delete what was received more than *age* seconds ago; how many there were."""
        before = time.time() - age
        return sum(self._run(archive.expire(before)) for archive in self._archives)

    def _pages(self, archive: Archive) -> Iterator[StoredMail]:
        after = ""
        while page := self._run(archive.list(after=after, limit=_PAGE)):
            yield from page
            after = page[-1].queue_id

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(work)
        except Exception as error:
            # Bugs keep their traceback; what the world did is told in a line.
            if not (is_trouble(error) or isinstance(error, OSError)):
                raise
            msg = f"{type(error).__name__}: {error}"
            raise CannotRead(msg) from error

    async def _open(self) -> None:
        for name, gateway in self._config.gateways.items():
            place = Place(data=self._config.data, gateway=name, reading=True)
            for step in self._config.plan(gateway.process).storages:
                if not callable(getattr(step.target, "get", None)) or self._known(step):
                    continue
                target: Any = step.target
                try:
                    await target.setup(place)
                except Exception as error:
                    msg = f"[gateways.{name}] {step.name}: {type(error).__name__}: {error}"
                    raise CannotRead(msg) from error
                self._steps.append(step)
                self._archives.append(target)

    async def _close(self) -> None:
        while self._archives:
            target: Any = self._archives.pop()
            await target.teardown()

    def _known(self, step: Step) -> bool:
        """Whether two gateways share this storage: same kind, same options."""
        return any(known.spec is step.spec and known.options == step.options for known in self._steps)
