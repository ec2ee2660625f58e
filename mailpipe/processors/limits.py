"""
``limits``: refuses mails whose header, parts, recipients or hops are too many.

=========  ==========================================================
stage      envelope
options    `LimitsOptions`
reads      ``mime``, if ``parts`` is set
writes     --
=========  ==========================================================

A chain with ``relay`` has it without being asked, for the sake of ``received``: two servers that
relay to each other would do so for ever (RFC 5321 section 6.3).
"""

import attrs

from mailpipe.envelope import Envelope
from mailpipe.errors import Rejected
from mailpipe.headers import header_block, header_fields
from mailpipe.mime import MimeTree
from mailpipe.reply import Reply
from mailpipe.steps import processor

__all__ = ["Limits", "LimitsOptions"]


def _at_least_one(_: object, attribute: "attrs.Attribute[int]", value: int | None) -> None:
    if value is not None and value < 1:
        msg = f"{attribute.name} is 1 or more, or left out, got {value!r}"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class LimitsOptions:
    """
    Settings of ``limits``; None leaves a bound out.

    Args:
        header_size: Octets of header; more: 552 5.3.4.

        received: Received fields, one per server on the way; more: 554 5.4.6.

        recipients: Accepted recipients; more: 552 5.5.3. (Servers refuse the RCPT sooner.)

        parts: MIME parts; more: 554 5.6.0. Needs ``mimeanalyzer`` in the chain.

        depth: MIME parts within parts; more: 554 5.6.0. Needs ``mimeanalyzer`` in the chain.
    """

    header_size: int | None = attrs.field(default=262_144, validator=_at_least_one)
    received: int | None = attrs.field(default=50, validator=_at_least_one)
    recipients: int | None = attrs.field(default=None, validator=_at_least_one)
    parts: int | None = attrs.field(default=None, validator=_at_least_one)
    depth: int | None = attrs.field(default=None, validator=_at_least_one)


@processor("limits", kind="envelope", options=LimitsOptions)
class Limits:
    """Judges one envelope; keeps nothing."""

    def __init__(self, options: LimitsOptions) -> None:
        self._options = options

    @property
    def reads(self) -> tuple[str, ...]:
        """What must be known of the mail."""
        return () if self._options.parts is None and self._options.depth is None else ("mime",)

    def __call__(self, envelope: Envelope) -> None:
        """
        Let the mail pass, or not.

        Raises:
            Rejected: With the bound that it breaks.
        """
        options = self._options
        if options.recipients is not None and len(envelope.recipients) > options.recipients:
            raise Rejected(Reply(552, "5.5.3", f"Too many recipients, {options.recipients} are taken"))
        self._judge_header(envelope)
        if self.reads:
            self._judge_parts(envelope.values["mime"])

    def _judge_header(self, envelope: Envelope) -> None:
        size_max, received_max = self._options.header_size, self._options.received
        if size_max is None and received_max is None:
            return
        # Without a bound on the header all of it is looked at, for the loop may stand at its end.
        # Of a bounded one so much that its end is seen: line end and empty line.
        limit = len(envelope.body) if size_max is None else size_max + 3
        head = header_block(envelope.body.chunks(), limit)
        size = _size_of(head)
        if size_max is not None and size > size_max:
            raise Rejected(Reply(552, "5.3.4", f"Header too large, {size_max} octets are taken"))
        if received_max is None:
            return
        hops = sum(name.lower() == b"received" for name, _ in header_fields(head))
        if hops > received_max:
            raise Rejected(Reply(554, "5.4.6", f"Too many hops, {received_max} Received fields are taken"))

    def _judge_parts(self, tree: MimeTree) -> None:
        parts, depth = self._options.parts, self._options.depth
        if parts is not None and (len(tree.parts) > parts or "too-many-parts" in tree.errors):
            raise Rejected(Reply(554, "5.6.0", f"Too many MIME parts, {parts} are taken"))
        deepest = max(part.path.count(".") + 1 for part in tree.parts)
        if depth is not None and (deepest > depth or "too-deep" in tree.errors):
            raise Rejected(Reply(554, "5.6.0", f"MIME parts too deep, {depth} levels are taken"))


def _size_of(head: bytes) -> int:
    """Octets up to the empty line, which *head* may reach beyond."""
    if head[:1] == b"\n" or head[:2] == b"\r\n":
        return 0
    ends = [at for end in (b"\n\r\n", b"\n\n") if (at := head.find(end)) >= 0]
    return min(ends) + 1 if ends else len(head)
