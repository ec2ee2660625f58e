import pytest

from mailpipe.receivers.rules import HostPatterns, Networks


class TestHostPatterns:
    def test_exact_and_wild(self) -> None:
        """A pattern with * is for hosts below; the name alone is for itself."""
        hosts = HostPatterns.parse(["example.org", "*.example.net", "mx*.Example.com", "[192.0.2.1]"])
        for good in ("example.org", "a.example.net", "a.b.example.net", "mx7.example.com", "[192.0.2.1]"):
            assert good in hosts, good
        for bad in (
            "a.example.org",
            "example.net",
            "xexample.net",
            "amx.example.com",
            "[192.0.2.2]",
            "",
            "example",
        ):
            assert bad not in hosts, bad

    def test_names_are_a_labels(self) -> None:
        """U-labels in the configuration match what arrives as A-labels."""
        assert "xn--bcher-kva.example" in HostPatterns.parse(["Bücher.example"])

    @pytest.mark.parametrize("everybody", ["*", "."])
    def test_everybody(self, everybody: str) -> None:
        """One word takes all, literals too."""
        hosts = HostPatterns.parse([everybody])
        assert "any.example" in hosts
        assert "[IPv6:::1]" in hosts

    def test_a_wild_name_matches_no_literal(self) -> None:
        """* stands for characters of names."""
        assert "[192.0.2.1]" not in HostPatterns.parse(["*1"])

    @pytest.mark.parametrize("pattern", ["", "a b", "*..x", "[*]", "*.bücher", "-*", "a/b"])
    def test_bad_patterns_are_refused(self, pattern: str) -> None:
        """The rule and the value are told."""
        with pytest.raises(ValueError, match="host") as caught:
            HostPatterns.parse([pattern])
        assert repr(pattern) in str(caught.value)


class TestNetworks:
    def test_contains(self) -> None:
        """Both families, single addresses, and IPv4 in IPv6 form."""
        networks = Networks.parse(["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"])
        for good in ("192.0.2.9", "2001:db8::9", "198.51.100.7", "::ffff:192.0.2.9"):
            assert good in networks, good
        for bad in ("192.0.3.1", "2001:db9::1", "198.51.100.8", "", "unix", "192.0.2.9x"):
            assert bad not in networks, bad

    @pytest.mark.parametrize("text", ["192.0.2.1/24", "example.org", "", "192.0.2.0/33"])
    def test_bad_networks_are_refused(self, text: str) -> None:
        """Host bits too: who writes them means something else."""
        with pytest.raises(ValueError, match="network"):
            Networks.parse([text])
