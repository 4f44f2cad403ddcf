"""One message in hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from repid_core.abc import Delivery
from repid_core.codec import death_fields, death_from_fields, decode_envelope
from repid_core.data import Death, Envelope
from repid_core.errors import DeliveryLostError
from repid_sqlite import messages
from repid_sqlite.fetching import Taken
from repid_sqlite.messages import Settling
from repid_sqlite.transaction import Action

if TYPE_CHECKING:
    from repid_sqlite.consumer import SqliteConsumer


R = TypeVar("R")


class SqliteDelivery(Delivery):
    """A message that a consumer holds. Settlements return once they are in the file."""

    def __init__(self, consumer: SqliteConsumer, taken: Taken) -> None:
        self.category = consumer.category
        self.redelivered = taken.redelivered
        self.death = None if taken.death is None else death_from_fields(json.loads(taken.death))
        self.number = taken.number
        self._consumer, self._frame = consumer, taken.frame
        self._holder = consumer.holder
        self._envelope: Envelope | None = None
        self._when_lost: list[Callable[[], None]] = []
        self._lost = False

    @property
    def envelope(self) -> Envelope:
        if self._envelope is None:
            self._envelope = decode_envelope(self._frame)
        return self._envelope

    async def ack(self) -> None:
        await self._settle(messages.ACK, self._settling())

    async def nack(self, death: Death) -> None:
        await self._settle(messages.NACK, self._settling(death=json.dumps(death_fields(death))))

    async def reject(self) -> None:
        await self._settle(messages.REJECT, self._settling())

    async def requeue(self, envelope: Envelope) -> None:
        error = await self._settle(messages.REQUEUE, self._settling(envelope=envelope))
        if error is not None:
            raise error

    async def mark_started(self) -> None:
        if self._lost:
            raise DeliveryLostError
        await self._consumer.database.call(messages.MARK, self._settling())

    def on_lost(self, callback: Callable[[], None]) -> None:
        self._when_lost.append(callback)

    def lose(self) -> None:
        """The lease was lost, or the consumer closed: there is nothing to settle any more."""
        self._lost = True
        callbacks, self._when_lost = self._when_lost, []
        for callback in callbacks:
            callback()

    def give_back(self) -> None:
        """The consumer closes, and gives it back with all others."""
        self._lost = True

    def _settling(self, death: str = "", envelope: Envelope | None = None) -> Settling:
        row = None if envelope is None else self._consumer.broker.row(envelope)
        return Settling(self.number, self._holder, self._consumer.name, death, row)

    async def _settle(self, action: Action[Settling, R], settling: Settling) -> R:
        self.claim()
        if self._lost:
            raise DeliveryLostError
        future = self._consumer.database.call(action, settling, insist=True)
        future.add_done_callback(lambda _: self._consumer.settled(self))
        return await future
