"""The metrics."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.metrics import Meter

from repid_core import Enqueued, Envelope
from repid_opentelemetry import conventions as names
from repid_opentelemetry.failures import type_of

Attributes = dict[str, str]


class Instruments:
    """Counts and times. Attributes are the queue, the actor, and types of errors, of which there are few.

    Args:
        meter: Makes the instruments.
        system: The value of `messaging.system`.
    """

    def __init__(self, meter: Meter, system: str) -> None:
        self._system = system
        self._sent = meter.create_counter(
            names.SENT, unit="{message}", description="Number of messages producer attempted to send to the broker."
        )
        self._consumed = meter.create_counter(
            names.CONSUMED, unit="{message}", description="Number of messages that were delivered to the application."
        )
        self._operations = meter.create_histogram(
            names.OPERATION_DURATION,
            unit="s",
            description="Duration of messaging operation initiated by a producer or consumer client.",
            explicit_bucket_boundaries_advisory=names.BOUNDARIES,
        )
        self._process = meter.create_histogram(
            names.PROCESS_DURATION,
            unit="s",
            description="Duration of processing operation.",
            explicit_bucket_boundaries_advisory=names.BOUNDARIES,
        )

    def sent(
        self, sent: Iterable[tuple[Envelope, Enqueued | BaseException]], seconds: float, error: BaseException | None
    ) -> None:
        """A call that sent these messages took so long, and failed as a whole with `error`."""
        counts: dict[tuple[str, str | None], int] = {}
        for envelope, outcome in sent:
            kind = type_of(outcome) if isinstance(outcome, BaseException) else None
            counts[envelope.key.queue, kind] = counts.get((envelope.key.queue, kind), 0) + 1
        for (queue, kind), count in counts.items():
            self._sent.add(count, self._attributes("enqueue", queue, kind))
        queues = {queue for queue, _ in counts}
        queue_of_all = queues.pop() if len(queues) == 1 else None
        attributes = self._attributes("enqueue", queue_of_all, None if error is None else type_of(error))
        self._operations.record(seconds, {**attributes, names.OPERATION_TYPE: "send"})

    def consumed(self, queue: str) -> None:
        """A message was received."""
        self._consumed.add(1, self._attributes("receive", queue, None))

    def processed(self, envelope: Envelope, seconds: float, error_type: str | None) -> None:
        """A message was processed, which took so long."""
        attributes = self._attributes("process", envelope.key.queue, error_type)
        attributes[names.ACTOR] = envelope.key.topic
        self._process.record(seconds, attributes)

    def _attributes(self, operation: str, queue: str | None, error_type: str | None) -> Attributes:
        attributes = {names.SYSTEM: self._system, names.OPERATION_NAME: operation}
        if queue is not None:
            attributes[names.DESTINATION] = queue
        if error_type is not None:
            attributes[names.ERROR_TYPE] = error_type
        return attributes
