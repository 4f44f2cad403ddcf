"""The in-memory message broker against a model in plain Python: any steps, in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from repid_core.abc import Consumer, Delivery
from repid_core.data import (
    Death,
    DeathReason,
    Enqueued,
    Envelope,
    MessageCategory,
    OnDuplicate,
    Parameters,
    Priority,
    QueueStats,
    RoutingKey,
)
from repid_core.errors import DeliveryLostError, DuplicateJobError
from repid_core.memory import InMemoryMessageBroker
from repid_core.testing.clock import ManualClock

NORMAL, DELAYED, DEAD = MessageCategory.NORMAL, MessageCategory.DELAYED, MessageCategory.DEAD
LEASE, MAX_DELIVERIES = timedelta(seconds=10.5), 3  # no lease ends just when a message falls due
START = datetime(2030, 1, 1, tzinfo=UTC)
T = TypeVar("T")

IDS = st.sampled_from([f"m{number}" for number in range(8)])
TOPICS = st.sampled_from(["a", "b", "c"])
DUPLICATES = st.sampled_from(["raise", "keep", "replace"])
DELAYS = st.sampled_from([None, 0, 1, 5, 5, 20])


@define(eq=False)
class Model:
    """A message, and where it is: ready, delayed, held or dead."""

    envelope: Envelope
    place: str
    number: int
    deaths: int = 0
    started: bool = False
    died: DeathReason | None = None

    @property
    def id_(self) -> str:
        return self.envelope.key.id_

    @property
    def order(self) -> tuple[Any, ...]:
        if self.place == "ready":
            return -self.envelope.key.priority, self.number
        return (self.envelope.due, self.number) if self.place == "delayed" else (self.number,)


@define(eq=False)
class Hand:
    """A consumer, what it should hold, and its `receive` that waits, if there is one."""

    consumer: Consumer
    category: MessageCategory
    topics: frozenset[str] | None
    prefetch: int
    held: list[tuple[Delivery, Model]]
    waiting: asyncio.Task[Sequence[Delivery]] | None = None
    limit: int = 0


class BrokerMachine(RuleBasedStateMachine):
    """Every step is done to the broker and to the model; after each one they must agree."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock(START)
        self.broker = InMemoryMessageBroker(lease=LEASE, max_deliveries=MAX_DELIVERIES)
        self.broker.clock = self.clock
        self.messages: list[Model] = []
        self.hands: list[Hand] = []
        self.dying: list[tuple[datetime, Hand]] = []
        self.lost: list[Delivery] = []
        self.numbers = iter(range(10**9))
        self.run(self.broker.connect())

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.run(self.broker.disconnect())
            for hand in self.hands:
                if hand.waiting is not None:
                    hand.waiting.exception()
            left = asyncio.all_tasks(self.loop)
            self.loop.close()
            assert not left

    def run(self, call: Awaitable[T]) -> T:
        async def settle() -> T:
            result = await call
            for _ in range(8):  # turns of the loop, for those who wait
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(settle())

    # -- the model ---------------------------------------------------------------------------------------------------------

    def at(self, place: str) -> list[Model]:
        return sorted((m for m in self.messages if m.place == place), key=lambda m: m.order)

    def live(self, id_: str) -> Model | None:
        return next((m for m in self.messages if m.id_ == id_ and m.died is None), None)

    def place(self, envelope: Envelope) -> None:
        model = Model(envelope, "ready", next(self.numbers))
        if envelope.due is not None and envelope.due > self.clock.now():
            model.place = "delayed"
        self.messages.append(model)

    def give_back(self, hand: Hand, model: Model) -> None:
        model.started = False
        model.place = {NORMAL: "ready", DELAYED: "delayed", DEAD: "dead"}[hand.category]
        if hand.category is DELAYED and model.envelope.due is not None and model.envelope.due <= self.clock.now():
            model.place, model.number = "ready", next(self.numbers)

    def next_event(self) -> datetime:
        """When something falls due, or a lease ends."""
        dues = [m.envelope.due for m in self.at("delayed") if m.envelope.due is not None]
        return min([*dues, *(when for when, _ in self.dying)], default=datetime.max.replace(tzinfo=UTC))

    def reach(self, now: datetime) -> None:
        """What happens at a time."""
        for model in self.at("delayed"):
            if model.envelope.due == now:
                model.place, model.number = "ready", next(self.numbers)
        for when, hand in list(self.dying):
            if when == now:
                self.dying.remove((when, hand))
                self.reap(hand)

    def reap(self, hand: Hand) -> None:
        for delivery, model in hand.held:
            self.lost.append(delivery)
            if hand.category is NORMAL and (model.started or not model.deaths):
                model.deaths += 1
            if model.deaths >= MAX_DELIVERIES:
                self.bury(model, DeathReason.POISON)
            else:
                self.give_back(hand, model)
        hand.held.clear()

    def bury(self, model: Model, reason: DeathReason) -> None:
        model.place, model.died, model.number = "dead", reason, next(self.numbers)
        model.deaths, model.started = 0, False

    def wanted(self, hand: Hand) -> list[Model]:
        place = {NORMAL: "ready", DELAYED: "delayed", DEAD: "dead"}[hand.category]
        return [m for m in self.at(place) if hand.topics is None or m.envelope.key.topic in hand.topics]

    def took(self, hand: Hand, deliveries: Sequence[Delivery]) -> None:
        by_envelope = {id(model.envelope): model for model in self.wanted(hand)}
        assert len(deliveries) <= hand.prefetch - len(hand.held)
        for delivery in deliveries:
            model = by_envelope[id(delivery.envelope)]
            assert delivery.redelivered == (model.deaths > 0)
            assert (delivery.death and delivery.death.reason) == model.died
            assert delivery.category is hand.category
            model.place = "held"
            hand.held.append((delivery, model))

    # -- the steps ---------------------------------------------------------------------------------------------------------

    def envelope(self, id_: str, topic: str, delay: float | None, **options: Any) -> Envelope:
        due = None if delay is None else self.clock.now() + timedelta(seconds=delay)
        priority = options.pop("priority", Priority.MEDIUM)
        return Envelope(RoutingKey(id_, topic, "q", priority), Parameters(START), due=due, **options)

    @rule(messages=st.lists(st.tuples(IDS, TOPICS, st.sampled_from(Priority), DELAYS, DUPLICATES), min_size=1, max_size=4))
    def enqueue(self, messages: list[tuple[str, str, Priority, float | None, OnDuplicate]]) -> None:
        for message in messages:
            self.enqueue_one(*message)
            self.those_who_wait_get_what_there_is()

    def enqueue_one(self, id_: str, topic: str, priority: Priority, delay: float | None, on_duplicate: OnDuplicate) -> None:
        envelope = self.envelope(id_, topic, delay, priority=priority, on_duplicate=on_duplicate)
        old, expected = self.live(id_), Enqueued.NEW
        if old is not None:
            expected = Enqueued.KEPT if on_duplicate == "keep" else Enqueued.REPLACED
        if old is not None and (on_duplicate == "raise" or (on_duplicate == "replace" and old.place == "held")):
            with pytest.raises(DuplicateJobError) as refused:
                self.run(self.broker.enqueue(envelope))
            assert refused.value.state == {"held": "running"}.get(old.place, old.place)
            return
        if expected is not Enqueued.KEPT:
            same_lane = old and old.place == "ready" and old.order[0] == -priority and old.envelope.key.topic == topic
            if old is not None and same_lane and not delay:
                old.envelope, old.deaths = envelope, 0
            else:
                self.messages = [m for m in self.messages if m is not old]
                self.place(envelope)
        assert self.run(self.broker.enqueue(envelope)) is expected

    @precondition(lambda self: len(self.hands) < 4)
    @rule(
        category=st.sampled_from([NORMAL, NORMAL, NORMAL, DELAYED, DEAD]),
        topics=st.none() | st.frozensets(TOPICS, min_size=1, max_size=2),
        prefetch=st.integers(1, 4),
    )
    def consumer(self, category: MessageCategory, topics: frozenset[str] | None, prefetch: int) -> None:
        consumer = self.broker.consumer("q", topics, prefetch=prefetch, category=category)
        self.run(consumer.start())
        self.hands.append(Hand(consumer, category, topics, prefetch, []))

    def idle_hand(self, data: st.DataObject) -> Hand | None:
        idle = [hand for hand in self.hands if hand.waiting is None]
        return data.draw(st.sampled_from(idle)) if idle else None

    @rule(data=st.data(), limit=st.integers(1, 5))
    def receive(self, data: st.DataObject, limit: int) -> None:
        """At once if there is something, and then exactly the first ones; else it goes on waiting."""
        hand = self.idle_hand(data)
        if hand is None:
            return
        expected = self.wanted(hand)[: min(limit, hand.prefetch - len(hand.held))]

        async def receive() -> None:
            hand.waiting, hand.limit = asyncio.ensure_future(hand.consumer.receive(limit)), limit
            await asyncio.sleep(0)
            assert hand.waiting.done() == bool(expected)
            if expected:
                deliveries, hand.waiting = hand.waiting.result(), None
                assert [d.envelope for d in deliveries] == [m.envelope for m in expected]
                self.took(hand, deliveries)

        self.run(receive())

    @rule(data=st.data())
    def cancel_receive(self, data: st.DataObject) -> None:
        waiting = [hand for hand in self.hands if hand.waiting is not None]
        if waiting:
            hand = data.draw(st.sampled_from(waiting))
            assert hand.waiting is not None
            hand.waiting.cancel()
            self.run(asyncio.sleep(0))
            assert hand.waiting.cancelled()
            hand.waiting = None

    @rule(data=st.data(), way=st.sampled_from(["ack", "nack", "reject", "requeue", "mark"]), delay=DELAYS)
    def settle(self, data: st.DataObject, way: str, delay: float | None) -> None:
        holding = [(hand, pair) for hand in [*self.hands, *(hand for _, hand in self.dying)] for pair in hand.held]
        if not holding:
            return
        hand, (delivery, model) = data.draw(st.sampled_from(holding))
        if way == "mark":
            model.started = True
            self.run(delivery.mark_started())
            return
        envelope = self.envelope(model.id_, model.envelope.key.topic, delay, priority=model.envelope.key.priority)
        if way == "requeue" and model.died is not None and self.live(model.id_) is not None:
            with pytest.raises(DuplicateJobError):
                self.run(delivery.requeue(envelope))
            return
        hand.held.remove((delivery, model))
        call: Coroutine[Any, Any, None]
        if way == "reject":
            self.give_back(hand, model)
            call = delivery.reject()
        elif way == "nack":
            self.bury(model, DeathReason.NACKED)
            call = delivery.nack(Death(DeathReason.NACKED, self.clock.now()))
        else:
            self.messages.remove(model)
            call = delivery.ack()
            if way == "requeue":
                call.close()
                self.place(envelope)
                call = delivery.requeue(envelope)
        self.run(call)

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        hand = self.idle_hand(data)
        if hand is not None:
            self.hands.remove(hand)
            for _, model in hand.held:
                self.give_back(hand, model)
            self.run(hand.consumer.close())

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        hand = self.idle_hand(data)
        if hand is not None:
            self.hands.remove(hand)
            self.dying.append((self.clock.now() + LEASE, hand))
            self.broker.kill(hand.consumer)

    @rule(seconds=st.sampled_from([0, 1, 4, 10, 25]))
    def advance(self, seconds: int) -> None:
        end = self.clock.now() + timedelta(seconds=seconds)
        while (event := self.next_event()) <= end:
            self.run(self.clock.advance(event - self.clock.now()))
            self.reach(event)
            self.those_who_wait_get_what_there_is()
        self.run(self.clock.advance(end - self.clock.now()))

    @rule(id_=IDS)
    def cancel(self, id_: str) -> None:
        model = self.live(id_)
        there = model is not None and model.place != "held"
        if there:
            self.messages = [m for m in self.messages if m is not model]
        assert self.run(self.broker.cancel("q", id_)) is there

    @precondition(lambda self: len(self.messages) > 5)
    @rule()
    def flush(self) -> None:
        self.messages = [m for m in self.messages if m.place == "held"]
        self.run(self.broker.flush_queue("q"))

    @precondition(lambda self: len(self.messages) > 5)
    @rule()
    def reconnect(self) -> None:
        for hand in [hand for hand in self.hands if hand.waiting is not None]:
            self.cancel_receive_of(hand)
        for hand in self.hands:
            for _, model in hand.held:
                self.give_back(hand, model)
        for _, hand in self.dying:
            self.reap(hand)
        self.run(self.broker.disconnect())  # while there are consumers: one that nothing refers to is taken for dead
        self.run(self.broker.connect())
        self.hands, self.dying = [], []

    def cancel_receive_of(self, hand: Hand) -> None:
        assert hand.waiting is not None
        hand.waiting.cancel()
        self.run(asyncio.sleep(0))
        hand.waiting = None

    @rule()
    def lost_ones_cannot_be_settled(self) -> None:
        for delivery in self.lost:
            with pytest.raises(DeliveryLostError):
                self.run(delivery.ack())
        self.lost.clear()

    # -- what must hold ----------------------------------------------------------------------------------------------------

    def those_who_wait_get_what_there_is(self) -> None:
        """Whoever waits has either got something, or there is nothing for him."""
        for hand in self.hands:
            if hand.waiting is not None and hand.waiting.done():
                deliveries, hand.waiting = hand.waiting.result(), None
                assert 1 <= len(deliveries) <= hand.limit
                self.took(hand, deliveries)
        for hand in self.hands:
            if hand.waiting is not None and len(hand.held) < hand.prefetch:
                assert self.wanted(hand) == []

    @invariant()
    def everything_is_where_it_should_be(self) -> None:
        self.those_who_wait_get_what_there_is()
        places = [len(self.at(place)) for place in ("ready", "held", "delayed", "dead")]
        stats, *seen = self.loop.run_until_complete(self.look())
        assert stats == QueueStats(*places)
        assert seen == [[model.envelope for model in self.at(place)] for place in ("ready", "delayed", "dead")]
        live = [model.id_ for model in self.messages if model.died is None]
        assert sorted(live) == sorted(self.broker._queues["q"].live)
        assert len(live) == len(set(live))

    async def look(self) -> list[Any]:
        categories = [[seen.envelope async for seen in self.broker.browse("q", category)] for category in MessageCategory]
        return [await self.broker.queue_stats("q"), *categories]


TestAgainstTheModel = BrokerMachine.TestCase
TestAgainstTheModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
