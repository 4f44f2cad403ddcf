"""What users of the cattrs converter rely on, beyond the conformance suite."""

from __future__ import annotations

import dataclasses
import functools
import timeit
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Never, NewType, NotRequired, TypedDict, TypeVar
from uuid import UUID

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repid_core.cattrs_converter import CattrsConverter
from repid_core.errors import ConversionError, InvalidActorError
from repid_core.json_serializer import JsonSerializer

T = TypeVar("T")
Name = NewType("Name", str)


class Email(str):
    __slots__ = ()


class Colour(Enum):
    RED = "red"
    NUMBER = 2
    PAIR = (1, "x")
    SPAN = timedelta(days=1)


class Level(IntEnum):
    LOW = 1


class Permission(Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Options(TypedDict):
    depth: int
    until: NotRequired[date]
    colours: NotRequired[list[Colour]]


@attrs.define
class Tree:
    name: str
    left: Tree | None = None
    children: list[Tree] = attrs.Factory(list)


@attrs.define
class Account:
    number: int = attrs.field(validator=attrs.validators.gt(0))
    _note: str = ""
    checksum: int = attrs.field(init=False, default=7)


@attrs.frozen
class BigAccount(Account):
    limit: int = 0


@dataclasses.dataclass
class Page(Generic[T]):
    items: list[T]
    following: Page[T] | None = None


@attrs.define
class Cat:
    name: str
    kind: Literal["cat"] = "cat"


@attrs.define
class Dog:
    name: str
    kind: Literal["dog"] = "dog"


@attrs.define
class Car:
    wheels: int


@attrs.define
class Cars:
    wheels: int
    count: int = 1


class Opaque:
    pass


def actor_of(hint: Any, result: Any = None) -> Callable[..., Any]:
    def actor(value):  # type: ignore[no-untyped-def]
        return value

    actor.__annotations__.update({"value": hint, "return": result})
    return actor


def convert(hint: Any, value: Any) -> Any:
    args, kwargs = CattrsConverter(actor_of(hint)).convert_inputs({"value": value})
    assert not kwargs
    return args[0]


def problems(hint: Any, value: Any) -> list[str]:
    with pytest.raises(ConversionError) as caught:
        convert(hint, value)
    return list(caught.value.problems)


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=zones)  # noqa: DTZ001 — hypothesis adds the zone
texts = st.text(st.characters(exclude_categories=["Cs"]))
HINTS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (str, texts),
    (bytes, st.binary()),
    (datetime, moments),
    (date, st.dates()),
    (time, st.times()),
    (timedelta, st.timedeltas()),
    (UUID, st.uuids()),
    (Decimal, st.decimals(allow_nan=False)),
    (Path, st.just(Path("/tmp/x"))),  # noqa: S108 — nothing is written
    (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)),
    (Permission, st.sampled_from([Permission.READ, Permission.READ | Permission.WRITE])),
    (Literal["a", 1, Colour.PAIR] | None, st.sampled_from(["a", 1, Colour.PAIR, None])),
    (Name, texts),
    (Email, texts.map(Email)),
    (Point, st.builds(Point, st.integers(), st.floats(allow_nan=False, allow_infinity=False))),
    (
        Options,
        st.fixed_dictionaries(
            {"depth": st.integers()},
            optional={"until": st.dates(), "colours": st.lists(st.sampled_from(Colour), max_size=2)},
        ),
    ),
    (Tree, st.builds(Tree, texts, st.none(), st.lists(st.builds(Tree, texts), max_size=2))),
    (Account, st.builds(Account, st.integers(1), texts)),
    (Cat | Dog, st.one_of(st.builds(Cat, texts), st.builds(Dog, texts))),
    (Cat | Car | None, st.one_of(st.builds(Cat, texts), st.builds(Car, st.integers()), st.none())),
    (int | str | None, st.one_of(st.integers(), texts, st.none())),
    (float | bool, st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.booleans())),
    (datetime | int, st.one_of(moments, st.integers())),
    (Literal["auto"] | timedelta, st.one_of(st.just("auto"), st.timedeltas())),
    (Any, st.lists(st.one_of(st.integers(), texts))),
]


def combined(pair: tuple[Any, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    hint, values = pair
    return st.one_of(
        st.tuples(st.just(hint), values),
        st.tuples(st.just(list[hint]), st.lists(values, max_size=3)),  # type: ignore[valid-type]
        st.tuples(st.just(tuple[int, hint]), st.tuples(st.integers(), values)),  # type: ignore[valid-type]
        st.tuples(st.just(dict[str, hint]), st.dictionaries(texts, values, max_size=3)),  # type: ignore[valid-type]
        st.tuples(st.just(dict[int, hint]), st.dictionaries(st.integers(), values, max_size=3)),  # type: ignore[valid-type]
        st.tuples(st.just(hint | None if hint is not Any else Any), st.one_of(st.none(), values)),
    )


@given(st.sampled_from(HINTS).flatmap(combined))
@settings(max_examples=400, deadline=None)
def test_everything_comes_back_from_json(pair: tuple[Any, Any]) -> None:
    """What goes through dump_inputs or convert_outputs and the JSON serializer comes back equal, of the same type."""
    hint, value = pair
    converter = CattrsConverter(actor_of(hint, hint))
    serializer = JsonSerializer()
    (back,), _ = converter.convert_inputs(serializer.loads(serializer.dumps(converter.dump_inputs((value,), {}))))
    assert (back, type(back)) == (value, type(value))
    result = serializer.loads(serializer.dumps(converter.convert_outputs(value)))
    if hint is not Any:
        back = converter.load_outputs(result)
        assert (back, type(back)) == (value, type(value))


@pytest.mark.parametrize(
    ("hint", "value", "result"),
    [
        (float, 1, 1.0),
        (float | None, 1, 1.0),
        (Sequence[int], (1, 2), [1, 2]),
        (Iterable[int], [1], [1]),
        (frozenset[int], [1, 1], frozenset({1})),
        (list, [1, "a"], [1, "a"]),
        (tuple, [1, "a"], (1, "a")),
        (dict, {"a": 1}, {"a": 1}),
        (Mapping[Level, int], {"1": 2}, {Level.LOW: 2}),
        (Point, [1], Point(1)),
        (timedelta, "P2W", timedelta(weeks=2)),
        (timedelta, "-PT1M0.5S", timedelta(seconds=-60.5)),
        (datetime, "2024-01-01T00:00:00Z", datetime(2024, 1, 1, tzinfo=UTC)),
        (object, {"x": 1}, {"x": 1}),
        (int | list[int], [1], [1]),
        (Cat | Dog, {"name": "x", "kind": "dog"}, Dog("x")),
    ],
)
def test_accepted_forms(hint: Any, value: Any, result: Any) -> None:
    assert convert(hint, value) == result


def test_naive_datetimes_are_local_and_become_aware() -> None:
    naive = datetime(2024, 7, 1, 12)  # noqa: DTZ001 — the point
    for form in (naive, naive.isoformat()):
        back = convert(datetime, form)
        assert back.tzinfo is not None
        assert back == naive.astimezone()


@pytest.mark.parametrize(
    ("hint", "value", "problem"),
    [
        (int, True, "value: expected int, got True (bool)"),
        (int, "5", "value: expected int, got '5' (str)"),
        (int, 1.0, "value: expected int, got 1.0 (float)"),
        (str, None, "value: expected str, got None"),
        (list[str], "abc", "value: expected list[str], got 'abc' (str)"),
        (list[str], ["a", 5], "value[1]: expected str, got 5 (int)"),
        (date, datetime(2024, 1, 1, tzinfo=UTC), "value: expected date in ISO 8601, got "),
        (datetime, "2024-01-01", "value: expected datetime in ISO 8601, got '2024-01-01' (str)"),
        (timedelta, 5, "value: expected timedelta as ISO 8601 duration, got 5 (int)"),
        (timedelta, "P", "value: expected timedelta as ISO 8601 duration, got 'P' (str)"),
        (timedelta, "PT", "value: expected timedelta as ISO 8601 duration, got 'PT' (str)"),
        (bytes, "é!", "value: expected bytes as base64 text, got 'é!' (str)"),
        (UUID, "nonsense", "value: expected UUID as text, got 'nonsense' (str)"),
        (Decimal, "x", "value: expected Decimal as text, got 'x' (str)"),
        (Colour, "blue", "value: expected Colour ('red', 2, (1, 'x'), datetime.timedelta(days=1)), got 'blue' (str)"),
        (Level, True, "value: expected Level (1), got True (bool)"),
        (Literal[1, "b"], True, "value: expected 1 or 'b', got True (bool)"),
        (Permission, 64, "value: ValueError: "),
        (int | None, "x", "value: expected int or None, got 'x' (str)"),
        (Point, [1, 2.0, 3], "value: expected Point, got "),
        (tuple[int, str], [1, 2], "value[1]: expected str, got 2 (int)"),
        (dict[int, str], {"x": "a"}, "value key 'x': expected int, got 'x' (str)"),
        (dict[int, str], {"01": "a"}, "value key '01': expected int, got '01' (str)"),
        (dict[int, str], {"1": 2}, "value['1']: expected str, got 2 (int)"),
        (dict[UUID, int], {str(UUID(int=10)): 1, str(UUID(int=10)).upper(): 2}, "value: expected dict[UUID, int], got "),
        (Tree, {"name": "a", "children": [{"name": 1}]}, "value.children[0].name: expected str, got 1 (int)"),
        (Options, {"depth": 1, "x": 2}, "value: unknown key 'x': Options takes depth, until, colours"),
        (Account, {"number": -1}, "value: ValueError: "),
        (Account, {"number": 1, "checksum": 3}, "value: unknown key 'checksum': Account takes number, _note"),
        (Account, BigAccount(1), "value: unknown key 'limit'"),
        (Tree, Tree(5), "value.name: expected str, got 5 (int)"),  # type: ignore[arg-type]
        (Page[int], {"items": [1], "following": {"items": ["x"]}}, "value.following.items[0]: expected int, got 'x' (str)"),
        (Cat | Dog, {"name": "x"}, "value: expected Cat or Dog, got "),
        (Cat | Dog, {"name": "x", "kind": "cow"}, "value: expected Cat or Dog, got "),
        (Cat | Car, {"wheels": "x"}, "value.wheels: expected int, got 'x' (str)"),
        (str, b"x" * 500, "value: expected str, got b'xxx"),
    ],
)
def test_problems(hint: Any, value: Any, problem: str) -> None:
    (found,) = problems(hint, value)
    assert found.startswith(problem)
    assert len(found) < 150


def test_problems_are_counted_beyond_a_hundred() -> None:
    found = problems(list[int], ["x"] * 250)
    assert found[99] == "value[99]: expected int, got 'x' (str)"
    assert found[100:] == ["and 150 more"]


def test_a_deeply_nested_problem_is_found_in_one_pass() -> None:
    """Each level looks at its items once: at two looks a level, fifty levels would take for ever."""
    data: dict[str, Any] = {"name": 1}
    for _ in range(50):
        data = {"name": "x", "children": [data]}
    (found,) = problems(Tree, data)
    assert found == f"value{'.children[0]' * 50}.name: expected str, got 1 (int)"


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        ("Nowhere", "Nowhere.* of parameter 'value': name 'Nowhere' is not defined"),
        (Opaque, "nothing converts to Opaque: use an attrs class"),
        (list[Opaque], "nothing converts to Opaque"),
        (Callable[[], int], "nothing converts to Callable"),
        (Iterator[int], "nothing converts to Iterator"),
        (UUID | str, "UUID and str have one form in JSON"),
        (datetime | date | None, "datetime and date have one form"),
        (list[int] | set[int], "have one form"),
        (Colour | int, "have one form"),
        (Car | Cars, "Car and Cars cannot be told apart: give each a required field"),
        (dict[str, int] | Car, "have one form"),
        (dict[float, int], "keys cannot be float"),
        (dict[Colour, int], "keys cannot be Colour"),
        (dict[int | str, int], "keys cannot be int or str"),
        (dict[tuple[int, int], int], "keys cannot be tuple"),
        (Page, "generic argument T"),
    ],
)
def test_hints_that_cannot_be_used(hint: Any, message: str) -> None:
    with pytest.raises(InvalidActorError, match=message):
        CattrsConverter(actor_of(hint))
    with pytest.raises(InvalidActorError, match="of its result"):
        CattrsConverter(actor_of(Any, hint))


def test_a_refused_hint_leaves_nothing_behind() -> None:
    """A hint that was part of a refused one is refused again, and a good one of it works."""

    @attrs.define
    class Broken:
        tree: Tree
        opaque: Opaque

    for _ in range(2):
        with pytest.raises(InvalidActorError):
            convert(Broken, {})
    assert convert(Tree, {"name": "a"}) == Tree("a")


def test_parameters_that_go_by_position_cannot_follow_injected_ones() -> None:
    def actor(service, *rest: int) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(InvalidActorError, match="'rest' goes by position alone"):
        CattrsConverter(actor, frozenset({"service"}))


def test_arguments_behind_injected_ones_go_by_name() -> None:
    def actor(first: int, service, second: int) -> None: ...  # type: ignore[no-untyped-def]

    converter = CattrsConverter(actor, frozenset({"service"}))
    assert converter.convert_inputs([1, 2]) == ((1,), {"second": 2})


def test_unknown_arguments_suggest_the_nearest() -> None:
    def actor(user_id: int, name: str = "") -> None: ...

    with pytest.raises(ConversionError) as caught:
        CattrsConverter(actor).convert_inputs({"user_di": 1})
    assert caught.value.problems == (
        "user_id: missing, expected int",
        "unknown argument 'user_di': the actor takes user_id, name; did you mean 'user_id'?",
    )


def test_names_that_would_be_lost_are_refused_by_the_producer() -> None:
    """A name of **kwargs that a positional-only parameter has too is legal Python, but the data has one place for it."""

    def actor(a: int, /, *rest: int, **more: int) -> None: ...

    with pytest.raises(ConversionError) as caught:
        CattrsConverter(actor).dump_inputs((1,), {"a": 2, "rest": 3})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["a", "rest"]


def test_the_producer_sees_every_wrong_argument() -> None:
    def actor(tree: Tree, *rest: int, flag: bool = False) -> None: ...

    with pytest.raises(ConversionError) as caught:
        CattrsConverter(actor).dump_inputs((Tree("a", children=[Tree(1)]), 1, "x"), {"flag": 1})  # type: ignore[arg-type]
    assert caught.value.problems == (
        "tree.children[0].name: expected str, got 1 (int)",
        "rest[1]: expected int, got 'x' (str)",
        "flag: expected bool, got 1 (int)",
    )


def test_a_list_goes_by_position_and_the_error_says_how_it_goes_as_a_value() -> None:
    converter = CattrsConverter(actor_of(list[int]))
    assert converter.convert_inputs([[1, 2]]) == (([1, 2],), {})
    with pytest.raises(ConversionError, match=r"2 arguments by position: the actor takes value; .* \{'value': \[…\]\}"):
        converter.convert_inputs([1, 2])


def test_an_actor_may_never_return() -> None:
    def actor() -> Never:
        raise SystemExit

    assert CattrsConverter(actor).convert_outputs(None) is None


def test_results_of_typed_dicts_may_lack_what_is_not_required() -> None:
    converter = CattrsConverter(actor_of(Any, list[Options]))
    assert converter.convert_outputs([{"depth": 1}, {"depth": 2, "colours": [Colour.RED]}]) == [
        {"depth": 1},
        {"depth": 2, "colours": ["red"]},
    ]


def test_natives_stay_native_for_the_serializer() -> None:
    tree = Tree("a")
    assert CattrsConverter(actor_of(Tree)).dump_inputs((tree,), {})["value"] is tree


def test_results_become_plain_data() -> None:
    converter = CattrsConverter(actor_of(Any, dict[str, list[Tree | Colour]]))
    assert converter.convert_outputs({"x": [Tree("a"), Colour.RED]}) == {
        "x": [{"name": "a", "left": None, "children": []}, "red"],
    }


@pytest.mark.parametrize(
    ("hint", "value", "problem"),
    [
        (list[str], ["a", 5], "result[1]: expected str, got 5 (int)"),
        (list[str], (item for item in "ab"), "result: expected list[str], got <generator object"),
        (Tree, None, "result: expected Tree, got None"),
    ],
)
def test_results_are_held_to_the_return_type(hint: Any, value: Any, problem: str) -> None:
    with pytest.raises(ConversionError) as caught:
        CattrsConverter(actor_of(Any, hint)).convert_outputs(value)
    assert caught.value.problems[0].startswith(problem)


def test_methods_partials_and_callable_objects_are_actors() -> None:
    class Service:
        def method(self, tree: Tree) -> None: ...

        def __call__(self, tree: Tree) -> None: ...

    @functools.wraps(Service.method)
    def wrapped(*args: Any, **kwargs: Any) -> None: ...

    data = {"tree": {"name": "a"}}
    for actor in (Service().method, Service(), functools.partial(Service.method, Service())):
        args, kwargs = CattrsConverter(actor).convert_inputs(data)
        assert [*args, *kwargs.values()] == [Tree("a")]
    assert CattrsConverter(wrapped, frozenset({"self"})).convert_inputs(data) == ((), {"tree": Tree("a")})


def test_the_hot_path_is_short() -> None:
    """Two scalars take about a microsecond; the bound is loose because the machine may be busy."""

    def actor(i: int, data: str) -> int: ...  # type: ignore[empty-body]

    converter = CattrsConverter(actor)
    data = {"i": 1, "data": "x"}
    assert min(timeit.repeat(lambda: converter.convert_inputs(data), number=1000, repeat=10)) / 1000 < 10e-6
    assert min(timeit.repeat(lambda: converter.convert_outputs(1), number=1000, repeat=10)) / 1000 < 3e-6


def test_suggestions_are_few_however_many_arguments_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's message must not keep the event loop busy for seconds."""

    async def act(name: str) -> None: ...

    asked: list[str] = []

    def suggest(word: str, *_: object) -> list[str]:
        asked.append(word)
        return []

    monkeypatch.setattr("repid_core.cattrs_converter.get_close_matches", suggest)
    given = {"name": "Alex", "k" * 1_000_000: 1, **{f"k{number}": 1 for number in range(10_000)}}
    with pytest.raises(ConversionError) as raised:
        CattrsConverter(act).convert_inputs(given)
    assert raised.value.problems[-1] == "and 9901 more"
    assert sum(map(bool, asked)) == 100
    assert max(map(len, asked)) == 128
