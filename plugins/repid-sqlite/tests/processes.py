"""Processes for the tests: a worker and a producer on one file.

They print a line by one write, also where Python is told not to buffer: half a line is not found after `kill -9`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from textwrap import dedent

WORKER = r"""
    import asyncio, itertools, sys, time
    from datetime import timedelta
    from repid_core import Connection, Router, Worker
    from repid_sqlite import SqliteBucketBroker, SqliteMessageBroker

    path, lease, limit, manner = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    router, numbers = Router(), itertools.count(1)

    @router.actor(name="work", queue="q")
    async def work(i: int) -> int:
        print(f"begun {i}\n", end="", flush=True)
        if manner == "hang":
            await asyncio.sleep(3600)
        if manner == "block":
            time.sleep(3)
        if manner == "some" and next(numbers) >= 25:
            await asyncio.sleep(3600)
        if manner == "fork":
            import os
            if (child := os.fork()) == 0:
                time.sleep(600)
                os._exit(0)
            print(f"forked {child}\n", end="", flush=True)
            await asyncio.sleep(3600)
        return 2 * i

    async def main():
        broker = SqliteMessageBroker(path, lease=timedelta(seconds=lease))
        async with Connection(broker, results_bucket_broker=SqliteBucketBroker(path)) as connection:
            worker = Worker([router], tasks_limit=10, messages_limit=limit or None, connection=connection)
            print("ready", flush=True)
            await worker.run()
        print("done", flush=True)

    asyncio.run(main())
"""

PRODUCER = r"""
    import asyncio, sys
    from repid_core import Connection, Job
    from repid_sqlite import SqliteMessageBroker

    path, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

    async def main():
        async with Connection(SqliteMessageBroker(path)) as connection:
            for i in range(first, last):
                await Job("work", "q", id_=f"job-{i}", args={"i": i}, store_result=False, connection=connection).enqueue()
                print(f"enqueued {i}\n", end="", flush=True)

    asyncio.run(main())
"""


class Process:
    """A program that runs, and what it prints."""

    def __init__(self, program: str, *arguments: object) -> None:
        command = [sys.executable, "-c", dedent(program), *map(str, arguments)]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        """The next line, without its end; empty if there are no more."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().rstrip("\n")

    def until(self, beginning: str) -> str:
        """The next line that begins so."""
        while line := self.line():
            if line.startswith(beginning):
                return line
        raise AssertionError(f"the process has ended without a line that begins with {beginning!r}")

    def rest(self) -> list[str]:
        """All lines that are left, until it ends."""
        assert self.popen.stdout is not None
        lines = self.popen.stdout.read().splitlines()
        self.popen.wait()
        return lines

    def kill(self) -> list[str]:
        """`kill -9`, and the lines that it had printed."""
        self.popen.kill()
        return self.rest()


@contextmanager
def process(program: str, *arguments: object) -> Iterator[Process]:
    """A process that is gone afterwards."""
    running = Process(program, *arguments)
    try:
        yield running
    finally:
        running.popen.kill()
        running.popen.communicate()


def worker(path: Path, *, lease: float = 60, limit: int = 0, manner: str = "") -> AbstractContextManager[Process]:
    """A worker that ends after `limit` messages."""
    return process(WORKER, path, lease, limit, manner)
