"""
``hasher``: SHA-256 of the received body, while it streams.

=========  ==========================================================
stage      stream, inline (64 KiB take about 0.1 ms)
options    --
reads      --
writes     ``sha256`` (`Envelope.hashes`)
=========  ==========================================================

go-guerrilla's hasher made identities of sender, subject and time. This is a digest of the mail,
and never an identity: that is the queue id.
"""

import hashlib
from collections.abc import Generator

from mailpipe.envelope import Envelope
from mailpipe.steps import processor

__all__ = ["hasher"]


@processor("hasher", writes=("sha256",), inline=True, rejects=False)
def hasher(envelope: Envelope) -> Generator[None, bytes | None, None]:
    """Put the hex digest of the octets as received into ``envelope.hashes["sha256"]``."""
    digest = hashlib.sha256(usedforsecurity=False)
    while (chunk := (yield)) is not None:
        digest.update(chunk)
    envelope.hashes["sha256"] = digest.hexdigest()
