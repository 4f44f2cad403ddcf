"""S3 for repid-core: a bucket broker.

`pip install repid-s3`, and choose `s3` by name or make the broker by hand::

    from repid_s3 import S3BucketBroker

    Connection(broker, results_bucket_broker=S3BucketBroker("s3://my-bucket/my-app/"))
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from repid_core import Backend, BucketBroker, hookimpl

if TYPE_CHECKING:
    from repid_s3.bucket_broker import S3BucketBroker
    from repid_s3.settings import S3BucketBrokerSettings

__all__ = ["S3BucketBroker", "S3BucketBrokerSettings"]

_HOMES = {"S3BucketBroker": "repid_s3.bucket_broker", "S3BucketBrokerSettings": "repid_s3.settings"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def repid_register_bucket_brokers() -> Iterable[Backend[BucketBroker]]:
    """The broker that keeps buckets in S3."""
    return [
        Backend(
            "s3",
            factory="repid_s3.bucket_broker:S3BucketBroker.from_settings",
            settings="repid_s3.settings:S3BucketBrokerSettings",
            url_schemes=("s3",),
            summary="Arguments and results in S3, large or kept for long, whose storage lifecycle rules free.",
        )
    ]


@hookimpl
def repid_register_commands() -> Iterable[Any]:
    """`repid s3 lifecycle`."""
    from repid_s3.commands import s3  # noqa: PLC0415 — click is for the command alone

    return [s3]
