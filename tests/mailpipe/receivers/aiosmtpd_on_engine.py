"""
A pytest plugin: aiosmtpd's own tests, with our engine in the place of its class, on a free port.

Loaded by `test_engine` into a process of its own, never into ours.
"""

import socket
import sys
from importlib import resources
from types import SimpleNamespace

import aiosmtpd.smtp

from mailpipe.receivers.engine import Engine

aiosmtpd.smtp.SMTP = Engine  # type: ignore[misc]

# aiosmtpd's conftest wants one function of setuptools.
sys.modules.setdefault(
    "pkg_resources",
    SimpleNamespace(resource_filename=lambda package, name: str(resources.files(package) / name)),  # type: ignore[arg-type]
)


def pytest_collection_modifyitems() -> None:
    """Its servers listen on one port, which need not be free: choose one that is."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    from aiosmtpd.tests.conftest import HostPort

    HostPort.__new__.__defaults__ = ("localhost", port)
