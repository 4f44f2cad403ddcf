"""The suites catch serializers and converters that break a promise: each fault, by the test of that promise."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest

from repid_core.abc import Converter, Serializer
from repid_core.cattrs_converter import CattrsConverter
from repid_core.errors import ConversionError, SerializationError
from repid_core.json_serializer import JsonSerializer
from repid_core.testing.conformance.converter import ConverterConformance
from repid_core.testing.conformance.serializer import SerializerConformance


class SortsKeys(JsonSerializer):
    def loads(self, data: bytes) -> Any:
        return json.loads(json.dumps(super().loads(data), sort_keys=True))


class Unadorned(JsonSerializer):
    """The standard library with str() for what it does not know."""

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value, default=str).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class NaiveIsUtc(JsonSerializer):
    def dumps(self, value: Any) -> bytes:
        if isinstance(value, dict):
            value = {k: v.replace(tzinfo=UTC) if isinstance(v, datetime) and not v.tzinfo else v for k, v in value.items()}
        return super().dumps(value)


class SaysNothing(JsonSerializer):
    def dumps(self, value: Any) -> bytes:
        try:
            return super().dumps(value)
        except SerializationError:
            raise SerializationError("no") from None


class Unpickles(JsonSerializer):
    def loads(self, data: bytes) -> Any:
        try:
            return super().loads(data)
        except SerializationError:
            return pickle.loads(data)  # noqa: S301 — the fault


class Forgiving(JsonSerializer):
    def loads(self, data: bytes) -> Any:
        try:
            return super().loads(data)
        except SerializationError:
            return None


class Rounds(JsonSerializer):
    def loads(self, data: bytes) -> Any:
        return json.loads(data, parse_int=float)


class Counts(JsonSerializer):
    count = 0

    def dumps(self, value: Any) -> bytes:
        self.count += 1
        return super().dumps(value) + b" " * self.count


class NoType(JsonSerializer):
    content_type = "json"


@pytest.mark.parametrize(
    ("serializer", "test"),
    [
        (SortsKeys, "test_plain_data"),
        (Rounds, "test_plain_data"),
        (Unadorned, "test_native_types"),
        (NaiveIsUtc, "test_naive_datetime"),
        (SaysNothing, "test_error_names_path_and_type"),
        (Unadorned, "test_error_names_path_and_type"),
        (Unadorned, "test_cycles_and_depth"),
        (Rounds, "test_odd_scalars"),
        (Unadorned, "test_keys"),
        (Unadorned, "test_garbage"),
        (Forgiving, "test_garbage"),
        (Unpickles, "test_no_code"),
        (Counts, "test_deterministic"),
        (NoType, "test_content_type"),
    ],
)
def test_broken_serializers_are_caught(
    serializer: Callable[[], Serializer],
    test: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixtures = {"serializer": serializer(), "monkeypatch": monkeypatch}
    method = getattr(SerializerConformance(), test)
    _caught(method, **{name: fixtures[name] for name in inspect.signature(method).parameters})


class Faulty(CattrsConverter):
    """A right converter, that a subclass breaks in one place."""


class IgnoresUnknown(Faulty):
    def convert_inputs(self, value: Any) -> Any:
        if isinstance(value, dict):
            value = {name: item for name, item in value.items() if name in self.signature.parameters}
        return super().convert_inputs(value)


class FirstProblemOnly(Faulty):
    def convert_inputs(self, value: Any) -> Any:
        try:
            return super().convert_inputs(value)
        except ConversionError as error:
            raise ConversionError(error.problems[:1]) from error


class NoPaths(Faulty):
    def convert_inputs(self, value: Any) -> Any:
        try:
            return super().convert_inputs(value)
        except ConversionError as error:
            raise ConversionError([problem.rpartition(":")[2] for problem in error.problems]) from error


class ListsAreValues(Faulty):
    def convert_inputs(self, value: Any) -> Any:
        return super().convert_inputs([value] if isinstance(value, list) else value)


class MappingsAreNames(Faulty):
    def convert_inputs(self, value: Any) -> Any:
        if isinstance(value, dict) and not value.keys() & self.signature.parameters.keys():
            raise ConversionError(["unknown arguments"])
        return super().convert_inputs(value)


class KeywordsOnly(Faulty):
    def convert_inputs(self, value: Any) -> Any:
        args, kwargs = super().convert_inputs(value)
        names = list(self.signature.parameters)
        return (), {**dict(zip(names, args, strict=False)), **kwargs}


class FillsDefaults(Faulty):
    def convert_inputs(self, value: Any) -> Any:
        args, kwargs = super().convert_inputs(value)
        return args, {name: 0 for name in ("b", "c") if name in self.signature.parameters and name not in kwargs} | kwargs


class ReadsInjected(Faulty):
    def __init__(self, fn: Callable[..., Any], injected: frozenset[str] = frozenset()) -> None:
        super().__init__(fn)


class PassesInjectedPlaces(Faulty):
    def convert_inputs(self, value: Any) -> Any:
        args, kwargs = super().convert_inputs(value)
        return (*args, *kwargs.values()), {}


class PassesThrough(Converter):
    """Checks and converts nothing."""

    converted: ClassVar[bool] = False

    def convert_inputs(self, value: Any) -> Any:
        if value is None:
            return (), {}
        return ((), value) if isinstance(value, dict) else (tuple(value) if isinstance(value, list) else (value,), {})

    def convert_outputs(self, value: Any) -> Any:
        return value


class Accumulates(Faulty):
    def convert_inputs(self, value: Any) -> Any:
        if isinstance(value, dict):
            value.pop("size", None)
        return super().convert_inputs(value)


class Lenient(Faulty):
    def convert_inputs(self, value: Any) -> Any:
        hint = next(iter(inspect.signature(self.fn).parameters.values())).annotation
        if hint is int and isinstance(value, dict) and isinstance(value.get("value"), str):
            value = {"value": int(value["value"])}
        return super().convert_inputs(value)


class Conceals(Faulty):
    def dump_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return list(args)


class DropsResults(Faulty):
    def convert_outputs(self, value: Any) -> Any:
        return None

    def load_outputs(self, data: Any) -> Any:
        return data


@pytest.mark.parametrize(
    ("converter", "test"),
    [
        (PassesInjectedPlaces, "test_kinds"),
        (ListsAreValues, "test_by_position"),
        (PassesThrough, "test_no_arguments"),
        (MappingsAreNames, "test_only_parameter"),
        (FillsDefaults, "test_defaults"),
        (KeywordsOnly, "test_kinds"),
        (IgnoresUnknown, "test_unknown"),
        (FirstProblemOnly, "test_every_problem"),
        (NoPaths, "test_every_problem"),
        (PassesThrough, "test_unknown_nested"),
        (ReadsInjected, "test_injected"),
        (PassesInjectedPlaces, "test_injected"),
        (PassesThrough, "test_types"),
        (Conceals, "test_dump_inputs"),
        (Conceals, "test_dump_refuses"),
        (DropsResults, "test_results"),
        (PassesThrough, "test_wrong_results"),
        (DropsResults, "test_free_results"),
        (PassesThrough, "test_unusable"),
        (Accumulates, "test_sharing"),
        (Lenient, "test_strict"),
    ],
)
def test_broken_converters_are_caught(converter: type[Converter], test: str) -> None:
    _caught(getattr(ConverterConformance(), test), converter)


def _caught(test: Callable[..., None], *args: Any, **fixtures: Any) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(*args, **fixtures)
