# mypy: disable-error-code="import-not-found"
"""streaq. Results are kept for the round trip alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streaq import Worker

from benchmarks.brokers import peer
from benchmarks.brokers.actors import ACTORS


class Streaq(peer.Peer):
    """At least once: acknowledged after the task, claimed by others when idle."""

    def make(self, concurrency: int = 16) -> Any:
        # Who waits for a result holds a connection, and its pool of 64 locks up with 100 results that are waited for.
        pool = {"max_connections": 2 * peer.IN_FLIGHT + 50} if self.results else None
        worker = Worker(redis_url=self.url, queue_name=self.queue, concurrency=concurrency, redis_kwargs=pool)
        ttl = 60 if self.results else 0
        self.tasks = {name: worker.task(actor, ttl=ttl, silent=True) for name, actor in ACTORS.items()}
        return worker

    async def open(self) -> None:
        self.producer = self.make()
        await self.producer.__aenter__()

    async def close(self) -> None:
        await self.producer.__aexit__(None, None, None)

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        return await self.tasks[actor].enqueue(i, data)

    async def enqueue_all(self, actor: str, jobs: Sequence[tuple[int, str]]) -> None:
        task = self.tasks[actor]
        await self.producer.enqueue_many([task.enqueue(i, data) for i, data in jobs])

    async def result(self, handle: Any) -> int:
        value: int = (await handle.result(30)).result
        return value

    async def work(self, concurrency: int) -> None:
        await self.make(concurrency).run_async()
