"""What was exported."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from attrs import field, frozen
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from repid_core import WorkerSummary

Point = tuple[dict[str, Any], Any]
Watch = Callable[..., None]  # adds the middleware, with settings
Work = Callable[..., Awaitable[WorkerSummary]]  # runs so many deliveries


@frozen(eq=False)
class Telemetry:
    """Providers of the SDK, whose exporters are in memory."""

    spans: InMemorySpanExporter = field(factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(factory=InMemoryMetricReader)
    tracer_provider: TracerProvider = field(factory=TracerProvider)
    meter_provider: MeterProvider = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.spans))
        object.__setattr__(self, "meter_provider", MeterProvider([self.reader]))

    @property
    def providers(self) -> dict[str, Any]:
        return {"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider}

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans of a name, as they began."""
        return sorted(
            (span for span in self.spans.get_finished_spans() if span.name == name), key=lambda span: span.start_time or 0
        )

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span

    def points(self, metric: str) -> list[Point]:
        """A metric's attributes and values; of a histogram, its counts and sum."""
        data = self.reader.get_metrics_data()
        return [
            (dict(point.attributes or {}), point)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for one in scope.metrics
            if one.name == metric
            for point in one.data.data_points
        ]

    def everything(self) -> str:
        """All that was exported, as text."""
        data = self.reader.get_metrics_data()
        return "".join(span.to_json() for span in self.spans.get_finished_spans()) + (data.to_json() if data else "")

    def close(self) -> None:
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()


def ids(span: ReadableSpan) -> tuple[int, int]:
    """Which trace, and which span."""
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})
