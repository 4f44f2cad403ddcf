"""One measurement of one library in a process of its own: `python -m benchmarks.brokers.child MODULE:CLASS MEASURE …`.

It prints one line of JSON. Actors are counted in the worker's process; where a worker and a producer are needed at once, the
producer is measured, and starts the worker.
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
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from benchmarks.brokers.actors import REPORT, tally
from benchmarks.brokers.peer import IN_FLIGHT, Peer, UnsupportedError
from benchmarks.brokers.server import LOOKING, Sight, look

BATCHES = {"bulk": 100, "many": 10_000}  # jobs in a bulk call
PRODUCERS = {"seq": 1, "conc": IN_FLIGHT, "delayed": IN_FLIGHT}  # at once, on one loop
TRAILING = 0.3  # seconds that a worker gets to acknowledge what has ended
SETTLING = 2.0  # seconds after which an idle worker is idle
PATIENCE = 30.0  # seconds until the first job must have come

Figures = dict[str, float]


class Measure:
    """What is measured, and with what.

    Args:
        options: The command line.
        kind: The library.
    """

    def __init__(self, options: argparse.Namespace, kind: type[Peer]) -> None:
        self.options, self.kind = options, kind
        self.data = "x" * options.payload
        self.before: Sight | None = None

    def peer(self, *, results: bool = False) -> Peer:
        return self.kind(self.options.url, self.options.queue, results=results)

    # -- producers ---------------------------------------------------------------------------------------------------------

    async def produce(self, mode: str) -> Figures:
        """Enqueue jobs one after another, from many producers on one loop, for later, or with bulk calls."""
        options, peer = self.options, self.peer()
        if PRODUCERS.get(mode, 1) > 1 and not peer.many_producers:
            raise UnsupportedError
        enqueue = peer.enqueue_delayed if mode == "delayed" else peer.enqueue
        before = look(options.url)
        await peer.open()
        if mode not in BATCHES:
            await enqueue(options.actor, 0, self.data)  # connects; it counts, but is not timed
        counter = iter(range(0 if mode in BATCHES else 1, options.jobs))
        gc.collect()
        began, used, seen = time.perf_counter(), time.process_time(), look(options.url)
        end = began + options.seconds

        async def one_by_one() -> int:
            enqueued = 0
            for i in counter:
                await enqueue(options.actor, i, self.data)
                enqueued += 1
                if time.perf_counter() > end:
                    break
            return enqueued

        if mode in BATCHES:
            jobs = 0
            while (batch := [(i, self.data) for i in islice(counter, BATCHES[mode])]) and time.perf_counter() < end:
                await peer.enqueue_all(options.actor, batch)
                jobs += len(batch)
        else:
            jobs = sum(await asyncio.gather(*(one_by_one() for _ in range(PRODUCERS[mode]))))
        took, used = time.perf_counter() - began, time.process_time() - used
        after = look(options.url)
        await peer.close()
        figures = {"jobs": jobs + (mode not in BATCHES), "per_second": jobs / took, "cpu_us": used / jobs * 1e6}
        if seen is not None and after is not None:
            figures["server_us"] = (after.cpu - seen.cpu) / jobs * 1e6
        await asyncio.sleep(0.1)  # the server frees what it kept for the connections
        if before is not None and (left := look(options.url)) is not None:
            figures["bytes"] = (left.memory - before.memory) / figures["jobs"]
        return figures

    async def latency(self) -> Figures:
        """From before the call that enqueues to the first line of the actor, in a worker that has nothing else to do."""
        options, loop = self.options, asyncio.get_running_loop()
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        here.setblocking(False)
        peer, times = self.peer(), []
        with here, there, self.worker(concurrency=10, report=there):
            await peer.open()
            for i in range(-10, options.jobs):
                await asyncio.sleep(random.uniform(0.005, 0.015))
                began = time.monotonic_ns()
                await peer.enqueue("stamp", i, "")
                while True:
                    number, started = (await asyncio.wait_for(loop.sock_recv(here, 64), PATIENCE)).split()
                    if int(number) == i:
                        break
                if i >= 0:
                    times.append((int(started) - began) / 1e6)
            await peer.close()
        times.sort()
        return {"p50_ms": times[len(times) // 2], "p99_ms": times[min(len(times) - 1, len(times) * 99 // 100)]}

    async def roundtrip(self) -> Figures:
        """Enqueue and wait for the result, many at once; the worker is another process."""
        options, peer = self.options, self.peer(results=True)
        with self.worker(concurrency=IN_FLIGHT, results=True):
            await peer.open()
            for i in range(-5, 0):
                await asyncio.wait_for(peer.result(await peer.enqueue("noop", i, self.data)), PATIENCE)
            counter = iter(range(options.jobs))
            began = time.perf_counter()
            end = began + options.seconds

            async def one_by_one() -> int:
                done = 0
                for i in counter:
                    if (result := await peer.result(await peer.enqueue("noop", i, self.data))) != i:
                        raise RuntimeError(f"job {i} gave {result!r}")
                    done += 1
                    if time.perf_counter() > end:
                        break
                return done

            jobs = sum(await asyncio.gather(*(one_by_one() for _ in range(IN_FLIGHT))))
            took = time.perf_counter() - began
            await peer.close()
        return {"jobs": jobs, "per_second": jobs / took}

    @contextmanager
    def worker(self, *, concurrency: int, results: bool = False, report: socket.socket | None = None) -> Iterator[None]:
        """A worker in a process of its own."""
        options = self.options
        command = [sys.executable, "-m", __spec__.name, options.peer, "work", f"--url={options.url}", f"--queue={options.queue}"]
        command += [f"--concurrency={min(concurrency, self.kind.concurrency or concurrency)}", *["--results"] * results]
        files = () if report is None else (report.fileno(),)
        environment = {**os.environ, REPORT: "".join(map(str, files))}
        with subprocess.Popen(command, env=environment, pass_fds=files, stdout=subprocess.DEVNULL) as process:  # noqa: S603 — this module
            try:
                yield
            finally:
                process.kill()  # nobody needs what it would say

    # -- workers -----------------------------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Work until killed."""
        await self.peer(results=self.options.results).work(self.options.concurrency)

    async def consume(self) -> None:
        """Work on what is queued, and say how fast."""
        most = self.kind.concurrency
        if most is not None and self.options.concurrency > most:
            raise UnsupportedError
        tally.wanted = self.options.jobs
        self.before = look(self.options.url)
        threading.Thread(target=self._watch, daemon=True).start()
        await self.work()

    async def idle(self) -> None:
        """Wait for jobs, and say what that costs."""
        threading.Thread(target=self._watch_idle, daemon=True).start()
        await self.work()

    def _watch(self) -> None:
        options = self.options
        patience = time.monotonic() + PATIENCE
        while not tally.done and not tally.began:
            if time.monotonic() > patience:
                _tell({"error": "no job has come"})
            time.sleep(0.01)
        if tally.full.wait(options.seconds):
            done, last, used = tally.done, tally.last, tally.used[1]
        else:
            done, last, used = tally.done, tally.last, time.process_time()
        if done < min(2, tally.wanted):
            _tell({"error": f"{done} of {tally.wanted} jobs were done"})
        time.sleep(TRAILING)
        jobs = done - 1  # the first one starts the clock
        figures = {
            "jobs": done,
            "per_second": jobs / (last - tally.first) * 1e9,
            "total_s": (last - (tally.began or tally.first)) / 1e9,
            "cpu_us": (used - tally.used[0]) / jobs * 1e6,
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if self.before is not None and (after := look(options.url)) is not None:
            figures["server_us"] = (after.cpu - self.before.cpu) / tally.done * 1e6
        _tell(figures)

    def _watch_idle(self) -> None:
        time.sleep(SETTLING)
        url, seconds = self.options.url, self.options.seconds
        before, used = look(url), time.process_time()
        time.sleep(seconds)
        figures = {"cpu_percent": (time.process_time() - used) / seconds * 100}
        after = look(url)
        if before is not None and after is not None:
            figures["packets_per_s"] = (after.packets - before.packets - LOOKING) / seconds
        _tell(figures)


def _tell(figures: Figures | dict[str, Any]) -> None:
    """Say it, and end: some libraries cannot be stopped in any other way."""
    print(json.dumps(figures), flush=True)
    os._exit(0)


def _run(step: Coroutine[Any, Any, Figures | None]) -> Figures | None:
    """With uvloop, where the library's Python has it."""
    run: Callable[[Coroutine[Any, Any, Figures | None]], Figures | None]
    try:
        run = importlib.import_module("uvloop").run
    except ImportError:
        run = asyncio.run
    return run(step)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", metavar="MODULE:CLASS")
    parser.add_argument("measure", choices=[*PRODUCERS, *BATCHES, "consume", "latency", "roundtrip", "idle", "work"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=4.0, help="what is not done by then is left")
    parser.add_argument("--payload", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--actor", choices=["noop", "sleeper"], default="noop")
    parser.add_argument("--results", action="store_true")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # no library's log lines are part of the measurement
    module, _, name = options.peer.partition(":")
    measure = Measure(options, getattr(importlib.import_module(module), name))
    name = options.measure
    step = measure.produce(name) if name in {*PRODUCERS, *BATCHES} else getattr(measure, name)()
    try:
        figures = _run(step)
    except UnsupportedError:
        figures = {}
    _tell(figures if figures is not None else {"error": "the worker has ended"})


if __name__ == "__main__":
    main()
