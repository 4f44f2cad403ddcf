"""How many messages queues hold."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from datetime import timedelta

import pytest

from repid_core import Connection, Job, QueueStats, Router, Worker
from scraping import Scraped, Watch

SHORT = timedelta(milliseconds=10)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def resting(router: Router) -> asyncio.Event:
    """An actor that holds its message until the event."""
    let_go = asyncio.Event()

    @router.actor
    async def act() -> None:
        await let_go.wait()

    return let_go


async def test_while_a_worker_runs(connection: Connection, watch: Watch, scraped: Scraped, router: Router) -> None:
    watch(depth_interval=SHORT, queues=["elsewhere"])
    let_go = resting(router)
    await connection.enqueue_many([Job("act"), Job("act"), Job("act"), Job("act", deferred_by=timedelta(days=1))])
    await connection.enqueue_many([Job("act", queue="elsewhere"), Job("act", queue="nobody_asks")])
    worker = asyncio.create_task(Worker([router], tasks_limit=2, messages_limit=3, handle_signals=()).run())
    await until(lambda: scraped.depth("default", "in_progress") == 2)
    assert [scraped.depth("default", state) for state in ("ready", "delayed", "dead")] == [1, 1, 0]
    assert scraped.depth("elsewhere") == 1
    assert scraped.depth("nobody_asks") is None
    let_go.set()
    await worker
    depth = scraped.depth("default")
    assert depth is not None
    assert math.isnan(depth), "nobody asks any more"
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "repid prometheus"]


async def test_two_workers_of_a_connection_have_one_watch(
    connection: Connection, watch: Watch, scraped: Scraped, router: Router
) -> None:
    watch(depth_interval=SHORT)
    let_go = resting(router)
    workers = [Worker([router], handle_signals=()) for _ in range(2)]
    runs = [asyncio.create_task(worker.run()) for worker in workers]
    await until(lambda: scraped.depth("default") == 0)
    workers[0].stop()
    await runs[0]
    await Job("act", queue="default", id_="one").enqueue()
    await until(lambda: scraped.depth("default", "in_progress") == 1)
    let_go.set()
    workers[1].stop()
    await runs[1]
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "repid prometheus"]


async def test_a_broker_that_cannot_tell(
    connection: Connection,
    watch: Watch,
    scraped: Scraped,
    router: Router,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One queue's trouble is not another's, and what is not known is never an old number."""
    rounds = 0

    async def queue_stats(queue: str) -> QueueStats:
        nonlocal rounds
        rounds += queue == "well"
        if queue == "broken" and rounds > 0:
            raise LookupError("no such queue")
        return QueueStats(ready=7, in_progress=None, delayed=0, dead=0)

    monkeypatch.setattr(connection.message_broker, "queue_stats", queue_stats)
    caplog.set_level(logging.WARNING)
    watch(depth_interval=SHORT, queues=["broken", "well"])
    resting(router)
    worker = Worker([router], handle_signals=())
    run = asyncio.create_task(worker.run())
    await until(lambda: rounds > 3)
    broken = scraped.depth("broken")
    assert scraped.depth("well") == 7
    assert scraped.depth("well", "in_progress") is None
    assert broken is not None
    assert math.isnan(broken)
    worker.stop()
    await run
    assert [record.message for record in caplog.records] == ["the depth of broken is not known: no such queue"]


async def test_a_broker_that_hangs_hinders_nobody(
    connection: Connection, watch: Watch, scraped: Scraped, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def queue_stats(queue: str) -> QueueStats:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(connection.message_broker, "queue_stats", queue_stats)
    watch(depth_interval=SHORT, depth_timeout=SHORT)
    let_go = resting(router)
    let_go.set()
    await Job("act").enqueue()
    worker = Worker([router], handle_signals=())
    run = asyncio.create_task(worker.run())
    await until(lambda: asked > 2)
    await until(lambda: scraped.value("repid_jobs_finished_total", outcome="succeeded") == 1)
    worker.stop()
    await run


async def test_not_at_all(connection: Connection, watch: Watch, scraped: Scraped, router: Router) -> None:
    watch(queue_depth=False)
    let_go = resting(router)
    let_go.set()
    await Job("act").enqueue()
    await Worker([router], messages_limit=1, handle_signals=()).run()
    assert scraped.depth("default") is None
