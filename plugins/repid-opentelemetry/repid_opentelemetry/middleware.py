"""The middleware: what happens to jobs, as spans and metrics."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any

from attrs import asdict, define, field
from opentelemetry import context, metrics, propagate, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider

from repid_core import Enqueued, EnqueueError, Envelope
from repid_core.processing import Ended
from repid_opentelemetry import conventions as names
from repid_opentelemetry.failures import record, type_of
from repid_opentelemetry.instruments import Instruments
from repid_opentelemetry.settings import OpenTelemetrySettings
from repid_opentelemetry.spans import Spans

Outcomes = Sequence[Enqueued | EnqueueError]

_SCOPE = "repid_opentelemetry"
_GOOD = frozenset({Ended.SUCCEEDED, Ended.RETRIED, Ended.REJECTED})  # unless there is an error


@define(eq=False)
class _Processing:
    """One delivery in a worker: its span covers the arguments and the actor; the settlement, which ends it, knows how it went."""

    began: int = field(factory=time.time_ns)  # nanoseconds, as spans count
    ended: int | None = None
    span: Span | None = None


# Observers and the chain around the actor run in one task for each delivery, and hand it on here.
_processing: ContextVar[_Processing | None] = ContextVar("repid_opentelemetry", default=None)


class OpenTelemetryMiddleware:
    """Traces jobs from whoever enqueues them to the actors that run, and measures both.

    Arguments and results are not recorded, nor are texts of exceptions, unless `exception_texts` asks for them. Without an
    SDK all of it does nothing.

    Args:
        tracer_provider: By default the global one.
        meter_provider: By default the global one.
        propagator: Puts the trace's context into headers; by default the global one, which is that of the W3C unless
            `OTEL_PROPAGATORS` says otherwise.
        settings: See `OpenTelemetrySettings`, by name.

    Raises:
        ValueError: A setting is not valid; the text names it.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        propagator: TextMapPropagator | None = None,
        **settings: Any,
    ) -> None:
        self.settings = OpenTelemetrySettings(**settings)
        release = version("repid-opentelemetry")
        tracer = trace.get_tracer(_SCOPE, release, tracer_provider, names.SCHEMA_URL)
        self._spans = Spans(tracer, propagator or propagate.get_global_textmap(), self.settings)
        self._instruments: Instruments | None = None
        if self.settings.metrics:
            meter = metrics.get_meter(_SCOPE, release, meter_provider, names.SCHEMA_URL)
            self._instruments = Instruments(meter, self.settings.system)

    @classmethod
    def from_settings(cls, settings: OpenTelemetrySettings) -> OpenTelemetryMiddleware:
        """Make one with the global providers."""
        return cls(**asdict(settings))

    async def around_enqueue(
        self, envelopes: Sequence[Envelope], call_next: Callable[[Sequence[Envelope]], Awaitable[Outcomes]]
    ) -> Outcomes:
        """Send inside a span, whose context, or that of a span for each, travels with the messages."""
        began = time.perf_counter()
        span, envelopes = self._spans.send(envelopes)
        told: Sequence[Enqueued | BaseException] = ()
        failure: BaseException | None = None
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                outcomes = await call_next(envelopes)
            told = outcomes
        except BaseException as error:
            told, failure = [error] * len(envelopes), error
            raise
        else:
            failure = next((outcome for outcome in outcomes if isinstance(outcome, EnqueueError)), None)
            return outcomes
        finally:
            if failure is not None:
                record(span, failure, texts=self.settings.exception_texts)
            span.end()
            if self._instruments is not None:
                self._instruments.sent(zip(envelopes, told, strict=False), time.perf_counter() - began, failure)

    def after_consume(self, queue: str) -> None:
        """Count a message that was received."""
        if self._instruments is not None:
            self._instruments.consumed(queue)

    def before_process(self) -> None:
        """A worker has a message."""
        _processing.set(_Processing())

    async def around_actor_run(self, envelope: Envelope, call_next: Callable[[Envelope], Awaitable[Any]]) -> Any:
        """Run the actor inside a span; how it ended is not known before the settlement."""
        processing = _processing.get()
        span, base = self._spans.process(envelope, None if processing is None else processing.began)
        token = context.attach(trace.set_span_in_context(span, base))
        try:
            return await call_next(envelope)
        finally:
            context.detach(token)
            if processing is None:  # the middleware was added meanwhile
                span.end()
            else:
                processing.span, processing.ended = span, time.time_ns()

    def after_process(self, envelope: Envelope | None, outcome: Ended, error: BaseException | None) -> None:
        """End the span, with what became of the message."""
        processing = _processing.get()
        if processing is None or envelope is None:  # of what cannot be decoded nobody knows the trace
            return
        span, ended = processing.span, processing.ended or time.time_ns()
        if span is None:
            if outcome is Ended.REJECTED:  # it was given back unseen
                return
            span, _ = self._spans.process(envelope, processing.began)
        span.set_attribute(names.OUTCOME, outcome.value)
        error_type = None
        if error is not None:
            error_type = type_of(error)
            record(span, error, texts=self.settings.exception_texts)
        elif outcome not in _GOOD:
            error_type = outcome.value
            span.set_attribute(names.ERROR_TYPE, error_type)
            span.set_status(Status(StatusCode.ERROR, error_type))
        span.end(ended)
        if self._instruments is not None:
            self._instruments.processed(envelope, (ended - processing.began) / 1e9, error_type)
