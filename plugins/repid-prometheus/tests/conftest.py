"""An application in memory, on a clock that the tests move."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from repid_core import Connection, InMemoryMessageBroker, Repid, Router, Worker
from repid_core.testing.clock import ManualClock
from repid_prometheus import PrometheusMiddleware
from scraping import Scraped, Watch, Work

assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ, "it is read at import; the tests of several processes set it for those"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def connection(clock: ManualClock) -> AsyncIterator[Connection]:
    connection = Connection(InMemoryMessageBroker(), clock=clock)
    async with Repid(connection).magic(auto_disconnect=True):
        yield connection


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def scraped(registry: CollectorRegistry) -> Scraped:
    return Scraped(registry)


@pytest.fixture
def watch(connection: Connection, registry: CollectorRegistry) -> Watch:
    def watch(**settings: Any) -> PrometheusMiddleware:
        middleware = PrometheusMiddleware(registry=registry, **settings)
        connection.middleware.add(middleware)
        return middleware

    return watch


@pytest.fixture
def work(router: Router) -> Work:
    async def work(messages: int = 1) -> Any:
        return await Worker([router], messages_limit=messages, handle_signals=()).run()

    return work
