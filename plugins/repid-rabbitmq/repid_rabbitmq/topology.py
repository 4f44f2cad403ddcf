"""What is on the server: the queues and exchanges behind one queue, how they are made, looked at, and removed.

A message that is due at once goes to the main queue. One that is due in n seconds goes round through levels: level i is a
queue in which all messages stay for 2^i seconds, so that none holds back another, and it is left for the main queue, or for
the level of the next bit that is set in n. The bits are the routing key; the exchange i knows that those from i on are done.
This is the scheme of NServiceBus, with a binding for each pair of levels, so that bits that are not set cost nothing. Levels
are quorum queues whatever the main queue is: what they pass on at least once, classic queues lose when the server is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from attrs import frozen
from pamqp import commands
from pamqp.base import Frame

from repid_core.data import Envelope, Priority, QueueStats
from repid_rabbitmq.line import Line
from repid_rabbitmq.link import Channel, ChannelClosedError
from repid_rabbitmq.settings import RabbitMessageBrokerSettings

VERSION: Final = "v1"
LEVELS: Final = 25  # 2^25 s are 388 days
STEP: Final = timedelta(seconds=1)
LANES: Final = (Priority.HIGH, Priority.MEDIUM, Priority.LOW)
PRIORITIES: Final = {Priority.LOW: 0, Priority.MEDIUM: 1, Priority.HIGH: 2}
RETURNED: Final = 3  # the server's priority of what has come back to a classic queue
_LETTERS: Final = {Priority.LOW: "l", Priority.MEDIUM: "m", Priority.HIGH: "h"}
_SUFFIXES: Final = {Priority.LOW: ":low", Priority.MEDIUM: "", Priority.HIGH: ":high"}
_FOREVER: Final = 1_000_000_000  # returns of a message; RabbitMQ 4 drops messages after 20 unless told otherwise
_COUNTED: Final = timedelta(days=1)  # for which the deaths that a message has caused are remembered
_MISSING, _MISMATCH = 404, 406
_MODE: Final = "x-queue-mode"
_ON_DISK: Final = (3, 12)  # from here on, classic queues need not be told to keep messages on disk


@frozen
class Names:
    """What belongs to one queue is called so on the server. Names of queues have no colon, so none is that of another."""

    base: str
    quorum: bool

    def main(self, priority: Priority) -> str:
        """The queue of what is ready."""
        return self.base + _SUFFIXES[priority] if self.quorum else self.base

    @property
    def mains(self) -> Sequence[str]:
        """All queues of what is ready, the most urgent first."""
        return [self.main(priority) for priority in LANES] if self.quorum else [self.base]

    @property
    def dead(self) -> str:
        """The queue of what is dead."""
        return f"{self.base}:dead"

    def level(self, bit: int) -> str:
        """The queue in which messages stay for 2^bit seconds."""
        return f"{self.base}:delay:{bit:02}"

    def exchange(self, bit: int) -> str:
        """The exchange for messages of which the bits from this one on are done."""
        return f"{self.base}:bits:{bit:02}"

    @property
    def delays(self) -> str:
        """The exchange that is made once all of the levels are there."""
        return f"{self.base}:delay"

    def deaths(self, id_: str) -> str:
        """The queue that has as many messages as workers have died while they ran this one."""
        return f"{self.base}:deaths:{blake2b(id_.encode(), digest_size=16).hexdigest()}"


def steps(due: datetime | None, now: datetime) -> int:
    """How many seconds a message is to wait, rounded up."""
    if due is None or due <= now:
        return 0
    return min(-((now - due) // STEP), (1 << LEVELS) - 1)


@lru_cache(1024)
def _bits(seconds: int, priority: Priority) -> str:
    return ".".join((*f"{seconds:0{LEVELS}b}", _LETTERS[priority]))


class Topology:
    """Makes what is missing, once for each queue, and looks after it.

    Args:
        settings: Of the broker.
    """

    def __init__(self, settings: RabbitMessageBrokerSettings) -> None:
        self._settings = settings
        self._names: dict[str, Names] = {}
        self._known: set[str] = set()
        self._delayed: set[str] = set()
        self._absent: dict[str, float] = {}  # queues that had no levels, and when to look again
        self._making = asyncio.Lock()

    def names(self, queue: str) -> Names:
        """The names of a queue."""
        names = self._names.get(queue)
        if names is None:
            base = f"{self._settings.prefix}.{VERSION}:{queue}"
            names = self._names[queue] = Names(base, self._settings.queue_type == "quorum")
        return names

    def way(self, envelope: Envelope, seconds: int) -> tuple[str, str]:
        """Exchange and routing key for a message that is to wait for so many seconds."""
        names, priority = self.names(envelope.key.queue), envelope.key.priority
        if not seconds:
            return "", names.main(priority)
        return names.exchange(seconds.bit_length()), _bits(seconds, priority)

    def round(self, queue: str, priority: Priority, seconds: int) -> tuple[str, str]:
        """The same for a message that was there already."""
        return self.names(queue).exchange(seconds.bit_length()), _bits(seconds, priority)

    def has(self, queue: str, *, delays: bool = False) -> bool:
        """Whether the queue, and its levels, are known to be there."""
        return queue in (self._delayed if delays else self._known)

    def forget(self, queue: str) -> None:
        """It may be gone."""
        self._known.discard(queue)
        self._delayed.discard(queue)

    async def ensure(self, line: Line, queue: str, *, delays: bool = False) -> None:
        """See to it that the queue is there, and its levels.

        Raises:
            ChannelClosedError: What is there is different, something is missing that may not be made, or it is not allowed.
            LinkLostError, UnreachableError: The server could not be asked.
        """
        await line.up(self._settings.connect_timeout.total_seconds())  # all who wait do so at once
        async with self._making:
            if queue not in self._known:
                await self._make(line, queue)
                self._known.add(queue)
            if delays and queue not in self._delayed:
                names = self.names(queue)
                if not await self._exists(line, names):
                    if not self._settings.declare:
                        raise ChannelClosedError(
                            _MISSING, f"NOT_FOUND - no exchange '{names.delays}', which says that levels are there"
                        )
                    await self._run(line, self._levels(names))
                    await self._run(
                        line, [commands.Exchange.Declare(exchange=names.delays, exchange_type="fanout", durable=True)]
                    )
                self._delayed.add(queue)

    async def _make(self, line: Line, queue: str) -> None:
        """Declare the queue. One that another version of the server has made stays as it is."""
        lazy = () < line.version < _ON_DISK
        try:
            await self._run(line, [self._declared(mine) for mine in self._mine(queue, lazy=lazy)])
        except ChannelClosedError as error:
            if f"inequivalent arg '{_MODE}'" not in error.text:
                raise
            await self._run(line, [self._declared(mine) for mine in self._mine(queue, lazy=not lazy)])

    def _mine(self, queue: str, *, lazy: bool) -> list[tuple[str, dict[str, Any]]]:
        """Names and arguments.

        `lazy` is for classic queues: what they keep in memory too costs an older server more to look after than to read again.
        """
        names, kind = self.names(queue), self._settings.queue_type
        common: dict[str, Any] = {"x-queue-type": kind}
        if kind == "classic" and lazy:
            common[_MODE] = "lazy"
        if kind == "quorum":
            common["x-delivery-limit"] = _FOREVER
            if self._settings.quorum_group_size is not None:
                common["x-quorum-initial-group-size"] = self._settings.quorum_group_size
        ready = common if kind == "quorum" else {**common, "x-max-priority": RETURNED}
        mains = sorted(names.mains, key=len)  # first the one that both types have: if it is of the other, nothing else is made
        return [*((name, ready) for name in mains), (names.dead, common)]

    def _declared(self, queue: tuple[str, dict[str, Any]]) -> Frame:
        name, arguments = queue
        if not self._settings.declare:
            return commands.Queue.Declare(queue=name, passive=True)
        return commands.Queue.Declare(queue=name, durable=True, arguments=arguments)

    def _levels(self, names: Names) -> list[Frame]:
        made: list[Frame] = [
            commands.Exchange.Declare(exchange=names.exchange(bit), exchange_type="topic", durable=True)
            for bit in range(LEVELS + 1)
        ]
        size = self._settings.quorum_group_size
        for bit in range(LEVELS):
            arguments: dict[str, Any] = {
                "x-queue-type": "quorum",
                "x-message-ttl": 1000 << bit,
                "x-dead-letter-exchange": names.exchange(bit),
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-delivery-limit": _FOREVER,
                **({} if size is None else {"x-quorum-initial-group-size": size}),
            }
            made.append(commands.Queue.Declare(queue=names.level(bit), durable=True, arguments=arguments))
        for bit in range(LEVELS + 1):
            done = ["*"] * (LEVELS - bit)
            for lower in range(bit):
                key = ".".join([*done, *["0"] * (bit - 1 - lower), "1", "#"])
                made.append(commands.Queue.Bind(queue=names.level(lower), exchange=names.exchange(bit), routing_key=key))
            for priority in LANES:
                key = ".".join([*done, *["0"] * bit, _LETTERS[priority]])
                made.append(commands.Queue.Bind(queue=names.main(priority), exchange=names.exchange(bit), routing_key=key))
        return made

    async def _run(self, line: Line, methods: Sequence[Frame]) -> list[Any]:
        """All of these on a channel that may be closed by the first that fails."""
        channel = await self._channel(line)
        try:
            return await asyncio.gather(*(channel.call(method) for method in methods))
        finally:
            await channel.close()

    async def _channel(self, line: Line) -> Channel:
        return await line.channel(self._settings.connect_timeout.total_seconds())

    async def _exists(self, line: Line, names: Names) -> bool:
        try:
            await self._run(line, [commands.Exchange.Declare(exchange=names.delays, passive=True)])
        except ChannelClosedError as error:
            if error.code != _MISSING:
                raise
            return False
        return True

    # -- the operator's view -------------------------------------------------------------------------------------------

    async def _counts(self, line: Line, queues: Sequence[str]) -> list[int] | None:
        """How many messages are ready in each; None if one is missing."""
        try:
            found = await self._run(line, [commands.Queue.Declare(queue=name, passive=True) for name in queues])
        except ChannelClosedError as error:
            if error.code != _MISSING:
                raise
            return None
        return [declared.message_count for declared in found]

    async def _has_levels(self, line: Line, queue: str) -> bool:
        now = asyncio.get_running_loop().time()
        if queue in self._delayed:
            return True
        if self._absent.get(queue, 0) > now:  # the server logs an error whenever something is looked for in vain
            return False
        if await self._exists(line, self.names(queue)):
            self._delayed.add(queue)
            return True
        self._absent[queue] = now + 30
        return False

    async def stats(self, line: Line, queue: str) -> QueueStats:
        """How many messages there are."""
        names = self.names(queue)
        counts = await self._counts(line, [*names.mains, names.dead])
        if counts is None:
            self.forget(queue)
            return QueueStats(0, None, 0, 0)
        delayed = None
        if await self._has_levels(line, queue):
            delayed = await self._counts(line, [names.level(bit) for bit in range(LEVELS)])
        return QueueStats(sum(counts[:-1]), None, sum(delayed or ()), counts[-1])

    async def flush(self, line: Line, queue: str) -> None:
        """Remove all messages that nobody holds."""
        names = self.names(queue)
        for part in ([names.level(bit) for bit in range(LEVELS)], [*names.mains, names.dead]):
            if part[0] == names.level(0) and not await self._has_levels(line, queue):
                continue
            if await self._counts(line, part) is not None:
                await self._run(line, [commands.Queue.Purge(queue=name) for name in part])

    async def delete(self, line: Line, queue: str) -> None:
        """Remove all that belongs to it. What is not there is no error to the server."""
        names = self.names(queue)
        gone: list[Frame] = [commands.Exchange.Delete(exchange=names.delays)]
        gone += [commands.Exchange.Delete(exchange=names.exchange(bit)) for bit in range(LEVELS + 1)]
        queues = [*names.mains, names.dead, *(names.level(bit) for bit in range(LEVELS))]
        gone += [commands.Queue.Delete(queue=name) for name in queues]
        self.forget(queue)
        await self._run(line, gone)
        self.forget(queue)

    # -- the deaths that a message has caused --------------------------------------------------------------------------

    async def deaths(self, line: Line, queue: str, id_: str) -> int:
        """How many workers have died while they ran this message."""
        name = self.names(queue).deaths(id_)
        try:  # where there is no such queue, this is no error, and nothing is logged
            await self._run(line, [commands.Queue.Delete(queue=name, if_empty=True)])
        except ChannelClosedError as error:
            if error.code != _MISMATCH:
                raise
            return sum(await self._counts(line, [name]) or [0])
        return 0

    async def open_deaths(self, line: Line, queue: str, id_: str) -> str:
        """The queue that counts them, made if it is missing; its name."""
        name = self.names(queue).deaths(id_)
        arguments: dict[str, Any] = {"x-queue-type": "classic", "x-expires": _COUNTED // timedelta(milliseconds=1)}
        await self._run(line, [commands.Queue.Declare(queue=name, durable=True, arguments=arguments)])
        return name

    async def uncount(self, line: Line, queue: str, id_: str) -> None:
        """Take back one of them."""
        name = self.names(queue).deaths(id_)
        await self._run(line, [commands.Basic.Get(queue=name, no_ack=True)])

    async def close_deaths(self, line: Line, queue: str, id_: str) -> None:
        """Forget them."""
        await self._run(line, [commands.Queue.Delete(queue=self.names(queue).deaths(id_))])
