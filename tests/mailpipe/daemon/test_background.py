"""Background jobs: begun by the mail's own commit, done at least once, given up in sight."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from dispatcher import Batch
from mailpipe import ConfigError, Daemon, Deferred, Envelope, Rejected, Reply, Session
from mailpipe.envelope import MemoryBody, Recipient
from mailpipe.gateway import FileOutbox, Gateway


@attrs.define(eq=False)
class Post:
    """A step that remembers what it was given, and fails as told."""

    errors: list[Exception] = attrs.field(factory=list)
    got: list[tuple[str, str, tuple[str, ...], bytes]] = attrs.field(factory=list)

    async def __call__(self, batch: Batch[Envelope]) -> None:
        for position, mail in enumerate(batch):
            self.got.append((mail.queue_id, mail.mail_from, mail.rcpt_to, b"".join(mail.body.chunks())))
            if self.errors:
                batch.fail(position, self.errors.pop(0))


@pytest.fixture
def post() -> Post:
    """What is done after the 250."""
    return Post()


@pytest.fixture
async def start(tmp_path: Path, post: Post) -> AsyncIterator[Callable[..., Awaitable[Daemon]]]:
    """Start a daemon over one data folder; it is stopped at the end."""
    started: list[Daemon] = []

    async def begin(process: str = "sql", attempts: int = 3, first: float = 0.01, **options: Any) -> Daemon:
        config = {
            "servers": [{"listen": "127.0.0.1:0"}],
            "gateways": {
                "default": {
                    "durability": "none",
                    "process": process,
                    "background": "post",
                    "background_retry": {"attempts": attempts, "first": first, "longest": first},
                }
            },
        }
        daemon = Daemon(config, data=tmp_path / "data", steps={"post": post}, **options)
        await daemon.start()
        started.append(daemon)
        return daemon

    yield begin
    for daemon in started:
        await daemon.stop()


async def saved(gateway: Gateway, envelope: Envelope) -> Any:
    """The verdict, whether it is there at once or has to be awaited."""
    verdict = gateway.save(envelope)
    return await verdict if inspect.isawaitable(verdict) else verdict


async def mail(gateway: Gateway, body: bytes = b"Subject: x\r\n\r\nx\r\n") -> str:
    """Send one mail through the gateway; its id."""
    session = Session()
    envelope = Envelope(gateway.new_queue_id(), session, 1.0, mail_from="a@x", body=MemoryBody(body))
    envelope.recipients = [Recipient("b@x", (), envelope, session), Recipient("c@x", (), envelope, session)]
    sink = gateway.open(envelope)
    sink.write(body)
    if (closing := sink.close()) is not None:
        await closing
    answer = await saved(gateway, envelope)
    assert isinstance(answer, Reply)
    assert answer.code == 250
    return envelope.queue_id


async def until(condition: Callable[[], Any], within: float = 20.0) -> None:
    """Return once *condition* holds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - of things that tell nobody
            await asyncio.sleep(0.01)


def counts(daemon: Daemon) -> tuple[int, int, int]:
    """Done, to be repeated, dead."""
    counted = daemon.gateway().statistics.background
    assert counted is not None
    return counted.done, counted.again, counted.dead


class TestJobs:
    async def test_a_mail_is_read_back_and_worked_on(self, start: Any, post: Post) -> None:
        """Sender, recipients, and the body as received."""
        daemon = await start("header | compressor | sql")
        body = b"Subject: x\r\n\r\n" + b"many words\r\n" * 2000
        queue_id = await mail(daemon.gateway(), body)
        await until(lambda: counts(daemon) == (1, 0, 0))

        assert post.got == [(queue_id, "a@x", ("b@x", "c@x"), body)]

    @pytest.mark.parametrize(
        "error", [ConnectionError("down"), Deferred(Reply(451, "4.0.0", "later")), KeyError("bug")]
    )
    async def test_what_fails_is_tried_again(self, error: Exception, start: Any, post: Post) -> None:
        """Later, and until it is done."""
        post.errors = [error, error]
        daemon = await start(attempts=5)
        await mail(daemon.gateway())
        await until(lambda: counts(daemon)[0])

        assert counts(daemon) == (1, 2, 0)
        assert len(post.got) == 3

    async def test_what_never_succeeds_is_given_up_in_sight(self, start: Any, post: Post) -> None:
        """A dead job keeps its error; the mail stays where it is."""
        post.errors = [ConnectionError("down")] * 3
        daemon = await start(attempts=3)
        queue_id = await mail(daemon.gateway())
        await until(lambda: counts(daemon)[2])
        (job,) = await daemon.gateway().archive.outbox.dead("background default")

        assert counts(daemon) == (0, 2, 1)
        assert (job.queue_id, job.attempts) == (queue_id, 3)
        assert "StoreTrouble" in job.error or "down" in job.error
        assert await daemon.gateway().archive.get(queue_id) is not None

    async def test_a_rejection_buries_at_once(self, start: Any, post: Post) -> None:
        """Nobody is there to be told 550."""
        post.errors = [Rejected(Reply(550, "5.0.0", "no"))]
        daemon = await start()
        await mail(daemon.gateway())
        await until(lambda: counts(daemon)[2])

        assert counts(daemon) == (0, 0, 1)

    async def test_a_restart_resumes(self, start: Any, post: Post) -> None:
        """What was not done when we stopped is done by the next run."""
        post.errors = [ConnectionError("down")]
        first = await start(first=0.3)
        queue_id = await mail(first.gateway())
        await until(lambda: counts(first)[1])
        await first.stop()
        second = await start()
        await until(lambda: counts(second)[0])

        assert [got[0] for got in post.got] == [queue_id, queue_id]

    async def test_another_process_may_do_the_work(self, start: Any, post: Post) -> None:
        """A worker that is not the first writes jobs and leaves them."""
        daemon = await start(working=False)
        await mail(daemon.gateway())

        (job,) = await daemon.gateway().archive.outbox.due("background default", 1e12)
        assert job.attempts == 0
        assert post.got == []


class TestOwnOutbox:
    """Storages that keep no jobs: the gateway has an outbox of its own."""

    @pytest.mark.parametrize("process", ["memory", "maildir"])
    async def test_jobs_are_written_before_the_250(
        self, process: str, start: Any, post: Post, tmp_path: Path
    ) -> None:
        """And worked off, and tried again, as others are."""
        post.errors = [ConnectionError("down")]
        daemon = await start(process)
        queue_id = await mail(daemon.gateway(), b"Subject: x\r\n\r\nx\r\n")
        await until(lambda: counts(daemon)[0])

        assert counts(daemon) == (1, 1, 0)
        assert [got[0] for got in post.got] == [queue_id, queue_id]
        assert (tmp_path / "data" / "outbox.db").exists()

    async def test_a_restart_resumes(self, start: Any, post: Post) -> None:
        """What was not done when we stopped is done by the next run."""
        first = await start("maildir", working=False)
        queue_id = await mail(first.gateway())
        await first.stop()
        second = await start("maildir")
        await until(lambda: counts(second)[0])

        assert [got[0] for got in post.got] == [queue_id]

    async def test_an_outbox_in_trouble_is_a_451(self, start: Any, tmp_path: Path) -> None:
        """No 250 without the job that it promises."""
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "outbox.db").write_bytes(b"this is no database" * 100)
        daemon = await start("maildir", working=False)
        gateway = daemon.gateway()
        envelope = Envelope(gateway.new_queue_id(), Session(), 1.0)
        sink = gateway.open(envelope)
        if (closing := sink.close()) is not None:
            await closing
        answer = await saved(gateway, envelope)

        assert isinstance(answer, Reply)
        assert answer.code == 451

    async def test_the_fates_of_jobs(self, tmp_path: Path) -> None:
        """Done is gone, again is due later, dead is out of the way until it is revived; a retry writes nothing twice."""
        outbox = FileOutbox(tmp_path / "outbox.db")
        publish = outbox.step("j").target
        batch = [Envelope(f"q{number}", Session(), float(number)) for number in range(4)]
        await publish(batch)
        await publish(batch[:2])
        jobs = await outbox.due("j", 10.0)
        assert [job.queue_id for job in jobs] == ["q0", "q1", "q2", "q3"]
        again = attrs.evolve(jobs[1], attempts=1, due_at=50.0, error="x\udcff")
        await outbox.settle(done=[jobs[0]], again=[again], dead=[jobs[2]])

        assert [job.queue_id for job in await outbox.due("j", 10.0)] == ["q3"]
        assert [job.queue_id for job in await outbox.due("j", 50.0)] == ["q1", "q3"]
        assert await outbox.next_due("j") == 3.0
        assert await outbox.next_due("other") is None
        dead = await outbox.dead("j")
        assert [job.queue_id for job in dead] == ["q2"]
        assert await outbox.revive([*dead, jobs[3]], 20.0) == 1
        assert [job.queue_id for job in await outbox.due("j", 20.0)] == ["q2", "q3"]
        await outbox.close()
        await outbox.close()


class TestConfiguration:
    async def test_a_chain_that_cannot_read_back_is_refused(self, tmp_path: Path, post: Post) -> None:
        """Told at check, not when the first mail is lost."""
        config: dict[str, Any] = {
            "servers": [{"listen": "127.0.0.1:0"}],
            "gateways": {"default": {"process": "exec", "durability": "none", "background": "post"}},
        }
        config["processors"] = {"exec": {"command": ["/bin/true"]}}
        config["servers"][0]["allowed_hosts"] = ["example.org"]
        with pytest.raises(ConfigError, match=r"\[gateways.default\] background: reads mails back"):
            Daemon(config, data=tmp_path, steps={"post": post})
