"""What the documentation says about this repository is so."""

import re
import tomllib
from pathlib import Path

import pytest

from mailpipe.config import ConfigError, make_config

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

CONFIGURATIONS = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(
        re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
]


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_every_configuration_shown_can_be_used(text: str) -> None:
    """What a reader copies is what a start accepts, given the certificates that it names."""
    problems: list[str] = []
    try:
        make_config(tomllib.loads(text))
    except ConfigError as error:
        problems = [str(problem) for problem in error.problems]

    assert [problem for problem in problems if "cannot read /etc/ssl/" not in problem] == []


@pytest.mark.parametrize(
    ("page", "folder"), [("go-guerrilla", "mailpipe"), ("pelichan-and-ppmq", "dispatcher")]
)
def test_every_test_that_is_named_as_proof_exists(page: str, folder: str) -> None:
    """A claim whose proof was renamed away is noticed."""
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    missing = []
    for file, name in named:
        path = ROOT / "tests" / file if file.startswith("acceptance/") else ROOT / "tests" / folder / file
        if "/_contract/" in file:  # a contract that users run, too: it lies in the package
            path = ROOT / folder / file
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        if not re.search(rf"(?:class|def) {name}\b", found):
            missing.append(f"{file}::{name}")

    assert len(named) > 50
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """A reader who follows a relative link finds a file."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [
        target.partition("#")[0]
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not re.match(r"[a-z]+:|#", target)
    ]

    assert [target for target in targets if not (page.parent / target).exists()] == []
