"""One delivery, one run, one settlement.

The way through is `Run.process`::

    delivery ─ decode ─ overdue? ─ arguments ─ convert ─ run ──┬─ returned ─────────────── succeeded ─┐
        │         │         │          │          │            ├─ raised, retries left ─── retried ───┤
        │         │         │          │          │            ├─ raised ───────────────── failed ────┼─ store ─ settle ─ clean up
        │         │         │          │          │            ├─ settled its own message ────────────┤  result   (W1)    callbacks
        │         │         └─ expired ┴─ invalid ┴─ invalid ──┼──────────────────────────────────────┘
        │         └─ invalid, bytes kept                       └─ the worker stops ─────── rejected
        └─ what comes again (recurring) is requeued where others are acknowledged or die

Whatever happens before the settlement is undone by not settling: the broker gives the message out again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from enum import Enum
from typing import Any, TypeVar

from attrs import evolve, frozen

from repid_core.abc import Converter, Delivery
from repid_core.connection import Connection
from repid_core.data import Death, DeathReason, Envelope, Outcome
from repid_core.errors import (
    ActorEnded,
    BucketConnectionError,
    CodecError,
    ConfigError,
    ConversionError,
    CorruptBucketError,
    DeliveryLostError,
    MessageBrokerError,
    RepidError,
    SerializationError,
)
from repid_core.executors import Executors
from repid_core.message import ACK, REJECT, MessageDependency, Settlement, settle
from repid_core.router import Actor
from repid_core.schedule import is_overdue, next_due, rescheduled

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TEXT = 8192  # characters of an error that travel; brokers put them into headers
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
    value: Any = None


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
        self.holding = 0
        self.stores_results = connection.results_bucket_broker is not None

    def run_sync(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], in_process: bool) -> Awaitable[T]:  # noqa: FBT001 — the shape that dependencies call
        """Call a synchronous function in a thread or a process."""
        run = self.executors.run_in_process if in_process else self.executors.run_in_thread
        return run(fn, args, kwargs)


class Run:
    """One delivery on its way. Its task is cancelled only where nothing is half done: in the actor, and in pauses."""

    __slots__ = ("_args", "_interruptible", "_message", "_route", "_timed_out", "delivery", "envelope", "processor", "stopped", "task")

    envelope: Envelope

    def __init__(self, processor: Processor, delivery: Delivery) -> None:
        self.processor, self.delivery = processor, delivery
        self.task: asyncio.Task[Any] | None = None
        self.stopped = False
        self._interruptible = self._timed_out = False
        self._message: MessageDependency | None = None

    def stop(self) -> None:
        """Interrupt the actor and give the message back. A second call abandons a synchronous actor's thread."""
        self.stopped = True
        if self._interruptible and self.task is not None:
            self.task.cancel()

    async def process(self) -> Ended:
        """Take the delivery to its settlement, whatever it meets."""
        self.task = task = asyncio.current_task()
        try:
            verdict = await self._stored(await self._attempt())
        except asyncio.CancelledError:
            verdict = Verdict(Ended.REJECTED, REJECT)
            if not self.stopped:  # the loop is being torn down
                await self._settle(verdict)
                raise
            _forgive(task)
        ended = await self._settle(verdict)
        self.processor.counts[ended] += 1
        return ended

    async def _attempt(self) -> Verdict:
        delivery, processor = self.delivery, self.processor
        try:
            self.envelope = envelope = delivery.envelope
        except CodecError as error:
            logger.error("a message cannot be decoded: %s", error, extra={"ended": "invalid"})  # noqa: TRY400 — it says all
            death = Death(DeathReason.INVALID, processor.clock.now(), 0, _text(error))
            return Verdict(Ended.INVALID, Settlement("nack", death=death))
        route = processor.routes.get(envelope.key.topic)
        if route is None or self.stopped:
            return Verdict(Ended.REJECTED, REJECT)
        self._route = route
        if is_overdue(envelope, processor.clock.now()):
            late = RepidError(f"it was not started within its TTL of {envelope.parameters.ttl}")
            return self._final(Ended.EXPIRED, DeathReason.EXPIRED, late, _failure("Expired", time.time_ns()))
        if delivery.redelivered:
            try:
                await delivery.mark_started()
            except MessageBrokerError as error:
                logger.warning("%s is not run: %s", envelope.key.topic, error, extra=_who(envelope))
                return Verdict(Ended.LOST, REJECT)
        started = time.time_ns()
        try:
            if envelope.args_id is None:
                data = processor.payloads.loads(envelope.payload, envelope.content_type)
            else:
                data = await self._hold(processor.payloads.load_args, envelope)
            self._args = route.converter.convert_inputs(data)
        except (ConversionError, SerializationError, CodecError, CorruptBucketError) as error:
            return self._final(Ended.INVALID, DeathReason.INVALID, error, _failure(error, started))
        except Exception as error:  # noqa: BLE001 — a store that refuses, or a faulty plugin, fails this attempt alone
            return self._failed(error, started)
        if self.stopped:
            return Verdict(Ended.REJECTED, REJECT)
        return await self._actor(started)

    async def _actor(self, started: int) -> Verdict:
        """Run the actor inside its timeout, and judge how it ended."""
        processor, envelope, task = self.processor, self.envelope, self.task
        timer = asyncio.get_running_loop().call_later(envelope.parameters.timeout.total_seconds(), self._expire)
        self._interruptible = True
        value: Any = None
        try:
            if processor.middleware.watches_actor_run:
                call = processor.middleware.actor_run(self._call)
                value = await processor.middleware.watch("actor_run", {"envelope": envelope}, call, envelope)
            else:
                value = await self._call(envelope)
        except ActorEnded:
            self._interruptible = False
        except asyncio.CancelledError as error:
            self._interruptible = False
            if self.stopped or (not self._timed_out and task is not None and task.cancelling()):
                raise
            if self._timed_out:
                return self._failed(TimeoutError(f"the actor ran longer than its timeout of {envelope.parameters.timeout}"), started)
            return self._failed(RuntimeError("the actor was cancelled from within"), started, cause=error)
        except SystemExit as error:
            self._interruptible = False
            return self._failed(RuntimeError(f"the actor called sys.exit({error.code!r})"), started, cause=error)
        except Exception as error:  # noqa: BLE001 — an actor may raise what it likes
            self._interruptible = False
            return self._failed(error, started)
        finally:
            timer.cancel()
            self._interruptible = False
            if self._timed_out:
                _forgive(task)
        message = self._message
        if message is not None and (message.settlement is not None or message.result or message.exception):
            return self._own_verdict(message, started, None if message.settlement else (value,))
        try:
            value = self._route.converter.convert_outputs(value)
        except Exception as error:  # noqa: BLE001 — a faulty converter included
            return self._final(Ended.FAILED, DeathReason.FAILED, error, _failure(error, started))
        return self._succeeded(value, started)

    async def _call(self, envelope: Envelope) -> Any:
        actor, (args, kwargs) = self._route.actor, self._args
        if not actor.dependencies.names:
            return await self._invoke(actor, args, kwargs)
        processor = self.processor
        self._message = message = MessageDependency(self.delivery, processor.connection, actor.retry_policy)
        async with actor.dependencies.resolve({MessageDependency: message}, processor.run_sync) as injected:
            return await self._invoke(actor, args, {**kwargs, **injected})

    def _invoke(self, actor: Actor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Awaitable[Any]:
        if actor.is_async:
            result: Awaitable[Any] = actor.fn(*args, **kwargs)
            return result
        return self.processor.run_sync(actor.fn, args, kwargs, actor.run_in_process)

    def _expire(self) -> None:
        if self._interruptible and self.task is not None:
            self._timed_out = True
            self.task.cancel()

    def _succeeded(self, value: Any, started: int) -> Verdict:
        outcome = Outcome(success=True, started_when=started, finished_when=time.time_ns())
        again = self._again()
        return Verdict(Ended.SUCCEEDED, ACK if again is None else again, outcome, value)

    def _failed(self, error: Exception, started: int, cause: BaseException | None = None) -> Verdict:
        """A failed attempt: again after a delay while there are retries (W2), else the end."""
        error.__cause__ = cause or error.__cause__
        parameters, key = self.envelope.parameters, self.envelope.key
        attempt = parameters.tried + 1
        delay = self._retry_delay(attempt, error) if parameters.tried < parameters.retries else None
        if delay is None:
            logger.error("%s failed", key.topic, exc_info=error, extra=_who(self.envelope, attempt))
            return self._final(Ended.FAILED, DeathReason.FAILED, error, _failure(error, started))
        logger.warning("%s failed, and comes again in %s: %r", key.topic, delay, error, extra=_who(self.envelope, attempt))
        now = self.processor.clock.now()
        return Verdict(Ended.RETRIED, Settlement("requeue", rescheduled(self.envelope, now + delay, now, tried=attempt)))

    def _retry_delay(self, attempt: int, error: Exception) -> timedelta | None:
        try:
            delay = self._route.actor.retry_policy(attempt, error)
        except Exception:
            logger.exception("the retry policy of %s failed, so there is no retry", self.envelope.key.topic)
            return None
        if delay is None:
            return None
        return max(timedelta(0), min(delay, self.processor.connection.message_broker.limits.max_delay))

    def _final(self, ended: Ended, reason: DeathReason, error: Exception, outcome: Outcome) -> Verdict:
        """The end of this schedule: a recurring message comes again all the same, others die."""
        settlement = self._again()
        if settlement is None:
            attempts = self.envelope.parameters.tried + (ended is Ended.FAILED)
            settlement = Settlement("nack", death=Death(reason, self.processor.clock.now(), attempts, _text(error)))
        if ended is not Ended.FAILED:
            logger.warning("%s is %s: %s", self.envelope.key.topic, ended.value, error, extra=_who(self.envelope))
        return Verdict(ended, settlement, outcome)

    def _again(self) -> Settlement | None:
        """The next run of a recurring message (W7); to DEAD if there is none to be found here."""
        recurrence = self.envelope.parameters.recurrence
        if recurrence is None:
            return None
        now = self.processor.clock.now()
        try:
            due = next_due(recurrence, max(now, self.envelope.due or now))
        except (ValueError, ConfigError) as error:  # no such time, or this worker lacks cronsim or time zones
            logger.error("%s comes no more: %s", self.envelope.key.topic, error, extra=_who(self.envelope))  # noqa: TRY400
            return Settlement("nack", death=Death(DeathReason.INVALID, now, self.envelope.parameters.tried, _text(error)))
        return Settlement("requeue", rescheduled(self.envelope, due, now))

    def _own_verdict(self, message: MessageDependency, started: int, returned: tuple[Any] | None) -> Verdict:
        """What the actor settled, or the result that it set, or both."""
        result, exception = message.result or returned, message.exception
        settlement = message.settlement or self._again() or ACK
        kind = settlement.kind
        if kind == "nack" and message.settlement is not None:
            outcome = _failure(exception or "Nacked", started, settlement.death.error if settlement.death else None)
            return Verdict(Ended.NACKED, settlement, outcome)
        if exception is not None:
            return Verdict(Ended.SUCCEEDED if kind == "ack" else Ended.RETRIED, settlement, _failure(exception, started))
        if kind == "reject":
            return Verdict(Ended.REJECTED, settlement)
        if kind == "requeue" and message.settlement is not None and message.result is None:
            return Verdict(Ended.RETRIED, settlement)
        outcome = Outcome(success=True, started_when=started, finished_when=time.time_ns())
        try:
            value = self._route.converter.convert_outputs(result[0]) if result else None
        except Exception as error:  # noqa: BLE001 — a faulty converter included
            return Verdict(Ended.FAILED, settlement, _failure(error, started))
        return Verdict(Ended.SUCCEEDED, settlement, outcome, value)

    async def _stored(self, verdict: Verdict) -> Verdict:
        """Store the result, first of all (W1); one that the store refuses fails the job (W8)."""
        if verdict.outcome is None or not self.processor.stores_results:
            return verdict
        parameters, store = self.envelope.parameters, self.processor.payloads.store_result
        if parameters.result_id is None:
            return verdict
        try:
            await self._hold(store, parameters, verdict.outcome, verdict.value)
        except Exception as error:
            if not verdict.outcome.success:
                logger.exception("the failure of %s cannot be stored", self.envelope.key.topic, extra=_who(self.envelope))
                return verdict
            logger.error("the result of %s cannot be stored: %s", self.envelope.key.topic, error, extra=_who(self.envelope))  # noqa: TRY400
            failure = _failure(error, verdict.outcome.started_when)
            if verdict.settlement.kind == "ack":
                return await self._stored(self._final(Ended.FAILED, DeathReason.FAILED, error, failure))
            return await self._stored(evolve(verdict, ended=Ended.FAILED, outcome=failure, value=None))
        return verdict

    async def _hold(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await `call(*args)`, again and again while the bucket store is away, until the worker stops (W8)."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await call(*args)
            except BucketConnectionError as error:
                logger.warning("a bucket store is away, next try in %s: %s", pause, error, extra=_who(self.envelope))
            if self.stopped:
                raise asyncio.CancelledError
            self.processor.holding += 1
            self._interruptible = True
            try:
                await self.processor.clock.sleep(pause)
            finally:
                self._interruptible = False
                self.processor.holding -= 1
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _settle(self, verdict: Verdict) -> Ended:
        """Settle, then clean up and call back. Losing the delivery is logged, and no more."""
        try:
            await settle(self.delivery, verdict.settlement, self.processor.middleware)
        except DeliveryLostError as error:
            logger.warning("a delivery was lost, and may run elsewhere: %s", error, extra={"ended": "lost"})
            return Ended.LOST
        except Exception:
            logger.exception("a delivery could not be settled, and will come again", extra={"ended": "lost"})
            return Ended.LOST
        if verdict.settlement.kind == "ack":
            await self._drop_args()
        if self._message is not None:
            for callback in self._message.callbacks:
                await self._call_back(callback)
        return verdict.ended

    async def _drop_args(self) -> None:
        envelope = self.envelope
        if not envelope.args_owned or envelope.args_id is None:
            return
        try:
            await self.processor.payloads.delete_args(envelope.args_id)
        except Exception:
            logger.exception("args bucket %s is left behind", envelope.args_id, extra=_who(envelope))

    async def _call_back(self, callback: Callable[[], Any]) -> None:
        try:
            if inspect.iscoroutinefunction(callback):
                await callback()
            else:
                await self.processor.executors.run_in_thread(callback, (), {})
        except Exception:
            logger.exception("a callback of %s failed", self.envelope.key.topic, extra=_who(self.envelope))


def _forgive(task: asyncio.Task[Any] | None) -> None:
    """Take back the cancellations that we asked for, so that the task can go on."""
    while task is not None and task.cancelling():
        task.uncancel()


def _failure(error: Exception | str, started: int, text: str | None = None) -> Outcome:
    name = error if isinstance(error, str) else type(error).__name__
    return Outcome(
        success=False,
        started_when=started,
        finished_when=time.time_ns(),
        exception=name,
        traceback=_text(error) if isinstance(error, Exception) else text,
    )


def _text(error: Exception) -> str:
    """The traceback from the user's code on, its end if it is long."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith("repid_core."):
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(error), error, tb))[-_TEXT:]


def _who(envelope: Envelope, attempt: int | None = None) -> dict[str, Any]:
    key = envelope.key
    return {"job": key.id_, "actor": key.topic, "queue": key.queue, "attempt": attempt}
