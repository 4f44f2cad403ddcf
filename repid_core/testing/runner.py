"""Runs jobs as a worker does, one after another and only when it is told to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from repid_core.abc import Consumer, Delivery
from repid_core.connection import Connection
from repid_core.data import DeathReason, Enqueued, Envelope, Outcome
from repid_core.errors import EnqueueError
from repid_core.executors import Executors
from repid_core.memory import InMemoryBucketBroker, InMemoryMessageBroker
from repid_core.middleware import EnqueueCall
from repid_core.processing import Ended, Processor, Route, Run, Verdict
from repid_core.router import Actor, Router
from repid_core.testing.clock import ManualClock
from repid_core.testing.events import Recorder

_AT_ONCE = 1000  # deliveries of one message while the clock stands still, before it is a circle
_RUNNING = 10_000  # jobs in hand
_NOT_FOR_TESTS = (Exception, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)  # SystemExit ends the loop


class JobRun(Run):
    """A run that keeps the error itself, where a worker keeps its text."""

    def __init__(self, processor: Processor, delivery: Delivery, recorder: Recorder) -> None:
        super().__init__(processor, delivery, lambda _: None)
        self._recorder = recorder
        self.error: BaseException | None = None
        self.ended: Ended | None = None
        self.waits = 0  # for a result, or for the jobs that it enqueued

    def _failed(self, error: Exception, started: int) -> Verdict:
        self._keep(error)
        return super()._failed(error, started)

    def _final(self, ended: Ended, reason: DeathReason, error: Exception, outcome: Outcome) -> Verdict:
        if ended is not Ended.EXPIRED:
            self._keep(error)
        return super()._final(ended, reason, error, outcome)

    def _keep(self, error: Exception) -> None:
        # What pytest.fail() and pytest.skip() raise is no Exception, and the cause of one; it is for the test to see.
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        self.error = error if cause is None or isinstance(cause, _NOT_FOR_TESTS) else cause
        self._recorder.errors[self.envelope.key.id_] = self.error

    @property
    def failure(self) -> BaseException | None:
        """The error, if the job has failed for good."""
        return self.error if self.ended in {Ended.FAILED, Ended.INVALID} else None


class ResultsBroker(InMemoryBucketBroker):
    """Knows who waits for a result, and that nobody will bring it if the wait is too long.

    Args:
        patience: Real seconds that may pass while nothing runs.
    """

    def __init__(self, patience: float) -> None:
        super().__init__()
        self.patience = patience
        self.runs: dict[asyncio.Task[Any], JobRun] = {}
        self.changed = asyncio.Event()

    async def wait_for(self, id_: str, timeout: timedelta | None) -> bytes:
        deadline = None if timeout is None else self.clock.now() + timeout
        with self.waiting():
            while True:
                left = None if deadline is None else deadline - self.clock.now()
                patience = asyncio.timeout(self.patience)
                try:
                    async with patience:
                        return await super().wait_for(id_, left)
                except TimeoutError:
                    if not patience.expired():
                        raise  # by the clock of the test
                if all(run.waits for run in self.runs.values()):
                    raise AssertionError(
                        f"nobody brings the result {id_!r}: nothing has run for {self.patience:g} seconds, and the clock "
                        "stands still; call run_until_idle() or advance() before you wait for a result",
                    )

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The current task, if it runs a job, waits for others, which may run meanwhile."""
        task = asyncio.current_task()
        run = None if task is None else self.runs.get(task)
        if run is None:
            yield
            return
        run.waits += 1
        self.changed.set()
        try:
            yield
        finally:
            run.waits -= 1


class Runner:
    """Takes what is ready from the in-memory broker, and runs it.

    Args:
        connection: Open, on in-memory brokers.
        router: The actors; they may become more.
        recorder: Hears of errors.
        tasks_limit: How many jobs run at once; those that wait for a result do not count.
        patience: Real seconds that may pass without a job's end.
        raise_errors: Whether `enqueue` raises, in the eager mode, what jobs failed with.

    Attributes:
        routes: What runs for a name; mocks are put here.
    """

    def __init__(
        self, connection: Connection, router: Router, recorder: Recorder, tasks_limit: int, patience: float, *, raise_errors: bool
    ) -> None:
        self._raise_errors = raise_errors
        self._connection, self._router, self._recorder = connection, router, recorder
        self._tasks_limit, self._patience = tasks_limit, patience
        broker, results, clock = connection.message_broker, connection.results_bucket_broker, connection.clock
        assert isinstance(broker, InMemoryMessageBroker)  # noqa: S101 — the harness made them
        assert isinstance(results, ResultsBroker)  # noqa: S101
        assert isinstance(clock, ManualClock)  # noqa: S101
        self._broker, self._results, self._clock = broker, results, clock
        self.routes: dict[str, Route] = {}
        self._executors = Executors()
        self._processor = Processor(connection, self.routes, self._executors)
        self._consumers: dict[tuple[str, frozenset[str]], Consumer] = {}
        self._ended: list[JobRun] = []
        self._counts: Counter[str] = Counter()
        self._counted_at: datetime | None = None

    @property
    def running(self) -> Mapping[asyncio.Task[Any], JobRun]:
        """The jobs that have not ended."""
        return self._results.runs

    def route(self, actor: Actor) -> Route:
        """How the actor is called, unless something else is called in its place."""
        if actor.name not in self.routes:
            self.routes[actor.name] = Route(actor, actor.converter(self._connection.converter))
        return self.routes[actor.name]

    async def until_idle(self) -> None:
        """Run what is ready, and what that enqueues, until nothing is ready and nothing runs but what waits for a result."""
        while True:
            self._results.changed.clear()
            busy = [task for task, run in self.running.items() if not run.waits]
            if len(busy) < self._tasks_limit and await self.start_one() is not None:
                continue
            if not busy:
                await self._clock.settle()  # somebody may react to the last end, and enqueue
                if not (self._results.changed.is_set() or self._next_queue()):
                    return
                continue
            await self._change(busy)

    async def one(self) -> JobRun | None:
        """Run one job to its end; None if none is ready."""
        run = await self.start_one()
        while run is not None and run.ended is None:
            self._results.changed.clear()
            if run.ended is None:
                await self._change([run.task])
        return run

    async def around_enqueue(self, envelopes: Sequence[Envelope], call_next: EnqueueCall) -> Sequence[Enqueued | EnqueueError]:
        """For the eager mode: as a middleware, run jobs inside of `enqueue`."""
        outcomes = await call_next(envelopes)
        ids = {(envelope.key.queue, envelope.key.id_) for envelope in envelopes}
        mine: list[JobRun] = []
        with self._results.waiting():
            while True:
                self._results.changed.clear()
                idle = all(run.waits or run.ended for run in mine)
                if idle and any(self._is_ready(*id_) for id_ in ids) and (run := await self.start_one()) is not None:
                    mine.append(run)
                    continue
                theirs = [run for run in self.running.values() if (run.envelope.key.queue, run.envelope.key.id_) in ids]
                busy = [run.task for run in (*mine, *theirs) if run.ended is None]
                if not busy:
                    break
                await self._change(busy)
        failures = self.failures(mine)
        if self._raise_errors:
            raise_all(failures)
        return outcomes

    def failures(self, runs: Sequence[JobRun] | None = None) -> list[BaseException]:
        """What jobs failed with that have ended since the last call; of these runs, or of all."""
        ended = self._ended if runs is None else [run for run in self._ended if run in runs]
        self._ended = [] if runs is None else [run for run in self._ended if run not in runs]
        failures: dict[int, BaseException] = {}
        for run in ended:
            if (failure := run.failure) is not None:
                key, attempt = run.envelope.key, run.envelope.parameters.tried + 1
                failure.add_note(f"in attempt {attempt} of job {key.topic!r} from queue {key.queue!r}")
                failures[id(failure)] = failure
        return list(failures.values())

    async def start_one(self) -> JobRun | None:
        """Begin with the job that is next, if there is one that an actor takes."""
        found = self._next_queue()
        if found is None:
            return None
        consumer = self._consumers.get(found)
        if consumer is None:
            consumer = self._consumers[found] = self._broker.consumer(*found, prefetch=_RUNNING)
            await consumer.start()
        [delivery] = await consumer.receive(1)
        self._count(delivery.envelope)
        run = JobRun(self._processor, delivery, self._recorder)
        run.envelope = delivery.envelope
        run.task = asyncio.create_task(self._carry(run), name=f"repid job {delivery.envelope.key.topic}")
        self._results.runs[run.task] = run
        return run

    async def close(self) -> None:
        """Give back what runs, and what the consumers hold."""
        for _ in range(3):
            tasks = list(self.running)
            for run in list(self.running.values()):
                run.stop()
            if tasks:
                await asyncio.wait(tasks, timeout=1)
        for consumer in self._consumers.values():
            await consumer.close()
        self._processor.timeouts.close()
        await self._executors.close()

    async def _carry(self, run: JobRun) -> None:
        try:
            run.ended = await run.process()
        finally:
            run.ended = run.ended or Ended.LOST
            del self._results.runs[run.task]
            self._ended.append(run)
            self._results.changed.set()

    async def _change(self, busy: Sequence[asyncio.Task[Any]]) -> None:
        """Until a job ends, or begins to wait for others; but not for ever."""
        try:
            async with asyncio.timeout(self._patience):
                await self._results.changed.wait()
        except TimeoutError:
            where = "\n".join(
                f"  {self.running[task].envelope.key.topic}: {place(task)}" for task in busy if task in self.running
            )
            raise AssertionError(
                f"no job has ended for {self._patience:g} seconds; these run, and wait here:\n{where}\n"
                "mock what they wait for, or give the harness more patience",
            ) from None

    def _next_queue(self) -> tuple[str, frozenset[str]] | None:
        """A queue in which something waits for an actor, and the actors' names."""
        for name, topics in self._router.queues.items():
            queue = self._broker._queues.get(name)
            if queue is not None and any(topic in rack for rack in queue.ready.racks for topic in topics):
                for topic in topics:
                    self.route(self._router.actors[topic])
                return name, topics
        return None

    def _is_ready(self, queue_name: str, id_: str) -> bool:
        """Whether a message waits for an actor that there is."""
        queue = self._broker._queues.get(queue_name)
        entry = None if queue is None else queue.live.get(id_)
        if queue is None or entry is None or entry.lane is None:
            return False
        topic = entry.envelope.key.topic
        return topic in self._router.queues.get(queue_name, ()) and any(
            rack.get(topic) is entry.lane for rack in queue.ready.racks
        )

    def _count(self, envelope: Envelope) -> None:
        now = self._clock.now()
        if now != self._counted_at:
            self._counts.clear()
            self._counted_at = now
        key = envelope.key
        self._counts[key.id_] += 1
        if self._counts[key.id_] > _AT_ONCE:
            raise AssertionError(
                f"job {key.topic!r} ({key.id_}) has come {_AT_ONCE} times, and the clock stands still: its actor rejects or "
                "reschedules it again and again, or its retry policy has no delay",
            )


def raise_all(failures: Sequence[BaseException]) -> None:
    """Raise the one failure as it is, several as a group; with the lines of the actors, and not those of repid above them."""
    __tracebackhide__ = True
    for failure in failures:
        tb = failure.__traceback__
        while tb is not None and str(tb.tb_frame.f_globals.get("__name__", "")).startswith("repid_core."):
            tb = tb.tb_next
        failure.__traceback__ = tb or failure.__traceback__
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} jobs failed", list(failures))


def place(task: asyncio.Task[Any]) -> str:
    """Where the user's code in a task waits."""
    at = "in a thread, or in code that is not yours"
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None and not str(frame.f_globals.get("__name__", "")).startswith(("repid_core.", "asyncio")):
            at = f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_qualname}"
        awaited = (
            getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None) or getattr(awaited, "ag_await", None)
        )
    return at
