"""
Who may send to whom: patterns of hosts, networks of peers.

Pure; made once when a server is configured, asked at every RCPT and connection.
"""

import ipaddress
import re
from collections.abc import Iterable

import attrs

from mailpipe.receivers.paths import ascii_domain

__all__ = ["HostPatterns", "Networks"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen(slots=True)
class HostPatterns:
    """
    The ``allowed_hosts`` of a server.

    Domains are compared as lower-case A-labels. ``*`` stands for any run of characters, dots too,
    so ``*.example.org`` is every host below it, and not ``example.org`` itself; ``"*"`` alone (or
    ``"."``, as in go-guerrilla) is every recipient, literals included. Literals are written as in
    an address: ``[192.0.2.1]``, ``[IPv6:2001:db8::1]``.
    """

    everybody: bool
    exact: frozenset[str]
    wild: tuple[re.Pattern[str], ...]

    @classmethod
    def parse(cls, patterns: Iterable[str]) -> "HostPatterns":
        """
        Make the rules of *patterns*.

        Raises:
            ValueError: If one is neither a domain, a literal, nor a pattern of labels.
        """
        everybody = False
        exact: set[str] = set()
        wild: list[re.Pattern[str]] = []
        for pattern in patterns:
            if pattern in {"*", "."}:
                everybody = True
            elif "*" in pattern:
                wild.append(_compile(pattern))
            elif normal := ascii_domain(pattern):
                exact.add(normal)
            else:
                msg = f"a host is a domain, a literal as [192.0.2.1], or a pattern with *, got {pattern!r}"
                raise ValueError(msg)
        return cls(everybody, frozenset(exact), tuple(wild))

    def __contains__(self, domain: object) -> bool:
        """Whether *domain*, in the form of `ascii_domain`, is meant."""
        if self.everybody or domain in self.exact:
            return True
        return isinstance(domain, str) and any(pattern.match(domain) for pattern in self.wild)


def _compile(pattern: str) -> re.Pattern[str]:
    # Each * is filled with a letter to see whether the labels around it are any.
    if pattern.startswith("[") or not (normal := ascii_domain(pattern.replace("*", "x"))):
        msg = f"a host pattern is labels with *, got {pattern!r}"
        raise ValueError(msg)
    if len(normal) != len(pattern):
        msg = f"a host pattern with * is written in ASCII (A-labels), got {pattern!r}"
        raise ValueError(msg)
    parts = [re.escape(part.lower()) for part in re.split(r"\*+", pattern)]
    return re.compile("[^[]*".join(parts) + r"\Z")


@attrs.frozen(slots=True)
class Networks:
    """A list of networks, as ``relay_from`` and ``trusted`` are; single addresses count as such."""

    networks: tuple[_Network, ...]

    @classmethod
    def parse(cls, networks: Iterable[str]) -> "Networks":
        """
        Make the list.

        Raises:
            ValueError: If one is no network; host bits that are set are an error too.
        """
        found: list[_Network] = []
        for text in networks:
            try:
                found.append(ipaddress.ip_network(text))
            except ValueError as error:
                msg = f"a network is written as 192.0.2.0/24 or 2001:db8::/32, got {text!r}"
                raise ValueError(msg) from error
        return cls(tuple(found))

    def __contains__(self, address: object) -> bool:
        """Whether *address*, as text, is inside; what is no address is not."""
        if not self.networks:
            return False
        try:
            ip = ipaddress.ip_address(str(address))
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self.networks)
