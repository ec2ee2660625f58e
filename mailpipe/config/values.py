"""
From what TOML holds to what attrs classes want, with errors that name the place.

`structure` fills any attrs class from a table: the class's own fields are the keys, its
validators are the rules. So a processor's or a receiver's options need no second description.

Strict on purpose: a key nobody knows and a value of the wrong type are errors, never guesses.
Two conveniences: a ``float`` takes ``"30s"`` (durations, in seconds), an ``int`` takes ``"25MiB"``
(sizes, in octets). Strings take ``${VAR}`` (``$${`` is a literal ``${``) and ``{file = "path"}``.
"""

import collections.abc
import importlib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import attrs
import cattrs
from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

__all__ = ["ConfigError", "Problem", "Reader", "parse_duration", "parse_size"]

T = TypeVar("T")

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+\Z")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE = re.compile(r"(\d+) ?(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB)\Z")
_OCTETS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40} | {
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_WHOLE = re.compile(r"-?\d+\Z")
_NUMBER = re.compile(r"-?\d+(\.\d+)?\Z")
_VARIABLE = re.compile(r"\$(\$\{|\{([^{}]*)\})")


@attrs.frozen
class Problem:
    """One thing wrong with a configuration, and where."""

    file: str
    """Path as given, or what stands for it (``"--listen"``, ``"built-in configuration"``)."""

    table: str
    """Table in TOML's spelling, such as ``"[gateways.default]"``; ``""`` is the top of the file."""

    key: str
    """Key in the table; ``""`` when the whole table is meant."""

    what: str
    """The rule and the value got."""

    def __str__(self) -> str:
        place = " ".join(part for part in (self.table, self.key) if part)
        return f"{self.file}: {place}: {self.what}" if place else f"{self.file}: {self.what}"


class ConfigError(Exception):
    """
    A configuration that cannot be used, with everything that is wrong in it.

    Args:
        problems: At least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def parse_duration(text: str) -> float:
    """
    Seconds of a duration: numbers with units ``ms s m h d w``, such as ``"30s"`` or ``"1h30m"``.

    Raises:
        ValueError: If *text* is none.
    """
    if not _DURATION.match(text):
        msg = f'a duration is written like "30s", "1h30m" or "250ms", got {text!r}'
        raise ValueError(msg)
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))


def parse_size(text: str) -> int:
    """
    Octets of a size: a number with a unit, ``KiB MiB GiB`` (powers of 1024) or ``kB MB GB`` (of 1000).

    Raises:
        ValueError: If *text* is none.
    """
    if not (match := _SIZE.match(text)):
        msg = f'a size is written like "25MiB", "64KiB" or "100kB", got {text!r}'
        raise ValueError(msg)
    return int(match[1]) * _OCTETS[match[2]]


def _spell(value: object) -> str:
    """*value* in words of TOML."""
    names: dict[type, str] = {bool: "a boolean", int: "an integer", float: "a float", str: "a string"}
    names |= {list: "an array", dict: "a table"}
    kind = names.get(type(value), f"a {type(value).__name__}")
    return kind if isinstance(value, dict | list) else f"{kind}: {value!r}"


def _refuse(expected: str, value: object) -> NoReturn:
    msg = f"must be {expected}, got {_spell(value)}"
    raise ValueError(msg)


class Reader:
    """
    Fills attrs classes from tables of one file, and collects what is wrong.

    Problems pile up in `problems`, so that a user sees all of them at once; `structure` returns
    None where it found some.

    Args:
        file: Named in every problem.

        environment: Where ``${VAR}`` looks.

        base: Folder of relative paths, ``{file = …}`` among them.
    """

    def __init__(self, file: str, environment: Mapping[str, str], base: Path) -> None:
        self.file = file
        self.base = base
        self.problems: list[Problem] = []
        self._environment = environment
        self._also: tuple[str, ...] = ()
        self._converter = self._make_converter()

    def problem(self, table: str, key: str, what: str) -> None:
        """Note one thing that is wrong."""
        self.problems.append(Problem(self.file, table, key, what))

    def finish(self) -> None:
        """
        Raises:
            ConfigError: If there are problems.
        """
        if self.problems:
            raise ConfigError(self.problems)

    def structure(self, raw: object, kind: type[T], table: str, *, also: Iterable[str] = ()) -> T | None:
        """
        A *kind* made of the table *raw*, or None after noting what is wrong.

        Args:
            raw: What tomllib gave.

            kind: An attrs class.

            table: The table's name in TOML's spelling, for problems.

            also: Keys of the table that others take, named beside the known ones.
        """
        self._also = tuple(also)
        if not isinstance(raw, dict):
            self.problem(table, "", f"must be a table, got {_spell(raw)}")
            return None
        try:
            return self._converter.structure(raw, kind)
        except Exception as error:
            if not isinstance(error, ClassValidationError | ValueError | TypeError):
                raise
            self._note(error, table, ())
            return None

    def text(self, value: object) -> str:
        """
        A string with ``${VAR}`` and ``{file = …}`` resolved.

        Raises:
            ValueError: If *value* is no string, or names what is not there.
        """
        if isinstance(value, dict) and list(value) == ["file"] and isinstance(value["file"], str):
            path = self.base / self._expand(value["file"])
            try:
                return path.read_text("utf-8").removesuffix("\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
                msg = f"cannot read the file {str(path)!r}: {reason}"
                raise ValueError(msg) from error
        if not isinstance(value, str):
            _refuse("a string", value)
        return self._expand(value)

    def _expand(self, text: str) -> str:
        def replace(match: re.Match[str]) -> str:
            if match[1] == "${":
                return "${"
            if (name := match[2]) not in self._environment:
                msg = f"the environment variable {name!r} is not set, in {text!r}"
                raise ValueError(msg)
            return self._environment[name]

        return _VARIABLE.sub(replace, text)

    def _make_converter(self) -> cattrs.Converter:
        converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
        for kind, hook in {str: self.text, int: self._int, float: self._float, bool: self._bool}.items():
            converter.register_structure_hook(kind, _one_argument(hook))
        converter.register_structure_hook(Path, lambda value, _: self.base / self.text(value))
        converter.register_structure_hook_factory(attrs.has, _table_hook)
        converter.register_structure_hook_factory(_is_array, _array_hook)
        converter.register_structure_hook_factory(_is_mapping, _mapping_hook)
        converter.register_structure_hook_func(_is_literal, self._literal)
        converter.register_structure_hook_func(_is_callable, self._named)
        converter.register_structure_hook_func(_is_union, self._union)
        return converter

    def _int(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            _refuse('an integer (a size may be written "25MiB")', value)
        if isinstance(value, int):
            return value
        text = self._expand(value)
        return int(text) if _WHOLE.match(text) and text != value else parse_size(text)

    def _float(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            _refuse('a number (a duration may be written "30s")', value)
        if isinstance(value, int | float):
            return float(value)
        text = self._expand(value)
        # "${LIMIT}" has no other way to be a number; a number written as a string is a mistake.
        return float(text) if _NUMBER.match(text) and text != value else parse_duration(text)

    def _bool(self, value: object) -> bool:
        if not isinstance(value, bool):
            _refuse("true or false", value)
        return value

    def _literal(self, value: object, kind: object) -> object:
        allowed = typing.get_args(kind)
        text = self.text(value) if isinstance(value, str | dict) else value
        # Not `in`: True == 1.
        if not any(text == one and type(text) is type(one) for one in allowed):
            _refuse(f"one of {', '.join(map(repr, allowed))}", value)
        return text

    def _named(self, value: object, _: object) -> object:
        """What ``"module:name"`` names."""
        text = self.text(value)
        module, colon, path = text.partition(":")
        if not (module and colon and path):
            _refuse('"module:name"', text)
        try:
            found: object = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError) as error:
            msg = f"cannot be loaded from {text!r}: {error}"
            raise ValueError(msg) from error
        if not callable(found):
            _refuse(f"something to call, as {text!r} should be", found)
        return found

    def _union(self, value: object, kind: object) -> object:
        """The first member that takes the value; the problem of the last if none does."""
        members = [member for member in typing.get_args(kind) if member is not types.NoneType]
        for member in members[:-1]:
            try:
                return self._converter.structure(value, member)
            except (ValueError, TypeError, ClassValidationError, IterableValidationError):
                continue
        return self._converter.structure(value, members[-1])

    def _note(self, error: BaseException, table: str, path: tuple[str, ...]) -> None:
        """Turn cattrs' tree of errors into problems, each with its own key."""
        if isinstance(error, ForbiddenExtraKeysError):
            also = () if path else self._also
            known = ", ".join(sorted({field.alias for field in attrs.fields(error.cl)}.union(also)))
            for key in sorted(error.extra_fields):
                self.problem(table, ".".join((*path, key)), f"unknown key; known are {known or 'none'}")
            return
        if isinstance(error, ClassValidationError | IterableValidationError):
            for child in error.exceptions:
                self._note(child, table, path + _step(child))
            return
        what = "a required key is missing" if isinstance(error, KeyError) else str(error)
        self.problem(table, ".".join(path), what)


def _step(error: BaseException) -> tuple[str, ...]:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return (note.name,)
        if isinstance(note, IterableValidationNote):
            return (str(note.index),)
    return ()


def _one_argument(hook: Callable[[object], object]) -> Callable[[object, object], object]:
    return lambda value, _: hook(value)


def _is_union(kind: object) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _is_literal(kind: object) -> bool:
    return typing.get_origin(kind) is Literal


def _table_hook(kind: type[Any], converter: cattrs.Converter) -> Callable[[object, object], object]:
    """A class's own hook: what is no table says so, and not how a lookup in it failed."""
    inner = make_dict_structure_fn(
        kind, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True
    )

    def hook(value: object, _: object) -> object:
        if not isinstance(value, dict):
            _refuse("a table", value)
        return inner(value, kind)

    return hook


def _is_callable(kind: object) -> bool:
    return typing.get_origin(kind) is collections.abc.Callable


def _is_mapping(kind: object) -> bool:
    return typing.get_origin(kind) in (dict, collections.abc.Mapping)


def _mapping_hook(kind: type[Any], converter: cattrs.Converter) -> Callable[[object, object], object]:
    _, element = typing.get_args(kind) or (str, str)

    def hook(value: object, _: object) -> object:
        if not isinstance(value, dict):
            _refuse("a table", value)
        made, errors = {}, []
        for key, item in value.items():
            try:
                made[key] = converter.structure(item, element)
            except (ValueError, TypeError, ClassValidationError, IterableValidationError) as error:
                error.add_note(IterableValidationNote(f"Structuring @ key {key}", key, element))
                errors.append(error)
        if errors:
            msg = "while structuring a table"
            raise IterableValidationError(msg, errors, kind)
        return made

    return hook


def _is_array(kind: object) -> bool:
    return typing.get_origin(kind) in (tuple, list, frozenset, set)


def _array_hook(kind: type[Any], converter: cattrs.Converter) -> Callable[[object, object], object]:
    """An array's own hook: cattrs' would take a string apart into its letters."""
    origin: Any = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    element = arguments[0] if arguments else str

    def hook(value: object, _: object) -> object:
        if not isinstance(value, list):
            _refuse("an array", value)
        made, errors = [], []
        for index, item in enumerate(value):
            try:
                made.append(converter.structure(item, element))
            except (ValueError, TypeError, ClassValidationError, IterableValidationError) as error:
                error.add_note(IterableValidationNote(f"Structuring @ index {index}", index, element))
                errors.append(error)
        if errors:
            msg = "while structuring an array"
            raise IterableValidationError(msg, errors, kind)
        return origin(made)

    return hook
