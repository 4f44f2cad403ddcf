"""The message broker on Redis and Valkey."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, TypeVar

from attrs import asdict
from redis.exceptions import RedisError

from repid_core.abc import Consumer, MessageBroker
from repid_core.codec import to_ms
from repid_core.data import Browsed, Capability, Enqueued, Envelope, Limits, MessageCategory, QueueStats
from repid_core.errors import (
    BrokerConnectionError,
    DuplicateJobError,
    EnqueueError,
    MessageBrokerError,
    NotConnectedError,
    PayloadTooLargeError,
)
from repid_redis.client import Client, UnreachableError, moment
from repid_redis.consumer import RedisConsumer
from repid_redis.errors import explain
from repid_redis.heartbeat import Heartbeat
from repid_redis.link import LinkLostError, Reply
from repid_redis.records import Stamps, decode, decode_dead, encode, place_of
from repid_redis.scripts import BROWSE_OTHER, BROWSE_READY, CANCEL, DELETE, ENQUEUE, FLUSH, STATS, Script
from repid_redis.settings import RedisMessageBrokerSettings
from repid_redis.topology import topology

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_MODES: Final = {"raise": "r", "keep": "k", "replace": "p"}
_OUTCOMES: Final = {b"new": Enqueued.NEW, b"replaced": Enqueued.REPLACED, b"kept": Enqueued.KEPT}
_LETTERS: Final = {MessageCategory.DELAYED: "d", MessageCategory.DEAD: "x"}
_PAGE: Final = 100  # messages that browse reads at once
_SCAN: Final = 1000  # keys that are looked at at once
_OLDEST: Final = (6, 2)

_Row = tuple[str, tuple[str, int | str, str], bytes]  # of a message: id; place, due time and what to do with the id; record
_Waiting = tuple[_Row, "asyncio.Future[Enqueued]"]


class RedisMessageBroker(MessageBroker):
    """Carries messages through Redis or Valkey, with every capability.

    Every step of a message is one script, so it happens wholly or not at all. Workers hold messages under a lease that a
    heartbeat keeps, from a thread of its own.

    Args:
        url: Where the server is; see `RedisMessageBrokerSettings`, also for all others.
        settings: The other settings, by name.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: There is no setting of this name.
    """

    capabilities = frozenset(Capability)

    def __init__(self, url: str = "redis://localhost:6379/0", **settings: Any) -> None:
        self.settings = RedisMessageBrokerSettings(url, **settings)
        self.limits = Limits(
            lease=self.settings.lease, max_payload=self.settings.max_payload, max_deliveries=self.settings.max_deliveries
        )
        self.consumers: set[RedisConsumer] = set()
        self._topology = topology(self.settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stamp = Stamps()
        self._batches: dict[str, list[_Waiting]] = {}
        self._sizes: dict[str, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    def from_settings(cls, settings: RedisMessageBrokerSettings) -> RedisMessageBroker:
        """Make one as configured."""
        return cls(**asdict(settings, recurse=False))

    # -- the connection ----------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        client = Client(self._topology, self.settings)
        try:
            await client.open()
        except (RedisError, OSError) as error:
            raise self.connection_error(error) from error
        if self._loop is loop:  # somebody else was faster
            await client.close()
            return
        self._check_server(client.info)
        self.client, self.heartbeat, self._loop = client, Heartbeat(self.settings, client), loop
        # WAIT blocks the connection that it is sent on, so acknowledgements take another.
        self._producer = Client(self._topology, self.settings) if self.settings.wait_replicas else client
        if self._producer is not client:
            try:
                await self._producer.open()
            except BaseException as error:
                self._loop = None
                await client.close()
                if isinstance(error, RedisError | OSError):
                    raise self.connection_error(error) from error
                raise
        self.consumers, self._batches, self._sizes, self._tasks = set(), {}, {}, set()

    def _check_server(self, info: dict[str, str]) -> None:
        version = info.get("redis_version", "")
        if version and tuple(map(int, version.split(".")[:2])) < _OLDEST:
            logger.warning("%s runs Redis %s; repid-redis wants %d.%d or newer", self._topology.address, version, *_OLDEST)
        policy = info.get("maxmemory_policy", "noeviction")
        if self.settings.check_eviction_policy and policy.startswith("allkeys"):
            logger.warning(
                "%s has the eviction policy %s, which drops jobs when the memory is full: set maxmemory-policy to noeviction",
                self._topology.address,
                policy,
            )

    async def disconnect(self) -> None:
        if self._loop is None:
            return
        async with AsyncExitStack() as stack:  # whatever goes wrong, all of it is closed
            stack.push_async_callback(self._drop_tasks)
            stack.push_async_callback(self.client.close)
            stack.push_async_callback(self._producer.close)
            stack.push_async_callback(self.heartbeat.stop)
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
        self.heartbeat.abandon()
        self._producer.abandon()
        self.client.abandon()

    async def ping(self) -> None:
        self.check()
        await self._within(self.client.call("", "PING"))

    async def server_time(self) -> datetime:
        self.check()
        return moment(await self._within(self.client.call("", "TIME")))

    def check(self) -> None:
        """Raise `NotConnectedError` unless it is connected."""
        if self._loop is None:
            raise NotConnectedError

    def base(self, queue: str) -> str:
        """What the keys of a queue begin with."""
        return f"{self.settings.prefix}:{{{queue}}}:"

    def connection_error(self, error: Exception) -> BrokerConnectionError:
        """What users are told when the server cannot be reached, or refuses to be connected to."""
        return BrokerConnectionError(explain(error, self._topology.address))

    def carry_out(self, step: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run a step that is to be ended even if nobody waits for it any more."""
        task = asyncio.get_running_loop().create_task(step)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def step(self, script: Script, base: str, *arguments: Any) -> Any:
        """Run a script, and put its failure into words."""
        self.check()
        return (await self._within(self.client.run(script, base, *arguments))).value

    async def within(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Await a call, and put its failure into words."""
        try:
            return await call
        except (UnreachableError, OSError) as error:
            raise self.connection_error(error) from error
        except RedisError as error:
            raise MessageBrokerError(explain(error, self._topology.address)) from error

    _within = within

    # -- messages come in --------------------------------------------------------------------------------------------------

    async def enqueue(self, envelope: Envelope) -> Enqueued:
        self.check()
        row = self._row(envelope)
        queue, loop = envelope.key.queue, asyncio.get_running_loop()
        waiting = loop.create_future()
        batch = self._batches.get(queue)
        if batch is None:
            batch = self._batches[queue] = []
            self._sizes[queue] = 0
            loop.call_soon(self._send, queue, batch)
        batch.append((row, waiting))
        self._sizes[queue] += len(row[2])
        if 2 * len(batch) >= self.settings.merge_batch or self._sizes[queue] >= self.settings.merge_bytes:
            self._send(queue, batch)
        outcome: Enqueued = await waiting
        return outcome

    def _send(self, queue: str, batch: list[_Waiting]) -> None:
        """Send what was enqueued in this turn of the loop with one call, unless it was sent for its size."""
        if self._batches.get(queue) is not batch:
            return
        del self._batches[queue]
        rows = [row for row, _ in batch]
        reply = None
        if not self.settings.wait_replicas:
            reply = self.client.post(ENQUEUE, self.base(queue), *_words(rows))
        if reply is None:
            self.carry_out(self._send_again(queue, rows, batch, sent=False))
        else:
            reply.add_done_callback(partial(self._sent, queue, rows, batch))

    def _sent(self, queue: str, rows: list[_Row], batch: list[_Waiting], reply: Reply) -> None:
        if reply.cancelled() or (error := reply.exception()) is not None:
            self.carry_out(self._send_again(queue, rows, batch, sent=isinstance(error, LinkLostError)))
        else:
            _tell(batch, _outcomes(rows, reply.result()))

    async def _send_again(self, queue: str, rows: list[_Row], batch: list[_Waiting], *, sent: bool) -> None:
        _tell(batch, await self._enqueue(queue, rows, sent=sent))

    async def enqueue_many(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        self.check()
        outcomes: list[Any] = [None] * len(envelopes)
        places: dict[str, list[int]] = {}
        rows: dict[str, list[_Row]] = {}
        for index, envelope in enumerate(envelopes):
            try:
                row = self._row(envelope)
            except EnqueueError as error:
                outcomes[index] = error
            else:
                places.setdefault(envelope.key.queue, []).append(index)
                rows.setdefault(envelope.key.queue, []).append(row)
        parts = [(queue, part) for queue in rows for part in self._parts(rows[queue])]
        tasks = [self.carry_out(self._enqueue(queue, part)) for queue, part in parts]
        done = await asyncio.gather(*tasks)
        told = {queue: iter(indices) for queue, indices in places.items()}
        for (queue, _), results in zip(parts, done, strict=True):
            for result in results:
                outcomes[next(told[queue])] = result
        unreachable = [outcome for outcome in outcomes if isinstance(outcome, BrokerConnectionError)]
        if unreachable and len(unreachable) == sum(map(len, rows.values())):
            raise unreachable[0]
        return [_as_enqueue_error(outcome) for outcome in outcomes]

    def _parts(self, rows: list[_Row]) -> list[list[_Row]]:
        parts, size = [list[_Row]()], 0
        for row in rows:
            if len(parts[-1]) >= self.settings.merge_batch or size >= self.settings.merge_bytes:
                parts.append([])
                size = 0
            parts[-1].append(row)
            size += len(row[2])
        return parts

    async def _enqueue(self, queue: str, rows: list[_Row], *, sent: bool = False) -> list[Enqueued | MessageBrokerError]:
        """One outcome for each; errors are returned. `sent`: it may have been carried out before."""
        try:
            answer = await self._producer.run(ENQUEUE, self.base(queue), *_words(rows), again=sent)
            if self.settings.wait_replicas:
                await self._replicated(queue)
        except UnreachableError as error:
            failure: MessageBrokerError = self.connection_error(error)
            if error.sent:
                failure = EnqueueError(f"{failure}; it may have been enqueued", maybe_enqueued=True)
            failure.__cause__ = error
            return [failure] * len(rows)
        except (RedisError, OSError) as error:
            refused = EnqueueError(explain(error, self._topology.address))
            refused.__cause__ = error
            return [refused] * len(rows)
        except EnqueueError as error:
            return [error] * len(rows)
        return _outcomes(rows, answer.value)

    async def _replicated(self, queue: str) -> None:
        """Wait for as many replicas as are asked for to have what was enqueued."""
        wanted, patience = self.settings.wait_replicas, self.settings.reply_deadline / 2
        have = await self._producer.call(self.base(queue), "WAIT", wanted, patience // timedelta(milliseconds=1))
        if have < wanted:
            raise EnqueueError(
                f"{have} of the {wanted} replicas that wait_replicas asks for had the message within {patience}: "
                "it is on the primary, and may be lost in a fail-over",
                maybe_enqueued=True,
            )

    def _row(self, envelope: Envelope) -> _Row:
        key = envelope.key
        record = self.checked(encode(envelope, self._stamp()), envelope)
        return key.id_, (place_of(key), self.due(envelope), _MODES[envelope.on_duplicate]), record

    def checked(self, record: bytes, envelope: Envelope) -> bytes:
        """Raise `PayloadTooLargeError` if the payload is over the limit."""
        limit = self.settings.max_payload
        if limit is not None and len(envelope.payload) > limit:
            raise PayloadTooLargeError(len(envelope.payload), limit)
        return record

    @staticmethod
    def due(envelope: Envelope) -> int | str:
        """The due time as the scripts want it."""
        return "" if envelope.due is None else to_ms(envelope.due)

    # -- messages go out -----------------------------------------------------------------------------------------------------

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
        return RedisConsumer(self, queue, topics, prefetch, category)

    # -- the operator's view -------------------------------------------------------------------------------------------------

    async def declare_queue(self, queue: str, topics: Collection[str] = ()) -> None:
        self.check()  # a queue is there as soon as it has something

    async def flush_queue(self, queue: str) -> None:
        await self.step(FLUSH, self.base(queue))

    async def delete_queue(self, queue: str) -> None:
        await self.step(DELETE, self.base(queue))

    async def queue_names(self) -> Sequence[str] | None:
        self.check()
        if self.settings.mode == "cluster":  # each node would have to be asked
            return None
        start, names = f"{self.settings.prefix}:{{".encode(), set[str]()
        async for key in self._keys(f"{self.settings.prefix}:{{*}}:*"):
            names.add(key.removeprefix(start).partition(b"}")[0].decode())
        return sorted(names)

    async def _keys(self, pattern: str) -> AsyncIterator[bytes]:
        cursor = b"0"
        while True:
            cursor, keys = await self._within(self.client.call("", "SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN))
            for key in keys:
                yield key
            if cursor == b"0":
                return

    async def queue_stats(self, queue: str) -> QueueStats:
        return QueueStats(*await self.step(STATS, self.base(queue)))

    async def cancel(self, queue: str, id_: str) -> bool:
        return bool(await self.step(CANCEL, self.base(queue), id_))

    def browse(
        self,
        queue: str,
        category: MessageCategory,
        *,
        after: str | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Browsed]:
        self.check()
        if after is not None and after.count(":") < (1 if category is MessageCategory.DEAD else 2):
            raise ValueError(f"after={after!r} is no cursor: pass the `cursor` of a message that browse gave")
        if category is MessageCategory.NORMAL:
            return self._browse_ready(queue, after, limit)
        return self._browse_other(queue, category, after, limit)

    async def _browse_ready(self, queue: str, after: str | None, limit: int) -> AsyncIterator[Browsed]:
        while limit > 0:
            seen = () if after is None else after.split(":", 2)
            found = await self.step(BROWSE_READY, self.base(queue), min(limit, _PAGE), *seen)
            for place, index, id_, record in zip(*[iter(found)] * 4, strict=True):
                after = f"{place.decode()}:{index}:{id_.decode()}"
                limit -= 1
                yield Browsed(after, decode(record, id_.decode(), queue))
            if not found:
                return

    async def _browse_other(self, queue: str, category: MessageCategory, after: str | None, limit: int) -> AsyncIterator[Browsed]:
        while limit > 0:
            seen = () if after is None else after.split(":", 1)
            if seen and category is MessageCategory.DELAYED:
                seen[1] = seen[1].replace(":", "\n", 1)
            found = await self.step(BROWSE_OTHER, self.base(queue), min(limit, _PAGE), _LETTERS[category], *seen)
            for score, member, record in zip(*[iter(found)] * 3, strict=True):
                after = f"{score.decode()}:{member.decode()}".replace("\n", ":")
                limit -= 1
                if category is MessageCategory.DEAD:
                    id_, stored, death = decode_dead(record)
                    yield Browsed(after, decode(stored, id_, queue), death)
                else:
                    yield Browsed(after, decode(record, member.decode().partition("\n")[2], queue))
            if not found:
                return


def _as_enqueue_error(outcome: Any) -> Enqueued | EnqueueError:
    if isinstance(outcome, Enqueued | EnqueueError):
        return outcome
    error = EnqueueError(str(outcome))
    error.__cause__ = outcome
    return error


def _words(rows: Sequence[_Row]) -> list[Any]:
    """Messages as the script wants them: what neighbours have in common is said once."""
    words: list[Any] = []
    for common, run in groupby(rows, key=itemgetter(1)):
        each = [word for id_, _, record in run for word in (id_, record)]
        words += [len(each) // 2, *common, *each]
    return words


def _outcomes(rows: Sequence[_Row], states: int | Sequence[bytes]) -> list[Enqueued | MessageBrokerError]:
    if isinstance(states, int):
        return [Enqueued.NEW] * len(rows)
    return [_OUTCOMES.get(state) or DuplicateJobError(row[0], state.decode()) for row, state in zip(rows, states, strict=True)]


def _tell(batch: Sequence[_Waiting], outcomes: Sequence[Enqueued | MessageBrokerError]) -> None:
    for (_, waiting), outcome in zip(batch, outcomes, strict=True):
        if waiting.done():  # cancelled
            continue
        if isinstance(outcome, Enqueued):
            waiting.set_result(outcome)
        else:
            waiting.set_exception(outcome)
