"""The message broker on RabbitMQ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import asdict

from repid_core.abc import Consumer, MessageBroker
from repid_core.data import Capability, Death, Enqueued, Envelope, Limits, MessageCategory, QueueStats
from repid_core.errors import (
    BrokerConnectionError,
    EnqueueError,
    MessageBrokerError,
    NotConnectedError,
    PayloadTooLargeError,
    UnsupportedFeatureError,
)
from repid_rabbitmq import wire
from repid_rabbitmq.consumer import RabbitConsumer
from repid_rabbitmq.errors import explain
from repid_rabbitmq.line import Line, UnreachableError
from repid_rabbitmq.link import Channel, ChannelClosedError, LinkLostError
from repid_rabbitmq.publisher import Publisher, UnroutableError
from repid_rabbitmq.settings import RabbitMessageBrokerSettings
from repid_rabbitmq.topology import PRIORITIES, RETURNED, STEP, Topology, steps

if TYPE_CHECKING:
    from repid_rabbitmq.delivery import RabbitDelivery

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_OLDEST: Final = (3, 10)
_PATIENCE: Final = timedelta(minutes=30)  # for which a server waits for an acknowledgement, unless it is told otherwise
_HEADERS: Final = 512  # bytes of a frame that are for what is beside the properties

_Ready = tuple[tuple[bytes, bytes, str], tuple[str, str]]  # properties, body and message id; exchange and routing key


class RabbitMessageBroker(MessageBroker):
    """Carries messages through RabbitMQ.

    It speaks AMQP 0-9-1 over two connections, one for what is published and one for what is consumed, so that a server that
    takes no messages for the time being still hears of those that are done.

    Args:
        url: Where the server is; see `RabbitMessageBrokerSettings`, also for all others.
        settings: The other settings, by name.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: There is no setting of this name.
    """

    def __init__(self, url: str = "amqp://localhost:5672/", **settings: Any) -> None:
        self.settings = RabbitMessageBrokerSettings(url, **settings)
        capabilities = {Capability.DELAY, Capability.PRIORITY}
        if self.settings.max_deliveries is not None and self.settings.declare:
            capabilities.add(Capability.POISON)
        self.capabilities = frozenset(capabilities)
        self.limits = Limits(
            delay_step=STEP,
            lease=self.settings.heartbeat,
            max_payload=self.settings.max_payload,
            max_deliveries=self.settings.max_deliveries or Limits().max_deliveries,
        )
        self.topology = Topology(self.settings)
        self.consumers: set[RabbitConsumer] = set()
        self._patience = self.settings.consumer_timeout or _PATIENCE
        self._warned: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    def from_settings(cls, settings: RabbitMessageBrokerSettings) -> RabbitMessageBroker:
        """Make one as configured."""
        return cls(**asdict(settings, recurse=False))

    # -- the connections -----------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        line = Line(self.settings, "publish")
        try:
            await line.open()
        except (LinkLostError, OSError) as error:
            raise BrokerConnectionError(explain(error, line.address)) from error
        if self._loop is loop:  # somebody else was faster
            await line.close()
            return
        self._check_server(line)
        self.topology = Topology(self.settings)
        self._producing, self._consuming = line, Line(self.settings, "consume")
        self._publisher = Publisher(line, self.settings)
        self._loop = loop

    def _check_server(self, line: Line) -> None:
        if () < line.version < _OLDEST:
            logger.warning("%s runs RabbitMQ %d.%d; repid-rabbitmq wants %d.%d or newer", line.address, *line.version, *_OLDEST)
        if self.settings.consumer_timeout is not None and () < line.version < (3, 12):
            logger.warning(
                "%s runs RabbitMQ %d.%d, which heeds no consumer_timeout of ours: set it in its own configuration",
                line.address, *line.version,
            )  # fmt: skip

    async def disconnect(self) -> None:
        if self._loop is None:
            return
        async with AsyncExitStack() as stack:  # whatever goes wrong, all of it is closed
            stack.push_async_callback(self._drop_tasks)
            stack.push_async_callback(self._producing.close)
            stack.push_async_callback(self._consuming.close)
            stack.push_async_callback(self._publisher.close)
            await asyncio.gather(*(consumer.close() for consumer in list(self.consumers)))
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=self.settings.connect_timeout.total_seconds())
            self._loop = None

    async def _drop_tasks(self) -> None:
        self._loop = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _abandon(self) -> None:
        """End as if the process had died: without a word to the server. For tests of what others do then."""
        self._loop = None
        for consumer in self.consumers:
            consumer.abandon()
        self._publisher.abandon()
        self._producing.abandon()
        self._consuming.abandon()

    async def ping(self) -> None:
        async with self.explained():
            self.check()
            await (await self._channel(self._producing)).close()

    def check(self) -> None:
        """Raise `NotConnectedError` unless it is connected."""
        if self._loop is None:
            raise NotConnectedError

    @property
    def is_blocked(self) -> bool:
        """Whether the server takes no messages for the time being."""
        link = self._producing.link
        return link is not None and link.blocked is not None

    def explain(self, error: Exception) -> str:
        """What went wrong, and what to do."""
        return explain(error, self._producing.address)

    @asynccontextmanager
    async def explained(self, kind: type[MessageBrokerError] = MessageBrokerError) -> AsyncIterator[None]:
        """Put what goes wrong inside into words; `kind` is for what the server refuses."""
        try:
            async with asyncio.timeout(self.settings.publish_timeout.total_seconds()):
                yield
        except (UnreachableError, LinkLostError, OSError) as error:
            raise BrokerConnectionError(self.explain(error)) from error
        except ChannelClosedError as error:
            raise kind(self.explain(error)) from error

    def carry_out(self, step: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run a step that is to be ended even if nobody waits for it any more."""
        task = asyncio.get_running_loop().create_task(step)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _channel(self, line: Line) -> Channel:
        return await line.channel(self.settings.connect_timeout.total_seconds())

    async def consuming_channel(self) -> Channel:
        """A fresh channel to consume on."""
        await self._consuming.open()
        return await self._channel(self._consuming)

    async def ensure(self, queue: str, *, delays: bool = False, consuming: bool = False) -> None:
        """See to it that a queue is there, and its levels."""
        if not self.topology.has(queue) or (delays and not self.topology.has(queue, delays=True)):
            if consuming:
                await self._consuming.open()
            line = self._consuming if consuming else self._producing
            await self.topology.ensure(line, queue, delays=delays)

    # -- messages come in ----------------------------------------------------------------------------------------------

    async def enqueue(self, envelope: Envelope) -> Enqueued:
        self.check()
        delays = self._waits(envelope)
        if not self.topology.has(envelope.key.queue, delays=delays):  # which takes time, so the delay is measured after it
            async with self.explained(EnqueueError):
                await self.ensure(envelope.key.queue, delays=delays)
        (props, body, message_id), way = self.prepared(envelope)
        await self.send(envelope.key.queue, way, props, body, message_id)
        return Enqueued.NEW

    def _waits(self, envelope: Envelope) -> bool:
        return envelope.due is not None and envelope.due > self.clock.now()

    def prepared(self, envelope: Envelope) -> _Ready:
        """What is to be sent for a message.

        Raises:
            PayloadTooLargeError: Its payload is over the limit.
            EnqueueError: Its headers are.
        """
        self.warn_of_timeout(envelope)
        if len(envelope.payload) > self.settings.max_payload:
            raise PayloadTooLargeError(len(envelope.payload), self.settings.max_payload)
        message_id = self.message_id()
        props = wire.encode(envelope, message_id)
        self._check_headers(props)
        return (props, envelope.payload, message_id), self.topology.way(envelope, steps(envelope.due, self.clock.now()))

    def warn_of_timeout(self, envelope: Envelope) -> None:
        """Warn, once for each actor, of a job that the server may take back while it runs."""
        topic = envelope.key.topic
        if envelope.parameters.timeout > self._patience and topic not in self._warned:
            self._warned.add(topic)
            logger.warning(
                "%s may run for %s, but the server takes back what is not acknowledged within %s: raise consumer_timeout on the "
                "server, and in the settings",
                topic, envelope.parameters.timeout, self._patience, extra={"queue": envelope.key.queue},
            )  # fmt: skip

    def _check_headers(self, props: bytes) -> None:
        link = self._producing.link
        most = (self.settings.frame_max if link is None else link.frame_max) - _HEADERS
        if len(props) > most:
            raise EnqueueError(
                f"the message's headers take {len(props):,} bytes, and the server takes {most:,}: make them smaller"
            )

    async def send(self, queue: str, way: tuple[str, str], props: bytes, body: bytes, message_id: str) -> None:
        """Publish, and wait for the confirmation; make the queue, and its levels, where they are missing."""
        delays = bool(way[0])
        for last in (False, True):
            if not self.topology.has(queue, delays=delays):
                async with self.explained(EnqueueError):
                    await self.ensure(queue, delays=delays)
            try:
                await self._publisher.post(*way, props, body, message_id)
            except UnroutableError as error:
                self.topology.forget(queue)
                if last:
                    raise EnqueueError(f"no queue at {self._producing.address} takes the message: {error}") from error
            else:
                return

    async def enqueue_many(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        self.check()
        outcomes: list[Any] = [None] * len(envelopes)
        failed: dict[str, EnqueueError] = {}
        for queue, delays in {(envelope.key.queue, self._waits(envelope)): None for envelope in envelopes}:
            try:
                async with self.explained(EnqueueError):
                    await self.ensure(queue, delays=delays)
            except EnqueueError as error:  # of the messages for this queue alone
                failed[queue] = error
        sent: list[tuple[int, Envelope, _Ready, asyncio.Future[None]]] = []
        for index, envelope in enumerate(envelopes):
            outcomes[index] = failed.get(envelope.key.queue)
            if outcomes[index] is None:
                try:
                    ready = self.prepared(envelope)
                except EnqueueError as error:
                    outcomes[index] = error
                else:  # the server works on the first while the others are made
                    (props, body, message_id), way = ready
                    sent.append((index, envelope, ready, self._publisher.post(*way, props, body, message_id)))
        await self._await_many(sent, outcomes)
        unreachable = [outcome for outcome in outcomes if isinstance(outcome, BrokerConnectionError)]
        if unreachable and len(unreachable) == len(sent):
            raise unreachable[0]
        return [_as_enqueue_error(outcome) for outcome in outcomes]

    async def _await_many(self, sent: Sequence[tuple[int, Envelope, _Ready, asyncio.Future[None]]], outcomes: list[Any]) -> None:
        """Note what became of each."""
        posts = [post for *_, post in sent]
        try:
            results = await asyncio.gather(*posts, return_exceptions=True)
        except asyncio.CancelledError:
            for post in posts:
                post.cancel()
            raise
        for (index, envelope, (message, way), _), result in zip(sent, results, strict=True):
            if isinstance(result, UnroutableError):  # somebody has deleted the queue
                self.topology.forget(envelope.key.queue)
                [outcomes[index]] = await asyncio.gather(self.send(envelope.key.queue, way, *message), return_exceptions=True)
            else:
                outcomes[index] = result
            outcomes[index] = outcomes[index] or Enqueued.NEW

    async def send_to_dead(self, queue: str, delivery: RabbitDelivery, death: Death) -> None:
        """Publish a message among the dead."""
        message_id = self.message_id()
        death_header = wire.encode_death(death)
        priority = wire.priority_of(delivery.properties, delivery.body, queue)
        props = wire.again(delivery.properties, message_id, PRIORITIES[priority], repid_death=death_header)
        self._check_headers(props)
        await self.send(queue, ("", self.topology.names(queue).dead), props, delivery.body, message_id)

    async def send_round(self, queue: str, delivery: RabbitDelivery, bounces: int, seconds: int) -> None:
        """Publish a message to be given out in so many seconds."""
        message_id, priority = self.message_id(), wire.priority_of(delivery.properties, delivery.body, queue)
        props = wire.again(delivery.properties, message_id, PRIORITIES[priority], repid_bounces=b"%d" % bounces)
        await self.send(queue, self.topology.round(queue, priority, seconds), props, delivery.body, message_id)

    def message_id(self) -> str:
        """Another id for a message; no two publishings have the same."""
        return self._publisher.message_id()

    async def send_back(self, queue: str, delivery: RabbitDelivery, message_id: str) -> None:
        """Publish a message to be given out next, with a note that it has come back once."""
        priority = wire.priority_of(delivery.properties, delivery.body, queue)
        props = wire.again(delivery.properties, message_id, RETURNED, repid_returned=b"%d" % PRIORITIES[priority])
        await self.send(queue, ("", self.topology.names(queue).base), props, delivery.body, message_id)

    # -- messages go out -----------------------------------------------------------------------------------------------

    def consumer(
        self,
        queue: str,
        topics: Collection[str] | None,
        *,
        prefetch: int,
        category: MessageCategory = MessageCategory.NORMAL,
    ) -> Consumer:
        if prefetch < 1:
            raise ValueError(f"prefetch={prefetch!r}: a consumer holds at least one message")
        if category is MessageCategory.DELAYED:
            raise UnsupportedFeatureError(Capability.DELAYED_ACCESS, self)
        return RabbitConsumer(self, queue, topics, prefetch, category)

    # -- the deaths that a message has caused --------------------------------------------------------------------------

    async def deaths(self, queue: str, id_: str) -> int:
        """How many workers have died while they ran it."""
        return await self._ask(self.topology.deaths(self._consuming, queue, id_))

    async def count_death(self, queue: str, id_: str) -> None:
        """Count one more."""
        name = await self._ask(self.topology.open_deaths(self._consuming, queue, id_))
        message_id = self.message_id()
        props = wire.again(wire.NOTHING, message_id, 0)
        try:
            await self._publisher.post("", name, props, b"", message_id)
        except UnroutableError as error:
            raise MessageBrokerError(f"the queue {name} is gone") from error

    async def uncount(self, queue: str, id_: str) -> None:
        """Count one less."""
        await self._ask(self.topology.uncount(self._consuming, queue, id_))

    async def close_deaths(self, queue: str, id_: str) -> None:
        """Count no more."""
        await self._ask(self.topology.close_deaths(self._consuming, queue, id_))

    # -- the operator's view -------------------------------------------------------------------------------------------

    async def _ask(self, question: Coroutine[Any, Any, _T]) -> _T:
        if self._loop is None:
            question.close()
            raise NotConnectedError
        async with self.explained():
            return await question

    async def declare_queue(self, queue: str, topics: Collection[str] = ()) -> None:
        self.topology.forget(queue)
        await self._ask(self.topology.ensure(self._producing, queue))

    async def flush_queue(self, queue: str) -> None:
        await self._ask(self.topology.flush(self._producing, queue))

    async def delete_queue(self, queue: str) -> None:
        await self._ask(self.topology.delete(self._producing, queue))

    async def queue_stats(self, queue: str) -> QueueStats:
        return await self._ask(self.topology.stats(self._producing, queue))


def _as_enqueue_error(outcome: Any) -> Enqueued | EnqueueError:
    if isinstance(outcome, Enqueued | EnqueueError):
        return outcome
    error = EnqueueError(str(outcome))
    error.__cause__ = outcome
    return error
