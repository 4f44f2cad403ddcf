"""What actors get injected: from the declaration's errors to the last cleaning up."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Optional, Self

import pytest
from attrs import define

from repid_core.dependencies import INJECTED, Dependencies, Depends
from repid_core.errors import ActorEnded, InvalidActorError
from repid_core.executors import Executors

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]

log: list[Any] = []


@pytest.fixture(autouse=True)
def _clean() -> None:
    log.clear()


class Provided:
    """As `MessageDependency` is."""

    __repid_provided__ = True


class Derived(Provided):
    """A user's class: the worker does not provide it."""


PROVIDED = Provided()


async def run_sync(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], in_process: bool) -> Any:
    """Call at once, and remember where it would have been called."""
    log.append("process" if in_process else "thread")
    return fn(*args, **kwargs)


@asynccontextmanager
async def injected(fn: Callable[..., Any], run: Any = run_sync) -> AsyncIterator[dict[str, Any]]:
    async with Dependencies.of(fn).resolve({Provided: PROVIDED}, run) as values:
        yield values


async def values_of(fn: Callable[..., Any]) -> dict[str, Any]:
    async with injected(fn) as values:
        return values


# Dependencies of every kind.


def plain() -> int:
    return 1


async def coroutine() -> int:
    return 2


def generator() -> Iterator[str]:
    try:
        yield "open"
    except BaseException as error:
        log.append(repr(error))
        raise
    finally:
        log.append("generator closed")


async def async_generator() -> AsyncIterator[str]:
    try:
        yield "aopen"
    except BaseException as error:
        log.append(repr(error))
        raise
    finally:
        log.append("async generator closed")


class Service:
    def __init__(self, number: Annotated[int, Depends(coroutine)], name: str = "service") -> None:
        self.number, self.name = number, name


@define
class AttrsService:
    number: Annotated[int, Depends(coroutine)]
    message: Optional[Provided]  # noqa: UP045 — one of the forms


class Twice(int):
    def __new__(cls, number: Annotated[int, Depends(plain)]) -> Self:
        return super().__new__(cls, 2 * number)


class AsyncCallable:  # noqa: PLW1641 — see below
    """Not hashable, for it compares by value."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncCallable) and other.value == self.value

    async def __call__(self, plus: Annotated[int, Depends(plain)]) -> int:
        return self.value + plus

    def method(self) -> int:
        log.append("method")
        return self.value


class GeneratorCallable:
    def __call__(self) -> Iterator[int]:
        yield 7
        log.append("closed")


def scaled(factor: int, of: Annotated[int, Depends(plain)]) -> int:
    return factor * of


def counted() -> int:
    log.append("counted")
    return len(log)


def left(n: Annotated[int, Depends(counted)]) -> int:
    return n


def right(n: Annotated[int, Depends(counted)], other: Annotated[int, Depends(left)]) -> tuple[int, int]:
    return n, other


def pid() -> int:
    return os.getpid()


class TestForms:
    async def test_as_annotation_and_as_default(self):
        async def act(a: int, b: Annotated[int, Depends(plain)], c: int = Depends(coroutine)) -> None: ...  # type: ignore[assignment]

        assert Dependencies.of(act).names == {"b", "c"}
        assert await values_of(act) == {"b": 1, "c": 2}
        assert log == ["thread"], "the coroutine function runs on the loop"

    async def test_generators_give_what_they_yield(self):
        async def act(a: Annotated[str, Depends(generator)], b: Annotated[str, Depends(async_generator)]) -> None: ...

        assert await values_of(act) == {"a": "open", "b": "aopen"}
        assert log[-3:] == ["async generator closed", "thread", "generator closed"]

    async def test_classes_with_dependencies(self):
        def act(a: Annotated[Service, Depends(Service)], b: Annotated[AttrsService, Depends(AttrsService)]) -> None: ...

        values = await values_of(act)
        assert (values["a"].number, values["a"].name) == (2, "service")
        assert values["b"] == AttrsService(2, PROVIDED)

    async def test_callables_partials_methods_and_builtins(self):
        target = AsyncCallable(10)

        def act(
            a: int = Depends(target),  # type: ignore[assignment]
            b: int = Depends(functools.partial(scaled, 3)),  # type: ignore[assignment]
            c: int = Depends(functools.partial(scaled, 3, of=5)),  # type: ignore[assignment]
            d: int = Depends(target.method),  # type: ignore[assignment]
            e: int = Depends(GeneratorCallable()),  # type: ignore[assignment]
            f: dict[str, int] = Depends(dict),  # type: ignore[assignment]  # noqa: B008 — the form that is tested
            g: float = Depends(time.time),  # type: ignore[assignment]
            h: int = Depends(functools.lru_cache(plain)),  # type: ignore[assignment]
            i: int = Depends(AsyncCallable(20)),  # type: ignore[assignment]
            j: Twice = Depends(Twice),  # type: ignore[assignment]  # noqa: B008 — as f
        ) -> None: ...

        values = await values_of(act)
        assert values.pop("g") > 0
        assert values == {"a": 11, "b": 3, "c": 15, "d": 10, "e": 7, "f": {}, "h": 1, "i": 21, "j": 2}
        assert log[-1] == "closed"

    async def test_one_value_for_a_job_and_another_for_the_next(self):
        target = AsyncCallable(1)

        def act(
            a: Annotated[int, Depends(counted)],
            b: Annotated[tuple[int, int], Depends(right)],
            c: int = Depends(target.method),  # type: ignore[assignment]
            d: int = Depends(target.method),  # type: ignore[assignment]
        ) -> None: ...

        values = await values_of(act)
        assert (values["b"], log.count("counted"), log.count("method")) == ((values["a"], values["a"]), 1, 1)
        await values_of(act)
        assert log.count("counted") == 2

    async def test_in_a_process(self):
        def act(a: Annotated[int, Depends(pid, run_in_process=True)], b: Annotated[int, Depends(plain)]) -> None: ...

        executors = Executors(processes=1)

        def run(fn: Any, args: Any, kwargs: Any, in_process: bool) -> Any:
            return (executors.run_in_process if in_process else executors.run_in_thread)(fn, args, kwargs)

        async with injected(act, run) as values:
            assert values["a"] != os.getpid()
        await executors.close()

    async def test_what_the_worker_provides_comes_by_class(self):
        """Under Optional and Annotated too, and inside dependencies."""

        def inner(message: Provided, maybe: Provided | None = None) -> bool:
            return message is maybe is PROVIDED

        def act(
            a: Provided,
            b: Annotated[Optional[Provided], "why not"],  # noqa: UP045 — one of the forms
            d: Derived,
            e: Callable[[Provided], None] | None,
            c: bool = Depends(inner),  # type: ignore[assignment]
            f: Provided = INJECTED,
        ) -> None: ...

        assert await values_of(act) == {"a": PROVIDED, "b": PROVIDED, "c": True, "f": PROVIDED}

    async def test_what_is_not_injected_is_left_alone(self):
        def act(a: int, *args: int, b: Any = 1, **kwargs: Any) -> None: ...

        dependencies = Dependencies.of(act)
        assert (dict(dependencies.sources), dependencies.names) == ({}, frozenset())

    async def test_functions_are_not_kept_alive(self):
        """No registry holds what a test or a reloaded module declared."""

        def make() -> weakref.ref[Any]:
            def source() -> int:
                return 1

            def act(a: int = Depends(source)) -> None: ...  # type: ignore[assignment]

            Dependencies.of(act)
            return weakref.ref(source)

        ref = make()
        gc.collect()
        assert ref() is None


class TestCleaningUp:
    @staticmethod
    def act(a: Annotated[str, Depends(generator)], b: Annotated[str, Depends(async_generator)]) -> None: ...

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("x"),
            ActorEnded(),
            asyncio.CancelledError(),
            SystemExit(1),
            StopAsyncIteration(),
            StopIteration(),
            RuntimeError(),
        ],
        ids=repr,
    )
    async def test_in_reverse_order_seeing_the_actors_end_which_passes_on(self, error):
        with pytest.raises(type(error)) as caught:
            async with injected(self.act):
                raise error
        assert caught.value is error
        assert log == ["thread", repr(error), "async generator closed", "thread", repr(error), "generator closed"]

    async def test_no_dependency_suppresses_an_error(self):
        async def swallow() -> AsyncIterator[int]:
            try:
                yield 1
            except ValueError:
                log.append("swallowed")

        def swallow_too() -> Iterator[int]:
            try:
                yield 1
            except ValueError:
                log.append("swallowed too")

        def act(a: int = Depends(swallow), b: int = Depends(swallow_too)) -> None: ...  # type: ignore[assignment]

        with pytest.raises(ValueError, match="the actor's"):
            async with injected(act):
                raise ValueError("the actor's")
        assert log[-2:] == ["swallowed too", "swallowed"]

    @pytest.mark.parametrize("kind", ["async", "sync"])
    async def test_an_error_while_cleaning_up_never_hides_the_actors(self, kind, caplog):
        def act(a: Annotated[str, Depends(async_generator)], b: int = Depends(KINDS[kind])) -> None: ...  # type: ignore[assignment]

        with pytest.raises(ValueError, match="the actor's"):
            async with injected(act):
                raise ValueError("the actor's")
        assert "failed to clean up" in caplog.text
        assert "cannot close" in caplog.text
        assert log[-2:] == ['ValueError("the actor\'s")', "async generator closed"]

    @pytest.mark.parametrize("kind", ["async", "sync"])
    async def test_an_error_while_cleaning_up_fails_an_actor_that_succeeded(self, kind, caplog):
        def act(a: Annotated[str, Depends(async_generator)], b: int = Depends(KINDS[kind])) -> None: ...  # type: ignore[assignment]

        with pytest.raises(OSError, match="cannot close") as caught:
            async with injected(act):
                pass
        assert f"in dependency {__name__}.{KINDS[kind].__name__}, cleaning up" in caught.value.__notes__
        assert log[-1] == "async generator closed"
        assert not caplog.records

    async def test_a_message_settled_while_cleaning_up_ends_the_actor(self):
        """Even if the actor failed: the dependency has decided what becomes of the message."""

        async def judge() -> AsyncIterator[int]:
            try:
                yield 1
            except ValueError:
                raise ActorEnded from None

        def act(a: int = Depends(judge)) -> None: ...  # type: ignore[assignment]

        with pytest.raises(ActorEnded):
            async with injected(act):
                raise ValueError

    @pytest.mark.parametrize("error", [ValueError("no"), ActorEnded(), asyncio.CancelledError()], ids=repr)
    async def test_a_dependency_that_fails_lets_those_before_it_clean_up(self, error):
        async def fails() -> None:
            raise error

        def act(a: Annotated[str, Depends(generator)], b: None = Depends(fails)) -> None: ...  # type: ignore[assignment]

        with pytest.raises(type(error)):
            async with injected(act):
                pytest.fail("the actor must not run")
        assert log[-2:] == [repr(error), "generator closed"]

    async def test_cancelled_while_values_are_made_what_was_made_is_cleaned_up(self):
        begun = asyncio.Event()

        async def slow() -> None:
            begun.set()
            await asyncio.Event().wait()

        def act(a: Annotated[str, Depends(generator)], b: None = Depends(slow)) -> None: ...  # type: ignore[assignment]

        task = asyncio.create_task(values_of(act))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log[-2:] == ["CancelledError()", "generator closed"]

    async def test_cancelled_while_a_generator_begins_in_a_thread_it_is_cleaned_up_too(self):
        """The thread cannot be interrupted, so that what it opens is open when the cancellation arrives."""
        started, release = threading.Event(), threading.Event()

        def slow() -> Iterator[int]:
            started.set()
            release.wait(5)
            try:
                yield 1
            finally:
                log.append("slow closed")

        def act(a: int = Depends(slow)) -> None: ...  # type: ignore[assignment]

        executors = Executors(threads=1)

        async def run() -> None:
            async with injected(act, lambda fn, args, kwargs, _: executors.run_in_thread(fn, args, kwargs)):
                log.append("ran")

        task = asyncio.create_task(run())
        await asyncio.to_thread(started.wait, 5)
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["slow closed"]
        await executors.close()

    async def test_a_generator_in_threads_can_reset_the_context_variables_that_it_sets(self):
        variable = contextvars.ContextVar("variable", default="nothing")

        def bind() -> Iterator[str]:
            token = variable.set("bound")
            yield variable.get()
            log.append(variable.get())
            variable.reset(token)

        def act(a: str = Depends(bind)) -> None: ...  # type: ignore[assignment]

        executors = Executors(threads=2)
        async with injected(act, lambda fn, args, kwargs, _: executors.run_in_thread(fn, args, kwargs)) as values:
            assert values == {"a": "bound"}
        assert log == ["bound"]
        await executors.close()

    async def test_generators_that_do_not_yield_once(self):
        def never() -> Iterator[int]:
            yield from ()

        async def twice() -> AsyncIterator[int]:
            yield 1
            yield 2

        for fn, what in ((never, "didn't yield"), (twice, "didn't stop")):

            def act(a: int = Depends(fn)) -> None: ...  # type: ignore[assignment]

            with pytest.raises(RuntimeError, match=what) as caught:
                await values_of(act)
            assert f"in dependency {__name__}" in caught.value.__notes__[0]


async def _async_fails() -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        raise OSError("cannot close")


def _sync_fails() -> Iterator[int]:
    try:
        yield 1
    finally:
        raise OSError("cannot close")


KINDS: dict[str, Any] = {"async": _async_fails, "sync": _sync_fails}


SETTINGS = Depends(plain)


def settings_user(settings: Annotated[int, SETTINGS]) -> str:
    return f"uses {settings}"


class TestOverride:
    @staticmethod
    def act(a: Annotated[str, Depends(settings_user)], b: Annotated[int, SETTINGS]) -> None: ...

    async def test_inside_a_block(self):
        dependencies = Dependencies.of(self.act)  # read before, as a declared actor's are
        with SETTINGS.override(lambda: 5):
            async with dependencies.resolve({}, run_sync) as values:
                assert values == {"a": "uses 5", "b": 5}
        async with dependencies.resolve({}, run_sync) as values:
            assert values == {"a": "uses 1", "b": 1}

    async def test_from_now_on(self):
        source = Depends(plain)

        def act(a: int = source) -> None: ...  # type: ignore[assignment]

        dependencies = Dependencies.of(act)
        source.override(lambda: 2)
        with source.override(lambda: 3):
            pass
        async with dependencies.resolve({}, run_sync) as values:
            assert values == {"a": 2}

    async def test_by_another_kind_with_other_dependencies(self):
        """It may be async, a generator, and have what the first did not have."""
        dependencies = Dependencies.of(self.act)

        async def fake(service: Annotated[Service, Depends(Service)], message: Provided) -> AsyncIterator[int]:
            assert message is PROVIDED
            yield service.number
            log.append("fake closed")

        with SETTINGS.override(fake):
            async with dependencies.resolve({Provided: PROVIDED}, run_sync) as values:
                assert values == {"a": "uses 2", "b": 2}
        assert log[-1] == "fake closed"

    async def test_an_actor_declared_inside_the_block_goes_on_after_it(self):
        source = Depends(settings_user)

        def act(a: str = source) -> None: ...  # type: ignore[assignment]

        with source.override(lambda: "fake"):
            dependencies = Dependencies.of(act)
        async with dependencies.resolve({}, run_sync) as values:
            assert values == {"a": "uses 1"}

    def test_taking_one_back_may_close_a_circle_too(self):
        first, second = Depends(plain), Depends(plain)

        def on_second(a: int = second) -> int:  # type: ignore[assignment]
            return a

        def on_first(a: int = first) -> int:  # type: ignore[assignment]
            return a

        first.override(on_second)
        undo = first.override(plain)
        second.override(on_first)
        with pytest.raises(InvalidActorError, match="in a circle"), undo:
            pass

    async def test_of_what_runs_in_a_process_runs_here(self):
        """A test's fake is seldom at the top of a module."""
        source = Depends(pid, run_in_process=True)

        def act(a: int = source) -> None: ...  # type: ignore[assignment]

        with source.override(lambda: 0):
            assert await values_of(act) == {"a": 0}
        assert log == ["thread"]
        await values_of(act)
        assert log == ["thread", "process"]

    async def test_one_that_closes_a_circle_is_refused(self):
        def circular(a: Annotated[str, Depends(settings_user)]) -> int:
            return 1

        with pytest.raises(InvalidActorError, match=r"circle: .*circular → .*settings_user → .*circular"):
            SETTINGS.override(circular)
        assert (await values_of(self.act))["b"] == 1, "nothing has changed"

    async def test_one_that_cannot_be_filled_is_refused(self):
        for fn, message in ((lambda x: x, "nothing fills its parameter 'x'"), (5, r"Depends\(5\): give a function")):
            with pytest.raises(InvalidActorError, match=message):
                SETTINGS.override(fn)  # type: ignore[arg-type]
        assert (await values_of(self.act))["b"] == 1


def ping(other: Annotated[int, Depends(pong)]) -> int:
    return other


def pong(other: Annotated[int, Depends(ping)]) -> int:
    return other


def unresolvable(a: Unknown) -> None: ...


def uses_unresolvable(a: Annotated[None, Depends(unresolvable)]) -> None: ...


def actor_of_circle(a: Annotated[int, Depends(ping)]) -> None: ...


def itself(a: Annotated[int, Depends(itself)]) -> None: ...


def needy(a: int, b: int = 1) -> int:
    return a


def without_annotation(a=Depends(plain)): ...  # type: ignore[no-untyped-def]  # noqa: B008 — the form that is tested


def two_marks(a: Annotated[int, Depends(plain), Depends(coroutine)]) -> None: ...


def mark_and_default(a: Annotated[int, Depends(plain)] = Depends(plain)) -> None: ...  # type: ignore[assignment]


def positional(a: Annotated[int, Depends(plain)], /) -> None: ...


def positional_provided(a: Provided, /) -> None: ...


def variable(*a: Annotated[int, Depends(plain)]) -> None: ...


def injected_by_nothing(a: int = INJECTED) -> None: ...


def uses_needy(a: Annotated[int, Depends(needy)]) -> None: ...


class TestDeclaration:
    @pytest.mark.parametrize(
        ("fn", "message"),
        [
            (actor_of_circle, r"in a circle: .*actor_of_circle → .*ping → .*pong → .*ping"),
            (itself, r"in a circle: .*itself → .*itself"),
            (unresolvable, r"unresolvable: an annotation cannot be resolved \(name 'Unknown' is not defined\); import"),
            (uses_unresolvable, r"\.unresolvable: an annotation cannot be resolved"),
            (uses_needy, r"dependency .*needy: nothing fills its parameter 'a'; give it a default"),
            (without_annotation, r"without_annotation: parameter 'a' is injected and has no annotation; write a: T"),
            (two_marks, r"two_marks: parameter 'a' has 2 Depends; leave one"),
            (mark_and_default, r"mark_and_default: parameter 'a' has 2 Depends"),
            (positional, r"positional: parameter 'a' cannot be injected, for it has no name"),
            (positional_provided, r"positional_provided: parameter 'a' cannot be injected"),
            (variable, r"variable: parameter 'a' cannot be injected"),
            (injected_by_nothing, r"injected_by_nothing: parameter 'a' is INJECTED, but nothing says by what"),
        ],
    )
    def test_mistakes_are_found(self, fn, message):
        with pytest.raises(InvalidActorError, match=message):
            Dependencies.of(fn)

    def test_what_cannot_be_depended_on(self):
        with pytest.raises(InvalidActorError, match=r"Depends\('plain'\): give a function"):
            Depends("plain")  # type: ignore[arg-type]
        for fn in (coroutine, generator, async_generator, AsyncCallable(1)):
            with pytest.raises(InvalidActorError, match="only plain functions run in a process"):
                Depends(fn, run_in_process=True)
        for fn in (lambda: 1, functools.partial(lambda: 1)):
            with pytest.raises(InvalidActorError, match="must be at the top of a module"):
                Depends(fn, run_in_process=True)

    def test_a_declaration_calls_nothing(self):
        def act(a: int = Depends(counted)) -> None: ...  # type: ignore[assignment]

        Dependencies.of(act)
        assert log == []
