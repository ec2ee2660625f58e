"""
What a store promises: durable queues behind one Protocol.

Theory of operation. A *record* is bytes with a little about them. It is put into one or several *queues*
at once, and from then on each queue has its own *entry* for it, at its own pace: the record is deleted
once every queue is done with it. An entry lies on exactly one *shelf* of its queue::

                put ----------+                    +--> (gone: acked, expired, replaced, dropped, purged)
                              v                    |
             +----------->  READY  --- lease --> LEASED --- dead -------> DEAD
             |                ^  ^                 |  |                     |
             |     delay over |  +---- timeout ----+  +--- unreadable --> QUARANTINED
             |             DELAYED <-- nack ------ +                        |
             +------------------------------ redrive -----------------------+

A *lease* is one delivery, and has a *tag*: an opaque string that is never used again, not even after a
restart. So whatever still holds the tag of a delivery that has ended (by its timeout, by a newer record of
the same key, by `Store.release`, by the death of the owner) acks nothing with it, and is told so.

Order: the most urgent priority first (0 is the most urgent), and first in, first out within one. A place is
kept for as long as the record is not done: what comes back (nack, timeout, restart) stands in front of
everything that was put after it, in its old order, unless it was asked to go to the end.

Embedded engines have one owner, the process that opened them. Their time, `Store.now`, is the wall clock
when the store was opened, plus the monotonic time since: setting the clock neither expires nor delays
anything while a store is open.
"""

import enum
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import attrs

from dispatcher.errors import OptionError

__all__ = [
    "Amount",
    "Capabilities",
    "Counts",
    "Dead",
    "Leased",
    "Nack",
    "Peeked",
    "Record",
    "Shelf",
    "Store",
    "Stored",
]

PRIORITY_MAX = 2**31 - 1
KEY_CHARS_MAX = 1024
ERROR_CHARS_MAX = 4096


class Shelf(enum.Enum):
    """Where an entry of a queue lies."""

    READY = "ready"
    """May be leased now."""

    DELAYED = "delayed"
    """Handed back by a nack, not due yet."""

    LEASED = "leased"
    """Being delivered."""

    DEAD = "dead"
    """Given up with an error; kept until it is redriven or purged."""

    QUARANTINED = "quarantined"
    """Cannot be read (a bad checksum), or its owner said so; kept likewise."""


def _check_key(key: object) -> None:
    if not isinstance(key, str) or not 1 <= len(key) <= KEY_CHARS_MAX:
        rule = f"has to be None or a str of 1 to {KEY_CHARS_MAX} characters"
        raise OptionError(option="Record.key", rule=rule, value=key)
    try:
        key.encode()
    except UnicodeEncodeError:  # a lone surrogate: no engine can store it
        raise OptionError(option="Record.key", rule="has to be valid Unicode", value=key) from None


def _storable(error: str) -> str:
    """Whatever an exception said, as text that every engine can keep."""
    return str(error)[:ERROR_CHARS_MAX].encode(errors="backslashreplace").decode()


def _delay(instance: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not (isinstance(value, int | float) and 0 <= value < math.inf):
        raise OptionError(option="Nack.delay", rule="has to be finite seconds of 0 or more", value=value)


@attrs.frozen(slots=True)
class Record:
    """
    What is put into queues.

    Args:
        payload: The bytes; kept as they are.

        key:
            What ``put(..., replace=True)`` goes by, and what a subscriber sees; None: it has none, and
            is never anybody's duplicate. At most 1024 characters.

        priority: 0 is the most urgent. Default: 0.

        expires_at:
            Unix seconds after which it is no longer delivered but deleted and counted. A delivery that
            has begun is not broken off. None: never.
    """

    payload: bytes
    key: str | None = attrs.field(default=None, kw_only=True)
    priority: int = attrs.field(default=0, kw_only=True)
    expires_at: float | None = attrs.field(default=None, kw_only=True)

    # One check instead of a validator per field: records are made by the hundred thousand, and most
    # have nothing but a payload.
    def __attrs_post_init__(self) -> None:
        payload: object = self.payload
        if not isinstance(payload, bytes):
            found = type(payload).__name__
            raise OptionError(option="Record.payload", rule="has to be bytes", value=found)
        if self.key is not None:
            _check_key(self.key)
        if type(self.priority) is not int or not 0 <= self.priority <= PRIORITY_MAX:
            rule = f"has to be a whole number, 0 to {PRIORITY_MAX}"
            raise OptionError(option="Record.priority", rule=rule, value=self.priority)
        at = self.expires_at
        if at is not None and not (isinstance(at, int | float) and math.isfinite(at)):
            rule = "has to be None or finite Unix seconds"
            raise OptionError(option="Record.expires_at", rule=rule, value=at)

    @property
    def size(self) -> int:
        """What it counts for in a bound by bytes: the length of its payload, 1 at least."""
        return len(self.payload) or 1


class Stored(NamedTuple):
    """One record in one queue, just put."""

    id: str
    """Names it in its queue for as long as it is there, whatever happens to it; see `Leased.id`."""

    tag: str | None = None
    """Of the delivery, if it was put with ``lease=True``."""


class Leased(NamedTuple):
    """One delivery of one record."""

    tag: str
    """Names this delivery, for ever."""

    id: str
    """Names the record in this queue: the same at every delivery, and as `Stored.id` and `Peeked.id`."""

    payload: bytes
    key: str | None
    priority: int
    attempts: int
    """Deliveries so far that counted, this one included; 1 the first time."""

    put_at: float
    """Unix seconds: when it took its place in the queue."""

    expires_at: float | None


@attrs.frozen(slots=True, kw_only=True)
class Peeked:
    """One entry as it lies, for those who look and do not take."""

    id: str
    """Names it in this queue, for `Store.redrive` and `Store.purge`; see `Leased.id`."""

    cursor: str
    """Where it lies; to page on behind it, even if it has gone by then."""

    shelf: Shelf
    payload: bytes
    """As it is stored: of a quarantined record not necessarily what was put."""

    key: str | None
    priority: int
    attempts: int
    """Deliveries so far."""

    put_at: float
    """Unix seconds."""

    expires_at: float | None
    error: str | None
    """Why it is dead or quarantined."""

    failed_at: float | None
    """Unix seconds: since when it is."""


@attrs.frozen(slots=True)
class Nack:
    """
    Hands a delivery back.

    Args:
        tag: Of the delivery.

        delay: Seconds during which it is not leased again. Default: 0.

        front:
            True: into its old place, in front of all that was put later; False: to the end. Default:
            True.

        count: False: this delivery was no attempt (it was not even tried). Default: True.
    """

    tag: str
    delay: float = attrs.field(default=0.0, kw_only=True, validator=_delay)
    front: bool = attrs.field(default=True, kw_only=True)
    count: bool = attrs.field(default=True, kw_only=True)


@attrs.frozen(slots=True)
class Dead:
    """
    Gives a delivery up: its record is kept as a dead letter.

    Args:
        tag: Of the delivery.

        error: Why, for whoever looks at the dead letters; the first 4096 characters are kept.

        quarantine: True: it cannot be read at all (no codec understands it), so it is put to the
            quarantined ones instead. Default: False.
    """

    tag: str
    error: str = attrs.field(converter=_storable)
    quarantine: bool = attrs.field(default=False, kw_only=True)


@attrs.frozen(slots=True)
class Amount:
    """How much lies on one shelf."""

    items: int = 0
    bytes: int = 0


@attrs.frozen(slots=True, kw_only=True)
class Counts:
    """
    One queue in numbers: exact, also after a restart.

    put + redriven = acked + expired + replaced + dropped + purged + died + quarantined_ever + live.
    """

    ready: Amount = Amount()
    delayed: Amount = Amount()
    leased: Amount = Amount()
    dead: Amount = Amount()
    quarantined: Amount = Amount()
    oldest_age: float | None = None
    """Seconds since the oldest that is ready, delayed or leased took its place; None: there is none."""

    put: int = 0
    """Entries so far, those that replaced another included."""

    acked: int = 0
    expired: int = 0
    replaced: int = 0
    """Those that gave way to a newer one of the same key."""

    dropped: int = 0
    """By `Store.drop_oldest`."""

    purged: int = 0
    """By `Store.purge`, while ready or delayed."""

    redelivered: int = 0
    """Leases that were not the first of their record."""

    died: int = 0
    """Became dead letters, so far."""

    quarantined_ever: int = 0
    """Were quarantined, so far."""

    redriven: int = 0
    """Came back from the dead or the quarantined, so far."""

    @property
    def live(self) -> Amount:
        """Ready, delayed and leased: what a bound by bytes holds for."""
        shelves = (self.ready, self.delayed, self.leased)
        return Amount(sum(s.items for s in shelves), sum(s.bytes for s in shelves))


@attrs.frozen(slots=True, kw_only=True)
class Capabilities:
    """What an engine can do beyond the plain queue; ``check_store`` tests what is claimed."""

    priority: bool = True
    """The more urgent first. Without: `Record.priority` other than 0 is refused (OptionError)."""

    replace: bool = True
    """``put(..., replace=True)``. Without: refused."""

    expiry: bool = True
    """`Record.expires_at`. Without: refused."""

    fanout: bool = True
    """One `Store.put` into several queues, all or nothing. Without: refused."""

    peek: bool = True
    """`Store.peek` at every shelf, dead letters by id. Without: `Store.peek` is refused."""


class Store(Protocol):
    """
    Durable queues; the contract that every engine keeps.

    - **Whole or not at all.** Every call is one step: it has happened completely when it returns, and
      not at all when it raises. A cancelled call happened completely or not at all; a lease whose
      caller was cancelled is handed back by itself, uncounted.
    - **Confirmed on return.** What `put`, `settle` and the like have done when they return survives
      whatever the engine's durability names. An attempt begun may be forgotten with the power, not
      with the process.
    - **At least once.** A record that was put is leased again and again until a delivery of it is
      acked (or given up, or it expires, or a newer one of its key replaces it). Once an ack is
      confirmed, its record is never leased again in that queue.
    - **One live delivery.** A record is leased by one at a time in each queue.
    - **Nothing is in the way.** A record that cannot be read goes to the quarantined, is counted and
      logged, and the lease goes on with the next.
    - **Errors** are `StoreError`'s kin, or `OptionError` for arguments that break a rule; a call on a
      queue that does not exist raises `UnknownQueue`. Calls before ``async with`` or after `aclose`
      raise `StoreClosed`.

    An engine is opened by ``async with`` and belongs to that event loop. Everything may be called by
    any number of tasks at once.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; known before it is opened."""
        ...

    def now(self) -> float:
        """The time by which it expires, delays and times out, as Unix seconds; never goes back while open."""
        ...

    async def __aenter__(self) -> Self:
        """
        Open it, and void what a dead owner had leased: back in its place, that attempt counted.

        Raises:
            StoreOwned: If another living process has it open.
            StoreVersionError: If it was written by a version that this one does not understand.
            StoreCorrupt: If it is damaged beyond single records, or is something else.
            StoreUnwritable: If it cannot be written to.
            StoreTrouble: Full disk, I/O errors.
        """
        ...

    async def __aexit__(self, *exc: object) -> None:
        """`aclose`."""
        ...

    async def aclose(self) -> None:
        """Finish the calls that wait, and close; also when cancelled. Again: nothing."""
        ...

    # -- queues

    async def create(self, *queues: str) -> None:
        """Make these queues, empty; those that exist stay as they are."""
        ...

    async def remove(self, *queues: str) -> None:
        """Delete these queues with all that lies in them; leases in them are void. Unknown ones: nothing."""
        ...

    async def queues(self) -> Sequence[str]:
        """Names of all queues, sorted."""
        ...

    # -- in

    async def put(
        self,
        records: Sequence[Record],
        queues: Sequence[str],
        *,
        replace: bool = False,
        front: bool = False,
        lease: bool = False,
        bytes_max: int | None = None,
    ) -> Sequence[Stored]:
        """
        Put all of *records* into all of *queues*, or nothing anywhere.

        Args:
            records: In this order. None is allowed, and does nothing.

            queues: Each at most once. None is allowed: nobody wants it, nothing is stored.

            replace:
                The newest wins, for each queue by itself and each record with a key. If the queue has
                one of that key which

                - is not there (never was, is acked, is quarantined): the new one is put at the end;
                - is **ready or delayed**: it is replaced where it stands, keeping its place even if the
                  new one is less urgent (then also its old priority); if the new one is more urgent,
                  it is put at the end of its own, more urgent level. The new one's attempts begin anew,
                  and it is ready;
                - is **leased**: its delivery is void (its tag does nothing any more, so the old record
                  never comes back), and the new one is put at the end;
                - is **dead**: it is deleted, for to redrive it would deliver it after the newer one, and
                  the new one is put at the end.

                Of several of one key in *records* the last wins. One of the first three shelves that was
                replaced is counted; a record without a key replaces nothing.

            front:
                Before everything that is in the queues (of the same priority), in this order among
                themselves; their `Leased.put_at` is then not later than that of the first behind them.
                Without *replace*.

            lease:
                Take them at once, as by `lease`: they are stored, this is attempt 1, and it lasts until
                settled or as long as the owner lives. Does not look at what is ready. Without *replace*.

            bytes_max: Refuse if any of *queues* would then hold more live bytes (`Counts.live`).

        Returns:
            One for each record and queue: all queues of the first record, then of the second.

        Raises:
            QueueFull: If it would break *bytes_max*; nothing was stored.
            UnknownQueue: If one of *queues* does not exist; nothing was stored.
            OptionError: If *queues* names one twice, *replace* is combined, or what is asked for is
                not among the `capabilities`.
        """
        ...

    async def wait_room(self, queues: Sequence[str], size: int, bytes_max: int) -> None:
        """
        Wait until *size* more bytes fit into each of *queues* within *bytes_max*; a hint, put() decides.

        Raises:
            UnknownQueue: Also if one is removed meanwhile.
        """
        ...

    async def drop_oldest(self, queue: str, size: int) -> Sequence[Peeked]:
        """
        Delete until at least *size* bytes are gone, or nothing ready or delayed is left.

        Of the least urgent the oldest first; what is delayed goes last. Leased ones stay.

        Returns:
            What went, in this order.
        """
        ...

    # -- out

    async def lease(
        self, queue: str, limit: int, *, bytes_max: int | None = None, ack_timeout: float | None = None
    ) -> Sequence[Leased]:
        """
        Take up to *limit* records that are ready, in order; does not wait.

        Args:
            queue: Of which queue.

            limit: 1 or more.

            bytes_max: Stop before the sum of the sizes is larger; one record is taken in any case.

            ack_timeout: Seconds, more than 0, until they are ready again (in their place, the attempt
                counted) unless settled or extended. None: as long as the owner lives.

        Returns:
            None or more.
        """
        ...

    async def wait_ready(self, queue: str) -> None:
        """
        Wait until there may be something to lease; a hint, another may take it first.

        Raises:
            UnknownQueue: Also if it is removed meanwhile.
        """
        ...

    async def settle(
        self, acks: Sequence[str] = (), nacks: Sequence[Nack] = (), dead: Sequence[Dead] = ()
    ) -> Sequence[str]:
        """
        End deliveries, of any queues, in one transaction.

        Returns:
            The tags that did nothing: their deliveries had ended before, or never were. The others
            are settled nonetheless. A tag named twice counts the first time (acks, nacks, dead).
        """
        ...

    async def extend(self, tags: Sequence[str], ack_timeout: float | None) -> Sequence[str]:
        """
        Let the timeouts of these deliveries begin anew, *ack_timeout* seconds from now; None: take them off.

        Returns:
            The tags that did nothing, as of `settle`.
        """
        ...

    async def release(self, queue: str) -> int:
        """Void all leases of *queue*: back in their places, attempts counted. Returns how many."""
        ...

    # -- care

    async def peek(
        self, queue: str, limit: int, *, shelf: Shelf = Shelf.READY, after: str | None = None
    ) -> Sequence[Peeked]:
        """
        Look at up to *limit* entries of one shelf, in the order of leases; changes nothing.

        Args:
            queue: Of which queue.

            limit: 1 or more.

            shelf: Which. The others than READY: the oldest first.

            after: Go on behind this `Peeked.cursor` of the same shelf; None: from the front.
        """
        ...

    async def counts(self, queue: str) -> Counts:
        """The queue in numbers, at this moment: what is due or has expired is taken care of first."""
        ...

    async def sweep(self) -> int:
        """Delete what has expired, in all queues, whether or not somebody leases from them. Returns how many."""
        ...

    async def redrive(
        self, queue: str, ids: Sequence[str] | None = None, *, shelf: Shelf = Shelf.DEAD
    ) -> int:
        """
        Put dead (or quarantined) ones back to the end of *queue*, attempts at 0.

        Args:
            queue: Of which queue.

            ids: Which; None: all of *shelf*. Unknown ones: nothing.

            shelf: DEAD or QUARANTINED.

        Returns:
            How many came back.
        """
        ...

    async def purge(self, queue: str, ids: Sequence[str] | None = None, *, shelf: Shelf = Shelf.DEAD) -> int:
        """Delete what lies on *shelf* (not LEASED), or only *ids* of it. Returns how many."""
        ...
