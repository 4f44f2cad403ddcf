"""What a worker makes of one delivery: sentences W1 to W4 and W7 to W9 of the contract."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from repid_core import (
    Connection,
    Depends,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    JobFailedError,
    MessageCategory,
    MessageDependency,
    Priority,
    Queue,
    Repid,
)
from repid_core.codec import encode_bucket
from repid_core.data import Bucket, Death, DeathReason, Envelope, Outcome, Parameters, RoutingKey
from repid_core.errors import BucketBrokerError, BucketConnectionError, DeliveryLostError, PayloadTooLargeError
from repid_core.memory.consumer import InMemoryDelivery

SECOND = timedelta(seconds=1)


async def dead(queue: str = "default") -> list[tuple[str, Death]]:
    """Ids and deaths of a queue's dead messages."""
    broker = Queue(queue).connection.message_broker
    return [(seen.envelope.key.id_, seen.death) async for seen in broker.browse(queue, MessageCategory.DEAD) if seen.death]


async def the_death() -> Death:
    [(_, death)] = await dead()
    return death


class TestSuccess:
    async def test_a_job_goes_from_arguments_to_result(self, router, work):
        """Enqueue, args bucket, actor, result bucket, acknowledgement."""

        @router.actor
        async def greet(user_id: int, name: str) -> str:
            return f"{user_id}: {name}"

        job = Job("greet", args={"user_id": 1, "name": "Alex"})
        await job.enqueue()
        summary = await work(router)
        bucket = await job.result
        assert (summary.processed, summary.succeeded) == (1, 1)
        assert bucket is not None
        assert (bucket.data, bucket.success, bucket.exception) == ("1: Alex", True, None)
        assert bucket.duration >= timedelta(0)
        assert (await Queue().stats()).in_progress == 0

    async def test_the_result_is_stored_before_the_message_is_settled(self, connection, router, work):
        """W1"""
        order: list[str] = []

        class Watch:
            def after_store_bucket(self, bucket_id: str) -> None:
                order.append(bucket_id)

            def before_ack(self) -> None:
                order.append("ack")

        connection.middleware.add(Watch())

        @router.actor
        async def act() -> None: ...

        job = Job("act", result_id="r")
        await job.enqueue()
        await work(router)
        assert order == ["r", "ack"]

    async def test_arguments_in_every_form(self, router, work):
        """By name, by position, none, and the only parameter."""
        seen: list[Any] = []

        @router.actor
        async def two(a: int, b: int = 5) -> None:
            seen.append((a, b))

        @router.actor
        async def one(items: list[int]) -> None:
            seen.append(items)

        @router.actor
        async def only(text: str = "") -> None:
            seen.append(text)

        for args in ({"a": 1}, [1, 2]):
            await Job("two", args=args, use_args_bucketer=False).enqueue()
            await work(router)
        await Job("one", args={"items": [1, 2]}).enqueue()
        await Job("only", args="text").enqueue()
        await Job("only").enqueue()
        await work(router, 3, tasks_limit=1)
        assert seen == [(1, 5), (1, 2), [1, 2], "text", ""]

    async def test_context_variables_of_one_job_do_not_reach_another(self, router, work):
        from contextvars import ContextVar

        variable: ContextVar[str] = ContextVar("variable", default="untouched")
        seen = []

        @router.actor
        async def act() -> None:
            seen.append(variable.get())
            variable.set("touched")

        for _ in range(2):
            await Job("act").enqueue()
        await work(router, 2)
        assert seen == ["untouched", "untouched"]


class TestFailure:
    async def test_the_log_quotes_no_more_than_a_line_of_what_a_stranger_has_sent(self, connection, router, work, caplog):
        @router.actor
        async def act() -> None: ...

        for changes in ({"content_type": "x" * 100_000}, {"payload": b'{"%b": 1}' % (b"x" * 100_000)}):
            message = Envelope(RoutingKey("m", "act"), Parameters(connection.clock.now()), **{"payload": b"{}", **changes})
            await connection.message_broker.enqueue(message)
            assert (await work(router)).invalid == 1
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(lines) == 2
        assert all(line.endswith("…") and len(line) < 1100 for line in lines)

    async def test_a_failed_attempt_comes_again_after_the_policys_delay_and_stores_nothing(self, clock, router, running):
        """W2"""
        attempts: list[datetime] = []

        @router.actor(retry_policy=lambda attempt, error: attempt * SECOND)
        async def flaky() -> str:
            attempts.append(clock.now())
            if len(attempts) < 3:
                raise ValueError("not yet")
            return "done"

        job: Job[str] = Job("flaky", retries=2)
        await job.enqueue()
        start = clock.now()
        async with running(router):
            await clock.advance(timedelta(milliseconds=999))
            assert len(attempts) == 1
            assert await job.result is None
            await clock.advance(10 * SECOND)
            assert await job.wait(0) == "done"
        assert [at - start for at in attempts] == [timedelta(0), SECOND, 3 * SECOND]

    async def test_the_last_failure_stores_a_result_and_dies(self, router, work):
        """W2: others go to DEAD, reason failed."""

        @router.actor
        async def fail() -> None:
            raise ValueError("broken")

        job = Job("fail")
        await job.enqueue()
        summary = await work(router)
        bucket = await job.result
        assert summary.failed == 1
        assert bucket is not None
        assert (bucket.success, bucket.exception, bucket.data) == (False, "ValueError", None)
        assert bucket.traceback is not None
        assert "test_processing.py" in bucket.traceback
        assert 'processing.py", line' not in bucket.traceback.replace("test_processing.py", "")
        death = await the_death()
        assert (death.reason, death.attempts) == (DeathReason.FAILED, 1)
        assert "broken" in str(death.error)
        with pytest.raises(JobFailedError, match="ValueError"):
            await job.wait(0)

    async def test_none_from_the_policy_ends_retrying(self, router, work):
        @router.actor(retry_policy=lambda attempt, error: None)
        async def fail() -> None:
            raise ValueError

        await Job("fail", retries=5).enqueue()
        await work(router)
        assert (await the_death()).reason is DeathReason.FAILED

    async def test_a_policy_that_fails_ends_retrying(self, router, work):
        """W8"""

        @router.actor(retry_policy=lambda attempt, error: 1 / 0)
        async def fail() -> None:
            raise ValueError

        await Job("fail", retries=5).enqueue()
        await work(router)
        assert (await the_death()).reason is DeathReason.FAILED

    @pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()])
    async def test_leaving_by_other_means_fails_the_job_alone(self, router, work, error):
        """W8"""

        @router.actor
        async def leave() -> None:
            raise error

        @router.actor
        async def stay() -> None: ...

        await Job("leave").enqueue()
        await Job("stay").enqueue()
        summary = await work(router, 2)
        assert (summary.failed, summary.succeeded) == (1, 1)

    async def test_arguments_that_do_not_fit_are_invalid_and_not_retried(self, router, work):
        """W3: the error names each wrong argument by path."""

        @router.actor
        async def act(a: int, b: list[int]) -> None: ...

        job = Job("act", args={"a": "x", "b": [1, "y"], "c": 1}, retries=3)
        await job.enqueue()
        summary = await work(router)
        death = await the_death()
        assert summary.invalid == 1
        assert (death.reason, death.attempts) == (DeathReason.INVALID, 0)
        for path in ("a", "b[1]", "c"):
            assert path in str(death.error)
        bucket = await job.result
        assert bucket is not None
        assert bucket.exception == "ConversionError"

    async def test_an_args_bucket_that_is_gone_is_invalid(self, clock, router, work):
        """W3"""

        @router.actor
        async def act(a: int) -> None: ...

        await Job("act", args={"a": 1}, args_ttl=SECOND).enqueue()
        await clock.advance(2 * SECOND)
        await work(router)
        death = await the_death()
        assert death.reason is DeathReason.INVALID
        assert "gone" in str(death.error)

    async def test_a_failed_result_is_no_arguments(self, connection, router, work):
        """W3"""
        now = connection.clock.now()
        failed = Bucket(b"", "application/json", now, None, Outcome(False, 0, 1, "ValueError"))
        await connection.args_bucket_broker.store_bucket("chained", encode_bucket(failed), None)

        @router.actor
        async def act(a: int) -> None: ...

        await Job("act", args_id="chained").enqueue()
        await work(router)
        death = await the_death()
        assert death.reason is DeathReason.INVALID
        assert "failed job" in str(death.error)

    async def test_an_unknown_content_type_is_invalid(self, connection, router, work):
        """W3"""

        @router.actor
        async def act(a: int) -> None: ...

        envelope = Envelope(
            RoutingKey("id", "act"), Parameters(connection.clock.now()), b"\x81", content_type="application/x-unheard-of"
        )
        await connection.message_broker.enqueue(envelope)
        await work(router)
        death = await the_death()
        assert death.reason is DeathReason.INVALID
        assert "application/x-unheard-of" in str(death.error)

    async def test_a_return_value_that_does_not_fit_fails_without_a_retry(self, router, work):
        """The work is done, and doing it again would give the same."""

        @router.actor
        async def act() -> int:
            return object()  # type: ignore[return-value]

        job = Job("act", retries=3)
        await job.enqueue()
        await work(router)
        assert (await the_death()).reason is DeathReason.FAILED

    async def test_an_overdue_message_is_not_run(self, clock, router, work):
        """M8 and W2: expired, with a failed result."""

        @router.actor
        async def act() -> None:
            raise AssertionError("it was run")

        job = Job("act", ttl=SECOND)
        await job.enqueue()
        assert not job.is_overdue
        await clock.advance(2 * SECOND)
        assert job.is_overdue
        summary = await work(router)
        assert summary.expired == 1
        assert (await the_death()).reason is DeathReason.EXPIRED
        bucket = await job.result
        assert bucket is not None
        assert bucket.exception == "Expired"


class TestTimeout:
    async def test_an_async_actor_is_cancelled_at_its_next_await(self, router, work):
        """W4"""
        cancelled = asyncio.Event()

        @router.actor
        async def slow() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        job = Job("slow", timeout=timedelta(milliseconds=20))
        await job.enqueue()
        await work(router)
        assert cancelled.is_set()
        bucket = await job.result
        assert bucket is not None
        assert bucket.exception == "TimeoutError"

    async def test_dependencies_are_inside_the_timeout(self, router, work):
        """W4"""

        async def never() -> int:
            await asyncio.Event().wait()
            return 1

        @router.actor
        async def act(value: int = Depends(never)) -> None: ...  # type: ignore[assignment]

        job = Job("act", timeout=timedelta(milliseconds=20))
        await job.enqueue()
        await work(router)
        bucket = await job.result
        assert bucket is not None
        assert bucket.exception == "TimeoutError"

    async def test_to_wait_for_a_thread_is_not_to_run(self, router, running):
        """W4"""
        release, started = threading.Event(), threading.Event()

        @router.actor
        def first() -> None:
            started.set()
            release.wait(10)

        @router.actor
        def second() -> str:
            return "in time"

        await Job("first").enqueue()
        async with running(router, threads=1):
            while not started.is_set():
                await asyncio.sleep(0.001)
            job = Job("second", timeout=timedelta(milliseconds=500))
            await job.enqueue()
            await asyncio.sleep(0.7)  # longer than the timeout
            release.set()
            assert await job.wait(timeout=10) == "in time"
            bucket = await job.result
        assert bucket is not None
        assert bucket.duration < timedelta(milliseconds=500)

    async def test_who_waits_for_a_thread_is_given_back(self, router, running):
        """W5"""
        release, started = threading.Event(), threading.Event()

        @router.actor(queue="first")
        def first() -> None:
            started.set()
            release.wait(10)

        @router.actor(queue="second")
        def second() -> None: ...

        await Job("first", queue="first").enqueue()
        async with running(router, threads=1, graceful_shutdown_time=0) as worker:
            while not started.is_set():
                await asyncio.sleep(0.001)
            await Job("second", queue="second").enqueue()
            while not (await Queue("second").stats()).in_progress:
                await asyncio.sleep(0.001)
            worker.stop()
            while not (await Queue("second").stats()).ready:
                await asyncio.sleep(0.001)
            release.set()

    async def test_a_thread_is_left_to_end_and_its_job_settled_then(self, router, running):
        """W4"""
        release, started = threading.Event(), threading.Event()

        @router.actor
        def slow() -> str:
            started.set()
            release.wait(10)
            return "too late"

        job = Job("slow", timeout=timedelta(milliseconds=20))
        await job.enqueue()
        async with running(router) as worker:
            while not started.is_set():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.04)
            assert (await Queue().stats()).in_progress == 1
            release.set()
            while (bucket := await job.result) is None:
                await asyncio.sleep(0.001)
            worker.stop()
        assert bucket.exception == "TimeoutError"


class TestOwnSettlement:
    """W1: a settlement called inside an actor ends the actor; then result, settlement, callbacks, in that order."""

    @pytest.mark.parametrize(
        ("kind", "expected"), [("ack", (0, 0, 0)), ("nack", (0, 0, 1)), ("reject", (1, 0, 0)), ("force_retry", (0, 1, 0))]
    )
    async def test_the_first_settlement_ends_the_actor(self, router, running, clock, kind, expected):
        after: list[str] = []
        done = asyncio.Event()

        @router.actor
        async def act(message: MessageDependency) -> str:
            message.add_callback(done.set)
            if done.is_set():
                await asyncio.Event().wait()
            await getattr(message, kind)(*([SECOND] if kind == "force_retry" else []))
            after.append("went on")
            return "returned"

        await Job("act").enqueue()
        async with running(router, graceful_shutdown_time=0, tasks_limit=1):
            async with asyncio.timeout(5):
                await done.wait()
        stats = await Queue().stats()
        assert (stats.ready, stats.delayed, stats.dead) == expected
        assert not after

    async def test_result_settlement_and_callbacks_in_order(self, connection, router, work):
        order: list[str] = []

        class Watch:
            def after_store_bucket(self) -> None:
                order.append("stored")

            def after_ack(self) -> None:
                order.append("settled")

        @router.actor
        async def act(message: MessageDependency) -> None:
            async def second() -> None:
                order.append("second callback")

            message.add_callback(lambda: order.append("first callback"))
            message.add_callback(second)
            message.set_result({"a": 1})
            message.ack()

        job = Job("act")
        await job.enqueue()
        connection.middleware.add(Watch())
        await work(router)
        assert order == ["stored", "settled", "first callback", "second callback"]
        bucket = await job.result
        assert bucket is not None
        assert bucket.data == {"a": 1}

    async def test_nack_stores_a_failed_result(self, router, work):
        """W2"""

        @router.actor
        async def act(message: MessageDependency) -> None:
            message.set_exception(KeyError("no such user"))
            message.nack("no such user")

        job = Job("act")
        await job.enqueue()
        summary = await work(router)
        bucket = await job.result
        assert summary.nacked == 1
        assert bucket is not None
        assert (bucket.success, bucket.exception) == (False, "KeyError")
        death = await the_death()
        assert (death.reason, death.error) == (DeathReason.NACKED, "no such user")

    async def test_retry_counts_and_raises_when_none_is_left(self, clock, router, running):
        tried: list[int] = []

        @router.actor
        async def act(message: MessageDependency) -> None:
            tried.append(message.parameters.tried)
            message.retry(SECOND)

        await Job("act", retries=2).enqueue()
        async with running(router):
            await clock.advance(10 * SECOND)
        assert tried == [0, 1, 2]
        assert "no retries left" in str((await the_death()).error)

    async def test_a_synchronous_actor_can_settle_too(self, router, work):
        @router.actor
        def act(message: MessageDependency) -> None:
            message.nack("from a thread")

        await Job("act").enqueue()
        await work(router)
        assert (await the_death()).error == "from a thread"

    @pytest.mark.parametrize(("how", "committed"), [("ack", True), ("nack", False)])
    async def test_dependencies_that_commit_see_an_ack_as_a_normal_end(self, router, work, how, committed):
        commits: list[str] = []

        async def session() -> AsyncIterator[str]:
            yield "session"
            commits.append("committed")

        @router.actor
        async def act(message: MessageDependency, db: str = Depends(session)) -> None:  # type: ignore[assignment]
            getattr(message, how)()

        await Job("act").enqueue()
        await work(router)
        assert bool(commits) is committed

    async def test_a_callback_that_fails_changes_nothing(self, router, work):
        """W8"""

        @router.actor
        async def act(message: MessageDependency) -> str:
            message.add_callback(lambda: 1 / 0)
            return "fine"

        job: Job[str] = Job("act")
        await job.enqueue()
        await work(router)
        assert await job.wait(0) == "fine"


class TestRecurrence:
    """W7"""

    async def test_it_stays_on_its_grid_and_overwrites_its_result(self, clock, router, running):
        times: list[datetime] = []

        @router.actor
        async def tick() -> int:
            times.append(clock.now())
            return len(times)

        job: Job[int] = Job("tick", deferred_by=timedelta(minutes=1))
        await job.enqueue()
        start = clock.now()
        async with running(router):
            await clock.advance(timedelta(minutes=5, seconds=30))
            assert await job.wait(0) == 5
            stats = await Queue().stats()
            assert (stats.ready, stats.delayed) == (0, 1)
        assert [at - start for at in times] == [timedelta(minutes=minute) for minute in range(1, 6)]

    async def test_missed_times_run_once(self, clock, router, running):
        times: list[datetime] = []

        @router.actor
        async def tick() -> None:
            times.append(clock.now())

        start = clock.now()
        await Job("tick", deferred_by=timedelta(minutes=1)).enqueue()
        await clock.advance(timedelta(minutes=10, seconds=30))
        async with running(router):
            await clock.advance(timedelta(minutes=1))
        assert [at - start for at in times] == [timedelta(minutes=10, seconds=30), timedelta(minutes=11)]

    async def test_failure_expiry_and_invalid_arguments_do_not_end_it(self, clock, router, running):
        """W2, W3 and M8"""
        calls: list[datetime] = []

        @router.actor
        async def tick(a: int) -> None:
            calls.append(clock.now())
            raise ValueError

        await Job("tick", args={"a": 1}, deferred_by=timedelta(minutes=1), ttl=SECOND).enqueue()
        await Job("tick", args={"a": "x"}, deferred_by=timedelta(minutes=1)).enqueue()
        await clock.advance(timedelta(minutes=1, seconds=5))
        async with running(router):
            await clock.settle()
            assert not calls
            await clock.advance(timedelta(minutes=3))
        assert len(calls) == 3
        stats = await Queue().stats()
        assert (stats.ready, stats.delayed, stats.dead) == (0, 2, 0)

    async def test_retry_goes_before_recurrence_and_starts_anew_on_the_grid(self, clock, router, running):
        """W2"""
        seen: list[tuple[timedelta, int]] = []
        start = clock.now()

        @router.actor(retry_policy=lambda attempt, error: 10 * SECOND)
        async def tick(message: MessageDependency) -> None:
            seen.append((clock.now() - start, message.parameters.tried))
            raise ValueError

        await Job("tick", deferred_by=timedelta(minutes=1), retries=1).enqueue()
        async with running(router):
            await clock.advance(timedelta(minutes=2, seconds=30))
        assert seen == [(60 * SECOND, 0), (70 * SECOND, 1), (120 * SECOND, 0), (130 * SECOND, 1)]

    @pytest.mark.parametrize("how", ["ack", "nack"])
    async def test_the_actors_own_ack_or_nack_ends_it(self, clock, router, running, how):
        runs: list[int] = []

        @router.actor
        async def tick(message: MessageDependency) -> None:
            runs.append(1)
            if len(runs) == 2:
                getattr(message, how)()

        await Job("tick", deferred_by=timedelta(minutes=1)).enqueue()
        async with running(router):
            await clock.advance(timedelta(minutes=5))
        assert len(runs) == 2
        stats = await Queue().stats()
        assert (stats.ready, stats.delayed, stats.dead) == (0, 0, int(how == "nack"))

    async def test_cron_in_a_time_zone(self, clock, router, running):
        times: list[datetime] = []

        @router.actor
        async def report() -> None:
            times.append(clock.now())

        await Job("report", cron="30 9 * * *", timezone="Europe/Berlin").enqueue()
        async with running(router):
            await clock.advance(timedelta(days=2))
        assert times == [datetime(2030, 1, 2, 8, 30, tzinfo=UTC), datetime(2030, 1, 3, 8, 30, tzinfo=UTC)]


class TestArgsBuckets:
    """W9"""

    async def test_one_of_its_own_goes_with_the_final_ack(self, connection, router, work):
        @router.actor
        async def act(a: int) -> None: ...

        job = Job("act", args={"a": 1})
        bucket_id = job.args_id
        await job.enqueue()
        assert await connection.args_bucket_broker.get_bucket(bucket_id) is not None
        await work(router)
        assert await connection.args_bucket_broker.get_bucket(bucket_id) is None

    async def test_one_under_an_id_of_the_users_stays(self, connection, router, work):
        @router.actor
        async def act(a: int) -> None: ...

        await Job("act", args={"a": 1}, args_id="mine").enqueue()
        await work(router)
        assert await connection.args_bucket_broker.get_bucket("mine") is not None

    async def test_those_of_dead_and_recurring_jobs_stay(self, connection, clock, router, running):
        @router.actor
        async def act(a: int) -> None:
            if a:
                raise ValueError

        failing, recurring = Job("act", args={"a": 1}), Job("act", args={"a": 0}, deferred_by=timedelta(minutes=1))
        ids = [failing.args_id, recurring.args_id]
        await connection.enqueue_many([failing, recurring])
        async with running(router):
            await clock.advance(timedelta(minutes=2))
        assert None not in await connection.args_bucket_broker.get_many(ids)

    async def test_a_refused_enqueue_leaves_none(self, connection):
        await Job("act", id_="same", args={"a": 1}).enqueue()
        again = Job("act", id_="same", args={"a": 2}, on_duplicate="keep")
        bucket_id = again.args_id
        await again.enqueue()
        assert await connection.args_bucket_broker.get_bucket(bucket_id) is None

    async def test_each_enqueue_of_one_job_has_its_own(self, router, work):
        """The first one's end does not take the second one's arguments."""
        seen: list[int] = []

        @router.actor
        async def act(a: int) -> None:
            seen.append(a)

        job = Job("act", args={"a": 1})
        await job.enqueue()
        await job.enqueue()
        await work(router, 2)
        assert seen == [1, 1]


class Away(InMemoryBucketBroker):
    """A store that is away for a while."""

    failures = 0
    error: Exception = BucketConnectionError()

    async def get_bucket(self, id_: str) -> bytes | None:
        self._fail()
        return await super().get_bucket(id_)

    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        self._fail()
        await super().store_bucket(id_, data, ttl)

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error


@pytest.fixture
async def away(clock):
    connection = Connection(InMemoryMessageBroker(), Away(), Away(), clock=clock)
    async with Repid(connection).magic(auto_disconnect=True):
        yield connection


class TestStoresThatFail:
    """W8"""

    async def test_arguments_are_awaited_while_the_store_is_away(self, away, clock, router):
        from repid_core import Worker

        seen: list[int] = []

        @router.actor
        async def act(a: int) -> int:
            seen.append(a)
            return a

        job: Job[int] = Job("act", args={"a": 1})
        await job.enqueue()
        away.args_bucket_broker.failures = 3
        worker = Worker([router], messages_limit=1, handle_signals=())
        task = asyncio.create_task(worker.run())
        await clock.settle()
        assert not seen
        await clock.advance(30 * SECOND)
        summary = await task
        assert (summary.succeeded, summary.retried) == (1, 0)
        assert await job.wait(0) == 1

    async def test_results_are_kept_in_hand_while_the_store_is_away(self, away, clock, router):
        from repid_core import Worker

        runs: list[int] = []

        @router.actor
        async def act() -> int:
            runs.append(1)
            return 1

        job: Job[int] = Job("act")
        await job.enqueue()
        away.results_bucket_broker.failures = 3
        task = asyncio.create_task(Worker([router], messages_limit=1, handle_signals=()).run())
        await clock.advance(30 * SECOND)
        await task
        assert await job.wait(0) == 1
        assert len(runs) == 1

    async def test_a_result_that_is_refused_fails_the_job(self, away, router):
        from repid_core import Worker

        @router.actor
        async def act() -> str:
            return "x" * 100

        job = Job("act", retries=3)
        await job.enqueue()
        away.results_bucket_broker.error = PayloadTooLargeError(100, 10)
        away.results_bucket_broker.failures = 1
        summary = await Worker([router], messages_limit=1, handle_signals=()).run()
        assert summary.failed == 1
        bucket = await job.result
        assert bucket is not None
        assert bucket.exception == "PayloadTooLargeError"
        assert (await the_death()).reason is DeathReason.FAILED

    async def test_arguments_that_are_refused_fail_the_attempt(self, away, clock, router):
        from repid_core import Worker

        @router.actor
        async def act(a: int) -> int:
            return a

        job: Job[int] = Job("act", args={"a": 1}, retries=1)
        await job.enqueue()
        away.args_bucket_broker.error = BucketBrokerError("denied")
        away.args_bucket_broker.failures = 1
        task = asyncio.create_task(Worker([router], messages_limit=2, handle_signals=()).run())
        await clock.advance(timedelta(days=1))
        summary = await task
        assert (summary.retried, summary.succeeded) == (1, 1)


class TestSettlementsThatFail:
    async def test_a_lost_delivery_is_survived(self, connection, router, running, clock, monkeypatch):
        """M5 and W8"""
        runs: list[int] = []

        @router.actor
        async def act() -> None:
            runs.append(1)

        @router.actor(name="other")
        async def other() -> None:
            runs.append(2)

        original = InMemoryDelivery.ack
        failures = iter([DeliveryLostError()])

        async def ack(self: InMemoryDelivery) -> None:
            for failure in failures:
                raise failure
            await original(self)

        monkeypatch.setattr(InMemoryDelivery, "ack", ack)
        async with running(router):
            await Job("act").enqueue()
            await clock.settle()
            await Job("other").enqueue()
            await clock.settle()
        assert runs == [1, 2]


class TestSynchronousActors:
    async def test_they_run_in_a_thread(self, router, work):
        @router.actor
        def act() -> bool:
            return threading.current_thread() is threading.main_thread()

        job: Job[bool] = Job("act")
        await job.enqueue()
        await work(router)
        assert await job.wait(0) is False

    async def test_priority_reaches_the_actor(self, router, work):
        @router.actor
        async def act(message: MessageDependency) -> int:
            return int(message.key.priority)

        job: Job[int] = Job("act", priority=Priority.HIGH, headers={"trace": "1"})
        await job.enqueue()
        await work(router)
        assert await job.wait(0) == 9


def in_process(how: str) -> int:
    """A process actor that ends as it is told."""
    if how == "die":
        os._exit(9)
    if how == "sleep":
        time.sleep(60)
    if how == "raise":
        raise ValueError(how)
    return os.getpid()


class TestProcessActors:
    """W4"""

    async def test_a_process_that_dies_or_is_too_slow_fails_its_own_job_alone(self, router, work):
        router.actor(run_in_process=True)(in_process)
        jobs = {
            how: Job("in_process", args=[how], timeout=timedelta(seconds=3 if how == "sleep" else 30))
            for how in ("die", "sleep", "raise", "return")
        }
        for job in jobs.values():
            await job.enqueue()
        summary = await work(router, 4, processes=2)
        assert (summary.failed, summary.succeeded) == (3, 1)
        results = {how: await job.result for how, job in jobs.items()}
        assert {how: bucket.exception for how, bucket in results.items() if bucket} == {
            "die": "ActorProcessError",
            "sleep": "TimeoutError",
            "raise": "ValueError",
            "return": None,
        }
        assert results["return"] is not None
        assert results["return"].data != os.getpid()


if sys.platform == "win32":
    pytest.skip("process actors are tested on POSIX", allow_module_level=True)
