"""The bucket broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from attrs import asdict, evolve

from repid_core.abc import BucketBroker
from repid_core.data import Limits
from repid_core.errors import (
    BucketBrokerError,
    BucketConnectionError,
    NotConnectedError,
    PayloadTooLargeError,
    ResultTimeoutError,
)
from repid_sqlite import buckets, sessions
from repid_sqlite.buckets import Stored
from repid_sqlite.database import Database
from repid_sqlite.settings import SqliteBucketBrokerSettings
from repid_sqlite.transaction import Transaction, key_of

_AT_ONCE = 500  # buckets in one transaction, so that other processes get their turn
_MICROSECOND = timedelta(microseconds=1)


class SqliteBucketBroker(BucketBroker):
    """Arguments and results in a file of SQLite, which the processes of one machine share.

    Args:
        url: The file; see `SqliteBucketBrokerSettings`, whose other fields are taken by name.
    """

    def __init__(self, url: str | Path, **settings: Any) -> None:
        self.settings = SqliteBucketBrokerSettings(url, **settings)
        self.limits = Limits(max_payload=self.settings.max_payload)
        self._open: Database | None = None
        self._standing = _Standing()
        self._channel = f"{self.settings.space}:/buckets"  # no queue's name has a slash
        self._listening = False

    @classmethod
    def from_settings(cls, settings: SqliteBucketBrokerSettings) -> Self:
        """Make one as configured."""
        return cls(settings.url, **{name: value for name, value in asdict(settings).items() if name != "url"})

    @property
    def _database(self) -> Database:
        if self._open is None:
            raise NotConnectedError
        return self._open

    async def connect(self) -> None:
        if self._open is not None:
            if self._open.is_here():
                return
            self._open.forsake()
            self._standing = _Standing()
        self._listening = False
        self._open = Database(self.settings, self.clock, BucketConnectionError, BucketBrokerError, self._standing)
        try:
            await self._open.open()
            if not self._open.woken:
                self.limits = evolve(self.limits, wake_up=self.settings.poll)
        except BaseException:
            await self.disconnect()
            raise

    async def disconnect(self) -> None:
        database, self._open = self._open, None
        if database is not None:
            await database.close()
        self._standing.give_up(BucketConnectionError(f"{self.settings.path} was closed while something waited for a bucket"))

    async def ping(self) -> None:
        await self._database.call(buckets.FIND, ())

    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        await self.store_many([(id_, data, ttl)])

    async def store_many(self, buckets_: Sequence[tuple[str, bytes, timedelta | None]]) -> None:
        rows = [self._row(*bucket) for bucket in buckets_]
        for start in range(0, len(rows), _AT_ONCE):
            await self._database.call(buckets.STORE, (self._channel, rows[start : start + _AT_ONCE]))

    def _row(self, id_: str, data: bytes, ttl: timedelta | None) -> Stored:
        if (size := len(data)) > self.settings.max_payload:
            raise PayloadTooLargeError(size, self.settings.max_payload, "store less, or raise max_payload")
        expires = None if ttl is None else self.clock.time_ns() // 1000 + ttl // _MICROSECOND
        return Stored(self._name(id_), data, expires)

    def _name(self, id_: str) -> str:
        return f"{self.settings.space}:{id_}"

    async def get_bucket(self, id_: str) -> bytes | None:
        name = self._name(id_)
        return (await self._database.call(buckets.FIND, (name,))).get(name)

    async def get_many(self, ids: Sequence[str]) -> list[bytes | None]:
        names = [self._name(id_) for id_ in ids]
        found: dict[str, bytes] = {}
        for start in range(0, len(names), _AT_ONCE):
            part = await self._database.call(buckets.FIND, names[start : start + _AT_ONCE])
            found |= part
        return [found.get(name) for name in names]

    async def delete_bucket(self, id_: str) -> None:
        await self._database.call(buckets.DELETE, (self._name(id_),))

    async def delete_many(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), _AT_ONCE):
            await self._database.call(buckets.DELETE, [self._name(id_) for id_ in ids[start : start + _AT_ONCE]])

    async def wait_for(self, id_: str, timeout: timedelta | None) -> bytes:
        if (data := await self.get_bucket(id_)) is not None:
            return data
        if timeout is not None and timeout <= timedelta(0):
            raise ResultTimeoutError
        if not self._listening:
            await self._database.call(sessions.LISTEN, self._channel)
            self._listening = True
        waiter = self._standing.add(self._name(id_))
        self._database.look_again()
        timer = None
        if timeout is not None:
            timer = self.clock.call_at(self.clock.now() + timeout, lambda: _give_up(waiter, ResultTimeoutError()))
        try:
            return await waiter
        finally:
            self._standing.remove(self._name(id_), waiter)
            if timer is not None:
                timer.cancel()


class _Standing:
    """The buckets that somebody waits for."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[asyncio.Future[bytes]]] = {}
        self._found: list[str] = []

    def add(self, name: str) -> asyncio.Future[bytes]:
        """Wait for a bucket."""
        waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiters[name] = [*self._waiters.get(name, ()), waiter]
        return waiter

    def remove(self, name: str, waiter: asyncio.Future[bytes]) -> None:
        """Wait no more."""
        left = [one for one in self._waiters.get(name, ()) if one is not waiter]
        if left:
            self._waiters[name] = left
        else:
            self._waiters.pop(name, None)

    def give_up(self, error: Exception) -> None:
        """End all waiting."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                _give_up(waiter, error)

    def waits(self) -> bool:
        return bool(self._waiters)

    def look(self, tx: Transaction, keys: set[bytes] | None) -> bool:
        self._found = [name for name in list(self._waiters) if keys is None or key_of(name) in keys]
        return False if not self._found else bool(buckets.find(tx, self._found))

    def take(self, tx: Transaction) -> list[tuple[str, bytes]]:
        return list(buckets.find(tx, self._found).items())

    def taken(self, arrivals: list[tuple[str, bytes]]) -> None:
        pass

    def arrive(self, arrivals: list[tuple[str, bytes]]) -> None:
        for name, data in arrivals:
            for waiter in self._waiters.get(name, ()):
                if not waiter.done():
                    waiter.set_result(data)

    def due(self, tx: Transaction) -> int | None:
        return None

    def lost(self) -> None:
        pass


def _give_up(waiter: asyncio.Future[bytes], error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)
