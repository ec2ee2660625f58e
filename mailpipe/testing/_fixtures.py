"""Fixtures for pytest; imported only where it is there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mailpipe.testing._gateway import LocalGateway

__all__ = ["gateway"]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LocalGateway]:
    """A running `LocalGateway`; its ``port`` is where to send mail, ``mails`` what arrived."""
    with LocalGateway(tmp_path / "mail-data") as running:
        yield running
