"""Processes on one file: they wake each other, and one that is killed, stopped or blocked costs nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from processes import PRODUCER, Process, process, worker
from repid_core import Connection, Job, Queue
from repid_core.data import DeathReason, MessageCategory
from repid_sqlite import SqliteBucketBroker, SqliteMessageBroker

pytestmark = pytest.mark.faults


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def connection(path: Path) -> Connection:
    # A lease and a poll that are longer than any test: what comes in time has come by the sockets.
    patience = {"lease": timedelta(seconds=300), "poll": timedelta(seconds=300)}
    return Connection(SqliteMessageBroker(path, **patience), results_bucket_broker=SqliteBucketBroker(path, **patience))


async def enqueue(path: Path, *numbers: int, **settings: object) -> None:
    async with connection(path) as open_connection:
        for i in numbers:
            job = Job("work", "q", id_=f"job-{i}", args={"i": i}, connection=open_connection, **settings)  # type: ignore[arg-type]
            await job.enqueue()


async def ends_with(running: Process, *, lines: int) -> list[str]:
    """What a process prints until it ends."""
    found = await asyncio.to_thread(running.rest)
    assert running.popen.returncode == 0
    assert len([line for line in found if line.startswith("begun")]) == lines
    return found


@pytest.mark.wheel
async def test_results_come_back_from_another_process(path: Path) -> None:
    async with connection(path) as here:
        with worker(path, limit=20) as running:
            await asyncio.to_thread(running.until, "ready")
            for i in range(20):  # one after the other: each is a wake-up there, and one back
                job: Job[int] = Job("work", "q", args={"i": i}, connection=here)
                await job.enqueue()
                assert await job.wait(timeout=60) == 2 * i
            await ends_with(running, lines=20)


async def test_a_delayed_job_wakes_a_worker_that_was_idle_when_it_was_enqueued(path: Path) -> None:
    async with connection(path) as here:
        with worker(path, limit=1) as running:
            await asyncio.to_thread(running.until, "ready")
            due = here.clock.now() + timedelta(seconds=0.5)
            job: Job[int] = Job("work", "q", args={"i": 4}, deferred_until=due, connection=here)
            await job.enqueue()
            assert await job.wait(timeout=60) == 8


async def test_what_a_killed_worker_held_comes_again_at_once(path: Path) -> None:
    await enqueue(path, 1, 2)
    with worker(path, lease=300, manner="hang") as killed:
        for _ in range(2):
            await asyncio.to_thread(killed.until, "begun")
        with worker(path, lease=300, limit=2) as other:
            await asyncio.to_thread(other.until, "ready")
            killed.kill()
            await ends_with(other, lines=2)
    async with connection(path):
        pass  # which clears away what the other had no time for
    assert sorted(file.name for file in path.parent.glob("*.sock")) == []


async def test_a_worker_that_starts_later_finds_the_dead_one(path: Path) -> None:
    await enqueue(path, 1)
    with worker(path, lease=300, manner="hang") as killed:
        await asyncio.to_thread(killed.until, "begun")
        killed.kill()
    with worker(path, lease=300, limit=1) as other:
        await ends_with(other, lines=1)


async def test_what_the_actors_of_a_killed_worker_have_forked_does_not_hide_its_death(path: Path) -> None:
    await enqueue(path, 1)
    with worker(path, lease=300, manner="fork") as killed:
        child = int((await asyncio.to_thread(killed.until, "forked")).split()[1])
        try:
            with worker(path, lease=300, limit=1) as other:
                await asyncio.to_thread(other.until, "ready")
                killed.popen.kill()
                await ends_with(other, lines=1)
        finally:
            os.kill(child, signal.SIGKILL)


async def test_a_worker_that_was_stopped_loses_its_lease_and_goes_on(path: Path) -> None:
    await enqueue(path, 1, store_result=False)
    with worker(path, lease=1, manner="block") as stopped:
        await asyncio.to_thread(stopped.until, "begun 1")
        os.kill(stopped.popen.pid, signal.SIGSTOP)
        with worker(path, lease=1, limit=1) as other:
            await ends_with(other, lines=1)
        os.kill(stopped.popen.pid, signal.SIGCONT)  # its own settlement comes too late, and it says so
        await enqueue(path, 2, store_result=False)
        await asyncio.to_thread(stopped.until, "begun 2")
        async with connection(path) as here:
            assert (await Queue("q", connection=here).stats()).ready == 0


async def test_a_blocked_event_loop_keeps_its_delivery(path: Path) -> None:
    await enqueue(path, 1)
    with worker(path, lease=1, limit=1, manner="block") as blocked:
        await asyncio.to_thread(blocked.until, "begun")
        with worker(path, lease=1) as other:
            await ends_with(blocked, lines=0)
            lines = other.kill()
        assert [line for line in lines if line.startswith("begun")] == []


@pytest.mark.parametrize("after", [1, 7, 40])
async def test_a_killed_producer_has_enqueued_what_it_was_told_that_it_had(path: Path, after: int) -> None:
    with process(PRODUCER, path, 0, 100_000) as producer:
        for _ in range(after):
            await asyncio.to_thread(producer.until, "enqueued")
        lines = producer.kill()
    told = after + len([line for line in lines if line.startswith("enqueued")])
    async with connection(path) as here:
        ready = (await Queue("q", connection=here).stats()).ready
        assert ready in {told, told + 1}  # the last one may have been on its way


async def test_nothing_is_lost_while_workers_are_killed_all_the_time(path: Path) -> None:
    jobs, begun = 300, list[int]()
    await enqueue(path, *range(jobs), store_result=False)
    with ExitStack() as stack:
        for _ in range(4):
            running = stack.enter_context(worker(path, manner="some"))
            for _ in range(25):
                begun.append(int((await asyncio.to_thread(running.until, "begun")).split()[1]))
            begun += [int(line.split()[1]) for line in running.kill() if line.startswith("begun")]
        last = stack.enter_context(worker(path))
        async with connection(path) as here:
            queue = Queue("q", connection=here)
            while (stats := await queue.stats()).ready or stats.in_progress:
                await asyncio.sleep(0.05)
            assert stats.dead == 0
        begun += [int(line.split()[1]) for line in last.kill() if line.startswith("begun")]
    assert set(begun) == set(range(jobs))
    assert len(begun) <= jobs + 4 * 10  # what ran when a worker was killed ran twice


async def test_a_message_that_kills_its_workers_dies_of_poison(path: Path) -> None:
    await enqueue(path, 1)
    for _ in range(5):
        with worker(path, manner="hang") as killed:
            await asyncio.to_thread(killed.until, "begun")
            killed.kill()
    async with connection(path) as here:
        dead = Queue("q", connection=here).get_messages(category=MessageCategory.DEAD)
        async for message in dead:
            assert message.death is not None
            assert (message.death.reason, message.death.attempts) == (DeathReason.POISON, 5)
            await message.ack()
            break


async def test_processes_that_make_the_file_at_once_share_it(path: Path) -> None:
    with ExitStack() as stack:
        producers = [stack.enter_context(process(PRODUCER, path, 10 * n, 10 * n + 10)) for n in range(6)]
        for producer in producers:
            assert len(await asyncio.to_thread(producer.rest)) == 10
            assert producer.popen.returncode == 0
    async with connection(path) as here:
        assert (await Queue("q", connection=here).stats()).ready == 60
