"""The in-memory brokers: for development, tests, and programs that are one process."""

from __future__ import annotations

from collections.abc import Iterable

from repid_core.abc import BucketBroker, MessageBroker
from repid_core.hookspecs import Backend, hookimpl
from repid_core.memory.bucket_broker import InMemoryBucketBroker, InMemoryBucketBrokerSettings
from repid_core.memory.message_broker import InMemoryMessageBroker, InMemoryMessageBrokerSettings

__all__ = [
    "InMemoryBucketBroker",
    "InMemoryBucketBrokerSettings",
    "InMemoryMessageBroker",
    "InMemoryMessageBrokerSettings",
]


@hookimpl
def repid_register_message_brokers() -> Iterable[Backend[MessageBroker]]:
    """The broker that carries messages inside the process."""
    return [
        Backend(
            "memory",
            factory=InMemoryMessageBroker.from_settings,
            settings=InMemoryMessageBrokerSettings,
            url_schemes=("memory",),
            summary="Messages inside one process; a restart loses them.",
        )
    ]


@hookimpl
def repid_register_bucket_brokers() -> Iterable[Backend[BucketBroker]]:
    """The broker that keeps buckets inside the process."""
    return [
        Backend(
            "memory",
            factory=InMemoryBucketBroker.from_settings,
            settings=InMemoryBucketBrokerSettings,
            url_schemes=("memory",),
            summary="Arguments and results inside one process; a restart loses them.",
        )
    ]
