"""A message in somebody's hand, and the one settlement that it gets."""

from __future__ import annotations

from contextlib import aclosing, suppress
from datetime import timedelta
from typing import Any

import pytest

from repid_core import (
    DeathReason,
    Envelope,
    InvalidJobError,
    Job,
    Message,
    MessageCategory,
    MessageDependency,
    Queue,
    QueueStats,
    UnsupportedFeatureError,
)
from repid_core.data import Limits
from repid_core.errors import ActorEnded, AlreadySettledError, UsageError

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
DEAD, DELAYED, NORMAL = MessageCategory.DEAD, MessageCategory.DELAYED, MessageCategory.NORMAL


async def waiting(category: MessageCategory = NORMAL) -> list[Envelope]:
    broker = Queue().connection.message_broker
    return [seen.envelope async for seen in broker.browse("default", category)]


async def only(category: MessageCategory = NORMAL) -> Envelope:
    [envelope] = await waiting(category)
    return envelope


@pytest.fixture
async def inbox(connection):
    """Gives the next message of a category; holds it until the test ends."""
    opened = []

    async def get(category: MessageCategory = NORMAL) -> Message:
        messages = Queue().get_messages(category=category)
        opened.append(messages)
        return await anext(messages)

    yield get
    for messages in opened:
        await messages.aclose()


@pytest.fixture
async def die(inbox):
    """Sends a job straight to DEAD."""

    async def kill(**options: Any) -> Job[Any]:
        job: Job[Any] = Job("act", **options)
        await job.enqueue()
        message = await inbox(DELAYED if job.is_deferred else NORMAL)
        await message.nack("no such user")
        return job

    return kill


class TestSettling:
    async def test_ack_removes_it(self, inbox):
        await Job("act").enqueue()
        await (await inbox()).ack()
        assert await Queue().stats() == QueueStats(0, 0, 0, 0)

    async def test_nack_sends_it_to_dead_with_a_reason_and_a_text(self, inbox, clock):
        await Job("act").enqueue()
        await (await inbox()).nack("no such user")
        dead = await inbox(DEAD)
        assert dead.death is not None
        assert (dead.death.reason, dead.death.error, dead.death.at) == (DeathReason.NACKED, "no such user", clock.now())

    async def test_reject_puts_it_back_with_nothing_counted(self, inbox):
        await Job("act", retries=2).enqueue()
        before = await only()
        await (await inbox()).reject()
        assert await only() == before

    @pytest.mark.parametrize("first", ["ack", "nack", "reject", "retry", "force_retry", "reschedule"])
    @pytest.mark.parametrize("second", ["ack", "nack", "reject", "retry", "force_retry", "reschedule"])
    async def test_the_first_settlement_wins(self, inbox, first, second):
        """M2"""
        await Job("act", retries=5).enqueue()
        message = await inbox()
        await getattr(message, first)()
        before = await Queue().stats()
        with pytest.raises(AlreadySettledError, match="settled already: only the first ack, nack, reject or requeue counts"):
            await getattr(message, second)()
        assert await Queue().stats() == before


class TestRetry:
    async def test_it_comes_again_after_the_given_time_and_counts(self, inbox, clock):
        await Job("act", retries=2).enqueue()
        await (await inbox()).retry(5 * SECOND)
        envelope = await only(DELAYED)
        assert (envelope.due, envelope.parameters.tried) == (clock.now() + 5 * SECOND, 1)

    async def test_by_default_as_the_default_policy_says(self, inbox, clock):
        await Job("act", retries=2).enqueue()
        await (await inbox()).retry()
        due = (await only(DELAYED)).due
        assert due is not None
        assert timedelta(0) < due - clock.now() <= timedelta(minutes=1)

    async def test_not_more_often_than_the_job_allows(self, inbox, clock):
        await Job("act", retries=1).enqueue()
        await (await inbox()).retry(SECOND)
        await clock.advance(SECOND)
        message = await inbox()
        with pytest.raises(UsageError, match=r"message '.*' has no retries left: use force_retry\(\), or nack\(\)"):
            await message.retry(SECOND)
        await message.force_retry(SECOND)
        assert (await only(DELAYED)).parameters.tried == 1, "force_retry counts nothing"

    async def test_the_ttl_counts_anew(self, inbox, clock):
        """M8"""
        await Job("act", retries=1, ttl=DAY).enqueue()
        await clock.advance(DAY / 2)
        await (await inbox()).retry(SECOND)
        assert (await only(DELAYED)).expires_at == clock.now() + SECOND + DAY

    @pytest.mark.parametrize("how", ["retry", "force_retry"])
    @pytest.mark.parametrize(
        ("next_retry", "error", "sentence"),
        [
            (-SECOND, UsageError, "next_retry=.*: give a timedelta that is not negative"),
            (5, UsageError, "next_retry=5: give a timedelta"),
            (8 * DAY, InvalidJobError, "holds messages for 7 days, 0:00:00 at most"),
        ],
    )
    async def test_absurd_times_are_refused_and_it_can_still_be_settled(
        self, connection, inbox, how, next_retry, error, sentence
    ):
        connection.message_broker.limits = Limits(max_delay=7 * DAY)
        await Job("act", retries=1).enqueue()
        message = await inbox()
        with pytest.raises(error, match=sentence):
            await getattr(message, how)(next_retry)
        await message.ack()

    @pytest.mark.parametrize("how", ["retry", "force_retry"])
    async def test_a_broker_that_cannot_delay(self, connection, inbox, how):
        await Job("act", retries=1).enqueue()
        message = await inbox()
        connection.message_broker.capabilities = frozenset()
        with pytest.raises(UnsupportedFeatureError, match="DELAY"):
            await getattr(message, how)(SECOND)
        await message.ack()

    @pytest.mark.parametrize("how", ["retry", "force_retry"])
    async def test_dead_and_delayed_ones_are_not_running(self, inbox, die, how):
        await die(retries=3)
        dead = await inbox(DEAD)
        with pytest.raises(UsageError, match=r"a dead message is not running: reschedule\(\) it instead"):
            await getattr(dead, how)()
        await Job("act", retries=3, deferred_by=DAY).enqueue()
        delayed = await inbox(DELAYED)
        with pytest.raises(UsageError, match="a delayed message is not running"):
            await getattr(delayed, how)()


class TestReschedule:
    async def test_redrives_a_dead_one_from_the_start(self, inbox, die, clock):
        """M12: it is ready at once, with no attempt counted and its TTL anew."""
        await die(id_="x", retries=3, ttl=DAY, args=[1])
        await clock.advance(10 * DAY)
        await (await inbox(DEAD)).reschedule()
        envelope = await only()
        assert (envelope.key.id_, envelope.due, envelope.parameters.tried) == ("x", None, 0)
        assert envelope.expires_at == clock.now() + DAY
        assert (await Queue().stats()).dead == 0

    async def test_a_redriven_one_runs(self, inbox, die, router, work):
        """W9: its arguments have waited for it."""

        @router.actor
        async def act(a: int) -> int:
            return a

        job = await die(args={"a": 7})
        await (await inbox(DEAD)).reschedule()
        await work(router)
        assert await job.wait(1) == 7

    async def test_a_dead_recurring_one_begins_again_at_its_next_time(self, inbox, die, clock):
        """W7"""
        start = clock.now()
        await die(deferred_by=timedelta(hours=1))
        await clock.advance(timedelta(hours=5, minutes=30))
        await (await inbox(DEAD)).reschedule()
        assert (await only(DELAYED)).due == start + timedelta(hours=6)

    async def test_a_delayed_one_runs_at_once(self, inbox, clock):
        await Job("act", deferred_until=clock.now() + DAY).enqueue()
        await (await inbox(DELAYED)).reschedule()
        assert (await only()).due is None

    async def test_a_ready_recurring_one_skips_to_its_next_time(self, inbox, clock):
        start = clock.now()
        await Job("act", deferred_by=timedelta(hours=1)).enqueue()
        await clock.advance(timedelta(hours=1))
        await (await inbox()).reschedule()
        assert (await only(DELAYED)).due == start + timedelta(hours=2)

    async def test_redriving_onto_a_live_id(self, inbox, die):
        """M14"""
        await die(id_="x")
        await Job("act", id_="x").enqueue()
        dead = await inbox(DEAD)
        with pytest.raises(Exception, match="a job with id 'x' is ready already"):
            await dead.reschedule()
        assert (await Queue().stats()).ready == 1


class TestInAnActor:
    """`MessageDependency`: what it says, and that leaving by it is checked like the rest."""

    async def test_it_shows_the_running_message(self, router, work):
        seen: list[Any] = []

        @router.actor
        async def act(message: MessageDependency, a: int) -> None:
            seen.extend((message.key.id_, message.headers, message.raw_payload, message.parameters.retries, message.category))

        await Job("act", id_="x", args={"a": 1}, use_args_bucketer=False, headers={"h": "v"}, retries=2).enqueue()
        await work(router)
        assert seen == ["x", {"h": "v"}, b'{"a":1}', 2, NORMAL]

    async def test_settling_ends_the_actor_by_no_ordinary_exception(self, router, work):
        """`except Exception` in an actor does not catch it."""
        assert not issubclass(ActorEnded, Exception)
        after: list[str] = []

        @router.actor
        async def act(message: MessageDependency) -> None:
            try:
                message.ack()
            except Exception:  # noqa: BLE001 — the point of the test
                after.append("caught")
            after.append("went on")

        await Job("act").enqueue()
        assert (await work(router)).succeeded == 1
        assert not after

    async def test_an_actor_that_catches_it_cannot_settle_twice(self, router, work):
        caught: list[str] = []

        @router.actor
        async def act(message: MessageDependency) -> None:
            with suppress(ActorEnded):
                message.nack("first")
            try:
                message.ack()
            except AlreadySettledError as error:
                caught.append(str(error))

        await Job("act").enqueue()
        assert (await work(router)).nacked == 1
        assert "settled already" in caught[0]
        assert (await Queue().stats()).dead == 1

    async def test_retry_by_the_actors_own_policy(self, router, work, clock):
        @router.actor(retry_policy=lambda attempt, error: attempt * DAY)
        async def act(message: MessageDependency) -> None:
            message.retry()

        await Job("act", retries=2).enqueue()
        assert (await work(router)).retried == 1
        envelope = await only(DELAYED)
        assert (envelope.due, envelope.parameters.tried) == (clock.now() + DAY, 1)

    async def test_a_retry_with_none_left_fails_the_attempt(self, router, work):
        @router.actor
        async def act(message: MessageDependency) -> None:
            message.retry()

        job: Job[Any] = Job("act")
        await job.enqueue()
        assert (await work(router)).failed == 1
        bucket = await job.result
        assert bucket is not None
        assert bucket.exception == "UsageError"
        assert "no retries left" in str(bucket.traceback)

    async def test_a_delay_that_the_broker_cannot_keep_fails_the_attempt(self, connection, router, work):
        connection.message_broker.limits = Limits(max_delay=SECOND)

        @router.actor
        async def act(message: MessageDependency) -> None:
            message.force_retry(DAY)

        await Job("act").enqueue()
        assert (await work(router)).failed == 1

    async def test_a_synchronous_actor(self, router, work):
        """From its thread."""

        @router.actor
        def act(message: MessageDependency) -> None:
            message.set_result(3)
            message.ack()

        job: Job[Any] = Job("act")
        await job.enqueue()
        await work(router)
        assert await job.wait(1) == 3


async def test_messages_of_a_closed_iteration_cannot_be_settled(connection):
    await Job("act").enqueue()
    async with aclosing(Queue().get_messages()) as messages:
        message = await anext(messages)
    with pytest.raises(AlreadySettledError):
        await message.ack()
    assert (await Queue().stats()).ready == 1
