"""M8, as a worker keeps it on this broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from repid_core.connection import Connection
from repid_core.data import Capability, DeathReason
from repid_core.job import Job
from repid_core.router import Router
from repid_core.testing.conformance.messages import MessageSuite, id_of
from repid_core.testing.conformance.suite import check, promise, same
from repid_core.worker import Worker


class WorkingTests(MessageSuite):
    """The tests that need core's worker."""

    @asynccontextmanager
    async def working(self, ran: list[datetime], *, fail: int = 0, retry: timedelta | None = None) -> AsyncIterator[Connection]:
        """An actor `work` on the test's queue, which notes when it ran, and fails the first times."""
        router = Router()

        @router.actor(name="work", queue=self.queue, retry_policy=lambda *_: retry)
        async def work() -> None:
            ran.append(self.clock.now())
            if len(ran) <= fail:
                raise RuntimeError("on purpose")

        async with Connection(self.make(), clock=self.clock) as connection:
            self._worker = Worker([router], handle_signals=(), connection=connection)
            yield connection

    async def work(self, settled: int, span: timedelta) -> None:
        """Let the worker settle this many deliveries within `span`."""
        self._worker.messages_limit = settled
        run = self.task(self._worker.run())
        ended = await self.let(run, span)
        if not ended:
            self._worker.stop()
            await self.let(run)
        check(ended, f"the worker did not settle {settled} deliveries within {span}")
        run.result()

    @promise("M8", "A message past its TTL is not run by a worker: it goes to DEAD, reason `expired`.")
    async def test_worker_buries_expired_messages(self) -> None:
        ran: list[datetime] = []
        async with self.working(ran) as connection:
            await Job("work", self.queue, id_="old", ttl=self.a_while, connection=connection).enqueue()
            await Job("work", self.queue, id_="young", ttl=timedelta(hours=1), connection=connection).enqueue()
            await self.wait(self.a_while + self.late)
            self._worker.messages_limit = None
            run = self.task(self._worker.run())
            check(await self.eventually(lambda: ran or run.done()), "the message that was young enough did not run")
            await self.counts(dead=1)
            self._worker.stop()
            await self.let(run)
            same(len(ran), 1, "messages that ran")
            [delivery] = await self.dead()
            same((id_of(delivery), delivery.death and delivery.death.reason), ("old", DeathReason.EXPIRED), "dead")

    @promise("M8", "TTL counts from the due time of each retry.", Capability.DELAY)
    async def test_ttl_starts_anew_at_a_retry(self) -> None:
        ran: list[datetime] = []
        async with self.working(ran, fail=1, retry=3 * self.a_while) as connection:
            start = self.clock.now()
            await Job("work", self.queue, ttl=2 * self.a_while, retries=1, connection=connection).enqueue()
            await self.work(2, 4 * self.a_while + self.late)
            same(len(ran), 2, "runs")
            check(ran[1] - start >= 3 * self.a_while, f"the retry ran {ran[1] - start} after the enqueue")
            await self.counts()

    @promise("M8", "A recurring message is never ended by its TTL: it is rescheduled.", Capability.DELAY)
    async def test_recurring_message_outlives_its_ttl(self) -> None:
        ran: list[datetime] = []
        async with self.working(ran) as connection:
            every = max(timedelta(seconds=1), 4 * self.late)
            await Job("work", self.queue, id_="again", deferred_by=every, ttl=2 * self.late, connection=connection).enqueue()
            await self.wait(2.5 * every)
            await self.work(1, every)
            await self.counts(delayed=1)
            await self.work(1, 2 * every + self.late)
            check(len(ran) >= 1, "it did not run again")
            await self.counts(delayed=1)
