"""The mock that stands in for an actor. A module of its own, as `unittest.mock` takes long to import."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock, call

from attrs import evolve

from repid_core.abc import Converter
from repid_core.dependencies import Dependencies
from repid_core.processing import Route
from repid_core.router import Actor


class ActorMock(AsyncMock):
    """Compares calls by the actor's signature with its defaults filled in, as converters fill them in.

    The method is private to `unittest.mock`; should it go, assertions must name the defaults, and that is all.
    """

    def _call_matcher(self, _call: Any) -> Any:
        args, kwargs = _call[-2:]
        signature = self.__dict__.get("_spec_signature")
        if signature is not None:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:  # it fits no actor of this kind: the comparison will say so
                pass
            else:
                bound.apply_defaults()
                _call = call(*bound.args, **bound.kwargs)
        return super()._call_matcher(_call)


class LenientConverter(Converter):
    """A mock that was not told what to return gives None, whatever the actor's return type is."""

    def __init__(self, converter: Converter) -> None:
        self._converter = converter

    def convert_inputs(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._converter.convert_inputs(value)

    def convert_outputs(self, value: Any) -> Any:
        return None if value is None else self._converter.convert_outputs(value)


def mocked(actor: Actor, default: type[Converter], configure: dict[str, Any]) -> tuple[ActorMock, Route]:
    """A mock for an actor, and how the actor is called with it in place of its function."""
    spec = _without(actor.fn, actor.dependencies.names)
    mock = ActorMock(spec=spec, **{"return_value": None, **configure})
    replaced = evolve(actor, fn=mock, is_async=True, run_in_process=False, dependencies=Dependencies({}, frozenset()))
    return mock, Route(replaced, LenientConverter(actor.converter(default)))


def _without(fn: Callable[..., Any], injected: frozenset[str]) -> Callable[..., Any]:
    """A function whose signature is that of `fn` without what is injected."""

    async def spec() -> None: ...

    signature = inspect.signature(fn)
    kept = [parameter for name, parameter in signature.parameters.items() if name not in injected]
    spec.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    spec.__name__ = getattr(fn, "__name__", "actor")
    return spec
