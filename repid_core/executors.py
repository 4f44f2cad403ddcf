"""Threads and processes for synchronous functions. The pools live with the worker, and grow as they are needed."""

from __future__ import annotations

import asyncio
import contextvars
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from repid_core.errors import ActorProcessError, InvalidActorError, UsageError


def check_process_safe(fn: Callable[..., Any]) -> None:
    """Raise `InvalidActorError` unless a process can import the function by its name."""
    name = getattr(fn, "__qualname__", None)
    if name is None or "<" in name:
        raise InvalidActorError(
            f"{name or fn!r} cannot run in a process: it must be a function at the top of a module, which the process imports",
        )


class Executors:
    """Runs synchronous functions off the event loop.

    Args:
        threads: The most threads; by default the processors and four, 32 at most.
        processes: The most processes; by default one for each processor.

    Raises:
        UsageError: A number is not valid.
    """

    def __init__(self, threads: int | None = None, processes: int | None = None) -> None:
        for what, number in (("threads", threads), ("processes", processes)):
            if number is not None and (type(number) is not int or number < 1):
                raise UsageError(f"{what}={number!r}: give a whole number, 1 or more")
        cores = os.cpu_count() or 1
        self._threads = _Pool(threads or min(32, cores + 4), "repid thread")
        self._processes = _Pool(processes or cores, "repid process")

    async def run_in_thread(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call `fn(*args, **kwargs)` in a thread, which sees the caller's context variables.

        Cancelled before it starts, it is not called. Cancelled later, this waits until it has ended, then raises
        `CancelledError`; cancelled a second time, it is abandoned: the thread goes on, and another takes its place.
        """
        context = contextvars.copy_context()
        call = _Call(lambda _: context.run(fn, *args, **kwargs))
        self._threads.submit(call)
        try:
            return await call.result
        except asyncio.CancelledError:
            if not call.drop():
                try:
                    await call.ended()
                except asyncio.CancelledError:
                    self._threads.abandon(call)
                    raise
            raise

    async def run_in_process(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call `fn(*args, **kwargs)` in a process, one call at a time in each. Cancelled, the process is killed.

        Raises:
            ActorProcessError: The process died; or the function, its arguments or what it returned cannot be pickled.
        """
        call = _Call(lambda child: child.call(fn, tuple(args), dict(kwargs)))
        self._processes.submit(call)
        try:
            return await call.result
        except asyncio.CancelledError:
            if not call.drop():
                call.kill()
                await call.ended()
            raise

    async def close(self) -> None:
        """Let idle threads go and kill the processes. What still runs is not waited for. Idempotent."""
        self._threads.close()
        self._processes.close()


class _Call:
    """One call on its way to a thread of a pool, and back to the loop."""

    def __init__(self, fn: Callable[[_Child], Any]) -> None:
        self._fn = fn
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._dropped = False
        self._waiter: asyncio.Future[None] | None = None
        self.finished = self.abandoned = False
        self.result: asyncio.Future[Any] = self._loop.create_future()

    def drop(self) -> bool:
        """Take it back, if no thread has begun it."""
        with self._lock:
            self._dropped = self._child is None
            return self._dropped

    def kill(self) -> None:
        """End the process that runs it."""
        with self._lock:
            if self._child is not None and not self.finished:
                self._child.kill()

    async def ended(self) -> None:
        """Wait until the thread is done with it."""
        if not self.finished:
            self._waiter = self._loop.create_future()
            await self._waiter

    def run(self, child: _Child) -> None:
        """In the thread: call, and send home what came of it."""
        with self._lock:
            if self._dropped:
                return
            self._child = child
        value: Any = None
        error: BaseException | None = None
        try:
            value = self._fn(child)
        except StopIteration as stop:  # a future cannot carry it
            error = RuntimeError("the function raised StopIteration")
            error.__cause__ = stop
        except BaseException as caught:  # noqa: BLE001 — whatever it is, it goes to who waits
            error = caught
        try:
            self._loop.call_soon_threadsafe(self._finish, value, error)
        except RuntimeError:  # the loop is closed: nobody waits
            return

    def _finish(self, value: Any, error: BaseException | None) -> None:
        self.finished = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.result.done():
            return
        if error is None:
            self.result.set_result(value)
        else:
            self.result.set_exception(error)


class _Pool:
    """Daemon threads, so that one that is stuck never keeps the interpreter from ending."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit, self._name = limit, name
        self._calls: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._count = 0
        self._idle = 0  # threads that wait, and were not woken
        self._closed = False

    def submit(self, call: _Call) -> None:
        with self._changed:
            if self._closed:
                raise UsageError("the worker has stopped: its threads and processes take no more calls")
            self._calls.append(call)
            if self._idle > 0:
                self._idle -= 1
                self._changed.notify()
            elif self._count < self._limit:
                self._spawn()

    def abandon(self, call: _Call) -> None:
        """Give up the thread that this call holds; it ends with the call."""
        with self._changed:
            if not call.finished:
                call.abandoned = True
                self._count -= 1
                if self._calls and not self._closed:
                    self._spawn()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._calls.clear()
            self._changed.notify_all()

    def _spawn(self) -> None:
        self._count += 1
        threading.Thread(target=self._serve, name=self._name, daemon=True).start()

    def _serve(self) -> None:
        child = _Child()
        try:
            while (call := self._next()) is not None:
                call.run(child)
                if call.abandoned:
                    return
                call = None
        finally:
            child.close()

    def _next(self) -> _Call | None:
        with self._changed:
            while not self._calls and not self._closed:
                self._idle += 1
                self._changed.wait()
            return self._calls.popleft() if self._calls else None


class _Child:
    """The process behind one thread of the pool: started by its first call, and anew after it died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Any = None
        self._pipe: Any = None
        self._killed = False

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            request = pickle.dumps((fn, args, kwargs), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise ActorProcessError(f"the actor's function or arguments cannot be pickled for its process: {error}") from error
        self._start()
        try:
            self._pipe.send_bytes(request)
            reply = self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise ActorProcessError(f"the actor's process {self._bury()}") from error
        done, value, text = pickle.loads(reply)  # noqa: S301 — our own child wrote it
        if done:
            return value
        raise value from _RemoteTraceback(text)

    def kill(self) -> None:
        """From the loop: end the process, and the call in it."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._bury()

    def _start(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        if self._process is not None:
            self._bury()
        import multiprocessing  # noqa: PLC0415 — few need it, and it would be a fifth of `import repid_core`

        context = multiprocessing.get_context("spawn")  # not "fork": it copies locks whose threads it does not copy
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), name="repid actor process", daemon=True)
        process.start()
        theirs.close()
        with self._lock:
            self._pipe, self._process = pipe, process
            if self._killed:
                process.kill()

    def _bury(self) -> str:
        with self._lock:
            process, self._process, self._killed = self._process, None, False
        self._pipe.close()
        process.join()
        code = process.exitcode or 0
        process.close()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended by itself, with status {code}"


class _RemoteTraceback(Exception):  # noqa: N818 — the cause of an error that came from a process
    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _serve(pipe: Any) -> None:
    """The process: one call after another, until its parent is gone."""
    import multiprocessing  # noqa: PLC0415
    from multiprocessing.connection import wait  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        try:
            fn, args, kwargs = pickle.loads(request)  # noqa: S301 — our parent wrote it
            reply = pickle.dumps((True, fn(*args, **kwargs), None), pickle.HIGHEST_PROTOCOL)
        except BaseException as error:  # noqa: BLE001 — the parent raises it
            reply = _failure(error)
        pipe.send_bytes(reply)


def _failure(error: BaseException) -> bytes:
    """The error as itself if it survives the way, else as what it says."""
    text = "".join(traceback.format_exception(error))
    try:
        reply = pickle.dumps((False, error, text), pickle.HIGHEST_PROTOCOL)
        pickle.loads(reply)  # noqa: S301 — made in the line above; some errors cannot be made again
    except Exception:  # noqa: BLE001
        substitute = ActorProcessError(f"{type(error).__name__}: {error}")
        reply = pickle.dumps((False, substitute, text), pickle.HIGHEST_PROTOCOL)
    return reply
