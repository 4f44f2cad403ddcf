"""Threads and processes for synchronous functions."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from multiprocessing import util
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from repid_core.errors import ActorProcessError, InvalidActorError, UsageError
from repid_core.executors import Executors, check_process_safe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and /proc")


@pytest.fixture
async def executors() -> AsyncIterator[Executors]:
    """Two threads and two processes; checks that none is left."""
    executors = Executors(threads=2, processes=2)
    yield executors
    async with asyncio.timeout(10):
        await executors.close()
    assert not ours(), "threads left"
    assert not children(), "processes left"


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("repid")]


def children() -> list[int]:
    """The processes under this one, but that in which multiprocessing keeps count."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            is_ours = f"\nPPid:\t{os.getpid()}\n" in status.read_text()
            if is_ours and "spawn_main" in status.with_name("cmdline").read_text():
                found.append(int(status.parent.name))
    return found


def exists(number: int | str) -> bool:
    """Whether there is such a process, and it has not ended."""
    status = Path(f"/proc/{number}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


async def until(condition: Callable[[], Any], seconds: float = 5) -> None:
    """What happens in other processes has no event to wait for."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def cancelled(task: asyncio.Task[Any]) -> None:
    with pytest.raises(asyncio.CancelledError):
        await task


def add(a: int, b: int = 2) -> int:
    return a + b


def refuse_to_start(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


# What follows runs in processes.


def pid() -> int:
    return os.getpid()


def end(how: str) -> None:
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)


def echo(value: Any) -> Any:
    return value


def mark_and_sleep(path: str, seconds: float = 60) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(seconds)


def survive_signals() -> str:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as own:
        own.terminate()  # what an actor starts can still be ended
        return signal.Signals(-own.wait()).name


class PickyError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")


class PlainError(Exception):
    pass


class Sticky:
    """Can be pickled, but not unpickled."""

    def __init__(self, armed: bool = True) -> None:
        self.armed = armed

    def __reduce__(self) -> Any:
        return (refuse, ())


def refuse() -> None:
    raise ValueError("refused")


def fail(error: str) -> None:
    if error == "picky":
        raise PickyError(5, "picky")
    if error == "local":

        class LocalError(Exception):
            pass

        raise LocalError("not importable")
    if error == "exit":
        sys.exit(4)
    if error == "stop":
        raise StopIteration
    try:
        dict[str, int]()["first"]
    except KeyError as cause:
        raise PlainError("second") from cause


def give(what: str) -> Any:
    return (lambda: 1) if what == "lambda" else Sticky()


def a_child_of_its_own() -> int:
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(add, (1,))


def fork_and_wait(how: str, mark: str) -> None:
    """Leave a process of its own behind, that inherits all that is open."""
    if not (forked := os.fork()):
        time.sleep(30)
        os._exit(0)
    Path(mark).write_text(str(forked))
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class TestThreads:
    async def test_arguments_results_and_errors(self, executors):
        assert await executors.run_in_thread(add, (1,), {"b": 5}) == 6
        with pytest.raises(TypeError, match="concatenate"):
            await executors.run_in_thread(add, ("a",), {})

    async def test_the_callers_context_variables_are_seen_and_not_changed(self, executors):
        variable = contextvars.ContextVar("variable", default="nothing")
        variable.set("the caller's")

        def look() -> str:
            seen = variable.get()
            variable.set("the thread's")
            return seen

        assert await executors.run_in_thread(look, (), {}) == "the caller's"
        assert variable.get() == "the caller's"

    async def test_threads_are_used_again_and_never_more_than_allowed(self, executors):
        barrier = threading.Barrier(2)
        names = {await executors.run_in_thread(threading.get_ident, (), {}) for _ in range(20)}
        assert len(names) == 1
        most = await asyncio.gather(*(executors.run_in_thread(barrier.wait, (5,), {}) for _ in range(10)))
        assert sorted(most) == [0] * 5 + [1] * 5
        assert len(ours()) == 2

    @pytest.mark.parametrize("error", [StopIteration, KeyboardInterrupt, GeneratorExit])
    async def test_what_a_future_cannot_carry_is_an_ordinary_error(self, executors, error):
        def act() -> None:
            raise error("odd")

        with pytest.raises(RuntimeError, match=f"the function raised {error.__name__}") as caught:
            await executors.run_in_thread(act, (), {})
        assert isinstance(caught.value.__cause__, error)
        assert await executors.run_in_thread(add, (1,), {}) == 3

    @pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError])
    async def test_other_ends_arrive_as_they_are(self, executors, error):
        def act() -> None:
            raise error

        with pytest.raises(error):
            await executors.run_in_thread(act, (), {})

    async def test_an_error_leaves_no_garbage_for_the_collector(self, executors):
        """So that what an actor's locals hold is freed at once."""

        class Held:
            pass

        seen: list[weakref.ref[Held]] = []

        def act() -> None:
            held = Held()
            seen.append(weakref.ref(held))
            raise ValueError

        gc.disable()
        try:
            with contextlib.suppress(ValueError):
                await executors.run_in_thread(act, (), {})
            assert await executors.run_in_thread(add, (1,), {}) == 3
            assert seen[0]() is None
        finally:
            gc.enable()

    async def test_cancelled_before_it_starts_it_is_taken_out_at_once(self, executors):
        release, ran = threading.Event(), list[int]()
        busy = [asyncio.create_task(executors.run_in_thread(release.wait, (5,), {})) for _ in range(2)]
        waiting = asyncio.create_task(executors.run_in_thread(ran.append, (1,), {}))
        await asyncio.sleep(0)
        waiting.cancel()
        await cancelled(waiting)
        assert not release.is_set()
        release.set()
        assert await asyncio.gather(*busy) == [True, True]
        assert await executors.run_in_thread(add, (1,), {}) == 3
        assert ran == []

    async def test_cancelled_while_it_runs_the_end_is_waited_for(self, executors):
        started, release, ended = threading.Event(), threading.Event(), []

        def act() -> None:
            started.set()
            release.wait(5)
            ended.append(1)
            raise ValueError("nobody hears it")

        task = asyncio.create_task(executors.run_in_thread(act, (), {}))
        await until(started.is_set)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        release.set()
        await cancelled(task)
        assert ended == [1]

    async def test_cancelled_twice_it_is_abandoned_and_replaced(self, executors):
        """Once it ends, there are again as many threads as before."""
        started, release = threading.Semaphore(0), threading.Event()

        def act() -> None:
            started.release()
            release.wait(5)

        tasks = [asyncio.create_task(executors.run_in_thread(act, (), {})) for _ in range(2)]
        await until(lambda: started._value == 2)
        waiting = asyncio.create_task(executors.run_in_thread(add, (1,), {}))
        for _ in range(2):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
        for task in tasks:
            await cancelled(task)
        assert await waiting == 3
        assert len(ours()) in {3, 4}
        release.set()
        await until(lambda: len(ours()) <= 2)
        barrier = threading.Barrier(2)
        assert sorted(await asyncio.gather(*(executors.run_in_thread(barrier.wait, (5,), {}) for _ in range(4)))) == [0, 0, 1, 1]
        assert len(ours()) == 2

    async def test_a_call_abandoned_as_it_ends_costs_no_thread(self, executors):
        """Cancelling at any moment leaves the pool with its places."""
        for number in range(200):
            task = asyncio.create_task(executors.run_in_thread(time.sleep, (number * 2e-6,), {}))
            for _ in range(2):
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait({task})
        barrier = threading.Barrier(2)
        assert sorted(await asyncio.gather(*(executors.run_in_thread(barrier.wait, (5,), {}) for _ in range(2)))) == [0, 1]
        await until(lambda: len(ours()) == 2)

    async def test_where_the_system_gives_no_more_threads_those_that_there_are_do(self, executors, monkeypatch):
        release = threading.Event()
        busy = asyncio.create_task(executors.run_in_thread(release.wait, (5,), {}))
        await until(ours)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse_to_start)
            waiting = asyncio.create_task(executors.run_in_thread(add, (1,), {}))
            await asyncio.sleep(0)
            release.set()
            assert await asyncio.gather(busy, waiting) == [True, 3]
            with pytest.raises(RuntimeError, match="can't start"):
                await Executors().run_in_thread(add, (1,), {})
        barrier = threading.Barrier(2)  # later there is a second thread again
        assert sorted(await asyncio.gather(*(executors.run_in_thread(barrier.wait, (5,), {}) for _ in range(2)))) == [0, 1]

    async def test_it_is_cheap(self, executors):
        """Under 60 µs; here with room for a busy machine."""
        await executors.run_in_thread(add, (1,), {})
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(200):
                await executors.run_in_thread(add, (1,), {})
            best = min(best, (time.perf_counter() - start) / 200)
        assert best < 240e-6


class TestProcesses:
    async def test_arguments_results_and_one_process_for_many_calls(self, executors):
        assert await executors.run_in_process(add, (1,), {"b": 5}) == 6
        assert await executors.run_in_process(functools.partial(add, 1), (), {}) == 3
        pids = {await executors.run_in_process(pid, (), {}) for _ in range(5)}
        assert len(pids) == 1
        assert os.getpid() not in pids

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ("exit", r"the process of .*\.end ended by itself, with status 3"),
            ("SIGSEGV", r"the process of .*\.end was ended by signal 11, Segmentation fault"),
            ("SIGKILL", r"the process of .*\.end was ended by signal 9, Killed"),
        ],
    )
    async def test_one_that_dies_fails_its_own_call_alone_and_is_replaced(self, executors, how, message):
        before = await executors.run_in_process(pid, (), {})
        with pytest.raises(ActorProcessError, match=message):
            await executors.run_in_process(end, (how,), {})
        after = await executors.run_in_process(pid, (), {})
        assert after != before

    async def test_one_that_dies_between_calls_is_replaced_unnoticed(self, executors):
        before = await executors.run_in_process(pid, (), {})
        os.kill(before, signal.SIGKILL)
        [hand] = executors._processes._hands
        await until(lambda: wait([hand.process._process.sentinel], 0))
        assert await executors.run_in_process(pid, (), {}) != before

    async def test_cancelled_it_is_killed_at_once_and_others_go_on(self, executors, tmp_path):
        marks = [tmp_path / name for name in "ab"]
        slow = asyncio.create_task(executors.run_in_process(mark_and_sleep, (str(marks[0]),), {}))
        other = asyncio.create_task(executors.run_in_process(mark_and_sleep, (str(marks[1]), 0.5), {}))
        await until(lambda: all(mark.exists() and mark.read_text() for mark in marks))
        start = time.monotonic()
        slow.cancel()
        await cancelled(slow)
        assert time.monotonic() - start < 1.5
        assert not exists(marks[0].read_text())
        await other
        assert await executors.run_in_process(add, (1,), {}) == 3

    async def test_cancelled_at_any_moment_it_never_hits_the_next_call(self):
        """Not started, starting, running, or just ended: those that are not cancelled succeed."""
        executors = Executors(processes=1)
        await executors.run_in_process(pid, (), {})
        for number in range(60):
            task = asyncio.create_task(executors.run_in_process(add, (1,), {}))
            following = asyncio.create_task(executors.run_in_process(add, (number,), {}))
            for _ in range(number % 12):
                await asyncio.sleep(1e-5)
            task.cancel()
            async with asyncio.timeout(5):
                assert await following == number + 2
                await asyncio.wait({task})
        await executors.close()

    async def test_one_cancelled_while_its_process_starts(self, executors):
        """The process is killed as soon as there is one."""
        for pause in (0, 0.001, 0.01, 0.03):
            task = asyncio.create_task(executors.run_in_process(time.sleep, (60,), {}))
            await asyncio.sleep(pause)
            task.cancel()
            async with asyncio.timeout(3):
                await cancelled(task)
        assert await executors.run_in_process(add, (1,), {}) == 3

    @pytest.mark.parametrize("how", ["cancelled", "dies"])
    async def test_what_an_actor_forked_does_not_keep_its_end_from_being_seen(self, executors, tmp_path, how):
        """The forked one inherits the pipe, which must close all the same."""
        mark = tmp_path / "mark"
        task = asyncio.create_task(executors.run_in_process(fork_and_wait, (how, str(mark)), {}))
        await until(lambda: mark.exists() and mark.read_text())
        try:
            if how == "cancelled":
                task.cancel()
            assert (await asyncio.wait({task}, timeout=3))[0], "its end was not seen"
            with pytest.raises((asyncio.CancelledError, ActorProcessError)):
                await task
            assert await executors.run_in_process(add, (1,), {}) == 3
        finally:
            os.kill(int(mark.read_text()), signal.SIGKILL)

    async def test_what_cannot_be_pickled_is_said(self, executors):
        before = await executors.run_in_process(pid, (), {})
        with pytest.raises(ActorProcessError, match=r"\.echo or its arguments cannot be pickled for a process: .*lock"):
            await executors.run_in_process(echo, (threading.Lock(),), {})
        with pytest.raises(ActorProcessError, match=r"arguments cannot be unpickled in the process: refused"):
            await executors.run_in_process(echo, (Sticky(),), {})
        with pytest.raises(ActorProcessError, match=r"what .*\.give returned cannot be pickled: .*lambda"):
            await executors.run_in_process(give, ("lambda",), {})
        with pytest.raises(ActorProcessError, match=r"what came from the process of .*\.give cannot be unpickled: refused"):
            await executors.run_in_process(give, ("sticky",), {})
        assert await executors.run_in_process(pid, (), {}) == before

    async def test_errors_arrive_with_their_class_and_traceback(self, executors):
        with pytest.raises(PlainError, match="second") as caught:
            await executors.run_in_process(fail, ("plain",), {})
        remote = str(caught.value.__cause__)
        assert "KeyError: 'first'" in remote
        assert 'raise PlainError("second") from cause' in remote

    @pytest.mark.parametrize(("error", "text"), [("picky", "PickyError: 5 picky"), ("local", "LocalError: not importable")])
    async def test_errors_that_cannot_be_pickled_arrive_as_text(self, executors, error, text):
        with pytest.raises(ActorProcessError, match=text) as caught:
            await executors.run_in_process(fail, (error,), {})
        assert "in fail" in str(caught.value.__cause__)

    async def test_ends_that_are_no_errors(self, executors):
        with pytest.raises(SystemExit, match="4"):
            await executors.run_in_process(fail, ("exit",), {})
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await executors.run_in_process(fail, ("stop",), {})

    async def test_ten_megabytes_there_and_back_hold_nobody_up(self, executors):
        """No dead-lock, and the loop turns meanwhile."""
        await executors.run_in_process(pid, (), {})
        gaps, big = [], b"x" * 10_000_000
        task = asyncio.create_task(executors.run_in_process(echo, (big,), {}))
        last = time.perf_counter()
        while not task.done():
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()
        assert await task == big
        assert max(gaps) < 1  # it takes a few hundredths where nothing else runs

    async def test_signals_to_the_group_are_the_workers_business(self, executors):
        assert await executors.run_in_process(survive_signals, (), {}) == "SIGTERM"

    async def test_signals_while_it_starts_do_not_end_it(self, executors):
        """It blocks them until it can ignore them."""
        task = asyncio.create_task(executors.run_in_process(add, (1,), {}))
        hit = set()
        while not task.done():
            for number in children():
                os.kill(number, signal.SIGINT)
                hit.add(number)
            await asyncio.sleep(0.002)
        assert hit
        assert await task == 3

    async def test_an_actor_may_have_processes_of_its_own(self, executors):
        assert await executors.run_in_process(a_child_of_its_own, (), {}) == 3

    def test_what_a_process_could_not_import_is_refused_early(self):
        check_process_safe(add)
        check_process_safe(functools.partial(add, 1))
        for fn in (lambda: 1, functools.partial(lambda: 1)):
            with pytest.raises(InvalidActorError, match="must be a function at the top of a module"):
                check_process_safe(fn)


class TestClosing:
    @pytest.mark.parametrize("options", [{"threads": 0}, {"processes": -1}, {"threads": True}, {"processes": 1.5}])
    def test_numbers_that_cannot_be(self, options):
        [(name, number)] = options.items()
        with pytest.raises(UsageError, match=f"{name}={number}: give a whole number, 1 or more"):
            Executors(**options)

    async def test_nothing_is_started_before_it_is_needed(self):
        executors = Executors()
        assert not ours()
        await executors.close()

    async def test_it_takes_no_more_calls_and_may_be_closed_twice(self):
        executors = Executors()
        assert await executors.run_in_thread(add, (1,), {}) == 3
        await executors.close()
        await executors.close()
        for run in (executors.run_in_thread, executors.run_in_process):
            with pytest.raises(UsageError, match="the worker has stopped"):
                await run(add, (1,), {})
        assert not ours()

    async def test_calls_that_wait_fail_and_those_in_threads_go_on(self):
        executors, started, release = Executors(threads=1), threading.Event(), threading.Event()

        def act() -> str:
            started.set()
            release.wait(5)
            return "done"

        running = asyncio.create_task(executors.run_in_thread(act, (), {}))
        waiting = asyncio.create_task(executors.run_in_thread(add, (1,), {}))
        await until(started.is_set)
        async with asyncio.timeout(2):
            await executors.close()
            with pytest.raises(UsageError, match="stopped before the function was called"):
                await waiting
        release.set()
        assert await running == "done"
        await until(lambda: not ours())

    async def test_calls_in_processes_are_ended(self, tmp_path):
        executors = Executors(processes=1)
        tasks = [asyncio.create_task(executors.run_in_process(mark_and_sleep, (str(tmp_path / "a"),), {})) for _ in range(2)]
        await until((tmp_path / "a").exists)
        async with asyncio.timeout(3):
            await executors.close()
            with pytest.raises(ActorProcessError, match="signal 9"):
                await tasks[0]
            with pytest.raises(UsageError):
                await tasks[1]
        assert not ours()
        assert not children()

    async def test_closed_while_a_process_starts(self):
        for pause in (0, 0.002, 0.02):
            executors = Executors(processes=1)
            task = asyncio.create_task(executors.run_in_process(time.sleep, (60,), {}))
            await asyncio.sleep(pause)
            async with asyncio.timeout(3):
                await executors.close()
                with pytest.raises((ActorProcessError, UsageError)):
                    await task
            assert not ours()
            assert not children()

    async def test_no_file_and_no_callback_stays(self):
        def count() -> tuple[int, int]:
            gc.collect()
            return len(list(Path("/proc/self/fd").iterdir())), len(vars(util)["_finalizer_registry"])

        async def use() -> None:
            executors = Executors(threads=2, processes=2)
            await asyncio.gather(*(executors.run_in_process(add, (i,), {}) for i in range(4)))
            with contextlib.suppress(ActorProcessError):
                await executors.run_in_process(end, ("exit",), {})
            await executors.run_in_thread(add, (1,), {})
            await executors.close()

        await use()  # multiprocessing opens some for good
        before = count()
        await use()
        assert count() == before
        assert not ours()
        assert not children()

    def test_a_loop_that_is_gone_does_no_harm(self):
        """A thread that outlives its loop serves the next one."""
        executors, release, started = Executors(threads=1), threading.Event(), threading.Event()

        def act() -> None:
            started.set()
            release.wait(5)

        async def leave() -> None:
            task = asyncio.create_task(executors.run_in_thread(act, (), {}))
            await until(started.is_set)
            for _ in range(2):
                task.cancel()
                await asyncio.sleep(0)
            await cancelled(task)

        async def come() -> Any:
            release.set()
            try:
                return await executors.run_in_thread(add, (1,), {})
            finally:
                await executors.close()

        asyncio.run(leave())
        assert asyncio.run(come()) == 3


def run_script(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )


class TestInterpreter:
    """What can be seen only from outside."""

    def test_a_stuck_thread_does_not_keep_the_interpreter(self, tmp_path):
        start = time.monotonic()
        done = run_script(
            tmp_path,
            """
            import asyncio, threading
            from repid_core.executors import Executors

            async def main():
                executors, started = Executors(), threading.Event()
                def stuck():
                    started.set()
                    threading.Event().wait()
                task = asyncio.create_task(executors.run_in_thread(stuck, (), {}))
                while not started.is_set():
                    await asyncio.sleep(0.001)
                for _ in range(2):
                    task.cancel()
                    await asyncio.sleep(0)
                await executors.close()

            asyncio.run(main())
            """,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert time.monotonic() - start < 5

    def test_an_interpreter_that_ends_without_closing_takes_its_processes_along(self, tmp_path):
        done = run_script(
            tmp_path,
            """
            import asyncio, os, time
            from repid_core.executors import Executors

            async def main():
                executors = Executors()
                print(await executors.run_in_process(os.getpid, (), {}))
                task = asyncio.create_task(executors.run_in_process(time.sleep, (60,), {}))
                await asyncio.sleep(0.2)
                loop = asyncio.get_running_loop()
                loop.stop()

            if __name__ == "__main__":
                loop = asyncio.new_event_loop()
                loop.create_task(main())
                loop.run_forever()
                for task in asyncio.all_tasks(loop):
                    task._log_destroy_pending = False
                loop.close()
            """,
        )
        assert done.returncode == 0, done.stderr
        assert not exists(done.stdout.strip())

    def test_processes_go_with_a_parent_that_is_killed_even_in_the_middle_of_a_call(self, tmp_path):
        script, mark = tmp_path / "script.py", tmp_path / "mark"
        script.write_text(
            textwrap.dedent(
                """
                import asyncio, os, pathlib, sys
                from repid_core.executors import Executors

                def busy(path):
                    pathlib.Path(path).write_text(str(os.getpid()))
                    while True:
                        pass

                if __name__ == "__main__":
                    asyncio.run(Executors().run_in_process(busy, (sys.argv[1],), {}))
                """
            )
        )
        parent = subprocess.Popen([sys.executable, str(script), str(mark)])
        try:
            asyncio.run(until(lambda: mark.exists() and mark.read_text(), 20))
        finally:
            parent.kill()
            parent.wait()
        asyncio.run(until(lambda: not exists(mark.read_text()), 1))

    def test_a_script_with_a_process_actor_of_its_own(self, tmp_path):
        """`if __name__ == "__main__":` and no more is needed."""
        done = run_script(
            tmp_path,
            """
            import asyncio, os
            from repid_core import Connection, InMemoryBucketBroker, InMemoryMessageBroker, Job, Repid, Router, Worker

            router = Router()

            class OwnError(Exception):
                pass

            @router.actor(run_in_process=True)
            def square(x: int) -> list[int]:
                if x < 0:
                    raise OwnError("negative")
                print("squared")
                return [x * x, os.getpid()]

            async def main():
                results = InMemoryBucketBroker(use_result_bucket=True)
                connection = Connection(InMemoryMessageBroker(), results_bucket_broker=results)
                async with Repid(connection).magic(auto_disconnect=True):
                    good, bad = Job("square", args=[7]), Job("square", args=[-1])
                    await good.enqueue()
                    await bad.enqueue()
                    await Worker([router], messages_limit=2).run()
                    value, pid = await good.wait()
                    bucket = await bad.result
                    print(value, pid != os.getpid(), bucket.exception)

            if __name__ == "__main__":
                asyncio.run(main())
            """,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "squared\n49 True OwnError\n", "what is left in the process's buffer is printed before it ends"

    def test_a_script_without_the_guard_is_told_so(self, tmp_path):
        """Its processes would run it anew, and a worker in each."""
        done = run_script(
            tmp_path,
            """
            import asyncio
            from repid_core import Connection, InMemoryMessageBroker, Job, Repid, Router, Worker

            router = Router()

            @router.actor(run_in_process=True)
            def act() -> None: ...

            async def main():
                async with Repid(Connection(InMemoryMessageBroker())).magic(auto_disconnect=True):
                    await Job("act", retries=0).enqueue()
                    summary = await Worker([router], messages_limit=1).run()
                    print(f"failed={summary.failed}")

            asyncio.run(main())
            """,
        )
        assert (done.returncode, done.stdout) == (0, "failed=1\n")
        assert "run the worker under `if __name__" in done.stderr
        assert "act ended by itself, with status 1" in done.stderr
