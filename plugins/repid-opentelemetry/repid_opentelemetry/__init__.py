"""OpenTelemetry for repid-core: traces through the broker, and metrics.

`pip install repid-opentelemetry`, and choose `opentelemetry` by name or make the middleware by hand::

    from repid_opentelemetry import OpenTelemetryMiddleware

    Connection(broker, middlewares=[OpenTelemetryMiddleware()])
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from repid_core import Backend, hookimpl

if TYPE_CHECKING:
    from repid_opentelemetry.middleware import OpenTelemetryMiddleware
    from repid_opentelemetry.settings import OpenTelemetrySettings

__all__ = ["OpenTelemetryMiddleware", "OpenTelemetrySettings"]

_HOMES = {
    "OpenTelemetryMiddleware": "repid_opentelemetry.middleware",
    "OpenTelemetrySettings": "repid_opentelemetry.settings",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def repid_register_middlewares() -> Iterable[Backend[Any]]:
    """The middleware that traces jobs, and measures them."""
    return [
        Backend(
            "opentelemetry",
            factory="repid_opentelemetry.middleware:OpenTelemetryMiddleware.from_settings",
            settings="repid_opentelemetry.settings:OpenTelemetrySettings",
            summary="Traces from the producer through the broker to the worker, and metrics, by OpenTelemetry's conventions.",
        )
    ]
