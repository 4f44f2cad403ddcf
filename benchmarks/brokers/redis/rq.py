# mypy: disable-error-code="import-not-found"
"""rq, with its worker that does not fork for each job. It is synchronous, so there are no producers on one loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from redis import Redis as Client
from rq import Queue, SimpleWorker

from benchmarks.brokers import actors, peer


class Rq(peer.Peer):
    """Jobs whose worker died are not run again, but noted as failed."""

    concurrency = 1
    many_producers = False

    def connect(self) -> Any:
        return Queue(self.queue, connection=Client.from_url(self.url))

    async def open(self) -> None:
        self.producer = self.connect()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(100))

    async def close(self) -> None:
        self.producer.connection.close()

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        return self.producer.enqueue(f"{actors.__name__}.{actor}_sync", i, data, result_ttl=60 if self.results else 0)

    async def enqueue_all(self, actor: str, jobs: Sequence[tuple[int, str]]) -> None:
        name = f"{actors.__name__}.{actor}_sync"
        self.producer.enqueue_many([Queue.prepare_data(name, args=job, result_ttl=0) for job in jobs])

    async def result(self, handle: Any) -> int:
        value: int = (await asyncio.to_thread(handle.latest_result, timeout=30)).return_value
        return value

    async def work(self, concurrency: int) -> None:
        queue = self.connect()
        SimpleWorker([queue], connection=queue.connection).work(logging_level="CRITICAL")
