"""Consumers and deliveries of the in-memory message broker."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from repid_core.abc import Consumer, Delivery
from repid_core.data import Death, Envelope, MessageCategory
from repid_core.errors import AlreadySettledError, DeliveryLostError, NotConnectedError
from repid_core.memory.queue import MemoryQueue
from repid_core.memory.shelf import Entry, Lease


class InMemoryDelivery(Delivery):
    """One message in the hand of an `InMemoryConsumer`.

    `redelivered` is True after a worker died that held the message, until it is settled for good or requeued; rejecting
    a message does not make it so.
    """

    def __init__(self, queue: MemoryQueue, lease: Lease, entry: Entry) -> None:
        self._queue, self._lease, self._entry = queue, lease, entry
        if entry.deaths:
            self.redelivered = True
        if lease.category is not MessageCategory.NORMAL:
            self.category, self.death = lease.category, entry.death

    @property
    def envelope(self) -> Envelope:
        return self._entry.envelope

    async def ack(self) -> None:
        if self._release():
            self._queue.finish(self._entry)

    async def nack(self, death: Death) -> None:
        if self._release():
            self._queue.bury(self._entry, death)

    async def reject(self) -> None:
        if self._release():
            self._queue.give_back(self._entry)

    async def requeue(self, envelope: Envelope) -> None:
        if self._entry in self._lease.held:
            self._queue.check_requeue(self._entry, envelope)
        if self._release():
            self._queue.requeue(self._entry, envelope)

    def _release(self) -> bool:
        """Take it out of the hand for the first settlement; False if its queue was deleted."""
        self.claim()
        if self._queue.release(self._lease, self._entry):
            return True
        if self._lease.lost:
            raise DeliveryLostError
        if not self._lease.open:
            raise AlreadySettledError  # by close()
        return False

    async def mark_started(self) -> None:
        if self._entry in self._lease.held:
            self._entry.started = True

    def on_lost(self, callback: Callable[[], None]) -> None:
        held, entry = self._lease.held, self._entry
        if entry in held:
            held[entry] = (*held[entry], callback)


class InMemoryConsumer(Consumer):
    """Gets messages from an `InMemoryMessageBroker`, with no read-ahead: all that it holds is what `receive` gave out.

    It lives until it is closed, or until nothing refers to it any more. In the latter case what it holds is given to
    others when the lease has run out, so keep it for as long as you keep its deliveries.
    """

    def __init__(
        self,
        open_queue: Callable[[], MemoryQueue],
        topics: Collection[str] | None,
        prefetch: int,
        category: MessageCategory,
    ) -> None:
        self._open_queue, self._prefetch, self._category = open_queue, prefetch, category
        self._topics = None if topics is None else frozenset(topics)
        self._queue: MemoryQueue | None = None
        self._lease: Lease | None = None

    async def start(self) -> None:
        if self._lease is not None and self._lease.open:
            return
        self._queue = queue = self._open_queue()
        self._lease = lease = Lease(self._category, self._topics, self._prefetch)
        queue.leases.add(lease)
        loop = asyncio.get_running_loop()

        def collected(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed; whoever collects garbage may be another thread
                loop.call_soon_threadsafe(queue.abandon, lease)

        lease.watch = weakref.ref(self, collected)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        if limit < 1:
            raise ValueError(f"receive({limit!r}): ask for at least one message")
        while True:
            queue, lease = self._queue, self._lease
            if queue is None or lease is None or not lease.open:
                raise NotConnectedError("the consumer is not open: start() it first, and do not receive once it is closed")
            shelf = queue.shelf(lease.category)
            room = min(limit, lease.prefetch - len(lease.held))
            entries = queue.take(lease, room) if room > 0 else ()
            shelf.wake_another()  # what is left, be it what woke this one, may be for another
            if entries:
                return [InMemoryDelivery(queue, lease, entry) for entry in entries]
            waiter = asyncio.get_running_loop().create_future()
            shelf.waiters[waiter] = lease
            try:
                await waiter
            except asyncio.CancelledError:
                if shelf.waiters.pop(waiter, None) is None:  # it was woken
                    shelf.wake_another()
                raise

    async def close(self) -> None:
        if self._queue is not None and self._lease is not None and self._lease.open:
            self._queue.close(self._lease)

    def kill(self) -> None:
        """See `InMemoryMessageBroker.kill`."""
        if self._queue is not None and self._lease is not None:
            self._queue.abandon(self._lease)
