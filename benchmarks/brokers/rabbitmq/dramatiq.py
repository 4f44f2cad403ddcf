# mypy: disable-error-code="import-not-found"
"""dramatiq, whose producers and workers are threads; messages are read ahead as it does by default."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.brokers import actors, peer
from benchmarks.brokers.rabbitmq import results_url


class Dramatiq(peer.Peer):
    """At least once: confirmed, acknowledged after the actor. Classic queues."""

    concurrency = 100  # threads
    many_producers = False

    def make(self) -> None:
        self.broker = RabbitmqBroker(url=self.url, confirm_delivery=True)
        if self.results:
            store = RedisBackend(url=results_url(), namespace=self.queue)
            self.broker.add_middleware(Results(backend=store, store_results=True, result_ttl=60_000))
        dramatiq.set_broker(self.broker)
        self.actors = {
            name: dramatiq.actor(self._kept(fn), actor_name=name, queue_name=self.queue, broker=self.broker)
            for name, fn in (("noop", actors.noop_sync), ("stamp", actors.stamp_sync))
        }

    def _kept(self, fn: Callable[[int, str], int]) -> Callable[[int, str], int | None]:
        """It complains about results that are not kept."""
        return fn if self.results else lambda i, data: fn(i, data) and None

    async def open(self) -> None:
        self.make()

    async def close(self) -> None:
        self.broker.close()

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        if actor not in self.actors:
            raise peer.UnsupportedError
        return self.actors[actor].send(i, data)

    async def result(self, handle: Any) -> int:
        value: int = await asyncio.to_thread(handle.get_result, block=True, timeout=30_000)
        return value

    async def work(self, concurrency: int) -> None:
        self.make()
        self.broker.emit_after("process_boot")
        dramatiq.Worker(self.broker, worker_threads=concurrency).start()
        await asyncio.Event().wait()
