"""Consumers: what fetches the messages of one queue, and what is held of it."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Collection, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, RedisError, ResponseError

from repid_core.abc import Consumer, Delivery
from repid_core.data import MessageCategory
from repid_core.errors import AlreadySettledError, MessageBrokerError, NotConnectedError
from repid_redis.delivery import RedisDelivery
from repid_redis.heartbeat import Session
from repid_redis.link import Link
from repid_redis.scripts import BYE, FETCH, FETCH_OTHER, HELLO, REJECT, SYNC, TICK
from repid_redis.settlements import Settlements

if TYPE_CHECKING:
    from repid_redis.message_broker import RedisMessageBroker

logger = logging.getLogger(__name__)

_LETTERS: Final = {MessageCategory.NORMAL: "n", MessageCategory.DELAYED: "d", MessageCategory.DEAD: "x"}
_UNKNOWN, _OVER = -1, -2  # what a fetch says of a session that has ended, and of an epoch that has
_UNWANTED: Final = 0.05  # seconds that a message waits for a `receive` before it is given back
_PAUSE: Final = timedelta(milliseconds=100)  # after a fetch that failed
_CLOSING: Final = timedelta(seconds=3)  # for the last words


class RedisConsumer(Consumer):
    """Gets messages from a `RedisMessageBroker`. It reads nothing ahead: it fetches what `receive` asks for.

    One fetch is under way at a time: at once where there may be something, else behind a marker that whoever adds a message
    sets, on a connection of its own that the wait for it blocks.

    Each fetch bears the consumer's epoch. One whose reply was lost, or that nobody wants any more, is made void by another
    epoch, and what it may have fetched is put back: so nothing is held that nobody knows of.
    """

    def __init__(
        self,
        broker: RedisMessageBroker,
        queue: str,
        topics: Collection[str] | None,
        prefetch: int,
        category: MessageCategory,
    ) -> None:
        self.broker, self.queue, self.category, self.prefetch = broker, queue, category, prefetch
        self._topics = None if topics is None else deque(dict.fromkeys(topics))
        self._letter = _LETTERS[category]
        self.base = broker.base(queue)
        self.session: Session | None = None
        self._held: dict[RedisDelivery, None] = {}  # not settled, in the order of their coming
        self.settlements = Settlements(self)
        self._number = 0
        self._buffer: deque[RedisDelivery] = deque()
        self._receivers: deque[tuple[asyncio.Future[None], int]] = deque()
        self._wanted = asyncio.Event()
        self._epoch = 0
        self._stale = False  # whether a fetch may have been carried out that nobody knows of
        self._dry = False  # whether the last fetch left nothing
        self._skip = 0  # how many dead or delayed ones were seen to be of other topics
        self._paused = False
        self._well = True  # whether the last fetch went well
        self._pump: asyncio.Task[None] | None = None
        self._line: Link | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unwanted: asyncio.TimerHandle | None = None
        self._chores: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop  # set by start

    @property
    def healthy(self) -> bool:  # type: ignore[override]
        """Whether it can fetch."""
        return self._well and self._pump is not None and self.broker.client.is_up

    # -- what the worker calls -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._pump is not None:
            return
        self.broker.check()
        self._loop = asyncio.get_running_loop()
        await self.broker.within(self._hello())
        self._line = self.broker.client.dedicated(
            self.base, self.broker.settings.block_timeout + self.broker.settings.reply_deadline
        )
        self._paused = False
        self._well = True
        self._pump = self._loop.create_task(self._fetch_forever(), name=f"repid redis fetch {self.queue}")
        self.broker.consumers.add(self)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        if limit < 1:
            raise ValueError(f"receive({limit!r}): ask for at least one message")
        while not self._buffer:
            if self._pump is None or self._pump.done():
                raise NotConnectedError("the consumer is not open: start() it first, and do not receive once it is closed")
            waiter = self._loop.create_future()
            self._receivers.append((waiter, limit))
            self._wanted.set()
            try:
                await waiter
            except asyncio.CancelledError:
                self._pass_on()
                raise
            finally:
                with suppress(ValueError):
                    self._receivers.remove((waiter, limit))
        taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        if self._buffer:
            self._pass_on()
        return taken

    async def pause(self) -> None:
        self._paused = True
        await self._withdraw()

    async def resume(self) -> None:
        self._paused = False
        self._wanted.set()

    async def close(self) -> None:
        pump, line = self._pump, self._line
        if pump is None:
            return
        self._pump = None
        self._stop_timers()
        self.broker.consumers.discard(self)
        for task in (pump, *self._chores):
            task.cancel()
        await asyncio.gather(pump, *self._chores, return_exceptions=True)
        if self.settlements.pending:
            await asyncio.wait(self.settlements.pending.values(), timeout=_CLOSING.total_seconds())
        if line is not None:
            await line.close()
        held = list(self._held)
        self._held.clear()
        self._buffer.clear()
        for delivery in held:
            delivery.end(AlreadySettledError())
        for waiter, _ in self._receivers:
            if not waiter.done():
                waiter.set_result(None)
        session, self.session = self.session, None
        if session is None:  # it was lost, and there is no new one yet
            return
        self.broker.heartbeat.remove(session)
        try:
            handles = [delivery.handle for delivery in held]
            await self.broker.client.run(BYE, self.base, session.name, *handles, timeout=_CLOSING)
        except (RedisError, OSError) as error:
            logger.warning("%s could not be left well: others get %d messages when the lease is over: %s",
                           self.queue, len(held), error)  # fmt: skip

    def abandon(self) -> None:
        """End as if the process had died."""
        self._stop_timers()
        if self._pump is not None:
            self._pump.cancel()
        for task in self._chores:
            task.cancel()
        if self._line is not None:
            self._line.abandon()
        self._pump = None

    def _stop_timers(self) -> None:
        for timer in (self._timer, self._unwanted):
            if timer is not None:
                timer.cancel()
        self._timer = self._unwanted = None

    # -- the session -----------------------------------------------------------------------------------------------------

    async def _hello(self) -> None:
        name = f"{self._letter}-{uuid.uuid4().hex[:16]}"
        session = Session(name, self.base, lambda known, due: self._heard(session, known=known, next_due=due))
        lease = self.broker.settings.lease // timedelta(milliseconds=1)
        tell = "" if self._letter == "n" and self._topics is not None else "a" if self._letter == "n" else self._letter
        await self.broker.client.run(HELLO, self.base, name, lease, tell)
        self.session, self._epoch, self._stale, self._dry = session, 0, False, False
        self.broker.heartbeat.add(session)

    def _heard(self, session: Session, *, known: bool, next_due: int) -> None:
        """A heartbeat was answered."""
        if session is not self.session or self._pump is None:
            return
        if not known:
            self._lose()
            self._chore(self._say_hello_again())
        else:
            self._arm(next_due)

    def _lose(self) -> None:
        """The session was ended: others have what it held."""
        session, self.session = self.session, None
        if session is None:
            return
        self.broker.heartbeat.remove(session)
        held = list(self._held)
        if held:
            logger.error("the lease of %s was lost, and %d messages with it", self.queue, len(held), extra={"queue": self.queue})
        self._held.clear()
        self._buffer.clear()
        for delivery in held:
            delivery.lose()

    async def _say_hello_again(self) -> None:
        while self.session is None:
            try:
                await self._hello()
            except (RedisError, OSError):
                await asyncio.sleep(_PAUSE.total_seconds())
        if self._line is not None:
            self._line.drop()  # the fetch that waits there is the old session's
        self._wanted.set()

    # -- the fetch ---------------------------------------------------------------------------------------------------------

    def _room(self) -> int:
        limit = max((limit for waiter, limit in self._receivers if not waiter.done()), default=0)
        return 0 if self._paused else min(limit, self.prefetch - len(self._held))

    async def _fetch_forever(self) -> None:
        while True:
            room = self._room()
            if room < 1 or self._buffer or self.session is None:
                self._wanted.clear()
                if self._buffer:
                    self._pass_on()
                await self._wanted.wait()
                continue
            try:
                if self._stale:
                    await self._sync(lost=True)
                    continue  # there may be no session any more
                reply = await self._fetch(room)
                self._well = True
                self._take(reply)
            except (RedisError, OSError) as error:
                if self._well:
                    logger.warning("%s cannot be fetched from: %s", self.queue, error, extra={"queue": self.queue})
                await self._stumble()
            except Exception:
                logger.exception("%s cannot be fetched from, by a fault of repid-redis", self.queue, extra={"queue": self.queue})
                await self._stumble()

    async def _stumble(self) -> None:
        """A fetch went wrong; it may have been carried out all the same."""
        self._stale, self._well = True, False
        await asyncio.sleep(_PAUSE.total_seconds())

    async def _fetch(self, room: int) -> Any:
        """Fetch up to `room` messages: those that there are, else the next to come."""
        assert self.session is not None  # noqa: S101
        client, settings, line = self.broker.client, self.broker.settings, self._line
        arguments: list[Any] = [self.session.name, self._epoch, room, settings.fetch_max_bytes]
        topics = self._topics or ()
        if self._letter == "n":
            script = FETCH
            if len(topics) > 1:
                self._topics.rotate(-1)  # type: ignore[union-attr]
            arguments.append("0")
        else:
            script = FETCH_OTHER
            arguments += (self._letter, self._skip)
        if not self._dry or line is None:
            return await client.run_once(script, self.base, *arguments, *topics)
        if not line.is_up:
            self._well = self._well and line.error is None
            await line.up(self._loop.time() + settings.connect_timeout.total_seconds())
        markers = [f"{self.base}w!{self.session.name}", f"{self.base}wd"]
        if self._letter == "n":
            markers[:0] = [f"{self.base}w:{topic}" for topic in topics]
            arguments[4] = "1"
        sha = client.source(script).sha
        woken = line.call("BZPOPMIN", *markers, settings.block_timeout.total_seconds(), more=True)
        reply = line.call("EVALSHA", sha, 1, self.base, *arguments, *topics)
        try:
            with suppress(NoScriptError):
                await woken
                return await reply
            return await client.run_once(script, self.base, *arguments, *topics)
        except ResponseError:  # of a primary that is none any more, say
            line.drop()
            await client.refresh()
            raise
        finally:
            woken.cancel()
            reply.cancel()

    def _take(self, reply: Any) -> None:
        status = reply[0]
        if status == _UNKNOWN and len(reply) == 1:
            if self.session is not None:
                self._lose()
                self._chore(self._say_hello_again())
            return
        if status == _OVER:
            return
        next_due, more, handles, records, rest = reply
        self._dry = not more
        deaths: Sequence[Any] = ()
        if self._letter == "n":
            deaths = rest
        else:
            self._skip = max(0, rest)
        self._arm(next_due)
        session = self.session
        if session is None:  # lost while this fetch was under way
            return
        for index, (handle, record) in enumerate(zip(handles, records, strict=True)):
            died = bool(deaths and deaths[index])
            self._number += 1
            delivery = RedisDelivery(self, session, self._number, handle, record, redelivered=died)
            self._held[delivery] = None
            self._buffer.append(delivery)
        self._pass_on()

    def _pass_on(self) -> None:
        """Wake a `receive`, or see to it that what nobody wants goes back."""
        if self._buffer:
            for waiter, _ in self._receivers:
                if not waiter.done():
                    waiter.set_result(None)
                    return
        if self._unwanted is None and self._pump is not None and not self._receivers_left():
            self._unwanted = self._loop.call_later(_UNWANTED, self._give_back)

    def _receivers_left(self) -> bool:
        return any(not waiter.done() for waiter, _ in self._receivers)

    def _give_back(self) -> None:
        self._unwanted = None
        if self._pump is None or self._receivers_left():
            return
        if self._buffer:
            buffer, self._buffer = list(self._buffer), deque()
            self._chore(self._reject(buffer))
        self._chore(self._withdraw())

    async def _reject(self, deliveries: Sequence[RedisDelivery]) -> None:
        with suppress(MessageBrokerError):  # if nothing helps, they come back when the lease is over
            await self.settlements.settle_with_others(REJECT, *deliveries)

    async def _withdraw(self) -> None:
        """Let a fetch that waits for a message wait no longer."""
        if self._dry and self.session is not None and self._line is not None:
            try:
                await self._sync(lost=False)
            except (RedisError, OSError):
                self._stale = True

    async def _sync(self, *, lost: bool) -> None:
        if (session := self.session) is None:
            return
        self._epoch += 1
        hands = (*self._held, *self.settlements.pending) if lost else ()
        known = [delivery.handle for delivery in hands if delivery.session is session]
        reply = (await self.broker.client.run(SYNC, self.base, session.name, self._epoch, int(lost), *known)).value
        self._dry = False
        if lost:
            self._stale = False
        if reply == _UNKNOWN and session is self.session:
            self._lose()
            self._chore(self._say_hello_again())

    # -- delayed messages --------------------------------------------------------------------------------------------------

    def _arm(self, next_due: int) -> None:
        """Have what is delayed made ready in time, whatever this consumer does meanwhile."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if next_due < 0 else self._loop.call_later(next_due / 1000, self._fall_due)

    def _fall_due(self) -> None:
        self._timer = None
        self._chore(self._tick())

    async def _tick(self) -> None:
        with suppress(RedisError, OSError):  # the next heartbeat sees to it
            self._arm((await self.broker.client.run(TICK, self.base)).value)

    def _chore(self, step: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(step, name=f"repid redis {self.queue}")
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def take_back(self, delivery: RedisDelivery) -> None:
        """A settlement was refused: it is in the hand as before."""
        self._held[delivery] = None

    def let_go(self, delivery: RedisDelivery) -> None:
        """It is being settled: what is fetched now comes after that, so there is room for another."""
        self._held.pop(delivery, None)
        self._wanted.set()

    def doubt(self) -> None:
        """A settlement failed: the server may still say that it is in this hand. It is put back before the next fetch."""
        self._stale = True
