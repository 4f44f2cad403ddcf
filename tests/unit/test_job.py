"""What a producer holds: arguments that are checked before anything is stored or sent, receipts, results and cancelling."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from textwrap import dedent
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import attrs
import pytest

from repid_core import (
    INJECTED,
    BucketBroker,
    Capability,
    Config,
    Connection,
    ConversionError,
    Depends,
    DuplicateJobError,
    Enqueued,
    Envelope,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    InvalidActorError,
    InvalidJobError,
    Job,
    JobFailedError,
    MessageCategory,
    MessageDependency,
    Priority,
    Queue,
    QueueStats,
    Repid,
    ResultTimeoutError,
    Router,
    UnsupportedFeatureError,
)
from repid_core.data import Limits
from repid_core.errors import (
    NoConnectionError,
    PayloadTooLargeError,
    SerializationError,
    UsageError,
    WrongEventLoopError,
)
from repid_core.json_serializer import JsonSerializer

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
UTC_NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
THE_END = datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))


class PlainBroker(InMemoryMessageBroker):
    """A broker that promises no more than the minimum."""

    capabilities = frozenset()


async def waiting(queue: str = "default") -> list[Envelope]:
    """The messages of a queue, ready ones first."""
    broker = Queue(queue).connection.message_broker
    return [
        seen.envelope
        for category in (MessageCategory.NORMAL, MessageCategory.DELAYED)
        async for seen in broker.browse(queue, category)
    ]


async def only(queue: str = "default") -> Envelope:
    [envelope] = await waiting(queue)
    return envelope


def stored(broker: BucketBroker | None) -> set[str]:
    """The ids that an in-memory bucket broker holds."""
    assert isinstance(broker, InMemoryBucketBroker)
    return set(broker._buckets)


async def assert_untouched(connection: Connection) -> None:
    """Nothing is stored and nothing is sent."""
    assert await connection.message_broker.queue_stats("default") == QueueStats(0, 0, 0, 0)
    for broker in {connection.args_bucket_broker, connection.results_bucket_broker} - {None}:
        assert not stored(broker)


class TestArguments:
    """Each wrong argument is refused when the job is made, in a sentence that names it."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({"name": "1st"}, r"actor name '1st' is not valid: start with an ASCII letter or '_', and go on with up to 127 of"),
            ({"name": ""}, r"actor name '' is not valid"),
            ({"name": "naïve"}, r"actor name 'naïve' is not valid"),
            ({"name": "a" * 129}, r"actor name 'a+' is not valid"),
            ({"name": None}, r"actor name None is not valid"),
            ({"queue": "a b"}, r"queue name 'a b' is not valid: start with an ASCII letter"),
            ({"queue": 3}, r"queue name 3 is not valid"),
            ({"priority": 4}, r"priority=4: choose Priority\.LOW, MEDIUM or HIGH"),
            ({"priority": "HIGH"}, r"priority='HIGH': choose Priority\.LOW, MEDIUM or HIGH"),
            ({"priority": [9]}, r"priority=\[9\]: choose"),
            ({"id_": ""}, r"id_ '' is not valid: use 1 to 256 of ASCII letters, digits, '\.', '_', ':' and '-'"),
            ({"id_": ".."}, r"id_ '\.\.' is not valid: .* not dots alone"),
            ({"id_": "a/b"}, r"id_ 'a/b' is not valid"),
            ({"id_": "a" * 257}, r"id_ 'a+' is not valid"),
            ({"id_": 7}, r"id_ 7 is not valid"),
            ({"args_id": "ä"}, r"args_id 'ä' is not valid"),
            ({"result_id": "a b"}, r"result_id 'a b' is not valid"),
            ({"args_id": "x", "result_id": "x"}, r"args_id and result_id are both 'x': the result would overwrite the arguments"),
            ({"deferred_until": "tomorrow"}, r"deferred_until='tomorrow': give a datetime"),
            ({"deferred_until": 3600}, r"deferred_until=3600: give a datetime"),
            ({"deferred_until": THE_END}, r"is out of range: choose one in the years 2 to"),
            (
                {"deferred_until": datetime(9900, 1, 1, tzinfo=UTC), "ttl": 36525 * DAY},
                r"deferred_until=.*: choose a time before",
            ),
            ({"deferred_by": 60}, r"deferred_by=60: give a timedelta, such as timedelta\(seconds=30\)"),
            ({"deferred_by": -SECOND}, r"deferred_by=.*: give at least 0:00:01 and at most a hundred years"),
            ({"deferred_by": timedelta(milliseconds=999)}, r"deferred_by=.*: give at least 0:00:01 and at most"),
            ({"deferred_by": 36526 * DAY}, r"deferred_by=.*: give at least 0:00:01 and at most a hundred years"),
            ({"deferred_by": DAY, "cron": "@daily"}, r"cron"),
            ({"deferred_by": DAY, "cron": "0 0 * * *"}, r"deferred_by=.* and cron='0 0 \* \* \*': a job recurs by one of them"),
            ({"cron": "61 * * * *"}, r"cron line '61 \* \* \* \*' is not valid"),
            ({"cron": "nonsense"}, r"cron line 'nonsense' is not valid"),
            ({"cron": "0 0 30 2 *"}, r"cron line '0 0 30 2 \*' is not valid"),
            ({"cron": 5}, r"cron line 5 is not valid: give text such as"),
            ({"cron": "0 0 * * *", "timezone": "Mars/Olympus"}, r"time zone 'Mars/Olympus' is not known here: use an IANA name"),
            ({"timezone": "Europe/Berlin"}, r"timezone='Europe/Berlin' is for cron lines, and there is none"),
            ({"retries": -1}, r"retries=-1: give a whole number, 0 or more"),
            ({"retries": 1.5}, r"retries=1\.5: give a whole number"),
            ({"retries": True}, r"retries=True: give a whole number"),
            ({"retries": 10**10}, r"retries=10000000000: give a whole number, 0 or more, and less than 2,147,483,648"),
            ({"timeout": timedelta(0)}, r"timeout=.*: give at least 0:00:00\.001000"),
            ({"timeout": None}, r"timeout=None: give a timedelta"),
            ({"timeout": 600}, r"timeout=600: give a timedelta"),
            ({"timeout": timedelta.max}, r"timeout=.* at most a hundred years"),
            ({"ttl": timedelta(0)}, r"ttl=.*: give at least"),
            ({"ttl": -DAY}, r"ttl=.*: give at least"),
            ({"args_ttl": timedelta(0)}, r"args_ttl=.*: give at least 0:00:01"),
            ({"result_ttl": -SECOND}, r"result_ttl=.*: give at least 0:00:01"),
            ({"args_id": "x", "args": {}, "use_args_bucketer": False}, r"args_id='x' asks for an args bucket, and .* for none"),
            ({"headers": {"a": 1}}, r"headers=\{'a': 1\}: give a mapping whose names and values are text"),
            ({"headers": {1: "a"}}, r"headers=\{1: 'a'\}: give a mapping"),
            ({"headers": [("a", "b")]}, r"headers=\[\('a', 'b'\)\]: give a mapping"),
            ({"on_duplicate": "ignore", "id_": "x"}, r"on_duplicate='ignore': choose 'raise', 'keep' or 'replace'"),
            ({"on_duplicate": [], "id_": "x"}, r"on_duplicate=\[\]: choose"),
            ({"on_duplicate": "keep"}, r"on_duplicate='keep' needs an id_ of your own: a generated one is always new"),
            ({"connection": "redis://"}, r"connection='redis://': give a Connection"),
        ],
    )
    def test_wrong_ones(self, arguments: dict[str, Any], sentence: str):
        with pytest.raises(InvalidJobError, match=sentence) as caught:
            Job(**{"name": "act", **arguments})
        assert isinstance(caught.value, ValueError)

    def test_defaults(self):
        """As the reference document says."""
        job: Job[Any] = Job("act")
        assert (job.name, job.queue.name, job.priority) == ("act", "default", Priority.MEDIUM)
        assert (job.id_, job.retries, job.timeout, job.ttl) == (None, 0, timedelta(minutes=10), None)
        assert (job.args, job.args_ttl, job.result_ttl) == (None, None, DAY)
        assert (job.use_args_bucketer, job.store_result, job.on_duplicate) == (None, None, "raise")
        assert not job.is_unique
        assert not job.is_deferred
        assert not job.is_overdue

    def test_what_it_says_of_itself(self):
        assert Job("act", id_="mine").is_unique
        assert Job("act", deferred_until=UTC_NOON).is_deferred
        assert Job("act", deferred_by=SECOND).is_deferred
        assert Job("act", cron="* * * * *").is_deferred
        assert repr(Job("act", queue="mail", id_="mine")) == "Job('act', queue='mail', id_='mine')"

    def test_the_queue_as_an_object(self):
        assert Job("act", queue=Queue("mail")).queue.name == "mail"

    def test_making_one_needs_no_connection_and_no_loop_and_using_it_does(self):
        """The error says what to do."""
        job: Job[Any] = Job("act", args=[1])
        said = r"no connection in reach: pass `connection=…`, or make the call inside `async with Repid\(connection\)\.magic"
        for use in (job.enqueue, job.wait, job.cancel, job.queue.stats):
            with pytest.raises(NoConnectionError, match=said):
                asyncio.run(use())
        with pytest.raises(NoConnectionError, match=said):
            _ = job.result


class TestIds:
    async def test_generated_ones_are_uuid4_and_the_message_has_a_new_one_at_every_enqueue(self, connection):
        job: Job[Any] = Job("act", args=[1])
        receipts = [await job.enqueue(), await job.enqueue()]
        envelopes = await waiting()
        assert [envelope.key.id_ for envelope in envelopes] == [receipt.id_ for receipt in receipts]
        assert receipts[0].id_ != receipts[1].id_
        assert {envelope.parameters.result_id for envelope in envelopes} == {job.result_id}
        args_ids = {str(envelope.args_id) for envelope in envelopes}
        assert len(args_ids) == 2, "two messages share a bucket that the first of them deletes"
        for id_ in (*args_ids, *(receipt.id_ for receipt in receipts), job.result_id):
            parsed = uuid.UUID(id_)
            assert (parsed.version, parsed.variant, str(parsed)) == (4, uuid.RFC_4122, id_)

    def test_a_thousand_generated_ones_differ(self):
        ids = {Job[Any]("act").result_id for _ in range(1000)}
        assert len(ids) == 1000
        assert all(uuid.UUID(id_).version == 4 for id_ in ids)

    async def test_the_args_id_that_it_shows_is_the_one_that_it_uses(self, connection):
        job: Job[Any] = Job("act", args=[1])
        shown = job.args_id
        await job.enqueue()
        assert (await only()).args_id == shown
        assert job.args_id != shown

    async def test_those_that_the_user_gave(self, connection):
        job: Job[Any] = Job("act", id_="m", args_id="a", result_id="r", args=[1])
        assert (await job.enqueue()).id_ == "m"
        envelope = await only()
        assert (envelope.key.id_, envelope.args_id, envelope.args_owned, envelope.parameters.result_id) == ("m", "a", False, "r")


class TestReceipts:
    async def test_new_replaced_and_kept(self, connection):
        """M14: the receipt says what became of it."""
        outcomes = [
            (await Job("act", id_="x", args=[i], on_duplicate=how).enqueue()).outcome
            for i, how in enumerate(("raise", "replace", "keep"))
        ]
        assert outcomes == [Enqueued.NEW, Enqueued.REPLACED, Enqueued.KEPT]
        assert (await connection.payloads.load_args(await only())) == [1]

    async def test_a_duplicate_is_named_with_its_state_and_the_ways_out(self, connection):
        await Job("act", id_="x", deferred_until=connection.clock.now() + DAY).enqueue()
        with pytest.raises(DuplicateJobError, match=r"'x' is delayed already: .* on_duplicate='keep' or 'replace'") as caught:
            await Job("act", id_="x").enqueue()
        assert (caught.value.id_, caught.value.state) == ("x", "delayed")

    @pytest.mark.parametrize("on_duplicate", ["raise", "keep"])
    async def test_one_that_is_not_taken_leaves_no_bucket(self, connection, on_duplicate):
        """W9: the bucket of a refused enqueue is deleted."""
        await Job("act", id_="x", args_id="first", args=[1]).enqueue()
        job: Job[Any] = Job("act", id_="x", args=[2], on_duplicate=on_duplicate)
        if on_duplicate == "raise":
            with pytest.raises(DuplicateJobError):
                await job.enqueue()
        else:
            await job.enqueue()
        assert stored(connection.args_bucket_broker) == {"first"}


class TestTimes:
    async def test_a_naive_datetime_is_local_time(self, connection, clock):
        local = clock.now().astimezone().replace(tzinfo=None) + timedelta(hours=1)
        await Job("act", deferred_until=local).enqueue()
        assert (await only()).due == clock.now() + timedelta(hours=1)

    async def test_an_aware_datetime_is_the_same_time_in_utc(self, connection, clock):
        elsewhere = (clock.now() + timedelta(hours=1)).astimezone(timezone(timedelta(hours=9)))
        await Job("act", deferred_until=elsewhere).enqueue()
        due = (await only()).due
        assert due == elsewhere
        assert due is not None
        assert due.tzinfo is UTC

    async def test_deferred_by_begins_after_one_interval_and_recurs(self, connection, clock):
        await Job("act", deferred_by=timedelta(minutes=5)).enqueue()
        envelope = await only()
        assert envelope.due == clock.now() + timedelta(minutes=5)
        assert envelope.parameters.recurrence is not None
        assert envelope.parameters.recurrence.interval == timedelta(minutes=5)

    async def test_cron_is_read_in_its_time_zone(self, connection):
        await Job("act", cron="30 8 * * *", timezone="Asia/Tokyo").enqueue()
        due = (await only()).due
        assert due == datetime(2030, 1, 2, 8, 30, tzinfo=ZoneInfo("Asia/Tokyo"))

    async def test_the_ttl_counts_from_the_due_time(self, connection, clock):
        """M8"""
        job: Job[Any] = Job("act", deferred_until=clock.now() + DAY, ttl=SECOND)
        assert not job.is_overdue
        await job.enqueue()
        assert (await only()).expires_at == clock.now() + DAY + SECOND
        await clock.advance(DAY + SECOND / 2)
        assert not job.is_overdue
        await clock.advance(SECOND)
        assert job.is_overdue

    async def test_later_than_the_broker_holds_is_refused_at_once(self, connection, clock):
        """M7: the declared `max_delay`."""
        connection.message_broker.limits = Limits(max_delay=7 * DAY)
        job: Job[Any] = Job("act", deferred_until=clock.now() + 8 * DAY, args=[1])
        with pytest.raises(
            InvalidJobError, match=r"due at 2030-01-09T12.*InMemoryMessageBroker holds messages for 7 days.*later"
        ):
            await job.enqueue()
        await assert_untouched(connection)


class TestCapabilities:
    """What the broker lacks is refused before anything is stored or sent."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({"deferred_until": UTC_NOON + DAY}, "does not support DELAY: leave out deferral, recurrence and retries"),
            ({"deferred_by": DAY}, "does not support DELAY"),
            ({"cron": "* * * * *"}, "does not support DELAY"),
            ({"retries": 1}, "does not support DELAY"),
            ({"priority": Priority.HIGH}, "does not support PRIORITY: leave the priority at MEDIUM"),
            ({"id_": "x", "on_duplicate": "replace"}, "does not support UNIQUE: leave on_duplicate at 'raise'"),
        ],
    )
    async def test_asked_for_and_missing(self, clock, arguments, sentence):
        async with Connection(PlainBroker(), InMemoryBucketBroker(), clock=clock) as connection:
            with pytest.raises(UnsupportedFeatureError, match=f"PlainBroker {sentence}"):
                await connection.enqueue(Job("act", args=[1], **arguments))
            with pytest.raises(UnsupportedFeatureError):
                await connection.enqueue_many([Job("act", args=[1]), Job("act", args=[1], **arguments)])
            await assert_untouched(connection)

    async def test_the_minimum_is_enough_for_a_plain_job(self, clock):
        async with Connection(PlainBroker(), clock=clock) as connection:
            await connection.enqueue(Job("act", id_="x", ttl=DAY, args=[1]))
            assert (await connection.message_broker.queue_stats("default")).ready == 1

    async def test_cancelling(self, clock):
        """M15"""
        async with Connection(PlainBroker(), clock=clock) as connection:
            job: Job[Any] = Job("act", id_="x", connection=connection)
            await job.enqueue()
            with pytest.raises(UnsupportedFeatureError, match="PlainBroker does not support CANCEL") as caught:
                await job.cancel()
            assert caught.value.capability is Capability.CANCEL
            assert (await connection.message_broker.queue_stats("default")).ready == 1


@attrs.frozen
class Point:
    x: int
    y: int


@dataclass
class Pair:
    x: int
    y: int


class TestPayload:
    @pytest.mark.parametrize(
        ("args", "decoded"),
        [
            ({"x": 1, "y": 2}, {"x": 1, "y": 2}),
            (Point(1, 2), {"x": 1, "y": 2}),
            (Pair(1, 2), {"x": 1, "y": 2}),
            ([1, 2], [1, 2]),
            ((1, 2), [1, 2]),
            ("text", "text"),
            (0, 0),
            ({}, {}),
            ([], []),
            (None, None),
            ({"at": UTC_NOON}, {"at": "2030-01-01T12:00:00+00:00"}),
        ],
    )
    @pytest.mark.parametrize("bucketer", [True, False])
    async def test_arguments_of_every_form_arrive(self, connection, args, decoded, bucketer):
        await Job("act", args=args, use_args_bucketer=bucketer).enqueue()
        envelope = await only()
        assert await connection.payloads.load_args(envelope) == decoded
        assert (envelope.args_id is not None) is (bucketer and args is not None)
        assert len(stored(connection.args_bucket_broker)) == (bucketer and args is not None)

    async def test_one_that_cannot_be_serialized_names_its_path(self, connection):
        job: Job[Any] = Job("act", args={"users": [{"name": "Alex", "socket": object()}]})
        with pytest.raises(SerializationError, match=r"\$\.users\[0\]\.socket: cannot serialize"):
            await job.enqueue()
        await assert_untouched(connection)

    async def test_a_payload_over_the_brokers_limit_names_both_sizes_and_the_way_out(self, clock):
        """M19"""
        async with Connection(InMemoryMessageBroker(max_payload=10), clock=clock) as connection:
            with pytest.raises(PayloadTooLargeError, match=r"102 bytes and the limit is 10: .*args bucket broker") as caught:
                await connection.enqueue(Job("act", args="x" * 100))
            assert (caught.value.size, caught.value.limit) == (102, 10)
            await assert_untouched(connection)

    async def test_a_bucket_over_the_stores_limit_is_refused_before_anything_is_sent(self, clock):
        async with Connection(InMemoryMessageBroker(), InMemoryBucketBroker(max_payload=100), clock=clock) as connection:
            with pytest.raises(PayloadTooLargeError, match="the limit is 100"):
                await connection.enqueue_many([Job("act"), Job("act", args="x" * 100)])
            await assert_untouched(connection)

    async def test_headers_travel(self, connection):
        headers = {"trace": "1"}
        job: Job[Any] = Job("act", headers=headers)
        headers["trace"] = "changed"
        await job.enqueue()
        assert (await only()).headers == {"trace": "1"}

    async def test_the_content_type_is_the_serializers(self, clock):
        class Shouting(JsonSerializer):
            content_type = "application/x-shout"

        async with Connection(InMemoryMessageBroker(), serializer=Shouting(), clock=clock) as connection:
            await connection.enqueue(Job("act", args=[1], connection=connection))
            [seen] = [s async for s in connection.message_broker.browse("default", MessageCategory.NORMAL)]
            assert seen.envelope.content_type == "application/x-shout"


class TestArgsBucket:
    @pytest.mark.parametrize(
        ("bucketer", "threshold", "in_bucket"),
        [(None, 0, True), (None, 7, True), (None, 8, False), (True, 1000, True), (False, 0, False)],
    )
    async def test_when_arguments_go_to_a_bucket(self, clock, bucketer, threshold, in_bucket):
        """By default if there is a broker for them and they reach the threshold; the arguments have 7 bytes here."""
        bucket_broker = InMemoryBucketBroker()
        connection = Connection(InMemoryMessageBroker(), bucket_broker, args_bucket_threshold=threshold, clock=clock)
        async with Repid(connection).magic(auto_disconnect=True):
            await Job("act", args={"a": 1}, use_args_bucketer=bucketer).enqueue()
            envelope = await only()
            assert (envelope.args_id is not None, envelope.args_owned) == (in_bucket, in_bucket)
            assert (len(envelope.payload), len(stored(bucket_broker))) == ((0, 1) if in_bucket else (7, 0))

    async def test_an_id_of_ones_own_asks_for_a_bucket(self, clock):
        """Whatever the threshold; and it is the user's own, so no worker deletes it."""
        bucket_broker = InMemoryBucketBroker()
        connection = Connection(InMemoryMessageBroker(), bucket_broker, args_bucket_threshold=1000, clock=clock)
        async with Repid(connection).magic(auto_disconnect=True):
            await Job("act", args_id="mine", args=[1]).enqueue()
            assert (await only()).args_owned is False
            assert stored(bucket_broker) == {"mine"}

    async def test_an_id_without_arguments_refers_to_what_is_there(self, connection):
        await Job("act", args_id="elsewhere").enqueue()
        envelope = await only()
        assert (envelope.args_id, envelope.payload, envelope.args_owned) == ("elsewhere", b"", False)
        assert not stored(connection.args_bucket_broker)

    @pytest.mark.parametrize(
        "arguments", [{"args": [1], "use_args_bucketer": True}, {"args_id": "x"}, {"args_id": "x", "args": [1]}]
    )
    async def test_asking_for_one_that_the_connection_lacks(self, clock, arguments):
        async with Connection(InMemoryMessageBroker(), clock=clock) as connection:
            said = r"has no args bucket broker: pass Connection\(args_bucket_broker=…\), or use_args_bucketer=False"
            with pytest.raises(UsageError, match=said):
                await connection.enqueue(Job("act", **arguments))
            await assert_untouched(connection)

    async def test_without_a_broker_arguments_travel_in_the_message(self, clock):
        connection = Connection(InMemoryMessageBroker(), clock=clock)
        async with Repid(connection).magic(auto_disconnect=True):
            await Job("act", args=[1]).enqueue()
            assert (await only()).payload == b"[1]"

    async def test_it_is_gone_after_args_ttl(self, connection, clock):
        await Job("act", args=[1], args_ttl=SECOND).enqueue()
        envelope = await only()
        await clock.advance(SECOND)
        with pytest.raises(ConversionError, match="gone"):
            await connection.payloads.load_args(envelope)


class TestResults:
    @pytest.mark.parametrize("store_result", [None, True])
    async def test_stored_by_default(self, connection, store_result):
        job: Job[Any] = Job("act", store_result=store_result, result_ttl=DAY)
        await job.enqueue()
        parameters = (await only()).parameters
        assert (parameters.result_id, parameters.result_ttl) == (job.result_id, DAY)

    async def test_not_stored_if_the_job_says_so(self, connection):
        job: Job[Any] = Job("act", store_result=False)
        await job.enqueue()
        assert (await only()).parameters.result_id is None
        with pytest.raises(UsageError, match="stores no result: leave out store_result=False"):
            await job.wait(1)
        with pytest.raises(UsageError, match="stores no result"):
            _ = job.result

    async def test_asking_for_one_that_the_connection_lacks(self, clock):
        said = r"has no results bucket broker: pass Connection\(results_bucket_broker=…\)"
        async with Connection(InMemoryMessageBroker(), InMemoryBucketBroker(), clock=clock) as connection:
            with pytest.raises(UsageError, match=said):
                await connection.enqueue(Job("act", args=[1], store_result=True))
            await assert_untouched(connection)
            job: Job[Any] = Job("act", connection=connection)
            await job.enqueue()
            with pytest.raises(UsageError, match=said):
                await job.wait(1)

    async def test_none_while_there_is_none(self, connection):
        job: Job[Any] = Job("act")
        assert await job.result is None

    @pytest.mark.parametrize("timeout", [SECOND, 1, 1.0])
    async def test_waiting_in_seconds_or_as_a_timedelta(self, connection, clock, timeout):
        """B4"""
        waiter = asyncio.create_task(Job("act").wait(timeout))
        await clock.advance(timedelta(milliseconds=999))
        assert not waiter.done()
        await clock.advance(timedelta(milliseconds=2))
        with pytest.raises(ResultTimeoutError, match="No result came in time"):
            await waiter
        assert issubclass(ResultTimeoutError, TimeoutError)

    @pytest.mark.parametrize("timeout", [0, -1, timedelta(-1)])
    async def test_waiting_no_time_at_all(self, connection, timeout):
        with pytest.raises(ResultTimeoutError):
            await Job("act").wait(timeout)

    @pytest.mark.parametrize("timeout", ["5", float("inf"), float("nan"), 1e300, timedelta.max])
    async def test_waiting_for_nonsense(self, connection, timeout):
        with pytest.raises(UsageError, match=r"wait\(timeout=.*\): give a timedelta or seconds, or None for ever"):
            await Job("act").wait(timeout)

    async def test_waiting_returns_as_soon_as_it_is_there(self, connection, router, running):
        @router.actor
        async def act() -> list[int]:
            await release.wait()
            return [1]

        release = asyncio.Event()
        job: Job[Any] = Job("act")
        await job.enqueue()
        async with running(router), asyncio.timeout(5):
            waiter = asyncio.create_task(job.wait())
            await asyncio.sleep(0)
            assert not waiter.done()
            release.set()
            assert await waiter == [1]

    async def test_a_failure_has_the_remote_traceback(self, connection, router, work):
        @router.actor
        async def act() -> None:
            raise LookupError("no such user")

        job: Job[Any] = Job("act")
        await job.enqueue()
        await work(router)
        with pytest.raises(JobFailedError, match="the job failed: LookupError") as caught:
            await job.wait(1)
        assert caught.value.bucket.exception == "LookupError"
        assert 'raise LookupError("no such user")' in str(caught.value)

    async def test_gone_after_result_ttl(self, connection, router, work, clock):
        @router.actor
        async def act() -> int:
            return 1

        job: Job[Any] = Job("act", result_ttl=SECOND)
        await job.enqueue()
        await work(router)
        bucket = await job.result
        assert bucket is not None
        assert bucket.expires_at == clock.now() + SECOND
        await clock.advance(SECOND)
        assert await job.result is None


class TestCancel:
    async def test_it_is_gone_and_nobody_waits_in_vain(self, connection):
        """M15 and W2: a failed result, exception "Cancelled"; W9: its args bucket is deleted."""
        job: Job[Any] = Job("act", args=[1])
        await job.enqueue()
        assert await job.cancel() is True
        assert await waiting() == []
        assert not stored(connection.args_bucket_broker)
        bucket = await job.result
        assert bucket is not None
        assert (bucket.success, bucket.exception) == (False, "Cancelled")
        with pytest.raises(JobFailedError, match="Cancelled"):
            await job.wait(1)
        assert await job.cancel() is False

    async def test_a_bucket_that_the_user_named_stays(self, connection):
        """W9"""
        job: Job[Any] = Job("act", args_id="mine", args=[1])
        await job.enqueue()
        await job.cancel()
        assert stored(connection.args_bucket_broker) == {"mine"}

    async def test_a_running_one_goes_on(self, connection, router, running):
        started, release = asyncio.Event(), asyncio.Event()

        @router.actor
        async def act() -> str:
            started.set()
            await release.wait()
            return "done"

        job: Job[Any] = Job("act")
        await job.enqueue()
        async with running(router):
            await started.wait()
            assert await job.cancel() is False
            release.set()
            assert await job.wait(5) == "done"

    async def test_a_recurring_one_comes_no_more(self, connection, clock):
        """W7"""
        job: Job[Any] = Job("act", deferred_by=SECOND)
        await job.enqueue()
        assert await job.cancel() is True
        assert await waiting() == []

    async def test_one_that_another_process_enqueued(self, connection):
        """By its ids; what this object does not know of it stays as it is."""
        await Job("act", id_="x", result_id="r").enqueue()
        other: Job[Any] = Job("act", id_="x", result_id="r", args=object())
        assert await other.cancel() is True
        bucket = await other.result
        assert bucket is not None
        assert bucket.exception == "Cancelled"
        await Job("act", id_="x").enqueue()
        assert await Job("act", id_="x").cancel() is True
        assert stored(connection.results_bucket_broker) == {"r"}

    async def test_one_without_a_result(self, connection):
        job: Job[Any] = Job("act", store_result=False)
        await job.enqueue()
        assert await job.cancel() is True
        assert not stored(connection.results_bucket_broker)

    async def test_one_that_was_never_enqueued(self, connection):
        with pytest.raises(UsageError, match=r"was not enqueued and has no id_ of its own: there is nothing to cancel"):
            await Job("act").cancel()


async def counted() -> int:
    return 7


class TestOf:
    """Jobs made by calling the actor's signature."""

    async def test_it_has_the_actors_name_and_queue_and_the_options(self, connection, router):
        @router.actor(name="welcome", queue="mail")
        async def greet(user_id: int, name: str = "you") -> str:
            return f"{user_id} {name}"

        job = Job.of(greet, retries=3, priority=Priority.HIGH)(1, name="Alex")
        assert (job.name, job.queue.name, job.retries, job.priority) == ("welcome", "mail", 3, Priority.HIGH)
        assert job.args == {"user_id": 1, "name": "Alex"}
        assert Job.of(greet, queue="other")(1).queue.name == "other"
        assert Job.of(greet)(1).args == {"user_id": 1}

    async def test_end_to_end_with_the_result_in_the_return_type(self, connection, router, work):
        @router.actor
        async def move(point: Point, *, by: timedelta) -> list[Point]:
            return [point, Point(point.x + int(by.total_seconds()), point.y)]

        job = Job.of(move)(Point(1, 2), by=SECOND)
        await job.enqueue()
        await work(router)
        assert await job.wait(1) == [Point(1, 2), Point(2, 2)]
        bucket = await job.result
        assert bucket is not None
        assert bucket.data == [{"x": 1, "y": 2}, {"x": 2, "y": 2}], "the bucket has plain data"

    async def test_a_synchronous_actor(self, connection, router, work):
        @router.actor
        def double(number: int) -> int:
            return 2 * number

        job = Job.of(double)(21)
        await job.enqueue()
        await work(router)
        assert await job.wait(1) == 42

    @pytest.mark.parametrize(
        ("args", "kwargs", "sentence"),
        [
            ((), {}, "user_id"),
            ((1, 2), {}, "2|two|many"),
            ((1,), {"nmae": "x"}, "nmae"),
            (("one",), {}, "user_id"),
            ((1,), {"user_id": 1}, "user_id"),
        ],
    )
    def test_wrong_calls_name_what_does_not_fit(self, router, args, kwargs, sentence):
        @router.actor
        async def greet(user_id: int, *, name: str = "") -> None: ...

        with pytest.raises(ConversionError, match=sentence) as caught:
            Job.of(greet)(*args, **kwargs)
        assert caught.value.problems

    def test_every_problem_is_listed(self, router):
        @router.actor
        async def act(a: int, b: list[int]) -> None: ...

        with pytest.raises(ConversionError) as caught:
            Job.of(act)("x", [1, "y"])  # type: ignore[arg-type, list-item]
        assert len(caught.value.problems) == 2
        assert "b[1]" in str(caught.value)

    async def test_injected_parameters_are_left_out(self, connection, router, work):
        """They take the default INJECTED, so that type checkers agree."""

        @router.actor
        async def act(
            a: int, message: MessageDependency = INJECTED, number: Annotated[int, Depends(counted)] = INJECTED
        ) -> list[Any]:
            return [a, message.key.topic, number]

        job = Job.of(act)(a=1)
        assert job.args == {"a": 1}
        await job.enqueue()
        await work(router)
        assert await job.wait(1) == [1, "act", 7]

    def test_one_that_is_injected_cannot_be_passed(self, router):
        @router.actor
        async def act(a: int, message: MessageDependency = INJECTED) -> None: ...

        with pytest.raises(ConversionError, match="message"):
            Job.of(act)(a=1, message="mine")  # type: ignore[arg-type]

    def test_several_actors_of_one_function(self, router):
        async def act() -> None: ...

        router.actor(name="first")(act)
        Router().actor(name="second", queue="other")(act)
        with pytest.raises(InvalidActorError, match=r"act has no single actor to pick: its actors are 'first', 'second'"):
            Job.of(act)
        job = Job.of(act, name="second")()
        assert (job.name, job.queue.name) == ("second", "other")
        with pytest.raises(InvalidActorError, match=r"no single actor named 'third': its actors are 'first', 'second'"):
            Job.of(act, name="third")

    def test_a_function_that_is_no_actor(self):
        async def act() -> None: ...

        with pytest.raises(InvalidActorError, match=r"no single actor to pick: its actors are none; decorate it with @router"):
            Job.of(act)

    def test_wrong_options_are_refused_by_the_first_call(self, router):
        @router.actor
        async def act(a: int) -> None: ...

        with pytest.raises(InvalidJobError, match=r"takes the arguments in its second call: Job\.of\(fn, …\)\(user_id=1\)"):
            Job.of(act, args={"a": 1})
        with pytest.raises(InvalidJobError, match="retries=-1"):
            Job.of(act, retries=-1)
        with pytest.raises(TypeError, match="retires"):
            Job.of(act, retires=1)

    def test_without_arguments(self, router):
        @router.actor
        async def act() -> None: ...

        assert Job.of(act)().args is None

    def test_it_needs_no_connection(self, router, monkeypatch):
        """The process-wide default converter serves then."""

        @router.actor
        async def act(a: int) -> None: ...

        assert Job.of(act)(1).args == {"a": 1}
        monkeypatch.setattr(Config, "CONVERTER", "unheard-of")
        with pytest.raises(Exception, match="no converter 'unheard-of'"):
            Job.of(act)(1)

    async def test_it_is_held_to_the_connections_limits_when_it_is_enqueued(self, connection, router):
        @router.actor
        async def act(a: int) -> None: ...

        connection.message_broker.limits = Limits(max_delay=SECOND)
        with pytest.raises(InvalidJobError, match="0:00:01 at most"):
            await Job.of(act, deferred_by=DAY)(1).enqueue()


def test_the_connection_of_another_loop():
    """Nothing is sent."""
    connection = Connection(InMemoryMessageBroker())
    with asyncio.Runner() as runner:
        runner.run(connection.connect())
        with pytest.raises(WrongEventLoopError, match="opened on another event loop, or before a fork: open one connection for"):
            asyncio.run(Job("act", connection=connection).enqueue())
        runner.run(assert_untouched(connection))
        runner.run(connection.disconnect())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_draws_ids_of_its_own() -> None:
    code = """
        import os
        from repid_core.job import new_id
        new_id()
        child = os.fork()
        os.write(1, f"{new_id()}\\n".encode())  # in one piece, where print writes two
        if child:
            os.waitpid(child, 0)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True, timeout=60)
    assert len(set(done.stdout.split())) == 2
