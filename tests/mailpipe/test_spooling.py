"""The spool: answered when the journal has a mail, delivered when the storages can; on a real clock."""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from dispatcher.stores import Shelf, SQLiteView
from mailpipe.bodies import Spool, SpoolOptions
from mailpipe.config import GatewayConfig, RetryConfig, SpoolConfig
from mailpipe.envelope import Envelope, MemoryBody, Recipient, Session
from mailpipe.errors import Deferred, Rejected
from mailpipe.gateway import DiskSpace, Gateway
from mailpipe.gateway.deadletters import left_in
from mailpipe.gateway.journal import INLINE_MAX, QUEUE, head_of
from mailpipe.gateway.spooling import claim
from mailpipe.reply import STORE_FULL, Reply
from mailpipe.runner import Chain
from mailpipe.steps import Place, processor

NO = Reply(550, "5.7.1", "not here")
LATER = Reply(450, "4.2.0", "not now")
YES = Reply(250, "2.0.0", "OK")
SMALL = b"Subject: x\r\n\r\ntext\r\n"
LARGE = b"Subject: y\r\n\r\n" + b"0123456789abcdef\r\n" * (INLINE_MAX // 8)


@pytest.fixture
def anyio_backend() -> str:
    """A journal's thread needs real time."""
    return "asyncio"


@attrs.define(eq=False)
class Store:
    """A storage that does what it is told first, and notes what it was given."""

    act: Callable[[Any], Awaitable[Any]] | None = None
    kept: list[tuple[str, tuple[str, ...], bytes]] = attrs.field(factory=list)
    seen: list[Envelope] = attrs.field(factory=list)
    called: int = 0

    async def __call__(self, batch: Any) -> Any:
        self.called += 1
        results = await self.act(batch) if self.act is not None else None
        for position, envelope in enumerate(batch):
            if position not in batch.errors:
                self.seen.append(envelope)
                body = b"".join(envelope.body.chunks())
                self.kept.append((envelope.queue_id, envelope.rcpt_to, body))
        return results


async def down(batch: object) -> None:
    """A storage that nobody reaches."""
    raise ConnectionError


@pytest.fixture
def store() -> Store:
    """The storage of record."""
    return Store()


class House:
    """Gateways over one data folder, one after the other or at once."""

    def __init__(self, data: Path, store: Store) -> None:
        self.data, self.store = data, store
        self.spool = Spool(data / "bodies", SpoolOptions(spool_above=INLINE_MAX * 2))
        self.open: list[Gateway] = []

    async def start(
        self, process: str = "store", steps: dict[str, Any] | None = None, **spool: Any
    ) -> Gateway:
        retry = spool.pop("retry", RetryConfig(attempts=3, first=0.01, longest=0.02))
        config = GatewayConfig(
            process=process,
            spool=SpoolConfig(retry=retry, **spool),
            retry=RetryConfig(first=0.01, longest=0.05),
        )
        chain = Chain(process, steps={"store": self.store} | (steps or {}), place=Place(data=self.data))
        gateway = Gateway("g", config, chain, spool=self.spool, disk=DiskSpace(self.data, 0))
        await gateway.start()
        self.open.append(gateway)
        return gateway

    async def stop(self, gateway: Gateway) -> None:
        self.open.remove(gateway)
        await gateway.aclose(asyncio.get_running_loop().time() + 10)

    def lying(self, shelf: Shelf, journal: str = "0") -> list[tuple[dict[str, Any], str | None]]:
        with SQLiteView(self.data / "spool" / "g" / journal / "queue.db") as view:
            return [(head_of(one.payload), one.error) for one in view.peek(QUEUE, 100, shelf=shelf)]

    def files(self, journal: str = "0") -> list[str]:
        return os.listdir(self.data / "spool" / "g" / journal / "bodies")


@pytest.fixture
async def house(tmp_path: Path, store: Store) -> AsyncIterator[House]:
    """A data folder; its gateways are closed at the end."""
    made = House(tmp_path, store)
    yield made
    for gateway in list(made.open):
        await made.stop(gateway)
    assert made.spool.held == 0, "a body was not released"
    made.spool.close()


async def until(what: Callable[[], object]) -> None:
    """Wait for *what*, for ten seconds at most."""
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 - of what threads do
            await asyncio.sleep(0.005)


async def saved(gateway: Gateway, envelope: Envelope) -> Any:
    """The verdict, whether it is there at once or has to be awaited."""
    verdict = gateway.save(envelope)
    return await verdict if inspect.isawaitable(verdict) else verdict


async def sent(gateway: Gateway, body: bytes = SMALL, *to: str) -> tuple[str, Any]:
    """One mail, and its verdict."""
    session = Session(peer="192.0.2.1", helo="client.example.org", hostname="mx.example.org")
    envelope = Envelope(gateway.new_queue_id(), session, 1.0, mail_from="a@example.org")
    for address in to or ("b@example.org",):
        recipient = Recipient(address, ("NOTIFY=NEVER",), envelope, session)
        assert gateway.validate(recipient) is None
        envelope.recipients.append(recipient)
    sink = gateway.open(envelope)
    if (stall := sink.write(body)) is not None:
        await stall
    if (closing := sink.close()) is not None:
        await closing
    return envelope.queue_id, await saved(gateway, envelope)


class TestOutage:
    async def test_mail_is_taken_while_the_storage_is_down(self, house: House, store: Store) -> None:
        """And delivered once it is back, by the same process."""
        store.act = down
        gateway = await house.start()
        taken = [(await sent(gateway, body))[0] for body in (SMALL, LARGE)]
        await until(lambda: store.called > 1)
        store.act = None
        await until(lambda: len(store.kept) == 2)

        to = ("b@example.org",)
        assert sorted(store.kept) == sorted([(taken[0], to, SMALL), (taken[1], to, LARGE)])

    @pytest.mark.parametrize("body", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
    async def test_a_restart_delivers_byte_for_byte(self, house: House, store: Store, body: bytes) -> None:
        """Envelope, parameters and body are as they were."""
        store.act = down
        gateway = await house.start()
        name, answer = await sent(gateway, body, "b@example.org", "c@example.org")
        assert str(answer) == f"250 2.0.0 OK: queued as {name}"
        await house.stop(gateway)
        store.act = None
        await house.start()
        await until(lambda: store.kept)

        assert store.kept == [(name, ("b@example.org", "c@example.org"), body)]
        mail = store.seen[0]
        assert (mail.mail_from, mail.received_at, mail.recipients[0].params) == (
            "a@example.org",
            1.0,
            ("NOTIFY=NEVER",),
        )
        assert (mail.session.helo, mail.session.hostname) == ("client.example.org", "mx.example.org")

    async def test_a_large_body_is_removed_with_its_record(self, house: House, store: Store) -> None:
        """Never before, and nothing is left."""
        store.act = down
        gateway = await house.start()
        name, _ = await sent(gateway, LARGE)
        assert house.files() == [name]
        store.act = None

        await until(lambda: not house.files())
        assert store.kept[0][2] == LARGE
        assert gateway.statistics.spool is not None
        await until(lambda: gateway.statistics.spool.octets == 0)  # type: ignore[union-attr]

    async def test_what_steps_derived_is_there_after_a_restart(self, house: House, store: Store) -> None:
        """Stream and envelope steps run again for a mail that is read back."""

        @processor("size-of", writes=("size-of",))
        def size_of(envelope: Envelope) -> Any:
            total = 0
            while (chunk := (yield)) is not None:
                total += len(chunk)
            envelope.values["size-of"] = total

        store.act = down
        gateway = await house.start("size-of | hasher | store", {"size-of": size_of})
        await sent(gateway, LARGE)
        await house.stop(gateway)
        store.act = None
        await house.start("size-of | hasher | store", {"size-of": size_of})
        await until(lambda: store.kept)

        assert store.seen[0].values["size-of"] == len(LARGE)
        assert "sha256" in store.seen[0].hashes

    async def test_copies_outlive_the_session(self, house: House, store: Store) -> None:
        """They may be views of the received body, which is the session's: made again of the journal's."""

        @processor("upper", writes=("upper",))
        def upper(envelope: Envelope) -> None:
            envelope.copies["upper"] = MemoryBody(b"".join(envelope.body.chunks()).upper())

        gateway = await house.start("upper | store", {"upper": upper})
        await sent(gateway)
        await until(lambda: store.kept)

        assert store.seen[0].copies["upper"].read() == SMALL.upper()


class TestRefusals:
    async def test_envelope_steps_still_refuse_before_the_250(self, house: House, store: Store) -> None:
        """Only batch steps come after it."""

        @processor("never")
        def never(envelope: Envelope) -> None:
            raise Rejected(NO)

        gateway = await house.start("never | store", {"never": never})

        assert (await sent(gateway))[1] == NO
        assert house.lying(Shelf.READY) == house.lying(Shelf.LEASED) == []

    async def test_a_rejection_after_the_250_is_a_dead_letter(self, house: House, store: Store) -> None:
        """It is kept, with the reason; other mails pass."""

        async def reject_first(batch: Any) -> None:
            for position, envelope in enumerate(batch):
                if b"bad" in envelope.body.read():
                    batch.fail(position, Rejected(NO))

        store.act = reject_first
        gateway = await house.start()
        name, answer = await sent(gateway, b"bad\r\n")
        good, _ = await sent(gateway)
        await until(lambda: house.lying(Shelf.DEAD))

        assert answer.positive
        ((head, error),) = house.lying(Shelf.DEAD)
        assert head["name"] == name
        assert "550 5.7.1 not here" in str(error)
        await until(lambda: [one[0] for one in store.kept] == [good])

    async def test_poison_is_a_dead_letter(self, house: House, store: Store) -> None:
        """A step that fails on one mail alone is not asked for ever."""

        async def fail(batch: Any) -> None:
            raise ZeroDivisionError

        store.act = fail
        gateway = await house.start()
        await sent(gateway)

        await until(lambda: house.lying(Shelf.DEAD))

    async def test_a_deferral_is_tried_again(self, house: House, store: Store) -> None:
        """Later, until it is taken."""
        told: list[int] = []

        async def twice(batch: Any) -> None:
            told.append(1)
            if len(told) < 3:
                batch.fail(0, Deferred(LATER))

        store.act = twice
        gateway = await house.start()
        name, _ = await sent(gateway)
        await until(lambda: store.kept)

        assert store.kept[0][0] == name
        assert house.lying(Shelf.DEAD) == []

    async def test_what_is_deferred_too_often_is_a_dead_letter(self, house: House, store: Store) -> None:
        """As many attempts as configured."""

        async def never(batch: Any) -> None:
            batch.fail(0, Deferred(LATER))

        store.act = never
        gateway = await house.start()
        await sent(gateway)
        await until(lambda: house.lying(Shelf.DEAD))

        assert store.called == 3

    @pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
    async def test_recipients_that_were_not_taken_stay(self, house: House, store: Store, body: bytes) -> None:
        """Deferred ones are tried again without the others; refused ones are a dead letter of their own."""

        async def by_recipient(batch: Any) -> Any:
            if store.called > 1:
                return None
            return [(YES, LATER, NO)]

        store.act = by_recipient
        gateway = await house.start()
        name, answer = await sent(gateway, body, "yes@x.org", "later@x.org", "no@x.org")
        await until(lambda: len(store.kept) == 2 and house.lying(Shelf.DEAD))

        assert answer.positive
        assert store.kept[1] == (name, ("later@x.org",), body)
        ((head, error),) = house.lying(Shelf.DEAD)
        assert [address for address, _ in head["recipients"]] == ["no@x.org"]
        assert "no@x.org: 550" in str(error)
        await until(lambda: house.files() == ([head["name"]] if body is LARGE else []))


class TestBounds:
    async def test_a_full_journal_is_452(self, house: House, store: Store) -> None:
        """Nothing of the mail that did not fit is left; at MAIL by its declared size."""
        store.act = down
        gateway = await house.start(max_size=len(LARGE) + 5000)
        await sent(gateway, LARGE)

        assert (await sent(gateway, LARGE))[1] == STORE_FULL
        assert len(house.files()) == 1
        assert gateway.admit(Session(), len(LARGE)) == STORE_FULL
        assert (await sent(gateway, SMALL))[1].positive


class TestJournals:
    async def test_each_process_has_its_own(self, house: House, store: Store) -> None:
        """Two gateways at once do not share one."""
        first, second = await house.start(), await house.start()
        await sent(first)
        await sent(second)
        await until(lambda: len(store.kept) == 2)

        assert sorted(os.listdir(house.data / "spool" / "g")) == ["0", "1"]
        assert claim(house.data / "spool" / "g" / "0") is None

    async def test_an_orphaned_one_is_adopted_at_start(self, house: House, store: Store) -> None:
        """Its mails are delivered by whoever comes next."""
        store.act = down
        gateways = [await house.start(), await house.start()]
        names = {(await sent(gateway))[0] for gateway in gateways}
        for gateway in gateways:
            await house.stop(gateway)
        store.act = None
        await house.start()

        await until(lambda: {one[0] for one in store.kept} == names)

    async def test_a_body_without_a_record_is_swept(self, house: House, store: Store) -> None:
        """A process that died between the two leaves no rubbish for good; dead letters keep theirs."""

        async def reject(batch: Any) -> None:
            batch.fail(0, Rejected(NO))

        store.act = reject
        gateway = await house.start()
        name, _ = await sent(gateway, LARGE)
        await until(lambda: house.lying(Shelf.DEAD))
        await house.stop(gateway)
        (house.data / "spool" / "g" / "0" / "bodies" / "stray").write_bytes(b"x")
        await house.start()

        assert house.files() == [name]

    async def test_an_empty_adopted_journal_is_removed(
        self, house: House, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else every reload left one more; the one that takes mail stays."""
        monkeypatch.setattr("mailpipe.gateway.spooling._LOOK_EVERY", 0.02)
        gateways = [await house.start(), await house.start()]
        for gateway in gateways:
            await house.stop(gateway)
        gateway = await house.start()

        await until(lambda: os.listdir(house.data / "spool" / "g") == ["0"])
        assert (await sent(gateway))[1].positive

    async def test_one_whose_process_ends_is_adopted_meanwhile(
        self, house: House, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its mails do not wait for a restart."""
        monkeypatch.setattr("mailpipe.gateway.spooling._LOOK_EVERY", 0.02)
        store.act = down
        first = await house.start()
        name, _ = await sent(first)
        await house.start()
        await house.stop(first)
        store.act = None

        await until(lambda: [one[0] for one in store.kept] == [name])

    async def test_a_lost_body_fails_its_own_mail_alone(self, house: House, store: Store) -> None:
        """The others of its batch are delivered."""
        store.act = down
        gateway = await house.start("hasher | store")
        lost, _ = await sent(gateway, LARGE)
        good, _ = await sent(gateway, SMALL)
        await house.stop(gateway)
        (house.data / "spool" / "g" / "0" / "bodies" / lost).unlink()

        async def read(batch: Any) -> None:
            for envelope in batch:
                b"".join(envelope.body.chunks())

        store.act = read
        await house.start("hasher | store")
        await until(lambda: store.kept and house.lying(Shelf.DEAD))

        assert [one[0] for one in store.kept] == [good]
        assert house.lying(Shelf.DEAD)[0][0]["name"] == lost

    async def test_mails_that_no_gateway_reads_are_found(self, house: House, store: Store) -> None:
        """A spool turned off, a gateway renamed: the daemon says so at its start."""
        store.act = down
        gateway = await house.start()
        await sent(gateway)
        await house.stop(gateway)
        spools = house.data / "spool"

        assert left_in(spools, []) == [spools / "g" / "0"]
        assert left_in(spools, [spools / "g"]) == []
