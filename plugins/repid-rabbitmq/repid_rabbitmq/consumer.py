"""Consumers: what gets the messages of one queue, holds them, and settles them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Collection, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pamqp import commands

from repid_core.abc import Consumer, Delivery
from repid_core.data import Capability, Death, MessageCategory
from repid_core.errors import AlreadySettledError, DeliveryLostError, MessageBrokerError, NotConnectedError
from repid_rabbitmq import frames, wire
from repid_rabbitmq.delivery import RabbitDelivery
from repid_rabbitmq.judge import Judge
from repid_rabbitmq.line import FAULTS
from repid_rabbitmq.link import ChannelClosedError
from repid_rabbitmq.puller import Puller
from repid_rabbitmq.session import Session

if TYPE_CHECKING:
    from repid_rabbitmq.message_broker import RabbitMessageBroker

logger = logging.getLogger(__name__)

_GRACE: Final = 1.0  # seconds after a channel is open again, in which what the old one held comes again
_CLOSING: Final = 3.0  # seconds for the last settlements
_REMEMBERED: Final = 10_000  # messages that are done, of which the server may not know
_QUICK_BOUNCES: Final = 12  # of 1 to 3 s each, in which a message finds its way if some workers have its actor and others don't
_LONGEST_BOUNCE: Final = 4  # 2^4 to 3 * 2^4 s
_LOOK: Final = 2.0  # seconds without a message, after which the server is asked whether there are some


class RabbitConsumer(Consumer):
    """Gets messages from a `RabbitMessageBroker`, pushed by the server, as many as `prefetch` and `read_ahead` allow.

    A channel that ends is replaced by another. What it held comes again, perhaps to this consumer: then what runs here is not
    started again, and what is done is acknowledged.

    With quorum queues each priority has a queue, and each of these its own `prefetch`; with `prefetch=1` messages are fetched
    one by one, in the order of their priorities.
    """

    def __init__(
        self,
        broker: RabbitMessageBroker,
        queue: str,
        topics: Collection[str] | None,
        prefetch: int,
        category: MessageCategory,
    ) -> None:
        self.broker, self.queue, self.category = broker, queue, category
        self.prefetch = prefetch + (broker.settings.read_ahead if category is MessageCategory.NORMAL else 0)
        self._topics = None if topics is None else frozenset(topics)
        names = broker.topology.names(queue)
        self._sources = [names.dead] if category is MessageCategory.DEAD else names.mains
        self._counts = category is MessageCategory.NORMAL and Capability.POISON in broker.capabilities
        self._session: Session | None = None
        self._since = 0.0  # when the session began
        self._lanes: list[deque[RabbitDelivery]] = [deque() for _ in self._sources]
        self._receivers: deque[asyncio.Future[None]] = deque()
        self._handed: dict[RabbitDelivery, None] = {}  # given to the worker, and not settled
        self._adrift: dict[str, RabbitDelivery] = {}  # those of them whose channel has ended, by message id
        self._done: dict[str, None] = {}  # message ids of what is done, the oldest first
        self._settling: set[asyncio.Future[None]] = set()
        self._strange: set[str] = set()  # topics that were warned of
        self._skipped: set[int] = set()  # tags of dead messages of other topics, which the session holds
        self._owed: set[int] = set()  # tags of what was held when the server was asked to push again, and asked for less
        self._paused = False
        self._taken = self._seen = 0  # messages, now and at the last look
        self._missing = False  # whether there were messages then that did not come
        self._round = 0
        self._changed = asyncio.Event()
        self._judge = Judge(self, quorum=len(self._sources) > 1)
        self._puller: Puller | None = None  # if messages are not pushed, but fetched one by one
        if len(self._sources) > 1 and self.prefetch == 1:
            self._puller = Puller(queue, self._sources, self._wants_one, self._take)
        self._keeper: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[Any]] = set()
        self._steps: set[asyncio.Task[None]] = set()  # settlements that take more than a frame
        self._loop: asyncio.AbstractEventLoop  # set by start

    @property
    def healthy(self) -> bool:  # type: ignore[override]
        """Whether the server gives it messages."""
        return self._keeper is not None and self._session is not None and self._session.is_open

    # -- what the worker calls -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._keeper is not None:
            return
        self.broker.check()
        self._loop = asyncio.get_running_loop()
        async with self.broker.explained():
            await self.broker.ensure(self.queue, consuming=True)
            await self._open()
        self._paused = False
        self._keeper = self._loop.create_task(self._keep(), name=f"repid rabbitmq consume {self.queue}")
        self.broker.consumers.add(self)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        if limit < 1:
            raise ValueError(f"receive({limit!r}): ask for at least one message")
        while not any(self._lanes):
            if self._keeper is None:
                raise NotConnectedError("the consumer is not open: start() it first, and do not receive once it is closed")
            waiter = self._loop.create_future()
            self._receivers.append(waiter)
            if self._puller is not None:
                self._puller.look_again()
            try:
                await waiter
            except asyncio.CancelledError:
                self._pass_on()
                raise
            finally:
                with suppress(ValueError):
                    self._receivers.remove(waiter)
        taken: list[RabbitDelivery] = []
        for lane in self._lanes:
            while lane and len(taken) < limit:
                delivery = lane.popleft()
                self._handed[delivery] = None
                taken.append(delivery)
        self._pass_on()
        return taken

    async def pause(self) -> None:
        self._paused = True
        if self._session is not None and self._puller is None:
            with suppress(*FAULTS):
                async with asyncio.timeout(_CLOSING):
                    await self._cancel(self._session)

    async def resume(self) -> None:
        self._paused = False
        session = self._session
        if self._puller is not None:
            self._puller.look_again()
        elif session is not None and not session.channel.consumers:
            with suppress(*FAULTS):
                await self._consume_again(session)

    async def close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        self.broker.consumers.discard(self)
        keeper.cancel()
        ending = [keeper, fetching] if (fetching := self._stop_fetching()) is not None else [keeper]
        await asyncio.wait(ending, timeout=_CLOSING)
        await self.pause()
        if under_way := self._chores | self._steps:  # of messages that are published again, and then acknowledged
            await asyncio.wait(under_way, timeout=_CLOSING)
        for task in self._chores:
            task.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        session, self._session = self._session, None
        self._let_go()
        if session is not None:
            session.flush()
            await session.channel.close()  # what is not acknowledged goes back

    def _let_go(self) -> None:
        """Nothing is in hand any more."""
        for delivery in (*self._handed, *(delivery for lane in self._lanes for delivery in lane)):
            delivery.end(AlreadySettledError())
        self._handed.clear()
        self._adrift.clear()
        for lane in self._lanes:
            lane.clear()
        for waiter in self._receivers:
            if not waiter.done():
                waiter.set_result(None)

    def abandon(self) -> None:
        """End as if the process had died."""
        keeper, self._keeper, self._session = self._keeper, None, None
        self._stop_fetching()
        for task in (keeper, *self._chores):
            if task is not None:
                task.cancel()

    def _stop_fetching(self) -> asyncio.Task[None] | None:
        return None if self._puller is None else self._puller.stop()

    def _wants_one(self) -> bool:
        return not self._paused and bool(self._receivers) and not any(self._lanes)

    # -- the channel ---------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        channel = await self.broker.consuming_channel()
        session = Session(channel)
        try:
            channel.on_end = partial(self._ended, session)
            channel.on_cancel = partial(self._cancelled, session)
            self._session, self._since = session, self._loop.time()
            self._skipped, self._owed = set(), set()
            if self._puller is not None:
                self._puller.start(session)
            elif not self._paused:
                await self._consume(session, self.prefetch)
            channel.link.check()
        except BaseException:
            self._session = None
            self._stop_fetching()
            channel.on_end = lambda _: None
            channel.leave()
            raise
        self._since = self._loop.time()
        self._wake_settlements()

    async def _consume_again(self, session: Session) -> None:
        """Have the server push as many as there is room for, and more once what is held now is settled."""
        self._owed = session.held.keys() - self._skipped
        if (room := self.prefetch - len(self._owed)) > 0:
            await self._consume(session, room)

    def _pay(self) -> None:
        session = self._session
        if session is not None and self._owed and self._owed.isdisjoint(session.held):
            owed, self._owed = len(self._owed), set()
            if session.channel.consumers:
                self.chore(self._go_on(session, owed))

    async def _go_on(self, session: Session, room: int) -> None:
        with suppress(*FAULTS):
            await self._consume(session, room)

    async def _consume(self, session: Session, room: int) -> None:
        """Have the server push messages, up to so many that are not settled."""
        self._round += 1
        timeout = self.broker.settings.consumer_timeout
        arguments: dict[str, Any] = {} if timeout is None else {"x-consumer-timeout": timeout // timedelta(milliseconds=1)}
        await session.channel.call(commands.Basic.Qos(prefetch_count=min(room, 65_535)))
        for lane, queue in enumerate(self._sources):
            tag = f"{self._round}.{lane}"
            session.channel.consumers[tag.encode()] = partial(self._take, session, lane)
            # One after another, since quorum queues answer out of turn.
            await session.channel.call(commands.Basic.Consume(queue=queue, consumer_tag=tag, arguments=arguments))

    async def _cancel(self, session: Session) -> None:
        """Have the server push none."""
        tags = list(session.channel.consumers)
        await asyncio.gather(*(session.channel.call(commands.Basic.Cancel(consumer_tag=tag.decode())) for tag in tags))
        for tag in tags:
            session.channel.consumers.pop(tag, None)

    def _cancelled(self, session: Session, _tag: bytes) -> None:
        """The server has ended the consumer: its queue was deleted, or has moved."""
        logger.warning("the server no longer gives out messages of %s: its queue was deleted, or moves", self.queue,
                       extra={"queue": self.queue})  # fmt: skip
        self.broker.topology.forget(self.queue)
        session.flush()
        session.channel.leave()

    def _ended(self, session: Session, error: Exception) -> None:
        """What the channel held comes again; what has not begun is forgotten."""
        if session is not self._session:
            return
        self._session = None
        self._stop_fetching()
        if isinstance(error, ChannelClosedError):
            logger.warning(
                "the channel for %s was closed: %s", self.queue, self.broker.explain(error), extra={"queue": self.queue}
            )
        for lane in self._lanes:
            lane.clear()
        for delivery in self._handed:
            if delivery.properties.message_id:
                self._adrift[delivery.properties.message_id] = delivery
        self._changed.set()

    async def _keep(self) -> None:
        """Have a channel, whatever happens."""
        shortest, longest = (pause.total_seconds() for pause in self.broker.settings.reconnect_backoff)
        while True:
            try:
                async with asyncio.timeout(_LOOK):
                    await self._changed.wait()
            except TimeoutError:
                await self._look()
                continue
            self._changed.clear()
            pause, said = shortest, ""
            while self._session is None:
                try:
                    await self.broker.ensure(self.queue, consuming=True)
                    await self._open()
                except (*FAULTS, MessageBrokerError) as error:
                    if isinstance(error, ChannelClosedError):
                        self.broker.topology.forget(self.queue)
                        if said != error.text:
                            said = error.text
                            logger.warning("%s cannot be consumed: %s", self.queue, self.broker.explain(error),
                                           extra={"queue": self.queue})  # fmt: skip
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, longest)
                except Exception:
                    logger.exception("%s cannot be consumed, by a fault of repid-rabbitmq", self.queue)
                    await asyncio.sleep(longest)

    async def _look(self) -> None:
        """See whether the server has forgotten this consumer, as it may if a queue was deleted and is there again."""
        session, seen, self._seen = self._session, self._seen, self._taken
        if session is None or self._paused or self._owed or seen != self._taken or len(session.held) >= self.prefetch:
            self._missing = False
            return
        questions = [session.channel.call(commands.Queue.Declare(queue=name, passive=True)) for name in self._sources]
        with suppress(*FAULTS):  # a queue that is not there closes the channel, which is what is wanted
            answers = await asyncio.gather(*questions)
            was_missing, self._missing = self._missing, any(answer.message_count for answer in answers)
            alone = self._puller is None and not all(answer.consumer_count for answer in answers)
            if session is self._session and self._seen == self._taken and (alone or (was_missing and self._missing)):
                logger.warning(
                    "the server has messages of %s and gives out none: consuming anew", self.queue, extra={"queue": self.queue}
                )
                self._missing = False
                session.flush()
                session.channel.leave()

    # -- deliveries ----------------------------------------------------------------------------------------------------

    def _take(self, session: Session, lane: int, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self._taken += 1
        try:
            properties = frames.read(header)
        except Exception:  # noqa: BLE001 — whatever is wrong with it, it is for core to say so
            properties = frames.Properties({})
        delivery = RabbitDelivery(self, session, tag, properties, body, redelivered=redelivered)
        session.held[tag] = delivery
        if self._topics is not None and properties.topic not in self._topics:
            topic = wire.topic_of(properties, body, self.queue)
            if topic is not None and topic not in self._topics:
                self._pass_over(delivery, topic)
                return
        if not redelivered:
            if self._judge.awaited:
                self._judge.has_come(properties.message_id)
            self.push(lane, delivery)
        elif properties.message_id in self._done:
            self.acknowledge(delivery)
        elif (old := self._adrift.pop(properties.message_id, None)) is not None:
            old.session, old.tag = session, tag
            session.held[tag] = old
            self._wake_settlements()
        elif not self._counts or not properties.message_id:
            self.push(lane, delivery)
        else:
            self.chore(self._judge.see(lane, delivery))

    def push(self, lane: int, delivery: RabbitDelivery) -> None:
        """It may run."""
        self._lanes[lane].append(delivery)
        self._pass_on()

    def _pass_on(self) -> None:
        """Wake a `receive`."""
        if any(self._lanes):
            for waiter in self._receivers:
                if not waiter.done():
                    waiter.set_result(None)
                    return

    def _pass_over(self, delivery: RabbitDelivery, topic: str) -> None:
        """A message for an actor that is not here."""
        if self.category is not MessageCategory.NORMAL:
            self._skipped.add(delivery.tag)  # it is held until the consumer closes, but counts for nothing
            if len(self._skipped) % self.prefetch == 0:
                self.chore(self._look_further(delivery.session))
            return
        if topic not in self._strange:
            self._strange.add(topic)
            logger.warning(
                "%s has messages for %s, which no actor here takes: they go round until a worker that has it comes",
                self.queue, topic, extra={"queue": self.queue},
            )  # fmt: skip
        self.chore(self._bounce(delivery))

    async def _look_further(self, session: Session) -> None:
        with suppress(*FAULTS):
            await self._cancel(session)
            if session.is_open and not self._paused:
                await self._consume_again(session)

    async def _bounce(self, delivery: RabbitDelivery) -> None:
        """Send it round through a delay, which grows if nobody takes it.

        The delay is drawn anew each time. The server gives to consumers in turn, so two messages that keep coming back in the
        same order would go to the same two consumers again, for ever to the wrong ones.
        """
        bounces = wire.bounces_of(delivery.properties)
        shortest = 1 << min(max(0, bounces + 1 - _QUICK_BOUNCES), _LONGEST_BOUNCE)
        delay = random.randint(shortest, 3 * shortest)  # noqa: S311 — jitter
        try:
            await self.broker.send_round(self.queue, delivery, bounces + 1, delay)
        except MessageBrokerError as error:
            logger.warning("a message of %s cannot be sent round: %s", self.queue, error, extra={"queue": self.queue})
            await asyncio.sleep(_GRACE)
            delivery.session.give_back(delivery.tag)
        else:
            self.acknowledge(delivery)

    # -- settlements ---------------------------------------------------------------------------------------------------

    def acknowledge(self, delivery: RabbitDelivery) -> None:
        """Acknowledge what is held on a channel that is open."""
        self._handed.pop(delivery, None)
        self._remember(delivery)
        if delivery.session.is_open:
            delivery.session.ack(delivery.tag)
            if self._puller is not None:
                self._loop.call_soon(self._puller.look_again)
            elif self._owed:
                self._loop.call_soon(self._pay)

    def _remember(self, delivery: RabbitDelivery) -> None:
        """It is done, whatever the server knows of it."""
        if id_ := delivery.properties.message_id:
            self._done[id_] = None
            self._adrift.pop(id_, None)
            if len(self._done) > _REMEMBERED:
                del self._done[next(iter(self._done))]

    async def _anchored(self, delivery: RabbitDelivery) -> None:
        """Wait until it is held on a channel that is open.

        Raises:
            DeliveryLostError: It is not, and another worker may have it.
        """
        deadline = self._loop.time() + self.broker.settings.connect_timeout.total_seconds()
        while not delivery.session.is_open:
            if self._session is not None:
                deadline = min(deadline, self._since + _GRACE)
            left = deadline - self._loop.time()
            if left <= 0 or self._keeper is None:
                self._handed.pop(delivery, None)
                raise DeliveryLostError
            waiter = self._loop.create_future()
            self._settling.add(waiter)
            try:
                await asyncio.wait([waiter], timeout=left)
            finally:
                self._settling.discard(waiter)

    def _wake_settlements(self) -> None:
        for waiter in self._settling:
            if not waiter.done():
                waiter.set_result(None)

    async def finish(self, delivery: RabbitDelivery) -> None:
        """Acknowledge, the longer way."""
        try:
            await self._anchored(delivery)
        except DeliveryLostError:
            self._remember(delivery)  # should it come again after all, it is not run again
            raise
        await self._end_count(delivery)
        self.acknowledge(delivery)

    async def bury(self, delivery: RabbitDelivery, death: Death) -> None:
        """Publish it among the dead, and acknowledge it."""
        await self._publish_and_acknowledge(delivery, self.broker.send_to_dead(self.queue, delivery, death))

    async def replace(self, delivery: RabbitDelivery, way: tuple[str, str], props: bytes, body: bytes, message_id: str) -> None:
        """Publish another in its place, and acknowledge it."""
        await self._publish_and_acknowledge(delivery, self.broker.send(self.queue, way, props, body, message_id))

    async def _publish_and_acknowledge(self, delivery: RabbitDelivery, publishing: Coroutine[Any, Any, None]) -> None:
        try:
            await self._anchored(delivery)
            await publishing
        except BaseException:
            publishing.close()
            await self.give_back(delivery, uncount=delivery.counted)
            raise
        await self._end_count(delivery)
        self.acknowledge(delivery)

    async def _end_count(self, delivery: RabbitDelivery) -> None:
        if delivery.counted:
            with suppress(MessageBrokerError):  # the server forgets by itself
                await self.broker.close_deaths(self.queue, delivery.envelope.key.id_)

    async def give_back(self, delivery: RabbitDelivery, *, uncount: bool) -> None:
        """Have the server put it back; if its channel has ended, it has done so."""
        self._handed.pop(delivery, None)
        self._adrift.pop(delivery.properties.message_id, None)
        if uncount:
            with suppress(MessageBrokerError):
                await self.broker.uncount(self.queue, delivery.envelope.key.id_)
        if delivery.session.is_open:
            delivery.session.give_back(delivery.tag)
            if self._puller is not None:
                self._puller.look_again()
            self._pay()

    async def count_death(self, delivery: RabbitDelivery) -> None:
        """Count a death that is taken back if it does not come; not while the server takes no messages, or it would not run."""
        if not self.broker.is_blocked:
            await self.broker.count_death(self.queue, delivery.envelope.key.id_)

    def carry_out(self, step: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Carry out a settlement, even if nobody waits for it any more."""
        task = self.broker.carry_out(step)
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        return task

    def chore(self, step: Coroutine[Any, Any, None]) -> None:
        """Do something beside."""
        task = self._loop.create_task(step, name=f"repid rabbitmq {self.queue}")
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
