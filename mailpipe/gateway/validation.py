"""
The RCPT stage: a chain is asked about recipients, many at once through a Channel of their own.

Never 5xx for trouble of ours: a timeout, a full Channel, a failing step are 451.
"""

import asyncio
import contextlib
from collections import OrderedDict
from types import TracebackType
from typing import Self

import anyio

from dispatcher import Channel, Status
from mailpipe import reply
from mailpipe.config import GatewayConfig
from mailpipe.envelope import Recipient
from mailpipe.errors import Answer
from mailpipe.gateway.options import validate_options
from mailpipe.reply import Reply
from mailpipe.runner import Chain
from mailpipe.steps import Result

__all__ = ["Validation"]

_CACHED_MAX = 10_000


class Validation:
    """
    Asks a ``validate`` chain; for use in an ``async with`` block.

    Args:
        chain: Judges recipients; opened and closed here.

        config: ``validate_timeout``, ``cache`` and the size of batches.

        name: The gateway's, for logs.
    """

    def __init__(self, chain: Chain, config: GatewayConfig, name: str) -> None:
        self._chain, self._timeout, self._keep_for = chain, config.validate_timeout, config.cache
        self._channel: Channel[Recipient, Result | None] = Channel(
            chain.send, validate_options(config), name=f"{name}, validate"
        )
        # Address -> until when it is known to be good; the oldest first.
        self._known: OrderedDict[str, float] = OrderedDict()
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as opening:
            await opening.enter_async_context(self._chain)
            await opening.enter_async_context(self._channel)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.__aexit__(kind, error, trace)

    def knows(self, recipient: Recipient) -> bool:
        """Whether a positive answer about this address is remembered."""
        until = self._known.get(recipient.address)
        return until is not None and self._loop.time() < until

    async def ask(self, recipient: Recipient) -> Reply | None:
        """None to accept, else the refusal: a step's own, or 451 for trouble of ours."""
        receipt = None
        try:
            async with asyncio.timeout(self._timeout):
                receipt = await self._channel.submit(recipient)
                outcome = await receipt.wait()
        except (TimeoutError, anyio.ClosedResourceError):
            if receipt is not None:
                receipt.cancel()
            return reply.VALIDATE_TROUBLE
        except asyncio.CancelledError:
            # The client is gone; nobody wants to know.
            if receipt is not None:
                receipt.cancel()
            raise
        said = outcome.result
        if outcome.status is Status.DELIVERED:
            refused = isinstance(said, Reply) and not said.positive
        elif isinstance(outcome.error, Answer):
            said = outcome.error.reply
            refused = not said.positive
        else:
            return reply.VALIDATE_TROUBLE
        if refused and isinstance(said, Reply):
            return said
        self._remember(recipient.address)
        return None

    def _remember(self, address: str) -> None:
        if not self._keep_for:
            return
        self._known[address] = self._loop.time() + self._keep_for
        self._known.move_to_end(address)
        if len(self._known) > _CACHED_MAX:
            self._known.popitem(last=False)
