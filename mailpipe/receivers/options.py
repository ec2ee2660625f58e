"""
What one server is told: where to listen, whom to believe, and its bounds.
"""

import ipaddress
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import attrs

from mailpipe.receivers.auth import Authenticator, PasswordTable
from mailpipe.receivers.intake import BareLines
from mailpipe.receivers.paths import ascii_domain
from mailpipe.receivers.rules import HostPatterns, Networks
from mailpipe.receivers.tls import TlsOptions

__all__ = ["Listen", "ServerOptions"]


def _positive(_: object, field: "attrs.Attribute[Any]", value: float) -> None:
    if not value > 0:
        msg = f"{field.name} is above 0, got {value!r}"
        raise ValueError(msg)


def _not_negative(_: object, field: "attrs.Attribute[Any]", value: float) -> None:
    if not value >= 0:
        msg = f"{field.name} is 0 or more, got {value!r}"
        raise ValueError(msg)


def _one_of(*values: str) -> Callable[[object, "attrs.Attribute[Any]", str], None]:
    def check(_: object, field: "attrs.Attribute[Any]", value: str) -> None:
        if value not in values:
            msg = f"{field.name} is one of {', '.join(values)}, got {value!r}"
            raise ValueError(msg)

    return check


@attrs.frozen(slots=True)
class Listen:
    """Where a server listens: ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``."""

    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Listen":
        """
        Parse ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``; port 0 lets the system choose.

        Raises:
            ValueError: If it is none of them.
        """
        if text.startswith("unix:") and len(text) > 5:
            return cls("", 0, text[5:])
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        good = colon and host and port.isascii() and port.isdigit() and int(port) < 65536
        if not good or bracketed is not (":" in host) or (bracketed and not _is_ip(host)):
            msg = f"listen is HOST:PORT, [IPV6]:PORT or unix:PATH, got {text!r}"
            raise ValueError(msg)
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it (a unix socket counts)."""
        if self.path or self.host == "localhost":
            return True
        return _is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@attrs.frozen(kw_only=True)
class ServerOptions:
    """
    Settings of one server; checked when made. Seconds and octets throughout.

    Args:
        listen: ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``; port 0 lets the system choose.

        hostname: What we call ourselves in the greeting, in EHLO and in Received.

        protocol: ``"smtp"`` or ``"lmtp"`` (one reply per recipient, RFC 2033).

        allowed_hosts:
            Recipient domains taken from everybody: exact, with ``*``, or literals. ``("*",)`` is
            any. None is any too, and is refused unless `listen` is a loopback address and `proxy`
            and `xclient` are off.

        relay_from: Networks whose clients may send to any recipient.

        sends_on:
            The gateway's chain sends mail on (relay, exec): that `allowed_hosts` names everybody is
            then meant for `relay_from` and the authenticated alone, and others are told 550 5.7.1.

        trusted:
            Networks of proxies, by the address on the other end of the socket: only they may use
            `proxy` and `xclient`, and they are exempt from `max_connections_per_address`.

        proxy: Clients in `trusted` begin with a PROXY header, version 1 or 2; without one: 421.

        xclient: Clients in `trusted` may use XCLIENT.

        tls: See `TlsOptions`; None: no TLS.

        tls_handshake_timeout: Seconds for a TLS handshake, and for a PROXY header.

        users:
            User → hashed password (see `mailpipe.receivers.auth.hash_password`): offers AUTH under
            TLS. Who authenticated may send to any recipient.

        authenticator: Asked instead of `users`, in a thread.

        max_auth_line: Octets of a line of AUTH with its CRLF.

        max_auth_failures: Failed authentications until 421.

        max_size: Most octets of a message; announced as SIZE.

        bare_lines:
            ``"reject"`` answers 550 5.6.0 to a body with a bare CR or LF, after its real end;
            ``"keep"`` stores it as it came.

        max_line:
            Most octets of a line of a body with its CRLF; told 554 5.6.0 after its end. None is any:
            real mail has lines of megabytes.

        max_recipients: RCPTs per mail; the next is told 452 4.5.3.

        max_errors: Errors a client may make before 421.

        max_command_line: Octets of a command line with its CRLF.

        command_timeout: Seconds of silence between commands.

        data_timeout: Seconds of silence inside DATA.

        data_total_timeout: Seconds that DATA may take in all.

        min_rate: Octets per second that DATA must reach after `min_rate_after` seconds; 0 is none.

        min_rate_after: Seconds before `min_rate` is looked at.

        max_connections: Connections in all; the next is told 421.

        max_connections_per_address: The same per client address; loopback is exempt.

    Raises:
        ValueError: If a value breaks its rule.
    """

    listen: str = "127.0.0.1:2525"
    hostname: str = "localhost"
    protocol: str = attrs.field(default="smtp", validator=_one_of("smtp", "lmtp"))
    allowed_hosts: tuple[str, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(tuple)
    )
    relay_from: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    sends_on: bool = False
    trusted: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    proxy: bool = False
    xclient: bool = False
    tls: TlsOptions | None = None
    tls_handshake_timeout: float = attrs.field(default=10.0, validator=_positive)
    users: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    authenticator: Authenticator | None = None
    max_auth_line: int = attrs.field(default=12288, validator=_positive)
    max_auth_failures: int = attrs.field(default=3, validator=_positive)
    max_size: int = attrs.field(default=25 << 20, validator=_positive)
    bare_lines: BareLines = attrs.field(default="reject", validator=_one_of("reject", "keep"))
    max_line: int | None = attrs.field(default=None, validator=attrs.validators.optional(_positive))
    max_recipients: int = attrs.field(default=1000, validator=_positive)
    max_errors: int = attrs.field(default=10, validator=_positive)
    max_command_line: int = attrs.field(default=2048, validator=_positive)
    command_timeout: float = attrs.field(default=300.0, validator=_positive)
    data_timeout: float = attrs.field(default=180.0, validator=_positive)
    data_total_timeout: float = attrs.field(default=1800.0, validator=_positive)
    min_rate: float = attrs.field(default=100.0, validator=_not_negative)
    min_rate_after: float = attrs.field(default=30.0, validator=_positive)
    max_connections: int = attrs.field(default=1000, validator=_positive)
    max_connections_per_address: int = attrs.field(default=50, validator=_positive)

    def __attrs_post_init__(self) -> None:
        if not (self.hostname.isascii() and ascii_domain(self.hostname)):
            msg = f"hostname is a domain or a literal in ASCII, got {self.hostname!r}"
            raise ValueError(msg)
        if self.max_command_line < 512:
            msg = f"max_command_line is 512 or more (RFC 5321 section 4.5.3.1.4), got {self.max_command_line}"
            raise ValueError(msg)
        # Made here so that a bad one is told at construction.
        _ = self.address, self.hosts, self.relays, self.proxies, self.authenticate
        self._check_trust()

    def _check_trust(self) -> None:
        if (self.proxy or self.xclient) and not self.trusted:
            msg = "proxy and xclient need trusted = [networks of the proxies], got none"
            raise ValueError(msg)
        if self.users and self.authenticator is not None:
            msg = "users and authenticator are one or the other, got both"
            raise ValueError(msg)
        if self.authenticate is not None and self.tls is None:
            msg = "users and authenticator need tls: no password goes over the wire in the clear"
            raise ValueError(msg)
        if self.allowed_hosts is None and (not self.address.loopback or self.proxy or self.xclient):
            msg = (
                "without allowed_hosts every recipient is taken, which only a loopback listener without "
                'proxy and xclient may; say allowed_hosts = ["*"] to mean it, '
                f"got listen = {self.listen!r}, proxy = {self.proxy}, xclient = {self.xclient}"
            )
            raise ValueError(msg)

    @cached_property
    def address(self) -> Listen:
        """`listen`, parsed."""
        return Listen.parse(self.listen)

    @cached_property
    def hosts(self) -> HostPatterns:
        """`allowed_hosts`, parsed, as far as they hold for clients that are not trusted."""
        hosts = HostPatterns.parse(("*",) if self.allowed_hosts is None else self.allowed_hosts)
        return attrs.evolve(hosts, everybody=hosts.everybody and not self.sends_on)

    @cached_property
    def relays(self) -> Networks:
        """`relay_from`, parsed."""
        return Networks.parse(self.relay_from)

    @cached_property
    def proxies(self) -> Networks:
        """`trusted`, parsed."""
        return Networks.parse(self.trusted)

    @cached_property
    def authenticate(self) -> Authenticator | None:
        """`authenticator`, or the table of `users`; None: AUTH is not offered."""
        return PasswordTable(self.users) if self.users else self.authenticator

    @property
    def tls_required(self) -> bool:
        """No mail is taken in the clear."""
        return self.tls is not None and self.tls.mode == "required"

    @property
    def tick(self) -> float:
        """Seconds between two looks at the deadlines."""
        shortest = min(
            self.command_timeout,
            self.data_timeout,
            self.data_total_timeout,
            self.min_rate_after,
            self.tls_handshake_timeout,
        )
        return min(1.0, shortest / 4)
