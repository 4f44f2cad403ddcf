"""What is left behind when a test ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from repid_core import Job, Queue
from repid_core.errors import NoConnectionError
from repid_core.testing import Harness


async def left_by(fill: Callable[[Harness], Any], **options: Any) -> str:
    harness = Harness(**options)
    before = asyncio.all_tasks()
    await harness.__aenter__()
    keep = await fill(harness)
    with pytest.raises(AssertionError, match="the test left behind:") as raised:
        await harness.close()
    for task in asyncio.all_tasks() - before:
        task.cancel()
    del keep
    return str(raised.value).partition("\n")[2]


async def test_messages_that_were_received_and_not_settled() -> None:
    async def fill(kit: Harness) -> Any:
        await Job("one", queue="q").enqueue()
        consumer = kit.connection.message_broker.consumer("q", None, prefetch=1)
        await consumer.start()
        return consumer, await consumer.receive(1)

    assert await left_by(fill) == "  a message for 'one' from queue 'q', which was received and not settled"


async def test_jobs_that_wait_for_a_result_that_never_came() -> None:
    async def fill(kit: Harness) -> None:
        @kit.actor
        async def parent() -> None:
            await Job("elsewhere", result_id="r").wait()

        await Job("parent").enqueue()
        await kit.run_until_idle()

    text = await left_by(fill)
    assert text.startswith("  job 'parent', which still runs: ")
    assert "test_leaks.py:" in text
    assert len(text.splitlines()) == 1, "neither its message nor its task is another leak"


async def test_tasks_that_still_run() -> None:
    async def fill(kit: Harness) -> Any:
        async def forgotten() -> None:
            await asyncio.Event().wait()

        return asyncio.create_task(forgotten(), name="mine")

    text = await left_by(fill)
    assert text.startswith("  task 'mine', which still runs: ")
    assert text.endswith("forgotten")


async def test_results_that_nobody_has_read_if_asked_for() -> None:
    async def fill(kit: Harness) -> None:
        @kit.actor
        async def one() -> int:
            return 1

        jobs = [Job.of(one)() for _ in range(3)]
        await kit.connection.enqueue_many(jobs)
        await kit.run_until_idle()
        await jobs[0].wait()

    assert await left_by(fill, check_results=True) == "  2 results of 'one', which nobody has read"
    async with Harness() as kit:
        await fill(kit)


async def test_nothing_is_left_by_what_is_done_or_waits_in_a_queue() -> None:
    async with Harness(check_results=True) as kit:

        @kit.actor
        async def one() -> int:
            return 1

        job = Job.of(one)()
        await job.enqueue()
        await kit.run_until_idle()
        await job.wait()
        await Job("later", queue="q").enqueue()
        async for message in Queue("q").get_messages():
            await message.ack()
            break
        await asyncio.create_task(asyncio.sleep(0))


async def test_tasks_that_ran_before_are_no_matter() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    async with Harness():
        pass
    task.cancel()


async def test_the_tests_own_error_is_not_hidden() -> None:
    async def test() -> None:
        async with Harness() as kit:
            await Job("one").enqueue()
            consumer = kit.connection.message_broker.consumer("default", None, prefetch=1)
            await consumer.start()
            await consumer.receive(1)
            raise KeyError

    with pytest.raises(KeyError):
        await test()


async def test_whatever_happens_all_is_closed_and_unbound() -> None:
    threads = set(threading.enumerate())
    before = asyncio.all_tasks()
    harness = Harness()
    await harness.__aenter__()

    @harness.actor
    async def parent() -> None:
        await Job("elsewhere", result_id="r").wait()

    @harness.actor
    def threaded() -> None: ...

    await Job("threaded").enqueue()
    await Job("parent").enqueue()
    await harness.run_until_idle()
    with pytest.raises(AssertionError, match="left behind"):
        await harness.close()
    await harness.close()
    assert not harness.connection.is_open
    with pytest.raises(NoConnectionError):
        await Job("one").enqueue()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert set(threading.enumerate()) <= threads
