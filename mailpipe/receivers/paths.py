"""
Addresses and parameters as SMTP commands carry them (RFC 5321 section 4.1, RFC 6531).

Pure. Strict where it matters to who gets a mail: brackets, local parts, domains, literals, lengths.
Lenient in one place only: spaces between ``FROM:`` and ``<`` are passed over.
"""

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

import idna

__all__ = ["BadPath", "Path", "ascii_domain", "helo_name", "parse_path", "plain_address", "split_parameters"]

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00a0-\U0010ffff-]"
_DOT_STRING = rf"{_ATEXT}+(?:\.{_ATEXT}+)*"
_QUOTED = r'"(?:[ !#-\[\]-~\u00a0-\U0010ffff]|\\[ -~])*"'
_PATH = re.compile(
    r" *<(?:@[^:<>]+:)?"  # a source route is read over (RFC 5321 appendix C)
    rf"(?P<address>(?P<local>{_DOT_STRING}|{_QUOTED})@(?P<domain>[^@<> \x00-\x1f\x7f]+))"
    r">(?: +(?P<parameters>.*))?\Z"
)
_LONE = re.compile(r" *<(?P<address>postmaster)?>(?: +(?P<parameters>.*))?\Z", re.IGNORECASE)
# Possessive, so that no input makes it step back.
_LABEL = r"[A-Za-z0-9]++(?:-++[A-Za-z0-9]++)*+"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*+\Z")
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\u00a0-\U0010ffff]+))?\Z")


_PLAIN = re.compile(
    r"<([A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)>(?:[ \t]+([^ \t(].*))?\Z",
    re.DOTALL,
)


class BadPath(ValueError):
    """What stands in the brackets, or around them, is no path."""


class Path(NamedTuple):
    """One parsed path with the parameters behind it."""

    address: str
    """As written, without brackets and source route; ``""`` for ``<>``, ``postmaster`` for itself."""

    domain: str
    """Lower-case A-labels, or a literal as ``[192.0.2.1]`` or ``[IPv6:2001:db8::1]``; ``""`` without one."""

    parameters: str
    """What came behind the path, not looked at."""


def parse_path(text: str, *, lone: bool) -> Path:
    """
    Parse what follows ``FROM:`` or ``TO:``.

    Args:
        text: The argument, parameters included.

        lone: Whether ``<>`` is allowed (MAIL); ``<postmaster>`` is where it is not (RCPT).

    Raises:
        BadPath: If it is none; says the rule.
    """
    # Senders and recipients come again, and looking one up costs a fifth. Not with parameters
    # behind: SIZE is another one each time.
    return _known(text, lone) if text.endswith(">") else _parse(text, lone)


def _parse(text: str, lone: bool) -> Path:
    match = _PATH.match(text)
    if match is None:
        return _parse_lone(text, null=lone)
    address, local, domain, parameters = match.group("address", "local", "domain", "parameters")
    # Octets are what RFC 5321 section 4.5.3.1 limits.
    if len(local) > 64 or (not local.isascii() and len(local.encode()) > 64):
        msg = f"a local part has up to 64 octets, got {len(local.encode())}"
        raise BadPath(msg)
    normal = ascii_domain(domain)
    if not normal:
        msg = f"a domain is labels or a literal, got {domain!r}"
        raise BadPath(msg)
    if len(address) > 254 or (not address.isascii() and len(address.encode()) > 254):
        msg = f"a path has up to 256 octets, got {len(address.encode()) + 2}"
        raise BadPath(msg)
    return Path(address, normal, parameters or "")


_known = lru_cache(maxsize=1024)(_parse)


def _parse_lone(text: str, *, null: bool) -> Path:
    match = _LONE.match(text)
    if match is None or (match["address"] is None) is not null:
        msg = f"a path is <local@domain>, got {text!r}"
        raise BadPath(msg)
    return Path(match["address"] or "", "", match["parameters"] or "")


def plain_address(text: str) -> tuple[str, str] | None:
    """
    Take ``<local@domain> rest`` apart if nothing in it needs a header parser.

    Returns:
        Address and rest as the standard library's ``get_angle_addr`` gives them, or None if only
        that can tell.
    """
    match = _PLAIN.match(text)
    return None if match is None else (match[1], match[2] or "")


@lru_cache(maxsize=4096)
def ascii_domain(domain: str) -> str:
    """
    Return *domain* in the form that is compared: lower-case A-labels, or a normal literal.

    Returns:
        ``""`` if it is neither a domain (RFC 5321 section 4.1.2) nor an address literal.
    """
    if domain.startswith("["):
        return _literal(domain)
    if not domain.isascii():
        if len(domain) > 255:
            return ""
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except idna.IDNAError:
            return ""
    if len(domain) > 255 or not _DOMAIN.match(domain) or any(len(x) > 63 for x in domain.split(".")):
        return ""
    return domain.lower()


def _literal(domain: str) -> str:
    inside = domain[1:-1]
    try:
        if not domain.endswith("]"):
            return ""
        if inside[:5].lower() == "ipv6:":
            address6 = ipaddress.IPv6Address(inside[5:])
            return "" if address6.scope_id else f"[IPv6:{address6}]"
        return f"[{ipaddress.IPv4Address(inside)}]"
    except ValueError:
        return ""


def helo_name(text: str) -> str:
    """Return what a client calls itself if that is a domain or a literal, else ``"unknown"``."""
    return text if text.isascii() and ascii_domain(text) else "unknown"


def split_parameters(text: str) -> dict[str, str | None] | None:
    """
    Split ESMTP parameters (RFC 5321 section 4.1.2); names come out in upper case.

    Returns:
        None if one is malformed or given twice.
    """
    found: dict[str, str | None] = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _PARAMETER.match(word)
        if match is None or match[1].upper() in found:
            return None
        found[match[1].upper()] = match[2]
    return found
