from pathlib import Path
from typing import Any

import pytest

from mailpipe.receivers.tls import TlsOptions, make_context


class TestTlsOptions:
    @pytest.mark.parametrize(
        ("wrong", "rule"),
        [
            ({"mode": "maybe"}, "mode is one of starttls, required, implicit, got 'maybe'"),
            ({"minimum": "1.0"}, "minimum is one of 1.2, 1.3"),
            ({"client_certificate": "yes"}, "client_certificate is one of"),
            ({"client_certificate": "required"}, "go together"),
            ({"client_ca": "x"}, "go together"),
        ],
    )
    def test_bad_values_are_told(self, wrong: dict[str, Any], rule: str) -> None:
        """The rule and the value."""
        with pytest.raises(ValueError, match=rule):
            TlsOptions(certificate="cert.pem", **wrong)


class TestContext:
    def test_files_are_named_when_bad(self, certificates: Any, tmp_path: Path) -> None:
        """Missing, no PEM, or not a pair: which file, and what must be."""
        files = certificates.issue()
        make_context(TlsOptions(**files, client_ca=tmp_path / "ca.pem", client_certificate="optional"))
        with pytest.raises(ValueError, match=r"cannot read .*nowhere"):
            make_context(TlsOptions(certificate=tmp_path / "nowhere"))
        (tmp_path / "junk").write_text("junk")
        with pytest.raises(ValueError, match=r"pair of PEM files, unencrypted; .*junk"):
            make_context(TlsOptions(certificate=tmp_path / "junk"))
        other = certificates.authority.issue_cert("other")
        other.private_key_pem.write_to_path(tmp_path / "other.pem")
        with pytest.raises(ValueError, match=r"pair of PEM files.*cert.pem and .*other.pem"):
            make_context(TlsOptions(certificate=files["certificate"], key=tmp_path / "other.pem"))
        with pytest.raises(ValueError, match="client_ca is a PEM file"):
            make_context(TlsOptions(**files, client_ca=tmp_path / "junk", client_certificate="optional"))
        with pytest.raises(ValueError, match="ciphers is an OpenSSL cipher list, got 'nonsense'"):
            make_context(TlsOptions(**files, ciphers="nonsense"))
