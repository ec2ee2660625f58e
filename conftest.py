"""Every Python example in the README and the documentation runs as a test; every TOML one is checked."""

import tomllib

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser


def check_configuration(example: Example) -> None:
    """Raise what ``mailpipe check`` would refuse."""
    from mailpipe.config import make_config

    make_config(tomllib.loads(str(example.parsed)))


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser(language="toml", evaluator=check_configuration)],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
).pytest()
