"""An application under test: in memory, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from repid_core.abc import Converter, Serializer
from repid_core.app import Repid
from repid_core.connection import Connection
from repid_core.data import Priority
from repid_core.dependencies import Depends
from repid_core.errors import InvalidActorError, UsageError
from repid_core.memory import InMemoryMessageBroker
from repid_core.router import Router, actor_of
from repid_core.sync import stand_ins
from repid_core.testing.clock import ManualClock
from repid_core.testing.events import Event, EventLog, Recorder
from repid_core.testing.jobs import EnqueuedJob, Wanted
from repid_core.testing.leaks import Leaks
from repid_core.testing.runner import ResultsBroker, Runner, raise_all

if TYPE_CHECKING:
    from unittest.mock import AsyncMock


class Harness(Router):
    """Your actors, a connection on in-memory brokers that jobs find by themselves, and a clock that stands still.

    In pytest it is the fixture `repid`. Without pytest::

        async with Harness([router]) as repid:
            await Job.of(greet)(user_id=1).enqueue()
            await repid.run_until_idle()

    Jobs run when you say so: `run_one()`, `run_until_idle()`, `advance(…)`; or, with `eager`, inside of `enqueue`. They run
    as a worker runs them (converter, dependencies, timeout, retries, results, dead letters), one after another, so that their
    order is always the same. The harness is a router itself: a test may declare actors with `@repid.actor`.

    Args:
        routers: Where the actors are.
        eager: Run each job inside of `enqueue`, if it is due.
        raise_errors: Raise what an actor raised, with its traceback, where the test runs jobs; only for the last attempt, as
            before that a retry is what the application asked for. False leaves it to `events` and to the job's result.
        tasks_limit: How many jobs run at once.
        start: The time at first, aware; only the test moves it on. By default it is the real time, and each `advance` catches
            up with the real time that has passed: what your application defers until `datetime.now(UTC) + timedelta(days=1)`
            is due when the test has advanced by a day.
        check_leaks: When it is left without an error, fail if jobs still run, or messages were received and not settled, or
            tasks were started that still run.
        check_results: Fail if a result was stored that nobody has read.
        patience: Real seconds that may pass without a job's end, or with waiting for a result that nobody brings.
        middlewares: The application's.
        serializer: The application's; by default `Config.SERIALIZER`.
        converter: The application's; by default `Config.CONVERTER`.

    Attributes:
        clock: What the application goes by. `advance` of the harness moves it and runs jobs; `clock.advance` runs none.
        connection: What jobs are bound to.
    """

    def __init__(
        self,
        routers: Sequence[Router] = (),
        *,
        eager: bool = False,
        raise_errors: bool = True,
        tasks_limit: int = 1,
        start: datetime | None = None,
        check_leaks: bool = True,
        check_results: bool = False,
        patience: float = 10.0,
        middlewares: Sequence[Any] = (),
        serializer: str | Serializer | None = None,
        converter: str | type[Converter] | None = None,
    ) -> None:
        super().__init__()
        for router in routers:
            self.include_router(router)
        if type(tasks_limit) is not int or tasks_limit < 1:
            raise UsageError(f"Harness(tasks_limit={tasks_limit!r}): give a whole number, 1 or more")
        if start is not None and start.tzinfo is None:
            raise UsageError(f"Harness(start={start!r}): give an aware datetime, such as datetime(2030, 1, 1, tzinfo=UTC)")
        now = datetime.now(UTC)
        self._real_start = now if start is None else None
        self._caught_up = timedelta(0)
        self.clock = ManualClock(start or now)
        self._buckets = ResultsBroker(patience)
        self.connection = Connection(
            InMemoryMessageBroker(),
            self._buckets,  # one for both, as a job's arguments may be the result of another
            self._buckets,
            serializer=serializer,
            converter=converter,
            args_bucket_threshold=64 * 1024,
            clock=self.clock,
        )
        self._recorder = Recorder(self.connection, self._lag)
        self._eager, self._raise_errors = eager, raise_errors
        self._tasks_limit, self._patience = tasks_limit, patience
        self._check_leaks, self._check_results = check_leaks, check_results
        self._middlewares = tuple(middlewares)
        self._undo = ExitStack()
        self._is_used = False
        self._open: tuple[Repid, Runner, Leaks] | None = None

    @property
    def events(self) -> EventLog:
        """What happened to jobs, in order."""
        return self._recorder.events

    async def __aenter__(self) -> Self:
        if self._is_used:
            raise UsageError("a harness is for one test: make another")
        self._is_used = True
        leaks = Leaks(asyncio.current_task(), asyncio.all_tasks())
        self._caught_up = self._lag()  # since it was made
        self.clock._step(self.clock.now() + self._caught_up)
        app = Repid(self.connection)
        await app.magic_connect()
        runner = Runner(self.connection, self, self._recorder, self._tasks_limit, self._patience, raise_errors=self._raise_errors)
        if self._eager:
            self.connection.middleware.add(runner.around_enqueue)
        for middleware in (self._recorder, *self._middlewares):
            self.connection.middleware.add(middleware)
        self._open = app, runner, leaks
        stand_ins.append(self.connection)  # for `app.sync()` of any application
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close(check=error is None)

    async def close(self, *, check: bool = True) -> None:
        """End it; `async with` does so.

        Args:
            check: Look for leaks.

        Raises:
            AssertionError: Something was left behind; it says what.
        """
        if self._open is None:
            return
        (app, runner, leaks), self._open = self._open, None
        found: list[str] = []
        try:
            await self.clock.settle()
            if check and self._check_leaks:
                found += leaks.jobs(runner.running.values())
                found += leaks.deliveries(self.connection.message_broker, runner.running.values())
                found += leaks.tasks(asyncio.all_tasks(), runner.running)
            if check and self._check_results:
                found += leaks.results(self._recorder.unread.values())
        finally:
            stand_ins.remove(self.connection)
            self._undo.close()
            await runner.close()
            await app.magic_disconnect()
        if found:
            raise AssertionError("\n".join(("the test left behind:", *(f"  {line}" for line in found))))

    # -- running jobs ---------------------------------------------------------------------------------------------------

    async def run_until_idle(self) -> None:
        """Run what is due, and what that enqueues, until there is nothing left that is due. The clock stands still.

        Raises:
            Exception: What an actor raised in its last attempt (see `raise_errors`); an ExceptionGroup if there are several.
            AssertionError: A job does not end, or comes again and again.
        """
        __tracebackhide__ = True
        runner = self._runner()
        await runner.until_idle()
        self._raise(runner)

    async def run_one(self) -> Event | None:
        """Run the job that is next, to its end.

        Returns:
            What happened to it last, `succeeded`, `retried`, `rescheduled`, `rejected` or `dead`. None if there was none
            that is due.

        Raises:
            Exception: What the actor raised in its last attempt (see `raise_errors`).
            AssertionError: The job does not end.
        """
        __tracebackhide__ = True
        runner = self._runner()
        run = await runner.one()
        self._raise(runner)
        if run is None:
            return None
        key = run.envelope.key
        return next(event for event in reversed(self.events) if (event.queue, event.id_) == (key.queue, key.id_))

    async def advance(self, by: timedelta) -> None:
        """Let time pass, and run what falls due: retries, delays, recurring jobs, leases, in order, each at its own time.

        Args:
            by: How much; zero is `run_until_idle`.

        Raises:
            Exception: As `run_until_idle`; the clock then stands where it happened.
        """
        __tracebackhide__ = True
        if by < timedelta(0):
            raise UsageError(f"advance({by!r}): time goes forward")
        lag = self._lag()
        await self._move(self.clock.now() + by + lag)
        self._caught_up += lag

    async def advance_to(self, when: datetime) -> None:
        """Let time pass until `when`; see `advance`. A naive datetime is local time."""
        __tracebackhide__ = True
        if when.astimezone(UTC) < self.clock.now():
            raise UsageError(f"advance_to({when!r}): time goes forward, and it is {self.clock.now().isoformat()}")
        await self._move(when.astimezone(UTC))

    async def _move(self, end: datetime) -> None:
        __tracebackhide__ = True
        await self.run_until_idle()
        while self.clock._step(end):
            await self.run_until_idle()
        await self.run_until_idle()

    def _lag(self) -> timedelta:
        """How far the clock is behind the real time that has passed."""
        if self._real_start is None:
            return timedelta(0)
        return max(timedelta(0), datetime.now(UTC) - self._real_start - self._caught_up)

    def _runner(self) -> Runner:
        if self._open is None:
            raise UsageError("the harness is not open: use it inside of `async with Harness(…) as repid:`, or as a fixture")
        return self._open[1]

    def _raise(self, runner: Runner) -> None:
        __tracebackhide__ = True
        failures = runner.failures()
        if self._raise_errors:
            raise_all(failures)

    # -- in place of the real thing ----------------------------------------------------------------------------------------

    def mock(self, actor: str | Callable[..., Any], **configure: Any) -> AsyncMock:
        """Call a mock in place of the actor's function until the test ends.

        The job goes its way all the same: its arguments are converted, and checked, by the actor's signature; only
        dependencies are not made. `mock.assert_awaited_once_with(…)` takes arguments by position or name, as you like.

        Args:
            actor: Its name, or its function.
            configure: `return_value` (by default None), `side_effect`, and whatever else the mock is to have.

        Raises:
            InvalidActorError: It is none of the harness's actors.
        """
        from repid_core.testing.mocks import mocked  # noqa: PLC0415 — it takes long to import, and is not always needed

        runner, found = self._runner(), self.actors.get(self._name(actor))
        if found is None:
            raise InvalidActorError(
                f"{self._name(actor)!r} cannot be mocked: the harness has no such actor; it has: "
                f"{', '.join(self.actors) or 'none; pass routers=[…]'}",
            )
        mock, runner.routes[found.name] = mocked(found, self.connection.converter, configure)
        return mock

    def override(self, dependency: Depends | Callable[..., Any], fn: Callable[..., Any]) -> None:
        """Inject what `fn` gives in place of a dependency, until the test ends.

        Args:
            dependency: The function that gives it, wherever the harness's actors depend on it; or one `Depends`.
            fn: May have dependencies itself; a lambda will do.

        Raises:
            UsageError: No actor depends on it.
            InvalidActorError: `fn` cannot be injected.
        """
        if isinstance(dependency, Depends):
            found = [dependency]
        else:
            every = {id(d): d for actor in self.actors.values() for d in _dependencies(actor.dependencies.sources.values())}
            found = [depends for depends in every.values() if depends._fn is dependency]
        if not found:
            raise UsageError(f"override({dependency!r}): no actor of the harness depends on it")
        for depends in found:
            self._undo.enter_context(depends.override(fn))

    # -- what was enqueued -------------------------------------------------------------------------------------------------

    def enqueued(self, actor: str | Callable[..., Any] | None = None) -> list[EnqueuedJob]:
        """The jobs that were enqueued in this test, run or not, in order: one actor's, or all."""
        name = None if actor is None else self._name(actor)
        return [job for job in self._recorder.jobs if name is None or job.name == name]

    def assert_enqueued(
        self,
        actor: str | Callable[..., Any],
        *,
        args: Any = ...,
        queue: str | None = None,
        id_: str | None = None,
        priority: Priority | None = None,
        due: datetime | timedelta | EllipsisType | None = ...,
        headers: Mapping[str, str] | None = None,
        count: int | None = None,
    ) -> EnqueuedJob:
        """Fail unless such a job was enqueued in this test, run or not; the text says what was enqueued instead.

        What is left out does not matter.

        Args:
            actor: Its name, or its function.
            args: All its arguments, by name or by position, however the job passed them; `unittest.mock.ANY` fits anything.
            queue: The queue's name.
            id_: The job's id.
            priority: The priority.
            due: When it is due: a datetime, a timedelta from its enqueueing on, or None for at once.
            headers: Those that it has, and maybe others.
            count: How many there are to be, 1 or more; by default that does not matter.

        Returns:
            The last of them.
        """
        __tracebackhide__ = True
        if count is not None and count < 1:
            raise ValueError(f"count={count!r}: give 1 or more, or call assert_not_enqueued")
        wanted = self._wanted(actor, args=args, due=due, queue=queue, id_=id_, priority=priority, headers=headers)
        found = [job for job in self._recorder.jobs if not wanted.differences(job)]
        if count is not None and len(found) != count:
            raise AssertionError(f"{len(found)} jobs were enqueued, and not {count}: {wanted}\n{wanted.explain(self.enqueued())}")
        if not found and count is None:
            raise AssertionError(f"no job was enqueued: {wanted}\n{wanted.explain(self.enqueued())}")
        return found[-1]

    def assert_not_enqueued(self, actor: str | Callable[..., Any], *, args: Any = ..., queue: str | None = None) -> None:
        """Fail if such a job was enqueued in this test; see `assert_enqueued`."""
        __tracebackhide__ = True
        wanted = self._wanted(actor, args=args, queue=queue)
        found = [job for job in self._recorder.jobs if not wanted.differences(job)]
        if found:
            listed = "\n".join(f"  {job}" for job in found)
            raise AssertionError(f"{len(found)} such jobs were enqueued: {wanted}\n{listed}")

    def _wanted(self, actor: str | Callable[..., Any], *, args: Any, due: Any = ..., **others: Any) -> Wanted:
        criteria = {name: value for name, value in (("args", args), ("due", due)) if value is not ...}
        criteria |= {name: value for name, value in others.items() if value is not None}
        name = self._name(actor)
        return Wanted(name, criteria, self.actors.get(name), self.connection.payloads.serializer)

    def _name(self, actor: str | Callable[..., Any]) -> str:
        if isinstance(actor, str):
            return actor
        mine = [found.name for found in self.actors.values() if found.fn is actor]
        return mine[0] if len(mine) == 1 else actor_of(actor).name


def _dependencies(sources: Any) -> Iterator[Depends]:
    for source in sources:
        if isinstance(source, Depends):
            yield source
            yield from _dependencies(source._sources.values())
