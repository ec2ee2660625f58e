"""
``decompress``: takes the compressor's copy back, once it is sure that it was right.

=========  ==========================================================
stage      batch, in the thread of the storage after it
options    --
reads      ``compressor``
writes     ``decompress`` (`Envelope.copies`)
=========  ==========================================================

Storages after it keep the mail as it is. The copy it leaves is read out of the compressed one, for a
step that names ``body = "decompress"``. A copy that does not give the received body back, octet for
octet, fails that mail (451) instead of being kept.
"""

from dispatcher import Batch
from mailpipe.encodings import DecodedBody
from mailpipe.envelope import Body, Envelope
from mailpipe.steps import processor

__all__ = ["decompress"]


@processor("decompress", kind="batch", reads=("compressor",), writes=("decompress",), rejects=False)
def decompress(batch: Batch[Envelope]) -> None:
    """Put the decoded copy into ``envelope.copies["decompress"]`` in place of the compressor's."""
    for position, envelope in enumerate(batch):
        copy = envelope.copies.get("compressor")
        if copy is None:
            continue
        whole = DecodedBody(copy, len(envelope.body))
        try:
            _compare(whole, envelope.body)
        except ValueError as error:
            batch.fail(position, error)
            continue
        envelope.copies["decompress"] = whole
        del envelope.copies["compressor"]


def _compare(whole: Body, body: Body) -> None:
    """Raise ValueError unless both have the same octets; neither is held whole."""
    left, rest = whole.chunks(), b""
    for chunk in body.chunks():
        while len(rest) < len(chunk):
            piece = next(left, None)
            if piece is None:
                msg = "the compressed copy is shorter than the body"
                raise ValueError(msg)
            rest += piece
        if rest[: len(chunk)] != chunk:
            msg = "the compressed copy is not that of the body"
            raise ValueError(msg)
        rest = rest[len(chunk) :]
    if rest or next(left, None) is not None:
        msg = "the compressed copy is longer than the body"
        raise ValueError(msg)
