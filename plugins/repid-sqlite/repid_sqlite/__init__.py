"""SQLite for repid-core: a message broker and a bucket broker in one file, for the processes of one machine.

`pip install repid-sqlite`, and choose `sqlite` by name or make the brokers by hand::

    from repid_sqlite import SqliteBucketBroker, SqliteMessageBroker

    Connection(SqliteMessageBroker("jobs.db"), results_bucket_broker=SqliteBucketBroker("jobs.db"))
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from repid_core import Backend, BucketBroker, MessageBroker, hookimpl

if TYPE_CHECKING:
    from repid_sqlite.bucket_broker import SqliteBucketBroker
    from repid_sqlite.message_broker import SqliteMessageBroker
    from repid_sqlite.settings import SqliteBucketBrokerSettings, SqliteMessageBrokerSettings

__all__ = ["SqliteBucketBroker", "SqliteBucketBrokerSettings", "SqliteMessageBroker", "SqliteMessageBrokerSettings"]

_HOMES = {
    "SqliteBucketBroker": "repid_sqlite.bucket_broker",
    "SqliteBucketBrokerSettings": "repid_sqlite.settings",
    "SqliteMessageBroker": "repid_sqlite.message_broker",
    "SqliteMessageBrokerSettings": "repid_sqlite.settings",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def repid_register_message_brokers() -> Iterable[Backend[MessageBroker]]:
    """The broker that keeps messages in a file."""
    return [
        Backend(
            "sqlite",
            factory="repid_sqlite.message_broker:SqliteMessageBroker.from_settings",
            settings="repid_sqlite.settings:SqliteMessageBrokerSettings",
            url_schemes=("sqlite",),
            summary="Messages in a file that the processes of one machine share, with every capability and no server.",
        )
    ]


@hookimpl
def repid_register_bucket_brokers() -> Iterable[Backend[BucketBroker]]:
    """The broker that keeps buckets in a file."""
    return [
        Backend(
            "sqlite",
            factory="repid_sqlite.bucket_broker:SqliteBucketBroker.from_settings",
            settings="repid_sqlite.settings:SqliteBucketBrokerSettings",
            url_schemes=("sqlite",),
            summary="Arguments and results in a file that the processes of one machine share.",
        )
    ]
