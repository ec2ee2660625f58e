import time

import pytest

from mailpipe.receivers.paths import BadPath, ascii_domain, helo_name, parse_path, split_parameters


class TestPath:
    @pytest.mark.parametrize(
        ("text", "address", "domain"),
        [
            ("<a@example.org>", "a@example.org", "example.org"),
            (" <a@example.org>", "a@example.org", "example.org"),
            ("<A.B@Example.ORG>", "A.B@Example.ORG", "example.org"),
            ("<!#$%&'*+-/=?^_`{|}~@x>", "!#$%&'*+-/=?^_`{|}~@x", "x"),
            ('<"a b"@example.org>', '"a b"@example.org', "example.org"),
            (r'<"a\"b\\c"@example.org>', r'"a\"b\\c"@example.org', "example.org"),
            ('<"a@b"@example.org>', '"a@b"@example.org', "example.org"),
            ('<"<>"@example.org>', '"<>"@example.org', "example.org"),
            ('<""@example.org>', '""@example.org', "example.org"),
            ("<@one,@two:a@example.org>", "a@example.org", "example.org"),
            ("<a@[192.0.2.1]>", "a@[192.0.2.1]", "[192.0.2.1]"),
            ("<a@[ipv6:2001:DB8:0::1]>", "a@[ipv6:2001:DB8:0::1]", "[IPv6:2001:db8::1]"),
            ("<jörg@bücher.example>", "jörg@bücher.example", "xn--bcher-kva.example"),
            ("<a@XN--BCHER-KVA.example>", "a@XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            (f"<{'x' * 64}@example.org>", f"{'x' * 64}@example.org", "example.org"),
        ],
    )
    def test_good(self, text: str, address: str, domain: str) -> None:
        """The address stays as written, the domain becomes what is compared."""
        path = parse_path(text, lone=False)
        assert (path.address, path.domain, path.parameters) == (address, domain, "")

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                "<>",
                "a@example.org",
                "<a@example.org",
                "a@example.org>",
                "<a@example.org>x",
                "<a@>",
                "<@b>",
            ),
            *("<a>", "<a@b@c>", "<a..b@c>", "<.a@c>", "<a.@c>", "<a b@c>", "<a@b c>", "<a@-b>", "<a@b->"),
            *(
                "<a@b..c>",
                "<a@b.>",
                "<a@.b>",
                "<a@b_c>",
                "<<a@b>>",
                "<a\r@b>",
                "<a\0@b>",
                '<"a\r"@b>',
                "<a@b\x7f>",
            ),
            *("<a@[1.2.3]>", "<a@[1.2.3.400]>", "<a@[IPv6:zz]>", "<a@[::1]>", "<a@[1.2.3.4>", "<a@[tag:x]>"),
            *(
                "<a@[IPv6:fe80::1%25eth0]>",
                f"<{'x' * 65}@b>",
                f"<{'ö' * 33}@b>",
                "<postmaster2@>",
                "<Postmaster.x>",
            ),
            *(
                f"<a@{'x' * 64}.org>",
                f"<a@{'x.' * 130}org>",
                f"<{'x' * 64}@{'y.' * 100}org>",
                "\x85<a@b>",
                "<a\x85@b>",
            ),
        ],
    )
    def test_bad(self, text: str) -> None:
        """Whatever RFC 5321 does not allow is no path."""
        with pytest.raises(BadPath):
            parse_path(text, lone=False)

    def test_lone_ones(self) -> None:
        """The null sender is for MAIL, a bare postmaster for RCPT; not the other way round."""
        assert parse_path("<>", lone=True).address == ""
        assert parse_path("<> SIZE=1", lone=True).parameters == "SIZE=1"
        assert parse_path("<PostMaster>", lone=False).address == "PostMaster"
        with pytest.raises(BadPath):
            parse_path("<postmaster>", lone=True)

    def test_parameters_are_left_alone(self) -> None:
        """What comes behind the path is handed on."""
        assert parse_path("<a@b>  SIZE=1 X", lone=True).parameters == "SIZE=1 X"
        with pytest.raises(BadPath):
            parse_path("<a@b>SIZE=1", lone=True)

    @pytest.mark.parametrize(
        "text", ["<" + "a." * 1000, "<" + '"\\a' * 700, "<a@" + "a-" * 1000, "<@" + "a," * 1000]
    )
    def test_hostile_input_takes_no_time(self, text: str) -> None:
        """No pattern steps back for long."""
        started = time.perf_counter()
        for _ in range(20):
            with pytest.raises(BadPath):
                parse_path(text, lone=False)
        assert time.perf_counter() - started < 2.0


class TestAsciiDomain:
    @pytest.mark.parametrize(
        ("domain", "normal"),
        [
            ("Example.ORG", "example.org"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("[10.0.0.1]", "[10.0.0.1]"),
            ("[IPv6:::1]", "[IPv6:::1]"),
            *[
                (bad, "")
                for bad in (
                    "",
                    "-a",
                    "a-",
                    "a b",
                    "a..b",
                    "a_b",
                    "[",
                    "[]",
                    "[1.2.3.4",
                    "ü" * 300,
                    "\u2024.x",
                )
            ],
        ],
    )
    def test_normal_form(self, domain: str, normal: str) -> None:
        """Lower-case A-labels, or a normal literal, or nothing."""
        assert ascii_domain(domain) == normal


class TestHeloName:
    @pytest.mark.parametrize(
        ("said", "kept"),
        [
            ("mx.example.org", "mx.example.org"),
            ("[192.0.2.1]", "[192.0.2.1]"),
            *[
                (bad, "unknown")
                for bad in ("a b", "x\ry", "<script>", "bücher.example", "(evil)", "a\0b", "x" * 300)
            ],
        ],
    )
    def test_is_a_domain_or_unknown(self, said: str, kept: str) -> None:
        """What is neither domain nor literal never reaches a header."""
        assert helo_name(said) == kept


class TestParameters:
    def test_good(self) -> None:
        """Names in upper case, values as written."""
        assert split_parameters("size=10  Body=8bitMIME SMTPUTF8") == {
            "SIZE": "10",
            "BODY": "8bitMIME",
            "SMTPUTF8": None,
        }

    @pytest.mark.parametrize("text", ["=1", "SIZE=", "SIZE=1 size=2", "A=b=c", "-A=1", "A=\r", "A=\x7f"])
    def test_malformed_or_twice(self, text: str) -> None:
        """Neither is guessed at."""
        assert split_parameters(text) is None
