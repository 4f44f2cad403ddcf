"""The suite for serializers."""

from __future__ import annotations

import copy
import dataclasses
import enum
import math
import pickle
import re
import time as _time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

import attrs
import pytest

from repid_core.abc import Serializer
from repid_core.cattrs_converter import CattrsConverter
from repid_core.errors import SerializationError
from repid_core.testing.conformance.suite import ConformanceSuite, check, promise, same


class Colour(enum.Enum):
    """An enum by text."""

    RED = "red"


class Level(enum.IntEnum):
    """An enum by number."""

    LOW = 1


@attrs.frozen
class Point:
    """An attrs class, which can be a member of a set."""

    x: int
    y: int = 0


@dataclasses.dataclass
class Shape:
    """A dataclass with an attrs class in it."""

    name: str
    points: list[Point]


class _Opaque:
    pass


_explosions: list[str] = []


def _explode() -> None:
    _explosions.append("bang")


class _Bomb:
    """Goes off if somebody unpickles it."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _explode, ()


PLAIN: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**53 + 1,
    -(2**63),
    0.1,
    -1e300,
    5e-324,
    "",
    'quotes " and \\ and / and \x00\x1f\u2028',
    "ünïcödé 日本語 🎉 עברית",
    [],
    {},
    [[], {}, [None, [1, [2.5]]]],
    {"": 0, " ": 1, "b": [1, 2], "a": {"c": None}, "1": "text key"},
    list(range(1000)),
)

# One value of each type that arguments are made of, by the hint that converts it back.
NATIVE: Mapping[Any, Any] = {
    datetime: datetime(2024, 2, 29, 23, 59, 59, 999999, timezone(timedelta(hours=-3, minutes=-30))),
    date: date(2024, 2, 29),
    time: time(1, 2, 3, 4),
    timedelta: timedelta(days=-3, seconds=5, microseconds=7),
    UUID: UUID("12345678-1234-5678-1234-567812345678"),
    Decimal: Decimal("-1.10"),
    bytes: bytes(range(256)),
    Colour: Colour.RED,
    Level: Level.LOW,
    set[int]: {3, 1, 2},
    frozenset[str]: frozenset({"b", "a"}),
    tuple[int, str]: (1, "one"),
    Point: Point(1, 2),
    Shape: Shape("line", [Point(0), Point(1, 1)]),
    dict[str, UUID]: {"id": UUID(int=7)},
    dict[Colour, list[date]]: {Colour.RED: [date(2024, 1, 1)]},
    dict[UUID, int]: {UUID(int=1): 1},
    dict[int, str]: {1: "one", -20: "minus twenty"},
}


class SerializerConformance(ConformanceSuite):
    """Holds a serializer to what core and the converters rely on.

    As in::

        class TestMySerializer(SerializerConformance):
            @pytest.fixture
            def serializer(self) -> Serializer:
                return MySerializer()

    Attributes:
        without: Hints of `NATIVE` that the serializer refuses, each with the reason.
    """

    without: ClassVar[Mapping[Any, str]] = {}

    @pytest.fixture
    def serializer(self) -> Serializer:
        """The one fixture to write: a serializer."""
        pytest.fail(f"{type(self).__name__} needs a fixture serializer, which returns the serializer")

    @promise("S1", "Plain data (null, booleans, numbers, text, lists, mappings with text keys in order) comes back as it was.")
    def test_plain_data(self, serializer: Serializer) -> None:
        for value in PLAIN:
            data = serializer.dumps(value)
            check(type(data) is bytes, f"dumps gave {type(data).__name__} for {value!r}")
            same(_typed(serializer.loads(data)), _typed(value), "what came back")

    @promise("S2", "It takes what arguments are made of (see NATIVE), in a form that core's converter brings back equal.")
    def test_native_types(self, serializer: Serializer) -> None:
        for hint, value in NATIVE.items():
            if hint in self.without:
                with pytest.raises(SerializationError):
                    serializer.dumps(value)
                continue
            back = _converted(serializer.loads(serializer.dumps(value)), hint)
            same((back, type(back)), (value, type(value)), f"what came back for {hint}")

    @promise("S3", "A naive datetime means local time, and comes back as the same moment wherever it is read.")
    def test_naive_datetime(self, serializer: Serializer, monkeypatch: pytest.MonkeyPatch) -> None:
        naive = datetime(2024, 7, 1, 12, 30)  # noqa: DTZ001 — the point
        try:
            with monkeypatch.context() as patch:
                patch.setenv("TZ", "FAR-03:30")  # where the tests run, local time may be the same as UTC
                tzset()
                moment, data = naive.astimezone(UTC), serializer.dumps({"at": naive})
        finally:
            tzset()
        back = _converted(serializer.loads(data), dict[str, datetime])["at"]
        same(back.astimezone(UTC), moment, "the moment")

    @promise("S4", "What it cannot encode raises SerializationError, naming the path and the type.")
    def test_error_names_path_and_type(self, serializer: Serializer) -> None:
        for value in (_Opaque(), _Opaque, iter([1])):
            with pytest.raises(SerializationError) as caught:
                serializer.dumps({"user": {"friends": [1, 2, 3, value]}})
            text = str(caught.value)
            for part in ("user", "friends", "3", type(value).__qualname__):
                check(part in text, f"the error does not name {part!r}: {text}")

    @promise("S5", "Values that contain themselves, or are nested without end, raise SerializationError; the process goes on.")
    def test_cycles_and_depth(self, serializer: Serializer) -> None:
        cycle: list[Any] = []
        cycle.append({"again": cycle})
        deep: Any = None
        for _ in range(100_000):
            deep = [deep]
        for value in (cycle, deep):
            with pytest.raises(SerializationError):
                serializer.dumps(value)
        while deep:  # piece by piece, as Python itself would free it too deeply
            deep = deep.pop()

    @promise("S6", "What formats may lack (NaN, infinities, lone surrogates, large integers) survives or is refused.")
    def test_odd_scalars(self, serializer: Serializer) -> None:
        for value in (math.nan, math.inf, -math.inf, "\ud800", 2**63, 2**64, -(2**64), 10**30, 10**5000):
            try:
                back = serializer.loads(serializer.dumps([value]))[0]
            except SerializationError:
                continue
            nan = isinstance(value, float) and math.isnan(value) and isinstance(back, float) and math.isnan(back)
            check(nan or back == value, f"{_brief(value)} became {_brief(back)}")

    @promise("S7", "Two keys of a mapping never become one, and no key becomes another unasked.")
    def test_keys(self, serializer: Serializer) -> None:
        mixed: tuple[dict[Any, Any], ...] = (
            {1: "a", "1": "b"},
            {"x": {None: 1, "null": 2}},
            {True: 1, "true": 2},
            {1.5: 1, "1.5": 2},
            {UUID(int=1): 1, str(UUID(int=1)): 2},
            {Colour.RED: 1, "red": 2},
        )
        for value in mixed:
            try:
                back = serializer.loads(serializer.dumps([value]))[0]
            except SerializationError:
                continue
            same(len(back), len(value), f"the number of keys of {value!r}")

    @promise("S8", "Bytes that are not of the format raise SerializationError and nothing else.")
    def test_garbage(self, serializer: Serializer) -> None:
        whole = serializer.dumps({"key": [1, 2.5, "text", None], "more": {"a": "b"}})
        garbage = [b"", b"\xc1", b"\xff\xfe\xfd", whole + whole, *(whole[:end] for end in range(1, len(whole)))]
        for data in garbage:
            try:
                found = serializer.loads(data)
            except SerializationError:
                continue
            check(ok=False, seen=f"{data!r} was read as {found!r}")

    @promise("S9", "loads gives plain data and runs no code, whatever the data says.")
    def test_no_code(self, serializer: Serializer) -> None:
        tagged = {"__class__": "os.system", "py/object": "os.system", "__reduce__": ["os.system", ["true"]], "$type": "x"}
        same(serializer.loads(serializer.dumps(tagged)), tagged, "a mapping that looks like an object")
        _explosions.clear()
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            try:
                serializer.loads(pickle.dumps(_Bomb(), protocol))
            except SerializationError:
                continue
        check(not _explosions, "it unpickled")

    @promise("S10", "Equal values give equal bytes, sets too, and encoding changes nothing in the value.")
    def test_deterministic(self, serializer: Serializer) -> None:
        value = {"b": [1, {"x": "y"}], "a": {"n": None}}
        before = copy.deepcopy(value)
        same(serializer.dumps(value), serializer.dumps(before), "the bytes of equal values")
        same(value, before, "the value")
        if set[int] not in self.without:
            numbers = [0, 2**61 - 1, 8, 16]  # their hashes share slots: a set of them is in the order of insertion
            turned = numbers[::-1]
            same(serializer.dumps(set(numbers)), serializer.dumps(set(turned)), "the bytes of equal sets")

    @promise("S11", "It has a name, and a content type of the form type/subtype, which do not change.")
    def test_content_type(self, serializer: Serializer) -> None:
        check(re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", serializer.name), f"the name is {serializer.name!r}")
        pattern = r"[a-z]+/[a-z0-9][a-z0-9.+-]*(; ?[a-z0-9-]+=[\w.+-]+)*"
        check(re.fullmatch(pattern, serializer.content_type), f"the content type is {serializer.content_type!r}")
        before = serializer.name, serializer.content_type
        serializer.loads(serializer.dumps([1]))
        same((serializer.name, serializer.content_type), before, "name and content type")

    @promise("S12", "Threads may share it.")
    def test_threads(self, serializer: Serializer) -> None:
        values = [{"worker": number, "items": [{"n": n, "text": str(number) * n} for n in range(50)]} for number in range(8)]

        def trip(value: Any) -> bool:
            return all(serializer.loads(serializer.dumps(value)) == value for _ in range(40))

        with ThreadPoolExecutor(len(values)) as pool:
            check(all(pool.map(trip, values)), "a value came back changed")


def tzset() -> None:
    """Let the process notice a change of TZ, where it can."""
    if hasattr(_time, "tzset"):
        _time.tzset()


def _typed(value: Any) -> Any:
    """A value that is equal to another only if all types are, and the order of keys."""
    if isinstance(value, dict):
        return [(key, _typed(item)) for key, item in value.items()]
    if isinstance(value, list):
        return ("list", [_typed(item) for item in value])
    return type(value).__name__, value


def _converted(data: Any, hint: Any) -> Any:
    def actor(value: Any) -> None: ...

    actor.__annotations__["value"] = hint
    args, _ = CattrsConverter(actor).convert_inputs({"value": data})
    return args[0]


def _brief(value: object) -> str:
    return f"an int of {value.bit_length()} bits" if isinstance(value, int) else ascii(value)
