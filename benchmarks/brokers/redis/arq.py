# mypy: disable-error-code="import-not-found"
"""arq. It asks for jobs every 10 ms, not every 500 ms as by default. Results are kept for the round trip alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from arq import create_pool, func
from arq.connections import RedisSettings
from arq.worker import Worker

from benchmarks.brokers import peer
from benchmarks.brokers.actors import ACTORS


def _with_context(actor: Callable[[int, str], Awaitable[int]]) -> Callable[..., Awaitable[int]]:
    async def task(_context: Any, i: int, data: str) -> int:
        return await actor(i, data)

    return task


class Arq(peer.Peer):
    """At least once: a job stays in the queue until it is done."""

    async def open(self) -> None:
        self.pool = await create_pool(RedisSettings.from_dsn(self.url), default_queue_name=self.queue)

    async def close(self) -> None:
        await self.pool.aclose()

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        return await self.pool.enqueue_job(actor, i, data)

    async def result(self, handle: Any) -> int:
        value: int = await handle.result(timeout=30, poll_delay=0.005)
        return value

    async def work(self, concurrency: int) -> None:
        keep = 60 if self.results else 0
        worker = Worker(
            [func(_with_context(actor), name=name, keep_result=keep) for name, actor in ACTORS.items()],
            queue_name=self.queue,
            redis_settings=RedisSettings.from_dsn(self.url),
            max_jobs=concurrency,
            poll_delay=0.01,
            queue_read_limit=max(5 * concurrency, 100),
            keep_result=keep,
            log_results=False,
        )
        await worker.async_run()
