"""repid-sqlite beside repid-redis and the in-memory brokers, through the whole framework: a `Job` here, a `Worker` there.

    python benchmarks/sqlite.py [--rounds 5] [--jobs 3000]

All take turns within each round. What is printed is the median of the rounds, and the median of the rounds' ratios to Redis, with
the least and the most of them. Redis is a server of its own, without persistence; the file is in the folder for temporary ones.
"latency" is from before `enqueue` to the first line of the actor in another process that has nothing else to do, "recovery" from
`kill -9` of a worker to the first line of its job in another one, "idle" the processor time of a worker that waits.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.brokers.server import Redis
from repid_core import Connection, InMemoryBucketBroker, InMemoryMessageBroker, Job, Router, Worker
from repid_redis import RedisBucketBroker, RedisMessageBroker
from repid_sqlite import SqliteBucketBroker, SqliteMessageBroker

NAMES = ("sqlite", "redis", "memory")
DATA = "x" * 100


def connection(url: str) -> Connection:
    """What a URL stands for."""
    if url.startswith("redis"):
        return Connection(RedisMessageBroker(url), results_bucket_broker=RedisBucketBroker(url))
    if url == "memory":
        return Connection(InMemoryMessageBroker(), results_bucket_broker=InMemoryBucketBroker())
    return Connection(SqliteMessageBroker(url), results_bucket_broker=SqliteBucketBroker(url))


def job(here: Connection, *, result: bool = False) -> Job[None]:
    return Job("work", "q", args={"i": 1, "data": DATA}, store_result=result, connection=here)


def router(say: Callable[[], object] = lambda: None, pause: float = 0) -> Router:
    routes = Router()

    @routes.actor(name="work", queue="q")
    async def work(i: int, data: str) -> int:
        say()
        if pause:
            await asyncio.sleep(pause)
        return i

    return routes


async def worker(url: str, pause: float) -> None:
    """A worker in a process of its own."""
    async with connection(url) as here:
        print("ready", flush=True)
        await Worker([router(lambda: print(time.monotonic(), flush=True), pause)], connection=here).run()


@contextmanager
def process(url: str, pause: float = 0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--worker", url, str(pause)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:  # noqa: S603 — this very program
        try:
            line(running)
            time.sleep(0.3)  # so that it waits
            yield running
        finally:
            running.kill()


def line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None  # noqa: S101 — it is a pipe
    return running.stdout.readline()


async def rate(jobs: int, work: Awaitable[object]) -> float:
    start = time.perf_counter()
    await work
    return jobs / (time.perf_counter() - start)


async def throughput(url: str, jobs: int) -> dict[str, float]:
    """Jobs a second."""
    async with connection(url) as here:

        async def one_by_one() -> None:
            for _ in range(jobs // 4):
                await job(here).enqueue()

        async def together() -> None:
            for _ in range(jobs // 100):
                await asyncio.gather(*(job(here).enqueue() for _ in range(100)))

        async def bulk() -> None:
            for _ in range(jobs // 100):
                await here.enqueue_many([job(here) for _ in range(100)])

        figures = {
            "enqueue, one at a time": await rate(jobs // 4, one_by_one()),
            "enqueue, 100 at once": await rate(jobs // 100 * 100, together()),
            "enqueue_many, 100 each": await rate(jobs // 100 * 100, bulk()),
        }
        queued = jobs // 4 + 2 * (jobs // 100 * 100)
        run = Worker([router()], tasks_limit=100, messages_limit=queued, handle_signals=(), connection=here).run()
        return figures | {"run, 100 at once": await rate(queued, run)}


async def others(url: str) -> dict[str, float]:
    """What takes several processes; times in milliseconds."""
    async with connection(url) as here:
        with process(url) as running:
            spans = []
            for _ in range(100):
                start = time.monotonic()
                await job(here).enqueue()
                spans.append(float(await asyncio.to_thread(line, running)) - start)
                await asyncio.sleep(0.005)
            trips = []
            for _ in range(100):
                start = time.monotonic()
                asked = job(here, result=True)
                await asked.enqueue()
                await asked.wait(timeout=30)
                trips.append(time.monotonic() - start)
                await asyncio.to_thread(line, running)
            await asyncio.sleep(1)
            before = cpu(running.pid)
            await asyncio.sleep(5)
            idle = (cpu(running.pid) - before) / 5
        figures = {
            "latency, ms": statistics.median(spans) * 1000,
            "latency, 99 of 100, ms": sorted(spans)[98] * 1000,
            "result back, ms": statistics.median(trips) * 1000,
            "idle, % of a core": idle * 100,
        }
        if url.startswith("redis"):
            return figures  # which waits for the lease, 15 s
        with process(url, pause=60) as dying, process(url, pause=60) as living:
            await job(here).enqueue()
            await job(here).enqueue()
            await asyncio.gather(asyncio.to_thread(line, dying), asyncio.to_thread(line, living))
            start = time.monotonic()
            dying.kill()
            return figures | {"recovery, ms": (float(await asyncio.to_thread(line, living)) - start) * 1000}


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, redis: Redis, jobs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        url = {"sqlite": f"{folder}/jobs.db", "redis": redis.url, "memory": "memory"}[name]
        figures = asyncio.run(throughput(url, jobs))
        redis.clean()
    if name != "memory":
        with tempfile.TemporaryDirectory() as folder:
            figures |= asyncio.run(others(f"{folder}/jobs.db" if name == "sqlite" else redis.url))
            redis.clean()
    return figures


def show(rounds: list[dict[str, dict[str, float]]]) -> None:
    print(f"\n| | {' | '.join(NAMES)} | sqlite : redis |\n|---|{'--:|' * (len(NAMES) + 1)}")
    for what in rounds[0]["sqlite"]:
        cells = []
        for name in NAMES:
            found = [done[name][what] for done in rounds if what in done[name]]
            cells.append(f"{statistics.median(found):,.{0 if found[0] > 100 else 2}f}" if found else "–")
        ratios = sorted(done["sqlite"][what] / (done["redis"][what] or 1) for done in rounds if what in done["redis"])
        cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})" if ratios else "–")
        print(f"| {what} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(worker(options.worker[0], float(options.worker[1])))
        return
    with Redis() as redis:
        print(redis.describe(), "Python", sys.version.split()[0], os.cpu_count(), "processors")
        rounds = []
        for number in range(options.rounds):
            order = NAMES[number % 3 :] + NAMES[: number % 3]
            rounds.append({name: measure(name, redis, options.jobs) for name in order})
    show(rounds)


if __name__ == "__main__":
    main()
