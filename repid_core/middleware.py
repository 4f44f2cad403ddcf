"""Who observes what, and the chains of those who may change or veto."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import frozen

from repid_core.abc import Middleware
from repid_core.data import Enqueued, Envelope
from repid_core.errors import ActorEnded, EnqueueError, UsageError

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

#: Each has a `before_` and an `after_`; "after" comes with the `error` if it failed.
EVENTS = (
    "enqueue",
    "consume",
    "process",
    "actor_run",
    "ack",
    "nack",
    "reject",
    "requeue",
    "store_bucket",
    "get_bucket",
    "delete_bucket",
    "queue_declare",
    "queue_flush",
    "queue_delete",
    "worker_start",
    "worker_stop",
)
#: What an observer may name in its signature; what does not apply to an event is None.
FACTS = ("envelope", "outcome", "settlement", "queue", "bucket_id", "error", "connection")

EnqueueCall = Callable[[Sequence[Envelope]], Awaitable[Sequence[Enqueued | EnqueueError]]]
ActorCall = Callable[[Envelope], Awaitable[Any]]
Emit = Callable[..., Awaitable[None]]

_OBSERVERS = tuple(f"{when}_{event}" for event in EVENTS for when in ("before", "after"))
_AROUND = ("around_enqueue", "around_actor_run")


@frozen
class _Observer:
    """One event's listeners, called in the order in which they were added."""

    event: str
    listeners: list[tuple[Callable[..., Any], bool, tuple[str, ...]]]

    async def __call__(self, **facts: Any) -> None:
        for listener, is_async, names in self.listeners:
            try:
                result = listener(**{name: facts.get(name) for name in names})
                if is_async:
                    await result
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and is_cancelled():
                    raise
                logger.exception("a middleware failed on %s", self.event, extra={"event": self.event})


def is_cancelled() -> bool:
    """Whether somebody cancelled this very task; else a `CancelledError` is the fault of what was called."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Middlewares:
    """A connection's middlewares. Each event is an attribute: None if nobody listens, else what to await.

    Added ones run in order; the first to be added is the outermost of an `around` chain.

    Attributes:
        watches_enqueue: Whether anybody observes or wraps enqueueing.
        watches_actor_run: Whether anybody observes or wraps actors.
    """

    watches_enqueue = False
    watches_actor_run = False

    if TYPE_CHECKING:

        def __getattr__(self, event: str) -> Emit | None: ...

    def __init__(self, middlewares: Sequence[Any] = ()) -> None:
        self._around: dict[str, list[Callable[..., Any]]] = {name: [] for name in _AROUND}
        for event in _OBSERVERS:
            setattr(self, event, None)
        for middleware in middlewares:
            self.add(middleware)

    def add(self, middleware: Any) -> None:
        """Add an object with methods, or one function, named after events.

        Raises:
            UsageError: It has none, or one of an event that there is not, or one that names what it cannot get.
        """
        found = self._methods(middleware)
        if not found:
            raise UsageError(
                f"{middleware!r} is no middleware: it has no method named before_<event>, after_<event>, "
                f"around_enqueue or around_actor_run; events: {', '.join(EVENTS)}",
            )
        listeners = {name: _listener(name, method) for name, method in found.items() if name not in _AROUND}
        around = {name: _wrapper(name, method) for name, method in found.items() if name in _AROUND}
        for name, listener in listeners.items():
            observer = self.__dict__[name] or _Observer(name, [])
            observer.listeners.append(listener)
            setattr(self, name, observer)
        for name, method in around.items():
            self._around[name].append(method)
        self.watches_enqueue = self._watches("enqueue")
        self.watches_actor_run = self._watches("actor_run")

    def enqueue(self, call: EnqueueCall) -> EnqueueCall:
        """`call` inside every `around_enqueue`."""
        return _chain(self._around["around_enqueue"], call)

    def actor_run(self, call: ActorCall) -> ActorCall:
        """`call` inside every `around_actor_run`."""
        return _chain(self._around["around_actor_run"], call)

    async def watch(self, event: str, facts: dict[str, Any], call: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        """Await `call(*args)` between an event's before and after; what it returns is the `outcome`."""
        before, after = getattr(self, f"before_{event}"), getattr(self, f"after_{event}")
        if before is not None:
            await before(**facts)
        try:
            outcome = await call(*args)
        except BaseException as error:
            if after is not None:
                await after(**facts, error=None if isinstance(error, ActorEnded) else error)
            raise
        if after is not None:
            await after(**{"outcome": outcome, **facts})
        return outcome

    def _watches(self, event: str) -> bool:
        return bool(self._around[f"around_{event}"] or self.__dict__[f"before_{event}"] or self.__dict__[f"after_{event}"])

    @staticmethod
    def _methods(middleware: Any) -> dict[str, Callable[..., Any]]:
        if inspect.isroutine(middleware):
            names = [middleware.__name__]
        else:
            names = [name for name in dir(middleware) if name.startswith(("before_", "after_", "around_"))]
        found = {}
        for name in names:
            if name not in _OBSERVERS and name not in _AROUND:
                close = difflib.get_close_matches(name, (*_OBSERVERS, *_AROUND), n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"events: {', '.join(EVENTS)}"
                raise UsageError(f"{middleware!r} listens to {name!r}, which is no event; {hint}")
            if getattr(type(middleware), name, None) is not getattr(Middleware, name, type(None)):
                found[name] = middleware if inspect.isroutine(middleware) else getattr(middleware, name)
        return found


def _listener(name: str, method: Callable[..., Any]) -> tuple[Callable[..., Any], bool, tuple[str, ...]]:
    names: list[str] = []
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            names = list(FACTS)
        elif parameter.name in FACTS:
            names.append(parameter.name)
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            raise UsageError(f"{name} of a middleware takes {parameter.name!r}; it can have: {', '.join(FACTS)}")
    return method, inspect.iscoroutinefunction(method), tuple(dict.fromkeys(names))


def _wrapper(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    try:
        inspect.signature(method).bind(None, None)
    except TypeError as error:
        subject = "envelopes" if name == "around_enqueue" else "envelope"
        raise UsageError(f"{name} of a middleware takes ({subject}, call_next): {error}") from error
    return method


def _chain(around: Sequence[Callable[..., Any]], call: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    for outer in reversed(around):
        call = partial(_around, outer, call)
    return call


async def _around(outer: Callable[..., Any], call_next: Callable[[Any], Awaitable[Any]], subject: Any) -> Any:
    result = outer(subject, call_next)
    return await result if inspect.isawaitable(result) else result
