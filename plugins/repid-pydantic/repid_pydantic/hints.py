"""From a signature to pydantic's models: one for the arguments, one for the result."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Parameter
from typing import Annotated, Any, Literal, get_type_hints

from attrs import frozen
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, create_model
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo

from repid_core.errors import InvalidActorError

Extra = Literal["forbid", "ignore"]

_SCALARS = frozenset({type(None), bool, int, float, str})


@frozen
class Argument:
    """A parameter that is not injected.

    Attributes:
        name: Its name.
        kind: Its kind.
        field: The name of its field in the model, which may be named as fields may not.
        hint: Its type as the model takes it.
        default: Its default; `...` if there is none, or if it is in the hint.
        required: Whether it has no default at all.
        keys: Where in a mapping it is looked for: under its name, then under its aliases.
        positional: Whether the actor is called with it by position.
    """

    name: str
    kind: Any
    field: str
    hint: Any
    default: Any
    required: bool
    keys: Sequence[AliasPath]
    positional: bool

    @property
    def path(self) -> str:
        """How paths below it begin: what `**kwargs` take goes without their name."""
        return "" if self.kind is Parameter.VAR_KEYWORD else self.name

    @property
    def as_field(self) -> Any:
        """What `create_model` takes."""
        return self.hint if self.default is ... else (self.hint, self.default)


def refusal(fn: Callable[..., Any], why: str) -> InvalidActorError:
    """The error for a function that this converter can do nothing with."""
    return InvalidActorError(f"{getattr(fn, '__qualname__', fn)} cannot be an actor: {why}")


def arguments_of(fn: Callable[..., Any], injected: frozenset[str]) -> list[Argument]:
    """The parameters that are not injected, whose hints alone are read."""
    found: list[Argument] = []
    behind_injected = False
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.name in injected:
            behind_injected |= parameter.kind is not Parameter.KEYWORD_ONLY
        else:
            found.append(_argument(fn, parameter, f"p{len(found)}", behind_injected=behind_injected))
    return found


def _argument(fn: Callable[..., Any], parameter: Parameter, field: str, *, behind_injected: bool) -> Argument:
    name, kind, default = parameter.name, parameter.kind, parameter.default
    if behind_injected and kind in {Parameter.VAR_POSITIONAL, Parameter.POSITIONAL_ONLY}:
        raise refusal(fn, f"{name!r} goes by position alone; put it before the injected parameters")
    hint = resolve(fn, parameter.annotation, f"parameter {name!r}")
    if kind is Parameter.VAR_POSITIONAL:
        hint, default = types.GenericAlias(tuple, (hint, ...)), ()
    elif kind is Parameter.VAR_KEYWORD:
        hint, default = types.GenericAlias(dict, (str, hint)), {}
    elif isinstance(default, FieldInfo):
        hint, default = Annotated[hint, default], Parameter.empty
    info = FieldInfo.from_annotation(hint)
    required = default is Parameter.empty and info.is_required()
    positional = kind in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD} and not behind_injected
    # The model is given its own names for what was found under the keys; the last Field has the say.
    hint = Annotated[hint, Field(alias=field, validation_alias=field, serialization_alias=field, exclude=False)]
    return Argument(
        name=name,
        kind=kind,
        field=field,
        hint=hint,
        default=... if default is Parameter.empty else default,
        required=required,
        keys=(AliasPath(name), *_aliases(info)),
        positional=positional,
    )


def _aliases(info: FieldInfo) -> list[AliasPath]:
    alias = info.validation_alias or info.alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [] if alias is None else [alias]
    return [AliasPath(choice) if isinstance(choice, str) else choice for choice in choices]


def resolve(fn: Callable[..., Any], annotation: Any, what: str) -> Any:
    """The type that an annotation means; Any if there is none."""
    if annotation is Parameter.empty:
        return Any
    inner: Any = inspect.unwrap(fn)
    while isinstance(inner, partial):
        inner = inspect.unwrap(inner.func)
    scope = (inner if hasattr(inner, "__globals__") else type(inner).__call__).__globals__
    try:
        return get_type_hints(types.SimpleNamespace(__annotations__={"hint": annotation}), scope, include_extras=True)["hint"]
    except Exception as error:
        raise refusal(fn, f"hint {annotation} of {what}: {error}") from error


def model_of(fn: Callable[..., Any], fields: Mapping[str, Any], what: Mapping[str, str], extra: Extra) -> type[BaseModel]:
    """A model with these fields; what it says of other keys, dataclasses and TypedDicts in it say too.

    Args:
        fn: The actor.
        fields: By name, what `create_model` takes.
        what: What errors call the fields.
        extra: What becomes of keys that are unknown.

    Raises:
        InvalidActorError: pydantic cannot convert to a hint; names it.
    """
    try:
        return _model(fields, extra)
    except Exception as error:
        for name, field in fields.items():
            try:
                _model({name: field}, extra)
            except Exception as cause:
                hint = field[0] if isinstance(field, tuple) else field
                text = inspect.formatannotation(getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint)
                raise refusal(fn, f"hint {text} of {what[name]}: {str(cause).splitlines()[0]}") from cause
        raise refusal(fn, str(error).splitlines()[0]) from error


def _model(fields: Mapping[str, Any], extra: Extra) -> type[BaseModel]:
    config = ConfigDict(extra=extra, hide_input_in_errors=True, val_json_bytes="base64", ser_json_bytes="base64")
    config["ser_json_inf_nan"] = "constants"
    model: type[BaseModel] = create_model("Values", __config__=config, **fields)
    model.model_rebuild(raise_errors=True)  # a model in it may wait for a name that never comes
    return model


def takes_mappings(model: type[BaseModel], field: str) -> bool:
    """Whether a mapping may be a field's value, by the model's JSON schema."""
    try:
        schema = model.model_json_schema()
    except PydanticInvalidForJsonSchema:
        return False
    return _is_object(schema["properties"][field], schema.get("$defs", {}), set())


def _is_object(schema: Any, definitions: Mapping[str, Any], seen: set[str]) -> bool:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return name not in seen and _is_object(definitions[name], definitions, seen | {name})
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return any(_is_object(inner, definitions, seen) for inner in schema[word])
    return bool(schema.get("type", "object") == "object") and not schema.keys() & {"enum", "const"}


def as_json(values: Mapping[str, Any]) -> str | None:
    """Plain data as JSON; None if there is more in it than JSON has."""
    return json.dumps(values) if _is_plain(values) else None


def _is_plain(value: Any) -> bool:
    cls = type(value)
    if cls is dict:
        return {str}.issuperset(map(type, value)) and _are_plain(value.values())
    return cls in _SCALARS or (cls is list and _are_plain(value))


def _are_plain(values: Any) -> bool:
    return _SCALARS.issuperset(map(type, values)) or all(map(_is_plain, values))
