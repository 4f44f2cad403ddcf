"""repid-rabbitmq, through the whole framework: a `Job` on one side, a `Worker` on the other. Defaults; results in Redis."""

from __future__ import annotations

from typing import Literal

from benchmarks.brokers.rabbitmq import results_url
from benchmarks.brokers.redis import repid
from repid_core import Connection
from repid_rabbitmq import RabbitMessageBroker
from repid_redis import RedisBucketBroker


class Repid(repid.Repid):
    """At least once: confirmed, acknowledged after the actor; classic queues, with three priorities."""

    queue_type: Literal["classic", "quorum"] = "classic"
    read_ahead = 0

    def connection(self) -> Connection:
        results = RedisBucketBroker(results_url(), prefix=self.queue) if self.results else None
        broker = RabbitMessageBroker(self.url, queue_type=self.queue_type, read_ahead=self.read_ahead)
        return Connection(broker, results_bucket_broker=results)


class RepidAhead(Repid):
    """The same, reading ahead as taskiq does by default: ten messages, or nine and the one that runs."""

    read_ahead = 9


class RepidQuorum(Repid):
    """The same on quorum queues."""

    queue_type = "quorum"
