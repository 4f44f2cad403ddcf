"""Prometheus for repid-core: counters, latencies and depths of queues, to be scraped.

`pip install repid-prometheus`, and choose `prometheus` by name or make the middleware by hand::

    from repid_prometheus import PrometheusMiddleware

    Connection(broker, middlewares=[PrometheusMiddleware()])
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from repid_core import Backend, hookimpl

if TYPE_CHECKING:
    from repid_prometheus.middleware import PrometheusMiddleware
    from repid_prometheus.settings import PrometheusSettings

__all__ = ["PrometheusMiddleware", "PrometheusSettings"]

_HOMES = {
    "PrometheusMiddleware": "repid_prometheus.middleware",
    "PrometheusSettings": "repid_prometheus.settings",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def repid_register_middlewares() -> Iterable[Backend[Any]]:
    """The middleware that counts and times jobs."""
    return [
        Backend(
            "prometheus",
            factory="repid_prometheus.middleware:PrometheusMiddleware.from_settings",
            settings="repid_prometheus.settings:PrometheusSettings",
            summary="Counters, latencies and depths of queues for Prometheus, with an endpoint to be scraped.",
        )
    ]
