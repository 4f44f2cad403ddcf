"""Who observes what, and who may change or veto: driven through real operations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from attrs import evolve

from repid_core import (
    Connection,
    Enqueued,
    EnqueueError,
    EnqueueManyError,
    Envelope,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    MessageCategory,
    MessageDependency,
    Middleware,
    Queue,
)
from repid_core.errors import (
    BrokerConnectionError,
    BucketBrokerError,
    ConversionError,
    CorruptMessageError,
    DuplicateJobError,
    RepidError,
    SerializationError,
    UsageError,
)
from repid_core.memory.consumer import InMemoryDelivery
from repid_core.message import Settlement
from repid_core.middleware import EVENTS, FACTS, Middlewares
from repid_core.processing import Ended

SECOND = timedelta(seconds=1)
variable: ContextVar[str] = ContextVar("variable", default="")


class Recorder:
    """Writes down every event with all the facts that are there."""

    def __init__(self, *events: str, is_async: bool = False) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        for event in events or EVENTS:
            for name in (f"before_{event}", f"after_{event}"):
                setattr(self, name, self._listener(name, is_async=is_async))

    def _listener(self, name: str, *, is_async: bool) -> Callable[..., Any]:
        def note(**facts: Any) -> None:
            assert set(facts) == set(FACTS)
            self.seen.append((name, {fact: value for fact, value in facts.items() if value is not None}))

        async def note_async(**facts: Any) -> None:
            await asyncio.sleep(0)
            note(**facts)

        return note_async if is_async else note

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]

    def facts(self, name: str) -> dict[str, Any]:
        [facts] = [facts for seen, facts in self.seen if seen == name]
        return facts


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def recorder(request: pytest.FixtureRequest, connection: Connection) -> Recorder:
    recorder = Recorder(is_async=request.param)
    connection.middleware.add(recorder)
    return recorder


class TestEvents:
    """Each fires before and after, with the facts that it is about."""

    async def test_enqueue_and_the_args_bucket(self, connection, recorder):
        job: Job[Any] = Job("act", queue="mail", args=[1])
        bucket_id = job.args_id
        receipt = await job.enqueue()
        assert sorted(recorder.names) == ["after_enqueue", "after_store_bucket", "before_enqueue", "before_store_bucket"]
        before, after = recorder.facts("before_enqueue"), recorder.facts("after_enqueue")
        assert before.keys() == {"envelope", "queue"}
        assert (before["envelope"].key.id_, before["queue"]) == (receipt.id_, "mail")
        assert after == {**before, "outcome": Enqueued.NEW}
        assert recorder.facts("before_store_bucket") == {"bucket_id": bucket_id}
        assert recorder.facts("after_store_bucket") == {"bucket_id": bucket_id}

    async def test_enqueue_of_many_fires_for_each(self, connection, recorder):
        jobs: list[Job[Any]] = [Job("act", args=[i]) for i in range(3)]
        ids = [job.args_id for job in jobs]
        receipts = await connection.enqueue_many(jobs)
        for event in ("before_enqueue", "after_enqueue"):
            assert [f["envelope"].key.id_ for name, f in recorder.seen if name == event] == [r.id_ for r in receipts]
        for event in ("before_store_bucket", "after_store_bucket"):
            assert [f["bucket_id"] for name, f in recorder.seen if name == event] == ids

    async def test_an_enqueue_that_is_refused_has_the_error(self, connection, recorder):
        await Job("act", id_="x").enqueue()
        recorder.seen.clear()
        with pytest.raises(DuplicateJobError):
            await Job("act", id_="x", args=[1]).enqueue()
        after = recorder.facts("after_enqueue")
        assert isinstance(after["error"], DuplicateJobError)
        assert "outcome" not in after
        assert recorder.names[-2:] == ["before_delete_bucket", "after_delete_bucket"]

    async def test_refused_ones_of_many_have_their_errors(self, connection, recorder):
        with pytest.raises(EnqueueManyError):
            await connection.enqueue_many([Job("act", id_="x"), Job("act", id_="x"), Job("act", id_="x", on_duplicate="keep")])
        outcomes = [facts.get("outcome", facts.get("error")) for name, facts in recorder.seen if name == "after_enqueue"]
        assert outcomes[0] is Enqueued.NEW
        assert isinstance(outcomes[1], DuplicateJobError)
        assert outcomes[2] is Enqueued.KEPT

    async def test_a_broker_that_is_away_is_told_too(self, connection, recorder, monkeypatch):
        async def away(*_: object) -> None:
            raise BrokerConnectionError

        monkeypatch.setattr(connection.message_broker, "enqueue", away)
        with pytest.raises(BrokerConnectionError):
            await Job("act").enqueue()
        assert isinstance(recorder.facts("after_enqueue")["error"], BrokerConnectionError)

    async def test_a_bucket_store_that_fails_is_told_for_each_bucket(self, connection, recorder, monkeypatch):
        async def fail(*_: object) -> None:
            raise BucketBrokerError("full")

        monkeypatch.setattr(connection.args_bucket_broker, "store_many", fail)
        monkeypatch.setattr(connection.args_bucket_broker, "store_bucket", fail)
        with pytest.raises(BucketBrokerError):
            await connection.enqueue_many([Job("act", args=[1]), Job("act", args=[1])])
        with pytest.raises(BucketBrokerError):
            await Job("act", args=[1]).enqueue()
        errors = [facts["error"] for name, facts in recorder.seen if name == "after_store_bucket"]
        assert len(errors) == 3
        assert all(isinstance(error, BucketBrokerError) for error in errors)

    async def test_the_way_of_a_job_through_a_worker(self, connection, recorder, router, work):
        @router.actor(queue="mail")
        async def act(a: int) -> int:
            return a

        job: Job[Any] = Job("act", queue="mail", args=[1])
        args_id = job.args_id
        receipt = await job.enqueue()
        recorder.seen.clear()
        await work(router)
        ids = {"act": receipt.id_}
        way = [name for name in recorder.names if "consume" not in name]
        assert way == [
            *("before_queue_declare", "after_queue_declare", "before_worker_start", "after_worker_start"),
            *("before_process", "before_get_bucket", "after_get_bucket", "before_actor_run", "after_actor_run"),
            *("before_store_bucket", "after_store_bucket", "before_ack", "after_ack"),
            *("before_delete_bucket", "after_delete_bucket", "after_process", "before_worker_stop", "after_worker_stop"),
        ]
        consumed = recorder.facts("after_consume")
        assert (consumed["queue"], consumed["envelope"].key.id_) == ("mail", ids["act"])
        assert ("before_consume", {"queue": "mail"}) in recorder.seen
        assert recorder.facts("before_queue_declare") == {"queue": "mail"}
        assert recorder.facts("before_actor_run")["envelope"].key.id_ == receipt.id_
        assert recorder.facts("after_actor_run")["outcome"] == 1
        assert recorder.facts("before_get_bucket")["bucket_id"] == args_id
        assert recorder.facts("after_store_bucket")["bucket_id"] == job.result_id
        assert recorder.facts("before_delete_bucket")["bucket_id"] == args_id
        ack = recorder.facts("after_ack")
        assert (ack["settlement"].kind, ack["envelope"].key.id_) == ("ack", receipt.id_)
        assert "error" not in ack
        assert recorder.facts("before_process") == {"envelope": consumed["envelope"]}
        process = recorder.facts("after_process")
        assert process == {"envelope": consumed["envelope"], "settlement": ack["settlement"], "outcome": Ended.SUCCEEDED}
        for when in ("before_worker_start", "after_worker_start", "before_worker_stop", "after_worker_stop"):
            assert recorder.facts(when) == {"connection": connection}

    @pytest.mark.parametrize(
        ("job", "outcome", "kind", "error"),
        [
            (Job("fail"), Ended.FAILED, "nack", LookupError),
            (Job("fail", retries=1), Ended.RETRIED, "requeue", LookupError),
            (Job("hang", timeout=timedelta(milliseconds=1)), Ended.FAILED, "nack", TimeoutError),
            (Job("fail", args=["too", "many"]), Ended.INVALID, "nack", ConversionError),
            (Job("fail", ttl=timedelta(milliseconds=1)), Ended.EXPIRED, "nack", RepidError),
            (Job("no_result"), Ended.FAILED, "nack", SerializationError),
            (Job("nack"), Ended.NACKED, "nack", None),
            (Job("again"), Ended.RETRIED, "requeue", None),
        ],
        ids=lambda value: value.name if isinstance(value, Job | Ended) else None,
    )
    async def test_how_the_processing_of_a_message_ended(self, connection, router, work, clock, job, outcome, kind, error):
        @router.actor
        async def fail() -> None:
            raise LookupError

        @router.actor
        async def hang() -> None:
            await asyncio.Event().wait()

        @router.actor
        async def no_result() -> Any:
            return object()

        @router.actor
        async def nack(message: MessageDependency) -> None:
            message.nack()

        @router.actor
        async def again(message: MessageDependency) -> None:
            message.force_retry(SECOND)

        connection.middleware.add(recorder := Recorder("process"))
        await connection.enqueue(job)
        if job.ttl is not None:
            await clock.advance(SECOND)
        await work(router)
        facts = recorder.facts("after_process")
        assert (facts["outcome"], facts["settlement"].kind) == (outcome, kind)
        assert type(facts.get("error")) is (error or type(None))

    async def test_a_message_that_cannot_be_decoded_is_processed_too(self, connection, recorder, router, work, monkeypatch):
        @router.actor
        async def act() -> None: ...

        def corrupt(*_: object) -> Envelope:
            raise CorruptMessageError("no JSON")

        await Job("act").enqueue()
        recorder.seen.clear()
        monkeypatch.setattr(InMemoryDelivery, "envelope", property(corrupt))
        await work(router)
        assert recorder.facts("before_process") == {}
        facts = recorder.facts("after_process")
        assert facts["outcome"] is Ended.INVALID
        assert isinstance(facts["error"], CorruptMessageError)

    async def test_one_that_is_cancelled_while_it_is_told_settles_all_the_same(self, connection, router, work):
        """A listener may be at an await when a worker in a hurry cancels."""
        settled = Recorder("ack", "reject")
        connection.middleware.add(settled)

        async def after_process() -> None:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(0)

        connection.middleware.add(after_process)

        @router.actor
        async def act() -> None: ...

        await Job("act").enqueue()
        assert (await work(router)).succeeded == 1
        assert settled.names == ["before_ack", "after_ack"]

    async def test_the_actors_error(self, connection, recorder, router, work):
        @router.actor
        async def act() -> None:
            raise LookupError

        await Job("act").enqueue()
        await work(router)
        assert isinstance(recorder.facts("after_actor_run")["error"], LookupError)
        nack = recorder.facts("after_nack")["settlement"]
        assert (nack.kind, nack.death.reason.value) == ("nack", "failed")

    async def test_a_retry_is_a_requeue(self, connection, recorder, router, work):
        @router.actor
        async def act() -> None:
            raise LookupError

        await Job("act", retries=1).enqueue()
        await work(router)
        assert recorder.facts("before_requeue")["settlement"].envelope.parameters.tried == 1
        assert recorder.facts("after_requeue")["envelope"].parameters.tried == 0

    async def test_an_actor_that_settles_its_message_has_not_failed(self, connection, recorder, router, work):
        """An eager acknowledgement is no error, though it leaves the actor by an exception."""

        @router.actor
        async def act(message: MessageDependency) -> None:
            message.ack()

        await Job("act").enqueue()
        await work(router)
        assert recorder.facts("after_actor_run").keys() == {"envelope"}

    async def test_reading_and_waiting_for_a_result(self, connection, recorder, router, work):
        @router.actor
        async def act() -> int:
            return 1

        job: Job[Any] = Job("act")
        await job.enqueue()
        await work(router)
        for read in (job.wait(1), job.result):
            recorder.seen.clear()
            await read
            assert recorder.names == ["before_get_bucket", "after_get_bucket"]
            assert recorder.facts("before_get_bucket") == {"bucket_id": job.result_id}
            assert isinstance(recorder.facts("after_get_bucket")["outcome"], bytes)

    async def test_queues(self, connection, recorder):
        await Queue("mail").declare()
        await Queue("mail").flush()
        await Queue("mail").delete()
        events = [f"{when}_queue_{what}" for what in ("declare", "flush", "delete") for when in ("before", "after")]
        assert recorder.seen == [(event, {"queue": "mail"}) for event in events]

    @pytest.mark.parametrize(
        ("how", "event"), [("ack", "ack"), ("nack", "nack"), ("reject", "reject"), ("reschedule", "requeue")]
    )
    async def test_settling_a_message_from_a_queue(self, connection, recorder, how, event):
        receipt = await Job("act", queue="mail").enqueue()
        recorder.seen.clear()
        async for message in Queue("mail").get_messages():
            await getattr(message, how)()
            break
        assert recorder.names == ["before_consume", "after_consume", f"before_{event}", f"after_{event}"]
        assert recorder.facts("before_consume") == {"queue": "mail"}
        facts = recorder.facts(f"after_{event}")
        assert isinstance(facts["settlement"], Settlement)
        assert (facts["settlement"].kind, facts["envelope"].key.id_) == (event, receipt.id_)

    async def test_a_settlement_that_fails_has_the_error(self, connection, recorder):
        await Job("act").enqueue()
        async for message in Queue().get_messages():
            await message.ack()
            with pytest.raises(UsageError):
                await message.ack()
            break
        assert [facts.get("error") is not None for name, facts in recorder.seen if name == "after_ack"] == [False, True]

    def test_every_event_is_one_that_these_tests_drive(self):
        """A new event wants a test here."""
        assert set(EVENTS) == {
            *("enqueue", "consume", "process", "actor_run", "ack", "nack", "reject", "requeue"),
            *("store_bucket", "get_bucket", "delete_bucket"),
            *("queue_declare", "queue_flush", "queue_delete", "worker_start", "worker_stop"),
        }


class TestForms:
    async def test_one_function(self, connection):
        seen: list[str] = []

        def before_enqueue(queue: str) -> None:
            seen.append(queue)

        async def after_enqueue(outcome: Enqueued, *, queue: str, error: Exception | None, extra: int = 5) -> None:
            seen.append(f"{outcome.name} {queue} {error} {extra}")

        connection.middleware.add(before_enqueue)
        connection.middleware.add(after_enqueue)
        await Job("act").enqueue()
        assert seen == ["default", "NEW default None 5"]

    async def test_functions_around(self, connection, router, work):
        order: list[str] = []

        async def around_enqueue(envelopes: Sequence[Envelope], call_next: Any) -> Any:
            order.append("enqueue")
            return await call_next(envelopes)

        def around_actor_run(envelope: Envelope, call_next: Any) -> Awaitable[Any]:
            order.append("run")
            result: Awaitable[Any] = call_next(envelope)
            return result

        connection.middleware.add(around_enqueue)
        connection.middleware.add(around_actor_run)

        @router.actor
        async def act() -> int:
            return 1

        job: Job[Any] = Job("act")
        await job.enqueue()
        await work(router)
        assert await job.wait(1) == 1
        assert order == ["enqueue", "run"]

    async def test_the_base_class_with_some_methods_overridden(self, connection):
        seen: list[str] = []

        class Mine(Middleware):
            async def before_enqueue(self, envelope: Envelope) -> None:
                seen.append(envelope.key.topic)

        connection.middleware.add(Mine())
        await Job("act").enqueue()
        assert seen == ["act"]
        assert not connection.middleware._around["around_enqueue"], "what is not overridden costs nothing"

    async def test_bound_methods_and_methods_without_an_instance(self, connection):
        seen: list[str] = []

        class Mine:
            def before_enqueue(self) -> None:
                seen.append("bound")

            @staticmethod
            def after_enqueue() -> None:
                seen.append("static")

        connection.middleware.add(Mine().before_enqueue)
        connection.middleware.add(Mine.after_enqueue)
        await Job("act").enqueue()
        assert seen == ["bound", "static"]

    async def test_added_while_running(self, connection, router, running):
        @router.actor
        async def act() -> None: ...

        recorder = Recorder("ack")
        async with running(router):
            first: Job[Any] = Job("act")
            await first.enqueue()
            await first.wait(5)
            connection.middleware.add(recorder)
            second: Job[Any] = Job("act")
            await second.enqueue()
            await second.wait(5)
        assert recorder.names == ["before_ack", "after_ack"]

    async def test_order_of_observers_is_that_of_adding(self, connection):
        order: list[int] = []

        for i in range(3):

            def before_enqueue(i: int = i) -> None:
                order.append(i)

            connection.middleware.add(before_enqueue)
        await Job("act").enqueue()
        assert order == [0, 1, 2]

    def test_an_event_that_nobody_listens_to_is_none(self):
        middlewares = Middlewares()
        for event in EVENTS:
            assert getattr(middlewares, f"before_{event}") is None
            assert getattr(middlewares, f"after_{event}") is None
        assert not middlewares.watches_enqueue
        assert not middlewares.watches_actor_run


class TestMistakes:
    """Each is an error when the middleware is added, and nothing of it is added then."""

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("before_enqeue", "did you mean 'before_enqueue'?"),
            ("after_acknowledge", r"did you mean 'after_ack'\?|events: enqueue, consume"),
            ("around_actor", "did you mean 'around_actor_run'?"),
            ("before_lunch", "which is no event"),
        ],
    )
    def test_misspelt_events(self, name, hint):
        middlewares = Middlewares()
        mine = type("Mine", (), {name: lambda self: None, "before_ack": lambda self: None})()
        with pytest.raises(UsageError, match=f"listens to {name!r}, which is no event; ") as caught:
            middlewares.add(mine)
        assert any(part.replace("\\", "") in str(caught.value) for part in hint.split("|"))
        assert middlewares.before_ack is None

    def test_a_function_that_is_named_after_no_event(self):
        with pytest.raises(UsageError, match="listens to '<lambda>', which is no event; events: enqueue, consume"):
            Middlewares([lambda: None])

    @pytest.mark.parametrize("nothing", [object(), None, "before_enqueue", 3, partial(print)])
    def test_what_is_no_middleware(self, nothing):
        with pytest.raises(UsageError, match="is no middleware: it has no method named before_<event>, after_<event>"):
            Middlewares([nothing])

    def test_facts_that_there_are_not(self):
        def before_enqueue(message: object) -> None: ...

        said = (
            "before_enqueue of a middleware takes 'message'; "
            "it can have: envelope, outcome, settlement, queue, bucket_id, error, connection"
        )
        with pytest.raises(UsageError, match=said):
            Middlewares([before_enqueue])

    def test_an_around_with_a_wrong_signature(self):
        async def around_enqueue(envelopes: object) -> None: ...

        async def around_actor_run(envelope: object, call_next: object, more: object) -> None: ...

        with pytest.raises(UsageError, match=r"around_enqueue of a middleware takes \(envelopes, call_next\)"):
            Middlewares([around_enqueue])
        with pytest.raises(UsageError, match=r"around_actor_run of a middleware takes \(envelope, call_next\).*'more'"):
            Middlewares([around_actor_run])

    def test_a_class_in_place_of_an_instance(self):
        class Observing:
            def before_enqueue(self) -> None: ...

        class Wrapping(Middleware):
            async def around_enqueue(self, envelopes: Any, call_next: Any) -> Any: ...

        for mistake in (Observing, Wrapping):
            with pytest.raises(UsageError, match="of a middleware takes"):
                Middlewares([mistake])

    def test_nothing_is_added_of_one_with_a_mistake(self):
        class Half:
            def before_ack(self) -> None: ...

            def around_enqueue(self) -> None: ...

        middlewares = Middlewares()
        with pytest.raises(UsageError):
            middlewares.add(Half())
        assert middlewares.before_ack is None


class TestFailing:
    async def test_an_observer_that_raises_is_logged_and_changes_nothing(self, connection, router, work, caplog):
        """W8"""

        class Broken:
            pass

        for event in EVENTS:
            for name in (f"before_{event}", f"after_{event}"):

                def fail(name: str = name) -> None:
                    raise ValueError(f"broken on {name}")

                async def fail_async(name: str = name) -> None:
                    fail(name)

                setattr(Broken, name, staticmethod(fail if name.startswith("before") else fail_async))
        connection.middleware.add(Broken())
        connection.middleware.add(recorder := Recorder("ack"))

        @router.actor
        async def act(a: int) -> int:
            return a

        job: Job[Any] = Job("act", args=[1])
        await job.enqueue()
        with caplog.at_level(logging.ERROR):
            summary = await work(router)
        assert summary.succeeded == 1
        assert await job.wait(1) == 1
        assert recorder.names == ["before_ack", "after_ack"], "those behind it are called all the same"
        assert "a middleware failed on before_actor_run" in caplog.text
        assert "broken on after_ack" in caplog.text
        await Queue("other").declare()
        await Queue("other").delete()


class TestAroundEnqueue:
    async def test_once_per_batch_with_all_of_it_and_before_anything_is_stored(self, connection):
        calls: list[int] = []

        class Stamp(Middleware):
            async def around_enqueue(self, envelopes: Sequence[Envelope], call_next: Any) -> Any:
                calls.append(len(envelopes))
                assert not connection.args_bucket_broker._buckets  # type: ignore[union-attr]
                outcomes = await call_next([evolve(e, headers={**e.headers, "trace": f"t{i}"}) for i, e in enumerate(envelopes)])
                assert len(connection.args_bucket_broker._buckets) == len(envelopes)  # type: ignore[union-attr]
                return outcomes

        connection.middleware.add(Stamp())
        await connection.enqueue_many([Job("act", args=[i], headers={"own": "x"}) for i in range(3)])
        assert calls == [3]
        headers = [s.envelope.headers async for s in connection.message_broker.browse("default", MessageCategory.NORMAL)]
        assert headers == [{"own": "x", "trace": f"t{i}"} for i in range(3)]

    async def test_a_veto_stores_and_sends_nothing(self, connection):
        recorder = Recorder("enqueue", "store_bucket")
        connection.middleware.add(recorder)

        async def around_enqueue(envelopes: Sequence[Envelope], call_next: Any) -> Any:
            raise PermissionError("not on Sundays")

        connection.middleware.add(around_enqueue)
        for call in (Job("act", args=[1]).enqueue(), connection.enqueue_many([Job("act", args=[1]), Job("act")])):
            with pytest.raises(PermissionError, match="not on Sundays"):
                await call
        assert (await Queue().stats()).ready == 0
        assert not connection.args_bucket_broker._buckets
        assert recorder.names == []

    async def test_a_veto_of_some(self, connection):
        """Those that it does not pass on are not stored either; it gives their outcomes itself."""

        async def around_enqueue(envelopes: Sequence[Envelope], call_next: Any) -> Any:
            passed = iter(await call_next([e for e in envelopes if e.key.topic == "act"]))
            return [next(passed) if e.key.topic == "act" else EnqueueError("forbidden") for e in envelopes]

        connection.middleware.add(around_enqueue)
        with pytest.raises(EnqueueManyError, match=r"1 of 3.*forbidden") as caught:
            await connection.enqueue_many([Job("act", args=[1]), Job("evil", args=[2]), Job("act", args=[3])])
        assert isinstance(caught.value.outcomes[1], EnqueueError)
        assert (await Queue().stats()).ready == 2
        assert len(connection.args_bucket_broker._buckets) == 2

    @pytest.mark.parametrize("mistake", [None, [], [Enqueued.NEW] * 3])
    async def test_one_that_loses_the_outcomes_is_told_so(self, connection, mistake):
        async def around_enqueue(envelopes: Sequence[Envelope], call_next: Any) -> Any:
            await call_next(envelopes)
            return mistake

        connection.middleware.add(around_enqueue)
        said = "around_enqueue of a middleware gave .*: return what call_next gives, one outcome per message"
        with pytest.raises(UsageError, match=said):
            await Job("act").enqueue()
        with pytest.raises(UsageError, match=said):
            await connection.enqueue_many([Job("act"), Job("act")])

    async def test_the_first_that_was_added_is_the_outermost(self, connection, router, work):
        order: list[str] = []

        class Layer(Middleware):
            def __init__(self, name: str) -> None:
                self.name = name

            async def around_enqueue(self, envelopes: Any, call_next: Any) -> Any:
                order.append(f"{self.name} in")
                outcomes = await call_next(envelopes)
                order.append(f"{self.name} out")
                return outcomes

            async def around_actor_run(self, envelope: Any, call_next: Any) -> Any:
                return await self.around_enqueue(envelope, call_next)

        @router.actor
        async def act() -> None:
            order.append("actor")

        connection.middleware.add(Layer("first"))
        connection.middleware.add(Layer("second"))
        await Job("act").enqueue()
        assert order == ["first in", "second in", "second out", "first out"]
        order.clear()
        await work(router)
        assert order == ["first in", "second in", "actor", "second out", "first out"]


class TestAroundActorRun:
    @pytest.mark.parametrize("kind", ["async", "sync"])
    async def test_context_variables_reach_the_actor(self, connection, router, work, kind):
        """Also one that runs in a thread."""

        async def around_actor_run(envelope: Envelope, call_next: Any) -> Any:
            variable.set(envelope.headers["user"])
            return await call_next(envelope)

        connection.middleware.add(around_actor_run)

        async def act() -> str:
            return variable.get()

        def act_sync() -> str:
            return variable.get()

        router.actor(name="act")(act if kind == "async" else act_sync)
        job: Job[Any] = Job("act", headers={"user": "Alex"})
        await job.enqueue()
        await work(router)
        assert await job.wait(1) == "Alex"
        assert variable.get() == ""

    async def test_may_change_the_result(self, connection, router, work):
        async def around_actor_run(envelope: Envelope, call_next: Any) -> Any:
            return 2 * await call_next(envelope)

        connection.middleware.add(around_actor_run)

        @router.actor
        async def act() -> int:
            return 21

        job: Job[Any] = Job("act")
        await job.enqueue()
        await work(router)
        assert await job.wait(1) == 42

    async def test_raising_fails_the_attempt(self, connection, router, work):
        ran: list[int] = []

        async def around_actor_run(envelope: Envelope, call_next: Any) -> Any:
            raise PermissionError("not for you")

        connection.middleware.add(around_actor_run)

        @router.actor
        async def act() -> None:
            ran.append(1)

        job: Job[Any] = Job("act", retries=1)
        await job.enqueue()
        assert (await work(router)).retried == 1
        failing: Job[Any] = Job("act")
        await failing.enqueue()
        assert (await work(router)).failed == 1
        bucket = await failing.result
        assert bucket is not None
        assert bucket.exception == "PermissionError"
        assert not ran

    async def test_it_sees_the_actors_error_and_may_turn_it_into_a_result(self, connection, router, work):
        async def around_actor_run(envelope: Envelope, call_next: Any) -> Any:
            try:
                return await call_next(envelope)
            except LookupError:
                return -1

        connection.middleware.add(around_actor_run)

        @router.actor
        async def act() -> int:
            raise LookupError

        job: Job[Any] = Job("act")
        await job.enqueue()
        await work(router)
        assert await job.wait(1) == -1

    async def test_it_is_inside_the_timeout(self, connection, router, work):
        async def around_actor_run(envelope: Envelope, call_next: Any) -> Any:
            await asyncio.Event().wait()

        connection.middleware.add(around_actor_run)

        @router.actor
        async def act() -> None: ...

        job: Job[Any] = Job("act", timeout=timedelta(milliseconds=10))
        await job.enqueue()
        assert (await work(router)).failed == 1
        bucket = await job.result
        assert bucket is not None
        assert bucket.exception == "TimeoutError"


async def test_connections_do_not_share_their_middlewares(connection):
    recorder = Recorder("enqueue")
    async with Connection(InMemoryMessageBroker(), InMemoryBucketBroker(), middlewares=[recorder]) as other:
        await Job("act").enqueue()
        assert recorder.names == []
        await other.enqueue(Job("act"))
        assert recorder.names == ["before_enqueue", "after_enqueue"]
