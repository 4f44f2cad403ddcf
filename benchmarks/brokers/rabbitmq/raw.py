# mypy: disable-error-code="import-not-found"
"""aio-pika and aiormq by hand: what the client libraries and the server allow. Results go to a queue of the producer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

import aio_pika
import aiormq

from benchmarks.brokers import peer
from benchmarks.brokers.actors import ACTORS

PERSISTENT: Final = 2


class AioPika(peer.Peer):
    """`publish` and `message.ack()`, one message at a time; a plain connection."""

    queue_type = "classic"

    async def open(self) -> None:
        self.connection = await aio_pika.connect(self.url)
        self.channel = await self.connection.channel(publisher_confirms=True)
        self.declared = await self.channel.declare_queue(self.queue, durable=True, arguments={"x-queue-type": self.queue_type})
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._answers: Any = None

    async def close(self) -> None:
        await self.connection.close()

    async def _listen(self) -> None:
        async def take(message: Any) -> None:
            i, value = json.loads(message.body)
            self._waiting.pop(i).set_result(value)

        self._answers = await self.channel.declare_queue(exclusive=True)
        await self._answers.consume(take, no_ack=True)

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        waiting = None
        if self.results:
            if self._answers is None:
                await self._listen()
            waiting = self._waiting[i] = asyncio.get_running_loop().create_future()
        body = json.dumps([actor, i, data]).encode()
        reply_to = self._answers.name if self.results else None
        message = aio_pika.Message(body, delivery_mode=PERSISTENT, reply_to=reply_to)
        await self.channel.default_exchange.publish(message, self.queue)
        return waiting

    async def enqueue_all(self, actor: str, jobs: Sequence[tuple[int, str]]) -> None:
        await asyncio.gather(*(self.enqueue(actor, i, data) for i, data in jobs))

    async def result(self, handle: asyncio.Future[int]) -> int:
        return await handle

    async def work(self, concurrency: int) -> None:
        await self.open()
        await self.channel.set_qos(prefetch_count=concurrency)
        answering = await self.connection.channel(publisher_confirms=False)

        async def take(message: Any) -> None:
            actor, i, data = json.loads(message.body)
            value = await ACTORS[actor](i, data)
            if message.reply_to:
                answer = aio_pika.Message(json.dumps([i, value]).encode())
                await answering.default_exchange.publish(answer, message.reply_to)
            await message.ack()

        await self.declared.consume(take)
        await asyncio.Event().wait()


class AioPikaQuorum(AioPika):
    """The same on a quorum queue."""

    queue_type = "quorum"


class Aiormq(peer.Peer):
    """A layer lower: `basic_publish`, and `basic_ack` that is not waited for."""

    async def open(self) -> None:
        self.connection = await aiormq.connect(self.url)
        self.channel = await self.connection.channel(publisher_confirms=True)
        await self.channel.queue_declare(self.queue, durable=True, arguments={"x-queue-type": "classic"})

    async def close(self) -> None:
        await self.connection.close()

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        properties = aiormq.spec.Basic.Properties(delivery_mode=PERSISTENT)
        await self.channel.basic_publish(json.dumps([actor, i, data]).encode(), routing_key=self.queue, properties=properties)

    async def enqueue_all(self, actor: str, jobs: Sequence[tuple[int, str]]) -> None:
        await asyncio.gather(*(self.enqueue(actor, i, data) for i, data in jobs))

    async def work(self, concurrency: int) -> None:
        await self.open()
        await self.channel.basic_qos(prefetch_count=concurrency)

        async def take(message: Any) -> None:
            actor, i, data = json.loads(message.body)
            await ACTORS[actor](i, data)
            await self.channel.basic_ack(message.delivery_tag, wait=False)

        await self.channel.basic_consume(self.queue, take)
        await asyncio.Event().wait()
