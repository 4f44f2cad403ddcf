"""The suite is tested with brokers that are broken on purpose: each must be caught, by the test of the promise that it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from attrs import evolve

from repid_core.abc import BucketBroker, Consumer, Delivery, MessageBroker
from repid_core.data import Browsed, Capability, Death, DeathReason, Enqueued, Envelope, MessageCategory, Priority, QueueStats
from repid_core.errors import (
    AlreadySettledError,
    BrokerConnectionError,
    BucketConnectionError,
    DeliveryLostError,
    DuplicateJobError,
    EnqueueError,
    PayloadTooLargeError,
)
from repid_core.memory import InMemoryBucketBroker, InMemoryMessageBroker
from repid_core.memory.consumer import InMemoryConsumer, InMemoryDelivery
from repid_core.testing.clock import ManualClock
from repid_core.testing.conformance import BucketBrokerConformance, MessageBrokerConformance, PromiseBroken

T = TypeVar("T", bound=type)
CASES: list[Any] = []
SECOND = timedelta(seconds=1)


def breaks(number: str, *tests: str) -> Callable[[T], T]:
    """Note which promise a broker breaks, and the tests that must catch it, each of them."""

    def decorate(broker: T) -> T:
        CASES.extend(pytest.param(broker, number, test, id=f"{broker.__name__}-{test}") for test in tests)
        return broker

    return decorate


class MessageSuite(MessageBrokerConformance):
    address, secrets = "broker.example:1234", ("s3cret",)
    backlog = 100_000

    @property
    def in_process(self) -> str | None:  # type: ignore[override]
        return getattr(self.broker, "in_process", "in memory")

    def manual_clock(self) -> ManualClock:
        return ManualClock()

    async def kill_consumer(self, broker: MessageBroker, consumer: Consumer) -> None:
        assert isinstance(broker, InMemoryMessageBroker)
        broker.kill(consumer)

    async def break_connection(self, broker: Any) -> None:
        broker.whole.clear()
        broker.cuts += 1

    async def restore_connection(self, broker: Any) -> None:
        broker.whole.set()


class BucketSuite(BucketBrokerConformance):
    address = "store.example:4321"

    async def break_connection(self, broker: Any) -> None:
        broker.whole = False

    async def restore_connection(self, broker: Any) -> None:
        broker.whole = True

    def manual_clock(self) -> ManualClock:
        return ManualClock()

    async def count_stored(self, broker: BucketBroker) -> int:
        assert isinstance(broker, InMemoryBucketBroker)
        return len(broker._buckets)


# -- message brokers: deliveries -------------------------------------------------------------------------------------------


class Broken(InMemoryMessageBroker):
    """In memory, with deliveries and consumers that subclasses break."""

    Handed: type[InMemoryDelivery] = InMemoryDelivery
    Gets: type[BrokenConsumer]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shared: dict[str, Any] = {}

    def consumer(
        self,
        queue: str,
        topics: Collection[str] | None,
        *,
        prefetch: int,
        category: MessageCategory = MessageCategory.NORMAL,
    ) -> Consumer:
        whole = super().consumer(queue, topics, prefetch=prefetch, category=category)
        assert isinstance(whole, InMemoryConsumer)
        broken = self.Gets(whole._open_queue, whole._topics, whole._prefetch, whole._category)
        broken.broker, broken.name = self, queue
        return broken


class BrokenConsumer(InMemoryConsumer):
    broker: Any
    name: str

    async def receive(self, limit: int) -> Sequence[Delivery]:
        return [self.changed(delivery) for delivery in await super().receive(limit)]

    def changed(self, delivery: Any) -> Delivery:
        broken = self.broker.Handed(delivery._queue, delivery._lease, delivery._entry)
        broken.broker = self.broker
        return broken  # type: ignore[no-any-return]


Broken.Gets = BrokenConsumer


@breaks("M2", "test_requeue_takes_its_place")
class LosesOnRequeue(Broken):
    class Handed(InMemoryDelivery):
        async def requeue(self, envelope: Envelope) -> None:
            await self.ack()


@breaks("M2", "test_requeue_takes_its_place")
class RequeueChangesId(Broken):
    class Handed(InMemoryDelivery):
        broker: Any

        async def requeue(self, envelope: Envelope) -> None:
            await self.ack()
            await self.broker.enqueue(evolve(envelope, key=evolve(envelope.key, id_=f"{envelope.key.id_}-2")))


@breaks("M2", "test_requeue_takes_its_place")
class RequeueKeepsOldParameters(Broken):
    class Handed(InMemoryDelivery):
        async def requeue(self, envelope: Envelope) -> None:
            await super().requeue(evolve(envelope, parameters=self.envelope.parameters))


@breaks("M2", "test_requeue_at_its_due_time")
class RequeueIgnoresDue(Broken):
    class Handed(InMemoryDelivery):
        async def requeue(self, envelope: Envelope) -> None:
            await super().requeue(evolve(envelope, due=None))


@breaks("M6", "test_cancelled_requeue_leaves_it_somewhere", "test_crash_during_requeue")
class RequeueInTwoSteps(Broken):
    class Handed(InMemoryDelivery):
        broker: Any

        async def requeue(self, envelope: Envelope) -> None:
            await self.ack()
            await asyncio.sleep(0)
            await self.broker.enqueue(envelope)


@breaks("M2", "test_first_settlement_wins", "test_settlements_at_once")
class AcksTwiceSilently(Broken):
    class Handed(InMemoryDelivery):
        async def ack(self) -> None:
            with suppress(AlreadySettledError):
                await super().ack()


@breaks("M2", "test_ack_removes")
class AckGivesBack(Broken):
    class Handed(InMemoryDelivery):
        async def ack(self) -> None:
            await self.reject()


@breaks("M2", "test_nack_moves_to_dead")
class DropsOnNack(Broken):
    class Handed(InMemoryDelivery):
        async def nack(self, death: Death) -> None:
            await self.ack()


@breaks("M12", "test_dead_messages_keep_their_death")
class ForgetsTheDeadReason(Broken):
    class Handed(InMemoryDelivery):
        async def nack(self, death: Death) -> None:
            await super().nack(evolve(death, reason=type(death.reason)("failed")))


@breaks("M12", "test_dead_messages_keep_their_death")
class CutsTheError(Broken):
    class Handed(InMemoryDelivery):
        async def nack(self, death: Death) -> None:
            await super().nack(evolve(death, error=death.error and death.error[:100]))


@breaks("M2", "test_reject_gives_back")
class DropsOnReject(Broken):
    class Handed(InMemoryDelivery):
        async def reject(self) -> None:
            await self.ack()


@breaks("M2", "test_reject_gives_back")
class RejectCountsAsTried(Broken):
    class Handed(InMemoryDelivery):
        async def reject(self) -> None:
            parameters = self.envelope.parameters
            await self.requeue(evolve(self.envelope, parameters=evolve(parameters, tried=parameters.tried + 1)))


@breaks("M13", "test_rejects_never_count")
class RejectsCountAsDeaths(Broken):
    class Handed(InMemoryDelivery):
        async def reject(self) -> None:
            self._entry.deaths += 1
            if self._entry.deaths < 5:
                await super().reject()
            else:
                await self.ack()


@breaks("M5", "test_settling_after_close_changes_nothing", "test_settling_lost_delivery_changes_nothing")
class SettlesForItsNewHolder(Broken):
    class Handed(InMemoryDelivery):
        async def ack(self) -> None:
            for lease in self._queue.leases:
                if lease.held.pop(self._entry, None) is not None:
                    self._queue.finish(self._entry)


@breaks("M2", "test_cancelled_settlement_is_whole")
class RejectInTwoSteps(Broken):
    class Handed(InMemoryDelivery):
        broker: Any

        async def reject(self) -> None:
            await self.ack()
            await asyncio.sleep(0)
            await self.broker.enqueue(self.envelope)


@breaks("M2", "test_disconnect_flushes_settlements")
class ForgetsAcksOnDisconnect(Broken):
    class Handed(InMemoryDelivery):
        async def ack(self) -> None:
            self.claim()


@breaks("M9", "test_requeue_keeps_priority")
class RequeueLosesPriority(Broken):
    class Handed(InMemoryDelivery):
        async def requeue(self, envelope: Envelope) -> None:
            await super().requeue(evolve(envelope, key=evolve(envelope.key, priority=Priority.LOW)))


@breaks("M13", "test_redriven_poison_starts_anew")
class RedriveKeepsTheCount(Broken):
    class Handed(InMemoryDelivery):
        async def requeue(self, envelope: Envelope) -> None:
            await super().requeue(envelope)
            self._queue.live[envelope.key.id_].deaths = 3 if self.death else 0


@breaks("M12", "test_dead_messages_can_be_requeued_with_a_delay")
class RedriveIgnoresDue(Broken):
    class Handed(InMemoryDelivery):
        async def requeue(self, envelope: Envelope) -> None:
            await super().requeue(evolve(envelope, due=None) if self.death else envelope)


@breaks("M12", "test_dead_messages_can_be_purged")
class DeadOnesCannotBePurged(Broken):
    class Handed(InMemoryDelivery):
        async def ack(self) -> None:
            await (self.reject() if self.death else super().ack())


@breaks("M12", "test_dead_messages_given_back_stay_dead")
class DeadOnesGivenBackAreReady(Broken):
    class Handed(InMemoryDelivery):
        async def reject(self) -> None:
            await (self.requeue(self.envelope) if self.death else super().reject())


@breaks("M14", "test_requeue_keeps_the_id")
class RequeueFreesTheId(Broken):
    class Handed(InMemoryDelivery):
        async def requeue(self, envelope: Envelope) -> None:
            await super().requeue(envelope)
            del self._queue.live[envelope.key.id_]


# -- message brokers: consumers ---------------------------------------------------------------------------------------------


@breaks("M2", "test_close_gives_back", "test_disconnect_gives_back")
@breaks("M3", "test_closed_worker_is_relieved_at_once")
class LeaksDeliveries(Broken):
    class Gets(BrokenConsumer):
        async def close(self) -> None:
            if self._lease is not None:
                self._lease.held.clear()
            await super().close()

    async def disconnect(self) -> None:
        for queue in self._queues.values():
            for lease in queue.leases:
                lease.held.clear()
        await super().disconnect()


@breaks("M2", "test_cancelled_receive_loses_nothing")
class LosesOnCancelledReceive(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            deliveries = await super().receive(limit)
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                for delivery in deliveries:
                    await delivery.ack()
                raise
            return deliveries


@breaks("M2", "test_close_ends_receive")
class CloseLeavesReceiveWaiting(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            with suppress(Exception):
                return await super().receive(limit)
            await asyncio.Event().wait()
            return []


@breaks("M2", "test_consumers_share")
class DeliversTwice(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            double = self.broker.shared.pop(self.name, None)
            if double is not None and double[0] is not self:
                return [double[1]]
            deliveries = await super().receive(limit)
            self.broker.shared[self.name] = self, InMemoryDelivery(*(getattr(deliveries[0], n) for n in _PARTS))
            return deliveries


_PARTS = ("_queue", "_lease", "_entry")


@breaks("M9", "test_first_in_first_out", "test_batches_in_order")
class LastInFirstOut(Broken):
    class Gets(BrokenConsumer):
        async def start(self) -> None:
            self._prefetch = 1000
            await super().start()

        async def receive(self, limit: int) -> Sequence[Delivery]:
            deliveries = await super().receive(1000)
            for delivery in deliveries[:-1]:
                await delivery.reject()
            return deliveries[-1:]


@breaks("M11", "test_prefetch_bounds_what_is_held")
class ExceedsPrefetch(Broken):
    class Gets(BrokenConsumer):
        async def start(self) -> None:
            self._prefetch *= 2
            await super().start()


@breaks("M11", "test_read_ahead_is_bounded")
class ReadsAheadWithoutBound(Broken):
    class Gets(BrokenConsumer):
        async def start(self) -> None:
            self._prefetch, self.ahead = 1000, list[Delivery]()
            await super().start()

        async def receive(self, limit: int) -> Sequence[Delivery]:
            self.ahead += await super().receive(1000) if not self.ahead else ()
            given, self.ahead = self.ahead[:limit], self.ahead[limit:]
            return given


@breaks("M11", "test_receive_keeps_to_its_limit")
class IgnoresReceiveLimit(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            return await super().receive(limit + 1)


@breaks("M11", "test_wake_up")
class WakesUpLate(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            await self.broker.clock.sleep(0.05 * SECOND)
            return await super().receive(limit)


@breaks("M11", "test_idle_consumer_is_idle")
class PollsBusily(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            waiting = asyncio.ensure_future(super().receive(limit))
            try:
                while not waiting.done():
                    await self.broker.clock.sleep(0.1 * SECOND)
                return await waiting
            finally:
                waiting.cancel()


@breaks("M11", "test_pause_and_resume")
class NeverResumes(Broken):
    class Gets(BrokenConsumer):
        async def pause(self) -> None:
            self._topics = frozenset()
            await self.close()
            await self.start()


@breaks("M10", "test_only_topics_asked_for")
class IgnoresTopics(Broken):
    class Gets(BrokenConsumer):
        async def start(self) -> None:
            self._topics = None
            await super().start()


@breaks("M10", "test_foreign_topics_are_not_swallowed", "test_foreign_topics_at_once_and_in_order")
class SwallowsForeignTopics(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            while True:
                mine = []
                for delivery in await super().receive(limit):
                    if self.wanted is None or delivery.envelope.key.topic in self.wanted:
                        mine.append(delivery)
                    else:
                        await self.foreign(delivery)
                if mine:
                    return mine

        async def foreign(self, delivery: Delivery) -> None:
            await delivery.ack()

        async def start(self) -> None:
            self.wanted, self._topics = self._topics, None
            await super().start()


@breaks("M10", "test_foreign_topics_hold_nothing_back")
class ForeignTopicsTakeUpPrefetch(SwallowsForeignTopics):
    class Gets(SwallowsForeignTopics.Gets):
        async def foreign(self, delivery: Delivery) -> None:
            """Keep it."""


@breaks("M10", "test_foreign_topics_are_not_swallowed")
class CountsForeignTopics(SwallowsForeignTopics):
    class Gets(SwallowsForeignTopics.Gets):
        async def foreign(self, delivery: Delivery) -> None:
            tried = evolve(delivery.envelope.parameters, tried=1)
            await delivery.requeue(evolve(delivery.envelope, parameters=tried, due=self.broker.clock.now() + SECOND))


@breaks("M4", "test_long_job_keeps_its_delivery")
class LeaseIsNotRenewed(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            deliveries = await super().receive(limit)
            now, queue, lease = self.broker.clock.now(), self._queue, self._lease
            assert queue is not None
            assert lease is not None
            self.broker.clock.call_at(now + self.broker.limits.lease, lambda: queue.reap(lease))
            return deliveries


@breaks("M8", "test_expired_message")
class ExpiredVanishes(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            while True:
                deliveries = await super().receive(limit)
                if not (expired := [d for d in deliveries if (at := d.envelope.expires_at) and at <= self.broker.clock.now()]):
                    return deliveries
                for delivery in deliveries:
                    await (delivery.ack() if delivery in expired else delivery.reject())


@breaks("L6", "test_consumer_life")
class ConsumerClosesOnce(Broken):
    class Gets(BrokenConsumer):
        async def close(self) -> None:
            assert self._lease is not None
            await super().close()


# -- message brokers: the broker ------------------------------------------------------------------------------------------------


@breaks("M0", "test_payload_is_bytes")
class PayloadIsText(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        return await super().enqueue(evolve(envelope, payload=envelope.payload.decode("utf-8", "replace").encode()))


@breaks("M0", "test_unknown_fields_survive")
class DropsUnknownFields(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        return await super().enqueue(evolve(envelope, extra={}))


@breaks("M0", "test_message_arrives_as_sent")
class DropsHeaders(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        return await super().enqueue(evolve(envelope, headers={}))


@breaks("M0", "test_recurrence_arrives")
class DropsRecurrence(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        return await super().enqueue(evolve(envelope, parameters=evolve(envelope.parameters, recurrence=None)))


@breaks("M8", "test_expired_message")
class DropsExpiresAt(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        return await super().enqueue(evolve(envelope, expires_at=None))


@breaks("M8", "test_ttl_starts_anew_at_a_retry")
class RequeueKeepsTheOldExpiry(Broken):
    class Handed(InMemoryDelivery):
        async def requeue(self, envelope: Envelope) -> None:
            await super().requeue(evolve(envelope, expires_at=self.envelope.expires_at))


@breaks("M8", "test_recurring_message_outlives_its_ttl", "test_message_without_ttl_never_expires")
class ExpiresByItsOwnCount(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            while True:
                deliveries = await super().receive(limit)
                now = self.broker.clock.now()
                young = []
                for delivery in deliveries:
                    ttl = delivery.envelope.parameters.ttl
                    start = delivery.envelope.due or delivery.envelope.parameters.timestamp
                    if ttl is not None and start + ttl < now:
                        await delivery.nack(Death(DeathReason.EXPIRED, now))
                    else:
                        young.append(delivery)
                if young:
                    return young


@breaks("M8", "test_ttl_counts_from_due_time")
class TtlCountsFromTheEnqueue(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        if envelope.expires_at is not None and envelope.due is not None:
            envelope = evolve(envelope, due=envelope.expires_at)
        return await super().enqueue(envelope)


@breaks("M8", "test_expired_message", "test_worker_buries_expired_messages")
class BuriesExpiredAsFailed(Broken):
    class Handed(InMemoryDelivery):
        async def nack(self, death: Death) -> None:
            await super().nack(evolve(death, reason=DeathReason.FAILED))


@breaks("M1", "test_enqueue_returns_once_accepted")
class EnqueueReturnsEarly(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        queue = self._queue(envelope.key.queue)
        self.clock.call_at(self.clock.now() + SECOND, lambda: queue.put(envelope))
        return Enqueued.NEW


@breaks("M1", "test_cancelled_enqueue_is_whole")
class EnqueueInTwoSteps(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        await super().enqueue(evolve(envelope, payload=b""))
        await asyncio.sleep(0)
        return await super().enqueue(evolve(envelope, on_duplicate="replace"))


@breaks("M3", "test_killed_worker_is_relieved")
class LeaseIsTooLong(Broken):
    def __init__(self) -> None:
        super().__init__(lease=SECOND)

    def kill(self, consumer: Consumer) -> None:
        declared, self.limits = self.limits, evolve(self.limits, lease=timedelta(seconds=10))
        queue: Any = getattr(consumer, "_queue")  # noqa: B009 — not in the base
        queue.limits = self.limits
        super().kill(consumer)
        self.limits = declared


@breaks("M7", "test_delayed_message_waits", "test_lateness")
class DeliversEarly(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        return await self._at(envelope, -0.05 * SECOND)

    async def _at(self, envelope: Envelope, change: timedelta) -> Enqueued:
        """Place it at another due time than it says."""
        outcome = await super().enqueue(envelope)
        if envelope.due is not None and envelope.due > self.clock.now():
            queue = self._queue(envelope.key.queue)
            queue._take_out(queue.live[envelope.key.id_])
            queue._add(evolve(envelope, due=envelope.due + change))
            queue.live[envelope.key.id_].envelope = envelope
        return outcome


@breaks("M7", "test_lateness")
class DeliversLate(DeliversEarly):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        return await self._at(envelope, 0.1 * SECOND)


@breaks("M7", "test_long_delay_holds_nothing_back", "test_delays_in_order_of_due_times")
class LongDelaysBlockShortOnes(DeliversEarly):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        if envelope.due is None:
            return await self._at(envelope, timedelta(0))
        last = self.shared["last"] = max(self.shared.get("last", envelope.due), envelope.due)
        return await self._at(envelope, last - envelope.due)


@breaks("M7", "test_no_worker_holds_delayed_messages")
class DelayedMessagesDieWithTheirWorker(Broken):
    class Gets(BrokenConsumer):
        async def close(self) -> None:
            if self._queue is not None:
                self._queue.delayed.clear()
            await super().close()


@breaks("M7", "test_delays_reach_a_year")
class LongestDelayIsADay(Broken):
    def __init__(self) -> None:
        super().__init__()
        self.limits = evolve(self.limits, max_delay=timedelta(days=1))


@breaks("M9", "test_priority_order", "test_late_high_overtakes")
class IgnoresPriority(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        outcome = await super().enqueue(evolve(envelope, key=evolve(envelope.key, priority=Priority.MEDIUM)))
        self._queue(envelope.key.queue).live[envelope.key.id_].envelope = envelope
        return outcome


@breaks("M12", "test_stats")
class StatsLie(Broken):
    async def queue_stats(self, queue: str) -> QueueStats:
        return evolve(await super().queue_stats(queue), in_progress=0)


@breaks("M12", "test_browse_ready", "test_browse_dead")
class BrowsingDisturbs(Broken):
    async def browse(
        self, queue: str, category: MessageCategory, *, after: str | None = None, limit: int = 100
    ) -> AsyncIterator[Browsed]:
        async for browsed in super().browse(queue, category, after=after, limit=limit):
            yield browsed
        self._queue(queue).flush()


@breaks("M12", "test_browse_pages")
class BrowsingForgetsTheCursor(Broken):
    def browse(
        self, queue: str, category: MessageCategory, *, after: str | None = None, limit: int = 100
    ) -> AsyncIterator[Browsed]:
        return super().browse(queue, category, limit=limit)


@breaks("M12", "test_queues_do_not_mix")
class QueuesMix(Broken):
    def _queue(self, name: str) -> Any:
        return super()._queue("all")


@breaks("M12", "test_dead_messages_can_be_requeued")
class RedriveLeavesTheDeadOne(Broken):
    class Handed(InMemoryDelivery):
        async def requeue(self, envelope: Envelope) -> None:
            if self.death is None:
                await super().requeue(envelope)
            else:
                self._queue.put(envelope)
                await self.reject()


@breaks("M12", "test_delayed_messages_can_be_requeued", "test_delayed_message_given_back_keeps_its_due_time")
class DelayedOnesAreReadyOnceSeen(Broken):
    class Handed(InMemoryDelivery):
        async def reject(self) -> None:
            await self.requeue(evolve(self.envelope, due=None))

    class Gets(BrokenConsumer):
        async def close(self) -> None:
            assert self._queue is not None
            assert self._lease is not None
            for entry in list(self._lease.held):
                self._lease.held.pop(entry)
                self._queue.requeue(entry, evolve(entry.envelope, due=None))
            await super().close()


@breaks("M13", "test_neighbours_are_not_blamed")
class BlamesNeighbours(Broken):
    def kill(self, consumer: Consumer) -> None:
        for entry in consumer._lease.held:  # type: ignore[attr-defined]
            entry.started = True
        super().kill(consumer)


@breaks("M13", "test_poison")
class PoisonLivesForEver(Broken):
    def __init__(self) -> None:
        super().__init__(max_deliveries=1000)
        self.limits = evolve(self.limits, max_deliveries=5)

    def kill(self, consumer: Consumer) -> None:
        queue: Any = getattr(consumer, "_queue")  # noqa: B009 — not in the base
        queue.limits = evolve(self.limits, max_deliveries=1000)
        super().kill(consumer)


@breaks("M14", "test_duplicate_raises", "test_redriving_onto_a_live_id_raises")
class NeverRaisesOnDuplicates(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        with suppress(DuplicateJobError):
            return await super().enqueue(envelope)
        return Enqueued.NEW

    class Handed(InMemoryDelivery):
        async def requeue(self, envelope: Envelope) -> None:
            try:
                await super().requeue(envelope)
            except DuplicateJobError:
                await self.ack()


@breaks("M14", "test_duplicate_replace", "test_duplicate_keep", "test_duplicate_replace_raises_for_running")
class IgnoresOnDuplicate(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        modes: Any = {"keep": "replace", "replace": "keep"}
        return await super().enqueue(evolve(envelope, on_duplicate=modes.get(envelope.on_duplicate, "raise")))


@breaks("M14", "test_duplicate_raises")
class DuplicateStateIsWrong(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        try:
            return await super().enqueue(envelope)
        except DuplicateJobError as error:
            raise DuplicateJobError(error.id_, "live") from error


@breaks("M14", "test_dead_ids_are_free")
class DeadIdsAreTaken(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        async for browsed in self.browse(envelope.key.queue, MessageCategory.DEAD):
            if browsed.envelope.key == envelope.key:
                raise DuplicateJobError(envelope.key.id_, "dead")
        return await super().enqueue(envelope)


@breaks("M15", "test_cancel_ready", "test_cancel_delayed")
class CancelLies(Broken):
    async def cancel(self, queue: str, id_: str) -> bool:
        return True


@breaks("M15", "test_cancel_of_others")
class CancelRemovesRunning(Broken):
    async def cancel(self, queue: str, id_: str) -> bool:
        if await super().cancel(queue, id_):
            return True
        return self._queue(queue).live.pop(id_, None) is not None


@breaks("M15", "test_cancel_unsupported")
class CancelIsSilentlyNothing(Broken):
    capabilities = frozenset(Capability) - {Capability.CANCEL}

    async def cancel(self, queue: str, id_: str) -> bool:
        return False


@breaks("M12", "test_browse_unsupported")
class BrowsingIsSilentlyNothing(Broken):
    capabilities = frozenset(Capability) - {Capability.BROWSE}


@breaks("M16", "test_flush")
class FlushLosesRunning(Broken):
    async def flush_queue(self, queue: str) -> None:
        await super().flush_queue(queue)
        for lease in self._queue(queue).leases:
            lease.held.clear()


@breaks("M16", "test_flush")
class FlushLeavesDelayed(Broken):
    async def flush_queue(self, queue: str) -> None:
        self._queue(queue).ready.clear()
        self._queue(queue).dead.clear()


@breaks("M16", "test_delete")
class DeleteLeavesDead(Broken):
    async def delete_queue(self, queue: str) -> None:
        self._queue(queue).ready.clear()


@breaks("M16", "test_declare_is_idempotent")
class DeclareEmptiesTheQueue(Broken):
    async def declare_queue(self, queue: str, topics: Collection[str] = ()) -> None:
        self._queue(queue).flush()


@breaks("M18", "test_enqueue_many_keeps_order")
class EnqueueManyReorders(Broken):
    async def enqueue_many(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        return (await super().enqueue_many(envelopes[::-1]))[::-1]


@breaks("M18", "test_enqueue_many_reports_one_bad_message")
class EnqueueManyRaisesForOne(Broken):
    async def enqueue_many(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        return [await self.enqueue(envelope) for envelope in envelopes]


@breaks("M18", "test_enqueue_many_reports_one_bad_message")
class EnqueueManyForgetsTheBadOne(Broken):
    async def enqueue_many(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        return [outcome for outcome in await super().enqueue_many(envelopes) if not isinstance(outcome, EnqueueError)]


@breaks("M19", "test_payload_too_large")
class TakesAnySize(Broken):
    def __init__(self) -> None:
        super().__init__()
        self.limits = evolve(self.limits, max_payload=1000)

    def _queue(self, name: str) -> Any:
        queue = super()._queue(name)
        queue.limits = evolve(self.limits, max_payload=None)
        return queue


@breaks("M19", "test_payload_too_large")
class DoesNotNameTheWayOut(Broken):
    def __init__(self) -> None:
        super().__init__(max_payload=1000)

    async def enqueue(self, envelope: Envelope) -> Enqueued:
        try:
            return await super().enqueue(envelope)
        except PayloadTooLargeError as error:
            raise PayloadTooLargeError(error.size, error.limit, "too bad") from error


@breaks("M7", "test_past_due_time_is_now")
class PastDueTimesAreAMinute(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        late = envelope.due is not None and envelope.due < self.clock.now()
        return await super().enqueue(evolve(envelope, due=self.clock.now() + 60 * SECOND) if late else envelope)


@breaks("M10", "test_unknown_topic_waits_for_its_consumer")
class DropsUndeclaredTopics(Broken):
    async def declare_queue(self, queue: str, topics: Collection[str] = ()) -> None:
        self.shared.setdefault(queue, set()).update(topics)

    async def enqueue(self, envelope: Envelope) -> Enqueued:
        if envelope.key.topic not in self.shared.get(envelope.key.queue, {envelope.key.topic}):
            return Enqueued.NEW
        return await super().enqueue(envelope)


@breaks("M12", "test_dead_consumer_waits")
class DeadOnesComeLate(Broken):
    class Gets(BrokenConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            if self._category is MessageCategory.DEAD:
                await self.broker.clock.sleep(10 * SECOND)
            return await super().receive(limit)


@breaks("M12", "test_browse_delayed")
class BrowsesDelayedAsReady(Broken):
    def browse(
        self, queue: str, category: MessageCategory, *, after: str | None = None, limit: int = 100
    ) -> AsyncIterator[Browsed]:
        category = MessageCategory.DEAD if category is MessageCategory.DELAYED else category
        return super().browse(queue, category, after=after, limit=limit)


@breaks("M14", "test_duplicate_replace_takes_due_time")
class ReplaceIgnoresDue(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        return await super().enqueue(evolve(envelope, due=None) if envelope.on_duplicate == "replace" else envelope)


@breaks("M14", "test_ids_of_gone_messages_are_free")
class IdsAreNeverFree(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        seen = self.shared.setdefault("keys", set())
        if envelope.key in seen:
            raise DuplicateJobError(envelope.key.id_, "ready")
        seen.add(envelope.key)
        return await super().enqueue(envelope)


@breaks("M14", "test_ids_are_per_queue")
class IdsAreGlobal(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        for name, queue in self._queues.items():
            if name != envelope.key.queue and envelope.key.id_ in queue.live:
                raise DuplicateJobError(envelope.key.id_, "ready")
        return await super().enqueue(envelope)


@breaks("M14", "test_duplicates_at_once")
class ChecksIdsBeforeItPuts(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        if envelope.key.id_ in self._queue(envelope.key.queue).live:
            return await super().enqueue(envelope)
        await asyncio.sleep(0)
        await super().enqueue(evolve(envelope, on_duplicate="replace"))
        return Enqueued.NEW


@breaks("M16", "test_enqueue_declares")
class EnqueueWantsADeclaredQueue(Broken):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        if envelope.key.queue == "unknown":
            raise EnqueueError("no such queue")
        return await super().enqueue(envelope)


@breaks("M16", "test_flush_ready")
class FlushLeavesReady(Broken):
    async def flush_queue(self, queue: str) -> None:
        self._queue(queue).delayed.clear()
        self._queue(queue).dead.clear()


@breaks("M18", "test_enqueue_many_of_all_kinds")
class EnqueueManyKnowsOneQueue(Broken):
    async def enqueue_many(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        queue = envelopes[0].key.queue
        return await super().enqueue_many([evolve(e, key=evolve(e.key, queue=queue)) for e in envelopes])


@breaks("M18", "test_enqueue_many_is_no_slower_than_a_loop")
class EnqueueManyIsSlow(Broken):
    async def enqueue_many(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        await asyncio.sleep(0.2)
        return await super().enqueue_many(envelopes)


@breaks("L2", "test_cancelled_connect_leaves_nothing")
class CancelledConnectLeavesATask(Broken):
    async def connect(self) -> None:
        task = asyncio.create_task(asyncio.sleep(20), name="left by a broken broker")
        await asyncio.sleep(0)
        task.cancel()
        await super().connect()


@breaks("L4", "test_ping")
class PingHangs(Broken):
    async def ping(self) -> None:
        await asyncio.Event().wait()


@breaks("L1", "test_constructor_opens_nothing")
class ConstructorNeedsALoop(Broken):
    def __init__(self) -> None:
        super().__init__()
        asyncio.get_running_loop()


@breaks("L3", "test_disconnect_is_idempotent")
class DisconnectsOnce(Broken):
    gone = False

    async def disconnect(self) -> None:
        assert not self.gone
        self.gone = True
        await super().disconnect()


@breaks("L5", "test_disconnect_leaves_no_task", "test_ack_removes")
class LeavesATask(Broken):
    async def connect(self) -> None:
        await super().connect()
        self.task = asyncio.create_task(asyncio.sleep(20), name="left by a broken broker")


@breaks("L7", "test_reconnect_finds_the_queues")
class DisconnectEmptiesTheQueues(Broken):
    async def disconnect(self) -> None:
        await super().disconnect()
        self._queues.clear()


# -- bucket brokers --------------------------------------------------------------------------------------------------------------


@breaks("B1", "test_ttl")
class ReturnsExpired(InMemoryBucketBroker):
    async def get_bucket(self, id_: str) -> bytes | None:
        return self._buckets.get(id_, (None, None))[0]


@breaks("B1", "test_delete_is_idempotent")
class DeletesOnce(InMemoryBucketBroker):
    async def delete_bucket(self, id_: str) -> None:
        del self._buckets[id_]


@breaks("B1", "test_get_what_was_stored")
class StoresText(InMemoryBucketBroker):
    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        await super().store_bucket(id_, data.decode("utf-8", "replace").encode(), ttl)


@breaks("B1", "test_get_what_was_stored")
class EmptyIsNone(InMemoryBucketBroker):
    async def get_bucket(self, id_: str) -> bytes | None:
        return await super().get_bucket(id_) or None


@breaks("B2", "test_last_writer_wins", "test_storing_again_renews_ttl")
class KeepsTheOldTtl(InMemoryBucketBroker):
    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        old = self._buckets.get(id_)
        await super().store_bucket(id_, data, ttl)
        if old is not None:
            self._buckets[id_] = (data, old[1])


@breaks("B2", "test_cancelled_store_is_whole", "test_writers_at_once")
class StoresInTwoSteps(InMemoryBucketBroker):
    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        await super().store_bucket(id_, data[: len(data) // 2], ttl)
        await asyncio.sleep(0)
        half = await self.get_bucket(id_) or b""
        await super().store_bucket(id_, half + data[len(data) // 2 :], ttl)


@breaks("B2", "test_last_writer_wins")
class FirstWriterWins(InMemoryBucketBroker):
    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        if await self.get_bucket(id_) is None:
            await super().store_bucket(id_, data, ttl)


@breaks("B3", "test_no_ttl_never_expires")
class NoneIsADay(InMemoryBucketBroker):
    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        await super().store_bucket(id_, data, ttl or timedelta(days=1))


@breaks("B3", "test_ttls_of_all_lengths")
class TtlIsAtLeastAMinute(InMemoryBucketBroker):
    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        await super().store_bucket(id_, data, ttl and max(ttl, timedelta(minutes=1)))


@breaks("B3", "test_storage_is_freed")
class NeverFrees(InMemoryBucketBroker):
    def _free(self, now: object) -> None:
        """Keep all."""


@breaks("B4", "test_wait_for_is_woken")
class PollsInsteadOfPush(InMemoryBucketBroker):
    wait_for = BucketBroker.wait_for


@breaks("B4", "test_wait_for_times_out")
class WaitForNeverTimesOut(InMemoryBucketBroker):
    async def wait_for(self, id_: str, timeout: timedelta | None) -> bytes:
        return await super().wait_for(id_, None)


@breaks("B4", "test_many_wait_for_one")
class OnlyOneMayWait(InMemoryBucketBroker):
    async def wait_for(self, id_: str, timeout: timedelta | None) -> bytes:
        if id_ in self._waiting:
            await asyncio.Event().wait()
        return await super().wait_for(id_, timeout)


@breaks("B4", "test_wait_for_misses_nothing")
class StoreManyWakesNobody(InMemoryBucketBroker):
    async def store_many(self, buckets: Sequence[tuple[str, bytes, timedelta | None]]) -> None:
        for id_, data, _ in buckets:
            self._buckets[id_] = (data, None)


@breaks("B5", "test_get_many_keeps_order")
class GetManyIsUnordered(InMemoryBucketBroker):
    async def get_many(self, ids: Sequence[str]) -> list[bytes | None]:
        return await super().get_many(sorted(ids))


@breaks("B5", "test_get_many_keeps_order")
class GetManyLeavesOutWhatIsNotThere(InMemoryBucketBroker):
    async def get_many(self, ids: Sequence[str]) -> list[bytes | None]:
        return [data for data in await super().get_many(ids) if data is not None]


@breaks("B5", "test_store_many")
class StoreManyForgetsTtl(InMemoryBucketBroker):
    async def store_many(self, buckets: Sequence[tuple[str, bytes, timedelta | None]]) -> None:
        await super().store_many([(id_, data, None) for id_, data, _ in buckets])


@breaks("B5", "test_delete_many")
class DeleteManyDeletesSixteen(InMemoryBucketBroker):
    async def delete_many(self, ids: Sequence[str]) -> None:
        await super().delete_many(ids[:16])


@breaks("B6", "test_every_legal_id_is_its_own")
class IdsIgnoreCase(InMemoryBucketBroker):
    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        await super().store_bucket(id_.lower(), data, ttl)

    async def get_bucket(self, id_: str) -> bytes | None:
        return await super().get_bucket(id_.lower())


@breaks("B8", "test_bucket_too_large")
class TakesAnyBucket(InMemoryBucketBroker):
    def __init__(self) -> None:
        super().__init__()
        self.limits = evolve(self.limits, max_payload=1000)

    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        limits, self.limits = self.limits, evolve(self.limits, max_payload=None)
        try:
            await super().store_bucket(id_, data, ttl)
        finally:
            self.limits = limits


@breaks("B1", "test_get_what_is_not_there")
class NothingIsEmpty(InMemoryBucketBroker):
    async def get_bucket(self, id_: str) -> bytes | None:
        return await super().get_bucket(id_) or b""


@breaks("B4", "test_wait_for_what_is_there")
class WaitsForTheNextStore(InMemoryBucketBroker):
    async def wait_for(self, id_: str, timeout: timedelta | None) -> bytes:
        self._buckets.pop(id_, None)
        return await super().wait_for(id_, timeout)


@breaks("B5", "test_many_are_no_slower_than_a_loop")
class StoreManyIsSlow(InMemoryBucketBroker):
    async def store_many(self, buckets: Sequence[tuple[str, bytes, timedelta | None]]) -> None:
        await asyncio.sleep(0.2)
        await super().store_many(buckets)


@breaks("L4", "test_ping")
class StoreDoesNotAnswer(InMemoryBucketBroker):
    async def ping(self) -> None:
        raise OSError("refused")


@breaks("L2", "test_cancelled_connect_leaves_nothing")
class CancelledConnectLeavesATaskToo(InMemoryBucketBroker):
    async def connect(self) -> None:
        task = asyncio.create_task(asyncio.sleep(20), name="left by a broken broker")
        await asyncio.sleep(0)
        task.cancel()
        await super().connect()


# -- connections that go and come back --------------------------------------------------------------------------------------


class Cut(Broken):
    """In memory, with a connection that can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = asyncio.Event()
        self.whole.set()
        self.cuts = 0

    async def enqueue(self, envelope: Envelope) -> Enqueued:
        if not self.whole.is_set():
            raise BrokerConnectionError("no way to broker.example:1234") from OSError("refused")
        return await super().enqueue(envelope)

    class Gets(BrokenConsumer):
        @property
        def healthy(self) -> bool:  # type: ignore[override]
            return bool(self.broker.whole.is_set())

        async def receive(self, limit: int) -> Sequence[Delivery]:
            await self.broker.whole.wait()
            return await super().receive(limit)


@breaks("M17", "test_broken_connection_is_said")
class EnqueuesIntoTheVoid(Cut):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        return await super().enqueue(envelope) if self.whole.is_set() else Enqueued.NEW


@breaks("M17", "test_broken_connection_is_said")
class IsHealthyWithoutConnection(Cut):
    class Gets(Cut.Gets):
        healthy = True


@breaks("M17", "test_broken_connection_is_said")
class ShowsThePassword(Cut):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        try:
            return await super().enqueue(envelope)
        except BrokerConnectionError as error:
            raise BrokerConnectionError("no way to user:s3cret@broker.example:1234") from error


@breaks("M17", "test_broken_connection_is_said")
class DoesNotNameTheHost(Cut):
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        try:
            return await super().enqueue(envelope)
        except BrokerConnectionError as error:
            raise BrokerConnectionError from error


@breaks("M17", "test_connection_comes_back")
class ConsumersStayAway(Cut):
    class Gets(Cut.Gets):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            deliveries = await super().receive(limit)
            if self.broker.cuts:
                await asyncio.Event().wait()
            return deliveries


@breaks("M17", "test_connection_comes_back")
class ConsumersStayUnhealthy(Cut):
    class Gets(Cut.Gets):
        @property
        def healthy(self) -> bool:  # type: ignore[override]
            return not self.broker.cuts


@breaks("M17", "test_connection_comes_back")
class LosesWhatItHeld(Cut):
    class Handed(InMemoryDelivery):
        broker: Any

        async def ack(self) -> None:
            await super().ack()
            if self.broker.cuts and self.envelope.key.id_ == "held":
                raise DeliveryLostError


@breaks("M20", "test_memory_is_bounded_by_prefetch")
class KeepsTheQueueInTheClient(ReadsAheadWithoutBound):
    in_process = None

    class Gets(ReadsAheadWithoutBound.Gets):
        async def start(self) -> None:
            await super().start()
            assert self._lease is not None
            self._lease.prefetch = 10**6

        async def receive(self, limit: int) -> Sequence[Delivery]:
            self.ahead += await InMemoryConsumer.receive(self, 10**6) if not self.ahead else ()
            return await super().receive(limit)


class CutBuckets(InMemoryBucketBroker):
    """In memory, with a connection that can be cut."""

    whole = True

    async def get_bucket(self, id_: str) -> bytes | None:
        self.reach()
        return await super().get_bucket(id_)

    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        self.reach()
        await super().store_bucket(id_, data, ttl)

    async def delete_bucket(self, id_: str) -> None:
        self.reach()
        await super().delete_bucket(id_)

    def reach(self) -> None:
        if not self.whole:
            raise BucketConnectionError("no way to store.example:4321") from OSError("refused")


@breaks("B8", "test_unreachable_store")
class SaysNothingIsThere(CutBuckets):
    async def get_bucket(self, id_: str) -> bytes | None:
        with suppress(BucketConnectionError):
            return await super().get_bucket(id_)
        return None


@breaks("B8", "test_unreachable_store")
class RaisesWhatItsClientRaises(CutBuckets):
    def reach(self) -> None:
        if not self.whole:
            raise OSError("refused")


@breaks("B8", "test_unreachable_store")
class ForgetsTheCause(CutBuckets):
    def reach(self) -> None:
        if not self.whole:
            raise BucketConnectionError("no way to store.example:4321")


@pytest.mark.parametrize("test", ["test_broken_connection_is_said", "test_connection_comes_back"])
async def test_a_connection_that_comes_back_is_well(test: str) -> None:
    """The same broker, unbroken, keeps M17."""
    suite: Any = MessageSuite()
    made = Cut()
    async with suite.running(lambda: made):
        await getattr(suite, test)()


async def test_a_store_that_comes_back_is_well() -> None:
    """The same store, unbroken, keeps B8."""
    suite: Any = BucketSuite()
    made = CutBuckets()
    async with suite.running(lambda: made):
        await suite.test_unreachable_store()


# -- the tests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("broker", "number", "test"), CASES)
async def test_is_caught(broker: Any, number: str, test: str) -> None:
    """The named test, and so the named promise, catches the broker."""
    suite: Any = (MessageSuite if issubclass(broker, MessageBroker) else BucketSuite)()
    made = None if number == "L1" else broker()

    async def run() -> None:
        try:
            async with suite.running((lambda: made) if made is not None else broker):
                await getattr(suite, test)()
        except pytest.skip.Exception as skipped:
            pytest.fail(f"the test does not apply to this broker: {skipped}")

    with pytest.raises(PromiseBroken) as caught:
        await run()
    assert caught.value.promise.number == number
    assert str(caught.value).startswith(f"{number} is broken: ")
    assert caught.value.seen
    assert not isinstance(caught.value.__cause__, AttributeError | NameError), "it is caught for being faulty itself"


def test_every_test_catches_something() -> None:
    """Every standard test of both suites catches at least one; so none of them passes whatever the broker does."""
    caught = {case.values[2] for case in CASES}
    assert MessageBrokerConformance.promises().keys() | BucketBrokerConformance.promises().keys() == caught
