"""A server that is killed, that is full, that forgets its scripts, and replies that get lost on their way."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from attrs import evolve

from repid_core import Connection, Job, Queue, Router, Worker
from repid_core.abc import Delivery
from repid_core.data import Death, DeathReason, Envelope, MessageCategory
from repid_core.errors import BrokerConnectionError, DuplicateJobError, EnqueueError, MessageBrokerError
from repid_core.testing.proxy import FaultProxy
from repid_redis import RedisBucketBroker, RedisMessageBroker
from servers import Server

pytestmark = pytest.mark.faults

SECOND = timedelta(seconds=1)
MANY = int(os.environ.get("REPID_REDIS_MANY", "50000"))
KILLS = 5


def router_for(seen: Counter[int]) -> Router:
    router = Router()

    @router.actor(name="work", queue="q")
    async def work(i: int) -> int:
        seen[i] += 1
        return i

    return router


async def until(true: Callable[[], Any], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


@pytest.mark.timeout(240)
async def test_a_server_that_is_killed_under_load_loses_nothing_that_was_confirmed(
    serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    """`kill -9`, again and again, with `appendfsync everysec`."""
    server = serve(appendonly="yes", appendfsync="everysec")
    seen: Counter[int] = Counter()
    confirmed: list[int] = []
    unsure = 0
    numbers = iter(range(MANY))
    patient = timedelta(seconds=30)
    producing = RedisMessageBroker(server.url, connect_timeout=patient, lease=2 * SECOND)
    working = RedisMessageBroker(server.url, lease=2 * SECOND)
    async with Connection(producing) as producer, Connection(working) as consumer:
        worker = Worker([router_for(seen)], tasks_limit=100, connection=consumer, handle_signals=())
        running = asyncio.create_task(worker.run())

        async def produce() -> None:
            nonlocal unsure
            for number in numbers:
                try:
                    await Job("work", "q", args={"i": number}, connection=producer).enqueue()
                except EnqueueError:
                    unsure += 1
                else:
                    confirmed.append(number)

        producers = [asyncio.create_task(produce()) for _ in range(100)]
        for kill in range(1, KILLS + 1):
            await until(lambda kill=kill: len(confirmed) >= MANY * kill // (KILLS + 1), 60)  # type: ignore[misc]
            server.kill()
            await asyncio.to_thread(server.restart)
        await asyncio.gather(*producers)
        await until(lambda: set(confirmed) <= seen.keys(), 60)
        worker.stop()
        await running
        stats = await producing.queue_stats("q")
    again = sum(runs - 1 for runs in seen.values())
    with capsys.disabled():
        print(  # noqa: T201 — what the test is for
            f"\n{KILLS} kills, {len(confirmed):,} confirmed, {unsure} unsure, 0 lost, {again} run again", end=" "
        )
    assert len(confirmed) + unsure == MANY
    assert (stats.ready, stats.in_progress, stats.dead) == (0, 0, 0)


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "not heard yet"])
async def test_an_outage_ends_nobodys_lease(serve: Callable[..., Server], heard: bool) -> None:
    """All leases are over when the server is back; nobody is taken for dead."""
    server = serve(appendonly="yes", appendfsync="always")
    lease = 4 * SECOND  # who is back later than that is dead: too long for a busy machine to have stalled
    brokers = [RedisMessageBroker(server.url, lease=lease) for _ in range(3)]
    deliveries: list[Delivery] = []
    for broker in brokers:
        await broker.connect()
    async with Connection(RedisMessageBroker(server.url)) as connection:
        await connection.enqueue_many([Job("work", "q", args={"i": i}, connection=connection) for i in range(9)])
        for broker in brokers:
            consumer = broker.consumer("q", ["work"], prefetch=3)
            await consumer.start()
            deliveries += await consumer.receive(3)
        lost: list[bool] = []
        for delivery in deliveries:
            delivery.on_lost(lambda: lost.append(True))
        if not heard:  # as if the server went before anybody's first heartbeat
            with redis.Redis.from_url(server.url) as client:
                for key in client.scan_iter("*g", _type="hash"):
                    client.hdel(key, "last")
        server.kill()
        await asyncio.sleep(1.25 * lease.total_seconds())  # the outage outlasts the lease
        await asyncio.to_thread(server.restart)
        await asyncio.sleep(1.5 * lease.total_seconds())  # time enough to end sessions, if somebody did
        assert not lost
        await asyncio.gather(*(delivery.ack() for delivery in deliveries))
        assert (await brokers[0].queue_stats("q")).in_progress == 0
    for broker in brokers:
        await broker.disconnect()


async def test_scripts_may_be_forgotten_at_any_time(serve: Callable[..., Server]) -> None:
    server = serve()
    seen: Counter[int] = Counter()
    async with Connection(RedisMessageBroker(server.url)) as connection:
        worker = Worker([router_for(seen)], tasks_limit=10, messages_limit=2000, connection=connection, handle_signals=())
        running = asyncio.create_task(worker.run())

        async def forget() -> None:
            while not running.done():
                await asyncio.to_thread(lambda: server.client().script_flush())
                await asyncio.sleep(0.002)

        forgetting = asyncio.create_task(forget())
        for i in range(0, 2000, 10):
            await asyncio.gather(*(Job("work", "q", args={"i": i + j}, connection=connection).enqueue() for j in range(10)))
        async with asyncio.timeout(30):
            assert (await running).succeeded == 2000
        await forgetting
    assert set(seen.values()) == {1}


async def test_workers_go_on_when_the_memory_is_full(serve: Callable[..., Server]) -> None:
    """Enqueue says what is wrong; whatever makes room goes on, leases included."""
    server = serve(flavour="redis", maxmemory="8mb", maxmemory_policy="noeviction")
    broker = RedisMessageBroker(server.url, lease=SECOND)
    enqueued = 0
    async with Connection(broker) as connection:
        with pytest.raises(EnqueueError, match="memory is full"):  # noqa: PT012 — sooner or later
            while True:
                await Job("work", "q", args={"i": enqueued, "d": "x" * 2000}, connection=connection).enqueue()
                enqueued += 1
        router = Router()
        done = 0

        @router.actor(name="work", queue="q")
        async def work(i: int, d: str) -> None:
            nonlocal done
            done += 1
            if done == 1:
                await asyncio.sleep(2.5)  # longer than the lease

        summary = await Worker([router], tasks_limit=10, messages_limit=enqueued, connection=connection, handle_signals=()).run()
        assert summary.succeeded == enqueued == done
        assert summary.lost == 0
        await Job("work", "q", args={"i": 1, "d": ""}, connection=connection).enqueue()


def envelope_of(connection: Connection, id_: str, **options: Any) -> Envelope:
    return Job("work", "q", id_=id_, args={"i": 1}, connection=connection, **options).draft(connection).envelope


class TestLostReplies:
    """The connection is cut between a call and its reply, for every script: what was done is not done twice, nor undone."""

    @pytest.fixture
    async def proxy(self, redis_url: str) -> Any:
        parts = redis.Redis.from_url(redis_url).connection_pool.connection_kwargs
        async with FaultProxy(parts["host"], parts["port"]) as proxy:
            yield proxy

    @pytest.fixture
    async def broker(self, proxy: FaultProxy, prefix: str) -> Any:
        broker = RedisMessageBroker(f"redis://127.0.0.1:{proxy.port}/0", prefix=prefix, lease=2 * SECOND)
        await broker.connect()
        yield broker
        await broker.disconnect()

    @pytest.fixture
    async def connection(self, broker: RedisMessageBroker) -> Connection:
        connection = Connection(broker)
        connection._opened = asyncio.get_running_loop(), os.getpid()  # the broker is connected already
        return connection

    async def warm(self, broker: RedisMessageBroker, connection: Connection) -> None:
        """Have the server know the scripts, so that what is swallowed is the reply of the first call."""
        for _ in range(2):
            await broker.enqueue(envelope_of(connection, "warm"))
            consumer = broker.consumer("q", ["work"], prefetch=5)
            await consumer.start()
            [delivery] = await consumer.receive(5)
            await delivery.ack()
            await consumer.close()
            await broker.queue_stats("q")

    async def test_enqueue(self, proxy: FaultProxy, broker: RedisMessageBroker, connection: Connection) -> None:
        await self.warm(broker, connection)
        proxy.swallow_replies(b"EVALSHA")
        await broker.enqueue(envelope_of(connection, "one"))
        assert proxy.swallowed == 1
        assert (await broker.queue_stats("q")).ready == 1
        with pytest.raises(DuplicateJobError):
            await broker.enqueue(envelope_of(connection, "one"))

    async def test_enqueue_many(self, proxy: FaultProxy, broker: RedisMessageBroker, connection: Connection) -> None:
        await self.warm(broker, connection)
        proxy.swallow_replies(b"EVALSHA")
        outcomes = await broker.enqueue_many([envelope_of(connection, f"m{i}") for i in range(500)])
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert (await broker.queue_stats("q")).ready == 500

    @pytest.mark.parametrize("blocked", [False, True])
    async def test_fetch(self, proxy: FaultProxy, broker: RedisMessageBroker, connection: Connection, blocked: bool) -> None:
        """What nobody heard of is fetched again, without a wait for any lease."""
        await self.warm(broker, connection)
        consumer = broker.consumer("q", ["work"], prefetch=5)
        await consumer.start()
        receiving = asyncio.create_task(consumer.receive(5))
        if blocked:
            await asyncio.sleep(0.2)  # the fetch comes to wait on the server
        other = RedisMessageBroker(f"redis://127.0.0.1:{proxy.target[1]}/0", prefix=broker.settings.prefix)
        await other.connect()
        if not blocked:
            receiving.cancel()
            await asyncio.sleep(0.3)  # the fetch that waits is taken back
        proxy.swallow_replies(lambda data: blocked or b"EVALSHA" in data)
        start = time.monotonic()
        await other.enqueue(envelope_of(connection, "one"))
        if not blocked:
            receiving = asyncio.create_task(consumer.receive(5))
        else:
            proxy.cut()
        async with asyncio.timeout(10):
            [delivery] = await receiving
        assert time.monotonic() - start < 4
        await delivery.ack()
        stats = await broker.queue_stats("q")
        assert (stats.ready, stats.in_progress) == (0, 0)
        await consumer.close()
        await other.disconnect()

    @pytest.mark.parametrize("how", ["ack", "nack", "reject", "requeue", "mark_started"])
    async def test_settlements(self, proxy: FaultProxy, broker: RedisMessageBroker, connection: Connection, how: str) -> None:
        await self.warm(broker, connection)
        await broker.enqueue(envelope_of(connection, "one"))
        consumer = broker.consumer("q", ["work"], prefetch=1)
        await consumer.start()
        [delivery] = await consumer.receive(1)
        death = Death(DeathReason.NACKED, datetime.now(UTC))
        later = evolve(delivery.envelope, due=datetime.now(UTC) + timedelta(hours=1))
        arguments = {"nack": (death,), "requeue": (later,)}.get(how, ())
        await consumer.pause()
        proxy.swallow_replies(b"EVALSHA")
        await getattr(delivery, how)(*arguments)
        assert proxy.swallowed == 1
        stats = await broker.queue_stats("q")
        wanted = {"nack": (0, 0, 0, 1), "reject": (1, 0, 0, 0), "requeue": (0, 0, 1, 0), "mark_started": (0, 1, 0, 0)}
        assert (stats.ready, stats.in_progress, stats.delayed, stats.dead) == wanted.get(how, (0, 0, 0, 0))
        await consumer.close()

    @pytest.mark.parametrize("what", ["cancel", "flush_queue", "delete_queue", "queue_stats", "close"])
    async def test_all_others(self, proxy: FaultProxy, broker: RedisMessageBroker, connection: Connection, what: str) -> None:
        await self.warm(broker, connection)
        await broker.enqueue(envelope_of(connection, "one"))
        consumer = broker.consumer("q", ["work"], prefetch=1)
        if what == "close":
            await consumer.start()
            await consumer.receive(1)
            proxy.swallow_replies(b"EVALSHA")
            await consumer.close()
        else:
            arguments = ("q", "one") if what == "cancel" else ("q",)
            proxy.swallow_replies(b"EVALSHA")
            await getattr(broker, what)(*arguments)
        assert proxy.swallowed == 1
        stats = await broker.queue_stats("q")
        assert (stats.ready, stats.in_progress) == ((1, 0) if what in {"queue_stats", "close"} else (0, 0))

    async def test_a_half_open_connection_is_given_up(self, proxy: FaultProxy, prefix: str, connection: Connection) -> None:
        """The other side is gone without a word: the wait for a reply ends, and the call is sent again."""
        broker = RedisMessageBroker(f"redis://127.0.0.1:{proxy.port}/0", prefix=prefix, reply_deadline=SECOND)
        await broker.connect()
        await broker.enqueue(envelope_of(connection, "one"))
        proxy.stall()
        enqueuing = asyncio.create_task(broker.enqueue(envelope_of(connection, "two")))
        await asyncio.sleep(1.5)  # longer than reply_deadline: the connection is given up
        proxy.cut()
        proxy.accept()
        async with asyncio.timeout(5):
            await enqueuing
        assert (await broker.queue_stats("q")).ready == 2
        await broker.disconnect()

    async def test_cancelled_calls_leave_replies_in_order(self, broker: RedisMessageBroker, connection: Connection) -> None:
        """Whoever is cancelled at whatever point: nobody gets another's reply."""
        await broker.enqueue(envelope_of(connection, "one"))
        drawn = random.Random(7)

        async def ask(number: int) -> None:
            expected = f"value {number}"
            assert await broker.client.call("", "ECHO", expected) == expected.encode()

        for _ in range(30):
            tasks = [asyncio.create_task(ask(number)) for number in range(50)]
            for _ in range(drawn.randrange(4)):
                await asyncio.sleep(0)
            for task in drawn.sample(tasks, 25):
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert result is None or isinstance(result, asyncio.CancelledError), result


async def test_enqueue_says_where_the_server_should_be(serve: Callable[..., Server]) -> None:
    server = serve()
    broker = RedisMessageBroker(server.url, connect_timeout=timedelta(milliseconds=500))
    async with Connection(broker) as connection:
        server.kill()
        await asyncio.sleep(0.1)  # the connection is seen to be gone
        with pytest.raises(BrokerConnectionError, match=f"127.0.0.1:{server.port}"):
            await Job("work", "q", connection=connection).enqueue()
        with pytest.raises(MessageBrokerError):
            await Queue("q", connection=connection).stats()


async def test_large_payloads(redis_url: str, prefix: str) -> None:
    """Ten megabytes each; a fetch brings no more than it should."""
    sizes: list[int] = []
    router = Router()

    @router.actor(name="work", queue="q")
    async def work(data: str) -> int:
        sizes.append(len(data))
        return len(data)

    broker = RedisMessageBroker(redis_url, prefix=prefix)
    buckets = RedisBucketBroker(redis_url, prefix=prefix)
    async with Connection(broker, results_bucket_broker=buckets) as connection:
        jobs = [Job("work", "q", args={"data": "x" * 10_000_000}, connection=connection) for _ in range(6)]
        for job in jobs:
            await job.enqueue()
        summary = await Worker([router], messages_limit=6, connection=connection, handle_signals=()).run()
        assert summary.succeeded == 6
        assert [await job.wait(5) for job in jobs] == [10_000_000] * 6
    assert sizes == [10_000_000] * 6


async def test_delete_and_flush_while_workers_run(redis_url: str, prefix: str) -> None:
    """They go on with what comes after, and nothing is left of a deleted queue once they are gone."""
    seen: Counter[int] = Counter()
    broker = RedisMessageBroker(redis_url, prefix=prefix, lease=SECOND)
    other = RedisMessageBroker(redis_url, prefix=prefix, lease=SECOND)
    await other.connect()
    async with Connection(broker) as connection:
        worker = Worker([router_for(seen)], tasks_limit=20, connection=connection, handle_signals=())
        running = asyncio.create_task(worker.run())
        for step in range(20):
            await connection.enqueue_many([Job("work", "q", args={"i": i}, connection=connection) for i in range(200)])
            await (other.delete_queue("q") if step % 2 else other.flush_queue("q"))
        seen.clear()
        await Job("work", "q", args={"i": 1000}, connection=connection).enqueue()
        await until(lambda: seen[1000] == 1)
        worker.stop()
        await running
        stats = await other.queue_stats("q")
        assert (stats.ready, stats.in_progress, stats.delayed, stats.dead) == (0, 0, 0, 0)
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        await Job("work", "q", args={"i": 1}, deferred_until=tomorrow, connection=connection).enqueue()
        consumer = other.consumer("q", ["work", "else"], prefetch=2, category=MessageCategory.NORMAL)
        await consumer.start()
        await consumer.close()
        await other.delete_queue("q")
    await other.disconnect()
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter(f"{prefix}:*", count=10_000)) == []
