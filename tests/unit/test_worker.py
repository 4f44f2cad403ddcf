"""Limits, fairness, shutdown and health of a worker: sentences W5, W6 and W8 of the contract."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from datetime import timedelta

import pytest

from repid_core import (
    HealthCheckServerSettings,
    InvalidActorError,
    Job,
    MessageDependency,
    Queue,
    Router,
    Worker,
)
from repid_core.errors import BrokerConnectionError, NoConnectionError, UsageError

SECOND = timedelta(seconds=1)


class TestLimits:
    async def test_messages_limit_settles_exactly_so_many_and_gives_back_the_rest(self, router, work, connection):
        """W6"""
        runs: list[int] = []

        @router.actor
        async def act(i: int) -> None:
            runs.append(i)
            await asyncio.sleep(0)

        await connection.enqueue_many([Job("act", args=[i]) for i in range(10)])
        summary = await work(router, 3)
        stats = await Queue().stats()
        assert (summary.processed, len(runs)) == (3, 3)
        assert (stats.ready, stats.in_progress) == (7, 0)
        assert (await work(router, 7)).processed == 7

    async def test_invalid_and_expired_count_and_rejects_do_not(self, router, work, connection, clock):
        """W6"""
        rejected: list[int] = []

        @router.actor
        async def act(message: MessageDependency, a: int = 0) -> None:
            if not rejected:
                rejected.append(1)
                message.reject()

        await Job("act", args={"a": "x"}).enqueue()
        await Job("act", ttl=SECOND).enqueue()
        await Job("act").enqueue()
        await clock.advance(2 * SECOND)
        summary = await work(router, 3, tasks_limit=1)
        assert (summary.processed, summary.invalid, summary.expired, summary.succeeded, summary.rejected) == (3, 1, 1, 1, 1)

    async def test_tasks_limit_bounds_the_jobs_in_flight_over_all_queues(self, router, running, connection):
        """W6"""
        release, most, now = asyncio.Event(), 0, 0

        async def act() -> None:
            nonlocal most, now
            now += 1
            most = max(most, now)
            await release.wait()
            now -= 1

        for name in "abc":
            router.actor(name=name, queue=name)(act)
        await connection.enqueue_many([Job(name, queue=name) for name in "abc" for _ in range(5)])
        async with running(router, tasks_limit=4) as worker:
            for _ in range(50):
                await asyncio.sleep(0)
            assert now == 4
            held = [(await Queue(name).stats()).in_progress for name in "abc"]
            assert sum(count or 0 for count in held) == 4, "it holds what it cannot run"
            release.set()
            for _ in range(100):
                await asyncio.sleep(0)
            worker.stop()
        assert most == 4
        assert [(await Queue(name).stats()).ready for name in "abc"] == [0, 0, 0]

    async def test_queues_share_the_places_in_turn(self, router, running, connection):
        """W6: a long queue does not starve the others."""
        order: list[str] = []

        def actor(name: str) -> None:
            async def act() -> None:
                order.append(name)
                await asyncio.sleep(0)

            router.actor(name=name, queue=name)(act)

        for name in ("long", "short"):
            actor(name)
        await connection.enqueue_many([Job("long", queue="long") for _ in range(100)])
        await connection.enqueue_many([Job("short", queue="short") for _ in range(10)])
        async with running(router, tasks_limit=2):
            while len(order) < 40:
                await asyncio.sleep(0)
        assert Counter(order[:40])["short"] == 10

    async def test_an_idle_queue_does_not_hold_the_only_place(self, router, running, connection):
        """W6"""
        done = asyncio.Event()

        @router.actor(queue="idle")
        async def never() -> None: ...

        @router.actor(queue="busy")
        async def act() -> None:
            done.set()

        async with running(router, tasks_limit=1):
            await asyncio.sleep(0)
            await Job("act", queue="busy").enqueue()
            async with asyncio.timeout(5):
                await done.wait()


class TestShutdown:
    async def test_running_jobs_get_their_time(self, router, connection):
        """W5"""
        started, release = asyncio.Event(), asyncio.Event()

        @router.actor
        async def act() -> str:
            started.set()
            await release.wait()
            return "done"

        job: Job[str] = Job("act")
        await job.enqueue()
        worker = Worker([router], handle_signals=())
        task = asyncio.create_task(worker.run())
        await started.wait()
        worker.stop()
        await asyncio.sleep(0.01)
        assert not task.done()
        release.set()
        summary = await task
        assert summary.succeeded == 1
        assert await job.wait(0) == "done"

    async def test_the_rest_are_cancelled_and_rejected_with_nothing_counted(self, router, connection):
        """W5"""
        started = asyncio.Event()

        @router.actor
        async def act() -> None:
            started.set()
            await asyncio.Event().wait()

        await Job("act", retries=3).enqueue()
        worker = Worker([router], graceful_shutdown_time=0.01, handle_signals=())
        task = asyncio.create_task(worker.run())
        await started.wait()
        worker.stop()
        summary = await task
        assert (summary.processed, summary.rejected) == (0, 1)
        stats = await Queue().stats()
        assert (stats.ready, stats.in_progress) == (1, 0)
        async for message in Queue().get_messages():
            assert message.parameters.tried == 0
            break

    async def test_a_second_stop_does_not_wait(self, router, connection):
        """W5"""
        started = asyncio.Event()

        @router.actor
        async def act() -> None:
            started.set()
            await asyncio.Event().wait()

        await Job("act").enqueue()
        worker = Worker([router], graceful_shutdown_time=60, handle_signals=())
        task = asyncio.create_task(worker.run())
        await started.wait()
        worker.stop()
        worker.stop()
        async with asyncio.timeout(3):
            assert (await task).rejected == 1

    async def test_a_stuck_thread_is_abandoned(self, router, connection):
        """W5"""
        started, release = threading.Event(), threading.Event()

        @router.actor
        def act() -> None:
            started.set()
            release.wait(30)

        await Job("act").enqueue()
        worker = Worker([router], graceful_shutdown_time=0, handle_signals=())
        task = asyncio.create_task(worker.run())
        while not started.is_set():
            await asyncio.sleep(0.001)
        worker.stop()
        async with asyncio.timeout(5):
            assert (await task).rejected == 1
        release.set()
        assert (await Queue().stats()).ready == 1

    async def test_cancelling_run_gives_everything_back(self, router, connection):
        started = asyncio.Event()

        @router.actor
        async def act() -> None:
            started.set()
            await asyncio.Event().wait()

        await Job("act").enqueue()
        task = asyncio.create_task(Worker([router], handle_signals=()).run())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stats = await Queue().stats()
        assert (stats.ready, stats.in_progress) == (1, 0)

    async def test_an_actor_that_does_not_let_itself_be_cancelled_is_abandoned(self, router, connection):
        """The process ends all the same; the message goes back when its consumer closes."""
        started, release = asyncio.Event(), asyncio.Event()

        @router.actor
        async def act() -> None:
            started.set()
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

        await Job("act").enqueue()
        worker = Worker([router], graceful_shutdown_time=0, handle_signals=())
        task = asyncio.create_task(worker.run())
        await started.wait()
        worker.stop()
        async with asyncio.timeout(10):
            await task
        assert (await Queue().stats()).ready == 1
        release.set()
        await asyncio.sleep(0.01)


class TestUse:
    async def test_run_may_be_called_again(self, router, work):
        @router.actor
        async def act() -> None: ...

        for _ in range(2):
            await Job("act").enqueue()
            assert (await work(router)).processed == 1

    async def test_it_is_a_router(self, connection):
        worker = Worker(messages_limit=1, handle_signals=())

        @worker.actor
        async def act() -> None: ...

        await Job("act").enqueue()
        assert (await worker.run()).succeeded == 1

    async def test_it_does_not_run_twice_at_once(self, router, running):
        @router.actor
        async def act() -> None: ...

        async with running(router) as worker:
            await asyncio.sleep(0)
            with pytest.raises(UsageError, match="runs already"):
                await worker.run()

    async def test_without_actors_or_connection(self, connection):
        with pytest.raises(UsageError, match="no actors"):
            await Worker(handle_signals=()).run()

    def test_without_a_connection(self, router):
        with pytest.raises(NoConnectionError):
            asyncio.run(Worker([router]).run())

    @pytest.mark.parametrize(
        "options",
        [
            {"tasks_limit": 0},
            {"messages_limit": 0},
            {"messages_limit": 1.5},
            {"graceful_shutdown_time": -1},
            {"graceful_shutdown_time": "25 s"},
            {"threads": 0},
            {"processes": -1},
            {"routers": ["app.tasks:router"]},
            {"connection": "memory://"},
        ],
    )
    def test_wrong_arguments_are_refused_when_it_is_made(self, options):
        [name] = options
        with pytest.raises(UsageError, match=name):
            Worker(**options)

    async def test_two_actors_of_one_name_are_an_error(self):
        routers = [Router(), Router()]
        for router in routers:

            @router.actor
            async def act() -> None: ...

        with pytest.raises(InvalidActorError, match="two actors named 'act'"):
            Worker(routers)

    async def test_a_consumer_that_fails_is_asked_again(self, router, connection, monkeypatch, clock):
        """W8: a broker that is away pauses the worker."""
        import repid_core.worker

        monkeypatch.setattr(repid_core.worker, "_BROKER_PAUSE", 0)

        @router.actor
        async def act() -> None: ...

        failures = iter([BrokerConnectionError(), BrokerConnectionError()])
        original = connection.message_broker.consumer

        def consumer(*args, **kwargs):
            made = original(*args, **kwargs)
            receive = made.receive

            async def failing(limit):
                for failure in failures:
                    raise failure
                return await receive(limit)

            made.receive = failing
            return made

        monkeypatch.setattr(connection.message_broker, "consumer", consumer)
        await Job("act").enqueue()
        assert (await Worker([router], messages_limit=1, handle_signals=()).run()).succeeded == 1

    async def test_worker_events_reach_middlewares(self, router, work, connection):
        events: list[str] = []

        class Watch:
            def before_worker_start(self) -> None:
                events.append("before start")

            async def after_worker_start(self) -> None:
                events.append("after start")

            def before_worker_stop(self) -> None:
                events.append("before stop")

            def after_worker_stop(self) -> None:
                events.append("after stop")

        connection.middleware.add(Watch())

        @router.actor
        async def act() -> None: ...

        await Job("act").enqueue()
        await work(router)
        assert events == ["before start", "after start", "before stop", "after stop"]


class TestHealth:
    async def test_live_and_ready_while_it_works_and_not_ready_when_it_stops(self, router, connection):
        import http.client

        @router.actor
        async def act() -> None:
            await release.wait()

        release = asyncio.Event()
        ports: list[int] = []

        import repid_core.worker

        original = repid_core.worker.HealthCheckServer

        class Server(original):  # type: ignore[misc, valid-type]
            async def start(self) -> None:
                await super().start()
                ports.append(self.port)

        def get(path: str) -> int:
            http_connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=5)
            http_connection.request("GET", path)
            status = http_connection.getresponse().status
            http_connection.close()
            return status

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(repid_core.worker, "HealthCheckServer", Server)
            worker = Worker(
                [router],
                handle_signals=(),
                run_health_check_server=True,
                health_check_server_settings=HealthCheckServerSettings(port=0),
            )
            await Job("act").enqueue()
            task = asyncio.create_task(worker.run())
            while not (await Queue().stats()).in_progress:
                await asyncio.sleep(0.001)
            assert [await asyncio.to_thread(get, path) for path in ("/livez", "/readyz", "/healthz")] == [200, 200, 200]
            assert worker.problems() == (None, None)
            worker.stop()
            assert worker.problems() == (None, "the worker is stopping")
            assert [await asyncio.to_thread(get, path) for path in ("/livez", "/readyz")] == [200, 503]
            release.set()
            await task
            assert worker.problems() == (None, "the worker does not run")
