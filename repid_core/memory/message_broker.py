"""The in-memory message broker: every promise that can be kept inside one process, and the reference for what they mean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import timedelta
from functools import partial

from attrs import field, frozen, validators

from repid_core.abc import Consumer, MessageBroker
from repid_core.data import Browsed, Capability, Enqueued, Envelope, Limits, MessageCategory, QueueStats, Size
from repid_core.errors import EnqueueError, NotConnectedError, UsageError
from repid_core.memory.consumer import InMemoryConsumer
from repid_core.memory.queue import MemoryQueue


@frozen
class InMemoryMessageBrokerSettings:
    """Settings of the in-memory message broker.

    Attributes:
        lease: How long after a consumer's end without `close` others get what it held. Default: 15 s.
        max_deliveries: How many workers a message may kill before it goes to DEAD; at least 2, as the first death may be
            another message's fault. Default: 5.
        max_payload: The largest payload in bytes; larger ones raise `PayloadTooLargeError`. Default: None, for no limit.
    """

    lease: timedelta = field(default=timedelta(seconds=15), validator=validators.gt(timedelta(0)))
    max_deliveries: int = field(default=5, validator=[validators.instance_of(int), validators.ge(2)])
    max_payload: Size | None = field(default=None, validator=validators.optional([validators.instance_of(int), validators.ge(0)]))


class InMemoryMessageBroker(MessageBroker):
    """Carries messages inside one process and one event loop, with every capability; a restart of the process loses them.

    Messages are kept as the objects that they are, and outlive `disconnect`. Due times are kept to the microsecond.
    Expired messages are delivered: core moves them to DEAD.

    Args:
        lease: See `InMemoryMessageBrokerSettings`, for all three.
        max_deliveries: How many workers a message may kill.
        max_payload: The largest payload in bytes.

    Raises:
        ValueError: An argument is out of its range.
    """

    capabilities = frozenset(Capability)

    def __init__(
        self,
        *,
        lease: timedelta = timedelta(seconds=15),
        max_deliveries: int = 5,
        max_payload: int | None = None,
    ) -> None:
        settings = InMemoryMessageBrokerSettings(lease, max_deliveries, max_payload)
        self.limits = Limits(
            delay_step=timedelta(microseconds=1),
            lease=settings.lease,
            max_delay=timedelta(days=36525),
            max_payload=settings.max_payload,
            max_deliveries=settings.max_deliveries,
        )
        self._queues: dict[str, MemoryQueue] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_settings(cls, settings: InMemoryMessageBrokerSettings) -> InMemoryMessageBroker:
        """Make one as configured."""
        return cls(lease=settings.lease, max_deliveries=settings.max_deliveries, max_payload=settings.max_payload)

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._close()  # what a loop that was closed without `disconnect` has left behind
            self._loop = loop
            for queue in self._queues.values():
                queue.wind(self.clock)

    async def disconnect(self) -> None:
        self._close()

    def _close(self) -> None:
        self._loop = None
        for queue in list(self._queues.values()):
            for lease in list(queue.leases):
                if lease.open:
                    queue.close(lease)
                else:
                    queue.reap(lease)
            queue.stop()

    def _queue(self, name: str) -> MemoryQueue:
        if self._loop is None:
            raise NotConnectedError
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = MemoryQueue(self.clock, self.limits, partial(self._queues.pop, name, None))
        return queue

    async def enqueue(self, envelope: Envelope) -> Enqueued:
        return self._queue(envelope.key.queue).put(envelope)

    async def enqueue_many(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        outcomes: list[Enqueued | EnqueueError] = []
        for envelope in envelopes:
            try:
                outcomes.append(self._queue(envelope.key.queue).put(envelope))
            except EnqueueError as error:
                outcomes.append(error)
        return outcomes

    def consumer(
        self,
        queue: str,
        topics: Collection[str] | None,
        *,
        prefetch: int,
        category: MessageCategory = MessageCategory.NORMAL,
    ) -> Consumer:
        if prefetch < 1:
            raise ValueError(f"prefetch={prefetch!r}: a consumer holds at least one message")
        return InMemoryConsumer(partial(self._queue, queue), topics, prefetch, category)

    def kill(self, consumer: Consumer) -> None:
        """End a consumer of this broker as `kill -9` of its process would: nothing is given back before its lease ends."""
        if not isinstance(consumer, InMemoryConsumer):
            raise UsageError(f"{consumer!r} is no consumer of {type(self).__name__}")
        consumer.kill()

    async def declare_queue(self, queue: str, topics: Collection[str] = ()) -> None:
        self._queue(queue)

    async def flush_queue(self, queue: str) -> None:
        self._queue(queue).flush()

    async def delete_queue(self, queue: str) -> None:
        self._queue(queue).delete()

    async def queue_stats(self, queue: str) -> QueueStats:
        return self._queue(queue).stats()

    async def queue_names(self) -> Sequence[str]:
        return list(self._queues)

    async def cancel(self, queue: str, id_: str) -> bool:
        return self._queue(queue).cancel(id_)

    def browse(
        self,
        queue: str,
        category: MessageCategory,
        *,
        after: str | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Browsed]:
        try:
            place = tuple(map(int, after.split("."))) if after is not None else ()
        except ValueError as error:
            raise ValueError(f"after={after!r} is no cursor: pass the `cursor` of a message that browse gave") from error
        return self._browse(self._queue(queue), category, place, limit)

    async def _browse(
        self, queue: MemoryQueue, category: MessageCategory, place: tuple[int, ...], limit: int
    ) -> AsyncIterator[Browsed]:
        for found, entry in queue.browse(category, place, limit):
            yield Browsed(".".join(map(str, found)), entry.envelope, entry.death)
