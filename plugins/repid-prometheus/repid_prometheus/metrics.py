"""The metrics of a registry."""

from __future__ import annotations

import os
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from repid_prometheus.settings import PrometheusSettings

M = TypeVar("M", Counter, Gauge, Histogram)
Pair = tuple[str, str]  # queue and actor

OTHER: Final = ("other", "other")
_PAIR: Final = ("queue", "topic")


class Family(Generic[M]):
    """A metric, whose series are looked up once."""

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._series: dict[tuple[str, ...], M] = {}

    def __call__(self, *labels: str) -> M:
        """The series with these labels."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = self._metric.labels(*labels)
        return series


class Metrics:
    """What is counted and measured, once for each registry.

    Args:
        registry: Where they are registered.
        settings: Which buckets histograms have.
    """

    def __init__(self, registry: CollectorRegistry, settings: PrometheusSettings) -> None:
        def counter(name: str, text: str, *labels: str) -> Family[Counter]:
            return Family(Counter(name, text, (*_PAIR, *labels), registry=registry))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Family[Histogram]:
            return Family(Histogram(name, text, _PAIR, registry=registry, buckets=buckets))

        self.buckets = settings.wait_buckets, settings.run_buckets
        self.enqueued = counter("repid_jobs_enqueued", "Jobs that were enqueued: new, replaced, kept or failed.", "outcome")
        self.started = counter("repid_jobs_started", "Calls of actors.")
        self.finished = counter("repid_jobs_finished", "Messages that workers have settled, by how it went.", "outcome")
        self.retried = counter("repid_jobs_retried", "Attempts after which the job comes again.")
        self.dead = counter("repid_jobs_dead", "Messages that have died.")
        self.wait = histogram("repid_job_wait_seconds", "From when a job is due to the call of its actor.", settings.wait_buckets)
        self.run = histogram("repid_job_run_seconds", "How long an actor took.", settings.run_buckets)
        # Of several processes that ask the same broker, the last answer is the true one.
        self.depth = Family(
            Gauge(
                "repid_queue_messages",
                "Messages in a queue by state.",
                ("queue", "state"),
                registry=registry,
                multiprocess_mode="mostrecent",
            )
        )
        self._pairs: dict[Pair, Pair] = {}

    def pair(self, queue: str, topic: str, most: int) -> Pair:
        """The labels of a queue and an actor; those of all others once there are as many as that."""
        pair = (queue, topic)
        known = self._pairs.get(pair)
        if known is None:
            if len(self._pairs) >= most:
                return OTHER
            known = self._pairs[pair] = pair
        return known


_metrics: WeakKeyDictionary[CollectorRegistry, Metrics] = WeakKeyDictionary()


def metrics_of(registry: CollectorRegistry, settings: PrometheusSettings) -> Metrics:
    """The metrics of a registry, which several connections of a process share.

    Raises:
        ValueError: They exist with other buckets.
    """
    metrics = _metrics.get(registry)
    if metrics is None:
        metrics = _metrics[registry] = Metrics(registry, settings)
    elif metrics.buckets != (settings.wait_buckets, settings.run_buckets):
        raise ValueError(
            f"wait_buckets={settings.wait_buckets!r} and run_buckets={settings.run_buckets!r}: another middleware of this "
            f"process has {metrics.buckets!r}, and they share their metrics: give both the same, or a registry each"
        )
    return metrics


def is_shared() -> bool:
    """Whether several processes share their values by files."""
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))


def exposed(registry: CollectorRegistry) -> Any:
    """What a scrape reads: the registry, or what all processes have written."""
    if not is_shared():
        return registry
    every = CollectorRegistry()
    MultiProcessCollector(every)  # type: ignore[no-untyped-call]
    return every
