"""What the serializers add to the contract, and how they are chosen."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repid_core.abc import Serializer
from repid_core.errors import SerializationError
from repid_core.json_serializer import JsonSerializer
from repid_core.plugins import Kind, plugins
from repid_msgspec import MsgpackSerializer, MsgspecJsonSerializer

PACK, JSON = MsgpackSerializer(), MsgspecJsonSerializer()
BOTH = pytest.mark.parametrize("serializer", [PACK, JSON], ids=lambda serializer: serializer.name)


class Point(msgspec.Struct, rename="camel", tag="point"):
    first_x: int
    note: str | msgspec.UnsetType = msgspec.UNSET
    at: datetime | None = None


class Pair(msgspec.Struct, array_like=True):
    a: int
    b: UUID


class Number(IntEnum):
    ONE = 1


class Name(Enum):
    ONE = "one"


@attrs.define
class Counter:
    _start: int
    total: int = attrs.field(init=False, default=0)


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45))]))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.sampled_from([Number.ONE, Name.ONE])
)
KEYS = st.text() | st.uuids() | st.dates()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner) | st.sets(st.integers()) | st.sets(st.text()),
    max_leaves=10,
)


@given(VALUES | st.dictionaries(st.integers(), VALUES))
def test_json_is_what_cores_own_serializer_writes(value: Any) -> None:
    try:
        wanted = JsonSerializer().loads(JsonSerializer().dumps(value))
    except SerializationError:
        with pytest.raises(SerializationError):
            JSON.dumps(value)
    else:
        assert JSON.loads(JSON.dumps(value)) == wanted
        assert JsonSerializer().loads(JSON.dumps(value)) == wanted


@given(VALUES)
def test_messagepack_has_the_forms_of_json(value: Any) -> None:
    with suppress(SerializationError):  # integers of more than 64 bits in sets, and keys that become one
        assert PACK.loads(PACK.dumps(value)) == JSON.loads(JSON.dumps(value))


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for serializer in (PACK, JSON):
        with suppress(SerializationError):
            serializer.loads(data)


def test_messagepack_keeps_bytes_and_integer_keys_and_nan() -> None:
    value = {"b": b"\x00\xff", "n": {1: "one", Number.ONE + 1: "two"}, b"key": bytearray(b"x")}
    assert PACK.loads(PACK.dumps(value)) == {"b": b"\x00\xff", "n": {1: "one", 2: "two"}, b"key": b"x"}
    for odd in ({None: 1, "null": 2}, {1.5: UUID(int=1)}, {(1, "a"): None, True: {3}}):
        assert PACK.loads(PACK.dumps(odd)).keys() == odd.keys()
    assert PACK.loads(PACK.dumps([math.inf, {1: "a", "1": "b"}])) == [math.inf, {1: "a", "1": "b"}]


def test_json_keeps_large_integers_and_messagepack_refuses_them() -> None:
    assert JSON.loads(JSON.dumps({"n": 10**30})) == {"n": 10**30}
    with pytest.raises(SerializationError, match=r"^\$\.n\[1\]: cannot serialize this int: .*2\*\*64"):
        PACK.dumps({"n": [1, 2**64]})


@BOTH
def test_structs_are_as_msgspec_writes_them(serializer: Serializer) -> None:
    moment = datetime(2024, 1, 2, tzinfo=UTC)
    value = {"p": Point(1, at=moment), "q": Pair(1, UUID(int=2))}
    wanted = {"p": {"type": "point", "firstX": 1, "at": moment.isoformat()}, "q": [1, str(UUID(int=2))]}
    assert serializer.loads(serializer.dumps(value)) == wanted


@BOTH
def test_what_is_encoded_already_goes_in_as_it_is(serializer: Serializer) -> None:
    raw = msgspec.Raw(serializer.dumps({"a": [1]}))
    for value in ([raw], [raw, UUID(int=1)]):
        assert serializer.loads(serializer.dumps(value))[0] == {"a": [1]}


@BOTH
def test_offsets_subclasses_and_fields(serializer: Serializer) -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    value = [moment, Text("text"), OrderedDict(b=1, a=[Decimal("1.10")]), Counter(3), {Name.ONE: Number.ONE}]
    wanted = [moment.isoformat(), "text", {"b": 1, "a": ["1.10"]}, {"_start": 3}, {"one": 1}]
    assert serializer.loads(serializer.dumps(value)) == wanted


def test_json_refuses_bytes_and_numbers_as_keys_that_become_another() -> None:
    for value in ({b"abc": 1, "YWJj": 2}, {float("nan"): 1}, {float("inf"): 1}, {1: 1, "1": 2}):
        with pytest.raises(SerializationError, match=r"^\$\[0\]: (cannot serialize the key|two keys are both written)"):
            JSON.dumps([value])


@pytest.mark.parametrize("key", [None, True, 1.5, (1, 2)])
def test_json_refuses_keys_that_are_no_text(key: Any) -> None:
    with pytest.raises(SerializationError, match=r"^\$\.a: cannot serialize the key .*: use str, int"):
        JSON.dumps({"a": {key: 2}})


@BOTH
def test_text_that_looks_like_sets_and_keys_is_taken_for_what_it_is(serializer: Serializer) -> None:
    value = {"key1": "<>", "null": ["x" * 60, False], "true": {"a": 62}}
    assert serializer.loads(serializer.dumps(value)) == value
    assert serializer.loads(serializer.dumps({"a": {3, 1, 2}, "b": frozenset("ba")})) == {"a": [1, 2, 3], "b": ["a", "b"]}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_would_become_null(bad: float) -> None:
    for value in ({"a": [None, 2**70, bad]}, [[{"b": (bad,)}]], {"x": {bad}}):
        with pytest.raises(SerializationError, match=r"^\$.* cannot serialize this float: JSON has no NaN"):
            JSON.dumps(value)
    looks_like_it = {"a": None, "b": "\x7f\x7f", "c": 2**70}
    assert JSON.loads(JSON.dumps(looks_like_it)) == looks_like_it


@BOTH
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": {"b c": [object()]}}, r"\$\.a\['b c'\]\[0\]: cannot serialize object: make it an attrs class"),
        ({"a": {frozenset(): 2}}, r"\$\.a: cannot serialize the key frozenset\(\) of type frozenset: use str, int"),
        ({"a": {UUID(int=1): 1, str(UUID(int=1)): 2}}, r"\$\.a: two keys are both written as '0.*rename one"),
        ({"a": "\ud800"}, r"\$\.a: cannot serialize this str: .*surrogates"),
        ([msgspec.msgpack.Ext(1, b"")], r"\$\[0\]: cannot serialize msgspec.msgpack.Ext"),
    ],
)
def test_errors_say_where_and_what_to_do(serializer: Serializer, value: Any, says: str) -> None:
    with pytest.raises(SerializationError, match=f"^{says}"):
        serializer.dumps(value)


def test_of_extensions_only_timestamps_are_read() -> None:
    moment = datetime(2024, 1, 2, tzinfo=UTC)
    assert PACK.loads(msgspec.msgpack.encode(moment)) == moment
    with pytest.raises(SerializationError, match="an extension of type 5"):
        PACK.loads(msgspec.msgpack.encode(msgspec.msgpack.Ext(5, b"x")))


def test_they_are_found_by_name_and_by_content_type() -> None:
    for made in (PACK, JSON):
        assert type(plugins().build(Kind.SERIALIZER, made.name)) is type(made)
        assert type(plugins().for_content_type(made.content_type)) is type(made)
    assert isinstance(plugins().for_content_type("application/x-msgpack"), MsgpackSerializer)
    assert isinstance(plugins().for_content_type("application/json"), JsonSerializer)


def test_msgspec_is_not_imported_until_it_is_wanted() -> None:
    program = "import repid_msgspec, sys; assert 'msgspec' not in sys.modules; repid_msgspec.MsgpackSerializer"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
