"""The middleware: what happens to jobs, as metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from attrs import asdict, define
from prometheus_client import REGISTRY, CollectorRegistry

from repid_core import Connection, Enqueued, Envelope
from repid_core.clock import SYSTEM_CLOCK, Clock
from repid_core.processing import Ended
from repid_prometheus.depths import Depths
from repid_prometheus.endpoint import Endpoint
from repid_prometheus.metrics import Pair, exposed, is_shared, metrics_of
from repid_prometheus.settings import PrometheusSettings

logger = logging.getLogger(__name__)

_UNKNOWN = ("unknown", "unknown")  # a message that cannot be decoded


@define(eq=False)
class _Care:
    """Of a connection while workers run on it: how many, and the task that looks after its queues."""

    workers: int
    task: asyncio.Task[None]
    depths: Depths


class PrometheusMiddleware:
    """Counts and times jobs, and, in workers, watches queues and answers scrapes.

    Args:
        registry: Where the metrics are registered; by default that of the process.
        settings: See `PrometheusSettings`, by name.

    Raises:
        ValueError: A setting is not valid, or the registry has these metrics with other buckets; the text names it.
    """

    def __init__(self, *, registry: CollectorRegistry = REGISTRY, **settings: Any) -> None:
        self.settings = PrometheusSettings(**settings)
        self._registry = registry
        self._metrics = metrics_of(registry, self.settings)
        self._queues = set(self.settings.queues)
        self._cares: dict[Connection, _Care] = {}
        self._endpoint = None if self.settings.port is None else Endpoint(self.settings.address, self.settings.port)
        self._refused = False
        self._clock: Clock = SYSTEM_CLOCK

    @classmethod
    def from_settings(cls, settings: PrometheusSettings) -> PrometheusMiddleware:
        """Make one on the registry of the process."""
        return cls(**asdict(settings, recurse=False))

    @property
    def port(self) -> int | None:
        """The port at which scrapes are answered now; None if they are not."""
        return None if self._endpoint is None else self._endpoint.port

    def after_enqueue(self, envelope: Envelope, outcome: Enqueued | None) -> None:
        """Count it."""
        self._metrics.enqueued(*self._pair(envelope), "failed" if outcome is None else outcome.value).inc()

    async def around_actor_run(self, envelope: Envelope, call_next: Callable[[Envelope], Awaitable[Any]]) -> Any:
        """Count the call, and measure how long the job has waited and takes."""
        metrics, pair = self._metrics, self._pair(envelope)
        due = envelope.due or envelope.parameters.timestamp
        metrics.started(*pair).inc()
        metrics.wait(*pair).observe(max(0.0, (self._clock.now() - due).total_seconds()))
        began = time.perf_counter()
        try:
            return await call_next(envelope)
        finally:
            metrics.run(*pair).observe(time.perf_counter() - began)

    def after_process(self, envelope: Envelope | None, outcome: Ended) -> None:
        """Count how it ended."""
        pair = self._pair(envelope)
        self._metrics.finished(*pair, outcome.value).inc()
        if outcome is Ended.RETRIED:
            self._metrics.retried(*pair).inc()

    def after_nack(self, envelope: Envelope | None, error: BaseException | None) -> None:
        """Count who died."""
        if error is None:
            self._metrics.dead(*self._pair(envelope)).inc()

    def before_queue_declare(self, queue: str) -> None:
        """A queue to look after."""
        self._queues.add(queue)

    def before_consume(self, queue: str) -> None:
        """A queue to look after."""
        self._queues.add(queue)

    def before_worker_start(self, connection: Connection) -> None:
        """Look after its queues, and answer scrapes."""
        self._clock = connection.clock
        care = self._cares.get(connection)
        if care is not None:
            care.workers += 1
            return
        self._listen()
        depths = Depths(connection, self._metrics, self.settings.depth_timeout)
        task = asyncio.create_task(self._tend(depths), name="repid prometheus")
        self._cares[connection] = _Care(1, task, depths)

    async def after_worker_stop(self, connection: Connection) -> None:
        """The last worker is gone: leave nothing running."""
        care = self._cares.get(connection)
        if care is None:
            return
        care.workers -= 1
        if care.workers:
            return
        del self._cares[connection]
        care.task.cancel()
        with suppress(asyncio.CancelledError):
            await care.task
        care.depths.forget()
        if self._endpoint is not None and not self._cares:
            await asyncio.to_thread(self._endpoint.stop)

    async def _tend(self, depths: Depths) -> None:
        await asyncio.sleep(0)  # for a worker that does not declare its queues to ask for them
        while True:
            if self.settings.queue_depth:
                await depths.refresh(self._queues)
            await asyncio.sleep(self.settings.depth_interval.total_seconds())
            self._listen()

    def _listen(self) -> None:
        """Answer scrapes, if the port can be had."""
        if self._endpoint is None or self._endpoint.port is not None:
            return
        try:
            self._endpoint.start(exposed(self._registry))
            self._refused = False
        except (OSError, ValueError) as error:
            if not self._refused:
                shared = "; one process that has it answers for all" if is_shared() else ": choose another, or 0 for any"
                level = logging.INFO if is_shared() else logging.ERROR
                where = f"{self.settings.address}:{self.settings.port}"
                logger.log(level, "metrics cannot be had at %s (%s)%s", where, error, shared)
            self._refused = True

    def _pair(self, envelope: Envelope | None) -> Pair:
        if envelope is None:
            return _UNKNOWN
        return self._metrics.pair(envelope.key.queue, envelope.key.topic, self.settings.max_series)
