"""What converts to each hint: strict rules, with cattrs to build the classes."""

from __future__ import annotations

import dataclasses
import re
import typing
from base64 import b64decode
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from functools import partial
from itertools import count, repeat
from pathlib import PurePath
from threading import RLock
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints, is_typeddict
from uuid import UUID

import cattrs
from cattrs.disambiguators import create_default_dis_func
from cattrs.gen import make_dict_structure_fn
from cattrs.gen.typeddicts import make_dict_structure_fn as make_typeddict_structure_fn

from repid_core.cattrs_converter.problems import UNIONS, Invalid, Problem, below, fields_of, is_class, name_of, wrong

Hook = Callable[[Any, Any], Any]  # as cattrs calls them: with the value and its type

_WRAPPERS = frozenset({typing.Annotated, typing.Required, typing.NotRequired, typing.Final})


class _Structurer(cattrs.Converter):
    """cattrs, asking the hooks of this module for the types of fields."""

    def get_structure_hook(self, type: Any, cache_result: bool = True) -> Hook:  # noqa: A002 — cattrs' name
        return hook_of(type)

    def structure(self, obj: Any, cl: Any) -> Any:
        return obj if cl is None else hook_of(cl)(obj, cl)


structurer = _Structurer(forbid_extra_keys=True, detailed_validation=True)
structurer.register_unstructure_hook_func(is_typeddict, lambda value: structurer.unstructure(value, dict[str, Any]))
_hooks: dict[Any, Hook] = {}
_lock = RLock()


def hook_of(hint: Any) -> Hook:
    """What converts to a hint, made once; `TypeError` if nothing can."""
    hint = _bare(hint)
    with _lock:
        if hint not in _hooks:
            made: list[Hook] = []
            _hooks[hint] = lambda value, _: made[0](value, None)  # what a hint that contains itself finds
            try:
                made.append(_make(hint, get_origin(hint) or hint))
            except BaseException:
                _hooks.clear()  # others may have built on it
                raise
            _hooks[hint] = made[0]
        return _hooks[hint]


def _bare(hint: Any) -> Any:
    """The type behind NewType, Annotated, TypeVar and aliases."""
    if isinstance(hint, TypeVar):
        return _bare(hint.__bound__ or Any)
    if get_origin(hint) in _WRAPPERS:
        return _bare(get_args(hint)[0])
    inner = getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None)
    return hint if inner is None else _bare(inner)


def _make(hint: Any, origin: Any) -> Hook:  # noqa: C901, PLR0911, PLR0912 — the rows of the table
    if hint in {Any, object, typing.Never, typing.NoReturn}:
        return as_is
    if origin is Literal:
        return _choice(hint, _choices(hint))
    if origin in UNIONS:
        return _union(hint)
    if origin in _SCALARS:
        return _SCALARS[origin][1]
    if origin in _COLLECTIONS:
        return _collection(hint, *_COLLECTIONS[origin])
    if origin in _MAPPINGS:
        return _mapping(hint)
    if isinstance(origin, type):
        if issubclass(origin, Enum) and not issubclass(origin, Flag):
            return _choice(hint, [(member, member.value) for member in origin])
        if issubclass(origin, PurePath):
            return _text(PurePath, origin, "path as text")
        if issubclass(origin, tuple):
            return _tuple(hint, origin)
        if is_typeddict(hint):
            return _typed_dict(hint)
        if is_class(origin):
            return _class(hint, origin)
        if base := next((base for base in (Flag, int, float, str) if issubclass(origin, base)), None):
            return _derived(origin, _SCALARS[int if base is Flag else base][1])
    raise TypeError(f"nothing converts to {name_of(hint)}: use an attrs class, a dataclass, a TypedDict, or Any")


def as_is(value: Any, _: Any) -> Any:
    """For hints that everything fits."""
    return value


def _derived(cls: Any, plain: Hook) -> Hook:
    return lambda value, _: value if isinstance(value, cls) else cls(plain(value, None))


def _scalar(*accepted: type) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if type(value) in accepted or (isinstance(value, accepted) and type(value) is not bool):
            return value
        raise wrong(accepted[0], value)

    return hook


def _text(cls: type, parse: Callable[[str], Any], form: str, but: type | tuple[type, ...] = ()) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, cls) and not isinstance(value, but):
            return value
        try:
            if isinstance(value, str):
                return parse(value)
        except (ValueError, ArithmeticError) as error:
            raise wrong(form, value) from error
        raise wrong(form, value)

    return hook


def _datetime(text: str) -> datetime:
    if len(text) <= 10:
        raise ValueError("there is no time in it")
    return datetime.fromisoformat(text)


def _aware(value: Any, _: Any) -> datetime:
    time: datetime = _any_datetime(value, None)
    return time if time.tzinfo else time.astimezone()


_any_datetime = _text(datetime, _datetime, "datetime in ISO 8601")
_number = _scalar(float, int)
_DURATION = re.compile(
    r"([+-])?P(?=.*\d)(?:(\d+)W)?(?:(\d+)D)?(?:T(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.(\d{1,6}))?S)?)?",
    re.ASCII,
)


def _duration(text: str) -> timedelta:
    if (match := _DURATION.fullmatch(text)) is None:
        raise ValueError("no ISO 8601 duration")
    sign, *numbers, fraction = match.groups(default="0")
    weeks, days, hours, minutes, seconds = map(int, numbers)
    duration = timedelta(days, seconds, int(fraction.ljust(6, "0")), minutes=minutes, hours=hours, weeks=weeks)
    return -duration if sign == "-" else duration


# What JSON makes of a type (see _TYPES), and its hook.
_SCALARS: dict[Any, tuple[str, Hook]] = {
    type(None): ("null", _scalar(type(None))),
    bool: ("bool", _scalar(bool)),
    int: ("int", _scalar(int)),
    float: ("float", lambda value, _: float(_number(value, None))),
    str: ("text", _scalar(str)),
    datetime: ("text", _aware),
    date: ("text", _text(date, date.fromisoformat, "date in ISO 8601", but=datetime)),
    time: ("text", _text(time, time.fromisoformat, "time in ISO 8601")),
    timedelta: ("text", _text(timedelta, _duration, "timedelta as ISO 8601 duration")),
    UUID: ("text", _text(UUID, UUID, "UUID as text")),
    Decimal: ("text", _text(Decimal, Decimal, "Decimal as text")),
    bytes: ("text", _text(bytes, partial(b64decode, validate=True), "bytes as base64 text")),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (float,),
    "text": (str,),
    "list": (list, tuple),
    "mapping": (dict, Mapping),
}
_PLAIN = frozenset({type(None), bool, int, float, str})
_COLLECTIONS: dict[Any, tuple[Callable[[list[Any]], Any] | None, tuple[Any, ...]]] = {
    **dict.fromkeys((list, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection), (None, (list, tuple))),
    **dict.fromkeys((set, abc.Set, abc.MutableSet), (set, (list, tuple, set, frozenset))),
    frozenset: (frozenset, (list, tuple, set, frozenset)),
}
_MAPPINGS = frozenset({dict, abc.Mapping, abc.MutableMapping})


def _choices(literal: Any) -> list[tuple[Any, Any]]:
    return [(value, value.value if isinstance(value, Enum) else value) for value in get_args(literal)]


def _choice(hint: Any, choices: list[tuple[Any, Any]]) -> Hook:
    """An enum or Literal: each result with its plain value."""
    exact = {(type(plain), plain): result for result, plain in choices if type(plain) in _PLAIN}
    others = [(result, plain, hook_of(type(plain))) for result, plain in choices if type(plain) not in _PLAIN]
    shown = ", ".join(repr(plain) for _, plain in choices[:20])

    def hook(value: Any, _: Any) -> Any:
        if type(value) in _PLAIN and (type(value), value) in exact:
            return exact[type(value), value]
        if isinstance(value, Enum) and any(value is result for result, _ in choices):
            return value
        for result, plain, convert in others:
            with suppress(Exception):
                if convert(value, None) == plain:
                    return result
        raise wrong(f"{name_of(hint)} ({shown})" if isinstance(hint, type) else hint, value)

    return hook


def _structured(hooks: Iterable[Hook], values: Iterable[Any], keys: Iterable[Any], where: str = "[{!r}]") -> list[Any]:
    """Convert each value by its hook, or raise the problems of all."""
    result: list[Any] = []
    problems: list[Problem] = []
    for hook, value, key in zip(hooks, values, keys, strict=False):
        try:
            result.append(hook(value, None))
        except Exception as error:  # noqa: BLE001 — a hook runs the user's classes
            problems += below(where.format(key), error)
    if problems:
        raise Invalid(*problems)
    return result


def list_of(item: Hook, hint: Any = list, accepted: tuple[Any, ...] = (list, tuple)) -> Hook:
    """Takes a list, each item by one hook."""

    def hook(value: Any, _: Any) -> list[Any]:
        if isinstance(value, accepted):
            return _structured(repeat(item), value, count())
        raise wrong(hint, value)

    return hook


def _collection(hint: Any, build: Callable[[list[Any]], Any] | None, accepted: tuple[Any, ...]) -> Hook:
    items = list_of(hook_of(get_args(hint)[0] if get_args(hint) else Any), hint, accepted)
    return items if build is None else lambda value, _: build(items(value, None))


def _tuple(hint: Any, origin: Any) -> Hook:
    args, optional = list(get_args(hint)), 0
    build: Callable[[list[Any]], Any] = tuple
    if names := getattr(origin, "_fields", ()):
        args = [get_type_hints(origin).get(name, Any) for name in names]
        build, optional = lambda items: origin(*items), len(origin._field_defaults)
    elif ... in args or (not args and hint in {tuple, typing.Tuple}):  # noqa: UP006 — that is what is asked
        return _collection(hint, tuple, (list, tuple))
    hooks = [hook_of(arg) for arg in args]

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple) or not len(hooks) - optional <= len(value) <= len(hooks):
            raise wrong(hint, value)
        return build(_structured(hooks, value, count()))

    return hook


def _mapping(hint: Any) -> Hook:
    key, item = get_args(hint) or (Any, Any)
    forms, from_key, from_item = forms_of(key), hook_of(key), hook_of(item)
    if len(forms) != 1 or forms.isdisjoint({"text", "int", "any"}):
        raise TypeError(f"keys cannot be {name_of(key)}: use a type with a text form, or int")

    def from_text(value: Any, _: Any) -> Any:
        with suppress(ValueError):
            value = int(value) if isinstance(value, str) and str(int(value)) == value else value
        return from_key(value, None)

    by_key = from_text if forms == {"int"} else from_key

    def hook(value: Any, _: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise wrong(hint, value)
        keys = _structured(repeat(by_key), value, value, " key {!r}")
        result = dict(zip(keys, _structured(repeat(from_item), value.values(), value), strict=True))
        if len(result) != len(value):
            raise wrong(hint, value, ", which has one key twice")
        return result

    return hook


def _class(hint: Any, cls: Any) -> Hook:
    if dataclasses.is_dataclass(cls):
        hints = get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            field.type = hints[field.name]  # as `attrs.resolve_types` does; cattrs looks for Literal fields here
    build: Any = make_dict_structure_fn(hint, structurer)

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, Mapping):
            return build(value, hint)
        if isinstance(value, cls):
            build({name: getattr(value, name) for name in fields_of(type(value))}, hint)  # checks what is in it
            return value
        raise wrong(hint, value)

    return hook


def _typed_dict(cls: Any) -> Hook:
    # Of a copy: a TypedDict with postponed annotations believes that all its keys are required, and so would cattrs.
    items = get_type_hints(cls, include_extras=True).items()
    optional = {name for name, hint in items if name in cls.__optional_keys__ or get_origin(hint) is typing.NotRequired}
    hints = {name: typing.NotRequired[_bare(hint)] if name in optional else _bare(hint) for name, hint in items}
    build: Any = make_typeddict_structure_fn(typing.TypedDict(cls.__name__, hints), structurer)  # type: ignore[operator]

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, Mapping):
            return build(dict(value), cls)
        raise wrong(cls, value)

    return hook


def _members(hint: Any) -> list[Any]:
    """The members of a hint if it is a union, of unions in it too; else the hint alone."""
    hint = _bare(hint)
    return [inner for member in get_args(hint) for inner in _members(member)] if get_origin(hint) in UNIONS else [hint]


def forms_of(hint: Any) -> set[str]:
    """What JSON may make of the values of a hint: the keys of _TYPES, or "any"."""
    found: set[str] = set()
    for member in _members(hint):
        origin = get_origin(member) or member
        if origin is Literal:
            found.update(*(forms_of(type(value)) for value in get_args(member)))
        elif not isinstance(origin, type) or origin is object:
            found.add("any")
        elif issubclass(origin, Enum):
            found.update(*(forms_of(type(choice.value)) for choice in origin))
        elif origin in _MAPPINGS or is_typeddict(origin) or is_class(origin):
            found.add("mapping")
        elif origin in _COLLECTIONS or issubclass(origin, tuple):
            found.add("list")
        else:
            found.add(next((form for cls, (form, _) in _SCALARS.items() if issubclass(origin, cls)), "text"))
    return found


def _union(hint: Any) -> Hook:
    by_form: dict[str, list[Any]] = {}
    by_type: dict[type, Hook] = {}
    literals = [member for member in _members(hint) if get_origin(member) is Literal]
    literal = hook_of(Literal[tuple(value for member in literals for value in get_args(member))]) if literals else None
    for member in _members(hint):
        if hook_of(member) is as_is:
            return as_is
        if member not in literals:
            for form in forms_of(member):
                by_form.setdefault(form, []).append(member)
            by_type |= {} if is_typeddict(get_origin(member) or member) else {get_origin(member) or member: hook_of(member)}
    for form, rivals in by_form.items():
        by_type |= dict.fromkeys(_TYPES[form], hook_of(rivals[0]) if len(rivals) == 1 else _rivals(hint, rivals))
    if "float" in by_form:
        by_type.setdefault(int, by_type[float])

    def hook(value: Any, _: Any) -> Any:
        if literal is not None:
            with suppress(Invalid):
                return literal(value, None)
        convert = by_type.get(type(value)) or next((by_type[cls] for cls in by_type if isinstance(value, cls)), None)
        if convert is None:
            raise wrong(hint, value)
        return convert(value, None)

    return hook


def _rivals(hint: Any, members: list[Any]) -> Hook:
    """Tell members of one form apart: classes, by a required field that one alone has, or by a Literal field of all."""
    if not all(is_class(get_origin(member) or member) for member in members):
        raise TypeError(f"{' and '.join(map(name_of, members))} have one form in JSON, so they cannot be told apart")
    try:
        choose = create_default_dis_func(structurer, *members)
    except Exception as error:
        remedy = "give each a required field that the others have not, or all of them a Literal field"
        raise TypeError(f"{' and '.join(map(name_of, members))} cannot be told apart: {remedy}") from error

    def hook(value: Any, _: Any) -> Any:
        try:
            member = choose(value)
        except Exception as error:
            raise wrong(hint, value) from error
        return hook_of(member)(value, None)

    return hook
