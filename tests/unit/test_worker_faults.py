"""What a worker does when everything around it fails, hangs or is cancelled: W1 to W9, M2, M5 and M12 of the contract."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

import repid_core.worker
from repid_core import (
    Connection,
    Depends,
    HealthCheckServerSettings,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    MessageCategory,
    MessageDependency,
    Queue,
    Repid,
    Router,
    Worker,
)
from repid_core.data import Death, DeathReason, Limits, QueueStats
from repid_core.errors import BucketBrokerError, BucketConnectionError, CorruptMessageError, DeliveryLostError
from repid_core.memory.consumer import InMemoryConsumer, InMemoryDelivery

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
EMPTY = QueueStats(0, 0, 0, 0)


async def deaths(queue: str = "default") -> list[Death]:
    broker = Queue(queue).connection.message_broker
    return [seen.death async for seen in broker.browse(queue, MessageCategory.DEAD) if seen.death]


async def the_death() -> Death:
    [death] = await deaths()
    return death


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def no_complaints(caplog):
    """No task's exception is left behind."""
    yield
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelno >= logging.ERROR]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Hopeless cases are given up soon."""
    for pause in ("_CLEAN_UP", "_CLOSING", "_BROKER_PAUSE"):
        monkeypatch.setattr(repid_core.worker, pause, 0.01, raising=False)


class Custom(BaseException):
    """Neither an Exception nor anything that asyncio knows."""


class TestHowActorsEnd:
    @pytest.mark.parametrize(
        "error",
        [GeneratorExit(), Custom("odd"), SystemExit(3), BaseExceptionGroup("several", [Custom()]), asyncio.CancelledError()],
    )
    @pytest.mark.parametrize("is_async", [True, False])
    async def test_whatever_it_raises_fails_this_job_alone(self, router, work, error, is_async):
        """W8: and its place is free for the next, be it of another queue."""

        async def leave() -> None:
            raise error

        def leave_thread() -> None:
            raise error

        router.actor(name="leave")(leave if is_async else leave_thread)

        @router.actor(queue="other")
        async def stay() -> None: ...

        job = Job("leave")
        await job.enqueue()
        await Job("stay", queue="other").enqueue()
        summary = await work(router, 2, tasks_limit=1)
        assert (summary.failed, summary.succeeded) == (1, 1)
        assert (await the_death()).reason is DeathReason.FAILED
        bucket = await job.result
        assert bucket is not None
        assert type(error).__name__ in str(bucket.traceback)

    @pytest.mark.parametrize("answer", [5, "soon", object(), timedelta.min, timedelta.max])
    async def test_a_policy_that_answers_nonsense_does_not_hold_the_message(self, router, work, answer):
        """W8"""

        @router.actor(retry_policy=lambda attempt, error: answer)
        async def fail() -> None:
            raise ValueError

        await Job("fail", retries=1).enqueue()
        summary = await work(router, 1)
        assert summary.processed == 1
        assert (await Queue().stats()).in_progress == 0

    async def test_an_interrupted_actor_that_raises_an_error_of_its_own_is_not_counted(self, router, running, connection):
        """W5: libraries wrap a cancellation in their own errors."""
        started = asyncio.Event()

        @router.actor
        async def act() -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                raise OSError("connection closed in the middle") from error

        await Job("act", retries=3).enqueue()
        async with running(router, graceful_shutdown_time=0):
            await started.wait()
        assert await Queue().stats() == QueueStats(1, 0, 0, 0)
        async for message in Queue().get_messages():
            assert message.parameters.tried == 0
            break

    async def test_one_that_swallows_its_cancellation_and_returns_has_succeeded(self, connection, router, work):
        """W4: and what follows is not disturbed by the cancellation."""
        seen = []

        class Watch:
            async def before_store_bucket(self) -> None:
                task = asyncio.current_task()
                assert task is not None
                seen.append(task.cancelling())

        connection.middleware.add(Watch())

        @router.actor
        async def act() -> str:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return "in time after all"

        job: Job[str] = Job("act", timeout=timedelta(milliseconds=1))
        await job.enqueue()
        assert (await work(router)).succeeded == 1
        assert await job.wait(0) == "in time after all"
        assert seen == [0]

    async def test_one_that_swallows_the_stop_and_returns_has_succeeded(self, connection, router, running):
        started, seen = asyncio.Event(), []

        class Watch:
            async def before_store_bucket(self) -> None:
                task = asyncio.current_task()
                assert task is not None
                seen.append(task.cancelling())

        connection.middleware.add(Watch())

        @router.actor
        async def act() -> str:
            started.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return "done"

        job: Job[str] = Job("act")
        await job.enqueue()
        async with running(router, graceful_shutdown_time=0):
            await started.wait()
        assert await job.wait(0) == "done"
        assert seen == [0]

    @pytest.mark.parametrize("tried", range(12))
    async def test_a_timeout_about_when_the_actor_returns_ends_it_once(self, router, work, tried):
        """W4: either way there is one settlement and one result."""
        release = asyncio.Event()

        @router.actor
        async def act() -> str:
            asyncio.get_running_loop().call_later(0.001 * tried / 6, release.set)
            await release.wait()
            return "done"

        job: Job[str] = Job("act", timeout=timedelta(milliseconds=1))
        await job.enqueue()
        summary = await work(router)
        bucket = await job.result
        assert bucket is not None
        assert bucket.success is (summary.succeeded == 1) is (await Queue().stats() == EMPTY)

    async def test_a_clean_up_inside_the_timeout_that_hangs_fails_the_job(self, router, work):
        """W4: the timeout covers dependencies."""

        async def connected() -> Any:
            yield 1
            await asyncio.Event().wait()

        @router.actor
        async def act(value: int = Depends(connected)) -> int:  # type: ignore[assignment]
            return value

        job = Job("act", timeout=timedelta(milliseconds=5))
        await job.enqueue()
        assert (await work(router)).failed == 1
        bucket = await job.result
        assert bucket is not None
        assert bucket.exception == "TimeoutError"


class TestOwnSettlements:
    async def test_a_reject_is_never_counted_nor_stored(self, router, running, connection):
        """W6: not even with an exception set before."""
        runs: list[int] = []

        @router.actor
        async def act(message: MessageDependency) -> None:
            runs.append(1)
            if len(runs) == 1:
                message.set_exception(ValueError("in vain"))
                message.reject()
            await asyncio.Event().wait()

        job = Job("act")
        await job.enqueue()
        async with running(router, messages_limit=1, graceful_shutdown_time=0):
            while len(runs) < 2:
                await asyncio.sleep(0)
        assert await job.result is None

    async def test_a_result_that_was_set_and_does_not_fit_fails_the_job(self, router, work):
        """W2: as a returned one would."""

        @router.actor
        async def act(message: MessageDependency) -> int:
            message.set_result(object())
            return 1

        job = Job("act")
        await job.enqueue()
        assert (await work(router)).failed == 1
        assert (await the_death()).reason is DeathReason.FAILED
        bucket = await job.result
        assert bucket is not None
        assert not bucket.success

    async def test_one_made_in_a_task_group_counts(self, router, work):
        """W1: whatever is raised on the way out."""

        @router.actor
        async def act(message: MessageDependency) -> None:
            async def child() -> None:
                message.nack("from a child")

            async with asyncio.TaskGroup() as group:
                group.create_task(child())

        await Job("act").enqueue()
        assert (await work(router)).nacked == 1
        assert (await the_death()).error == "from a child"

    async def test_one_made_before_the_timeout_stands(self, router, work):
        """M2: the first settlement wins, also over a clean-up that takes too long."""

        async def connected() -> Any:
            try:
                yield 1
            finally:
                await asyncio.Event().wait()

        @router.actor
        async def act(message: MessageDependency, value: int = Depends(connected)) -> None:  # type: ignore[assignment]
            message.ack()

        await Job("act", retries=3, timeout=timedelta(milliseconds=5)).enqueue()
        assert (await work(router)).succeeded == 1
        assert await Queue().stats() == EMPTY

    async def test_a_recurring_one_that_sets_an_exception_has_done_its_run(self, router, running, clock, connection):
        """As one that does not recur."""

        @router.actor
        async def tick(message: MessageDependency) -> None:
            message.set_exception(ValueError("told"))

        job = Job("tick", deferred_by=MINUTE)
        await job.enqueue()
        worker = Worker([router], messages_limit=1, handle_signals=())
        task = asyncio.create_task(worker.run())
        await clock.advance(MINUTE)
        assert (await task).succeeded == 1
        bucket = await job.result
        assert bucket is not None
        assert bucket.exception == "ValueError"

    async def test_callbacks_may_be_any_callable(self, router, work):
        called: list[str] = []

        async def tell(text: str) -> None:
            called.append(text)

        class Asynchronous:
            async def __call__(self) -> None:
                called.append("object")

        @router.actor
        async def act(message: MessageDependency) -> None:
            message.add_callback(lambda: tell("lambda"))
            message.add_callback(Asynchronous())
            message.add_callback(lambda: exec("raise SystemExit(1)"))  # noqa: S102
            message.add_callback(lambda: called.append("plain"))

        await Job("act").enqueue()
        await work(router)
        assert called == ["lambda", "object", "plain"]

    async def test_a_callback_that_hangs_does_not_hold_the_worker(self, router, connection):
        """W5: it is cut short, and the job counts all the same."""
        called = asyncio.Event()

        @router.actor
        async def act(message: MessageDependency) -> None:
            async def hang() -> None:
                called.set()
                await asyncio.Event().wait()

            message.add_callback(hang)

        await Job("act").enqueue()
        worker = Worker([router], graceful_shutdown_time=0, handle_signals=())
        task = asyncio.create_task(worker.run())
        await called.wait()
        worker.stop()
        summary = await task
        assert (summary.processed, summary.succeeded) == (1, 1)


class TestRecurrence:
    @pytest.fixture
    async def ticks(self, router, connection, clock):
        """Runs a recurring job once, and gives how often it ran."""
        runs: list[int] = []

        @router.actor
        async def tick(a: int) -> int:
            runs.append(a)
            return a

        async def run(job: Job[Any]) -> list[int]:
            await job.enqueue()
            worker = Worker([router], messages_limit=1, handle_signals=())
            task = asyncio.create_task(worker.run())
            await clock.advance(timedelta(hours=1))
            await task
            return runs

        return run

    async def test_where_its_next_time_cannot_be_told_it_is_kept_as_dead(self, ticks, monkeypatch):
        """W7: for example on a worker without cronsim; what was run is stored, and the schedule is not lost."""
        import repid_core.processing
        from repid_core.errors import ConfigError

        def fails(*_: object) -> None:
            raise ConfigError("cron lines are read by cronsim")

        monkeypatch.setattr(repid_core.processing, "next_due", fails)
        job: Job[int] = Job("tick", args={"a": 1}, cron="*/5 * * * *")
        assert await ticks(job) == [1]
        assert await job.wait(0) == 1
        assert "cronsim" in str((await the_death()).error)
        assert (await Queue().stats()).in_progress == 0

    async def test_where_its_next_time_is_too_far_for_the_broker_it_is_kept_as_dead(self, ticks, connection):
        """M7 and W7: the first time was near, and the next is in four years."""
        broker = connection.message_broker
        broker.limits = Limits(max_delay=timedelta(days=1))
        near = connection.clock.now() + MINUTE
        assert await ticks(Job("tick", args={"a": 1}, deferred_until=near, deferred_by=timedelta(days=30))) == [1]
        assert "at most" in str((await the_death()).error)


class TestBrokersThatFail:
    @pytest.mark.parametrize("error", [OSError("boom"), DeliveryLostError(), asyncio.CancelledError()])
    async def test_a_mark_that_cannot_be_made_costs_one_delivery_and_nothing_else(self, router, work, monkeypatch, error):
        """M13 and W8: unmarked, it is not run, and it goes back."""
        failures = iter([error])

        async def mark(self: InMemoryDelivery) -> None:
            for failure in failures:
                raise failure

        monkeypatch.setattr(InMemoryDelivery, "mark_started", mark)
        monkeypatch.setattr(InMemoryDelivery, "redelivered", True)

        @router.actor
        async def act() -> None: ...

        await Job("act").enqueue()
        assert (await work(router, 1)).processed == 1

    @pytest.mark.parametrize("error", [RuntimeError("a faulty plugin"), CorruptMessageError(), asyncio.CancelledError()])
    async def test_what_cannot_be_read_goes_to_dead(self, router, work, monkeypatch, error, connection):
        """W8: whatever the broker raises."""
        original = InMemoryDelivery.envelope
        failures = iter([error] * 1)

        def envelope(self: InMemoryDelivery) -> Any:
            for failure in failures:
                raise failure
            return original.fget(self)  # type: ignore[attr-defined]

        @router.actor
        async def act() -> None: ...

        await Job("act").enqueue()
        monkeypatch.setattr(InMemoryDelivery, "envelope", property(envelope))
        assert (await work(router, 1)).processed == 1
        assert await Queue().stats() == QueueStats(0, 0, 0, 1)

    @pytest.mark.parametrize("kind", ["ack", "nack", "requeue", "reject"])
    @pytest.mark.parametrize("error", [OSError("boom"), DeliveryLostError(), asyncio.CancelledError()])
    async def test_a_settlement_that_fails_frees_the_place(self, router, running, connection, monkeypatch, kind, error, clock):
        """M5 and W8: other queues go on, and the message is with the broker."""
        original, failures = getattr(InMemoryDelivery, kind), iter([error])

        async def fails(self: InMemoryDelivery, *args: Any) -> None:
            for failure in failures:
                raise failure
            await original(self, *args)

        monkeypatch.setattr(InMemoryDelivery, kind, fails)
        done = asyncio.Event()

        @router.actor
        async def act(message: MessageDependency) -> None:
            if kind == "requeue":
                message.force_retry(SECOND)
            getattr(message, kind)()

        @router.actor(queue="other")
        async def other() -> None:
            done.set()

        await Job("act").enqueue()
        async with running(router, tasks_limit=1, graceful_shutdown_time=0):
            await clock.settle()
            await Job("other", queue="other").enqueue()
            async with asyncio.timeout(5):
                await done.wait()
        assert (await Queue().stats()).in_progress == 0

    async def test_a_middleware_that_is_cancelled_from_within_stops_nothing(self, router, running, connection, clock):
        """W8: libraries raise CancelledError though nobody cancelled us."""
        failing = {"before_consume", "after_consume", "before_actor_run", "before_ack", "before_store_bucket"}
        failing.add("after_worker_start")

        def observer(name: str) -> Callable[[], Awaitable[None]]:
            async def observe() -> None:
                if name in failing:
                    failing.remove(name)
                    raise asyncio.CancelledError

            observe.__name__ = name
            return observe

        for name in tuple(failing):
            connection.middleware.add(observer(name))
        runs: list[int] = []

        @router.actor
        async def act() -> None:
            runs.append(1)

        async with running(router, tasks_limit=1):
            for _ in range(10):
                await Job("act").enqueue()
            async with asyncio.timeout(5):
                while len(runs) < 10:
                    await asyncio.sleep(0.001)
        assert not failing


class Steered(InMemoryMessageBroker):
    """Its consumers call what a test puts in place of their methods."""

    def __init__(self, **steps: Callable[..., Awaitable[Any]]) -> None:
        super().__init__()
        self.steps = steps

    def consumer(self, *args: Any, **kwargs: Any) -> Any:
        made = super().consumer(*args, **kwargs)
        for name, step in self.steps.items():
            original = getattr(made, name)
            setattr(made, name, lambda *a, _step=step, _original=original: _step(made, _original, *a))
        return made


@pytest.fixture
async def steered(clock):
    """Opens connections whose consumers do what a test says."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:

        async def open_(**steps: Callable[..., Awaitable[Any]]) -> Connection:
            connection = Connection(Steered(**steps), InMemoryBucketBroker(), InMemoryBucketBroker(), clock=clock)
            await stack.enter_async_context(Repid(connection).magic(auto_disconnect=True))
            return connection

        yield open_
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"left running: {left}"


async def hang(*_: object) -> None:
    await asyncio.Event().wait()


class TestSlowSettlements:
    """A broker that sends acknowledgements at once, and is told late that they arrived."""

    @pytest.fixture
    def confirmed(self) -> asyncio.Event:
        return asyncio.Event()

    @pytest.fixture
    def receive(self, confirmed):
        async def step(consumer: InMemoryConsumer, original: Any, limit: int) -> Any:
            deliveries = await original(limit)
            for delivery in deliveries:

                async def ack(sent: Callable[..., Awaitable[None]] = delivery.ack) -> None:
                    await sent()
                    await confirmed.wait()

                delivery.ack = ack
            return deliveries

        return step

    async def run(self, router: Router, connection: Connection, **options: Any) -> tuple[Worker, asyncio.Task[Any]]:
        worker = Worker([router], handle_signals=(), connection=connection, **options)
        task = asyncio.create_task(worker.run())
        for _ in range(200):
            await asyncio.sleep(0)
        return worker, task

    async def test_the_next_job_runs_while_the_last_is_settled(self, router, steered, receive, confirmed):
        """W6: one whose actor has ended is not in flight any more, but it is settled before the worker stops."""
        runs: list[int] = []

        @router.actor
        async def act(i: int) -> None:
            runs.append(i)

        connection = await steered(receive=receive)
        await connection.enqueue_many([Job("act", args=[i]) for i in range(3)])
        _, task = await self.run(router, connection, tasks_limit=1, messages_limit=3)
        assert runs == [0, 1, 2]
        assert not task.done()
        confirmed.set()
        assert (await task).processed == 3

    async def test_a_broker_that_confirms_nothing_holds_the_worker_back(self, router, steered, receive, confirmed):
        runs: list[int] = []

        @router.actor
        async def act(i: int) -> None:
            runs.append(i)

        connection = await steered(receive=receive)
        await connection.enqueue_many([Job("act", args=[i]) for i in range(50)])
        worker, task = await self.run(router, connection, tasks_limit=2)
        assert 2 < len(runs) < 20
        confirmed.set()
        for _ in range(500):
            await asyncio.sleep(0)
        assert len(runs) == 50
        worker.stop()
        await task

    async def test_messages_limit_counts_what_is_being_settled(self, router, steered, receive, confirmed):
        """W6"""
        runs: list[int] = []

        @router.actor
        async def act(i: int) -> None:
            runs.append(i)

        connection = await steered(receive=receive)
        await connection.enqueue_many([Job("act", args=[i]) for i in range(9)])
        _, task = await self.run(router, connection, tasks_limit=1, messages_limit=4)
        assert len(runs) == 4
        confirmed.set()
        assert (await task).processed == 4
        assert (await Queue().stats()).ready == 5


class TestFetching:
    @pytest.mark.parametrize("queues", [1, 2])
    async def test_a_consumer_that_returns_although_cancelled_does_not_keep_the_worker(self, router, steered, queues):
        """W5: as `asyncio.wait_for` may; what it gave is given back, and no job begins after the stop."""
        waiting = 0

        async def receive(consumer: InMemoryConsumer, original: Any, limit: int) -> Any:
            nonlocal waiting
            waiting += 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return await original(limit)

        await steered(receive=receive)
        runs: list[int] = []
        for name in "ab"[:queues]:

            @router.actor(name=name, queue=name)
            async def act() -> None:
                runs.append(1)

        for name in "ab"[:queues]:
            await Job(name, queue=name).enqueue()
        worker = Worker([router], handle_signals=())
        task = asyncio.create_task(worker.run())
        while waiting < queues:
            await asyncio.sleep(0)
        worker.stop()
        async with asyncio.timeout(5):
            await task
        assert not runs
        assert [await Queue(name).stats() for name in "ab"[:queues]] == [QueueStats(1, 0, 0, 0)] * queues

    @pytest.mark.parametrize("error", [OSError("boom"), Exception(), asyncio.CancelledError()])
    async def test_one_that_fails_in_any_way_is_asked_again_and_the_worker_not_ready_meanwhile(
        self, router, steered, monkeypatch, error
    ):
        """W8"""
        failures, told = iter([error] * 2), []
        monkeypatch.setattr(repid_core.worker, "_BROKER_PAUSE", 0.02)

        async def receive(consumer: InMemoryConsumer, original: Any, limit: int) -> Any:
            for failure in failures:
                raise failure
            return await original(limit)

        await steered(receive=receive)

        @router.actor
        async def act() -> None: ...

        await Job("act").enqueue()
        worker = Worker([router], messages_limit=1, handle_signals=())
        task = asyncio.create_task(worker.run())
        await turns()
        assert worker._shift is not None
        told.append(worker._shift.ready())
        assert worker._shift.alive() is None
        async with asyncio.timeout(5):
            assert (await task).succeeded == 1
        assert "default" in str(told)

    @pytest.mark.parametrize("limit", [{"tasks_limit": 1}, {"messages_limit": 1}])
    async def test_a_middleware_that_waits_does_not_let_more_in_than_allowed(self, router, connection, limit):
        """W6"""
        gate, at_gate, most, now, runs = asyncio.Event(), 0, 0, 0, 0

        class Watch:
            async def after_consume(self) -> None:
                nonlocal at_gate
                at_gate += 1
                await gate.wait()

        connection.middleware.add(Watch())

        async def act() -> None:
            nonlocal most, now, runs
            runs, now = runs + 1, now + 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1

        for name in "abc":
            router.actor(name=name, queue=name)(act)
            await Job(name, queue=name).enqueue()
        worker = Worker([router], handle_signals=(), **limit)
        task = asyncio.create_task(worker.run())
        await turns()
        assert at_gate == 3
        gate.set()
        await turns(200)
        worker.stop()
        summary = await task
        assert most == 1
        assert summary.processed == runs == (1 if "messages_limit" in limit else 3)
        ready = sum([(await Queue(name).stats()).ready or 0 for name in "abc"])
        assert ready == 3 - runs

    async def test_a_message_that_cannot_be_given_back_does_not_end_the_fetching(self, router, running, connection, monkeypatch):
        """W8"""
        original, gave = InMemoryDelivery.reject, []

        async def reject(self: InMemoryDelivery) -> None:
            await original(self)
            gave.append(self)
            raise OSError("boom")

        monkeypatch.setattr(InMemoryDelivery, "reject", reject)
        done = Counter[str]()

        def actor(name: str) -> None:
            async def act() -> None:
                done[name] += 1
                await asyncio.sleep(0)

            router.actor(name=name, queue=name)(act)

        gate = asyncio.Event()

        class Watch:
            async def after_consume(self) -> None:
                await gate.wait()

        connection.middleware.add(Watch())
        for name in "abc":
            actor(name)
            await connection.enqueue_many([Job(name, queue=name) for _ in range(5)])
        async with running(router, tasks_limit=1) as worker:
            await turns()
            gate.set()
            async with asyncio.timeout(5):
                while done.total() < 15:
                    await asyncio.sleep(0)
            assert worker._shift is not None
            assert worker._shift.alive() is None
        assert gave, "nothing was given back, so nothing was tested"

    @pytest.mark.parametrize("tasks_limit", [1, 2, 5])
    async def test_queues_that_come_and_go_never_stall(self, router, running, connection, tasks_limit):
        """W6: no wake-up is lost, whoever was quicker."""
        rng, done = random.Random(tasks_limit), 0

        async def act(turns: int) -> None:
            nonlocal done
            for _ in range(turns):
                await asyncio.sleep(0)
            done += 1

        for name in "abcde":
            router.actor(name=name, queue=name)(act)
        async with running(router, tasks_limit=tasks_limit):
            for sent in range(1, 201):
                name = rng.choice("abcde")
                await Job(name, queue=name, args=[rng.randrange(4)], use_args_bucketer=False).enqueue()
                for _ in range(rng.randrange(8)):
                    await asyncio.sleep(0)
                if rng.random() < 0.1:
                    async with asyncio.timeout(5):
                        while done < sent:
                            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                while done < 200:
                    await asyncio.sleep(0)

    @pytest.mark.parametrize("seed", range(5))
    async def test_messages_limit_is_exact_with_queues_retries_rejects_and_lost_ones(self, router, connection, monkeypatch, seed):
        """W6: never one more, and all the rest is back."""
        rng = random.Random(seed)
        monkeypatch.setattr(random, "uniform", lambda *_: 0.0)
        ack = InMemoryDelivery.ack

        async def lossy(self: InMemoryDelivery) -> None:
            if rng.random() < 0.2:
                await self.reject()
                raise DeliveryLostError
            await ack(self)

        monkeypatch.setattr(InMemoryDelivery, "ack", lossy)

        class Watch:
            async def after_consume(self) -> None:
                await asyncio.sleep(0)

        connection.middleware.add(Watch())

        async def act(message: MessageDependency) -> None:
            await turns(rng.randrange(3))
            chance = rng.random()
            if chance < 0.2:
                message.reject()
            if chance < 0.4:
                raise ValueError

        for name in "abc":
            router.actor(name=name, queue=name, retry_policy=lambda attempt, error: timedelta(0))(act)
        await connection.enqueue_many([Job(name, queue=name, retries=2) for name in "abc" for _ in range(20)])
        worker = Worker([router], handle_signals=(), messages_limit=11, tasks_limit=4)
        summary = await worker.run()
        assert summary.processed == summary.succeeded + summary.failed + summary.retried == 11
        stats = [await Queue(name).stats() for name in "abc"]
        assert sum(stat.in_progress or 0 for stat in stats) == 0
        assert sum((stat.ready or 0) + (stat.dead or 0) + (stat.delayed or 0) for stat in stats) == 60 - summary.succeeded


class TestEnding:
    @pytest.mark.parametrize("step", ["pause", "close"])
    async def test_a_consumer_that_hangs_does_not_keep_the_process(self, router, steered, step):
        """W5"""
        await steered(**{step: hang})

        @router.actor
        async def act() -> None: ...

        worker = Worker([router], handle_signals=())
        task = asyncio.create_task(worker.run())
        await turns()
        worker.stop()
        async with asyncio.timeout(5):
            await task

    @pytest.mark.parametrize(
        "event", ["after_worker_start", "before_worker_stop", "after_worker_stop", "before_consume", "after_consume"]
    )
    async def test_cancelled_while_a_middleware_waits_leaves_nothing(self, router, connection, event):
        """The fixture checks that no task is left."""
        here, release = asyncio.Event(), asyncio.Event()

        async def observe() -> None:
            here.set()
            await release.wait()

        observe.__name__ = event
        connection.middleware.add(observe)

        @router.actor
        async def act() -> None:
            await asyncio.Event().wait()

        await Job("act").enqueue()
        worker = Worker([router], handle_signals=())
        task = asyncio.create_task(worker.run())
        await turns()
        if "stop" in event:
            worker.stop()
            worker.stop()
        async with asyncio.timeout(5):
            await here.wait()
            task.cancel()
            await turns()
            release.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await Queue().stats() == QueueStats(1, 0, 0, 0)

    @pytest.mark.parametrize("k", range(201))
    async def test_cancelled_at_any_moment_everything_is_back(self, router, connection, k):
        """Nothing is held, nothing runs, and nothing is lost."""
        ended = Counter[str]()
        opened = 0

        async def resource() -> Any:
            nonlocal opened
            opened += 1
            try:
                await asyncio.sleep(0)
                yield 1
            finally:
                opened -= 1

        async def act(i: int, message: MessageDependency, value: int = Depends(resource)) -> int:  # type: ignore[assignment]
            await turns(i % 5)
            if i % 4 == 1:
                message.add_callback(lambda: ended.update(["callback"]))
            if i % 4 == 2:
                message.ack()
            if i % 4 == 3:
                raise ValueError
            return i

        for name in "ab":
            router.actor(name=name, queue=name)(act)
        await connection.enqueue_many([Job(name, queue=name, args={"i": i}) for name in "ab" for i in range(8)])
        worker = Worker([router], handle_signals=(), tasks_limit=2)
        task = asyncio.create_task(worker.run())
        await turns(k)
        task.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert opened == 0
        for name in "ab":
            stats = await Queue(name).stats()
            assert stats.in_progress == 0
        assert worker._shift is None
        rest = sum([(await Queue(name).stats()).ready or 0 for name in "ab"])
        dead = sum([(await Queue(name).stats()).dead or 0 for name in "ab"])
        done = 16 - rest - dead
        assert done >= 0
        if rest:
            async with asyncio.timeout(5):
                again = await Worker([router], handle_signals=(), messages_limit=rest).run()
            assert again.processed == rest
        assert sum([(await Queue(name).stats()).dead or 0 for name in "ab"]) == 4

    @pytest.mark.parametrize("k", range(30))
    async def test_cancelled_with_a_health_server_the_port_is_free(self, router, connection, k):
        """Both while it starts and later."""
        import socket

        @router.actor
        async def act() -> None: ...

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = HealthCheckServerSettings(port=port)
        task = asyncio.create_task(
            Worker([router], handle_signals=(), run_health_check_server=True, health_check_server_settings=settings).run()
        )
        await turns(k)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))

    async def test_cancelled_while_it_waits_for_running_jobs_it_waits_no_longer(self, router, connection):
        """W5: as a second signal."""
        started = asyncio.Event()

        @router.actor
        async def act() -> None:
            started.set()
            await asyncio.Event().wait()

        await Job("act").enqueue()
        worker = Worker([router], handle_signals=(), graceful_shutdown_time=60)
        task = asyncio.create_task(worker.run())
        await started.wait()
        worker.stop()
        await turns()
        task.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await Queue().stats() == QueueStats(1, 0, 0, 0)

    @pytest.mark.parametrize("where", ["args", "results", "mark", "ack"])
    async def test_what_hangs_is_cut_off_and_given_back(self, router, connection, monkeypatch, where):
        """W5: a store or broker that never answers keeps neither the process nor a task (see the fixture)."""
        reached = asyncio.Event()

        async def stuck(*_: object) -> None:
            reached.set()
            await asyncio.Event().wait()

        if where == "args":
            monkeypatch.setattr(connection.args_bucket_broker, "get_bucket", stuck)
        elif where == "results":
            monkeypatch.setattr(connection.results_bucket_broker, "store_bucket", stuck)
        elif where == "mark":
            monkeypatch.setattr(InMemoryDelivery, "mark_started", stuck)
            monkeypatch.setattr(InMemoryDelivery, "redelivered", True)
        else:
            monkeypatch.setattr(InMemoryDelivery, "ack", stuck)

        @router.actor
        async def act(a: int) -> None: ...

        await Job("act", args={"a": 1}).enqueue()
        worker = Worker([router], handle_signals=(), graceful_shutdown_time=0)
        task = asyncio.create_task(worker.run())
        await reached.wait()
        worker.stop()
        async with asyncio.timeout(5):
            await task
        await turns()
        assert await Queue().stats() == QueueStats(1, 0, 0, 0)

    async def test_two_workers_in_one_loop_both_hear_a_signal(self, connection):
        """W5: and the handlers before are in place when both have ended, in whatever order."""
        before = signal.getsignal(signal.SIGUSR1)
        workers, tasks = [], []
        for name in "ab":
            worker = Worker(handle_signals=[signal.SIGUSR1])

            @worker.actor(name=name, queue=name)
            async def act() -> None: ...

            workers.append(worker)
            tasks.append(asyncio.create_task(worker.run()))
        await turns()
        signal.raise_signal(signal.SIGUSR1)
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks)
        assert signal.getsignal(signal.SIGUSR1) == before

    @pytest.mark.parametrize("first", [0, 1])
    async def test_one_worker_of_two_that_ends_leaves_the_other_its_signals(self, connection, first):
        before = signal.getsignal(signal.SIGUSR1)
        workers, tasks = [], []
        for name in "ab":
            worker = Worker(handle_signals=[signal.SIGUSR1])

            @worker.actor(name=name, queue=name)
            async def act() -> None: ...

            workers.append(worker)
            tasks.append(asyncio.create_task(worker.run()))
        await turns()
        workers[first].stop()
        await tasks[first]
        assert signal.getsignal(signal.SIGUSR1) != before
        signal.raise_signal(signal.SIGUSR1)
        async with asyncio.timeout(5):
            await tasks[1 - first]
        assert signal.getsignal(signal.SIGUSR1) == before


class TestStores:
    async def test_a_store_that_is_away_makes_the_worker_unready_until_it_is_back(self, router, connection, monkeypatch, clock):
        """W8: also while a further try is on its way."""
        gate, tries = asyncio.Event(), 0
        original = connection.results_bucket_broker.store_bucket

        async def store(*args: Any) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise BucketConnectionError
            await gate.wait()
            await original(*args)

        monkeypatch.setattr(connection.results_bucket_broker, "store_bucket", store)

        @router.actor
        async def act() -> None: ...

        await Job("act").enqueue()
        worker = Worker([router], messages_limit=1, handle_signals=())
        task = asyncio.create_task(worker.run())
        await clock.advance(SECOND)
        assert tries == 2
        assert worker._shift is not None
        assert "bucket store is away" in str(worker._shift.ready())
        gate.set()
        assert (await task).succeeded == 1

    async def test_one_that_is_away_when_the_worker_stops_costs_nothing(self, router, running, connection, monkeypatch, clock):
        """W8"""
        started = asyncio.Event()

        async def away(*_: object) -> None:
            started.set()
            raise BucketConnectionError

        monkeypatch.setattr(connection.results_bucket_broker, "store_bucket", away)

        @router.actor
        async def act() -> None: ...

        await Job("act", retries=1).enqueue()
        async with running(router, graceful_shutdown_time=0):
            await started.wait()
        assert await Queue().stats() == QueueStats(1, 0, 0, 0)

    @pytest.mark.parametrize("error", [BucketBrokerError("denied"), OSError("boom"), asyncio.CancelledError()])
    async def test_one_that_refuses_the_result_and_the_failure_too(self, router, work, connection, monkeypatch, error):
        """W8: the job is dead, and not held."""

        async def refuse(*_: object) -> None:
            raise error

        monkeypatch.setattr(connection.results_bucket_broker, "store_bucket", refuse)

        @router.actor
        async def act() -> None: ...

        await Job("act").enqueue()
        assert (await work(router)).failed == 1
        assert await Queue().stats() == QueueStats(0, 0, 0, 1)

    @pytest.mark.parametrize("error", [BucketBrokerError("denied"), OSError("boom"), asyncio.CancelledError()])
    async def test_arguments_that_cannot_be_deleted_change_nothing(self, router, work, connection, monkeypatch, error):
        """W9"""

        async def refuse(*_: object) -> None:
            raise error

        monkeypatch.setattr(connection.args_bucket_broker, "delete_bucket", refuse)

        @router.actor
        async def act(a: int) -> int:
            return a

        job: Job[int] = Job("act", args={"a": 1})
        await job.enqueue()
        assert (await work(router)).succeeded == 1
        assert await job.wait(0) == 1


class TestArgsBuckets:
    """W9, by way of settling."""

    @pytest.mark.parametrize(
        ("how", "stays"),
        [("returns", False), ("ack", False), ("set", False), ("nack", True), ("reschedule", True), ("invalid", True)],
    )
    @pytest.mark.parametrize("recurring", [False, True])
    async def test_it_goes_with_the_message_and_not_before(self, router, connection, clock, how, stays, recurring):
        @router.actor
        async def act(a: int, message: MessageDependency) -> None:
            if how == "set":
                message.set_result(1)
            elif how != "returns":
                getattr(message, how)()

        job = Job("act", args={"a": "x" if how == "invalid" else 1}, deferred_by=MINUTE if recurring else None)
        bucket_id = job.args_id
        await job.enqueue()
        task = asyncio.create_task(Worker([router], messages_limit=1, handle_signals=()).run())
        await clock.advance(MINUTE)
        await task
        stays = stays or (recurring and how != "ack")
        assert (await connection.args_bucket_broker.get_bucket(bucket_id) is not None) is stays

    async def test_it_goes_with_an_ack_by_hand(self, connection):
        """A dead message that is purged leaves nothing behind."""
        job = Job("act", args={"a": 1})
        bucket_id = job.args_id
        await job.enqueue()
        for category, how in ((MessageCategory.NORMAL, "nack"), (MessageCategory.DEAD, "ack")):
            assert await connection.args_bucket_broker.get_bucket(bucket_id) is not None
            async for message in Queue().get_messages(category=category):
                await getattr(message, how)()
                break
        assert await connection.args_bucket_broker.get_bucket(bucket_id) is None

    async def test_what_cannot_be_read_can_be_nacked_by_hand(self, connection, monkeypatch):
        """M2: settle the delivery all the same."""
        await Job("act").enqueue()

        def envelope(self: InMemoryDelivery) -> Any:
            raise CorruptMessageError

        with monkeypatch.context() as patch:
            async for message in Queue().get_messages():
                patch.setattr(InMemoryDelivery, "envelope", property(envelope))
                await message.nack("unreadable")
                break
        assert (await the_death()).error == "unreadable"


class TestStress:
    @pytest.mark.parametrize("seed", range(6))
    async def test_whatever_happens_every_job_ends_once_and_with_its_result(  # noqa: C901, PLR0915 — one long story
        self, connection, router, clock, monkeypatch, seed
    ):
        """W1, W2, W5, W6, M2: failures, retries, rejects, timeouts, cancels, lost settlements and restarts at random."""
        rng, calm, steady, now, most = random.Random(seed), False, False, 0, 0
        refused: set[str] = set()
        names, count = "abc", 120

        for kind in ("ack", "nack", "requeue"):

            def lossy(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
                async def settle(self: InMemoryDelivery, *args: Any) -> None:
                    if not calm and rng.random() < 0.05:
                        await self.reject()
                        raise DeliveryLostError
                    await original(self, *args)

                return settle

            monkeypatch.setattr(InMemoryDelivery, kind, lossy(getattr(InMemoryDelivery, kind)))

        def away(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def call(id_: str, *args: Any) -> Any:
                if not steady:
                    await turns(rng.randrange(3))
                    if not calm and rng.random() < 0.05:
                        refused.add(id_)
                        raise rng.choice([BucketConnectionError(), BucketBrokerError("refused")])
                refused.discard(id_)
                return await original(id_, *args)

            return call

        args, results = connection.args_bucket_broker, connection.results_bucket_broker
        monkeypatch.setattr(args, "get_bucket", away(args.get_bucket))
        monkeypatch.setattr(results, "store_bucket", away(results.store_bucket))

        async def resource() -> Any:
            await turns(rng.randrange(3))
            try:
                yield 1
            finally:
                await turns(rng.randrange(2))

        async def act(  # noqa: C901 — all that an actor may do
            i: int,
            message: MessageDependency,
            value: int = Depends(resource),  # type: ignore[assignment]
        ) -> int:
            nonlocal now, most
            now += 1
            most = max(most, now)
            try:
                await turns(rng.randrange(6))
                match rng.randrange(6 if calm else 14):
                    case 0:
                        message.ack()
                    case 1:
                        message.nack("no")
                    case 2:
                        message.set_result(i)
                    case 3:
                        message.add_callback(rng.choice([partial(turns, 3), lambda: None]))
                    case 6:
                        message.reject()
                    case 7 | 8:
                        raise ValueError(i)
                    case 9:
                        message.retry(SECOND)
                    case 10:
                        message.force_retry(SECOND)
                    case 11:
                        await asyncio.Event().wait()
                    case 12:
                        with suppress(asyncio.CancelledError):
                            await asyncio.Event().wait()
                    case 13:
                        raise Custom
                return i
            finally:
                now -= 1

        for name in names:
            router.actor(name=name, queue=name, retry_policy=lambda attempt, error: attempt * SECOND)(act)
        jobs = [
            Job(name, queue=name, id_=f"{name}{i}", args={"i": i}, retries=rng.randrange(4), timeout=timedelta(milliseconds=2))
            for name in names
            for i in range(count // len(names))
        ]
        await connection.enqueue_many(jobs)
        cancelled = set()
        worker = Worker([router], handle_signals=(), tasks_limit=3, graceful_shutdown_time=0)
        for restart in range(40):
            calm = restart > 25
            worker.messages_limit = rng.choice([None, None, 1, 7])
            task = asyncio.create_task(worker.run())
            await asyncio.sleep(0)
            for _ in range(rng.randrange(5)):
                await turns(rng.randrange(40))
                if rng.random() < 0.3:
                    await clock.advance(SECOND)
                job = rng.choice(jobs)
                steady = True
                if not calm and rng.random() < 0.2 and await job.cancel():
                    cancelled.add(job.id_)
                steady = False
            if calm:
                await clock.advance(5 * MINUTE)
                await asyncio.sleep(0.003)
            for _ in range(rng.randrange(1, 3)):
                rng.choice([worker.stop, task.cancel])()
                await turns(rng.randrange(3))
            with suppress(asyncio.CancelledError):
                async with asyncio.timeout(5):
                    summary = await task
                assert worker.messages_limit is None or summary.processed <= worker.messages_limit
            stats = [await Queue(name).stats() for name in names]
            assert [stat.in_progress for stat in stats] == [0, 0, 0]
            assert now == 0
        assert most <= 3
        broker = connection.message_broker
        dead, ready, delayed = [
            {seen.envelope.key.id_ for name in names async for seen in broker.browse(name, category)}
            for category in (MessageCategory.DEAD, MessageCategory.NORMAL, MessageCategory.DELAYED)
        ]
        assert not ready | delayed
        assert not dead & cancelled
        for job in jobs:
            if job.result_id not in refused:  # else the failure itself could not be stored
                bucket = await job.result
                assert bucket is not None, f"{job} has no result"
                assert bucket.success is (job.id_ not in dead and job.id_ not in cancelled), f"{job}: {bucket}"
            kept = await connection.args_bucket_broker.get_bucket(job._sent.args_id)  # type: ignore[union-attr]
            assert (kept is not None) is (job.id_ in dead)
