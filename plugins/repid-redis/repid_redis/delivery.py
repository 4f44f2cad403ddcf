"""One message in the hand of a consumer, and its settlement."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from repid_core.abc import Delivery
from repid_core.data import Death, Envelope, MessageCategory
from repid_core.errors import DeliveryLostError, DuplicateJobError
from repid_redis.records import decode, decode_dead, encode, encode_death, place_of, stamp_of
from repid_redis.scripts import ACK, MARK, NACK, REJECT, REQUEUE

if TYPE_CHECKING:
    from repid_redis.consumer import RedisConsumer
    from repid_redis.heartbeat import Session


class RedisDelivery(Delivery):
    """One message in the hand of a `RedisConsumer`.

    `redelivered` is True after a worker died that held the message, until it is settled for good or requeued; rejecting it
    does not make it so. A settlement that was begun is carried out, whoever is cancelled; it waits for a server that is away.

    Attributes:
        session: Under whose lease it is held.
        number: Its place among those that the consumer got.
        handle: By what the scripts know it.
    """

    def __init__(
        self,
        consumer: RedisConsumer,
        session: Session,
        number: int,
        handle: bytes,
        stored: bytes,
        *,
        redelivered: bool,
    ) -> None:
        self._consumer, self.session, self.number, self.handle = consumer, session, number, handle
        self._record = stored
        self._id = ""
        self._envelope: Envelope | None = None
        self._refusal: Exception | None = None
        self._callbacks: list[Callable[[], None]] = []
        if redelivered:
            self.redelivered = True
        if (category := consumer.category) is not MessageCategory.NORMAL:
            self.category = category
            if category is MessageCategory.DEAD:
                self._id, self._record, self.death = decode_dead(stored)

    @property
    def envelope(self) -> Envelope:
        if self._envelope is None:
            self._envelope = decode(self._record, self._id or self.handle.decode(), self._consumer.queue)
        return self._envelope

    def claim(self) -> None:
        if self._refusal is not None:
            super().claim()
            raise self._refusal
        super().claim()

    def end(self, refusal: Exception) -> None:
        """It cannot be settled any more, but raises this."""
        self._refusal = refusal

    def lose(self) -> None:
        """Its lease is lost."""
        self.end(DeliveryLostError())
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_lost(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    async def mark_started(self) -> None:
        if not await self._consumer.broker.step(MARK, self._consumer.base, self.session.name, self.handle):
            raise DeliveryLostError

    async def ack(self) -> None:
        self.claim()
        await self._consumer.settlements.settle_with_others(ACK, self)

    async def nack(self, death: Death) -> None:
        self.claim()
        settings = self._consumer.broker.settings
        age = settings.dead_max_age.total_seconds() * 1000 if settings.dead_max_age else 0
        await self._consumer.settlements.settle(self, NACK, encode_death(death), settings.dead_max_count or 0, int(age))

    async def reject(self) -> None:
        self.claim()
        await self._consumer.settlements.settle_with_others(REJECT, self)

    async def requeue(self, envelope: Envelope) -> None:
        old, new = self.envelope.key, envelope.key
        if (old.id_, old.queue) != (new.id_, new.queue):
            raise ValueError(f"message {old.id_!r} of queue {old.queue!r} cannot be requeued as {new.id_!r} of {new.queue!r}")
        broker = self._consumer.broker
        record = broker.checked(encode(envelope, stamp_of(self._record)), envelope)
        self.claim()
        state = await self._consumer.settlements.settle(self, REQUEUE, new.id_, place_of(new), broker.due(envelope), record)
        if isinstance(state, bytes | str):
            self._claimed = False  # it is still in the hand
            self._consumer.take_back(self)
            raise DuplicateJobError(new.id_, state if isinstance(state, str) else state.decode())
