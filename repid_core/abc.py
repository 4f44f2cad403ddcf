"""What plugins implement. The docstrings are the contract; the conformance suite holds a backend to it.

A message broker is nine methods over three classes (`MessageBroker`, `Consumer`, `Delivery`) beside `connect` and
`disconnect`; a bucket broker is three beside those two. Everything else has a correct, if slower, default.
Letters and numbers such as M7 name the sentences of the contract, which the conformance suite repeats.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

from repid_core.clock import SYSTEM_CLOCK, Clock
from repid_core.data import (
    Browsed,
    Capability,
    Death,
    Enqueued,
    Envelope,
    Limits,
    MessageCategory,
    QueueStats,
)
from repid_core.errors import (
    AlreadySettledError,
    BrokerConnectionError,
    ConversionError,
    EnqueueError,
    ResultTimeoutError,
    UnsupportedFeatureError,
)

_T = TypeVar("_T")
_R = TypeVar("_R")

_AT_ONCE = 16  # requests in flight where a store has no batch


class Broker(ABC):
    """Common to message and bucket brokers.

    A constructor touches no event loop and opens nothing, so that brokers can be made at import. Brokers emit no
    middleware events: core does.

    Attributes:
        limits: What this instance keeps; settings may change it.
        clock: Set by the connection before `connect`; a store that has a clock of its own ignores it.
    """

    limits: Limits = Limits()
    clock: Clock = SYSTEM_CLOCK

    @abstractmethod
    async def connect(self) -> None:
        """Open what the broker needs. If it fails or is cancelled, nothing stays open.

        It may come on another event loop without `disconnect` before it, when the first loop is gone, or belongs to the process
        that this one is a fork of. Then it begins anew, and closes nothing that a parent may use.

        Raises:
            BrokerConnectionError: For message brokers; names host and port, and no password.
            BucketConnectionError: The same for bucket brokers.
        """

    @abstractmethod
    async def disconnect(self) -> None:
        """Close consumers, flush settlements, close. May be called twice; `connect` may follow."""

    async def ping(self) -> None:
        """Make one round trip, for readiness and diagnosis; raise what a failed one raises. Default: nothing to ask."""

    async def server_time(self) -> datetime | None:
        """What the store's clock says, aware, for diagnosis; None if it has none, or does not tell. Default: None."""
        return None


class MessageBroker(Broker):
    """Carries messages to workers, at least once.

    Attributes:
        capabilities: What this instance promises beyond the minimum. Core checks it before it asks, so a broker never
            sees, say, a due time unless it declares `DELAY`.
    """

    capabilities: frozenset[Capability] = frozenset()

    @abstractmethod
    async def enqueue(self, envelope: Envelope) -> Enqueued:
        """Return once the message is accepted (M1), declaring its queue if need be (M16).

        Args:
            envelope: `due` (M7) and `on_duplicate` (M14) are honoured as far as the capabilities say. A store that can
                move messages to DEAD by itself when `expires_at` passes may do so, reason `expired`; others leave it
                to core, which does it on delivery (M8).

        Raises:
            DuplicateJobError: The id is live, and `on_duplicate` is "raise", or it runs and that is "replace".
            PayloadTooLargeError: It is over `limits.max_payload`.
            EnqueueError: It was refused; `maybe_enqueued` says if it may be there all the same.
            BrokerConnectionError: The store could not be reached.
        """

    @abstractmethod
    def consumer(
        self,
        queue: str,
        topics: Collection[str] | None,
        *,
        prefetch: int,
        category: MessageCategory = MessageCategory.NORMAL,
    ) -> Consumer:
        """Make a consumer that is not started; no input or output here.

        Args:
            queue: The queue's name.
            topics: The actors' names that it gets messages for (M10); None for all.
            prefetch: The most messages that it holds, read ahead and unsettled together (M11).
            category: Which messages. DELAYED is asked for only with `DELAYED_ACCESS`.
        """

    @abstractmethod
    async def declare_queue(self, queue: str, topics: Collection[str] = ()) -> None:
        """Make the queue ready for these topics. Idempotent (M16)."""

    @abstractmethod
    async def flush_queue(self, queue: str) -> None:
        """Remove ready, delayed and dead messages; running deliveries stay settleable (M16)."""

    @abstractmethod
    async def delete_queue(self, queue: str) -> None:
        """Remove the queue and all that belongs to it (M16)."""

    @abstractmethod
    async def queue_stats(self, queue: str) -> QueueStats:
        """Count ready, in progress, delayed and dead messages; None where the store cannot tell (M12)."""

    async def queue_names(self) -> Sequence[str] | None:
        """The queues that hold something, or were declared, for operators; None if the store cannot tell. Default: None."""
        return None

    async def enqueue_many(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        """Enqueue in order; one outcome for each (M18). Never raises for a single message. Default: a loop.

        Raises:
            BrokerConnectionError: The store could not be reached, and none of them was enqueued.
        """
        outcomes: list[Enqueued | EnqueueError] = []
        for envelope in envelopes:
            try:
                outcomes.append(await self.enqueue(envelope))
            except EnqueueError as error:
                outcomes.append(error)
            except BrokerConnectionError as error:
                if not outcomes:
                    raise
                lost = EnqueueError(str(error))
                lost.__cause__ = error
                return [*outcomes, *[lost] * (len(envelopes) - len(outcomes))]
        return outcomes

    async def cancel(self, queue: str, id_: str) -> bool:
        """Remove a ready or delayed message and say whether there was one (M15). Needs `CANCEL`."""
        raise UnsupportedFeatureError(Capability.CANCEL, self)

    def browse(
        self,
        queue: str,
        category: MessageCategory,
        *,
        after: str | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Browsed]:
        """List messages in their order without disturbing them (M12). Needs `BROWSE`.

        Args:
            queue: The queue's name.
            category: Ready, delayed or dead ones.
            after: The cursor of the last message seen; None starts at the beginning.
            limit: The most messages that the iterator gives.
        """
        raise UnsupportedFeatureError(Capability.BROWSE, self)


class Consumer(ABC):
    """Gets the messages of one queue in one category. It reconnects by itself.

    Attributes:
        healthy: False while it cannot fetch; the worker is not ready then (M17).
    """

    healthy: bool = True

    @abstractmethod
    async def start(self) -> None:
        """Begin to fetch."""

    @abstractmethod
    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait for the first message, and return 1 to `limit` in the order of M9.

        Cancelled, it loses nothing: the next call returns what it had, or `close` gives it back.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop fetching, reject everything unsettled, flush settlements. A waiting `receive` is over. Idempotent."""

    async def pause(self) -> None:
        """Stop reading ahead. Default: nothing, for consumers that read only what `receive` asks for."""

    async def resume(self) -> None:
        """Read ahead again."""


class Delivery(ABC):
    """One message in hand.

    It is settled once: the first settlement wins, and a second raises `AlreadySettledError` (M2). Each settling method
    calls `claim()` first. Cancelling a settlement never does half of it. One whose lease was lost raises
    `DeliveryLostError` where the store can tell (M5).

    Attributes:
        category: Where it came from.
        redelivered: Whether it was given to a worker before that did not settle it.
        death: How it died, if it comes from DEAD.
    """

    category: MessageCategory = MessageCategory.NORMAL
    redelivered: bool = False
    death: Death | None = None
    _claimed: bool = False

    def claim(self) -> None:
        """Begin a settlement, or raise `AlreadySettledError` if there was one."""
        if self._claimed:
            raise AlreadySettledError
        self._claimed = True

    @property
    @abstractmethod
    def envelope(self) -> Envelope:
        """The message, decoded on first use.

        Raises:
            CorruptMessageError: It cannot be decoded; settle the delivery all the same.
            NewerFormatError: A newer repid wrote it.
        """

    @abstractmethod
    async def ack(self) -> None:
        """It is done: remove it. Returns when confirmed, or when sent where nothing confirms; may be merged with others."""

    @abstractmethod
    async def nack(self, death: Death) -> None:
        """Move it to DEAD as it is, byte for byte, with this death (M6, M12)."""

    @abstractmethod
    async def reject(self) -> None:
        """Put it back where it came from, first in line where the store can; nothing is counted (M2)."""

    @abstractmethod
    async def requeue(self, envelope: Envelope) -> None:
        """Put `envelope`, of the same id, in its place, at its due time (M2, M6).

        From DEAD or DELAYED this makes it NORMAL, and what the broker counted of it (M13) starts anew.

        Raises:
            DuplicateJobError: It is dead, and its id is live again (M14).
        """

    async def mark_started(self) -> None:
        """Note, before a *redelivered* message runs, that it is this one that runs (M13). Default: nothing."""

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on the loop, if the lease is lost. Default: never."""


class BucketBroker(Broker):
    """Keeps bytes by id, with an expiry.

    Core encodes the bytes, checks the expiry on read, detects corruption and validates ids (B6), so that a broker only
    stores. Ids use only ASCII letters, digits, `.`, `_`, `:` and `-`.
    """

    @abstractmethod
    async def store_bucket(self, id_: str, data: bytes, ttl: timedelta | None) -> None:
        """Store all or nothing; the last writer wins (B2). Frees the storage after `ttl`; None never (B3).

        Raises:
            PayloadTooLargeError: It is over `limits.max_payload`.
            BucketBrokerError: It was not stored; the text says what to do (B8).
        """

    @abstractmethod
    async def get_bucket(self, id_: str) -> bytes | None:
        """What was stored last; None if there is none, it was deleted, or its time has passed (B1)."""

    @abstractmethod
    async def delete_bucket(self, id_: str) -> None:
        """Delete. Idempotent."""

    async def store_many(self, buckets: Sequence[tuple[str, bytes, timedelta | None]]) -> None:
        """Store (id, data, ttl) each, later ones over earlier ones of one id (B5). Default: 16 at a time.

        Raises what the first failing store raises, once all have ended.
        """
        last = {bucket[0]: bucket for bucket in buckets}
        await _each(lambda bucket: self.store_bucket(*bucket), list(last.values()))

    async def get_many(self, ids: Sequence[str]) -> list[bytes | None]:
        """Get in the order of `ids` (B5). Default: 16 at a time."""
        return await _each(self.get_bucket, ids)

    async def delete_many(self, ids: Sequence[str]) -> None:
        """Delete all (B5). Default: 16 at a time."""
        await _each(self.delete_bucket, ids)

    async def wait_for(self, id_: str, timeout: timedelta | None) -> bytes:
        """Wait until the bucket is there (B4). Default: polls, after 10 ms at first, growing to 1 s.

        Args:
            id_: The bucket.
            timeout: The longest wait; None for ever.

        Raises:
            ResultTimeoutError: It did not come in time.
        """
        deadline = None if timeout is None else self.clock.now() + timeout
        pause = timedelta(milliseconds=10)
        while (data := await self.get_bucket(id_)) is None:
            if deadline is not None:
                left = deadline - self.clock.now()
                if left <= timedelta(0):
                    raise ResultTimeoutError
                pause = min(pause, left)
            await self.clock.sleep(pause)
            pause = min(pause * 1.5, timedelta(seconds=1))
        return data


async def _each(call: Callable[[_T], Awaitable[_R]], items: Sequence[_T]) -> list[_R]:
    """Await `call` for each item, `_AT_ONCE` in flight, results in order; the first error once all have ended."""
    results: list[Any] = [None] * len(items)
    todo = iter(enumerate(items))

    async def work() -> None:
        for index, item in todo:
            try:
                results[index] = await call(item)
            except Exception as error:  # noqa: BLE001 — raised below, when the others have ended
                errors.append(error)

    errors: list[Exception] = []
    async with asyncio.TaskGroup() as group:
        for _ in islice(items, _AT_ONCE):
            group.create_task(work())
    if errors:
        raise errors[0]
    return results


class Serializer(ABC):
    """Turns plain data into bytes and back. Thread-safe.

    Attributes:
        name: How users choose it.
        content_type: What it writes, for example "application/json".
    """

    name: str
    content_type: str

    @abstractmethod
    def dumps(self, value: Any) -> bytes:
        """Encode.

        Raises:
            SerializationError: Names the path and the type of what it cannot encode.
        """

    @abstractmethod
    def loads(self, data: bytes) -> Any:
        """Decode to plain data; never runs code.

        Raises:
            SerializationError: The bytes are not of this format.
        """


class Converter(ABC):
    """Fits decoded data to one actor's signature, and its result to plain data.

    A mapping goes by name (positional-only parameters and `*args` under their names), a list by position, `None` is no
    arguments, anything else is the only parameter.
    """

    def __init__(self, fn: Callable[..., Any], injected: frozenset[str] = frozenset()) -> None:
        """Read the type hints once.

        Args:
            fn: The actor.
            injected: Its parameters that are no arguments, but dependencies.

        Raises:
            InvalidActorError: The signature cannot be converted to; names the parameter.
        """
        self.fn = fn
        self.injected = injected
        signature = inspect.signature(fn)
        self.signature = signature.replace(
            parameters=[p for name, p in signature.parameters.items() if name not in injected],
        )

    @abstractmethod
    def convert_inputs(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Worker: decoded data to call arguments.

        Raises:
            ConversionError: Lists every problem with its path.
        """

    @abstractmethod
    def convert_outputs(self, value: Any) -> Any:
        """Worker: the result to data that the serializer takes.

        Raises:
            ConversionError: The result does not fit the return type.
        """

    def dump_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Producer: call arguments to data for the serializer, bound and checked. Default: `inspect`'s bind.

        Raises:
            ConversionError: They do not fit the signature.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ConversionError([str(error)]) from error
        data: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                if taken := data.keys() & value.keys():  # def f(a, /, **more) called f(1, a=2)
                    raise ConversionError([f"{taken.pop()}: is given twice, by position and by name"])
                data.update(value)
            else:
                data[name] = value
        return data

    def load_outputs(self, data: Any) -> Any:
        """Producer: the result's data to the return type. Default: the data."""
        return data


class Middleware:
    """Watches what happens, and may change or veto in two places. Override any of the methods, sync or async.

    Observers are named `before_<event>` and `after_<event>`; see `repid_core.middleware.EVENTS`. They take what they
    name of `envelope`, `outcome`, `settlement`, `queue`, `bucket_id`, `error` and `connection`. One that raises is logged and
    changes nothing. Any object with methods so named, or one function so named, is a middleware too; this class need not be
    its base.
    """

    async def around_enqueue(
        self,
        envelopes: Sequence[Envelope],
        call_next: Callable[[Sequence[Envelope]], Awaitable[Sequence[Enqueued | EnqueueError]]],
    ) -> Sequence[Enqueued | EnqueueError]:
        """Called once per batch, before anything is stored; may pass on changed envelopes (headers), or raise."""
        return await call_next(envelopes)

    async def around_actor_run(self, envelope: Envelope, call_next: Callable[[Envelope], Awaitable[Any]]) -> Any:
        """Called inside the timeout, in the actor's task: context variables reach it. Raising fails the attempt."""
        return await call_next(envelope)
