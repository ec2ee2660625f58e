"""
TLS as a server configures it.
"""

import os
import ssl
from pathlib import Path
from typing import Literal

import attrs

__all__ = ["TlsOptions", "make_context"]

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENTS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@attrs.frozen(kw_only=True)
class TlsOptions:
    """
    Settings of TLS on one server. The files are read when a server is given these options.

    Args:
        certificate: PEM file with the certificate and its chain.

        key: PEM file with the private key, not encrypted; None: it stands in *certificate*.

        mode: ``"starttls"`` offers it, ``"required"`` takes no mail before it, ``"implicit"`` begins with it.

        minimum: The oldest version of TLS that is spoken.

        ciphers: OpenSSL's cipher list for TLS 1.2; ``""`` is OpenSSL's own.

        client_ca: PEM file of the authorities that client certificates are checked against.

        client_certificate: Whether a client must show one; above ``"none"`` *client_ca* is needed.

    Raises:
        ValueError: If *client_certificate* and *client_ca* do not go together.
    """

    certificate: Path = attrs.field(converter=Path)
    key: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    mode: Literal["starttls", "required", "implicit"] = "starttls"
    minimum: Literal["1.2", "1.3"] = "1.2"
    ciphers: str = ""
    client_ca: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    client_certificate: Literal["none", "optional", "required"] = "none"

    def __attrs_post_init__(self) -> None:
        for name, allowed in (
            ("mode", ("starttls", "required", "implicit")),
            ("minimum", tuple(_VERSIONS)),
            ("client_certificate", tuple(_CLIENTS)),
        ):
            if getattr(self, name) not in allowed:
                msg = f"{name} is one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                raise ValueError(msg)
        if (self.client_certificate != "none") != (self.client_ca is not None):
            msg = f"client_certificate = {self.client_certificate!r} and client_ca go together"
            raise ValueError(msg)


def make_context(options: TlsOptions) -> ssl.SSLContext:
    """
    Read the files, make the context.

    Raises:
        ValueError: If a file cannot be read, is no PEM, or key and certificate do not match; names
            the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[options.minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    for path in (options.certificate, options.key, options.client_ca):
        if path is not None and not os.access(path, os.R_OK):
            msg = f"cannot read {path}"
            raise ValueError(msg)
    try:
        # Without a password callback OpenSSL would ask on the terminal.
        context.load_cert_chain(options.certificate, options.key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        pair = options.certificate if options.key is None else f"{options.certificate} and {options.key}"
        msg = f"certificate and key must be a pair of PEM files, unencrypted; {pair}: {error}"
        raise ValueError(msg) from error
    try:
        if options.ciphers:
            context.set_ciphers(options.ciphers)
    except ssl.SSLError as error:
        msg = f"ciphers is an OpenSSL cipher list, got {options.ciphers!r}"
        raise ValueError(msg) from error
    try:
        if options.client_ca is not None:
            context.load_verify_locations(options.client_ca)
    except (ssl.SSLError, OSError) as error:
        msg = f"client_ca is a PEM file of certificates; {options.client_ca}: {error}"
        raise ValueError(msg) from error
    context.verify_mode = _CLIENTS[options.client_certificate]
    return context
