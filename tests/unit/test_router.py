"""Actors and the routers that collect them."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from repid_core import (
    Config,
    Connection,
    Converter,
    Depends,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    InvalidActorError,
    Job,
    MessageDependency,
    Router,
    RouterDefaults,
    Worker,
)
from repid_core.router import DEFAULT_RETRY_POLICY, actor_of


async def an_actor(a: int = 0) -> int:
    return a


def a_sync_actor() -> int:
    return 1


def policy(attempt: int, error: Exception) -> timedelta | None:
    return None


class TestDeclaring:
    def test_the_bare_decorator(self, router):
        """The function comes back unchanged, with the defaults."""

        @router.actor
        async def act() -> None: ...

        actor = router.actors["act"]
        assert actor.fn is act
        assert (actor.name, actor.queue, actor.is_async, actor.run_in_process) == ("act", "default", True, False)
        assert (actor.retry_policy, actor.converter_class) == (DEFAULT_RETRY_POLICY, None)
        assert not vars(act), "nothing is left on the function"

    def test_with_arguments(self, router):
        class Mine(Converter):
            def convert_inputs(self, value: Any) -> Any: ...

            def convert_outputs(self, value: Any) -> Any: ...

        decorated = router.actor(name="other.name", queue="mail", retry_policy=policy, run_in_process=True, converter=Mine)(
            a_sync_actor
        )
        assert decorated is a_sync_actor
        actor = router.actors["other.name"]
        assert (actor.queue, actor.retry_policy, actor.run_in_process, actor.converter_class) == ("mail", policy, True, Mine)
        assert not actor.is_async

    def test_empty_parentheses(self, router):
        @router.actor()
        async def act() -> None: ...

        assert router.actors["act"].fn is act

    async def test_the_function_can_still_be_called(self, router):
        assert await router.actor(an_actor)(3) == 3

    def test_topics_and_queues(self, router):
        for name, queue in (("a", "x"), ("b", "y"), ("c", "x")):
            router.actor(name=name, queue=queue)(an_actor)
        assert router.topics == {"a", "b", "c"}
        assert router.queues == {"x": {"a", "c"}, "y": {"b"}}

    async def test_callables_of_all_kinds(self, router, work, connection):
        """Methods, partials, objects, and classes of them, sync and async."""

        class Service:
            def __init__(self) -> None:
                self.base = 40

            async def method(self, a: int) -> int:
                return self.base + a

            def sync_method(self, a: int) -> int:
                return self.base + a

        class Adder:
            __slots__ = ()

            async def __call__(self, a: int) -> int:
                return a + 1

        async def add(a: int, b: int) -> int:
            return a + b

        service = Service()
        router.actor(service.method)
        router.actor(service.sync_method)
        router.actor(name="object")(Adder())
        router.actor(name="partial")(functools.partial(add, b=2))
        jobs: dict[str, Job[Any]] = {name: Job(name, args={"a": 1}) for name in ("method", "sync_method", "object", "partial")}
        await connection.enqueue_many(list(jobs.values()))
        await work(router, 4)
        assert {name: await job.wait(1) for name, job in jobs.items()} == {
            "method": 41,
            "sync_method": 41,
            "object": 2,
            "partial": 3,
        }
        assert Job.of(service.method)(1).name == "method"

    def test_a_wrapped_function_keeps_its_signature(self, router):
        @functools.wraps(an_actor)
        async def wrapped(*args: Any, **kwargs: Any) -> int:
            return await an_actor(*args, **kwargs)

        router.actor(wrapped)
        assert Job.of(wrapped)(3).args == {"a": 3}


class TestDefaults:
    def test_they_apply_where_the_actor_says_nothing(self):
        router = Router(RouterDefaults(queue="mail", retry_policy=policy, run_in_process=True))
        router.actor(a_sync_actor)
        router.actor(name="own", queue="other", retry_policy=DEFAULT_RETRY_POLICY, run_in_process=False)(a_sync_actor)
        given, own = router.actors["a_sync_actor"], router.actors["own"]
        assert (given.queue, given.retry_policy, given.run_in_process) == ("mail", policy, True)
        assert (own.queue, own.retry_policy, own.run_in_process) == ("other", DEFAULT_RETRY_POLICY, False)

    def test_in_process_by_default_leaves_async_actors_on_the_loop(self):
        router = Router(RouterDefaults(run_in_process=True))
        router.actor(an_actor)
        assert not router.actors["an_actor"].run_in_process

    def test_of_a_worker(self):
        worker = Worker(router_defaults=RouterDefaults(queue="mail"))
        worker.actor(an_actor)
        assert worker.actors["an_actor"].queue == "mail"

    def test_an_included_router_keeps_its_own(self):
        inner = Router(RouterDefaults(queue="inner"))
        inner.actor(an_actor)
        outer = Router(RouterDefaults(queue="outer"))
        outer.include_router(inner)
        assert outer.actors["an_actor"].queue == "inner"


class TestIncluding:
    def test_it_takes_over_the_actors(self, router):
        router.actor(an_actor)
        outer = Router()
        outer.include_router(router)
        outer.include_router(router)
        assert outer.actors == router.actors

    def test_what_is_declared_later_is_not_taken_over(self, router):
        outer = Router()
        outer.include_router(router)
        router.actor(an_actor)
        assert not outer.actors

    def test_two_actors_of_one_name_are_an_error_and_nothing_is_taken_over(self, router):
        router.actor(name="fresh")(an_actor)
        router.actor(name="same")(an_actor)
        outer = Router()
        outer.actor(name="same")(a_sync_actor)
        said = r"two actors named 'same': .*\.a_sync_actor and .*\.an_actor; give one another name"
        with pytest.raises(InvalidActorError, match=said):
            outer.include_router(router)
        assert outer.topics == {"same"}
        assert outer.actors["same"].fn is a_sync_actor

    def test_within_one_router(self, router):
        router.actor(name="same")(an_actor)
        with pytest.raises(InvalidActorError, match="two actors named 'same'"):
            router.actor(name="same")(a_sync_actor)

    def test_one_function_may_be_several_actors(self, router):
        router.actor(name="first")(an_actor)
        router.actor(name="second", queue="other")(an_actor)
        assert router.topics == {"first", "second"}
        assert actor_of(an_actor, "second").queue == "other"


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    async def __call__(self) -> None: ...


class TestUnusable:
    """Refused when it is declared, and the router stays as it was."""

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"name": "1st"}, r"an_actor cannot be an actor: actor name '1st' is not valid: start with an ASCII letter"),
            ({"name": ""}, "actor name '' is not valid"),
            ({"queue": "a b"}, r"an_actor cannot be an actor: queue name 'a b' is not valid"),
            ({"queue": ""}, "queue name '' is not valid"),
            ({"run_in_process": True}, r"an_actor is async and runs on the event loop: leave out run_in_process"),
            ({"converter": "cattrs"}, r"'cattrs' of actor .*an_actor is no converter class"),
            ({"converter": dict}, r"<class 'dict'> of actor .*an_actor is no converter class"),
            ({"retry_policy": timedelta(1)}, r"retry_policy=.* of actor .*an_actor: give a function of attempt and error"),
        ],
    )
    def test_options(self, router, options, sentence):
        with pytest.raises(InvalidActorError, match=sentence) as caught:
            router.actor(**options)(an_actor)
        assert isinstance(caught.value, TypeError)
        assert not router.actors

    def test_the_names_of_lambdas_and_partials(self, router):
        for nameless in (lambda: None, functools.partial(an_actor)):
            with pytest.raises(InvalidActorError, match=r"cannot be an actor: actor name .* is not valid"):
                router.actor(nameless)
            router.actor(name=f"named{id(nameless)}")(nameless)

    @pytest.mark.parametrize("wrong", ["name", 3, object()])
    def test_what_is_not_callable(self, router, wrong):
        with pytest.raises(InvalidActorError, match="cannot be an actor: it is not callable"):
            router.actor(wrong)

    def test_generators(self, router):
        def generator() -> Iterator[int]:
            yield 1

        async def async_generator() -> AsyncIterator[int]:
            yield 1

        for fn in (generator, async_generator):
            with pytest.raises(InvalidActorError, match="cannot be an actor: it is a generator; return the values instead"):
                router.actor(fn)

    def test_what_a_process_cannot_import(self, router):
        closed_over = 1

        def closure() -> int:
            return closed_over

        for fn, name in ((closure, "closure"), (lambda: 1, "nameless")):
            with pytest.raises(
                InvalidActorError, match="it must be a function at the top of a module, which the process imports"
            ):
                router.actor(name=name, run_in_process=True)(fn)
        assert not router.actors

    def test_what_has_no_signature(self, router):
        with pytest.raises(InvalidActorError, match=r"max cannot be an actor: .*signature"):
            router.actor(max)

    def test_what_has_no_hash(self, router):
        with pytest.raises(InvalidActorError, match="cannot be an actor: it is not hashable; declare one of its methods"):
            router.actor(name="strange")(Unhashable())
        assert not router.actors

    def test_hints_that_cannot_be_resolved(self, router):
        async def act(a: Unheard) -> None: ...  # type: ignore[name-defined]  # noqa: F821 — the point of the test

        with pytest.raises(InvalidActorError, match="Unheard"):
            router.actor(act)

    def test_cyclic_dependencies(self, router):
        async def second(value: int) -> int:
            return value

        async def first(value: int = Depends(second)) -> int:  # type: ignore[assignment]
            return value

        second.__defaults__ = (Depends(first),)

        async def act(value: int = Depends(first)) -> None: ...  # type: ignore[assignment]

        with pytest.raises(InvalidActorError, match="circle"):
            router.actor(act)

    async def test_signatures_that_a_converter_cannot_serve_are_refused_before_anything_is_consumed(self, connection, router):
        """By a converter of its own when it is declared, by the connection's when the worker starts."""

        class Foreign:
            def __init__(self, secret: Any) -> None:
                self.secret = secret

        async def act(a: Foreign) -> None: ...

        act.__annotations__["a"] = Foreign
        with pytest.raises(InvalidActorError, match="act"):
            router.actor(converter=connection.converter)(act)
        assert not router.actors
        router.actor(act)
        await Job("act", args={"a": 1}).enqueue()
        with pytest.raises(InvalidActorError, match="act"):
            await Worker([router], handle_signals=()).run()
        assert (await connection.message_broker.queue_stats("default")).ready == 1


class Tagged(Converter):
    """Passes everything through, and says who it is."""

    tag = ""

    def convert_inputs(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), dict(value or {})

    def convert_outputs(self, value: Any) -> Any:
        return f"{self.tag} {value}"


class OfActor(Tagged):
    tag = "actor's"


class OfRouter(Tagged):
    tag = "router's"


class OfConnection(Tagged):
    tag = "connection's"


class OfConfig(Tagged):
    tag = "config's"


@pytest.mark.parametrize(
    ("of_actor", "of_router", "of_connection", "tag"),
    [
        (OfActor, OfRouter, OfConnection, "actor's"),
        (None, OfRouter, OfConnection, "router's"),
        (None, None, OfConnection, "connection's"),
        (None, None, None, "config's"),
    ],
)
async def test_whose_converter_it_is(monkeypatch, of_actor, of_router, of_connection, tag):
    """The actor's, else the router's, else the connection's, else the process's."""
    monkeypatch.setattr(Config, "CONVERTER", OfConfig)
    router = Router(RouterDefaults(converter=of_router))

    @router.actor(converter=of_actor)
    async def act() -> int:
        return 1

    both = InMemoryBucketBroker()
    async with Connection(InMemoryMessageBroker(), both, both, converter=of_connection) as connection:
        job: Job[Any] = Job("act", connection=connection)
        await job.enqueue()
        await Worker([router], messages_limit=1, handle_signals=(), connection=connection).run()
        assert await job.wait(1) == f"{tag} 1"


async def test_injected_parameters_are_not_the_converters(router, work):
    """Whatever converter it is, it does not see them."""
    seen: list[Any] = []

    class Watching(Tagged):
        def __init__(self, fn: Any, injected: frozenset[str] = frozenset()) -> None:
            super().__init__(fn, injected)
            seen.append((injected, set(self.signature.parameters)))

    @router.actor(converter=Watching)
    async def act(a: int, message: MessageDependency) -> None: ...

    assert seen == [({"message"}, {"a"})]
    maker = Job.of(act)
    seen.clear()
    for i in range(3):
        maker(i)
    assert len(seen) == 1, "hints are read once, not at every call"


def act_on_message(message: MessageDependency) -> None: ...


def test_a_process_cannot_have_the_message() -> None:
    """It is told when the actor is declared, not when the first job fails."""
    with pytest.raises(InvalidActorError, match="'message' belongs to this process"):
        Router().actor(run_in_process=True)(act_on_message)
