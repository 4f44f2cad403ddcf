"""Core in memory: jobs per second beside repid 1.6.0 in the same run, scaling, idle cost, memory, import time.

    python -m venv /some/where/repid16 && /some/where/repid16/bin/pip install repid==1.6.0
    python benchmarks/core.py --peer /some/where/repid16/bin/python            # the comparison and the rest
    python benchmarks/core.py --only memory --jobs 1000000                     # one part

Each measurement is a process of its own; the rounds of the two libraries take turns, and the ratios are those of one
round. Figures of different machines or moments do not compare; ratios do.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

logging.disable(logging.CRITICAL)  # neither library's log lines are part of the measurement


class Ours:
    """repid-core."""

    def __init__(self, buckets: bool) -> None:
        import repid_core as r

        self.r = r
        self.connection = r.Connection(
            r.InMemoryMessageBroker(),
            r.InMemoryBucketBroker() if buckets else None,
            r.InMemoryBucketBroker(use_result_bucket=True) if buckets else None,
        )
        self.router = r.Router()
        self.options: dict[str, Any] = {"connection": self.connection}

    def worker(self, limit: int, tasks: int = 1000) -> Any:
        return self.r.Worker([self.router], messages_limit=limit, tasks_limit=tasks, handle_signals=[], connection=self.connection)


class Repid16:
    """repid 1.6.0."""

    def __init__(self, buckets: bool) -> None:
        import repid as r

        self.r = r
        self.connection = r.Connection(
            r.InMemoryMessageBroker(),
            r.InMemoryBucketBroker() if buckets else None,
            r.InMemoryBucketBroker(use_result_bucket=True) if buckets else None,
        )
        self.router = r.Router()
        self.options = {"_connection": self.connection}

    def worker(self, limit: int, tasks: int = 1000) -> Any:
        return self.r.Worker([self.router], messages_limit=limit, tasks_limit=tasks, handle_signals=[], _connection=self.connection)


async def throughput(make: type[Ours] | type[Repid16], jobs: int, buckets: bool) -> dict[str, float]:
    """Enqueue one after another, then consume them all; a no-op async actor with two arguments."""
    peer = make(buckets)

    @peer.router.actor
    async def noop(i: int, data: str) -> int:
        return i

    await peer.connection.connect()
    await peer.r.Queue("default", **({"_connection": peer.connection} if make is Repid16 else {"connection": peer.connection})).declare()
    gc.collect()
    start = time.perf_counter()
    for i in range(jobs):
        await peer.r.Job("noop", args={"i": i, "data": "x" * 100}, **peer.options).enqueue()
    enqueued = time.perf_counter()
    await peer.worker(jobs).run()
    consumed = time.perf_counter()
    await peer.connection.disconnect()
    return {"enqueue": jobs / (enqueued - start), "consume": jobs / (consumed - enqueued), "both": jobs / (consumed - start)}


async def delayed(jobs: int) -> dict[str, float]:
    """Enqueue delayed jobs in random order, and deliver them once they are due, on a clock that is moved."""
    import random

    import repid_core as r
    from repid_core.testing.clock import ManualClock

    clock = ManualClock()
    connection = r.Connection(r.InMemoryMessageBroker(), clock=clock)
    router = r.Router()

    @router.actor
    async def noop() -> None: ...

    now, random_ = clock.now(), random.Random(1)
    async with connection:
        times = [now + timedelta(seconds=random_.uniform(1, 1000)) for _ in range(jobs)]
        start = time.perf_counter()
        for due in times:
            await r.Job("noop", deferred_until=due, connection=connection).enqueue()
        enqueued = time.perf_counter()
        worker = r.Worker([router], messages_limit=jobs, handle_signals=[], connection=connection)
        task = asyncio.create_task(worker.run())
        step = timedelta(seconds=1)
        while not task.done():
            await clock.advance(step)
        delivered = time.perf_counter()
    return {"enqueue_us": (enqueued - start) / jobs * 1e6, "deliver_us": (delivered - enqueued) / jobs * 1e6}


async def idle(seconds: float) -> dict[str, float]:
    """The processor time of a worker that waits beside 100,000 delayed jobs, as a share of one core."""
    import repid_core as r

    connection = r.Connection(r.InMemoryMessageBroker())
    router = r.Router()

    @router.actor
    async def noop() -> None: ...

    async with connection:
        await connection.enqueue_many(
            [r.Job("noop", deferred_by=timedelta(days=1), connection=connection) for _ in range(100_000)]
        )
        worker = r.Worker([router], handle_signals=[], connection=connection)
        task = asyncio.create_task(worker.run())
        await asyncio.sleep(0.5)
        before, start = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        share = (time.process_time() - before) / (time.perf_counter() - start)
        worker.stop()
        await task
    return {"idle_percent": share * 100}


async def memory(jobs: int, buckets: bool) -> dict[str, float]:
    """Resident memory and live objects after the first tenth of the jobs, and after all of them."""
    import repid_core as r

    shelf = r.InMemoryBucketBroker() if buckets else None
    connection = r.Connection(r.InMemoryMessageBroker(), shelf, shelf)
    router = r.Router()

    @router.actor
    async def noop(i: int, data: str) -> int:
        return i

    marks = []
    tenth = jobs // 10
    before = asyncio.all_tasks()
    async with connection:
        worker = r.Worker([router], messages_limit=tenth, handle_signals=[], connection=connection)
        for _ in range(10):
            for start in range(0, tenth, 10_000):
                batch = [
                    r.Job("noop", args={"i": i, "data": "x"}, result_ttl=timedelta(seconds=1), connection=connection)
                    for i in range(start, min(start + 10_000, tenth))
                ]
                await connection.enqueue_many(batch)
            del batch
            await worker.run()
            if buckets:
                await asyncio.sleep(1.1)
                await shelf.store_bucket("sweep", b"", timedelta(seconds=1))
            gc.collect()
            with open("/proc/self/statm") as statm:
                marks.append((int(statm.read().split()[1]) * resource.getpagesize() / 2**20, len(gc.get_objects())))
    assert asyncio.all_tasks() == before, "a task is left after disconnect"
    return {"rss_first_mb": marks[0][0], "rss_last_mb": marks[-1][0], "objects_first": marks[0][1], "objects_last": marks[-1][1]}


def import_time() -> dict[str, float]:
    """Milliseconds of `import repid_core` in a fresh process, less those of an empty one; the best of eight."""

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def best(code: str) -> float:
        times = []
        for _ in range(8):  # the first one may have to compile
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=environment)
            times.append(time.perf_counter() - start)
        return min(times) * 1000

    return {"import_ms": best("import repid_core") - best("pass")}


def child(arguments: argparse.Namespace) -> dict[str, float]:
    """One measurement in this process."""
    what, jobs = arguments.child, arguments.jobs
    if what == "import":
        return import_time()
    make = Repid16 if what.startswith("repid16") else Ours
    coroutine = {
        "ours": lambda: throughput(make, jobs, buckets=False),
        "repid16": lambda: throughput(make, jobs, buckets=False),
        "ours-buckets": lambda: throughput(make, jobs, buckets=True),
        "repid16-buckets": lambda: throughput(make, jobs, buckets=True),
        "delayed": lambda: delayed(jobs),
        "idle": lambda: idle(10),
        "memory": lambda: memory(jobs, buckets=False),
        "memory-buckets": lambda: memory(jobs, buckets=True),
    }[what]()
    return asyncio.run(coroutine)


def measure(python: str, what: str, jobs: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [python, os.path.abspath(__file__), "--child", what, "--jobs", str(jobs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"})
    return json.loads(done.stdout.splitlines()[-1])


def compare(peer: str, suffix: str, jobs: int, rounds: int) -> None:
    """Take turns, and print medians and the ratios of the rounds."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(measure(sys.executable, "ours" + suffix, jobs))
        theirs.append(measure(peer, "repid16" + suffix, jobs))
    print(f"\n| {'args and result buckets' if suffix else 'no buckets'} | repid-core /s | repid 1.6.0 /s | ratio (min to max of {rounds}) |")
    print("|---|---|---|---|")
    for part in ("enqueue", "consume", "both"):
        ratios = sorted(mine[part] / other[part] for mine, other in zip(ours, theirs, strict=True))
        middle = [statistics.median(run[part] for run in runs) for runs in (ours, theirs)]
        print(f"| {part} | {middle[0]:,.0f} | {middle[1]:,.0f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the Python that has repid 1.6.0")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["compare", "delayed", "idle", "memory", "memory-buckets", "import"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments)))
        return
    wanted = [arguments.only] if arguments.only else ["compare", "delayed", "idle", "memory", "memory-buckets", "import"]
    for what in wanted:
        if what == "compare":
            if arguments.peer is None:
                print("no --peer: the comparison is left out")
                continue
            compare(arguments.peer, "", arguments.jobs, arguments.rounds)
            compare(arguments.peer, "-buckets", arguments.jobs, arguments.rounds)
        elif what == "delayed":
            for jobs in (1_000, 10_000, 100_000):
                print(f"delayed, {jobs:,} jobs: {measure(sys.executable, what, jobs)}")
        else:
            jobs = max(arguments.jobs, 1_000_000 if what.startswith("memory") and not arguments.only else 0)
            print(f"{what}: {measure(sys.executable, what, jobs)}")


if __name__ == "__main__":
    main()
