"""Configuration: what can be said, and that everything else is refused with its place."""

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from mailpipe.config import (
    Config,
    ConfigError,
    GatewayConfig,
    load_config,
    make_config,
    parse_duration,
    parse_size,
    read_data,
)

MINIMAL = """
[[servers]]
listen = "127.0.0.1:2525"
hostname = "mx.example.org"
max_size = "25MiB"
allowed_hosts = ["example.org", "*.example.org"]
gateway = "default"

[gateways.default]
process = "header | hasher | compressor | sql"

[processors.sql]
url = "sqlite:///mail.db"
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Config]:
    """Load a text as ``mail.toml``."""

    def load_text(text: str, **options: object) -> Config:
        path = tmp_path / "mail.toml"
        path.write_text(text)
        return load_config(path, environment={"NAME": "mail", "PORT": "2525"}, **options)  # type: ignore[arg-type] # as given

    return load_text


@pytest.fixture
def problems(load: Callable[..., Config], tmp_path: Path) -> Callable[[str], list[str]]:
    """The problems of a text, without the name of the file, which each must have."""

    def found(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text)
        lines = [str(problem) for problem in caught.value.problems]
        prefix = f"{tmp_path / 'mail.toml'}: "
        assert all(line.startswith(prefix) for line in lines), lines
        return [line.removeprefix(prefix) for line in lines]

    return found


class TestUnits:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("30s", 30), ("250ms", 0.25), ("1h30m", 5400), ("2d", 172800), ("1w", 604800), ("1.5s", 1.5)],
    )
    def test_durations(self, text: str, seconds: float) -> None:
        """A duration is numbers with units."""
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize("text", ["", "30", "s", "30 s", "-1s", "1y", "30s "])
    def test_what_is_no_duration(self, text: str) -> None:
        """A number alone is no duration: ancestors took "5" for 30 seconds."""
        with pytest.raises(ValueError, match="a duration is written like"):
            parse_duration(text)

    @pytest.mark.parametrize(
        ("text", "octets"),
        [("25MiB", 25 << 20), ("64KiB", 65536), ("1 GiB", 1 << 30), ("100kB", 100_000), ("7B", 7)],
    )
    def test_sizes(self, text: str, octets: int) -> None:
        """Binary units are powers of 1024, others of 1000."""
        assert parse_size(text) == octets

    @pytest.mark.parametrize("text", ["", "25", "MiB", "2.5MiB", "-1KiB", "25mib"])
    def test_what_is_no_size(self, text: str) -> None:
        """Anything else is refused."""
        with pytest.raises(ValueError, match="a size is written like"):
            parse_size(text)


class TestZeroConfiguration:
    def test_one_loopback_server_and_one_durable_gateway(self) -> None:
        """Nothing said is a working gateway that only this machine reaches."""
        config = load_config(environment={})

        (server,) = config.servers
        assert server.options.listen == "127.0.0.1:2525"
        assert server.options.address.loopback
        assert config.plan(config.gateways[server.gateway].process).durability == "disk"


class TestMinimalFile:
    def test_it_means_what_it_says(self, load: Callable[..., Config], tmp_path: Path) -> None:
        """The file of the documentation."""
        config = load(MINIMAL)

        (server,) = config.servers
        assert server.options.hostname == "mx.example.org"
        assert server.options.max_size == 25 << 20
        assert server.options.allowed_hosts == ("example.org", "*.example.org")
        record = config.plan(config.gateways["default"].process).record
        assert record is not None
        assert attrs.asdict(record.options)["url"] == "sqlite:///mail.db"  # type: ignore[arg-type] # an attrs class


class TestDataFolder:
    def test_each_source_wins_over_the_one_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """./mail-data, $MAILPIPE_DATA, the file, --data."""
        monkeypatch.chdir(tmp_path)
        environment = {"MAILPIPE_DATA": "from-environment"}
        raw = {"data": "from-file"}

        assert make_config({}, environment={}).data == tmp_path / "mail-data"
        assert make_config({}, environment=environment).data == tmp_path / "from-environment"
        assert make_config(raw, environment=environment).data == tmp_path / "from-file"
        assert make_config(raw, data="from-option", environment=environment).data == tmp_path / "from-option"

    def test_it_is_found_in_a_broken_file(self, tmp_path: Path) -> None:
        """``mailpipe reload`` reaches the daemon while its file has an error."""
        path = tmp_path / "mail.toml"
        path.write_text(f'data = "{tmp_path}/d"\nnonsense = 1\n')

        assert read_data(path) == tmp_path / "d"


class TestStrings:
    def test_variables_and_files(self, load: Callable[..., Config], tmp_path: Path) -> None:
        """Secrets need not stand in the file."""
        (tmp_path / "host").write_text("mx.example.net\n")
        config = load(
            f'data = "{tmp_path}"\n[[servers]]\nlisten = "127.0.0.1:${{PORT}}"\nhostname = {{ file = "host" }}\n'
            '[processors.sql]\nurl = "sqlite:///${NAME}$${x}.db"\n'
        )

        assert config.servers[0].options.listen == "127.0.0.1:2525"
        assert config.servers[0].options.hostname == "mx.example.net"
        assert attrs.asdict(config.processors["sql"].options)["url"] == "sqlite:///mail${x}.db"  # type: ignore[arg-type] # an attrs class

    def test_what_is_missing_is_named(self, problems: Callable[[str], list[str]]) -> None:
        """Never an empty string for an unset variable or an unreadable file."""
        text = '[[servers]]\nlisten = "127.0.0.1:${NOPE}"\nhostname = { file = "/nonexistent/host" }\n'

        assert problems(text) == [
            "[[servers]] 1 listen: the environment variable 'NOPE' is not set, in '127.0.0.1:${NOPE}'",
            "[[servers]] 1 hostname: cannot read the file '/nonexistent/host': No such file or directory",
        ]


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "place", "rule"),
        [
            ("nonsense = 1", "nonsense", "unknown key"),
            ("[nonsense]\na = 1", "nonsense", "unknown key"),
            ("workers = 0", "", "must be above 0, got 0"),
            ('shutdown_timeout = "30"', "shutdown_timeout", "a duration is written like"),
            ("shutdown_timeout = true", "shutdown_timeout", "must be a number"),
            ('[log]\nlevel = "loud"', "log.level", "must be one of 'debug', 'info'"),
            ("[log]\ncolour = 1", "log.colour", "unknown key"),
            ("servers = 3", "servers", "must be at least one [[servers]]"),
            ("[[servers]]\nlisten = 25", "[[servers]] 1 listen", "must be a string, got an integer: 25"),
            ('[[servers]]\nlisten = "nowhere"', "[[servers]] 1", "'nowhere'"),
            ('[[servers]]\nmax_size = "25"', "[[servers]] 1 max_size", "a size is written like"),
            ('[[servers]]\nallowed_hosts = "a.org"', "[[servers]] 1 allowed_hosts", "must be an array"),
            ("[[servers]]\nallowed_hosts = [1]", "[[servers]] 1 allowed_hosts.0", "must be a string"),
            ("[[servers]]\nmax_clients = 1", "[[servers]] 1 max_clients", "unknown key"),
            (
                '[[servers]]\ngateway = "other"',
                "[[servers]] 1 gateway",
                "no such gateway; there are default, got 'other'",
            ),
            (
                '[[servers]]\nlisten = "127.0.0.1:1"\n[[servers]]\nlisten = "127.0.0.1:1"',
                "[[servers]] 2 listen",
                "already",
            ),
            ("[gateways.default]\nsave_timeot = 1", "[gateways.default] save_timeot", "unknown key"),
            (
                "[gateways.default]\nsave_timeout = 10\nsend_timeout = 10",
                "[gateways.default]",
                "must be below save_timeout",
            ),
            ('[gateways.default]\nprocess = "hasher"', "[gateways.default] process", "keeps nothing"),
            (
                '[gateways.default]\nprocess = "haser | sql"',
                "[gateways.default] process",
                "did you mean 'hasher'",
            ),
            ('[gateways.default]\nprocess = "MySql"', "[gateways.default] process", "needs url"),
            (
                '[gateways.default]\ndurability = "paper"',
                "[gateways.default] durability",
                "must be one of 'disk'",
            ),
            (
                "[gateways.default]\nbatch_items_max = 2000",
                "[gateways.default]",
                "max_items must be at least",
            ),
            (
                "[gateways.default.full_behavior]\nmax_mails = 1",
                "[gateways.default] full_behavior.max_mails",
                "unknown key",
            ),
            ("gateways = 1", "gateways", "must be tables"),
            ("[processors.sql]\nurll = 1", "[processors.sql] urll", "unknown key"),
            ("[processors.sql]\nurl = 1", "[processors.sql] url", "must be a string"),
            ('[processors.mine]\nuse = "nowhere:at_all"', "[processors.mine] use", "cannot be loaded"),
            ('[processors.mine]\ntype = "nothing"', "[processors.mine] type", "no such step"),
            ("[processors.hasher]\nspeed = 1", "[processors.hasher] speed", ""),
            ("spool_above = 100_000_000", "spool_above", "must be at most batch_size_max"),
        ],
    )
    def test_names_table_key_rule_and_value(
        self, text: str, place: str, rule: str, problems: Callable[[str], list[str]]
    ) -> None:
        """Nothing is ignored, nothing is guessed."""
        (problem,) = problems(text)

        assert problem.startswith(f"{place}: " if place else "")
        assert rule in problem

    def test_all_problems_come_at_once(self, problems: Callable[[str], list[str]]) -> None:
        """One run shows everything."""
        assert len(problems("nonsense = 1\n[gateways.a]\nx = 1\n[processors.sql]\ny = 1\n")) == 3

    @pytest.mark.parametrize(
        ("content", "rule"),
        [(b"a = ", "is not TOML"), (b'a = "\xff"', "is not UTF-8"), (None, "cannot be read")],
    )
    def test_what_is_no_file_of_ours(self, content: bytes | None, rule: str, tmp_path: Path) -> None:
        """A file that cannot be read names itself."""
        path = tmp_path / "mail.toml"
        if content is not None:
            path.write_bytes(content)

        with pytest.raises(ConfigError, match=rule) as caught:
            load_config(path)
        assert caught.value.problems[0].file == str(path)


class TestTrust:
    def test_the_world_is_let_in_on_purpose_only(self, problems: Callable[[str], list[str]]) -> None:
        """Any recipient from anywhere is an error unless said."""
        (problem,) = problems('[[servers]]\nlisten = "0.0.0.0:2525"\n')

        assert "allowed_hosts" in problem

    def test_the_command_line_opens_no_door(self) -> None:
        """--listen is held to the same rule."""
        with pytest.raises(ConfigError, match="allowed_hosts"):
            load_config(listen="0.0.0.0:2525", environment={})

    @pytest.mark.parametrize(
        "chain",
        [
            'process = "relay"',
            'process = "sql"\nbackground = "relay"',
            'process = "sql | exec"\ndurability = "none"',
        ],
    )
    @pytest.mark.parametrize(
        ("server", "refused"),
        [
            ("", True),
            ('allowed_hosts = ["*"]', True),
            ('allowed_hosts = ["."]', True),
            ('allowed_hosts = ["example.org"]', False),
            ('allowed_hosts = ["*"]\nrelay_from = ["10.0.0.0/8"]', False),
        ],
    )
    def test_no_open_relay_by_accident(
        self, chain: str, server: str, refused: bool, load: Callable[..., Config]
    ) -> None:
        """Whoever hands mail on or runs programs for it says for whom, after the 250 as before it."""
        text = (
            f"[[servers]]\n{server}\n[gateways.default]\n{chain}\n"
            '[processors.relay]\nhost = "127.0.0.1"\n[processors.exec]\ncommand = ["/bin/true"]\n'
        )
        if refused:
            with pytest.raises(ConfigError, match="open relay"):
                load(text)
        else:
            # A star is then meant for those who are trusted, not for everybody.
            assert "anywhere.example" not in load(text).servers[0].options.hosts

    def test_a_star_says_it(self, load: Callable[..., Config]) -> None:
        """``["*"]`` is the purpose."""
        (server,) = load('[[servers]]\nlisten = "0.0.0.0:2525"\nallowed_hosts = ["*"]\n').servers
        assert "anywhere.example" in server.options.hosts


class TestKnobs:
    def test_a_disabled_server_is_left_out(self, load: Callable[..., Config]) -> None:
        """``enabled = false`` keeps the table, not the server."""
        text = '[[servers]]\nlisten = "127.0.0.1:1"\n[[servers]]\nlisten = "127.0.0.1:2"\nenabled = false\n'

        assert [server.options.listen for server in load(text).servers] == ["127.0.0.1:1"]

    def test_numbers_are_seconds(self, load: Callable[..., Config]) -> None:
        """A bare number is taken where a duration is."""
        assert load("[gateways.default]\nsave_timeout = 10\n").gateways["default"].save_timeout == 10.0

    def test_named_instances(self, load: Callable[..., Config]) -> None:
        """Two storages of one kind, each with its table."""
        config = load(
            '[gateways.default]\nprocess = "first:sql | second"\n'
            '[processors.first]\nurl = "sqlite:///a.db"\nexpire = "1d"\n[processors.second]\ntype = "sql"\nurl = "sqlite:///b.db"\n'
        )

        plan = config.plan(config.gateways["default"].process)
        assert [attrs.asdict(step.options)["url"] for step in plan.storages] == [
            "sqlite:///a.db",
            "sqlite:///b.db",
        ]  # type: ignore[arg-type] # an attrs class

    def test_gateway_options_check_themselves(self) -> None:
        """Made in code, they are held to the same rules."""
        with pytest.raises(ValueError, match="must be above 0, got -1"):
            GatewayConfig(save_timeout=-1)


class TestSpool:
    def test_a_flag_or_a_table(self, tmp_path: Path) -> None:
        """True is a table of defaults."""
        for said, octets in ((True, 1 << 30), ({"max_size": "2GiB"}, 2 << 30)):
            made = make_config({"gateways": {"default": {"spool": said}}}, data=str(tmp_path), environment={})
            spool = made.gateways["default"].spooling
            assert spool is not None
            assert spool.max_size == octets
        plain = make_config({}, data=str(tmp_path), environment={})
        assert plain.gateways["default"].spooling is None

    def test_what_cannot_be_is_told(self, tmp_path: Path) -> None:
        """A folder for two, room for less than one mail."""
        raw = {
            "gateways": {
                "default": {"spool": {"max_size": "1MiB"}},
                "other": {"spool": {"path": "spool/default"}},
            }
        }
        with pytest.raises(ConfigError) as told:
            make_config(raw, data=str(tmp_path), environment={})

        text = str(told.value)
        assert "[gateways.other] spool.path: is the folder of [gateways.default] already" in text
        assert "[gateways.default] spool.max_size: must be at least 26214400" in text
