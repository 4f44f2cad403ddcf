"""Fits arguments and results to an actor's type hints as pydantic does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from inspect import Parameter
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from repid_core.abc import Converter
from repid_core.errors import ConversionError
from repid_pydantic.hints import Argument, arguments_of, as_json, model_of, resolve, takes_mappings
from repid_pydantic.problems import MOST, conversion_error, path_of, problems_of, trouble

_MASKED = '"**********"'  # what pydantic writes for SecretStr and its like


class PydanticConverter(Converter):
    """Validates by pydantic's rules: numbers may come as text, and what `Field`, `Annotated` and models say holds.

    Plain data is validated as JSON, which strict models take too: datetimes from ISO 8601 text, bytes from base64 text (in
    models: as their `val_json_bytes` says). What has native values in it, as from MessagePack, is validated as Python.

    An argument goes by the parameter's name or by an alias of its `Field`; fields of models go by both too. Keys that nothing
    takes are errors, also in dataclasses and TypedDicts; in models, their `extra` says it. If the only parameter takes
    mappings, a mapping that has neither its name nor an alias among the keys is its value.

    A result is validated against the return type and written through it: fields that the type has not are left out. If there is
    no return type, or it is None or Any, results stay as they are.
    """

    def __init__(self, fn: Callable[..., Any], injected: frozenset[str] = frozenset()) -> None:
        super().__init__(fn, injected)
        self._arguments = arguments_of(fn, injected)
        fields = {argument.field: argument.as_field for argument in self._arguments}
        what = {argument.field: f"parameter {argument.name!r}" for argument in self._arguments}
        self._inputs = model_of(fn, fields, what, "forbid")
        self._by_field = {argument.field: argument for argument in self._arguments}
        rest = [argument for argument in self._arguments if argument.kind is Parameter.VAR_KEYWORD]
        self._rest = rest[0] if rest else None
        self._only = self._arguments[0] if len(self._arguments) == 1 and not rest else None
        self._only_takes_mappings = self._only is not None and takes_mappings(self._inputs, self._only.field)
        hint = resolve(fn, self.signature.return_annotation, "its result")
        self._outputs = (
            None if hint in (Any, None, type(None)) else model_of(fn, {"result": (hint, ...)}, {"result": "its result"}, "ignore")
        )

    def convert_inputs(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        problems: list[str] = []
        model = self._validate(self._spread(value, problems), problems)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in self._arguments:
            converted = getattr(model, argument.field)
            if argument.kind is Parameter.VAR_KEYWORD:
                kwargs |= converted
            elif argument.kind is Parameter.VAR_POSITIONAL:
                args += converted
            elif argument.positional:
                args.append(converted)
            else:
                kwargs[argument.name] = converted
        return tuple(args), kwargs

    def convert_outputs(self, value: Any) -> Any:
        if self._outputs is None:
            return value
        model = _read(self._outputs, {"result": value})
        try:
            return model.model_dump(mode="json", by_alias=True, round_trip=True, warnings=False)["result"]
        except Exception as error:
            raise ConversionError([trouble(error)]) from error

    def dump_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            bound = self.signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise ConversionError([f"{error}: {self._takes()}"]) from error
        values: dict[str, Any] = {}
        names = {argument.name for argument in self._arguments if argument is not self._rest}
        taken = names.intersection(bound.get(self._rest.name, ()) if self._rest else ())
        problems = [f"{name}: cannot be passed on: a positional parameter has this name" for name in taken]
        for argument in self._arguments:
            self._take(argument, bound.get(argument.name, PydanticUndefined), values, problems)
        model = self._validate(values, problems)
        try:
            data = model.model_dump(mode="json", include=set(values), by_alias=False, round_trip=True, warnings=False)
        except Exception as error:
            raise ConversionError([trouble(error)]) from error
        self._validate(data, [])  # or the worker would be the first to see what a model writes and does not read
        named = {self._by_field[field].name: item for field, item in data.items()}
        masked = [name for name, item in named.items() if _MASKED in json.dumps(item)]
        if masked:
            remedy = "pydantic writes asterisks for secrets; give the field a serializer that calls get_secret_value()"
            raise ConversionError([f"{name}: cannot be passed on: {remedy}" for name in masked])
        rest: dict[str, Any] = named.pop(self._rest.name, {}) if self._rest else {}
        return named | rest

    def load_outputs(self, data: Any) -> Any:
        if self._outputs is None:
            return data
        return getattr(_read(self._outputs, {"result": data}), "result")  # noqa: B009 — made at run time, the class has it

    def _validate(self, values: dict[str, Any], problems: list[str]) -> BaseModel:
        """The model of values by field. Raises the `problems` there are already, and what else it finds."""
        model = _read(self._inputs, values, problems, self._path)
        if problems:
            raise conversion_error(problems)
        return model

    def _path(self, field: str) -> str:
        return self._by_field[field].path if field in self._by_field else field

    def _spread(self, value: Any, problems: list[str]) -> dict[str, Any]:
        """Decoded data by field."""
        only = self._only
        if value is None:
            value = {}
        if isinstance(value, list | tuple):
            return self._by_position(list(value), problems)
        if isinstance(value, Mapping) and not (only and self._only_takes_mappings and value and not self._is_named(only, value)):
            return self._by_name(dict(value), problems)
        if only is None:
            shown = repr(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
            raise ConversionError([f"expected a mapping or a list of arguments, got {shown}: {self._takes()}"])
        return {only.field: [value] if only.kind is Parameter.VAR_POSITIONAL else value}

    def _is_named(self, argument: Argument, value: Mapping[str, Any]) -> bool:
        return any(key.path[0] in value for key in argument.keys)

    def _by_position(self, given: list[Any], problems: list[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        count = len(given)
        for argument in self._arguments:
            if argument.kind is Parameter.VAR_POSITIONAL:
                values[argument.field], given = given, []
            else:
                by_position = given and argument.kind in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
                self._take(argument, given.pop(0) if by_position else PydanticUndefined, values, problems)
        if given:
            remedy = f"; a list as its value goes as {{{self._only.name!r}: […]}}" if self._only else ""
            problems.append(f"{count} arguments by position: {self._takes()}{remedy}")
        return values

    def _by_name(self, given: dict[str, Any], problems: list[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        used = set()
        for argument in self._arguments:
            if argument is self._rest:
                continue
            found: Any = PydanticUndefined
            for key in argument.keys:
                found = key.search_dict_for_path(given)
                if found is not PydanticUndefined:
                    used.add(key.path[0])
                    break
            self._take(argument, found, values, problems)
        left = {key: item for key, item in given.items() if key not in used}
        if self._rest:
            values[self._rest.field] = left
        else:
            for number, wrong in enumerate(left):  # of which a stranger may have sent many, and a suggestion takes time
                problems.append(f"unknown argument {wrong!r}: {self._takes(wrong if number < MOST else '')}")
        return values

    def _take(self, argument: Argument, found: Any, values: dict[str, Any], problems: list[str]) -> None:
        if found is not PydanticUndefined:
            values[argument.field] = found
        elif argument.required:
            problems.append(f"{argument.name}: missing{self._aliases(argument)}")

    def _aliases(self, argument: Argument) -> str:
        aliases = [path_of("", key.path) for key in argument.keys[1:]]
        return f" (also known as {', '.join(aliases)})" if aliases else ""

    def _takes(self, wrong: object = "") -> str:
        names = [str(key.path[0]) for argument in self._arguments for key in argument.keys]
        close = get_close_matches(str(wrong)[:128], names, 1)  # no name is longer
        taken = ", ".join(argument.name + self._aliases(argument) for argument in self._arguments)
        return f"the actor takes {taken or 'none'}" + (f"; did you mean {close[0]!r}?" if close else "")


def _read(
    model: type[BaseModel],
    values: Mapping[str, Any],
    problems: Sequence[str] = (),
    path: Callable[[str], str] = str,
) -> BaseModel:
    try:
        text = as_json(values)
        if text is not None:
            return model.model_validate_json(text, by_alias=True, by_name=True)
        return model.model_validate(values, from_attributes=True, by_alias=True, by_name=True)
    except ValidationError as error:  # all that it says is in the problems, and it may quote what was given
        raise conversion_error([*problems, *problems_of(error, path)]) from None
    except Exception as error:
        raise conversion_error([*problems, trouble(error)]) from error


def converter_class() -> type[Converter]:
    """What the plugin registers."""
    return PydanticConverter
