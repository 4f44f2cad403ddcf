"""Arguments and results to bytes and back, in the message or in a bucket."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from attrs import frozen

from repid_core.abc import BucketBroker, Serializer
from repid_core.clock import Clock
from repid_core.codec import decode_bucket, encode_bucket
from repid_core.data import Bucket, Envelope, Outcome, Parameters, ResultBucket, check_id
from repid_core.errors import ConversionError, PayloadTooLargeError, ResultTimeoutError, UsageError
from repid_core.middleware import Middlewares
from repid_core.plugins import plugins

logger = logging.getLogger(__name__)

_POLL = timedelta(milliseconds=50)  # while a store still gives a bucket whose time has passed


@frozen
class ArgsBucket:
    """Arguments on their way to the args bucket broker."""

    id_: str
    data: bytes
    ttl: timedelta | None


@frozen(eq=False)
class Payloads:
    """Reads and writes what travels beside the messages, for one connection."""

    serializer: Serializer
    args_broker: BucketBroker | None
    results_broker: BucketBroker | None
    middleware: Middlewares
    clock: Clock

    def args_bucket(self, id_: str, payload: bytes, ttl: timedelta | None) -> ArgsBucket:
        """Arguments that were serialized, as a bucket to store.

        Raises:
            PayloadTooLargeError: The store does not take as much.
        """
        now = self.clock.now()
        bucket = Bucket(payload, self.serializer.content_type, now, None if ttl is None else now + ttl)
        return ArgsBucket(id_, _fitting(self.args(), encode_bucket(bucket)), ttl)

    def args(self) -> BucketBroker:
        """The args bucket broker, or `UsageError`."""
        if self.args_broker is None:
            raise UsageError(
                "the connection has no args bucket broker: pass Connection(args_bucket_broker=…), or use_args_bucketer=False",
            )
        return self.args_broker

    def results(self) -> BucketBroker:
        """The results bucket broker, or `UsageError`."""
        if self.results_broker is None:
            raise UsageError("the connection has no results bucket broker: pass Connection(results_bucket_broker=…)")
        return self.results_broker

    async def store_args(self, buckets: Sequence[ArgsBucket]) -> None:
        """Store arguments, in one go if there are several."""
        if len(buckets) == 1:
            await self._store(self.args(), buckets[0].id_, buckets[0].data, buckets[0].ttl)
            return
        for bucket in buckets:
            if (emit := self.middleware.before_store_bucket) is not None:
                await emit(bucket_id=bucket.id_)
        failure: BaseException | None = None
        try:
            await self.args().store_many([(bucket.id_, bucket.data, bucket.ttl) for bucket in buckets])
        except BaseException as error:
            failure = error
            raise
        finally:
            for bucket in buckets:
                if (emit := self.middleware.after_store_bucket) is not None:
                    await emit(bucket_id=bucket.id_, error=failure)

    async def delete_args(self, id_: str) -> None:
        """Delete an args bucket."""
        await self.middleware.watch("delete_bucket", {"bucket_id": id_}, self.args().delete_bucket, id_)

    async def drop_args(self, *envelopes: Envelope) -> None:
        """Delete the buckets that belong to messages which will not be run again (W9); a failure is logged."""
        for envelope in envelopes:
            if envelope.args_owned and envelope.args_id is not None:
                try:
                    await self.delete_args(envelope.args_id)
                except Exception:
                    logger.exception("args bucket %s is left behind", envelope.args_id, extra={"job": envelope.key.id_})

    async def load_args(self, envelope: Envelope) -> Any:
        """A message's arguments as plain data; None if it has none.

        Raises:
            ConversionError: The bucket is gone, or holds the result of a failed job.
            SerializationError: Nothing here reads their content type, or they cannot be decoded.
            CodecError: A newer repid wrote the bucket.
            BucketBrokerError: The bucket is corrupt, or the store failed.
        """
        if envelope.args_id is None:
            return self.loads(envelope.payload, envelope.content_type)
        if self.args_broker is None:
            raise ConversionError(
                [f"the arguments are in bucket {envelope.args_id!r}, and this connection has no args bucket broker"],
            )
        bucket = await self._get(self.args_broker, envelope.args_id)
        if bucket is None:
            raise ConversionError([f"the arguments are gone: there is no bucket {envelope.args_id!r}, or its time has passed"])
        if bucket.outcome is not None and not bucket.outcome.success:
            raise ConversionError(
                [f"bucket {envelope.args_id!r} holds the result of a failed job ({bucket.outcome.exception}), and no arguments"],
            )
        return self.loads(bucket.payload, bucket.content_type)

    async def store_result(self, parameters: Parameters, outcome: Outcome, value: Any = None) -> None:
        """Store how a run ended, and what it returned, if the message and the connection have a place for it.

        Raises:
            SerializationError: The value cannot be serialized.
            PayloadTooLargeError: The store does not take as much.
            BucketBrokerError: It was not stored.
        """
        if parameters.result_id is None or self.results_broker is None:
            return
        now = self.clock.now()
        expires_at = None if parameters.result_ttl is None else now + parameters.result_ttl
        payload = self.serializer.dumps(value) if outcome.success else b""
        data = encode_bucket(Bucket(payload, self.serializer.content_type, now, expires_at, outcome))
        await self._store(self.results_broker, parameters.result_id, _fitting(self.results_broker, data), parameters.result_ttl)

    async def get_result(self, id_: str) -> ResultBucket | None:
        """A result, or None if it is not there, or no longer."""
        bucket = await self._get(self.results(), check_id(id_, "result id"))
        return None if bucket is None else self._result(bucket)

    async def wait_result(self, id_: str, timeout: timedelta | None) -> ResultBucket:
        """A result, as soon as it is there.

        Raises:
            ResultTimeoutError: It did not come in time.
        """
        check_id(id_, "result id")
        broker, deadline = self.results(), None if timeout is None else self.clock.now() + timeout
        while True:
            left = None if deadline is None else deadline - self.clock.now()
            data = await self.middleware.watch("get_bucket", {"bucket_id": id_}, broker.wait_for, id_, left)
            if (bucket := self._current(broker, id_, data)) is not None:
                return self._result(bucket)
            if left is not None and left <= timedelta(0):
                raise ResultTimeoutError
            await self.clock.sleep(_POLL)

    def loads(self, payload: bytes, content_type: str) -> Any:
        """Decode by content type; no bytes are None."""
        if not payload:
            return None
        if content_type == self.serializer.content_type:
            return self.serializer.loads(payload)
        return plugins().for_content_type(content_type).loads(payload)

    def _result(self, bucket: Bucket) -> ResultBucket:
        # Arguments that somebody gave the id of a result have no outcome; they are what a job succeeded to pass on.
        now = self.clock.time_ns()
        outcome = bucket.outcome or Outcome(success=True, started_when=now, finished_when=now)
        return ResultBucket(
            data=self.loads(bucket.payload, bucket.content_type),
            success=outcome.success,
            started_when=outcome.started_when,
            finished_when=outcome.finished_when,
            exception=outcome.exception,
            traceback=outcome.traceback,
            timestamp=bucket.timestamp,
            expires_at=bucket.expires_at,
        )

    def _current(self, broker: BucketBroker, id_: str, data: bytes | None) -> Bucket | None:
        if data is None:
            return None
        bucket = decode_bucket(data, id_, broker)
        return None if bucket.expires_at is not None and bucket.expires_at <= self.clock.now() else bucket

    async def _get(self, broker: BucketBroker, id_: str) -> Bucket | None:
        data = await self.middleware.watch("get_bucket", {"bucket_id": id_}, broker.get_bucket, id_)
        return self._current(broker, id_, data)

    async def _store(self, broker: BucketBroker, id_: str, data: bytes, ttl: timedelta | None) -> None:
        await self.middleware.watch("store_bucket", {"bucket_id": id_}, broker.store_bucket, id_, data, ttl)


def _fitting(broker: BucketBroker, data: bytes) -> bytes:
    limit = broker.limits.max_payload
    if limit is not None and len(data) > limit:
        raise PayloadTooLargeError(len(data), limit, "store it elsewhere, and pass on where")
    return data
