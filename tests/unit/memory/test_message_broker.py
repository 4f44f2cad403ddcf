"""What the in-memory message broker promises beyond the conformance suite: wake-ups, its own ways to die, and no leaks."""

from __future__ import annotations

import asyncio
import gc
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from repid_core.data import Death, DeathReason, Enqueued, Envelope, MessageCategory, Parameters, Priority, RoutingKey
from repid_core.errors import (
    AlreadySettledError,
    DeliveryLostError,
    DuplicateJobError,
    NotConnectedError,
    PayloadTooLargeError,
    UsageError,
)
from repid_core.memory import InMemoryMessageBroker, InMemoryMessageBrokerSettings

NORMAL, DELAYED, DEAD = MessageCategory.NORMAL, MessageCategory.DELAYED, MessageCategory.DEAD
LEASE = timedelta(seconds=9)


def death(post: Any, reason: DeathReason = DeathReason.NACKED) -> Death:
    return Death(reason, post.clock.now(), 1, "because")


class TestWakeUps:
    async def test_each_message_wakes_one_who_waits_longest(self, post: Any) -> None:
        first, second = await post.consumer(), await post.consumer()
        waiting = [await post.receiving(consumer, 1) for consumer in (first, second)]
        await post.put("a")
        assert await post.got(waiting[0]) == ["a"]
        assert not waiting[1].done()
        await post.put("b")
        assert await post.got(waiting[1]) == ["b"]

    async def test_a_wake_up_whose_receiver_is_cancelled_goes_to_another(self, post: Any) -> None:
        waiting = [await post.receiving(await post.consumer()) for _ in range(3)]
        await post.put("a")
        waiting[0].cancel()  # woken, but it has not run since
        await asyncio.sleep(0)
        waiting[1].cancel()  # and so has the next one now
        assert await post.got(waiting[2]) == ["a"]

    async def test_a_wake_up_whose_consumer_is_closed_goes_to_another(self, post: Any) -> None:
        closed, other = await post.consumer(), await post.consumer()
        waiting, rescue = await post.receiving(closed), await post.receiving(other)
        await post.put("a")
        await closed.close()
        assert await post.got(rescue) == ["a"]
        with pytest.raises(NotConnectedError):
            await waiting

    async def test_a_wake_up_goes_on_if_the_consumer_is_full_by_then(self, post: Any) -> None:
        narrow, other = await post.consumer(prefetch=1), await post.consumer()
        waiting, rescue = await post.receiving(narrow, 1), await post.receiving(other, 1)
        await post.put("a")
        await post.put("b", priority=Priority.HIGH)
        assert len(await narrow.receive(1)) == 1  # before the two that were woken have run
        assert len(await post.got(rescue)) == 1
        assert await post.stats() == (0, 2, 0, 0)
        waiting.cancel()

    async def test_a_wake_up_used_for_another_message_wakes_the_next(self, post: Any) -> None:
        """The one that was woken for `a` takes the more urgent `b`; who waits for `a` alone must get it."""
        both, only_a = await post.consumer({"a", "b"}), await post.consumer({"a"})
        waiting, rescue = await post.receiving(both, 1), await post.receiving(only_a)
        await post.put("a", topic="a")
        await post.put("b", topic="b", priority=Priority.HIGH)
        assert await post.got(waiting) == ["b"]
        assert await post.got(rescue) == ["a"]

    async def test_nobody_is_woken_for_a_topic_that_he_does_not_want(self, post: Any) -> None:
        waiting = await post.receiving(await post.consumer({"mine"}))
        await post.put("a", topic="other")
        await post.clock.settle()
        assert not waiting.done()
        assert await post.stats() == (1, 0, 0, 0)
        waiting.cancel()

    async def test_a_full_consumer_goes_on_when_one_is_settled(self, post: Any) -> None:
        await post.put("a", "b", "c")
        consumer = await post.consumer(prefetch=2)
        held = await consumer.receive(100)
        assert post.ids(held) == ["a", "b"]
        waiting = await post.receiving(consumer)
        await held[0].ack()
        assert await post.got(waiting) == ["c"]

    async def test_a_full_consumer_does_not_hold_back_what_another_has_room_for(self, post: Any) -> None:
        full, other = await post.consumer(prefetch=1), await post.consumer()
        await post.put("a")
        await full.receive(1)
        waiting, rescue = await post.receiving(full), await post.receiving(other)
        await post.put("b")
        assert await post.got(rescue) == ["b"]
        waiting.cancel()

    async def test_full_consumers_sleep(self, post: Any) -> None:
        """They do not wake each other over a message that neither has room for."""
        waiting = []
        for number in range(2):
            consumer = await post.consumer(prefetch=1)
            await post.put(f"held{number}")
            await consumer.receive(1)
            waiting.append(await post.receiving(consumer))
        asleep = list(post.broker._queues["q"].ready.waiters)
        await post.put("a")
        await post.clock.settle()
        assert list(post.broker._queues["q"].ready.waiters) == asleep
        for task in waiting:
            task.cancel()

    @pytest.mark.parametrize("how", ["due", "reject", "requeue", "close", "reap", "replace", "redrive"])
    async def test_whatever_makes_a_message_ready_wakes(self, post: Any, how: str) -> None:
        holder = await post.consumer()
        await post.put("a", delay=5 if how in ("due", "replace") else None)
        held = [] if how in ("due", "replace") else await holder.receive(1)
        if how == "redrive":
            await held[0].nack(death(post))
            held = await (await post.consumer(category=DEAD)).receive(1)
        waiting = await post.receiving(await post.consumer())
        if how == "due":
            await post.clock.advance(timedelta(seconds=5))
        elif how == "reject":
            await held[0].reject()
        elif how in ("requeue", "redrive"):
            await held[0].requeue(post.envelope("a"))
        elif how == "close":
            await holder.close()
        elif how == "reap":
            post.broker.kill(holder)
            await post.clock.advance(LEASE)
        else:
            assert await post.broker.enqueue(post.envelope("a", on_duplicate="replace")) is Enqueued.REPLACED
        assert await post.got(waiting) == ["a"]

    @pytest.mark.parametrize("category", [DELAYED, DEAD])
    async def test_those_who_look_at_delayed_and_dead_ones_are_woken_too(self, post: Any, category: MessageCategory) -> None:
        waiting = await post.receiving(await post.consumer(category=category))
        if category is DELAYED:
            await post.put("a", delay=5)
        else:
            await post.put("a")
            await (await (await post.consumer()).receive(1))[0].nack(death(post))
        assert await post.got(waiting) == ["a"]


class TestOrder:
    async def test_what_is_given_back_keeps_its_place(self, post: Any) -> None:
        """In whatever order it comes back, and whatever came meanwhile."""
        await post.put("a", "b", "c", "d", "e")
        consumer = await post.consumer()
        held = await consumer.receive(4)
        await post.put("f")
        for number in (2, 0, 3, 1):
            await held[number].reject()
        assert post.ids(await consumer.receive(100)) == ["a", "b", "c", "d", "e", "f"]

    async def test_a_replaced_message_keeps_its_place_in_its_lane_alone(self, post: Any) -> None:
        await post.put("a", "b", "c")
        replace = {"on_duplicate": "replace"}
        await post.put("a", payload=b"new", **replace)
        await post.put("b", priority=Priority.LOW, **replace)
        deliveries = await (await post.consumer()).receive(100)
        assert post.ids(deliveries) == ["a", "c", "b"]
        assert deliveries[0].envelope.payload == b"new"

    async def test_a_replaced_message_waits_for_its_new_time(self, post: Any) -> None:
        await post.put("a", "b")
        await post.put("a", delay=10, on_duplicate="replace")
        await post.put("a", delay=5, on_duplicate="replace")
        consumer = await post.consumer()
        assert post.ids(await consumer.receive(100)) == ["b"]
        await post.clock.advance(timedelta(seconds=4.999999))
        assert await post.stats() == (0, 1, 1, 0)
        await post.clock.advance(timedelta(microseconds=1))
        assert await post.stats() == (1, 1, 0, 0)

    async def test_many_that_fall_due_at_once_come_in_order(self, post: Any) -> None:
        names = [f"m{number}" for number in range(2_500)]
        for name in reversed(names):
            await post.put(name, topic="ab"[int(name[1:]) % 2], delay=60 + int(name[1:]) / 1e6)
        await post.clock.advance(timedelta(seconds=61))
        assert await post.stats() == (2_500, 0, 0, 0)
        assert post.ids(await (await post.consumer(prefetch=10_000)).receive(10_000)) == names


class TestLeases:
    async def test_a_forgotten_consumer_loses_what_it_held_when_its_lease_ends(self, post: Any) -> None:
        await post.put("a", "b")
        consumer = await post.consumer()
        [held] = await consumer.receive(1)
        told: list[str] = []
        held.on_lost(lambda: told.append("a"))
        del consumer
        gc.collect()
        await post.clock.advance(LEASE - timedelta(seconds=1))
        assert await post.stats() == (1, 1, 0, 0)
        await post.clock.advance(timedelta(seconds=1))
        assert await post.stats() == (2, 0, 0, 0)
        assert told == ["a"]
        with pytest.raises(DeliveryLostError):
            await held.ack()
        with pytest.raises(AlreadySettledError):
            await held.ack()
        again = await (await post.consumer()).receive(2)
        assert [(d.envelope.key.id_, d.redelivered) for d in again] == [("a", True), ("b", False)]

    async def test_a_consumer_may_be_collected_in_another_thread(self, post: Any) -> None:
        asyncio.get_running_loop().set_debug(True)  # it looks who calls then
        await post.put("a")
        consumers = [await post.consumer()]
        await consumers[0].receive(1)
        thread = threading.Thread(target=consumers.clear)
        thread.start()
        thread.join()
        await post.clock.advance(LEASE)
        assert await post.stats() == (1, 0, 0, 0)

    async def test_what_a_dying_consumer_settles_in_time_counts(self, post: Any) -> None:
        await post.put("a", "b")
        consumer = await post.consumer()
        one, two = await consumer.receive(2)
        post.broker.kill(consumer)
        await one.ack()
        await post.clock.advance(LEASE)
        assert await post.stats() == (1, 0, 0, 0)
        with pytest.raises(DeliveryLostError):
            await two.requeue(post.envelope("b"))

    async def test_a_live_consumer_keeps_all_for_ever_and_nothing_runs_meanwhile(self, post: Any) -> None:
        await post.put("a")
        consumer = await post.consumer()
        [held] = await consumer.receive(1)
        assert post.clock._timers == []
        await post.clock.advance(timedelta(days=400))
        await held.ack()
        assert await post.stats() == (0, 0, 0, 0)

    async def test_only_what_ran_is_blamed_for_repeated_deaths(self, post: Any) -> None:
        """Three deaths: the first blames both, as nobody can tell; the others the marked one alone."""
        await post.put("killer", "bystander")
        for _ in range(3):
            consumer = await post.consumer()
            for delivery in await consumer.receive(2):
                if delivery.redelivered and delivery.envelope.key.id_ == "killer":
                    await delivery.mark_started()
            post.broker.kill(consumer)
            await post.clock.advance(LEASE)
        assert await post.stats() == (1, 0, 0, 1)
        [dead] = await (await post.consumer(category=DEAD)).receive(1)
        assert (dead.envelope.key.id_, dead.death.reason, dead.death.attempts) == ("killer", DeathReason.POISON, 3)
        assert not dead.redelivered

    async def test_a_mark_ends_with_the_delivery(self, post: Any) -> None:
        """One that was started, and then given back, is not blamed for the death of a worker that only read it ahead."""
        await post.put("a")
        for started in (False, True, False, False):
            consumer = await post.consumer()
            [held] = await consumer.receive(1)
            if started:
                await held.mark_started()
                await held.reject()
                await consumer.receive(1)
            post.broker.kill(consumer)
            await post.clock.advance(LEASE)
        assert await post.stats() == (1, 0, 0, 0)

    async def test_requeue_and_redrive_forget_deaths_and_reject_does_not(self, post: Any) -> None:
        await post.put("a")
        consumer = await post.consumer()
        await consumer.receive(1)
        post.broker.kill(consumer)
        await post.clock.advance(LEASE)
        consumer = await post.consumer()
        [held] = await consumer.receive(1)
        await held.reject()
        [held] = await consumer.receive(1)
        assert held.redelivered
        await held.requeue(post.envelope("a"))
        [held] = await consumer.receive(1)
        assert not held.redelivered

    async def test_a_message_that_replaces_another_has_killed_nobody(self, post: Any) -> None:
        await post.put("a")
        consumer = await post.consumer()
        await consumer.receive(1)
        post.broker.kill(consumer)
        await post.clock.advance(LEASE)
        await post.put("a", on_duplicate="replace")
        [held] = await (await post.consumer()).receive(1)
        assert not held.redelivered

    @pytest.mark.parametrize("category", [DELAYED, DEAD])
    async def test_those_who_only_look_kill_nothing(self, post: Any, category: MessageCategory) -> None:
        await post.put("a", delay=1e6 if category is DELAYED else None)
        if category is DEAD:
            await (await (await post.consumer()).receive(1))[0].nack(death(post))
        before = await post.stats()
        for _ in range(5):
            consumer = await post.consumer(category=category)
            [held] = await consumer.receive(1)
            assert not held.redelivered
            post.broker.kill(consumer)
            await post.clock.advance(LEASE)
            assert await post.stats() == before

    async def test_the_dead_keep_reason_and_place_through_a_lost_lease(self, post: Any) -> None:
        await post.put("a", "b")
        for delivery in await (await post.consumer()).receive(2):
            await delivery.nack(death(post, DeathReason.FAILED))
        consumer = await post.consumer(category=DEAD)
        await consumer.receive(1)
        post.broker.kill(consumer)
        await post.clock.advance(LEASE)
        again = await (await post.consumer(category=DEAD)).receive(2)
        assert [(d.envelope.key.id_, d.death.reason) for d in again] == [("a", DeathReason.FAILED), ("b", DeathReason.FAILED)]

    async def test_a_failing_callback_disturbs_nobody(self, post: Any) -> None:
        await post.put("a", "b")
        consumer = await post.consumer()
        one, two = await consumer.receive(2)
        told: list[int] = []
        seen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))
        one.on_lost(lambda: told.append(1 // 0))
        two.on_lost(lambda: told.append(2))
        post.broker.kill(consumer)
        await post.clock.advance(LEASE)
        assert told == [2]
        assert isinstance(seen[0]["exception"], ZeroDivisionError)
        assert await post.stats() == (2, 0, 0, 0)

    async def test_only_its_own_consumers_can_be_killed(self, post: Any) -> None:
        with pytest.raises(UsageError, match="no consumer of InMemoryMessageBroker"):
            post.broker.kill(object())


class TestSettling:
    async def test_a_redrive_onto_a_live_id_leaves_the_dead_one_in_hand(self, post: Any) -> None:
        await post.put("a")
        await (await (await post.consumer()).receive(1))[0].nack(death(post))
        await post.put("a", delay=5)
        [dead] = await (await post.consumer(category=DEAD)).receive(1)
        with pytest.raises(DuplicateJobError) as caught:
            await dead.requeue(post.envelope("a"))
        assert caught.value.state == "delayed"
        await dead.reject()
        assert await post.stats() == (0, 0, 1, 1)

    async def test_a_refused_requeue_leaves_the_message_in_hand(self, post: Any) -> None:
        await post.put("a")
        [held] = await (await post.consumer()).receive(1)
        with pytest.raises(PayloadTooLargeError):
            await held.requeue(post.envelope("a", payload=bytes(1001)))
        with pytest.raises(ValueError, match="'a' of queue 'q' cannot be requeued as 'b' of 'q'"):
            await held.requeue(post.envelope("b"))
        await held.ack()
        assert await post.stats() == (0, 0, 0, 0)

    async def test_a_delayed_message_in_hand_stays_unique_and_falls_due_there(self, post: Any) -> None:
        await post.put("a", delay=5)
        [held] = await (await post.consumer(category=DELAYED)).receive(1)
        await post.clock.advance(timedelta(seconds=6))
        with pytest.raises(DuplicateJobError):
            await post.put("a")
        assert await post.stats() == (0, 1, 0, 0)
        await held.reject()
        assert await post.stats() == (1, 0, 0, 0)

    async def test_a_delayed_message_that_is_given_back_still_falls_due(self, post: Any) -> None:
        """Also if the timer went off for another one meanwhile."""
        await post.put("sooner", delay=5)
        await post.put("later", topic="mine", delay=10)
        [held] = await (await post.consumer({"mine"}, category=DELAYED)).receive(1)
        await post.clock.advance(timedelta(seconds=7))
        await held.reject()
        await post.clock.advance(timedelta(seconds=3))
        assert await post.stats() == (2, 0, 0, 0)

    async def test_settling_after_the_queue_was_deleted_brings_nothing_back(self, post: Any) -> None:
        await post.put("a", "b", "c", "d")
        a, b, c, d = await (consumer := await post.consumer()).receive(4)
        await post.broker.delete_queue("q")
        await a.ack()
        await b.reject()
        await c.nack(death(post))
        await d.requeue(post.envelope("d"))
        assert await post.stats() == (0, 0, 0, 0)
        waiting = await post.receiving(consumer)
        await post.put("e")
        assert await post.got(waiting) == ["e"]

    @pytest.mark.parametrize("way", ["ack", "nack", "reject", "requeue"])
    async def test_running_deliveries_stay_settleable_after_a_flush(self, post: Any, way: str) -> None:
        await post.put("a", "b")
        [held] = await (await post.consumer()).receive(1)
        await post.broker.flush_queue("q")
        assert await post.stats() == (0, 1, 0, 0)
        settle = {"ack": (), "nack": (death(post),), "reject": (), "requeue": (post.envelope("a", delay=9),)}
        await getattr(held, way)(*settle[way])
        assert (
            await post.stats()
            == {
                "ack": (0, 0, 0, 0),
                "nack": (0, 0, 0, 1),
                "reject": (1, 0, 0, 0),
                "requeue": (0, 0, 1, 0),
            }[way]
        )


class TestBrowse:
    async def page(self, post: Any, category: MessageCategory, after: str | None = None, limit: int = 2) -> list[Any]:
        return [seen async for seen in post.broker.browse("q", category, after=after, limit=limit)]

    async def test_ready_ones_come_in_the_order_of_delivery(self, post: Any) -> None:
        await post.put("low", priority=Priority.LOW)
        await post.put("b1", topic="b")
        await post.put("a1", topic="a")
        await post.put("high", priority=Priority.HIGH, topic="z")
        await post.put("b2", topic="b")
        seen = await self.page(post, NORMAL, limit=100)
        assert [browsed.envelope.key.id_ for browsed in seen] == ["high", "b1", "a1", "b2", "low"]
        assert post.ids(await (await post.consumer()).receive(100)) == ["high", "b1", "a1", "b2", "low"]

    @pytest.mark.parametrize("category", list(MessageCategory))
    async def test_pages_skip_and_repeat_nothing_that_stays(self, post: Any, category: MessageCategory) -> None:
        names = [f"m{number}" for number in range(12)]
        for name in names:
            await post.put(name, topic=name, delay=int(name[1:]) + 60 if category is DELAYED else None)
        if category is DEAD:
            for delivery in await (await post.consumer()).receive(100):
                await delivery.nack(death(post))
        others = await post.consumer({"m1", "m4", "m5"}, category=category)
        seen: list[str] = []
        after, page = None, 0
        while browsed := await self.page(post, category, after):
            seen += [one.envelope.key.id_ for one in browsed]
            after, page = browsed[-1].cursor, page + 1
            if page == 1:  # some go, before and behind the cursor, and one comes back
                held = await others.receive(3)
                await held[0].reject()
                assert len(held) == 3
        assert seen == [name for name in names if name not in ("m4", "m5")]

    async def test_browsing_disturbs_nothing(self, post: Any) -> None:
        await post.put("a")
        async for seen in post.broker.browse("q", NORMAL):
            assert seen.death is None
            assert await post.stats() == (1, 0, 0, 0)
        [held] = await (await post.consumer()).receive(1)
        assert not held.redelivered

    async def test_a_foreign_cursor_is_named(self, post: Any) -> None:
        with pytest.raises(ValueError, match="after='nonsense' is no cursor"):
            post.broker.browse("q", NORMAL, after="nonsense")


class TestLifetime:
    async def test_messages_outlive_a_reconnect_and_delays_go_on(self, post: Any) -> None:
        await post.put("ready", "held")
        await post.put("later", delay=5)
        consumer = await post.consumer()
        held = await consumer.receive(1)
        await post.broker.disconnect()
        assert [timer for *_, timer in post.clock._timers if timer.callback] == []
        await post.broker.disconnect()
        with pytest.raises(AlreadySettledError):
            await held[0].ack()
        await post.clock.advance(timedelta(seconds=60))
        await post.broker.connect()
        await post.clock.settle()
        assert post.ids(await (await post.consumer()).receive(100)) == ["ready", "held", "later"]

    async def test_disconnecting_reaps_the_dead_at_once(self, post: Any) -> None:
        await post.put("a")
        consumer = await post.consumer()
        await consumer.receive(1)
        post.broker.kill(consumer)
        await post.broker.disconnect()
        await post.broker.connect()
        [again] = await (await post.consumer()).receive(1)
        assert again.redelivered

    async def test_a_waiting_receive_ends_with_its_consumer(self, post: Any) -> None:
        waiting = await post.receiving(await post.consumer())
        await post.broker.disconnect()
        with pytest.raises(NotConnectedError, match="start"):
            await waiting

    async def test_a_closed_consumer_can_be_started_again(self, post: Any) -> None:
        await post.put("a")
        consumer = await post.consumer()
        await consumer.close()
        with pytest.raises(NotConnectedError):
            await consumer.receive(1)
        await consumer.start()
        await consumer.start()
        assert post.ids(await consumer.receive(1)) == ["a"]

    async def test_nothing_works_before_connect(self) -> None:
        broker = InMemoryMessageBroker()
        consumer = broker.consumer("q", None, prefetch=1)
        await broker.disconnect()
        for call in (broker.queue_stats("q"), broker.declare_queue("q"), broker.cancel("q", "a"), consumer.start()):
            with pytest.raises(NotConnectedError):
                await call
        with pytest.raises(NotConnectedError):
            broker.browse("q", NORMAL)
        await consumer.close()

    def test_a_loop_that_ended_without_a_goodbye_does_not_stop_the_delays(self) -> None:
        broker, now = InMemoryMessageBroker(), datetime.now(UTC)
        soon = Envelope(RoutingKey("a", "work", "q"), Parameters(now), due=now + timedelta(milliseconds=50))

        async def leave() -> None:
            await broker.connect()
            await broker.enqueue(soon)

        async def come_back() -> list[str]:
            await broker.connect()
            consumer = broker.consumer("q", None, prefetch=1)
            await consumer.start()
            return [delivery.envelope.key.id_ for delivery in await asyncio.wait_for(consumer.receive(1), 5)]

        asyncio.run(leave())
        assert asyncio.run(come_back()) == ["a"]

    async def test_queues_and_lanes_are_forgotten_once_nobody_needs_them(self, post: Any) -> None:
        broker = post.broker
        consumer = await post.consumer()
        for number in range(50):
            await post.put(f"m{number}", topic=f"t{number}", delay=number % 2 or None)
        await post.clock.advance(timedelta(seconds=1))
        for delivery in await consumer.receive(100):
            await delivery.ack()
        queue = broker._queues["q"]
        assert not queue.live
        assert [rack for shelf in (queue.ready, queue.delayed, queue.dead) for rack in shelf.racks if rack] == []
        await broker.delete_queue("q")
        await consumer.close()
        assert broker._queues == {}

    async def test_a_deleted_queue_leaves_no_timer_behind(self, post: Any) -> None:
        await post.put("a", delay=5)
        await post.broker.delete_queue("q")
        assert [timer for *_, timer in post.clock._timers if timer.callback] == []

    async def test_waiting_leaves_nothing_behind(self, post: Any) -> None:
        consumer = await post.consumer()
        for _ in range(10):
            (await post.receiving(consumer)).cancel()
        await asyncio.sleep(0)
        assert post.broker._queues["q"].ready.waiters == {}

    async def test_enqueue_many_has_one_outcome_each(self, post: Any) -> None:
        envelopes = [post.envelope("a"), post.envelope("a"), post.envelope("big", payload=bytes(1001)), post.envelope("b")]
        outcomes = await post.broker.enqueue_many(envelopes)
        assert [type(outcome) for outcome in outcomes] == [Enqueued, DuplicateJobError, PayloadTooLargeError, Enqueued]
        assert post.ids(await (await post.consumer()).receive(100)) == ["a", "b"]


class TestSettings:
    def test_settings_and_arguments_are_the_same(self) -> None:
        settings = InMemoryMessageBrokerSettings(lease=timedelta(seconds=3), max_deliveries=2, max_payload=10)
        configured = InMemoryMessageBroker.from_settings(settings)
        by_hand = InMemoryMessageBroker(lease=timedelta(seconds=3), max_deliveries=2, max_payload=10)
        assert configured.limits == by_hand.limits
        assert InMemoryMessageBroker().limits == InMemoryMessageBroker.from_settings(InMemoryMessageBrokerSettings()).limits

    @pytest.mark.parametrize(
        "setting", [{"lease": timedelta(0)}, {"max_deliveries": 1}, {"max_payload": -1}], ids=lambda setting: next(iter(setting))
    )
    def test_what_makes_no_sense_is_refused_by_name(self, setting: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(setting))):
            InMemoryMessageBroker(**setting)

    async def test_a_consumer_that_could_hold_nothing_is_refused(self, post: Any) -> None:
        with pytest.raises(ValueError, match="prefetch=0"):
            post.broker.consumer("q", None, prefetch=0)
        with pytest.raises(ValueError, match=r"receive\(0\)"):
            await (await post.consumer()).receive(0)
