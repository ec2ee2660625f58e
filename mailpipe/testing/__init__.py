"""
For the tests of those who build on mailpipe.

::

    from mailpipe.testing import envelope, run

    def test_words():
        assert run("words", envelope(subject="spam"), steps={"words": words})[0].code == 550

In a ``conftest.py``, ``pytest_plugins = ["mailpipe.testing"]`` gives the fixture `gateway`: a real
gateway on a free port that keeps what it receives, for programs that send mail.

(PYTEST_DONT_REWRITE: the checks here raise AssertionErrors of their own words.)
"""

from mailpipe.testing._envelopes import envelope
from mailpipe.testing._gateway import LocalGateway
from mailpipe.testing._runs import run, run_async
from mailpipe.testing._storages import check_storage
from mailpipe.testing._stores import FailingStore

__all__ = ["FailingStore", "LocalGateway", "check_storage", "envelope", "run", "run_async"]

try:
    from mailpipe.testing._fixtures import gateway
except ImportError:  # without pytest there are no fixtures, and all else works
    pass
else:
    __all__ += ["gateway"]
