"""What the suites of both kinds of broker share: clients, time and the check that nothing is left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from statistics import median
from typing import Any, ClassVar, Generic, TypeVar

import pytest
import pytest_asyncio

from repid_core.abc import Broker
from repid_core.clock import SYSTEM_CLOCK, Clock
from repid_core.testing.clock import ManualClock
from repid_core.testing.conformance.suite import ConformanceSuite, Promise, PromiseBroken, check, hook, promise

B = TypeVar("B", bound=Broker)
_R = TypeVar("_R")

NOW = timedelta(0)
_NOTHING_LEFT = Promise("L5", "No task is left after disconnect.")  # checked after every test


class BackendSuite(ConformanceSuite, Generic[B]):
    """A suite for a store with clients.

    Attributes:
        patience: How long the tests wait for what should come at once, on a real clock, before they fail.
        address: Host and port, as errors about the connection must name them; empty for stores that have none.
        secrets: Texts that no error may show, the password above all.
        server: What the store is, and its version, for the report; empty for none.
        clock: What the tests go by.
        broker: A connected client.
    """

    patience: ClassVar[timedelta] = timedelta(seconds=5)
    address: str = ""
    secrets: Sequence[str] = ()
    server: str = ""
    clock: Clock
    broker: B

    @pytest.fixture
    def make_broker(self) -> Callable[[], B]:
        """The one fixture to write: a function that makes, at every call, another client of the same, fresh namespace.

        In-process brokers may give the same object each time. Do not connect it.
        """
        pytest.fail(f"{type(self).__name__} needs a fixture make_broker, which returns a function that makes a broker")

    def manual_clock(self) -> ManualClock | None:
        """For stores that go by `Broker.clock` and react within some turns of the loop: a `ManualClock`.

        The tests then move it instead of waiting. Default: None, the system's clock.
        """
        return None

    @hook
    async def break_connection(self, broker: B) -> None:
        """Cut this client off, or stop the server, so that calls fail until `restore_connection`. Unlocks M17 and B8."""

    @hook
    async def restore_connection(self, broker: B) -> None:
        """Undo `break_connection`."""

    @pytest_asyncio.fixture(autouse=True, loop_scope="function")
    async def _backend(self, make_broker: Callable[[], B]) -> AsyncIterator[None]:
        async with self.running(make_broker):
            yield

    @asynccontextmanager
    async def running(self, make_broker: Callable[[], B]) -> AsyncIterator[None]:
        """Connect a client, run a test inside, and then check that nothing is left over."""
        before = asyncio.all_tasks()
        self._make, self._made, self._lame = make_broker, list[B](), list[B]()
        self._tasks = set[asyncio.Task[Any]]()
        self._manual = self.manual_clock()
        self.clock = self._manual or SYSTEM_CLOCK
        self.broker = self.make()
        self.time_limit = 30.0 if self._manual else 60.0 + 60 * self.broker.limits.lease.total_seconds()
        await self.broker.connect()
        failed = True
        try:
            yield
            failed = False
        finally:
            for task in self._tasks:
                task.cancel()
            try:
                async with asyncio.timeout(self.time_limit):
                    await self.clean()
                    for broker in self._made:
                        try:
                            await broker.disconnect()
                        except Exception:
                            if not any(broker is lame for lame in self._lame):
                                raise
                await self.nothing_left(before)
            except Exception:
                if not failed:
                    raise

    async def clean(self) -> None:
        """Remove what the test left in the store."""

    async def nothing_left(self, before: set[asyncio.Task[Any]]) -> None:
        """Check that no tasks run but those that ran `before`."""
        if left := await self.left_over(before):
            raise PromiseBroken(_NOTHING_LEFT, f"left running: {left}")

    async def left_over(self, before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
        """Tasks that run now and did not `before`, after a moment for them to end."""

        def left() -> set[asyncio.Task[Any]]:
            return asyncio.all_tasks() - before - {asyncio.current_task()}

        await self.eventually(lambda: not left())
        return list(left())

    def make(self) -> B:
        """Another client, on the clock of the tests, not connected."""
        broker = self._make()
        broker.clock = self.clock
        if not any(broker is made for made in self._made):
            self._made.append(broker)
        return broker

    async def client(self) -> B:
        """Another client, connected."""
        broker = self.make()
        if broker is not self.broker:
            await broker.connect()
        return broker

    def well_said(self, error: Exception) -> None:
        """Check that an error about the connection names the address, and no secret."""
        check(self.address in str(error), f"the error does not name {self.address}: {error}")
        for secret in self.secrets:
            check(secret not in f"{error!s}{error!r}{error.__cause__!r}", "the error, or its cause, shows a secret")

    def task(self, coroutine: Coroutine[Any, Any, _R]) -> asyncio.Task[_R]:
        """Run beside the test; ended with it."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self, span: timedelta) -> None:
        """Let `span` pass on the clock of the tests."""
        if self._manual:
            await self._manual.advance(span)
        else:
            await asyncio.sleep(span.total_seconds())

    async def turns(self, count: int) -> None:
        """Let other tasks go on for some turns of the loop, without moving the clock."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def let(self, task: asyncio.Task[Any], span: timedelta = NOW) -> bool:
        """Whether `task` ends within `span` and a little for its last steps."""
        if self._manual is None:
            return bool((await asyncio.wait({task}, timeout=(span + self.patience).total_seconds()))[0])
        await self._manual.settle()
        for _ in range(16):
            if task.done() or not span:
                break
            await self._manual.advance(span / 16)
        if not task.done():
            await self._manual.advance(self.broker.limits.wake_up)
        return task.done()

    async def within(self, call: Coroutine[Any, Any, _R], what: str, span: timedelta = NOW) -> _R:
        """The result of `call`, which must end within `span`."""
        task = self.task(call)
        allowed = span + (NOW if self._manual else self.patience)
        check(await self.let(task, span), f"{what} did not end {f'within {allowed}' if allowed else 'at once'}")
        return await task

    async def eventually(self, true: Callable[[], object]) -> bool:
        """Whether `true` becomes so soon."""
        return await self.eventually_async(lambda: _ready(true()))

    async def eventually_async(self, true: Callable[[], Awaitable[object]]) -> bool:
        """Whether what `true` gives becomes true soon."""
        deadline = asyncio.get_running_loop().time() + (1 if self._manual else self.patience.total_seconds())
        tries = 0
        while not await true():
            tries += 1
            if asyncio.get_running_loop().time() > deadline or (self._manual and tries > 3):
                return False
            if self._manual:
                await self._manual.settle()
            else:
                await asyncio.sleep(0.01 if tries < 50 else 0.1)
        return True

    @property
    def quiet(self) -> timedelta:
        """How long to watch for something that must not come."""
        return 4 * self.broker.limits.wake_up + timedelta(milliseconds=50)

    def cancelled_at(self, call: Coroutine[Any, Any, Any], turns: int) -> Awaitable[None]:
        """Start `call`, cancel it after some turns of the loop, and wait for its end; what it raises is not looked at."""

        async def run() -> None:
            task = self.task(call)
            await self.turns(turns)
            task.cancel()
            check((await asyncio.wait({task}, timeout=10))[0], "a cancelled call did not end within 10 s")
            if not task.cancelled():
                task.exception()

        return run()

    def measure(self, what: str, spans: list[timedelta], limit: timedelta) -> None:
        """Record the median of `spans`, and check that it keeps to the declared `limit`."""
        found = timedelta(seconds=median(span.total_seconds() for span in spans))
        self.measured[what] = f"{_ms(found)}, the declared limit being {_ms(limit)} (median of {len(spans)})"
        check(found <= limit, f"{what}: {self.measured[what]}; the longest was {_ms(max(spans))}")

    def describe(self) -> dict[str, Any]:
        limits = self.broker.limits
        return {
            "backend": type(self.broker).__name__,
            "server": self.server,
            "clock": type(self.clock).__name__,
            "limits": {name: _plain(getattr(limits, name)) for name in type(limits).__annotations__},
        }

    @promise("L1", "Constructors touch no loop and open nothing.")
    async def test_constructor_opens_nothing(self) -> None:
        tasks = asyncio.all_tasks()
        await asyncio.to_thread(self._make)
        check(not asyncio.all_tasks() - tasks, "making a broker started a task")

    @promise("L2", "Cancelled, connect leaves nothing open, and may be called again.")
    async def test_cancelled_connect_leaves_nothing(self) -> None:
        await self.broker.disconnect()
        for turns in range(8):
            before = asyncio.all_tasks()
            broker = self.make()
            await self.cancelled_at(broker.connect(), turns)
            if turns % 2:
                await broker.disconnect()
            else:
                with suppress(Exception):  # whether it was connected in time is not known
                    await broker.connect()
                await broker.disconnect()
            check(not (left := await self.left_over(before)), f"tasks left by connect cancelled at turn {turns}: {left}")
        broker = self.make()
        await broker.connect()
        await broker.ping()

    @promise("L3", "disconnect is idempotent, before connect too, and connect may follow.")
    async def test_disconnect_is_idempotent(self) -> None:
        await self.broker.disconnect()
        await self.broker.disconnect()
        fresh = self.make()
        await fresh.disconnect()
        await self.broker.connect()
        await self.broker.ping()

    @promise(_NOTHING_LEFT.number, _NOTHING_LEFT.text)
    async def test_disconnect_leaves_no_task(self) -> None:
        before = asyncio.all_tasks()
        for _ in range(3):
            await self.broker.disconnect()
            await self.broker.connect()
        await self.broker.disconnect()
        check(not (left := await self.left_over(before)), f"left running: {left}")

    @promise("L4", "A ping is one round trip, and succeeds on a connected broker.")
    async def test_ping(self) -> None:
        await self.within(self.broker.ping(), "ping")


async def _ready(value: object) -> object:
    return value


def _ms(span: timedelta) -> str:
    return f"{span.total_seconds() * 1000:.3f} ms"


def _plain(value: object) -> object:
    return _ms(value) if isinstance(value, timedelta) else value
