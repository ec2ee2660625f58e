"""``redis``: one transaction per batch, expiry, and a durability that is verified."""

import itertools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis as client_of_redis

from mailpipe.envelope import Envelope
from mailpipe.steps import Place
from mailpipe.storages.redis import RedisOptions, RedisStorage
from tests import servers

MakeEnvelope = Callable[..., Envelope]
Keep = Callable[..., Awaitable[Any]]
_numbers = itertools.count()


@pytest.fixture
async def storage(redis_url: str, tmp_path: Path) -> AsyncIterator[RedisStorage]:
    made = RedisStorage(RedisOptions(url=redis_url, prefix=f"redis{next(_numbers)}:"))
    await made.setup(Place(data=tmp_path))
    yield made
    await made.teardown()


class TestKeeping:
    async def test_a_batch_is_one_transaction(
        self, storage: RedisStorage, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """If one command is refused, nothing of the batch is there."""
        bad = make_envelope()
        # A key of another type: Redis refuses the command when it comes to it.
        storage._client.set(f"{storage.options.prefix}mail:{bad.queue_id}", "in the way")  # noqa: SLF001
        with pytest.raises(client_of_redis.ResponseError, match="WRONGTYPE"):
            await keep(storage, bad)

        good = make_envelope()
        await keep(storage, good)
        assert await storage.get(good.queue_id) is not None

    async def test_mails_expire(
        self, redis_url: str, tmp_path: Path, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """The server forgets them, pieces and all, and the list does not stumble over them."""
        storage = RedisStorage(RedisOptions(url=redis_url, prefix=f"redis{next(_numbers)}:", expire=0.05))
        await storage.setup(Place(data=tmp_path))
        await keep(storage, make_envelope(), make_envelope(b"x" * 600_000))
        client = storage._client  # noqa: SLF001 - what lies in the server is the promise
        deadline = time.monotonic() + 20
        while client.keys(f"{storage.options.prefix}[mb]*") and time.monotonic() < deadline:
            pass

        assert list(await storage.list()) == []
        assert client.keys(f"{storage.options.prefix}*") == []
        assert not storage.lasting
        await storage.teardown()

    async def test_without_expire_they_stay(
        self, storage: RedisStorage, make_envelope: MakeEnvelope, keep: Keep
    ) -> None:
        """No key of a whole mail has a time to live."""
        await keep(storage, make_envelope(b"x" * 600_000))

        client = storage._client  # noqa: SLF001
        keys = client.keys(f"{storage.options.prefix}*")
        assert len(keys) == 3
        assert {client.ttl(key) for key in keys} == {-1}

    async def test_pieces_without_a_mail_do_not_stay(
        self, storage: RedisStorage, make_envelope: MakeEnvelope, keep: Keep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A crash between body and mail leaves what the server forgets by itself."""
        envelope = make_envelope(b"x" * 600_000)
        with monkeypatch.context() as patch:
            patch.setattr(client_of_redis.client.Pipeline, "execute", _broken)
            with pytest.raises(ConnectionError):
                await keep(storage, envelope)

        client = storage._client  # noqa: SLF001
        (key,) = client.keys(f"{storage.options.prefix}*")
        assert 0 < client.ttl(key) <= 3600
        await keep(storage, envelope, attempt=2)
        mail = await storage.get(envelope.queue_id)
        assert mail is not None
        assert mail.body is not None
        assert b"".join(mail.body.chunks()) == b"x" * 600_000
        assert client.llen(key) == 2


class TestTrouble:
    async def test_a_server_that_is_gone(
        self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """ConnectionError, which the runner takes for store trouble."""
        with servers.redis() as url:
            storage = RedisStorage(RedisOptions(url=url, timeout=5))
            await storage.setup(Place(data=tmp_path))
            await keep(storage, make_envelope())
        with pytest.raises(ConnectionError):
            await keep(storage, make_envelope())
        await storage.teardown()

    async def test_a_server_that_does_not_answer(self, tmp_path: Path) -> None:
        """TimeoutError after the driver's own timeout, and nothing left running."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
            storage = RedisStorage(RedisOptions(url=url, timeout=0.2))
            with pytest.raises(TimeoutError):
                await storage.setup(Place(data=tmp_path))
        with pytest.raises(RuntimeError, match="not open"):
            await storage.run(lambda: None)

    async def test_a_server_without_memory(
        self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """It refuses to store: trouble of the store's, which may pass."""
        with servers.redis("--maxmemory", "2mb", "--maxmemory-policy", "noeviction") as url:
            storage = RedisStorage(RedisOptions(url=url))
            await storage.setup(Place(data=tmp_path))
            envelopes = [make_envelope(b"x" * 500_000) for _ in range(20)]
            with pytest.raises(ConnectionError, match="in no state to store"):
                await keep(storage, *envelopes)
            await storage.teardown()


class TestDurability:
    @pytest.mark.parametrize(
        ("arguments", "level"),
        [
            (("--appendonly", "no"), "none"),
            (("--appendonly", "yes", "--appendfsync", "everysec"), "os"),
            (("--appendonly", "yes", "--appendfsync", "always"), "disk"),
        ],
    )
    async def test_more_than_the_server_keeps_is_refused(
        self, arguments: tuple[str, ...], level: str, tmp_path: Path
    ) -> None:
        """Each level is had where the server gives it, and refused above it."""
        levels: list[Any] = ["none", "os", "disk"]
        with servers.redis(*arguments) as url:
            for wanted in levels:
                storage = RedisStorage(RedisOptions(url=url, durability=wanted))
                if levels.index(wanted) <= levels.index(level):
                    await storage.setup(Place(data=tmp_path))
                    assert storage.durability == wanted
                    await storage.teardown()
                else:
                    with pytest.raises(ValueError, match=f"durability '{wanted}' needs appendonly 'yes'"):
                        await storage.setup(Place(data=tmp_path))


def _broken(*_: Any, **__: Any) -> None:
    message = "gone"
    raise client_of_redis.ConnectionError(message)
