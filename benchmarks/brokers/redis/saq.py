# mypy: disable-error-code="import-not-found"
"""saq. Results are kept for the round trip alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis as Client
from saq import Worker
from saq.queue.redis import RedisQueue

from benchmarks.brokers import peer
from benchmarks.brokers.actors import ACTORS


def _with_context(actor: Callable[[int, str], Awaitable[int]]) -> Callable[..., Awaitable[int]]:
    async def task(_context: Any, *, i: int, data: str) -> int:
        return await actor(i, data)

    return task


class Saq(peer.Peer):
    """With `retries` over 1 at least once; by default, used here, a job whose worker died is aborted."""

    def make(self) -> Any:
        return RedisQueue(Client.from_url(self.url), name=self.queue, max_concurrent_ops=peer.IN_FLIGHT)

    async def open(self) -> None:
        self.producer = self.make()
        await self.producer.connect()

    async def close(self) -> None:
        await self.producer.disconnect()

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        return await self.producer.enqueue(actor, i=i, data=data, ttl=60 if self.results else -1, timeout=60)

    async def result(self, handle: Any) -> int:
        while not handle.completed:
            with suppress(TimeoutError):  # a job that ends just before it listens is never told of
                await handle.refresh(until_complete=1)
        value: int = handle.result
        return value

    async def work(self, concurrency: int) -> None:
        tasks = [(name, _with_context(actor)) for name, actor in ACTORS.items()]
        await Worker(self.make(), tasks, concurrency=concurrency).start()
