"""What the message broker does beyond the contract: keeping the dead, warning of servers, idling cheaply, long queues."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import pytest
import redis

from repid_core import Connection, Job, Router, Worker
from repid_core.data import Death, DeathReason, Enqueued, Envelope, MessageCategory, Parameters, Priority, RoutingKey
from repid_core.errors import DuplicateJobError
from repid_redis import RedisMessageBroker, RedisMessageBrokerSettings
from servers import Server

MANY = int(os.environ.get("REPID_REDIS_LONG_QUEUE", "100000"))


async def bury(broker: RedisMessageBroker, connection: Connection, *ids: str) -> None:
    await connection.enqueue_many([Job("work", "q", id_=id_, connection=connection) for id_ in ids])
    consumer = broker.consumer("q", ["work"], prefetch=len(ids))
    await consumer.start()
    left = len(ids)
    while left:
        for delivery in await consumer.receive(left):
            await delivery.nack(Death(DeathReason.FAILED, datetime.now(UTC)))
            left -= 1
    await consumer.close()


async def dead(broker: RedisMessageBroker) -> list[str]:
    return [browsed.envelope.key.id_ async for browsed in broker.browse("q", MessageCategory.DEAD)]


class TestOneCall:
    @staticmethod
    def envelope(id_: str, priority: Priority = Priority.MEDIUM, topic: str = "work", **options: Any) -> Envelope:
        now = datetime.now(UTC)
        return Envelope(RoutingKey(id_, topic, "q", priority), Parameters(now), id_.encode(), **options)

    async def test_order_holds_whatever_is_between(self, redis_url: str, prefix: str) -> None:
        """Neighbours that have something in common share its words; that is not to be seen."""
        later = datetime.now(UTC) + timedelta(hours=1)
        ids = [f"{number}" for number in range(30)]
        envelopes = [
            self.envelope(
                id_,
                (Priority.MEDIUM, Priority.HIGH)[number % 3 == 0],
                topic=("work", "other")[number % 2],
                due=later if number % 5 == 0 else None,
                on_duplicate=("raise", "keep")[number % 7 == 0],
            )
            for number, id_ in enumerate(ids)
        ]
        async with Connection(RedisMessageBroker(redis_url, prefix=prefix)) as connection:
            broker = connection.message_broker
            assert await broker.enqueue_many(envelopes) == [Enqueued.NEW] * 30
            stats = await broker.queue_stats("q")
            assert (stats.ready, stats.delayed) == (24, 6)
            for topic in ("work", "other"):
                mine = [each.key for each in envelopes if each.due is None and each.key.topic == topic]
                wanted = [key.id_ for key in sorted(mine, key=lambda key: -key.priority)]
                consumer = broker.consumer("q", [topic], prefetch=30)
                await consumer.start()
                assert [delivery.envelope.key.id_ for delivery in await consumer.receive(30)] == wanted
                await consumer.close()

    async def test_an_id_may_be_there_several_times(self, redis_url: str, prefix: str) -> None:
        later = datetime.now(UTC) + timedelta(hours=1)
        async with Connection(RedisMessageBroker(redis_url, prefix=prefix)) as connection:
            broker = connection.message_broker
            first, delayed, kept, refused, replacing, last = await broker.enqueue_many(
                [
                    self.envelope("a"),
                    self.envelope("b", due=later),
                    self.envelope("a", on_duplicate="keep"),
                    self.envelope("a"),
                    self.envelope("b", Priority.HIGH, on_duplicate="replace"),
                    self.envelope("c"),
                ]
            )
            assert (first, delayed, kept, replacing, last) == (
                *(Enqueued.NEW, Enqueued.NEW, Enqueued.KEPT, Enqueued.REPLACED, Enqueued.NEW),
            )
            assert isinstance(refused, DuplicateJobError)
            assert refused.state == "ready"
            stats = await broker.queue_stats("q")
            assert (stats.ready, stats.delayed) == (3, 0)
            consumer = broker.consumer("q", ["work"], prefetch=3)
            await consumer.start()
            assert [delivery.envelope.key.id_ for delivery in await consumer.receive(3)] == ["b", "a", "c"]
            await consumer.close()


class TestTheDead:
    async def test_the_latest_are_kept(self, redis_url: str, prefix: str) -> None:
        broker = RedisMessageBroker(redis_url, prefix=prefix, dead_max_count=3)
        async with Connection(broker) as connection:
            await bury(broker, connection, *(f"m{number}" for number in range(5)))
            assert await dead(broker) == ["m2", "m3", "m4"]

    async def test_they_are_kept_for_so_long(self, redis_url: str, prefix: str) -> None:
        """A heartbeat of any worker removes what is too old."""
        broker = RedisMessageBroker(redis_url, prefix=prefix, dead_max_age=timedelta(seconds=1), lease=timedelta(seconds=1))
        async with Connection(broker) as connection:
            await bury(broker, connection, "old")
            assert await dead(broker) == ["old"]
            consumer = broker.consumer("q", ["work"], prefetch=1)
            await consumer.start()
            async with asyncio.timeout(10):
                while await dead(broker):
                    await asyncio.sleep(0.05)
            await consumer.close()

    async def test_one_id_may_die_twice(self, redis_url: str, prefix: str) -> None:
        broker = RedisMessageBroker(redis_url, prefix=prefix)
        async with Connection(broker) as connection:
            await bury(broker, connection, "one")
            await bury(broker, connection, "one")
            assert await dead(broker) == ["one", "one"]

    async def test_what_somebody_else_wrote_can_be_taken_out(self, redis_url: str, prefix: str) -> None:
        broker = RedisMessageBroker(redis_url, prefix=prefix)
        async with Connection(broker) as connection:
            await bury(broker, connection, "ours")
            with redis.Redis.from_url(redis_url) as client:
                client.hset(f"{prefix}:{{q}}:b", "theirs", b"no record of a message")
                client.rpush(f"{prefix}:{{q}}:r:1work", "theirs")
                client.sadd(f"{prefix}:{{q}}:t", "1work")
            for category in (MessageCategory.NORMAL, MessageCategory.DEAD):
                consumer = broker.consumer("q", None, prefetch=2, category=category)
                await consumer.start()
                async with asyncio.timeout(10):
                    deliveries = list(await consumer.receive(2))
                    if category is MessageCategory.NORMAL:
                        await deliveries[0].nack(Death(DeathReason.INVALID, datetime.now(UTC)))
                    else:
                        assert len(deliveries) == 2
                        await asyncio.gather(*(delivery.ack() for delivery in deliveries))
                await consumer.close()
            assert (await broker.queue_stats("q")).dead == 0


@pytest.mark.parametrize(("policy", "warned"), [("allkeys-lru", True), ("volatile-ttl", False), ("noeviction", False)])
async def test_a_server_that_may_drop_jobs_is_warned_of(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, policy: str, warned: bool
) -> None:
    server = serve(maxmemory="100mb", maxmemory_policy=policy)
    with caplog.at_level(logging.WARNING):
        async with Connection(RedisMessageBroker(server.url)):
            pass
    assert [policy in record.getMessage() for record in caplog.records] == [True] * warned
    caplog.clear()
    async with Connection(RedisMessageBroker(server.url, check_eviction_policy=False)):
        pass
    assert not caplog.records


async def test_an_idle_worker_asks_less_than_once_a_second(serve: Callable[..., Server]) -> None:
    server = serve()
    router = Router()

    @router.actor(name="work", queue="q")
    async def work() -> None: ...

    async with Connection(RedisMessageBroker(server.url)) as connection:
        await Job("work", "q", deferred_until=datetime.now(UTC) + timedelta(hours=1), connection=connection).enqueue()
        worker = Worker([router], connection=connection, handle_signals=())
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(1)  # until the worker is idle
        with server.client() as client:
            client.config_resetstat()
            used = []
            for _ in range(6):  # each second by itself: what else goes on in this process now and then is not the worker's
                began = time.process_time()
                await asyncio.sleep(1)
                used.append(time.process_time() - began)
            stats: dict[str, Any] = client.info("commandstats")
        sent = sum(stats[name]["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_bzpopmin") if name in stats)
        assert 0 < sent <= 6
        assert median(used) < 0.005, "an idle worker uses half a percent of a core"
        worker.stop()
        await running


async def test_a_long_queue_costs_its_clients_nothing(redis_url: str, prefix: str) -> None:
    """Counting, fetching and flushing take no longer for its length, and a consumer holds what it was asked for."""
    broker = RedisMessageBroker(redis_url, prefix=prefix)
    async with Connection(broker) as connection:
        for start in range(0, MANY, 5000):
            jobs = [Job("work", "q", args=[start + i], connection=connection) for i in range(min(5000, MANY - start))]
            await connection.enqueue_many(jobs)
        consumer = broker.consumer("q", ["work"], prefetch=10)
        await consumer.start()
        tracemalloc.start()
        began = time.perf_counter()
        assert (await broker.queue_stats("q")).ready == MANY
        assert len(await consumer.receive(100)) <= 10
        took, (_, most) = time.perf_counter() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert took < 2
        assert most < 1_000_000
        await consumer.close()
        began = time.perf_counter()
        await broker.flush_queue("q")
        assert time.perf_counter() - began < 3
        assert (await broker.queue_stats("q")).ready == 0


async def test_settings_are_taken_whole() -> None:
    settings = RedisMessageBrokerSettings("redis://h:1/2", lease=timedelta(seconds=9), prefix="p")
    broker = RedisMessageBroker.from_settings(settings)
    assert broker.settings == settings
    assert broker.limits.lease == timedelta(seconds=9)
