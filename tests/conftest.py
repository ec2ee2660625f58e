"""Real servers, one of each kind for the whole run, started when first asked for."""

from collections.abc import Iterator

import pytest

from tests import servers


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL."""
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """A real MariaDB."""
    with servers.mariadb() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis that syncs every write."""
    with servers.redis() as url:
        yield url


@pytest.fixture(scope="session")
def dovecot() -> Iterator[servers.Maildirs]:
    """A real dovecot over a folder of Maildirs."""
    with servers.dovecot() as maildirs:
        yield maildirs
