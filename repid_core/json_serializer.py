"""JSON by the standard library, for plain data and the types that arguments and results are made of."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any, NoReturn
from uuid import UUID

import attrs

from repid_core.abc import Serializer
from repid_core.errors import SerializationError
from repid_core.hookspecs import Backend, hookimpl


class JsonSerializer(Serializer):
    """Writes compact UTF-8 JSON. Equal values give equal bytes in every process, as far as their mappings have one order.

    ==============================================  ===========================================================
    value                                           JSON
    ==============================================  ===========================================================
    None, bool, int, float, str, subclasses         themselves; NaN and infinities are refused, as JSON has none
    list, tuple, named tuple                        array
    set, frozenset                                  array, sorted: by value if all are int or str, else by JSON text
    mapping                                         object; keys are str, int, and what is written as text; two keys
                                                    of one text, such as 1 and "1", are refused
    attrs class, dataclass                          object of the fields that `__init__` takes, by field name
    enum                                            its value
    datetime                                        ISO 8601 text; a naive one means local time and gets its offset
    date, time                                      ISO 8601 text
    timedelta                                       ISO 8601 duration such as "P1DT2H0.5S", "-PT3S"; exact
    UUID, Decimal, path                             text
    bytes, bytearray, memoryview                    base64 text
    ==============================================  ===========================================================

    Anything else is refused. `loads` gives plain data; converters bring the types back.
    """

    name = "json"
    content_type = "application/json"

    def dumps(self, value: Any) -> bytes:
        """Encode.

        Raises:
            SerializationError: Names path and type: "$.user.friends[3]: cannot serialize …".
        """
        try:
            text = _encode(value)
            if not _suspect_keys(text):
                return text.encode()
        except Exception:  # noqa: BLE001, S110 — whatever it is, the walk below says where it is
            pass
        try:
            return _encode(_plain(value, "$", set())).encode()
        except RecursionError as error:
            raise SerializationError("$: nested too deeply for JSON") from error

    def loads(self, data: bytes) -> Any:
        """Decode to plain data.

        Raises:
            SerializationError: It is not JSON in UTF-8.
        """
        try:
            return _decode(str(data, "utf-8"))
        except (ValueError, RecursionError) as error:
            raise SerializationError(f"the data is not JSON: {error}") from error


def _iso_datetime(value: datetime) -> str:
    return (value if value.tzinfo else value.astimezone()).isoformat()


def _iso_duration(value: timedelta) -> str:
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    minutes, seconds = divmod(value.seconds, 60)
    fraction = f".{value.microseconds:06}".rstrip("0") if value.microseconds else ""
    parts = ((minutes // 60, "H"), (minutes % 60, "M"), (f"{seconds}{fraction}" if seconds or fraction else 0, "S"))
    clock = "".join(f"{number}{unit}" for number, unit in parts if number)
    days = f"{value.days}D" if value.days else ""
    return f"{sign}P{days}{'T' * bool(clock)}{clock}" if days or clock else "PT0S"


def _order(values: Iterable[Any]) -> Callable[[Any], str] | None:
    kinds = set(map(type, values))
    return None if len(kinds) == 1 and kinds <= {int, str} else _encode


def _sorted(values: set[Any] | frozenset[Any]) -> list[Any]:
    return sorted(values, key=_order(values))


def _base64(value: Any) -> str:
    return b64encode(value).decode()


_WRITERS: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    (Enum, lambda value: value.value),
    (datetime, _iso_datetime),
    ((date, time), lambda value: value.isoformat()),
    (timedelta, _iso_duration),
    ((UUID, Decimal, PurePath), str),
    ((bytes, bytearray, memoryview), _base64),
    ((set, frozenset), _sorted),
    (Mapping, dict),
)


@lru_cache(maxsize=4096)
def _writer(cls: Any) -> Callable[[Any], Any] | None:
    """What makes an instance plainer, or None if nothing does."""
    fields = attrs.fields if attrs.has(cls) else dataclasses.fields if dataclasses.is_dataclass(cls) else None
    if fields is not None:
        names = [field.name for field in fields(cls) if field.init]
        return lambda value: {name: getattr(value, name) for name in names}
    return next((write for base, write in _WRITERS if issubclass(cls, base)), None)


def _default(value: Any) -> Any:
    cls: Any = type(value)
    if (write := _writer(cls)) is None:
        raise TypeError
    return write(value)


def _encoder() -> Callable[[Any], str]:
    """`JSONEncoder.encode` that sets up its machine once: doing so for every value takes as long as to encode a small one."""
    encoder = json.JSONEncoder(
        ensure_ascii=False,
        check_circular=False,  # a cycle ends in RecursionError, and the walk then finds it
        allow_nan=False,
        separators=(",", ":"),
        default=_default,
    )
    try:
        write = vars(json.encoder)["c_make_encoder"](
            None, encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False
        )
    except (KeyError, TypeError):  # this Python has none, or another
        return encoder.encode
    return lambda value: "".join(write(value, 0))


_encode = _encoder()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_decode = json.JSONDecoder(parse_constant=_no_constant).decode
_key_ends_in_digit = re.compile(r'":(?<=[0-9]":)').search


def _suspect_keys(text: str) -> bool:
    """Whether a key may have been something else than text: the encoder writes 1 and True as "1" and "true" unasked.

    The text of the whole is searched because that costs a tenth of what a look at every mapping would.
    """
    return bool(_key_ends_in_digit(text)) or '"null":' in text or '"true":' in text or '"false":' in text


def _plain(value: Any, path: str, above: set[int]) -> Any:
    """Copy a value as plain data with text keys, slowly; say where it cannot be done."""
    if isinstance(value, str | int | float | None):
        return _plain_scalar(value, path)
    if id(value) in above:
        raise SerializationError(f"{path}: this {_name(value)} contains itself, which JSON cannot express")
    above.add(id(value))
    try:
        if isinstance(value, dict):
            return _plain_mapping(value, path, above)
        if isinstance(value, list | tuple | set | frozenset):
            items = [_plain(item, f"{path}[{index}]", above) for index, item in enumerate(value)]
            return sorted(items, key=_order(value)) if isinstance(value, set | frozenset) else items
        return _plain(_written(value, path), path, above)
    finally:
        above.discard(id(value))


def _plain_scalar(value: Any, path: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise SerializationError(f"{path}: cannot serialize {value!r}: JSON has no such number; pass None or text")
    try:
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, int) and value.bit_length() > 1000:
            _encode(value)  # Python limits the digits of numbers as text
    except UnicodeEncodeError as error:
        raise SerializationError(f"{path}: cannot serialize this {_name(value)}: it holds a lone surrogate") from error
    except ValueError as error:
        raise SerializationError(f"{path}: cannot serialize this {_name(value)}: {error}") from error
    return value


def _plain_mapping(value: dict[Any, Any], path: str, above: set[int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, item in value.items():
        text = key
        while not isinstance(text, str | bool | float | dict | list | tuple | set | frozenset | None):
            text = str(int(text)) if isinstance(text, int) else _written(text, path, "the key ")
        if not isinstance(text, str):
            raise SerializationError(
                f"{path}: cannot serialize the key {key!r} of type {_name(key)}: use str, int, or what is written as text",
            )
        _plain_scalar(text, path)
        if text in result:
            raise SerializationError(f"{path}: two keys are both written as {text!r}, the second being {key!r}: rename one")
        result[text] = _plain(item, f"{path}.{text}" if text.isidentifier() else f"{path}[{text!r}]", above)
    return result


def _written(value: Any, path: str, what: str = "") -> Any:
    cls: Any = type(value)
    if (write := _writer(cls)) is None:
        raise SerializationError(
            f"{path}: cannot serialize {what}{_name(value)}: make it an attrs class, a dataclass, or plain data",
        )
    try:
        return write(value)
    except Exception as error:
        raise SerializationError(f"{path}: cannot serialize {what}{_name(value)}: {error or type(error).__name__}") from error


def _name(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


@hookimpl
def repid_register_serializers() -> list[Backend[Serializer]]:
    """Register "json"."""
    return [
        Backend(
            "json",
            factory=JsonSerializer,
            content_types=(JsonSerializer.content_type,),
            summary="JSON with dates, UUIDs, decimals, enums, bytes, sets, attrs classes and dataclasses",
        ),
    ]
