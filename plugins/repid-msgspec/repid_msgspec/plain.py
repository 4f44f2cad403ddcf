"""What becomes of values before msgspec sees them.

msgspec would write some values in ways that lose something unasked (naive datetimes, sets in no order, keys that become one), so
only plain data reaches it. What is plain already, the most of what jobs carry, is recognised fast and not copied: `marshal` takes
plain data and fails on all else, and what it makes is thrown away.
"""

from __future__ import annotations

import dataclasses
import marshal
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from operator import attrgetter
from pathlib import PurePath
from types import NoneType
from typing import Any, Final
from uuid import UUID

import attrs
import msgspec

_PLAIN: Final = frozenset({NoneType, bool, int, float, str, msgspec.Raw})
_NO_KEYS: Final = (msgspec.Raw, bool, float, dict, list, tuple, set, frozenset, NoneType)

Writer = Callable[[Any], Any]

_pack = msgspec.msgpack.Encoder().encode
_MARKS_OF_BYTES: Final = (b"\xc4", b"\xc5", b"\xc6")
_key_ends_in_digit = re.compile(rb'":(?<=[0-9]":)').search


def is_plain(value: Any) -> bool:
    """Whether there is nothing but plain data in it, exactly, bytes among it; False also for some text that looks like sets."""
    try:
        found = marshal.dumps(value, 2)  # later versions look for what is shared, which takes longer
    except ValueError:
        return False
    return b"<" not in found and b">" not in found  # its marks of sets


def _may_be_no_text(data: bytes, value: Any) -> bool:
    """Whether keys in JSON may have been something else than text: numbers, or bytes, which MessagePack has a mark for."""
    if _key_ends_in_digit(data) or b'nan":' in data or b'inf":' in data:
        return True
    try:
        packed = _pack(value)
    except OverflowError:  # a large integer
        return True
    return any(mark in packed for mark in _MARKS_OF_BYTES)


class Form:
    """How values are made plain for one format.

    Args:
        encode: Encodes plain data; gives the order of sets that are neither of text nor of numbers.
        binary: Whether the format has bytes, and keys that are no text. If not, they become text or are refused.
    """

    def __init__(self, encode: Callable[[Any], bytes], *, binary: bool) -> None:
        self.encode, self.binary = encode, binary
        self._values = _PLAIN | {bytes} if binary else _PLAIN
        self._keys = frozenset({str, int, bytes} if binary else {str})

    def dumps(self, value: Any) -> bytes:
        """Encode any value that can be.

        Raises:
            Exception: Any, if it cannot be; `problems.locate` tells where and why.
        """
        if type(value) is dict and self._is_flat(value):  # small arguments, for which what follows takes long
            return self.encode(value)
        if is_plain(value):
            data = self.encode(value)
            if self.binary or not _may_be_no_text(data, value):
                return data
        return self.encode(self.plain(value))

    def plain(self, value: Any) -> Any:
        """The value as plain data; itself if it is that already.

        Raises:
            Exception: As `dumps` does.
        """
        cls: Any = type(value)
        plain, values = self.plain, self._values
        if cls in values:
            return value
        if cls is dict:
            if not self._keys.issuperset(map(type, value)):
                return self._mapping(value)
            return (
                value
                if self._is_flat(value)
                else {key: item if type(item) in values else plain(item) for key, item in value.items()}
            )
        if cls is list or cls is tuple:
            easy = values.issuperset(map(type, value))
            return value if easy else [item if type(item) in values else plain(item) for item in value]
        if cls is set or cls is frozenset:
            return self.ordered([plain(item) for item in value])
        return plain(self.write(value))

    def write(self, value: Any) -> Any:
        """Make a value that is not plain plainer, by its class. A `TypeError` if nothing does."""
        cls: Any = type(value)
        write: Writer | None = writer(cls)
        if write is None:
            raise TypeError("make it an attrs class, a dataclass, a Struct, or plain data")
        written = write(value)
        return b64encode(written).decode() if type(written) is bytes and not self.binary else written

    def key(self, key: Any) -> Any:
        """A mapping's key as the format has it. A `TypeError` if it has none for it."""
        while type(key) not in self._keys:
            if self.binary and is_plain(key):
                return key
            if type(key) is int:
                return str(key)
            if isinstance(key, _NO_KEYS) and not isinstance(key, Enum):
                raise TypeError("use str, int, or what is written as text")
            key = self.write(key)
        return key

    def ordered(self, items: list[Any]) -> list[Any]:
        """The members of a set in an order that does not depend on how it came about."""
        kinds = set(map(type, items))
        return sorted(items, key=None if len(kinds) == 1 and kinds <= {int, str} else self.encode)

    def _is_flat(self, value: dict[Any, Any]) -> bool:
        return self._keys.issuperset(map(type, value)) and self._values.issuperset(map(type, value.values()))

    def _mapping(self, value: Mapping[Any, Any]) -> dict[Any, Any]:
        result = {self.key(key): self.plain(item) for key, item in value.items()}
        if len(result) != len(value):
            raise ValueError("two keys become one")
        return result


def _datetime(value: datetime) -> str:
    return (value if value.tzinfo else value.astimezone()).isoformat()


def _duration(value: timedelta) -> str:
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    minutes, seconds = divmod(value.seconds, 60)
    fraction = f".{value.microseconds:06}".rstrip("0") if value.microseconds else ""
    parts = ((minutes // 60, "H"), (minutes % 60, "M"), (f"{seconds}{fraction}" if seconds or fraction else 0, "S"))
    clock = "".join(f"{number}{unit}" for number, unit in parts if number)
    days = f"{value.days}D" if value.days else ""
    return f"{sign}P{days}{'T' * bool(clock)}{clock}" if days or clock else "PT0S"


_WRITERS: tuple[tuple[type | tuple[type, ...], Writer], ...] = (
    (Enum, lambda value: value.value),
    (str, str.__str__),  # these three are of subclasses, whose methods may say something else
    (int, int.__pos__),
    (float, float.__pos__),
    (datetime, _datetime),
    ((date, time), lambda value: value.isoformat()),
    (timedelta, _duration),
    ((UUID, Decimal, PurePath), str),
    ((bytes, bytearray, memoryview), bytes),
    ((list, tuple), list),
    (frozenset, frozenset),
    (set, set),
    (Mapping, dict),
)


@lru_cache(maxsize=4096)
def writer(cls: Any) -> Writer | None:
    """What makes an instance plainer, or None if nothing does."""
    if issubclass(cls, msgspec.Struct):
        return _struct(cls)
    fields = attrs.fields if attrs.has(cls) else dataclasses.fields if dataclasses.is_dataclass(cls) else None
    if fields is not None:
        names = [field.name for field in fields(cls) if field.init]
        if len(names) > 1:
            values = attrgetter(*names)
            return lambda value: dict(zip(names, values(value), strict=True))
        return lambda value: {name: getattr(value, name) for name in names}
    return next((write for base, write in _WRITERS if issubclass(cls, base)), None)


def _struct(cls: type[msgspec.Struct]) -> Writer:
    """As msgspec writes it: by the names for encoding, with the tag, without fields that are unset."""
    config = cls.__struct_config__
    names = list(zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True))
    if config.array_like:
        start = [] if config.tag is None else [config.tag]
        return lambda value: start + [getattr(value, name) for _, name in names]
    tag = {} if config.tag is None or config.tag_field is None else {config.tag_field: config.tag}

    def write(value: Any) -> dict[str, Any]:
        items = ((encoded, getattr(value, name)) for encoded, name in names)
        return tag | {encoded: item for encoded, item in items if item is not msgspec.UNSET}

    return write
