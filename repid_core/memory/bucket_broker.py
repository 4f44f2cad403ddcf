"""The in-memory bucket broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush

from attrs import field, frozen, validators

from repid_core.abc import BucketBroker
from repid_core.data import Limits, Size
from repid_core.errors import NotConnectedError, PayloadTooLargeError, ResultTimeoutError


@frozen
class InMemoryBucketBrokerSettings:
    """Settings of the in-memory bucket broker.

    Attributes:
        use_result_bucket: Accepted, and without effect: every bucket broker takes arguments and results. Default: False.
        max_payload: The largest bucket in bytes; larger ones raise `PayloadTooLargeError`. Default: None, for no limit.
    """

    use_result_bucket: bool = False
    max_payload: Size | None = field(default=None, validator=validators.optional([validators.instance_of(int), validators.ge(0)]))


class InMemoryBucketBroker(BucketBroker):
    """Keeps buckets inside one process. They outlive `disconnect`; a restart of the process loses them.

    What has expired is never returned, and its storage is freed by later writes. `wait_for` is pushed.

    Args:
        use_result_bucket: Accepted, and without effect: every bucket broker takes arguments and results.
        max_payload: The largest bucket in bytes; None for no limit.

    Raises:
        ValueError: `max_payload` is negative.
    """

    def __init__(self, use_result_bucket: bool = False, max_payload: int | None = None) -> None:
        settings = InMemoryBucketBrokerSettings(use_result_bucket, max_payload)
        self.limits = Limits(max_payload=settings.max_payload)
        self._buckets: dict[str, tuple[bytes, datetime | None]] = {}
        self._deadlines: list[tuple[datetime, str]] = []  # a heap; an item whose bucket has another deadline is void
        self._waiting: dict[str, set[asyncio.Future[bytes]]] = {}
        self._connected = False

    @classmethod
    def from_settings(cls, settings: InMemoryBucketBrokerSettings) -> InMemoryBucketBroker:
        """Make one as configured."""
        return cls(settings.use_result_bucket, settings.max_payload)

    async def connect(self) -> None:
        self._connected = True

    async def disconnect(self) -> None:
        self._connected = False
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(NotConnectedError())

    def _check(self) -> None:
        if not self._connected:
            raise NotConnectedError

    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        self._check()
        limit = self.limits.max_payload
        if limit is not None and len(data) > limit:
            raise PayloadTooLargeError(len(data), limit, "store less, or give the bucket broker a larger max_payload")
        deadline = None
        if ttl is not None or self._deadlines:
            now = self.clock.now()
            self._free(now)
            if ttl is not None:
                deadline = now + ttl
                heappush(self._deadlines, (deadline, id_))
        self._buckets[id_] = (data, deadline)
        for waiter in self._waiting.get(id_, ()):
            if not waiter.done():
                waiter.set_result(data)

    def _free(self, now: datetime) -> None:
        """Drop what has expired; and void deadlines, once they are the greater part."""
        buckets, deadlines = self._buckets, self._deadlines
        while deadlines and deadlines[0][0] <= now:
            deadline, id_ = heappop(deadlines)
            if (bucket := buckets.get(id_)) is not None and bucket[1] == deadline:
                del buckets[id_]
        if len(deadlines) > 2 * len(buckets) + 8:
            deadlines[:] = [(deadline, id_) for id_, (_, deadline) in buckets.items() if deadline is not None]
            heapify(deadlines)

    async def get_bucket(self, id_: str) -> bytes | None:
        self._check()
        data, deadline = self._buckets.get(id_, (None, None))
        return data if deadline is None or self.clock.now() < deadline else None

    async def delete_bucket(self, id_: str) -> None:
        self._check()
        self._buckets.pop(id_, None)

    async def store_many(self, buckets: Sequence[tuple[str, bytes, timedelta | None]]) -> None:
        for bucket in buckets:
            await self.store_bucket(*bucket)

    async def get_many(self, ids: Sequence[str]) -> list[bytes | None]:
        return [await self.get_bucket(id_) for id_ in ids]

    async def delete_many(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            await self.delete_bucket(id_)

    async def wait_for(self, id_: str, timeout: timedelta | None) -> bytes:
        if (data := await self.get_bucket(id_)) is not None:
            return data
        waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        timer = None if timeout is None else self.clock.call_at(self.clock.now() + timeout, lambda: _time_out(waiter))
        self._waiting.setdefault(id_, set()).add(waiter)
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            waiters = self._waiting[id_]
            waiters.discard(waiter)
            if not waiters:
                del self._waiting[id_]


def _time_out(waiter: asyncio.Future[bytes]) -> None:
    if not waiter.done():
        waiter.set_exception(ResultTimeoutError())
