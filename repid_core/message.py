"""A message in somebody's hand, and the one settlement that it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, NoReturn

from attrs import frozen

from repid_core.abc import Delivery
from repid_core.connection import Connection
from repid_core.data import Death, DeathReason, Envelope, MessageCategory, Parameters, RoutingKey
from repid_core.errors import ActorEnded, AlreadySettledError, UsageError
from repid_core.middleware import Middlewares
from repid_core.retry import RetryPolicy
from repid_core.router import DEFAULT_RETRY_POLICY
from repid_core.schedule import next_due, rescheduled


@frozen
class Settlement:
    """What becomes of a delivery.

    Attributes:
        kind: Which of the four.
        envelope: What a requeue puts in its place.
        death: What a nack says.
    """

    kind: Literal["ack", "nack", "reject", "requeue"]
    envelope: Envelope | None = None
    death: Death | None = None


ACK, REJECT = Settlement("ack"), Settlement("reject")


async def settle(delivery: Delivery, settlement: Settlement, middleware: Middlewares) -> None:
    """Settle a delivery, telling the middlewares before and after."""
    kind = settlement.kind
    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    if kind == "ack":
        if middleware.before_ack is None and middleware.after_ack is None:
            await delivery.ack()
            return
        call = delivery.ack
    elif kind == "reject":
        call = delivery.reject
    elif kind == "nack":
        call, args = delivery.nack, (settlement.death,)
    else:
        call, args = delivery.requeue, (settlement.envelope,)
    facts = {"settlement": settlement, "envelope": envelope_of(delivery)}
    await middleware.watch(kind, facts, call, *args)


def envelope_of(delivery: Delivery) -> Envelope | None:
    """The delivery's message, or None if it cannot be decoded."""
    try:
        return delivery.envelope
    except Exception:  # noqa: BLE001 — whoever settles it knows already
        return None


class Held:
    """What a message says of itself, and what each way to settle it means."""

    def __init__(self, delivery: Delivery, connection: Connection, retry_policy: RetryPolicy) -> None:
        self._delivery, self._connection, self._retry_policy = delivery, connection, retry_policy

    @property
    def key(self) -> RoutingKey:
        """Id, topic, queue and priority."""
        return self._delivery.envelope.key

    @property
    def parameters(self) -> Parameters:
        """How it is to be run."""
        return self._delivery.envelope.parameters

    @property
    def raw_payload(self) -> bytes:
        """The serialized arguments; empty if there are none, or if they are in a bucket."""
        return self._delivery.envelope.payload

    @property
    def headers(self) -> Mapping[str, str]:
        """Text by name, as the producer and its middlewares set it."""
        return self._delivery.envelope.headers

    @property
    def category(self) -> MessageCategory:
        """Where it came from."""
        return self._delivery.category

    @property
    def death(self) -> Death | None:
        """How it died, if it came from DEAD."""
        return self._delivery.death

    def _nack(self, error: str | None) -> Settlement:
        envelope = envelope_of(self._delivery)
        attempts = 0 if envelope is None else envelope.parameters.tried + 1
        return Settlement("nack", death=Death(DeathReason.NACKED, self._connection.clock.now(), attempts, error))

    def _retry(self, next_retry: timedelta | None, *, counted: bool) -> Settlement:
        envelope = self._delivery.envelope
        tried = envelope.parameters.tried + counted
        if self._delivery.category is not MessageCategory.NORMAL:
            raise UsageError(f"a {self._delivery.category.value} message is not running: reschedule() it instead")
        if tried > envelope.parameters.retries and counted:
            raise UsageError(f"message {envelope.key.id_!r} has no retries left: use force_retry(), or nack()")
        if next_retry is None:
            next_retry = self._retry_policy(max(tried, 1), UsageError("a retry was asked for")) or timedelta(0)
        if not isinstance(next_retry, timedelta) or next_retry < timedelta(0):
            raise UsageError(f"next_retry={next_retry!r}: give a timedelta that is not negative")
        now = self._connection.clock.now()
        again = rescheduled(envelope, now + next_retry, now, tried=tried)
        self._connection.check_envelope(again)
        return Settlement("requeue", again)

    def _reschedule(self) -> Settlement:
        envelope, now = self._delivery.envelope, self._connection.clock.now()
        recurrence = envelope.parameters.recurrence
        due = None
        if recurrence is not None:
            late = self._delivery.category is not MessageCategory.NORMAL or envelope.due is None
            due = next_due(recurrence, now if late or envelope.due is None else max(now, envelope.due))
        return Settlement("requeue", rescheduled(envelope, due, now))


class Message(Held):
    """A message from `Queue.get_messages`. Settle it once; those that are not settled go back when the iteration ends."""

    def __init__(self, delivery: Delivery, connection: Connection) -> None:
        super().__init__(delivery, connection, DEFAULT_RETRY_POLICY)

    async def ack(self) -> None:
        """It is done: remove it, and the arguments that belong to it."""
        await self._settle(ACK)
        if (envelope := envelope_of(self._delivery)) is not None:
            await self._connection.payloads.drop_args(envelope)

    async def nack(self, error: str | None = None) -> None:
        """Move it to DEAD, reason `nacked`, with a text."""
        await self._settle(self._nack(error))

    async def reject(self) -> None:
        """Put it back where it came from."""
        await self._settle(REJECT)

    async def retry(self, next_retry: timedelta | None = None) -> None:
        """Count a failed attempt, and let it come again after `next_retry`; by default as the default policy says.

        Raises:
            UsageError: It has no retries left, or it is dead or delayed.
        """
        await self._settle(self._retry(next_retry, counted=True))

    async def force_retry(self, next_retry: timedelta | None = None) -> None:
        """Let it come again after `next_retry`, counting nothing."""
        await self._settle(self._retry(next_retry, counted=False))

    async def reschedule(self) -> None:
        """Start it anew: now, or at its next time if it is recurring, with no attempt counted. Redrives dead messages."""
        await self._settle(self._reschedule())

    async def _settle(self, settlement: Settlement) -> None:
        await settle(self._delivery, settlement, self._connection.middleware)


class MessageDependency(Held):
    """The running message, injected into an actor that has a parameter of this type.

    `ack`, `nack`, `reject`, `retry`, `force_retry` and `reschedule` end the actor there and then, by raising
    `ActorEnded`; the worker then stores the result, settles the message, and runs the callbacks. They work with and
    without `await`, so that synchronous actors in threads can use them too.
    """

    __repid_provided__ = True

    def __init__(self, delivery: Delivery, connection: Connection, retry_policy: RetryPolicy) -> None:
        super().__init__(delivery, connection, retry_policy)
        self.settlement: Settlement | None = None
        self.callbacks: list[Callable[[], Any]] = []
        self.result: tuple[Any] | None = None
        self.exception: Exception | None = None

    def set_result(self, result: Any) -> None:
        """The result to store in place of what the actor returns."""
        self.result, self.exception = (result,), None

    def set_exception(self, exception: Exception) -> None:
        """The failure to store in place of a result. By itself it does not make the attempt fail."""
        self.result, self.exception = None, exception

    def add_callback(self, callback: Callable[[], Any]) -> None:
        """Call this, sync or async, once the message is settled. Callbacks run in the order in which they were added."""
        self.callbacks.append(callback)

    def ack(self) -> NoReturn:
        """End here; it is done, for good if it is recurring."""
        self._end(ACK)

    def nack(self, error: str | None = None) -> NoReturn:
        """End here; to DEAD, reason `nacked`. A recurring job does not come again."""
        self._end(self._nack(error))

    def reject(self) -> NoReturn:
        """End here; back to the queue, as if it had not been run."""
        self._end(REJECT)

    def retry(self, next_retry: timedelta | None = None) -> NoReturn:
        """End here; a failed attempt. It comes again after `next_retry`, by default as the actor's policy says.

        Raises:
            UsageError: It has no retries left.
        """
        self._end(self._retry(next_retry, counted=True))

    def force_retry(self, next_retry: timedelta | None = None) -> NoReturn:
        """End here; it comes again after `next_retry`, and nothing is counted."""
        self._end(self._retry(next_retry, counted=False))

    def reschedule(self) -> NoReturn:
        """End here; it comes again from the start: now, or at its next time if it is recurring."""
        self._end(self._reschedule())

    def _end(self, settlement: Settlement) -> NoReturn:
        if self.settlement is not None:
            raise AlreadySettledError
        self.settlement = settlement
        raise ActorEnded
