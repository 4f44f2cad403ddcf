"""A mapping becomes an instance of a settings class: people's sizes and durations, and every error at once with its path.

Settings are structured by cattrs, with hooks that say what a person may write for a type (`describe` has it in words):
`timedelta` takes "1h 30m", "7 days", "PT15M" or seconds, `Size` takes "64 KiB" or bytes.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar, get_type_hints

import attrs
from attrs import field, frozen

from repid_core.errors import RepidError, SettingsError
from repid_core.settings.hooks import Loose, Wrong, structured
from repid_core.settings.units import duration, size
from repid_core.settings.words import describe, is_secret, keys_of, masked, secrets_of, shown, unknown

__all__ = [
    "UNREADABLE",
    "Given",
    "Loose",
    "describe",
    "duration",
    "is_secret",
    "keys_of",
    "masked",
    "shown",
    "size",
    "structure",
    "unknown",
]

T = TypeVar("T")


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


def _unreadable(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_unreadable, value.values()))
    return any(map(_unreadable, value)) if isinstance(value, list | tuple) else value is UNREADABLE


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
                if not _unreadable(item.value):
                    self._structure(key, item.value)
            else:
                self._report(key, f"unknown key, {unknown(key, self.attributes)}")
        for key, attribute in self.attributes.items():
            if attribute.default is attrs.NOTHING and key not in self.given:
                self._report(key, f"missing: {self.what or self.cls.__name__} wants {describe(self._hint(key))}")
        self._validate()
        if self.problems or any(_unreadable(item.value) for item in self.given.values()):
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
            if isinstance(error, Wrong):
                return error.text(name)
            if (extra := getattr(error, "extra_fields", None)) is not None:
                return f"unknown key {', '.join(sorted(extra))}: there are {', '.join(keys_of(error.cl))}"  # type: ignore[attr-defined]
            return f"expected {describe(wanted or hint)}, got {shown(value, name)}"

        try:
            self.values[key] = structured(value, hint)
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
