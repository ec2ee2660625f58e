"""
What a gateway's Channel is told, and what a mail weighs in it.
"""

import logging
from typing import Any

import tenacity

from dispatcher import Batch, BlockNewItems, ChannelOptions, DropReason, RetryPolicy
from dispatcher.limits import Rate
from mailpipe.bodies import HeldBody
from mailpipe.config import GatewayConfig
from mailpipe.envelope import Envelope, MemoryBody, Recipient
from mailpipe.errors import Answer

__all__ = ["channel_options", "held_in_memory", "send_timeout", "validate_options"]

log = logging.getLogger("mailpipe.mail")


def send_timeout(config: GatewayConfig) -> float:
    """Seconds that one attempt may take: as configured, else four fifths of ``save_timeout``."""
    return config.send_timeout or 0.8 * config.save_timeout


def channel_options(config: GatewayConfig, *, serial: bool) -> ChannelOptions[Envelope]:
    """
    The options of a gateway's Channel: natural batching, bounded, never dropping.

    Args:
        config: The knobs.

        serial: One attempt at a time is best for the storage; used where the knob is not turned.
    """
    size_max = config.batch_size_max
    stop: Any = (
        tenacity.stop_never
        if config.retry.attempts is None
        else tenacity.stop_after_attempt(config.retry.attempts)
    )
    return ChannelOptions(
        batch_items_max=config.batch_items_max,
        batch_size_max=size_max,
        item_size=lambda envelope: max(1, min(held_in_memory(envelope), size_max)),
        batch_age_max=config.batch_age_max,
        max_leases=config.max_leases or (1 if serial else 4),
        full_behavior=BlockNewItems(
            max_items=config.full_behavior.max_items,
            max_size=config.full_behavior.max_size or 5 * size_max,
        ),
        retry=RetryPolicy(
            wait=tenacity.wait_random_exponential(multiplier=config.retry.first, max=config.retry.longest),
            stop=stop,
        ),
        qps_limit=None if config.qps_limit is None else Rate(config.qps_limit, max(1.0, config.qps_limit)),
        send_timeout=send_timeout(config),
        item_age_max=config.save_timeout,
        on_error=_log_attempt,
        on_drop=_told_by_receipts,
    )


def validate_options(config: GatewayConfig) -> ChannelOptions[Recipient]:
    """The options of the Channel that asks about recipients: natural batching, fresh to ``validate_timeout``."""
    return ChannelOptions(
        batch_items_max=config.batch_items_max,
        batch_age_max=0.0,
        max_leases=4,
        full_behavior=BlockNewItems(max_items=config.full_behavior.max_items),
        retry=RetryPolicy(
            wait=tenacity.wait_random_exponential(multiplier=config.retry.first, max=config.retry.longest),
            stop=tenacity.stop_never,
        ),
        send_timeout=config.validate_timeout,
        item_age_max=config.validate_timeout,
        on_error=_log_attempt,
        on_drop=_told_by_receipts,
    )


def held_in_memory(envelope: Envelope) -> int:
    """Octets that the envelope's bodies hold in memory; those in files count nothing."""
    body = envelope.body
    held = len(body) if isinstance(body, HeldBody | MemoryBody) else 0
    if envelope.copies:
        held += sum(len(copy) for copy in envelope.copies.values() if isinstance(copy, HeldBody | MemoryBody))
    return held


def _log_attempt(batch: Batch[Any], error: Exception) -> None:
    if batch.errors and all(isinstance(marked, Answer) for marked in batch.errors.values()):
        return  # a step's answers are no trouble; each mail's own line tells them
    fields = {"attempt": batch.attempt, "items": len(batch), "error": repr(error)}
    log.warning("an attempt failed", extra={"fields": fields})


def _told_by_receipts(batch: Batch[Any], reason: DropReason) -> None:
    """Every mail has a receipt, and somebody who logs its end."""
