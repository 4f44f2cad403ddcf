"""One delivery, one run, one settlement.

The way through is `Run.process`::

    delivery ─ decode ─ overdue? ─ arguments ─ convert ─ run ──┬─ returned ─────────────── succeeded ─┐
        │         │         │          │          │            ├─ raised, retries left ─── retried ───┤
        │         │         │          │          │            ├─ raised ───────────────── failed ────┼─ store ─ settle ─ clean up
        │         │         │          │          │            ├─ settled its own message ────────────┤  result   (W1)   callbacks
        │         │         └─ expired ┴─ invalid ┴─ invalid ──┼──────────────────────────────────────┘
        │         └─ invalid, bytes kept                       └─ the worker stops ─────── rejected
        └─ what comes again (recurring) is requeued where others are acknowledged or die

Whatever happens before the settlement is undone by not settling: the broker gives the message out again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from attrs import evolve, frozen

from repid_core.abc import Converter, Delivery
from repid_core.clock import Timeouts
from repid_core.connection import Connection
from repid_core.data import Death, DeathReason, Envelope, Outcome
from repid_core.errors import (
    ActorEnded,
    BucketConnectionError,
    CodecError,
    ConversionError,
    CorruptBucketError,
    DeliveryLostError,
    RepidError,
    SerializationError,
)
from repid_core.executors import Executors
from repid_core.message import ACK, REJECT, MessageDependency, Settlement, envelope_of, settle
from repid_core.middleware import Emit
from repid_core.router import Actor
from repid_core.schedule import is_overdue, next_due, rescheduled

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TEXT = 8192  # characters of an error that travel; brokers put them into headers
_LINE = 1000  # characters of an error in the log, which may quote what a stranger has sent
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(milliseconds=100), timedelta(seconds=5)


class Ended(Enum):
    """How a delivery ended here."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRIED = "retried"
    EXPIRED = "expired"
    INVALID = "invalid"
    NACKED = "nacked"
    REJECTED = "rejected"  #: given back; it does not count
    LOST = "lost"  #: it could not be settled, and comes again


@frozen
class Verdict:
    """What to do about a delivery: the settlement, and the result that is stored before it."""

    ended: Ended
    settlement: Settlement
    outcome: Outcome | None = None
    value: tuple[Any] | None = None  # what the actor returned or set, before it is converted
    error: BaseException | None = None  # why it did not succeed, if it was an error


@frozen(eq=False)
class Route:
    """An actor, ready to be called."""

    actor: Actor
    converter: Converter


class Processor:
    """What the runs of one worker share.

    Attributes:
        holding: How many runs wait for a bucket store that is away; the worker is not ready then (W8).
    """

    def __init__(self, connection: Connection, routes: Mapping[str, Route], executors: Executors) -> None:
        self.connection, self.routes, self.executors = connection, routes, executors
        self.payloads, self.middleware, self.clock = connection.payloads, connection.middleware, connection.clock
        self.counts: Counter[Ended] = Counter()
        self.timeouts = Timeouts()
        self.holding = 0
        self.stores_results = connection.results_bucket_broker is not None

    def run_sync(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], in_process: bool) -> Awaitable[T]:
        """Call a synchronous function in a thread or a process."""
        run = self.executors.run_in_process if in_process else self.executors.run_in_thread
        return run(fn, args, kwargs)


class Run:
    """One delivery on its way. Its task is cancelled only where nothing is half done: in the actor, and in pauses.

    Args:
        processor: What runs share.
        delivery: What is to be settled.
        leave: Called once the actor has ended, before the result is stored and the delivery settled.
        stopped: Whether to give it back at once.

    Attributes:
        task: The task that runs `process`; to be set when it is made.
        stopped: Whether the message is to be given back, unless its actor has ended.
    """

    __slots__ = (
        *("_args", "_interruptible", "_leave", "_message", "_route", "_timed_out"),
        *("delivery", "envelope", "processor", "stopped", "task"),
    )

    envelope: Envelope
    task: asyncio.Task[Any]

    def __init__(self, processor: Processor, delivery: Delivery, leave: Callable[[Run], None], *, stopped: bool = False) -> None:
        self.processor, self.delivery, self.stopped = processor, delivery, stopped
        self._leave = leave
        self._interruptible = self._timed_out = False
        self._message: MessageDependency | None = None

    def stop(self) -> None:
        """Interrupt the actor and give the message back. The next call abandons its thread, and cuts off whatever else hangs."""
        if self._interruptible or self.stopped:
            self.task.cancel()
        self.stopped = True

    async def process(self) -> Ended:
        """Take the delivery to its settlement, whatever it meets."""
        middleware = self.processor.middleware
        try:
            if middleware.before_process is not None:
                await middleware.before_process(envelope=envelope_of(self.delivery))
            verdict = await self._attempt()
            self._leave(self)
            verdict = await self._stored(verdict)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and self._forgive():
                verdict = Verdict(Ended.REJECTED, REJECT)
            else:
                logger.exception("a job could not be processed: a plugin is faulty")
                verdict = Verdict(Ended.FAILED, self._death(DeathReason.FAILED, 0, error), error=error)
        ended = await self._settle(verdict)
        self.processor.counts[ended] += 1
        if middleware.after_process is not None:
            await self._tell(middleware.after_process, ended, verdict)
        return ended

    async def _tell(self, after_process: Emit, ended: Ended, verdict: Verdict) -> None:
        facts = {"envelope": envelope_of(self.delivery), "settlement": verdict.settlement, "error": verdict.error}
        with suppress(asyncio.CancelledError):  # of a worker in a hurry; the delivery is settled
            await after_process(**facts, outcome=ended)

    def _forgive(self) -> bool:
        """Take back the cancellations that were asked for, so that the task can go on; whether there were any."""
        cancelled = False
        while self.task.cancelling():
            self.task.uncancel()
            cancelled = True
        return cancelled or self.stopped

    def _failure(self, error: Exception | str, started: int, text: str | None = None) -> Outcome:
        return Outcome(
            success=False,
            started_when=started,
            finished_when=self.processor.clock.time_ns(),
            exception=error if isinstance(error, str) else type(error).__name__,
            traceback=_text(error) if isinstance(error, Exception) else text,
        )

    def _death(self, reason: DeathReason, attempts: int, error: BaseException) -> Settlement:
        return Settlement("nack", death=Death(reason, self.processor.clock.now(), attempts, _text(error)))

    async def _attempt(self) -> Verdict:
        delivery, processor = self.delivery, self.processor
        try:
            self.envelope = envelope = delivery.envelope
        except CodecError as error:
            logger.error("a message cannot be decoded: %s", _said(error), extra={"ended": "invalid"})  # noqa: TRY400 — it says all
            return Verdict(Ended.INVALID, self._death(DeathReason.INVALID, 0, error), error=error)
        route = processor.routes.get(envelope.key.topic)
        if route is None or self.stopped:
            return Verdict(Ended.REJECTED, REJECT)
        self._route = route
        if is_overdue(envelope, processor.clock.now()):
            late = RepidError(f"it was not started within its TTL of {envelope.parameters.ttl}")
            return self._final(Ended.EXPIRED, DeathReason.EXPIRED, late, self._failure("Expired", processor.clock.time_ns()))
        if delivery.redelivered:
            try:
                await delivery.mark_started()
            except Exception as error:  # noqa: BLE001 — unmarked it must not run, whatever the broker raised
                logger.warning("%s is not run: %s", envelope.key.topic, error, extra=_who(envelope))
                return Verdict(Ended.LOST, REJECT, error=error)
        return await self._load(processor.clock.time_ns())

    async def _load(self, started: int) -> Verdict:
        """Get the arguments, and run the actor with them."""
        envelope, payloads = self.envelope, self.processor.payloads
        try:
            if envelope.args_id is None:
                data = payloads.loads(envelope.payload, envelope.content_type)
            else:
                data = await self._hold(payloads.load_args, envelope)
            self._args = self._route.converter.convert_inputs(data)
        except (ConversionError, SerializationError, CodecError, CorruptBucketError) as error:
            return self._final(Ended.INVALID, DeathReason.INVALID, error, self._failure(error, started))
        except Exception as error:  # noqa: BLE001 — a store that refuses, or a faulty plugin, fails this attempt alone
            return self._failed(error, started)
        if self.stopped:
            return Verdict(Ended.REJECTED, REJECT)
        return await self._actor(started)

    async def _actor(self, started: int) -> Verdict:
        """Run the actor; a synchronous one once a thread or a process is free for it, so that its timeout does not run before."""
        actor = self._route.actor
        if actor.is_async:
            return await self._timed(started)
        places = self.processor.executors.places(actor.run_in_process)
        self._interruptible = True
        try:
            await places.acquire()
        except asyncio.CancelledError as error:
            return self._broken_off(error, started)
        finally:
            self._interruptible = False
        try:
            return await self._timed(self.processor.clock.time_ns())
        finally:
            places.release()

    async def _timed(self, started: int) -> Verdict:
        """Run the actor inside its timeout, and judge how it ended."""
        processor, envelope = self.processor, self.envelope
        timeouts, limit, expire = processor.timeouts, envelope.parameters.timeout.total_seconds(), self._expire
        timeouts.start(limit, expire)
        self._interruptible = True
        try:
            if processor.middleware.watches_actor_run:
                call = processor.middleware.actor_run(self._call)
                value = await processor.middleware.watch("actor_run", {"envelope": envelope}, call, envelope)
            else:
                value = await self._call(envelope)
        except KeyboardInterrupt:  # it is for the process
            raise
        except BaseException as error:  # noqa: BLE001 — an actor may raise what it likes
            return self._broken_off(error, started)
        finally:
            timeouts.stop(limit, expire)
            self._interruptible = False
            self._forgive()
        return self._ended((value,), started)

    def _broken_off(self, error: BaseException, started: int) -> Verdict:
        """The actor raised, was cancelled, or settled its own message, which stands whatever it raised then."""
        cancelled = self._forgive()
        if self._message is not None and self._message.settlement is not None:
            return self._ended(None, started)
        if self.stopped or (cancelled and not self._timed_out):
            return Verdict(Ended.REJECTED, REJECT)
        if self._timed_out and isinstance(error, asyncio.CancelledError):
            late = f"the actor ran longer than its timeout of {self.envelope.parameters.timeout}"
            return self._failed(TimeoutError(late), started)
        if isinstance(error, Exception):
            return self._failed(error, started)
        failure = RuntimeError(f"the actor raised {type(error).__name__}")
        failure.__cause__ = error
        return self._failed(failure, started)

    async def _call(self, envelope: Envelope) -> Any:
        actor, (args, kwargs) = self._route.actor, self._args
        if not actor.dependencies.names:
            return await self._invoke(actor, args, kwargs)
        processor = self.processor
        self._message = message = MessageDependency(self.delivery, processor.connection, actor.retry_policy)
        async with actor.dependencies.resolve({MessageDependency: message}, processor.run_sync) as injected:
            try:
                return await self._invoke(actor, args, {**kwargs, **injected})
            except ActorEnded:
                if message.settlement is not ACK:
                    raise
                return None  # it is done: dependencies that commit on success see a normal end

    def _invoke(self, actor: Actor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Awaitable[Any]:
        if actor.is_async:
            result: Awaitable[Any] = actor.fn(*args, **kwargs)
            return result
        return self.processor.run_sync(actor.fn, args, kwargs, actor.run_in_process)

    def _expire(self) -> None:
        self._timed_out = True
        self.task.cancel()

    def _ended(self, returned: tuple[Any] | None, started: int) -> Verdict:
        """The actor returned, or settled its own message."""
        message, own, exception = self._message, None, None
        if message is not None:
            own, exception = message.settlement, message.exception
            returned = message.result or (returned if own is None else None)
        if own is not None and own.kind == "nack":
            return Verdict(
                Ended.NACKED, own, self._failure(exception or "Nacked", started, own.death.error if own.death else None)
            )
        if own is not None and own.kind == "reject":
            return Verdict(Ended.REJECTED, own)
        outcome = Outcome(success=True, started_when=started, finished_when=self.processor.clock.time_ns())
        if exception is not None:
            outcome = self._failure(exception, started)
        if own is not None and own.kind == "requeue" and returned is None:
            return Verdict(Ended.RETRIED, own, None if exception is None else outcome)
        return Verdict(Ended.SUCCEEDED, own or self._again() or ACK, outcome, returned)

    def _failed(self, error: Exception, started: int) -> Verdict:
        """A failed attempt: again after a delay while there are retries (W2), else the end."""
        parameters, key = self.envelope.parameters, self.envelope.key
        attempt = parameters.tried + 1
        delay = self._retry_delay(attempt, error) if parameters.tried < parameters.retries else None
        if delay is None:
            logger.error("%s failed", key.topic, exc_info=error, extra=_who(self.envelope, attempt))
            return self._final(Ended.FAILED, DeathReason.FAILED, error, self._failure(error, started))
        logger.warning("%s failed, and comes again in %s: %r", key.topic, delay, error, extra=_who(self.envelope, attempt))
        now = self.processor.clock.now()
        again = Settlement("requeue", rescheduled(self.envelope, now + delay, now, tried=attempt))
        return Verdict(Ended.RETRIED, again, error=error)

    def _retry_delay(self, attempt: int, error: Exception) -> timedelta | None:
        try:
            delay = self._route.actor.retry_policy(attempt, error)
            longest = self.processor.connection.message_broker.limits.max_delay
            return None if delay is None else max(timedelta(0), min(delay, longest))
        except Exception:
            logger.exception("the retry policy of %s failed, so there is no retry", self.envelope.key.topic)
            return None

    def _final(self, ended: Ended, reason: DeathReason, error: Exception, outcome: Outcome) -> Verdict:
        """The end of this schedule: a recurring message comes again all the same, others die."""
        settlement = self._again()
        if settlement is None:
            attempts = self.envelope.parameters.tried + (ended is Ended.FAILED)
            settlement = self._death(reason, attempts, error)
        if ended is not Ended.FAILED:
            logger.warning("%s is %s: %s", self.envelope.key.topic, ended.value, _said(error), extra=_who(self.envelope))
        return Verdict(ended, settlement, outcome, error=error)

    def _again(self) -> Settlement | None:
        """The next run of a recurring message (W7); to DEAD if there is none to be found here."""
        recurrence = self.envelope.parameters.recurrence
        if recurrence is None:
            return None
        now = self.processor.clock.now()
        try:
            again = rescheduled(self.envelope, next_due(recurrence, max(now, self.envelope.due or now)), now)
            self.processor.connection.check_envelope(again)
        except (ValueError, RepidError) as error:  # no such time, or too far; or this worker lacks cronsim or time zones
            logger.error("%s comes no more: %s", self.envelope.key.topic, _said(error), extra=_who(self.envelope))  # noqa: TRY400
            return self._death(DeathReason.INVALID, self.envelope.parameters.tried, error)
        return Settlement("requeue", again)

    async def _stored(self, verdict: Verdict) -> Verdict:
        """Convert the result and store it, first of all (W1); one that does not fit, or is refused, fails the job (W8)."""
        outcome, value = verdict.outcome, verdict.value
        if outcome is None:
            return verdict
        parameters, processor = self.envelope.parameters, self.processor
        try:
            if outcome.success and value is not None:
                value = (self._route.converter.convert_outputs(value[0]),)
            if processor.stores_results and parameters.result_id is not None:
                await self._hold(processor.payloads.store_result, parameters, outcome, value and value[0])
        except Exception as error:
            if not outcome.success:
                logger.exception("the failure of %s cannot be stored", self.envelope.key.topic, extra=_who(self.envelope))
                return verdict
            logger.error("the result of %s cannot be stored: %s", self.envelope.key.topic, error, extra=_who(self.envelope))  # noqa: TRY400
            failure = self._failure(error, outcome.started_when)
            if verdict.settlement.kind == "ack":
                return await self._stored(self._final(Ended.FAILED, DeathReason.FAILED, error, failure))
            return await self._stored(evolve(verdict, ended=Ended.FAILED, outcome=failure, error=error))
        return verdict

    async def _hold(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await `call(*args)`, again and again while the bucket store is away, until the worker stops (W8)."""
        pause, held = _FIRST_PAUSE, False
        try:
            while True:
                try:
                    return await call(*args)
                except BucketConnectionError as error:
                    logger.warning("a bucket store is away, next try in %s: %s", pause, error, extra=_who(self.envelope))
                if self.stopped:
                    raise asyncio.CancelledError
                if not held:
                    self.processor.holding += 1
                    held = True
                self._interruptible = True
                await self.processor.clock.sleep(pause)
                self._interruptible = False
                pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            self._interruptible = False
            self.processor.holding -= held

    async def _settle(self, verdict: Verdict) -> Ended:
        """Settle, then clean up and call back. Losing the delivery is logged, and no more."""
        try:
            await settle(self.delivery, verdict.settlement, self.processor.middleware)
        except DeliveryLostError as error:
            logger.warning("a delivery was lost, and may run elsewhere: %s", error, extra={"ended": "lost"})
            return Ended.LOST
        except (Exception, asyncio.CancelledError):
            logger.exception("a delivery could not be settled, and will come again", extra={"ended": "lost"})
            return Ended.LOST
        if verdict.settlement.kind == "ack" and self.envelope.args_owned:
            await self._call_back(partial(self.processor.payloads.drop_args, self.envelope))
        if self._message is not None:
            for callback in self._message.callbacks:
                await self._call_back(callback)
        return verdict.ended

    async def _call_back(self, callback: Callable[[], Any]) -> None:
        try:
            is_async = inspect.iscoroutinefunction(callback)
            called = callback() if is_async else await self.processor.executors.run_in_thread(callback, (), {})
            if inspect.isawaitable(called):
                await called
        except (Exception, asyncio.CancelledError, SystemExit):
            logger.exception("a callback of %s failed", self.envelope.key.topic, extra=_who(self.envelope))


def _text(error: BaseException) -> str:
    """The traceback from the user's code on, its end if it is long."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith("repid_core."):
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(error), error, tb))[-_TEXT:]


def _said(error: Exception) -> str:
    """An error for the log, which is no place for arguments: those that do not fit are named, and the death has the rest."""
    text = str(error)
    if isinstance(error, ConversionError):
        text = f"what does not fit is {', '.join(problem.partition(':')[0] for problem in error.problems)}"
    return text if len(text) <= _LINE else f"{text[:_LINE]}…"


def _who(envelope: Envelope, attempt: int | None = None) -> dict[str, Any]:
    key = envelope.key
    return {"job": key.id_, "actor": key.topic, "queue": key.queue, "attempt": attempt}
