"""``chunks``: equal parts are kept once, counted exactly, and every mail comes back as it was."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from mailpipe.chain import ChainError, compile_chain
from mailpipe.envelope import Envelope
from mailpipe.mime import MimeParser, MimeTree
from mailpipe.steps import Place
from mailpipe.storages import chunks
from mailpipe.storages.chunks import ChunksOptions, ChunksStorage, cut

MakeEnvelope = Callable[..., Envelope]
Keep = Callable[..., Awaitable[Any]]
_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def options(request: pytest.FixtureRequest) -> ChunksOptions:
    """Tables of their own in each database."""
    url = (
        "sqlite:///chunks.db"
        if request.param == "sqlite"
        else request.getfixturevalue(f"{request.param}_url")
    )
    return ChunksOptions(url=url, table=f"parts{next(_numbers)}", chunk_size=4096)


@pytest.fixture
async def storage(options: ChunksOptions, tmp_path: Path) -> AsyncIterator[ChunksStorage]:
    made = ChunksStorage(options)
    await made.setup(Place(data=tmp_path))
    yield made
    await made.teardown()


def tree_of(body: bytes) -> MimeTree:
    parser = MimeParser()
    parser.feed(body)
    return parser.finish()


@pytest.fixture
def make_mail(make_envelope: MakeEnvelope) -> MakeEnvelope:
    """Make a mail with a subject and one attachment, analyzed as the mimeanalyzer does."""

    def make(subject: str, attachment: bytes) -> Envelope:
        body = (
            (
                f"Subject: {subject}\r\nMIME-Version: 1.0\r\n"
                f'Content-Type: multipart/mixed; boundary="b-{subject}"\r\n\r\n--b-{subject}\r\n\r\nhello {subject}\r\n'
                f"--b-{subject}\r\nContent-Type: application/octet-stream\r\n\r\n"
            ).encode()
            + attachment
            + f"\r\n--b-{subject}--\r\n".encode()
        )
        envelope = make_envelope(body)
        envelope.values["mime"] = tree_of(body)
        return envelope

    return make


async def received(storage: ChunksStorage, envelope: Envelope) -> bytes:
    mail = await storage.get(envelope.queue_id)
    assert mail is not None
    assert mail.body is not None
    return b"".join(mail.body.chunks())


def kept(storage: ChunksStorage) -> dict[bytes, int]:
    """Every chunk and how often it is referred to."""
    table = storage.tables.chunks
    with storage.database.engine.connect() as connection:
        return {
            bytes(row.hash): row.refs for row in connection.execute(sa.select(table.c.hash, table.c.refs))
        }


def octets(storage: ChunksStorage) -> int:
    """Octets of all chunks, unpacked."""
    with storage.database.engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.sum(storage.tables.chunks.c.size))).scalar() or 0)


class TestSharing:
    async def test_an_attachment_is_kept_once(
        self, storage: ChunksStorage, make_mail: MakeEnvelope, keep: Keep
    ) -> None:
        """In one batch and in later ones, under whatever headers and boundaries."""
        attachment = os.urandom(50_000)
        mails = [make_mail(f"number{number}", attachment) for number in range(5)]
        await keep(storage, *mails[:3])
        await keep(storage, *mails[3:])

        for mail in mails:
            assert await received(storage, mail) == mail.body.read()
        assert octets(storage) < 50_000 + 5 * 1000
        assert sorted(kept(storage).values())[-1] == 5

    async def test_counts_are_exact(
        self, storage: ChunksStorage, make_mail: MakeEnvelope, keep: Keep
    ) -> None:
        """What a mail brings, its deletion takes: nothing of the others, and nothing stays of the last."""
        attachment = b"again and again " * 5000
        one, two = make_mail("one", attachment), make_mail("two", attachment)
        await keep(storage, one)
        alone = kept(storage)
        await keep(storage, two)
        await storage.delete([two.queue_id])
        assert kept(storage) == alone
        assert await received(storage, one) == one.body.read()

        await storage.delete([one.queue_id])
        assert kept(storage) == {}

    async def test_a_repeated_batch_counts_once(
        self, storage: ChunksStorage, make_mail: MakeEnvelope, keep: Keep
    ) -> None:
        """A retry after a lost reply, alone or with new mails, counts nothing twice."""
        attachment = os.urandom(20_000)
        one, two = make_mail("one", attachment), make_mail("two", attachment)
        await keep(storage, one)
        before = kept(storage)
        await keep(storage, one, attempt=2)
        assert kept(storage) == before

        await keep(storage, one, two, attempt=2)
        assert max(kept(storage).values()) == 2
        await storage.delete([one.queue_id, two.queue_id])
        assert kept(storage) == {}

    async def test_expiry_counts_down_too(
        self, storage: ChunksStorage, make_mail: MakeEnvelope, keep: Keep
    ) -> None:
        """Old mails leave what newer ones share with them."""
        attachment = os.urandom(20_000)
        old, new = make_mail("old", attachment), make_mail("new", attachment)
        old.received_at = 100.0
        await keep(storage, old, new)

        assert await storage.expire(200.0) == 1
        assert await received(storage, new) == new.body.read()
        assert set(kept(storage).values()) == {1}

    async def test_a_failed_batch_counts_nothing(
        self, storage: ChunksStorage, make_mail: MakeEnvelope, keep: Keep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mails and counts are one transaction."""
        one, two = make_mail("one", b"x" * 20_000), make_mail("two", b"x" * 20_000)
        await keep(storage, one)
        before = kept(storage)
        with monkeypatch.context() as patch:
            patch.setattr(ChunksStorage, "_compare", _failing)
            with pytest.raises(RuntimeError, match="in between"):
                await keep(storage, two)

        assert kept(storage) == before
        assert await storage.get(two.queue_id) is None

    async def test_counts_up_in_the_order_of_the_keys(
        self, storage: ChunksStorage, make_mail: MakeEnvelope, keep: Keep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Over the whole batch: so two writers never wait for each other in a ring."""
        keys: list[bytes] = []
        compare = ChunksStorage._compare  # noqa: SLF001 - it gets the keys as they are counted up

        def recorded(self: ChunksStorage, cursor: Any, some: list[bytes], known: Any) -> None:
            keys.extend(some)
            compare(self, cursor, some, known)

        monkeypatch.setattr(ChunksStorage, "_compare", recorded)
        await keep(storage, *[make_mail(f"m{number}", os.urandom(60_000)) for number in range(10)])

        assert len(keys) > 100
        assert keys == sorted(keys)

    async def test_two_workers_at_once(
        self, options: ChunksOptions, make_mail: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Writers that share chunks wait for each other, never in a ring, and lose no count."""
        workers = [ChunksStorage(options), ChunksStorage(options)]
        for worker in workers:
            await worker.setup(Place(data=tmp_path))
        attachments = [bytes([number]) * 5000 for number in range(6)]
        mails = [
            [make_mail(f"m{number}", b"".join(order)) for number, order in enumerate(some)]
            for some in (
                itertools.permutations(attachments[:4]),
                itertools.permutations(attachments[:4][::-1]),
            )
        ]

        async def write(worker: ChunksStorage, some: list[Envelope]) -> None:
            for start in range(0, len(some), 6):
                await keep(worker, *some[start : start + 6])

        await asyncio.gather(*[write(*pair) for pair in zip(workers, mails, strict=True)])
        ids = [mail.queue_id for some in mails for mail in some]
        assert len(await workers[0].list()) == len(ids) == 48
        await asyncio.gather(workers[0].delete(ids[:30]), workers[1].delete(ids[20:]))
        assert kept(workers[0]) == {}
        for worker in workers:
            await worker.teardown()


class TestCollisions:
    async def test_octets_decide_not_keys(
        self, storage: ChunksStorage, make_mail: MakeEnvelope, keep: Keep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Were SHA-256 broken, nobody would get another's mail: in one batch or against what is kept."""
        real = chunks.digest

        def weak(data: bytes, variant: int) -> bytes:
            return real(data[:1] + bytes([variant]), 0)

        monkeypatch.setattr(chunks, "digest", weak)
        mails = [make_mail(f"m{number}", bytes([65 + number]) * 9000) for number in range(4)]
        await keep(storage, *mails[:2])
        await keep(storage, mails[2])
        await keep(storage, mails[3])

        for mail in mails:
            assert await received(storage, mail) == mail.body.read()
        await storage.delete([mail.queue_id for mail in mails])
        assert kept(storage) == {}

    async def test_a_damaged_chunk_is_told(
        self, storage: ChunksStorage, make_mail: MakeEnvelope, keep: Keep
    ) -> None:
        """Never other octets; and the next mail with that part is whole again."""
        one, two = make_mail("one", b"x" * 4000), make_mail("two", b"x" * 4000)
        await keep(storage, one)
        with storage.database.engine.begin() as connection:
            connection.execute(sa.update(storage.tables.chunks).values(data=b"damaged"))
        with pytest.raises(OSError, match=r"damaged|encoding"):
            await received(storage, one)
        await keep(storage, two)

        assert await received(storage, two) == two.body.read()


class TestCutting:
    def test_at_headers_parts_and_sizes(self) -> None:
        """Each part begins a new chunk, so it is cut alike wherever it stands."""
        body = b"H: 1\r\n\r\n" + b"x" * 100
        assert cut(len(body), tree_of(body), 40) == [8, 48, 88, 108]
        assert cut(len(body), None, 4096) == [108]
        assert cut(0, tree_of(b""), 4096) == []

    @given(st.binary(max_size=300), st.integers(1, 50))
    def test_every_octet_is_in_one_chunk(self, body: bytes, size: int) -> None:
        """Whatever the mail: the cuts rise to its end, none further apart than the size."""
        ends = cut(len(body), tree_of(body), size)

        assert ends == sorted(set(ends))
        assert (ends[-1] if ends else 0) == len(body)
        assert all(0 < end - start <= size for start, end in itertools.pairwise([0, *ends]))


class TestOptions:
    @pytest.mark.parametrize("size", [0, 1023, 524289])
    def test_a_chunk_size_out_of_bounds(self, size: int) -> None:
        """The rule and the value got."""
        with pytest.raises(ValueError, match=f"chunk_size must be 1024 to 524288, got {size}"):
            ChunksOptions(chunk_size=size)

    def test_never_behind_a_compressor(self) -> None:
        """Nothing would be de-duplicated."""
        with pytest.raises(ChainError, match="nothing would be de-duplicated"):
            compile_chain("mimeanalyzer | compressor | chunks")
        with pytest.raises(ChainError, match="mime"):
            compile_chain("chunks")


def _failing(*_: Any) -> None:
    message = "in between"
    raise RuntimeError(message)
