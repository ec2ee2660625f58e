"""broker.toml: what can be written, and everything that is wrong with what was."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dispatcher.broker import ConfigError, Push, SubscribeOptions
from dispatcher.broker.address import Address
from dispatcher.broker.config import load_config, make_config

LEAST: dict[str, Any] = {"store": ":memory:", "listen": "unix:/run/b.sock"}


def problems(**more: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        make_config({**LEAST, **more})
    return caught.value.problems


def test_the_one_in_the_documentation_can_be_used(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "broker.md"
    (text,) = re.findall(
        r"^```{code-block} toml\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    config = make_config(tomllib.loads(text), folder=tmp_path)

    assert config.store == tmp_path / "broker.db"
    assert config.listen == (Address(path=f"{tmp_path}/broker.sock"),)
    assert config.topics["orders"].subscriptions == ("billing", "search")
    assert config.topics["orders"].ttl is None
    assert config.topics["prices"].subscriptions == ("screen", "archive")
    assert config.pushes == {
        ("orders", "billing"): Push(
            Address(path="/run/billing.sock"), SubscribeOptions(batch_items_max=50, in_flight_max=100)
        )
    }


def test_defaults() -> None:
    config = make_config(LEAST)

    assert config.store is None
    assert (config.durability, config.mode, config.remote) == ("commit", 0o600, False)
    assert config.topics == {}


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"colour": 1}, "colour"),
        ({"store": ""}, "store"),
        ({"store": 5}, "store"),
        ({"durability": "maybe"}, "durability"),
        ({"listen": []}, "listen"),
        ({"listen": ["unix:"]}, "listen"),
        ({"listen": "tcp:0.0.0.0:1"}, "listen"),
        ({"mode": 600}, "mode"),
        ({"mode": "999"}, "mode"),
        ({"mode": "0"}, "mode"),
        ({"remote": 1}, "remote"),
        ({"server": 1}, "server"),
        ({"server": {"x": 1}}, "server.x"),
        ({"server": {"write_timeout": "1"}}, "server.write_timeout"),
        ({"server": {"write_timeout": 0}}, "server"),
        ({"topics": []}, "topics"),
        ({"topics": {"t": 1}}, "topics.t"),
        ({"topics": {"t": {"x": 1}}}, "topics.t.x"),
        ({"topics": {"t": {"ack_timeout": "1"}}}, "topics.t.ack_timeout"),
        ({"topics": {"t": {"ack_timeout": False}}}, "topics.t.ack_timeout"),
        ({"topics": {"t": {"subscriptions": ["a/b"]}}}, "topics.t.a subscription's name"),
        ({"topics": {"t": {"subscriptions": {"s": {"x": 1}}}}}, "topics.t.subscriptions.s.x"),
        ({"topics": {"t": {"subscriptions": {"s": {"batch_items_max": 1}}}}}, "topics.t.subscriptions.s"),
        ({"topics": {"t": {"subscriptions": {"s": {"push": "x"}}}}}, "topics.t.subscriptions.s.push"),
        (
            {"topics": {"t": {"subscriptions": {"s": {"push": "unix:/x", "in_flight_max": 0}}}}},
            "topics.t.subscriptions.s.in_flight_max",
        ),
    ],
    ids=str,
)
def test_is_refused_with_table_and_key(wrong: dict[str, Any], where: str) -> None:
    assert any(problem.startswith(f"{where}:") for problem in problems(**wrong)), problems(**wrong)


def test_a_bad_name_of_a_topic_is_refused() -> None:
    assert any("topics.a/b" in problem for problem in problems(topics={"a/b": {}}))


def test_everything_is_told_at_once() -> None:
    assert len(problems(colour=1, mode=2, topics={"t": {"x": 1, "full": "no"}})) == 4


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("x = ")
    with pytest.raises(ConfigError, match=r"bad.toml: Invalid"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "raw.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"raw.toml"):
        load_config(tmp_path / "raw.toml")
