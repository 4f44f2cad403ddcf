"""What a backend of traces is told, by the SDK's exporter."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.semconv._incubating.attributes import messaging_attributes as conventional
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import SpanKind, StatusCode

from repid_core import Connection, Enqueued, EnqueueManyError, Job, MessageDependency, Router
from repid_core.errors import BrokerConnectionError, DuplicateJobError
from telemetry import Telemetry, Watch, Work, attributes, ids, links, parent

QUOTED = "what-nobody-is-to-see"
AT_ONCE = timedelta(0)


class TestOneJob:
    async def test_one_trace_from_the_sender_to_what_the_actor_does(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()
        tracer = telemetry.tracer_provider.get_tracer("app")

        @router.actor(queue="mail")
        async def greet(name: str) -> None:
            with tracer.start_as_current_span("inside"):
                pass

        with tracer.start_as_current_span("outside"):
            receipt = await Job("greet", queue="mail", args=[QUOTED]).enqueue()
        await work()
        outside, sent, run, inside = (telemetry.one(name) for name in ("outside", "enqueue mail", "process mail", "inside"))
        assert (parent(sent), parent(run), parent(inside)) == (ids(outside), ids(sent), ids(run))
        assert links(run) == [ids(sent)]
        assert len({ids(span)[0] for span in (outside, sent, run, inside)}) == 1
        assert (sent.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
        assert sent.status.status_code is run.status.status_code is StatusCode.UNSET
        assert attributes(sent) == {
            conventional.MESSAGING_SYSTEM: "repid",
            conventional.MESSAGING_OPERATION_NAME: "enqueue",
            conventional.MESSAGING_OPERATION_TYPE: "send",
            conventional.MESSAGING_DESTINATION_NAME: "mail",
            conventional.MESSAGING_MESSAGE_ID: receipt.id_,
            "repid.actor": "greet",
        }
        assert attributes(run) == {
            **attributes(sent),
            conventional.MESSAGING_OPERATION_NAME: "process",
            conventional.MESSAGING_OPERATION_TYPE: "process",
            "repid.attempt": 1,
            "repid.outcome": "succeeded",
        }

    async def test_synchronous_actors_see_the_span_too(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()
        seen: list[Any] = []

        @router.actor
        def act() -> None:
            seen.append(trace.get_current_span().get_span_context().span_id)

        await Job("act").enqueue()
        await work()
        assert seen == [ids(telemetry.one("process default"))[1]]

    async def test_the_headers_are_those_of_the_w3c(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()
        headers: dict[str, str] = {}

        @router.actor
        async def act(message: MessageDependency) -> None:
            headers.update(message.headers)

        await Job("act", headers={"mine": "stays"}).enqueue()
        await work()
        trace_id, span_id = ids(telemetry.one("enqueue default"))
        assert headers.keys() == {"mine", "traceparent"}
        assert headers["traceparent"].startswith(f"00-{trace_id:032x}-{span_id:016x}-0")

    async def test_baggage_and_tracestate_travel(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()
        seen: list[Any] = []

        @router.actor
        async def act() -> None:
            seen.append((baggage.get_baggage("tenant"), trace.get_current_span().get_span_context().trace_state.get("vendor")))

        await Job(
            "act", headers={"traceparent": f"00-{7:032x}-{8:016x}-01", "tracestate": "vendor=4", "baggage": "tenant=5"}
        ).enqueue()
        token = context.attach(baggage.set_baggage("tenant", "6"))
        await Job("act").enqueue()
        context.detach(token)
        await work(2)
        assert seen == [("5", "4"), ("6", None)]

    async def test_a_context_that_the_job_has_already_stays(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()

        @router.actor
        async def act() -> None: ...

        await Job("act", headers={"traceparent": f"00-{7:032x}-{8:016x}-01"}).enqueue()
        await work()
        sent, run = telemetry.one("enqueue default"), telemetry.one("process default")
        assert (sent.kind, links(sent)) == (SpanKind.CLIENT, [(7, 8)])
        assert (parent(run), links(run)) == ((7, 8), [(7, 8)])

    async def test_the_surroundings_of_a_worker_have_no_part(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        @router.actor
        async def act() -> None: ...

        await Job("act").enqueue()  # by a producer that is not traced
        watch()
        with telemetry.tracer_provider.get_tracer("app").start_as_current_span("the worker's life"):
            await work()
        run = telemetry.one("process default")
        assert (parent(run), links(run)) == (None, [])

    async def test_only_linked(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch(consumer_span="link")

        @router.actor
        async def act() -> None: ...

        await Job("act").enqueue()
        await work()
        sent, run = telemetry.one("enqueue default"), telemetry.one("process default")
        assert (parent(run), links(run)) == (None, [ids(sent)])
        assert ids(run)[0] != ids(sent)[0]

    async def test_a_job_that_an_actor_enqueues_is_its_child(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()

        @router.actor
        async def first() -> None:
            await Job("second", queue="other").enqueue()

        @router.actor(queue="other")
        async def second() -> None: ...

        await Job("first").enqueue()
        await work(2)
        assert parent(telemetry.one("enqueue other")) == ids(telemetry.one("process default"))

    async def test_what_the_broker_does_is_part_of_the_span(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client library that is instrumented itself has its spans inside."""
        watch()
        seen: list[int] = []

        async def enqueue(*_: object) -> Enqueued:
            seen.append(trace.get_current_span().get_span_context().span_id)
            return Enqueued.NEW

        monkeypatch.setattr(connection.message_broker, "enqueue", enqueue)
        await Job("act").enqueue()
        assert seen == [ids(telemetry.one("enqueue default"))[1]]

    async def test_the_span_ends_with_the_actor(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        """Not after its result is stored, however long that takes."""
        watch()
        stored: list[int] = []

        async def before_store_bucket() -> None:
            stored.append(time.time_ns())

        @router.actor
        async def act() -> int:
            return 1

        await Job("act").enqueue()
        connection.middleware.add(before_store_bucket)
        await work()
        assert (telemetry.one("process default").end_time or 0) <= stored[0]


class TestMany:
    async def test_each_has_a_span_of_its_own(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()

        @router.actor
        async def act() -> None: ...

        given = {"traceparent": f"00-{7:032x}-{8:016x}-01"}
        receipts = await connection.enqueue_many([Job("act"), Job("act"), Job("act", headers=given)])
        await work(3)
        created, sent, runs = (
            telemetry.named("create default"),
            telemetry.one("enqueue default"),
            telemetry.named("process default"),
        )
        assert [attributes(span)["messaging.message.id"] for span in created] == [receipt.id_ for receipt in receipts[:2]]
        assert (sent.kind, attributes(sent)["messaging.batch.message_count"]) == (SpanKind.CLIENT, 3)
        origins = [ids(created[0]), ids(created[1]), (7, 8)]
        assert links(sent) == origins
        assert sorted(parent(run) or () for run in runs) == sorted(origins)
        assert "messaging.message.id" not in attributes(sent)

    async def test_without_those_all_refer_to_the_batch(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch(batch_spans=False)

        @router.actor
        async def act() -> None: ...

        await connection.enqueue_many([Job("act"), Job("act")])
        await work(2)
        sent = telemetry.one("enqueue default")
        assert (sent.kind, telemetry.named("create default")) == (SpanKind.PRODUCER, [])
        assert [parent(run) for run in telemetry.named("process default")] == [ids(sent)] * 2

    async def test_several_queues_name_none(self, connection: Connection, telemetry: Telemetry, watch: Watch) -> None:
        watch()
        await connection.enqueue_many([Job("act", queue="a"), Job("act", queue="b")])
        assert "messaging.destination.name" not in attributes(telemetry.one("enqueue"))


class TestFailures:
    async def test_each_attempt_is_a_span_that_refers_to_the_sender(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()

        @router.actor(retry_policy=lambda attempt, error: AT_ONCE)
        async def act() -> None:
            raise LookupError(QUOTED)

        await Job("act", retries=2).enqueue()
        await work(3)
        sent, runs = telemetry.one("enqueue default"), telemetry.named("process default")
        assert [attributes(run)["repid.outcome"] for run in runs] == ["retried", "retried", "failed"]
        assert [attributes(run)["repid.attempt"] for run in runs] == [1, 2, 3]
        assert [(parent(run), links(run)) for run in runs] == [(ids(sent), [ids(sent)])] * 3
        for run in runs:
            assert run.status.status_code is StatusCode.ERROR
            assert attributes(run)[ERROR_TYPE] == "LookupError"

    async def test_the_exception_is_recorded_without_its_text(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()

        class OddError(Exception):
            pass

        @router.actor
        async def act(name: str) -> str:
            raise OddError(name) from ValueError(name)

        await Job("act", args=[QUOTED]).enqueue()
        await work()
        run = telemetry.one("process default")
        [event] = run.events
        said = dict(event.attributes or {})
        assert (event.name, set(said)) == ("exception", {"exception.type", "exception.stacktrace"})
        assert str(said["exception.type"]).endswith("OddError")
        assert "raise OddError(name) from ValueError(name)" in str(said["exception.stacktrace"])
        assert QUOTED not in telemetry.everything()

    async def test_with_its_text_where_that_is_asked_for(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch(exception_texts=True)

        @router.actor
        async def act() -> None:
            raise LookupError("no such user")

        await Job("act").enqueue()
        await work()
        run = telemetry.one("process default")
        assert run.status.description == "LookupError: no such user"
        assert dict(run.events[0].attributes or {})["exception.message"] == "no such user"

    async def test_a_timeout(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()

        @router.actor
        async def act() -> None:
            await asyncio.Event().wait()

        await Job("act", timeout=timedelta(milliseconds=1)).enqueue()
        await work()
        assert attributes(telemetry.one("process default"))[ERROR_TYPE] == "TimeoutError"

    @pytest.mark.parametrize(
        ("job", "outcome", "error_type"),
        [
            (Job("act", args=[QUOTED, QUOTED, QUOTED]), "invalid", "repid_core.errors.ConversionError"),
            (
                Job("act", args=[1], deferred_until=datetime(2020, 1, 1, tzinfo=UTC), ttl=AT_ONCE.resolution * 1000),
                "expired",
                "repid_core.errors.RepidError",
            ),
            (Job("nack"), "nacked", "nacked"),
        ],
        ids=["invalid", "expired", "nacked"],
    )
    async def test_what_ends_otherwise(
        self,
        connection: Connection,
        telemetry: Telemetry,
        watch: Watch,
        router: Router,
        work: Work,
        job: Job[Any],
        outcome: str,
        error_type: str,
    ) -> None:
        """Also what the actor never sees is a span of the trace."""
        watch()

        @router.actor
        async def act(number: int) -> None: ...

        @router.actor
        async def nack(message: MessageDependency) -> None:
            message.nack(QUOTED)

        await connection.enqueue(job)
        await work()
        run = telemetry.one("process default")
        assert (attributes(run)["repid.outcome"], attributes(run)[ERROR_TYPE]) == (outcome, error_type)
        assert run.status.status_code is StatusCode.ERROR
        assert parent(run) == ids(telemetry.one("enqueue default"))
        assert QUOTED not in telemetry.everything()

    async def test_one_that_settles_itself_has_not_failed(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
    ) -> None:
        watch()

        @router.actor
        async def act(message: MessageDependency) -> None:
            message.ack()

        await Job("act").enqueue()
        await work()
        run = telemetry.one("process default")
        assert (run.status.status_code, attributes(run)["repid.outcome"]) == (StatusCode.UNSET, "succeeded")

    async def test_a_send_that_fails(
        self, connection: Connection, telemetry: Telemetry, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch()
        await Job("act", id_="x").enqueue()
        telemetry.spans.clear()
        with pytest.raises(DuplicateJobError):
            await Job("act", id_="x").enqueue()
        assert attributes(telemetry.one("enqueue default"))[ERROR_TYPE] == "repid_core.errors.DuplicateJobError"
        telemetry.spans.clear()
        with pytest.raises(EnqueueManyError):
            await connection.enqueue_many([Job("act"), Job("act", id_="x")])
        assert telemetry.one("enqueue default").status.status_code is StatusCode.ERROR
        telemetry.spans.clear()

        async def away(*_: object) -> None:
            raise BrokerConnectionError

        monkeypatch.setattr(connection.message_broker, "enqueue", away)
        with pytest.raises(BrokerConnectionError):
            await Job("act").enqueue()
        assert attributes(telemetry.one("enqueue default"))[ERROR_TYPE] == "repid_core.errors.BrokerConnectionError"


async def test_runs_of_a_recurring_job_are_traces_of_their_own(
    connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
) -> None:
    watch()

    @router.actor
    async def act() -> None: ...

    await Job("act", deferred_until=datetime(2020, 1, 1, tzinfo=UTC), deferred_by=timedelta(seconds=1)).enqueue()
    await work(2)
    sent, (first, second) = telemetry.one("enqueue default"), telemetry.named("process default")
    assert links(first) == links(second) == [ids(sent)]
    assert len({ids(span)[0] for span in (sent, first, second)}) == 3


async def test_arguments_and_results_are_nowhere(
    connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
) -> None:
    watch(exception_texts=True)

    @router.actor
    async def act(name: str) -> str:
        return name

    await Job("act", args=[QUOTED]).enqueue()
    await connection.enqueue_many([Job("act", args={"name": QUOTED}, use_args_bucketer=False) for _ in range(2)])
    assert (await work(3)).succeeded == 3
    assert QUOTED not in telemetry.everything()


async def test_added_to_a_worker_that_runs(
    connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
) -> None:
    """Its first job was begun without it, and has a span all the same."""

    class Late:
        def before_get_bucket(self) -> None:
            watch()

    connection.middleware.add(Late())

    @router.actor
    async def act(number: int) -> None: ...

    await Job("act", args=[1]).enqueue()
    await work()
    assert len(telemetry.named("process default")) == 1


async def test_without_an_sdk_nothing_happens(connection: Connection, router: Router, work: Work) -> None:
    from repid_opentelemetry import OpenTelemetryMiddleware

    connection.middleware.add(OpenTelemetryMiddleware())
    headers: dict[str, str] = {}

    @router.actor
    async def act(message: MessageDependency) -> None:
        headers.update(message.headers)

    await Job("act").enqueue()
    await connection.enqueue_many([Job("act"), Job("act")])
    assert (await work(3)).succeeded == 3
    assert headers == {}
