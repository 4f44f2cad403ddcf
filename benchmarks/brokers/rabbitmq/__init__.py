"""Libraries on RabbitMQ: durable queues, persistent messages, confirmed, and acknowledged after the actor.

Results, where a library has them, are kept in Redis, for RabbitMQ is no place for them.
"""

from __future__ import annotations

import os


def results_url() -> str:
    """The Redis for results, which the variable REPID_BENCHMARK_RESULTS names."""
    return os.environ.get("REPID_BENCHMARK_RESULTS", "redis://127.0.0.1:6379/9")
