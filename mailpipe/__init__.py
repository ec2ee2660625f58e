"""
A programmable SMTP gateway: receiver, chain of processors, batching Channel, storages.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mailpipe.chain import ChainError
from mailpipe.envelope import Body, Envelope, MemoryBody, Recipient, Session
from mailpipe.errors import Answer, Deferred, Discarded, Rejected
from mailpipe.reply import Reply
from mailpipe.runner import Chain
from mailpipe.steps import Archive, Place, Storage, StoredMail, processor

if TYPE_CHECKING:
    from mailpipe.config import Config, ConfigError
    from mailpipe.daemon import Daemon

__all__ = [
    "Answer",
    "Archive",
    "Body",
    "Chain",
    "ChainError",
    "Config",
    "ConfigError",
    "Daemon",
    "Deferred",
    "Discarded",
    "Envelope",
    "MemoryBody",
    "Place",
    "Recipient",
    "Rejected",
    "Reply",
    "Session",
    "Storage",
    "StoredMail",
    "processor",
]

__version__ = version("dispatcher-toolkit")

# They need the extra "mail"; steps and chains do not.
_OF_THE_EXTRA = {
    "Config": "mailpipe.config",
    "ConfigError": "mailpipe.config",
    "Daemon": "mailpipe.daemon",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    if name not in _OF_THE_EXTRA:
        msg = f"module 'mailpipe' has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib

    try:
        return getattr(importlib.import_module(_OF_THE_EXTRA[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("mailpipe", "dispatcher")):
            raise
        msg = f"mailpipe.{name} needs {error.name}: pip install 'dispatcher-toolkit[mail]'"
        raise ImportError(msg) from error
