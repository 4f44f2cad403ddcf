# mypy: disable-error-code="import-not-found"
"""taskiq on a list and on a stream, with orjson, its fastest serializer. Results are kept for the round trip alone."""

from __future__ import annotations

from typing import Any

from taskiq.api import run_receiver_task
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.brokers import peer
from benchmarks.brokers.actors import ACTORS


class TaskiqList(peer.Peer):
    """At most once: a crash loses what the worker had popped."""

    def broker(self) -> Any:
        return ListQueueBroker(self.url, queue_name=self.queue)

    def make(self) -> Any:
        broker = self.broker().with_serializer(ORJSONSerializer())
        if self.results:
            broker = broker.with_result_backend(RedisAsyncResultBackend(self.url, prefix_str=self.queue, result_ex_time=60))
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
        await run_receiver_task(self.make(), max_async_tasks=concurrency, max_prefetch=concurrency, run_startup=True)


class TaskiqStream(TaskiqList):
    """At least once: acknowledged after the task, claimed by others after ten minutes. The stream is never trimmed."""

    def broker(self) -> Any:
        return RedisStreamBroker(self.url, queue_name=self.queue, consumer_group_name=self.queue)
