"""Workers that are killed, cut off, and that run for longer than the server waits."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urlsplit

import pytest

from repid_core import Connection, InMemoryBucketBroker, Job, Router, Worker
from repid_core.data import Death, DeathReason
from repid_core.errors import DeliveryLostError
from repid_core.testing.proxy import FaultProxy
from repid_rabbitmq import RabbitMessageBroker
from servers import Node

pytestmark = pytest.mark.faults

SECOND = timedelta(seconds=1)

WORKER = """
    import asyncio, os, signal, sys
    from repid_core import Connection, InMemoryBucketBroker, Router, Worker
    from repid_rabbitmq import RabbitMessageBroker

    url, prefix, queue_type, phase, log = sys.argv[1:]

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

    router = Router()

    @router.actor(name="work", queue="q")
    async def work(i: int) -> int:
        with open(log, "a") as file:
            print(i, file=file)
        die("running")
        return i

    async def main():
        broker = RabbitMessageBroker(url, prefix=prefix, queue_type=queue_type)
        async with Connection(broker, results_bucket_broker=InMemoryBucketBroker(), middlewares=[Dying()]) as connection:
            print("ready", flush=True)
            await Worker([router], tasks_limit=5, connection=connection).run()

    asyncio.run(main())
"""


@pytest.fixture(params=["classic", "quorum"])
def queue_type(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def start(rabbitmq_url: str, prefix: str, queue_type: str, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """A worker in a process of its own, that kills itself in a phase."""
    processes: list[subprocess.Popen[str]] = []

    def run(phase: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", dedent(WORKER), rabbitmq_url, prefix, queue_type, phase, str(tmp_path / "runs")]
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


@asynccontextmanager
async def connected(url: str, prefix: str, queues: Sequence[str] = ("q",), **settings: Any) -> AsyncIterator[Connection]:
    """A connection whose queues are removed at the end: the server keeps files open for each, and stops when it has too many."""
    results = InMemoryBucketBroker()
    async with Connection(RabbitMessageBroker(url, prefix=prefix, **settings), results_bucket_broker=results) as connection:
        try:
            yield connection
        finally:
            for queue in queues:
                await connection.message_broker.delete_queue(queue)


def router_for(done: list[int] | Counter[int]) -> Router:
    router = Router()

    @router.actor(name="work", queue="q")
    async def work(i: int) -> int:
        if isinstance(done, Counter):
            done[i] += 1
        else:
            done.append(i)
        return i

    return router


async def until(true: Callable[[], Any], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("phase", ["fetched", "running", "result stored", "ack begun"])
async def test_kill_in_every_phase(
    start: Callable[[str], subprocess.Popen[str]], rabbitmq_url: str, prefix: str, queue_type: Any, phase: str
) -> None:
    """The server gives what it held to others as soon as its connection is gone; nothing is lost."""
    done: list[int] = []
    async with connected(rabbitmq_url, prefix, queue_type=queue_type) as connection:
        jobs = [Job("work", "q", args={"i": i}, store_result=True, connection=connection) for i in range(5)]
        await connection.enqueue_many(jobs)
        process = start(phase)
        assert await asyncio.to_thread(process.wait, 10) == -signal.SIGKILL
        killed = time.monotonic()
        worker = Worker([router_for(done)], connection=connection, handle_signals=())
        running = asyncio.create_task(worker.run())
        await until(lambda: len(set(done)) == 5)
        assert time.monotonic() - killed < 8  # an idle machine needs a few milliseconds
        worker.stop()
        await running
        assert sorted(done) == [0, 1, 2, 3, 4]
        stats = await connection.message_broker.queue_stats("q")
        assert (stats.ready, stats.delayed, stats.dead) == (0, 0, 0)


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A proxy in front of the server, and the URL through it."""
    parts = urlsplit(url)
    async with FaultProxy(parts.hostname or "", parts.port or 5672) as proxy:
        yield proxy, f"amqp://{parts.username}:{parts.password}@127.0.0.1:{proxy.port}{parts.path}"


class Slow:
    """An actor that runs until it is let go."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.go = asyncio.Event()
        self.router = Router()

        @self.router.actor(name="work", queue="q")
        async def work(i: int) -> int:
            self.begun[i] += 1
            await self.go.wait()
            self.ended[i] += 1
            return i


@pytest.mark.parametrize("ends", ["after it is back", "while it is away"])
async def test_what_runs_through_a_cut_is_not_started_again(rabbitmq_url: str, prefix: str, queue_type: Any, ends: str) -> None:
    """The server gives the messages out again, and they are known to run here: each runs once, and is acknowledged."""
    slow = Slow()
    async with (
        proxied(rabbitmq_url) as (proxy, url),
        connected(url, prefix, queue_type=queue_type) as connection,
    ):
        await connection.enqueue_many([Job("work", "q", args={"i": i}, connection=connection) for i in range(60)])
        worker = Worker([slow.router], tasks_limit=20, messages_limit=60, connection=connection, handle_signals=())
        running = asyncio.create_task(worker.run())
        await until(lambda: len(slow.begun) == 20)
        for _ in range(3):
            if ends == "after it is back":
                session = _consumer(connection)._session
                proxy.cut()
                await until(lambda session=session: _adopted(connection, session))  # type: ignore[misc]
            else:
                proxy.refuse()
                await asyncio.sleep(0.2)  # it stays away, whatever is tried
                slow.go.set()
                await asyncio.sleep(0.2)  # so that the settlements begin meanwhile
                proxy.accept()
        slow.go.set()
        async with asyncio.timeout(20):
            summary = await running
        assert set(slow.begun.values()) == set(slow.ended.values()) == {1}
        assert (summary.succeeded, summary.lost) == (60, 0)
        stats = await connection.message_broker.queue_stats("q")
        assert (stats.ready, stats.dead) == (0, 0)


def _consumer(connection: Connection) -> Any:
    [consumer] = connection.message_broker.consumers  # type: ignore[attr-defined]
    return consumer


def _adopted(connection: Connection, old: Any) -> bool:
    """Whether there is another session, which holds all that the old one held and that still runs."""
    consumer = _consumer(connection)
    return consumer.healthy and consumer._session is not old and not consumer._adrift


async def test_what_another_worker_has_got_meanwhile_is_lost(rabbitmq_url: str, prefix: str) -> None:
    async with (
        proxied(rabbitmq_url) as (proxy, url),
        connected(url, prefix) as connection,
        connected(rabbitmq_url, prefix) as other,
    ):
        await Job("work", "q", args={"i": 1}, connection=connection).enqueue()
        consumer = connection.message_broker.consumer("q", ["work"], prefetch=1)
        await consumer.start()
        [delivery] = await consumer.receive(1)
        second = other.message_broker.consumer("q", ["work"], prefetch=1)
        await second.start()
        proxy.refuse()
        async with asyncio.timeout(5):
            [again] = await second.receive(1)
        assert again.redelivered
        proxy.accept()
        with pytest.raises(DeliveryLostError):
            await delivery.nack(Death(DeathReason.NACKED, connection.clock.now()))
        await again.ack()
        await consumer.close()
        await second.close()
        stats = await other.message_broker.queue_stats("q")
        assert (stats.ready, stats.dead) == (0, 0)


@pytest.mark.timeout(180)
async def test_a_job_that_outlasts_the_servers_patience_goes_on(serve: Callable[..., Node], prefix: str) -> None:
    """The server closes the channel and gives the messages out again; a single worker adopts them."""
    node = serve("consumer_timeout = 2000", advanced="{channel_tick_interval, 1000}")
    slow = Slow()
    async with connected(node.url, prefix) as connection:
        await connection.enqueue_many([Job("work", "q", args={"i": i}, connection=connection) for i in range(3)])
        worker = Worker([slow.router], tasks_limit=10, messages_limit=3, connection=connection, handle_signals=())
        running = asyncio.create_task(worker.run())
        await until(lambda: len(slow.begun) == 3)
        session = _consumer(connection)._session
        await until(lambda: not session.is_open, 75)
        await until(lambda: _adopted(connection, session))
        slow.go.set()
        async with asyncio.timeout(10):
            summary = await running
        assert (summary.succeeded, summary.lost) == (3, 0)
        assert set(slow.begun.values()) == {1}
        assert (await connection.message_broker.queue_stats("q")).ready == 0


async def test_two_hundred_topics_on_two_workers(rabbitmq_url: str, prefix: str) -> None:
    """Half of them each: none is swallowed, and what the wrong worker gets goes round."""
    seen: dict[str, list[str]] = {"a": [], "b": []}
    topics = [f"t{number}" for number in range(200)]

    def router(worker: str, names: list[str]) -> Router:
        made = Router()
        for name in names:
            made.actor(name=name, queue="q")(_noting(seen[worker], name))
        return made

    async with connected(rabbitmq_url, prefix) as first, connected(rabbitmq_url, prefix) as second:
        workers = [
            Worker([router("a", topics[::2])], connection=first, handle_signals=(), messages_limit=200),
            Worker([router("b", topics[1::2])], connection=second, handle_signals=(), messages_limit=200),
        ]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        for _ in range(2):
            await first.enqueue_many([Job(topic, "q", connection=first) for topic in topics])
        async with asyncio.timeout(100):
            await asyncio.gather(*running)
    assert sorted(seen["a"]) == sorted(2 * topics[::2])
    assert sorted(seen["b"]) == sorted(2 * topics[1::2])


async def test_two_messages_that_come_back_together_do_not_go_round_in_step(rabbitmq_url: str, prefix: str) -> None:
    """Given out in turn, both would meet the wrong worker for ever."""
    seen: list[str] = []
    queues = ["q0", "q1"]

    def router(topic: str) -> Router:
        made = Router()
        for queue in queues:
            made.actor(name=f"{queue}-{topic}", queue=queue)(_noting(seen, topic))
        return made

    async with connected(rabbitmq_url, prefix, queues) as first, connected(rabbitmq_url, prefix) as second:
        workers = [
            Worker([router(topic)], connection=connection, handle_signals=(), messages_limit=len(queues), tasks_limit=100)
            for topic, connection in (("a", first), ("b", second))
        ]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        for number, queue in enumerate(queues):
            await until(lambda queue=queue: all(_consumes(c, queue) for c in (first, second)))  # type: ignore[misc]
            order = "ab" if number % 2 else "ba"  # one of them is the wrong one, whoever is the first to consume
            await first.enqueue_many([Job(f"{queue}-{topic}", queue, connection=first) for topic in order])
        async with asyncio.timeout(60):
            await asyncio.gather(*running)
    assert sorted(seen) == ["a"] * len(queues) + ["b"] * len(queues)


def _consumes(connection: Connection, queue: str) -> bool:
    return any(consumer.queue == queue for consumer in connection.message_broker.consumers)  # type: ignore[attr-defined]


def _noting(seen: list[str], name: str) -> Callable[[], Any]:
    async def work() -> None:
        seen.append(name)

    return work


async def test_a_message_that_kills_its_workers_is_poison(
    start: Callable[[str], subprocess.Popen[str]], rabbitmq_url: str, prefix: str, queue_type: Any, tmp_path: Path
) -> None:
    async with connected(rabbitmq_url, prefix, queue_type=queue_type) as connection:
        await Job("work", "q", args={"i": 1}, connection=connection).enqueue()
        for _ in range(5):
            process = start("running")
            assert await asyncio.to_thread(process.wait, 10) == -signal.SIGKILL
        start("never")
        broker = connection.message_broker
        async with asyncio.timeout(10):
            while (await broker.queue_stats("q")).dead != 1:
                await asyncio.sleep(0.05)
    assert (tmp_path / "runs").read_text().split() == ["1"] * 5
