"""What actors get injected, and how it is made and cleaned up."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

from attrs import frozen

from repid_core.errors import InvalidActorError

logger = logging.getLogger(__name__)

RunSync = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], bool], Awaitable[Any]]
"""Calls a synchronous function (fn, args, kwargs, in_process) off the event loop."""

_END = object()


class _Injected:
    def __repr__(self) -> str:
        return "INJECTED"


#: The default of a parameter that is injected, so that type checkers let callers leave it out.
INJECTED: Final[Any] = _Injected()


class Depends:
    """Injects what a function gives: `x: Annotated[T, Depends(fn)]`, or `x: T = Depends(fn)`.

    The function may be synchronous (it runs in a thread), async, a generator or an async generator (what follows its
    `yield` cleans up when the job has ended), or a class; it may have dependencies itself, and its other parameters need
    defaults. Within one job it is called once.

    Args:
        fn: The function.
        run_in_process: Call it in a process instead of a thread.

    Raises:
        InvalidActorError: It is not callable, or cannot run in a process.
    """

    def __init__(self, fn: Callable[..., Any], *, run_in_process: bool = False) -> None:
        self.run_in_process = run_in_process
        self._original = self._fn = self._checked(fn)

    def override(self, fn: Callable[..., Any]) -> _Override:
        """Inject what `fn` gives instead, for tests: from now on, or inside `with depends.override(fn):`."""
        before, self._fn = self._fn, self._checked(fn)
        return _Override(self, before)

    def _checked(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(fn):
            raise InvalidActorError(f"Depends({fn!r}): give a function")
        is_sync = not (inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn))
        if self.run_in_process and not is_sync:
            raise InvalidActorError(f"Depends({_text(fn)}, run_in_process=True): only plain synchronous functions run in a process")
        return fn


class _Override:
    """Takes an override back."""

    def __init__(self, depends: Depends, before: Callable[..., Any]) -> None:
        self._depends, self._before = depends, before

    def __enter__(self) -> None:
        """The override is in force already."""

    def __exit__(self, *_: object) -> None:
        self._depends._fn = self._before  # noqa: SLF001 — the two are one


@frozen(eq=False)
class Dependencies:
    """The parameters of one function that are injected.

    Attributes:
        sources: By parameter, a `Depends`, or the class whose instance the worker provides.
        names: The parameters.
    """

    sources: Mapping[str, Depends | type]
    names: frozenset[str]

    @classmethod
    def of(cls, fn: Callable[..., Any]) -> Dependencies:
        """Read them from the signature, and check all that they depend on.

        Raises:
            InvalidActorError: An annotation is missing or cannot be resolved, dependencies form a cycle, or one has a
                parameter that nothing fills.
        """
        return cls._read(fn, ())

    @classmethod
    def _read(cls, fn: Callable[..., Any], path: tuple[Callable[..., Any], ...]) -> Dependencies:
        if fn in path:
            raise InvalidActorError(f"dependencies go in a circle: {' → '.join(_text(step) for step in (*path, fn))}")
        sources: dict[str, Depends | type] = {}
        hints = _hints(fn)
        for parameter in inspect.signature(fn).parameters.values():
            source = _source(fn, parameter, hints)
            if source is not None:
                sources[parameter.name] = source
                if isinstance(source, Depends):
                    cls._read(source._fn, (*path, fn))  # noqa: SLF001
            elif path and parameter.default is parameter.empty and parameter.kind not in _VARIABLE:
                raise InvalidActorError(f"dependency {_text(fn)}: nothing fills its parameter {parameter.name!r}; give it a default")
        return cls(sources, frozenset(sources))

    @asynccontextmanager
    async def resolve(self, provided: Mapping[type, Any], run_sync: RunSync) -> AsyncIterator[dict[str, Any]]:
        """Make the values, by parameter; leaving cleans up in reverse order, and never hides how the actor ended.

        Args:
            provided: Instances by class, for parameters of such a class.
            run_sync: Calls synchronous functions.
        """
        async with AsyncExitStack() as stack:
            yield await self._values(provided, run_sync, stack, {})

    async def _values(
        self, provided: Mapping[type, Any], run_sync: RunSync, stack: AsyncExitStack, made: dict[Callable[..., Any], Any]
    ) -> dict[str, Any]:
        values = {}
        for name, source in self.sources.items():
            if isinstance(source, Depends):
                fn = source._fn  # noqa: SLF001
                if fn not in made:
                    kwargs = await _of_cached(fn)._values(provided, run_sync, stack, made)
                    made[fn] = await _make(fn, kwargs, source.run_in_process, run_sync, stack)
                values[name] = made[fn]
            else:
                values[name] = next(instance for cls, instance in provided.items() if issubclass(cls, source))
        return values


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

_of_cached = functools.lru_cache(maxsize=1024)(Dependencies.of)


async def _make(
    fn: Callable[..., Any], kwargs: dict[str, Any], in_process: bool, run_sync: RunSync, stack: AsyncExitStack  # noqa: FBT001
) -> Any:
    if inspect.isasyncgenfunction(fn):
        values = fn(**kwargs)
        value = await anext(values, _END)

        async def end() -> Any:
            return await anext(values, _END)

        throw: Callable[[BaseException], Awaitable[Any]] = values.athrow
    elif inspect.isgeneratorfunction(fn):
        steps = fn(**kwargs)
        value = await run_sync(next, (steps, _END), {}, False)

        async def end() -> Any:
            return await run_sync(next, (steps, _END), {}, False)

        async def throw(error: BaseException) -> Any:
            return await run_sync(_throw, (steps, error), {}, False)
    elif inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(type(fn), "__call__", None)):
        return await fn(**kwargs)
    else:
        return await run_sync(fn, (), kwargs, in_process)
    if value is _END:
        raise RuntimeError(f"dependency {_text(fn)} yielded nothing")

    async def clean_up(_: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        try:
            if (await (end() if error is None else throw(error))) is not _END:
                raise RuntimeError(f"dependency {_text(fn)} yielded twice")
        except (StopAsyncIteration, StopIteration):
            pass
        except BaseException as own:
            if own is not error:
                if error is None:
                    raise
                logger.exception("dependency %s failed to clean up", _text(fn))
        return False

    stack.push_async_exit(clean_up)
    return value


def _throw(steps: Any, error: BaseException) -> Any:
    try:
        return steps.throw(error)
    except StopIteration:
        return _END


def _source(fn: Callable[..., Any], parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Depends | type | None:
    if isinstance(parameter.default, Depends) and parameter.name not in hints:
        raise InvalidActorError(f"{_text(fn)}: injected parameter {parameter.name!r} has no annotation; write {parameter.name}: T = …")
    hint = hints.get(parameter.name)
    marks = [mark for mark in _parts(hint) if isinstance(mark, Depends)]
    if isinstance(parameter.default, Depends):
        marks.append(parameter.default)
    if len(marks) > 1:
        raise InvalidActorError(f"{_text(fn)}: parameter {parameter.name!r} has {len(marks)} Depends; leave one")
    if marks and parameter.kind in (*_VARIABLE, parameter.POSITIONAL_ONLY):
        raise InvalidActorError(f"{_text(fn)}: parameter {parameter.name!r} cannot be injected, for it has no name to pass it by")
    if marks:
        return marks[0]
    classes = [part for part in _parts(hint) if isinstance(part, type) and getattr(part, "__repid_provided__", False)]
    return classes[0] if classes else None


def _parts(hint: Any) -> list[Any]:
    """The hint, and what is inside its `Annotated` and unions."""
    if get_origin(hint) is Annotated:
        return [part for argument in get_args(hint) for part in _parts(argument)]
    if type(None) in get_args(hint):
        return [part for argument in get_args(hint) for part in _parts(argument)]
    return [hint]


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    target: Any = fn
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.isclass(target):
        target = target.__init__
    elif not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return get_type_hints(target, include_extras=True)
    except Exception as error:
        raise InvalidActorError(f"{_text(fn)}: an annotation cannot be resolved ({error}); import what it names") from error


def _text(fn: Any) -> str:
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', fn)}"
