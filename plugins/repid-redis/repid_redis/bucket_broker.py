"""The bucket broker on Redis and Valkey."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
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
from repid_redis.client import Client, UnreachableError, moment
from repid_redis.errors import explain, passes
from repid_redis.settings import RedisBucketBrokerSettings
from repid_redis.topology import topology
from repid_redis.watch import OutOfSightError, UntoldError, Watch

_T = TypeVar("_T")
_Bucket = tuple[str, bytes, timedelta | None]

_PLAIN, _ZLIB = b"\0", b"\1"  # what the first byte says of the others
_OFF_LOOP: Final = 64 << 10  # bytes from which on compression has a thread
_AT_ONCE: Final = 100  # buckets on their way
_BYTES_AT_ONCE: Final = 8 << 20  # the same in bytes; one that is larger goes alone
_READ_AT_ONCE: Final = 16  # buckets in one reply, which has to come within the deadline
_MILLISECOND: Final = timedelta(milliseconds=1)


class RedisBucketBroker(BucketBroker):
    """Keeps buckets in Redis or Valkey, one key each, which the server removes when their time is over, to the millisecond.

    Who waits for a bucket is told by the server. Brokers with one URL and prefix share their buckets, whatever the process.

    Args:
        url: Where the server is; see `RedisBucketBrokerSettings`, also for all others.
        settings: The other settings, by name.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: There is no setting of this name.
    """

    def __init__(self, url: str = "redis://localhost:6379/0", **settings: Any) -> None:
        self.settings = RedisBucketBrokerSettings(url, **settings)
        wake_up = timedelta(milliseconds=5) if self.settings.notify else timedelta(seconds=1)
        self.limits = Limits(max_payload=self.settings.max_payload, wake_up=wake_up)
        self._topology = topology(self.settings)
        self._prefix = f"{self.settings.prefix}:bucket:"
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_settings(cls, settings: RedisBucketBrokerSettings) -> RedisBucketBroker:
        """Make one as configured."""
        return cls(**asdict(settings, recurse=False))

    # -- the connection ------------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._client is not None and self._loop is loop:
            return
        client = Client(self._topology, self.settings)
        try:
            await client.open()
        except (RedisError, OSError) as error:
            raise BucketConnectionError(explain(error, self._topology.address)) from error
        if self._client is not None and self._loop is loop:  # somebody else was faster
            await client.close()
            return
        self._client, self._loop = client, loop
        self._watch = Watch(self._topology, self.settings, self._read)

    async def disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                await self._watch.close()
            finally:
                await client.close()

    async def ping(self) -> None:
        await self._call("", "PING")

    async def server_time(self) -> datetime:
        return moment(await self._call("", "TIME"))

    # -- buckets -------------------------------------------------------------------------------------------------------------

    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        self._check_size(data)
        value = await self._encode(data)
        key = self._prefix + id_
        if ttl is None:
            await self._call(key, "SET", key, value)
        else:
            await self._call(key, "SET", key, value, "PX", max(1, ttl // _MILLISECOND))

    async def get_bucket(self, id_: str) -> bytes | None:
        key = self._prefix + id_
        value: bytes | None = await self._call(key, "GET", key)
        return None if value is None else await self._decode(id_, value)

    async def delete_bucket(self, id_: str) -> None:
        key = self._prefix + id_
        await self._call(key, "UNLINK", key)

    async def store_many(self, buckets: Sequence[tuple[str, bytes, timedelta | None]]) -> None:
        for _, data, _ in buckets:
            self._check_size(data)
        last = {bucket[0]: bucket for bucket in buckets}
        for part in _parts(last.values()):
            await _all(self.store_bucket(*bucket) for bucket in part)

    async def get_many(self, ids: Sequence[str]) -> list[bytes | None]:
        values = await self._read([self._prefix + id_ for id_ in ids])
        return [None if value is None else await self._decode(id_, value) for id_, value in zip(ids, values, strict=True)]

    async def delete_many(self, ids: Sequence[str]) -> None:
        keys = [self._prefix + id_ for id_ in ids]
        size = 1 if self.settings.mode == "cluster" else _AT_ONCE
        await _all(self._call(part[0], "UNLINK", *part) for part in _split(keys, size))

    async def wait_for(self, id_: str, timeout: timedelta | None) -> bytes:
        self._connected()
        loop, watch = asyncio.get_running_loop(), self._watch
        if timeout is None or timeout > timedelta(0):
            if not (self.settings.notify and watch.able):
                return await super().wait_for(id_, timeout)
            began = loop.time()
            try:
                value = await watch.wait(self._prefix + id_, None if timeout is None else timeout.total_seconds())
                return await self._decode(id_, value)
            except UntoldError:
                left = None if timeout is None else timeout - timedelta(seconds=loop.time() - began)
                return await super().wait_for(id_, left)
            except OutOfSightError as error:
                trouble = error.__cause__ or error
                raise BucketConnectionError(explain(trouble, self._topology.address)) from trouble
            except TimeoutError:
                pass
        if (data := await self.get_bucket(id_)) is None:  # it may have been too short a time to ask
            raise ResultTimeoutError
        return data

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _connected(self) -> Client:
        if self._client is None:
            raise NotConnectedError
        return self._client

    async def _call(self, key: str, *command: Any) -> Any:
        """Send a command, and put its failure into words."""
        try:
            return await self._connected().call(key, *command)
        except (RedisError, OSError) as error:
            # What is away, or cannot do it now, may be asked again later; what is refused stays refused.
            away = isinstance(error, UnreachableError | OSError) or passes(error)
            kind = BucketConnectionError if away else BucketBrokerError
            raise kind(explain(error, self._topology.address)) from error

    async def _read(self, keys: Sequence[str]) -> list[bytes | None]:
        """What keys hold, in their order."""
        if self.settings.mode == "cluster":  # there, keys of one command have to be of one slot
            return await _all(self._call(key, "GET", key) for key in keys)
        parts = await _all(self._call("", "MGET", *part) for part in _split(keys, _READ_AT_ONCE))
        return [value for part in parts for value in part]

    def _check_size(self, data: bytes) -> None:
        if len(data) > self.settings.max_payload:
            raise PayloadTooLargeError(
                len(data), self.settings.max_payload, "store less, or give the bucket broker a larger max_payload"
            )

    async def _encode(self, data: bytes) -> bytes:
        least = self.settings.compress_from
        if least is not None and len(data) >= least:
            packed: bytes = await _off_loop(len(data), zlib.compress, data, 1)
            if len(packed) < len(data):
                return _ZLIB + packed
        return _PLAIN + data

    async def _decode(self, id_: str, value: bytes) -> bytes:
        codec = value[:1]
        if codec == _PLAIN:
            return value[1:]
        if codec != _ZLIB:
            raise CorruptBucketError(f"{self._named(id_)} was not written by repid-redis: delete it, or give another prefix")
        unpacker, limit = zlib.decompressobj(), self.settings.max_payload
        try:
            data: bytes = await _off_loop(len(value), unpacker.decompress, memoryview(value)[1:], limit + 1)
        except zlib.error as error:
            raise CorruptBucketError(f"{self._named(id_)} is damaged: {error}") from error
        if len(data) > limit:
            raise BucketBrokerError(
                f"{self._named(id_)} unpacks to more than max_payload, {limit:,} bytes: raise it to read this"
            )
        if not unpacker.eof:
            raise CorruptBucketError(f"{self._named(id_)} is damaged: its end is missing")
        return data

    def _named(self, id_: str) -> str:
        return f"bucket {id_!r} in Redis at {self._topology.address}"


def _split(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _parts(buckets: Iterable[_Bucket]) -> Iterator[list[_Bucket]]:
    """In their order, so many at once as are good for the connection and the memory."""
    part: list[_Bucket] = []
    size = 0
    for bucket in buckets:
        if part and (len(part) == _AT_ONCE or size + len(bucket[1]) > _BYTES_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(bucket)
        size += len(bucket[1])
    if part:
        yield part


async def _all(calls: Iterable[Awaitable[_T]]) -> list[_T]:
    """The results in order; the first error once all have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value] # there is no error among them


async def _off_loop(size: int, call: Callable[..., _T], *arguments: Any) -> _T:
    """Leave what takes long to a thread."""
    return await asyncio.to_thread(call, *arguments) if size >= _OFF_LOOP else call(*arguments)
