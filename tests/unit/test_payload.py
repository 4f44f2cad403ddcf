"""Arguments and results to bytes and back, in the message or in a bucket."""

from __future__ import annotations

import asyncio
import struct
from datetime import timedelta
from typing import Any

import pytest

from repid_core import (
    Connection,
    ConversionError,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    JobFailedError,
    Repid,
    ResultTimeoutError,
    Serializer,
    Worker,
)
from repid_core.codec import encode_bucket
from repid_core.data import Bucket, Envelope, Outcome, Parameters, RoutingKey
from repid_core.errors import CorruptBucketError, NewerFormatError, PayloadTooLargeError, SerializationError

SECOND = timedelta(seconds=1)


class Lines(Serializer):
    """Lists of text, one per line."""

    name = "lines"
    content_type = "text/x-lines"

    def dumps(self, value: Any) -> bytes:
        return "\n".join(value).encode()

    def loads(self, data: bytes) -> Any:
        return data.decode().split("\n")


class Forgetful(InMemoryBucketBroker):
    """A store that frees expired buckets late, as object stores do."""

    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        await super().store_bucket(id_, data, None)


@pytest.fixture
def other_serializer(monkeypatch):
    """A plugin that reads another content type."""
    from repid_core.plugins import Plugins

    original = Plugins.for_content_type

    def for_content_type(self: Plugins, content_type: str) -> Serializer:
        return Lines() if content_type == Lines.content_type else original(self, content_type)

    monkeypatch.setattr(Plugins, "for_content_type", for_content_type)


def message(connection: Connection, args_id: str) -> Envelope:
    return Envelope(RoutingKey("id", "act"), Parameters(connection.clock.now()), args_id=args_id)


async def put(connection: Connection, id_: str, data: bytes) -> None:
    for broker in (connection.args_bucket_broker, connection.results_bucket_broker):
        assert broker is not None
        await broker.store_bucket(id_, data, None)


def bucket(connection: Connection, payload: bytes = b"[1]", **options: Any) -> bytes:
    return encode_bucket(Bucket(payload, options.pop("content_type", "application/json"), connection.clock.now(), **options))


SUCCESS = Outcome(success=True, started_when=1, finished_when=2_001)
FAILURE = Outcome(success=False, started_when=1, finished_when=2, exception="LookupError", traceback="Traceback …")


class TestContentTypes:
    """What travels says what it is, so that a worker reads what older producers wrote."""

    async def test_arguments_in_the_message(self, connection, other_serializer):
        assert connection.payloads.loads(b"a\nb", "text/x-lines") == ["a", "b"]
        assert connection.payloads.loads(b"[1]", "application/json") == [1]

    async def test_arguments_in_a_bucket(self, connection, other_serializer):
        await put(connection, "x", bucket(connection, b"a\nb", content_type="text/x-lines"))
        assert await connection.payloads.load_args(message(connection, "x")) == ["a", "b"]

    async def test_results(self, connection, other_serializer):
        await put(connection, "x", bucket(connection, b"a\nb", content_type="text/x-lines", outcome=SUCCESS))
        assert await Job("act", result_id="x").wait(1) == ["a", "b"]

    async def test_a_producer_and_a_worker_with_different_serializers(self, clock, other_serializer, router):
        """End to end; the worker writes results in its own."""

        @router.actor
        async def join(first: str, second: str) -> str:
            return first + second

        messages, both = InMemoryMessageBroker(), InMemoryBucketBroker()
        async with Connection(messages, both, both, serializer=Lines(), clock=clock) as producing:
            for bucketer in (True, False):
                job: Job[Any] = Job("join", args=["a", "b"], use_args_bucketer=bucketer, connection=producing)
                await job.enqueue()
                working = Connection(messages, both, both, clock=clock)
                async with working:
                    await Worker([router], messages_limit=1, handle_signals=(), connection=working).run()
                    assert await Job("join", result_id=job.result_id, connection=working).wait(0) == "ab"
                await messages.connect()
                await both.connect()
                assert await job.wait(1) == "ab"

    async def test_one_that_nothing_reads_is_named(self, connection):
        with pytest.raises(SerializationError, match="nothing here reads content type 'application/x-unheard-of'"):
            connection.payloads.loads(b"x", "application/x-unheard-of")

    async def test_no_bytes_are_none_whatever_they_are(self, connection):
        assert connection.payloads.loads(b"", "application/x-unheard-of") is None


def newer(data: bytes) -> bytes:
    """The same frame with the version byte of a format to come."""
    return data[:3] + b"\x7f" + data[4:]


class TestBuckets:
    """What was not written by this repid is never a bare decoding error, whoever reads it."""

    async def readers(self, connection: Connection, id_: str) -> list[Any]:
        payloads = connection.payloads
        return [payloads.load_args(message(connection, id_)), payloads.get_result(id_), payloads.wait_result(id_, SECOND)]

    @pytest.mark.parametrize(
        "spoil", [lambda data: data[:-1], lambda data: b"", lambda data: b'{"a": 1}', lambda data: data + b"x"]
    )
    async def test_corrupt_ones_name_id_and_store(self, connection, spoil):
        """B7"""
        await put(connection, "the-id", spoil(bucket(connection)))
        for reading in await self.readers(connection, "the-id"):
            with pytest.raises(CorruptBucketError, match=r"the-id.*InMemoryBucketBroker|InMemoryBucketBroker.*the-id"):
                await reading

    async def test_newer_ones_name_id_and_store_and_stay(self, connection):
        """B7"""
        await put(connection, "the-id", newer(bucket(connection)))
        for reading in await self.readers(connection, "the-id"):
            with pytest.raises(NewerFormatError, match=r"the-id.*InMemoryBucketBroker|InMemoryBucketBroker.*the-id"):
                await reading
        assert await connection.args_bucket_broker.get_bucket("the-id") is not None

    async def test_the_version_is_the_fourth_byte(self, connection):
        """What `newer` relies on."""
        magic, version = struct.unpack(">3sB", bucket(connection)[:4])
        assert (magic, version) == (b"RPB", 1)

    async def test_a_payload_that_is_not_what_it_says(self, connection):
        await put(connection, "x", bucket(connection, b"[1,"))
        for reading in await self.readers(connection, "x"):
            with pytest.raises(SerializationError):
                await reading


class TestExpiry:
    async def test_an_expired_bucket_is_never_returned_although_the_store_has_it(self, clock):
        """B1: by the reader's clock."""
        both = Forgetful()
        connection = Connection(InMemoryMessageBroker(), both, both, clock=clock)
        async with Repid(connection).magic(auto_disconnect=True):
            await put(connection, "x", bucket(connection, expires_at=clock.now() + SECOND))
            assert await connection.payloads.load_args(message(connection, "x")) == [1]
            assert await Job("act", result_id="x").wait(0) == [1]
            await clock.advance(SECOND)
            assert await both.get_bucket("x") is not None
            with pytest.raises(ConversionError, match="the arguments are gone: there is no bucket 'x', or its time has passed"):
                await connection.payloads.load_args(message(connection, "x"))
            assert await Job("act", result_id="x").result is None

    @pytest.mark.parametrize("timeout", [0, 3])
    async def test_nor_does_waiting_return_it_or_wait_for_ever(self, clock, timeout):
        """B4"""
        both = Forgetful()
        connection = Connection(InMemoryMessageBroker(), both, both, clock=clock)
        async with Repid(connection).magic(auto_disconnect=True):
            await put(connection, "x", bucket(connection, expires_at=clock.now()))
            waiter = asyncio.create_task(Job("act", result_id="x").wait(timeout))
            await clock.advance(timedelta(seconds=timeout) / 2)
            assert waiter.done() is (timeout == 0)
            await clock.advance(timedelta(seconds=timeout))
            with pytest.raises(ResultTimeoutError):
                await waiter

    async def test_waiting_gets_the_new_one_that_takes_its_place(self, clock):
        both = Forgetful()
        connection = Connection(InMemoryMessageBroker(), both, both, clock=clock)
        async with Repid(connection).magic(auto_disconnect=True):
            await put(connection, "x", bucket(connection, expires_at=clock.now()))
            waiter = asyncio.create_task(Job("act", result_id="x").wait(60))
            await clock.advance(SECOND)
            await put(connection, "x", bucket(connection, b"[2]", outcome=SUCCESS))
            await clock.advance(SECOND)
            assert await waiter == [2]

    async def test_args_and_results_get_the_expiry_that_the_job_says(self, connection, clock):
        job: Job[Any] = Job("act", args=[1], args_ttl=SECOND)
        bucket_id = job.args_id
        await job.enqueue()
        assert await connection.payloads.load_args(message(connection, bucket_id)) == [1]
        await clock.advance(SECOND)
        assert await connection.args_bucket_broker.get_bucket(bucket_id) is None


class TestChaining:
    """A result is read as arguments, and arguments as a result."""

    async def test_a_result_as_arguments(self, clock, router):
        @router.actor
        async def add_hello(user_name: str) -> dict[str, Any]:
            return {"user_id": 1, "messages": [f"Hello {user_name}!"]}

        @router.actor
        async def add_id(user_id: int, messages: list[str]) -> list[str]:
            return [*messages, f"Your id is {user_id}."]

        both = InMemoryBucketBroker()
        connection = Connection(InMemoryMessageBroker(), both, both, clock=clock)
        async with Repid(connection).magic(auto_disconnect=True):
            first: Job[Any] = Job("add_hello", args={"user_name": "Alex"})
            second: Job[Any] = Job("add_id", args_id=first.result_id)
            for job in (first, second):
                await job.enqueue()
                assert (await Worker([router], messages_limit=1, handle_signals=()).run()).succeeded == 1
            assert await second.wait(1) == ["Hello Alex!", "Your id is 1."]
            assert await first.wait(1) == {"user_id": 1, "messages": ["Hello Alex!"]}, "the first result is still there"

    async def test_a_failed_result_is_no_arguments(self, connection):
        """W3"""
        await put(connection, "x", bucket(connection, b"", outcome=FAILURE))
        with pytest.raises(
            ConversionError, match=r"bucket 'x' holds the result of a failed job \(LookupError\), and no arguments"
        ):
            await connection.payloads.load_args(message(connection, "x"))

    async def test_arguments_as_a_result(self, connection):
        await put(connection, "x", bucket(connection))
        job: Job[Any] = Job("act", result_id="x")
        result = await job.result
        assert result is not None
        assert (result.data, result.success, result.exception) == ([1], True, None)
        assert result.duration >= timedelta(0)
        assert await job.wait(1) == [1]

    async def test_what_a_result_says(self, connection, clock):
        await put(connection, "x", bucket(connection, outcome=SUCCESS, expires_at=clock.now() + SECOND))
        result = await Job("act", result_id="x").result
        assert result is not None
        assert (result.started_when, result.finished_when, result.duration) == (1, 2_001, timedelta(microseconds=2))
        assert (result.timestamp, result.expires_at) == (clock.now(), clock.now() + SECOND)

    async def test_a_failure(self, connection):
        await put(connection, "x", bucket(connection, b"", outcome=FAILURE))
        job: Job[Any] = Job("act", result_id="x")
        result = await job.result
        assert result is not None
        assert (result.data, result.success, result.exception, result.traceback) == (None, False, "LookupError", "Traceback …")
        with pytest.raises(JobFailedError, match=r"LookupError\nTraceback …"):
            await job.wait(1)


class TestArgumentsThatAreNotThere:
    async def test_a_bucket_that_is_gone(self, connection):
        with pytest.raises(ConversionError, match="the arguments are gone: there is no bucket 'nowhere'"):
            await connection.payloads.load_args(message(connection, "nowhere"))

    async def test_a_worker_without_an_args_bucket_broker(self, clock):
        async with Connection(InMemoryMessageBroker(), clock=clock) as connection:
            with pytest.raises(ConversionError, match="are in bucket 'x', and this connection has no args bucket broker"):
                await connection.payloads.load_args(message(connection, "x"))


class TestStoringResults:
    async def test_over_the_stores_limit(self, clock):
        async with Connection(InMemoryMessageBroker(), None, InMemoryBucketBroker(max_payload=100), clock=clock) as connection:
            parameters = Parameters(clock.now(), result_id="x")
            with pytest.raises(PayloadTooLargeError, match="limit is 100: store it elsewhere, and pass on where"):
                await connection.payloads.store_result(parameters, SUCCESS, "x" * 200)
            assert await connection.payloads.get_result("x") is None

    async def test_what_cannot_be_serialized(self, connection):
        with pytest.raises(SerializationError, match=r"\$\.socket"):
            await connection.payloads.store_result(
                Parameters(connection.clock.now(), result_id="x"), SUCCESS, {"socket": object()}
            )
        assert await connection.payloads.get_result("x") is None

    async def test_none_where_nobody_asked(self, connection, clock):
        await connection.payloads.store_result(Parameters(clock.now()), SUCCESS, 1)
        async with Connection(InMemoryMessageBroker(), clock=clock) as without:
            await without.payloads.store_result(Parameters(clock.now(), result_id="x"), SUCCESS, 1)
        assert not connection.results_bucket_broker._buckets

    async def test_wrong_ids_are_refused_at_once(self, connection):
        """B6"""
        for reading in (connection.payloads.get_result("../x"), connection.payloads.wait_result("a b", None)):
            with pytest.raises(ValueError, match=r"result id .* is not valid"):
                await reading
