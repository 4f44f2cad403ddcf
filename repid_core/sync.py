"""repid from synchronous code: calls go to an event loop in a thread, and the caller waits.

There is one such thread for each application and process. It starts, and connects, with the first call; `close`, or the end of
the interpreter, ends it. So does a fork, if no call is under way: the next call starts another, in the parent as in the child. If
one is, the parent's goes on, and the child leaves what it has of it alone.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Generic, Protocol, Self, TypeVar
from weakref import WeakSet

from repid_core.connection import Connection, Enqueueable
from repid_core.data import Receipt, ResultBucket
from repid_core.errors import CallTimeoutError, NotConnectedError, RepidError, UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_SLICE = 1.0  # seconds after which who waits looks whether the loop is still there
_GRACE = 5.0  # seconds that calls under way have when the thread is to end
_MOMENT = 0.001
_LAST_GRACE = 0.5  # the same when the interpreter ends: only daemon threads can still be waiting

lent: ContextVar[Connection | None] = ContextVar("repid_lent_connection", default=None)
"""The connection of the synchronous call that runs in this context."""

stand_ins: list[Connection] = []
"""Connections of tests, the last of which is used in the place of every application's."""

_all: WeakSet[_Portal] = WeakSet()
_running: set[_Portal] = set()  # those that have a thread, which are not to be collected
_inherited: list[object] = []  # what a forked child has of its parent's, which must be neither closed nor collected


class SyncJob(Enqueueable, Protocol[T_co]):
    """What can be enqueued and waited for: a `Job`."""

    async def enqueue(self) -> Receipt:
        """Send it."""

    @property
    def result(self) -> Coroutine[Any, Any, ResultBucket | None]:
        """Look for the result."""

    async def wait(self, timeout: timedelta | float | None = None) -> T_co:
        """Wait for the result."""

    async def cancel(self) -> bool:
        """Take it out of its queue."""


class SyncRepid:
    """An application for synchronous code: Flask and Django views, scripts, threads. Get it from `Repid.sync()`.

    ::

        repid = app.sync()
        repid.enqueue(Job.of(greet)(name="Alex"))

    Any number of threads may use it at once. The first call starts a daemon thread with an event loop, which connects; nothing
    has to be opened, and nothing closed. Where the application's connection is open on a running loop of this process (an
    ASGI server's, or a worker's, from a synchronous actor), calls go there, and no thread is started.

    What goes wrong is raised in the caller. A call that is interrupted, by `KeyboardInterrupt` or because it took too long, is
    cancelled; what it has sent may have arrived all the same. Each forked child makes a thread and a connection of its own.

    `close`, or leaving `with app.sync() as repid:`, disconnects and ends the thread; a later call starts another.

    Every call takes `timeout`, in seconds or as a timedelta, connecting included; None waits for ever.

    All methods but `__enter__` raise `UsageError` on a thread whose event loop is running.

    Args:
        connection: The application's.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._portal = _Portal(connection)

    def enqueue(self, job: SyncJob[Any], *, timeout: timedelta | float | None = 30) -> Receipt:
        """Send a job; see `Job.enqueue`.

        Raises:
            RepidError: What `Job.enqueue` raises; nothing was sent, unless the error says so by `maybe_enqueued`.
            CallTimeoutError: It took too long: the job may have been enqueued.
        """
        return self.run(job.enqueue, timeout=timeout)

    def enqueue_many(self, jobs: Iterable[Enqueueable], *, timeout: timedelta | float | None = 30) -> list[Receipt]:
        """Send jobs in their order, in few round trips; see `Connection.enqueue_many`.

        Raises:
            EnqueueManyError: Some were not enqueued; its `outcomes` has a receipt or an error for each.
            CallTimeoutError: It took too long: some may have been enqueued.
        """
        listed = list(jobs)  # in the caller's thread: it may be a query of a database

        async def enqueue_many() -> list[Receipt]:
            return await _lent().enqueue_many(listed)

        return self.run(enqueue_many, timeout=timeout)

    def wait(self, job: SyncJob[T], timeout: timedelta | float | None = None) -> T:
        """Wait for a job's result and give its data; see `Job.wait`.

        Args:
            job: One that was enqueued, or has its `result_id`.
            timeout: The longest wait; by default it is for ever.

        Raises:
            JobFailedError: It failed; the error has the remote traceback.
            ResultTimeoutError: No result came in time.
        """
        return self.run(lambda: job.wait(timeout), timeout=None)

    def result(self, job: SyncJob[Any], *, timeout: timedelta | float | None = 30) -> ResultBucket | None:
        """Look for a job's result once; None while there is none."""
        return self.run(lambda: job.result, timeout=timeout)

    def cancel(self, job: SyncJob[Any], *, timeout: timedelta | float | None = 30) -> bool:
        """Take a job out of its queue unless it runs or is done; say whether it was there. See `Job.cancel`."""
        return self.run(job.cancel, timeout=timeout)

    def run(
        self, call: Callable[[], Coroutine[Any, Any, T]] | Coroutine[Any, Any, T], *, timeout: timedelta | float | None = 30
    ) -> T:
        """Run anything asynchronous of repid's, such as `repid.run(Queue("mail").stats)`, and give what it returns.

        Jobs and queues find the connection by themselves in it. It sees the caller's context variables.

        Args:
            call: An async function without arguments, or what one returned when it was called.
            timeout: The longest wait; then it is cancelled.

        Raises:
            Exception: What it raised.
            CallTimeoutError: It took too long.
        """
        started = _Call(call)
        try:
            _refuse_on_a_loop()
            seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
            loop = self._portal.submit(started)
        except BaseException:
            started.drop()
            raise
        try:
            return started.wait(loop, seconds)
        finally:
            del started  # an error's traceback holds this frame, and the call the error

    def connect(self, *, timeout: timedelta | float | None = 30) -> None:
        """Connect now, so that what is wrong is known early.

        Raises:
            BrokerConnectionError: The message broker could not be reached.
            BucketConnectionError: A bucket store could not be reached.
        """
        self.run(_nothing, timeout=timeout)

    def close(self, *, timeout: timedelta | float = _GRACE) -> None:
        """Disconnect and end the thread, if there is one. Idempotent; calls from now on wait, and start another.

        Args:
            timeout: How long calls under way have to end; then they are cancelled, and raise `NotConnectedError`.
        """
        _refuse_on_a_loop()
        self._portal.close(timeout.total_seconds() if isinstance(timeout, timedelta) else timeout)

    @property
    def has_thread(self) -> bool:
        """Whether there is a thread of its own."""
        return self._portal.engine is not None

    def __enter__(self) -> Self:
        self._portal.count(1)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._portal.count(-1):
            self.close()


class _Portal:
    """The way to the loop, wherever that is."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.engine: _Engine | None = None
        self._users = 0  # how many are inside of `with`
        _all.add(self)

    def count(self, change: int) -> int:
        """One more, or less, is inside of `with`; how many there are."""
        with self._lock:
            self._users += change
            return self._users

    def submit(self, call: _Call[Any]) -> asyncio.AbstractEventLoop:
        """Put it on a loop: on that where the connection is open, or else on our own."""
        call.connection = connection = stand_ins[-1] if stand_ins else self._connection
        while True:
            with self._lock:
                loop, engine = connection.loop, self.engine
                if loop is not None and (engine is None or loop is not engine.loop) and not loop.is_closed():
                    if not loop.is_running():
                        raise UsageError("the connection is open on an event loop that does not run: disconnect it there first")
                    loop.call_soon_threadsafe(call.start)
                    return loop
                if engine is None or engine.ended:
                    if connection.is_open:  # on a loop that is gone
                        connection.abandon()
                    engine = self.engine = _Engine(connection)
                    _running.add(self)
            if engine.submit(call):
                return engine.loop
            time.sleep(_MOMENT)  # it is about to end

    def close(self, timeout: float) -> None:
        """End the thread, if there is one."""
        with self._lock:  # who calls meanwhile waits for this, and then starts anew
            engine, self.engine = self.engine, None
            if engine is not None:
                engine.close(timeout)
            _running.discard(self)

    def before_fork(self) -> None:
        """End the thread if it is idle, so that there is nothing to be copied; and let nobody start another until it is over."""
        self._lock.acquire()
        if self.engine is not None:
            self.engine.end_if_idle()

    def after_fork_in_parent(self) -> None:
        """Let others start a thread again."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Have nothing of the parent's."""
        self._lock = threading.Lock()
        _running.discard(self)
        engine, self.engine = self.engine, None
        if engine is not None and not engine.ended:
            engine.disown()
            self._connection.abandon()


class _Call(Generic[T]):
    """One call on its way to a loop, and back."""

    __slots__ = ("_call", "_future", "connection", "engine", "task")

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]] | Coroutine[Any, Any, T]) -> None:
        self._call = call
        self.connection: Connection | None = None
        self.engine: _Engine | None = None
        self._future: Future[T] = Future()
        self.task: asyncio.Task[T] | None = None

    def start(self) -> None:
        """On the loop: begin, unless nobody waits any more."""
        if self._future.cancelled():
            self.drop()
            return
        self.task = asyncio.get_running_loop().create_task(self._carry(), name="repid synchronous call")
        self.task.add_done_callback(self._finish)

    async def _carry(self) -> T:
        lent.set(self.connection)
        if self.engine is not None:
            await self.engine.ready()
        return await (self._call() if callable(self._call) else self._call)

    def _finish(self, task: asyncio.Task[T]) -> None:
        self.drop()
        self.task = None  # which holds the error, whose traceback holds the frame of `_carry`
        with suppress(InvalidStateError):  # nobody waits any more
            if task.cancelled():
                self._future.set_exception(NotConnectedError("the event loop ended, or was closed, before the call had ended"))
            elif (error := task.exception()) is not None:
                self._future.set_exception(error)
            else:
                self._future.set_result(task.result())

    def drop(self) -> None:
        """It will not run any more: it may be a coroutine that has never begun."""
        if asyncio.iscoroutine(self._call):
            self._call.close()
        if self.engine is not None:
            self.engine.calls.discard(self)

    def lose(self) -> None:
        """The loop is gone."""
        self.drop()
        with suppress(InvalidStateError):
            self._future.set_exception(NotConnectedError("the event loop is gone, and with it what came of the call"))

    def cancel(self) -> None:
        """On the loop."""
        if self.task is None:
            self._future.cancel()
        else:
            self.task.cancel()

    def wait(self, loop: asyncio.AbstractEventLoop, seconds: float | None) -> T:
        """In the caller's thread: wait until it has ended."""
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            while not self._ended(_SLICE if deadline is None else min(_SLICE, deadline - time.monotonic())):
                if loop.is_closed():
                    self.lose()
                elif deadline is not None and time.monotonic() >= deadline:
                    raise CallTimeoutError
            return self._future.result()
        finally:
            if self._future.done():
                del self._future  # as above
            else:
                self._future.cancel()
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self.cancel)
            del self

    def _ended(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            self._future.exception(max(seconds, 0.0))
        return self._future.done()


class _Engine:
    """The loop in its thread, and the connection that is open on it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self.loop = asyncio.SelectorEventLoop(self._selector)
        self._lock = threading.Lock()
        self.calls: set[_Call[Any]] = set()
        self._leaving = False  # takes no more calls
        self.ended = False
        self._grace = _GRACE
        self._asked = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._main, name="repid sync", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.loop.close()
            raise

    # In any thread

    def submit(self, call: _Call[Any]) -> bool:
        """Take a call; False if it is too late."""
        with self._lock:
            if self.ended or self._leaving or self.loop.is_closed():
                return False
            call.engine = self
            self.calls.add(call)
            self.loop.call_soon_threadsafe(call.start)
            return True

    def end_if_idle(self) -> None:
        """End if there are no calls under way."""
        with self._lock:
            idle = not self.calls
            self._leaving = self._leaving or idle
        if idle:
            self.close(_LAST_GRACE)

    def close(self, grace: float) -> None:
        """End, and wait for the end, but not for a loop that is stuck."""
        with self._lock:
            self._leaving = True
        self._grace = grace
        with suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self._asked.set)
        self._thread.join(grace + _GRACE)
        if self._thread.is_alive():
            logger.warning("the event loop of app.sync() does not end: something blocks it")

    def disown(self) -> None:
        """In a forked child: leave what is the parent's alone.

        The two share what epoll (or kqueue) watches. A socket that is closed here, when it is collected, would be taken from
        what the parent watches; so the number of our copy is given to something else.
        """
        _inherited.append(self)
        with suppress(AttributeError, OSError):  # other selectors share nothing
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, self._selector.fileno())
            os.close(null)

    # In its thread

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                try:
                    runner.run(self._live())
                finally:  # before those who wait hear of it, and call again
                    with self._lock:
                        self._leaving = True
        except BaseException:
            logger.exception("the event loop of app.sync() has ended; the next call starts another")
        finally:
            with self._lock:
                self.ended = True
            for call in list(self.calls):
                call.lose()
            self.calls.clear()

    async def _live(self) -> None:
        try:
            await self._asked.wait()
            tasks = [call.task for call in list(self.calls) if call.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=self._grace)
        finally:
            await self._end()

    async def _end(self) -> None:
        tasks = [call.task for call in list(self.calls) if call.task is not None]
        if self._connecting is not None:
            tasks.append(self._connecting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection.loop is self.loop:
            with suppress(Exception):  # the connection has logged it
                await self._connection.disconnect()

    async def ready(self) -> None:
        """Be connected. Those who come meanwhile wait for the one attempt, and share what comes of it."""
        if self._connection.loop is self.loop:
            return
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connection.connect())
            self._connecting.add_done_callback(self._connected)
        try:
            await asyncio.shield(self._connecting)
        except RepidError as error:
            raise copy.copy(error) from error  # each thread has its own, with a traceback of its own

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # who waits has heard of it


def _refuse_on_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UsageError(
        "app.sync() would block the event loop that runs in this thread: await the asynchronous way (`await job.enqueue()`), "
        "or call the synchronous code in a thread (`await asyncio.to_thread(…)`)"
    )


def _lent() -> Connection:
    connection = lent.get()
    assert connection is not None  # noqa: S101 — calls run with one
    return connection


async def _nothing() -> None: ...


_forking: list[_Portal] = []
_fork_lock = threading.Lock()  # of the thread that forks


def _before_fork() -> None:
    _fork_lock.acquire()
    _forking.extend(_all)
    for each in _forking:
        each.before_fork()


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop().after_fork_in_parent()
    _fork_lock.release()


def _after_fork_in_child() -> None:
    while _forking:
        _forking.pop().after_fork_in_child()
    _fork_lock.release()


def _at_exit() -> None:
    for each in list(_running):
        each.close(_LAST_GRACE)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
