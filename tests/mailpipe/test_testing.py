"""What users' tests stand on: it works, and it finds what is broken."""

import asyncio
import smtplib
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import attrs
import pytest

from dispatcher import Batch
from mailpipe.chain import ChainError, Settings
from mailpipe.config import ConfigError
from mailpipe.envelope import Envelope, MemoryBody, Recipient
from mailpipe.errors import Deferred, Rejected
from mailpipe.reply import Reply
from mailpipe.steps import Place, processor
from mailpipe.storages.sql import SqlStorage
from mailpipe.testing import FailingStore, LocalGateway, check_storage, envelope, run, run_async

pytest_plugins = ["mailpipe.testing"]


def words(mail: Envelope) -> None:
    if "spam" in mail.subject:
        raise Rejected(Reply(550, "5.7.1", "not here"))


words.__annotations__["mail"] = Envelope


class TestEnvelope:
    def test_is_as_a_receiver_makes_it(self) -> None:
        """Whole, with a session, and an id of its own, sorted by making."""
        one, two = envelope(subject="grüße"), envelope(rcpt_to=["a@x.org", "b@x.org"], mail_from="")

        assert one.subject == "grüße"
        assert b"\r\n" in one.body.read()
        assert one.queue_id < two.queue_id
        assert two.rcpt_to == ("a@x.org", "b@x.org")
        assert two.recipients[0].envelope is two

    def test_of_octets_text_or_message(self) -> None:
        """Octets are taken as they are."""
        message = EmailMessage()
        message["Subject"] = "x"
        body = MemoryBody(b"y")

        assert envelope(b"raw\n").body.read() == b"raw\n"
        assert envelope(message).subject == "x"
        assert envelope(body).body is body


class TestRun:
    def test_answers_as_a_gateway_would(self) -> None:
        """One reply per envelope, in order."""
        good, bad = envelope(), envelope(subject="spam")
        replies = run("words | hasher | store", good, bad, steps={"words": words, "store": FailingStore()})

        assert replies == [
            Reply(250, "2.0.0", f"OK: queued as {good.queue_id}"),
            Reply(550, "5.7.1", "not here"),
        ]
        assert "sha256" in good.hashes

    def test_is_one_batch(self) -> None:
        """As if all had come at once."""
        store = FailingStore()
        run("store", *[envelope() for _ in range(7)], steps={"store": store})

        assert [len(call) for call in store.calls] == [7]

    def test_trouble_is_retried_then_451(self) -> None:
        """Without delays."""
        store = FailingStore([ConnectionError()])
        assert run("store", envelope(), steps={"store": store})[0].code == 250  # type: ignore[union-attr]
        store.down = ConnectionError()
        assert run("store", envelope(), steps={"store": store}, attempts=3)[0].code == 451  # type: ignore[union-attr]
        assert len(store.calls) == 2 + 3

    def test_recipients(self) -> None:
        """A validate chain is tried the same way."""

        @processor("known-user")
        def known(recipient: Recipient) -> None:
            raise Deferred(Reply(450, "4.2.1", "later"))

        assert run("known-user", *envelope().recipients) == [Reply(450, "4.2.1", "later")]

    def test_settings(self, tmp_path: Path) -> None:
        """Tables as in a configuration, files in the folder given."""
        run("sql", envelope(), settings={"sql": Settings(options={"url": "sqlite:///x.db"})}, data=tmp_path)
        assert (tmp_path / "x.db").exists()

    def test_a_bad_chain(self) -> None:
        """Raises as a gateway would refuse it."""
        with pytest.raises(ChainError):
            run("no-such-step", envelope())

    def test_from_within_a_loop(self) -> None:
        """The same, awaited."""

        async def main() -> Any:
            return await run_async("words | discard", envelope(), steps={"words": words})

        assert asyncio.run(main())[0].code == 250


class TestFailingStore:
    def test_keeps_all_of_a_call_or_none(self) -> None:
        """One poisoned mail fails each transaction that it is in."""
        mails = [envelope() for _ in range(4)]
        store = FailingStore(poison=lambda mail: mail is mails[1])
        replies = run("store", *mails, steps={"store": store})

        assert [reply.code for reply in replies] == [250, 451, 250, 250]  # type: ignore[union-attr]
        assert {mail.queue_id for mail in store.kept} == {
            mail.queue_id for mail in mails if mail is not mails[1]
        }
        assert store.opened == 1

    def test_waits(self) -> None:
        """For what comes, but not for ever."""
        store = FailingStore()
        run("store", envelope(), steps={"store": store})

        assert len(store.wait_for(1)) == 1
        with pytest.raises(TimeoutError, match="1 of 2 mails"):
            store.wait_for(2, timeout=0.01)
        store.clear()
        assert store.kept == []


class TestGateway:
    def test_keeps_what_a_program_sends(self, gateway: LocalGateway) -> None:
        """Over a real socket, blocking."""
        message = EmailMessage()
        message["Subject"] = "your order"
        message.set_content("thanks")
        with smtplib.SMTP(gateway.host, gateway.port) as client:
            client.send_message(message, "shop@example.org", ["customer@example.net"])

        (mail,) = gateway.wait_for(1)
        assert mail.rcpt_to == ("customer@example.net",)
        assert mail.prelude.startswith(b"Return-Path: <shop@example.org>")
        assert gateway.messages[0]["Subject"] == "your order"

    def test_fails_as_told(self, gateway: LocalGateway) -> None:
        """To see what the program does then."""
        gateway.store.poison = lambda mail: True
        with (
            smtplib.SMTP(gateway.host, gateway.port) as client,
            pytest.raises(smtplib.SMTPDataError) as caught,
        ):
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n")
        assert caught.value.smtp_code == 451
        assert gateway.mails == []

    def test_with_a_chain_of_ones_own(self, tmp_path: Path) -> None:
        """And more of the configuration."""
        with (
            LocalGateway(tmp_path, process="", config={"server": {"max_size": 1000}}) as running,
            smtplib.SMTP(running.host, running.port) as client,
        ):
            client.ehlo()
            assert client.esmtp_features["size"] == "1000"

    def test_a_bad_configuration(self, tmp_path: Path) -> None:
        """Raised where it is entered."""
        with pytest.raises(ConfigError, match="max_sise"):
            LocalGateway(tmp_path, config={"server": {"max_sise": 1}}).__enter__()


class TestCheckStorage:
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_passes_what_keeps_the_contract(self, tmp_path: Path) -> None:
        """A storage on disk, with everything."""
        await check_storage(SqlStorage, place=Place(data=tmp_path))

    async def test_passes_one_in_memory(self, tmp_path: Path) -> None:
        """Whose mails are gone with it."""
        await check_storage(lambda: FailingStore(durability="none"), place=Place(data=tmp_path))

    @pytest.mark.parametrize(
        ("broken", "promise"),
        [
            ({"durability": "maybe"}, "durability is disk, os or none"),
            ({"serial": None}, "serial is True or False"),
            ({"forgets": True}, "opened again"),
            ({"cuts": True}, "are the octets received"),
            ({"doubles": True}, "idempotent"),
            ({"reversed": True}, "order of ids"),
            ({"bodies": True}, "carries no bodies"),
            ({"undeletes": True}, "what is deleted is gone"),
            ({"miscounts": True}, "delete.. counts"),
            ({"expires": True}, "strictly older"),
            ({"reads": True}, "too large to be read at once"),
            ({"heart": True}, "heartbeat"),
            ({"sender": True}, "null sender"),
        ],
    )
    async def test_finds_the_broken_promise(
        self, tmp_path: Path, broken: dict[str, Any], promise: str
    ) -> None:
        """And names it."""
        with pytest.raises(AssertionError, match=promise):
            await check_storage(lambda: Broken(**broken), place=Place(data=tmp_path))


@processor("broken", kind="batch", storage=True)
class Broken(FailingStore):
    """A good storage with one fault."""

    medium: dict[str, Envelope] = {}  # noqa: RUF012 - one medium for all, as a disk is

    def __init__(self, durability: Any = "disk", serial: Any = True, **faults: bool) -> None:
        super().__init__(durability=durability)
        self.serial = serial
        self.faults = faults
        self._kept = {} if faults.get("forgets") else Broken.medium

    async def __call__(self, batch: Batch[Envelope]) -> None:
        if self.faults.get("heart") and batch.synthetic:
            raise IndexError
        if self.faults.get("reads"):
            for mail in batch:
                mail.body.read()
        if self.faults.get("doubles"):
            for mail in batch:
                self._kept[f"{mail.queue_id}"] = (
                    envelope(b"other", queue_id=mail.queue_id) if mail.queue_id in self._kept else mail
                )
            return
        await super().__call__(batch)

    async def get(self, queue_id: str) -> Any:
        found: Any = await super().get(queue_id)
        if found and self.faults.get("cuts"):
            return attrs.evolve(found, body=MemoryBody(found.body.read()[:-1]))
        if found and self.faults.get("sender"):
            return attrs.evolve(found, mail_from="<>")
        return found

    async def list(self, *, after: str = "", limit: int = 1000) -> Any:
        page = list(await super().list(after=after, limit=limit))
        if self.faults.get("bodies"):
            return [attrs.evolve(mail, body=MemoryBody(b"")) for mail in page]
        if self.faults.get("reversed") and len(page) > 1:
            return [page[1], page[0], *page[2:]]
        return page

    async def delete(self, queue_ids: Sequence[str]) -> int:
        if self.faults.get("undeletes"):
            return sum(queue_id in self._kept for queue_id in queue_ids)
        return await super().delete(queue_ids) + bool(self.faults.get("miscounts"))

    async def expire(self, before: float) -> int:
        return await super().expire(before + bool(self.faults.get("expires")))
