"""
What a proxy in front of us says of the client: PROXY protocol v1 and v2, and XCLIENT.

Pure. Whether the proxy is believed is decided by who is on the other end of the socket, elsewhere.
"""

import ipaddress
import re
import struct

import attrs

from mailpipe.receivers.paths import ascii_domain

__all__ = ["BadProxy", "ProxyHeader", "parse_proxy", "parse_xclient"]

_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V2_MAX = 4096
_V1_MAX = 107
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [ -~]*)?\Z")
_V1 = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (\d{1,5}) (\d{1,5})\Z")

_XCLIENT = frozenset({"ADDR", "PORT", "HELO", "LOGIN", "NAME", "PROTO", "DESTADDR", "DESTPORT"})
_XTEXT = re.compile(r"\+([0-9A-F]{2})")


class BadProxy(ValueError):
    """It is no header, or a broken one."""


@attrs.frozen(kw_only=True)
class ProxyHeader:
    """What a PROXY header says; without a `peer` the connection is the proxy's own (health checks)."""

    peer: str = ""
    port: int = 0
    local: str = ""
    rest: bytes = b""
    """What came behind the header."""


def parse_proxy(data: bytes) -> ProxyHeader | None:
    """
    Parse the PROXY header that *data* begins with.

    Returns:
        None while it is not whole.

    Raises:
        BadProxy: If it can become none.
    """
    if data[: len(_V2_SIGNATURE)] == _V2_SIGNATURE[: len(data)]:
        return _parse_v2(data)
    if data[:6] != b"PROXY "[: len(data)]:
        msg = "it begins with neither version's signature"
        raise BadProxy(msg)
    end = data.find(b"\r\n", 0, _V1_MAX)
    if end >= 0:
        return _parse_v1(data[:end], data[end + 2 :])
    if len(data) >= _V1_MAX:
        msg = f"a header of version 1 has up to {_V1_MAX} octets"
        raise BadProxy(msg)
    return None


def _parse_v1(line: bytes, rest: bytes) -> ProxyHeader:
    if _V1_UNKNOWN.match(line):
        return ProxyHeader(rest=rest)
    match = _V1.match(line)
    if match is None:
        msg = "a header of version 1 is PROXY TCP4|TCP6 SOURCE DESTINATION SPORT DPORT"
        raise BadProxy(msg)
    family, peer, local, port, _ = [word.decode("ascii") for word in match.groups()]
    source, target = _address(peer), _address(local)
    if not source.version == target.version == int(family) or int(port) > 65535:
        msg = f"addresses and port must be those of TCP{family}"
        raise BadProxy(msg)
    return ProxyHeader(peer=str(source), port=int(port), local=str(target), rest=rest)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise BadProxy(str(error)) from error


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    version_command, family, length = struct.unpack_from("!BBH", data, 12)
    if version_command not in {0x20, 0x21}:
        msg = f"version and command are 0x20 or 0x21, got {version_command:#x}"
        raise BadProxy(msg)
    if length > _V2_MAX:
        msg = f"a header of version 2 has up to {_V2_MAX} octets here, got {length}"
        raise BadProxy(msg)
    if len(data) < 16 + length:
        return None
    body, rest = data[16 : 16 + length], data[16 + length :]
    width = {0x11: 4, 0x21: 16}.get(family)
    if version_command == 0x20 or width is None:
        # LOCAL, and families without an address that we know: the connection is the proxy's own.
        return ProxyHeader(rest=rest)
    if length < 2 * width + 4:
        msg = f"addresses of family {family:#x} take {2 * width + 4} octets, got {length}"
        raise BadProxy(msg)
    peer, local = ipaddress.ip_address(body[:width]), ipaddress.ip_address(body[width : 2 * width])
    (port,) = struct.unpack_from("!H", body, 2 * width)
    return ProxyHeader(peer=str(peer), port=port, local=str(local), rest=rest)


def parse_xclient(argument: str) -> dict[str, str] | None:
    """
    Parse the attributes of XCLIENT (Postfix), xtext undone.

    Returns:
        What was said, ``""`` for what is not available; None if one is unknown, malformed, given twice, or could not stand in a header or a log.
    """
    found: dict[str, str] = {}
    for word in argument.split():
        name, equals, text = word.partition("=")
        name = name.upper()
        if not equals or name not in _XCLIENT or name in found or not word.isascii():
            return None
        if text.upper() in {"[UNAVAILABLE]", "[TEMPUNAVAIL]"}:
            found[name] = ""
            continue
        value = _XTEXT.sub(lambda match: chr(int(match[1], 16)), text)
        if not (normal := _xclient_value(name, value)):
            return None
        found[name] = normal
    return found or None


def _xclient_value(name: str, value: str) -> str:
    if name in {"ADDR", "DESTADDR"}:
        try:
            return str(ipaddress.ip_address(value[5:] if value[:5].upper() == "IPV6:" else value))
        except ValueError:
            return ""
    if name in {"PORT", "DESTPORT"}:
        return value if value.isdigit() and len(value) <= 5 and int(value) < 65536 else ""
    if name == "PROTO":
        return value.upper() if value.upper() in {"SMTP", "ESMTP"} else ""
    if name in {"HELO", "NAME"}:
        return value if len(value) <= 255 and ascii_domain(value) else "unknown"
    return value if value.isprintable() and value.isascii() and len(value) <= 255 else ""
