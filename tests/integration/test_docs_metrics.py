"""The reference of metrics and spans is what a scrape, and OpenTelemetry's SDK, see after jobs have ended in every way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

import attrs
import pytest

from repid_core import (
    Connection,
    Enqueued,
    EnqueueError,
    Envelope,
    InMemoryMessageBroker,
    Job,
    MessageDependency,
    Repid,
    Router,
    Worker,
)
from repid_core.errors import DeliveryLostError
from repid_core.memory.consumer import InMemoryDelivery
from repid_core.processing import Ended
from repid_core.worker import WorkerSummary
from tests.integration.test_docs_facts import DOCS, names, tables

for plugin in ("repid_opentelemetry", "repid_prometheus"):
    pytest.importorskip(plugin, reason="it is not installed")

from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from prometheus_client import CollectorRegistry  # noqa: E402
from prometheus_client.metrics_core import Metric  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from repid_opentelemetry import OpenTelemetryMiddleware  # noqa: E402
from repid_prometheus import PrometheusMiddleware  # noqa: E402

pytestmark = pytest.mark.examples

PAGE = "reference/metrics.md"
OUTCOMES, PROMETHEUS, LABELS, BUCKETS, METRICS, SPANS, ATTRIBUTES = tables(PAGE)
ENDS = len(Ended) + 4  # deliveries of `everything`


class Refusing(InMemoryMessageBroker):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        if envelope.key.id_ == "refused":
            raise EnqueueError("no")
        return await super().enqueue(envelope)


class Watching:
    """Says when as many deliveries have ended, and has the headers of what was enqueued last."""

    def __init__(self) -> None:
        self.ended, self.count, self.headers = asyncio.Event(), 0, set[str]()

    def after_process(self, outcome: Ended) -> None:
        self.count += 1
        if self.count == ENDS:
            self.ended.set()

    def after_enqueue(self, envelope: Envelope) -> None:
        self.headers |= set(envelope.headers)


router = Router()


@router.actor(queue="mail", retry_policy=lambda attempt, error: timedelta(0))
async def act(what: str, message: MessageDependency) -> None:
    if what == "fail":
        raise ValueError(what)
    if what == "nack":
        await message.nack()
    if what == "reject" and not seen:
        seen.append(what)
        await message.reject()


seen: list[str] = []


async def everything() -> None:
    """Enqueue jobs that end in each way."""
    for what in ("succeed", "nack", "reject"):
        await Job("act", queue="mail", args=[what]).enqueue()
    await Job("act", queue="mail", args=["fail"], retries=1).enqueue()
    await Job("act", queue="mail").enqueue()  # invalid, for it has no arguments
    await Job("act", queue="mail", args=["expire"], ttl=timedelta(milliseconds=1)).enqueue()
    await Job("act", queue="mail", args=["lose"], id_="lost").enqueue()
    for policy in ("raise", "keep", "replace"):
        await Job("act", queue="mail", args=["succeed"], id_="twice", on_duplicate=policy).enqueue()
    with pytest.raises(EnqueueError):
        await Job("act", queue="mail", id_="refused").enqueue()


class Seen:
    """What was exported."""

    scraped: dict[str, Metric]
    spans: tuple[ReadableSpan, ...]
    metrics: dict[str, Any]
    headers: set[str]


@pytest.fixture(scope="module")
def exported() -> Seen:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    prometheus = PrometheusMiddleware(registry=CollectorRegistry(), port=0)
    found = Seen()

    def scrape() -> str:
        with urlopen(f"http://127.0.0.1:{prometheus.port}/metrics", timeout=30) as page:
            return str(page.read().decode())

    async def main() -> None:
        watching = Watching()
        telemetry = OpenTelemetryMiddleware(tracer_provider=tracers, meter_provider=meters)
        connection = Connection(Refusing(), middlewares=[prometheus, telemetry, watching])
        async with Repid(connection).magic(auto_disconnect=True):
            await everything()
            await connection.enqueue_many(Job("act", queue="mail", args=["succeed"]) for _ in range(2))
            await connection.enqueue_many(Job("act", queue=queue, args=["succeed"]) for queue in ("here", "there"))
            await asyncio.sleep(0.002)  # the TTL
            worker = Worker([router], tasks_limit=1, handle_signals=())
            running = asyncio.create_task(worker.run())
            async with asyncio.timeout(50):
                await watching.ended.wait()
                text = await asyncio.to_thread(scrape)
            worker.stop()
            await running
        found.scraped = {family.name: family for family in text_string_to_metric_families(text)}
        found.headers = watching.headers

    with pytest.MonkeyPatch.context() as patch:
        ack = InMemoryDelivery.ack

        async def lose(self: InMemoryDelivery) -> None:
            await ack(self)
            if self.envelope.key.id_ == "lost":
                raise DeliveryLostError

        patch.setattr(InMemoryDelivery, "ack", lose)
        asyncio.run(main())
    data = reader.get_metrics_data()
    assert data is not None
    found.metrics = {
        metric.name: metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    }
    found.spans = spans.get_finished_spans()
    tracers.shutdown()
    meters.shutdown()
    return found


def bounds(cell: str) -> list[float]:
    return [float(bound) for bound in cell.split()]


def test_the_outcomes_are_those_of_the_code() -> None:
    outcomes = [row[0] for row in OUTCOMES]
    assert outcomes == [outcome.value for outcome in sorted(Ended, key=lambda each: outcomes.index(each.value))]
    assert set(outcomes) == {field.name for field in attrs.fields(WorkerSummary)} - {"processed"}


def test_a_scrape_has_the_metrics_of_the_page(exported: Seen) -> None:
    created = {name for name in exported.scraped if name.endswith("_created")}
    real = {}
    for name, family in exported.scraped.items():
        if name not in created:
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            real[f"{name}_total" if family.type == "counter" else name] = (family.type, labels)
    assert {row[0]: (row[1], names(row[2])) for row in PROMETHEUS} == real
    expected = {row[0].removesuffix("_total") + "_created" for row in PROMETHEUS if row[1] != "gauge"}
    assert created == expected


def test_labels_have_the_values_of_the_page(exported: Seen) -> None:
    said = {row[0]: names(row[1]) for row in LABELS}
    for metric in ("repid_jobs_enqueued", "repid_jobs_finished"):
        values = {sample.labels["outcome"] for sample in exported.scraped[metric].samples}
        assert values == said[f"outcome of {metric}_total"]
    assert {sample.labels["state"] for sample in exported.scraped["repid_queue_messages"].samples} == said["state"]


def test_histograms_have_the_bounds_of_the_page(exported: Seen) -> None:
    for name, cell in BUCKETS:
        seen = {sample.labels["le"] for sample in exported.scraped[name].samples if "le" in sample.labels} - {"+Inf"}
        assert sorted(map(float, seen)) == bounds(cell), name


def test_the_sdk_has_the_metrics_of_the_page(exported: Seen) -> None:
    real = {}
    for name, metric in exported.metrics.items():
        kind = "histogram" if isinstance(metric.data, Histogram) else "counter"
        real[name] = (kind, metric.unit, {key for point in metric.data.data_points for key in point.attributes})
    assert {row[0]: (row[1], row[2], names(row[3])) for row in METRICS} == real
    text = (DOCS / PAGE).read_text("utf-8")
    advised = text.partition("advise the bounds ")[2].partition(" seconds")[0]
    for name, metric in exported.metrics.items():
        for point in metric.data.data_points if isinstance(metric.data, Histogram) else ():
            assert list(point.explicit_bounds) == bounds(advised), name


def attributes(spans: Iterable[ReadableSpan]) -> set[str]:
    return {key for span in spans for key in span.attributes or {}}


def is_batch(span: ReadableSpan) -> bool:
    return "messaging.batch.message_count" in (span.attributes or {})


def test_the_sdk_has_the_spans_of_the_page(exported: Seen) -> None:
    real: dict[str, list[ReadableSpan]] = {}
    for span in exported.spans:
        if span.name.partition(" ")[2] in ("mail", ""):
            real.setdefault(f"{span.name} of a batch" if is_batch(span) else span.name, []).append(span)
    [several] = real.pop("enqueue of a batch")
    assert "messaging.destination.name" not in attributes([several])
    assert {row[0]: (row[1], names(row[2])) for row in SPANS} == {
        name: (spans[0].kind.name.lower(), attributes(spans) - {"error.type"}) for name, spans in real.items()
    }


def test_attributes_have_the_values_of_the_page(exported: Seen) -> None:
    said = dict(ATTRIBUTES)
    points = [point.attributes for metric in exported.metrics.values() for point in metric.data.data_points]
    assert set(said) == attributes(exported.spans) | {key for attributes in points for key in attributes}
    spans = [dict(span.attributes or {}) for span in exported.spans]
    for name in ("messaging.operation.name", "messaging.operation.type"):
        assert {span[name] for span in spans} <= names(said[name].replace(";", " "))
    assert {found["messaging.operation.name"] for found in points} == {"enqueue", "receive", "process"}
    assert {span["repid.outcome"] for span in spans if "repid.outcome" in span} == {outcome.value for outcome in Ended}
    assert {span["error.type"] for span in spans if "error.type" in span} >= {
        "ValueError",
        "repid_core.errors.ConversionError",
        "nacked",
    }


def test_failures_are_events_without_texts(exported: Seen) -> None:
    events = [event for span in exported.spans for event in span.events]
    assert {event.name for event in events} == {"exception"}
    assert {key for event in events for key in event.attributes or {}} == {"exception.type", "exception.stacktrace"}


def test_the_context_travels_in_headers(exported: Seen) -> None:
    assert exported.headers == {"traceparent"}  # the rest only if there is something to say
