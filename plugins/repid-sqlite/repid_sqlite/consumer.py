"""A consumer: it says what it wants, and the thread brings it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from repid_core.abc import Consumer, Delivery
from repid_core.data import MessageCategory
from repid_core.errors import MessageBrokerError, NotConnectedError
from repid_sqlite.delivery import SqliteDelivery
from repid_sqlite.fetching import Taken, Want

if TYPE_CHECKING:
    from repid_sqlite.database import Database
    from repid_sqlite.message_broker import SqliteMessageBroker


class SqliteConsumer(Consumer):
    """Gets the messages of one queue in one category. It takes from the file what `receive` asks for, and nothing ahead."""

    def __init__(
        self,
        broker: SqliteMessageBroker,
        queue: str,
        topics: Collection[str] | None,
        prefetch: int,
        category: MessageCategory,
    ) -> None:
        self.broker, self.category = broker, category
        self.name = broker.name_of(queue)
        self.holder = 0
        self._topics = None if topics is None else tuple(topics)
        self._prefetch = prefetch
        self._held: dict[int, SqliteDelivery] = {}
        self._arrived: deque[SqliteDelivery] = deque()
        self._news = asyncio.Event()
        self._started = self._closed = False

    @property
    def database(self) -> Database:
        """The session that this consumer belongs to."""
        return self.broker.database

    @property
    def healthy(self) -> bool:  # type: ignore[override]
        return not self._started or (not self._closed and self.database.healthy)

    async def start(self) -> None:
        if self._started or self._closed:
            raise NotConnectedError("a consumer is started once: ask the broker for another")
        self._started = True
        await self.broker.attach(self)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self._arrived:
            if self._closed or not self._started:
                raise NotConnectedError("the consumer is not open: start() it first, and do not receive once it is closed")
            self._ask(limit)
            self._news.clear()
            await self._news.wait()
        return [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._news.set()
        if not self._started:
            return
        for delivery in self._held.values():
            delivery.give_back()
        self._held.clear()
        self._arrived.clear()
        with suppress(MessageBrokerError):  # the file cannot be used now, or the session is over: either way it comes again
            await asyncio.shield(self.broker.detach(self))

    def _ask(self, limit: int) -> None:
        """Want what there is room for, unless something is wanted already."""
        room = min(limit, self._prefetch - len(self._held))
        if room > 0 and self.holder:
            self.broker.want(self, Want(self.holder, self.name, self._topics, self.category, room))

    def arrive(self, holder: int, taken: Sequence[Taken]) -> None:
        """Take what the thread has brought."""
        if self._closed or holder != self.holder:
            return  # it was given back, or was lost
        for one in taken:
            delivery = self._held[one.number] = SqliteDelivery(self, one)
            self._arrived.append(delivery)
        self._news.set()

    def settled(self, delivery: SqliteDelivery) -> None:
        """There is room for another."""
        if self._held.get(delivery.number) is delivery:
            del self._held[delivery.number]
            self._news.set()

    def lose(self) -> None:
        """The session is lost, and what was held with it."""
        held = list(self._held.values())
        self._held.clear()
        self._arrived.clear()
        self.holder = 0
        for delivery in held:
            delivery.lose()

    def resume_as(self, holder: int) -> None:
        """Go on in this session."""
        self.holder = holder
        self._news.set()
