"""What the tests of message brokers are written with."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from attrs import evolve

from repid_core.abc import Consumer, Delivery, MessageBroker
from repid_core.codec import from_ms, message_fields, to_ms
from repid_core.data import (
    Capability,
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
from repid_core.errors import UnsupportedFeatureError
from repid_core.testing.conformance.backend import NOW, BackendSuite
from repid_core.testing.conformance.suite import check, hook, same

NORMAL, DELAYED, DEAD = MessageCategory.NORMAL, MessageCategory.DELAYED, MessageCategory.DEAD
HIGH, MEDIUM, LOW = Priority.HIGH, Priority.MEDIUM, Priority.LOW


class MessageSuite(BackendSuite[MessageBroker]):
    """Queues, messages and consumers for a test; see `MessageBrokerConformance`."""

    @hook
    async def kill_consumer(self, broker: MessageBroker, consumer: Consumer) -> None:
        """End this consumer as `kill -9` of its process would: no goodbye, nothing settled. Unlocks M3, M5 and M13.

        `broker` is the client that made it. Tests let go of both: they only settle what the consumer held, to see that it
        is refused, and disconnect the client at the end, which may fail.
        """

    def lacks(self, need: Capability | str) -> str | None:
        if isinstance(need, Capability) and need in self.broker.capabilities:
            return None
        return super().lacks(need)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "capabilities": sorted(c.name for c in self.broker.capabilities)}

    def has(self, capability: Capability) -> bool:
        """Whether the broker declares it."""
        return capability in self.broker.capabilities

    @property
    def queue(self) -> str:
        """The test's queue."""
        return self.new_queue("main")

    def new_queue(self, name: str) -> str:
        """A queue by this name, removed after the test."""
        self._queues.add(name)
        return name

    @property
    def _queues(self) -> set[str]:
        return self.__dict__.setdefault("_queue_names", set())  # type: ignore[no-any-return]

    @property
    def _consumers(self) -> list[Consumer]:
        return self.__dict__.setdefault("_open_consumers", [])  # type: ignore[no-any-return]

    async def clean(self) -> None:
        for consumer in self._consumers:
            await consumer.close()
        with suppress(Exception):  # a test that broke its connection has nothing to clean with
            for queue in self._queues:
                await self.broker.delete_queue(queue)

    def now(self) -> datetime:
        """The time, to the millisecond of the wire."""
        return from_ms(to_ms(self.clock.now()))

    @property
    def a_while(self) -> timedelta:
        """A delay that is long enough to tell from none."""
        return max(timedelta(milliseconds=300), 2 * self.broker.limits.delay_step)

    @property
    def late(self) -> timedelta:
        """How long after its due time a message may come."""
        return self.broker.limits.delay_step + self.broker.limits.lateness

    def envelope(
        self,
        id_: str | None = None,
        *,
        queue: str | None = None,
        topic: str = "work",
        priority: Priority = MEDIUM,
        payload: bytes | None = None,
        delay: timedelta | None = None,
        on_duplicate: OnDuplicate = "raise",
        **changes: Any,
    ) -> Envelope:
        """A message; unless told otherwise its payload is its id."""
        id_ = id_ or f"m{next(_numbers)}"
        return Envelope(
            key=RoutingKey(id_, topic, queue or self.queue, priority),
            parameters=Parameters(timestamp=self.now()),
            payload=id_.encode() if payload is None else payload,
            due=None if delay is None else self.now() + delay,
            on_duplicate=on_duplicate,
            **changes,
        )

    async def put(self, *messages: Envelope | str, broker: MessageBroker | None = None) -> list[Envelope]:
        """Enqueue messages, or fresh ones by these ids, one after the other; each must be taken as new."""
        envelopes = [self.envelope(m) if isinstance(m, str) else m for m in messages]
        for envelope in envelopes:
            same(await (broker or self.broker).enqueue(envelope), Enqueued.NEW, f"outcome of enqueue({id_of(envelope)})")
        return envelopes

    async def consume(
        self,
        topics: Collection[str] | None = None,
        *,
        prefetch: int = 10,
        category: MessageCategory = NORMAL,
        broker: MessageBroker | None = None,
        queue: str | None = None,
    ) -> Consumer:
        """A started consumer, closed after the test."""
        consumer = (broker or self.broker).consumer(queue or self.queue, topics, prefetch=prefetch, category=category)
        self._consumers.append(consumer)
        await consumer.start()
        return consumer

    async def kill(self, broker: MessageBroker, consumer: Consumer) -> None:
        """Kill a consumer through the suite's hook."""
        self._consumers.remove(consumer)
        if broker is not self.broker:
            self._lame.append(broker)
        await self.kill_consumer(broker, consumer)

    async def take(self, consumer: Consumer, wanted: int = 1, *, within: timedelta = NOW) -> list[Delivery]:
        """Receive this many deliveries, which must come at once, or `within` a time each."""
        taken: list[Delivery] = []
        while len(taken) < wanted:
            batch = await self._receive(consumer, wanted - len(taken), within)
            check(batch, f"only {len(taken)} of {wanted} messages came {'at once' if not within else f'within {within}'}: "
                  f"{ids(taken)}")  # fmt: skip
            check(len(batch) <= wanted - len(taken), f"receive({wanted - len(taken)}) gave {len(batch)}: {ids(batch)}")
            taken += batch
        return taken

    async def one(self, consumer: Consumer, *, within: timedelta = NOW) -> Delivery:
        """Receive one delivery."""
        return (await self.take(consumer, within=within))[0]

    async def nothing(self, consumer: Consumer, during: timedelta | None = None) -> None:
        """Check that no message comes."""
        task = self.task(consumer.receive(100))
        if self._manual:
            await self._manual.advance(self.quiet if during is None else during)
        else:
            await asyncio.wait({task}, timeout=(self.quiet if during is None else during).total_seconds())
        batch = await self._end(task)
        check(not batch, f"messages that should not have come: {ids(batch)}")

    async def _receive(self, consumer: Consumer, limit: int, within: timedelta) -> Sequence[Delivery]:
        task = self.task(consumer.receive(limit))
        await self.let(task, within)
        return await self._end(task)

    async def _end(self, task: asyncio.Task[Sequence[Delivery]]) -> Sequence[Delivery]:
        task.cancel()
        check((await asyncio.wait({task}, timeout=10))[0], "a cancelled receive did not end within 10 s")
        return [] if task.cancelled() else task.result()

    async def all_there(self, *, prefetch: int = 100, queue: str | None = None) -> list[Delivery]:
        """What a fresh consumer gets of ready messages until no more come; they stay unsettled."""
        consumer = await self.consume(prefetch=prefetch, queue=queue)
        taken: list[Delivery] = []
        while batch := await self.soon(consumer):
            taken += batch
        return taken

    async def soon(self, consumer: Consumer) -> Sequence[Delivery]:
        """What comes at once, if anything."""
        task = self.task(consumer.receive(100))
        if self._manual:
            await self._manual.settle()
        else:
            await asyncio.wait({task}, timeout=(self.quiet + self.patience / 20).total_seconds())
        return await self._end(task)

    async def dead(self, wanted: int = 1) -> list[Delivery]:
        """Take this many messages from DEAD."""
        return await self.take(await self.consume(category=DEAD, prefetch=wanted + 10), wanted)

    async def kill_off(self, *messages: Envelope | str, death: Death | None = None) -> None:
        """Enqueue messages, and move them to DEAD."""
        await self.put(*messages)
        consumer = await self.consume(prefetch=len(messages))
        for delivery in await self.take(consumer, len(messages)):
            await delivery.nack(death or self.death())
        await consumer.close()

    def death(self, reason: DeathReason = DeathReason.NACKED, error: str | None = None, attempts: int = 1) -> Death:
        """A death, now."""
        return Death(reason, self.now(), attempts, error)

    async def counts(self, queue: str | None = None, **wanted: int) -> None:
        """Check `queue_stats` as far as the server can tell; what is not named must be 0."""
        expected = {"ready": 0, "in_progress": 0, "delayed": 0, "dead": 0, **wanted}
        seen: QueueStats | None = None

        async def agrees() -> bool:
            nonlocal seen
            seen = await self.broker.queue_stats(queue or self.queue)
            return all(getattr(seen, name) in (None, number) for name, number in expected.items())

        check(await self.eventually_async(agrees), f"queue_stats gives {seen}, instead of {expected}")

    @contextmanager
    def unsupported(self, capability: Capability) -> Iterator[None]:
        """Check that the block raises `UnsupportedFeatureError` for this capability."""
        try:
            yield
        except UnsupportedFeatureError as error:
            same(error.capability, capability, "capability of the error")
        else:
            check(ok=False, seen=f"{capability.name} is not declared, and asking for it raised nothing")

    def arrived_as(self, delivery: Delivery, sent: Envelope) -> None:
        """Check that a message arrived as it was sent."""
        seen = delivery.envelope
        same(seen.payload, sent.payload, f"payload of {id_of(sent)}")
        same(message_fields(seen), message_fields(sent), f"fields of {id_of(sent)}")


_numbers = count(1)


def id_of(message: Envelope | Delivery) -> str:
    """The id of a message."""
    return (message if isinstance(message, Envelope) else message.envelope).key.id_


def ids(messages: Sequence[Envelope | Delivery]) -> list[str]:
    """The ids of messages."""
    return [id_of(message) for message in messages]


def changed(envelope: Envelope, *, payload: bytes | None = None, due: datetime | None = None, **parameters: Any) -> Envelope:
    """The message with another payload, due time, or parameters, as a retry would have it."""
    return evolve(
        envelope,
        payload=envelope.payload if payload is None else payload,
        due=due,
        parameters=evolve(envelope.parameters, **parameters),
    )
