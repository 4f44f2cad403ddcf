"""What cattrs makes of a value for each type."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from repid_core.settings.units import duration, size
from repid_core.settings.words import NONE, SEQUENCES, UNIONS, describe, is_literal, is_size, members_of, says_none, shown

_TRUTHS: Final = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Loose(str):
    """A text from where there are no types, such as the environment: "5" may be a number, "on" a truth, "a, b" a list."""

    __slots__ = ()


class Wrong(ValueError):  # noqa: N818 — it never leaves this module
    """A value is not what its type wants."""

    def __init__(self, hint: Any, value: object, remedy: str = "") -> None:
        self.hint, self.value, self.remedy = hint, value, remedy
        super().__init__(hint, value)

    def text(self, name: str) -> str:
        return f"expected {describe(self.hint)}, got {shown(self.value, name)}{self.remedy}"


def structured(value: Any, hint: Any) -> Any:
    """The value as its type wants it; `Wrong`, or an error of cattrs, if it does not fit."""
    if isinstance(value, str) and value.lower() == "none" and says_none(hint):
        return None
    kind = next((member for member in members_of(hint) if (get_origin(member) or member) in SEQUENCES), None)
    if kind is not None and isinstance(value, str) and str not in members_of(hint):
        if not isinstance(value, Loose):
            raise Wrong(hint, value)  # else each letter would be an item
        value = [Loose(item.strip()) for item in value.split(",") if item.strip()]
    if isinstance(hint, type) and hint is not Any and not isinstance(value, str | int | float) and isinstance(value, hint):
        return value  # given as a Python object
    return _converter().structure(value, hint)


@functools.cache
def _converter() -> Any:
    import cattrs  # noqa: PLC0415 — it costs what most processes can spare

    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for cls, hook in _HOOKS.items():
        converter.register_structure_hook(cls, hook)
    converter.register_structure_hook_func(lambda hint: hint is Any or hint is object, _as_is)
    converter.register_structure_hook_func(is_size, _size)
    converter.register_structure_hook_func(is_literal, _choice)
    converter.register_structure_hook_func(lambda hint: isinstance(hint, type) and issubclass(hint, Enum), _enum)
    converter.register_structure_hook_func(lambda hint: get_origin(hint) in UNIONS, _union)
    return converter


def _text(value: Any, hint: Any) -> str:
    if hint is not str:  # a subclass
        return _enum(value, hint) if issubclass(hint, Enum) else hint(_text(value, str))  # type: ignore[no-any-return]
    if not isinstance(value, str):
        raise Wrong(hint, value, "" if isinstance(value, Mapping | list) else ": write it in quotes")
    return str(value)


def _bool(value: Any, hint: Any) -> bool:
    if isinstance(value, Loose) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    if not isinstance(value, bool):
        raise Wrong(hint, value)
    return value


def _number_of(cls: Callable[[Any], Any], accepted: tuple[type, ...]) -> Callable[[Any, Any], Any]:
    def hook(value: Any, hint: Any) -> Any:
        if isinstance(hint, type) and issubclass(hint, Enum):  # cattrs finds this one for IntEnum
            return _enum(value, hint)
        if isinstance(value, Loose):
            with suppress(ValueError):
                return cls(value)
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise Wrong(hint, value)
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
    raise Wrong(hint, value)


def _size(value: Any, hint: Any) -> int:
    if isinstance(value, str):
        with suppress(ValueError):
            return size(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    raise Wrong(hint, value)


def _path(value: Any, hint: Any) -> Path:
    if not isinstance(value, str | Path):
        raise Wrong(hint, value)
    return Path(value)


def _choice(value: Any, hint: Any) -> Any:
    for choice in get_args(hint):
        if (type(value), value) == (type(choice), choice) or (isinstance(value, Loose) and value == str(choice)):
            return choice
    raise Wrong(hint, value)


def _enum(value: Any, hint: Any) -> Any:
    for member in hint:
        if value == member.value or value is member or (isinstance(value, Loose) and value == str(member.value)):
            return member
    raise Wrong(hint, value)


def _union(value: Any, hint: Any) -> Any:
    members = get_args(hint)
    if NONE in members and (value is None or (isinstance(value, str) and value.lower() == "none" and says_none(hint))):
        return None
    for member in sorted((member for member in members if member is not NONE), key=lambda member: member is str):
        with suppress(Exception):
            return structured(value, member)
    raise Wrong(hint, value)


def _as_is(value: Any, _hint: Any) -> Any:
    return str(value) if isinstance(value, Loose) else value


_HOOKS: Final[dict[Any, Callable[[Any, Any], Any]]] = {
    str: _text,
    bool: _bool,
    int: _number_of(int, (int,)),
    float: _number_of(float, (int, float)),
    timedelta: _duration,
    Path: _path,
}
