"""Dead messages, many of them: counted, retried and removed as a stream, in bounded memory, with nothing lost on the way.

Messages are taken from DEAD under a lease, like any other, and settled in batches: a retry is one requeue each, which happens
wholly or not at all where the broker says so. What is in hand when the command is interrupted goes back; when it is killed, the
broker puts it back. The same command goes on where the last one ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

from attrs import define, frozen

from repid_core.abc import Consumer, Delivery
from repid_core.connection import Connection
from repid_core.data import Browsed, Capability, Death, MessageCategory
from repid_core.errors import CodecError, DeliveryLostError, DuplicateJobError
from repid_core.message import Message

_BATCH: Final = 100  # messages that are settled at once
_WINDOW: Final = 1000  # messages in hand: a batch, and those that are passed over
_QUIET: Final = 2.0  # seconds without a message after which there are none, where the broker cannot count those that are meant
_ALL: Final = 1 << 62


@frozen
class Wanted:
    """Which dead messages.

    Attributes:
        topics: Of these actors; none for all.
        before: Dead since before this time; None for all.
    """

    topics: frozenset[str] = frozenset()
    before: datetime | None = None

    @property
    def is_all(self) -> bool:
        """Whether it is every one."""
        return not self.topics and self.before is None

    def died_in_time(self, death: Death | None) -> bool:
        """Whether one that died so is old enough."""
        return self.before is None or (death is not None and death.at < self.before)

    def fits(self, browsed: Browsed) -> bool:
        """Whether it is meant."""
        return self.died_in_time(browsed.death) and (not self.topics or browsed.envelope.key.topic in self.topics)


@define
class Tally:
    """What became of the dead messages of one queue.

    Attributes:
        done: Retried, or removed.
        live: Left, for a live message has the id.
        unreadable: Left, for they cannot be decoded.
        younger: Seen, and left for their time of death.
        lost: Left, for their lease was lost on the way.
        full: Whether it ended because so many were left that there was no hand free for the others.
    """

    done: int = 0
    live: int = 0
    unreadable: int = 0
    younger: int = 0
    lost: int = 0
    full: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether all that are meant were settled."""
        return not (self.live or self.unreadable or self.lost or (self.full and not self.younger))

    @property
    def passed_over(self) -> int:
        """How many are in hand to the end, so that they do not come again."""
        return self.live + self.unreadable + self.younger


async def count(connection: Connection, queue: str, wanted: Wanted) -> int | None:
    """How many are meant; None if the broker cannot tell, or cannot list them, or one among them cannot be read."""
    broker = connection.message_broker
    if wanted.is_all:
        return (await broker.queue_stats(queue)).dead
    if Capability.BROWSE not in broker.capabilities:
        return None
    found = 0
    try:
        async for browsed in broker.browse(queue, MessageCategory.DEAD, limit=_ALL):
            found += wanted.fits(browsed)
    except CodecError:
        return None
    return found


async def each(
    connection: Connection,
    queue: str,
    wanted: Wanted,
    settle: Callable[[Message], Awaitable[None]],
    *,
    most: int | None,
    stop: asyncio.Event,
    progress: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Settle the dead messages that are meant.

    Args:
        connection: Open.
        queue: Whose dead.
        wanted: Which of them.
        settle: What to do with one.
        most: End after so many, so that those that die anew meanwhile are left; None ends when there are none for two seconds.
        stop: Ends it after the batch at hand.
        progress: Called after every batch.
    """
    tally = Tally()
    consumer = connection.message_broker.consumer(queue, wanted.topics or None, prefetch=_WINDOW, category=MessageCategory.DEAD)
    try:
        await consumer.start()
        while not stop.is_set() and (most is None or tally.done + tally.live + tally.unreadable + tally.lost < most):
            room = _WINDOW - tally.passed_over
            if room < 1:
                tally.full = True
                break
            deliveries = await _receive(consumer, min(_BATCH, room), stop)
            if not deliveries:
                break
            steps = (_settle(delivery, connection, wanted, settle, tally) for delivery in deliveries)
            ended = await asyncio.gather(*steps, return_exceptions=True)
            progress(tally)
            if failures := [failure for failure in ended if failure is not None]:
                raise failures[0]
    finally:
        await consumer.close()
    return tally


async def held(connection: Connection, queue: str, limit: int) -> list[Delivery]:
    """Look at up to `limit` dead messages where the broker cannot list them: they are taken, and given back."""
    consumer = connection.message_broker.consumer(queue, None, prefetch=limit, category=MessageCategory.DEAD)
    seen: list[Delivery] = []
    try:
        await consumer.start()
        while len(seen) < limit and (deliveries := await _receive(consumer, limit - len(seen), asyncio.Event())):
            seen += deliveries
    finally:
        await consumer.close()
    return seen


async def _receive(consumer: Consumer, limit: int, stop: asyncio.Event) -> Sequence[Delivery]:
    """The next ones; none if none come, or if it is to stop."""
    receiving = asyncio.ensure_future(consumer.receive(limit))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((receiving, stopping), timeout=_QUIET, return_when=asyncio.FIRST_COMPLETED)
        return receiving.result() if receiving.done() else ()
    finally:
        stopping.cancel()
        receiving.cancel()
        with suppress(asyncio.CancelledError):
            await receiving


async def _settle(
    delivery: Delivery, connection: Connection, wanted: Wanted, settle: Callable[[Message], Awaitable[None]], tally: Tally
) -> None:
    if not wanted.died_in_time(delivery.death):
        tally.younger += 1
        return
    try:
        await settle(Message(delivery, connection))
    except DuplicateJobError:
        tally.live += 1
    except CodecError:
        tally.unreadable += 1
    except DeliveryLostError:
        tally.lost += 1
    else:
        tally.done += 1
