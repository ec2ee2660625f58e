"""
``discard``: ends a chain that keeps nothing; every mail is answered 250.

=========  ==========================================================
stage      envelope, inline
options    --
reads      --
writes     --
=========  ==========================================================

For sinks and measurements. The last in its chain, for nothing after it would run.
"""

from mailpipe.envelope import Envelope
from mailpipe.errors import Discarded
from mailpipe.steps import processor

__all__ = ["discard"]


@processor("discard", inline=True, rejects=False)
def discard(envelope: Envelope) -> None:
    """Answer 250 and keep nothing."""
    raise Discarded
