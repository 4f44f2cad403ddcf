"""The message broker."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from attrs import asdict, evolve

from repid_core.abc import Consumer, MessageBroker
from repid_core.codec import death_from_fields, decode_envelope, encode_envelope
from repid_core.data import Browsed, Capability, Enqueued, Envelope, Limits, MessageCategory, QueueStats
from repid_core.errors import (
    BrokerConnectionError,
    EnqueueError,
    MessageBrokerError,
    NotConnectedError,
    PayloadTooLargeError,
)
from repid_sqlite import fetching, messages, queues, sessions
from repid_sqlite.consumer import SqliteConsumer
from repid_sqlite.database import Database
from repid_sqlite.fetching import Taken, Want
from repid_sqlite.messages import Row
from repid_sqlite.queues import Page
from repid_sqlite.settings import SqliteMessageBrokerSettings
from repid_sqlite.transaction import Transaction, key_of

_EPOCH_MICROSECONDS = 1_000_000
_AT_ONCE = 1000  # messages in one transaction, so that other processes get their turn
_PAGE = 200
_START = (-1, -1, -1)


class SqliteMessageBroker(MessageBroker):
    """Messages in a file of SQLite, which the processes of one machine share; every capability.

    Args:
        url: The file; see `SqliteMessageBrokerSettings`, whose other fields are taken by name.
    """

    capabilities = frozenset(Capability)

    def __init__(self, url: str | Path, **settings: Any) -> None:
        self.settings = SqliteMessageBrokerSettings(url, **settings)
        self.limits = Limits(
            lease=self.settings.lease,
            max_payload=self.settings.max_payload,
            max_deliveries=self.settings.max_deliveries,
            max_delay=timedelta(days=36525),
        )
        self._database: Database | None = None
        self._standing = _Standing(self)
        self.consumers: dict[int, SqliteConsumer] = {}
        self._numbers = itertools.count(1)
        self._listening: Counter[str] = Counter()

    @classmethod
    def from_settings(cls, settings: SqliteMessageBrokerSettings) -> Self:
        """Make one as configured."""
        return cls(settings.url, **{name: value for name, value in asdict(settings).items() if name != "url"})

    @property
    def database(self) -> Database:
        """The open file.

        Raises:
            NotConnectedError: It is not open.
        """
        if self._database is None:
            raise NotConnectedError
        return self._database

    def name_of(self, queue: str) -> str:
        """A queue's name in the file."""
        return f"{self.settings.space}:{queue}"

    async def connect(self) -> None:
        if self._database is not None:
            if self._database.is_here():
                return
            self._database.forsake()
            self._standing = _Standing(self)
            self.consumers, self._listening = {}, Counter()
        self._database = Database(
            self.settings,
            self.clock,
            BrokerConnectionError,
            MessageBrokerError,
            self._standing,
            self.settings.max_deliveries,
        )
        try:
            await self._database.open()
            if not self._database.woken:
                self.limits = evolve(self.limits, wake_up=self.settings.poll)
        except BaseException:
            await self.disconnect()
            raise

    async def disconnect(self) -> None:
        for consumer in list(self.consumers.values()):
            await consumer.close()
        database, self._database = self._database, None
        if database is not None:
            await database.close()

    async def ping(self) -> None:
        await self.database.call(queues.STATS, self.name_of(""))

    async def enqueue(self, envelope: Envelope) -> Enqueued:
        [outcome] = await self.database.call(messages.ENQUEUE, [self.row(envelope)])
        if isinstance(outcome, EnqueueError):
            raise outcome
        return outcome

    async def enqueue_many(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        outcomes: list[Enqueued | EnqueueError] = []
        for start in range(0, len(envelopes), _AT_ONCE):
            part = [self._row_or_error(envelope) for envelope in envelopes[start : start + _AT_ONCE]]
            try:
                done = await self.database.call(messages.ENQUEUE, [row for row in part if isinstance(row, Row)])
            except BrokerConnectionError as error:
                if not start:
                    raise
                lost = EnqueueError(str(error))
                lost.__cause__ = error
                return [*outcomes, *[lost] * (len(envelopes) - start)]
            ordered = iter(done)
            outcomes += [next(ordered) if isinstance(row, Row) else row for row in part]
        return outcomes

    def row(self, envelope: Envelope) -> Row:
        """What of a message goes into the file.

        Raises:
            PayloadTooLargeError: It is larger than it may be.
        """
        if (size := len(envelope.payload)) > self.settings.max_payload:
            raise PayloadTooLargeError(size, self.settings.max_payload)
        key = envelope.key
        due = 0 if envelope.due is None else -int(-envelope.due.timestamp() * _EPOCH_MICROSECONDS // 1)
        frame = encode_envelope(envelope)
        return Row(self.name_of(key.queue), key.topic, key.id_, 9 - key.priority, due, frame, envelope.on_duplicate)

    def _row_or_error(self, envelope: Envelope) -> Row | EnqueueError:
        try:
            return self.row(envelope)
        except EnqueueError as error:
            return error

    def consumer(
        self,
        queue: str,
        topics: Collection[str] | None,
        *,
        prefetch: int,
        category: MessageCategory = MessageCategory.NORMAL,
    ) -> Consumer:
        return SqliteConsumer(self, queue, topics, prefetch, category)

    async def declare_queue(self, queue: str, topics: Collection[str] = ()) -> None:
        await self.database.call(queues.DECLARE, (self.name_of(queue), tuple(topics)))

    async def flush_queue(self, queue: str) -> None:
        while await self.database.call(queues.FLUSH, self.name_of(queue)):
            pass

    async def delete_queue(self, queue: str) -> None:
        await self.flush_queue(queue)
        await self.database.call(queues.DELETE, self.name_of(queue))

    async def queue_stats(self, queue: str) -> QueueStats:
        return await self.database.call(queues.STATS, self.name_of(queue))

    async def queue_names(self) -> Sequence[str]:
        return await self.database.call(queues.NAMES, self.settings.space)

    async def cancel(self, queue: str, id_: str) -> bool:
        return await self.database.call(queues.CANCEL, (self.name_of(queue), id_))

    async def browse(
        self,
        queue: str,
        category: MessageCategory,
        *,
        after: str | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Browsed]:
        place = _START if after is None else _parse(after)
        while limit > 0:
            page = Page(self.name_of(queue), category, place, min(limit, _PAGE))
            found = await self.database.call(queues.BROWSE, page)
            for place, frame, death in found:
                died = None if death is None else death_from_fields(json.loads(death))
                yield Browsed(".".join(map(str, place)), decode_envelope(frame), died)
            limit = limit - len(found) if len(found) == page.limit else 0

    # What consumers need

    async def attach(self, consumer: SqliteConsumer) -> None:
        """Let a consumer hear of its queue."""
        self._listening[consumer.name] += 1
        number = next(self._numbers)
        self.consumers[number] = consumer
        await self.database.call(sessions.LISTEN, consumer.name)
        if self.consumers.get(number) is consumer:
            consumer.resume_as((self.database.session << sessions.CONSUMERS) + number)

    async def detach(self, consumer: SqliteConsumer) -> None:
        """Give back all that a consumer holds, in the file too, and forget it."""
        database = self.database
        number = next((number for number, one in self.consumers.items() if one is consumer), 0)
        self.consumers.pop(number, None)
        self._standing.wants.pop(consumer.holder, None)
        self._listening[consumer.name] -= 1
        calls: list[asyncio.Future[Any]] = []
        if consumer.holder:
            calls.append(database.call(messages.GIVE_BACK, (consumer.holder, consumer.name), insist=True))
        if self._listening[consumer.name] <= 0:
            del self._listening[consumer.name]
            calls.append(database.call(sessions.UNLISTEN, consumer.name))
        await asyncio.gather(*calls)

    def want(self, consumer: SqliteConsumer, want: Want) -> None:
        """Have the thread look for something, now and until it comes."""
        if want.holder not in self._standing.wants:
            self._standing.wants[want.holder] = want
            self.database.look_again()

    def session_lost(self) -> None:
        """There is a new session: all consumers lose what they hold, and go on in it."""
        self._standing.wants.clear()
        for consumer in self.consumers.values():
            consumer.lose()
        for number, consumer in self.consumers.items():
            self.database.call(sessions.LISTEN, consumer.name).add_done_callback(_heard)
            consumer.resume_as((self.database.session << sessions.CONSUMERS) + number)

    def arrive(self, arrivals: list[tuple[Want, list[Taken]]]) -> None:
        """Give consumers what has come for them."""
        for want, taken in arrivals:
            consumer = self.consumers.get(want.holder & ((1 << sessions.CONSUMERS) - 1))
            if consumer is not None:
                consumer.arrive(want.holder, taken)


class _Standing:
    """What the consumers of a broker want. Consumers add to it on the loop, and the thread takes away what it brings."""

    def __init__(self, broker: SqliteMessageBroker) -> None:
        self.wants: dict[int, Want] = {}
        self._broker = broker
        self._found: list[Want] = []

    def waits(self) -> bool:
        return bool(self.wants)

    def look(self, tx: Transaction, keys: set[bytes] | None) -> bool:
        self._found = [
            want
            for want in list(self.wants.values())
            if want.holder >> sessions.CONSUMERS == tx.session  # not one that was lost, unknown to the loop
            and (keys is None or key_of(want.queue) in keys)
            and fetching.available(tx, want)
        ]
        return bool(self._found)

    def take(self, tx: Transaction) -> list[tuple[Want, list[Taken]]]:
        return [(want, taken) for want in self._found if want.holder in self.wants and (taken := fetching.fetch(tx, want))]

    def taken(self, arrivals: list[tuple[Want, list[Taken]]]) -> None:
        for want, _ in arrivals:
            self.wants.pop(want.holder, None)

    def arrive(self, arrivals: list[tuple[Want, list[Taken]]]) -> None:
        self._broker.arrive(arrivals)

    def due(self, tx: Transaction) -> int | None:
        names = {want.queue for want in list(self.wants.values()) if want.category is MessageCategory.NORMAL}
        return min((due for queue in names if (due := fetching.next_due(tx, queue)) is not None), default=None)

    def lost(self) -> None:
        self._broker.session_lost()


def _parse(cursor: str) -> tuple[int, int, int]:
    try:
        rank, place, number = map(int, cursor.split("."))
    except ValueError as error:
        raise ValueError(f"after={cursor!r} is no cursor that browse gave") from error
    return rank, place, number


def _heard(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
