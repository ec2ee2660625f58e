"""
Items as bytes and back, for channels over a store.

A codec says what an item is on disk: changing it, or the items' shape, makes old records undecodable,
which are then set aside as dead letters and reported.
"""

import importlib
import json
from typing import Any, Generic

from typing_extensions import TypeVar

from dispatcher.errors import CodecError

__all__ = ["JSON", "Bytes", "Msgspec"]

T = TypeVar("T")


class Bytes:
    """Items are bytes already."""

    def encode(self, item: object, /) -> bytes:
        """
        Return *item*.

        Raises:
            CodecError: If it is not bytes.
        """
        if not isinstance(item, bytes | bytearray | memoryview):
            msg = f"the codec Bytes takes bytes, got {type(item).__name__}"
            raise CodecError(msg)
        return bytes(item)

    def decode(self, payload: bytes, /) -> bytes:
        """Return *payload*."""
        return payload


class JSON:
    """
    Items as JSON text (RFC 8259), compact, in UTF-8.

    What JSON has no word for is refused, and so is what would come back as something else: a mapping
    whose keys are not strings, NaN and the infinities. Tuples come back as lists.
    """

    def encode(self, item: Any, /) -> bytes:  # noqa: ANN401 - whatever JSON can say
        """
        Write *item*.

        Raises:
            CodecError: If JSON cannot say it.
        """
        try:
            text = json.dumps(item, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
            payload = text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"not an item for the codec JSON: {type(item).__name__}: {error}"
            raise CodecError(msg) from error
        _check_keys(item)
        return payload

    def decode(self, payload: bytes, /) -> Any:  # noqa: ANN401
        """
        Read an item.

        Raises:
            CodecError: If *payload* is no JSON.
        """
        try:
            return json.loads(payload)
        except (ValueError, RecursionError) as error:
            msg = f"a record is no JSON: {error}"
            raise CodecError(msg) from error


def _check_keys(item: object) -> None:
    stack = [item]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    msg = f"the codec JSON takes mappings with string keys, got the key {key!r}"
                    raise CodecError(msg)
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)


class Msgspec(Generic[T]):
    """
    Items of one type, by msgspec's MessagePack (the extra ``msgspec``): structs, dataclasses, attrs classes.

    Args:
        kind: The type; what does not fit it is refused on both ways.

    Raises:
        ImportError: If msgspec is not installed.
    """

    def __init__(self, kind: type[T]) -> None:
        try:
            msgpack = importlib.import_module("msgspec.msgpack")
        except ImportError as error:
            msg = "the codec Msgspec needs msgspec: pip install 'dispatcher-toolkit[msgspec]'"
            raise ImportError(msg) from error
        self._kind = kind
        self._encoder: Any = msgpack.Encoder()
        self._decoder: Any = msgpack.Decoder(kind)

    def encode(self, item: T, /) -> bytes:
        """
        Write *item*.

        Raises:
            CodecError: If it is not of the type, or holds what MessagePack cannot say.
        """
        try:
            payload: bytes = self._encoder.encode(item)
            self._decoder.decode(payload)
        except Exception as error:
            msg = f"not an item for the codec Msgspec({self._kind.__name__}): {type(item).__name__}: {error}"
            raise CodecError(msg) from error
        return payload

    def decode(self, payload: bytes, /) -> T:
        """
        Read an item.

        Raises:
            CodecError: If *payload* is not one of the type.
        """
        try:
            item: T = self._decoder.decode(payload)
        except Exception as error:
            msg = f"a record is no {self._kind.__name__}: {error}"
            raise CodecError(msg) from error
        return item
