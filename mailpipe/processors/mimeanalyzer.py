"""
``mimeanalyzer``: the tree of MIME parts, found while the mail streams.

=========  ==========================================================
stage      stream; large chunks in a worker thread
options    `MimeAnalyzerOptions`
reads      --
writes     ``mime`` (a `MimeTree` in `Envelope.values`)
=========  ==========================================================

Never refuses a mail: what is wrong with it stands in ``MimeTree.errors`` (`limits` may refuse it).
"""

from collections.abc import Generator

import attrs

from mailpipe.envelope import Envelope
from mailpipe.mime import MimeParser
from mailpipe.steps import processor

__all__ = ["MimeAnalyzerOptions", "mimeanalyzer"]


@attrs.frozen(kw_only=True)
class MimeAnalyzerOptions:
    """
    Settings of ``mimeanalyzer``.

    Args:
        parts_max: Parts found at most; what follows belongs to the last one.

        depth_max: Parts within parts at most; deeper ones are not looked into.
    """

    parts_max: int = attrs.field(default=1000, validator=attrs.validators.ge(1))
    depth_max: int = attrs.field(default=32, validator=[attrs.validators.ge(1), attrs.validators.le(1000)])


@processor("mimeanalyzer", options=MimeAnalyzerOptions, writes=("mime",), rejects=False)
def mimeanalyzer(envelope: Envelope, options: MimeAnalyzerOptions) -> Generator[None, bytes | None, None]:
    """Put the `MimeTree` of the received octets into ``envelope.values["mime"]``."""
    parser = MimeParser(parts_max=options.parts_max, depth_max=options.depth_max)
    while (chunk := (yield)) is not None:
        parser.feed(chunk)
    envelope.values["mime"] = parser.finish()
