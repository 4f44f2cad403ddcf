"""A queue, as producers and operators see it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest

from repid_core import (
    Capability,
    Connection,
    InMemoryMessageBroker,
    InvalidJobError,
    Job,
    Message,
    MessageCategory,
    Queue,
    QueueStats,
    UnsupportedFeatureError,
)
from repid_core.data import DeathReason
from repid_core.errors import AlreadySettledError, CorruptMessageError
from repid_core.memory.consumer import InMemoryDelivery

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


async def take(count: int, *args: Any, **options: Any) -> list[Message]:
    """Get messages and acknowledge them."""
    taken: list[Message] = []
    async with asyncio.timeout(5), aclosing(Queue().get_messages(*args, **options)) as messages:
        async for message in messages:
            await message.ack()
            taken.append(message)
            if len(taken) == count:
                break
    return taken


@pytest.fixture
async def full(connection, router, work):
    """Two ready ones, a delayed one and a dead one, of two actors."""

    @router.actor
    async def fail() -> None:
        raise LookupError("broken")

    await Job("fail", id_="dead").enqueue()
    await work(router)
    await Job("first", id_="ready-1", args={"a": 1}, use_args_bucketer=False, headers={"h": "v"}).enqueue()
    await Job("second", id_="ready-2").enqueue()
    await Job("first", id_="delayed", deferred_until=connection.clock.now() + DAY).enqueue()
    return connection


class TestMaking:
    @pytest.mark.parametrize("name", ["", "1st", "a b", "a" * 129, None, 3])
    def test_wrong_names_are_refused_when_it_is_made(self, name):
        with pytest.raises(InvalidJobError, match=f"queue name {name!r} is not valid: start with an ASCII letter or '_'"):
            Queue(name)

    def test_a_connection_of_something_else(self):
        with pytest.raises(InvalidJobError, match="connection='redis://': give a Connection"):
            Queue(connection="redis://")  # type: ignore[arg-type]

    def test_its_name(self):
        assert Queue().name == "default"
        assert repr(Queue("mail.urgent-1")) == "Queue('mail.urgent-1')"


class TestOperations:
    async def test_stats_count_what_is_where(self, full):
        """M12"""
        assert await Queue().stats() == QueueStats(2, 0, 1, 1)
        async with aclosing(Queue().get_messages()) as messages:
            await anext(messages)
            assert await Queue().stats() == QueueStats(1, 1, 1, 1)

    async def test_stats_of_a_queue_that_is_not_there(self, connection):
        assert await Queue("nothing").stats() == QueueStats(0, 0, 0, 0)

    async def test_declare_is_idempotent_and_harmless(self, full):
        """M16"""
        await Queue().declare()
        await Queue().declare(["first"])
        assert (await Queue().stats()).ready == 2

    async def test_flush_empties_all_but_what_runs(self, full):
        """M16"""
        async with aclosing(Queue().get_messages()) as messages:
            running = await anext(messages)
            await Queue().flush()
            assert await Queue().stats() == QueueStats(0, 1, 0, 0)
            await running.ack()
        assert await Queue().stats() == QueueStats(0, 0, 0, 0)

    async def test_delete_leaves_nothing(self, full):
        """M16"""
        await Queue().delete()
        assert await Queue().stats() == QueueStats(0, 0, 0, 0)
        await Job("first", id_="ready-1").enqueue()
        assert (await Queue().stats()).ready == 1


class TestGetMessages:
    async def test_ready_ones_in_order_with_what_they_carry(self, full):
        first, second = await take(2)
        assert (first.key.id_, first.key.topic, first.key.queue) == ("ready-1", "first", "default")
        assert (first.raw_payload, first.headers) == (b'{"a":1}', {"h": "v"})
        assert first.parameters.timestamp == full.clock.now()
        assert (first.category, first.death) == (MessageCategory.NORMAL, None)
        assert second.key.id_ == "ready-2"

    @pytest.mark.parametrize("topics", [["second"], ("second", "unheard-of"), {"second"}])
    async def test_of_some_topics(self, full, topics):
        """M10"""
        [message] = await take(1, topics)
        assert message.key.id_ == "ready-2"
        assert (await Queue().stats()).ready == 1

    async def test_dead_ones_with_how_they_died(self, full):
        """M12"""
        [message] = await take(1, category=MessageCategory.DEAD)
        assert message.key.id_ == "dead"
        assert message.category is MessageCategory.DEAD
        assert message.death is not None
        assert (message.death.reason, message.death.attempts, message.death.at) == (DeathReason.FAILED, 1, full.clock.now())
        assert "LookupError: broken" in str(message.death.error)
        assert await Queue().stats() == QueueStats(2, 0, 1, 0)

    async def test_delayed_ones_long_before_they_are_due(self, full):
        [message] = await take(1, category=MessageCategory.DELAYED)
        assert (message.key.id_, message.category) == ("delayed", MessageCategory.DELAYED)
        assert (await Queue().stats()).delayed == 0

    async def test_delayed_ones_of_a_broker_that_does_not_give_them_out(self, connection):
        connection.message_broker.capabilities = frozenset(Capability) - {Capability.DELAYED_ACCESS}
        with pytest.raises(UnsupportedFeatureError, match="InMemoryMessageBroker does not support DELAYED_ACCESS"):
            await anext(Queue().get_messages(category=MessageCategory.DELAYED))

    async def test_it_waits_for_more(self, connection):
        async with aclosing(Queue().get_messages()) as messages:
            waiting = asyncio.create_task(anext(messages))
            await connection.clock.settle()
            assert not waiting.done()
            await Job("act", id_="x").enqueue()
            async with asyncio.timeout(5):
                message = await waiting
            assert message.key.id_ == "x"
            await message.ack()

    async def test_no_more_than_max_unacked_messages_are_in_ones_hands(self, full):
        """M11"""
        async with aclosing(Queue().get_messages(max_unacked_messages=1)) as messages:
            first = await anext(messages)
            waiting = asyncio.create_task(anext(messages))
            await full.clock.settle()
            assert not waiting.done()
            await first.ack()
            async with asyncio.timeout(5):
                assert (await waiting).key.id_ == "ready-2"

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"topics": "first"}, r"get_messages\(topics='first'\): give a list of actors' names"),
            ({"max_unacked_messages": 0}, r"max_unacked_messages=0\): give a whole number, 1 or more"),
            ({"max_unacked_messages": 1.5}, r"max_unacked_messages=1\.5\): give a whole number"),
            ({"category": "dead"}, r"category='dead'\): choose MessageCategory\.NORMAL, DELAYED or DEAD"),
        ],
    )
    async def test_wrong_arguments(self, connection, options, sentence):
        with pytest.raises(InvalidJobError, match=sentence):
            await anext(Queue().get_messages(**options))


class TestGivingBack:
    """What is not settled goes back where it came from when the iteration ends, with nothing counted."""

    async def test_when_it_is_closed(self, full):
        async with aclosing(Queue().get_messages()) as messages:
            held = [await anext(messages), await anext(messages)]
            assert await Queue().stats() == QueueStats(0, 2, 1, 1)
        assert await Queue().stats() == QueueStats(2, 0, 1, 1)
        with pytest.raises(AlreadySettledError):
            await held[0].ack()
        again = await take(2)
        assert [message.key.id_ for message in again] == ["ready-1", "ready-2"]
        assert [message.parameters.tried for message in again] == [0, 0]

    async def test_after_a_break(self, full):
        async for _ in Queue().get_messages():
            break
        await full.clock.settle()
        assert await Queue().stats() == QueueStats(2, 0, 1, 1)

    async def test_after_an_error_in_the_loop(self, full):
        async def fail() -> None:
            async with aclosing(Queue().get_messages()) as messages:
                async for _ in messages:
                    raise KeyError

        with pytest.raises(KeyError):
            await fail()
        assert await Queue().stats() == QueueStats(2, 0, 1, 1)

    def test_after_a_break_at_the_end_of_the_program(self):
        """What the loop closes last of all finds the broker closed, and that is all right."""
        connection = Connection(InMemoryMessageBroker())

        async def main() -> None:
            async with connection:
                await connection.enqueue(Job("act"))
                async for _ in Queue(connection=connection).get_messages():
                    break

        async def later() -> QueueStats:
            async with connection:
                return await Queue(connection=connection).stats()

        asyncio.run(main())
        assert asyncio.run(later()).ready == 1

    async def test_when_it_is_cancelled_while_it_waits(self, connection):
        async def wait() -> None:
            async for message in Queue().get_messages():
                await message.ack()

        task = asyncio.create_task(wait())
        await connection.clock.settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await Job("act").enqueue()
        await connection.clock.settle()
        assert (await Queue().stats()).ready == 1

    @pytest.mark.parametrize("category", [MessageCategory.DEAD, MessageCategory.DELAYED])
    async def test_dead_and_delayed_ones(self, full, category):
        async with aclosing(Queue().get_messages(category=category)) as messages:
            message = await anext(messages)
            death = message.death
        assert await Queue().stats() == QueueStats(2, 0, 1, 1)
        [again] = await take(1, category=category)
        assert again.death == death


async def test_one_that_cannot_be_decoded_is_given_out_all_the_same(full, monkeypatch):
    """Whoever looks after the queue can put it aside; middlewares that listen do not change that."""

    def corrupt(self: InMemoryDelivery) -> Any:
        raise CorruptMessageError("truncated")

    seen: list[Any] = []

    def after_consume(envelope: Any) -> None:
        seen.append(envelope)

    full.middleware.add(after_consume)
    monkeypatch.setattr(InMemoryDelivery, "envelope", property(corrupt))
    async with aclosing(Queue().get_messages()) as messages:
        message = await anext(messages)
        with pytest.raises(CorruptMessageError):
            _ = message.key
        await message.nack("unreadable")
    assert seen == [None]
    assert await Queue().stats() == QueueStats(1, 0, 1, 2)


async def test_a_connection_of_its_own(connection):
    async with Connection(InMemoryMessageBroker()) as other:
        await other.enqueue(Job("act"))
        assert (await Queue(connection=other).stats()).ready == 1
        assert (await Queue().stats()).ready == 0
