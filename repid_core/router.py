"""Actors and the routers that collect them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar, overload

from attrs import field, frozen

from repid_core.abc import Converter
from repid_core.data import check_name
from repid_core.dependencies import Dependencies
from repid_core.errors import InvalidActorError
from repid_core.executors import check_process_safe
from repid_core.retry import RetryPolicy, default_retry_policy_factory

Fn = TypeVar("Fn", bound=Callable[..., Any])

DEFAULT_RETRY_POLICY = default_retry_policy_factory()


@frozen(kw_only=True)
class RouterDefaults:
    """What a router's actors take if they do not say.

    Attributes:
        queue: The queue's name.
        retry_policy: How long to wait after a failed attempt; see `repid_core.retry`.
        run_in_process: Run synchronous actors in a process instead of a thread.
        converter: The converter class; None leaves it to the connection.
    """

    queue: str = "default"
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY
    run_in_process: bool = False
    converter: type[Converter] | None = None


@frozen(eq=False)
class Actor:
    """A function that runs jobs.

    Attributes:
        fn: The function.
        name: The jobs' name, which brokers call the topic.
        queue: Where they come from.
        retry_policy: When a failed one comes again.
        run_in_process: Whether `fn`, being synchronous, runs in a process.
        converter_class: Fits arguments to the signature; None leaves it to the connection.
        dependencies: What is injected.
        is_async: Whether `fn` is a coroutine function.
    """

    fn: Callable[..., Any]
    name: str
    queue: str
    retry_policy: RetryPolicy
    run_in_process: bool
    converter_class: type[Converter] | None
    dependencies: Dependencies = field(repr=False)
    is_async: bool

    def converter(self, default: type[Converter]) -> Converter:
        """The actor's converter, by its own class or the default one.

        Raises:
            InvalidActorError: The class cannot convert to this signature.
        """
        return (self.converter_class or default)(self.fn, self.dependencies.names)


# What `Job.of` knows of a function; the decorator leaves the function itself as it is. An actor is for the process's life.
_declared: dict[Callable[..., Any], list[Actor]] = {}


def actor_of(fn: Callable[..., Any], name: str | None = None) -> Actor:
    """The actor that was declared with `fn`.

    Raises:
        InvalidActorError: There is none, or there are several, and no `name` picks one.
    """
    actors = {actor.name: actor for actor in _declared.get(fn, ()) if name in {None, actor.name}}
    if len(actors) == 1:
        return actors.popitem()[1]
    known = ", ".join(repr(actor.name) for actor in _declared.get(fn, ())) or "none; decorate it with @router.actor"
    wanted = f"named {name!r}" if name else "to pick"
    raise InvalidActorError(f"{_text(fn)} has no single actor {wanted}: its actors are {known}")


class Router:
    """Collects actors for workers.

    Args:
        defaults: What its actors take if they do not say.
    """

    def __init__(self, defaults: RouterDefaults | None = None) -> None:
        self.defaults = defaults or RouterDefaults()
        self.actors: dict[str, Actor] = {}

    @property
    def topics(self) -> frozenset[str]:
        """The actors' names."""
        return frozenset(self.actors)

    @property
    def queues(self) -> dict[str, frozenset[str]]:
        """The actors' names by queue."""
        queues: dict[str, set[str]] = {}
        for actor in self.actors.values():
            queues.setdefault(actor.queue, set()).add(actor.name)
        return {queue: frozenset(topics) for queue, topics in queues.items()}

    @overload
    def actor(self, fn: Fn, /) -> Fn: ...

    @overload
    def actor(
        self,
        fn: None = None,
        /,
        *,
        name: str | None = None,
        queue: str | None = None,
        retry_policy: RetryPolicy | None = None,
        run_in_process: bool | None = None,
        converter: type[Converter] | None = None,
    ) -> Callable[[Fn], Fn]: ...

    def actor(
        self,
        fn: Fn | None = None,
        /,
        *,
        name: str | None = None,
        queue: str | None = None,
        retry_policy: RetryPolicy | None = None,
        run_in_process: bool | None = None,
        converter: type[Converter] | None = None,
    ) -> Fn | Callable[[Fn], Fn]:
        """Declare an actor, as `@router.actor` or `@router.actor(…)`. The function is returned unchanged.

        Args:
            fn: The function, synchronous or async.
            name: The jobs' name; by default the function's.
            queue: The queue's name.
            retry_policy: When a failed attempt comes again; see `repid_core.retry`.
            run_in_process: Run the synchronous function in a process instead of a thread.
            converter: The converter class.

        Raises:
            InvalidActorError: The function cannot be an actor, or the router has another one of this name.
        """

        def declare(fn: Fn) -> Fn:
            self._add([self._actor(fn, name, queue, retry_policy, run_in_process, converter)])
            return fn

        return declare if fn is None else declare(fn)

    def include_router(self, router: Router) -> None:
        """Take over another router's actors.

        Raises:
            InvalidActorError: There is another actor of the same name; nothing is taken over.
        """
        self._add(router.actors.values())

    def _actor(  # noqa: C901 — a question a line
        self,
        fn: Callable[..., Any],
        name: str | None,
        queue: str | None,
        retry_policy: RetryPolicy | None,
        run_in_process: bool | None,
        converter: type[Converter] | None,
    ) -> Actor:
        if not callable(fn):
            raise InvalidActorError(f"{fn!r} cannot be an actor: it is not callable")
        if not isinstance(fn, Hashable):
            raise InvalidActorError(f"{fn!r} cannot be an actor: it is not hashable; declare one of its methods")
        if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
            raise InvalidActorError(f"{_text(fn)} cannot be an actor: it is a generator; return the values instead")
        is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
        in_process = self.defaults.run_in_process and not is_async if run_in_process is None else run_in_process
        if in_process:
            if is_async:
                raise InvalidActorError(f"{_text(fn)} is async and runs on the event loop: leave out run_in_process")
            check_process_safe(fn)
        if converter is not None and not (inspect.isclass(converter) and issubclass(converter, Converter)):
            raise InvalidActorError(f"{converter!r} of actor {_text(fn)} is no converter class")
        if retry_policy is not None and not callable(retry_policy):
            raise InvalidActorError(f"retry_policy={retry_policy!r} of actor {_text(fn)}: give a function of attempt and error")
        try:
            actor = Actor(
                fn=fn,
                name=check_name(name if name is not None else getattr(fn, "__name__", None), "actor name"),
                queue=check_name(queue if queue is not None else self.defaults.queue, "queue name"),
                retry_policy=retry_policy or self.defaults.retry_policy,
                run_in_process=in_process,
                converter_class=converter or self.defaults.converter,
                dependencies=Dependencies.of(fn),
                is_async=is_async,
            )
        except ValueError as error:
            raise InvalidActorError(f"{_text(fn)} cannot be an actor: {error}") from error
        here = [name for name, source in actor.dependencies.sources.items() if isinstance(source, type)]
        if in_process and here:
            raise InvalidActorError(f"{_text(fn)}: {here[0]!r} belongs to this process: leave it out, or run_in_process")
        if actor.converter_class is not None:
            actor.converter(actor.converter_class)
        return actor

    def _add(self, actors: Iterable[Actor]) -> None:
        actors = list(actors)
        for actor in actors:
            if self.actors.get(actor.name, actor) is not actor:
                raise InvalidActorError(
                    f"there are two actors named {actor.name!r}: {_text(self.actors[actor.name].fn)} and {_text(actor.fn)}; "
                    "give one another name",
                )
        for actor in actors:
            self.actors[actor.name] = actor
            known = _declared.setdefault(actor.fn, [])
            if actor not in known:
                known.append(actor)


def _text(fn: Any) -> str:
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', fn)}"
