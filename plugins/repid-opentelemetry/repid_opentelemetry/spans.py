"""The spans of senders and workers, and the contexts that join them."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import INVALID_SPAN, INVALID_SPAN_CONTEXT, Link, Span, SpanContext, SpanKind, Tracer

from repid_core import Envelope
from repid_opentelemetry import conventions as names
from repid_opentelemetry.settings import OpenTelemetrySettings

Attributes = dict[str, str | int]


class Spans:
    """Begins spans.

    Args:
        tracer: Makes them.
        propagator: Writes their contexts into headers, and reads them there.
        settings: How they are joined.
    """

    def __init__(self, tracer: Tracer, propagator: TextMapPropagator, settings: OpenTelemetrySettings) -> None:
        self._tracer, self._propagator, self._settings = tracer, propagator, settings

    def send(self, envelopes: Sequence[Envelope]) -> tuple[Span, Sequence[Envelope]]:
        """The span of one call that sends, and the messages with the contexts that they carry.

        One message carries the context of this span. Each of several has a span of its own for that, which is linked from here.
        A context that a job's headers have already stays, and is linked as well.
        """
        given = [_origin(self._extract(envelope)) for envelope in envelopes]
        if len(envelopes) > 1 and self._settings.batch_spans:
            carried = [
                origin if origin.is_valid else self._create(envelope) for envelope, origin in zip(envelopes, given, strict=True)
            ]
        else:
            carried = given
        attributes = self._sent(envelopes)
        queue = attributes.get(names.DESTINATION)
        span = self._tracer.start_span(
            "enqueue" if queue is None else f"enqueue {queue}",
            attributes=attributes,
            kind=SpanKind.CLIENT if all(origin.is_valid for origin in carried) else SpanKind.PRODUCER,
            links=[Link(origin) for origin in carried if origin.is_valid],
        )
        own = span.get_span_context()
        return span, [
            envelope if origin.is_valid else self._inject(envelope, creation if creation.is_valid else own)
            for envelope, origin, creation in zip(envelopes, given, carried, strict=True)
        ]

    def process(self, envelope: Envelope, began: int | None = None) -> tuple[Span, Context]:
        """The span of a message in a worker, begun now or at a time in nanoseconds, and what surrounds it.

        The worker's own surroundings have no part in it. Runs of a recurring job would be one trace without end, so each
        has its own.
        """
        surroundings = self._extract(envelope)
        origin = _origin(surroundings)
        if self._settings.consumer_span == "link" or envelope.parameters.recurrence is not None:
            surroundings = trace.set_span_in_context(INVALID_SPAN, surroundings)
        span = self._tracer.start_span(
            f"process {envelope.key.queue}",
            context=surroundings,
            kind=SpanKind.CONSUMER,
            attributes={
                **self._attributes("process", "process", envelope),
                names.ATTEMPT: envelope.parameters.tried + 1,
            },
            links=[Link(origin)] if origin.is_valid else (),
            start_time=began,
        )
        return span, surroundings

    def _create(self, envelope: Envelope) -> SpanContext:
        queue = envelope.key.queue
        span = self._tracer.start_span(
            f"create {queue}", kind=SpanKind.PRODUCER, attributes=self._attributes("create", "create", envelope)
        )
        span.end()
        return span.get_span_context()

    def _sent(self, envelopes: Sequence[Envelope]) -> Attributes:
        if len(envelopes) == 1:
            return self._attributes("enqueue", "send", envelopes[0])
        attributes: Attributes = {
            names.SYSTEM: self._settings.system,
            names.OPERATION_NAME: "enqueue",
            names.OPERATION_TYPE: "send",
            names.BATCH_COUNT: len(envelopes),
        }
        queues = {envelope.key.queue for envelope in envelopes}
        if len(queues) == 1:
            attributes[names.DESTINATION] = queues.pop()
        return attributes

    def _attributes(self, operation: str, kind: str, envelope: Envelope) -> Attributes:
        key = envelope.key
        return {
            names.SYSTEM: self._settings.system,
            names.OPERATION_NAME: operation,
            names.OPERATION_TYPE: kind,
            names.DESTINATION: key.queue,
            names.MESSAGE_ID: key.id_,
            names.ACTOR: key.topic,
        }

    def _extract(self, envelope: Envelope) -> Context:
        return self._propagator.extract(envelope.headers, Context()) if envelope.headers else Context()

    def _inject(self, envelope: Envelope, origin: SpanContext) -> Envelope:
        headers = dict(envelope.headers)
        self._propagator.inject(headers, trace.set_span_in_context(trace.NonRecordingSpan(origin)))
        return envelope if headers == envelope.headers else evolve(envelope, headers=headers)


def _origin(surroundings: Context) -> SpanContext:
    """The span that a message came from."""
    span = trace.get_current_span(surroundings)
    return INVALID_SPAN_CONTEXT if span is INVALID_SPAN else span.get_span_context()
