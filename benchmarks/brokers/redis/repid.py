"""repid-redis, through the whole framework: a `Job` on one side, a `Worker` on the other. Defaults."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.brokers import peer
from benchmarks.brokers.actors import ACTORS
from repid_core import Connection, Job, Router, Worker
from repid_redis import RedisBucketBroker, RedisMessageBroker


class Repid(peer.Peer):
    """At least once: acknowledged after the actor, and given to others when a worker's lease is over."""

    def connection(self) -> Connection:
        results = RedisBucketBroker(self.url) if self.results else None
        return Connection(RedisMessageBroker(self.url), results_bucket_broker=results)

    def job(self, actor: str, i: int, data: str) -> Job[Any]:
        return Job(actor, queue=self.queue, args={"i": i, "data": data}, connection=self.producer)

    async def open(self) -> None:
        self.producer = self.connection()
        await self.producer.connect()

    async def close(self) -> None:
        await self.producer.disconnect()

    async def enqueue(self, actor: str, i: int, data: str) -> Job[Any]:
        job = self.job(actor, i, data)
        await job.enqueue()
        return job

    async def enqueue_delayed(self, actor: str, i: int, data: str) -> None:
        due = datetime.now(UTC) + timedelta(hours=1)
        await Job(actor, queue=self.queue, args={"i": i, "data": data}, deferred_until=due, connection=self.producer).enqueue()

    async def enqueue_all(self, actor: str, jobs: Sequence[tuple[int, str]]) -> None:
        await self.producer.enqueue_many([self.job(actor, i, data) for i, data in jobs])

    async def result(self, handle: Job[Any]) -> int:
        value: int = await handle.wait(timeout=30)
        return value

    async def work(self, concurrency: int) -> None:
        router = Router()
        for name, actor in ACTORS.items():
            router.actor(name=name, queue=self.queue)(actor)
        async with self.connection() as connection:
            await Worker([router], tasks_limit=concurrency, connection=connection).run()
