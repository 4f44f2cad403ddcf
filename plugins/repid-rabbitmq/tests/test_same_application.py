"""The same application in memory and on both types of queues: all that differs is the configuration."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from repid_core import (
    INJECTED,
    Connection,
    Job,
    JobFailedError,
    MessageDependency,
    Queue,
    Repid,
    Router,
    Worker,
)

SECOND = timedelta(seconds=1)


async def failure(job: Job[Any]) -> str | None:
    with pytest.raises(JobFailedError):
        await job.wait(timeout=5)
    result = await job.result
    return None if result is None else result.exception


async def application(settings: dict[str, Any]) -> dict[str, Any]:
    """An actor that fails at first, one that runs later, one whose failure is final; what became of them."""
    app = Repid(Connection.from_config({"message_broker": settings, "results_bucket_broker": "memory"}, environ={}))
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
        await Queue("bar").declare()
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


@pytest.mark.wheel
@pytest.mark.parametrize("queue_type", [None, "classic", "quorum"])
async def test_the_same_application_on(queue_type: str | None, request: pytest.FixtureRequest) -> None:
    settings = {"backend": "memory"}
    if queue_type is not None:
        url = request.getfixturevalue("rabbitmq_url")
        settings = {"url": url, "prefix": f"test-{uuid.uuid4().hex[:12]}", "queue_type": queue_type}
    assert await application(settings) == {
        "brew": "2 cups",
        "wipe": "clean",
        "refund": "RuntimeError",
        "left": (0, 0, 1),
    }
