"""A Chain running: taps, the envelope stage, the batch stage, and as the SendFn of a Channel."""

import threading
from collections.abc import Awaitable, Generator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from anyio import to_thread

from dispatcher import Batch, Channel, ChannelOptions, ItemFailed, RetryPolicy
from mailpipe.batchstage import Poisoned, StoreTrouble
from mailpipe.chain import ChainError, Settings, compile_chain
from mailpipe.envelope import Envelope, MemoryBody, Recipient
from mailpipe.errors import Deferred, Discarded, Rejected
from mailpipe.reply import Reply
from mailpipe.runner import Chain
from mailpipe.sharing import SharedSteps
from mailpipe.steps import Place, processor

pytestmark = pytest.mark.anyio

NO = Reply(550, "5.7.1", "no")
NATURAL: Any = ChannelOptions(batch_age_max=0, retry=RetryPolicy(wait=lambda state: 0.0))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def done(pending: Awaitable[None] | None) -> None:
    """Wait for it, if there is something to wait for."""
    if pending is not None:
        await pending


class Keep:
    """A storage that records; fails as told."""

    durability, largest, idempotent, serial, holds_body, lasting = "none", None, True, True, True, True

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.places: list[Place] = []
        self.closed = 0
        self.errors: list[Exception] = []
        self.threads: list[int] = []

    async def setup(self, place: Place) -> None:
        self.places.append(place)

    async def teardown(self) -> None:
        self.closed += 1

    def __call__(self, batch: Batch[Envelope]) -> None:
        self.threads.append(threading.get_ident())
        if self.errors:
            raise self.errors.pop(0)
        self.kept += batch


class OwnThread(Keep):
    """A storage with a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hops = 0

    async def run(self, work: Any) -> Any:
        self.hops += 1
        return await to_thread.run_sync(work)


def keeper(cls: type[Keep] = Keep) -> Any:
    """A fresh storage step."""
    return processor("keeper", kind="batch", storage=True)(type(cls.__name__, (cls,), {}))


class TestAsSendFn:
    async def test_of_any_channel(self, mail: Any) -> None:
        """All three stages, and a reply that tells the queue id."""

        def size(envelope: Envelope) -> Generator[None, bytes | None, None]:
            total = 0
            while (chunk := (yield)) is not None:
                total += len(chunk)
            envelope.values["size"] = total

        def words(envelope: Envelope) -> None:
            if "spam" in envelope.subject:
                raise Rejected(NO)

        async def post(batch: Batch[Envelope]) -> None:
            posted.extend(batch)

        posted: list[Envelope] = []
        good, bad = mail(), mail(b"Subject: spam\r\n\r\n")
        async with Chain("size | words | post", steps={"size": size, "words": words, "post": post}) as chain:
            async with Channel(chain.send, NATURAL) as channel:
                assert await channel.call(good) == Reply(250, "2.0.0", f"OK: queued as {good.queue_id}")
                with pytest.raises(ItemFailed) as caught:
                    await channel.call(bad)
            counts = chain.statistics()

        assert isinstance(caught.value.error, Rejected)
        assert posted == [good]
        assert good.values["size"] == len(good.body)
        assert (counts.passed, counts.rejected, counts.poisoned) == (1, 1, 0)

    async def test_store_trouble_is_the_channels(self, mail: Any) -> None:
        """Its retry policy tries again, and each stage before is not asked twice."""
        judged = []

        def judge(envelope: Envelope) -> None:
            judged.append(envelope.queue_id)

        store = Keep()
        store.errors = [ConnectionResetError(), TimeoutError()]
        steps = {"judge": judge, "store": store}
        async with Chain("judge | store", steps=steps) as chain, Channel(chain.send, NATURAL) as channel:
            envelope = mail()
            assert (await channel.call(envelope)).positive

        assert store.kept == [envelope]
        assert judged == [envelope.queue_id]

    async def test_given_up_it_is_transient_still(self, mail: Any) -> None:
        """What the gateway turns into 451, never 5xx."""
        store = Keep()
        store.errors = [ConnectionResetError()]
        once: Any = ChannelOptions(batch_age_max=0, retry=None)
        async with Chain("store", steps={"store": store}) as chain, Channel(chain.send, once) as channel:
            with pytest.raises(ItemFailed) as caught:
                await channel.call(mail())

        assert isinstance(caught.value.error, StoreTrouble)

    async def test_one_poisoned_mail_fails_alone(self, mail: Any) -> None:
        """Its neighbours in the batch get their 250, it gets 451 4.3.0."""
        poison = mail()

        def store(batch: Batch[Envelope]) -> None:
            if poison in batch:
                msg = "duplicate key, at /srv/secret"
                raise ValueError(msg)

        mails = [mail(), poison, mail(), mail()]
        options: Any = ChannelOptions(batch_items_max=4, batch_age_max=60.0)
        async with Chain("store", steps={"store": store}) as chain, Channel(chain.send, options) as channel:
            receipts = [await channel.submit(envelope) for envelope in mails]
            outcomes = [await receipt.wait() for receipt in receipts]

        errors = [outcome.error for outcome in outcomes]
        assert [type(error).__name__ for error in errors] == ["NoneType", "Poisoned", "NoneType", "NoneType"]
        assert isinstance(errors[1], Poisoned)
        assert "secret" not in str(errors[1].reply)
        assert chain.statistics().poisoned == 1

    async def test_discarded_is_answered_250(self, mail: Any) -> None:
        """And reaches no storage."""
        store = Keep()

        async def drop(batch: Batch[Envelope]) -> None:
            batch.fail(0, Discarded())

        async with (
            Chain("drop | store", steps={"drop": drop, "store": store}) as chain,
            Channel(chain.send, NATURAL) as channel,
        ):
            assert (await channel.call(mail())).code == 250

        assert store.kept == []

    async def test_recipients_are_items_too(self, mail: Any) -> None:
        """A validate chain: 250 2.1.5, or the step's own reply."""

        def known(recipient: Recipient) -> None:
            if recipient.address.startswith("x"):
                raise Rejected(Reply(550, "5.1.1", "no such user"))

        plan = compile_chain("known", steps={"known": known}, purpose="validate")
        async with Chain(plan) as chain, Channel(chain.send, NATURAL) as channel:
            good, bad = mail(rcpt_to=("a@x.org", "x@x.org")).recipients
            assert await channel.call(good) == Reply(250, "2.1.5", "OK")
            with pytest.raises(ItemFailed, match="no such user"):
                await channel.call(bad)

    async def test_cancelled_amidst_what_is_through_is_not_sent_again(self, mail: Any) -> None:
        """A relay marks each mail as it finishes; a timeout then asks for the others only."""
        calls = []

        async def relay(batch: Batch[Envelope]) -> None:
            calls.append([envelope.queue_id for envelope in batch])
            batch.done(0)
            if len(calls) == 1:
                await anyio.sleep_forever()

        mails = [mail(), mail()]
        options: Any = attrs.evolve(NATURAL, batch_items_max=2, batch_age_max=60.0, send_timeout=1.0)
        async with Chain("relay", steps={"relay": relay}) as chain, Channel(chain.send, options) as channel:
            receipts = [await channel.submit(envelope) for envelope in mails]
            outcomes = [await receipt.wait() for receipt in receipts]

        assert all(outcome.unwrap() is None or outcome.unwrap().positive for outcome in outcomes)
        assert calls == [[mails[0].queue_id, mails[1].queue_id], [mails[1].queue_id]]

    async def test_cancelled_amidst_without_a_retry(self, mail: Any) -> None:
        """What is through is delivered, what was refused is refused; only the rest timed out."""

        async def relay(batch: Batch[Envelope]) -> None:
            batch.done(0)
            batch.fail(1, Rejected(NO))
            await anyio.sleep_forever()

        options: Any = ChannelOptions(batch_items_max=3, batch_age_max=60.0, send_timeout=1.0, retry=None)
        async with Chain("relay", steps={"relay": relay}) as chain, Channel(chain.send, options) as channel:
            receipts = [await channel.submit(mail()) for _ in range(3)]
            outcomes = [await receipt.wait() for receipt in receipts]

        assert [type(outcome.error).__name__ for outcome in outcomes] == [
            "NoneType",
            "Rejected",
            "TimeoutError",
        ]


class TestThreads:
    async def test_a_plain_function_runs_off_the_loop(self, mail: Any) -> None:
        """Neighbours share one hop; ``inline`` stays."""
        seen: dict[str, int] = {}

        def note(name: str, **told: Any) -> Any:
            def step(envelope: Envelope) -> None:
                seen[name] = threading.get_ident()

            return processor(name, **told)(step)

        steps = {name: note(name) for name in ("one", "two")} | {"here": note("here", inline=True)}
        async with Chain("one | two | here", steps=steps) as chain:
            await done(chain.judge(mail()))

        assert seen["one"] == seen["two"] != threading.get_ident()
        assert seen["here"] == threading.get_ident()

    async def test_batch_steps_share_the_storages_hop(self, mail: Any, attempts: Any) -> None:
        """One hop per batch: the compressor runs in the storage's thread, bisection too."""

        def before(batch: Batch[Envelope]) -> None:
            threads.append(threading.get_ident())
            if len(batch) > 1:
                raise ValueError

        threads: list[int] = []
        store = OwnThread()
        async with Chain("before | store", steps={"before": before, "store": store}) as chain:
            held = chain.plan.batch[1].target
            await chain.deliver(attempts([mail(), mail()]).next())

        assert held is store
        assert store.hops == 1
        assert {*threads, *store.threads} == {threads[0]}
        assert threads[0] != threading.get_ident()

    async def test_a_storage_blocks_no_other_storages_thread(self, mail: Any, attempts: Any) -> None:
        """Only steps that keep nothing share a hop."""
        inside: list[bool] = []

        class Owner(OwnThread):
            working = False

            async def run(self, work: Any) -> Any:
                def flagged() -> Any:
                    self.working = True
                    try:
                        return work()
                    finally:
                        self.working = False

                return await super().run(flagged)

        class Plain(Keep):
            def __call__(self, batch: Batch[Envelope]) -> None:
                inside.append(owner.working)

        owner = Owner()
        steps = {"plain": processor("plain", kind="batch", storage=True)(Plain), "owner": owner}
        async with Chain("plain | owner", steps=steps) as chain:
            await chain.deliver(attempts([mail()]).next())

        assert inside == [False]
        assert len(owner.kept) == 1

    async def test_back_on_the_loop_between(self, mail: Any, attempts: Any) -> None:
        """Thread, loop, thread: each step where it belongs, in order."""
        order: list[tuple[str, bool]] = []
        here = threading.get_ident()

        def plain(batch: Batch[Envelope]) -> None:
            order.append(("plain", threading.get_ident() == here))

        async def waits(batch: Batch[Envelope]) -> None:
            await anyio.lowlevel.checkpoint()
            order.append(("waits", threading.get_ident() == here))

        def hidden(batch: Batch[Envelope]) -> Any:
            return waits(batch)

        steps = {"a": plain, "b": waits, "c": hidden, "d": plain}
        await Chain("a | b | c | d", steps=steps).deliver(attempts([mail()]).next())

        assert order == [("plain", False), ("waits", True), ("waits", True), ("plain", False)]


class TestEnvelopeStage:
    async def test_answers_leave_as_they_are(self, mail: Any) -> None:
        """And the steps after it are not asked."""

        def refuses(envelope: Envelope) -> None:
            raise Rejected(NO)

        def never(envelope: Envelope) -> None:
            pytest.fail("not asked")

        for steps in ({"a": refuses, "b": never}, {"a": processor("a", inline=True)(refuses), "b": never}):
            chain = Chain("a | b", steps=steps)
            with pytest.raises(Rejected) as caught:
                await done(chain.judge(mail()))
            assert caught.value.reply == NO

    @pytest.mark.parametrize("error", [ValueError("secret"), ConnectionError("secret"), StopIteration()])
    async def test_any_other_error_is_451(
        self, mail: Any, error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Our trouble is 4xx; the log has the step and the queue id, the reply has nothing."""

        async def fails(envelope: Envelope) -> None:
            raise error

        def fails_in_a_thread(envelope: Envelope) -> None:
            raise error

        for step in (fails, fails_in_a_thread):
            envelope = mail()
            with pytest.raises(Deferred) as caught:
                await done(Chain("fails", steps={"fails": step}).judge(envelope))
            assert str(caught.value.reply).startswith("451 4.3.0")
            assert "secret" not in str(caught.value.reply)
            assert f"{envelope.queue_id}: step fails" in caplog.text


class TestStreamStage:
    async def test_small_chunks_stay_on_the_loop(self, mail: Any) -> None:
        """A hop costs more than they do; large ones go to a thread, in order."""
        seen: list[tuple[int, bool]] = []
        here = threading.get_ident()

        def tap(envelope: Envelope) -> Generator[None, bytes | None, None]:
            while (chunk := (yield)) is not None:
                seen.append((len(chunk), threading.get_ident() == here))

        taps = Chain("tap", steps={"tap": tap}).open(mail())
        for size in (10, 100_000, 20):
            pending = taps.write(bytes(size))
            if pending is not None:
                await pending
        await done(taps.close())

        assert seen == [(10, True), (100_000, False), (20, True)]

    async def test_a_failing_step_speaks_at_the_end(self, mail: Any) -> None:
        """The receiver reads on to the dot; the steps after it are aborted at once."""
        ends: list[str] = []

        def refuses(envelope: Envelope) -> Generator[None, bytes | None, None]:
            yield
            raise Rejected(NO)

        def follows(envelope: Envelope) -> Generator[None, bytes | None, None]:
            try:
                while (yield) is not None:
                    pass
            except GeneratorExit:
                ends.append("aborted")
                raise

        taps = Chain("refuses | follows", steps={"refuses": refuses, "follows": follows}).open(mail())
        taps.write(b"x")
        assert taps.failed
        assert ends == ["aborted"]
        taps.write(b"y")
        with pytest.raises(Rejected):
            await done(taps.close())

    async def test_an_unknown_error_is_451(self, mail: Any) -> None:
        """Whatever the step raised."""

        def fails(envelope: Envelope) -> Generator[None, bytes | None, None]:
            yield
            raise ZeroDivisionError

        taps = Chain("fails", steps={"fails": fails}).open(mail())
        taps.write(b"x")
        with pytest.raises(Deferred, match=r"451 4\.3\.0"):
            await done(taps.close())

    async def test_abort_waits_for_the_thread(self, mail: Any) -> None:
        """A client that vanishes while a step works: it ends first, then it is aborted."""
        entered, leave, ends = threading.Event(), threading.Event(), []

        class Sink:
            def open(self, envelope: Envelope) -> Any:
                return self

            def write(self, chunk: bytes) -> None:
                entered.set()
                assert leave.wait(10)
                ends.append("written")

            def close(self) -> None:
                pytest.fail("aborted")

            def abort(self) -> None:
                ends.append("aborted")

        taps = Chain("sink", steps={"sink": Sink()}).open(mail())
        pending = taps.write(bytes(100_000))
        assert pending is not None

        async def wait(written: Any) -> None:
            await written

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, pending)
            await to_thread.run_sync(entered.wait)
            taps.abort()
            assert ends == []
            leave.set()

        assert ends == ["written", "aborted"]


class TestOpening:
    async def test_hooks_are_called_once_each_in_turn(self, mail: Any, tmp_path: Path) -> None:
        """Set up in order, torn down in reverse; with or without the place."""
        order: list[str] = []

        def step(name: str) -> Any:
            class Step:
                def setup(self) -> None:
                    order.append(f"+{name}")

                async def teardown(self) -> None:
                    order.append(f"-{name}")

                async def __call__(self, batch: Batch[Envelope]) -> None: ...

            return Step

        async with Chain("a | b", steps={"a": step("a"), "b": step("b")}, place=Place(data=tmp_path)):
            assert order == ["+a", "+b"]
        assert order == ["+a", "+b", "-b", "-a"]

    async def test_what_was_opened_is_closed_when_the_next_fails(self) -> None:
        """And the error is the step's own."""
        closed = []

        class Good:
            async def teardown(self) -> None:
                closed.append(1)

            async def __call__(self, batch: Batch[Envelope]) -> None: ...

        class Bad(Good):
            async def setup(self) -> None:
                msg = "no such database"
                raise ValueError(msg)

        with pytest.raises(ValueError, match="no such database"):
            async with Chain("good | bad", steps={"good": Good, "bad": Bad}):
                pytest.fail("never opened")
        assert closed == [1]

    async def test_a_failing_teardown_stops_no_other(self, caplog: pytest.LogCaptureFixture) -> None:
        """It is logged."""
        closed = []

        class Good:
            async def teardown(self) -> None:
                closed.append(1)

            async def __call__(self, batch: Batch[Envelope]) -> None: ...

        class Bad(Good):
            async def teardown(self) -> None:
                raise ConnectionError

        async with Chain("good | bad", steps={"good": Good, "bad": Bad}):
            pass
        assert closed == [1]
        assert "step bad: teardown failed" in caplog.text

    async def test_unopened_it_sends_nothing(self, mail: Any, attempts: Any) -> None:
        """A storage that was not set up keeps nothing."""
        chain = Chain("keeper", steps={"keeper": keeper()})
        with pytest.raises(RuntimeError, match="open the chain first"):
            await chain.deliver(attempts([mail()]).next())

    async def test_opened_twice(self) -> None:
        """One instance per gateway, opened once."""
        async with Chain("keeper", steps={"keeper": keeper()}) as chain:
            with pytest.raises(RuntimeError, match="open already"):
                await chain.__aenter__()

    async def test_storages_are_shared_by_configuration(self, mail: Any, attempts: Any) -> None:
        """The same options: one store, opened by the first, closed by the last."""
        step, shared = keeper(), SharedSteps()
        old = Chain("a:keeper", settings={"a": Settings(use="")}, steps={"a": step}, shared=shared)
        new = Chain("keeper", steps={"keeper": step}, shared=shared)
        store = old.plan.batch[0].target
        async with new:
            async with old:
                await old.deliver(attempts([mail()]).next())
            await new.deliver(attempts([mail()]).next())
            first = new.storages[0].target
            assert (len(first.places), first.closed, len(first.kept)) == (1, 0, 2)
        assert first.closed == 1
        assert store is not first

    async def test_instances_are_shared_with_nobody(self, mail: Any, attempts: Any) -> None:
        """Two of one class, made by their user, are two."""
        cls, shared = keeper(), SharedSteps()
        stores = [cls(), cls()]
        for store in stores:
            async with Chain("store", steps={"store": store}, shared=shared) as chain:
                await chain.deliver(attempts([mail()]).next())

        async with (
            Chain("store", steps={"store": stores[0]}, shared=shared) as one,
            Chain("store", steps={"store": stores[1]}, shared=shared) as two,
        ):
            assert [one.storages[0].target, two.storages[0].target] == stores
        assert [len(store.kept) for store in stores] == [1, 1]

    async def test_cancelled_it_is_closed_all_the_same(self) -> None:
        """A daemon that is told to stop leaves no connection behind."""
        closed = []

        class Slow:
            async def teardown(self) -> None:
                await anyio.sleep(0.01)
                closed.append(1)

            async def __call__(self, batch: Batch[Envelope]) -> None: ...

        with anyio.CancelScope() as scope:
            async with Chain("slow", steps={"slow": Slow}):
                scope.cancel()
                await anyio.sleep_forever()

        assert closed == [1]

    async def test_cannot_be_compiled(self) -> None:
        """Before anything is opened."""
        with pytest.raises(ChainError):
            Chain("no-such-step")


class TestExamplesOfTheContract:
    async def test_the_three_kinds_of_ones_own(self, mail: Any) -> None:
        """Ten lines each, as the design shows them."""
        import zlib

        @attrs.frozen(kw_only=True)
        class WordsOptions:
            word: str = "spam"

        @processor("crc", writes=("crc",))
        def crc(envelope: Envelope) -> Generator[None, bytes | None, None]:
            total = 0
            while (chunk := (yield)) is not None:
                total = zlib.crc32(chunk, total)
            envelope.values["crc"] = total

        @processor("words", options=WordsOptions)
        def words(envelope: Envelope, options: WordsOptions) -> None:
            if options.word in envelope.subject:
                raise Rejected(Reply(550, "5.7.1", "not here"))

        @processor("post")
        class Post:
            async def __call__(self, batch: Batch[Envelope]) -> None:
                for position, envelope in enumerate(batch):
                    if not envelope.mail_from:
                        batch.fail(position, Deferred(Reply(451, "4.7.1", "later")))

        settings = {"words": Settings(options={"word": "offer"})}
        async with (
            Chain("crc | words | post", settings=settings) as chain,
            Channel(chain.send, NATURAL) as channel,
        ):
            envelope = mail()
            assert (await channel.call(envelope)).code == 250
            assert envelope.values["crc"] == zlib.crc32(envelope.body.read())
            for refused, code in ((mail(b"Subject: offer\r\n\r\n"), 550), (mail(mail_from=""), 451)):
                with pytest.raises(ItemFailed) as caught:
                    await channel.call(refused)
                assert caught.value.error.reply.code == code  # type: ignore[attr-defined]


async def test_results_are_in_the_order_of_the_batch(mail: Any, attempts: Any) -> None:
    """Bisected, each half a call of its own: each reply stays with its mail."""
    mails = [mail() for _ in range(5)]

    async def picky(batch: Batch[Envelope]) -> Sequence[Reply | None]:
        if mails[2] in batch:
            raise KeyError
        return [Reply(250, "2.0.0", envelope.queue_id) for envelope in batch]

    results = await Chain("picky", steps={"picky": picky}).deliver(attempts(mails).next())

    assert [reply and reply.text for reply in results] == [  # type: ignore[union-attr]
        None if number == 2 else envelope.queue_id for number, envelope in enumerate(mails)
    ]


async def test_an_empty_body_is_a_body(mail: Any) -> None:
    """An immediate dot: the taps see the end, and nothing else."""
    seen: list[bytes | None] = []

    def tap(envelope: Envelope) -> Generator[None, bytes | None, None]:
        while True:
            chunk = yield
            seen.append(chunk)
            if chunk is None:
                return

    async with Chain("tap", steps={"tap": tap}) as chain, Channel(chain.send, NATURAL) as channel:
        await channel.call(mail(b""))
        assert MemoryBody(b"").read() == b""

    assert seen == [None]
