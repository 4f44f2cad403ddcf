"""Workers that are killed, that stand still, and whose event loop is blocked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from repid_core import Connection, Job, Router, Worker
from repid_core.data import Death, DeathReason
from repid_core.errors import DeliveryLostError
from repid_redis import RedisBucketBroker, RedisMessageBroker

pytestmark = pytest.mark.faults

LEASE = timedelta(seconds=1)

WORKER = """
    import asyncio, os, signal, sys
    from datetime import timedelta
    from repid_core import Connection, Router, Worker
    from repid_redis import RedisBucketBroker, RedisMessageBroker

    url, prefix, phase, log = sys.argv[1:]

    def die(here):
        if here == phase:
            os.kill(os.getpid(), signal.SIGKILL)

    class Dying:
        def after_consume(self, queue):
            die("fetched")
        def after_store_bucket(self, bucket_id):
            die("result stored")
        def before_ack(self, settlement):
            die("ack begun")
        def after_ack(self, settlement):
            die("acknowledged")

    router = Router()

    @router.actor(name="work", queue="q")
    async def work(i: int) -> int:
        with open(log, "a") as file:
            print(i, file=file)
        die("running")
        if phase == "hang":
            await asyncio.sleep(3)
        return i

    async def main():
        broker = RedisMessageBroker(url, prefix=prefix, lease=timedelta(seconds=1))
        buckets = RedisBucketBroker(url, prefix=prefix)
        async with Connection(broker, results_bucket_broker=buckets, middlewares=[Dying()]) as connection:
            print("ready", flush=True)
            await Worker([router], tasks_limit=5, connection=connection).run()

    asyncio.run(main())
"""


@pytest.fixture
def start(redis_url: str, prefix: str, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """A worker in a process of its own, that kills itself in a phase."""
    processes: list[subprocess.Popen[str]] = []

    def run(phase: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", dedent(WORKER), redis_url, prefix, phase, str(tmp_path / "runs")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def connection(redis_url: str, prefix: str) -> Connection:
    broker = RedisMessageBroker(redis_url, prefix=prefix, lease=LEASE)
    return Connection(broker, results_bucket_broker=RedisBucketBroker(redis_url, prefix=prefix))


def router_for(done: list[int]) -> Router:
    router = Router()

    @router.actor(name="work", queue="q")
    async def work(i: int) -> int:
        done.append(i)
        return i

    return router


async def until(true: Callable[[], Any], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("phase", "settled_before"), [("fetched", 0), ("running", 0), ("result stored", 0), ("ack begun", 0), ("acknowledged", 1)]
)
async def test_kill_in_every_phase(
    start: Callable[[str], subprocess.Popen[str]], connection: Connection, phase: str, settled_before: int
) -> None:
    """Others get its messages within twice the lease; none is lost, and none that was acknowledged runs again."""
    done: list[int] = []
    async with connection:
        jobs = [Job("work", "q", args={"i": i}, connection=connection) for i in range(5)]
        await connection.enqueue_many(jobs)
        process = start(phase)
        assert await asyncio.to_thread(process.wait, 10) == -signal.SIGKILL
        killed = time.monotonic()
        worker = Worker([router_for(done)], connection=connection, handle_signals=())
        running = asyncio.create_task(worker.run())
        assert [await job.wait(10) for job in jobs] == [0, 1, 2, 3, 4]
        broker = connection.message_broker
        async with asyncio.timeout(20):  # results may be there, stored by the one that was killed, of what is not acknowledged
            while (stats := await broker.queue_stats("q")).ready or stats.in_progress:
                await asyncio.sleep(0.02)
        assert time.monotonic() - killed < 2 * LEASE.total_seconds() + 3, "others waited for longer than twice the lease"
        worker.stop()
        summary = await running
        assert summary.processed == len(done)
        assert len(set(done)) == 5 if not settled_before else len(done) <= 5 - settled_before
        stats = await broker.queue_stats("q")
        assert (stats.ready, stats.in_progress, stats.dead) == (0, 0, 0)


async def test_a_worker_that_stood_still_settles_nothing_any_more(
    start: Callable[[str], subprocess.Popen[str]], connection: Connection, tmp_path: Path
) -> None:
    """SIGSTOP for longer than the lease: its job runs elsewhere, and what it does on SIGCONT changes nothing."""
    done: list[int] = []
    async with connection:
        await Job("work", "q", args={"i": 7}, connection=connection).enqueue()
        process = start("hang")
        await until((tmp_path / "runs").exists)
        os.kill(process.pid, signal.SIGSTOP)
        worker = Worker([router_for(done)], connection=connection, handle_signals=(), messages_limit=1)
        assert (await worker.run()).succeeded == 1
        assert done == [7]
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 10) == 0
        stats = await connection.message_broker.queue_stats("q")
        assert (stats.ready, stats.in_progress, stats.dead) == (0, 0, 0)


async def test_a_late_settlement_changes_nothing_for_the_new_holder(redis_url: str, prefix: str) -> None:
    old = RedisMessageBroker(redis_url, prefix=prefix, lease=LEASE)
    new = RedisMessageBroker(redis_url, prefix=prefix, lease=LEASE)
    await new.connect()
    async with Connection(old) as connection:
        await Job("work", "q", id_="one", connection=connection).enqueue()
        consumer = old.consumer("q", ["work"], prefetch=1)
        await consumer.start()
        [delivery] = await consumer.receive(1)
        lost: list[bool] = []
        delivery.on_lost(lambda: lost.append(True))
        await old.heartbeat.stop()  # as if it stood still
        second = new.consumer("q", ["work"], prefetch=1)
        await second.start()
        async with asyncio.timeout(5):
            [again] = await second.receive(1)
        assert again.redelivered
        death = Death(DeathReason.NACKED, connection.clock.now())
        with pytest.raises(DeliveryLostError):
            await delivery.nack(death)
        stats = await new.queue_stats("q")
        assert (stats.ready, stats.in_progress, stats.dead) == (0, 1, 0)
        await again.ack()
        await second.close()
    await new.disconnect()


async def test_a_blocked_event_loop_keeps_its_jobs(redis_url: str, prefix: str) -> None:
    """The heartbeat has a thread of its own."""
    runs: list[str] = []
    router = Router()

    @router.actor(name="work", queue="q")
    async def work() -> None:
        runs.append("begun")
        os.kill(other.pid, signal.SIGCONT)  # here is another worker, which would take it
        time.sleep(3.5 * LEASE.total_seconds())  # noqa: ASYNC251 — blocks the loop, on purpose
        runs.append("ended")

    other = subprocess.Popen(  # noqa: ASYNC220 — it is but a moment
        [sys.executable, "-c", dedent(WORKER), redis_url, prefix, "never", os.devnull], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        os.kill(other.pid, signal.SIGSTOP)
        async with Connection(RedisMessageBroker(redis_url, prefix=prefix, lease=LEASE)) as connection:
            await Job("work", "q", connection=connection).enqueue()
            worker = Worker([router], connection=connection, handle_signals=(), messages_limit=1)
            assert (await worker.run()).succeeded == 1
        assert runs == ["begun", "ended"]
    finally:
        other.kill()
        other.wait()
        assert other.stdout is not None
        other.stdout.close()


async def test_workers_with_disjoint_topics_share_a_queue(redis_url: str, prefix: str) -> None:
    """200 topics, half of them each: none is swallowed, and none waits for the other worker's."""
    seen: dict[str, list[str]] = {"a": [], "b": []}
    topics = [f"t{number}" for number in range(200)]

    def router(worker: str, names: list[str]) -> Router:
        made = Router()
        for name in names:
            made.actor(name=name, queue="q")(_noting(seen[worker], name))
        return made

    brokers = [RedisMessageBroker(redis_url, prefix=prefix) for _ in range(2)]
    async with Connection(brokers[0]) as first, Connection(brokers[1]) as second:
        workers = [
            Worker([router("a", topics[::2])], connection=first, handle_signals=(), messages_limit=300),
            Worker([router("b", topics[1::2])], connection=second, handle_signals=(), messages_limit=300),
        ]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        for _ in range(3):
            await first.enqueue_many([Job(topic, "q", connection=first) for topic in topics])
        async with asyncio.timeout(20):
            await asyncio.gather(*running)
    assert sorted(seen["a"]) == sorted(3 * topics[::2])
    assert sorted(seen["b"]) == sorted(3 * topics[1::2])


def _noting(seen: list[str], name: str) -> Callable[[], Any]:
    async def work() -> None:
        seen.append(name)

    return work
