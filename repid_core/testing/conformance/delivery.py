"""M0 to M2, M5 and M6: what becomes of a message in hand."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

from attrs import evolve

from repid_core.abc import Consumer, Delivery
from repid_core.data import Capability, Envelope, Parameters, Priority, Recurrence
from repid_core.errors import AlreadySettledError, MessageBrokerError
from repid_core.testing.conformance.messages import DEAD, NORMAL, MessageSuite, changed, id_of, ids
from repid_core.testing.conformance.suite import check, promise, same

_SETTLEMENTS = ("ack", "nack", "reject", "requeue")


class DeliveryTests(MessageSuite):
    """The tests of settlement."""

    @promise("M0", "A message is a routing key, a payload (bytes) and parameters: all arrive as they were sent.")
    async def test_message_arrives_as_sent(self) -> None:
        now = self.now()
        every_field = evolve(
            self.envelope("Every.field:1-2_3", topic="a.topic-1", priority=Priority.HIGH, payload=b"\x00\xff\r\n{}"),
            content_type="application/x-test; charset=utf-8",
            args_id="args:1",
            args_owned=True,
            expires_at=now + timedelta(hours=1),
            headers={"trace": "00-ab", "empty": "", "text": "grüße\n✓"},
            parameters=Parameters(
                timestamp=now - timedelta(days=1),
                timeout=timedelta(days=2, milliseconds=1),
                retries=7,
                tried=3,
                result_id="result:1",
                result_ttl=timedelta(days=30),
                ttl=timedelta(hours=1),
            ),
        )
        await self.put(every_field)
        delivery = await self.one(await self.consume())
        self.arrived_as(delivery, every_field)
        same(delivery.envelope.key, every_field.key, "key")
        same(delivery.envelope.parameters, every_field.parameters, "parameters")
        same(dict(delivery.envelope.headers), dict(every_field.headers), "headers")
        same((delivery.category, delivery.redelivered, delivery.death), (NORMAL, False, None), "category, redelivered, death")

    @promise("M0", "A payload is bytes: empty, binary and large ones arrive byte for byte.")
    async def test_payload_is_bytes(self) -> None:
        largest = min(self.broker.limits.max_payload or 1 << 20, 1 << 20)
        payloads = [b"", b"\x00", bytes(range(256)), b"\r\n" * 50, "grüße".encode("utf-16"), b"\xff" * largest]
        sent = await self.put(*(self.envelope(payload=payload) for payload in payloads))
        for envelope, delivery in zip(sent, await self.take(await self.consume(), len(sent)), strict=True):
            self.arrived_as(delivery, envelope)

    @promise("M0", "A recurrence, by interval or cron, travels with its message.")
    async def test_recurrence_arrives(self) -> None:
        consumer = await self.consume()
        for recurrence in (
            Recurrence(interval=timedelta(seconds=90), anchor=self.now()),
            Recurrence(cron="*/5 * * * 1-5", timezone="Europe/Berlin"),
            Recurrence(cron="0 0 1 1 *"),
        ):
            [sent] = await self.put(changed(self.envelope(), recurrence=recurrence))
            delivery = await self.one(consumer)
            same(delivery.envelope.parameters.recurrence, recurrence, f"recurrence of {id_of(sent)}")
            await delivery.ack()

    @promise("M0", "Fields of the wire that this version does not know survive delivery and requeue.")
    async def test_unknown_fields_survive(self) -> None:
        sent = self.envelope(extra={"from_the_future": {"a": [1, None, "ü"]}, "flag": True})
        await self.put(sent)
        consumer = await self.consume()
        delivery = await self.one(consumer)
        self.arrived_as(delivery, sent)
        await delivery.requeue(changed(delivery.envelope, tried=1))
        self.arrived_as(await self.one(consumer), changed(sent, tried=1))

    @promise("M1", "When enqueue returns, the broker has accepted the message: another client sees it.")
    async def test_enqueue_returns_once_accepted(self) -> None:
        other = await self.client()
        await self.put("here")
        await self.counts(ready=1)
        same(ids(await self.take(await self.consume(broker=other))), ["here"], "seen by another client")

    @promise("M1", "Nothing is dropped silently: an enqueue that is cancelled has happened or not, and the next ones do.")
    async def test_cancelled_enqueue_is_whole(self) -> None:
        for turns in range(12):
            await self.cancelled_at(self.broker.enqueue(self.envelope(f"cancelled-{turns}")), turns)
        await self.put("after")
        seen = [delivery.envelope for delivery in await self.all_there()]
        check("after" in ids(seen), f"a message enqueued after cancelled ones did not come, but {ids(seen)}")
        same(len(ids(seen)), len(set(ids(seen))), f"messages that came for as many ids {ids(seen)}")
        same([e.payload.decode() for e in seen], ids(seen), "payloads")

    @promise("M2", "ack: the message is done, and is nowhere.")
    async def test_ack_removes(self) -> None:
        await self.put("done")
        consumer = await self.consume()
        await (await self.one(consumer)).ack()
        await self.counts()
        await consumer.close()
        await self.nothing(await self.consume())
        await self.nothing(await self.consume(category=DEAD))

    @promise("M2", "nack: the message is in DEAD, with the reason, and nowhere else.")
    async def test_nack_moves_to_dead(self) -> None:
        [sent] = await self.put("bad")
        consumer = await self.consume()
        death = self.death(error="because")
        await (await self.one(consumer)).nack(death)
        await self.counts(dead=1)
        await consumer.close()
        await self.nothing(await self.consume())
        [delivery] = await self.dead()
        self.arrived_as(delivery, sent)
        same((delivery.category, delivery.death), (DEAD, death), "category and death")

    @promise("M2", "reject: the message is back where it came from at once, as it was, nothing counted.")
    async def test_reject_gives_back(self) -> None:
        [sent] = await self.put("again")
        consumer = await self.consume(prefetch=1)
        await (await self.one(consumer)).reject()
        delivery = await self.one(consumer)
        self.arrived_as(delivery, sent)
        await self.counts(in_progress=1)
        await delivery.ack()
        await self.counts()

    @promise("M2", "requeue: the same id, with new payload and parameters, in the old one's place.")
    async def test_requeue_takes_its_place(self) -> None:
        [sent] = await self.put(self.envelope("job", payload=b"old", priority=Priority.HIGH, headers={"a": "1"}))
        consumer = await self.consume()
        wanted = changed(evolve(sent, headers={"b": "2"}), payload=b"new", tried=3, retries=9)
        await (await self.one(consumer)).requeue(wanted)
        delivery = await self.one(consumer)
        self.arrived_as(delivery, wanted)
        await self.nothing(consumer)
        await self.counts(in_progress=1)
        await delivery.ack()
        await self.counts()

    @promise("M2", "requeue: at its due time, and not before.", Capability.DELAY)
    async def test_requeue_at_its_due_time(self) -> None:
        await self.put("job")
        consumer = await self.consume()
        delivery = await self.one(consumer)
        wanted = changed(delivery.envelope, payload=b"later", due=self.now() + self.a_while, tried=1)
        await delivery.requeue(wanted)
        await self.counts(delayed=1)
        await self.nothing(consumer, during=self.a_while * 0.6)
        again = await self.one(consumer, within=self.a_while * 0.4 + self.late)
        check(wanted.due and self.clock.now() >= wanted.due, f"it came at {self.clock.now()}, due at {wanted.due}")
        self.arrived_as(again, wanted)
        await again.ack()
        await self.counts()

    @promise("M2", "A delivery is settled once: the first settlement wins, and a second raises AlreadySettledError.")
    async def test_first_settlement_wins(self) -> None:
        for first in _SETTLEMENTS:
            for second in _SETTLEMENTS:
                queue = self.new_queue(f"{first}-{second}")
                await self.put(self.envelope(queue=queue))
                consumer = await self.consume(queue=queue, prefetch=1)
                delivery = await self.one(consumer)
                await self.settle(delivery, first)
                await self.refused(delivery, second, f"{second} after {first}")
                await consumer.close()
                await self.counts(queue, **({"ack": {}, "nack": {"dead": 1}}.get(first, {"ready": 1})))

    @promise("M2", "Of settlements at the same time exactly one counts.")
    async def test_settlements_at_once(self) -> None:
        await self.put("job")
        delivery = await self.one(await self.consume())
        results = await asyncio.gather(*(self.settle(delivery, "ack") for _ in range(5)), return_exceptions=True)
        same(sorted(type(result).__name__ for result in results), ["AlreadySettledError"] * 4 + ["NoneType"], "five acks gave")
        await self.counts()

    @promise("M2", "An unsettled delivery is never lost: close() gives all of it, read-ahead too, to others at once.")
    async def test_close_gives_back(self) -> None:
        sent = await self.put(*(f"m{n}" for n in range(10)))
        consumer = await self.consume(prefetch=8)
        held = await self.take(consumer, 4)
        await held[0].ack()
        await consumer.close()
        await consumer.close()
        rest = await self.take(await self.consume(), 9)
        same(sorted(ids(rest)), sorted(set(ids(sent)) - {id_of(held[0])}), "given back")
        for delivery, envelope in zip(sorted(rest, key=id_of), sorted(sent[1:], key=id_of), strict=True):
            self.arrived_as(delivery, envelope)

    @promise("M2", "An unsettled delivery is never lost: disconnect() gives all of it to others.")
    async def test_disconnect_gives_back(self) -> None:
        other = await self.client()
        await self.put("a", "b", "c")
        consumer = await self.consume(prefetch=2, broker=other)
        await self.take(consumer)
        await other.disconnect()
        if other is self.broker:
            await self.broker.connect()
        same(sorted(ids(await self.take(await self.consume(), 3))), ["a", "b", "c"], "given back")

    @promise("M2", "An unsettled delivery is never lost: a receive that is cancelled at any point keeps what it had.")
    async def test_cancelled_receive_loses_nothing(self) -> None:
        wanted = [f"m{n:02}" for n in range(40)]
        consumer = await self.consume(prefetch=4)
        taken: list[Delivery] = []
        done: list[str] = []

        async def receive() -> None:
            taken.extend(await consumer.receive(2))

        for turn, name in enumerate(wanted):
            run = self.task(receive())
            await self.turns(turn % 5)
            await self.put(name)
            await self.turns(turn // 8)
            run.cancel()
            await asyncio.wait({run})
            if turn % 3 == 0:
                done += [id_of(delivery) for delivery in taken]
                await asyncio.gather(*(delivery.ack() for delivery in taken))
                taken.clear()
        await consumer.close()
        rest = await self.all_there()
        same(sorted(done + ids(rest)), wanted, "settled, and left after cancelled receives")

    @promise("M2", "An unsettled delivery is never lost: a settlement that is cancelled at any point happens or not.")
    async def test_cancelled_settlement_is_whole(self) -> None:
        for settlement in _SETTLEMENTS:
            for turns in range(6):
                queue = self.new_queue(f"{settlement}-{turns}")
                await self.put(self.envelope("job", queue=queue))
                consumer = await self.consume(queue=queue, prefetch=1)
                delivery = await self.one(consumer)
                await self.cancelled_at(self.settle(delivery, settlement), turns)
                await consumer.close()
                alive = await self.consume(queue=queue)
                there = len(await self.soon(alive))
                dead = len(await self.soon(await self.consume(queue=queue, category=DEAD)))
                allowed = {"ack": [(0, 0), (1, 0)], "nack": [(0, 1), (1, 0)]}.get(settlement, [(1, 0)])
                check(
                    (there, dead) in allowed,
                    f"{settlement} cancelled at turn {turns} left {there} ready and {dead} dead messages",
                )

    @promise("M2", "Consumers at work side by side share the messages: each comes once.")
    async def test_consumers_share(self) -> None:
        wanted = [f"m{n:03}" for n in range(200)]
        seen: list[str] = []
        settled: list[str] = []
        finished = asyncio.Event()

        async def work(consumer: Consumer) -> None:
            while True:
                for delivery in await consumer.receive(3):
                    seen.append(id_of(delivery))
                    await self.turns(1)  # the others too
                    await delivery.ack()
                    settled.append(id_of(delivery))
                    if len(settled) >= len(wanted):
                        finished.set()

        tasks: set[asyncio.Task[Any]] = {self.task(finished.wait())}
        for broker in (self.broker, await self.client()):
            for _ in range(2):
                tasks.add(self.task(work(await self.consume(prefetch=5, broker=broker))))
        await self.put(*wanted)
        first = self.task(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
        check(await self.let(first), f"{len(settled)} of {len(wanted)} messages were settled")
        for task in (await first)[0]:
            task.result()  # a worker ends by an error alone
        await self.counts()
        same(sorted(seen), wanted, "what came")

    @promise("M2", "close ends a receive that waits.")
    async def test_close_ends_receive(self) -> None:
        consumer = await self.consume()
        waiting = self.task(consumer.receive(1))
        await self.turns(5)
        await consumer.close()
        check(await self.let(waiting), "receive waits still, after close")
        if not waiting.cancelled():
            waiting.exception()

    @promise("M2", "What was settled when disconnect returned stays settled.")
    async def test_disconnect_flushes_settlements(self) -> None:
        other = await self.client()
        await self.put(*(f"m{n}" for n in range(20)))
        consumer = await self.consume(prefetch=20, broker=other)
        for delivery in await self.take(consumer, 20):
            await delivery.ack()
        await other.disconnect()
        if other is self.broker:
            await self.broker.connect()
        await self.counts()
        await self.nothing(await self.consume())

    @promise("M5", "Settling after close, when the delivery is with another, changes nothing for its new holder.")
    async def test_settling_after_close_changes_nothing(self) -> None:
        for settlement in _SETTLEMENTS:
            queue = self.new_queue(f"late-{settlement}")
            await self.put(self.envelope("job", queue=queue))
            consumer = await self.consume(queue=queue)
            late = await self.one(consumer)
            await consumer.close()
            held = await self.one(await self.consume(queue=queue))
            await self.refused(late, settlement, f"{settlement} after close", MessageBrokerError)
            await self.counts(queue, in_progress=1)
            await held.ack()
            await self.counts(queue)

    @promise("M5", "Settling a delivery whose lease was lost changes nothing for its new holder.", "kill_consumer")
    async def test_settling_lost_delivery_changes_nothing(self) -> None:
        for settlement in _SETTLEMENTS:
            queue, broker = self.new_queue(f"lost-{settlement}"), await self.client()
            await self.put(self.envelope("job", queue=queue))
            consumer = await self.consume(queue=queue, broker=broker)
            late = await self.one(consumer)
            await self.kill(broker, consumer)
            held = await self.one(await self.consume(queue=queue), within=2 * self.broker.limits.lease)
            with suppress(MessageBrokerError, AlreadySettledError):  # DeliveryLostError, where the server answers
                await self.settle(late, settlement)
            await self.counts(queue, in_progress=1)
            await held.ack()
            await self.counts(queue)

    @promise("M6", "requeue and nack never leave the message nowhere: cancelled in between, it is there, and whole.")
    async def test_cancelled_requeue_leaves_it_somewhere(self) -> None:
        for turns in range(12):
            queue = self.new_queue(f"requeue-{turns}")
            [sent] = await self.put(self.envelope("job", queue=queue, payload=b"old"))
            consumer = await self.consume(queue=queue, prefetch=1)
            delivery = await self.one(consumer)
            wanted = changed(sent, payload=b"new", tried=1)
            await self.cancelled_at(delivery.requeue(wanted), turns)
            await consumer.close()
            await self._old_or_new(queue, sent, wanted, f"requeue cancelled at turn {turns}")

    @promise(
        "M6",
        "With ATOMIC_REQUEUE a crash in between changes nothing or everything.",
        Capability.ATOMIC_REQUEUE,
        "kill_consumer",
    )
    async def test_crash_during_requeue(self) -> None:
        for turns in range(6):
            queue, broker = self.new_queue(f"crash-{turns}"), await self.client()
            [sent] = await self.put(self.envelope("job", queue=queue, payload=b"old"))
            consumer = await self.consume(queue=queue, prefetch=1, broker=broker)
            delivery = await self.one(consumer)
            wanted = changed(sent, payload=b"new", tried=1)
            run = self.task(delivery.requeue(wanted))
            await self.turns(turns)
            await self.kill(broker, consumer)
            run.cancel()
            await asyncio.wait({run})
            if not run.cancelled():
                run.exception()
            await self.wait(2 * self.broker.limits.lease)
            await self._old_or_new(queue, sent, wanted, f"crash at turn {turns} of requeue")

    async def _old_or_new(self, queue: str, old: Envelope, new: Envelope, when: str) -> None:
        consumer = await self.consume(prefetch=10, queue=queue)
        found = await self.take(consumer, within=2 * self.broker.limits.lease)
        while more := await self.soon(consumer):
            found += more
        there = [delivery.envelope for delivery in found]
        most = 1 if self.has(Capability.ATOMIC_REQUEUE) else 2
        check(1 <= len(there) <= most, f"{when}: {len(there)} messages")
        for envelope in there:
            check(
                (envelope.payload, envelope.parameters.tried) in ((old.payload, 0), (new.payload, 1)),
                f"{when}: payload {envelope.payload!r} with tried={envelope.parameters.tried}, neither the old nor the new",
            )

    async def settle(self, delivery: Delivery, settlement: str) -> None:
        """Settle in one of the four ways."""
        if settlement == "nack":
            await delivery.nack(self.death())
        elif settlement == "requeue":
            await delivery.requeue(changed(delivery.envelope, tried=1))
        else:
            await getattr(delivery, settlement)()

    async def refused(self, delivery: Delivery, settlement: str, what: str, other: type[Exception] = AlreadySettledError) -> None:
        """Check that a settlement raises."""
        try:
            await self.settle(delivery, settlement)
        except (AlreadySettledError, other):
            return
        check(ok=False, seen=f"{what} raised nothing")
