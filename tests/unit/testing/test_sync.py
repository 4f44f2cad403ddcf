"""The harness for tests that are not asynchronous, and both harnesses with applications that use `app.sync()`."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from repid_core import Connection, InMemoryMessageBroker, Job, Repid, Router
from repid_core.errors import UsageError
from repid_core.testing import Harness, SyncHarness

pytest_plugins = ["pytester"]

router = Router()


@router.actor
def divide(number: int, by: int) -> float:
    return number / by


@router.actor
async def order(number: int) -> float:
    job = Job.of(divide)(number, 2)
    await job.enqueue()
    return await job.wait(5)


app = Repid(Connection(InMemoryMessageBroker()))  # the application's, which no test may use


def view(number: int) -> Job[float]:
    job = Job.of(order, retries=1)(number)
    app.sync().enqueue(job)
    return job


@pytest.fixture(autouse=True)
def the_applications_own_connection_is_not_used():
    yield
    assert not app.connection.is_open
    assert not app.sync().has_thread
    assert not [thread.name for thread in threading.enumerate() if thread.name == "repid sync"]


@pytest.mark.repid(routers=[router])
class TestFixture:
    def test_enqueue_run_and_read(self, sync_repid):
        job = view(8)
        sync_repid.assert_enqueued(order, args={"number": 8}, count=1)
        sync_repid.assert_not_enqueued(divide)
        assert app.sync().result(job) is None
        sync_repid.run_until_idle()
        assert app.sync().wait(job, 5) == 4
        assert [(each.name, each.args) for each in sync_repid.enqueued(divide)] == [("divide", {"number": 8, "by": 2})]
        assert sync_repid.events.kinds("divide") == ["enqueued", "started", "succeeded"]

    def test_one_at_a_time_and_the_clock(self, sync_repid):
        app.sync().enqueue(Job.of(divide, deferred_by=timedelta(hours=1))(1, 1))
        assert sync_repid.run_one() is None
        before = sync_repid.clock.now()
        sync_repid.advance(timedelta(hours=3))
        assert len(sync_repid.events.of("succeeded")) == 3
        sync_repid.advance_to(before + timedelta(hours=5))
        assert len(sync_repid.events.of("succeeded")) >= 4

    def test_what_an_actor_raises_is_raised_in_the_test(self, sync_repid):
        app.sync().enqueue(Job.of(divide)(1, 0))
        with pytest.raises(ZeroDivisionError):
            sync_repid.run_until_idle()

    def test_mock(self, sync_repid):
        mock = sync_repid.mock(order, return_value=1.5)
        job = view(3)
        sync_repid.run_until_idle()
        assert sync_repid.run(job.wait) == 1.5
        mock.assert_awaited_once_with(3)

    def test_threads_of_the_application(self, sync_repid):
        with ThreadPoolExecutor(8) as pool:
            jobs = list(pool.map(view, range(20)))
        sync_repid.run_until_idle()
        assert [app.sync().wait(job, 5) for job in jobs] == [number / 2 for number in range(20)]

    @pytest.mark.repid(eager=True)
    def test_eager(self, sync_repid):
        assert app.sync().wait(view(4)) == 2

    async def test_asynchronous_tests_call_it_in_a_thread(self, repid):
        with pytest.raises(UsageError, match="to_thread"):
            view(8)
        job = await asyncio.to_thread(view, 8)
        await repid.run_until_idle()
        assert await job.wait() == 4


def test_without_pytest_and_after_it_the_application_has_its_own_again():
    with SyncHarness([router]) as repid:
        view(8)
        repid.run_until_idle()
    with app.sync() as own:
        own.enqueue(Job("elsewhere"))
        assert app.connection.is_open
        assert repid.enqueued("elsewhere") == []
    repid.close()


def test_leaks_are_found():
    async def leave() -> None:
        globals()["task"] = asyncio.create_task(asyncio.sleep(600), name="forgotten")

    with pytest.raises(AssertionError, match="'forgotten'"), SyncHarness([router]) as repid:
        repid.run(leave)


def test_not_after_an_error_of_the_test():
    async def leave() -> None:
        globals()["task"] = asyncio.create_task(asyncio.sleep(600))

    def fail() -> None:
        with SyncHarness([router]) as repid:
            repid.run(leave)
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_one_harness_is_for_one_test():
    harness = SyncHarness([router])
    with harness:
        pass
    with pytest.raises(UsageError, match="make another"), harness:
        pass


async def test_an_asynchronous_harness_outside_of_pytest():
    async with Harness([router]) as repid:
        await asyncio.to_thread(view, 8)
        repid.assert_enqueued(order)


def test_the_marker_is_enough_and_fixtures_that_do_not_fit_say_so(pytester):
    pytester.makeini("[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(
        """
        import pytest
        from repid_core import Connection, InMemoryMessageBroker, Job, Repid

        app = Repid(Connection(InMemoryMessageBroker()))

        @pytest.mark.repid
        def test_marked():
            app.sync().enqueue(Job("x"))
            assert not app.connection.is_open

        def test_wrong(repid): ...

        @pytest.mark.asyncio
        async def test_wrong_too(sync_repid): ...
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*or take the fixture `sync_repid`*", "*take `repid`*"])
