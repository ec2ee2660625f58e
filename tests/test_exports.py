"""The façades: what `import dispatcher` and `import mailpipe` give, and from where."""

import ast
import importlib
import pkgutil
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import dispatcher
import mailpipe

FACADES = [dispatcher, mailpipe]

# Modules that users import by path; the façade takes none of their names.
BY_PATH = {"broker", "cli", "codecs", "handlers", "stores", "testing"}


def imported(package: ModuleType) -> dict[str, list[str]]:
    """The names that the façade imports from its own package, by module."""
    assert package.__file__ is not None
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    return {
        node.module: [alias.asname or alias.name for alias in node.names]
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package.__name__)
    }


def exported(package: ModuleType) -> list[str]:
    return list(getattr(package, "__all__", []))


@pytest.mark.parametrize("package", FACADES, ids=lambda package: package.__name__)
class TestFacade:
    def test_is_sorted_and_names_nothing_twice(self, package: ModuleType) -> None:
        """`__all__` can be read like an index."""
        names = exported(package)

        assert names == sorted(set(names))

    def test_every_name_is_exported_by_its_module_too(self, package: ModuleType) -> None:
        """Nothing reaches the façade that its own module calls internal."""
        for module, names in imported(package).items():
            theirs = set(importlib.import_module(module).__all__)

            assert set(names) & set(exported(package)) <= theirs, module

    def test_everything_resolves(self, package: ModuleType) -> None:
        """A name in `__all__` can be imported."""
        for name in exported(package):
            assert getattr(package, name) is not None


def test_the_facade_of_dispatcher_is_the_union_of_its_public_modules() -> None:
    """Who adds a public name to a module adds it to the façade, and each has one home."""
    public = [
        info.name
        for info in pkgutil.iter_modules(dispatcher.__path__)
        if not info.name.startswith("_") and info.name not in BY_PATH
    ]
    names = Counter(
        name for module in public for name in importlib.import_module(f"dispatcher.{module}").__all__
    )

    assert [name for name, homes in names.items() if homes > 1] == []
    assert sorted(names) == exported(dispatcher)
