"""One message in the hand of a consumer, and its settlement."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from repid_core.abc import Delivery
from repid_core.data import Death, Envelope, MessageCategory
from repid_rabbitmq import wire
from repid_rabbitmq.frames import Properties

if TYPE_CHECKING:
    from repid_rabbitmq.consumer import RabbitConsumer
    from repid_rabbitmq.session import Session


class RabbitDelivery(Delivery):
    """One message in the hand of a `RabbitConsumer`.

    `redelivered` is what the server says: it was given out before, and came back, whether its worker died or rejected it.
    If the connection is lost while its actor runs, and the message is given to this consumer again, it is the same delivery.
    A settlement that was begun is carried out, whoever is cancelled.

    Attributes:
        session: On which channel it is held.
        tag: Its number there.
        properties: What the message says of itself.
        body: Its payload.
        suspected: Whether it may have killed its worker, so that it is noted when it runs.
        counted: Whether there may be such notes.
    """

    def __init__(
        self, consumer: RabbitConsumer, session: Session, tag: int, properties: Properties, body: bytes, *, redelivered: bool
    ) -> None:
        self._consumer, self.session, self.tag = consumer, session, tag
        self.properties, self.body = properties, body
        self.suspected = self.counted = False
        self._marked = False
        self._envelope: Envelope | None = None
        self._refusal: Exception | None = None
        if redelivered or wire.RETURNED in properties.headers:
            self.redelivered = True
        if (category := consumer.category) is not MessageCategory.NORMAL:
            self.category = category
            self.death = wire.death_of(properties)

    @property
    def envelope(self) -> Envelope:
        if self._envelope is None:
            self._envelope = wire.decode(self.properties, self.body, self._consumer.queue)
            self._consumer.broker.warn_of_timeout(self._envelope)
        return self._envelope

    def claim(self) -> None:
        super().claim()
        if self._refusal is not None:
            raise self._refusal

    def end(self, refusal: Exception) -> None:
        """It cannot be settled any more, but raises this."""
        self._refusal = refusal

    async def mark_started(self) -> None:
        if self._marked or not self.suspected:
            return
        self._marked = self.counted = True  # even if it is cut off here, there may be something to take back
        await self._consumer.count_death(self)

    async def ack(self) -> None:
        self.claim()
        if self.session.is_open and not self.counted:
            self._consumer.acknowledge(self)
        else:
            await self._carry_out(self._consumer.finish(self))

    async def nack(self, death: Death) -> None:
        self.claim()
        await self._carry_out(self._consumer.bury(self, death))

    async def reject(self) -> None:
        self.claim()
        await self._carry_out(self._consumer.give_back(self, uncount=self._marked))

    async def requeue(self, envelope: Envelope) -> None:
        try:
            old = self.envelope.key
        except Exception as error:
            raise ValueError("a message that cannot be read cannot be requeued: acknowledge it, and enqueue another") from error
        new = envelope.key
        if (old.id_, old.queue) != (new.id_, new.queue):
            raise ValueError(f"message {old.id_!r} of queue {old.queue!r} cannot be requeued as {new.id_!r} of {new.queue!r}")
        props, way = self._consumer.broker.prepared(envelope)
        self.claim()
        await self._carry_out(self._consumer.replace(self, way, *props))

    async def _carry_out(self, step: Coroutine[Any, Any, None]) -> None:
        await asyncio.shield(self._consumer.carry_out(step))
