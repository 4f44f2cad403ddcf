"""The suite for converters."""

# ruff: noqa: D103 — the signatures of the functions are what they are for

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, ClassVar, Literal
from uuid import UUID

import attrs
import pytest

from repid_core.abc import Converter
from repid_core.errors import ConversionError, InvalidActorError
from repid_core.json_serializer import JsonSerializer
from repid_core.testing.conformance.suite import ConformanceSuite, check, promise, same


class Colour(Enum):
    """An enum."""

    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Address:
    """A nested class."""

    city: str
    zip: int = 0


@dataclasses.dataclass
class User:
    """A class with a class in it."""

    name: str
    emails: list[str]
    address: Address | None = None


@attrs.frozen
class Order:
    """An attrs class that shares no field with the others."""

    number: int
    lines: list[str] = attrs.field(factory=list)


@dataclasses.dataclass
class Cat:
    """One of two that a literal tells apart."""

    name: str
    kind: Literal["cat"] = "cat"


@dataclasses.dataclass
class Dog:
    """The other."""

    name: str
    kind: Literal["dog"] = "dog"


def two(i: int, data: str) -> int: ...  # type: ignore[empty-body]
def nothing() -> None: ...
def only(value: int) -> None: ...
def only_list(value: list[int]) -> None: ...
def only_mapping(value: dict[str, int]) -> None: ...
def only_user(user: User) -> None: ...
def defaults(a: int, b: int = 2, *, c: int = 3) -> None: ...
def positional(a: int, b: int = 2, /, c: int = 3) -> None: ...
def variable(a: int, /, *rest: int, flag: bool = False, **more: str) -> None: ...
def greet(user: User, times: int = 1) -> None: ...
def untyped(a, b=None): ...  # type: ignore[no-untyped-def]
def injected(connection: _Unknown, i: int, *, session: _Unknown) -> None: ...  # type: ignore[name-defined] # noqa: F821
def unknown(a: int, user: _Unknown) -> None: ...  # type: ignore[name-defined] # noqa: F821
def a_string() -> str: ...  # type: ignore[empty-body]
def a_list() -> list[int]: ...  # type: ignore[empty-body]
def a_user() -> User: ...  # type: ignore[empty-body]
def users() -> dict[str, list[User]]: ...  # type: ignore[empty-body]
def no_hint(): ...  # type: ignore[no-untyped-def]


# Hints with a value of each; all come from JSON as they went into it.
ROUND_TRIPS: tuple[tuple[Any, Any], ...] = (
    (Any, {"as": ["it", 1, None]}),
    (int, 2**70),
    (float, 0.1),
    (bool, True),
    (str, "ünïcödé"),
    (int | None, None),
    (list[int], [1, 2]),
    (dict[str, float], {"a": 1.5}),
    (dict[int, str], {1: "one"}),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[int], {1, 2}),
    (datetime, datetime(2024, 2, 29, 1, 2, 3, 4, UTC)),
    (date, date(2024, 2, 29)),
    (timedelta, timedelta(days=1, seconds=2, microseconds=3)),
    (UUID, UUID(int=5)),
    (Decimal, Decimal("1.10")),
    (bytes, b"\x00\xff"),
    (Colour, Colour.BLUE),
    (Literal["a", 1], 1),
    (int | str, "1"),
    (User, User("A", ["a@b"], Address("C", 1))),
    (list[User | None], [User("A", []), None]),
    (Order, Order(1, ["x"])),
    (Cat | Dog, Dog("Rex")),
    (list[Address | int], [Address("C"), 1]),
    (dict[UUID, dict[Colour, date]], {UUID(int=5): {Colour.RED: date(2024, 1, 1)}}),
)


class ConverterConformance(ConformanceSuite):
    """Holds a converter class to what producers and workers rely on.

    As in::

        class TestMyConverter(ConverterConformance):
            @pytest.fixture
            def converter_class(self) -> type[Converter]:
                return MyConverter

    Attributes:
        without: Hints of `ROUND_TRIPS` that the converter refuses when an actor is declared, each with the reason.
        lenient: Why it takes text for numbers and the like, if it does; empty if it does not.
    """

    without: ClassVar[Mapping[Any, str]] = {}
    lenient: ClassVar[str] = ""

    @pytest.fixture
    def converter_class(self) -> type[Converter]:
        """The one fixture to write: the class."""
        pytest.fail(f"{type(self).__name__} needs a fixture converter_class, which returns the class")

    @promise("C1", "A mapping goes by name, in any order.")
    def test_by_name(self, converter_class: type[Converter]) -> None:
        _calls(converter_class, two, {"data": "x", "i": 1}, i=1, data="x")
        _calls(converter_class, untyped, {"a": [1], "b": {"c": 2}}, a=[1], b={"c": 2})

    @promise("C2", "A list goes by position.")
    def test_by_position(self, converter_class: type[Converter]) -> None:
        _calls(converter_class, two, [1, "x"], i=1, data="x")
        _calls(converter_class, only_list, [[1, 2]], value=[1, 2])
        _calls(converter_class, variable, [1, 2, 3], a=1, rest=(2, 3))

    @promise("C3", "None is no arguments, and so are an empty mapping and an empty list.")
    def test_no_arguments(self, converter_class: type[Converter]) -> None:
        empty: tuple[Any, ...] = (None, {}, [])
        for value in empty:
            _calls(converter_class, nothing, value)
            _fails(converter_class, two, value, "i", "data")
            _fails(converter_class, only_mapping, value, "value")

    @promise("C4", "Anything else is the only parameter; so is a mapping that has not its name as a key, if it takes mappings.")
    def test_only_parameter(self, converter_class: type[Converter]) -> None:
        _calls(converter_class, only, 5, value=5)
        _calls(converter_class, only_mapping, {"a": 1}, value={"a": 1})
        _calls(converter_class, only_mapping, {"value": {"a": 1}}, value={"a": 1})
        _calls(converter_class, only_user, {"name": "A", "emails": []}, user=User("A", []))
        _calls(converter_class, only_user, {"user": {"name": "A", "emails": []}}, user=User("A", []))
        _fails(converter_class, two, 5, "i")
        _fails(converter_class, nothing, 5, "5")

    @promise("C5", "Parameters with a default may be left out.")
    def test_defaults(self, converter_class: type[Converter]) -> None:
        _calls(converter_class, defaults, {"a": 1}, a=1)
        _calls(converter_class, defaults, {"a": 1, "c": 9}, a=1, c=9)
        _calls(converter_class, defaults, [1, 5], a=1, b=5)
        _calls(converter_class, positional, {"a": 1, "c": 9}, a=1, c=9)

    @promise("C6", "Positional-only parameters and *args go under their names, and **kwargs take the rest.")
    def test_kinds(self, converter_class: type[Converter]) -> None:
        _calls(converter_class, positional, {"a": 1, "b": 5, "c": 6}, a=1, b=5, c=6)
        value = {"a": 1, "rest": [2, 3], "flag": True, "colour": "red", "size": "xl"}
        _calls(converter_class, variable, value, a=1, rest=(2, 3), flag=True, more={"colour": "red", "size": "xl"})
        _fails(converter_class, variable, {"a": 1, "rest": [2, "many"], "size": []}, "rest[1]", "size")

    @promise("C7", "Arguments that the actor does not take are an error that names them, and what it takes.")
    def test_unknown(self, converter_class: type[Converter]) -> None:
        text = _fails(converter_class, two, {"i": 1, "data": "x", "dada": 2, "foo": 3})
        for name in ("'dada'", "'foo'", "i", "data"):
            check(name in text, f"the error does not name {name}: {text}")
        _fails(converter_class, two, [1, "x", 3], "3")
        _fails(converter_class, nothing, {"foo": 1}, "foo")

    @promise("C8", "One ConversionError lists every problem, each with its path.")
    def test_every_problem(self, converter_class: type[Converter]) -> None:
        user = {"emails": ["a", None, "b", None], "address": {"city": "C", "zip": "many"}}
        wanted = ("user.name", "user.emails[1]", "user.emails[3]", "user.address.zip", "times")
        _fails(converter_class, greet, {"user": user, "times": "many"}, *wanted)
        _fails(converter_class, two, {"data": None}, "i", "data")

    @promise("C9", "Unknown keys of a nested class are an error with its path.")
    def test_unknown_nested(self, converter_class: type[Converter]) -> None:
        user = {"name": "A", "emails": [], "address": {"city": "C", "street": "S"}}
        text = _fails(converter_class, greet, {"user": user}, "user.address")
        check("street" in text, f"the error does not name the key: {text}")

    @promise("C10", "Injected parameters are no arguments: their hints are not read, and the call leaves room for them by name.")
    def test_injected(self, converter_class: type[Converter]) -> None:
        converter = converter_class(injected, frozenset({"connection", "session"}))
        args, kwargs = converter.convert_inputs({"i": 1})
        call = _bound(injected, args, {**kwargs, "connection": "c", "session": "s"})
        same(call, {"connection": "c", "i": 1, "session": "s"}, "the call")
        with pytest.raises(ConversionError):
            converter.convert_inputs({"i": 1, "session": 2})

    @promise("C11", "Every common type comes from its JSON form, and is taken as it is.")
    def test_types(self, converter_class: type[Converter]) -> None:
        for hint, value in ROUND_TRIPS:
            actor = _actor(hint)
            if self._refuses(converter_class, hint, actor):
                continue
            for form in (_json(value), value):
                args, kwargs = converter_class(actor).convert_inputs({"value": form})
                back = _bound(actor, args, kwargs)["value"]
                same((back, type(back)), (value, type(value)), f"what {form!r} became for {hint}")

    @promise("C12", "What dump_inputs gives, serialized, is what convert_inputs makes the same call of.")
    def test_dump_inputs(self, converter_class: type[Converter]) -> None:
        user = User("A", ["a@b"], Address("C"))
        calls: tuple[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]], ...] = (
            (two, (1,), {"data": "x"}),
            (nothing, (), {}),
            (only_list, ([1, 2],), {}),
            (only_user, (User("A", []),), {}),
            (positional, (1, 5), {}),
            (variable, (1, 2, 3), {"flag": True, "size": "xl"}),
            (greet, (user,), {"times": 2}),
            (defaults, (), {"a": 1, "c": 9}),
        )
        for actor, args, kwargs in calls:
            converter = converter_class(actor)
            data = _json(converter.dump_inputs(args, kwargs))
            back = _bound(actor, *converter.convert_inputs(data))
            same(back, _bound(actor, args, kwargs), f"the call of {actor.__name__} by way of {data!r}")

    @promise("C13", "dump_inputs refuses, on the producer's side, arguments that do not fit: missing, unknown, given twice.")
    def test_dump_refuses(self, converter_class: type[Converter]) -> None:
        calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
            ((), {}),
            ((1,), {}),
            ((1, "x", 3), {}),
            ((1,), {"i": 2, "data": "x"}),
            ((1, "x"), {"foo": 1}),
        )
        for args, kwargs in calls:
            with pytest.raises(ConversionError):
                converter_class(two).dump_inputs(args, kwargs)

    @promise("C14", "A result becomes serialisable data, of which load_outputs makes the return type.")
    def test_results(self, converter_class: type[Converter]) -> None:
        everybody = {"all": [User("A", ["a@b"], Address("C", 1)), User("B", [])]}
        for actor, value in ((a_string, "x"), (a_list, [1, 2]), (a_user, User("A", [])), (users, everybody), (nothing, None)):
            converter = converter_class(actor)
            same(converter.load_outputs(_json(converter.convert_outputs(value))), value, f"the result of {actor.__name__}")
        for hint, value in ROUND_TRIPS:
            actor = _actor(Any, hint)
            if not self._refuses(converter_class, hint, actor):
                converter = converter_class(actor)
                back = converter.load_outputs(_json(converter.convert_outputs(value)))
                same((back, type(back)), (value, type(value)), f"the result for {hint}")

    @promise("C15", "A result that does not fit the return type is a ConversionError with its path.")
    def test_wrong_results(self, converter_class: type[Converter]) -> None:
        for actor, value, path in ((a_list, [1, "many"], "[1]"), (a_list, 5, ""), (a_string, None, "")):
            with pytest.raises(ConversionError) as caught:
                converter_class(actor).convert_outputs(value)
            check(path in str(caught.value), f"the error does not name {path!r}: {caught.value}")
            with pytest.raises(ConversionError):
                converter_class(actor).load_outputs(value)

    @promise("C16", "Without a return type, or with None, results stay as they are.")
    def test_free_results(self, converter_class: type[Converter]) -> None:
        for actor in (no_hint, nothing):
            value = {"any": ["thing"]}
            same(converter_class(actor).convert_outputs(value), value, "the result")
            same(converter_class(actor).load_outputs(value), value, "the loaded result")

    @promise("C17", "A hint that cannot be resolved is an InvalidActorError at declaration, naming parameter and hint.")
    def test_unusable(self, converter_class: type[Converter]) -> None:
        with pytest.raises(InvalidActorError) as caught:
            converter_class(unknown)
        for part in ("unknown", "'user'", "_Unknown"):
            check(part in str(caught.value), f"the error does not name {part}: {caught.value}")

    @promise("C18", "Converting changes nothing in the data, and threads may share a converter.")
    def test_sharing(self, converter_class: type[Converter]) -> None:
        converter = converter_class(variable)
        data = {"a": 1, "rest": [2, 3], "size": "xl"}
        before = copy.deepcopy(data)

        def convert(_: int) -> bool:
            return all(converter.convert_inputs(data) == first for _ in range(50))

        first = converter.convert_inputs(data)
        with ThreadPoolExecutor(4) as pool:
            check(all(pool.map(convert, range(4))), "threads got different calls")
        same(data, before, "the data")

    @promise("C19", "Numbers, text and booleans are not taken for one another, or the converter says why it does so.")
    def test_strict(self, converter_class: type[Converter]) -> None:
        if self.lenient:
            self.not_declared(self.lenient)
        numbers = ((int, "1"), (int, True), (int, 1.0), (float, "1.5"), (float, True))
        for hint, value in (*numbers, (str, 1), (bool, 1), (bool, "true"), (list[str], "ab")):
            _fails(converter_class, _actor(hint), {"value": value}, "value")

    def _refuses(self, converter_class: type[Converter], hint: Any, actor: Callable[..., Any]) -> bool:
        if hint not in self.without:
            return False
        with pytest.raises(InvalidActorError):
            converter_class(actor)
        return True


def _actor(hint: Any, result: Any = None) -> Callable[..., Any]:
    def actor(value: Any) -> Any: ...

    actor.__annotations__.update({"value": hint, "return": result})
    return actor


def _json(value: Any) -> Any:
    serializer = JsonSerializer()
    return serializer.loads(serializer.dumps(value))


def _bound(actor: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the actor would see, defaults included."""
    bound = inspect.signature(actor).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _calls(converter_class: type[Converter], actor: Callable[..., Any], value: Any, /, **wanted: Any) -> None:
    args, kwargs = converter_class(actor).convert_inputs(value)
    same((type(args), type(kwargs)), (tuple, dict), "the types that convert_inputs gave")
    defaults = {
        name: () if p.kind is p.VAR_POSITIONAL else {} if p.kind is p.VAR_KEYWORD else p.default
        for name, p in inspect.signature(actor).parameters.items()
    }
    same(_bound(actor, args, kwargs), {**defaults, **wanted}, f"the call of {actor.__name__} by {value!r}")


def _fails(converter_class: type[Converter], actor: Callable[..., Any], value: Any, *paths: str) -> str:
    """Check that there is one problem for each path, and return the whole text."""
    with pytest.raises(ConversionError) as caught:
        converter_class(actor).convert_inputs(value)
    text = str(caught.value)
    for path in paths:
        check(any(path in problem for problem in caught.value.problems), f"no problem names {path!r}: {text}")
    check(len(caught.value.problems) >= len(paths), f"fewer problems than {len(paths)}: {text}")
    return text
