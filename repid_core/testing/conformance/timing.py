"""M3, M4, M7, M8 and M13: what time does to messages, and what death of their workers does."""

from __future__ import annotations

from datetime import datetime, timedelta

from attrs import evolve

from repid_core.abc import Consumer
from repid_core.data import Capability, DeathReason, Priority
from repid_core.testing.conformance.messages import DEAD, DELAYED, MessageSuite, changed, id_of, ids
from repid_core.testing.conformance.suite import check, promise, same

_SAMPLES = 100


class TimingTests(MessageSuite):
    """The tests of leases, delays and TTLs."""

    @promise("M3", "A worker that dies has its deliveries given to another within twice the lease.", "kill_consumer")
    async def test_killed_worker_is_relieved(self) -> None:
        lease, broker = self.broker.limits.lease, await self.client()
        long = self.envelope("long")
        await self.put(evolve(long, parameters=evolve(long.parameters, timeout=timedelta(days=30))), "read-ahead")
        consumer = await self.consume(prefetch=2, broker=broker)
        running = await self.one(consumer)
        same((id_of(running), running.redelivered), ("long", False), "first delivery, redelivered")
        other = await self.consume()
        start = self.clock.now()
        await self.kill(broker, consumer)
        taken = await self.take(other, 2, within=2 * lease)
        took = self.clock.now() - start
        self.measured["lease"] = f"redelivered {took.total_seconds():.3f} s after the kill; lease {lease.total_seconds()} s"
        check(took <= 2 * lease + self.quiet, f"it took {took}, the lease being {lease}")
        same(sorted(ids(taken)), ["long", "read-ahead"], "redelivered")
        check(all(delivery.redelivered for delivery in taken if id_of(delivery) == "long"), "redelivered is False")
        self.arrived_as(next(d for d in taken if id_of(d) == "long"), running.envelope)
        for delivery in taken:
            await delivery.ack()
        await self.counts()

    @promise("M3", "A worker whose connection is closed has its deliveries given to another at once.")
    async def test_closed_worker_is_relieved_at_once(self) -> None:
        other = await self.client()
        await self.put("job")
        await self.one(await self.consume(broker=other))
        await other.disconnect()
        if other is self.broker:
            await self.broker.connect()
        same(ids(await self.take(await self.consume())), ["job"], "given to another")

    @promise("M4", "A worker whose event loop turns keeps its delivery, tested at ten times the lease.")
    async def test_long_job_keeps_its_delivery(self) -> None:
        [sent] = await self.put("long")
        delivery = await self.one(await self.consume(prefetch=1, broker=await self.client()))
        lost: list[str] = []
        delivery.on_lost(lambda: lost.append("lost"))
        await self.nothing(await self.consume(), during=10 * self.broker.limits.lease)
        same(lost, [], "on_lost called")
        await self.counts(in_progress=1)
        self.arrived_as(delivery, sent)
        await delivery.ack()
        await self.counts()

    @promise("M7", "A delayed message is not delivered before its due time, and soon after it.", Capability.DELAY)
    async def test_delayed_message_waits(self) -> None:
        consumer = await self.consume()
        due = self.now() + self.a_while
        await self.put(evolve(self.envelope("later"), due=due), "now")
        same(ids(await self.take(consumer)), ["now"], "first to come")
        await self.counts(in_progress=1, delayed=1)
        delivery = await self.one(consumer, within=self.a_while + self.late)
        check(self.clock.now() >= due, f"it came at {self.clock.now()}, due at {due}")
        same((id_of(delivery), delivery.envelope.due, delivery.category.name), ("later", due, "NORMAL"), "what came")
        await self.counts(in_progress=2)

    @promise("M7", "Due times are kept, to the declared delay_step and lateness.", Capability.DELAY)
    async def test_lateness(self) -> None:
        limits = self.broker.limits
        start, spread = self.now() + self.a_while, max(timedelta(seconds=1), 2 * limits.delay_step)
        due = {f"m{n}": start + spread * n / _SAMPLES // timedelta(milliseconds=1) * timedelta(milliseconds=1)
               for n in range(_SAMPLES)}  # fmt: skip
        await self.put(*(evolve(self.envelope(name), due=when) for name, when in due.items()))
        came = await self._arrivals(await self.consume(prefetch=_SAMPLES), _SAMPLES, self.a_while + spread + self.late)
        lateness = [came[name] - when for name, when in due.items()]
        check(min(lateness) >= timedelta(0), f"one came {-min(lateness)} early")
        self.measure("lateness", lateness, limits.lateness + limits.delay_step)

    async def _arrivals(self, consumer: Consumer, wanted: int, span: timedelta) -> dict[str, datetime]:
        came: dict[str, datetime] = {}

        async def watch() -> None:
            while len(came) < wanted:
                for delivery in await consumer.receive(wanted):
                    came[id_of(delivery)] = self.clock.now()
                    await delivery.ack()

        check(await self.let(self.task(watch()), span), f"{len(came)} of {wanted} messages came within {span}")
        return came

    @promise("M7", "A long delay never holds back a short one, nor a ready message.", Capability.DELAY)
    async def test_long_delay_holds_nothing_back(self) -> None:
        consumer = await self.consume(prefetch=1)
        for name, delay in (("year", 365 * 24.0), ("day", 24.0), ("hour", 1.0)):
            await self.put(self.envelope(name, delay=timedelta(hours=delay)))
        await self.put(self.envelope("short", delay=self.a_while), "ready")
        delivery = await self.one(consumer)
        same(id_of(delivery), "ready", "first to come")
        await delivery.ack()
        same(id_of(await self.one(consumer, within=self.a_while + self.late)), "short", "second to come")
        await self.counts(in_progress=1, delayed=3)

    @promise("M7", "Messages come in the order of their due times, whatever the order of enqueue.", Capability.DELAY)
    async def test_delays_in_order_of_due_times(self) -> None:
        step = max(2 * self.late, timedelta(milliseconds=100))
        later = [self.envelope(f"m{number}", delay=self.a_while + number * step) for number in (3, 1, 4, 2)]
        for envelope in later:  # each due as if all were enqueued now, however long that takes
            await self.put(envelope)
        consumer = await self.consume(prefetch=1)
        for number in range(1, 5):
            delivery = await self.one(consumer, within=self.a_while + number * step)
            same(id_of(delivery), f"m{number}", "next to come")
            await delivery.ack()

    @promise("M7", "No worker holds a delayed message in its memory.", Capability.DELAY)
    async def test_no_worker_holds_delayed_messages(self) -> None:
        other = await self.client()
        consumer = await self.consume(prefetch=1, broker=other)
        await self.put(*(self.envelope(f"m{n}", delay=self.a_while) for n in range(5)))
        await self.counts(delayed=5)
        await consumer.close()
        await other.disconnect()
        if other is self.broker:
            await self.broker.connect()
        taken = await self.take(await self.consume(), 5, within=self.a_while + self.late)
        same(sorted(ids(taken)), [f"m{n}" for n in range(5)], "came after their first worker was gone")

    @promise("M7", "Delays reach to at least one year.", Capability.DELAY)
    async def test_delays_reach_a_year(self) -> None:
        limits = self.broker.limits
        check(limits.max_delay >= timedelta(days=365), f"the declared max_delay is {limits.max_delay}")
        await self.put(self.envelope("far", delay=limits.max_delay))
        await self.counts(delayed=1)
        await self.nothing(await self.consume())

    @promise("M7", "A due time that has passed is no delay.", Capability.DELAY)
    async def test_past_due_time_is_now(self) -> None:
        [sent] = await self.put(self.envelope("late", delay=-timedelta(days=400)))
        self.arrived_as(await self.one(await self.consume()), sent)

    @promise("M8", "A message past its TTL is not run: it comes with expires_at for core to see, or is in DEAD, `expired`.")
    async def test_expired_message(self) -> None:
        ttl = self.a_while
        [sent] = await self.put(evolve(self.envelope("old"), expires_at=self.now() + ttl))
        await self.wait(ttl + self.late)
        consumer = await self.consume()
        if taken := await self.soon(consumer):
            self.arrived_as(taken[0], sent)
            await taken[0].nack(self.death(DeathReason.EXPIRED))
        await self.counts(dead=1)
        await self.nothing(consumer)
        [dead] = await self.dead()
        same((id_of(dead), dead.death and dead.death.reason), ("old", DeathReason.EXPIRED), "dead, for the reason")

    @promise("M8", "TTL counts from the due time: a delayed message with a TTL comes when it is due.", Capability.DELAY)
    async def test_ttl_counts_from_due_time(self) -> None:
        sent = self.envelope("fresh", delay=self.a_while)
        await self.put(evolve(sent, expires_at=self.now() + self.a_while + timedelta(minutes=1)))
        delivery = await self.one(await self.consume(), within=self.a_while + self.late)
        same(id_of(delivery), "fresh", "what came")

    @promise("M8", "Without expires_at, as recurring messages are, a message is never ended by its age.")
    async def test_message_without_ttl_never_expires(self) -> None:
        sent = self.envelope("recurring")
        await self.put(changed(sent, ttl=timedelta(milliseconds=1)))
        await self.wait(self.a_while)
        same(ids(await self.take(await self.consume())), ["recurring"], "what came")

    @promise(
        "M13",
        "A message whose worker died max_deliveries times goes to DEAD, reason `poison`.",
        Capability.POISON,
        "kill_consumer",
    )
    async def test_poison(self) -> None:
        most = self.broker.limits.max_deliveries
        [sent] = await self.put("killer")
        for _ in range(most):
            await self._die("killer")
        await self._nothing_after_leases()
        await self.counts(dead=1)
        [dead] = await self.dead()
        self.arrived_as(dead, sent)
        same(dead.death and dead.death.reason, DeathReason.POISON, "reason")
        self.measured["max_deliveries"] = f"DEAD after {most} dead workers"

    @promise(
        "M13",
        "Only the message that was running is blamed, not its read-ahead neighbours.",
        Capability.POISON,
        "kill_consumer",
    )
    async def test_neighbours_are_not_blamed(self) -> None:
        await self.put(self.envelope("killer", priority=Priority.HIGH), "neighbour", "other")
        for _ in range(self.broker.limits.max_deliveries):
            await self._die("killer", "neighbour", "other")
        for _ in range(3):
            await self._die("neighbour", "other", running=False)
        consumer = await self.consume()
        taken = await self.take(consumer, 2, within=2 * self.broker.limits.lease)
        same(sorted(ids(taken)), ["neighbour", "other"], "still delivered")
        same(ids(await self.dead()), ["killer"], "dead")

    @promise("M13", "Rejects never count.", Capability.POISON)
    async def test_rejects_never_count(self) -> None:
        await self.put("patient")
        consumer = await self.consume()
        for _ in range(2 * self.broker.limits.max_deliveries):
            delivery = await self.one(consumer)
            if delivery.redelivered:
                await delivery.mark_started()
            await delivery.reject()
        await self.one(consumer)
        await self.nothing(await self.consume(category=DEAD))

    @promise("M13", "Redriving a poisoned message starts the count anew.", Capability.POISON, "kill_consumer")
    async def test_redriven_poison_starts_anew(self) -> None:
        most = self.broker.limits.max_deliveries
        await self.put("killer")
        for _ in range(most):
            await self._die("killer")
        await self._nothing_after_leases()
        consumer = await self.consume(category=DEAD)
        delivery = await self.one(consumer)
        await delivery.requeue(delivery.envelope)
        await consumer.close()
        for _ in range(most - 1):
            await self._die("killer")
        same(ids(await self.take(await self.consume(), within=2 * self.broker.limits.lease)), ["killer"], "delivered")

    async def _die(self, *wanted: str, running: bool = True) -> None:
        """A worker takes these messages, runs the first if `running`, and dies."""
        broker = await self.client()
        consumer = await self.consume(prefetch=len(wanted), broker=broker)
        taken = await self.take(consumer, len(wanted), within=2 * self.broker.limits.lease)
        same(sorted(ids(taken)), sorted(wanted), "given to a worker")
        first = next(delivery for delivery in taken if id_of(delivery) == wanted[0])
        if running and first.redelivered:
            await first.mark_started()
        await self.kill(broker, consumer)

    async def _nothing_after_leases(self) -> None:
        consumer = await self.consume()
        await self.nothing(consumer, during=2 * self.broker.limits.lease + self.quiet)
        await consumer.close()

    @promise("M12", "DELAYED messages can be consumed and requeued.", Capability.DELAYED_ACCESS, Capability.DELAY)
    async def test_delayed_messages_can_be_requeued(self) -> None:
        sent = await self.put(*(self.envelope(f"m{n}", delay=timedelta(hours=n + 1)) for n in range(3)))
        consumer = await self.consume(category=DELAYED)
        taken = sorted(await self.take(consumer, 3), key=id_of)
        for delivery, envelope in zip(taken, sent, strict=True):
            self.arrived_as(delivery, envelope)
            same((delivery.category, delivery.death), (DELAYED, None), "category and death")
        await taken[0].ack()
        await taken[1].reject()
        await taken[2].requeue(changed(taken[2].envelope, payload=b"now"))
        delivery = await self.one(await self.consume())
        self.arrived_as(delivery, changed(sent[2], payload=b"now"))
        await consumer.close()
        await self.counts(in_progress=1, delayed=1)

    @promise("M12", "A DELAYED message that is given back is due when it was.", Capability.DELAYED_ACCESS, Capability.DELAY)
    async def test_delayed_message_given_back_keeps_its_due_time(self) -> None:
        await self.put(self.envelope("job", delay=self.a_while * 2))
        for _ in range(2):
            consumer = await self.consume(category=DELAYED)
            await self.one(consumer)
            await consumer.close()
        await self.counts(delayed=1)
        normal = await self.consume()
        await self.nothing(normal, during=self.a_while)
        same(id_of(await self.one(normal, within=self.a_while + self.late)), "job", "what came when it was due")
