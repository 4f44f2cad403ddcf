"""What the middlewares cost: jobs per second with each, beside those without, on the in-memory broker.

    python benchmarks/middlewares.py

All take turns within each round. Printed are the median of the rounds' ratios, the least and the most of them, and the median of
what a job takes longer, in microseconds. Actors do nothing, so that whatever is not the middleware is as small as it can be.
OpenTelemetry is the SDK with a span processor that drops what it gets, since exporting is another thread's work.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from prometheus_client import CollectorRegistry

from repid_core import Connection, InMemoryMessageBroker, Job, Repid, Router, Worker
from repid_opentelemetry import OpenTelemetryMiddleware
from repid_prometheus import PrometheusMiddleware


def opentelemetry(sampler: Sampler, *, metrics: bool) -> OpenTelemetryMiddleware:
    tracers = TracerProvider(sampler=sampler)
    tracers.add_span_processor(SpanProcessor())
    meters = MeterProvider([InMemoryMetricReader()])
    return OpenTelemetryMiddleware(tracer_provider=tracers, meter_provider=meters, metrics=metrics)


CANDIDATES: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "opentelemetry, without an SDK": lambda: [OpenTelemetryMiddleware(metrics=False)],
    "opentelemetry, nothing sampled, no metrics": lambda: [opentelemetry(ALWAYS_OFF, metrics=False)],
    "opentelemetry, every span, no metrics": lambda: [opentelemetry(ALWAYS_ON, metrics=False)],
    "opentelemetry, every span and metrics": lambda: [opentelemetry(ALWAYS_ON, metrics=True)],
    "prometheus": lambda: [PrometheusMiddleware(registry=CollectorRegistry())],
}


async def measure(middlewares: list[Any], jobs: int) -> tuple[float, float]:
    """Seconds to enqueue one by one, and to consume."""
    router = Router()

    @router.actor
    async def act(a: int, b: int) -> None: ...

    async with Repid(Connection(InMemoryMessageBroker(), middlewares=middlewares)).magic(auto_disconnect=True):
        began = time.perf_counter()
        for number in range(jobs):
            await Job("act", args=[number, 2]).enqueue()
        enqueued = time.perf_counter()
        await Worker([router], messages_limit=jobs, handle_signals=()).run()
        return enqueued - began, time.perf_counter() - enqueued


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in CANDIDATES}
    longer: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for _ in range(arguments.rounds):
        times = {name: asyncio.run(measure(make(), arguments.jobs)) for name, make in CANDIDATES.items()}
        enqueue, consume = times["none"]
        for name, (one, other) in times.items():
            ratios[name].append((enqueue / one, consume / other))
            longer[name].append((one + other - enqueue - consume) / arguments.jobs * 1e6)
    print("| middleware | enqueue, jobs/s | consume, jobs/s | µs for both |\n|---|--:|--:|--:|")
    for name, rounds in ratios.items():
        cells = [f"{statistics.median(column):.2f} ({min(column):.2f}–{max(column):.2f})" for column in zip(*rounds, strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {statistics.median(longer[name]):.0f} |")


if __name__ == "__main__":
    main()
