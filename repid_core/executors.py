"""Threads and processes for synchronous functions. The pools live with the worker, and grow as they are needed."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from repid_core.errors import ActorProcessError, InvalidActorError, UsageError

_PATIENCE = 1.0  # seconds that a process gets to end by itself
_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # they may reach the whole process group, but the worker decides
_starting = threading.Lock()  # multiprocessing keeps books of its children, which are not made for several threads


def check_process_safe(fn: Callable[..., Any]) -> None:
    """Raise `InvalidActorError` unless a process can import the function by its name."""
    target: Any = fn
    while isinstance(target, functools.partial):
        target = target.func
    name = getattr(target, "__qualname__", type(target).__qualname__)
    if "<" in name:
        raise InvalidActorError(
            f"{name} cannot run in a process: it must be a function at the top of a module, which the process imports",
        )


def check_not_starting() -> None:
    """Raise `UsageError` in a process that is starting: it imports the main script, which is not to run a worker then."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and getattr(process.current_process(), "_inheriting", False):
        raise UsageError('a process for actors imports this script: run the worker under `if __name__ == "__main__":` alone')


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
        threads, processes = threads or min(32, cores + 4), processes or cores
        self._threads, self._processes = _Pool(threads, "repid thread"), _Pool(processes, "repid process")
        self._places = asyncio.Semaphore(threads), asyncio.Semaphore(processes)

    def places(self, in_process: bool) -> asyncio.Semaphore:
        """One for each thread or process, for who wants to know when it is free; calls do without."""
        return self._places[in_process]

    async def run_in_thread(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call `fn(*args, **kwargs)` in a thread, which sees the caller's context variables.

        Cancelled before it starts, it is not called. Cancelled later, this waits until it has ended, then raises
        `CancelledError`; cancelled a second time, it is abandoned: the thread goes on, and another takes its place.
        """
        context = contextvars.copy_context()
        call = _Call(lambda _: context.run(fn, *args, **kwargs))
        self._threads.submit(call)
        try:
            return await call.future
        except asyncio.CancelledError:
            if not self._threads.take_back(call):
                try:
                    await call.ended()
                except asyncio.CancelledError:
                    self._threads.abandon(call)
                    raise
            raise
        finally:
            del call  # an error's traceback holds this frame, and the call's future the error

    async def run_in_process(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call `fn(*args, **kwargs)` in a process, one call at a time in each. Cancelled, the process is killed.

        Raises:
            ActorProcessError: The process died; or the function, its arguments or what it returned cannot be pickled.
        """
        call = _Call(lambda process: process.call(fn, tuple(args), dict(kwargs)))
        self._processes.submit(call)
        try:
            return await call.future
        except asyncio.CancelledError:
            if not self._processes.take_back(call):
                self._processes.kill(call)
                await call.ended()
            raise
        finally:
            del call  # as above

    async def close(self) -> None:
        """Take no more calls, and end the processes and the idle threads. Idempotent.

        Calls that have not begun, and those in processes, fail. What runs in a thread is not waited for.
        """
        left = [*self._threads.close(kill=False), *self._processes.close(kill=True)]
        if left:

            def wait(_: object) -> None:
                for hand in left:
                    hand.join(2 * _PATIENCE)

            call = _Call(wait)
            waiter = threading.Thread(target=lambda: call.send(*_outcome(call.fn, None)), daemon=True)
            waiter.start()
            await call.future
            waiter.join()


class _Call:
    """One call on its way to a thread, and back to the loop."""

    def __init__(self, fn: Callable[[Any], Any]) -> None:
        self.fn = fn
        self._loop = asyncio.get_running_loop()
        self._finished = self._cancelled = False
        self.hand: _Hand | None = None
        self.future: asyncio.Future[Any] = self._loop.create_future()

    async def ended(self) -> None:
        """After `future` was cancelled: wait until the thread is done with it, whatever comes of it."""
        if not self._finished:
            self._cancelled, self.future = True, self._loop.create_future()
            await self.future

    def send(self, value: Any, error: BaseException | None) -> None:
        """From any thread: this is what came of it."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._finish, value, error)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        self._finished = True
        if self.future.done():
            return
        if error is None or self._cancelled:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


def _outcome(fn: Callable[[Any], Any], process: _Process | None) -> tuple[Any, BaseException | None]:
    """In the thread: what comes of the function. No variable of this frame may refer to the error, whose traceback has it."""
    try:
        return fn(process), None
    except (StopIteration, GeneratorExit, KeyboardInterrupt) as error:  # a future cannot carry them, or they end the loop
        return None, _caused(RuntimeError(f"the function raised {type(error).__name__}"), error)
    except BaseException as error:  # noqa: BLE001 — whatever it is, it goes to who waits
        return None, error


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


class _Pool:
    """Daemon threads, so that one that is stuck never keeps the interpreter from ending."""

    def __init__(self, limit: int, name: str) -> None:
        self.name = name
        self._limit = limit
        self._changed = threading.Condition()  # guards all that follows, and which hand has which call
        self._calls: deque[_Call] = deque()
        self._hands: set[_Hand] = set()
        self._free = 0  # hands without a call
        self._closed = False

    def submit(self, call: _Call) -> None:
        with self._changed:
            if self._closed:
                raise UsageError("the worker has stopped: its threads and processes take no more calls")
            if self._free <= len(self._calls) and len(self._hands) < self._limit:
                self._hire()
            self._calls.append(call)
            self._changed.notify()

    def take_back(self, call: _Call) -> bool:
        """Let a call that has not begun be forgotten; False if it has."""
        with self._changed:
            with suppress(ValueError):
                self._calls.remove(call)
            return call.hand is None

    def kill(self, call: _Call) -> None:
        """End the process that runs it."""
        with self._changed:
            if call.hand is not None and call.hand.call is call:
                call.hand.process.kill()

    def abandon(self, call: _Call) -> None:
        """Give up the thread that runs it; it ends with the call."""
        with self._changed:
            if call.hand is not None and call.hand.call is call:
                self._hands.discard(call.hand)
                if self._calls:
                    with suppress(RuntimeError):  # the next call tries again
                        self._hire()

    def close(self, *, kill: bool) -> list[_Hand]:
        """Let the idle threads go, and kill the processes of the others, if wanted. Gives the threads that will end."""
        with self._changed:
            self._closed = True
            for call in self._calls:
                call.send(None, UsageError("the worker has stopped before the function was called"))
            self._calls.clear()
            leaving = [hand for hand in self._hands if kill or hand.call is None]
            for hand in leaving:
                if hand.call is not None:
                    hand.process.kill()
            self._changed.notify_all()
            return leaving

    def _hire(self) -> None:
        hand = _Hand(self)
        try:
            hand.start()
        except RuntimeError:  # no more threads: those that there are must do
            if not self._hands:
                raise
        else:
            self._hands.add(hand)
            self._free += 1

    def next(self, hand: _Hand) -> _Call | None:
        """In the thread: wait for a call; None says that it is to end."""
        with self._changed:
            while hand in self._hands and not self._calls:
                if self._closed:
                    self._hands.discard(hand)
                else:
                    self._changed.wait()
            if hand not in self._hands:
                return None
            self._free -= 1
            call = hand.call = self._calls.popleft()
            call.hand = hand
            return call

    def done(self, hand: _Hand) -> None:
        """In the thread: it is free, and nobody kills it for its last call any more."""
        with self._changed:
            hand.call = None
            self._free += hand in self._hands


class _Hand(threading.Thread):
    """A thread of a pool, and the process behind it if it ever needs one."""

    def __init__(self, pool: _Pool) -> None:
        super().__init__(name=pool.name, daemon=True)
        self._pool = pool
        self.call: _Call | None = None
        self.process = _Process()

    def run(self) -> None:
        while (call := self._pool.next(self)) is not None:
            outcome = _outcome(call.fn, self.process)
            self._pool.done(self)  # before the caller knows, who may have the next call at once
            self.process.clean_up()
            call.send(*outcome)
            del call, outcome
        self.process.close()


class _Process:
    """A process for one call after another: started by the first, and anew after it died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # for what `kill` touches
        self._process: Any = None
        self._killed = False
        self._pipe: Any = None
        self._at_exit: Any = None

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            request = pickle.dumps((fn, args, kwargs), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise ActorProcessError(f"{_text(fn)} or its arguments cannot be pickled for a process: {error}") from error
        try:
            self._start()
            self._pipe.send_bytes(request)
            del request
            reply = self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise ActorProcessError(f"the process of {_text(fn)} {self._bury(error)}") from error
        try:
            done, value, text = pickle.loads(reply)  # noqa: S301 — our own child wrote it
        except Exception as error:
            raise ActorProcessError(f"what came from the process of {_text(fn)} cannot be unpickled: {error}") from error
        if done:
            return value
        raise value from _RemoteTraceback(text)

    def kill(self) -> None:
        """From any thread: end the process, and the call in it."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def clean_up(self) -> None:
        """Between two calls: what was killed for the last one must not meet the next."""
        if self._killed:
            self._bury()
            self._killed = False

    def close(self) -> None:
        """End the process in peace, if it does not take too long."""
        if self._process is not None:
            from multiprocessing.connection import wait  # noqa: PLC0415

            self._pipe.close()
            wait([self._process.sentinel], _PATIENCE)
            self._bury()

    def _start(self) -> None:
        # Here, for few need it, and it would be a fifth of `import repid_core`.
        from multiprocessing import connection, get_context, resource_tracker, util  # noqa: PLC0415

        if self._process is not None:
            if not connection.wait([self._process.sentinel], 0):
                return
            self._bury()
        if hasattr(signal, "pthread_sigmask"):  # the process inherits it, and unblocks them when it is ready for them
            resource_tracker.ensure_running()  # which would unblock them here
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        context = get_context("spawn")  # not "fork": it copies locks whose threads it does not copy
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), name="repid process")
        try:
            with _starting:
                process.start()
        finally:
            theirs.close()
        self._at_exit = util.Finalize(None, process.kill, exitpriority=0)  # else multiprocessing would wait for it
        with self._lock:
            self._process = process
            if self._killed:
                process.kill()

    def _bury(self, error: BaseException | None = None) -> str:
        """Let nothing remain of it, and say how it ended."""
        with self._lock:
            process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
        if process is None:
            return f"could not be started: {error}"
        self._at_exit.cancel()
        with _starting:
            process.kill()
            process.join()
            code = process.exitcode or 0
            with suppress(ValueError):  # somebody else, who asked for all children, has taken its status
                process.close()
        return f"was ended by signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"ended by itself, with status {code}"


class _RemoteTraceback(Exception):  # noqa: N818 — the cause of an error that came from a process
    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _serve(pipe: Any) -> None:
    """The process: one call after another, until its parent is gone."""
    from multiprocessing import connection, parent_process  # noqa: PLC0415

    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the actor's own subprocesses would inherit
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if hasattr(os, "register_at_fork"):  # what the actor forks must not keep the pipe open when this process is killed
        os.register_at_fork(after_in_child=pipe.close)
    if (parent := parent_process()) is not None:
        threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    with suppress(EOFError, OSError):  # the parent has closed its end
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes()))


def _answer(request: bytes) -> bytes:
    try:
        try:
            fn, args, kwargs = pickle.loads(request)  # noqa: S301 — our parent wrote it
        except Exception as error:
            raise ActorProcessError(f"the function or its arguments cannot be unpickled in the process: {error}") from error
        value = fn(*args, **kwargs)
        try:
            return pickle.dumps((True, value, None), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise ActorProcessError(f"what {_text(fn)} returned cannot be pickled: {error}") from error
    except BaseException as error:  # noqa: BLE001 — the parent raises it
        return _failure(error)


def _failure(error: BaseException) -> bytes:
    """The error as itself if it survives the way, else as what it says."""
    text = "".join(traceback.format_exception(error))
    try:
        reply = pickle.dumps((False, error, text), pickle.HIGHEST_PROTOCOL)
        pickle.loads(reply)  # noqa: S301 — made in the line above; some errors cannot be made again
    except Exception:  # noqa: BLE001
        substitute = ActorProcessError(traceback.format_exception_only(error)[-1].strip())
        reply = pickle.dumps((False, substitute, text), pickle.HIGHEST_PROTOCOL)
    return reply


def _text(fn: Any) -> str:
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', fn)}"
