"""What is counted, and what is measured."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from repid_core import Connection, EnqueueManyError, Job, MessageDependency, Queue, Router, Worker
from repid_core.data import Death
from repid_core.errors import CorruptMessageError, DeliveryLostError, DuplicateJobError
from repid_core.memory.consumer import InMemoryDelivery
from repid_core.testing.clock import ManualClock
from repid_prometheus import PrometheusMiddleware
from scraping import Scraped, Watch, Work

SECOND = timedelta(seconds=1)


async def test_enqueued(connection: Connection, watch: Watch, scraped: Scraped) -> None:
    watch()
    await Job("act", id_="x").enqueue()
    with pytest.raises(DuplicateJobError):
        await Job("act", id_="x").enqueue()
    await Job("act", id_="x", on_duplicate="keep").enqueue()
    await Job("act", id_="x", on_duplicate="replace").enqueue()
    with pytest.raises(EnqueueManyError):
        await connection.enqueue_many([Job("act"), Job("act", id_="x")])
    outcomes = {
        outcome: scraped.value("repid_jobs_enqueued_total", outcome=outcome) for outcome in ("new", "kept", "replaced", "failed")
    }
    assert outcomes == {"new": 2, "kept": 1, "replaced": 1, "failed": 2}


async def test_a_job_that_succeeds(connection: Connection, watch: Watch, scraped: Scraped, router: Router, work: Work) -> None:
    watch()

    @router.actor
    async def act() -> None: ...

    await connection.enqueue_many([Job("act"), Job("act")])
    await work(2)
    assert scraped.value("repid_jobs_started_total") == 2
    assert scraped.value("repid_jobs_finished_total", outcome="succeeded") == 2
    assert scraped.value("repid_job_run_seconds_count") == scraped.value("repid_job_wait_seconds_count") == 2
    assert not scraped.value("repid_jobs_retried_total")
    assert not scraped.value("repid_jobs_dead_total")


async def test_a_retry_and_a_death(watch: Watch, scraped: Scraped, router: Router, work: Work) -> None:
    watch()

    @router.actor(retry_policy=lambda attempt, error: timedelta(0))
    async def act() -> None:
        raise LookupError

    await Job("act", retries=2).enqueue()
    await work(3)
    assert scraped.value("repid_jobs_started_total") == 3
    assert scraped.value("repid_jobs_finished_total", outcome="retried") == scraped.value("repid_jobs_retried_total") == 2
    assert scraped.value("repid_jobs_finished_total", outcome="failed") == scraped.value("repid_jobs_dead_total") == 1
    assert scraped.value("repid_job_run_seconds_count") == 3


async def test_deaths_without_a_call(watch: Watch, scraped: Scraped, router: Router, work: Work, clock: ManualClock) -> None:
    watch()

    @router.actor
    async def act(number: int) -> None: ...

    await Job("act", args=["none"]).enqueue()
    await Job("act", args=[1], ttl=SECOND).enqueue()
    await clock.advance(2 * SECOND)
    await work(2)
    assert scraped.value("repid_jobs_finished_total", outcome="invalid") == 1
    assert scraped.value("repid_jobs_finished_total", outcome="expired") == 1
    assert scraped.value("repid_jobs_dead_total") == 2
    assert not scraped.value("repid_jobs_started_total")


async def test_deaths_by_hand(watch: Watch, scraped: Scraped, router: Router, work: Work) -> None:
    watch()

    @router.actor
    async def act(message: MessageDependency) -> None:
        message.nack()

    await Job("act").enqueue()
    await work()
    assert scraped.value("repid_jobs_finished_total", outcome="nacked") == 1
    await Job("act").enqueue()
    async for message in Queue().get_messages():
        await message.nack()
        break
    assert scraped.value("repid_jobs_dead_total") == 2


async def test_one_that_is_lost_has_not_died(
    watch: Watch, scraped: Scraped, router: Router, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    nack, lost = InMemoryDelivery.nack, iter([True, False])

    async def lose_once(delivery: InMemoryDelivery, death: Death) -> None:
        if next(lost):
            await delivery.reject()
            raise DeliveryLostError("the lease is over")
        await nack(delivery, death)

    watch()

    @router.actor
    async def act() -> None:
        raise LookupError

    monkeypatch.setattr(InMemoryDelivery, "nack", lose_once)
    await Job("act").enqueue()
    await work()
    assert scraped.value("repid_jobs_finished_total", outcome="lost") == 1
    assert scraped.value("repid_jobs_finished_total", outcome="failed") == scraped.value("repid_jobs_dead_total") == 1


async def test_what_cannot_be_decoded(
    watch: Watch, scraped: Scraped, router: Router, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupt(_: object) -> Any:
        raise CorruptMessageError("no JSON")

    watch()

    @router.actor
    async def act() -> None: ...

    await Job("act").enqueue()
    monkeypatch.setattr(InMemoryDelivery, "envelope", property(corrupt))
    await work()
    unknown = {"queue": "unknown", "topic": "unknown"}
    assert scraped.value("repid_jobs_finished_total", outcome="invalid", **unknown) == 1
    assert scraped.value("repid_jobs_dead_total", **unknown) == 1


async def test_waiting_counts_from_when_the_job_is_due(
    watch: Watch, scraped: Scraped, router: Router, work: Work, clock: ManualClock
) -> None:
    watch(wait_buckets=(1, 5, 60))

    @router.actor
    async def act() -> None: ...

    await Job("act").enqueue()
    await clock.advance(4 * SECOND)
    await work()
    assert scraped.value("repid_job_wait_seconds_sum") == 4
    await Job("act", deferred_until=clock.now() + 100 * SECOND).enqueue()
    await clock.advance(102 * SECOND)
    await work()
    assert scraped.value("repid_job_wait_seconds_sum") == 6
    assert [scraped.value("repid_job_wait_seconds_bucket", le=le) for le in ("1.0", "5.0", "60.0", "+Inf")] == [0, 2, 2, 2]


async def test_a_retry_waits_from_the_end_of_its_delay(
    watch: Watch, scraped: Scraped, router: Router, work: Work, clock: ManualClock
) -> None:
    watch()

    @router.actor(retry_policy=lambda attempt, error: 100 * SECOND)
    async def act() -> None:
        raise LookupError

    await Job("act", retries=1).enqueue()
    await work()
    await clock.advance(103 * SECOND)
    await work()
    assert scraped.value("repid_job_wait_seconds_sum") == 3


async def test_labels_are_few(watch: Watch, scraped: Scraped, connection: Connection, router: Router, work: Work) -> None:
    """Whatever producers call their jobs."""
    watch(max_series=3)

    @router.actor
    async def act() -> None:
        raise LookupError

    await Job("act").enqueue()
    await connection.enqueue_many([Job(f"act{number}", headers={"id": str(number)}) for number in range(9)])
    await work()
    assert scraped.value("repid_jobs_enqueued_total", topic="act1", outcome="new") == 1
    assert scraped.value("repid_jobs_enqueued_total", topic="act2", outcome="new") is None
    assert scraped.value("repid_jobs_enqueued_total", queue="other", topic="other", outcome="new") == 7
    assert scraped.value("repid_jobs_dead_total") == 1
    assert scraped.labels() == {"queue", "topic", "outcome", "state", "le"}


def test_middlewares_of_a_registry_share_its_metrics(registry: CollectorRegistry) -> None:
    PrometheusMiddleware(registry=registry)
    PrometheusMiddleware(registry=registry, queue_depth=False)
    with pytest.raises(ValueError, match="they share their metrics: give both the same, or a registry each"):
        PrometheusMiddleware(registry=registry, run_buckets=(1, 2))


async def test_two_connections_add_up(
    watch: Watch, scraped: Scraped, connection: Connection, registry: CollectorRegistry, router: Router
) -> None:
    watch()

    @router.actor
    async def act() -> None: ...

    from repid_core import InMemoryMessageBroker

    async with Connection(InMemoryMessageBroker(), middlewares=[PrometheusMiddleware(registry=registry)]) as other:
        for one in (connection, other):
            await one.enqueue(Job("act"))
            await Worker([router], messages_limit=1, connection=one, handle_signals=()).run()
    assert scraped.value("repid_jobs_started_total") == 2
