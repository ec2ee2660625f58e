"""
``redis``: mails in a Redis server, one pipelined transaction per batch.

=============  =========================================================================
does           keeps envelope, prelude and body under keys made of the mail's id
hook           batch (storage); sync, in a thread of its own that owns the connection
options        `RedisOptions`
reads          the copy that ``body`` names
writes         nothing
durability     ``none`` unless asked for; ``os`` and ``disk`` are verified when opened
largest body   512 MiB, in pieces; all of a Redis is in memory
=============  =========================================================================

Keys, all with the prefix of the options: ``mail:ID`` a hash (``envelope`` as JSON, ``prelude``,
``body`` where it fits in one piece), ``body:ID`` a list of pieces of 512 KiB, ``ids`` a sorted set of
all ids. Whoever reads finds a mail only once it is whole.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import anyio.to_thread
import attrs

from mailpipe.encodings import DecodedBody
from mailpipe.envelope import Body, Envelope, MemoryBody
from mailpipe.steps import Durability, Place, StoredMail, processor
from mailpipe.storages._rows import clean, decoded_subject, encode, raw_subject, stored_body
from mailpipe.storages._thread import OwnThread
from mailpipe.storages._validators import one_of, positive, positive_or_none

__all__ = ["RedisNotDurable", "RedisOptions", "RedisStorage"]

T = TypeVar("T")
_Mails = list[StoredMail]

_PIECE = 512 * 1024
# Pieces of a body whose mail never came (a crash in between) are gone after this many seconds.
_PARTIAL = 3600
_LARGEST = 512 * 1024 * 1024
_LEVELS: tuple[Durability, ...] = ("none", "os", "disk")


class RedisNotDurable(ValueError):
    """The server keeps less than was asked for."""

    def __init__(self, wanted: str, found: str, settings: Mapping[str, str]) -> None:
        said = ", ".join(f"{name} {value!r}" for name, value in settings.items())
        super().__init__(
            f"durability {wanted!r} needs appendonly 'yes' and appendfsync "
            f"{'always' if wanted == 'disk' else 'everysec'!r}, the server has {said} ({found!r})"
        )
        self.wanted, self.found = wanted, found


@attrs.frozen(kw_only=True)
class RedisOptions:
    """
    Settings of one ``redis`` storage; checked when made.

    Args:
        url: ``redis://[user:password@]host:port/database``, ``rediss://`` for TLS, ``unix://path``.

        prefix: Of every key.

        expire: Seconds after which a mail is gone; None keeps it.

        body: ``""`` is the compressor's copy if there is one, ``"received"``, or a copy's name.

        durability: What a write must mean; verified when opened.

        timeout: Seconds for each answer; below the gateway's send_timeout.

    Raises:
        ValueError: If a value breaks its rule.
    """

    url: str = "redis://127.0.0.1:6379/0"
    prefix: str = "mailpipe:"
    expire: float | None = attrs.field(default=None, validator=positive_or_none)
    body: str = ""
    durability: Literal["disk", "os", "none"] = attrs.field(
        default="none", validator=one_of("disk", "os", "none")
    )
    timeout: float = attrs.field(default=10.0, validator=positive)


@processor("redis", kind="batch", options=RedisOptions, storage=True, rejects=False)
class RedisStorage:
    """
    Keeps mails in Redis; every batch is one MULTI/EXEC over one connection.

    Idempotent by ``queue_id``, which is the key.
    """

    largest: int | None = _LARGEST
    idempotent = True
    serial = True
    holds_body = True

    def __init__(self, options: RedisOptions | None = None) -> None:
        self.options = options or RedisOptions()
        self._client: Any = None
        self._thread: OwnThread | None = None

    @property
    def durability(self) -> Durability:
        """As asked for, and verified by `setup`."""
        return self.options.durability

    @property
    def lasting(self) -> bool:
        """False if it expires."""
        return self.options.expire is None

    async def setup(self, place: Place) -> None:
        """
        Connect and verify the durability.

        Raises:
            ModuleNotFoundError: If the extra ``redis`` is not installed.
            RedisNotDurable: If the server keeps less than asked for.
            ConnectionError: If it cannot be reached.
        """
        self._thread = OwnThread(f"mailpipe-redis-{place.gateway}")
        try:
            await self.run(self._open)
        except BaseException:
            await self.teardown()
            raise

    async def teardown(self) -> None:
        """Close, after what runs. May be repeated."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            await thread.run(self._close)
            await thread.close()

    async def run(self, work: Callable[[], T]) -> T:
        """Call *work* in the storage's thread; see `OwnThread.run`."""
        if self._thread is None:
            msg = "storage redis is not open"
            raise RuntimeError(msg)
        return await self._thread.run(work)

    def __call__(self, batch: Sequence[Envelope], /) -> None:
        """Keep the batch in one transaction; blocks, in the storage's thread."""
        if not len(batch):
            return
        with _Translated():
            pipeline = self._client.pipeline(transaction=True)
            for envelope in batch:
                self._queue(pipeline, envelope)
            pipeline.execute()

    async def get(self, queue_id: str) -> StoredMail | None:
        """One mail with its body as received, or None."""
        return await anyio.to_thread.run_sync(self._get, queue_id)

    async def list(self, *, after: str = "", limit: int = 1000) -> Sequence[StoredMail]:
        """Mails in the order of their ids, without bodies; from the one after *after*."""
        return await anyio.to_thread.run_sync(self._list, after, limit)

    async def delete(self, queue_ids: Sequence[str]) -> int:
        """Delete these; returns how many there were."""
        return await anyio.to_thread.run_sync(self._delete, queue_ids)

    async def expire(self, before: float) -> int:
        """Delete what was received earlier than *before*; returns how many."""
        deleted, after = 0, ""
        while mails := await self.list(after=after):
            after = mails[-1].queue_id
            deleted += await self.delete([mail.queue_id for mail in mails if mail.received_at < before])
        return deleted

    def _open(self) -> None:
        try:
            import redis
        except ModuleNotFoundError as error:
            msg = "storage redis needs the extra 'redis': pip install 'dispatcher-toolkit[redis]'"
            raise ModuleNotFoundError(msg, name="redis") from error
        seconds = self.options.timeout
        self._client = redis.Redis.from_url(
            self.options.url, socket_timeout=seconds, socket_connect_timeout=seconds
        )
        with _Translated():
            settings = {
                name: _text(self._client.config_get(name).get(name, ""))
                for name in ("appendonly", "appendfsync")
            }
        found: Durability = "none"
        if settings["appendonly"] == "yes":
            found = "disk" if settings["appendfsync"] == "always" else "os"
        if _LEVELS.index(found) < _LEVELS.index(self.options.durability):
            raise RedisNotDurable(self.options.durability, found, settings)

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _key(self, kind: str, queue_id: str = "") -> str:
        return f"{self.options.prefix}{kind}{queue_id}"

    def _queue(self, pipeline: Any, envelope: Envelope) -> None:  # noqa: ANN401 - a driver's pipeline
        """Queue one mail's commands; pieces of a large body are sent at once, for they need memory."""
        queue_id, body = envelope.queue_id, stored_body(envelope, self.options.body)
        mail, pieces = self._key("mail:", queue_id), self._key("body:", queue_id)
        fields: dict[str, Any] = {
            "envelope": _envelope_text(envelope, body),
            "prelude": envelope.prelude,
        }
        large = len(body) > _PIECE
        if large and not self._client.exists(mail):
            # What an attempt left that never came to its end.
            self._client.delete(pieces)
            for piece in body.chunks(_PIECE):
                self._client.rpush(pieces, piece)
                self._client.expire(pieces, _PARTIAL)
        if not large:
            fields["body"] = b"".join(body.chunks(_PIECE))
        pipeline.hset(mail, mapping=fields)
        pipeline.zadd(self._key("ids"), {queue_id: 0})
        expire = self.options.expire
        for key in (mail, pieces) if large else (mail,):
            if expire is not None:
                pipeline.pexpire(key, max(1, int(expire * 1000)))
            else:
                pipeline.persist(key)

    def _get(self, queue_id: str) -> StoredMail | None:
        with _Translated():
            found = self._client.hgetall(self._key("mail:", queue_id))
        if not found:
            return None
        facts = json.loads(found[b"envelope"])
        body: Body
        if b"body" in found:
            body = MemoryBody(found[b"body"], facts["encoding"])
        else:
            body = _Pieces(self._client, self._key("body:", queue_id), facts["stored"], facts["encoding"])
        return attrs.evolve(_mail(queue_id, found), body=DecodedBody(body, facts["size"]))

    def _list(self, after: str, limit: int) -> Sequence[StoredMail]:
        mails: _Mails = []
        while len(mails) < limit:
            with _Translated():
                start = f"({after}" if after else "-"
                ids = [
                    _text(member)
                    for member in self._client.zrangebylex(self._key("ids"), start, "+", start=0, num=limit)
                ]
                if not ids:
                    break
                pipeline = self._client.pipeline(transaction=False)
                for queue_id in ids:
                    pipeline.hmget(self._key("mail:", queue_id), "envelope", "prelude")
                answers = pipeline.execute()
                gone = [
                    queue_id for queue_id, (envelope, _) in zip(ids, answers, strict=True) if envelope is None
                ]
                if gone:
                    # Expired by the server, which does not know of the set.
                    self._client.zrem(self._key("ids"), *gone)
            mails += [
                _mail(queue_id, {b"envelope": envelope, b"prelude": prelude})
                for queue_id, (envelope, prelude) in zip(ids, answers, strict=True)
                if envelope is not None
            ]
            after = ids[-1]
        return mails[:limit]

    def _delete(self, queue_ids: Sequence[str]) -> int:
        if not queue_ids:
            return 0
        with _Translated():
            pipeline = self._client.pipeline(transaction=True)
            for queue_id in queue_ids:
                pipeline.delete(self._key("mail:", queue_id))
                pipeline.delete(self._key("body:", queue_id))
                pipeline.zrem(self._key("ids"), queue_id)
            return sum(pipeline.execute()[::3])


class _Translated:
    """Tells a driver's errors in the words that the runner knows: lost, or too slow."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        names = {cls.__name__ for cls in type(error).__mro__}
        if error is None or isinstance(error, OSError):
            return
        if "TimeoutError" in names:
            msg = "redis does not answer in time"
            raise TimeoutError(msg) from error
        if names & {
            "ConnectionError",
            "BusyLoadingError",
            "ReadOnlyError",
            "OutOfMemoryError",
            "ExecAbortError",
        }:
            msg = f"redis is in no state to store: {type(error).__name__}"
            raise ConnectionError(msg) from error


@attrs.frozen(eq=False)
class _Pieces:
    """A body in pieces, fetched one by one while it is read."""

    client: Any
    key: str
    size: int
    encoding: str

    def __len__(self) -> int:
        return self.size

    def chunks(self, size: int = 65536) -> Iterator[bytes]:
        """
        Yield the octets in order, at most *size* at a time.

        Raises:
            OSError: If a piece is missing: the mail was deleted meanwhile.
        """
        left, number = self.size, 0
        while left > 0:
            with _Translated():
                piece = self.client.lindex(self.key, number)
            if piece is None:
                msg = f"piece {number} of {self.key} is missing"
                raise OSError(msg)
            left, number = left - len(piece), number + 1
            yield from MemoryBody(piece).chunks(size)

    def read(self) -> bytes:
        """Refused: a body in pieces is a large one."""
        msg = f"the body {self.key} is read by chunks()"
        raise ValueError(msg)


def _envelope_text(envelope: Envelope, stored: Body) -> str:
    return encode(
        {
            "received_at": envelope.received_at,
            "mail_from": clean(envelope.mail_from),
            "rcpt_to": [clean(address) for address in envelope.rcpt_to],
            "size": len(envelope.body),
            "stored": len(stored),
            "encoding": stored.encoding,
            "subject": raw_subject(envelope.body),
            "hashes": envelope.hashes,
            "peer": clean(envelope.session.peer),
            "helo": clean(envelope.session.helo),
        }
    )


def _mail(queue_id: str, found: Mapping[bytes, bytes]) -> StoredMail:
    facts = json.loads(found[b"envelope"])
    return StoredMail(
        queue_id=queue_id,
        received_at=facts["received_at"],
        mail_from=facts["mail_from"],
        rcpt_to=tuple(facts["rcpt_to"]),
        size=facts["size"],
        subject=decoded_subject(facts["subject"]),
        prelude=found[b"prelude"],
        hashes=facts["hashes"],
    )


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
