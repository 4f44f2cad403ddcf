"""Suites that hold a plugin's backend to the contract: subclass one as `class Test…`, write its one fixture, and run pytest.

They are imported when they are used, since they need pytest and pytest-asyncio (the extra `testing`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repid_core.testing.conformance.bucket_broker import BucketBrokerConformance
    from repid_core.testing.conformance.converter import ConverterConformance
    from repid_core.testing.conformance.message_broker import MessageBrokerConformance
    from repid_core.testing.conformance.middleware import MiddlewareConformance
    from repid_core.testing.conformance.serializer import SerializerConformance
    from repid_core.testing.conformance.suite import ConformanceSuite, Promise, PromiseBroken, promise

_HOMES = {
    "BucketBrokerConformance": "bucket_broker",
    "ConformanceSuite": "suite",
    "ConverterConformance": "converter",
    "MessageBrokerConformance": "message_broker",
    "MiddlewareConformance": "middleware",
    "Promise": "suite",
    "PromiseBroken": "suite",
    "SerializerConformance": "serializer",
    "promise": "suite",
}

__all__ = [
    "BucketBrokerConformance",
    "ConformanceSuite",
    "ConverterConformance",
    "MessageBrokerConformance",
    "MiddlewareConformance",
    "Promise",
    "PromiseBroken",
    "SerializerConformance",
    "promise",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
