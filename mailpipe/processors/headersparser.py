"""
``headersparser``: the header fields of a mail, unfolded and decoded.

=========  ==========================================================
stage      envelope
options    `HeadersParserOptions`
reads      --
writes     ``headers`` (`Headers`) and ``subject`` (`Envelope.values`)
=========  ==========================================================

The default chain needs none of it: the subject alone is found by a scan (`Envelope.subject`).
"""

import attrs

from mailpipe.envelope import Envelope
from mailpipe.headers import Headers, header_block
from mailpipe.steps import processor

__all__ = ["HeadersParserOptions", "headersparser"]


@attrs.frozen(kw_only=True)
class HeadersParserOptions:
    """
    Settings of ``headersparser``.

    Args:
        size_max: Octets of header looked at; fields beyond are not there. Refusing is `limits`' work.
    """

    size_max: int = attrs.field(default=262_144, validator=attrs.validators.ge(1))


@processor("headersparser", options=HeadersParserOptions, writes=("headers", "subject"), rejects=False)
def headersparser(envelope: Envelope, options: HeadersParserOptions) -> None:
    """Put `Headers` into ``envelope.values["headers"]``, the decoded subject into ``"subject"``."""
    headers = Headers.parse(header_block(envelope.body.chunks(), options.size_max))
    envelope.values["headers"] = headers
    envelope.values["subject"] = headers.get("subject")
