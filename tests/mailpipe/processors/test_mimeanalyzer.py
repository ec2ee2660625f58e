"""``mimeanalyzer``: the tree of MIME parts, found while the mail streams."""

from typing import Any

import pytest

from mailpipe.chain import ChainError, Settings, compile_chain
from mailpipe.mime import MimeTree
from mailpipe.processors.mimeanalyzer import MimeAnalyzerOptions, mimeanalyzer
from mailpipe.streamstage import opener_of

MAIL = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\n"


def analyzed(envelope: Any, body: bytes, **options: Any) -> MimeTree:
    tap = opener_of(mimeanalyzer, (MimeAnalyzerOptions(**options),))(envelope)
    for start in range(0, len(body), 10):
        tap.write(body[start : start + 10])
    tap.close()
    tree: MimeTree = envelope.values["mime"]
    return tree


def test_leaves_the_tree_in_values(mail: Any) -> None:
    """For every later step; offsets are those of the received body."""
    tree = analyzed(mail(MAIL), MAIL)

    assert [MAIL[part.body_start : part.end] for part in tree.parts[1:]] == [b"one", b"two"]


def test_two_mails_at_once_are_two(mail: Any) -> None:
    """The state is one mail's."""
    one, two = mail(), mail()
    options = (MimeAnalyzerOptions(),)
    first, second = opener_of(mimeanalyzer, options)(one), opener_of(mimeanalyzer, options)(two)
    first.write(MAIL)
    second.write(b"Subject: x\r\n\r\n")
    first.close()
    second.close()

    assert (len(one.values["mime"].parts), len(two.values["mime"].parts)) == (3, 1)


def test_bounds(mail: Any) -> None:
    """What is more is not looked at."""
    assert "too-many-parts" in analyzed(mail(), MAIL, parts_max=2).errors
    assert len(analyzed(mail(), MAIL, parts_max=2).parts) == 2
    assert len(analyzed(mail(), MAIL, depth_max=1).parts) == 1


@pytest.mark.parametrize("options", [{"parts_max": 0}, {"depth_max": 0}, {"depth_max": 1001}])
def test_bad_options(options: dict[str, int]) -> None:
    """Refused when the chain is compiled."""
    with pytest.raises(ChainError, match=next(iter(options))):
        compile_chain("mimeanalyzer | discard", settings={"mimeanalyzer": Settings(options=options)})
