"""What the daemon's tests share."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio; its sockets are real, so is its clock."""
    return "asyncio"
