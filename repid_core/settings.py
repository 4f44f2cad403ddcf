"""A mapping becomes an instance of a settings class: people's sizes and durations, and every error at once with its path.

Settings are structured by cattrs, with hooks that say what a person may write for a type (`describe` has it in words):
`timedelta` takes "1h 30m", "7 days", "PT15M" or seconds, `Size` takes "64 KiB" or bytes.
"""

from __future__ import annotations

import functools
import re
import reprlib
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import attrs
from attrs import field, frozen

from repid_core.errors import RepidError, SettingsError

T = TypeVar("T")

_UNITS: Final = {
    **dict.fromkeys(("us", "µs", "μs", "microsecond", "microseconds"), timedelta(microseconds=1)),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), timedelta(milliseconds=1)),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), timedelta(seconds=1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), timedelta(minutes=1)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), timedelta(hours=1)),
    **dict.fromkeys(("d", "day", "days"), timedelta(days=1)),
    **dict.fromkeys(("w", "week", "weeks"), timedelta(weeks=1)),
}
_BYTES: Final[dict[str, int]] = {"b": 1, "byte": 1, "bytes": 1} | {
    f"{letter}{ending}": base**power for power, letter in enumerate("kmgtp", 1) for ending, base in (("b", 1000), ("ib", 1024))
}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zµμ]+)\s*")
_ISO: Final = re.compile(r"P(?=.)(?:(\d+)W)?(?:(\d+)D)?(?:T(?=.)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", re.ASCII)
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_SECRETS: Final = frozenset({"password", "passwd", "passphrase", "secret", "token", "key", "credential", "credentials"})
_TRUTHS: Final = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NONE: Final = type(None)
_SEQUENCES: Final = frozenset({list, tuple, set, frozenset, abc.Sequence, abc.Collection, abc.Set})
_UNIONS: Final = frozenset({typing.Union, types.UnionType})


class Loose(str):
    """A text from where there are no types, such as the environment: "5" may be a number, "on" a truth, "a, b" a list."""

    __slots__ = ()


@frozen
class Given:
    """A value that somebody gave.

    Attributes:
        value: It may hold secrets, and is not in the `repr`.
        origin: Where it came from, in words: a file's name, a variable, a URL.
    """

    value: Any = field(repr=False)
    origin: str


#: The value of what could not be read, which has been reported already.
UNREADABLE: Final = object()


def duration(text: str) -> timedelta:
    """Read a duration as people write it: "1h 30m", "7 days", "500 ms", or in ISO 8601, "PT15M". Bare numbers are seconds.

    Raises:
        ValueError: It is none, or too long for a timedelta.
    """
    text = text.strip()
    try:
        if _NUMBER.fullmatch(text):
            return timedelta(seconds=float(text))
        if iso := _ISO.fullmatch(text):
            weeks, days, hours, minutes, seconds = (float(number or 0) for number in iso.groups())
            return timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
        parts = _PART.findall(text.lower())
        if parts and not _PART.sub("", text.lower()):
            return sum((float(number) * _UNITS[unit] for number, unit in parts), timedelta())
    except (KeyError, OverflowError):
        pass
    raise ValueError(f"{text!r} is no duration: write for example '30 s', '1h 30m', '7 days' or 'PT15M'")


def size(text: str) -> int:
    """Read a size as people write it, in bytes: "64 KiB" is 65,536, "10 MB" is 10,000,000; bare numbers are bytes.

    Raises:
        ValueError: It is none, or not a whole number of bytes.
    """
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if match and (unit := _BYTES.get(match[3] or "b")):
        whole, fraction = match[1], match[2] or ""
        scaled, divisor = int(whole + fraction) * unit, int("1" + "0" * len(fraction))
        if not scaled % divisor:
            return scaled // divisor
    raise ValueError(f"{text!r} is no size: write for example 512, '64 KiB' (65,536 bytes) or '10 MB' (10,000,000 bytes)")


def is_secret(name: str) -> bool:
    """Whether what has this name is for nobody's eyes: password, token, access_key."""
    return not _SECRETS.isdisjoint(name.lower().split("_"))


def shown(value: object, name: str = "") -> str:
    """A value in a few words, for errors and for the log: without what is secret by its name, or as part of a URL."""
    if is_secret(name) and value is not None:
        return "***"
    if isinstance(value, str):
        value = masked(str(value))
    elif isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item, str(key))}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return str(value) if isinstance(value, timedelta) else _brief.repr(value)


def masked(url: str) -> str:
    """A text in which the password of a URL, and what a query calls a secret, are stars. Other texts stay as they are."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    who, at, place = rest.rpartition("@")  # the last one: a password may have one, unquoted
    name, colon, _ = who.partition(":")
    whole = f"{scheme}://{who if not at or not colon else f'{name}:***'}{at}{place}"
    return re.sub(r"([?&;])([^=&;]+)=[^&;#]*", lambda part: f"{part[1]}{part[2]}=***" if is_secret(part[2]) else part[0], whole)


def describe(hint: Any) -> str:  # noqa: PLR0911 — the rows of a table
    """What may be written where a setting has this type, in words."""
    if _is_size(hint):
        return "a size such as '64 KiB', or a number of bytes"
    origin = get_origin(hint)
    if origin is typing.Annotated:
        return describe(get_args(hint)[0])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if origin in _UNIONS:
        members = [describe(member) for member in get_args(hint) if member is not _NONE]
        return " or ".join([*members, "'none'"] if _says_none(hint) else members)
    if (origin or hint) in _SEQUENCES:
        items = [describe(item) for item in get_args(hint) if item is not Ellipsis]
        if origin is tuple and Ellipsis not in get_args(hint):
            return f"a list of {len(items)}: {', '.join(items)}"
        return f"a list, each {items[0]}" if items else "a list"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    if origin in {dict, abc.Mapping} or (isinstance(hint, type) and (attrs.has(hint) or hint is dict)):
        return "a table"
    return _WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def keys_of(cls: type | None) -> list[str]:
    """What can be set: the names of a settings class's arguments."""
    return [] if cls is None else [attribute.alias for attribute in attrs.fields(cls) if attribute.init]


def unknown(key: str, known: Iterable[str]) -> str:
    """What to say of a key that there is not."""
    known = list(known)
    close = get_close_matches(key.lower(), known, 1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}" if known else "there are none"


def structure(cls: type[T], given: Mapping[str, Given | Any], *, path: str = "", what: str = "", origin: str = "") -> T:
    """Make settings, or say everything that is wrong with them.

    Args:
        cls: An attrs class. Its validators and converters are heeded.
        given: By the names of its arguments. `Given` says where a value came from; others are of nowhere.
        path: What the paths in errors begin with, for example "message_broker".
        what: Whose settings they are, for errors, for example "message broker 'redis'".
        origin: Where those of nowhere, and what is missing, belong.

    Raises:
        SettingsError: Its `problems` name path, origin, value without secrets, and what is wanted. There is none if all that is
            wrong is that values are `UNREADABLE`.
    """
    structuring = _Structuring(cls, given, path, what, origin)
    settings = structuring.run()
    if settings is None:
        raise SettingsError(structuring.problems)
    return settings


class _Wrong(ValueError):  # noqa: N818 — it never leaves this module
    """A value is not what its type wants."""

    def __init__(self, hint: Any, value: object, remedy: str = "") -> None:
        self.hint, self.value, self.remedy = hint, value, remedy
        super().__init__(hint, value)

    def text(self, name: str) -> str:
        return f"expected {describe(self.hint)}, got {shown(self.value, name)}{self.remedy}"


class _Structuring(typing.Generic[T]):
    """One call of `structure`."""

    def __init__(self, cls: type[T], given: Mapping[str, Given | Any], path: str, what: str, origin: str) -> None:
        self.cls, self.path, self.what, self.origin = cls, path, what, origin
        self.given = {key: item if isinstance(item, Given) else Given(item, origin) for key, item in given.items()}
        self.attributes = {attribute.alias: attribute for attribute in attrs.fields(cls) if attribute.init}  # type: ignore[arg-type]
        self.hints: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []

    def run(self) -> T | None:
        """The settings; None if there are problems, or values that could not be read."""
        try:
            self.hints = get_type_hints(self.cls, include_extras=True)
        except NameError as error:
            self._report(None, f"{self.cls.__name__} cannot be read: {error}: import the types of its fields at run time, too")
            return None
        for key, item in self.given.items():
            if key in self.attributes:
                if item.value is not UNREADABLE:
                    self._structure(key, item.value)
            else:
                self._report(key, f"unknown key, {unknown(key, self.attributes)}")
        for key, attribute in self.attributes.items():
            if attribute.default is attrs.NOTHING and key not in self.given:
                self._report(key, f"missing: {self.what or self.cls.__name__} wants {describe(self._hint(key))}")
        self._validate()
        if self.problems or any(item.value is UNREADABLE for item in self.given.values()):
            return None
        try:
            return self.cls(**self.values)
        except (ValueError, TypeError, RepidError) as error:  # of several settings together
            self._refused(None, error)
            return None

    def _hint(self, key: str) -> Any:
        return self.hints.get(self.attributes[key].name, Any)

    def _structure(self, key: str, value: Any) -> None:
        hint, name = self._hint(key), self._name(key)

        def text(error: BaseException, wanted: Any) -> str:
            if isinstance(error, _Wrong):
                return error.text(name)
            if (extra := getattr(error, "extra_fields", None)) is not None:
                return f"unknown key {', '.join(sorted(extra))}: there are {', '.join(keys_of(error.cl))}"  # type: ignore[attr-defined]
            return f"expected {describe(wanted or hint)}, got {shown(value, name)}"

        try:
            self.values[key] = _structured(value, hint)
        except Exception as error:  # noqa: BLE001 — hooks run the settings' own classes
            from cattrs import transform_error  # noqa: PLC0415 — it costs what most processes can spare

            for line in transform_error(error, key, text):
                said, _, where = line.rpartition(" @ ")
                self._report(where, said)

    def _validate(self) -> None:
        """Ask every validator, where attrs stops at the first that refuses.

        They are asked with an instance of which no more is known than what is right so far: some look at other fields.
        """
        draft = object.__new__(self.cls)
        for attribute in attrs.fields(self.cls):  # type: ignore[arg-type]
            with suppress(Exception):  # a default that is made from what is wrong, and said to be
                object.__setattr__(draft, attribute.name, self._value(attribute, draft))
        for key, attribute in self.attributes.items():
            if key in self.values and attribute.validator is not None and hasattr(draft, attribute.name):
                try:
                    attribute.validator(draft, attribute, getattr(draft, attribute.name))
                except (ValueError, TypeError, RepidError) as error:
                    self._refused(key, error)
                except Exception:  # noqa: BLE001, S110 — it looked at what is not there
                    pass

    def _value(self, attribute: attrs.Attribute[Any], draft: object) -> Any:
        value: Any = attribute.default
        if attribute.alias in self.values:
            value = self.values[attribute.alias]
        elif isinstance(value, attrs.Factory):  # type: ignore[arg-type]
            value = value.factory(draft) if value.takes_self else value.factory()
        return value if attribute.converter is None else attribute.converter(value)  # type: ignore[operator]

    def _refused(self, key: str | None, error: Exception) -> None:
        """A validator's or constructor's own words; most begin with the name of the field that they are about."""
        text = " ".join(str(error.args[0] if error.args else error).split())
        match = re.match(r"'?(\w+)'?(?P<rest>\W.*)", text)
        key = match[1] if match and match[1] in self.attributes else key
        if key is not None and match and match[1] == key and match["rest"][0] in "=:":
            text = match["rest"][1:].lstrip()
            if key in self.values and text.startswith(meant := repr(self.values[key])):
                text = shown(self.given[key].value, self._name(key)) + text.removeprefix(meant)
        self._report(key, text)

    def _name(self, key: str) -> str:
        """The key, or the word "secret" for one whose class keeps it from its own repr."""
        attribute = self.attributes.get(key)
        return "secret" if attribute is not None and attribute.repr is False else key

    def _report(self, where: str | None, text: str) -> None:
        key = "" if where is None else re.split(r"[.\[]", where, maxsplit=1)[0]
        for name, item in self.given.items():  # whatever a class says about its settings
            for secret in secrets_of(item.value, self._name(name)):
                text = text.replace(secret, "***")
        path = ".".join(filter(None, (self.path, where)))
        origin = self.given[key].origin if key in self.given else self.origin
        self.problems.append(f"{path or self.what} ({origin}): {text}" if origin else f"{path or self.what}: {text}")


def secrets_of(value: object, name: str) -> list[str]:
    """The texts in a value that nobody may see. Shorter ones than three signs are in every text, and no secret."""
    if isinstance(value, Mapping):
        return [secret for key, item in value.items() for secret in secrets_of(item, str(key))]
    if not isinstance(value, str):
        return []
    found = [str(value)] if is_secret(name) else []
    who, at, _ = value.partition("://")[2].rpartition("@")
    if at and ":" in who:
        found.append(who.partition(":")[2])
    return [secret for secret in found if len(secret) > 2]


def _structured(value: Any, hint: Any) -> Any:
    if isinstance(value, str) and value.lower() == "none" and _says_none(hint):
        return None
    kind = next((member for member in _members(hint) if (get_origin(member) or member) in _SEQUENCES), None)
    if kind is not None and isinstance(value, str) and str not in _members(hint):
        if not isinstance(value, Loose):
            raise _Wrong(hint, value)  # else each letter would be an item
        value = [Loose(item.strip()) for item in value.split(",") if item.strip()]
    if isinstance(hint, type) and hint is not Any and not isinstance(value, str | int | float) and isinstance(value, hint):
        return value  # given as a Python object
    return _converter().structure(value, hint)


def _is_size(hint: Any) -> bool:
    return get_origin(hint) is typing.Annotated and "bytes" in get_args(hint)[1:]


def _is_literal(hint: Any) -> bool:
    return get_origin(hint) is Literal


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in _UNIONS else (hint,)


def _says_none(hint: Any) -> bool:
    """Whether "none" stands for None, as files and the environment have none; it is a text where any text goes."""
    members = _members(hint)
    return _NONE in members and not any(
        member is str or (_is_literal(member) and "none" in get_args(member)) for member in members
    )


@functools.cache
def _converter() -> Any:
    import cattrs  # noqa: PLC0415 — it costs what most processes can spare

    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for cls, hook in _HOOKS.items():
        converter.register_structure_hook(cls, hook)
    converter.register_structure_hook_func(lambda hint: hint is Any or hint is object, _as_is)
    converter.register_structure_hook_func(_is_size, _size)
    converter.register_structure_hook_func(_is_literal, _choice)
    converter.register_structure_hook_func(lambda hint: isinstance(hint, type) and issubclass(hint, Enum), _enum)
    converter.register_structure_hook_func(lambda hint: get_origin(hint) in _UNIONS, _union)
    return converter


def _text(value: Any, hint: Any) -> str:
    if hint is not str:  # a subclass
        return _enum(value, hint) if issubclass(hint, Enum) else hint(_text(value, str))  # type: ignore[no-any-return]
    if not isinstance(value, str):
        raise _Wrong(hint, value, "" if isinstance(value, Mapping | list) else ": write it in quotes")
    return str(value)


def _bool(value: Any, hint: Any) -> bool:
    if isinstance(value, Loose) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    if not isinstance(value, bool):
        raise _Wrong(hint, value)
    return value


def _number_of(cls: Callable[[Any], Any], accepted: tuple[type, ...]) -> Callable[[Any, Any], Any]:
    def hook(value: Any, hint: Any) -> Any:
        if isinstance(hint, type) and issubclass(hint, Enum):  # cattrs finds this one for IntEnum
            return _enum(value, hint)
        if isinstance(value, Loose):
            with suppress(ValueError):
                return cls(value)
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise _Wrong(hint, value)
        return cls(value)

    return hook


def _duration(value: Any, hint: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    with suppress(ValueError, OverflowError):
        if isinstance(value, str):
            return duration(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return timedelta(seconds=value)
    raise _Wrong(hint, value)


def _size(value: Any, hint: Any) -> int:
    if isinstance(value, str):
        with suppress(ValueError):
            return size(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _Wrong(hint, value)


def _path(value: Any, hint: Any) -> Path:
    if not isinstance(value, str | Path):
        raise _Wrong(hint, value)
    return Path(value)


def _choice(value: Any, hint: Any) -> Any:
    for choice in get_args(hint):
        if (type(value), value) == (type(choice), choice) or (isinstance(value, Loose) and value == str(choice)):
            return choice
    raise _Wrong(hint, value)


def _enum(value: Any, hint: Any) -> Any:
    for member in hint:
        if value == member.value or value is member or (isinstance(value, Loose) and value == str(member.value)):
            return member
    raise _Wrong(hint, value)


def _union(value: Any, hint: Any) -> Any:
    members = get_args(hint)
    if _NONE in members and (value is None or (isinstance(value, str) and value.lower() == "none" and _says_none(hint))):
        return None
    for member in sorted((member for member in members if member is not _NONE), key=lambda member: member is str):
        with suppress(Exception):
            return _structured(value, member)
    raise _Wrong(hint, value)


def _as_is(value: Any, _hint: Any) -> Any:
    return str(value) if isinstance(value, Loose) else value


_WORDS: Final[dict[Any, str]] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    timedelta: "a duration such as '30 s', '1h 30m' or 'PT15M', or a number of seconds",
    Path: "a path",
    Any: "anything",
}
_HOOKS: Final[dict[Any, Callable[[Any, Any], Any]]] = {
    str: _text,
    bool: _bool,
    int: _number_of(int, (int,)),
    float: _number_of(float, (int, float)),
    timedelta: _duration,
    Path: _path,
}
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 100
