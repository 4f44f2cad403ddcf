"""The in-memory brokers are found by name and by URL scheme, like any other."""

from __future__ import annotations

from datetime import timedelta

from repid_core.memory import (
    InMemoryBucketBroker,
    InMemoryBucketBrokerSettings,
    InMemoryMessageBroker,
    InMemoryMessageBrokerSettings,
)
from repid_core.plugins import Kind, Plugins


def test_both_are_built_by_name() -> None:
    plugins = Plugins()
    broker = plugins.build(Kind.MESSAGE_BROKER, "memory", InMemoryMessageBrokerSettings(lease=timedelta(seconds=2)))
    assert isinstance(broker, InMemoryMessageBroker)
    assert broker.limits.lease == timedelta(seconds=2)
    bucket_broker = plugins.build(Kind.BUCKET_BROKER, "memory", InMemoryBucketBrokerSettings(max_payload=5))
    assert isinstance(bucket_broker, InMemoryBucketBroker)
    assert bucket_broker.limits.max_payload == 5


def test_both_have_a_url_scheme() -> None:
    assert Plugins().for_scheme(Kind.MESSAGE_BROKER, "memory").name == "memory"
    assert Plugins().for_scheme(Kind.BUCKET_BROKER, "memory").name == "memory"
