"""Running jobs under test: when, in which order, at what time; and what their failures look like."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from repid_core import (
    INJECTED,
    ConversionError,
    InvalidActorError,
    Job,
    MessageCategory,
    MessageDependency,
    Queue,
    Router,
    Worker,
)
from repid_core.errors import UsageError
from repid_core.memory import InMemoryMessageBroker
from repid_core.testing import Harness

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


async def test_jobs_run_when_the_test_says_so(kit: Harness) -> None:
    @kit.actor
    async def double(number: int) -> int:
        return 2 * number

    job = Job.of(double)(number=4)
    await job.enqueue()
    assert kit.events.kinds() == ["enqueued"]
    assert await job.result is None
    await kit.run_until_idle()
    assert await job.wait() == 8
    assert kit.events.kinds("double") == ["enqueued", "started", "succeeded"]


async def test_run_one_runs_one_and_says_how_it_ended(kit: Harness) -> None:
    ran = []

    @kit.actor
    async def first(number: int) -> None:
        ran.append(number)

    await kit.connection.enqueue_many([Job("first", args=[number]) for number in range(3)])
    event = await kit.run_one()
    assert event is not None
    assert (event.kind, event.actor) == ("succeeded", "first")
    assert ran == [0]
    await kit.run_one()
    await kit.run_one()
    assert ran == [0, 1, 2]
    assert await kit.run_one() is None


async def test_eager_runs_a_job_and_what_it_enqueues_inside_of_enqueue() -> None:
    ran = []
    async with Harness(eager=True) as kit:

        @kit.actor
        async def outer() -> None:
            await Job("inner", args=["from outer"]).enqueue()
            ran.append("outer")

        @kit.actor
        def inner(word: str) -> None:
            ran.append(word)

        await Job("outer").enqueue()
        assert ran == ["from outer", "outer"]
        await kit.connection.enqueue_many([Job("inner", args=["a"]), Job("inner", args=["b"])])
        assert ran[2:] == ["a", "b"]
        await Job("inner", args=["later"], deferred_until=kit.clock.now() + HOUR).enqueue()
        assert ran[4:] == []
        await kit.advance(HOUR)
        assert ran[4:] == ["later"]


async def test_eager_raises_at_enqueue_what_the_actor_raised() -> None:
    async with Harness(eager=True) as kit:

        @kit.actor
        async def outer() -> None:
            await Job("broken").enqueue()

        @kit.actor
        async def broken() -> None:
            raise LookupError("inside")

        with pytest.raises(LookupError, match="inside"):
            await Job("broken").enqueue()
        with pytest.raises(LookupError, match="inside"):
            await Job("outer").enqueue()
        assert kit.events.of("dead").kinds() == ["dead"] * 3


async def test_eager_jobs_of_several_tasks_each_have_run_when_their_enqueue_returns() -> None:
    release = asyncio.Event()
    async with Harness(eager=True) as kit:

        @kit.actor
        async def slow(number: int) -> int:
            await release.wait()
            return number

        jobs = [Job.of(slow)(number=number) for number in range(4)]

        async def send(job: Job[int]) -> int:
            await job.enqueue()
            bucket = await job.result
            assert bucket is not None
            return int(bucket.data)

        tasks = [asyncio.create_task(send(job)) for job in jobs]
        await kit.clock.settle()
        release.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2, 3]


async def test_eager_enqueue_waits_for_its_jobs_that_another_task_runs() -> None:
    gates = [asyncio.Event() for _ in range(3)]
    async with Harness(eager=True) as kit:

        @kit.actor
        async def slow(number: int) -> None:
            await gates[number].wait()

        first = asyncio.create_task(kit.connection.enqueue_many([Job("slow", args=[0]), Job("slow", args=[1])]))
        await kit.clock.settle()
        second = asyncio.create_task(Job("slow", args=[2]).enqueue())  # takes the one that is next: that of the first task
        await kit.clock.settle()
        gates[0].set()
        await kit.clock.settle()
        assert len(kit.events.of("succeeded")) == 1
        assert not first.done()
        gates[1].set()
        await first
        gates[2].set()
        await second
        assert len(kit.events.of("succeeded")) == 3


async def test_jobs_run_one_after_another_in_order_even_in_threads(kit: Harness) -> None:
    running = threading.Semaphore(1)

    @kit.actor
    def threaded(number: int) -> None:
        assert running.acquire(blocking=False)
        time.sleep(0.001)
        running.release()

    await kit.connection.enqueue_many([Job("threaded", args=[number]) for number in range(10)])
    await kit.run_until_idle()
    assert kit.events.kinds("threaded")[10:] == ["started", "succeeded"] * 10

    async with Harness(eager=True) as eager:
        eager.include_router(kit)
        await eager.connection.enqueue_many([Job("threaded", args=[number]) for number in range(10)])
        assert eager.events.kinds("threaded")[10:] == ["started", "succeeded"] * 10


async def test_tasks_limit_lets_jobs_meet() -> None:
    async with Harness(tasks_limit=2) as kit:
        barrier = asyncio.Barrier(2)

        @kit.actor
        async def meet() -> None:
            await barrier.wait()

        await kit.connection.enqueue_many([Job("meet"), Job("meet")])
        await kit.run_until_idle()
        assert kit.events.kinds()[2:] == ["started", "started", "succeeded", "succeeded"]


async def test_a_job_that_waits_for_anothers_result_lets_it_run(kit: Harness) -> None:
    @kit.actor
    async def parent() -> int:
        child = Job.of(child_)(number=20)
        await child.enqueue()
        return 1 + await child.wait(timeout=MINUTE)

    @kit.actor
    async def child_(number: int) -> int:
        return 2 * number

    job = Job.of(parent)()
    await job.enqueue()
    await kit.run_until_idle()
    assert await job.wait() == 41


async def test_a_job_may_wait_for_one_that_time_brings(kit: Harness) -> None:
    @kit.actor
    async def parent() -> int:
        child = Job("child", deferred_until=kit.clock.now() + 30 * SECOND)
        await child.enqueue()
        result: int = await child.wait(timeout=MINUTE)
        return result

    @kit.actor
    async def child() -> int:
        return 7

    job = Job.of(parent)()
    await job.enqueue()
    await kit.run_until_idle()
    assert await job.result is None
    await kit.advance(30 * SECOND)
    assert await job.wait() == 7


async def test_retries_come_at_their_times_and_the_last_failure_is_raised(kit: Harness) -> None:
    start = kit.clock.now()

    @kit.actor(retry_policy=lambda attempt, _: timedelta(minutes=10**attempt))
    async def fragile() -> None:
        raise ConnectionError("no network")

    await Job("fragile", retries=2).enqueue()
    await kit.advance(99 * MINUTE)
    assert kit.events.kinds("fragile") == ["enqueued", *("started", "failed", "retried") * 2]
    with pytest.raises(ConnectionError, match="no network"):
        await kit.advance(HOUR)
    assert [(event.at - start) / MINUTE for event in kit.events.of("started")] == [0, 10, 110]
    assert [event.attempt for event in kit.events.of("failed")] == [1, 2, 3]
    assert kit.events.kinds()[-2:] == ["failed", "dead"]
    assert kit.clock.now() == start + 110 * MINUTE, "the clock stands where it happened"


async def test_the_failure_has_the_actors_own_traceback(kit: Harness) -> None:
    def deep() -> None:
        raise ZeroDivisionError("deep down")

    @kit.actor
    def threaded() -> None:
        deep()

    @kit.actor
    async def on_the_loop() -> None:
        deep()

    for name in ("threaded", "on_the_loop"):
        await Job(name).enqueue()
        with pytest.raises(ZeroDivisionError) as raised:
            await kit.run_until_idle()
        functions = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
        assert functions[-2:] == [name, "deep"]


async def test_several_failures_are_raised_as_a_group(kit: Harness) -> None:
    @kit.actor
    async def broken(word: str) -> None:
        raise ValueError(word)

    await kit.connection.enqueue_many([Job("broken", args=["a"]), Job("broken", args=["b"])])
    with pytest.raises(ExceptionGroup, match="2 jobs failed") as raised:
        await kit.run_until_idle()
    assert [str(error) for error in raised.value.exceptions] == ["a", "b"]
    await kit.run_until_idle()  # each is raised once


async def test_one_error_of_several_jobs_is_raised_once(kit: Harness) -> None:
    shared = ConnectionError("the pool is gone")

    @kit.actor
    async def broken() -> None:
        raise shared

    await kit.connection.enqueue_many([Job("broken"), Job("broken")])
    with pytest.raises(ConnectionError) as raised:
        await kit.run_until_idle()
    assert raised.value is shared


async def test_arguments_that_do_not_fit_are_raised_too(kit: Harness) -> None:
    @kit.actor
    async def typed(number: int) -> None: ...

    await Job("typed", args={"number": "x", "other": 1}).enqueue()
    with pytest.raises(ConversionError, match="number"):
        await kit.run_until_idle()
    assert kit.events.kinds()[-1] == "dead"


async def test_what_is_no_exception_is_raised_as_it_is(kit: Harness) -> None:
    @kit.actor
    async def assertive() -> None:
        pytest.fail("said by the actor")

    await Job("assertive").enqueue()
    with pytest.raises(pytest.fail.Exception, match="said by the actor"):
        await kit.run_until_idle()


async def test_an_actor_that_exits_ends_its_job_and_not_the_test_run(kit: Harness) -> None:
    @kit.actor
    def leave() -> None:
        raise SystemExit(1)

    await Job("leave").enqueue()
    with pytest.raises(RuntimeError, match="raised SystemExit"):
        await kit.run_until_idle()


async def test_failures_can_be_recorded_instead() -> None:
    async with Harness(raise_errors=False) as kit:

        @kit.actor
        async def broken() -> None:
            raise ValueError("on record")

        await Job("broken").enqueue()
        await kit.run_until_idle()
        [error] = kit.events.errors
        assert isinstance(error, ValueError)
        assert traceback.extract_tb(error.__traceback__)[-1].name == "broken"


async def test_a_timeout_is_a_failure(kit: Harness) -> None:
    @kit.actor
    async def stuck() -> None:
        await asyncio.Event().wait()

    await Job("stuck", timeout=timedelta(milliseconds=5)).enqueue()
    with pytest.raises(TimeoutError, match="longer than its timeout"):
        await kit.run_until_idle()
    [failed] = kit.events.of("failed")
    assert isinstance(failed.error, TimeoutError)


async def test_what_actors_decide_themselves_is_in_the_log(kit: Harness) -> None:
    @kit.actor
    async def decide(how: str, message: MessageDependency = INJECTED) -> None:
        if message.parameters.tried or how == "ack":
            message.ack()
        if how == "nack":
            message.nack("not mine")
        if how == "retry":
            message.retry(HOUR)

    for how in ("ack", "nack", "retry"):
        await Job("decide", args=[how], retries=1).enqueue()
    await kit.run_until_idle()
    kinds = kit.events.kinds()
    assert kinds[3:] == ["started", "succeeded", "started", "dead", "started", "retried"]
    await kit.advance(HOUR)
    assert kit.events.kinds()[9:] == ["started", "succeeded"]


async def test_delays_are_kept_in_order_each_at_its_own_time(kit: Harness) -> None:
    seen = []

    @kit.actor
    async def note(word: str) -> None:
        seen.append((word, kit.clock.now() - start))

    start = kit.clock.now()
    for word, delay in (("late", 3 * DAY), ("soon", SECOND), ("between", HOUR)):
        await Job("note", args=[word], deferred_until=start + delay).enqueue()
    await kit.advance(2 * DAY)
    assert seen == [("soon", SECOND), ("between", HOUR)]
    await kit.advance_to(start + 365 * DAY)
    assert seen[2:] == [("late", 3 * DAY)]


async def test_an_application_that_defers_by_the_real_time() -> None:
    async with Harness() as kit:

        @kit.actor
        async def remind() -> None: ...

        real = datetime.now(UTC)
        assert abs(kit.clock.now() - real) < HOUR
        while datetime.now(UTC) == real:  # real time passes, if only a little
            pass
        await Job("remind", deferred_until=datetime.now(UTC) + DAY).enqueue()
        await kit.advance(23 * HOUR)
        assert kit.events.kinds() == ["enqueued"]
        await kit.advance(HOUR)
        assert kit.events.kinds() == ["enqueued", "started", "succeeded"]


async def test_due_times_by_the_real_time_and_no_others() -> None:
    async with Harness() as kit:
        await Job("remind", deferred_until=datetime.now(UTC) + DAY).enqueue()
        kit.assert_enqueued("remind", due=DAY)
        for due in (DAY - HOUR, DAY + HOUR):
            with pytest.raises(AssertionError, match=r"remind .*due in 1 day, 0:00:0"):
                kit.assert_enqueued("remind", due=due)


async def test_a_job_that_time_brings_may_enqueue_another_that_time_brings(kit: Harness) -> None:
    at = []

    @kit.actor
    async def chain(left: int) -> None:
        at.append(kit.clock.now() - start)
        if left:
            await Job("chain", args=[left - 1], deferred_until=kit.clock.now() + DAY).enqueue()

    start = kit.clock.now()
    await Job("chain", args=[3]).enqueue()
    await kit.advance(10 * DAY)
    assert at == [0 * DAY, 1 * DAY, 2 * DAY, 3 * DAY]


async def test_a_week_of_cron_takes_no_time(kit: Harness, record_property: Callable[[str, object], None]) -> None:
    """Every ten minutes, 1,008 runs; it is printed how long they took, as a busy machine has no say in what is right."""
    at = []

    @kit.actor
    async def poll() -> None:
        at.append(kit.clock.now())

    await Job("poll", cron="*/10 * * * *").enqueue()
    began = time.perf_counter()
    await kit.advance(7 * DAY)
    took = time.perf_counter() - began
    print(f"a week of cron, {len(at)} runs: {took:.3f} s")  # noqa: T201 — pytest -s shows it
    record_property("seconds", took)
    assert at == [kit.clock.now() - 7 * DAY + 10 * MINUTE * number for number in range(1, 7 * 144 + 1)]
    assert took < 20, "nothing waits for real time"


async def test_cron_in_a_time_zone_keeps_its_hour() -> None:
    at = []
    async with Harness(start=datetime(2030, 3, 29, tzinfo=UTC)) as kit:

        @kit.actor
        async def digest() -> None:
            at.append(kit.clock.now().hour)

        await Job("digest", cron="30 8 * * *", timezone="Europe/Berlin").enqueue()
        await kit.advance(4 * DAY)
    assert at == [7, 7, 6, 6], "summer time begins on the 31st"


async def test_a_job_past_its_ttl_dies(kit: Harness) -> None:
    @kit.actor
    async def urgent() -> None: ...

    await Job("urgent", ttl=MINUTE).enqueue()
    await kit.clock.advance(2 * MINUTE)  # moves the clock, and runs nothing
    assert kit.events.kinds() == ["enqueued"]
    event = await kit.run_one()
    assert event is not None
    assert event.reason is not None
    assert (event.kind, event.reason.value) == ("dead", "expired")
    assert kit.events.errors == []


async def test_results_are_gone_after_their_time(kit: Harness) -> None:
    @kit.actor
    async def one() -> int:
        return 1

    job = Job("one", result_ttl=DAY)
    await job.enqueue()
    await kit.run_until_idle()
    assert await job.result is not None
    await kit.advance(DAY)
    assert await job.result is None


async def test_what_a_dead_worker_held_comes_when_its_lease_ends(kit: Harness) -> None:
    ran = []

    @kit.actor
    async def job(word: str) -> None:
        ran.append(kit.clock.now() - start)

    start, broker = kit.clock.now(), kit.connection.message_broker
    assert isinstance(broker, InMemoryMessageBroker)
    await Job("job", args=["x"]).enqueue()
    consumer = broker.consumer("default", None, prefetch=1)
    await consumer.start()
    await consumer.receive(1)
    broker.kill(consumer)
    await kit.run_until_idle()
    assert ran == []
    await kit.advance(MINUTE)
    assert ran == [broker.limits.lease]


async def test_dead_messages_can_be_redriven_and_run(kit: Harness) -> None:
    broken = True

    @kit.actor
    async def fragile() -> None:
        if broken:
            raise ValueError("still broken")

    await Job("fragile").enqueue()
    with pytest.raises(ValueError, match="still broken"):
        await kit.run_until_idle()
    broken = False
    async for message in Queue().get_messages(category=MessageCategory.DEAD):
        await message.reschedule()
        break
    await kit.run_until_idle()
    assert kit.events.kinds()[-1] == "succeeded"


async def test_a_worker_of_the_application_writes_the_same_log(kit: Harness) -> None:
    router = Router()

    @router.actor(retry_policy=lambda *_: timedelta(0))
    async def greet(name: str) -> None:
        if name == "bad":
            raise ValueError(name)

    await Job("greet", args=["Alex"]).enqueue()
    await Job("greet", args=["bad"], retries=1).enqueue()
    await Worker([router], messages_limit=3, handle_signals=()).run()
    assert sorted(kit.events.kinds()[2:]) == sorted(
        ["started", "succeeded", "started", "failed", "retried", "started", "failed", "dead"]
    )
    assert [str(error) for error in kit.events.errors] == ["bad", "bad"]


async def test_jobs_that_no_actor_takes_stay_where_they_are(kit: Harness) -> None:
    @kit.actor
    async def mine() -> None: ...

    await Job("theirs").enqueue()
    await Job("mine", queue="elsewhere").enqueue()
    await kit.run_until_idle()
    assert kit.events.kinds() == ["enqueued", "enqueued"]
    assert (await Queue().stats()).ready == 1


async def test_a_job_that_never_ends_is_named_with_the_place_where_it_waits() -> None:
    async with Harness(patience=0.05, check_leaks=False) as kit:
        never = asyncio.Event()

        @kit.actor
        async def stuck() -> None:
            await never.wait()

        await Job("stuck").enqueue()
        with pytest.raises(AssertionError, match=r"stuck: .*test_harness\.py:\d+, in test_a_job_that_never.*stuck"):
            await kit.run_until_idle()


async def test_a_result_that_nobody_brings_is_not_waited_for_for_ever() -> None:
    async with Harness(patience=0.05) as kit:

        @kit.actor
        async def one() -> int:
            return 1

        job = Job.of(one)()
        await job.enqueue()
        with pytest.raises(AssertionError, match=r"call run_until_idle\(\) or advance"):
            await job.wait(timeout=60)


async def test_a_message_that_goes_round_in_a_circle_is_noticed(kit: Harness) -> None:
    @kit.actor
    async def again(message: MessageDependency = INJECTED) -> None:
        message.reject()

    await Job("again").enqueue()
    with pytest.raises(AssertionError, match=r"'again' .* has come 1000 times"):
        await kit.run_until_idle()


async def test_actors_of_routers_and_of_the_harness_itself() -> None:
    router = Router()

    @router.actor(queue="mail")
    async def greet() -> None: ...

    async with Harness([router]) as kit:
        await Job.of(greet)().enqueue()
        await kit.run_until_idle()
        later = Router()

        @later.actor(queue="mail")
        async def wave() -> None: ...

        kit.include_router(later)
        await Job.of(wave)().enqueue()
        await kit.run_until_idle()
        assert kit.events.kinds() == ["enqueued", "started", "succeeded"] * 2
        with pytest.raises(InvalidActorError, match="two actors named 'greet'"):

            @kit.actor(name="greet")
            async def other() -> None: ...


async def test_misuse_is_named(kit: Harness) -> None:
    closed = Harness()
    with pytest.raises(UsageError, match="is not open"):
        await closed.run_until_idle()
    with pytest.raises(UsageError, match="time goes forward"):
        await kit.advance(-SECOND)
    with pytest.raises(UsageError, match="time goes forward"):
        await kit.advance_to(datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(UsageError, match="for one test"):
        await kit.__aenter__()
    with pytest.raises(UsageError, match="aware"):
        Harness(start=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(UsageError, match="tasks_limit=0"):
        Harness(tasks_limit=0)


async def test_middlewares_of_the_application_take_part() -> None:
    seen = []

    def before_actor_run(envelope: Any) -> None:
        seen.append(envelope.headers["tenant"])

    async with Harness(middlewares=[before_actor_run]) as kit:

        @kit.actor
        async def one() -> None: ...

        await Job("one", headers={"tenant": "acme"}).enqueue()
        await kit.run_until_idle()
    assert seen == ["acme"]


async def test_the_log_can_be_read_and_sliced(kit: Harness) -> None:
    @kit.actor(retry_policy=lambda *_: 10 * SECOND)
    async def fragile() -> None:
        if len(kit.events.of("started")) == 1:
            raise OSError("disk")

    await Job("fragile", retries=1).enqueue()
    await kit.advance(MINUTE)
    assert str(kit.events).splitlines() == [
        "2030-01-01 12:00:00 enqueued    fragile",
        "2030-01-01 12:00:00 started     fragile",
        "2030-01-01 12:00:00 failed      fragile OSError('disk')",
        "2030-01-01 12:00:00 retried     fragile due in 0:00:10",
        "2030-01-01 12:00:10 started     fragile attempt 2",
        "2030-01-01 12:00:10 succeeded   fragile attempt 2",
    ]
    assert kit.events[-2:].kinds() == ["started", "succeeded"]
    assert kit.events[0].kind == "enqueued"
    kit.events.clear()
    assert len(kit.events) == 0
