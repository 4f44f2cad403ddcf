"""The bucket broker on Redis and Valkey."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

from attrs import asdict
from redis.exceptions import RedisError

from repid_core.abc import BucketBroker
from repid_core.data import Limits
from repid_core.errors import (
    BucketBrokerError,
    BucketConnectionError,
    CorruptBucketError,
    NotConnectedError,
    PayloadTooLargeError,
    ResultTimeoutError,
)
from repid_redis.client import Client, UnreachableError
from repid_redis.errors import explain
from repid_redis.scripts import STORE
from repid_redis.settings import RedisBucketBrokerSettings, made
from repid_redis.subscriptions import Subscriptions
from repid_redis.topology import topology

_T = TypeVar("_T")

_PLAIN, _ZLIB = b"\0", b"\1"  # how the rest is encoded
_OFF_LOOP: Final = 128 << 10  # bytes from which on compression has a thread
_SENT_ALONG: Final = 4096  # bytes up to which a bucket travels with the word that it is there
_LOOK: Final = 5.0  # seconds after which who waits looks, told or not: somebody may store without telling
_AT_ONCE: Final = 100  # keys in one command
_MILLISECOND: Final = timedelta(milliseconds=1)


class RedisBucketBroker(BucketBroker):
    """Keeps buckets in Redis or Valkey, one key each, which the server removes when their time is over, to the millisecond.

    Who waits for a bucket is told of it by the server. Brokers of one URL and prefix share their buckets.

    Args:
        url: Where the server is; see `RedisBucketBrokerSettings`, also for all others.
        settings: The other settings, by name.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: There is no setting of this name.
    """

    def __init__(self, url: str = "redis://localhost:6379/0", **settings: Any) -> None:
        self.settings = made(RedisBucketBrokerSettings, url, settings)
        self.limits = Limits(max_payload=self.settings.max_payload)
        self._topology = topology(self.settings)
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_settings(cls, settings: RedisBucketBrokerSettings) -> RedisBucketBroker:
        """Make one as configured."""
        return cls(**asdict(settings, recurse=False))

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._client is not None and self._loop is loop:
            return
        client = Client(self._topology, self.settings)
        await self._within(client.open())
        self._client, self._loop = client, loop
        self._subscriptions = Subscriptions(lambda: client.connect(""), self.settings.reconnect_backoff)

    async def disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await self._subscriptions.close()
            await client.close()

    async def ping(self) -> None:
        await self._call("", "PING")

    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        limit = self.settings.max_payload
        if limit is not None and len(data) > limit:
            raise PayloadTooLargeError(len(data), limit, "split it, or raise max_payload of the bucket broker")
        life = "" if ttl is None else max(1, ttl // _MILLISECOND)
        channel = self._channel(id_) if self.settings.notify else ""
        value = await self._encode(data)
        await self._within(self._connected().run(STORE, self._key(id_), value, life, channel, _SENT_ALONG))

    async def get_bucket(self, id_: str) -> bytes | None:
        return await self._decode(id_, await self._call(self._key(id_), "GET", self._key(id_)))

    async def delete_bucket(self, id_: str) -> None:
        await self._call(self._key(id_), "UNLINK", self._key(id_))

    async def store_many(self, buckets: Sequence[tuple[str, bytes, timedelta | None]]) -> None:
        last = {bucket[0]: bucket for bucket in buckets}
        stores = [self.store_bucket(*bucket) for bucket in last.values()]
        for result in await asyncio.gather(*stores, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def get_many(self, ids: Sequence[str]) -> list[bytes | None]:
        return [await self._decode(id_, value) for id_, value in zip(ids, await self._each("MGET", "GET", ids), strict=True)]

    async def delete_many(self, ids: Sequence[str]) -> None:
        await self._each("UNLINK", "UNLINK", ids)

    async def wait_for(self, id_: str, timeout: timedelta | None) -> bytes:
        self._connected()
        if not self.settings.notify:
            return await super().wait_for(id_, timeout)
        channel, subscriptions = self._channel(id_), self._subscriptions
        subscription = subscriptions.subscribe(channel)
        try:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                async with asyncio.timeout(_LOOK):
                    await subscription.begun.wait()
                while True:
                    if (data := await self.get_bucket(id_)) is not None:
                        return data
                    await _at_most(subscription.told.wait(), _LOOK)
                    subscription.told.clear()
                    if subscription.data:
                        found = await self._decode(id_, subscription.data)
                        if found is not None:
                            return found
        except TimeoutError as error:
            raise ResultTimeoutError from error
        finally:
            subscriptions.unsubscribe(channel, subscription)

    # -- keys and values -----------------------------------------------------------------------------------------------------

    def _key(self, id_: str) -> str:
        return f"{self.settings.prefix}:bucket:{id_}"

    def _channel(self, id_: str) -> str:
        database = self.settings.address.database  # channels are shared by all databases
        return f"{self.settings.prefix}:{database}:bucket:{id_}"

    async def _encode(self, data: bytes) -> bytes:
        least = self.settings.compress_from
        if least is not None and len(data) >= least:
            packed: bytes = await _off_loop(len(data), zlib.compress, data, 1)
            if len(packed) < len(data):
                return _ZLIB + packed
        return _PLAIN + data

    async def _decode(self, id_: str, value: bytes | None) -> bytes | None:
        if value is None or value[:1] == _PLAIN:
            return None if value is None else value[1:]
        if value[:1] != _ZLIB:
            raise CorruptBucketError(f"bucket {id_!r} in {type(self).__name__} was not written by repid-redis")
        unpacker, limit = zlib.decompressobj(), self.settings.max_payload
        try:
            data: bytes = await _off_loop(len(value), unpacker.decompress, value[1:], 0 if limit is None else limit + 1)
        except zlib.error as error:
            raise CorruptBucketError(f"bucket {id_!r} in {type(self).__name__} is damaged: {error}") from error
        if limit is not None and len(data) > limit:
            raise CorruptBucketError(f"bucket {id_!r} in {type(self).__name__} is larger than max_payload, {limit:,} bytes")
        if not unpacker.eof:
            raise CorruptBucketError(f"bucket {id_!r} in {type(self).__name__} is damaged: its end is missing")
        return data

    # -- calls ---------------------------------------------------------------------------------------------------------------

    def _connected(self) -> Client:
        if self._client is None:
            raise NotConnectedError
        return self._client

    async def _call(self, key: str, *command: Any) -> Any:
        return await self._within(self._connected().call(key, *command))

    async def _each(self, together: str, alone: str, ids: Sequence[str]) -> list[Any]:
        """One command for many keys, where they are on one server."""
        keys = [self._key(id_) for id_ in ids]
        if self.settings.mode == "cluster":
            return await asyncio.gather(*(self._call(key, alone, key) for key in keys))
        parts = [keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE)]
        replies = await asyncio.gather(*(self._call("", together, *part) for part in parts))
        return [value for reply in replies for value in reply] if together == "MGET" else replies

    async def _within(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Await a call, and put its failure into words."""
        try:
            return await call
        except (UnreachableError, OSError) as error:
            raise BucketConnectionError(explain(error, self._topology.address)) from error
        except RedisError as error:
            kind = BucketConnectionError if self._client is None else BucketBrokerError
            raise kind(explain(error, self._topology.address)) from error


async def _off_loop(size: int, call: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(call, *arguments) if size >= _OFF_LOOP else call(*arguments)


async def _at_most(step: Coroutine[Any, Any, Any], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await step
    except TimeoutError:
        pass
