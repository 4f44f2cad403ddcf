"""The suite for middlewares."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from repid_core.app import Repid
from repid_core.connection import Connection
from repid_core.job import Job
from repid_core.memory import InMemoryBucketBroker, InMemoryMessageBroker
from repid_core.message import MessageDependency
from repid_core.middleware import Middlewares
from repid_core.router import Router
from repid_core.testing.conformance.suite import ConformanceSuite, check, promise, same
from repid_core.worker import Worker, WorkerSummary


class MiddlewareConformance(ConformanceSuite):
    """Holds a middleware to what those who add it to a connection rely on: it does no harm.

    As in::

        class TestMyMiddleware(MiddlewareConformance):
            @pytest.fixture
            def make_middleware(self) -> Callable[[], Any]:
                return MyMiddleware

    One that vetoes jobs, or replaces results, by design, says so in `deviations`.
    """

    @pytest.fixture
    def make_middleware(self) -> Callable[[], Any]:
        """The one fixture to write: a function that makes a middleware; it may give the same one each time."""
        pytest.fail(f"{type(self).__name__} needs a fixture make_middleware, which returns a function that makes a middleware")

    @promise("MW1", "It is an object with methods, or a function, named after events, and asks only for facts that there are.")
    def test_it_can_be_added(self, make_middleware: Callable[[], Any]) -> None:
        Middlewares([make_middleware()])

    @promise("MW2", "Making it touches no event loop and starts no task.")
    async def test_making_it_opens_nothing(self, make_middleware: Callable[[], Any]) -> None:
        before = asyncio.all_tasks()
        await asyncio.to_thread(make_middleware)
        check(not asyncio.all_tasks() - before, "making it started a task")

    @promise("MW3", "A job goes through it: enqueued once, run once, with its arguments and its result as they were.")
    async def test_a_job_goes_through(self, make_middleware: Callable[[], Any]) -> None:
        async with _application([make_middleware()]) as app:
            value = {"n": 1, "text": "grüße", "list": [1, None, True]}
            job = Job("echo", args={"value": value}, store_result=True)
            receipts = await app.connection.enqueue_many([job])
            same(len(receipts), 1, "the number of receipts")
            await app.work(1)
            result = await job.result
            check(result is not None and result.success, f"the result is {result!r}")
            same((result and result.data, app.calls), (value, [value]), "the result, and what the actor got")

    @promise("MW4", "It keeps the outcomes of a batch in order, one for each message.")
    async def test_a_batch_goes_through(self, make_middleware: Callable[[], Any]) -> None:
        async with _application([make_middleware()]) as app:
            ids = [f"job-{number}" for number in range(20)]
            receipts = await app.connection.enqueue_many([Job("echo", id_=id_, args=[id_]) for id_ in ids])
            same([receipt.id_ for receipt in receipts], ids, "the receipts")
            await app.work(len(ids))
            same(sorted(app.calls), sorted(ids), "what was run")

    @promise("MW5", "It hides no failure: the actor's error reaches the worker, and the message goes to DEAD.")
    async def test_failures_go_through(self, make_middleware: Callable[[], Any]) -> None:
        async with _application([make_middleware()]) as app:
            job = Job("fail", store_result=True)
            await job.enqueue()
            summary = await app.work(1)
            result = await job.result
            same((summary.failed, result and result.exception), (1, "ZeroDivisionError"), "failures, and the error")
            same((await job.queue.stats()).dead, 1, "dead messages")

    @promise("MW6", "It lets a timeout end an actor: it swallows no cancellation.")
    async def test_cancellation_goes_through(self, make_middleware: Callable[[], Any]) -> None:
        async with _application([make_middleware()]) as app:
            await Job("hang", timeout=timedelta(milliseconds=50)).enqueue()
            summary = await app.work(1)
            same(summary.failed, 1, "failures")

    @promise("MW7", "Its observers raise nothing.")
    async def test_observers_raise_nothing(self, make_middleware: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.ERROR, "repid_core.middleware"):
            async with _application([make_middleware()]) as app:
                await app.connection.enqueue_many([Job("echo", args=[1], store_result=True), Job("fail"), Job("give_up")])
                await app.work(3)
                await Job("echo").queue.flush()
        wrong = [record for record in caplog.records if record.name == "repid_core.middleware"]
        check(not wrong, "; ".join(f"{r.getMessage()}: {r.exc_info[1]!r}" for r in wrong if r.exc_info))

    @promise("MW8", "One serves jobs that run at the same time, and one connection after another.")
    async def test_many_at_once(self, make_middleware: Callable[[], Any]) -> None:
        middleware = make_middleware()
        for _ in range(2):
            async with _application([middleware]) as app:
                await app.connection.enqueue_many([Job("meet", args=[10]) for _ in range(10)])
                summary = await app.work(10)
                same(summary.succeeded, 10, "jobs that met the others")


class _Application:
    """An application in memory, with actors that do what the tests ask for."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.calls: list[Any] = []
        self._router = Router()
        for actor in (self.echo, self.fail, self.hang, self.give_up, self.meet):
            self._router.actor(actor)
        self._here, self._all_here = 0, asyncio.Event()

    async def work(self, count: int) -> WorkerSummary:
        """Run this many jobs."""
        return await Worker([self._router], messages_limit=count, handle_signals=(), connection=self.connection).run()

    async def echo(self, value: Any = None) -> Any:
        self.calls.append(value)
        return value

    async def fail(self) -> None:
        1 / 0  # noqa: B018 — the failure

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def give_up(self, message: MessageDependency) -> None:
        await message.nack()

    async def meet(self, others: int) -> None:
        self._here += 1
        if self._here == others:
            self._all_here.set()
        await self._all_here.wait()


@asynccontextmanager
async def _application(middlewares: list[Any]) -> AsyncIterator[_Application]:
    buckets = InMemoryBucketBroker()
    connection = Connection(InMemoryMessageBroker(), buckets, buckets, middlewares=middlewares)
    async with Repid(connection).magic(auto_disconnect=True):
        yield _Application(connection)
