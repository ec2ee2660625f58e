"""``discard``: ends a chain that keeps nothing."""

from typing import Any

import pytest

from mailpipe.chain import ChainError, compile_chain
from mailpipe.errors import Discarded
from mailpipe.processors.discard import discard


def test_every_mail_is_answered_250(mail: Any) -> None:
    """Kept nowhere."""
    with pytest.raises(Discarded) as caught:
        discard(mail())
    assert caught.value.reply.code == 250


def test_ends_a_chain_without_a_storage() -> None:
    """Nothing may stand after it."""
    plan = compile_chain("header | hasher | discard")
    assert [step.name for step in plan.steps] == ["hasher", "header", "discard"]
    assert plan.durability == "none"
    with pytest.raises(ChainError, match="ends a chain, got 'header'"):
        compile_chain("discard | header")
