"""The combination of brokers, serializer, converter and middlewares, opened and closed as one."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol, Self

from attrs import frozen

from repid_core.abc import Broker, BucketBroker, Converter, MessageBroker, Serializer
from repid_core.clock import SYSTEM_CLOCK, Clock
from repid_core.data import Capability, Enqueued, Envelope, Priority, Receipt
from repid_core.defaults import Config
from repid_core.errors import (
    AlreadyConnectedError,
    EnqueueError,
    EnqueueManyError,
    InvalidJobError,
    NotConnectedError,
    PayloadTooLargeError,
    RepidError,
    UnsupportedFeatureError,
    UsageError,
    WrongEventLoopError,
)
from repid_core.middleware import Middlewares
from repid_core.payload import ArgsBucket, Payloads
from repid_core.plugins import Kind, plugins

logger = logging.getLogger(__name__)

_abandoned: list[object] = []


@frozen
class Draft:
    """A job that is ready to be sent: its message, and the arguments that go to a bucket first."""

    envelope: Envelope
    bucket: ArgsBucket | None = None


class Enqueueable(Protocol):
    """What `enqueue_many` takes: jobs."""

    def draft(self, connection: Connection) -> Draft:
        """Check and serialize; nothing is stored or sent."""


class Connection:
    """Brokers that work together. Making one opens nothing; `connect` does, or `async with`.

    Args:
        message_broker: Carries the messages.
        args_bucket_broker: Holds arguments apart from the messages.
        results_bucket_broker: Holds results. It may be the same object as the one for arguments.
        middlewares: Objects or functions; see `repid_core.middleware`.
        serializer: A plugin's name or an object; by default `Config.SERIALIZER`.
        converter: A plugin's name or a class, for actors that name none; by default `Config.CONVERTER`.
        args_bucket_threshold: Serialized arguments of at least as many bytes go to the args bucket broker, if there is one.
        clock: The time that core and in-process brokers go by.

    Attributes:
        opening: While `connect` is at work, what is set when it has ended.
    """

    def __init__(
        self,
        message_broker: MessageBroker,
        args_bucket_broker: BucketBroker | None = None,
        results_bucket_broker: BucketBroker | None = None,
        *,
        middlewares: Sequence[Any] = (),
        serializer: str | Serializer | None = None,
        converter: str | type[Converter] | None = None,
        args_bucket_threshold: int = 0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        _expect("message_broker", message_broker, MessageBroker)
        _expect("args_bucket_broker", args_bucket_broker, BucketBroker | None)
        _expect("results_bucket_broker", results_bucket_broker, BucketBroker | None)
        _expect("args_bucket_threshold", args_bucket_threshold, int)
        self.message_broker = message_broker
        self.args_bucket_broker = args_bucket_broker
        self.results_bucket_broker = results_bucket_broker
        self.middleware = Middlewares(middlewares)
        self.args_bucket_threshold = args_bucket_threshold
        self.clock = clock
        self.converter: type[Converter] = _chosen(Kind.CONVERTER, converter, Config.CONVERTER)
        self.payloads = Payloads(
            _chosen(Kind.SERIALIZER, serializer, Config.SERIALIZER),
            args_bucket_broker,
            results_bucket_broker,
            self.middleware,
            clock,
        )
        self.opening: asyncio.Event | None = None
        self._opened: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._stack = AsyncExitStack()
        self._failures: list[Exception] = []  # of closing

    @classmethod
    def from_config(
        cls,
        source: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Make a connection as a file, a mapping or the environment says; see `docs/reference/configuration.md`.

        Sections of buckets whose backend and settings are equal share one broker.

        Args:
            source: A mapping, or the path of a file in TOML. None for the file that `REPID_CONFIG` names, or else the nearest
                `repid.toml` or `[tool.repid]` of `pyproject.toml`, from the working directory upwards.
            environ: The environment, whose `REPID_…` variables override; None for that of the process.

        Raises:
            ConfigError: There is no configuration, or its file cannot be read.
            SettingsError: It is not valid; its `problems` list everything that is wrong, each with its path.
        """
        from repid_core.config import load  # noqa: PLC0415 — who makes the brokers by hand can spare it

        return cls(**load(source, environ).parts())

    @classmethod
    def from_urls(
        cls,
        message_broker: str,
        *,
        args: str | None = None,
        results: str | None = None,
        middlewares: Sequence[Any] = (),
        serializer: str | Serializer | None = None,
        converter: str | type[Converter] | None = None,
        args_bucket_threshold: int | str = 0,
    ) -> Self:
        """Make a connection from URLs: the scheme tells the backend, the query has settings.

        Args:
            message_broker: For example "redis://localhost/0?lease=30s".
            args: Where arguments are held apart from the messages.
            results: Where results are held. If it is the same as `args`, both share one broker.
            middlewares: See `Connection`, as for the next two.
            serializer: A plugin's name or an object.
            converter: A plugin's name or a class.
            args_bucket_threshold: In bytes, or for example "64 KiB".

        Raises:
            SettingsError: They are not valid; its `problems` list everything that is wrong.
        """
        from repid_core.config import from_urls  # noqa: PLC0415 — as above

        urls = {"message_broker": message_broker, "args_bucket_broker": args, "results_bucket_broker": results}
        parts = from_urls(args_bucket_threshold, **urls).parts()
        return cls(**parts | {"middlewares": middlewares, "serializer": serializer, "converter": converter})

    @property
    def is_open(self) -> bool:
        """Whether it is connected."""
        return self._opened is not None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it is open on; None if it is not open, or was opened before a fork."""
        return self._opened[0] if self._opened is not None and self._opened[1] == os.getpid() else None

    def abandon(self) -> None:
        """Forget that it is open, without a word to the servers: its loop is gone, or belongs to the parent of this process.

        `connect` may follow, and begins anew. What there was before is kept as it is, so that nothing closes what a parent
        process goes on using.
        """
        if self._opened is not None or self.opening is not None:
            _abandoned.append((self._stack, self._opened, *(dict(vars(broker)) for broker in self._brokers())))
        self._opened = self.opening = None
        self._stack = AsyncExitStack()

    async def connect(self) -> None:
        """Open the brokers. If one fails, those that were opened are closed again.

        Raises:
            AlreadyConnectedError: It is open.
            WrongEventLoopError: It is open on another loop, or was before a fork.
            BrokerConnectionError: The message broker could not be reached.
            BucketConnectionError: A bucket store could not be reached.
        """
        if self._opened is not None:
            self.check()
            raise AlreadyConnectedError
        if self.opening is not None:
            raise AlreadyConnectedError
        self.opening = opening = asyncio.Event()
        self._failures.clear()
        try:
            async with AsyncExitStack() as stack:
                for broker in self._brokers():
                    broker.clock = self.clock
                    await broker.connect()
                    stack.push_async_callback(self._close, broker)
                self._stack = stack.pop_all()
            self._opened = asyncio.get_running_loop(), os.getpid()
        finally:
            self.opening = None
            opening.set()

    async def disconnect(self) -> None:
        """Close the brokers, the message broker last. Idempotent; `connect` may follow.

        Every broker is closed, even if one fails or the call is cancelled; errors are logged, and the first is raised.
        """
        if self._opened is None:
            return
        self.check()
        self._opened = None
        await finish(self._stack.aclose())
        if self._failures:
            raise self._failures[0]

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    def check(self) -> None:
        """Raise `NotConnectedError` or `WrongEventLoopError` unless it can be used here."""
        if self._opened is None:
            raise NotConnectedError
        loop, pid = self._opened
        try:
            if loop is asyncio.get_running_loop() and pid == os.getpid():
                return
        except RuntimeError:  # there is none, or it was left behind by a fork
            pass
        raise WrongEventLoopError

    async def enqueue(self, job: Enqueueable) -> Receipt:
        """Enqueue one job; see `Job.enqueue`."""
        self.check()
        draft = job.draft(self)
        if draft.bucket is None and not self.middleware.watches_enqueue:
            outcome: Enqueued | EnqueueError = await self.message_broker.enqueue(draft.envelope)
        else:
            [outcome] = await self._send([draft])
        if isinstance(outcome, EnqueueError):
            raise outcome
        return Receipt(draft.envelope.key.id_, outcome)

    async def enqueue_many(self, jobs: Iterable[Enqueueable]) -> list[Receipt]:
        """Enqueue jobs in their order, in few round trips.

        All are checked and serialized before anything is stored or sent.

        Raises:
            EnqueueManyError: Some were not enqueued; its `outcomes` has a receipt or an error for each.
        """
        self.check()
        drafts = [job.draft(self) for job in jobs]
        if not drafts:
            return []
        outcomes = [
            outcome if isinstance(outcome, EnqueueError) else Receipt(draft.envelope.key.id_, outcome)
            for draft, outcome in zip(drafts, await self._send(drafts), strict=True)
        ]
        receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
        if len(receipts) < len(outcomes):
            raise EnqueueManyError(outcomes)
        return receipts

    def check_envelope(self, envelope: Envelope) -> None:
        """Raise unless the message broker can take this message.

        Raises:
            UnsupportedFeatureError: It lacks a capability that the message needs.
            InvalidJobError: It is due later than the broker can wait.
            PayloadTooLargeError: Its payload is over the broker's limit.
        """
        broker, limits = self.message_broker, self.message_broker.limits
        parameters, capabilities = envelope.parameters, broker.capabilities
        if (
            envelope.due is not None or parameters.recurrence is not None or parameters.retries
        ) and Capability.DELAY not in capabilities:
            raise UnsupportedFeatureError(Capability.DELAY, broker, "leave out deferral, recurrence and retries")
        if envelope.due is not None and envelope.due - self.clock.now() > limits.max_delay:
            raise InvalidJobError(
                f"the job is due at {envelope.due.isoformat()}, and {type(broker).__name__} holds messages "
                f"for {limits.max_delay} at most: enqueue it later",
            )
        if envelope.key.priority is not Priority.MEDIUM and Capability.PRIORITY not in capabilities:
            raise UnsupportedFeatureError(Capability.PRIORITY, broker, "leave the priority at MEDIUM")
        if envelope.on_duplicate != "raise" and Capability.UNIQUE not in capabilities:
            raise UnsupportedFeatureError(Capability.UNIQUE, broker, "leave on_duplicate at 'raise'")
        if limits.max_payload is not None and len(envelope.payload) > limits.max_payload:
            raise PayloadTooLargeError(len(envelope.payload), limits.max_payload)

    async def _send(self, drafts: Sequence[Draft]) -> Sequence[Enqueued | EnqueueError]:
        buckets = {draft.bucket.id_: draft.bucket for draft in drafts if draft.bucket is not None}

        async def send(envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
            stored = [buckets[envelope.args_id] for envelope in envelopes if envelope.args_id in buckets]
            if (emit := self.middleware.before_enqueue) is not None:
                for envelope in envelopes:
                    await emit(envelope=envelope, queue=envelope.key.queue)
            told: Sequence[object] = ()
            try:
                if stored:
                    await self.payloads.store_args(stored)
                told = outcomes = await self._enqueue(envelopes)
            except BaseException as error:
                told = [error] * len(envelopes)
                if isinstance(error, RepidError):  # a store could not be reached, or refused, so no message is there
                    await self.payloads.drop_args(*envelopes)
                raise
            finally:
                if (emit := self.middleware.after_enqueue) is not None:
                    for envelope, outcome in zip(envelopes, told, strict=True):
                        fact = "error" if isinstance(outcome, BaseException) else "outcome"
                        await emit(envelope=envelope, queue=envelope.key.queue, **{fact: outcome})
            refused = [envelope for envelope, outcome in zip(envelopes, outcomes, strict=True) if _refused(outcome)]
            await self.payloads.drop_args(*refused)
            return outcomes

        outcomes = await self.middleware.enqueue(send)([draft.envelope for draft in drafts])
        if not isinstance(outcomes, Sequence) or len(outcomes) != len(drafts):
            raise UsageError(
                f"around_enqueue of a middleware gave {outcomes!r}: return what call_next gives, one outcome per message"
            )
        return outcomes

    async def _enqueue(self, envelopes: Sequence[Envelope]) -> Sequence[Enqueued | EnqueueError]:
        if len(envelopes) > 1:
            return await self.message_broker.enqueue_many(envelopes)
        try:
            return [await self.message_broker.enqueue(envelope) for envelope in envelopes]
        except EnqueueError as error:
            return [error]

    async def _close(self, broker: Broker) -> None:
        try:
            await broker.disconnect()
        except Exception as error:
            logger.exception("%s did not close well", type(broker).__name__)
            self._failures.append(error)

    def _brokers(self) -> list[Broker]:
        brokers = (self.message_broker, self.args_bucket_broker, self.results_bucket_broker)
        return list({id(broker): broker for broker in brokers if broker is not None}.values())


async def finish(step: Awaitable[None], hurry: Callable[[], None] | None = None) -> None:
    """Await a step to its end, even when cancelled meanwhile, which calls `hurry`; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(step)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
            if hurry is not None:
                hurry()
    if cancelled:
        raise asyncio.CancelledError
    task.result()


def _refused(outcome: Enqueued | EnqueueError) -> bool:
    if isinstance(outcome, EnqueueError):
        return not outcome.maybe_enqueued
    return outcome is Enqueued.KEPT


def _expect(name: str, value: object, kind: Any) -> None:
    if not isinstance(value, kind):
        raise UsageError(f"Connection({name}=…) got {value!r} and wants {getattr(kind, '__name__', kind)}")


def _chosen(kind: Kind[Any], choice: Any, default: Any) -> Any:
    choice = default if choice is None else choice
    if isinstance(choice, str):
        return plugins().build(kind, choice)
    if not kind.fits(choice):
        raise UsageError(f"Connection({kind}=…) got {choice!r} and wants a plugin's name or a {kind}")
    return choice
