"""Enqueue from synchronous code, beside the asynchronous API: `python benchmarks/sync.py [--redis URL]`.

Each job waits for its receipt before the next is sent: from one caller and from eight, which are tasks or threads. The last row
sends jobs by the hundred, with `enqueue_many`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from repid_core import Connection, InMemoryMessageBroker, Job, Queue, Repid

CALLERS, BATCH = 8, 100
Measure = Callable[[Callable[[], Repid], int], float]


def job() -> Job[object]:
    return Job("noop", args={"a": 1, "b": "two"})


def asynchronous(callers: int) -> Measure:
    def measure(make: Callable[[], Repid], jobs: int) -> float:
        async def call(count: int) -> None:
            for _ in range(count):
                await job().enqueue()

        async def main() -> float:
            async with make().magic(auto_disconnect=True):
                await job().enqueue()
                start = time.perf_counter()
                await asyncio.gather(*(call(jobs // callers) for _ in range(callers)))
                seconds = time.perf_counter() - start
                await Queue().delete()
            return jobs / seconds

        return asyncio.run(main())

    return measure


def synchronous(callers: int) -> Measure:
    def measure(make: Callable[[], Repid], jobs: int) -> float:
        with make().sync() as repid, ThreadPoolExecutor(callers) as pool:

            def call(count: int) -> None:
                for _ in range(count):
                    repid.enqueue(job())

            list(pool.map(call, [1] * callers))
            start = time.perf_counter()
            list(pool.map(call, [jobs // callers] * callers))
            seconds = time.perf_counter() - start
            repid.run(Queue().delete)
        return jobs / seconds

    return measure


def asynchronous_batches(make: Callable[[], Repid], jobs: int) -> float:
    async def main() -> float:
        async with make().magic(auto_disconnect=True) as connection:
            start = time.perf_counter()
            for _ in range(jobs // BATCH):
                await connection.enqueue_many(job() for _ in range(BATCH))
            seconds = time.perf_counter() - start
            await Queue().delete()
        return jobs / seconds

    return asyncio.run(main())


def synchronous_batches(make: Callable[[], Repid], jobs: int) -> float:
    with make().sync() as repid:
        repid.connect()
        start = time.perf_counter()
        for _ in range(jobs // BATCH):
            repid.enqueue_many(job() for _ in range(BATCH))
        seconds = time.perf_counter() - start
        repid.run(Queue().delete)
    return jobs / seconds


ROWS: dict[str, tuple[Measure, Measure]] = {
    "1 caller": (asynchronous(1), synchronous(1)),
    f"{CALLERS} callers": (asynchronous(CALLERS), synchronous(CALLERS)),
    f"1 caller, {BATCH} at once": (asynchronous_batches, synchronous_batches),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--redis", metavar="URL")
    options = parser.parse_args()

    def in_memory() -> Repid:
        return Repid(Connection(InMemoryMessageBroker()))

    def on_redis() -> Repid:
        from repid_redis import RedisMessageBroker  # noqa: PLC0415 — only where it is asked for

        return Repid(Connection(RedisMessageBroker(options.redis, prefix=f"bench-{uuid.uuid4().hex}")))

    print(f"{'':32}{'async /s':>12}{'sync /s':>12}  ratio (minimum to maximum of {options.rounds} rounds)")
    for name, make in {"memory": in_memory, **({"redis": on_redis} if options.redis else {})}.items():
        for row, measures in ROWS.items():
            rounds = []
            for _ in range(options.rounds):
                gc.collect()
                rounds.append([measure(make, options.jobs) for measure in measures])
            ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratios = sorted(sync / other for other, sync in rounds)
            print(
                f"{name + ', ' + row:32}{ours:12,.0f}{theirs:12,.0f}  {theirs / ours:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()
