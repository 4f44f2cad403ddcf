"""Where a value cannot be serialized, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from repid_core.errors import SerializationError
from repid_msgspec.plain import Form


def locate(form: Form, value: Any) -> None:
    """Look for what cannot be serialized, slowly.

    Raises:
        SerializationError: Names the path, the type, and the remedy if there is one. Nothing is raised if nothing is found.
    """
    try:
        _look(form, value, "$", set())
    except RecursionError as error:
        raise SerializationError("$: nested too deeply") from error


def _look(form: Form, value: Any, path: str, above: set[int]) -> None:
    if value is None or type(value) in {bool, int, float, str, bytes, msgspec.Raw}:
        _leaf(form, value, path)
        return
    if id(value) in above:
        raise SerializationError(f"{path}: this {_name(value)} contains itself")
    above.add(id(value))
    try:
        if isinstance(value, Mapping):
            inner = _items(form, value, path)
        elif isinstance(value, list | tuple | set | frozenset):
            inner = ((f"{path}[{index}]", item) for index, item in enumerate(value))
        else:
            inner = iter([(path, _written(form, value, path))])
        for where, item in inner:
            _look(form, item, where, above)
    finally:
        above.discard(id(value))


def _leaf(form: Form, value: Any, path: str) -> None:
    try:
        form.encode(form.plain(value))
    except Exception as error:
        raise SerializationError(f"{path}: cannot serialize this {_name(value)}: {error}") from error


def _items(form: Form, value: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    found: set[Any] = set()
    for key, item in value.items():
        try:
            written = form.key(key)
            form.encode({written: None})
        except Exception as error:
            raise SerializationError(f"{path}: cannot serialize the key {key!r} of type {_name(key)}: {error}") from error
        if written in found:
            raise SerializationError(
                f"{path}: two keys are both written as {written!r}, the second being {key!r}: rename one",
            )
        found.add(written)
        yield f"{path}.{written}" if isinstance(written, str) and written.isidentifier() else f"{path}[{written!r}]", item


def _written(form: Form, value: Any, path: str) -> Any:
    try:
        return form.write(value)
    except Exception as error:
        raise SerializationError(f"{path}: cannot serialize {_name(value)}: {error or type(error).__name__}") from error


def _name(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
