"""The machine's clock, and the one that tests move."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from repid_core.clock import SYSTEM_CLOCK, Clock, SystemClock, Timeouts
from repid_core.testing.clock import ManualClock

SECOND, MILLISECOND = timedelta(seconds=1), timedelta(milliseconds=1)
START = datetime(2030, 1, 1, 12, tzinfo=UTC)


class SteppedClock(SystemClock):
    """The machine's clock as somebody sets it."""

    def __init__(self) -> None:
        self.step = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.step


class Loop(asyncio.SelectorEventLoop):
    """Whose time passes at once when there is nothing to do but wait; notes how long each wait was to be."""

    def __init__(self) -> None:
        super().__init__()
        self.passed, self.waits = 0.0, list[float]()

    def time(self) -> float:
        return super().time() + self.passed

    def call_later(self, delay: float, callback: object, *args: object, context: object = None) -> asyncio.TimerHandle:
        self.waits.append(delay)
        self.passed += delay
        return super().call_later(0, callback, *args)  # type: ignore[arg-type]


class TestSystemClock:
    def test_it_tells_the_time_in_utc(self) -> None:
        before, now, after = datetime.now(UTC), SYSTEM_CLOCK.now(), datetime.now(UTC)
        assert before <= now <= after
        assert now.tzinfo is UTC

    async def test_a_callback_comes_at_its_time_and_never_before(self) -> None:
        called = asyncio.Event()
        when = SYSTEM_CLOCK.now() + 20 * MILLISECOND
        SYSTEM_CLOCK.call_at(when, called.set)
        await asyncio.wait_for(called.wait(), 5)
        assert SYSTEM_CLOCK.now() >= when

    async def test_a_time_that_has_passed_is_at_once_but_not_inside_the_call(self) -> None:
        called = asyncio.Event()
        SYSTEM_CLOCK.call_at(SYSTEM_CLOCK.now() - SECOND, called.set)
        assert not called.is_set()
        await asyncio.wait_for(called.wait(), 5)

    async def test_a_cancelled_callback_does_not_come(self) -> None:
        calls: list[str] = []
        soon = SYSTEM_CLOCK.now() + MILLISECOND
        timer = SYSTEM_CLOCK.call_at(soon, lambda: calls.append("cancelled"))
        called = asyncio.Event()
        SYSTEM_CLOCK.call_at(soon + MILLISECOND, called.set)
        timer.cancel()
        timer.cancel()
        await asyncio.wait_for(called.wait(), 5)
        assert calls == []

    def test_a_long_wait_looks_at_the_clock_every_minute(self) -> None:
        """So that it follows a clock that is set: here an hour forward, during the second minute."""
        clock, loop = SteppedClock(), Loop()
        called = loop.create_future()

        async def wait() -> None:
            clock.call_at(clock.now() + timedelta(minutes=61, seconds=30), lambda: called.set_result(None))
            clock.step = timedelta(minutes=1)
            await asyncio.sleep(0)
            clock.step = timedelta(minutes=61)
            while not called.done():
                await asyncio.sleep(0)
                if len(loop.waits) == 2:
                    clock.step = timedelta(minutes=62)

        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(wait())
        assert loop.waits[0] == 60
        assert loop.waits[1] == pytest.approx(30, abs=1)
        assert len(loop.waits) == 2

    async def test_sleep(self) -> None:
        before = SYSTEM_CLOCK.now()
        await SYSTEM_CLOCK.sleep(10 * MILLISECOND)
        assert SYSTEM_CLOCK.now() - before >= 10 * MILLISECOND


@pytest.mark.parametrize("clock", [SystemClock(), ManualClock()], ids=["system", "manual"])
@pytest.mark.parametrize("delay", [timedelta(0), -SECOND])
async def test_sleeping_for_nothing_gives_others_a_turn(clock: Clock, delay: timedelta) -> None:
    turns: list[str] = []
    asyncio.get_running_loop().call_soon(turns.append, "other")
    await clock.sleep(delay)
    assert turns == ["other"]


class TestManualClock:
    async def test_it_stands_still_until_it_is_moved(self) -> None:
        clock = ManualClock(START)
        assert clock.now() == START
        await clock.advance(3 * SECOND)
        assert clock.now() == START + 3 * SECOND

    def test_it_starts_in_utc(self) -> None:
        assert ManualClock().now().tzinfo is UTC

    async def test_callbacks_come_in_the_order_of_their_times_each_at_its_own(self) -> None:
        clock = ManualClock(START)
        calls: list[tuple[str, datetime]] = []
        for name, seconds in (("third", 3), ("first", 1), ("second", 2), ("also second", 2), ("not yet", 5)):
            clock.call_at(START + seconds * SECOND, lambda name=name: calls.append((name, clock.now())))  # type: ignore[misc]
        await clock.advance(4 * SECOND)
        assert calls == [
            ("first", START + SECOND),
            ("second", START + 2 * SECOND),
            ("also second", START + 2 * SECOND),
            ("third", START + 3 * SECOND),
        ]
        await clock.advance(SECOND)
        assert calls[-1] == ("not yet", START + 5 * SECOND)

    async def test_a_callback_may_set_another_inside_the_same_advance(self) -> None:
        clock = ManualClock(START)
        ticks: list[datetime] = []

        def tick() -> None:
            ticks.append(clock.now())
            clock.call_at(clock.now() + SECOND, tick)

        clock.call_at(START + SECOND, tick)
        await clock.advance(3 * SECOND)
        assert ticks == [START + SECOND, START + 2 * SECOND, START + 3 * SECOND]

    async def test_a_time_that_has_passed_is_at_once_but_not_inside_the_call(self) -> None:
        clock = ManualClock(START)
        calls: list[datetime] = []
        clock.call_at(START, lambda: calls.append(clock.now()))
        assert calls == []
        await clock.settle()
        assert calls == [START]

    @pytest.mark.parametrize("when", [START, START + SECOND], ids=["due", "later"])
    async def test_a_cancelled_callback_does_not_come(self, when: datetime) -> None:
        clock = ManualClock(START)
        calls: list[str] = []
        timer = clock.call_at(when, lambda: calls.append("cancelled"))
        timer.cancel()
        timer.cancel()
        await clock.advance(2 * SECOND)
        assert calls == []

    async def test_a_callback_may_cancel_the_next(self) -> None:
        clock = ManualClock(START)
        calls: list[str] = []
        later = clock.call_at(START + 2 * SECOND, lambda: calls.append("later"))
        clock.call_at(START + SECOND, later.cancel)
        await clock.advance(3 * SECOND)
        assert calls == []

    async def test_tasks_react_before_the_time_goes_on(self) -> None:
        clock = ManualClock(START)
        woken: list[datetime] = []

        async def sleeper() -> None:
            for _ in range(3):
                await clock.sleep(10 * SECOND)
                woken.append(clock.now())

        task = asyncio.create_task(sleeper())
        await clock.advance(timedelta(minutes=1))
        await task
        assert woken == [START + 10 * SECOND, START + 20 * SECOND, START + 30 * SECOND]

    async def test_a_cancelled_sleep_leaves_no_timer(self) -> None:
        clock = ManualClock(START)
        task = asyncio.create_task(clock.sleep(SECOND))
        await clock.settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(timer.callback is None for _, _, timer in clock._timers)


class TestTimeouts:
    async def test_those_that_are_not_taken_back_are_called_when_their_time_is_over(self):
        called: list[str] = []
        timeouts = Timeouts()

        def first() -> None:
            called.append("first")

        def second() -> None:
            called.append("second")
            done.set()

        def long() -> None:
            called.append("long")

        def taken_back() -> None:
            called.append("taken back")

        done = asyncio.Event()
        started = asyncio.get_running_loop().time()
        for seconds, callback in ((0.01, first), (0.02, second), (0.01, taken_back), (60, long)):
            timeouts.start(seconds, callback)
        timeouts.stop(0.01, taken_back)
        async with asyncio.timeout(5):
            await done.wait()
        assert called == ["first", "second"]
        assert asyncio.get_running_loop().time() - started >= 0.02
        timeouts.stop(0.01, first)
        timeouts.close()

    async def test_the_next_in_line_is_called_in_its_own_time(self):
        """One timer serves a line; it is set for the first of it, who may have left."""
        loop, called, done = asyncio.get_running_loop(), [], asyncio.Event()
        timeouts = Timeouts()

        def gone() -> None:
            called.append("gone")

        def next_() -> None:
            called.append(loop.time())
            done.set()

        timeouts.start(0.05, gone)
        await asyncio.sleep(0.03)
        started = loop.time()
        timeouts.start(0.05, next_)
        timeouts.stop(0.05, gone)
        async with asyncio.timeout(5):
            await done.wait()
        assert len(called) == 1
        assert called[0] - started >= 0.05
        timeouts.close()
