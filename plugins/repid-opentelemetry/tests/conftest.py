"""An application in memory, whose telemetry stays there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from repid_core import Connection, InMemoryBucketBroker, InMemoryMessageBroker, Repid, Router, Worker
from repid_opentelemetry import OpenTelemetryMiddleware
from telemetry import Telemetry


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    yield telemetry
    telemetry.close()


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    buckets = InMemoryBucketBroker()
    connection = Connection(InMemoryMessageBroker(), buckets, buckets)
    async with Repid(connection).magic(auto_disconnect=True):
        yield connection


@pytest.fixture
def watch(connection: Connection, telemetry: Telemetry) -> Callable[..., None]:
    """Add the middleware, with settings."""

    def watch(**settings: Any) -> None:
        connection.middleware.add(OpenTelemetryMiddleware(**telemetry.providers, **settings))

    return watch


@pytest.fixture
def work(router: Router) -> Callable[..., Any]:
    """Run so many deliveries."""

    async def work(messages: int = 1) -> Any:
        return await Worker([router], messages_limit=messages, handle_signals=()).run()

    return work
