"""The two serializers."""

from __future__ import annotations

import re
from typing import Any, Final, NoReturn

import msgspec

from repid_core.abc import Serializer
from repid_core.errors import SerializationError
from repid_msgspec.plain import Form
from repid_msgspec.problems import locate

_BAD_DATA: Final = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)

_msgpack = msgspec.msgpack.Encoder().encode
_json = msgspec.json.Encoder().encode
_not_finite = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search  # as MessagePack; other bytes may look so


def _has_float_that_is_not_finite(value: Any) -> bool:
    if type(value) is float:
        return value - value != 0
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(map(_has_float_that_is_not_finite, inner))


def _strict_json(value: Any) -> bytes:
    """Encode plain data. msgspec writes NaN as null unasked, which MessagePack tells apart at a tenth of a walk's cost."""
    data = _json(value)
    if b"null" in data:
        try:
            suspect = _not_finite(_msgpack(value)) is not None
        except OverflowError:  # a large integer
            suspect = True
        if suspect and _has_float_that_is_not_finite(value):
            raise ValueError("JSON has no NaN and no infinities; pass None or text")
    return data


def _no_extension(code: int, _data: memoryview) -> NoReturn:
    raise ValueError(f"it has an extension of type {code}, which is no plain data")


class _OnMsgspec(Serializer):
    """What both have in common."""

    _form: Form
    _decode: Any
    _format: str

    def dumps(self, value: Any) -> bytes:
        """Encode.

        Raises:
            SerializationError: Names path and type: "$.user.friends[3]: cannot serialize …".
        """
        try:
            return self._form.dumps(value)
        except Exception as error:
            locate(self._form, value)
            raise SerializationError(f"$: cannot serialize this {type(value).__name__}: {error}") from error

    def loads(self, data: bytes) -> Any:
        """Decode to plain data.

        Raises:
            SerializationError: The bytes are not of this format.
        """
        try:
            return self._decode(data)
        except _BAD_DATA as error:
            raise SerializationError(f"the data is not {self._format}: {error}") from error


class MsgpackSerializer(_OnMsgspec):
    """MessagePack. Equal values give equal bytes in every process, as far as their mappings have one order.

    It takes what repid-core's JSON serializer takes, and msgspec's Structs, and writes it in the same forms, except that
    bytes stay bytes, keys that are plain data stay as they are, and NaN and infinities are kept. Integers have 64 bits; larger
    ones are refused.

    `loads` gives plain data. A timestamp, which others may have written, becomes a datetime in UTC; other extensions are
    refused.
    """

    name = "msgpack"
    content_type = "application/vnd.msgpack"
    _form = Form(_msgpack, binary=True)
    _decode = staticmethod(msgspec.msgpack.Decoder(ext_hook=_no_extension).decode)
    _format = "MessagePack"


class MsgspecJsonSerializer(_OnMsgspec):
    """The JSON that repid-core's JSON serializer writes, and msgspec's Structs as objects. It is faster to read.

    NaN, infinities, and two keys of one text, such as 1 and "1", are refused, as they are there.
    """

    name = "msgspec-json"
    content_type = "application/vnd.msgspec+json"
    _form = Form(_strict_json, binary=False)
    _decode = staticmethod(msgspec.json.Decoder().decode)
    _format = "JSON"
