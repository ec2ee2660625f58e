"""
Configuration: TOML → attrs, with errors that name file, table and key.
"""

from mailpipe.config.load import load_config, make_config, read_data
from mailpipe.config.schema import (
    DEFAULT_PROCESS,
    Config,
    DaemonConfig,
    FullConfig,
    GatewayConfig,
    LogConfig,
    RetryConfig,
    ServerConfig,
    SpoolConfig,
)
from mailpipe.config.values import ConfigError, Problem, parse_duration, parse_size

__all__ = [
    "DEFAULT_PROCESS",
    "Config",
    "ConfigError",
    "DaemonConfig",
    "FullConfig",
    "GatewayConfig",
    "LogConfig",
    "Problem",
    "RetryConfig",
    "ServerConfig",
    "SpoolConfig",
    "load_config",
    "make_config",
    "parse_duration",
    "parse_size",
    "read_data",
]
