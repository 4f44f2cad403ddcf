"""Messages that have come back: one that has killed too many workers is poison (M13).

The server says that a message was given out before, and not whether its worker died, gave it back, or never began it. So deaths
are counted in a small queue of their own (`Topology.open_deaths`), and only those of messages that had come back when they began.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from repid_core.data import Death, DeathReason
from repid_core.errors import MessageBrokerError
from repid_rabbitmq import wire
from repid_rabbitmq.delivery import RabbitDelivery

if TYPE_CHECKING:
    from repid_rabbitmq.consumer import RabbitConsumer

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 16  # questions about the deaths of messages


class Judge:
    """Says which of a consumer's messages that have come back may run.

    Args:
        consumer: Whose messages they are.
        quorum: Whether they come from quorum queues.

    Attributes:
        awaited: What was published again, by its new message id, and has not come yet.
    """

    def __init__(self, consumer: RabbitConsumer, *, quorum: bool) -> None:
        self._consumer, self._quorum = consumer, quorum
        self._asking = asyncio.Semaphore(_AT_ONCE)
        self._unknown = ""  # why it was not known how many deaths a message has caused
        self.awaited: dict[str, RabbitDelivery] = {}

    async def see(self, lane: int, delivery: RabbitDelivery) -> None:
        """Hand it over once it is known that it may run."""
        if self._quorum or wire.RETURNED in delivery.properties.headers:
            await self._judge(lane, delivery)
        else:
            await self._send_back(lane, delivery)

    async def _send_back(self, lane: int, delivery: RabbitDelivery) -> None:
        """Have it come once more, with a note that it has come back.

        Classic queues say of every message that it was given out before, once the server has read them from its disk. So that
        alone is no suspicion, and costs no more than this. What comes back with the note, a worker did hold.
        """
        consumer = self._consumer
        if consumer.broker.is_blocked:
            consumer.push(lane, delivery)
            return
        message_id = consumer.broker.message_id()
        self.awaited[message_id] = delivery
        try:
            await consumer.broker.send_back(consumer.queue, delivery, message_id)
        except MessageBrokerError:
            if self.awaited.pop(message_id, None) is not None and delivery.session.is_open:
                consumer.push(lane, delivery)
        else:
            if (old := self.awaited.pop(message_id, None)) is not None:
                consumer.acknowledge(old)

    def has_come(self, message_id: str) -> None:
        """What was sent back may be here before its confirmation: the old one must be gone when it runs."""
        if (old := self.awaited.pop(message_id, None)) is not None:
            self._consumer.acknowledge(old)
            old.session.send()

    async def _judge(self, lane: int, delivery: RabbitDelivery) -> None:
        """Has it killed too many workers?"""
        consumer, broker = self._consumer, self._consumer.broker
        unnoted = 1 if self._quorum else 2  # the first death is not noted, and with classic queues the second neither
        most, deaths, id_ = broker.settings.max_deliveries or 0, 0, ""
        try:
            id_ = delivery.envelope.key.id_
            if delivery.properties.headers.get("x-delivery-count") != 1:  # else it comes back for the first time
                async with self._asking:
                    deaths = await broker.deaths(consumer.queue, id_)
            self._unknown = ""
        except Exception as error:  # noqa: BLE001 — in doubt it runs
            if self._unknown != str(error):
                self._unknown = str(error)
                logger.warning("the deaths that messages of %s have caused are not known: %s", consumer.queue, error)
        if not delivery.session.is_open:
            return
        delivery.suspected, delivery.counted = True, deaths > 0
        if deaths + unnoted < most:
            consumer.push(lane, delivery)
            return
        before = "once" if self._quorum else "twice"
        text = f"{deaths} workers have died while they ran it, after it had come back {before} before"
        logger.error("%s is poison: %s", delivery.envelope.key.topic, text, extra={"queue": consumer.queue, "job": id_})
        with suppress(MessageBrokerError):  # it comes again
            await consumer.bury(delivery, Death(DeathReason.POISON, broker.clock.now(), deaths + unnoted, text))
