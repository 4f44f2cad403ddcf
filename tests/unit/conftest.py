"""An application in memory, on a clock that the tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from repid_core import Connection, InMemoryBucketBroker, InMemoryMessageBroker, Repid, Router, Worker, WorkerSummary
from repid_core.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def connection(clock: ManualClock) -> AsyncIterator[Connection]:
    """Open and bound; checks at the end that nothing is left running."""
    before = asyncio.all_tasks()
    connection = Connection(
        InMemoryMessageBroker(), InMemoryBucketBroker(), InMemoryBucketBroker(use_result_bucket=True), clock=clock
    )
    async with Repid(connection).magic(auto_disconnect=True):
        yield connection
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"left running: {left}"


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def running(connection: Connection) -> Callable[..., Any]:
    """`async with running(router, …) as worker:` a worker in the background, stopped at the end."""

    @asynccontextmanager
    async def run(*routers: Router, **options: Any) -> AsyncIterator[Worker]:
        worker = Worker(routers=routers, handle_signals=(), connection=connection, **options)
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await task

    return run


@pytest.fixture
def work(connection: Connection) -> Callable[..., Awaitable[WorkerSummary]]:
    """`await work(router, n)` settles n deliveries."""

    async def run(router: Router, messages: int = 1, **options: Any) -> WorkerSummary:
        worker = Worker(routers=[router], messages_limit=messages, handle_signals=(), connection=connection, **options)
        async with asyncio.timeout(10):
            return await worker.run()

    return run
