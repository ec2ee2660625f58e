"""
What a step of a chain is: its kinds, the `processor` decorator, what a storage promises.

A step runs in one of three stages. **stream** steps tap the received octets while DATA arrives,
**envelope** steps judge one whole mail before it is submitted, **batch** steps work on many at
once; storages are batch steps that keep mails. The kind is read off the first annotation, so
that a step is an ordinary function or class and needs no base class.

Pure: imports nothing that waits, and calls no step.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_origin

import attrs

from dispatcher.buffer.batch import Batch
from mailpipe.envelope import Body, Envelope, Recipient
from mailpipe.reply import Reply

__all__ = [
    "Archive",
    "Durability",
    "Job",
    "Kind",
    "Outbox",
    "Place",
    "Result",
    "Spec",
    "Storage",
    "StoredMail",
    "processor",
    "spec_of",
]

Kind = Literal["stream", "envelope", "batch"]
Durability = Literal["none", "os", "disk"]
Result = Reply | tuple[Reply, ...]
"""What a step says of one envelope: one reply, or one per accepted recipient in their order."""

Item = Literal["envelope", "recipient", "any"]
_T = TypeVar("_T", bound=Callable[..., Any])


@attrs.frozen(kw_only=True)
class Place:
    """
    Where a step lives; handed to ``setup(place)`` by whoever opens the chain.

    Args:
        data: The data folder; relative paths in options are relative to it.

        hostname: What the gateway calls itself.

        gateway: Name of the gateway, for logs and thread names.

        reading:
            Opened for reading back only (``mailpipe list``, while a daemon may run): make nothing,
            take no lock that a writer needs.

        workers:
            How many processes write here. More than one take turns at a SQLite file, for its own
            way of waiting is to sleep longer and longer.
    """

    data: Path = attrs.field(default=Path("mail-data"), converter=Path)
    hostname: str = "localhost"
    gateway: str = "default"
    reading: bool = False
    workers: int = 1


class Storage(Protocol):
    """
    A batch step that keeps mails: what the runner and ``check`` rely on.

    Made by ``Class(options)``, which opens nothing (``check`` makes one too); `setup` opens. After
    `__call__` returned, every envelope of the batch it did not mark as failed is kept at the
    level of `durability`, and not one moment earlier.

    The batch is a view, a ``dispatcher.Batch`` of the envelopes that came to this step: its marks speak
    for this step only, its ``meta`` is this step's own and kept over retries. One call is one transaction over the unmarked envelopes: all or none. What to
    raise, and what comes of it:

    - ``Rejected``/``Deferred``/``Discarded`` by ``fail(position, …)``: that envelope alone;
    - ConnectionError, TimeoutError, a DB-API OperationalError or InterfaceError (by class name, of
      any driver), or an error with ``connection_invalidated``: store trouble. The Channel retries
      the batch, in halves from attempt 2 on;
    - anything else: bisected now, each half a call of its own. The one left over is answered
      451 4.3.0.

    An empty batch with ``synthetic`` true is a heartbeat: return None.

    A plain ``def __call__`` is called in a thread: in its own if it has
    ``async def run(self, work: Callable[[], T]) -> T`` (then batch steps right before it share that
    hop), else in a worker thread. `run`, cancelled, either has not started *work* or waits for its
    end.
    """

    @property
    def durability(self) -> Durability:
        """What a return from `__call__` means: on stable storage, in the system's hands, or neither."""
        ...

    @property
    def largest(self) -> int | None:
        """Octets of the largest body it takes; None for no bound of its own."""
        ...

    @property
    def idempotent(self) -> bool:
        """
        A call repeated with the same ``queue_id`` changes nothing.

        If not, it calls ``done(position)`` as each envelope finishes.
        """
        ...

    @property
    def serial(self) -> bool:
        """One call at a time is its best; the gateway's Channel then has one lease."""
        ...

    @property
    def holds_body(self) -> bool:
        """It keeps the octets, not only facts about them."""
        ...

    @property
    def lasting(self) -> bool:
        """
        What it took stays until somebody deletes it.

        False if it expires by itself or is addressed by content. A lasting storage must be the
        last of its chain, for a mail that a later step fails would stay in it; ``check`` warns.
        """
        ...

    async def setup(self, place: Place) -> None:
        """
        Open, make or check the schema, verify `durability`.

        Raises:
            ValueError: If the medium does not keep what the options promise (rule and value).
        """
        ...

    async def teardown(self) -> None:
        """Close; called once, after the last call ended. Never raises for being closed already."""
        ...

    def __call__(self, batch: Batch[Envelope], /) -> Any:  # noqa: ANN401 - results, or an awaitable of them
        """
        Keep the batch; sync or async.

        Returns:
            None, or one entry per item of the view: a Reply, a tuple of one Reply per accepted
            recipient, or None for the default (250).
        """
        ...


class Archive(Protocol):
    """
    The reading half of a storage that can give mails back; optional beside `Storage`.

    ``list``, ``show``, ``export``, ``delete`` of the command line and ``background`` stand on it.
    """

    async def get(self, queue_id: str) -> "StoredMail | None":
        """One mail with its body as received (a compressed copy undone), or None."""
        ...

    async def list(self, *, after: str = "", limit: int = 1000) -> "Sequence[StoredMail]":
        """
        Mails in the order of their ids, without bodies.

        Args:
            after: Only ids greater than this one; pages by the last id of the page before.

            limit: At most so many.
        """
        ...

    async def delete(self, queue_ids: Sequence[str]) -> int:
        """Delete these, the row before the body; returns how many there were."""
        ...

    async def expire(self, before: float) -> int:
        """Delete what was received earlier than *before* (seconds since the epoch); returns how many."""
        ...


@attrs.frozen(kw_only=True)
class Job:
    """Something to be done with a mail after its 250."""

    name: str
    """Which, for a storage may have jobs of several kinds."""

    queue_id: str
    attempts: int = 0
    """So many failed."""

    due_at: float = 0.0
    """Seconds since the epoch."""

    error: str = ""
    """Of the last attempt."""


class Outbox(Protocol):
    """
    The jobs that a storage keeps beside its mails; optional beside `Archive`.

    A storage with one has ``outbox`` and ``jobs``: for each mail it keeps, it writes a job of every
    name in ``jobs`` in the mail's own transaction. A job is done at least once: it is there until
    `settle` took it away. Deleting the mail deletes its jobs.
    """

    async def due(self, name: str, now: float, *, limit: int = 100) -> Sequence[Job]:
        """Jobs of that name due at *now* and not dead, the oldest mail first."""
        ...

    async def next_due(self, name: str) -> float | None:
        """When the next job of that name is due; None if there is none."""
        ...

    async def settle(
        self, *, done: Sequence[Job] = (), again: Sequence[Job] = (), dead: Sequence[Job] = ()
    ) -> None:
        """
        Note the fates of jobs, in one transaction.

        Args:
            done: Taken away.

            again: Kept with the ``attempts``, ``due_at`` and ``error`` they carry now.

            dead: Kept for people to look at, never due again until `revive`.
        """
        ...

    async def dead(self, name: str) -> Sequence[Job]:
        """Jobs of that name that were given up, the oldest mail first."""
        ...

    async def revive(self, jobs: Sequence[Job], now: float) -> int:
        """Make dead jobs due at *now*, their attempts forgotten; returns how many there were."""
        ...


@attrs.frozen(kw_only=True, eq=False)
class StoredMail:
    """One mail read back from a storage."""

    queue_id: str
    received_at: float
    mail_from: str
    rcpt_to: tuple[str, ...]
    size: int
    """Octets as received."""

    subject: str = ""
    """As the storage keeps it, decoded (RFC 2047)."""

    prelude: bytes = b""
    hashes: Mapping[str, str] = attrs.field(factory=dict)
    mail_params: tuple[str, ...] = ()
    """As `Envelope.mail_params`, where the storage keeps them; so the following."""

    rcpt_params: tuple[tuple[str, ...], ...] = ()
    """Of each recipient, in their order; empty if none had any."""

    smtputf8: bool = False
    peer: str = ""
    helo: str = ""
    user: str = ""
    tls: str = ""
    body: Body | None = None
    """As received, encoding ``""``; None where only listed."""


@attrs.frozen(kw_only=True)
class Spec:
    """What `processor` was told and found out; see there."""

    name: str
    kind: Kind
    target: Callable[..., Any]
    item: Item = "envelope"
    options: type[Any] | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    inline: bool = False
    storage: bool = False
    rejects: bool = True
    aliases: tuple[str, ...] = ()
    requires: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    conflicts: Mapping[str, str] = attrs.field(factory=dict)

    def build(self, options: object | None = None) -> Callable[..., Any]:
        """
        Make what is called: an instance of a class, the function itself.

        Raises:
            TypeError: If *options* are not of the options class.
        """
        if self.options is not None:
            options = self.options() if options is None else options
            if not isinstance(options, self.options):
                msg = f"{self.name!r} takes options of {self.options.__name__}, got {options!r}"
                raise TypeError(msg)
        elif options is not None:
            msg = f"{self.name!r} takes no options, got {options!r}"
            raise TypeError(msg)
        if not isinstance(self.target, type):
            return self.target
        return self.target() if self.options is None else self.target(options)  # type: ignore[no-any-return] # a class of steps makes steps


_SPEC = "__mailpipe_spec__"
_registered: dict[str, Spec] = {}


def processor(
    name: str,
    *,
    kind: Kind | None = None,
    options: type[Any] | None = None,
    reads: Sequence[str] = (),
    writes: Sequence[str] = (),
    inline: bool = False,
    storage: bool = False,
    rejects: bool = True,
    aliases: Sequence[str] = (),
    requires: Mapping[str, Sequence[str]] | None = None,
    conflicts: Mapping[str, str] | None = None,
) -> Callable[[_T], _T]:
    """
    Make a function or class known as the step *name*; returns it unchanged.

    Args:
        name: How a chain calls it; letters, digits, ``-`` and ``_``, in any case.

        kind:
            ``"stream"``, ``"envelope"`` or ``"batch"``. None finds it: a generator function or a
            class with ``open`` is a stream step, else the first annotation decides (``Envelope`` or
            ``Recipient``: envelope, ``Batch[…]``: batch).

        options:
            An attrs class filled from ``[processors.NAME]``. A function gets it as its second
            argument, a class as its only one.

        reads: Names that an earlier step must write (``"sha256"``, ``"compressor"``, …).

        writes: Names of what it leaves in ``values``, ``hashes`` or ``copies``.

        inline:
            A plain function is called on the event loop instead of in a thread; for those that
            take microseconds.

        storage: It keeps mails and follows `Storage`.

        rejects: It may answer `Rejected`; ``check`` names such steps after a 250 of the spool.

        aliases: Other names for the same step.

        requires: By alias, the options that must be given when a chain calls it so.

        conflicts: By earlier step, why it must not stand before this one.

    Raises:
        ValueError: If the name is not one.
        TypeError: If no kind can be found, or the target is of none.
    """

    def register(target: _T) -> _T:
        found, item = (kind, _item_of(target)) if kind is not None else _find_kind(target)
        spec = Spec(
            name=_checked_name(name),
            kind=found,
            target=target,
            item=item,
            options=options,
            reads=tuple(reads),
            writes=tuple(writes),
            inline=inline,
            storage=storage,
            rejects=rejects,
            aliases=tuple(_checked_name(alias) for alias in aliases),
            requires={alias.lower(): tuple(names) for alias, names in (requires or {}).items()},
            conflicts=dict(conflicts or {}),
        )
        setattr(target, _SPEC, spec)
        for known in (spec.name, *spec.aliases):
            _registered[known] = spec
        return target

    return register


def registered(name: str) -> Spec | None:
    """Return what `processor` made known under *name*, in lower case, or None."""
    return _registered.get(name)


def registered_names() -> list[str]:
    """All names made known so far, sorted."""
    return sorted(_registered)


def spec_of(target: Any, name: str) -> Spec:  # noqa: ANN401 - judged here
    """
    Describe a step that may never have seen `processor`: a plain SendFn is a batch step.

    Raises:
        TypeError: If *target* is neither called nor has ``open``.
    """
    spec = getattr(target, _SPEC, None)
    if isinstance(spec, Spec):
        if isinstance(target, type) or target is spec.target:
            return spec
        # An instance, made by its user: it is the step, and needs no options any more.
        return attrs.evolve(spec, name=_checked_name(name), target=target, options=None, requires={})
    if not callable(target) and not callable(getattr(target, "open", None)):
        msg = f"a step is a function, a class or a SendFn, got {target!r} for {name!r}"
        raise TypeError(msg)
    try:
        kind, item = _find_kind(target)
    except TypeError:
        kind, item = "batch", "any"
    return Spec(name=_checked_name(name), kind=kind, item=item, target=target)


def _checked_name(name: str) -> str:
    if not name or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        msg = f"a step's name is letters, digits, '-' and '_', got {name!r}"
        raise ValueError(msg)
    return name.lower()


def _find_kind(target: Callable[..., Any]) -> tuple[Kind, Item]:
    if inspect.isasyncgenfunction(target):
        msg = f"a stream step is a plain generator, {_called(target)} is an async one"
        raise TypeError(msg)
    if inspect.isgeneratorfunction(target):
        return "stream", "envelope"
    if not inspect.isroutine(target) and not _has_call(target):
        if callable(getattr(target, "open", None)):
            return "stream", "envelope"
        msg = f"a step class has open(envelope) or __call__, {_called(target)} has neither"
        raise TypeError(msg)
    first = _first_annotation(target)
    plain = getattr(get_origin(first) or first, "__name__", first)
    if isinstance(plain, str):
        # Annotations that cannot be evaluated (TYPE_CHECKING imports) arrive as text.
        plain = plain.strip("'\"").partition("[")[0].rpartition(".")[2]
    if plain == "Batch":
        return "batch", _item_of(target)
    if first is Envelope or plain == "Envelope":
        return "envelope", "envelope"
    if first is Recipient or plain == "Recipient":
        return "envelope", "recipient"
    msg = f"the first parameter of {_called(target)} says no kind (Envelope, Recipient or Batch[...]): annotate it or give kind=, got {first!r}"
    raise TypeError(msg)


def _has_call(target: Callable[..., Any]) -> bool:
    # Not hasattr: every class can be called, to make an instance.
    cls = target if inspect.isclass(target) else type(target)
    return any("__call__" in vars(base) for base in cls.__mro__)


def _item_of(target: Callable[..., Any]) -> Item:
    first = str(_first_annotation(target))
    return "recipient" if "Recipient" in first else "envelope" if "Envelope" in first else "any"


def _first_annotation(target: Callable[..., Any]) -> object:
    function: Any = target
    if not inspect.isroutine(target):
        if not _has_call(target):
            return None
        function = getattr(target, "__call__", target)  # noqa: B004 - the method itself is wanted
    try:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    except NameError:
        parameters = list(inspect.signature(function).parameters.values())
    if inspect.isclass(target):
        parameters = parameters[1:]
    return parameters[0].annotation if parameters else None


def _called(target: Callable[..., Any]) -> str:
    return getattr(target, "__qualname__", repr(target))
