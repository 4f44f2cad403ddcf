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
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from datetime import timedelta
from math import inf
from types import coroutine
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
        self._scheduled = False  # whether what is unsent will be sent in this turn
        self._draining: asyncio.Task[None] | None = None  # while the transport takes no more
        self._fault: Reply = self._loop.create_future()  # set when the connection is of no use any more
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

    def call(self, *command: Any, more: bool = False) -> Reply:
        """Send a command: at once if nothing is under way, else with all others of this turn of the loop.

        Args:
            command: Its words.
            more: Whether another call follows, with which it is to be sent.

        Returns:
            A future for the reply; an error reply is its exception.

        Raises:
            LinkLostError: There is no connection; nothing was sent.
        """
        if self._connection is None:
            raise LinkLostError("there is no connection", sent=False)
        reply = self._loop.create_future()
        if not self._pending:
            self._replied = self._loop.time()
        idle = len(self._pending) == len(self._unsent)
        self._unsent.append(pack_command(command))
        self._pending.append(reply)
        if more or self._scheduled:
            return reply
        if idle:
            self._flush()
        else:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return reply

    def drop(self) -> None:
        """Give up the connection, if there is one, for a new one: the server said that it is not the right one any more."""
        if self._connection is not None:
            self._break(RedisConnectionError("the connection was given up"))

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
        fault = self._fault = self._loop.create_future()
        tasks = [self._loop.create_task(step, name="repid redis link") for step in (self._receive(connection), self._watch())]
        try:
            await asyncio.wait([fault, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connection = None
            if self._draining is not None:
                tasks.append(self._draining)
            for task in tasks:
                task.cancel()
            fault.cancel()
            ended = await asyncio.gather(fault, *tasks, return_exceptions=True)
            with suppress(Exception):
                await connection.disconnect(nowait=True)
            reason = next((error for error in ended if isinstance(error, Exception)), None)
            lost = LinkLostError(f"the connection was lost: {reason}", sent=True)
            lost.__cause__ = reason
            self._fail(lost)

    def _break(self, error: Exception) -> None:
        """Have `_serve` end."""
        self._connection = None
        if not self._fault.done():
            self._fault.set_exception(error)

    def _flush(self) -> None:
        """Send what is unsent, without a task: it hardly ever has to wait."""
        self._scheduled = False
        connection = self._connection
        if connection is None or not self._unsent or self._draining is not None:
            return
        packet, self._unsent = self._unsent, []
        if not connection.is_connected:  # it would connect by itself, and lose the order of replies
            self._break(RedisConnectionError("the connection was closed"))
            return
        sending = connection.send_packed_command(packet, check_health=False)
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        except (RedisError, OSError) as error:
            self._break(error)
            return
        self._draining = self._loop.create_task(self._drain(sending, waits_for), name="repid redis link")

    async def _drain(self, sending: Coroutine[Any, Any, None], waits_for: Any) -> None:
        try:
            await _resume(sending, waits_for)
        except (RedisError, OSError) as error:
            self._break(error)
        finally:
            self._draining = None
        self._flush()

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


@coroutine
def _resume(begun: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Await a coroutine that has been begun, and now waits for something."""
    while True:
        error: BaseException | None = None
        value = None
        try:
            value = yield waits_for
        except BaseException as thrown:  # noqa: BLE001 — it is for the coroutine
            error = thrown
        try:
            waits_for = begun.send(value) if error is None else begun.throw(error)
        except StopIteration:
            return
