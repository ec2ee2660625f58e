"""
``compressor``: a compressed copy of the body, for storages that keep it instead.

=========  ==========================================================
stage      batch, in the thread of the storage after it
options    `CompressorOptions`
reads      --
writes     ``compressor`` (`Envelope.copies`)
=========  ==========================================================

The received body stays; ``sql`` takes the copy if there is one, and ``export`` undoes it. Mails
that would gain nothing are left alone: small ones, and those that do not shrink.
"""

from typing import Literal

import attrs

from dispatcher import Batch
from mailpipe.encodings import encoded
from mailpipe.envelope import Envelope, MemoryBody
from mailpipe.steps import processor

__all__ = ["CompressorOptions", "compressor"]


@attrs.frozen(kw_only=True)
class CompressorOptions:
    """
    Settings of ``compressor``.

    Args:
        encoding: ``"zlib"``, or ``"zstd"`` with the extra of that name.

        level: The encoding's own; 1 is the fastest of both.

        at_least: Octets; smaller mails are left alone.

        at_most:
            Octets; larger mails are left alone, for the copy is held in memory. They are
            spooled to files, which storages take as they are.
    """

    encoding: Literal["zlib", "zstd"] = attrs.field(
        default="zlib", validator=attrs.validators.in_(("zlib", "zstd"))
    )
    level: int = 1
    at_least: int = attrs.field(default=4096, validator=attrs.validators.ge(0))
    at_most: int = attrs.field(default=1_048_576, validator=attrs.validators.ge(0))

    def __attrs_post_init__(self) -> None:
        most = 9 if self.encoding == "zlib" else 22
        if not 1 <= self.level <= most:
            msg = f"a level of {self.encoding} is 1 to {most}, got {self.level}"
            raise ValueError(msg)
        # Now, not at the first mail: an extra that is missing is a fault of the configuration.
        for _ in encoded([], self.encoding, level=self.level):
            pass


@processor(
    "compressor",
    kind="batch",
    options=CompressorOptions,
    writes=("compressor",),
    rejects=False,
)
def compressor(batch: Batch[Envelope], options: CompressorOptions) -> None:
    """Put a compressed copy into ``envelope.copies["compressor"]`` where it is worth it."""
    for envelope in batch:
        size = len(envelope.body)
        if "compressor" in envelope.copies or not options.at_least <= size <= options.at_most:
            continue
        copy = b"".join(encoded(envelope.body.chunks(), options.encoding, level=options.level))
        if len(copy) < size:
            envelope.copies["compressor"] = MemoryBody(copy, options.encoding)
