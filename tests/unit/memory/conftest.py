"""An in-memory message broker on a clock that the tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from repid_core.abc import Consumer, Delivery
from repid_core.data import Envelope, MessageCategory, OnDuplicate, Parameters, Priority, RoutingKey
from repid_core.memory import InMemoryMessageBroker
from repid_core.testing.clock import ManualClock

START = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Post:
    """A broker with short ways to put in and take out."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock(START)
        self.broker = InMemoryMessageBroker(lease=timedelta(seconds=9), **settings)
        self.broker.clock = self.clock

    def envelope(
        self,
        id_: str,
        topic: str = "work",
        *,
        priority: Priority = Priority.MEDIUM,
        delay: float | None = None,
        on_duplicate: OnDuplicate = "raise",
        payload: bytes = b"",
    ) -> Envelope:
        due = None if delay is None else self.clock.now() + timedelta(seconds=delay)
        key = RoutingKey(id_, topic, "q", priority)
        return Envelope(key, Parameters(timestamp=START), payload, due=due, on_duplicate=on_duplicate)

    async def put(self, *ids: str, topic: str = "work", **options: Any) -> None:
        for id_ in ids:
            await self.broker.enqueue(self.envelope(id_, topic, **options))

    async def consumer(
        self,
        topics: Collection[str] | None = None,
        *,
        prefetch: int = 100,
        category: MessageCategory = MessageCategory.NORMAL,
    ) -> Consumer:
        consumer = self.broker.consumer("q", topics, prefetch=prefetch, category=category)
        await consumer.start()
        return consumer

    async def receiving(self, consumer: Consumer, limit: int = 100) -> asyncio.Task[Sequence[Delivery]]:
        """A `receive` that waits."""
        task = asyncio.ensure_future(consumer.receive(limit))
        await asyncio.sleep(0)
        assert not task.done()
        return task

    async def got(self, receiving: asyncio.Task[Sequence[Delivery]]) -> list[str]:
        """The ids that a waiting `receive` gets, which must be there in some turns of the loop."""
        await self.clock.settle()
        assert receiving.done()
        return self.ids(receiving.result())

    async def stats(self) -> tuple[int | None, int | None, int | None, int | None]:
        stats = await self.broker.queue_stats("q")
        return stats.ready, stats.in_progress, stats.delayed, stats.dead

    @staticmethod
    def ids(deliveries: Sequence[Delivery]) -> list[str]:
        return [delivery.envelope.key.id_ for delivery in deliveries]


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    """Connected; checks at the end that nothing is left running."""
    post = Post(max_payload=1000, max_deliveries=3)
    await post.broker.connect()
    yield post
    await post.broker.disconnect()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [timer for *_, timer in post.clock._timers if timer.callback is not None] == []
