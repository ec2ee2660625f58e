"""``hasher``: SHA-256 of the received body, while it streams."""

import hashlib
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailpipe.processors.hasher import hasher
from mailpipe.streamstage import opener_of


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.binary()))
def test_is_that_of_the_octets_however_cut(mail: Any, chunks: list[bytes]) -> None:
    """Per mail, whatever TCP did."""
    envelope = mail()
    tap = opener_of(hasher)(envelope)
    for chunk in chunks:
        tap.write(chunk)
    tap.close()

    assert envelope.hashes == {"sha256": hashlib.sha256(b"".join(chunks)).hexdigest()}


def test_two_mails_at_once_are_two(mail: Any) -> None:
    """The state is one mail's (go-guerrilla mixed the mails of one connection)."""
    one, two = mail(), mail()
    first, second = opener_of(hasher)(one), opener_of(hasher)(two)
    first.write(b"a")
    second.write(b"b")
    first.close()
    second.close()

    assert one.hashes["sha256"] == hashlib.sha256(b"a").hexdigest()
    assert two.hashes["sha256"] == hashlib.sha256(b"b").hexdigest()


def test_aborted_it_says_nothing(mail: Any) -> None:
    """Half a mail has no digest."""
    envelope = mail()
    tap = opener_of(hasher)(envelope)
    tap.write(b"a")
    tap.abort()

    assert envelope.hashes == {}
