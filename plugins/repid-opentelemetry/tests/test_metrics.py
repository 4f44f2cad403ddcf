"""What is measured, by the SDK's reader."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.semconv._incubating.metrics import messaging_metrics as conventional

from repid_core import Connection, Job, Router
from repid_core.errors import DuplicateJobError
from repid_opentelemetry.conventions import BOUNDARIES
from telemetry import Telemetry, Watch, Work

OURS = {"messaging.system": "repid", "messaging.destination.name": "mail"}


def values(telemetry: Telemetry, metric: str) -> list[tuple[dict[str, Any], int]]:
    return [(attributes, getattr(point, "value", None) or point.count) for attributes, point in telemetry.points(metric)]


async def test_what_is_sent_and_received(
    connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work
) -> None:
    watch()

    @router.actor(queue="mail")
    async def act() -> None: ...

    await connection.enqueue_many([Job("act", queue="mail", id_=str(number)) for number in range(3)])
    with pytest.raises(DuplicateJobError):
        await Job("act", queue="mail", id_="1").enqueue()
    await work(3)
    sent = {**OURS, "messaging.operation.name": "enqueue"}
    refused = {**sent, "error.type": "repid_core.errors.DuplicateJobError"}
    assert values(telemetry, conventional.MESSAGING_CLIENT_SENT_MESSAGES) == [(sent, 3), (refused, 1)]
    assert values(telemetry, conventional.MESSAGING_CLIENT_CONSUMED_MESSAGES) == [
        ({**OURS, "messaging.operation.name": "receive"}, 3)
    ]
    kind = {"messaging.operation.type": "send"}
    operations = values(telemetry, conventional.MESSAGING_CLIENT_OPERATION_DURATION)
    assert operations == [({**sent, **kind}, 1), ({**refused, **kind}, 1)]


async def test_runs(connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work) -> None:
    watch(system="rabbitmq")

    @router.actor(queue="mail")
    async def act(number: int) -> None:
        if number == 0:
            raise LookupError

    await connection.enqueue_many([Job("act", queue="mail", args=[number]) for number in range(3)])
    await work(3)
    ours = {**OURS, "messaging.system": "rabbitmq", "messaging.operation.name": "process", "repid.actor": "act"}
    points = telemetry.points(conventional.MESSAGING_PROCESS_DURATION)
    found = sorted((attributes.get("error.type", ""), point.count) for attributes, point in points)
    assert found == [("", 2), ("LookupError", 1)]
    for attributes, point in points:
        assert attributes.items() >= ours.items()
        assert point.explicit_bounds == BOUNDARIES
        assert 0 < point.sum < 60, "it counts in seconds"


async def test_none(connection: Connection, telemetry: Telemetry, watch: Watch, router: Router, work: Work) -> None:
    watch(metrics=False)

    @router.actor
    async def act() -> None: ...

    await Job("act").enqueue()
    await work()
    assert telemetry.reader.get_metrics_data() is None
    assert telemetry.named("process default")
