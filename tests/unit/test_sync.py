"""repid from synchronous code: threads, forks, timeouts, and every end that a loop in a thread may come to."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from textwrap import dedent
from typing import Any

import pytest

from repid_core import (
    CallTimeoutError,
    Connection,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    JobFailedError,
    Queue,
    Repid,
    ResultTimeoutError,
    Router,
    SyncRepid,
    Worker,
)
from repid_core.errors import BrokerConnectionError, EnqueueManyError, NotConnectedError, UsageError

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
# Python 3.12 and newer warn of forks of processes with threads; some tests fork while a call is under way, on purpose.
QUIET = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


class Broker(InMemoryMessageBroker):
    """Counts connections, and fails if told to."""

    def __init__(self) -> None:
        super().__init__()
        self.connected = self.disconnected = 0
        self.error: Exception | None = None
        self.began = threading.Event()

    async def connect(self) -> None:
        self.began.set()
        await asyncio.sleep(0.02)
        if self.error is not None:
            raise self.error
        self.connected += 1
        await super().connect()

    async def disconnect(self) -> None:
        self.disconnected += 1
        await super().disconnect()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def app(broker: Broker) -> Iterator[Repid]:
    app = Repid(Connection(broker, results_bucket_broker=InMemoryBucketBroker()))
    yield app
    app.sync().close()
    assert not [thread for thread in threading.enumerate() if thread.name == "repid sync"]


@pytest.fixture
def repid(app: Repid) -> SyncRepid:
    return app.sync()


def ready(repid: SyncRepid) -> int:
    return repid.run(Queue().stats).ready


router = Router()


@router.actor
async def double(number: int) -> int:
    if number < 0:
        raise ValueError("below zero")
    return 2 * number


async def work(jobs: int) -> None:
    await Worker([router], messages_limit=jobs, handle_signals=[]).run()


class TestCalls:
    def test_nothing_is_opened_before_the_first_call(self, app, broker):
        before = threading.active_count()
        repid = app.sync()
        assert app.sync() is repid
        assert (threading.active_count(), repid.has_thread, broker.connected) == (before, False, 0)
        repid.enqueue(Job("double"))
        assert (repid.has_thread, broker.connected) == (True, 1)

    def test_enqueue_many_stats_and_cancel(self, repid):
        job = Job("double", id_="one")
        assert repid.enqueue(job).id_ == "one"
        assert len(repid.enqueue_many(Job("double") for _ in range(3))) == 3
        assert repid.cancel(job)
        assert not repid.cancel(job)
        assert ready(repid) == 3

    def test_results(self, repid):
        job = Job.of(double)(4)
        repid.enqueue(job)
        assert repid.result(job) is None
        repid.run(lambda: work(1))
        assert repid.wait(job, 5) == 8
        bucket = repid.result(job)
        assert bucket is not None
        assert bucket.data == 8

    def test_a_failed_job_raises_what_it_raises_in_async_code(self, repid):
        job = Job.of(double)(-1)
        repid.enqueue(job)
        repid.run(lambda: work(1))
        with pytest.raises(JobFailedError, match="below zero"):
            repid.wait(job, 5)

    def test_no_result_in_time(self, repid):
        with pytest.raises(ResultTimeoutError) as caught:
            repid.wait(Job("double"), 0.01)
        assert caught.value.__context__ is None

    def test_run_takes_a_function_or_a_coroutine(self, repid):
        repid.enqueue(Job("double"))
        assert repid.run(Queue().stats) == repid.run(Queue().stats())

    def test_a_message_can_be_looked_at(self, repid):
        async def first() -> str:
            async for message in Queue().get_messages():
                await message.ack()
                return message.key.topic
            raise AssertionError

        repid.enqueue(Job("double"))
        assert repid.run(first) == "double"

    def test_the_jobs_are_made_in_the_callers_thread(self, repid):
        here: list[int] = []

        def jobs() -> Iterator[Job[Any]]:
            here.append(threading.get_ident())
            yield Job("double")

        repid.enqueue_many(jobs())
        assert here == [threading.get_ident()]

    def test_context_variables_go_with_the_call_and_stay_with_the_caller(self, repid):
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

        async def look() -> str:
            seen = variable.get()
            variable.set("changed")
            return seen

        variable.set("mine")
        assert repid.run(look) == "mine"
        assert variable.get() == "mine"

    def test_a_connection_of_another_application_may_be_bound_inside(self, repid):
        other = Repid(Connection(InMemoryMessageBroker()))

        async def nested() -> tuple[int, int]:
            async with other.magic(auto_disconnect=True):
                await Job("double").enqueue()
                inner = await Queue().stats()
            return inner.ready, (await Queue().stats()).ready

        assert repid.run(nested) == (1, 0)

    def test_two_applications_do_not_mix(self, repid):
        with Repid(Connection(InMemoryMessageBroker())).sync() as other:
            other.enqueue(Job("double"))
            assert (ready(other), ready(repid)) == (1, 0)


class TestErrors:
    def test_an_error_shows_the_callers_line_and_the_place_it_came_from(self, repid):
        async def deep() -> None:
            raise LookupError("deep")

        with pytest.raises(LookupError, match="deep") as caught:
            repid.run(deep)
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names[0] == "test_an_error_shows_the_callers_line_and_the_place_it_came_from"
        assert names[-1] == "deep"

    def test_nothing_is_held_by_an_error(self, repid):
        class CanaryError(Exception):
            pass

        async def sing() -> None:
            raise CanaryError

        gc.collect()
        gc.disable()
        try:
            with suppress(CanaryError):  # pytest.raises would hold it
                repid.run(sing)
            repid.run(Queue().stats)  # the loop has gone on
            assert not [found for found in gc.get_objects() if isinstance(found, CanaryError)]
        finally:
            gc.enable()

    def test_many_that_are_refused(self, repid):
        with pytest.raises(EnqueueManyError):
            repid.enqueue_many([Job("double", id_="a"), Job("double", id_="a")])

    async def test_on_a_running_loop_it_is_refused_with_the_remedy(self, app):
        repid = app.sync()
        calls: list[Callable[[], object]] = [
            lambda: repid.enqueue(Job("double")),
            lambda: repid.run(Queue().stats()),  # a coroutine, which must not be left behind
            repid.connect,
            repid.close,
        ]
        for call in calls:
            with pytest.raises(UsageError, match=r"await job\.enqueue\(\).*to_thread"):
                call()
        assert not repid.has_thread

    def test_a_broker_that_is_down_and_comes_up(self, repid, broker):
        broker.error = BrokerConnectionError("nobody is at home")
        for _ in range(2):
            with pytest.raises(BrokerConnectionError, match="nobody"):
                repid.enqueue(Job("double"))
        broker.error = None
        repid.enqueue(Job("double"))

    def test_threads_share_the_attempt_to_connect_and_have_errors_of_their_own(self, repid, broker):
        broker.error = BrokerConnectionError("nobody is at home")
        barrier = threading.Barrier(8)

        def call(_: int) -> Exception:
            barrier.wait(30)
            with pytest.raises(BrokerConnectionError) as caught:
                repid.connect()
            return caught.value

        with ThreadPoolExecutor(8) as pool:
            errors = list(pool.map(call, range(8)))
        assert len(set(map(id, errors))) == 8

    def test_system_exit_in_a_call_is_the_callers_and_the_next_call_works(self, repid, broker):
        async def leave() -> None:
            raise SystemExit(3)

        with pytest.raises(SystemExit, match="3"):
            repid.run(leave)
        repid.enqueue(Job("double"))
        assert (broker.connected, broker.disconnected) == (2, 1)


class TestTimeouts:
    def test_a_call_that_takes_too_long_is_cancelled(self, repid):
        cancelled = threading.Event()

        async def long() -> None:
            try:
                await asyncio.sleep(600)
            finally:
                cancelled.set()

        with pytest.raises(CallTimeoutError, match="may have arrived"):
            repid.run(long, timeout=0.05)
        assert cancelled.wait(30)

    def test_connecting_counts_and_goes_on(self, repid, broker):
        with pytest.raises(CallTimeoutError):
            repid.run(Queue().stats(), timeout=0)
        repid.connect()
        assert broker.connected == 1

    def test_an_error_of_time_of_the_call_itself_stays_what_it_is(self, repid):
        async def fail() -> None:
            raise TimeoutError("its own")

        with pytest.raises(TimeoutError, match="its own"):
            repid.run(fail, timeout=30)

    def test_keyboard_interrupt_cancels_the_call_and_leaves_the_rest_alone(self, repid, request):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which Python leaves out where a shell has it ignored
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
        begun, ended = threading.Event(), threading.Event()

        async def long() -> None:
            try:
                begun.set()
                await asyncio.sleep(600)
            finally:
                ended.set()

        def interrupt() -> None:
            begun.wait(30)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            repid.run(long, timeout=None)
        thread.join(30)
        assert ended.wait(30)
        repid.enqueue(Job("double"))


class TestThreads:
    def test_32_threads_use_one_connection(self, repid, broker):
        barrier = threading.Barrier(32)

        def call(number: int) -> None:
            barrier.wait(30)
            for each in range(20):
                repid.enqueue(Job("double", id_=f"{number}-{each}"))

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(call, range(32)))
        assert ready(repid) == 640
        assert broker.connected == 1
        assert len([thread for thread in threading.enumerate() if thread.name == "repid sync"]) == 1

    def test_close_while_others_call_breaks_nothing(self, repid):
        stop = threading.Event()

        def call() -> int:
            count = 0
            while not stop.is_set():
                repid.enqueue(Job("double"))
                count += 1
            return count

        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(call) for _ in range(4)]
            for _ in range(10):
                repid.close()
            stop.set()
            done = sum(each.result(30) for each in calls)
        assert ready(repid) == done > 0

    def test_close_cancels_what_does_not_end(self, repid):
        begun = threading.Event()

        async def long() -> None:
            begun.set()
            await asyncio.sleep(600)

        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(repid.run, long, timeout=None)
            assert begun.wait(30)
            repid.close(timeout=0)
            with pytest.raises(NotConnectedError):
                call.result(30)

    def test_the_last_to_leave_closes(self, app, broker):
        with app.sync() as outer:
            with app.sync() as inner:
                inner.enqueue(Job("double"))
            assert broker.disconnected == 0
            assert outer.has_thread
        assert broker.disconnected == 1
        assert not outer.has_thread

    def test_close_is_idempotent_and_the_next_call_starts_anew(self, repid, broker):
        repid.close()
        repid.enqueue(Job("double"))
        repid.close()
        repid.close()
        repid.enqueue(Job("double"))
        assert broker.connected == 2


class TestOtherLoops:
    """Where the connection is open on a loop that runs, calls go there."""

    async def test_from_a_thread_of_an_asynchronous_application(self, app, broker):
        async with app.magic(auto_disconnect=True):
            await asyncio.to_thread(app.sync().enqueue, Job("double"))
            assert not app.sync().has_thread
            assert (await Queue().stats()).ready == 1
        assert broker.connected == 1

    async def test_from_a_synchronous_actor(self, app):
        router = Router()

        @router.actor
        def first() -> None:
            app.sync().enqueue(Job("second"))

        async with app.magic(auto_disconnect=True):
            await Job("first").enqueue()
            await Worker([router], messages_limit=1, handle_signals=[]).run()
            assert (await Queue().stats()).ready == 1

    async def test_the_application_that_connects_later_takes_over(self, app, broker):
        await asyncio.to_thread(app.sync().enqueue, Job("double"))
        async with app.magic(auto_disconnect=True):
            await Job("double").enqueue()
            await asyncio.to_thread(app.sync().enqueue, Job("double"))
            assert (await Queue().stats()).ready == 3
        assert (broker.connected, broker.disconnected) == (2, 2)

    def test_a_loop_that_is_gone_is_forgotten(self, app):
        async def leave_it_open() -> None:
            await app.magic_connect()

        asyncio.run(leave_it_open())
        app.sync().enqueue(Job("double"))
        assert app.sync().has_thread

    def test_a_loop_that_stands_still_is_an_error(self, app):
        with asyncio.Runner() as runner:
            runner.run(app.magic_connect())
            with pytest.raises(UsageError, match="does not run"):
                app.sync().enqueue(Job("double"))
            runner.run(app.magic_disconnect())

    def test_a_loop_that_ends_during_the_call(self, app):
        begun = threading.Event()

        async def long() -> None:
            begun.set()
            await asyncio.sleep(600)

        async def main() -> None:
            await app.magic_connect()
            call = pool.submit(app.sync().run, long, timeout=None)
            calls.append(call)
            await asyncio.to_thread(begun.wait, 30)

        calls: list[Any] = []
        with ThreadPoolExecutor(1) as pool:
            asyncio.run(main())
            with pytest.raises(NotConnectedError):
                calls[0].result(30)


def forked(call: Callable[[], object]) -> int:
    """Run it in a child; 0 if it returned."""
    pid = os.fork()
    if pid == 0:
        try:
            call()
        except BaseException:  # noqa: BLE001 — the child must not go on as another pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


@FORK
class TestForks:
    def test_parent_and_child_go_on_each_with_a_loop_of_its_own(self, repid, broker):
        repid.enqueue(Job("double"))

        def child() -> None:
            repid.enqueue(Job("double"))
            assert ready(repid) == 2
            assert broker.connected == 2

        assert forked(child) == 0
        assert ready(repid) == 1

    def test_an_idle_loop_ends_before_the_fork_so_that_no_thread_is_copied(self, repid, broker):
        repid.connect()
        assert forked(lambda: None) == 0
        assert broker.disconnected == 1

    @QUIET
    def test_a_call_under_way_goes_on_in_the_parent_and_the_child_begins_anew(self, repid, broker):
        begun, go = threading.Event(), threading.Event()

        async def slow() -> str:
            begun.set()
            while not go.is_set():
                await asyncio.sleep(0.001)
            return "done"

        def child() -> None:
            repid.enqueue(Job("double"))
            gc.collect()
            assert broker.connected == 2
            repid.close()

        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(repid.run, slow)
            assert begun.wait(30)
            assert forked(child) == 0
            go.set()
            assert call.result(30) == "done"
        repid.enqueue(Job("double"))
        assert broker.connected == 1

    @QUIET
    def test_what_a_child_closes_of_its_parents_the_parent_goes_on_hearing(self, repid):
        """epoll is shared by parent and child; libraries take sockets from it when their objects are collected."""
        ours, theirs = socket.socketpair()
        heard, go = threading.Event(), threading.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def listen() -> None:
            loop = asyncio.get_running_loop()
            loop.add_reader(ours, heard.set)
            loops.append(loop)
            while not go.is_set():
                await asyncio.sleep(0.001)
            loop.remove_reader(ours)

        def child() -> None:
            loops[0].remove_reader(ours)
            ours.close()

        with ours, theirs, ThreadPoolExecutor(1) as pool:
            call = pool.submit(repid.run, listen)
            while not loops:
                time.sleep(0.001)
            try:
                assert forked(child) == 0
                theirs.send(b"x")
                assert heard.wait(10)
            finally:
                go.set()
                call.result(30)

    @QUIET
    def test_forks_while_32_threads_call(self, repid):
        stop = threading.Event()

        def call() -> None:
            while not stop.is_set():
                repid.enqueue(Job("double"))

        with ThreadPoolExecutor(32) as pool:
            calls = [pool.submit(call) for _ in range(32)]
            try:
                codes = [forked(lambda: repid.enqueue(Job("double"))) for _ in range(5)]
            finally:
                stop.set()
            for each in calls:
                each.result(30)
        assert codes == [0] * 5

    def test_a_child_of_multiprocessing(self, repid):
        repid.enqueue(Job("double"))
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=lambda: sender.send(repid.enqueue(Job("double", id_="child")).id_))
        process.start()
        assert receiver.poll(30)
        assert receiver.recv() == "child"
        process.join(30)
        assert process.exitcode == 0

    @QUIET
    async def test_a_child_of_an_asynchronous_application(self, app):
        def in_a_thread() -> int:
            return forked(lambda: app.sync().enqueue(Job("double")))

        async with app.magic(auto_disconnect=True):
            assert await asyncio.to_thread(in_a_thread) == 0
            await Job("double").enqueue()


APP = """
    import asyncio, os, sys, threading, time
    from repid_core import Connection, InMemoryBucketBroker, InMemoryMessageBroker, Job, Queue, Repid

    app = Repid(Connection(InMemoryMessageBroker(), results_bucket_broker=InMemoryBucketBroker()))
    repid = app.sync()
"""


def program(code: str, *, expected: int = 0) -> str:
    """Run it, with every warning an error; nothing may be on stderr. What it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(APP) + dedent(code)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (expected, "")
    return done.stdout


class TestTheEndOfTheInterpreter:
    def test_without_close(self):
        program("repid.enqueue(Job('x'))")

    def test_with_an_exit_code(self):
        program("repid.enqueue(Job('x')); sys.exit(7)", expected=7)

    def test_never_used(self):
        program("")

    def test_a_daemon_thread_still_waits_for_a_result(self):
        program("""
            begun = threading.Event()
            async def long():
                begun.set()
                await asyncio.sleep(600)
            def wait():
                try:
                    repid.run(long, timeout=None)
                except Exception:
                    pass
            threading.Thread(target=wait, daemon=True).start()
            begun.wait(30)
        """)

    def test_other_threads_call_after_the_end_of_the_main_thread(self):
        printed = program("""
            repid.connect()  # from Python 3.12 on, no thread can be started so late
            def late():
                threading.main_thread().join()
                print(repid.enqueue(Job('x', id_='late')).id_)
            threading.Thread(target=late).start()
        """)
        assert printed == "late\n"

    def test_a_task_that_a_call_has_left_behind(self):
        program("""
            async def leave():
                global task
                task = asyncio.create_task(asyncio.sleep(600))
            repid.run(leave)
        """)

    @FORK
    def test_of_a_child_and_its_parent_as_under_gunicorn_with_preload(self):
        printed = program("""
            repid.enqueue(Job('x'))  # at import, in the arbiter
            children = []
            for number in range(2):
                if (pid := os.fork()) == 0:
                    threads = [threading.Thread(target=repid.enqueue, args=[Job('x')]) for _ in range(4)]
                    for thread in threads: thread.start()
                    for thread in threads: thread.join()
                    print(repid.run(Queue().stats).ready, flush=True)
                    sys.exit(0)  # with all that an interpreter does at its end
                children.append(pid)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            repid.enqueue(Job('x'))
            print(codes, repid.run(Queue().stats).ready)
        """)
        assert printed == "5\n5\n[0, 0] 2\n"
