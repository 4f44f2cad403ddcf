"""What users of the JSON serializer rely on, beyond the conformance suite."""

from __future__ import annotations

import dataclasses
import json
import timeit
from collections import OrderedDict, namedtuple
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import attrs
import pytest

from repid_core.errors import SerializationError
from repid_core.json_serializer import JsonSerializer

dumps, loads = JsonSerializer().dumps, JsonSerializer().loads


class Colour(Enum):
    RED = "red"
    PAIR = (1, "x")


class Level(IntEnum):
    LOW = 1


class Text(str):
    __slots__ = ()


Pair = namedtuple("Pair", "one two")  # noqa: PYI024 — untyped ones count too


@attrs.define
class Node:
    name: str
    next: Any = None
    size: int = attrs.field(init=False, default=5)


@dataclasses.dataclass
class Box:
    items: list[Any]
    total: int = dataclasses.field(init=False, default=0)


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, None, True, 1.5]}, '{"a":[1,null,true,1.5]}'),
        ("é", '"é"'),
        (Pair(1, 2), "[1,2]"),
        (Text("t"), '"t"'),
        ([Level.LOW, Colour.RED, Colour.PAIR], '[1,"red",[1,"x"]]'),
        (b"\x00\xff", '"AP8="'),
        (bytearray(b"a"), '"YQ=="'),
        (memoryview(b"a"), '"YQ=="'),
        (PurePosixPath("/a/b"), '"/a/b"'),
        (OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
        (MappingProxyType({"a": 1}), '{"a":1}'),
        ({"b", "a", "c"}, '["a","b","c"]'),
        ({10, 9}, "[9,10]"),
        (frozenset({UUID(int=2), UUID(int=1)}), f'["{UUID(int=1)}","{UUID(int=2)}"]'),
        ({1, "a"}, '["a",1]'),
        (Node("a", Node("b")), '{"name":"a","next":{"name":"b","next":null}}'),
        (Box([Node("x")]), '{"items":[{"name":"x","next":null}]}'),
        (datetime(2024, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=2))), '"2024-01-02T03:04:05.000006+02:00"'),
    ],
)
def test_forms(value: Any, text: str) -> None:
    assert dumps(value).decode() == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(0), "PT0S"),
        (timedelta(days=1, hours=2, microseconds=500_000), "P1DT2H0.5S"),
        (timedelta(minutes=90), "PT1H30M"),
        (timedelta(microseconds=-1), "-PT0.000001S"),
        (timedelta(seconds=-90), "-PT1M30S"),
        (timedelta.max, "P999999999DT23H59M59.999999S"),
        (timedelta.min, "-P999999999D"),
    ],
)
def test_durations(value: timedelta, text: str) -> None:
    assert loads(dumps(value)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({1: "a", -2: "b"}, '{"1":"a","-2":"b"}'),
        ({Level.LOW: 1}, '{"1":1}'),
        ({Colour.RED: 1}, '{"red":1}'),
        ({UUID(int=1): {b"a": 2}}, f'{{"{UUID(int=1)}":{{"YQ==":2}}}}'),
        ({datetime(2024, 1, 1, tzinfo=UTC): 1}, '{"2024-01-01T00:00:00+00:00":1}'),
        ({"1": "text", "true": 1, "null": 2}, '{"1":"text","true":1,"null":2}'),
        (Node("a", {3: {UUID(int=1)}}), f'{{"name":"a","next":{{"3":["{UUID(int=1)}"]}}}}'),
    ],
)
def test_keys(value: Any, text: str) -> None:
    assert dumps(value).decode() == text


def cycle() -> Any:
    node = Node("a")
    node.next = [node]
    return node


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"user": {"friends": [1, 2, 3, Opaque()]}}, r"\$\.user\.friends\[3\]: cannot serialize .*Opaque: make it an attrs"),
        ({"a b": [Opaque]}, r"\$\['a b'\]\[0\]: cannot serialize type"),
        ([Node("x", Box([object()]))], r"\$\[0\]\.next\.items\[0\]: cannot serialize object"),
        ({"x": {Opaque()}}, r"\$\.x\[0\]: cannot serialize .*Opaque"),
        ({"x": float("nan")}, r"\$\.x: cannot serialize nan"),
        ([float("-inf")], r"\$\[0\]: cannot serialize -inf"),
        ({"x": ["\ud800"]}, r"\$\.x\[0\]: .*surrogate"),
        ({"x": {"\ud800": 1}}, r"\$\.x: .*surrogate"),
        (cycle(), r"\$\.next\[0\]: this .*Node contains itself"),
        ({"x": {1: "a", "1": "b"}}, r"\$\.x: two keys are both written as '1'"),
        ({True: 1}, r"the key True of type bool"),
        ({None: 1}, r"the key None of type NoneType"),
        ({1.5: 1}, r"the key 1\.5 of type float"),
        ({(1, 2): 1}, r"the key \(1, 2\) of type tuple"),
        ({"x": {Opaque(): 1}}, r"\$\.x: cannot serialize the key .*Opaque"),
        ({"n": 10**5000}, r"\$\.n: cannot serialize this int"),
        (attrs.evolve(Node("a"), next=iter([])), r"\$\.next: cannot serialize list_iterator"),
    ],
)
def test_errors_name_path_and_reason(value: Any, message: str) -> None:
    with pytest.raises(SerializationError, match=message):
        dumps(value)


def test_error_of_a_field_that_cannot_be_read_names_the_object() -> None:
    node = Node("a")
    del node.next
    with pytest.raises(SerializationError, match=r"\$\[0\]: cannot serialize .*Node: .*next") as caught:
        dumps([node])
    assert isinstance(caught.value.__cause__, AttributeError)


def test_one_object_in_two_places_is_no_cycle() -> None:
    shared = {UUID(int=1): [1]}
    assert loads(dumps([shared, shared])) == [{str(UUID(int=1)): [1]}] * 2


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"NaN", b"[Infinity]", b"[" * 100_000, b"1" * 5000, b"1 2", b"'a'"])
def test_garbage(data: bytes) -> None:
    with pytest.raises(SerializationError, match="not JSON"):
        loads(data)


def test_plain_data_costs_about_as_much_as_json_dumps() -> None:
    """No second walk over plain data: the bound is loose because the machine may be busy."""
    rows = [{"id": n, "name": f"user {n}", "tags": ["a", "b"], "score": n * 1.5} for n in range(300)]
    ours = min(timeit.repeat(lambda: dumps(rows), number=5, repeat=5))
    theirs = min(timeit.repeat(lambda: json.dumps(rows).encode(), number=5, repeat=5))
    assert ours < theirs * 2
