# mypy: disable-error-code="import-not-found"
"""FastStream: no task queue, but handlers of messages; the result of a request comes back over RabbitMQ."""

from __future__ import annotations

import asyncio
from typing import Any

from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from benchmarks.brokers import peer
from benchmarks.brokers.actors import ACTORS


class FastStream(peer.Peer):
    """At least once: confirmed, acknowledged after the handler. A classic queue for each handler."""

    def place(self, actor: str) -> Any:
        return RabbitQueue(f"{self.queue}.{actor}", durable=True)

    async def open(self) -> None:
        self.broker = RabbitBroker(self.url, logger=None)
        await self.broker.start()
        self.places = {name: self.place(name) for name in ACTORS}
        for place in self.places.values():
            await self.broker.declare_queue(place)

    async def close(self) -> None:
        await self.broker.stop()

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        message, place = {"i": i, "data": data}, self.places[actor]
        if self.results:
            return asyncio.ensure_future(self.broker.request(message, place, persist=True, timeout=30))
        await self.broker.publish(message, place, persist=True)
        return None

    async def result(self, handle: Any) -> int:
        value: int = await (await handle).decode()
        return value

    async def work(self, concurrency: int) -> None:
        broker = RabbitBroker(self.url, logger=None)
        channel = Channel(prefetch_count=concurrency)
        for name, actor in ACTORS.items():
            broker.subscriber(self.place(name), channel=channel)(actor)
        await broker.start()
        await asyncio.Event().wait()
