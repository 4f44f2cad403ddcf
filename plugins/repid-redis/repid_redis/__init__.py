"""Redis and Valkey for repid-core: a message broker, and a bucket broker for arguments and results.

`pip install repid-redis`, and choose `redis` by name or make the brokers by hand::

    from repid_redis import RedisBucketBroker, RedisMessageBroker

    Connection(RedisMessageBroker("redis://localhost"), results_bucket_broker=RedisBucketBroker("redis://localhost"))
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from repid_core import Backend, BucketBroker, MessageBroker, hookimpl

if TYPE_CHECKING:
    from repid_redis.bucket_broker import RedisBucketBroker
    from repid_redis.message_broker import RedisMessageBroker
    from repid_redis.settings import RedisBucketBrokerSettings, RedisMessageBrokerSettings

__all__ = ["RedisBucketBroker", "RedisBucketBrokerSettings", "RedisMessageBroker", "RedisMessageBrokerSettings"]

_HOMES = {
    "RedisBucketBroker": "repid_redis.bucket_broker",
    "RedisBucketBrokerSettings": "repid_redis.settings",
    "RedisMessageBroker": "repid_redis.message_broker",
    "RedisMessageBrokerSettings": "repid_redis.settings",
}
_SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # what imports the client library waits until it is wanted
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def repid_register_message_brokers() -> Iterable[Backend[MessageBroker]]:
    """The broker that carries messages through Redis."""
    return [
        Backend(
            "redis",
            factory="repid_redis.message_broker:RedisMessageBroker.from_settings",
            settings="repid_redis.settings:RedisMessageBrokerSettings",
            url_schemes=_SCHEMES,
            summary="Messages in Redis or Valkey, with every capability.",
        )
    ]


@hookimpl
def repid_register_bucket_brokers() -> Iterable[Backend[BucketBroker]]:
    """The broker that keeps buckets in Redis."""
    return [
        Backend(
            "redis",
            factory="repid_redis.bucket_broker:RedisBucketBroker.from_settings",
            settings="repid_redis.settings:RedisBucketBrokerSettings",
            url_schemes=_SCHEMES,
            summary="Arguments and results in Redis or Valkey, with native expiry and pushed results.",
        )
    ]
