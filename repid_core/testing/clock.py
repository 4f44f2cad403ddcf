"""A clock that a test moves."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count

from repid_core.clock import Clock

_TURNS = 25  # of the loop, for tasks to react to one timer; a job in memory takes about ten


class ManualClock(Clock):
    """Stands still until `advance` moves it.

    Args:
        start: The time it shows at first, aware; by default noon on 1 January 2030, UTC.
    """

    def __init__(self, start: datetime = datetime(2030, 1, 1, 12, tzinfo=UTC)) -> None:
        self._now = start.astimezone(UTC)
        self._timers: list[tuple[datetime, int, _ManualTimer]] = []
        self._order = count()

    def now(self) -> datetime:
        return self._now

    def call_at(self, when: datetime, callback: Callable[[], object]) -> _ManualTimer:
        timer = _ManualTimer(callback)
        if when <= self._now:
            asyncio.get_running_loop().call_soon(timer.fire)
        else:
            heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    async def advance(self, by: timedelta) -> None:
        """Move on by `by`, calling what falls due in order, each at its own time, and let tasks react after each."""
        await self.settle()
        end = self._now + by
        while self._step(end):
            await self.settle()
        await self.settle()

    def _step(self, end: datetime) -> bool:
        """For the harness: move on to the next timer and call what it calls; to `end`, and False, if none is due until then."""
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self._now = max(self._now, when)
                timer.fire()
                return True
        self._now = max(self._now, end)
        return False

    async def settle(self) -> None:
        """Let tasks that are ready run, without moving the time. Threads, processes and sockets are not waited for."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)


class _ManualTimer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()

    def cancel(self) -> None:
        self.callback = None
