"""M14 and M15: what an id is good for."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from repid_core.data import Capability, Enqueued, OnDuplicate
from repid_core.errors import DuplicateJobError
from repid_core.testing.conformance.messages import DEAD, MessageSuite, changed, ids
from repid_core.testing.conformance.suite import check, promise, same

_HOUR = timedelta(hours=1)


class IdentityTests(MessageSuite):
    """The tests of unique ids and of cancellation."""

    @promise(
        "M14",
        'An explicit id is unique in its queue while ready, delayed or running: "raise" raises, with the state found.',
        Capability.UNIQUE,
    )
    async def test_duplicate_raises(self) -> None:
        for state in self.live_states():
            queue = await self._in_state(state)
            try:
                outcome = await self.broker.enqueue(self.envelope("job", queue=queue, payload=b"new"))
            except DuplicateJobError as error:
                same((error.id_, error.state), ("job", state), "id and state of the error")
            else:
                check(ok=False, seen=f"enqueue onto a {state} id gave {outcome}")
            await self._only(queue, state, b"old")

    @promise("M14", 'on_duplicate="keep" leaves the old one, whatever its state.', Capability.UNIQUE)
    async def test_duplicate_keep(self) -> None:
        for state in self.live_states():
            queue = await self._in_state(state)
            outcome = await self.broker.enqueue(self.envelope("job", queue=queue, payload=b"new", on_duplicate="keep"))
            same(outcome, Enqueued.KEPT, f"outcome onto a {state} id")
            await self._only(queue, state, b"old")

    @promise("M14", 'on_duplicate="replace" swaps a ready or delayed one.', Capability.UNIQUE)
    async def test_duplicate_replace(self) -> None:
        for state in self.live_states()[:-1]:
            queue = await self._in_state(state)
            outcome = await self.broker.enqueue(self.envelope("job", queue=queue, payload=b"new", on_duplicate="replace"))
            same(outcome, Enqueued.REPLACED, f"outcome onto a {state} id")
            await self._only(queue, "ready", b"new")

    @promise("M14", 'on_duplicate="replace" takes the new due time.', Capability.UNIQUE, Capability.DELAY)
    async def test_duplicate_replace_takes_due_time(self) -> None:
        queue = await self._in_state("ready")
        await self.broker.enqueue(self.envelope("job", queue=queue, payload=b"new", delay=_HOUR, on_duplicate="replace"))
        await self._only(queue, "delayed", b"new")

    @promise("M14", 'on_duplicate="replace" raises for a running one.', Capability.UNIQUE)
    async def test_duplicate_replace_raises_for_running(self) -> None:
        queue = await self._in_state("running")
        try:
            await self.broker.enqueue(self.envelope("job", queue=queue, payload=b"new", on_duplicate="replace"))
        except DuplicateJobError as error:
            same(error.state, "running", "state of the error")
        else:
            check(ok=False, seen="replacing a running message raised nothing")
        await self._only(queue, "running", b"old")

    @promise("M14", "Dead ids are free.", Capability.UNIQUE)
    async def test_dead_ids_are_free(self) -> None:
        modes: list[OnDuplicate] = ["raise", "keep", "replace"]
        for mode in modes:
            queue = self.new_queue(f"free-{mode}")
            await self.put(self.envelope("job", queue=queue, payload=b"old"))
            await (await self.one(await self.consume(queue=queue))).nack(self.death())
            outcome = await self.broker.enqueue(self.envelope("job", queue=queue, payload=b"new", on_duplicate=mode))
            same(outcome, Enqueued.NEW, f"outcome onto a dead id with {mode!r}")
            await self.counts(queue, ready=1, dead=1)

    @promise("M14", "Ids of messages that were acknowledged, cancelled or flushed are free.", Capability.UNIQUE)
    async def test_ids_of_gone_messages_are_free(self) -> None:
        await self.put("job")
        consumer = await self.consume(prefetch=1)
        await (await self.one(consumer)).ack()
        await consumer.close()
        await self.put("job")
        if self.has(Capability.CANCEL):
            await self.broker.cancel(self.queue, "job")
            await self.put("job")
        await self.broker.flush_queue(self.queue)
        await self.put("job")

    @promise("M14", "Retries and recurrences keep their id: it is taken still after a requeue.", Capability.UNIQUE)
    async def test_requeue_keeps_the_id(self) -> None:
        due = self.now() + _HOUR if self.has(Capability.DELAY) else None
        await self.put("job")
        consumer = await self.consume()
        delivery = await self.one(consumer)
        await delivery.requeue(changed(delivery.envelope, due=due))
        await consumer.close()
        same(await self.broker.enqueue(self.envelope("job", on_duplicate="keep")), Enqueued.KEPT, "outcome after a requeue")

    @promise("M14", "An id is unique in its queue: another queue may have it too.", Capability.UNIQUE)
    async def test_ids_are_per_queue(self) -> None:
        await self.put("job", self.envelope("job", queue=self.new_queue("other")))

    @promise("M14", "Of enqueues of one id at the same time one is new.", Capability.UNIQUE)
    async def test_duplicates_at_once(self) -> None:
        brokers = [self.broker, await self.client()] * 5
        outcomes = await asyncio.gather(*(b.enqueue(self.envelope("job", on_duplicate="keep")) for b in brokers))
        same(sorted(outcome.value for outcome in outcomes), ["kept"] * 9 + ["new"], "outcomes")
        await self.counts(ready=1)

    @promise("M14", "Redriving onto a live id raises, and the dead message stays where it is.", Capability.UNIQUE)
    async def test_redriving_onto_a_live_id_raises(self) -> None:
        for state in self.live_states():
            queue = self.new_queue(f"redrive-{state}")
            await self.put(self.envelope("job", queue=queue, payload=b"dead"))
            consumer = await self.consume(queue=queue)
            await (await self.one(consumer)).nack(self.death())
            await consumer.close()
            await self._in_state(state, queue)
            dead = await self.consume(queue=queue, category=DEAD)
            delivery = await self.one(dead)
            try:
                await delivery.requeue(delivery.envelope)
            except DuplicateJobError as error:
                same((error.id_, error.state), ("job", state), "id and state of the error")
            else:
                check(ok=False, seen=f"redriving onto a {state} id raised nothing")
            await dead.close()
            await self._only(queue, state, b"old", dead=1)
            again = await self.one(await self.consume(queue=queue, category=DEAD))
            same(again.envelope.payload, b"dead", "payload of the dead message")

    def live_states(self) -> list[str]:
        """The states in which an id is taken, running last."""
        return ["ready", *(["delayed"] if self.has(Capability.DELAY) else []), "running"]

    async def _in_state(self, state: str, queue: str | None = None) -> str:
        queue = queue or self.new_queue(f"is-{state}")
        await self.put(self.envelope("job", queue=queue, payload=b"old", delay=_HOUR if state == "delayed" else None))
        if state == "running":
            self._running = await self.one(await self.consume(queue=queue))
        return queue

    async def _only(self, queue: str, state: str, payload: bytes, *, dead: int = 0) -> None:
        """The message is there in this state, alone among the live ones; a ready or running one has this payload."""
        await self.counts(queue, **{"in_progress" if state == "running" else state: 1}, dead=dead)
        if state == "ready":
            same([d.envelope.payload for d in await self.all_there(queue=queue)], [payload], "payloads")
        elif state == "running":
            same(self._running.envelope.payload, payload, "payload")
            await self._running.ack()

    @promise("M15", "Asking for CANCEL where it is not declared raises UnsupportedFeatureError.")
    async def test_cancel_unsupported(self) -> None:
        if self.has(Capability.CANCEL):
            same(await self.broker.cancel(self.queue, "nobody"), False, "cancelling in an unknown queue")
            return
        await self.put("job")
        with self.unsupported(Capability.CANCEL):
            await self.broker.cancel(self.queue, "job")
        same(ids(await self.take(await self.consume())), ["job"], "what came")

    @promise("M15", "cancel removes a ready message, and says that it did.", Capability.CANCEL)
    async def test_cancel_ready(self) -> None:
        await self.put("a", "b", "c")
        same(await self.broker.cancel(self.queue, "b"), True, "cancel")
        same(await self.broker.cancel(self.queue, "b"), False, "cancel, again")
        await self.counts(ready=2)
        same(ids(await self.all_there()), ["a", "c"], "left")

    @promise(
        "M15",
        "cancel removes a delayed message, a requeued one too, and says that it did.",
        Capability.CANCEL,
        Capability.DELAY,
    )
    async def test_cancel_delayed(self) -> None:
        await self.put(self.envelope("job", delay=self.a_while))
        same(await self.broker.cancel(self.queue, "job"), True, "cancel")
        await self.counts()
        await self.put("retry")
        consumer = await self.consume()
        delivery = await self.one(consumer)
        await delivery.requeue(changed(delivery.envelope, due=self.now() + self.a_while))
        same(await self.broker.cancel(self.queue, "retry"), True, "cancel of a retry")
        await self.nothing(consumer, during=self.a_while + self.late + self.quiet)
        await self.counts()

    @promise("M15", "cancel says so if it did not remove: a running, dead or unknown message is left alone.", Capability.CANCEL)
    async def test_cancel_of_others(self) -> None:
        await self.kill_off("dead")
        await self.put("running")
        delivery = await self.one(await self.consume())
        for name in ("dead", "running", "unknown"):
            same(await self.broker.cancel(self.queue, name), False, f"cancel of a message that is {name}")
        await self.counts(in_progress=1, dead=1)
        await delivery.ack()
        await self.counts(dead=1)
