"""redis-py by hand: what the client library and the server allow."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as Client
from redis.exceptions import ResponseError

from benchmarks.brokers import peer
from benchmarks.brokers.actors import ACTORS

MOST = 100  # messages in one command


class _Raw(peer.Peer):
    """A pool of connections for producers; results in one list, which one reader empties."""

    client: Client

    async def open(self) -> None:
        pool = BlockingConnectionPool.from_url(self.url, max_connections=peer.IN_FLIGHT, socket_timeout=None)
        self.client = Client.from_pool(pool)
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        await self.client.aclose()

    async def enqueue(self, actor: str, i: int, data: str) -> Any:
        if self.results:
            if self._reader is None:
                self._reader = asyncio.create_task(self._read())
            self._waiting[i] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(i)
        await self.send([json.dumps([actor, i, data])])
        return waiting

    async def enqueue_all(self, actor: str, jobs: Sequence[tuple[int, str]]) -> None:
        await self.send([json.dumps([actor, i, data]) for i, data in jobs])

    async def result(self, handle: asyncio.Future[int]) -> int:
        return await handle

    async def _read(self) -> None:
        key = f"{self.queue}:results"
        while True:
            _, first = await self.client.blpop([key], timeout=0)  # type: ignore[misc]
            for pair in (first, *(await self.client.lpop(key, MOST) or ())):
                i, value = json.loads(pair)
                self._waiting.pop(i).set_result(value)

    @abstractmethod
    async def send(self, bodies: list[str]) -> None:
        """Send all of them together."""


class RawList(_Raw):
    """A list, from which messages are popped: at most once, for a crash loses what it had popped."""

    async def send(self, bodies: list[str]) -> None:
        await self.client.lpush(self.queue, *bodies)

    async def work(self, concurrency: int) -> None:
        await self.open()
        places, tasks = asyncio.Semaphore(concurrency), set[asyncio.Task[None]]()

        async def run(body: bytes) -> None:
            actor, i, data = json.loads(body)
            value = await ACTORS[actor](i, data)
            places.release()
            if self.results:
                await self.client.rpush(f"{self.queue}:results", json.dumps([i, value]))

        while True:
            await places.acquire()
            places.release()
            bodies = await self.client.rpop(self.queue, min(MOST, places._value))  # noqa: SLF001 — nothing else tells
            if not bodies:
                _, body = await self.client.brpop([self.queue], timeout=0)  # type: ignore[misc]
                bodies = [body]
            for body in bodies:
                await places.acquire()
                task = asyncio.create_task(run(body))  # type: ignore[arg-type]
                tasks.add(task)
                task.add_done_callback(tasks.discard)


class RawStream(_Raw):
    """A stream with a consumer group: at least once, if somebody claims what dead workers had. Deleted after the actor."""

    async def open(self) -> None:
        await super().open()
        with suppress(ResponseError):  # it is there
            await self.client.xgroup_create(self.queue, "group", id="0", mkstream=True)

    async def send(self, bodies: list[str]) -> None:
        if len(bodies) == 1:
            await self.client.xadd(self.queue, {"body": bodies[0]})
            return
        async with self.client.pipeline(transaction=False) as pipeline:
            for body in bodies:
                pipeline.xadd(self.queue, {"body": body})
            await pipeline.execute()

    async def work(self, concurrency: int) -> None:
        await self.open()
        places, tasks = asyncio.Semaphore(concurrency), set[asyncio.Task[None]]()
        ended: list[tuple[bytes, str]] = []
        some = asyncio.Event()

        async def run(id_: bytes, body: bytes) -> None:
            actor, i, data = json.loads(body)
            ended.append((id_, json.dumps([i, await ACTORS[actor](i, data)])))
            some.set()

        async def settle() -> None:
            while True:
                await some.wait()
                some.clear()
                while ended:
                    part = ended[:MOST]
                    del ended[:MOST]
                    ids = [id_ for id_, _ in part]
                    async with self.client.pipeline(transaction=False) as pipeline:
                        if self.results:
                            pipeline.rpush(f"{self.queue}:results", *[result for _, result in part])
                        pipeline.xack(self.queue, "group", *ids)
                        pipeline.xdel(self.queue, *ids)
                        await pipeline.execute()
                    for _ in part:
                        places.release()

        tasks.add(asyncio.create_task(settle()))
        while True:
            await places.acquire()
            places.release()
            count = min(MOST, places._value)  # noqa: SLF001 — nothing else tells
            read: Any = await self.client.xreadgroup("group", "worker", {self.queue: ">"}, count=count, block=1000)
            streams = read.values() if isinstance(read, dict) else [messages for _, messages in read or ()]
            for messages in streams:
                for id_, fields in messages[0] if isinstance(read, dict) else messages:
                    await places.acquire()
                    task = asyncio.create_task(run(id_, fields[b"body"]))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
