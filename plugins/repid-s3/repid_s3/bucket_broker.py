"""The bucket broker on S3."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, Final, TypeVar
from urllib.parse import quote

from attrs import asdict

from repid_core.abc import BucketBroker
from repid_core.data import Limits
from repid_core.errors import (
    BucketBrokerError,
    CorruptBucketError,
    NewerFormatError,
    NotConnectedError,
    PayloadTooLargeError,
    ResultTimeoutError,
)
from repid_s3 import lifecycle, skew
from repid_s3.client import Client
from repid_s3.errors import code_of, explained
from repid_s3.settings import S3BucketBrokerSettings

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_FORMAT: Final = 1
_LONGEST_NAME: Final = 255  # bytes; some servers keep objects as files, or what has the same limit
_MANY: Final = 1000  # keys that S3 deletes in one request
_DAY: Final = timedelta(days=1)
_MILLISECOND: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MISSING: Final = {"NoSuchKey", "404", "NotFound"}


class _BodyLostError(Exception):
    """The reply broke off, for this reason."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


class S3BucketBroker(BucketBroker):
    """Keeps buckets in S3, one object each; not to be confused with the bucket of S3 that all of them are in.

    An object says when its time is over, and is not returned from then on. Its storage is freed by lifecycle rules, which
    this broker adds to those of the bucket, some time later: S3 counts in whole days.

    Args:
        url: The bucket of S3 and the prefix; see `S3BucketBrokerSettings`, also for all others.
        session: A `boto3.Session` with credentials; None for what boto3 finds.
        settings: The other settings, by name.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: There is no setting of this name.
    """

    def __init__(self, url: str | None = None, *, session: Any = None, **settings: Any) -> None:
        self.settings = S3BucketBrokerSettings(url, **settings)
        self.limits = Limits(max_payload=self.settings.max_payload, wake_up=2 * self.settings.poll_longest)
        self._place, self._session = self.settings.place, session
        owner = self.settings.expected_bucket_owner
        self._in_bucket = {"Bucket": self._place.bucket, **({} if owner is None else {"ExpectedBucketOwner": owner})}
        self._stored = {"ContentType": "application/octet-stream"}
        if self.settings.sse is not None:
            self._stored["ServerSideEncryption"] = self.settings.sse
        if self.settings.sse_kms_key_id is not None:
            self._stored["SSEKMSKeyId"] = self.settings.sse_kms_key_id
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._warned = False

    @classmethod
    def from_settings(cls, settings: S3BucketBrokerSettings) -> S3BucketBroker:
        """Make one as configured."""
        return cls(**asdict(settings, recurse=False))

    # -- the connection ------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._client is not None and self._loop is loop:
            return
        client = Client(self.settings, self._session)
        try:
            await self._explained("HeadBucket", client.open())
            await self._explained("HeadBucket", client.run(self._look))
            if self.settings.lifecycle != "off" and self.settings.retention != "none":
                await client.run(partial(lifecycle.see_to, settings=self.settings))
        except BaseException:
            await client.close()
            raise
        if self._client is not None and self._loop is loop:  # somebody else was faster
            await client.close()
            return
        self._client, self._loop = client, loop

    async def disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def ping(self) -> None:
        await self._call("HeadBucket", lambda s3: s3.head_bucket(**self._in_bucket))

    # -- buckets -------------------------------------------------------------------------------------------------------

    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        if len(data) > self.settings.max_payload:
            remedy = "store less, or give the bucket broker a larger max_payload"
            raise PayloadTooLargeError(len(data), self.settings.max_payload, remedy)
        metadata = {"repid-format": str(_FORMAT)}
        if ttl is not None:
            metadata["repid-expires"] = str((self.clock.now() + ttl - _EPOCH) // _MILLISECOND)
        request = {**self._in_bucket, **self._stored, **self._retained(ttl), "Key": self._key(id_), "Metadata": metadata}
        await self._call("PutObject", lambda s3: s3.put_object(Body=data, **request))

    async def get_bucket(self, id_: str) -> bytes | None:
        return await self._call("GetObject", partial(self._get, id_=id_, key=self._key(id_)))

    async def delete_bucket(self, id_: str) -> None:
        key = self._key(id_)
        await self._call("DeleteObject", lambda s3: s3.delete_object(Key=key, **self._in_bucket))

    async def store_many(self, buckets: Sequence[tuple[str, bytes, timedelta | None]]) -> None:
        last = {bucket[0]: bucket for bucket in buckets}
        await self._each(lambda bucket: self.store_bucket(*bucket), list(last.values()))

    async def get_many(self, ids: Sequence[str]) -> list[bytes | None]:
        return await self._each(self.get_bucket, ids)

    async def delete_many(self, ids: Sequence[str]) -> None:
        keys = [{"Key": self._key(id_)} for id_ in ids]
        await self._each(self._delete, [keys[start : start + _MANY] for start in range(0, len(keys), _MANY)])

    async def wait_for(self, id_: str, timeout: timedelta | None) -> bytes:
        deadline = None if timeout is None else self.clock.now() + timeout
        pause = self.settings.poll_first
        while (data := await self.get_bucket(id_)) is None:
            jittered = pause * random.uniform(0.8, 1.2)  # noqa: S311 — so that many who wait do not ask at once
            if deadline is not None:
                left = deadline - self.clock.now()
                if left <= timedelta(0):
                    raise ResultTimeoutError
                jittered = min(jittered, left)
            await self.clock.sleep(jittered)
            pause = min(pause * self.settings.poll_factor, self.settings.poll_longest)
        return data

    # -- inside --------------------------------------------------------------------------------------------------------

    def _look(self, s3: Any) -> None:
        """Whether the bucket is there; the server's time comes with the answer."""
        before = datetime.now(UTC)
        reply = s3.head_bucket(**self._in_bucket)
        skew.see_to(reply["ResponseMetadata"]["HTTPHeaders"].get("date"), before, datetime.now(UTC), self._place)

    def _key(self, id_: str) -> str:
        """The object's key: no two ids have the same, and none is outside of the prefix, whatever a server makes of dots."""
        name = quote(id_, safe="")
        if name.startswith("."):
            name = f"%2E{name[1:]}"
        if len(name) > _LONGEST_NAME:
            name = f"~{sha256(id_.encode()).hexdigest()}"  # no id has a tilde
        return f"{self._place.prefix}{name}"

    def _retained(self, ttl: timedelta | None) -> dict[str, str]:
        """What has the storage freed in the end."""
        days = None if ttl is None else -(-ttl // _DAY)
        if self.settings.retention == "prefix":
            most = self.settings.prefix_days or 0
            if days is None or days > most:
                raise BucketBrokerError(
                    f'with retention="prefix" all is deleted after prefix_days, {most} days: a TTL of {ttl} cannot be kept, so '
                    f"give a shorter one, or raise prefix_days"
                )
        elif self.settings.retention == "tags" and days is not None:
            fitting = next((each for each in self.settings.ttl_days if each >= days), None)
            if fitting is not None:
                return {"Tagging": f"{lifecycle.TAG}=d{fitting}"}
            if not self._warned:
                self._warned = True
                logger.warning(
                    "a TTL of %s is longer than all of ttl_days, so its storage is never freed: add a class to ttl_days", ttl
                )
        return {}

    def _get(self, s3: Any, *, id_: str, key: str) -> bytes | None:
        try:
            return self._read(s3, id_, key)
        except _BodyLostError:
            pass
        try:  # which boto3 does not do by itself once a body has begun
            return self._read(s3, id_, key)
        except _BodyLostError as error:
            raise error.reason from error.reason.__cause__

    def _read(self, s3: Any, id_: str, key: str) -> bytes | None:
        try:
            found = s3.get_object(Key=key, **self._in_bucket)
        except Exception as error:
            if code_of(error) in _MISSING:
                return None
            raise
        with found["Body"] as body:
            metadata, what = found["Metadata"], f"bucket {id_!r}, the object {key!r} in {self._place.bucket!r} of S3,"
            try:
                number, expires = int(metadata["repid-format"]), int(metadata.get("repid-expires", -1))
            except (KeyError, ValueError) as error:
                raise CorruptBucketError(f"{what} was not written by repid-s3: delete it, or choose another prefix") from error
            if number > _FORMAT:
                raise NewerFormatError(f"{what} has format {number}, and this repid-s3 reads {_FORMAT}: upgrade repid-s3")
            if 0 <= expires <= (self.clock.now() - _EPOCH) // _MILLISECOND:
                body.close()  # unread
                return None
            if found["ContentLength"] > self.settings.max_payload:
                raise BucketBrokerError(f"{what} has {found['ContentLength']:,} bytes: raise max_payload to read it")
            try:
                data: bytes = body.read()
            except Exception as error:
                raise _BodyLostError(error) from error
            return data

    async def _delete(self, keys: list[dict[str, str]]) -> None:
        done = await self._call(
            "DeleteObjects", lambda s3: s3.delete_objects(Delete={"Objects": keys, "Quiet": True}, **self._in_bucket)
        )
        if errors := done.get("Errors"):
            first = errors[0]
            said = f"{first.get('Code')} {first.get('Message', '')}".strip()
            raise BucketBrokerError(
                f"{len(errors)} of {len(keys)} buckets were not deleted: {said} for {first.get('Key')!r}; grant s3:DeleteObject"
            )

    async def _call(self, operation: str, call: Callable[[Any], _T]) -> _T:
        if self._client is None:
            raise NotConnectedError
        return await self._explained(operation, self._client.run(call))

    async def _explained(self, operation: str, doing: Awaitable[_T]) -> _T:
        """Put boto3's errors into words."""
        try:
            return await doing
        except (BucketBrokerError, NewerFormatError, NotConnectedError):
            raise
        except Exception as error:
            raise explained(error, operation, self.settings) from error

    async def _each(self, call: Callable[[Any], Awaitable[_T]], items: Sequence[Any]) -> list[_T]:
        """The results in order; the first error once all have ended. The threads see to it that not too many run at once."""
        results = await asyncio.gather(*(call(item) for item in items), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results  # type: ignore[return-value] # there is no error among them
