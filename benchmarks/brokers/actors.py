"""The jobs that every library runs, and what is counted of them. They take an `int` and a text, and give back the `int`."""

from __future__ import annotations

import asyncio
import os
import threading
import time

REPORT = "REPID_BENCHMARK_REPORT"  # the variable with the file descriptor to which `stamp` reports


class Tally:
    """What the actors of this process have done; times are nanoseconds of the machine's monotonic clock.

    Attributes:
        wanted: How many jobs there are.
        done: How many have ended.
        began: When the first one began.
        first: When the first one ended.
        last: When the last one ended.
        used: Processor time when the first one ended, and at the end.
        full: Set when all have ended.
    """

    def __init__(self) -> None:
        self.wanted = self.done = self.began = self.first = self.last = 0
        self.used = [0.0, 0.0]
        self.full = threading.Event()  # a thread waits for it, for some libraries block the event loop

    def begin(self) -> None:
        if not self.began:
            self.began = time.monotonic_ns()

    def end(self) -> None:
        self.last = time.monotonic_ns()
        self.done += 1
        if self.done == 1:
            self.first = self.last
            self.used[0] = time.process_time()
        if self.done == self.wanted:
            self.used[1] = time.process_time()
            self.full.set()


tally = Tally()


async def noop(i: int, data: str) -> int:
    tally.end()
    return i


async def sleeper(i: int, data: str) -> int:
    tally.begin()
    await asyncio.sleep(1)
    tally.end()
    return i


async def stamp(i: int, data: str) -> int:
    os.write(int(os.environ[REPORT]), b"%d %d" % (i, time.monotonic_ns()))
    return i


ACTORS = {actor.__name__: actor for actor in (noop, sleeper, stamp)}


def noop_sync(i: int, data: str) -> int:
    tally.end()
    return i


def stamp_sync(i: int, data: str) -> int:
    os.write(int(os.environ[REPORT]), b"%d %d" % (i, time.monotonic_ns()))
    return i
