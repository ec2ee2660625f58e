from typing import Any

import pytest

from mailpipe.receivers.options import Listen, ServerOptions


class TestListen:
    @pytest.mark.parametrize(
        ("text", "host", "port", "loopback"),
        [
            ("127.0.0.1:2525", "127.0.0.1", 2525, True),
            ("localhost:0", "localhost", 0, True),
            ("[::1]:25", "::1", 25, True),
            ("0.0.0.0:25", "0.0.0.0", 25, False),
            ("[::]:25", "::", 25, False),
            ("mx.example.org:25", "mx.example.org", 25, False),
        ],
    )
    def test_tcp(self, text: str, host: str, port: int, loopback: bool) -> None:
        """Host and port, and back to the same text."""
        listen = Listen.parse(text)
        assert (listen.host, listen.port, listen.loopback, str(listen)) == (host, port, loopback, text)

    def test_unix(self) -> None:
        """A path is as private as loopback."""
        listen = Listen.parse("unix:/run/mail.sock")
        assert (listen.path, listen.loopback, str(listen)) == ("/run/mail.sock", True, "unix:/run/mail.sock")

    @pytest.mark.parametrize(
        "text", ["", "unix:", "127.0.0.1", ":25", "host:", "host:70000", "host:x", "::1:25"]
    )
    def test_bad(self, text: str) -> None:
        """The forms and the value are told."""
        with pytest.raises(ValueError, match="listen is HOST:PORT"):
            Listen.parse(text)


class TestServerOptions:
    @pytest.mark.parametrize(
        ("wrong", "rule"),
        [
            ({"max_size": 0}, "max_size is above 0, got 0"),
            ({"max_errors": -1}, "max_errors is above 0, got -1"),
            ({"min_rate": -1}, "min_rate is 0 or more, got -1"),
            ({"command_timeout": 0}, "command_timeout is above 0"),
            ({"bare_lines": "repair"}, "bare_lines is one of reject, keep, got 'repair'"),
            ({"protocol": "http"}, "protocol is one of smtp, lmtp, got 'http'"),
            ({"hostname": "a b"}, "hostname is a domain"),
            ({"max_command_line": 100}, "max_command_line is 512 or more"),
            ({"listen": "nowhere"}, "listen is HOST:PORT"),
            ({"allowed_hosts": ["a b"]}, "a host is a domain"),
            ({"relay_from": ["10.0.0.1/8"]}, "a network is written as"),
            ({"trusted": ["proxy"]}, "a network is written as"),
            ({"proxy": True}, "need trusted"),
            ({"xclient": True}, "need trusted"),
            ({"proxy": True, "trusted": ["10.0.0.0/8"]}, "without allowed_hosts"),
            ({"xclient": True, "trusted": ["10.0.0.0/8"]}, "without allowed_hosts"),
            ({"users": {"ann": "secret"}}, "that of 'ann'"),
            ({"authenticator": lambda user, password: True}, "need tls"),
            ({"tls_handshake_timeout": 0}, "tls_handshake_timeout is above 0"),
        ],
    )
    def test_bad_values_are_told(self, wrong: dict[str, Any], rule: str) -> None:
        """The rule and the value, at construction."""
        with pytest.raises(ValueError, match=rule.replace("[", r"\[")):
            ServerOptions(**wrong)

    def test_any_recipient_from_anywhere_is_refused(self) -> None:
        """Without allowed_hosts a server that others reach would be an open relay."""
        with pytest.raises(ValueError, match="without allowed_hosts"):
            ServerOptions(listen="0.0.0.0:25")
        ServerOptions(listen="0.0.0.0:25", allowed_hosts=["*"])
        ServerOptions(listen="0.0.0.0:25", allowed_hosts=[])
        ServerOptions(listen="127.0.0.1:25")

    def test_defaults_are_those_of_the_table(self) -> None:
        """The bounds that the documentation promises."""
        options = ServerOptions()
        assert options.max_command_line == 2048
        assert options.max_auth_line == 12288
        assert (options.max_auth_failures, options.tls_handshake_timeout) == (3, 10)
        assert options.max_recipients == 1000
        assert options.max_size == 25 * 1024 * 1024
        assert options.max_errors == 10
        assert (options.command_timeout, options.data_timeout, options.data_total_timeout) == (300, 180, 1800)
        assert (options.min_rate, options.min_rate_after) == (100, 30)
        assert (options.max_connections, options.max_connections_per_address) == (1000, 50)
