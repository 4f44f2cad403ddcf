"""M12: what is dead, delayed or ready can be seen, counted, taken back and purged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

from repid_core.data import Browsed, Capability, Death, DeathReason, MessageCategory
from repid_core.testing.conformance.messages import DEAD, DELAYED, HIGH, NORMAL, MessageSuite, changed, id_of, ids
from repid_core.testing.conformance.suite import check, promise, same

_HOUR = timedelta(hours=1)


class DeadTests(MessageSuite):
    """The tests of DEAD, of counts and of browsing."""

    @promise("M12", "DEAD messages keep their reason, time of death, attempts and error text.")
    async def test_dead_messages_keep_their_death(self) -> None:
        error = "Traceback (most recent call last):\n  grüße ✓\n" + "x" * 5000
        deaths = {
            reason.value: Death(reason, self.now() - timedelta(minutes=number), number, error if number % 2 else None)
            for number, reason in enumerate(DeathReason)
        }
        for name, death in deaths.items():
            await self.kill_off(name, death=death)
        seen = {id_of(delivery): delivery.death for delivery in await self.dead(len(deaths))}
        same(seen, deaths, "deaths")

    @promise("M12", "DEAD messages can be requeued: they are ready, with an attempt count of their own, and not dead.")
    async def test_dead_messages_can_be_requeued(self) -> None:
        sent = self.envelope("again", payload=b"old", priority=HIGH)
        await self.kill_off(sent)
        consumer = await self.consume(category=DEAD)
        delivery = await self.one(consumer)
        self.arrived_as(delivery, sent)
        await delivery.requeue(changed(delivery.envelope, payload=b"new", tried=0))
        await self.counts(ready=1)
        again = await self.one(await self.consume())
        self.arrived_as(again, changed(sent, payload=b"new"))
        same((again.category, again.death), (NORMAL, None), "category and death")
        await again.ack()
        await consumer.close()
        await self.counts()

    @promise("M12", "DEAD messages can be requeued for a later time.", Capability.DELAY)
    async def test_dead_messages_can_be_requeued_with_a_delay(self) -> None:
        await self.kill_off("later")
        delivery = (await self.dead())[0]
        await delivery.requeue(changed(delivery.envelope, due=self.now() + _HOUR))
        await self.counts(delayed=1)
        await self.nothing(await self.consume())

    @promise("M12", "DEAD messages can be purged, one by one and all at once.")
    async def test_dead_messages_can_be_purged(self) -> None:
        await self.kill_off("a", "b", "c")
        consumer = await self.consume(category=DEAD)
        taken = await self.take(consumer, 3)
        await taken[0].ack()
        await consumer.close()
        await self.counts(dead=2)
        await self.broker.flush_queue(self.queue)
        await self.counts()
        await self.nothing(await self.consume(category=DEAD))

    @promise("M12", "A DEAD message that is looked at and given back is dead as before.")
    async def test_dead_messages_given_back_stay_dead(self) -> None:
        death = self.death(DeathReason.FAILED, "why", attempts=4)
        await self.kill_off("dead", "other", death=death)
        consumer = await self.consume(category=DEAD)
        taken = await self.take(consumer, 2)
        await taken[0].reject()
        await consumer.close()
        await self.counts(dead=2)
        same([delivery.death for delivery in await self.dead(2)], [death, death], "deaths")
        await self.nothing(await self.consume())

    @promise("M12", "A consumer of DEAD messages gets those that die while it waits; one of NORMAL never gets a dead one.")
    async def test_dead_consumer_waits(self) -> None:
        dead = await self.consume(category=DEAD)
        waiting = self.task(dead.receive(1))
        await self.kill_off("fresh")
        check(await self.let(waiting), "a message that died did not come to the consumer of DEAD messages")
        same(ids(list(await waiting)), ["fresh"], "what came")

    @promise("M12", "queue_stats counts ready, in progress, delayed and dead messages.")
    async def test_stats(self) -> None:
        await self.kill_off("dead")
        await self.put(*(f"r{n}" for n in range(5)))
        delayed = 2 if self.has(Capability.DELAY) else 0
        await self.put(*(self.envelope(f"d{n}", delay=_HOUR) for n in range(delayed)))
        await self.counts(ready=5, dead=1, delayed=delayed)
        consumer = await self.consume(prefetch=2)
        taken = await self.take(consumer, 2)
        await self.counts(ready=3, in_progress=2, dead=1, delayed=delayed)
        await taken[0].ack()
        await consumer.close()
        await self.counts(ready=4, dead=1, delayed=delayed)

    @promise("M12", "Queues do not mix: each has its own messages and counts.")
    async def test_queues_do_not_mix(self) -> None:
        other = self.new_queue("main.other")
        await self.put("here", self.envelope("there", queue=other))
        same(ids(await self.all_there(queue=other)), ["there"], "in the other queue")
        same(ids(await self.all_there()), ["here"], "in the queue")
        await self.counts(in_progress=1)
        await self.counts(other, in_progress=1)

    async def _browsed(self, category: MessageCategory, **options: object) -> list[Browsed]:
        listing: AsyncIterator[Browsed] = self.broker.browse(self.queue, category, **options)  # type: ignore[arg-type]
        return [browsed async for browsed in listing]

    async def _browse_one(self, category: MessageCategory) -> Browsed:
        found = await self._browsed(category)
        check(len(found) == 1, f"browsing gave {len(found)} messages, instead of 1")
        return found[0]

    @promise("M12", "With BROWSE ready messages can be listed in their order without being disturbed.", Capability.BROWSE)
    async def test_browse_ready(self) -> None:
        sent = await self.put(*(f"m{n}" for n in range(5)))
        for _ in range(2):
            same(ids([browsed.envelope for browsed in await self._browsed(NORMAL)]), ids(sent), "browsed")
        await self.counts(ready=5)
        consumer = await self.consume(prefetch=5)
        for delivery, envelope in zip(await self.take(consumer, 5), sent, strict=True):
            self.arrived_as(delivery, envelope)
            check(not delivery.redelivered, "browsing made it redelivered")

    @promise("M12", "With BROWSE delayed messages can be listed.", Capability.BROWSE, Capability.DELAY)
    async def test_browse_delayed(self) -> None:
        [sent] = await self.put(self.envelope("later", delay=_HOUR))
        browsed = await self._browse_one(DELAYED)
        same((browsed.envelope.key, browsed.envelope.due), (sent.key, sent.due), "browsed")
        await self.counts(delayed=1)
        same(await self._browsed(NORMAL), [], "browsed as ready")

    @promise("M12", "With BROWSE dead messages can be listed, each with its death.", Capability.BROWSE)
    async def test_browse_dead(self) -> None:
        death = self.death(DeathReason.FAILED, "why", attempts=2)
        sent = self.envelope("dead", payload=b"\x00payload")
        await self.kill_off(sent, death=death)
        for _ in range(2):
            browsed = await self._browse_one(DEAD)
            same((browsed.envelope.key, browsed.envelope.payload), (sent.key, sent.payload), "browsed")
            same(browsed.death, death, "death")
        await self.counts(dead=1)

    @promise("M12", "Browsing goes on behind a cursor, as far as its limit, and sees each message once.", Capability.BROWSE)
    async def test_browse_pages(self) -> None:
        for category in (NORMAL, DEAD):
            names = [f"{category.value}-{n}" for n in range(7)]
            if category is NORMAL:
                await self.put(*names)
            else:
                await self.kill_off(*names)
            seen, after = list[str](), None
            while page := await self._browsed(category, after=after, limit=3):
                check(len(page) <= 3, f"a page of {len(page)}, the limit being 3")
                seen += ids([browsed.envelope for browsed in page])
                after = page[-1].cursor
                check(len(seen) <= 7, f"browsing does not end: {seen}")
            same(sorted(seen), names, "browsed page by page")
            await self.broker.flush_queue(self.queue)

    @promise("M12", "Asking for BROWSE where it is not declared raises UnsupportedFeatureError.")
    async def test_browse_unsupported(self) -> None:
        if self.has(Capability.BROWSE):
            same(await self._browsed(NORMAL), [], "browsing an unknown queue")
            return
        with self.unsupported(Capability.BROWSE):
            await self._browsed(NORMAL)
