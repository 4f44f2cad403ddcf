"""Consumers, concurrency, signals and shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any

from attrs import frozen

from repid_core.abc import Consumer, Delivery
from repid_core.app import current_connection
from repid_core.connection import Connection, finish
from repid_core.errors import UsageError
from repid_core.executors import Executors, check_not_starting
from repid_core.health import HealthCheckServer, HealthCheckServerSettings
from repid_core.message import envelope_of
from repid_core.middleware import is_cancelled
from repid_core.processing import Ended, Processor, Route, Run
from repid_core.router import Router, RouterDefaults

logger = logging.getLogger(__name__)

_CLEAN_UP = 1.0  # seconds that a cancelled actor gets before it is cancelled again, and then abandoned
_CLOSING = 5.0  # seconds that consumers get to pause, and to close
_UNSETTLED = 8  # jobs that have ended, beyond tasks_limit, whose settlements may be on their way
_BROKER_PAUSE = 1.0  # seconds after a consumer failed, before it is asked again

# A loop has one handler for each signal, and several workers may share a loop: the handler before, and who is to be told.
_listening: dict[tuple[asyncio.AbstractEventLoop, signal.Signals], tuple[Any, list[Callable[[], None]]]] = {}


@frozen
class WorkerSummary:
    """What a worker did in one `run()`.

    Attributes:
        processed: Settled deliveries: all of the following but those given back or lost.
        succeeded: The actor returned, or acknowledged its message.
        failed: The last attempt failed.
        retried: A failed attempt, or one that asked for it, comes again.
        expired: Not started within the TTL.
        invalid: The arguments do not fit, or the message cannot be read.
        nacked: The actor said so.
        rejected: Given back.
        lost: Could not be settled, and comes again.
    """

    processed: int
    succeeded: int
    failed: int
    retried: int
    expired: int
    invalid: int
    nacked: int
    rejected: int
    lost: int


class Worker(Router):
    """Runs the jobs of its actors. It is a router itself.

    Args:
        routers: Where the actors are.
        graceful_shutdown_time: Seconds that running jobs get once the worker stops; the rest are given back.
        messages_limit: Stop after so many settled deliveries; None goes on.
        tasks_limit: The most jobs in flight, over all queues. One whose actor has ended counts no longer: its settlement
            goes its way while the next runs.
        threads: The most threads for synchronous actors; by default the processors and four, 32 at most.
        processes: The most processes for actors with `run_in_process`; by default one for each processor.
        handle_signals: Signals that stop the worker: the first gracefully, a second at once.
        auto_declare: Declare the queues before consuming.
        run_health_check_server: Answer `/livez` and `/readyz` over HTTP while running.
        health_check_server_settings: Where; by default on 127.0.0.1:8080.
        router_defaults: What actors that are declared on the worker itself take if they do not say.
        connection: By default the one in reach when it runs.

    Raises:
        InvalidActorError: Two actors have one name.
        UsageError: A limit is not valid.
    """

    def __init__(
        self,
        routers: Sequence[Router] = (),
        graceful_shutdown_time: float = 25.0,
        messages_limit: int | None = None,
        tasks_limit: int = 1000,
        threads: int | None = None,
        processes: int | None = None,
        handle_signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
        auto_declare: bool = True,
        run_health_check_server: bool = False,
        health_check_server_settings: HealthCheckServerSettings | None = None,
        router_defaults: RouterDefaults | None = None,
        connection: Connection | None = None,
    ) -> None:
        super().__init__(router_defaults)
        for router in routers:
            if not isinstance(router, Router):
                raise UsageError(f"Worker(routers={routers!r}): give routers, in a list")
            self.include_router(router)
        for what, limit in (("messages_limit", messages_limit), ("tasks_limit", tasks_limit)):
            if limit is not None and (type(limit) is not int or limit < 1):
                raise UsageError(f"Worker({what}={limit!r}): give a whole number, 1 or more")
        if not isinstance(graceful_shutdown_time, int | float) or not graceful_shutdown_time >= 0:
            raise UsageError(f"Worker(graceful_shutdown_time={graceful_shutdown_time!r}): give seconds, 0 or more")
        if not isinstance(connection, Connection | None):
            raise UsageError(f"Worker(connection={connection!r}): give a Connection")
        Executors(threads, processes)  # complains about wrong numbers here and now
        self.graceful_shutdown_time = graceful_shutdown_time
        self.messages_limit, self.tasks_limit = messages_limit, tasks_limit
        self.threads, self.processes = threads, processes
        self.handle_signals, self.auto_declare = tuple(handle_signals), auto_declare
        self.health = (health_check_server_settings or HealthCheckServerSettings()) if run_health_check_server else None
        self._connection = connection
        self._shift: _Shift | None = None

    @property
    def connection(self) -> Connection | None:
        """The connection that it was given; None if it takes the one in reach."""
        return self._connection

    async def declare_all_queues(self) -> None:
        """Declare the queues of all actors, each with its topics."""
        connection = self._connection or current_connection()
        connection.check()
        for queue, topics in self.queues.items():
            await connection.middleware.watch(
                "queue_declare", {"queue": queue}, connection.message_broker.declare_queue, queue, topics
            )

    async def run(self) -> WorkerSummary:
        """Consume until a signal, `stop()`, or the limit. May be called again.

        Raises:
            UsageError: It has no actors, or runs already, or the script lacks `if __name__ == "__main__":`.
            NoConnectionError, NotConnectedError, WrongEventLoopError: Nothing was consumed.
            InvalidActorError: An actor's signature does not fit its converter; nothing was consumed.
            MessageBrokerError: The queues could not be declared or consumed at the start.
        """
        check_not_starting()
        connection = self._connection or current_connection()
        connection.check()
        if self._shift is not None:
            raise UsageError("the worker runs already: wait for run() to return, or make another worker")
        if not self.actors:
            raise UsageError("the worker has no actors: pass Worker(routers=[…]), or declare them with @worker.actor")
        routes = {name: Route(actor, actor.converter(connection.converter)) for name, actor in self.actors.items()}
        executors = Executors(self.threads, self.processes)
        self._shift = shift = _Shift(self, Processor(connection, routes, executors))
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(executors.close)
                stack.callback(shift.close)
                if self.health is not None:
                    server = HealthCheckServer(self.health, shift.alive, shift.ready)
                    stack.push_async_callback(server.stop)
                    await server.start()
                stack.enter_context(_signals(self.handle_signals, shift.stop))
                if self.auto_declare:
                    await self.declare_all_queues()
                try:
                    await connection.middleware.watch("worker_start", {"connection": connection}, shift.start)
                    await shift.stopping.wait()
                except asyncio.CancelledError:
                    shift.hurry()
                    raise
                finally:
                    stop = connection.middleware.watch("worker_stop", {"connection": connection}, shift.end)
                    await finish(stop, shift.hurry)
        finally:
            self._shift = None
        return shift.summary()

    def stop(self) -> None:
        """Stop as a signal does: gracefully the first time, at once the second. Nothing happens if it does not run."""
        if self._shift is not None:
            self._shift.stop()

    def problems(self) -> tuple[str | None, str | None]:
        """Why it should be started anew, and why it is not at work, as `/livez` and `/readyz` have it; None if all is well."""
        return (None, "the worker does not run") if self._shift is None else (self._shift.alive(), self._shift.ready())


class _Shift:
    """One `run()` of a worker: from the first consumer to the last settlement."""

    def __init__(self, worker: Worker, processor: Processor) -> None:
        self._worker, self._processor = worker, processor
        self._loop = asyncio.get_running_loop()
        self._consumers: dict[str, Consumer] = {}
        self._fetchers: dict[str, asyncio.Task[None]] = {}
        self._receiving: set[asyncio.Task[Sequence[Delivery]]] = set()
        self._runs: set[Run] = set()
        self._ended: set[Run] = set()  # those of them whose actors have ended
        self._waiting: deque[asyncio.Future[None]] = deque()  # fetchers that wait for a free place, longest first
        self._paused: set[str] = set()  # queues whose consumer has failed, and is to be asked again
        self._settled = 0
        self._in_hurry = False
        self.stopping, self._quiet = asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """Stop fetching; the second time, do not wait for what runs."""
        if self.stopping.is_set():
            self.hurry()
        self.stopping.set()

    def hurry(self) -> None:
        """Stop at once."""
        self._in_hurry = True
        self.stopping.set()
        self._quiet.set()

    def alive(self) -> str | None:
        """Why the worker is not live."""
        if not self.stopping.is_set() and any(fetcher.done() for fetcher in self._fetchers.values()):
            return "a consumer has ended"
        return None

    def ready(self) -> str | None:
        """Why the worker is not ready."""
        if self.stopping.is_set() or not self._fetchers:
            return "the worker is stopping" if self._fetchers else "the worker is starting"
        if not self._processor.connection.is_open:
            return "the connection is closed"
        if self._processor.holding:
            return f"a bucket store is away; {self._processor.holding} jobs wait for it"
        away = [queue for queue, consumer in self._consumers.items() if queue in self._paused or not consumer.healthy]
        return f"not fetching from: {', '.join(away)}" if away else None

    async def start(self) -> None:
        """Start a consumer for each queue. What was started is for `end` to close."""
        worker, broker = self._worker, self._processor.connection.message_broker
        prefetch = min(worker.tasks_limit, worker.messages_limit or worker.tasks_limit)
        for queue, topics in worker.queues.items():
            consumer = self._consumers[queue] = broker.consumer(queue, topics, prefetch=prefetch)
            await consumer.start()
        logger.info(
            "consuming %s", ", ".join(self._consumers), extra={"queues": list(self._consumers), "actors": list(worker.actors)}
        )
        self._fetchers = {
            queue: asyncio.create_task(self._fetch(queue, consumer), name=f"repid fetch {queue}")
            for queue, consumer in self._consumers.items()
        }

    async def end(self) -> None:
        """The way out: fetch no more; let jobs end, interrupt those that do not; give back the rest (W5)."""
        self.stopping.set()
        for fetcher in self._fetchers.values():
            fetcher.cancel()
        try:
            await _all("stop", self._fetchers)
            await _all("pause", {queue: consumer.pause() for queue, consumer in self._consumers.items()})
            if self._runs and not self._in_hurry:
                logger.info("waiting for %d running jobs", len(self._runs), extra={"running": len(self._runs)})
                await self._wait(self._worker.graceful_shutdown_time)
            for _ in range(3):
                for run in self._runs:
                    run.stop()
                await self._wait(_CLEAN_UP)
            if self._runs:
                logger.error("%d jobs do not let themselves be cancelled, and are abandoned", len(self._runs))
        finally:
            await _all("close", {queue: consumer.close() for queue, consumer in self._consumers.items()})

    def close(self) -> None:
        """Time nothing any more."""
        self._processor.timeouts.close()

    def summary(self) -> WorkerSummary:
        """What was done."""
        counts = {ended.value: self._processor.counts[ended] for ended in Ended}
        return WorkerSummary(processed=self._settled, **counts)

    def _free(self) -> int:
        """How many more jobs may be started now."""
        most, unsettled = self._worker.tasks_limit, len(self._runs)
        free = min(most - (unsettled - len(self._ended)), 2 * most + _UNSETTLED - unsettled)
        if self._worker.messages_limit is not None:
            free = min(free, self._worker.messages_limit - self._settled - unsettled)
        return free

    async def _fetch(self, queue: str, consumer: Consumer) -> None:
        middleware = self._processor.middleware
        beaten = False
        while not self.stopping.is_set():
            await self._place(first=beaten)
            limit = max(1, self._free() // (1 + len(self._waiting) + len(self._receiving)))
            try:
                if middleware.before_consume is not None:
                    await middleware.before_consume(queue=queue)
                deliveries = await self._receive(consumer, limit)
                beaten = not deliveries
                for delivery in deliveries:
                    if middleware.after_consume is not None:
                        await middleware.after_consume(queue=queue, envelope=envelope_of(delivery))
                    beaten |= not self._begin(delivery)
            except (Exception, asyncio.CancelledError):
                if is_cancelled():
                    raise
                logger.exception("cannot fetch from %s", queue, extra={"queue": queue})
                self._paused.add(queue)
                await asyncio.sleep(_BROKER_PAUSE)
                self._paused.discard(queue)

    async def _receive(self, consumer: Consumer, limit: int) -> Sequence[Delivery]:
        """Receive, but let go when other queues take the last place, so that nothing is held that cannot run."""
        if len(self._consumers) == 1:
            return await consumer.receive(limit)
        task = asyncio.ensure_future(consumer.receive(limit))
        self._receiving.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            return ()
        finally:
            self._receiving.discard(task)

    async def _place(self, *, first: bool) -> None:
        """Wait until a job may be started: in turn, but `first` if another queue was quicker the last time."""
        while self._free() < 1 or self._waiting:
            turn = self._loop.create_future()
            (self._waiting.appendleft if first else self._waiting.append)(turn)
            try:
                await turn
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
            if self._free() >= 1:
                break
        self._invite()

    def _invite(self) -> None:
        """Let the fetcher that waits longest have the next place."""
        if self._waiting and self._free() > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def _begin(self, delivery: Delivery) -> bool:
        """Run a job, or give it back if there is no place: another queue was quicker, or the worker stops."""
        has_place = self._free() > 0 and not self.stopping.is_set()
        run = Run(self._processor, delivery, self._leave, stopped=not has_place)
        self._runs.add(run)
        run.task = self._loop.create_task(self._carry(run))
        if self._receiving and self._free() < 1:
            for task in self._receiving:
                task.cancel()
        return has_place

    def _leave(self, run: Run) -> None:
        """An actor has ended: its place is for another, while the result is stored and the delivery settled."""
        self._ended.add(run)
        self._invite()

    async def _carry(self, run: Run) -> None:
        ended = Ended.LOST
        try:
            ended = await run.process()
        finally:
            self._runs.discard(run)
            self._ended.discard(run)
            if ended is not Ended.REJECTED and ended is not Ended.LOST:
                self._settled += 1
                if self._settled == self._worker.messages_limit:
                    self.stopping.set()
            if not self._runs:
                self._quiet.set()
            self._invite()

    async def _wait(self, timeout: float) -> None:
        """Until no job runs, or somebody is in a hurry."""
        self._quiet.clear()
        if self._runs:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._quiet.wait()


async def _all(what: str, steps: Mapping[str, Awaitable[None]]) -> None:
    """Await what the consumers of these queues do, whatever they raise, but not for long."""
    tasks = {asyncio.ensure_future(step): queue for queue, step in steps.items()}
    if not tasks:
        return
    done, hanging = await asyncio.wait(tasks, timeout=_CLOSING)
    for task in hanging:
        logger.error("the consumer of %s does not %s, and is abandoned", tasks[task], what, extra={"queue": tasks[task]})
        task.cancel()
    await asyncio.sleep(0)  # for those to hear of it
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the consumer of %s did not %s well", tasks[task], what, exc_info=error, extra={"queue": tasks[task]})


@contextmanager
def _signals(signals: Sequence[signal.Signals], stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on each signal, where signals reach this loop. Workers share a signal; the last restores the handler before."""
    loop, heard = asyncio.get_running_loop(), list[signal.Signals]()
    try:
        for number in dict.fromkeys(signals):
            if (loop, number) not in _listening:
                before = signal.getsignal(number)
                try:
                    loop.add_signal_handler(number, _hear, loop, number)
                except (NotImplementedError, RuntimeError, ValueError):  # not the main thread, or not this system
                    logger.debug("signal %s cannot be handled here", number.name)
                    continue
                _listening[loop, number] = before, []
            _listening[loop, number][1].append(stop)
            heard.append(number)
        yield
    finally:
        for number in heard:
            before, stops = _listening[loop, number]
            stops.remove(stop)
            if not stops:
                del _listening[loop, number]
                loop.remove_signal_handler(number)
                signal.signal(number, before or signal.SIG_DFL)  # None: it was not set from Python


def _hear(loop: asyncio.AbstractEventLoop, number: signal.Signals) -> None:
    for stop in _listening[loop, number][1]:
        stop()
