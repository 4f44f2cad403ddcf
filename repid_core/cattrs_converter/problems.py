"""What is wrong with a value, where, and in which words."""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

import attrs
from cattrs.errors import AttributeValidationNote, ClassValidationError, ForbiddenExtraKeysError

from repid_core.errors import ConversionError

Problem = tuple[str, str]  # the path, and what is wrong there

UNIONS = frozenset({typing.Union, types.UnionType})
MOST = 100


class Invalid(ValueError):  # noqa: N818 — it carries problems, and never leaves the converter
    """A value does not fit."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__(problems)


def wrong(expected: Any, value: object, why: str = "") -> Invalid:
    """A value that is not what is expected, a hint or words."""
    return Invalid(("", f"expected {name_of(expected)}, got {shown(value)}{why}"))


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 60


def shown(value: object) -> str:
    """A value in a few words."""
    text = _brief.repr(value)
    return "None" if value is None else f"{text if len(text) <= 60 else text[:59] + '…'} ({type(value).__name__})"


def name_of(hint: Any) -> str:
    """A hint, or a function, as people write it."""
    if (origin := get_origin(hint)) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if origin in UNIONS:
        return " or ".join(map(name_of, get_args(hint)))
    if origin is not None:
        return f"{name_of(origin)}[{', '.join(map(name_of, get_args(hint)))}]"
    if hint is ... or hint is type(None):
        return "..." if hint is ... else "None"
    return getattr(hint, "__qualname__", None) or str(hint)


def _problems_of(error: Exception) -> Iterable[Problem]:
    if isinstance(error, Invalid):
        yield from error.problems
    elif isinstance(error, ForbiddenExtraKeysError):
        takes = f"{name_of(error.cl)} takes {', '.join(fields_of(error.cl))}"
        yield from (("", f"unknown key {key!r}: {takes}") for key in sorted(error.extra_fields, key=str))
    elif isinstance(error, ClassValidationError):
        for inner in error.exceptions:
            note = next((note for note in getattr(inner, "__notes__", ()) if isinstance(note, AttributeValidationNote)), None)
            if note is None:
                yield from _problems_of(inner)
            elif isinstance(inner, KeyError) and inner.args == (note.name,):
                yield f".{note.name}", f"missing, expected {name_of(note.type)}"
            else:
                yield from below(f".{note.name}", inner)
    else:
        yield "", f"{type(error).__name__}: {error}"


def below(path: str, error: Exception) -> list[Problem]:
    """The problems that an error stands for, below a path."""
    return [(path + rest, text) for rest, text in _problems_of(error)]


def conversion_error(problems: Sequence[Problem]) -> ConversionError:
    """All problems as one error."""
    texts = [f"{path}: {text}" if path else text for path, text in problems[:MOST]]
    return ConversionError(texts + [f"and {len(problems) - len(texts)} more"] * (len(problems) > len(texts)))


def is_class(cls: Any) -> bool:
    """Whether it is an attrs class or a dataclass."""
    return attrs.has(cls) or dataclasses.is_dataclass(cls)


def fields_of(cls: Any) -> list[str]:
    """What a mapping for the class, or TypedDict, may hold: what `__init__` takes."""
    if is_typeddict(cls):
        return list(get_type_hints(cls))
    return [field.name for field in (attrs.fields(cls) if attrs.has(cls) else dataclasses.fields(cls)) if field.init]
