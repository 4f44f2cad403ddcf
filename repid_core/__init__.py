"""An asyncio task queue whose core is minimal and whose backends are plugins."""

from __future__ import annotations

from repid_core.abc import (
    Broker,
    BucketBroker,
    Consumer,
    Converter,
    Delivery,
    MessageBroker,
    Middleware,
    Serializer,
)
from repid_core.app import Repid
from repid_core.connection import Connection
from repid_core.data import (
    Browsed,
    Capability,
    Death,
    DeathReason,
    Enqueued,
    Envelope,
    Limits,
    MessageCategory,
    Parameters,
    Priority,
    QueueStats,
    Receipt,
    ResultBucket,
    RoutingKey,
    Size,
)
from repid_core.defaults import Config
from repid_core.dependencies import INJECTED, Depends
from repid_core.errors import (
    CallTimeoutError,
    ConversionError,
    DuplicateJobError,
    EnqueueError,
    EnqueueManyError,
    InvalidActorError,
    InvalidJobError,
    JobFailedError,
    RepidError,
    ResultTimeoutError,
    UnsupportedFeatureError,
)
from repid_core.health import HealthCheckServerSettings
from repid_core.hookspecs import Backend, hookimpl, hookspec
from repid_core.job import Job
from repid_core.memory import InMemoryBucketBroker, InMemoryMessageBroker
from repid_core.message import Message, MessageDependency
from repid_core.queue import Queue
from repid_core.retry import RetryPolicy, default_retry_policy_factory
from repid_core.router import Router, RouterDefaults
from repid_core.sync import SyncRepid
from repid_core.worker import Worker, WorkerSummary

__version__ = "0.1.0"

__all__ = [
    "INJECTED",
    "Backend",
    "Broker",
    "Browsed",
    "BucketBroker",
    "CallTimeoutError",
    "Capability",
    "Config",
    "Connection",
    "Consumer",
    "ConversionError",
    "Converter",
    "Death",
    "DeathReason",
    "Delivery",
    "Depends",
    "DuplicateJobError",
    "EnqueueError",
    "EnqueueManyError",
    "Enqueued",
    "Envelope",
    "HealthCheckServerSettings",
    "InMemoryBucketBroker",
    "InMemoryMessageBroker",
    "InvalidActorError",
    "InvalidJobError",
    "Job",
    "JobFailedError",
    "Limits",
    "Message",
    "MessageBroker",
    "MessageCategory",
    "MessageDependency",
    "Middleware",
    "Parameters",
    "Priority",
    "Queue",
    "QueueStats",
    "Receipt",
    "Repid",
    "RepidError",
    "ResultBucket",
    "ResultTimeoutError",
    "RetryPolicy",
    "Router",
    "RouterDefaults",
    "RoutingKey",
    "Serializer",
    "Size",
    "SyncRepid",
    "UnsupportedFeatureError",
    "Worker",
    "WorkerSummary",
    "default_retry_policy_factory",
    "hookimpl",
    "hookspec",
]
