"""The combination of brokers: opened and closed as one, used where it was opened, and enqueueing many at once."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from repid_core import (
    BucketBroker,
    Connection,
    Enqueued,
    EnqueueError,
    EnqueueManyError,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    InvalidJobError,
    Job,
    MessageBroker,
    MessageCategory,
    Receipt,
    Worker,
)
from repid_core.cattrs_converter import CattrsConverter
from repid_core.errors import (
    AlreadyConnectedError,
    BrokerConnectionError,
    BucketBrokerError,
    BucketConnectionError,
    DuplicateJobError,
    NotConnectedError,
    PayloadTooLargeError,
    SerializationError,
    UnknownBackendError,
    UsageError,
    WrongEventLoopError,
)
from repid_core.json_serializer import JsonSerializer
from repid_core.testing.clock import ManualClock


class Diary:
    """What a broker was asked to do, and what it does instead of succeeding."""

    def __init__(self, *faults: str) -> None:
        self.entries: list[str] = []
        self.faults = set(faults)
        self.block: dict[str, asyncio.Event] = {}
        self.changed = asyncio.Event()

    async def note(self, entry: str, error: type[Exception]) -> None:
        self.entries.append(entry)
        self.changed.set()
        if entry in self.block:
            await self.block[entry].wait()
            self.entries.append(f"{entry} done")
        if entry in self.faults:
            raise error(entry)

    async def reached(self, entry: str) -> None:
        while entry not in self.entries:
            self.changed.clear()
            await self.changed.wait()


class Messages(InMemoryMessageBroker):
    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary = diary

    async def connect(self) -> None:
        await self.diary.note("open messages", BrokerConnectionError)
        await super().connect()

    async def disconnect(self) -> None:
        await super().disconnect()
        await self.diary.note("close messages", BrokerConnectionError)


class Buckets(InMemoryBucketBroker):
    def __init__(self, diary: Diary, name: str) -> None:
        super().__init__()
        self.diary, self.name = diary, name

    async def connect(self) -> None:
        await self.diary.note(f"open {self.name}", BucketConnectionError)
        await super().connect()

    async def disconnect(self) -> None:
        await super().disconnect()
        await self.diary.note(f"close {self.name}", BucketConnectionError)


def noted(*faults: str) -> tuple[Connection, Diary]:
    diary = Diary(*faults)
    return Connection(Messages(diary), Buckets(diary, "args"), Buckets(diary, "results")), diary


class TestMaking:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({"message_broker": "memory"}, r"Connection\(message_broker=…\) got 'memory' and wants MessageBroker"),
            ({"message_broker": InMemoryMessageBroker}, r"message_broker=…\) got <class .* and wants MessageBroker"),
            ({"message_broker": InMemoryBucketBroker()}, r"message_broker=…\) got <.*InMemoryBucketBroker.* wants MessageBroker"),
            ({"args_bucket_broker": InMemoryMessageBroker()}, r"args_bucket_broker=…\) got .* and wants .*BucketBroker \| None"),
            ({"results_bucket_broker": True}, r"results_bucket_broker=…\) got True and wants .*BucketBroker \| None"),
            ({"args_bucket_threshold": "64 KiB"}, r"args_bucket_threshold=…\) got '64 KiB' and wants int"),
            ({"serializer": object()}, r"Connection\(serializer=…\) got <object .* and wants a plugin's name or a serializer"),
            ({"serializer": JsonSerializer}, r"serializer=…\) got <class .* wants a plugin's name or a serializer"),
            ({"converter": dict}, r"converter=…\) got <class 'dict'> and wants a plugin's name or a converter"),
            ({"converter": CattrsConverter(print)}, r"converter=…\) got .* and wants a plugin's name or a converter"),
            ({"middlewares": [object()]}, r"is no middleware: it has no method named before_<event>"),
        ],
    )
    def test_what_does_not_fit_is_named(self, arguments: dict[str, Any], sentence: str):
        with pytest.raises(UsageError, match=sentence):
            Connection(**{"message_broker": InMemoryMessageBroker(), **arguments})

    @pytest.mark.parametrize("choice", [{"serializer": "yaml"}, {"converter": "yaml"}])
    def test_a_plugin_that_is_not_there(self, choice):
        with pytest.raises(UnknownBackendError, match="'yaml'"):
            Connection(InMemoryMessageBroker(), **choice)

    def test_by_name_and_by_object(self):
        serializer = JsonSerializer()
        named = Connection(InMemoryMessageBroker(), serializer="json", converter="cattrs")
        given = Connection(InMemoryMessageBroker(), serializer=serializer, converter=CattrsConverter)
        assert isinstance(named.payloads.serializer, JsonSerializer)
        assert given.payloads.serializer is serializer
        assert named.converter is given.converter is CattrsConverter


class TestOpening:
    async def test_all_brokers_are_opened_and_closed_the_message_broker_last(self):
        connection, diary = noted()
        async with connection:
            assert connection.is_open
            assert diary.entries == ["open messages", "open args", "open results"]
        assert not connection.is_open
        assert diary.entries[3:] == ["close results", "close args", "close messages"]

    async def test_one_object_for_arguments_and_results_is_opened_once(self):
        diary = Diary()
        both = Buckets(diary, "both")
        async with Connection(Messages(diary), both, both):
            pass
        assert diary.entries == ["open messages", "open both", "close both", "close messages"]

    async def test_brokers_get_the_connections_clock_before_they_are_opened(self):
        seen = []

        class Watching(InMemoryMessageBroker):
            async def connect(self) -> None:
                seen.append(self.clock)
                await super().connect()

        clock = ManualClock()
        async with Connection(Watching(), clock=clock):
            assert seen == [clock]

    async def test_twice_is_an_error_and_changes_nothing(self):
        connection, diary = noted()
        async with connection:
            with pytest.raises(AlreadyConnectedError, match="open already: connect once, and share the connection"):
                await connection.connect()
            assert connection.is_open
            await connection.enqueue(Job("act"))
        assert diary.entries.count("open messages") == 1

    async def test_twice_at_once_is_an_error_and_it_is_not_open_before_it_is(self):
        connection, diary = noted()
        release = diary.block["open args"] = asyncio.Event()
        task = asyncio.create_task(connection.connect())
        await diary.reached("open args")
        assert not connection.is_open
        with pytest.raises(AlreadyConnectedError):
            await connection.connect()
        with pytest.raises(NotConnectedError):
            await connection.enqueue(Job("act"))
        release.set()
        await task
        await connection.enqueue(Job("act"))
        await connection.disconnect()

    async def test_again_after_closing(self):
        connection, _ = noted()
        for _ in range(2):
            async with connection:
                await connection.enqueue(Job("act"))

    @pytest.mark.parametrize(
        ("fault", "error", "closed"),
        [
            ("open messages", BrokerConnectionError, []),
            ("open args", BucketConnectionError, ["close messages"]),
            ("open results", BucketConnectionError, ["close args", "close messages"]),
        ],
    )
    async def test_one_that_fails_closes_those_before_it(self, fault, error, closed):
        connection, diary = noted(fault)
        with pytest.raises(error, match=fault):
            await connection.connect()
        assert [entry for entry in diary.entries if entry.startswith("close")] == closed
        assert not connection.is_open
        diary.faults.clear()
        async with connection:
            await connection.enqueue(Job("act"))

    async def test_cancelled_it_closes_what_was_opened(self):
        connection, diary = noted()
        diary.block["open args"] = asyncio.Event()
        task = asyncio.create_task(connection.connect())
        await diary.reached("open args")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert diary.entries == ["open messages", "open args", "close messages"]
        assert not connection.is_open


class TestClosing:
    async def test_idempotent(self):
        connection, diary = noted()
        await connection.disconnect()
        await connection.connect()
        await connection.disconnect()
        await connection.disconnect()
        assert diary.entries.count("close messages") == 1

    @pytest.mark.parametrize("fault", ["close results", "close args", "close messages"])
    async def test_one_that_fails_does_not_keep_the_others_open(self, fault):
        connection, diary = noted(fault)
        await connection.connect()
        with pytest.raises((BrokerConnectionError, BucketConnectionError), match=fault):
            await connection.disconnect()
        assert diary.entries[3:] == ["close results", "close args", "close messages"]
        assert not connection.is_open

    async def test_when_several_fail_the_first_is_raised_and_all_are_logged(self, caplog):
        connection, _ = noted("close results", "close messages")
        await connection.connect()
        with pytest.raises(BucketConnectionError, match="close results"):
            await connection.disconnect()
        assert "Buckets did not close well" in caplog.text
        assert "Messages did not close well" in caplog.text
        await connection.connect()
        connection.message_broker.diary.faults.clear()
        await connection.disconnect()

    async def test_failing_to_close_does_not_hide_why_it_did_not_open(self):
        connection, diary = noted("open results", "close messages")
        with pytest.raises(BucketConnectionError, match="open results"):
            await connection.connect()
        assert diary.entries[-2:] == ["close args", "close messages"]

    async def test_cancelled_it_stays_cancelled_when_a_broker_fails(self):
        connection, diary = noted("close results")
        await connection.connect()
        release = diary.block["close results"] = asyncio.Event()
        task = asyncio.create_task(connection.disconnect())
        await diary.reached("close results")
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert diary.entries[-1] == "close messages"

    async def test_cancelled_it_closes_all_the_same(self):
        connection, diary = noted()
        await connection.connect()
        release = diary.block["close results"] = asyncio.Event()
        task = asyncio.create_task(connection.disconnect())
        await diary.reached("close results")
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert diary.entries[3:] == ["close results", "close results done", "close args", "close messages"]

    async def test_no_task_is_left(self):
        before = asyncio.all_tasks()
        async with Connection(InMemoryMessageBroker(), InMemoryBucketBroker(), InMemoryBucketBroker()) as connection:
            await connection.enqueue(Job("act", args=[1]))
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before


class TestUse:
    """Only while it is open, on the loop and in the process that opened it; nothing is stored or sent otherwise."""

    async def test_before_connecting_and_after_closing(self):
        connection, diary = noted()
        job: Job[Any] = Job("act", args=[1], connection=connection, id_="x")
        said = r"not open: `await connection\.connect\(\)` first, or use `async with connection:`"

        async def refuses() -> None:
            for use in (job.enqueue, job.wait, job.cancel, job.queue.stats, job.queue.declare, job.queue.flush):
                with pytest.raises(NotConnectedError, match=said):
                    await use()
            with pytest.raises(NotConnectedError, match=said):
                await connection.enqueue_many([job])
            with pytest.raises(NotConnectedError, match=said):
                _ = job.result
            with pytest.raises(NotConnectedError, match=said):
                await anext(job.queue.get_messages())

        await refuses()
        assert diary.entries == []
        async with connection:
            pass
        await refuses()

    async def test_workers(self):
        connection, diary = noted()
        worker = Worker(connection=connection, handle_signals=())
        worker.actor(name="act")(noted)
        for _ in range(2):
            for use in (worker.run, worker.declare_all_queues):
                with pytest.raises(NotConnectedError):
                    await use()
            async with connection:
                for use in (worker.run, worker.declare_all_queues):
                    with pytest.raises(WrongEventLoopError):
                        await asyncio.to_thread(asyncio.run, use())
        assert diary.entries.count("open messages") == 2

    def test_from_another_loop(self):
        connection, diary = noted()
        with asyncio.Runner() as runner:
            runner.run(connection.connect())

            async def elsewhere() -> None:
                job: Job[Any] = Job("act")
                for use in (connection.enqueue_many([]), connection.enqueue(job), connection.connect(), connection.disconnect()):
                    with pytest.raises(WrongEventLoopError, match="another event loop, or before a fork: open one connection"):
                        await use

            asyncio.run(elsewhere())
            assert connection.is_open
            runner.run(connection.disconnect())
        assert diary.entries.count("open messages") == diary.entries.count("close messages") == 1

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_after_a_fork(self):
        """Neither on the loop that was copied nor on one of the child's own."""
        connection, _ = noted()

        async def use() -> str:
            try:
                connection.check()
            except WrongEventLoopError as error:
                return str(error)
            return "usable"

        with asyncio.Runner() as runner:
            runner.run(connection.connect())
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:  # it must never reach pytest
                try:
                    os.write(writer, "\n".join([runner.run(use()), asyncio.run(use())]).encode())
                finally:
                    os._exit(0)
            os.close(writer)
            with os.fdopen(reader, "rb") as pipe:
                answers = pipe.read().decode().splitlines()
            os.waitpid(child, 0)
            assert len(answers) == 2
            assert all("before a fork: open one connection for each loop and process" in answer for answer in answers), answers
            assert runner.run(use()) == "usable"
            runner.run(connection.disconnect())

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    async def test_after_a_fork_inside_the_running_loop(self):
        async with noted()[0] as connection:
            child = os.fork()
            if child == 0:
                try:
                    connection.check()
                except WrongEventLoopError:
                    os._exit(7)
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222 — it has ended, or is about to
            assert os.waitstatus_to_exitcode(status) == 7

    async def test_without_a_loop(self):
        async with noted()[0] as connection:
            with pytest.raises(WrongEventLoopError):
                await asyncio.to_thread(connection.check)


class Refusing(InMemoryMessageBroker):
    """Refuses the topic "refused"; at the topic "away" the connection is cut, and stays so."""

    maybe = False
    # the slow way of the base class, so that its promise is tested too
    enqueue_many = MessageBroker.enqueue_many

    async def enqueue(self, envelope: Any) -> Enqueued:
        if envelope.key.topic == "refused":
            raise EnqueueError("no room", maybe_enqueued=self.maybe)
        if envelope.key.topic == "away":
            raise BrokerConnectionError("cannot reach localhost:1")
        return await super().enqueue(envelope)


async def topics(connection: Connection) -> list[str]:
    return [seen.envelope.key.topic async for seen in connection.message_broker.browse("default", MessageCategory.NORMAL)]


def held(broker: BucketBroker | None) -> list[str]:
    assert isinstance(broker, InMemoryBucketBroker)
    return sorted(broker._buckets)


@pytest.fixture
async def refusing():
    async with Connection(Refusing(), InMemoryBucketBroker()) as connection:
        yield connection


class TestEnqueueMany:
    async def test_in_order_with_one_receipt_each(self, connection):
        """M18"""
        jobs = [Job("act", id_=f"x{i}", args=[i]) for i in range(20)]
        receipts = await connection.enqueue_many(jobs)
        assert receipts == [Receipt(f"x{i}", Enqueued.NEW) for i in range(20)]
        seen = [seen.envelope async for seen in connection.message_broker.browse("default", MessageCategory.NORMAL)]
        assert [await connection.payloads.load_args(envelope) for envelope in seen] == [[i] for i in range(20)]

    async def test_none(self, connection):
        assert await connection.enqueue_many([]) == []

    async def test_any_iterable_of_jobs(self, connection):
        assert len(await connection.enqueue_many(Job("act") for _ in range(3))) == 3

    async def test_outcomes_of_all_kinds(self, connection):
        await connection.enqueue(Job("act", id_="live"))
        jobs = [Job("act", id_="new"), Job("act", id_="live"), Job("act", id_="live", on_duplicate="keep")]
        with pytest.raises(EnqueueManyError, match="1 of 3 jobs were not enqueued; the first: a job with id 'live' is") as caught:
            await connection.enqueue_many(jobs)
        new, duplicate, kept = caught.value.outcomes
        assert (new, kept) == (Receipt("new", Enqueued.NEW), Receipt("live", Enqueued.KEPT))
        assert isinstance(duplicate, DuplicateJobError)

    async def test_a_single_one_that_is_refused(self, connection):
        await connection.enqueue(Job("act", id_="live"))
        with pytest.raises(EnqueueManyError, match="1 of 1") as caught:
            await connection.enqueue_many([Job("act", id_="live")])
        assert isinstance(caught.value.outcomes[0], DuplicateJobError)

    @pytest.mark.parametrize(
        ("bad", "error"),
        [
            ({"args": object()}, SerializationError),
            ({"args": "x" * 2000, "use_args_bucketer": False}, PayloadTooLargeError),
            ({"store_result": True}, UsageError),
        ],
    )
    async def test_all_are_checked_before_anything_is_stored_or_sent(self, bad, error):
        async with Connection(InMemoryMessageBroker(max_payload=1000), InMemoryBucketBroker()) as connection:
            with pytest.raises(error):
                await connection.enqueue_many([Job("act", args=[1]), Job("act", **bad)])
            assert await topics(connection) == []
            assert held(connection.args_bucket_broker) == []

    async def test_those_of_refused_messages_are_cleaned_up_and_no_others(self, refusing):
        """W9"""
        jobs = [Job("act", args=[1]), Job("refused", args=[2]), Job("refused", args_id="mine", args=[3])]
        kept = jobs[0].args_id
        with pytest.raises(EnqueueManyError, match="2 of 3"):
            await refusing.enqueue_many(jobs)
        assert await topics(refusing) == ["act"]
        assert held(refusing.args_bucket_broker) == sorted([kept, "mine"])

    async def test_one_that_may_be_there_keeps_its_bucket(self, refusing):
        """M1: `maybe_enqueued`"""
        refusing.message_broker.maybe = True
        job: Job[Any] = Job("refused", args=[2])
        bucket = job.args_id
        with pytest.raises(EnqueueError) as caught:
            await refusing.enqueue(job)
        assert caught.value.maybe_enqueued
        assert held(refusing.args_bucket_broker) == [bucket]

    async def test_what_became_of_it_is_not_known_keeps_its_bucket(self, refusing, monkeypatch):
        """M1: cancelled, or failed by a fault of the broker, it may be there, and needs its arguments."""
        begun = asyncio.Event()

        async def hang(_: object) -> None:
            begun.set()
            await asyncio.Event().wait()

        async def fault(_: object) -> None:
            raise OSError

        jobs: list[Job[Any]] = [Job("act", args=[1]), Job("act", args=[1])]
        ids = [job.args_id for job in jobs]
        monkeypatch.setattr(refusing.message_broker, "enqueue", hang)
        task = asyncio.create_task(refusing.enqueue(jobs[0]))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        monkeypatch.setattr(refusing.message_broker, "enqueue", fault)
        with pytest.raises(OSError):  # noqa: PT011 — whatever it is
            await refusing.enqueue(jobs[1])
        assert held(refusing.args_bucket_broker) == sorted(ids)

    async def test_a_broker_that_is_away_leaves_no_bucket(self, refusing):
        """W9"""
        for call in (
            refusing.enqueue(Job("away", args=[1])),
            refusing.enqueue_many([Job("away", args=[1]), Job("act", args=[1])]),
        ):
            with pytest.raises(BrokerConnectionError, match="cannot reach"):
                await call
        assert held(refusing.args_bucket_broker) == []
        assert await topics(refusing) == []

    async def test_one_that_goes_away_in_between_keeps_the_buckets_of_what_was_enqueued(self, refusing):
        """M18, W9: a default that any broker may inherit."""
        jobs = [Job("act", args=[1]), Job("away", args=[2]), Job("act", args=[3])]
        kept = jobs[0].args_id
        with pytest.raises(EnqueueManyError, match=r"2 of 3.*cannot reach") as caught:
            await refusing.enqueue_many(jobs)
        first, second, third = caught.value.outcomes
        assert isinstance(first, Receipt)
        assert isinstance(second.__cause__, BrokerConnectionError)
        assert isinstance(third, EnqueueError)
        assert await topics(refusing) == ["act"]
        assert held(refusing.args_bucket_broker) == [kept]

    async def test_a_clean_up_that_fails_does_not_hide_the_error(self, refusing, caplog, monkeypatch):
        async def fail(id_: str) -> None:
            raise BucketConnectionError

        monkeypatch.setattr(refusing.args_bucket_broker, "delete_bucket", fail)
        with pytest.raises(EnqueueError, match="no room"):
            await refusing.enqueue(Job("refused", args=[1]))
        assert "left behind" in caplog.text

    async def test_a_bucket_store_that_fails_sends_nothing(self, refusing, monkeypatch):
        async def fail(*_: object) -> None:
            raise BucketBrokerError("denied: allow s3:PutObject")

        monkeypatch.setattr(refusing.args_bucket_broker, "store_bucket", fail)
        monkeypatch.setattr(refusing.args_bucket_broker, "store_many", fail)
        jobs = [Job("act", args=[1]), Job("act", args=[1])]
        for call in (refusing.enqueue(jobs[0]), refusing.enqueue_many(jobs)):
            with pytest.raises(BucketBrokerError, match="denied"):
                await call
        assert await topics(refusing) == []

    async def test_later_than_the_broker_holds(self, refusing):
        from datetime import UTC, datetime

        with pytest.raises(InvalidJobError, match="enqueue it later"):
            await refusing.enqueue_many([Job("act", args=[1]), Job("act", deferred_until=datetime(2999, 1, 1, tzinfo=UTC))])
        assert await topics(refusing) == []
        assert held(refusing.args_bucket_broker) == []
