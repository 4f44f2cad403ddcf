"""The connection that jobs, queues and workers take if they are given none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from repid_core.connection import Connection
from repid_core.errors import NoConnectionError, UsageError
from repid_core.sync import SyncRepid, lent

_of_context: ContextVar[Connection | None] = ContextVar("repid_connection", default=None)
_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Connection]] = WeakKeyDictionary()


def current_connection() -> Connection:
    """The connection that this context, or else the running loop, is bound to; in a call of `SyncRepid`, its application's.

    Raises:
        NoConnectionError: There is none.
    """
    if (connection := lent.get()) is not None:
        return connection
    try:
        bound = _of_loop.get(asyncio.get_running_loop())
    except RuntimeError:
        raise NoConnectionError from None
    if not bound:
        raise NoConnectionError
    connection = _of_context.get()
    return connection if connection in bound else bound[-1]


class Repid:
    """An application: a connection, and whether it is bound.

    Inside `async with app.magic():` jobs, queues and workers find the connection by themselves, in every task of the
    running loop: a web handler sees what the application's start-up bound.

    Code that is not asynchronous calls `app.sync().enqueue(job)`.

    Args:
        connection: What to bind.
        middlewares: Added to the connection's.
    """

    def __init__(self, connection: Connection, middlewares: Sequence[Any] = ()) -> None:
        if not isinstance(connection, Connection):
            raise UsageError(f"Repid(connection=…) got {connection!r} and wants a Connection")
        self.connection = connection
        self._sync = SyncRepid(connection)
        for middleware in middlewares:
            connection.middleware.add(middleware)

    @asynccontextmanager
    async def magic(self, *, auto_disconnect: bool = False) -> AsyncIterator[Connection]:
        """Connect, unless it is connected, and bind; leaving restores the binding before.

        Args:
            auto_disconnect: Disconnect when leaving.
        """
        await self._connect()
        bound = _of_loop.setdefault(asyncio.get_running_loop(), [])
        before = _of_context.get(), lent.get()
        bound.append(self.connection)
        _of_context.set(self.connection)
        lent.set(None)
        try:
            yield self.connection
        finally:
            _of_context.set(before[0])
            lent.set(before[1])
            _unbind(bound, self.connection)
            if auto_disconnect:
                await self.connection.disconnect()

    async def magic_connect(self) -> Connection:
        """Connect, unless it is connected, and bind, until `magic_disconnect`."""
        await self._connect()
        _of_loop.setdefault(asyncio.get_running_loop(), []).append(self.connection)
        return self.connection

    async def magic_disconnect(self) -> None:
        """Undo `magic_connect`: restore the binding before, and disconnect."""
        _unbind(_of_loop.get(asyncio.get_running_loop(), []), self.connection)
        await self.connection.disconnect()

    def sync(self) -> SyncRepid:
        """The application for synchronous code, from any thread; the same object each time. Opens nothing."""
        return self._sync

    async def _connect(self) -> None:
        if self._sync.has_thread:  # its calls come to this loop from now on
            await asyncio.to_thread(self._sync.close)
        while not self.connection.is_open:
            if (opening := self.connection.opening) is not None:  # another task is about to
                await opening.wait()
            else:
                await self.connection.connect()
        self.connection.check()


def _unbind(bound: list[Connection], connection: Connection) -> None:
    """Take the newest binding of `connection` away; others may have come after it."""
    for index in range(len(bound) - 1, -1, -1):
        if bound[index] is connection:
            del bound[index]
            return
