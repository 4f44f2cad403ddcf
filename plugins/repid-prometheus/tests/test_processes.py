"""Several processes, whichever of them is scraped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scraping import read, sample

WORKER = """
import asyncio, sys
from datetime import timedelta
from repid_core import Connection, InMemoryMessageBroker, Job, Repid, Router, Worker
from repid_prometheus import PrometheusMiddleware

jobs, port = int(sys.argv[1]), int(sys.argv[2])
middleware = PrometheusMiddleware(port=port, depth_interval=timedelta(milliseconds=100))
router = Router()

@router.actor
async def act(number: int) -> None:
    if number == 0:
        raise LookupError

async def main() -> None:
    async with Repid(Connection(InMemoryMessageBroker(), middlewares=[middleware])).magic(auto_disconnect=True):
        await asyncio.gather(*(Job("act", args=[number]).enqueue() for number in range(jobs)))
        worker = Worker([router])
        run = asyncio.create_task(worker.run())
        while port == 0 and middleware.port is None:
            await asyncio.sleep(0.01)
        print(middleware.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        worker.stop()
        await run

asyncio.run(main())
"""


def start(jobs: int, port: int, place: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(place)}
    command = [sys.executable, "-W", "error", "-c", WORKER, str(jobs), str(port)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if condition():
                return
        except OSError:  # nobody listens now
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_any_answers_for_all(tmp_path: Path) -> None:
    """One of them has the port; when that one is gone, another takes it, and nothing that was counted is lost."""
    first = start(3, 0, tmp_path)
    assert first.stdout is not None
    port = int(first.stdout.readline())
    others = [start(jobs, port, tmp_path) for jobs in (4, 5)]
    act = {"queue": "default", "topic": "act"}

    def total(name: str, **labels: str) -> float | None:
        return sample(read(port), name, **act, **labels)

    def check() -> None:
        until(lambda: total("repid_jobs_finished_total", outcome="succeeded") == 9)
        assert total("repid_jobs_enqueued_total", outcome="new") == total("repid_jobs_started_total") == 12
        assert total("repid_jobs_dead_total") == 3
        assert total("repid_job_run_seconds_count") == 12
        until(lambda: sample(read(port), "repid_queue_messages", queue="default", state="dead") == 1)

    try:
        check()
        first.communicate()
        check()
    finally:
        for process in (first, *others):
            if process.returncode is None:
                process.communicate()
    assert [process.returncode for process in (first, *others)] == [0, 0, 0]
