"""Chains run over envelopes, without a receiver."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import tenacity

from dispatcher import Channel, ChannelOptions, Outcome, RetryPolicy, Status
from mailpipe.chain import Plan, Settings
from mailpipe.envelope import Envelope, Recipient
from mailpipe.errors import Answer
from mailpipe.reply import Reply
from mailpipe.runner import Chain
from mailpipe.steps import Place, Result

__all__ = ["run", "run_async"]

_TROUBLE = Reply(451, "4.3.0", "Local error in processing, try again later")


def run(
    chain: str | Plan,
    *items: Envelope | Recipient,
    steps: Mapping[str, Callable[..., Any]] | None = None,
    settings: Mapping[str, Settings] | None = None,
    data: Path | None = None,
    attempts: int = 5,
) -> list[Result]:
    """
    Run *chain* over *items* as one batch, as a gateway would, and return what it would answer.

    Args:
        chain: The text, or a `Plan`; needs no storage.

        items: Envelopes, or recipients for a ``validate`` chain.

        steps: Steps of one's own by name.

        settings: The ``[processors.NAME]`` tables by name.

        data: The data folder; by default one that is gone afterwards.

        attempts: How often the batch is tried while the store is in trouble; without delays.

    Returns:
        One reply per item, or a tuple of one per recipient where a step says so.

    Raises:
        ChainError: If the chain cannot be compiled.
    """

    async def main() -> list[Result]:
        return await run_async(chain, *items, steps=steps, settings=settings, data=data, attempts=attempts)

    return anyio.run(main)


async def run_async(
    chain: str | Plan,
    *items: Envelope | Recipient,
    steps: Mapping[str, Callable[..., Any]] | None = None,
    settings: Mapping[str, Settings] | None = None,
    data: Path | None = None,
    attempts: int = 5,
) -> list[Result]:
    """Run *chain* as `run` does, from within a loop."""
    options: ChannelOptions[Any] = ChannelOptions(
        batch_items_max=max(1, len(items)),
        batch_age_max=0.0,
        retry=RetryPolicy(wait=tenacity.wait_none(), stop=tenacity.stop_after_attempt(attempts)),
        on_error=lambda batch, error: None,
        on_drop=lambda batch, reason: None,
    )
    with TemporaryDirectory(prefix="mailpipe-") as folder:
        opened = Chain(chain, steps=steps, settings=settings, place=Place(data=data or Path(folder)))
        async with opened, Channel(opened.send, options) as channel:
            # All at once, before the loop turns: one batch.
            receipts = [channel.submit_nowait(item) for item in items]
            return [_answer(await receipt.wait()) for receipt in receipts]


def _answer(outcome: Outcome[Result | None]) -> Result:
    if outcome.status is Status.DELIVERED:
        return outcome.result or Reply(250, "2.0.0", "OK")
    return outcome.error.reply if isinstance(outcome.error, Answer) else _TROUBLE
