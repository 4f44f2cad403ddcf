"""Values and types in words, without what is secret."""

from __future__ import annotations

import re
import reprlib
import types
import typing
from collections import abc
from collections.abc import Iterable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import attrs

_SECRETS: Final = frozenset({"password", "passwd", "passphrase", "secret", "token", "key", "credential", "credentials"})
NONE: Final = type(None)
SEQUENCES: Final = frozenset({list, tuple, set, frozenset, abc.Sequence, abc.Collection, abc.Set})
UNIONS: Final = frozenset({typing.Union, types.UnionType})


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
    if is_size(hint):
        return "a size such as '64 KiB', or a number of bytes"
    origin = get_origin(hint)
    if origin is typing.Annotated:
        return describe(get_args(hint)[0])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if origin in UNIONS:
        members = [describe(member) for member in get_args(hint) if member is not NONE]
        return " or ".join([*members, "'none'"] if says_none(hint) else members)
    if (origin or hint) in SEQUENCES:
        items = [describe(item) for item in get_args(hint) if item is not Ellipsis]
        if origin is tuple and Ellipsis not in get_args(hint):
            return f"a list of {len(items)}: {', '.join(items)}"
        return f"a list, each {items[0]}" if items else "a list"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    if origin in {dict, abc.Mapping} or (isinstance(hint, type) and (attrs.has(hint) or hint is dict)):
        return "a table"
    return _WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def is_size(hint: Any) -> bool:
    """Whether it is `repid_core.Size`."""
    return get_origin(hint) is typing.Annotated and "bytes" in get_args(hint)[1:]


def is_literal(hint: Any) -> bool:
    """Whether it is a `Literal`."""
    return get_origin(hint) is Literal


def members_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of others, themselves."""
    return get_args(hint) if get_origin(hint) in UNIONS else (hint,)


def says_none(hint: Any) -> bool:
    """Whether "none" stands for None, as files and the environment have none; it is a text where any text goes."""
    members = members_of(hint)
    return NONE in members and not any(member is str or (is_literal(member) and "none" in get_args(member)) for member in members)


def keys_of(cls: type | None) -> list[str]:
    """What can be set: the names of a settings class's arguments."""
    return [] if cls is None else [attribute.alias for attribute in attrs.fields(cls) if attribute.init]


def unknown(key: str, known: Iterable[str]) -> str:
    """What to say of a key that there is not."""
    known = list(known)
    close = get_close_matches(key.lower(), known, 1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}" if known else "there are none"


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


_WORDS: Final[dict[Any, str]] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    timedelta: "a duration such as '30 s', '1h 30m' or 'PT15M', or a number of seconds",
    Path: "a path",
    Any: "anything",
}
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 100
