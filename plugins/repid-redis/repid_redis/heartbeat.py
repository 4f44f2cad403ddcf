"""Keeps the leases of consumers, from a thread of its own: an event loop that user code blocks does not lose its jobs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from attrs import evolve, field, frozen
from redis.exceptions import RedisError

from repid_redis.client import Client
from repid_redis.scripts import BEAT
from repid_redis.settings import RedisMessageBrokerSettings
from repid_redis.topology import topology

logger = logging.getLogger(__name__)


@frozen(eq=False)
class Session:
    """What holds a lease: one consumer, until it is closed or found dead.

    Attributes:
        name: Its first letter is the category: n, d or x.
        base: What the keys of its queue begin with.
        heard: Called on the consumer's loop after each heartbeat, with whether the session is known, and milliseconds until
            the next delayed message falls due (-1: there is none).
    """

    name: str
    base: str
    heard: Callable[[bool, int], None] = field(repr=False)


class Heartbeat:
    """Renews the leases of some sessions, and ends those of the dead.

    Args:
        settings: `lease`, `heartbeat_interval`, and whether a thread of its own is used.
        client: What is used if there is to be no thread.
    """

    def __init__(self, settings: RedisMessageBrokerSettings, client: Client) -> None:
        self._settings, self._client = settings, client
        self._interval = settings.heartbeat_interval or settings.lease / 3
        self._sessions: set[Session] = set()
        self._loop = asyncio.get_running_loop()
        self._turned = time.monotonic()  # when this loop was last seen to turn
        self._turning: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._end: Callable[[], None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._lock = threading.Lock()
        self._stopping = self._complained = False

    def add(self, session: Session) -> None:
        """Keep its lease from now on."""
        self._sessions = self._sessions | {session}  # a new set: the thread may be walking through the old one
        if self._task is None and self._thread is None:
            self._start()

    def remove(self, session: Session) -> None:
        """Keep it no longer."""
        self._sessions = self._sessions - {session}

    async def stop(self) -> None:
        """End the thread."""
        if self._turning is not None:
            self._turning.cancel()
            self._turning = None
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._thread is not None and self._ended is not None:
            self.abandon()
            await self._ended
            self._thread.join()
            self._thread = None

    def abandon(self) -> None:
        """Beat no more, and do not wait for what is on its way."""
        self._sessions = set()
        if self._task is not None:
            self._task.cancel()
        with self._lock:
            self._stopping = True
            if self._end is not None:
                self._end()

    def _complain(self, text: str, error: Exception) -> None:
        """Once, until all is well again."""
        if not self._complained:
            logger.warning(text, error)
        self._complained = True

    def _start(self) -> None:
        self._stopping = False
        if not self._settings.heartbeat_thread:
            self._task = self._loop.create_task(self._beat(self._client), name="repid redis heartbeat")
            return
        self._turn()
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, name="repid redis heartbeat", daemon=True)
        self._thread.start()

    def _turn(self) -> None:
        self._turned = time.monotonic()
        self._turning = self._loop.call_later(self._interval.total_seconds(), self._turn)

    def _work(self) -> None:
        """The thread."""
        try:
            asyncio.run(self._beat_apart())
        except Exception:
            logger.exception("the heartbeat has ended, so this worker's leases will run out")
        finally:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._say_ended)

    def _say_ended(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def _beat_apart(self) -> None:
        shortest, longest = self._settings.reconnect_backoff
        backoff = min(shortest, self._interval), min(longest, self._interval)  # it has to be back before leases are over
        settings = evolve(self._settings, reconnect_backoff=backoff)
        client = Client(topology(settings), settings)
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()

        def end() -> None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(lambda: task and task.cancel())

        with self._lock:
            self._end = end
            if self._stopping:
                return
        try:
            while True:
                try:
                    await client.open()
                    break
                except (RedisError, OSError) as error:
                    self._complain("the heartbeat has no connection: %s", error)
                    await asyncio.sleep(self._interval.total_seconds())
            await self._beat(client)
        except asyncio.CancelledError:
            pass
        finally:
            with self._lock:
                self._end = None
            await client.close()

    async def _beat(self, client: Client) -> None:
        settings = self._settings
        lease, interval = settings.lease // timedelta(milliseconds=1), self._interval.total_seconds()
        count, age = settings.dead_max_count or 0, (settings.dead_max_age or timedelta(0)) // timedelta(milliseconds=1)
        arguments = (lease, settings.max_deliveries, count, age)
        while True:
            began = time.monotonic()
            blocked = began - self._turned if self._thread is not None else 0
            if not self._loop.is_closed() and blocked < settings.max_blocked.total_seconds():
                await asyncio.gather(*(self._renew(client, session, arguments) for session in self._sessions))
            await asyncio.sleep(max(0.0, interval - (time.monotonic() - began)))

    async def _renew(self, client: Client, session: Session, arguments: tuple[int, ...]) -> None:
        try:
            known, next_due, taken = (await client.run(BEAT, session.base, session.name, *arguments)).value
        except (RedisError, OSError) as error:
            self._complain("leases could not be renewed: %s", error)
            return
        self._complained = False
        if taken:
            logger.warning("%d messages of dead workers are given to others", taken, extra={"taken": taken})
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(session.heard, bool(known), next_due)
