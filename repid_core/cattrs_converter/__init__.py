"""Fits arguments and results to an actor's type hints, strictly: cattrs builds the classes, the rules here say what fits."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from inspect import Parameter
from typing import Any, get_type_hints

import attrs
from cattrs.fns import identity

from repid_core.abc import Converter
from repid_core.cattrs_converter.hooks import Hook, as_is, forms_of, hook_of, list_of, structurer
from repid_core.cattrs_converter.problems import MOST, Problem, below, conversion_error, name_of, shown
from repid_core.errors import InvalidActorError
from repid_core.hookspecs import Backend, hookimpl

_ARGS, _KWARGS, _EMPTY = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD, Parameter.empty


@attrs.frozen
class _Parameter:
    name: str
    kind: Any
    hint: Any
    hook: Hook
    default: Any
    positional: bool  # whether it is passed by position


class CattrsConverter(Converter):
    """Takes native values and the forms that they have in JSON, and guesses at nothing.

    ============================  =====================================================================================
    hint                          accepted
    ============================  =====================================================================================
    Any, object, none             anything, as it is
    bool, str, None               themselves alone
    int                           int; no bool, no text, no 1.0
    float                         float, int
    datetime                      datetime, ISO 8601 text with a time; a naive one means local time and becomes aware
    date, time                    themselves, ISO 8601 text
    timedelta                     timedelta, ISO 8601 duration such as "P1DT2H0.5S"; no number, for it has no unit
    UUID, Decimal, paths          themselves, text
    bytes                         bytes, base64 text
    Enum, Literal                 a member, the value of one
    list, Sequence, Iterable, …   list, tuple
    tuple, named tuple            list, tuple, of the right length
    set, frozenset, Set           set, frozenset, list, tuple
    dict, Mapping                 mapping; keys have a text form, or are int, also as text
    attrs class, dataclass        instance, mapping by field name without unknown keys
    TypedDict                     mapping without unknown keys
    A | B                         what one of them accepts, chosen by its form: null, bool, int, float, text, list or
                                  mapping. Two of one form are refused when the actor is declared, but for literals,
                                  and for classes that differ in required fields or in a Literal field
    NewType, Annotated, TypeVar   what the type behind it accepts
    ============================  =====================================================================================

    If the only parameter takes mappings, a mapping that has not its name among the keys is its value.

    A result is held to the return type by the same table, and becomes plain data, but for the natives that serializers
    know (datetimes, UUIDs, bytes, sets, …). If there is no return type, or it is None or Any, results stay as they are.
    """

    def __init__(self, fn: Callable[..., Any], injected: frozenset[str] = frozenset()) -> None:
        super().__init__(fn, injected)
        self._parameters: list[_Parameter] = []
        behind_injected = False
        for parameter in inspect.signature(fn).parameters.values():
            if parameter.name not in injected:
                self._parameters.append(self._parameter(parameter, behind_injected=behind_injected))
            elif parameter.kind is not Parameter.KEYWORD_ONLY:
                behind_injected = True
        kinds = [parameter.kind for parameter in self._parameters]
        self._only = self._parameters[0] if len(kinds) == 1 and kinds[0] is not _KWARGS else None
        self._only_takes_mappings = self._only is not None and not forms_of(self._only.hint).isdisjoint({"mapping", "any"})
        self._count = -1 if _ARGS in kinds or _KWARGS in kinds else len(kinds)
        self._by_position = [(parameter.name, parameter.hook) for parameter in self._parameters if parameter.positional]
        self._by_keyword = [(parameter.name, parameter.hook) for parameter in self._parameters if not parameter.positional]
        self._result_hook, self._unstructure = self._result(self.signature.return_annotation)

    def convert_inputs(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if type(value) is dict and len(value) == self._count:
            try:
                return (
                    tuple([hook(value[name], None) for name, hook in self._by_position]),
                    {name: hook(value[name], None) for name, hook in self._by_keyword},
                )
            except Exception:  # noqa: BLE001, S110 — whatever it is, what follows finds all of it
                pass
        problems: list[Problem] = []
        converted = self._convert(self._bind(*self._spread(value), problems, by_name=True), problems)
        if problems:
            raise conversion_error(problems)
        return converted

    def convert_outputs(self, value: Any) -> Any:
        value = self.load_outputs(value)
        return value if self._unstructure is None else self._unstructure(value)

    def dump_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        problems: list[Problem] = []
        bound = self._bind(args, kwargs, problems, by_name=False)
        self._convert(bound, problems)
        names = [parameter.name for parameter in self._parameters if parameter.kind is not _KWARGS]
        rest: dict[str, Any] = bound.pop(self._parameters[-1].name) if len(names) < len(self._parameters) else {}
        problems += [(name, "cannot be passed on: a positional parameter has this name") for name in names if name in rest]
        if problems:
            raise conversion_error(problems)
        return bound | rest

    def load_outputs(self, data: Any) -> Any:
        if self._result_hook is None:
            return data
        try:
            return self._result_hook(data, None)
        except Exception as error:
            raise conversion_error(below("result", error)) from error

    def _parameter(self, parameter: Parameter, *, behind_injected: bool) -> _Parameter:
        name, kind = parameter.name, parameter.kind
        if behind_injected and kind in {_ARGS, Parameter.POSITIONAL_ONLY}:
            raise InvalidActorError(
                f"{name_of(self.fn)} cannot be an actor: {name!r} goes by position alone; put it before the injected parameters",
            )
        hint, hook = self._resolve(parameter.annotation, f"parameter {name!r}")
        positional = not behind_injected and kind in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
        return _Parameter(name, kind, hint, hook, parameter.default, positional)

    def _result(self, annotation: Any) -> tuple[Hook | None, Callable[[Any], Any] | None]:
        hint, hook = self._resolve(annotation, "its result")
        if hook is as_is or hint is type(None):
            return None, None
        unstructure: Callable[[Any], Any] = structurer.get_unstructure_hook(hint)
        return hook, None if unstructure is identity else unstructure

    def _resolve(self, annotation: Any, what: str) -> tuple[Any, Hook]:
        if annotation is _EMPTY:
            return Any, as_is
        fn: Any = inspect.unwrap(self.fn)
        while isinstance(fn, partial):
            fn = inspect.unwrap(fn.func)
        scope = (fn if hasattr(fn, "__globals__") else type(fn).__call__).__globals__
        try:
            hint = get_type_hints(types.SimpleNamespace(__annotations__={"hint": annotation}), scope)["hint"]
            return hint, hook_of(hint)
        except Exception as error:
            text = annotation if isinstance(annotation, str) else name_of(annotation)
            raise InvalidActorError(f"{name_of(self.fn)} cannot be an actor: hint {text} of {what}: {error}") from error

    def _spread(self, value: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
        only = self._only
        if value is None:
            return (), {}
        if isinstance(value, Mapping) and not (only and self._only_takes_mappings and value and only.name not in value):
            return (), value
        if isinstance(value, list | tuple):
            return value, {}
        if only is None:
            raise conversion_error([("", f"expected a mapping or a list of arguments, got {shown(value)}: {self._takes()}")])
        return ((value,), {}) if only.kind is _ARGS else ((), {only.name: value})

    def _bind(
        self,
        args: Sequence[Any],
        named: Mapping[str, Any],
        problems: list[Problem],
        *,
        by_name: bool,
    ) -> dict[str, Any]:
        """Values by parameter as they are, those of `*args` and of `**kwargs` together.

        `by_name` is whether positional-only parameters and `*args` go by name too.
        """
        bound: dict[str, Any] = {}
        left, taken = dict(named), 0
        for parameter in self._parameters:
            name, kind = parameter.name, parameter.kind
            by_position = taken < len(args) and kind is not Parameter.KEYWORD_ONLY
            if kind is _KWARGS:
                bound[name], left = left, {}
            elif name in left and (by_name or kind not in {Parameter.POSITIONAL_ONLY, _ARGS}):
                bound[name] = left.pop(name)
                if by_position:
                    problems.append((name, "given twice, by position and by name"))
                    taken += 1
            elif by_position and kind is _ARGS:
                bound[name], taken = args[taken:], len(args)
            elif by_position:
                bound[name], taken = args[taken], taken + 1
            elif parameter.default is _EMPTY and kind is not _ARGS:
                problems.append((name, f"missing, expected {name_of(parameter.hint)}"))
        if taken < len(args):
            remedy = f"; a list as its value goes as {{{self._only.name!r}: […]}}" if self._only else ""
            problems.append(("", f"{len(args)} arguments by position: {self._takes()}{remedy}"))
        for number, key in enumerate(left):  # of which a stranger may have sent many, and a suggestion takes time
            problems.append(("", f"unknown argument {key!r}: {self._takes(key if number < MOST else '')}"))
        return bound

    def _convert(self, bound: Mapping[str, Any], problems: list[Problem]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}

        def take(name: str, value: Any, hook: Hook) -> Any:
            try:
                return hook(value, None)
            except Exception as error:  # noqa: BLE001 — a hook runs the user's classes
                problems.extend(below(name, error))

        for parameter in self._parameters:
            name, hook = parameter.name, parameter.hook
            if name not in bound:
                args += [parameter.default] if parameter.positional else []  # so that what follows keeps its place
            elif parameter.kind is _KWARGS:
                kwargs |= {key: take(key, value, hook) for key, value in bound[name].items()}
            elif parameter.kind is _ARGS:
                args += take(name, bound[name], list_of(hook)) or ()
            elif parameter.positional:
                args.append(take(name, bound[name], hook))
            else:
                kwargs[name] = take(name, bound[name], hook)
        return tuple(args), kwargs

    def _takes(self, wrong: object = "") -> str:
        names = [parameter.name for parameter in self._parameters]
        close = get_close_matches(str(wrong)[:128], names, 1)  # no name is longer
        return f"the actor takes {', '.join(names) or 'none'}" + (f"; did you mean {close[0]!r}?" if close else "")


@hookimpl
def repid_register_converters() -> list[Backend[type[Converter]]]:
    """Register "cattrs"."""
    return [Backend("cattrs", factory=lambda: CattrsConverter, summary="strict conversion by type hints, through cattrs")]
