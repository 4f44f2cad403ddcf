"""The same application on one broker after another: all that differs is the URL."""

from __future__ import annotations

import os
import socket
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from repid_core import (
    INJECTED,
    Connection,
    InMemoryBucketBroker,
    Job,
    JobFailedError,
    MessageBroker,
    MessageDependency,
    Queue,
    Repid,
    Router,
    Worker,
)
from repid_core.plugins import Kind, plugins

SECOND = timedelta(seconds=1)


def broker_for(url: str, **settings: Any) -> MessageBroker:
    """The message broker of whatever plugin is installed for URLs like this."""
    known = plugins()
    backend = known.for_scheme(Kind.MESSAGE_BROKER, urlsplit(url).scheme)
    cls = known.settings_class(Kind.MESSAGE_BROKER, backend)
    return known.build(Kind.MESSAGE_BROKER, backend, cls(url, **settings) if cls and not url.startswith("memory:") else None)


async def failure(job: Job[Any]) -> str | None:
    with pytest.raises(JobFailedError):
        await job.wait(timeout=5)
    result = await job.result
    return None if result is None else result.exception


async def application(broker: MessageBroker) -> dict[str, Any]:
    """An actor that fails at first, one that runs later, one whose failure is final; what became of them."""
    app = Repid(Connection(broker, results_bucket_broker=InMemoryBucketBroker()))
    router = Router()

    @router.actor(queue="bar", retry_policy=lambda _attempt, _error: SECOND)
    async def brew(cups: int, message: MessageDependency = INJECTED) -> str:
        if message.parameters.tried == 0:
            raise RuntimeError("the machine is cold")
        return f"{cups} cups"

    @router.actor(queue="bar")
    async def wipe() -> str:
        return "clean"

    @router.actor(queue="bar")
    async def refund() -> None:
        raise RuntimeError("no money")

    async with app.magic(auto_disconnect=True):
        brewing = Job.of(brew, retries=1)(cups=2)
        wiping = Job.of(wipe, deferred_until=datetime.now(UTC) + SECOND)()
        refunding = Job.of(refund)()
        await broker.declare_queue("bar")
        await app.connection.enqueue_many([brewing, wiping, refunding])
        await Worker(routers=[router], messages_limit=4, handle_signals=()).run()
        stats = await Queue("bar").stats()
        outcome = {
            "brew": await brewing.wait(timeout=5),
            "wipe": await wiping.wait(timeout=5),
            "refund": await failure(refunding),
            "left": (stats.ready, stats.delayed, stats.dead),
        }
        await Queue("bar").delete()
    return outcome


def redis_url() -> str:
    """A Redis server, for which the tests of repid-redis know more ways."""
    named = os.environ.get("REPID_REDIS_URL")
    if named is None:
        try:
            socket.create_connection(("127.0.0.1", 6379), 1).close()
        except OSError:
            pytest.skip("no Redis server answers at 127.0.0.1:6379, and REPID_REDIS_URL names none")
    return named or "redis://127.0.0.1:6379/0"


@pytest.mark.wheel
@pytest.mark.parametrize("broker", ["memory", "redis", "rabbitmq", "rabbitmq, quorum queues"])
async def test_the_same_application_on(broker: str, request: pytest.FixtureRequest) -> None:
    settings: dict[str, Any] = {} if broker == "memory" else {"prefix": f"test-{uuid.uuid4().hex[:12]}"}
    if broker == "memory":
        url = "memory://"
    elif broker == "redis":
        pytest.importorskip("repid_redis")
        url = redis_url()
    else:
        url = request.getfixturevalue("rabbitmq_url")
        settings["queue_type"] = "quorum" if "quorum" in broker else "classic"
    assert await application(broker_for(url, **settings)) == {
        "brew": "2 cups",
        "wipe": "clean",
        "refund": "RuntimeError",
        "left": (0, 0, 1),
    }
