"""
What goes over the socket: one JSON object a line, in UTF-8; every request is answered.

A request is ``{"op": NAME, "id": ANY, ...}`` with the fields of `REQUESTS`, and no others. Its answer has
the same id (null without one) and is either ``{"id": ..., "ok": true, ...}`` or
``{"id": ..., "ok": false, "error": KIND, "message": TEXT}``. A payload is text (``payload``) or, if it is
not, base64 (``payload64``).
"""

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from dispatcher.broker.errors import BadRequest, BrokerError, MessageRefused
from dispatcher.broker.message import Delivery, Message
from dispatcher.errors import AddError, OptionError, QueueFull, StoreError, UnknownQueue
from dispatcher.stores.base import Counts, Peeked, Shelf

__all__ = [
    "REQUESTS",
    "Lines",
    "Oversized",
    "Request",
    "answer",
    "counts_to",
    "delivery_from",
    "delivery_to",
    "encode",
    "is_told",
    "message_from",
    "message_to",
    "peeked_to",
    "refusal",
    "request_from",
]

LINE_BYTES_MAX = 4 * 1024 * 1024
RECEIVE_MAX = 1000


_REQUIRED = object()


class Oversized:
    """Stands for a line that was too long; it was skipped."""


class Lines:
    """
    Cuts a stream of bytes into lines.

    Args:
        limit: Bytes that a line may have. What is longer is skipped, up to its end.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._skipping = False

    def feed(self, chunk: bytes) -> list[bytes | Oversized]:
        """The lines that *chunk* completes, without their ends; empty ones left out."""
        found: list[bytes | Oversized] = []
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            line = bytes(self._rest) + chunk[start:end]
            self._rest.clear()
            start = end + 1
            if self._skipping:  # its refusal was given when it became too long
                self._skipping = False
            elif len(line) > self._limit:
                found.append(Oversized())
            elif line.strip():
                found.append(line)
        if not self._skipping:
            self._rest += chunk[start:]
            if len(self._rest) > self._limit:
                self._rest.clear()
                self._skipping = True
                found.append(Oversized())
        return found

    def end(self) -> bytes | None:
        """What came after the last line's end."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest if rest.strip() else None


def encode(what: Mapping[str, Any]) -> bytes:
    """One line."""
    return json.dumps(what, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"


# -- requests


def _text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 4096


def _whole(least: int, most: float) -> Callable[[object], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(_text(one) for one in value)


@attrs.frozen(slots=True)
class Field:
    """What one field of a request has to be."""

    rule: str
    holds: Callable[[Any], bool]
    default: Any = _REQUIRED


_NAME = Field("a name", _text)
_TAGS = Field("a list of tags", _texts)
_SHELF = Field(
    "one of ready, delayed, leased, dead, quarantined",
    lambda value: value in [shelf.value for shelf in Shelf],
    "dead",
)
_IDS = Field("null or a list of ids", lambda value: value is None or _texts(value), None)
_FLAG = Field("true or false", lambda value: isinstance(value, bool), True)
_MAYBE = Field("null or text", lambda value: value is None or _text(value), None)
_ONE = {"topic": _NAME, "subscription": _NAME}

REQUESTS: Mapping[str, Mapping[str, Field]] = {
    "ping": {},
    "publish": {
        "topic": _NAME,
        "messages": Field(
            "a list of objects",
            lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value),
        ),
    },
    "receive": {
        **_ONE,
        "limit": Field(f"a whole number, 1 to {RECEIVE_MAX}", _whole(1, RECEIVE_MAX), 50),
        "wait": Field("seconds of 0 or more", _seconds, 0),
    },
    "cancel": {"request": Field("the id of a receive", lambda value: value is not None)},
    "ack": {"tags": _TAGS},
    "nack": {
        "tags": _TAGS,
        "delay": Field("seconds of 0 or more", _seconds, 0),
        "front": _FLAG,
        "count": _FLAG,
        "error": _MAYBE,
    },
    "reject": {"tags": _TAGS, "error": Field("text", _text)},
    "extend": {"tags": _TAGS},
    "reset": {"subscription": _NAME, "topic": Field("null or a name", _MAYBE.holds, None)},
    "subscribe": _ONE,
    "unsubscribe": _ONE,
    "pause": _ONE,
    "resume": _ONE,
    "topics": {},
    "stats": {},
    "counts": {"queue": _NAME},
    "queues": {},
    "peek": {
        "queue": _NAME,
        "shelf": attrs.evolve(_SHELF, default="ready"),
        "limit": Field("a whole number, 1 to 1000", _whole(1, 1000), 50),
        "after": _MAYBE,
    },
    "retry": {"queue": _NAME, "ids": _IDS, "shelf": _SHELF},
    "purge": {"queue": _NAME, "ids": _IDS, "shelf": _SHELF},
}


@attrs.frozen(slots=True)
class Request:
    """One line that is a request, checked."""

    op: str
    id: Any
    fields: Mapping[str, Any]


def _parse(line: bytes) -> dict[str, Any]:
    try:
        got = json.loads(line)
    except (ValueError, RecursionError):
        msg = "a line has to be one JSON object in UTF-8"
        raise BadRequest(msg) from None
    if not isinstance(got, dict):
        msg = f"a line has to be one JSON object, got {type(got).__name__}"
        raise BadRequest(msg)
    return got


def request_from(line: bytes) -> tuple[Any, Request | BadRequest]:
    """The id of the request in *line*, as far as it can be told, and the request, or what is wrong."""
    try:
        got = _parse(line)
    except BadRequest as error:
        return None, error
    name = got.pop("id", None)
    try:
        if isinstance(name, dict | list):
            msg = "id has to be text, a number or null"
            name = None
            raise BadRequest(msg)  # noqa: TRY301 - answered like all others
        return name, _check(name, got)
    except BadRequest as error:
        return name, error


def _check(name: object, got: dict[str, Any]) -> Request:
    op = got.pop("op", None)
    fields = REQUESTS.get(op) if isinstance(op, str) else None
    if fields is None:
        msg = f"op has to be one of {', '.join(REQUESTS)}; got {op!r:.100}"
        raise BadRequest(msg)
    values: dict[str, Any] = {}
    for key, field in fields.items():
        if key not in got:
            if field.default is _REQUIRED:
                msg = f"{op}: {key} is missing; it has to be {field.rule}"
                raise BadRequest(msg)
            values[key] = field.default
        elif field.holds(got[key]):
            values[key] = got.pop(key)
        else:
            msg = f"{op}: {key} has to be {field.rule}, got {got[key]!r:.100}"
            raise BadRequest(msg)
    unknown = [key for key in got if key not in fields]
    if unknown:
        msg = f"{op}: there is no field {unknown[0]!r:.100}"
        raise BadRequest(msg)
    return Request(op, name, values)


# -- answers


def answer(name: object, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON can say
    """It was done."""
    return {"id": name, "ok": True, **more}


_TOLD = BadRequest | MessageRefused | BrokerError | OptionError | AddError | QueueFull | UnknownQueue


def is_told(error: Exception) -> bool:
    """Whether a client is told what *error* says; all else stays in the broker's log."""
    return isinstance(error, _TOLD)


def refusal(name: object, error: Exception) -> dict[str, Any]:
    """It was not done, and why."""
    if is_told(error):
        text = str(error)
    elif isinstance(error, StoreError):
        text = "the broker's store failed, nothing was done; its log says why"
    else:
        return {
            "id": name,
            "ok": False,
            "error": "InternalError",
            "message": "the broker failed; see its log",
        }
    return {"id": name, "ok": False, "error": type(error).__name__, "message": text}


# -- payloads


def _payload_to(payload: bytes) -> dict[str, str]:
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload64": base64.b64encode(payload).decode()}


def _payload_from(got: dict[str, Any], where: str) -> bytes:
    text, coded = got.pop("payload", None), got.pop("payload64", None)
    if (text is None) == (coded is None):
        msg = f"{where}: has to have either payload or payload64"
        raise BadRequest(msg)
    if isinstance(text, str):
        try:
            return text.encode()
        except UnicodeEncodeError:
            msg = f"{where}: payload has to be valid Unicode"
            raise BadRequest(msg) from None
    if isinstance(coded, str):
        try:
            return base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            msg = f"{where}: payload64 has to be base64"
            raise BadRequest(msg) from None
    msg = f"{where}: the payload has to be text"
    raise BadRequest(msg)


def message_to(message: Message) -> dict[str, Any]:
    """For a publish."""
    more = {"key": message.key, "expires_at": message.expires_at, "ttl": message.ttl}
    said = {key: value for key, value in more.items() if value is not None}
    if message.priority:
        said["priority"] = message.priority
    return {**_payload_to(message.payload), **said}


def message_from(got: Mapping[str, Any], position: int) -> Message:
    """
    One of a publish; the topic checks the values.

    Raises:
        BadRequest: If it is none.
    """
    rest = dict(got)
    where = f"message {position}"
    payload = _payload_from(rest, where)
    key = rest.pop("key", None)
    priority, expires_at, ttl = rest.pop("priority", 0), rest.pop("expires_at", None), rest.pop("ttl", None)
    if rest:
        msg = f"{where}: there is no field {next(iter(rest))!r:.100}"
        raise BadRequest(msg)
    try:
        return Message(payload, key=key, priority=priority, expires_at=expires_at, ttl=ttl)
    except OptionError as error:
        msg = f"{where}: {error}"
        raise BadRequest(msg) from None


def delivery_to(one: Delivery) -> dict[str, Any]:
    """For an answer to receive, or a push."""
    return {
        "tag": one.tag,
        "id": one.id,
        **_payload_to(one.payload),
        "key": one.key,
        "priority": one.priority,
        "attempts": one.attempts,
        "put_at": one.put_at,
        "expires_at": one.expires_at,
    }


def delivery_from(topic: str, subscription: str, got: Mapping[str, Any]) -> Delivery:
    """What `delivery_to` gave."""
    rest = dict(got)
    payload = _payload_from(rest, "a delivery")
    return Delivery(topic=topic, subscription=subscription, payload=payload, **rest)


def peeked_to(one: Peeked) -> dict[str, Any]:
    """For an answer to peek."""
    return {
        "id": one.id,
        "cursor": one.cursor,
        "shelf": one.shelf.value,
        **_payload_to(one.payload),
        "key": one.key,
        "priority": one.priority,
        "attempts": one.attempts,
        "put_at": one.put_at,
        "expires_at": one.expires_at,
        "error": one.error,
        "failed_at": one.failed_at,
    }


def counts_to(counts: Counts) -> dict[str, Any]:
    """For an answer to counts."""
    return attrs.asdict(counts)
