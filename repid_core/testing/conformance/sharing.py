"""M9 to M11 and M18 to M20: who gets what, in which order, and at what cost."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Awaitable, Sequence
from datetime import timedelta
from random import Random
from typing import ClassVar

from repid_core.abc import Delivery
from repid_core.data import Capability, Enqueued, Envelope
from repid_core.errors import DuplicateJobError, EnqueueError, PayloadTooLargeError
from repid_core.testing.conformance.messages import DEAD, HIGH, LOW, MEDIUM, MessageSuite, changed, id_of, ids
from repid_core.testing.conformance.suite import check, promise, same

_SAMPLES = 100
_BACK_OFF = timedelta(seconds=33)  # the longest for a foreign message, and a second


class SharingTests(MessageSuite):
    """The tests of order, topics, read-ahead and size.

    Attributes:
        in_process: Why the client's memory is not bounded by prefetch (M20), for brokers that keep the queue in it.
        backlog: How many messages M20 queues.
    """

    in_process: ClassVar[str | None] = None
    backlog: ClassVar[int] = 200_000

    @promise("M9", "With a backlog and one consumer, HIGH goes before MEDIUM before LOW.", Capability.PRIORITY)
    async def test_priority_order(self) -> None:
        backlog = [self.envelope(f"{p.name}-{n}", priority=p) for n in range(8) for p in (LOW, MEDIUM, HIGH)]
        Random(9).shuffle(backlog)  # noqa: S311 — no secret, and the same every time
        await self.put(*backlog)
        seen = [envelope.key.priority.name for envelope in await self._one_by_one(len(backlog))]
        same(seen, ["HIGH"] * 8 + ["MEDIUM"] * 8 + ["LOW"] * 8, "order of priorities")

    @promise("M9", "HIGH goes before what waits, even if it comes later.", Capability.PRIORITY)
    async def test_late_high_overtakes(self) -> None:
        await self.put(*(self.envelope(f"low-{n}", priority=LOW) for n in range(5)))
        consumer = await self.consume(prefetch=1)
        held = await self.one(consumer)
        await self.put(self.envelope("high", priority=HIGH))
        await held.ack()
        same(id_of(await self.one(consumer)), "high", "next to come")

    @promise("M9", "A requeued message keeps its priority.", Capability.PRIORITY)
    async def test_requeue_keeps_priority(self) -> None:
        await self.put(self.envelope("high", priority=HIGH), *(self.envelope(f"low-{n}", priority=LOW) for n in range(3)))
        consumer = await self.consume(prefetch=1)
        delivery = await self.one(consumer)
        await delivery.requeue(changed(delivery.envelope, tried=1))
        same(id_of(await self.one(consumer)), "high", "next to come")

    @promise("M9", "Within a priority and topic first in, first out.")
    async def test_first_in_first_out(self) -> None:
        sent = await self.put(*(f"m{n}" for n in range(30)))
        same(ids(await self._one_by_one(30)), ids(sent), "order")

    @promise("M9", "First in, first out holds for batches, read ahead and received together, too.")
    async def test_batches_in_order(self) -> None:
        sent = await self.put(*(f"m{n}" for n in range(30)))
        consumer, seen = await self.consume(prefetch=7), list[str]()
        while len(seen) < 30:
            batch = await self.take(consumer, min(5, 30 - len(seen)))
            seen += ids(batch)
            for delivery in batch:
                await delivery.ack()
        same(seen, ids(sent), "order")

    async def _one_by_one(self, wanted: int) -> list[Envelope]:
        consumer, seen = await self.consume(prefetch=1), list[Envelope]()
        for _ in range(wanted):
            delivery = await self.one(consumer)
            seen.append(delivery.envelope)
            await delivery.ack()
        return seen

    @promise("M10", "A consumer gets only the topics that it asked for; without topics, all.")
    async def test_only_topics_asked_for(self) -> None:
        for number, topic in enumerate(("a", "b", "c") * 4):
            await self.put(self.envelope(f"{topic}-{number}", topic=topic))
        ab = await self.consume(["a", "b"])
        taken = await self.take(ab, 8, within=self.foreign)
        same(sorted({delivery.envelope.key.topic for delivery in taken}), ["a", "b"], "topics that came")
        await self.nothing(ab)
        rest = await self.take(await self.consume(None), 4, within=self.foreign)
        same({delivery.envelope.key.topic for delivery in rest}, {"c"}, "topics that came to a consumer of all")

    @property
    def foreign(self) -> timedelta:
        """How long a message may be away because a consumer of other topics saw it."""
        return timedelta(0) if self.has(Capability.TOPICS) else _BACK_OFF

    @promise("M10", "Messages of other topics never hold back the topics asked for, however many there are.")
    async def test_foreign_topics_hold_nothing_back(self) -> None:
        await self.put(*(self.envelope(f"b-{n}", topic="b") for n in range(40)))
        consumer = await self.consume(["a"], prefetch=2)
        await self.nothing(consumer)
        await self.put(*(self.envelope(f"a-{n}", topic="a") for n in range(4)))
        seen = []
        for _ in range(4):
            delivery = await self.one(consumer)
            seen.append(id_of(delivery))
            await delivery.ack()
        same(seen, [f"a-{n}" for n in range(4)], "order")

    @promise("M10", "Messages of other topics are never swallowed, never counted as tried, and reach a consumer that wants them.")
    async def test_foreign_topics_are_not_swallowed(self) -> None:
        sent = await self.put(*(self.envelope(f"b-{n}", topic="b") for n in range(10)))
        for prefetch in (1, 5, 20):
            consumer = await self.consume(["a"], prefetch=prefetch)
            await self.nothing(consumer)
            await consumer.close()
        taken = await self.take(await self.consume(["b"]), 10, within=self.foreign)
        for delivery, envelope in zip(sorted(taken, key=id_of), sorted(sent, key=id_of), strict=True):
            self.arrived_as(delivery, envelope)
        await self.nothing(await self.consume(category=DEAD))

    @promise("M10", "With TOPICS, messages that others did not ask for come at once and in order.", Capability.TOPICS)
    async def test_foreign_topics_at_once_and_in_order(self) -> None:
        other = await self.consume(["a"], prefetch=20)
        waiting = self.task(other.receive(10))
        sent = await self.put(*(self.envelope(f"b-{n:02}", topic="b") for n in range(12)))
        await self.counts(ready=12)
        taken = await self.take(await self.consume(["b"], prefetch=12), 12)
        same(ids(taken), ids(sent), "order")
        check(not any(delivery.redelivered for delivery in taken), "redelivered is True, for messages that nobody held before")
        check(not waiting.done(), "the consumer of another topic got something")

    @promise("M10", "A topic that nobody declared reaches a consumer that starts later.")
    async def test_unknown_topic_waits_for_its_consumer(self) -> None:
        await self.broker.declare_queue(self.queue, ["known"])
        await self.put(self.envelope("stray", topic="stray"))
        same(ids(await self.take(await self.consume(["stray"]), within=self.foreign)), ["stray"], "what came")

    @promise("M11", "Read-ahead and unsettled deliveries together never exceed prefetch.")
    async def test_prefetch_bounds_what_is_held(self) -> None:
        await self.put(*(f"m{n:02}" for n in range(20)))
        consumer = await self.consume(prefetch=3)
        held = await self.take(consumer, 3)
        await self.nothing(consumer)
        other = await self.consume(prefetch=50)
        same(len(await self.take(other, 17)), 17, "left for another consumer")
        await held[0].ack()
        await self.nothing(consumer)
        self.measured["prefetch"] = "3 held at prefetch=3"

    @promise("M11", "What a consumer reads ahead, before anybody asks for it, is bounded by prefetch.")
    async def test_read_ahead_is_bounded(self) -> None:
        await self.put(*(f"m{n:02}" for n in range(10)))
        consumer = await self.consume(prefetch=4)
        [held] = await self.take(consumer)
        await self.wait(self.quiet)
        others = await self.consume(prefetch=50)
        same(len(await self.take(others, 6)), 6, "left for another consumer")
        await held.ack()

    @promise("M11", "receive gives 1 to `limit` deliveries, and a settlement makes room for the next.")
    async def test_receive_keeps_to_its_limit(self) -> None:
        await self.put(*(f"m{n:02}" for n in range(12)))
        consumer, seen = await self.consume(prefetch=4), list[Delivery]()
        for _ in range(6):
            batch = await self.within(consumer.receive(2), "receive")
            check(1 <= len(batch) <= 2, f"receive(2) gave {len(batch)}")
            for delivery in batch:
                await delivery.ack()
            seen += batch
        check(len(set(ids(seen))) == len(seen) >= 6, f"it gave {ids(seen)}")

    @promise("M11", "A paused consumer reads on when it is resumed, and loses nothing.")
    async def test_pause_and_resume(self) -> None:
        consumer = await self.consume(prefetch=2)
        await consumer.pause()
        await self.put("a", "b", "c")
        await consumer.resume()
        seen = []
        for _ in range(3):
            delivery = await self.one(consumer)
            seen.append(id_of(delivery))
            await delivery.ack()
        same(seen, ["a", "b", "c"], "came after resume")

    @promise("M11", "A new message reaches an idle consumer within the declared wake_up.")
    async def test_wake_up(self) -> None:
        consumer, spans = await self.consume(prefetch=1), []
        for n in range(_SAMPLES):
            waiting = self.task(self._when(consumer.receive(1)))
            await self.turns(3)
            await self.put(f"m{n}")
            start = self.now_exactly()
            check(await self.let(waiting, self.broker.limits.wake_up), f"message {n} did not come")
            [delivery], came = await waiting
            spans.append(timedelta(seconds=max(0.0, came - start)))
            await delivery.ack()
        self.measure("wake_up", spans, self.broker.limits.wake_up)

    def now_exactly(self) -> float:
        """Seconds of the tests' clock, or of a monotonic one where that is real."""
        return self.clock.now().timestamp() if self._manual else time.perf_counter()

    async def _when(self, call: Awaitable[Sequence[Delivery]]) -> tuple[list[Delivery], float]:
        return list(await call), self.now_exactly()

    @promise("M11", "An idle consumer polls nothing more often than once a second, a backlog of foreign topics or not.")
    async def test_idle_consumer_is_idle(self) -> None:
        await self.put(*(self.envelope(f"b-{n}", topic="b") for n in range(20)))
        waiting = self.task((await self.consume(["a"])).receive(1))
        settle = self.quiet if self.has(Capability.TOPICS) else timedelta(seconds=3)  # what goes round does so often at first
        await self.nothing(await self.consume(["c"]), during=settle)
        if self._manual:
            timers, call_at = [0], self._manual.call_at

            def counted(*args: object) -> object:
                timers[0] += 1
                return call_at(*args)  # type: ignore[arg-type]

            self._manual.call_at = counted  # type: ignore[method-assign,assignment]
            await self.wait(timedelta(seconds=60))
            self.measured["idle"] = f"{timers[0]} timers in a minute"
            check(timers[0] <= 60 * 2, f"an idle consumer set {timers[0]} timers in a minute")
        else:
            start = time.process_time()
            await self.wait(timedelta(seconds=2))
            used = (time.process_time() - start) / 2
            self.measured["idle"] = f"{used:.2%} of a core"
            check(used < 0.05, f"an idle consumer took {used:.1%} of a core")
        check(not waiting.done(), "the idle consumer got something")

    @promise("M18", "enqueue_many keeps the order, and gives one outcome per message.")
    async def test_enqueue_many_keeps_order(self) -> None:
        sent = [self.envelope(f"m{n:03}") for n in range(150)]
        same(list(await self.broker.enqueue_many(sent)), [Enqueued.NEW] * 150, "outcomes")
        same(ids(await self._one_by_one(150)), ids(sent), "order")
        same(list(await self.broker.enqueue_many([])), [], "outcomes of no messages")

    @promise("M18", "enqueue_many never raises for one message: the bad one among good ones has its error in its place.")
    async def test_enqueue_many_reports_one_bad_message(self) -> None:
        limit = self.broker.limits.max_payload
        if self.has(Capability.UNIQUE):
            wanted: type[EnqueueError] = DuplicateJobError
            await self.put("bad")
            batch = [self.envelope(name) for name in ("a", "bad", "c", "d", "c")]
            bad = [1, 4]
        elif limit is not None:
            wanted = PayloadTooLargeError
            batch = [self.envelope(name) for name in "abcd"]
            batch.insert(1, self.envelope("bad", payload=b"x" * (limit + 1)))
            bad = [1]
        else:
            self.not_declared("capability UNIQUE or a max_payload, without which no message is refused")
        outcomes = await self.broker.enqueue_many(batch)
        same([number for number, outcome in enumerate(outcomes) if isinstance(outcome, wanted)], bad, f"those with {wanted}")
        same([outcome for n, outcome in enumerate(outcomes) if n not in bad], [Enqueued.NEW] * (len(batch) - len(bad)), "others")
        good = [id_of(envelope) for n, envelope in enumerate(batch) if n not in bad]
        seen = [id_ for id_ in ids(await self.all_there()) if id_ != "bad"]
        same(seen, good, "what was enqueued")

    @promise("M18", "enqueue_many takes messages for several queues, delayed ones and priorities together.")
    async def test_enqueue_many_of_all_kinds(self) -> None:
        delay = timedelta(hours=1) if self.has(Capability.DELAY) else None
        other = self.new_queue("other")
        sent = [self.envelope("a", priority=LOW), self.envelope("b", queue=other), self.envelope("c", priority=HIGH),
                self.envelope("d", queue=other, delay=delay)]  # fmt: skip
        same(list(await self.broker.enqueue_many(sent)), [Enqueued.NEW] * 4, "outcomes")
        await self.counts(ready=2)
        await self.counts(other, **({"ready": 1, "delayed": 1} if delay else {"ready": 2}))

    @promise("M18", "enqueue_many costs no more than a loop.")
    async def test_enqueue_many_is_no_slower_than_a_loop(self) -> None:
        spans = []
        for many in (False, True, False, True):
            batch = [self.envelope() for _ in range(200)]
            start = time.perf_counter()
            if many:
                await self.broker.enqueue_many(batch)
            else:
                for envelope in batch:
                    await self.broker.enqueue(envelope)
            spans.append(time.perf_counter() - start)
        loop, many_ = min(spans[0::2]), min(spans[1::2])
        self.measured["enqueue_many"] = f"200 messages in {many_ * 1000:.1f} ms, by a loop in {loop * 1000:.1f} ms"
        check(many_ <= 2 * loop + 0.05, self.measured["enqueue_many"])

    @promise("M19", "A payload over the declared max_payload raises PayloadTooLargeError, naming both sizes and the way out.")
    async def test_payload_too_large(self) -> None:
        limit = self.broker.limits.max_payload
        if limit is None:
            self.not_declared("a max_payload")
        try:
            await self.broker.enqueue(self.envelope("large", payload=b"x" * (limit + 1)))
        except PayloadTooLargeError as error:
            same((error.size >= limit + 1, error.limit), (True, limit), "size and limit of the error")
            check("args bucket" in str(error), f"the error does not name the way out: {error}")
        else:
            check(ok=False, seen=f"{limit + 1} bytes were taken, the limit being {limit}")
        await self.counts()
        [sent] = await self.put(self.envelope("fits", payload=b"x" * limit))
        self.arrived_as(await self.one(await self.consume()), sent)
        self.measured["max_payload"] = f"{limit} bytes pass, {limit + 1} do not"

    @promise("M20", "A client's memory is bounded by prefetch, not by the length of the queue.")
    async def test_memory_is_bounded_by_prefetch(self) -> None:
        if self.in_process is not None:
            self.not_declared(self.in_process)
        for _ in range(self.backlog // 1000):
            await self.broker.enqueue_many([self.envelope(payload=b"x" * 100) for _ in range(1000)])
        tracemalloc.start()
        try:
            consumer = await self.consume(prefetch=10)
            for _ in range(20):
                await (await self.one(consumer)).ack()
            await self.broker.queue_stats(self.queue)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.measured["memory"] = f"{peak / 1e6:.1f} MB at most, with {self.backlog} messages queued"
        check(peak < 10e6, self.measured["memory"])
