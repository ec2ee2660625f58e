"""
Deleting what is too old, now and then, for storages with an ``expire``.
"""

import asyncio
import contextlib
import logging
import time
from typing import Protocol

__all__ = ["Expiry"]

_logger = logging.getLogger("mailpipe.storages")
_EVERY = 600.0
"""Seconds between two looks, at most; a tenth of the age where that is less."""


class _Expiring(Protocol):
    async def expire(self, before: float) -> int: ...


class Expiry:
    """
    A task that calls ``expire`` of a storage until closed.

    Args:
        storage: Whose mails.

        age: Seconds after which a mail goes.
    """

    def __init__(self, storage: _Expiring, age: float) -> None:
        self._storage, self._age = storage, age
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop looking; a deletion under way ends first or is undone by the store."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            try:
                deleted = await self._storage.expire(time.time() - self._age)
            except Exception:
                # A store in trouble has its say elsewhere; what is old gets older.
                _logger.warning("could not delete expired mails", exc_info=True)
            else:
                if deleted:
                    _logger.info("deleted %d expired mails", deleted)
            await asyncio.sleep(min(_EVERY, self._age / 10))
