"""The time that core and in-process brokers go by."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


class Timer(Protocol):
    """A callback that waits for its time."""

    def cancel(self) -> None:
        """Take the callback back; nothing happens if it has run."""


class Clock(ABC):
    """Tells the time and wakes at a time. A connection gives its clock to its brokers."""

    @abstractmethod
    def now(self) -> datetime:
        """The time, aware and in UTC."""

    def time_ns(self) -> int:
        """The same in nanoseconds since the epoch."""
        return (self.now() - _EPOCH) // _MICROSECOND * 1000

    @abstractmethod
    def call_at(self, when: datetime, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the running loop once, at `when` or soon after it; never from inside this call."""

    async def sleep(self, delay: timedelta) -> None:
        """Wait for `delay`; a delay of zero or less gives other tasks a turn."""
        woken = asyncio.get_running_loop().create_future()
        timer = self.call_at(self.now() + delay, lambda: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            timer.cancel()


class SystemClock(Clock):
    """The machine's clock. A step of the system time moves deadlines with it, at most a minute late."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def time_ns(self) -> int:
        return time.time_ns()

    def call_at(self, when: datetime, callback: Callable[[], object]) -> Timer:
        return _SystemTimer(self, when, callback)


class _SystemTimer:
    """Sleeps in stretches of a minute, so that it follows the wall clock and not the loop's monotonic one."""

    __slots__ = ("_callback", "_clock", "_handle", "_when")

    def __init__(self, clock: SystemClock, when: datetime, callback: Callable[[], object]) -> None:
        self._clock, self._when, self._callback = clock, when, callback
        self._arm()

    def _arm(self) -> None:
        left = (self._when - self._clock.now()).total_seconds()
        self._handle = asyncio.get_running_loop().call_later(min(max(left, 0.0), 60.0), self._wake)

    def _wake(self) -> None:
        if self._clock.now() < self._when:
            self._arm()
        else:
            self._callback()

    def cancel(self) -> None:
        self._handle.cancel()


#: The clock of connections that are given none.
SYSTEM_CLOCK = SystemClock()


class Timeouts:
    """Time limits on the running loop, of which there are many, of few lengths, and hardly any is ever reached.

    A timer of the loop for each costs more than most jobs do. Here those of one length stand in a line, in which the first is
    due first, and share a timer.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: dict[float, dict[Callable[[], object], float]] = {}
        self._timers: dict[float, asyncio.TimerHandle] = {}

    def start(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback` after `seconds`, unless it is taken back before. Each callback is in one line only, and once."""
        line = self._lines.get(seconds)
        if line is None:
            line = self._lines[seconds] = {}
        due = self._loop.time() + seconds
        line[callback] = due
        if seconds not in self._timers:
            self._timers[seconds] = self._loop.call_at(due, self._wake, seconds)

    def stop(self, seconds: float, callback: Callable[[], object]) -> None:
        """Take it back; nothing happens if it has been called."""
        line = self._lines.get(seconds)
        if line is not None:
            line.pop(callback, None)

    def close(self) -> None:
        """Take all back."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._lines.clear()

    def _wake(self, seconds: float) -> None:
        line, now = self._lines[seconds], self._loop.time()
        del self._timers[seconds]
        while line:
            callback, due = next(iter(line.items()))
            if due > now:
                self._timers[seconds] = self._loop.call_at(due, self._wake, seconds)
                return
            del line[callback]
            callback()
        del self._lines[seconds]
