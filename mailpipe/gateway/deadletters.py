"""
Dead letters of journals: looked at beside a living daemon, tried again or dropped by whoever has the journal.
"""

import asyncio
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from dispatcher.errors import CodecError, StoreError
from dispatcher.stores import Peeked, Shelf, SQLiteView
from mailpipe.gateway.journal import QUEUE, JournalStore, head_of
from mailpipe.gateway.spooling import claim

__all__ = ["Deed", "SpooledLetter", "act", "act_alone", "left_in", "letters_in"]

Deed = Literal["retry", "drop"]
SHELVES = (Shelf.DEAD, Shelf.QUARANTINED)
_PAGE = 200


@attrs.frozen(kw_only=True)
class SpooledLetter:
    """One dead letter of a journal."""

    name: str
    """What people call it: the queue id, with a suffix if it is what was left of a mail."""

    journal: Path
    """The journal's folder."""

    record: str
    """Its record there."""

    error: str
    failed_at: float
    """Seconds since the epoch."""

    head: dict[str, Any]
    """Facts of the mail; empty if its record is damaged."""


def letters_in(folder: Path) -> Iterator[SpooledLetter]:
    """
    The dead letters of all journals of one gateway; nothing is changed or locked.

    Args:
        folder: Of the journals.

    Raises:
        StoreError: If a journal cannot be read.
    """
    if not folder.is_dir():
        return
    for journal in sorted(folder.iterdir()):
        if not (journal / "queue.db").exists():
            continue
        with SQLiteView(journal / "queue.db") as view:
            if QUEUE not in view.queues():
                continue
            for shelf in SHELVES:
                after: str | None = None
                while page := view.peek(QUEUE, _PAGE, shelf=shelf, after=after):
                    after = page[-1].cursor
                    for one in page:
                        yield _letter(journal, one)


def left_in(spools: Path, known: Collection[Path]) -> list[Path]:
    """
    The journals with live mails (or unreadable) that nobody will deliver.

    Args:
        spools: Where gateways have their journals by default.

        known: The folders of the gateways that spool.
    """
    left = []
    for journal in sorted(spools.glob("*/*/queue.db")):
        if journal.parent.parent in known:
            continue
        try:
            with SQLiteView(journal) as view:
                waiting = QUEUE in view.queues() and view.counts(QUEUE).live.items > 0
        except StoreError:
            waiting = True  # nobody can tell that it is empty
        if waiting:
            left.append(journal.parent)
    return left


def _letter(journal: Path, one: Peeked) -> SpooledLetter:
    try:
        head = head_of(one.payload)
    except CodecError:
        head = {}
    name = head.get("name") or f"damaged-{journal.name}-{one.id}"
    return SpooledLetter(
        name=name,
        journal=journal,
        record=one.id,
        error=one.error or "",
        failed_at=one.failed_at or one.put_at,
        head=head,
    )


async def act(store: JournalStore, deed: Deed, records: Sequence[str]) -> int:
    """
    Try dead letters of an open journal again, or drop them for good.

    Args:
        store: The journal's.

        deed: ``"retry"``: to the end of the queue, attempts forgotten.

        records: Which; unknown ones: nothing.

    Returns:
        How many there were.

    Raises:
        StoreError: If the disk refuses.
    """
    if deed == "drop":
        return sum([await store.drop_dead(records, shelf) for shelf in SHELVES])
    return sum([await store.redrive(QUEUE, records, shelf=shelf) for shelf in SHELVES])


def act_alone(journal: Path, deed: Deed, records: Sequence[str]) -> int | None:
    """
    As `act`, in a journal that nobody has open.

    Returns:
        How many there were; None if a living process has it, which has to be asked.

    Raises:
        StoreError: If it cannot be opened or the disk refuses.
        OSError: If its folder cannot be used.
    """
    lock = claim(journal)
    if lock is None:
        return None

    async def work() -> int:
        async with JournalStore(journal, lambda _: None, 0) as store:
            await store.prepare()
            return await act(store, deed, records)

    try:
        return asyncio.run(work())
    finally:
        os.close(lock)
