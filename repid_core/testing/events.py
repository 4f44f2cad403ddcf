"""What happened to jobs, in order, as middlewares are told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, overload

from attrs import field, frozen

from repid_core.connection import Connection
from repid_core.data import DeathReason, Enqueued, Envelope
from repid_core.errors import ActorEnded
from repid_core.message import Settlement
from repid_core.testing.jobs import EnqueuedJob, read_args

EventKind = Literal["enqueued", "started", "succeeded", "failed", "retried", "rescheduled", "rejected", "dead"]


@frozen
class Event:
    """One thing that happened to a job.

    Attributes:
        kind: `enqueued`, `started`, `succeeded`; `failed`, one attempt; `retried`, which a failed attempt, or one that asked
            for it, is; `rescheduled`, to the next time of a recurring job, or because the actor said so; `rejected`, given
            back; `dead`.
        actor: The job's name.
        at: When, on the clock of the test.
        queue: The queue's name.
        id_: The job's id.
        attempt: Which attempt, from 1; 0 for `enqueued`.
        due: When it comes again, or first; None at once.
        error: Of `failed`, what the actor raised, with its traceback.
        reason: Of `dead`, why.
    """

    kind: EventKind
    actor: str
    at: datetime
    queue: str = "default"
    id_: str = field(default="", repr=False)
    attempt: int = 0
    due: datetime | None = None
    error: BaseException | None = field(default=None, eq=False)
    reason: DeathReason | None = None

    def __str__(self) -> str:
        parts = [f"{self.at:%Y-%m-%d %H:%M:%S} {self.kind:<11} {self.actor}"]
        if self.attempt > 1:
            parts.append(f"attempt {self.attempt}")
        if self.due is not None and self.due > self.at:
            parts.append(f"due in {self.due - self.at}")
        if self.error is not None:
            parts.append(repr(self.error))
        if self.reason is not None:
            parts.append(f"({self.reason.value})")
        return " ".join(parts)


class EventLog(Sequence[Event]):
    """Events in order. `print` shows one a line."""

    def __init__(self, events: Sequence[Event] = ()) -> None:
        self._events = list(events)

    def of(self, *kinds: EventKind, actor: str | None = None) -> EventLog:
        """Those of these kinds, or of all; of one actor's jobs, or of all."""
        return EventLog(
            [event for event in self if (not kinds or event.kind in kinds) and (actor is None or event.actor == actor)]
        )

    def kinds(self, actor: str | None = None) -> list[EventKind]:
        """The kinds alone, to compare with a list: `events.kinds("greet") == ["enqueued", "started", "succeeded"]`."""
        return [event.kind for event in self.of(actor=actor)]

    @property
    def errors(self) -> list[BaseException]:
        """What failed attempts raised."""
        return [event.error for event in self if event.error is not None]

    def clear(self) -> None:
        """Forget what has happened so far."""
        self._events.clear()

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> EventLog: ...

    def __getitem__(self, index: int | slice) -> Event | EventLog:
        return EventLog(self._events[index]) if isinstance(index, slice) else self._events[index]

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __repr__(self) -> str:
        return f"EventLog({self._events!r})"


class Recorder:
    """The middleware that writes the log, whoever runs the jobs.

    Args:
        connection: Whose it is.
        lag: How far its clock is behind real time.

    Attributes:
        events: The log.
        jobs: All that was enqueued.
        errors: By message, how its running attempt failed; whoever runs it may put what it knows better.
        unread: Results that are stored and that nobody has read, by bucket, with the actor's name.
    """

    def __init__(self, connection: Connection, lag: Callable[[], timedelta]) -> None:
        self._connection, self._lag = connection, lag
        self.events = EventLog()
        self.jobs: list[EnqueuedJob] = []
        self.errors: dict[str, BaseException] = {}
        self.unread: dict[str, str] = {}
        self._returned: set[str] = set()
        self._results: dict[str, str] = {}

    async def after_enqueue(self, envelope: Envelope, outcome: Enqueued | None, error: BaseException | None) -> None:
        """A job was sent, unless another of its id was kept."""
        if error is not None or outcome is Enqueued.KEPT:
            return
        now = self._connection.clock.now()
        self.jobs.append(EnqueuedJob(envelope, await read_args(self._connection, envelope), now, self._lag()))
        self._log("enqueued", envelope, due=envelope.due)
        if envelope.parameters.result_id is not None:
            self._results[envelope.parameters.result_id] = envelope.key.topic

    async def around_actor_run(self, envelope: Envelope, call_next: Callable[[Envelope], Awaitable[Any]]) -> Any:
        """An attempt."""
        id_ = envelope.key.id_
        self._returned.discard(id_)
        self._log("started", envelope, envelope.parameters.tried + 1)
        try:
            value = await call_next(envelope)
        except ActorEnded:
            raise
        except BaseException as error:
            self.errors[id_] = error
            raise
        self._returned.add(id_)
        return value

    def after_ack(self, envelope: Envelope | None, error: BaseException | None) -> None:
        """It is done."""
        if envelope is not None and error is None:
            self._forget(envelope)
            self._log("succeeded", envelope, envelope.parameters.tried + 1)

    def after_requeue(self, envelope: Envelope | None, settlement: Settlement, error: BaseException | None) -> None:
        """It comes again: a retry, or the next time of a recurring job."""
        if envelope is None or settlement.envelope is None or error is not None:
            return
        attempt, again = envelope.parameters.tried + 1, settlement.envelope
        returned, failure = self._forget(envelope)
        if failure is not None:
            self._log("failed", envelope, attempt, error=failure)
        elif returned:
            self._log("succeeded", envelope, attempt)
        kind: EventKind = "retried" if again.parameters.tried > envelope.parameters.tried else "rescheduled"
        self._log(kind, envelope, attempt, due=again.due)

    def after_nack(self, envelope: Envelope | None, settlement: Settlement, error: BaseException | None) -> None:
        """It is dead."""
        if envelope is None or settlement.death is None or error is not None:
            return
        attempt = envelope.parameters.tried + 1
        _, failure = self._forget(envelope)
        if failure is not None:
            self._log("failed", envelope, attempt, error=failure)
        self._log("dead", envelope, attempt, reason=settlement.death.reason)

    def after_reject(self, envelope: Envelope | None, error: BaseException | None) -> None:
        """It was given back."""
        if envelope is not None and error is None:
            self._forget(envelope)
            self._log("rejected", envelope, envelope.parameters.tried + 1)

    def after_store_bucket(self, bucket_id: str, error: BaseException | None) -> None:
        """A result, or arguments, which are no matter here."""
        if error is None and bucket_id in self._results:
            self.unread[bucket_id] = self._results[bucket_id]

    def after_get_bucket(self, bucket_id: str, outcome: bytes | None, error: BaseException | None) -> None:
        """Somebody read it."""
        if error is None and outcome is not None:
            self.unread.pop(bucket_id, None)

    def _forget(self, envelope: Envelope) -> tuple[bool, BaseException | None]:
        id_ = envelope.key.id_
        returned = id_ in self._returned
        self._returned.discard(id_)
        return returned, self.errors.pop(id_, None)

    def _log(
        self,
        kind: EventKind,
        envelope: Envelope,
        attempt: int = 0,
        *,
        due: datetime | None = None,
        error: BaseException | None = None,
        reason: DeathReason | None = None,
    ) -> None:
        key = envelope.key
        now = self._connection.clock.now()
        self.events._events.append(Event(kind, key.topic, now, key.queue, key.id_, attempt, due, error, reason))
