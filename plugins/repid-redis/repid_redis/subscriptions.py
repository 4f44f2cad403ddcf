"""What the server pushes: one connection on which all who wait for something are told of it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from math import inf
from typing import Any

from attrs import define, field
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)


@define(eq=False)
class Subscription:
    """One who waits for a channel.

    Attributes:
        told: Set once something was said, or may have been said unheard.
        data: What was said; empty if that is not known.
        begun: Set once nothing that is said from now on goes unheard.
    """

    told: asyncio.Event = field(factory=asyncio.Event)
    data: bytes = b""
    begun: asyncio.Event = field(factory=asyncio.Event)


class Subscriptions:
    """Subscribes to channels as long as somebody waits for them.

    Args:
        connect: Makes a connection.
        backoff: The shortest and the longest pause between attempts to connect.
    """

    def __init__(self, connect: Callable[[], Awaitable[AbstractConnection]], backoff: tuple[timedelta, timedelta]) -> None:
        self._connect, self._backoff = connect, backoff
        self._waiting: dict[str, list[Subscription]] = {}
        self._news: dict[str, bool] = {}  # channels to subscribe to, or to leave, with the next packet
        self._has_news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, channel: str) -> Subscription:
        """Wait for a channel from now on."""
        subscription = Subscription()
        waiting = self._waiting.setdefault(channel, [])
        waiting.append(subscription)
        if len(waiting) == 1:
            self._tell(channel, join=True)
        elif waiting[0].begun.is_set():
            subscription.begun.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="repid redis subscriptions")
        return subscription

    def unsubscribe(self, channel: str, subscription: Subscription) -> None:
        """Wait no longer."""
        waiting = self._waiting.get(channel, [])
        with suppress(ValueError):
            waiting.remove(subscription)
        if not waiting and self._waiting.pop(channel, None) is not None:
            self._tell(channel, join=False)

    async def close(self) -> None:
        """Close the connection. Who waits is told that something may have been said."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._stir()

    def _tell(self, channel: str, *, join: bool) -> None:
        self._news[channel] = join
        self._has_news.set()

    def _stir(self) -> None:
        """Something may have been said unheard."""
        for waiting in self._waiting.values():
            for subscription in waiting:
                subscription.begun.set()
                subscription.told.set()

    async def _run(self) -> None:
        shortest, longest = (pause.total_seconds() for pause in self._backoff)
        pause = shortest
        while True:
            try:
                connection = await self._connect()
            except (RedisError, OSError) as error:
                logger.warning("cannot be told of results, and looks for them: %s", error)
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 — jitter
                pause = min(2 * pause, longest)
                continue
            pause = shortest
            self._news = dict.fromkeys(self._waiting, True)
            self._has_news.set()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._speak(connection))
                    group.create_task(self._listen(connection))
            except* (RedisError, OSError):
                self._stir()
            finally:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(shortest)

    async def _speak(self, connection: AbstractConnection) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            news, self._news = self._news, {}
            for command, join in (("SUBSCRIBE", True), ("UNSUBSCRIBE", False)):
                if channels := [channel for channel, joins in news.items() if joins is join]:
                    await connection.send_command(command, *channels, check_health=False)

    async def _listen(self, connection: AbstractConnection) -> None:
        while True:
            message: Any = await connection.read_response(timeout=inf)
            kind, channel = message[0], message[1].decode()
            waiting = self._waiting.get(channel, ())
            if kind == b"subscribe":
                for subscription in waiting:
                    subscription.begun.set()
            elif kind == b"message":
                for subscription in waiting:
                    subscription.data = message[2]
                    subscription.told.set()
