"""The harness for tests that are not asynchronous."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from repid_core.router import Router
from repid_core.sync import SyncRepid
from repid_core.testing.events import Event, EventLog
from repid_core.testing.harness import Harness
from repid_core.testing.jobs import EnqueuedJob

if TYPE_CHECKING:
    from unittest.mock import AsyncMock

    from repid_core.connection import Connection
    from repid_core.dependencies import Depends
    from repid_core.testing.clock import ManualClock

T = TypeVar("T")


class SyncHarness:
    """A `Harness` for tests that are not asynchronous, of applications that use `app.sync()`.

    In pytest it is the fixture `sync_repid`. Elsewhere::

        with SyncHarness([router]) as repid:
            client.post("/orders", json={"id": 17})  # a view calls app.sync().enqueue(…)
            repid.assert_enqueued(charge, args={"order": 17})
            repid.run_until_idle()

    It lives on an event loop in a thread. As long as it is open, `app.sync()` of every application goes there, from any thread.

    Args:
        routers: Where the actors are.
        options: The others of `Harness`.

    Attributes:
        harness: What does the work. Its methods are for its own loop: `sync_repid.run(lambda: sync_repid.harness.run_one())`.
        repid: Enqueues, waits and runs on the harness's connection, as `app.sync()` does while it is open.
    """

    def __init__(self, routers: Sequence[Router] = (), **options: Any) -> None:
        self.harness = Harness(routers, **options)
        self.repid = SyncRepid(self.harness.connection)

    @property
    def connection(self) -> Connection:
        """What jobs are bound to."""
        return self.harness.connection

    @property
    def clock(self) -> ManualClock:
        """What the application goes by."""
        return self.harness.clock

    @property
    def events(self) -> EventLog:
        """What happened to jobs, in order."""
        return self.harness.events

    def __enter__(self) -> Self:
        try:
            self.run(self.harness.__aenter__)
        except BaseException:
            self.repid.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(check=error is None)

    def close(self, *, check: bool = True) -> None:
        """End it; `with` does so. See `Harness.close`."""
        __tracebackhide__ = True
        if self.harness._open is None:
            return
        try:
            self.run(lambda: self.harness.close(check=check))
        finally:
            self.repid.close()

    def run(self, call: Callable[[], Coroutine[Any, Any, T]] | Coroutine[Any, Any, T]) -> T:
        """Run anything asynchronous on the harness's loop; see `SyncRepid.run`."""
        __tracebackhide__ = True
        return self.repid.run(call, timeout=None)

    def run_until_idle(self) -> None:
        """Run what is due, and what that enqueues; see `Harness.run_until_idle`."""
        __tracebackhide__ = True
        self.run(self.harness.run_until_idle)

    def run_one(self) -> Event | None:
        """Run the job that is next, to its end; see `Harness.run_one`."""
        __tracebackhide__ = True
        return self.run(self.harness.run_one)

    def advance(self, by: timedelta) -> None:
        """Let time pass, and run what falls due; see `Harness.advance`."""
        __tracebackhide__ = True
        self.run(lambda: self.harness.advance(by))

    def advance_to(self, when: datetime) -> None:
        """Let time pass until `when`; see `Harness.advance_to`."""
        __tracebackhide__ = True
        self.run(lambda: self.harness.advance_to(when))

    def mock(self, actor: str | Callable[..., Any], **configure: Any) -> AsyncMock:
        """Call a mock in place of the actor's function until the test ends; see `Harness.mock`."""
        return self.harness.mock(actor, **configure)

    def override(self, dependency: Depends | Callable[..., Any], fn: Callable[..., Any]) -> None:
        """Inject what `fn` gives in place of a dependency, until the test ends; see `Harness.override`."""
        self.harness.override(dependency, fn)

    def enqueued(self, actor: str | Callable[..., Any] | None = None) -> list[EnqueuedJob]:
        """The jobs that were enqueued in this test, run or not, in order: one actor's, or all."""
        return self.harness.enqueued(actor)

    def assert_enqueued(self, actor: str | Callable[..., Any], **wanted: Any) -> EnqueuedJob:
        """Fail unless such a job was enqueued in this test, run or not; see `Harness.assert_enqueued`."""
        __tracebackhide__ = True
        return self.harness.assert_enqueued(actor, **wanted)

    def assert_not_enqueued(self, actor: str | Callable[..., Any], **wanted: Any) -> None:
        """Fail if such a job was enqueued in this test; see `Harness.assert_not_enqueued`."""
        __tracebackhide__ = True
        self.harness.assert_not_enqueued(actor, **wanted)
