"""One connection to a server that many calls share.

What is called in one turn of the loop is sent in one packet, and replies come in the order of the calls: one connection then
does the work of a pool, at several times the speed. The price is that order is all that links a reply to its call. So nothing
may be taken out of the line: who cancels a call only stops waiting for its reply, and after any error on the way the
connection, with all that waits on it, is given up for a new one.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from math import inf
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

_SHORTEST_WATCH = 0.05  # seconds

Reply = asyncio.Future[Any]


class LinkLostError(RedisConnectionError):
    """There is no connection, or it was lost before the reply.

    Attributes:
        sent: Whether the server may have got the call.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class Link:
    """One connection, which is made anew when it is lost.

    Args:
        connect: Makes a connected `Connection` of redis-py that has no time limits of its own.
        patience: How long a reply may take before the connection is taken for dead.
        backoff: The shortest and the longest pause between attempts to connect.

    Attributes:
        error: Why the last attempt to connect failed; None once one has succeeded.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AbstractConnection]],
        *,
        patience: timedelta,
        backoff: tuple[timedelta, timedelta],
    ) -> None:
        self._connect, self._patience = connect, patience.total_seconds()
        self._pauses = backoff[0].total_seconds(), backoff[1].total_seconds()
        self._loop = asyncio.get_running_loop()
        self._connection: AbstractConnection | None = None
        self._unsent: list[bytes] = []
        self._pending: deque[Reply] = deque()
        self._replied = 0.0  # when the last reply came, or the line was empty
        self._changed: Reply = self._loop.create_future()  # set when it is up, or an attempt has failed
        self._wake: Reply | None = None  # of the sender
        self.error: Exception | None = None
        self._task = self._loop.create_task(self._run(), name="repid redis link")

    @property
    def is_up(self) -> bool:
        """Whether calls can be sent."""
        return self._connection is not None

    async def up(self, deadline: float) -> None:
        """Wait until calls can be sent.

        Args:
            deadline: By the loop's time.

        Raises:
            Exception: What the last attempt to connect failed with, or TimeoutError.
        """
        while self._connection is None:
            if self._task.done():
                raise LinkLostError("the link is closed", sent=False)
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(self._changed)
            except TimeoutError:
                raise self.error or TimeoutError("no connection in time") from None

    def call(self, *command: Any) -> Reply:
        """Send a command with this turn's packet; the future gets the reply, an error reply as exception.

        Raises:
            LinkLostError: There is no connection; nothing was sent.
        """
        if self._connection is None:
            raise LinkLostError("there is no connection", sent=False)
        reply = self._loop.create_future()
        if not self._pending:
            self._replied = self._loop.time()
        self._unsent.append(pack_command(command))
        self._pending.append(reply)
        if self._wake is not None:
            self._wake.set_result(None)
            self._wake = None
        return reply

    def drop(self) -> None:
        """Give up the connection, if there is one, for a new one: the server said that it is not the right one any more."""
        self._connection = None
        if self._wake is not None:  # the sender sees it, and ends
            self._wake.set_result(None)
            self._wake = None

    async def close(self) -> None:
        """Close the connection. Calls that wait for a reply fail."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def abandon(self) -> None:
        """End as if the process had died: without a word to the server."""
        self._task.cancel()

    # -- the connection's life ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        shortest, longest = self._pauses
        pause = shortest
        try:
            while True:
                began = self._loop.time()
                try:
                    connection = await self._connect()
                except (RedisError, OSError, TimeoutError) as error:
                    self.error = error
                    self._tell()
                else:
                    await self._serve(connection)
                    if self._loop.time() - began > longest:  # it was good for something, so another may be had at once
                        pause = shortest
                        continue
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 — jitter
                pause = min(2 * pause, longest)
        finally:
            self._connection = None
            self._fail(LinkLostError("the link is closed", sent=True))
            self._tell()

    async def _serve(self, connection: AbstractConnection) -> None:
        """Send and receive until something goes wrong."""
        self.error, self._connection = None, connection
        self._tell()
        tasks = [
            self._loop.create_task(step, name="repid redis link")
            for step in (self._send(connection), self._receive(connection), self._watch())
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connection = None
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(Exception):
                await connection.disconnect(nowait=True)
            reason = next((error for error in ended if isinstance(error, Exception)), None)
            lost = LinkLostError(f"the connection was lost: {reason}" if reason else "the connection was given up", sent=True)
            lost.__cause__ = reason
            self._fail(lost)

    async def _send(self, connection: AbstractConnection) -> None:
        while self._connection is connection:
            if not self._unsent:
                self._wake = self._loop.create_future()
                await self._wake
                continue
            packet, self._unsent = self._unsent, []
            if not connection.is_connected:  # it would connect by itself, and lose the order of replies
                raise RedisConnectionError("the connection was closed")
            await connection.send_packed_command(packet, check_health=False)

    async def _receive(self, connection: AbstractConnection) -> None:
        pending, loop = self._pending, self._loop
        while True:
            value, error = None, None
            try:
                value = await connection.read_response(timeout=inf)
            except RedisConnectionError:
                raise  # LOADING and the like are such errors too
            except ResponseError as refused:
                error = refused
            reply = pending.popleft()
            self._replied = loop.time()
            if reply.done():  # nobody waits for it any more
                continue
            if error is None:
                reply.set_result(value)
            else:
                reply.set_exception(error)

    async def _watch(self) -> None:
        """End when a reply is overdue: the other side may be gone without a word."""
        while True:
            left = self._patience if not self._pending else self._replied + self._patience - self._loop.time()
            if left <= 0:
                raise RedisConnectionError(f"no reply within {self._patience:g} s")
            await asyncio.sleep(max(left, _SHORTEST_WATCH))

    def _tell(self) -> None:
        changed, self._changed = self._changed, self._loop.create_future()
        changed.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._unsent = []
        while self._pending:
            reply = self._pending.popleft()
            if not reply.done():
                reply.set_exception(error)
                reply.exception()  # who does not wait for it need not hear of it
