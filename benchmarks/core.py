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
import importlib
import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

logging.disable(logging.CRITICAL)  # neither library's log lines are part of the measurement


class Peer:
    """One library: both have the same names, but for one argument."""

    package: str
    argument: str

    def __init__(self, *, buckets: bool) -> None:
        self.r = r = importlib.import_module(self.package)
        self.connection = r.Connection(
            r.InMemoryMessageBroker(),
            r.InMemoryBucketBroker() if buckets else None,
            r.InMemoryBucketBroker(use_result_bucket=True) if buckets else None,
        )
        self.router = r.Router()
        self.options: dict[str, Any] = {self.argument: self.connection}

    def worker(self, limit: int) -> Any:
        return self.r.Worker([self.router], messages_limit=limit, handle_signals=[], **self.options)


class Ours(Peer):
    """repid-core."""

    package, argument = "repid_core", "connection"


class Repid16(Peer):
    """repid 1.6.0."""

    package, argument = "repid", "_connection"


async def throughput(make: type[Peer], jobs: int, *, buckets: bool) -> dict[str, float]:
    """Enqueue one after another, then consume them all; a no-op async actor with two arguments."""
    peer = make(buckets=buckets)

    @peer.router.actor  # type: ignore[untyped-decorator]
    async def noop(i: int, data: str) -> int:
        return i

    await peer.connection.connect()
    await peer.r.Queue("default", **peer.options).declare()
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
    r, ManualClock = importlib.import_module("repid_core"), importlib.import_module("repid_core.testing.clock").ManualClock  # noqa: N806

    clock = ManualClock()
    connection = r.Connection(r.InMemoryMessageBroker(), clock=clock)
    router = r.Router()

    @router.actor  # type: ignore[untyped-decorator]
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
    r: Any = importlib.import_module("repid_core")

    connection = r.Connection(r.InMemoryMessageBroker())
    router = r.Router()

    @router.actor  # type: ignore[untyped-decorator]
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


async def memory(jobs: int, *, buckets: bool) -> dict[str, float]:
    """Resident memory after each tenth of the jobs, and the blocks that Python has allocated after the first and the last."""
    r: Any = importlib.import_module("repid_core")

    shelf = r.InMemoryBucketBroker() if buckets else None
    connection = r.Connection(r.InMemoryMessageBroker(), shelf, shelf)
    router = r.Router()

    @router.actor  # type: ignore[untyped-decorator]
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
            await worker.run()
            if shelf is not None:
                await asyncio.sleep(1.1)
                await shelf.store_bucket("sweep", b"", timedelta(seconds=1))
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])  # noqa: ASYNC240 — it is no disk
            marks.append((pages * resource.getpagesize() / 2**20, sys.getallocatedblocks()))
    if asyncio.all_tasks() != before:
        raise RuntimeError("a task is left after disconnect")
    (_, first_blocks), (_, last_blocks) = marks[0], marks[-1]
    sizes = {f"rss_mb_{n}0%": round(size) for n, (size, _) in enumerate(marks, 1)}
    return {**sizes, "blocks_first": first_blocks, "blocks_last": last_blocks}


def import_time() -> dict[str, float]:
    """Milliseconds of `import repid_core` in a fresh process, less those of an empty one; the best of eight."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def best(code: str) -> float:
        times = []
        for _ in range(8):  # the first one may have to compile
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=environment)  # noqa: S603 — this very interpreter
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
    command = [python, str(Path(__file__).resolve()), "--child", what, "--jobs", str(jobs)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603 — as the user says
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(peer: str, suffix: str, jobs: int, rounds: int) -> None:
    """Take turns, and print medians and the ratios of the rounds."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(measure(sys.executable, "ours" + suffix, jobs))
        theirs.append(measure(peer, "repid16" + suffix, jobs))
    what = "args and result buckets" if suffix else "no buckets"
    print(f"\n| {what} | repid-core /s | repid 1.6.0 /s | ratio (min to max of {rounds}) |\n|---|---|---|---|")
    for part in ("enqueue", "consume", "both"):
        ratios = sorted(mine[part] / other[part] for mine, other in zip(ours, theirs, strict=True))
        mine, other = (statistics.median(run[part] for run in runs) for runs in (ours, theirs))
        span = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {part} | {mine:,.0f} | {other:,.0f} | {span} |")


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
