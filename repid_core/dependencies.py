"""What actors get injected, and how it is made and cleaned up."""

from __future__ import annotations

import contextvars
import functools
import inspect
import logging
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from attrs import frozen

from repid_core.errors import InvalidActorError

logger = logging.getLogger(__name__)

RunSync = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], bool], Awaitable[Any]]
"""Calls a synchronous function (fn, args, kwargs, in_process) off the event loop."""


class _Injected:
    def __repr__(self) -> str:
        return "INJECTED"


#: The default of a parameter that is injected, so that type checkers let callers leave it out.
INJECTED: Final[Any] = _Injected()


class Depends:
    """Injects what a function gives: `x: Annotated[T, Depends(fn)]`, or `x: T = Depends(fn)`.

    The function may be synchronous (it runs in a thread), async, a generator or an async generator (what follows its
    `yield` cleans up when the job has ended, however it ended), or a class; it may have dependencies itself, and its other
    parameters need defaults. Within one job it is called once, however many depend on it.

    Args:
        fn: The function.
        run_in_process: Call it in a process instead of a thread.

    Raises:
        InvalidActorError: It is not callable; or `run_in_process`, but async or a generator.
    """

    def __init__(self, fn: Callable[..., Any], *, run_in_process: bool = False) -> None:
        self._set(fn, in_process=run_in_process)
        if run_in_process and any(is_kind(_code(fn)) for is_kind in _NOT_PLAIN):
            raise InvalidActorError(f"Depends({_text(fn)}, run_in_process=True): only plain functions run in a process")
        if run_in_process and "<" in getattr(_code(fn), "__qualname__", ""):
            raise InvalidActorError(f"Depends({_text(fn)}, run_in_process=True): it must be at the top of a module")

    def override(self, fn: Callable[..., Any]) -> AbstractContextManager[object]:
        """Inject what `fn` gives instead, for tests: from now on, or inside `with depends.override(fn):`.

        `fn` may have other dependencies, and never runs in a process.

        Raises:
            InvalidActorError: `fn` cannot be injected; nothing is changed.
        """
        before = vars(self).copy()
        try:
            self._set(fn, in_process=False)
            self._read(())
        except InvalidActorError:
            vars(self).update(before)
            raise
        undo = ExitStack()
        undo.callback(self._read, ())  # last: what it was before may be unread, or close a circle by now
        undo.callback(vars(self).update, before)
        return undo

    def _set(self, fn: Callable[..., Any], *, in_process: bool) -> None:
        if not callable(fn):
            raise InvalidActorError(f"Depends({fn!r}): give a function")
        self._fn, self._in_process = fn, in_process
        self._sources: Mapping[str, Depends | type] = {}
        self._is_read = False
        try:
            hash(fn)
            self._key: Hashable = fn
        except TypeError:
            self._key = id(fn)

    def _read(self, path: tuple[Callable[..., Any], ...]) -> None:
        """Find out what the function depends on, and all that follows from it."""
        if self._fn in path:
            raise InvalidActorError(f"dependencies go in a circle: {' → '.join(_text(step) for step in (*path, self._fn))}")
        if not self._is_read:
            self._sources, self._is_read = _sources(self._fn, is_dependency=True), True
        _read_all(self._sources, (*path, self._fn))

    async def _make(self, job: _Job) -> Any:
        if self._key not in job.made:
            fn, kwargs = self._fn, await job.values(self._sources)
            job.made[self._key] = await job.make(fn, kwargs, in_process=self._in_process)
        return job.made[self._key]


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
            InvalidActorError: An annotation is missing or cannot be resolved, dependencies form a circle, or one has a
                parameter that nothing fills.
        """
        sources = _sources(fn, is_dependency=False)
        _read_all(sources, (fn,))
        return cls(sources, frozenset(sources))

    @asynccontextmanager
    async def resolve(self, provided: Mapping[type, Any], run_sync: RunSync) -> AsyncIterator[dict[str, Any]]:
        """Make the values, by parameter; leaving cleans up in reverse order, and never hides how the actor ended.

        Args:
            provided: Instances by class, for parameters of such a class.
            run_sync: Calls synchronous functions.
        """
        async with AsyncExitStack() as stack:
            yield await _Job(provided, run_sync, stack, {}).values(self.sources)


@frozen(eq=False)
class _Job:
    """The values that are made for one job."""

    provided: Mapping[type, Any]
    run_sync: RunSync
    stack: AsyncExitStack
    made: dict[Hashable, Any]

    async def values(self, sources: Mapping[str, Depends | type]) -> dict[str, Any]:
        return {
            name: await source._make(self) if isinstance(source, Depends) else self.provided[source]
            for name, source in sources.items()
        }

    async def make(self, fn: Callable[..., Any], kwargs: dict[str, Any], *, in_process: bool) -> Any:
        code, run_sync = _code(fn), self.run_sync
        enter: Callable[[], Awaitable[Any]]
        leave: Callable[..., Awaitable[Any]]
        if inspect.iscoroutinefunction(code):
            return await fn(**kwargs)
        if inspect.isasyncgenfunction(code):
            awaited = asynccontextmanager(fn)(**kwargs)
            enter, leave = awaited.__aenter__, awaited.__aexit__
        elif inspect.isgeneratorfunction(code):
            threaded = contextmanager(fn)(**kwargs)
            run = contextvars.copy_context().run  # one context for all its steps, so that it can reset what it sets
            enter = functools.partial(run_sync, run, (threaded.__enter__,), {}, False)
            leave = lambda *how: run_sync(run, (threaded.__exit__, *how), {}, False)  # noqa: E731
        else:
            return await run_sync(fn, (), kwargs, in_process)

        async def clean_up(*how: Any) -> None:
            try:
                await leave(*how)
            except Exception as error:
                if how[1] is None:
                    error.add_note(f"in dependency {_text(fn)}, cleaning up")
                    raise
                logger.exception("dependency %s failed to clean up", _text(fn))

        self.stack.push_async_exit(clean_up)  # first: cancelled while a thread enters it, it is entered all the same
        try:
            return await enter()
        except Exception as error:
            error.add_note(f"in dependency {_text(fn)}")
            raise


_NOT_PLAIN = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
_NAMELESS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _read_all(sources: Mapping[str, Depends | type], path: tuple[Callable[..., Any], ...]) -> None:
    for source in sources.values():
        if isinstance(source, Depends):
            source._read(path)  # noqa: SLF001 — the module's own


def _sources(fn: Callable[..., Any], *, is_dependency: bool) -> dict[str, Depends | type]:
    """Where the function's injected parameters come from."""
    hints, bound = _hints(fn), _bound(fn)
    try:
        parameters = inspect.signature(fn).parameters
    except ValueError:  # a builtin that says nothing of itself
        if not is_dependency:
            raise
        return {}
    sources = {}
    for name, parameter in parameters.items():
        if name in bound:
            continue
        source = _source(f"{_text(fn)}: parameter {name!r}", parameter, hints.get(name))
        if source is not None:
            sources[name] = source
        elif is_dependency and parameter.default is parameter.empty and parameter.kind not in _NAMELESS[1:]:
            raise InvalidActorError(f"dependency {_text(fn)}: nothing fills its parameter {name!r}; give it a default")
    return sources


def _source(where: str, parameter: inspect.Parameter, hint: Any) -> Depends | type | None:
    parts, default = _parts(hint), parameter.default
    marks = [part for part in (*parts, default) if isinstance(part, Depends)]
    provided = [part for part in parts if isinstance(part, type) and "__repid_provided__" in vars(part)]
    if isinstance(default, Depends) and parameter.annotation is parameter.empty:
        raise InvalidActorError(f"{where} is injected and has no annotation; write {parameter.name}: T = …")
    if len(marks) > 1:
        raise InvalidActorError(f"{where} has {len(marks)} Depends; leave one")
    if not (marks or provided):
        if default is INJECTED:
            raise InvalidActorError(f"{where} is INJECTED, but nothing says by what; annotate it with Annotated[T, Depends(…)]")
        return None
    if parameter.kind in _NAMELESS:
        raise InvalidActorError(f"{where} cannot be injected, for it has no name to pass it by")
    return (marks or provided)[0]


def _parts(hint: Any) -> list[Any]:
    """The hint, and what is inside its `Annotated` and unions."""
    if get_origin(hint) is Annotated:
        return [*_parts(get_args(hint)[0]), *get_args(hint)[1:]]
    if get_origin(hint) in {Union, types.UnionType}:
        return [part for argument in get_args(hint) for part in _parts(argument)]
    return [hint]


def _bound(fn: Any) -> frozenset[str]:
    """The parameters to which a partial has given values by name."""
    return _bound(fn.func) | frozenset(fn.keywords) if isinstance(fn, functools.partial) else frozenset()


def _code(fn: Any) -> Any:
    """The function behind a callable, or the class."""
    if isinstance(fn, functools.partial):
        return _code(fn.func)
    return fn if inspect.isclass(fn) or inspect.isroutine(fn) else type(fn).__call__


def _hints(fn: Any) -> dict[str, Any]:
    code = _code(fn)
    if inspect.isclass(code):
        code = code.__new__ if code.__init__ is object.__init__ else code.__init__
    try:
        return get_type_hints(code, include_extras=True)
    except Exception as error:
        raise InvalidActorError(f"{_text(fn)}: an annotation cannot be resolved ({error}); import what it names") from error


def _text(fn: Any) -> str:
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', fn)}"
