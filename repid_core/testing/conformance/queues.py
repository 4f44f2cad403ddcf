"""M16 and M17: queues come and go, and so do connections."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

from repid_core.abc import Consumer
from repid_core.data import Capability
from repid_core.errors import BrokerConnectionError, MessageBrokerError
from repid_core.testing.conformance.messages import DEAD, HIGH, LOW, NORMAL, MessageSuite, changed, id_of, ids
from repid_core.testing.conformance.suite import check, promise, same

_HOUR = timedelta(hours=1)


class QueueTests(MessageSuite):
    """The tests of queues, consumers and connections."""

    @promise("M16", "declare_queue is idempotent, and disturbs no message.")
    async def test_declare_is_idempotent(self) -> None:
        await self.broker.declare_queue(self.queue, ["work"])
        await self.put("job")
        await self.broker.declare_queue(self.queue, ["work"])
        await self.broker.declare_queue(self.queue)
        await self.broker.declare_queue(self.queue, ["work", "other"])
        await self.counts(ready=1)
        same(ids(await self.take(await self.consume(["work"]))), ["job"], "what came")

    @promise("M16", "enqueue declares an unknown queue by itself, and a consumer may start before there is one.")
    async def test_enqueue_declares(self) -> None:
        consumer = await self.consume(queue=self.new_queue("unknown"))
        await self.put(self.envelope("job", queue="unknown"))
        same(ids(await self.take(consumer)), ["job"], "what came")
        await self.counts("unknown", in_progress=1)

    @promise("M16", "flush_queue empties ready, delayed and dead, and leaves running deliveries settleable.")
    async def test_flush(self) -> None:
        for settlement in ("ack", "nack", "reject", "requeue"):
            queue = self.new_queue(f"flush-{settlement}")
            await self.put(self.envelope("dead", queue=queue), self.envelope("running", queue=queue))
            consumer = await self.consume(queue=queue, prefetch=2)
            dead, running = await self.take(consumer, 2)
            await dead.nack(self.death())
            await consumer.pause()
            await self._fill(queue)
            await self.broker.flush_queue(queue)
            await self.counts(queue, in_progress=1)
            if settlement == "nack":
                await running.nack(self.death())
            elif settlement == "requeue":
                await running.requeue(changed(running.envelope, tried=1))
            else:
                await getattr(running, settlement)()
            await consumer.close()
            left: dict[str, int] = {"ack": {}, "nack": {"dead": 1}}.get(settlement, {"ready": 1})
            await self.counts(queue, **left)

    async def _fill(self, queue: str) -> None:
        """Leave messages that are delayed, or ready in a way that no consumer that is paused or full reads ahead."""
        if self.has(Capability.DELAY):
            await self.put(*(self.envelope(f"later-{n}", queue=queue, delay=_HOUR) for n in range(3)))

    @promise("M16", "flush_queue empties what is ready, of every priority and topic, and the queue goes on.")
    async def test_flush_ready(self) -> None:
        await self.put(*(self.envelope(f"{p.name}-{t}", priority=p, topic=t) for p in (LOW, HIGH) for t in "ab"))
        await self.broker.flush_queue(self.queue)
        await self.counts()
        consumer = await self.consume()
        await self.nothing(consumer)
        await self.put("after")
        same(ids(await self.take(consumer)), ["after"], "what came")
        await self.broker.flush_queue(self.new_queue("unknown"))

    @promise("M16", "delete_queue leaves nothing behind.")
    async def test_delete(self) -> None:
        await self.kill_off("dead")
        await self.put("running", *(f"r{n}" for n in range(3)))
        await self._fill(self.queue)
        consumer = await self.consume(prefetch=1)
        delivery = await self.one(consumer)
        await self.broker.delete_queue(self.queue)
        with suppress(Exception):  # whether there is still something to settle is the broker's affair
            await delivery.reject()
        with suppress(Exception):
            await consumer.close()
        await self.broker.delete_queue(self.queue)
        await self.broker.declare_queue(self.queue, ["work"])
        await self.counts()
        for category in (NORMAL, DEAD):
            await self.nothing(await self.consume(category=category))
        await self.put("dead", "running")  # ids are free

    @promise(
        "M17",
        "Meanwhile enqueue raises BrokerConnectionError naming host and port, no password, and a consumer is not `healthy`.",
        "break_connection",
        "restore_connection",
    )
    async def test_broken_connection_is_said(self) -> None:
        consumer = await self.consume()
        check(consumer.healthy, "a consumer that fetches is not healthy")
        await self.break_connection(self.broker)
        try:
            check(await self.eventually(lambda: not consumer.healthy), "the consumer is healthy, with the connection cut")
            try:
                await self.within(self.broker.enqueue(self.envelope("lost")), "enqueue", timedelta(seconds=30))
            except BrokerConnectionError as error:
                self.well_said(error)
            else:
                check(ok=False, seen="enqueue returned, with the connection cut")
        finally:
            await self.restore_connection(self.broker)

    @promise(
        "M17",
        "After a cut connection, producers and consumers go on by themselves within 10 s of its return; nothing is lost.",
        "break_connection",
        "restore_connection",
    )
    async def test_connection_comes_back(self) -> None:
        ten = timedelta(seconds=10)
        consumer = await self.consume(prefetch=2)
        await self.put("held")
        held = await self.one(consumer)
        waiting = self.task(consumer.receive(1))
        await self.break_connection(self.broker)
        await self.wait(timedelta(seconds=1))
        await self.restore_connection(self.broker)
        check(await self._healthy(consumer, ten), "the consumer is not healthy 10 s after the connection came back")
        await self.within(self.broker.enqueue(self.envelope("after")), "enqueue", ten)
        left = {"held", "after"}
        try:
            await held.ack()
            left.remove("held")
        except MessageBrokerError:
            pass  # its lease went with the connection: it comes again
        lease = 2 * self.broker.limits.lease
        taken = list(await waiting) if await self.let(waiting, ten + lease) else []
        check(taken, "a receive that waited through the cut got nothing")
        while left:
            for delivery in taken:
                left.discard(id_of(delivery))
                await delivery.ack()
            taken = await self.take(consumer, within=ten + lease) if left else []
        await self.counts()

    async def _healthy(self, consumer: Consumer, span: timedelta) -> bool:
        for _ in range(20):
            if consumer.healthy:
                return True
            await self.wait(span / 20)
        return False

    @promise("L6", "A consumer is healthy while it fetches, closes twice, and leaves nothing when its start is cancelled.")
    async def test_consumer_life(self) -> None:
        for turns in range(6):
            consumer = self.broker.consumer(self.queue, None, prefetch=1)
            await self.cancelled_at(consumer.start(), turns)
            await consumer.close()
            await consumer.close()
        never_started = self.broker.consumer(self.queue, None, prefetch=1)
        await never_started.close()
        consumer = await self.consume()
        check(consumer.healthy, "a consumer that fetches is not healthy")
        await self.put("job")
        same(ids(await self.take(consumer)), ["job"], "what came")

    @promise("L7", "disconnect closes consumers, and connect may follow: the queues are as they were.")
    async def test_reconnect_finds_the_queues(self) -> None:
        await self.put("ready")
        await self.broker.disconnect()
        await self.broker.connect()
        same(ids(await self.take(await self.consume())), ["ready"], "what came")
