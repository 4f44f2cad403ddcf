"""All ways of a message against a model in plain Python: each live id is in exactly one place, whatever happens in what order."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
import redis
from attrs import define, evolve, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

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
    RoutingKey,
)
from repid_core.errors import DuplicateJobError
from repid_redis import RedisMessageBroker
from repid_redis.consumer import RedisConsumer
from repid_redis.scripts import BEAT

T = TypeVar("T")

NORMAL, DELAYED, DEAD = MessageCategory.NORMAL, MessageCategory.DELAYED, MessageCategory.DEAD
IDS = st.sampled_from([f"m{number}" for number in range(8)])
TOPICS = ("a", "b")
LATER = timedelta(hours=1)
DEATHS = 3


@define(eq=False)
class Model:
    """One message."""

    envelope: Envelope
    place: str  # ready, delayed, held, dead
    deaths: int = 0
    dead: bool = False  # it comes from the dead


@define(eq=False)
class Hand:
    """A consumer, and what it holds."""

    consumer: Consumer
    category: MessageCategory
    prefetch: int
    held: list[tuple[Delivery, Model]] = field(factory=list)


class Machine(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.redis = redis.Redis.from_url(self.url)
        self.prefix = f"model-{uuid.uuid4().hex[:8]}"
        self.messages: list[Model] = []
        self.hands: list[Hand] = []
        self.number = 0
        self.broker = self.run(self.connected())

    async def connected(self) -> RedisMessageBroker:
        broker = RedisMessageBroker(
            self.url, prefix=self.prefix, lease=timedelta(hours=1), heartbeat_thread=False, max_deliveries=DEATHS
        )
        await broker.connect()
        return broker

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(call, 10))

    def teardown(self) -> None:
        self.run(self.broker.delete_queue("q"))
        self.run(self.broker.disconnect())
        left = list(self.redis.scan_iter(f"{self.prefix}:*"))
        self.redis.close()
        self.loop.close()
        assert not left, left

    def live(self, id_: str) -> Model | None:
        found = [m for m in self.messages if m.envelope.key.id_ == id_ and m.place != "dead" and not m.dead]
        assert len(found) <= 1
        return found[0] if found else None

    def envelope(self, id_: str, topic: str, priority: Priority, mode: OnDuplicate, *, delayed: bool) -> Envelope:
        self.number += 1
        now = datetime.now(UTC).replace(microsecond=0)
        due = now + LATER + timedelta(seconds=self.number) if delayed else None
        parameters = Parameters(now)
        payload = b"%d" % self.number
        return Envelope(RoutingKey(id_, topic, "q", priority), parameters, payload, due=due, on_duplicate=mode)

    # -- what may happen -------------------------------------------------------------------------------------------------

    @rule(
        id_=IDS,
        topic=st.sampled_from(TOPICS),
        priority=st.sampled_from(Priority),
        mode=st.sampled_from(["raise", "keep", "replace"]),
        delayed=st.booleans(),
        many=st.booleans(),
    )
    def enqueue(self, id_: str, topic: str, priority: Priority, mode: OnDuplicate, delayed: bool, many: bool) -> None:
        envelope = self.envelope(id_, topic, priority, mode, delayed=delayed)
        old = self.live(id_)
        outcome: Any
        if many:
            [outcome] = self.run(self.broker.enqueue_many([envelope]))
        else:
            try:
                outcome = self.run(self.broker.enqueue(envelope))
            except DuplicateJobError as error:
                outcome = error
        if old is None:
            assert outcome is Enqueued.NEW
        elif mode == "keep":
            assert outcome is Enqueued.KEPT
            return
        elif mode == "raise" or old.place == "held":
            assert isinstance(outcome, DuplicateJobError)
            assert outcome.state == {"held": "running"}.get(old.place, old.place)
            return
        else:
            assert outcome is Enqueued.REPLACED
            self.messages.remove(old)
        self.messages.append(Model(envelope, "delayed" if delayed else "ready"))

    @precondition(lambda self: len(self.hands) < 4)
    @rule(category=st.sampled_from([NORMAL, NORMAL, DELAYED, DEAD]), prefetch=st.integers(1, 4), some=st.booleans())
    def consumer(self, category: MessageCategory, prefetch: int, some: bool) -> None:
        consumer = self.broker.consumer("q", TOPICS if some else None, prefetch=prefetch, category=category)
        self.run(consumer.start())
        self.hands.append(Hand(consumer, category, prefetch))

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), limit=st.integers(1, 5))
    def fetch(self, data: st.DataObject, limit: int) -> None:
        hand = data.draw(st.sampled_from(self.hands))
        place = {NORMAL: "ready", DELAYED: "delayed", DEAD: "dead"}[hand.category]
        there = [m for m in self.messages if m.place == place]
        room = min(limit, hand.prefetch - len(hand.held))
        if not there or room < 1:
            return
        deliveries = self.run(hand.consumer.receive(limit))
        assert len(deliveries) == min(room, len(there)) or hand.category is not NORMAL
        assert 1 <= len(deliveries) <= room
        if hand.category is NORMAL:
            best = sorted((m.envelope.key.priority for m in there), reverse=True)
            assert [delivery.envelope.key.priority for delivery in deliveries] == best[: len(deliveries)]
        for delivery in deliveries:
            [model] = [m for m in there if m.envelope.payload == delivery.envelope.payload]
            assert delivery.envelope == evolve(model.envelope, on_duplicate="raise")
            assert delivery.redelivered == (hand.category is NORMAL and model.deaths > 0)
            model.dead = model.place == "dead"
            model.place = "held"
            hand.held.append((delivery, model))

    @precondition(lambda self: any(hand.held for hand in self.hands))
    @rule(
        data=st.data(),
        how=st.sampled_from(["ack", "nack", "reject", "requeue", "requeue later"]),
        topic=st.sampled_from(TOPICS),
        priority=st.sampled_from(Priority),
    )
    def settle(self, data: st.DataObject, how: str, topic: str, priority: Priority) -> None:
        hand = data.draw(st.sampled_from([hand for hand in self.hands if hand.held]))
        delivery, model = data.draw(st.sampled_from(hand.held))
        id_ = model.envelope.key.id_
        if how == "ack":
            self.run(delivery.ack())
            self.messages.remove(model)
        elif how == "nack":
            self.run(delivery.nack(Death(DeathReason.NACKED, datetime.now(UTC))))
            model.place, model.dead, model.deaths = "dead", False, 0
        elif how == "reject":
            self.run(delivery.reject())
            model.place = "dead" if model.dead else "delayed" if hand.category is DELAYED else "ready"
            model.dead = False
        else:
            envelope = self.envelope(id_, topic, priority, "raise", delayed="later" in how)
            if model.dead and self.live(id_) is not None:
                with pytest.raises(DuplicateJobError):
                    self.run(delivery.requeue(envelope))
                return
            self.run(delivery.requeue(envelope))
            self.messages.remove(model)
            self.messages.append(Model(envelope, "delayed" if "later" in how else "ready"))
        hand.held.remove((delivery, model))

    @rule(id_=IDS)
    def cancel(self, id_: str) -> None:
        old = self.live(id_)
        expected = old is not None and old.place in {"ready", "delayed"}
        assert self.run(self.broker.cancel("q", id_)) is expected
        if expected and old is not None:
            self.messages.remove(old)

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        hand = data.draw(st.sampled_from(self.hands))
        self.run(hand.consumer.close())
        self.hands.remove(hand)
        for _, model in hand.held:
            model.place = "dead" if model.dead else "delayed" if hand.category is DELAYED else "ready"
            model.dead = False

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A consumer's lease runs out, and another's heartbeat finds it."""
        hand = data.draw(st.sampled_from(self.hands))
        consumer = hand.consumer
        assert isinstance(consumer, RedisConsumer)
        assert consumer.session is not None
        base = self.broker.base("q")
        self.redis.zadd(f"{base}s", {consumer.session.name: 1})
        self.redis.hset(f"{base}g", mapping={"last": int(1000 * datetime.now(UTC).timestamp()), "grace": 0})
        self.run(self.broker.client.run(BEAT, base, "nobody", 3_600_000, DEATHS, 0, 0))
        consumer.abandon()
        self.broker.consumers.discard(consumer)
        self.broker.heartbeat.remove(consumer.session)
        self.run(asyncio.sleep(0))
        self.hands.remove(hand)
        for _, model in hand.held:
            if hand.category is NORMAL:
                model.deaths += not model.deaths  # only what was marked as started counts again
            model.place = "dead" if model.dead else "delayed" if hand.category is DELAYED else "ready"
            model.dead = False

    @rule()
    def flush(self) -> None:
        self.run(self.broker.flush_queue("q"))
        self.messages = [m for m in self.messages if m.place == "held"]

    # -- what must hold ----------------------------------------------------------------------------------------------------

    @invariant()
    def everything_is_where_it_should_be(self) -> None:
        counts = {place: sum(m.place == place for m in self.messages) for place in ("ready", "held", "delayed", "dead")}
        stats = self.run(self.broker.queue_stats("q"))
        assert (stats.ready, stats.in_progress, stats.delayed, stats.dead) == tuple(counts.values())
        for category, place in ((NORMAL, "ready"), (DELAYED, "delayed"), (DEAD, "dead")):
            seen = self.run(self.browse(category))
            assert sorted(seen) == sorted(m.envelope.payload for m in self.messages if m.place == place)

    async def browse(self, category: MessageCategory) -> list[bytes]:
        return [browsed.envelope.payload async for browsed in self.broker.browse("q", category)]

    @invariant()
    def each_live_id_is_in_one_place(self) -> None:
        base = self.broker.base("q")
        client: Any = self.redis
        places = [id_ for key in client.scan_iter(f"{base}r:*") for id_ in client.lrange(key, 0, -1)]
        places += [member.partition(b"\n")[2] for member in client.zrange(f"{base}d", 0, -1)]
        places += [id_ for key in client.scan_iter(f"{base}h:[nd]*") for id_ in client.hkeys(key)]
        assert sorted(places) == sorted(client.hkeys(f"{base}b"))


@pytest.mark.timeout(180)
def test_every_way_of_a_message(redis_url: str) -> None:
    Machine.url = redis_url
    options = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Machine, settings=options)
