"""
What stands in a configuration file, as frozen values. Docstrings give meaning, default and unit.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import attrs

from mailpipe.chain import Plan, Settings, compile_chain
from mailpipe.receivers.options import ServerOptions

__all__ = [
    "DEFAULT_PROCESS",
    "Config",
    "DaemonConfig",
    "FullConfig",
    "GatewayConfig",
    "LogConfig",
    "RetryConfig",
    "ServerConfig",
    "SpoolConfig",
]

DEFAULT_PROCESS = "header | hasher | compressor | sql"


def _positive(instance: object, attribute: "attrs.Attribute[Any]", value: float | None) -> None:
    if value is not None and not value > 0:
        msg = f"must be above 0, got {value}"
        raise ValueError(msg)


def _not_negative(instance: object, attribute: "attrs.Attribute[Any]", value: float | None) -> None:
    if value is not None and not value >= 0:
        msg = f"must be 0 or more, got {value}"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class LogConfig:
    """
    Table ``[log]``.

    Args:
        file: Path, relative to the data folder; ``""`` (default) is stderr.

        level: The least grave kind of line that is written.

        format: ``"auto"`` is console on stderr and JSON in a file.
    """

    file: str = ""
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


@attrs.frozen(kw_only=True)
class FullConfig:
    """
    Table ``full_behavior`` of a gateway: how much may wait in its Channel, in flight included.

    What does not fit holds its sender back, until ``save_timeout``.

    Args:
        max_items: Mails.

        max_size: Octets held in memory by them; None is five batches.
    """

    max_items: int = attrs.field(default=1000, validator=_positive)
    max_size: int | None = attrs.field(default=None, validator=_positive)


@attrs.frozen(kw_only=True)
class RetryConfig:
    """
    Table ``retry`` of a gateway: full jitter between attempts, all of them within ``save_timeout``.

    Args:
        attempts: How often at most a batch is tried; None: as long as its mails wait.

        first: Seconds, the longest first delay; it doubles each time.

        longest: Seconds, the longest delay.
    """

    attempts: int | None = attrs.field(default=None, validator=_positive)
    first: float = attrs.field(default=0.2, validator=_positive)
    longest: float = attrs.field(default=5.0, validator=_positive)


@attrs.frozen(kw_only=True)
class SpoolConfig:
    """
    Table ``spool`` of a gateway: a journal between the 250 and the storages.

    Args:
        path: Folder of its journals, relative to the data folder and on the same file system; ``""`` is
            ``spool/NAME`` of the gateway's name. No other gateway's.

        max_size: Octets that one journal may hold, bodies and dead letters included; past it 452 4.3.1.

        retry: Of mails that a step deferred; then they are dead letters. The default goes on for
            about five days. Store trouble is no answer, and is retried for ever, as ``retry`` of the
            gateway says how often.
    """

    path: str = ""
    max_size: int = attrs.field(default=1 << 30, validator=_positive)
    retry: RetryConfig = attrs.field(factory=lambda: RetryConfig(attempts=130, first=1.0, longest=3600.0))


@attrs.frozen(kw_only=True)
class GatewayConfig:
    """
    Table ``[gateways.NAME]``: what happens to a mail, and how it waits.

    Args:
        process: The chain; at least one storage, or it ends in ``discard``.

        validate: Chain asked at RCPT time; ``""``: none.

        background: Chain run after the 250; ``""``: none.

        spool: True: mails are written to a journal, answered 250, and go through the batch steps after
            that; a table for other than its defaults, see `SpoolConfig`.

        durability:
            The least that counts as stored: ``"disk"``, ``"os"`` (survives a crash of the process) or
            ``"none"``. A chain below it is refused.

        save_timeout: Seconds from the dot to the reply; past it 451.

        validate_timeout: Seconds for one RCPT; past it 451.

        cache: Seconds that a positive answer to a RCPT is remembered; 0: not at all.

        background_retry: As ``retry``, for background jobs; then a job is dead.

        background_timeout: Seconds for one attempt at background jobs.

        batch_items_max, batch_size_max, batch_age_max, max_leases, qps_limit, send_timeout, full_behavior, retry:
            The Channel's options of the same names. ``batch_age_max = 0`` is natural batching.
            ``max_leases = None`` is 1 for a serial storage, else 4. ``send_timeout = None`` is
            four fifths of ``save_timeout``.
    """

    process: str = DEFAULT_PROCESS
    validate: str = ""
    background: str = ""
    spool: bool | SpoolConfig = False
    durability: Literal["disk", "os", "none"] = "disk"
    save_timeout: float = attrs.field(default=25.0, validator=_positive)
    validate_timeout: float = attrs.field(default=5.0, validator=_positive)
    cache: float = attrs.field(default=0.0, validator=_not_negative)
    background_retry: RetryConfig = attrs.field(
        factory=lambda: RetryConfig(attempts=20, first=1.0, longest=3600.0)
    )
    background_timeout: float = attrs.field(default=300.0, validator=_positive)
    batch_items_max: int = attrs.field(default=100, validator=_positive)
    batch_size_max: int = attrs.field(default=64 << 20, validator=_positive)
    batch_age_max: float = attrs.field(default=0.0, validator=_not_negative)
    max_leases: int | None = attrs.field(default=None, validator=_positive)
    qps_limit: float | None = attrs.field(default=None, validator=_positive)
    send_timeout: float | None = attrs.field(default=None, validator=_positive)
    full_behavior: FullConfig = attrs.field(factory=FullConfig)
    retry: RetryConfig = attrs.field(factory=RetryConfig)

    @property
    def spooling(self) -> SpoolConfig | None:
        """The spool's table, defaults included; None without a spool."""
        return (SpoolConfig() if self.spool else None) if isinstance(self.spool, bool) else self.spool

    def __attrs_post_init__(self) -> None:
        if self.send_timeout is not None and self.send_timeout >= self.save_timeout:
            msg = (
                f"send_timeout must be below save_timeout = {self.save_timeout:g}, got {self.send_timeout:g}"
            )
            raise ValueError(msg)
        if self.full_behavior.max_items < self.batch_items_max:
            msg = (
                f"full_behavior.max_items must be at least batch_items_max = {self.batch_items_max}, "
                f"got {self.full_behavior.max_items}"
            )
            raise ValueError(msg)
        size = self.full_behavior.max_size
        if size is not None and size < self.batch_size_max:
            msg = (
                f"full_behavior.max_size must be at least batch_size_max = {self.batch_size_max}, got {size}"
            )
            raise ValueError(msg)


@attrs.frozen(kw_only=True)
class DaemonConfig:
    """
    The top of the file: what concerns the process and not one server or gateway.

    Args:
        data: Data folder; what all relative paths are relative to. A relative one is seen from the
            current folder.

        log: See `LogConfig`.

        pid_file: Holds the process id while the daemon runs; ``""``: none.

        user: Whom the process becomes once its sockets are bound; ``""``: nobody else.

        group: Its group; ``""`` is the user's own.

        workers: Processes that share the servers' addresses.

        shutdown_timeout: Seconds that a stop waits for mail under way.

        spool_above: Octets; a larger body goes through a file instead of memory.

        spool_memory: Octets held in memory by all bodies together.

        reserve: Octets of the disk that mail never takes (besides twice the largest mail).
    """

    data: str = ""
    log: LogConfig = attrs.field(factory=LogConfig)
    pid_file: str = ""
    user: str = ""
    group: str = ""
    workers: int = attrs.field(default=1, validator=_positive)
    shutdown_timeout: float = attrs.field(default=30.0, validator=_positive)
    spool_above: int = attrs.field(default=1 << 20, validator=_not_negative)
    spool_memory: int = attrs.field(default=256 << 20, validator=_not_negative)
    reserve: int = attrs.field(default=64 << 20, validator=_not_negative)


@attrs.frozen(kw_only=True)
class ServerConfig:
    """
    One of ``[[servers]]``: these keys, and those of `mailpipe.receivers.options.ServerOptions`.

    Args:
        options: The receiver's own settings.

        gateway: Where its mail goes.

        enabled: False leaves it out.
    """

    options: ServerOptions = attrs.field(factory=ServerOptions)
    gateway: str = "default"
    enabled: bool = True


@attrs.frozen(kw_only=True)
class Config:
    """
    Everything that was configured, checked.

    Args:
        file: Where it came from, for people.

        data: The data folder, absolute.

        daemon: What concerns the process.

        servers: The enabled ones.

        gateways: By name.

        processors: The ``[processors.NAME]`` tables, their options made.

        steps: Steps of one's own, given in code.
    """

    file: str
    data: Path
    daemon: DaemonConfig = attrs.field(factory=DaemonConfig)
    servers: tuple[ServerConfig, ...] = ()
    gateways: Mapping[str, GatewayConfig] = attrs.field(factory=dict)
    processors: Mapping[str, Settings] = attrs.field(factory=dict)
    steps: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)

    @cached_property
    def max_size(self) -> int:
        """Octets of the largest mail that any server takes."""
        return max((server.options.max_size for server in self.servers), default=0)

    def spool_folder(self, name: str) -> Path:
        """Where the journals of gateway *name* are, or would be if it spooled."""
        spool = self.gateways[name].spooling or SpoolConfig()
        return self.data / (spool.path or f"spool/{name}")

    def plan(self, text: str, purpose: Literal["process", "validate", "background"] = "process") -> Plan:
        """
        The chain *text*, compiled anew: every plan has its own instances of the steps.

        Raises:
            ChainError: If it cannot be; not for a chain of this configuration.
        """
        return compile_chain(text, settings=self.processors, steps=self.steps, purpose=purpose)
