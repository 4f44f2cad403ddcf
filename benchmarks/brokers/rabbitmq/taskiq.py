# mypy: disable-error-code="import-not-found"
"""taskiq-aio-pika, with orjson, its fastest serializer, and twice as many messages read ahead as run at once."""

from __future__ import annotations

from typing import Any

from taskiq.api import run_receiver_task
from taskiq.serializers import ORJSONSerializer
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType
from taskiq_redis import RedisAsyncResultBackend

from benchmarks.brokers import peer
from benchmarks.brokers.actors import ACTORS
from benchmarks.brokers.rabbitmq import results_url


class Taskiq(peer.Peer):
    """At least once: confirmed, acknowledged after the task. Classic queues."""

    def make(self, concurrency: int = 5) -> Any:
        broker = AioPikaBroker(
            self.url,
            qos=2 * concurrency,
            exchange=Exchange(name=self.queue),
            task_queues=[Queue(name=self.queue, type=QueueType.CLASSIC)],
            dead_letter_queue=Queue(name=f"{self.queue}.dead", type=QueueType.CLASSIC),
        ).with_serializer(ORJSONSerializer())
        if self.results:
            store = RedisAsyncResultBackend(results_url(), prefix_str=self.queue, result_ex_time=60)
            broker = broker.with_result_backend(store)
        self.tasks = {name: broker.register_task(actor, name) for name, actor in ACTORS.items()}
        return broker

    async def open(self) -> None:
        self.producer = self.make()
        await self.producer.startup()

    async def close(self) -> None:
        await self.producer.shutdown()

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        return await self.tasks[actor].kiq(i, data)

    async def result(self, handle: Any) -> int:
        value: int = (await handle.wait_result(check_interval=0.005, timeout=30)).return_value
        return value

    async def work(self, concurrency: int) -> None:
        broker = self.make(concurrency)
        broker.is_worker_process = True
        await run_receiver_task(broker, max_async_tasks=concurrency, max_prefetch=concurrency, run_startup=True)
