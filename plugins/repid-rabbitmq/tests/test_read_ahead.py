"""What a worker is sent beyond what it has room for, where `read_ahead` asks for it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from repid_core import Connection, Job, Router, Worker
from repid_rabbitmq import RabbitMessageBroker
from servers import Node, eventually

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.parametrize("read_ahead", [0, 4])
async def test_so_many_more_than_can_run_are_sent_and_go_back_unharmed(
    node: Node, prefix: str, queue_type: Any, read_ahead: int
) -> None:
    """One job runs at a time, whatever waits here; what has not begun when the worker stops is there for others."""
    router, starts = Router(), list[int]()
    began, go_on = asyncio.Event(), asyncio.Event()

    @router.actor(queue="q")
    async def work(number: int) -> None:
        starts.append(number)
        began.set()
        await go_on.wait()

    broker = RabbitMessageBroker(node.url, prefix=prefix, queue_type=queue_type, read_ahead=read_ahead)
    async with Connection(broker) as connection, asyncio.TaskGroup() as group:
        for number in range(10):
            await Job("work", "q", args={"number": number}, connection=connection).enqueue()
        worker = Worker([router], tasks_limit=1, handle_signals=(), connection=connection)
        running = group.create_task(worker.run())
        await began.wait()
        name = broker.topology.names("q").base

        async def held(number: int) -> None:
            there = partial(eventually, lambda: node.queues()[name]["messages_unacknowledged"] == number, f"{number} are held")
            await asyncio.to_thread(there)

        await held(1 + read_ahead)
        assert starts == [0]
        worker.stop()
        go_on.set()
        assert (await running).processed == 1
        await held(0)
        assert (await broker.queue_stats("q")).ready == 9
        summary = await Worker([router], tasks_limit=1, messages_limit=9, handle_signals=(), connection=connection).run()
    assert summary.succeeded == 9
    if queue_type == "quorum":  # which puts what comes back behind the others
        starts.sort()
    assert starts == list(range(10))
