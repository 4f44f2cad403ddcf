"""What type checkers know of the synchronous side; checked by mypy, never run."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import assert_type

from repid_core import Connection, InMemoryMessageBroker, Job, Queue, QueueStats, Receipt, Repid, ResultBucket, Router, SyncRepid
from repid_core.testing import Event, SyncHarness

router = Router()


@router.actor
async def greet(user_id: int, name: str = "you") -> str:
    """An actor."""
    return f"{user_id}: {name}"


app = Repid(Connection(InMemoryMessageBroker()))
assert_type(app.sync(), SyncRepid)

with app.sync() as repid:
    assert_type(repid, SyncRepid)
    job = Job.of(greet)(user_id=1)
    assert_type(repid.enqueue(job), Receipt)
    assert_type(repid.enqueue(Job("greet"), timeout=timedelta(seconds=1)), Receipt)
    assert_type(repid.enqueue_many([job, Job("greet")], timeout=None), list[Receipt])
    assert_type(repid.wait(job, timeout=5), str)
    assert_type(repid.wait(job), str)
    assert_type(repid.result(job), ResultBucket | None)
    assert_type(repid.cancel(job), bool)
    assert_type(repid.run(Queue("mail").stats), QueueStats)
    assert_type(repid.run(Queue("mail").stats(), timeout=1.5), QueueStats)
    assert_type(repid.run(lambda: job.wait(5)), str)
    repid.run(asyncio.sleep)  # type: ignore[arg-type]
    repid.enqueue("greet")  # type: ignore[arg-type]

with SyncHarness([router], eager=True) as harness:
    assert_type(harness.run_one(), Event | None)
    assert_type(harness.run(job.wait), str)
