"""
The contract of `Storage` and `Archive` as checks, for storages of anybody's.

Each check names the promise; what it keeps has ids of its own, so a store that others use too will do.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from dispatcher import Batch
from dispatcher.buffer.batch import BufferedBatch
from mailpipe.envelope import Body, Envelope, MemoryBody
from mailpipe.runner import Chain
from mailpipe.steps import Place, StoredMail
from mailpipe.testing._envelopes import envelope

__all__ = ["check_storage"]

_HOSTILE = (
    b"",
    b"\r\n",
    b"no header at all",
    b"Subject: =?utf-8?q?=00=ED=A0=80?=\r\n\r\n",
    b"Subject: \xff\xfe\x00\r\n\r\na\rb\nc\x00d\xff.\r\n..\r\nFrom here\r\n",
    bytes(range(256)) * 64,
)


class _Marks:
    def mark_done(self, batch: Batch[Any], positions: object) -> None: ...


@attrs.frozen(eq=False)
class _Opened:
    """One opening of the storage under test."""

    chain: Chain

    @property
    def storage(self) -> Any:  # noqa: ANN401 - whatever is under test
        return self.chain.storages[0].target

    async def keep(self, *mails: Envelope, attempt: int = 1) -> dict[int, Exception]:
        """Keep *mails* as the runner would; returns the errors by position."""
        lot: BufferedBatch[Envelope] = BufferedBatch(1, 0.0, synthetic=not mails)
        lot.attempts = attempt
        batch = Batch(lot, mails, _Marks(), "key")
        await self.chain.deliver(batch)
        return dict(batch.errors)


Make = Callable[[], Any]


async def check_storage(make: Make, *, place: Place, large: int = 3_000_000, chain: str = "storage") -> None:
    """
    Check that a storage keeps the contract of `Storage`, and of `Archive` if it has ``get``.

    Args:
        make:
            Makes one, not opened, over the same medium each time: what the last one kept, the next
            one finds (unless its durability is ``"none"``).

        place: Where it is opened.

        large: Octets of the largest body tried.

        chain: The chain it stands in, where it is called ``storage``; for one that reads what
            another step writes.

    Raises:
        AssertionError: With the promise that is broken.
    """
    await _check_promises(make, place)
    async with _chain(make, place, chain) as running:
        opened = _Opened(running)
        await _check_heartbeat(opened)
        if not callable(getattr(opened.storage, "get", None)):
            return
        for check in (
            _check_octets,
            _check_envelope,
            _check_pages,
            _check_repeats,
            _check_deletes,
            _check_expiry,
        ):
            await check(opened)
        if opened.storage.largest is None or opened.storage.largest >= large:
            await _check_large(opened, large)
    await _check_reopened(make, place, chain)


def _chain(make: Make, place: Place, text: str) -> Chain:
    chain = Chain(text, steps={"storage": make()}, place=place)
    _holds(bool(chain.plan.storages), "it is a storage: registered by @processor(..., storage=True)")
    return chain


def _holds(condition: bool, promise: str) -> None:
    if not condition:
        raise AssertionError(promise)


async def _check_promises(make: Make, place: Place) -> None:
    made = make()
    _holds(
        made.durability in {"disk", "os", "none"}, f"durability is disk, os or none, got {made.durability!r}"
    )
    _holds(made.largest is None or made.largest > 0, f"largest is octets or None, got {made.largest!r}")
    for name in ("idempotent", "serial", "holds_body", "lasting"):
        _holds(isinstance(getattr(made, name), bool), f"{name} is True or False, got {getattr(made, name)!r}")
    await made.setup(place)
    await made.teardown()
    await made.teardown()


async def _check_heartbeat(opened: _Opened) -> None:
    try:
        errors: object = await opened.keep()
    except Exception as error:
        errors = error
    _holds(not errors, "an empty batch, as a heartbeat is, keeps nothing and fails nothing")


async def _received(opened: _Opened, mail: Envelope) -> bytes | None:
    found: StoredMail | None = await opened.storage.get(mail.queue_id)
    if found is None or found.body is None:
        return None
    _holds(found.body.encoding == "", "get() gives the body as received, a compressed copy undone")
    octets = b"".join(found.body.chunks())
    _holds(found.size == len(found.body) == len(octets), "size and len(body) are the octets received")
    return octets


async def _check_octets(opened: _Opened) -> None:
    mails = [envelope(body) for body in _HOSTILE]
    errors = await opened.keep(*mails)
    _holds(not errors, f"hostile octets are kept like any others, got {errors}")
    for mail in mails:
        _holds(
            await _received(opened, mail) == mail.body.read(), f"byte for byte, for {mail.body.read()[:50]!r}"
        )


async def _check_envelope(opened: _Opened) -> None:
    mail = envelope(
        "text", subject="grüße", mail_from="", rcpt_to=("b@example.org", "ü@example.org"), smtputf8=True
    )
    mail.prelude = b"Return-Path: <>\r\nReceived: from a\r\n by b; now\r\n"
    await opened.keep(mail)
    for found in [await opened.storage.get(mail.queue_id), *await _listed(opened, [mail])]:
        _holds(
            found is not None and found.queue_id == mail.queue_id, "get() and list() find it by its queue id"
        )
        _holds(found.mail_from == "", "the null sender stays the null sender")
        _holds(set(found.rcpt_to) == set(mail.rcpt_to), f"every recipient is kept, got {found.rcpt_to!r}")
        _holds(abs(found.received_at - mail.received_at) < 0.001, "received_at is kept to the millisecond")
        _holds(found.subject == "grüße", f"the subject is decoded, got {found.subject!r}")
        _holds(found.prelude == mail.prelude, "the prelude stands beside the body, as it was")
        _holds(found.size == len(mail.body), "size is the octets received")


async def _listed(opened: _Opened, mails: Sequence[Envelope], limit: int = 1000) -> list[StoredMail]:
    """Those of *mails* that list() tells, paged from before the first."""
    wanted = {mail.queue_id for mail in mails}
    after = min(wanted)[:-1]
    found: list[StoredMail] = []
    while page := await opened.storage.list(after=after, limit=limit):
        _holds(len(page) <= limit, f"list() gives at most limit={limit} mails, got {len(page)}")
        found += [mail for mail in page if mail.queue_id in wanted]
        after = page[-1].queue_id
    return found


async def _check_repeats(opened: _Opened) -> None:
    if not opened.storage.idempotent:
        return
    one, two = envelope(b"1" * 10_000), envelope(b"2")
    await opened.keep(one)
    errors = await opened.keep(one, two, attempt=2)
    _holds(not errors, f"a mail kept before, repeated among new ones, fails nothing, got {errors}")
    await opened.keep(one, two)
    ids = [mail.queue_id for mail in await _listed(opened, [one, two])]
    _holds(ids == [one.queue_id, two.queue_id], f"idempotent: a repeated batch changes nothing, got {ids}")
    _holds(await _received(opened, one) == one.body.read(), "idempotent: the body stays what it was")


async def _check_pages(opened: _Opened) -> None:
    mails = [envelope() for _ in range(5)]
    await opened.keep(*reversed(mails))
    found = await _listed(opened, mails, limit=2)
    ids = [mail.queue_id for mail in found]
    _holds(
        ids == [mail.queue_id for mail in mails], "list() is in the order of ids, each once over the pages"
    )
    _holds(all(mail.body is None for mail in found), "list() carries no bodies")


async def _check_deletes(opened: _Opened) -> None:
    gone, stays = envelope(b"x" * 200_000), envelope()
    await opened.keep(gone, stays)
    unknown = envelope().queue_id
    _holds(await opened.storage.get(unknown) is None, "get() of an unknown id is None")
    count = await opened.storage.delete([gone.queue_id, unknown])
    _holds(count == 1, f"delete() counts what there was, got {count}")
    _holds(await opened.storage.delete([]) == 0, "delete() of nothing is nothing")
    _holds(await opened.storage.get(gone.queue_id) is None, "what is deleted is gone")
    _holds(await _received(opened, stays) == stays.body.read(), "what was not deleted stays")
    await opened.keep(gone)
    _holds(await _received(opened, gone) == gone.body.read(), "what was deleted may come again")


async def _check_expiry(opened: _Opened) -> None:
    # So old that nobody else's mail is.
    old, border, young = (envelope(received_at=at) for at in (1000.0, 2000.0, 3000.0))
    await opened.keep(old, border, young)
    count = await opened.storage.expire(2000.0)
    _holds(count == 1, f"expire() deletes what is strictly older, and counts it, got {count}")
    ids = {mail.queue_id for mail in await _listed(opened, [old, border, young])}
    _holds(ids == {border.queue_id, young.queue_id}, "expire() leaves the others")
    await opened.storage.delete([border.queue_id, young.queue_id])


class _Streamed:
    """A body that is never held whole: `read` refuses, as that of a spooled one does."""

    encoding = ""

    def __init__(self, size: int) -> None:
        self._size, self._block = size, os.urandom(65_536)

    def __len__(self) -> int:
        return self._size

    def chunks(self, size: int = 65_536) -> Any:  # noqa: ANN401 - an iterator
        left = self._size
        while left > 0:
            piece = self._block[: min(left, size)]
            left -= len(piece)
            yield piece

    def read(self) -> bytes:
        msg = "a spooled body is read by chunks()"
        raise ValueError(msg)


async def _check_large(opened: _Opened, size: int) -> None:
    body: Body = _Streamed(size)
    mails = [envelope(), envelope(body), envelope(MemoryBody(os.urandom(600_000)))]
    errors = await opened.keep(*mails)
    _holds(not errors, f"a body too large to be read at once is kept by its chunks, got {errors}")
    _holds(
        await _received(opened, mails[1]) == b"".join(body.chunks()), "a large body comes back byte for byte"
    )
    _holds(await _received(opened, mails[2]) == mails[2].body.read(), "its neighbours do too")
    await opened.storage.delete([mail.queue_id for mail in mails])


async def _check_reopened(make: Make, place: Place, text: str) -> None:
    first, second = envelope(), envelope()
    async with _chain(make, place, text) as chain:
        await _Opened(chain).keep(first)
        lasts = chain.storages[0].promise("durability") != "none"
    async with _chain(make, place, text) as chain:
        opened = _Opened(chain)
        if lasts:
            _holds(
                await _received(opened, first) == first.body.read(),
                "what was kept is there when opened again",
            )
        await opened.keep(second)
        _holds(await _received(opened, second) == second.body.read(), "opened again, it takes more")
