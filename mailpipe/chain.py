"""
``"header | hasher | sql"`` compiled: names to steps, steps to stages, and every refusal.

The rules, in the order in which they are checked:

1. A name is a step's, an alias's, or that of a ``[processors.NAME]`` table; ``archive:sql`` names
   an instance *archive* of *sql*. Case never matters. No instance stands twice.
2. The stage is the step's, the order within a stage is the text's: stream, envelope, batch.
3. What a step ``reads``, an earlier one (in the order of running) writes.
4. No stream or envelope step after a storage: by then the mail is kept.
5. A step may name others that must not stand before it (``compressor | chunks``).
6. A chain with ``relay`` has ``limits`` even where the text does not say so.
7. A ``process`` chain has a storage (or a batch step of one's own that writes nothing, which is
   then where mails end), or ends in ``discard``.

Pure: reads no clock, opens nothing; building a step opens nothing either (`Storage`).
"""

import difflib
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import attrs

from mailpipe.steps import Durability, Kind, Spec, registered, registered_names, spec_of

__all__ = ["ChainError", "Plan", "Settings", "Step", "compile_chain", "find_spec"]

Purpose = Literal["process", "validate", "background", "any"]

# Name in a chain -> module that makes it known when imported. By name only: the floor of the
# chain lies below that of processors and storages, and their extras may be missing.
_BUILT_IN: dict[str, str] = {
    "compressor": "mailpipe.processors.compressor",
    "debugger": "mailpipe.processors.debugger",
    "decompress": "mailpipe.processors.decompress",
    "discard": "mailpipe.processors.discard",
    "hasher": "mailpipe.processors.hasher",
    "header": "mailpipe.processors.header",
    "headersparser": "mailpipe.processors.headersparser",
    "limits": "mailpipe.processors.limits",
    "mimeanalyzer": "mailpipe.processors.mimeanalyzer",
    "transformer": "mailpipe.processors.transformer",
    "chunks": "mailpipe.storages.chunks",
    "exec": "mailpipe.storages.exec",
    "maildir": "mailpipe.storages.maildir",
    "memory": "mailpipe.storages.memory",
    "redis": "mailpipe.storages.redis",
    "relay": "mailpipe.storages.relay",
    "sql": "mailpipe.storages.sql",
}
# go-guerrilla's names for the same things, of both branches.
_ALIASES: dict[str, str] = {
    "chunksaver": "chunks",
    "compress": "compressor",
    "debug": "debugger",
    "mysql": "sql",
}
_EXPANSIONS: dict[str, tuple[str, ...]] = {
    # Copied the stream into memory for the next step; here every step finds the body.
    "buffer": (),
    "guerrillaredisdb": ("redis", "mysql"),
}
# An alias that stands for one product must say which: never silently SQLite.
_ALIAS_REQUIRES: dict[str, tuple[str, ...]] = {"mysql": ("url",)}
# Steps that a chain with the key has without being asked: servers that relay to each other would
# do so for ever, if nobody counted the hops.
_IMPLIED: dict[str, tuple[str, ...]] = {"relay": ("limits",)}
_STAGES: tuple[Kind, ...] = ("stream", "envelope", "batch")
_LEVELS: tuple[Durability, ...] = ("none", "os", "disk")
# What a storage states (`Storage`), and what is taken of a step that states nothing.
_PROMISES: dict[str, Any] = {
    "durability": "none",
    "largest": None,
    "idempotent": False,
    "serial": False,
    "holds_body": True,
    "lasting": True,
}
_ENTRY_POINTS = "mailpipe.processors"


class ChainError(ValueError):
    """
    A chain that cannot be: the rule and the value, and the step it is about.

    Raised before anything was opened. A configuration adds file and table.
    """

    def __init__(self, rule: str, *, text: str = "", step: str = "") -> None:
        super().__init__(f"{step}: {rule}" if step else rule)
        self.rule, self.text, self.step = rule, text, step


@attrs.frozen(kw_only=True)
class Settings:
    """
    One ``[processors.NAME]`` table.

    Args:
        type: Whose instance it is; ``""``: that of its own name.

        use: ``"module:name"`` of a step of one's own.

        options:
            An instance of the step's options class, or a mapping to make one from; None for
            the defaults.
    """

    type: str = ""
    use: str = ""
    options: object | None = None


@attrs.frozen(kw_only=True, eq=False)
class Step:
    """One step of a compiled chain: what it is, and what is called."""

    name: str
    """The instance's: ``archive`` of ``archive:sql``."""

    spec: Spec
    options: object | None
    target: Callable[..., Any]
    """The function, or the instance of the class."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """The stage it runs in."""
        return self.spec.kind

    @property
    def storage(self) -> bool:
        """It keeps mails."""
        return self.spec.storage

    def promise(self, name: str) -> Any:  # noqa: ANN401 - one of several types
        """What it states of itself as in `Storage`; the cautious value where it states nothing."""
        return getattr(self.target, name, _PROMISES[name])


@attrs.frozen(kw_only=True, eq=False)
class Plan:
    """A chain compiled: steps by stage, in the order they run, and what follows from them."""

    text: str
    purpose: Purpose
    stream: tuple[Step, ...]
    envelope: tuple[Step, ...]
    batch: tuple[Step, ...]
    warnings: tuple[str, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All, in the order of running."""
        return self.stream + self.envelope + self.batch

    @property
    def storages(self) -> tuple[Step, ...]:
        """Those that keep mails; the last is the one of record."""
        return tuple(step for step in self.batch if step.storage)

    @property
    def record(self) -> Step | None:
        """The storage of record."""
        return self.storages[-1] if self.storages else None

    @property
    def archive(self) -> Step | None:
        """The last storage that can read mails back (`Archive`), their octets included, or None."""
        readable = [
            step
            for step in self.storages
            if callable(getattr(step.target, "get", None)) and step.promise("holds_body")
        ]
        return readable[-1] if readable else None

    @property
    def places(self) -> tuple[Step, ...]:
        """Where mails end: the storages, or without any the batch steps of one's own."""
        return self.storages or tuple(step for step in self.batch if not step.writes)

    @property
    def durability(self) -> Durability:
        """That of the weakest place that holds the body; ``"none"`` where nothing does."""
        levels = [step.promise("durability") for step in self.places if step.promise("holds_body")]
        return min(levels, key=_LEVELS.index, default="none")

    @property
    def largest(self) -> int | None:
        """Octets of the largest body that every place takes; None for no bound."""
        bounds = [step.promise("largest") for step in self.places]
        return min((bound for bound in bounds if bound is not None), default=None)

    @property
    def serial(self) -> bool:
        """A place of it takes one call at a time: give its Channel one lease."""
        return any(step.promise("serial") for step in self.places)

    def explain(self) -> dict[str, Any]:
        """Everything ``mailpipe check`` prints, as plain values (JSON)."""
        return {
            "text": self.text,
            "purpose": self.purpose,
            "durability": self.durability,
            "largest": self.largest,
            "record": self.record.name if self.record else None,
            "archive": self.archive.name if self.archive else None,
            "steps": [_explained(step) for step in self.steps],
            "warnings": list(self.warnings),
        }


def find_spec(name: str, settings: Settings | None = None) -> Spec:
    """
    Find the step that *name* means: own (``use``), made known, built in, or an entry point.

    Args:
        name: As in a chain, or the name of a table; in any case.

        settings: The table of that name, if there is one.

    Raises:
        ChainError: If there is none, or its extra is not installed.
    """
    if settings is not None and settings.use:
        return _used(settings.use, name)
    known = (settings.type if settings is not None and settings.type else name).lower()
    known = _ALIASES.get(known, known)
    if known in _BUILT_IN:
        _import(_BUILT_IN[known], known)
    if (spec := registered(known)) is not None:
        if known in _BUILT_IN and spec.target.__module__.partition(".")[0] != "mailpipe":
            rule = f"is built in, and {spec.target.__module__} calls a step of its own so; say use = 'module:name'"
            raise ChainError(rule, step=name)
        return spec
    for point in importlib.metadata.entry_points(group=_ENTRY_POINTS):
        if point.name.lower() == known:
            return spec_of(point.load(), known)
    names = sorted({*_BUILT_IN, *_ALIASES, *_EXPANSIONS, *registered_names()})
    close = difflib.get_close_matches(known, names, n=1)
    rule = (
        f"no such step; did you mean {close[0]!r}?" if close else f"no such step; known: {', '.join(names)}"
    )
    raise ChainError(rule, step=name)


def compile_chain(
    text: str,
    *,
    settings: Mapping[str, Settings] | None = None,
    steps: Mapping[str, Callable[..., Any]] | None = None,
    purpose: Purpose = "process",
) -> Plan:
    """
    Compile *text* into a `Plan`.

    Args:
        text: Names joined by ``|``.

        settings: The ``[processors.NAME]`` tables by name.

        steps: Steps of one's own by name, a plain SendFn among them; they win over known names.

        purpose:
            ``"process"`` keeps mails and so needs a storage; ``"validate"`` judges recipients;
            ``"background"`` works on mails already kept; ``"any"`` asks for none of this.

    Raises:
        ChainError: With the rule that is broken and the value, before anything was opened.
    """
    tables = {name.lower(): table for name, table in (settings or {}).items()}
    own = {name.lower(): step for name, step in (steps or {}).items()}
    written = [_build(part, tables, own, text) for part in _parts(text)]
    present = {step.spec.name for step in written}
    implied = dict.fromkeys(name for step in written for name in _IMPLIED.get(step.spec.name, ()))
    written = [_build(name, tables, own, text) for name in implied if name not in present] + written
    try:
        _refuse_twice(written)
        _refuse_items(written, purpose)
        _refuse_order(written)
        if purpose == "process":
            _refuse_no_storage(written)
        staged = {stage: tuple(step for step in written if step.kind == stage) for stage in _STAGES}
        _refuse_reads([step for stage in _STAGES for step in staged[stage]])
    except ChainError as error:
        error.text = text
        raise
    return Plan(text=text, purpose=purpose, warnings=tuple(_warnings(staged["batch"])), **staged)


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split("|")]
    if not all(parts):
        rule = f"a chain is names joined by '|', got {text!r}"
        raise ChainError(rule, text=text)
    expanded = [name for part in parts for name in _EXPANSIONS.get(part.lower(), (part,))]
    if not expanded:
        rule = f"a chain has at least one step that does something, got {text!r}"
        raise ChainError(rule, text=text)
    return expanded


def _build(
    part: str, tables: Mapping[str, Settings], own: Mapping[str, Callable[..., Any]], text: str
) -> Step:
    name, _, kind = (piece.strip().lower() for piece in part.partition(":"))
    if not re.fullmatch(r"[a-z0-9_-]+", name) or (":" in part and not kind):
        rule = f"a step is written NAME or NAME:TYPE, got {part!r}"
        raise ChainError(rule, text=text, step=part)
    called, table = kind or name, tables.get(name)
    if table is None and not kind:
        # [processors.sql] is meant by "MySql" as well.
        table = tables.get(_ALIASES.get(name, name))
    if table is not None and kind and table.type and table.type.lower() != kind:
        rule = f"the chain calls it a {kind!r}, its table says type = {table.type!r}"
        raise ChainError(rule, text=text, step=name)
    if table is not None and table.type and not kind:
        called = table.type.lower()
    try:
        spec = spec_of(own[name], name) if name in own else find_spec(called if kind else name, table)
        options = _options(spec, table)
        _refuse_missing(spec, called, options)
        target = spec.build(options)
    except ChainError as error:
        error.text = text
        raise
    except (TypeError, ValueError) as error:
        raise ChainError(str(error), text=text, step=name) from error
    reads = spec.reads + tuple(getattr(target, "reads", ()))
    step = Step(name=name, spec=spec, options=options, target=target, reads=reads, writes=spec.writes)
    _check_storage(step)
    return step


def _options(spec: Spec, table: Settings | None) -> object | None:
    given = table.options if table is not None else None
    if spec.options is None:
        if not given:
            return None
        rule = f"takes no options, got {given!r}"
        raise ChainError(rule, step=spec.name)
    if given is None:
        return _made(spec.options, {})
    if isinstance(given, Mapping):
        known = [field.alias for field in attrs.fields(spec.options)]
        for key in given:
            if key not in known:
                rule = f"no option {key!r}; known: {', '.join(map(str, known))}"
                raise ChainError(rule, step=spec.name)
        return _made(spec.options, given)
    return given


def _made(options: type[Any], given: Mapping[str, Any]) -> object:
    made: object = options(**given)
    return made


def _refuse_missing(spec: Spec, called: str, options: object | None) -> None:
    needed = spec.requires.get(called) or _ALIAS_REQUIRES.get(called, ())
    for key in needed:
        fields: Sequence[Any] = attrs.fields(cast("type[attrs.AttrsInstance]", type(options)))
        default = next((field.default for field in fields if field.name == key), None)
        if getattr(options, key, None) == default:
            rule = f"{called!r} needs {key} = …, for without it {spec.name!r} would be {default!r}"
            raise ChainError(rule, step=called)


def _check_storage(step: Step) -> None:
    missing = [promise for promise in _PROMISES if step.storage and not hasattr(step.target, promise)]
    if missing:
        rule = f"a storage states {', '.join(_PROMISES)}; missing: {', '.join(missing)}"
        raise ChainError(rule, step=step.name)
    if (level := step.promise("durability")) not in _LEVELS:
        rule = f"a durability is one of {', '.join(_LEVELS)}, got {level!r}"
        raise ChainError(rule, step=step.name)


def _refuse_twice(written: list[Step]) -> None:
    seen: set[str] = set()
    for step in written:
        same = _ALIASES.get(step.name, step.name)
        if same in seen:
            rule = f"stands twice; a second instance needs a name of its own, as in other:{step.spec.name}"
            raise ChainError(rule, step=step.name)
        seen.add(same)


def _refuse_items(written: list[Step], purpose: Purpose) -> None:
    wanted = "recipient" if purpose == "validate" else "envelope"
    for step in written:
        if purpose == "validate" and step.kind == "stream":
            rule = "is a stream step; at RCPT time there is no body yet"
            raise ChainError(rule, step=step.name)
        if purpose != "any" and step.spec.item not in (wanted, "any"):
            rule = f"takes a {step.spec.item}, a {purpose} chain has {wanted}s"
            raise ChainError(rule, step=step.name)


def _refuse_order(written: list[Step]) -> None:
    storage: Step | None = None
    for position, step in enumerate(written):
        if storage is not None and step.kind != "batch":
            rule = f"is a step of the {step.kind} stage and cannot stand after the storage {storage.name!r}: by then the mail is kept"
            raise ChainError(rule, step=step.name)
        for earlier in written[:position]:
            reason = step.spec.conflicts.get(earlier.spec.name)
            if reason is not None:
                rule = f"cannot stand after {earlier.name!r}: {reason}"
                raise ChainError(rule, step=step.name)
        if step.storage:
            storage = step
        if step.spec.name == "discard" and position + 1 < len(written):
            rule = f"ends a chain, got {written[position + 1].name!r} after it"
            raise ChainError(rule, step=step.name)


def _refuse_no_storage(written: list[Step]) -> None:
    # A batch step that writes something prepares; one that writes nothing is where mails end.
    if written[-1].spec.name == "discard" or any(
        step.storage or (step.kind == "batch" and not step.writes) for step in written
    ):
        return
    names = " | ".join(step.name for step in written)
    rule = f"keeps nothing: a chain has a storage or ends in 'discard', got {names!r}"
    raise ChainError(rule)


def _refuse_reads(running: list[Step]) -> None:
    written: set[str] = {"received"}
    for position, step in enumerate(running):
        for name in step.reads:
            if name not in written:
                later = [other.name for other in running[position:] if name in other.writes]
                writer = (
                    f"{later[0]!r} writes it, but runs later" if later else "no step of the chain writes it"
                )
                rule = f"reads {name!r}, which nothing earlier writes ({writer})"
                raise ChainError(rule, step=step.name)
        written.update(step.writes)


def _warnings(batch: tuple[Step, ...]) -> list[str]:
    storages = [step for step in batch if step.storage]
    return [
        f"{step.name}: keeps what the later storage {storages[-1].name!r} may refuse; let it expire, or put it last"
        for step in storages[:-1]
        if step.promise("lasting")
    ]


def _explained(step: Step) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": step.name,
        "type": step.spec.name,
        "stage": step.kind,
        "reads": list(step.reads),
        "writes": list(step.writes),
        "may_reject": step.spec.rejects,
    }
    if step.storage:
        told["storage"] = {promise: step.promise(promise) for promise in _PROMISES}
    return told


def _used(use: str, name: str) -> Spec:
    module, _, attribute = use.partition(":")
    if not module or not attribute:
        rule = f"use is 'module:name', got {use!r}"
        raise ChainError(rule, step=name)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return spec_of(found, name)
    except (ImportError, AttributeError, TypeError) as error:
        rule = f"use = {use!r} cannot be loaded: {error}"
        raise ChainError(rule, step=name) from error


def _import(module: str, name: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        rule = f"cannot be loaded ({error}); its extra is not installed, see 'Dependencies' in the README"
        raise ChainError(rule, step=name) from error
