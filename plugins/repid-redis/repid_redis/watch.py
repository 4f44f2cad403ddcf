"""Waiting for keys, of which the server tells when they are there.

What is read over a connection with `CLIENT TRACKING` is remembered by the server, which pushes a word once it is written. So one
command looks and subscribes at once, nothing can happen unheard in between, and who stores something need not tell anybody.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import Any, Final

from attrs import define, field
from hiredis import PushNotification, pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, RedisError, ResponseError

from repid_core.errors import BucketBrokerError, BucketConnectionError, NotConnectedError
from repid_redis.errors import explain
from repid_redis.settings import RedisSettings
from repid_redis.topology import Topology

logger = logging.getLogger(__name__)

_LOOK: Final = 2.5  # seconds from one look to the next, for what has been waited for since the last
_IDLE: Final = 60.0  # seconds that a connection is kept of which nobody wants anything
_AT_ONCE: Final = 100  # keys in one command, most of which are not there
_LOOKED_AT: Final = 16  # the same, when all may be
_TRUSTED: Final = 3  # pushes for a key that is not there, after which the next ones are not followed at once


_Look = Callable[[Sequence[str]], Awaitable[Sequence[bytes | None]]]


class UntoldError(Exception):
    """The server cannot tell, or this client may not ask it to."""


class OutOfSightError(Exception):
    """The time is over, and the server is away; the cause says why."""


@define(eq=False)
class _Wait:
    """Who waits for a key.

    Attributes:
        futures: They get what it holds.
        line: Where it is asked for; None if that is not known.
        pushes: How often the server has said that it changed.
    """

    futures: list[asyncio.Future[bytes]] = field(factory=list)
    line: _Line | None = None
    pushes: int = 0


class Watch:
    """Waits for keys. Connections are open only while somebody waits, and a minute more.

    Args:
        topology: Where the servers are.
        settings: For time limits.
        look: Reads keys over another connection. What waits for long is looked at so, now and then: a server may forget to
            tell, as when a cluster gives a key to another node.

    Attributes:
        able: Whether servers tell, as far as is known.
    """

    def __init__(self, topology: Topology, settings: RedisSettings, look: _Look) -> None:
        self.topology, self.settings, self._look = topology, settings, look
        self.able = True
        self._waits: dict[str, _Wait] = {}
        self._lines: dict[str | None, _Line] = {}
        self._unplaced: Exception | None = None  # why it is not known which node to ask
        self._sweeper: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def wait(self, key: str, seconds: float | None) -> bytes:
        """Wait until a key is there.

        Args:
            key: The key.
            seconds: The longest wait; None for ever.

        Returns:
            What it holds.

        Raises:
            TimeoutError: The time is over.
            OutOfSightError: The same, and the server is away.
            UntoldError: The server does not tell.
            NotConnectedError: The watch was closed.
            BucketBrokerError: The server refuses to say what the key holds.
        """
        future: asyncio.Future[bytes] = self._loop.create_future()
        timer = None if seconds is None else self._loop.call_later(seconds, _fail, future, TimeoutError())
        wait = self._waits.get(key)
        if wait is None:
            wait = self._waits[key] = _Wait()
        wait.futures.append(future)
        try:
            if wait.line is None:
                await self._place(key, wait)
            if self._sweeper is None or self._sweeper.done():
                self._sweeper = self._loop.create_task(self._sweep(), name="repid redis watch")
            return await future
        except TimeoutError:
            trouble = self._unplaced if wait.line is None else wait.line.error
            if trouble is not None:
                raise OutOfSightError from trouble
            raise
        finally:
            if timer is not None:
                timer.cancel()
            wait.futures.remove(future)
            if not wait.futures:
                self._forget(key, wait)

    async def close(self) -> None:
        """Close all connections, and end all waits."""
        tasks = [line.task for line in self._lines.values()]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for wait in self._waits.values():
            for future in wait.futures:
                _fail(future, NotConnectedError())

    # -- what lines have to say ----------------------------------------------------------------------------------------------

    def found(self, key: str, value: bytes | None) -> None:
        """The server has said what a key holds."""
        wait = self._waits.get(key)
        if wait is None or value is None:
            return
        for future in wait.futures:
            if not future.done():
                future.set_result(value)
        self._forget(key, wait)

    def changed(self, key: str) -> None:
        """The server has said that a key has changed."""
        wait = self._waits.get(key)
        if wait is None or wait.line is None:
            return
        wait.pushes += 1
        if wait.pushes <= _TRUSTED:
            wait.line.read(key)
        else:  # it remembers fewer keys than it is asked for: to follow each push would make it forget all the more
            self._loop.call_later(min(1.0, 0.01 * 2 ** min(wait.pushes, 10)), wait.line.read, key)

    def untold(self, error: Exception) -> None:
        """The server has refused to tell."""
        if self.able:
            logger.warning(
                "the server does not tell of results, so they are polled for. %s", explain(error, self.topology.address)
            )
        self.able = False
        for wait in self._waits.values():
            for future in wait.futures:
                _fail(future, UntoldError())

    async def move(self, keys: Iterable[str]) -> None:
        """Ask the right nodes of a cluster for these keys: it may serve them elsewhere now."""
        with suppress(RedisError, OSError):  # who looks for a node tries again
            await self.topology.refresh()
        for key in keys:
            if (wait := self._waits.get(key)) is not None:
                await self._place(key, wait)

    # -- inside --------------------------------------------------------------------------------------------------------------

    async def _place(self, key: str, wait: _Wait) -> None:
        """Ask the node that serves a key for it."""
        try:
            node = await self.topology.node_of(key)
        except (RedisError, OSError) as error:
            self._unplaced = error  # the sweeper tries again
            return
        self._unplaced = None
        if self._waits.get(key) is not wait:  # nobody waits for it any more
            return
        line = self._lines.get(node)
        if line is None or line.task.done():
            line = self._lines[node] = _Line(self, node)
        if wait.line is not line:
            if wait.line is not None:
                wait.line.keys.discard(key)
            wait.line = line
            line.keys.add(key)
            line.ask(key)

    def _forget(self, key: str, wait: _Wait) -> None:
        if self._waits.get(key) is wait:
            del self._waits[key]
            if wait.line is not None:
                wait.line.keys.discard(key)

    async def _sweep(self) -> None:
        """Look at what is waited for, now and then."""
        seen: set[str] = set()
        while self._waits:
            await asyncio.sleep(_LOOK)
            old = [key for key in self._waits if key in seen]
            seen = set(self._waits)
            clustered = self.settings.mode == "cluster"
            for key in old:
                wait = self._waits.get(key)
                if wait is not None and (clustered or wait.line is None or wait.line.task.done()):
                    await self._place(key, wait)  # somewhere else, if its slot has moved
            size = 1 if clustered else _LOOKED_AT
            parts = [old[start : start + size] for start in range(0, len(old), size)]
            await asyncio.gather(*(self._look_at(part) for part in parts))

    async def _look_at(self, keys: list[str]) -> None:
        try:
            for key, value in zip(keys, await self._look(keys), strict=True):
                self.found(key, value)
        except BucketConnectionError:
            return  # who waits, waits until the store is back
        except BucketBrokerError as error:
            for key in keys:
                if (wait := self._waits.get(key)) is not None:
                    for future in wait.futures:
                        _fail(future, error)


class _Line:
    """The connection to one server.

    Attributes:
        keys: What is asked for here.
        error: Why there is no connection; None while there is one, or the first is being made.
        task: Ends when nobody has wanted anything for a while.
    """

    def __init__(self, watch: Watch, node: str | None) -> None:
        self.keys: set[str] = set()
        self.error: Exception | None = None
        self._watch, self._node = watch, node
        self._clustered = watch.settings.mode == "cluster"
        self._patience = watch.settings.reply_deadline.total_seconds()
        self._loop = asyncio.get_running_loop()
        self._up = False
        self._to_ask: list[str] = []
        self._to_read: list[str] = []
        self._expected: deque[tuple[bool, list[str]]] = deque()  # replies: whether the server remembers the keys, and these
        self._replied = 0.0  # when the last reply came, or none was expected
        self._wake: asyncio.Future[None] | None = None  # of the sender
        self.task = self._loop.create_task(self._run(), name="repid redis watch")

    def ask(self, key: str) -> None:
        """Read a key, and let the server tell when it changes; with this turn's packet, or once there is a connection."""
        if self._up:  # else all that is still wanted then is asked for
            self._to_ask.append(key)
            self._stir()

    def read(self, key: str) -> None:
        """Read a key, no more."""
        if self._up:
            self._to_read.append(key)
            self._stir()

    def _stir(self) -> None:
        if self._wake is not None:
            self._wake.set_result(None)
            self._wake = None

    async def _run(self) -> None:
        shortest, longest = (pause.total_seconds() for pause in self._watch.settings.reconnect_backoff)
        pause = shortest
        while self.keys:
            try:
                connection = await self._watch.topology.connect(self._node, pushes=True)
                try:
                    await self._serve(connection)
                    pause = shortest
                finally:
                    await connection.disconnect(nowait=True)
            except ResponseError as error:  # to HELLO, or to CLIENT
                self._watch.untold(error)
                return
            except (RedisError, OSError) as error:
                if self.error is None:
                    logger.warning("is not told of results: %s", explain(error, self._node or self._watch.topology.address))
                else:
                    pause = min(2 * pause, longest)
                self.error = error
            if self._clustered:
                await self._watch.move(list(self.keys))
            if self.keys:
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 — jitter

    async def _serve(self, connection: AbstractConnection) -> None:
        """Send and receive until something goes wrong, or nobody has wanted anything for a while."""
        await connection.send_command("CLIENT", "TRACKING", "ON", "OPTIN", check_health=False)
        async with asyncio.timeout(self._patience):
            await connection.read_response()
        self.error = None
        self._expected.clear()
        self._wake = None  # the last sender's: it waits no more
        self._to_ask, self._to_read, self._up = list(self.keys), [], True
        steps = (self._send(connection), self._receive(connection), self._guard())
        tasks = [self._loop.create_task(step, name="repid redis watch") for step in steps]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._up = False
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _send(self, connection: AbstractConnection) -> None:
        while True:
            if not self._to_ask and not self._to_read:
                self._wake = self._loop.create_future()
                await self._wake
            if not self._expected:
                self._replied = self._loop.time()
            packet: list[bytes] = []
            read = "GET" if self._clustered else "MGET"
            for part in self._parts(self._to_ask):
                packet.append(_packed("CLIENT", "CACHING", "YES"))
                self._expected.append((True, []))
                packet.append(_packed(read, *part))
                self._expected.append((True, part))
            for part in self._parts(self._to_read):
                packet.append(_packed(read, *part))
                self._expected.append((False, part))
            self._to_ask, self._to_read = [], []
            if packet:
                if not connection.is_connected:  # it would connect by itself, and nothing be remembered
                    raise RedisConnectionError("the connection was closed")
                await connection.send_packed_command(packet, check_health=False)

    def _parts(self, keys: list[str]) -> list[list[str]]:
        """Those still wanted, each once, by commands; keys of a cluster have one each, as they may be of several slots."""
        wanted = [key for key in dict.fromkeys(keys) if key in self.keys]
        size = 1 if self._clustered else _AT_ONCE
        return [wanted[start : start + size] for start in range(0, len(wanted), size)]

    async def _receive(self, connection: AbstractConnection) -> None:
        expected = self._expected
        while True:
            try:
                reply = await connection.read_response(timeout=inf, push_request=True)
            except MovedError:
                return  # to where the cluster serves the key now
            except ResponseError as error:
                logger.debug("a key could not be read: %s", error)  # the sweeper will see, for each key by itself
                expected.popleft()
                continue
            if isinstance(reply, PushNotification):
                if reply[0] == b"invalidate":
                    changed = list(self.keys) if reply[1] is None else [key.decode() for key in reply[1]]
                    for key in changed:  # all of them, if somebody has flushed the database
                        self._watch.changed(key)
                continue
            remembered, keys = expected.popleft()
            self._replied = self._loop.time()
            for key, value in zip(keys, reply if isinstance(reply, list) else (reply,), strict=bool(keys)):
                self._watch.found(key, value)
                if value is None and not remembered:
                    self.ask(key)

    async def _guard(self) -> None:
        """End when nobody has wanted anything for a while, or the other side is gone without a word."""
        used = self._loop.time()
        while True:
            await asyncio.sleep(min(_LOOK, self._patience))
            now = self._loop.time()
            if self._expected and now - self._replied >= self._patience:
                raise RedisConnectionError(f"no reply within {self._patience:g} s")
            if self.keys:
                used = now
                if not self._expected:
                    self.read(next(iter(self.keys)))  # so that its going would show
            elif now - used >= _IDLE:
                return


def _packed(*command: Any) -> bytes:
    packed: bytes = pack_command(command)
    return packed


def _fail(future: asyncio.Future[bytes], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
