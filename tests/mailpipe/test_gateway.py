"""The path of a mail: what is answered, when, and what is left behind; on a clock that jumps."""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from dispatcher import Batch
from dispatcher.testing import jumping_asyncio
from mailpipe.bodies import HeldBody, Spool, SpoolOptions
from mailpipe.config import FullConfig, GatewayConfig, RetryConfig
from mailpipe.envelope import Envelope, Recipient, Session
from mailpipe.errors import Deferred, Discarded, Rejected
from mailpipe.gateway import DiskSpace, Gateway, channel_options
from mailpipe.reply import OK, STORE_FULL, TOO_MANY_RECIPIENTS, TROUBLE, Reply
from mailpipe.runner import Chain
from mailpipe.steps import processor

SECRET = "secret text"
NO = Reply(550, "5.7.1", "not here")
LATER = Reply(450, "4.2.0", "not now")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Seconds pass when nothing else can."""
    return jumping_asyncio()


@attrs.define(eq=False)
class Store:
    """A storage that keeps what it is given, and does what it is told first."""

    act: Callable[[Any], Awaitable[Any]] | None = None
    kept: list[Envelope] = attrs.field(factory=list)
    batches: list[int] = attrs.field(factory=list)

    async def __call__(self, batch: Any) -> Any:
        self.batches.append(len(batch))
        results = await self.act(batch) if self.act is not None else None
        failed = set(batch.errors)
        self.kept += [envelope for position, envelope in enumerate(batch) if position not in failed]
        return results


@pytest.fixture
def store() -> Store:
    """The storage of record."""
    return Store()


@pytest.fixture
async def make(tmp_path: Path, store: Store) -> AsyncIterator[Callable[..., Awaitable[Gateway]]]:
    """Start a gateway over *store*; it is closed at the end."""
    made: list[Gateway] = []
    spool = Spool(tmp_path / "bodies", SpoolOptions(spool_above=1000))

    async def start(process: str = "store", steps: dict[str, Any] | None = None, **options: Any) -> Gateway:
        options.setdefault("disk", DiskSpace(tmp_path, 0))
        disk = options.pop("disk")
        own = {"store": store} | (steps or {})
        config = GatewayConfig(process=process, **options)
        validate = Chain(config.validate, steps=own) if config.validate else None
        gateway = Gateway("g", config, Chain(process, steps=own), spool=spool, disk=disk, validate=validate)
        await gateway.start()
        made.append(gateway)
        return gateway

    yield start
    for gateway in made:
        await gateway.aclose(asyncio.get_running_loop().time() + 60)
    assert spool.held == 0, "a body was not released"
    spool.close()


async def received(gateway: Gateway, *chunks: bytes) -> Envelope:
    """One mail, up to its dot."""
    session = Session(peer="192.0.2.1", helo="client.example.org")
    envelope = Envelope(gateway.new_queue_id(), session, 1.0, mail_from="a@example.org")
    assert gateway.admit(session, 0) is None
    recipient = Recipient("b@example.org", (), envelope, session)
    assert gateway.validate(recipient) is None
    envelope.recipients.append(recipient)
    sink = gateway.open(envelope)
    for chunk in chunks or (b"Subject: x\r\n\r\n", b"text\r\n"):
        if (stall := sink.write(chunk)) is not None:
            await stall
    if (closing := sink.close()) is not None:
        await closing
    return envelope


async def saved(gateway: Gateway, envelope: Envelope) -> Any:
    """The verdict, whether it is there at once or has to be awaited."""
    verdict = gateway.save(envelope)
    return await verdict if inspect.isawaitable(verdict) else verdict


class TestVerdict:
    async def test_the_250_names_the_queue_id(self, make: Any, store: Store) -> None:
        """As other programs parse it."""
        gateway = await make()
        envelope = await received(gateway)

        assert str(await saved(gateway, envelope)) == f"250 2.0.0 OK: queued as {envelope.queue_id}"
        assert store.kept == [envelope]

    async def test_no_250_before_the_commit(self, make: Any, store: Store) -> None:
        """Law 2: the reply waits for the storage to return."""
        committed = asyncio.Event()

        async def wait(batch: object) -> None:
            await committed.wait()

        store.act = wait
        gateway = await make()
        saving = asyncio.create_task(saved(gateway, await received(gateway)))
        await asyncio.sleep(10)
        assert not saving.done()
        committed.set()

        assert (await saving).positive

    async def test_store_trouble_is_tried_again(self, make: Any, store: Store) -> None:
        """A lost connection costs time, not the mail."""
        troubles = [ConnectionError("gone"), TimeoutError("slow")]

        async def fail(batch: object) -> None:
            if troubles:
                raise troubles.pop()

        store.act = fail
        gateway = await make()

        assert (await saved(gateway, await received(gateway))).positive
        assert len(store.batches) == 3

    async def test_lasting_store_trouble_is_451_at_save_timeout(self, make: Any, store: Store) -> None:
        """Never a 250, never a 5xx, never without end."""

        async def fail(batch: object) -> None:
            raise ConnectionError(SECRET)

        store.act = fail
        gateway = await make(save_timeout=25.0)
        loop = asyncio.get_running_loop()
        began = loop.time()

        answer = await saved(gateway, await received(gateway))
        assert answer == TROUBLE
        assert "secret" not in str(answer)
        assert 25.0 <= loop.time() - began <= 25.1
        assert store.kept == []

    async def test_poison_is_451(self, make: Any, store: Store) -> None:
        """An error that is no store trouble is ours too, and told at once."""

        async def fail(batch: object) -> None:
            raise KeyError(SECRET)

        store.act = fail
        gateway = await make()
        answer = await saved(gateway, await received(gateway))

        assert answer.code == 451
        assert "secret" not in str(answer)

    @pytest.mark.parametrize(
        ("error", "reply"),
        [(Rejected(NO), NO), (Deferred(LATER), LATER), (Discarded(), Reply(250, "2.0.0", "OK"))],
    )
    @pytest.mark.parametrize("stage", ["stream", "envelope", "batch"])
    async def test_what_a_step_says_is_the_reply(
        self, stage: str, error: Exception, reply: Reply, make: Any, store: Store
    ) -> None:
        """In each stage, and then the mail is kept nowhere."""

        def stream(envelope: Envelope) -> Any:
            while (yield) is not None:
                pass
            raise error

        def envelope_(envelope: Envelope) -> None:
            raise error

        async def batch_(batch: Any) -> None:
            for position in range(len(batch)):
                batch.fail(position, error)

        steps = {"stream": stream, "envelope": envelope_, "batch": batch_}
        gateway = await make(f"{stage} | store", {stage: steps[stage]})

        assert await saved(gateway, await received(gateway)) == reply
        assert store.kept == []

    async def test_what_waits_for_nothing_is_answered_at_once(self, make: Any) -> None:
        """No task and no turn of the loop for a chain of inline steps, whichever of them answers."""

        @processor("refuses", inline=True)
        def refuses(envelope: Envelope) -> None:
            raise Rejected(NO)

        @processor("waits")
        async def waits(envelope: Envelope) -> None:
            await asyncio.sleep(0)

        for process, told in (("discard", OK), ("refuses | discard", NO)):
            gateway = await make(process, {"refuses": refuses})
            assert gateway.save(await received(gateway)) == told
            assert gateway.statistics.open_mails == 0
        gateway = await make("waits | refuses | discard", {"waits": waits, "refuses": refuses})
        later = gateway.save(await received(gateway))
        assert inspect.isawaitable(later)
        assert await later == NO

    async def test_only_the_marked_mail_of_a_batch_is_refused(self, make: Any, store: Store) -> None:
        """Everybody gets their own verdict."""

        async def refuse(batch: Any) -> None:
            for position, envelope in enumerate(batch):
                if len(envelope.body) == 3:
                    batch.fail(position, Rejected(NO))

        store.act = refuse
        gateway = await make()
        mails = [await received(gateway, b"x" * size) for size in (1, 2, 3, 4)]
        answers = await asyncio.gather(*(saved(gateway, mail) for mail in mails))

        assert [answer.code for answer in answers] == [250, 250, 550, 250]
        assert store.kept == [mails[0], mails[1], mails[3]]

    async def test_a_tuple_is_one_reply_for_each_recipient(self, make: Any, store: Store) -> None:
        """LMTP's verdicts come through as they are."""

        async def each(batch: Any) -> list[tuple[Reply, ...]]:
            return [(NO,) for _ in batch]

        store.act = each
        gateway = await make()

        assert await saved(gateway, await received(gateway)) == (NO,)


class TestTimeout:
    async def test_an_attempt_gets_a_moment_for_its_verdict(self, make: Any, store: Store) -> None:
        """At save_timeout a commit may be a blink away: its 250 is worth up to five seconds."""
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def down_for_nine_seconds(batch: object) -> None:
            if loop.time() - began < 9:
                raise ConnectionError
            await asyncio.sleep(4)

        store.act = down_for_nine_seconds
        gateway = await make(save_timeout=10.0, retry=RetryConfig(first=0.1, longest=0.1))

        assert (await saved(gateway, await received(gateway))).positive
        assert 13.0 <= loop.time() - began <= 13.2

    async def test_a_waiting_mail_is_withdrawn(self, make: Any, store: Store) -> None:
        """Behind an attempt that hangs: 451 at save_timeout, and never stored."""
        release = asyncio.Event()

        async def hang(batch: object) -> None:
            await shielded(release)

        store.act = hang
        gateway = await make(save_timeout=10.0, max_leases=1, batch_items_max=1)
        first = asyncio.create_task(saved(gateway, await received(gateway)))
        await asyncio.sleep(1)
        second = await received(gateway)

        assert await saved(gateway, second) == TROUBLE
        release.set()
        await first
        await asyncio.sleep(30)
        assert second not in store.kept

    async def test_save_timeout_counts_from_the_dot(self, make: Any, store: Store) -> None:
        """Waiting for room is waiting too: a mail between attempts is withdrawn when its own time is up."""
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def slow_then_down(batch: object) -> None:
            if loop.time() - began < 3:
                await asyncio.sleep(3)
            else:
                raise ConnectionError

        store.act = slow_then_down
        gateway = await make(
            full_behavior=FullConfig(max_items=1),
            batch_items_max=1,
            save_timeout=5.0,
            retry=RetryConfig(first=1000.0, longest=1000.0),
        )
        first = asyncio.create_task(saved(gateway, await received(gateway)))
        await asyncio.sleep(0.001)
        second = await received(gateway)

        assert await saved(gateway, second) == TROUBLE
        assert 5.0 <= loop.time() - began <= 5.1
        assert (await first).positive
        assert second not in store.kept

    async def test_what_is_stored_after_its_451_is_told_in_the_log(
        self, make: Any, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The client sends it again; the operator sees why there are two."""
        release = asyncio.Event()

        async def hang(batch: object) -> None:
            await shielded(release)

        store.act = hang
        gateway = await make(save_timeout=10.0)
        envelope = await received(gateway)
        loop = asyncio.get_running_loop()
        began = loop.time()

        assert await saved(gateway, envelope) == TROUBLE
        assert 15.0 <= loop.time() - began <= 15.1
        assert isinstance(envelope.body, HeldBody)
        assert len(envelope.body.read()), "the running step still needs the body"
        release.set()
        await gateway.wait_idle(loop.time() + 60)
        assert store.kept == [envelope]
        assert gateway.statistics.late == 1
        (line,) = [record for record in caplog.records if "stored after all" in record.message]
        assert line.__dict__["fields"]["queue_id"] == envelope.queue_id

    async def test_a_cancelled_save_leaves_the_commit_alone(self, make: Any, store: Store) -> None:
        """A client that vanishes after the dot: the mail is stored."""
        release = asyncio.Event()

        async def hang(batch: object) -> None:
            await release.wait()

        store.act = hang
        gateway = await make()
        envelope = await received(gateway)
        saving = asyncio.create_task(saved(gateway, envelope))
        await asyncio.sleep(1)
        saving.cancel()
        await asyncio.sleep(1)
        assert gateway.statistics.open_mails == 1, "the running step still needs the body"
        release.set()
        await gateway.wait_idle(asyncio.get_running_loop().time() + 60)

        assert store.kept == [envelope]


class TestBeforeTheDot:
    async def test_an_aborted_mail_leaves_nothing(self, make: Any, store: Store) -> None:
        """Neither memory (the fixture looks), nor a count."""
        aborted = []

        def stream(envelope: Envelope) -> Any:
            try:
                while (yield) is not None:
                    pass
            except GeneratorExit:
                aborted.append(envelope)
                raise

        gateway = await make("stream | store", {"stream": stream})
        envelope = Envelope(gateway.new_queue_id(), Session(), 1.0)
        sink = gateway.open(envelope)
        sink.write(b"half")
        assert gateway.statistics.open_mails == 1
        sink.abort()

        assert aborted == [envelope]
        assert gateway.statistics.open_mails == 0
        assert store.batches == []

    async def test_queue_ids_sort_by_time_and_differ(self, make: Any) -> None:
        """26 characters, and never the same twice."""
        gateway = await make()
        made = [gateway.new_queue_id() for _ in range(1000)]

        assert len(set(made)) == 1000
        assert {len(one) for one in made} == {26}


class TestFull:
    async def test_short_of_disk_is_452_at_mail(self, make: Any, tmp_path: Path) -> None:
        """Told before the client sends anything."""
        gateway = await make(disk=DiskSpace(tmp_path, 1 << 62))

        assert gateway.admit(Session(), 0) == STORE_FULL

    async def test_a_full_channel_holds_its_sender_and_refuses_the_next(
        self, make: Any, store: Store
    ) -> None:
        """Backpressure for who is in, 452 for who comes, nothing dropped."""
        release = asyncio.Event()

        async def hang(batch: object) -> None:
            await release.wait()

        store.act = hang
        full = FullConfig(max_items=2)
        gateway = await make(full_behavior=full, batch_items_max=2, max_leases=1)
        mails = [await received(gateway) for _ in range(3)]
        saving = [asyncio.create_task(saved(gateway, mail)) for mail in mails]
        await asyncio.sleep(1)

        assert gateway.admit(Session(), 0) == STORE_FULL
        release.set()
        assert [answer.code for answer in await asyncio.gather(*saving)] == [250, 250, 250]
        assert gateway.admit(Session(), 0) is None

    async def test_no_room_until_save_timeout_is_451(self, make: Any, store: Store) -> None:
        """A sender that is never let in has left nothing."""
        release = asyncio.Event()

        async def hang(batch: object) -> None:
            await shielded(release)

        store.act = hang
        gateway = await make(full_behavior=FullConfig(max_items=1), batch_items_max=1, save_timeout=5.0)
        first = asyncio.create_task(saved(gateway, await received(gateway)))
        await asyncio.sleep(1)
        late = await received(gateway)

        assert await saved(gateway, late) == TROUBLE
        release.set()
        await first
        assert late not in store.kept


def recipients(gateway: Gateway, *addresses: str, lmtp: bool = False) -> list[Recipient]:
    """Recipients of one mail, not yet judged."""
    session = Session(lmtp=lmtp)
    envelope = Envelope(gateway.new_queue_id(), session, 1.0)
    gateway.open(envelope).abort()
    return [Recipient(address, (), envelope, session) for address in addresses]


async def judged(gateway: Gateway, *asked: Recipient) -> list[Reply | None]:
    """The verdicts, asked for as the receiver does: all before one is awaited."""
    verdicts = [gateway.validate(recipient) for recipient in asked]
    return [
        verdict if verdict is None or isinstance(verdict, Reply) else await verdict for verdict in verdicts
    ]


class TestValidate:
    async def test_all_recipients_waiting_are_asked_about_at_once(self, make: Any) -> None:
        """One query for many; each gets its own reply, the step's own words."""
        asked: list[list[str]] = []

        async def known(batch: Batch[Recipient]) -> None:
            asked.append([recipient.address for recipient in batch])
            for position, recipient in enumerate(batch):
                if recipient.address.startswith("no"):
                    batch.fail(position, Rejected(NO))

        gateway = await make(validate="known", steps={"known": known})
        three = recipients(gateway, "a@x", "nobody@x", "b@x")
        verdicts = [asyncio.ensure_future(gateway.validate(one)) for one in three]

        assert await asyncio.gather(*verdicts) == [None, NO, None]
        assert sorted(address for batch in asked for address in batch) == ["a@x", "b@x", "nobody@x"]
        assert len(asked) < 3

    async def test_an_envelope_step_judges_one(self, make: Any) -> None:
        """A function of ten lines is enough."""

        @processor("judge", inline=True)
        def judge(recipient: Recipient) -> None:
            if recipient.address == "nobody@x":
                raise Deferred(LATER)

        gateway = await make(validate="judge", steps={"judge": judge})

        assert await judged(gateway, *recipients(gateway, "a@x", "nobody@x")) == [None, LATER]

    @pytest.mark.parametrize("error", [ConnectionError("secret"), KeyError("secret"), None])
    async def test_trouble_is_451_within_validate_timeout(self, error: Exception | None, make: Any) -> None:
        """A table that is down never makes a user unknown."""

        async def known(batch: Batch[Recipient]) -> None:
            if error is None:
                await asyncio.sleep(1000)
            else:
                raise error

        gateway = await make(validate="known", steps={"known": known}, validate_timeout=5.0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        (verdict,) = await judged(gateway, *recipients(gateway, "a@x"))

        assert verdict is not None
        assert verdict.code == 451
        assert "secret" not in str(verdict)
        assert loop.time() - began <= 5.1

    async def test_positive_answers_are_remembered_for_a_while(self, make: Any) -> None:
        """Refusals never are: who was added is known at once."""
        asked: list[str] = []

        @processor("judge", inline=True)
        def judge(recipient: Recipient) -> None:
            asked.append(recipient.address)
            if recipient.address == "nobody@x":
                raise Rejected(NO)

        gateway = await make(validate="judge", steps={"judge": judge}, cache=60.0)
        both = recipients(gateway, "a@x", "nobody@x")
        for _ in range(2):
            assert await judged(gateway, *both) == [None, NO]
        assert asked == ["a@x", "nobody@x", "nobody@x"]
        await asyncio.sleep(61)
        await judged(gateway, both[0])

        assert asked[3:] == ["a@x"]


class TestPerRecipient:
    async def test_smtp_has_one_reply_so_one_recipient(self, make: Any) -> None:
        """Where the storage decides per recipient; the next RCPT is told 452 4.5.3. LMTP has a reply for each."""

        class PerRecipient(Store):
            per_recipient = True
            durability, largest, idempotent, serial, holds_body, lasting = (
                "none",
                None,
                False,
                False,
                True,
                True,
            )

        Step = processor("each", kind="batch", storage=True)(PerRecipient)
        gateway = await make("each", {"each": Step})

        assert await judged(gateway, *recipients(gateway, "a@x", "b@x")) == [None, TOO_MANY_RECIPIENTS]
        assert await judged(gateway, *recipients(gateway, "a@x", "b@x", lmtp=True)) == [None, None]

    async def test_a_refused_recipient_leaves_the_place_free(self, make: Any) -> None:
        """The one recipient is one that was taken."""

        class PerRecipient(Store):
            per_recipient = True
            durability, largest, idempotent, serial, holds_body, lasting = (
                "none",
                None,
                False,
                False,
                True,
                True,
            )

        @processor("judge", inline=True)
        def judge(recipient: Recipient) -> None:
            if recipient.address == "nobody@x":
                raise Rejected(NO)

        Step = processor("each", kind="batch", storage=True)(PerRecipient)
        gateway = await make("each", {"each": Step, "judge": judge}, validate="judge")
        bad, good = recipients(gateway, "nobody@x", "a@x")

        assert await judged(gateway, bad) == [NO]
        assert await judged(gateway, good) == [None]


class TestClose:
    async def test_it_drains(self, make: Any, store: Store) -> None:
        """Every accepted mail has its outcome before the storages close."""

        async def slow(batch: object) -> None:
            await asyncio.sleep(3)

        store.act = slow
        gateway = await make()
        saving = asyncio.create_task(saved(gateway, await received(gateway)))
        await asyncio.sleep(1)
        await gateway.aclose(asyncio.get_running_loop().time() + 30)

        assert (await saving).positive
        assert await saved(gateway, await received(gateway)) == TROUBLE

    async def test_past_the_deadline_mails_are_given_up(self, make: Any, store: Store) -> None:
        """Their clients were, or are, told 451."""

        async def fail(batch: object) -> None:
            raise ConnectionError

        store.act = fail
        gateway = await make(save_timeout=25.0)
        saving = asyncio.create_task(saved(gateway, await received(gateway)))
        await asyncio.sleep(1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await gateway.aclose(began + 3)

        assert loop.time() - began <= 3.1
        assert await saving == TROUBLE

    async def test_it_waits_for_a_mail_between_mail_and_data(self, make: Any) -> None:
        """After a reload, whoever said MAIL to the old gateway may finish there."""
        gateway = await make()
        envelope = Envelope(gateway.new_queue_id(), Session(), 1.0)
        waiting = asyncio.create_task(gateway.wait_idle(asyncio.get_running_loop().time() + 60))
        await asyncio.sleep(1)
        assert not waiting.done()
        gateway.open(envelope).abort()

        await asyncio.wait_for(waiting, 1)

    async def test_a_storage_that_cannot_be_opened_is_told(self, make: Any) -> None:
        """The error comes out of start, and nothing is left open."""

        class Broken:
            async def setup(self, place: object) -> None:
                msg = "no such host"
                raise OSError(msg)

            async def __call__(self, batch: object) -> None: ...

        with pytest.raises(OSError, match="no such host"):
            await make("broken", {"broken": Broken()})


class TestLog:
    async def test_one_line_per_mail_with_its_queue_id(
        self, make: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Who, to whom, what came of it."""
        caplog.set_level(logging.INFO, "mailpipe.mail")
        gateway = await make()
        envelope = await received(gateway)
        await saved(gateway, envelope)

        (line,) = caplog.records
        fields = line.__dict__["fields"]
        assert fields["queue_id"] == envelope.queue_id
        assert fields["mail_from"] == "a@example.org"
        assert fields["rcpt_to"] == ["b@example.org"]
        assert fields["reply"].startswith("250 2.0.0")

    async def test_a_stream_step_that_fails_is_told_with_its_error(
        self, make: Any, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The client is told 451 and nothing more."""

        def stream(envelope: Envelope) -> Any:
            yield
            raise KeyError(SECRET)

        gateway = await make("stream | store", {"stream": stream})
        envelope = await received(gateway)

        assert (await saved(gateway, envelope)).code == 451
        (line,) = [record for record in caplog.records if record.message == "a stream step failed"]
        assert line.__dict__["fields"]["queue_id"] == envelope.queue_id
        assert SECRET in caplog.text


class TestChannelOptions:
    def test_the_contract(self) -> None:
        """Natural batching; one lease for a serial storage; bounded; fresh to save_timeout."""
        options = channel_options(GatewayConfig(), serial=True)

        assert options.batch_age_max == 0
        assert options.max_leases == 1
        assert options.item_age_max == 25.0
        assert options.send_timeout is not None
        assert options.send_timeout < 25.0
        assert channel_options(GatewayConfig(), serial=False).max_leases == 4

    def test_an_empty_body_has_a_size(self) -> None:
        """An immediate dot is a mail; a size of 0 would be refused."""
        options = channel_options(GatewayConfig(), serial=True)

        assert options.item_size is not None
        assert options.item_size(Envelope("q", Session(), 1.0)) == 1


async def shielded(event: asyncio.Event) -> None:
    """Wait, whoever cancels: as a storage does for its thread."""
    with anyio.CancelScope(shield=True):
        await event.wait()
