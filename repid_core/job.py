"""A job: what a producer holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from repid_core.abc import Converter
from repid_core.app import current_connection
from repid_core.connection import Connection, Draft
from repid_core.data import (
    Capability,
    Envelope,
    OnDuplicate,
    Outcome,
    Parameters,
    Priority,
    Receipt,
    ResultBucket,
    RoutingKey,
    check_id,
    check_name,
)
from repid_core.defaults import Config
from repid_core.errors import InvalidJobError, JobFailedError, NoConnectionError, UnsupportedFeatureError, UsageError
from repid_core.plugins import Kind, plugins
from repid_core.queue import Queue
from repid_core.router import actor_of
from repid_core.schedule import aware, check_cron, first_due, is_overdue

P = ParamSpec("P")
T = TypeVar("T")

_SECOND, _MILLISECOND, _CENTURY = timedelta(seconds=1), timedelta(milliseconds=1), timedelta(days=36525)
_MOST_RETRIES = 1 << 31  # as on the wire
_PRIORITIES = tuple(Priority)
_VARIANTS = "89ab"


_random: list[str] = []  # 32 hexadecimal digits each, drawn 256 at a time


def new_id() -> str:
    """A random UUID (version 4, RFC 9562) as text; `uuid.uuid4` takes five times as long."""
    try:
        digits = _random.pop()
    except IndexError:
        drawn = os.urandom(16 * 256).hex()
        digits, *rest = (drawn[start : start + 32] for start in range(0, len(drawn), 32))
        _random.extend(rest)
    variant = _VARIANTS[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.clear)  # a child draws its own


class Job(Generic[T]):
    """Something to be done by the actor of this name. Making one sends nothing and needs no connection.

    Args:
        name: The actor's name.
        queue: The queue, or its name.
        priority: Which of the waiting jobs goes first.
        id_: Unique in its queue while it waits or runs, where the broker declares `UNIQUE`; by default a new UUID4 at
            every `enqueue`.
        deferred_until: Not before this time; a naive one is local time.
        deferred_by: Every so often, first after this long, or at `deferred_until`; at least one second.
        cron: Whenever this line says (see `repid_core.schedule`), from `deferred_until` on if that is given.
        timezone: The IANA name of the zone in which `cron` is read; by default UTC.
        retries: How many times a failed attempt is repeated.
        timeout: The longest run, dependencies included.
        ttl: Once it is due, it is not started after so long; by default it waits for ever.
        args_id: The bucket that holds the arguments, or is to hold `args`. It may be another job's `result_id`.
        args_ttl: How long that bucket is kept; by default for ever.
        args: The arguments: a mapping, attrs instance or dataclass by name, a list by position, None for none, anything
            else as the only one.
        use_args_bucketer: True puts `args` in a bucket, False in the message; by default they go to a bucket if there is
            an args bucket broker and they reach the connection's `args_bucket_threshold`.
        result_id: The bucket that takes the result; by default a UUID4.
        result_ttl: How long it is kept; None for ever.
        store_result: Whether there is a result; by default if the connection has a results bucket broker.
        headers: Text by name, for middlewares.
        on_duplicate: If the id is live: "raise", "keep" that one, or "replace" it.
        connection: By default the one in reach at first use.

    Raises:
        InvalidJobError: A `ValueError` that names the argument.
    """

    def __init__(  # noqa: C901, PLR0912, PLR0915 — one check for each argument
        self: Job[Any],
        name: str,
        queue: str | Queue = "default",
        priority: Priority = Priority.MEDIUM,
        id_: str | None = None,
        deferred_until: datetime | None = None,
        deferred_by: timedelta | None = None,
        cron: str | None = None,
        timezone: str | None = None,
        retries: int = 0,
        timeout: timedelta = timedelta(minutes=10),
        ttl: timedelta | None = None,
        args_id: str | None = None,
        args_ttl: timedelta | None = None,
        args: Any = None,
        use_args_bucketer: bool | None = None,
        result_id: str | None = None,
        result_ttl: timedelta | None = timedelta(days=1),
        store_result: bool | None = None,
        headers: Mapping[str, str] | None = None,
        on_duplicate: OnDuplicate = "raise",
        connection: Connection | None = None,
    ) -> None:
        try:
            self.name = check_name(name, "actor name")
            self._queue = check_name(queue.name if isinstance(queue, Queue) else queue, "queue name")
            if type(priority) is not Priority:
                if priority not in _PRIORITIES:
                    raise InvalidJobError(f"priority={priority!r}: choose Priority.LOW, MEDIUM or HIGH")
                priority = Priority(priority)
            self.priority = priority
            if id_ is not None:
                check_id(id_, "id_")
            if args_id is not None:
                check_id(args_id, "args_id")
            if result_id is not None:
                check_id(result_id, "result_id")
            if cron is not None:
                check_cron(cron, timezone)
            if isinstance(deferred_until, datetime):
                if aware(deferred_until).year >= 4000:  # the wire has its end, and so have datetimes
                    raise InvalidJobError(f"deferred_until={deferred_until!r}: choose a time before the year 4000")
            elif deferred_until is not None:
                raise InvalidJobError(f"deferred_until={deferred_until!r}: give a datetime")
        except ValueError as error:
            raise InvalidJobError(str(error)) from error
        if deferred_by is not None and cron is not None:
            raise InvalidJobError(f"deferred_by={deferred_by!r} and cron={cron!r}: a job recurs by one of them")
        if timezone is not None and cron is None:
            raise InvalidJobError(f"timezone={timezone!r} is for cron lines, and there is none")
        _check_duration("timeout", timeout, _MILLISECOND)
        if deferred_by is not None:
            _check_duration("deferred_by", deferred_by, _SECOND)
        if ttl is not None:
            _check_duration("ttl", ttl, _MILLISECOND)
        if args_ttl is not None:
            _check_duration("args_ttl", args_ttl, _SECOND)
        if result_ttl is not None:
            _check_duration("result_ttl", result_ttl, _SECOND)
        if type(retries) is not int or not 0 <= retries < _MOST_RETRIES:
            raise InvalidJobError(f"retries={retries!r}: give a whole number, 0 or more, and less than {_MOST_RETRIES:,}")
        if args_id is not None:
            if args_id == result_id:
                raise InvalidJobError(f"args_id and result_id are both {args_id!r}: the result would overwrite the arguments")
            if use_args_bucketer is False:
                raise InvalidJobError(f"args_id={args_id!r} asks for an args bucket, and use_args_bucketer=False for none")
        if headers is not None and not (
            isinstance(headers, Mapping) and all(isinstance(text, str) for pair in headers.items() for text in pair)
        ):
            raise InvalidJobError(f"headers={headers!r}: give a mapping whose names and values are text")
        if on_duplicate not in ("raise", "keep", "replace"):
            raise InvalidJobError(f"on_duplicate={on_duplicate!r}: choose 'raise', 'keep' or 'replace'")
        if on_duplicate != "raise" and id_ is None:
            raise InvalidJobError(f"on_duplicate={on_duplicate!r} needs an id_ of your own: a generated one is always new")
        if connection is not None and not isinstance(connection, Connection):
            raise InvalidJobError(f"connection={connection!r}: give a Connection")
        self.id_ = id_
        self.deferred_until, self.deferred_by, self.cron, self.timezone = deferred_until, deferred_by, cron, timezone
        self.retries, self.timeout, self.ttl = retries, timeout, ttl
        self.args, self.args_ttl, self.use_args_bucketer = args, args_ttl, use_args_bucketer
        self._args_id, self._new_args_id = args_id, args_id
        self._result_id, self.result_ttl, self.store_result = result_id, result_ttl, store_result
        self.headers = dict(headers or {})
        self.on_duplicate: OnDuplicate = on_duplicate
        self._connection = connection
        self._sent: Envelope | None = None
        self._converter: Converter | None = None

    @overload
    @classmethod
    def of(cls, fn: Callable[P, Coroutine[Any, Any, T]], /, **options: Any) -> Callable[P, Job[T]]: ...

    @overload
    @classmethod
    def of(cls, fn: Callable[P, T], /, **options: Any) -> Callable[P, Job[T]]: ...

    @classmethod
    def of(cls, fn: Callable[P, Any], /, **options: Any) -> Callable[P, Job[Any]]:
        """Make jobs by calling, with the actor's own signature: `Job.of(greet, retries=3)(user_id=1, name="Alex")`.

        Type checkers check the call; parameters that are injected are left out. The arguments are converted when the
        job is made, and `wait()` gives the result in the actor's return type.

        Args:
            fn: A function that is an actor of some router.
            options: Those of `Job`, but for `args`. `name` picks one of several actors made of one function.

        Raises:
            InvalidActorError: The function is no actor.
            ConversionError: Raised by the call; lists what does not fit.
        """
        actor = actor_of(fn, options.pop("name", None))
        options.setdefault("queue", actor.queue)
        if "args" in options:
            raise InvalidJobError("Job.of takes the arguments in its second call: Job.of(fn, …)(user_id=1)")

        cls(actor.name, **options)  # complains about wrong options here and now
        converters: dict[type[Converter], Converter] = {}

        @wraps(fn)
        def make(*args: P.args, **kwargs: P.kwargs) -> Job[Any]:
            default = _default_converter(options.get("connection"))
            converter = converters.get(default) or converters.setdefault(default, actor.converter(default))
            job: Job[Any] = cls(actor.name, args=converter.dump_inputs(args, kwargs) or None, **options)
            job._converter = converter
            return job

        return make

    def __repr__(self) -> str:
        return f"Job({self.name!r}, queue={self._queue!r}, id_={self.id_ or (self._sent.key.id_ if self._sent else None)!r})"

    @property
    def queue(self) -> Queue:
        """The queue that it goes to."""
        return Queue(self._queue, connection=self._connection)

    @property
    def args_id(self) -> str:
        """The bucket of its arguments, if they go to one. A generated id is used for one `enqueue` only."""
        if self._new_args_id is None:
            self._new_args_id = new_id()
        return self._new_args_id

    @property
    def result_id(self) -> str:
        """The bucket of its result."""
        if self._result_id is None:
            self._result_id = new_id()
        return self._result_id

    @property
    def is_unique(self) -> bool:
        """Whether it has an id of its own."""
        return self.id_ is not None

    @property
    def is_deferred(self) -> bool:
        """Whether it waits for a time, once or again and again."""
        return self.deferred_until is not None or self.deferred_by is not None or self.cron is not None

    @property
    def is_overdue(self) -> bool:
        """Whether it was enqueued, and its TTL has passed since it was due."""
        return self._sent is not None and is_overdue(self._sent, self._reach().clock.now())

    async def enqueue(self) -> Receipt:
        """Send it. When this returns, the broker has it, as durably as the broker is configured.

        Returns:
            Its id, and whether it is new, took another's place, or was dropped for another.

        Raises:
            NoConnectionError, NotConnectedError, WrongEventLoopError: Nothing was sent.
            InvalidJobError, SerializationError, UnsupportedFeatureError, PayloadTooLargeError: Nothing was stored or sent.
            DuplicateJobError: The id is live.
            EnqueueError, BrokerConnectionError: The broker refused it or is away.
        """
        return await self._reach().enqueue(self)

    def draft(self, connection: Connection) -> Draft:
        """The message, and the bucket that goes before it. Stores and sends nothing."""
        now = connection.clock.now()
        serializer = connection.payloads.serializer
        due = recurrence = None
        if self.is_deferred:
            due, recurrence = first_due(
                now=now,
                deferred_until=self.deferred_until,
                deferred_by=self.deferred_by,
                cron=self.cron,
                timezone=self.timezone,
            )
        payload = b"" if self.args is None else serializer.dumps(self.args)
        args_id, bucket = self._args_id, None
        if self._wants_bucket(connection, payload):
            args_id = self.args_id
            bucket = connection.payloads.args_bucket(args_id, payload, self.args_ttl)
            payload = b""
            self._new_args_id = self._args_id
        stores = connection.results_bucket_broker is not None if self.store_result is None else self.store_result
        if stores:
            connection.payloads.results()
        if args_id is not None:
            connection.payloads.args()
        result_id, result_ttl = (self.result_id, self.result_ttl) if stores else (None, None)
        parameters = Parameters(now, self.timeout, self.retries, 0, result_id, result_ttl, self.ttl, recurrence)
        envelope = Envelope(  # by position, as above: by name takes a quarter longer
            RoutingKey(self.id_ or new_id(), self.name, self._queue, self.priority),
            parameters,
            payload,
            serializer.content_type,
            args_id,
            bucket is not None and self._args_id is None,
            due,
            None if self.ttl is None or recurrence is not None else (due or now) + self.ttl,
            self.headers,
            self.on_duplicate,
        )
        connection.check_envelope(envelope)
        self._sent = envelope
        return Draft(envelope, bucket)

    @property
    def result(self) -> Coroutine[Any, Any, ResultBucket | None]:
        """Await it for the result's bucket, or None while there is none."""
        return self._results().payloads.get_result(self.result_id)

    async def wait(self, timeout: timedelta | float | None = None) -> T:
        """Wait for the result and give its data, in the actor's return type if the job was made by `Job.of`.

        Args:
            timeout: The longest wait, as a timedelta or in seconds; None for ever.

        Raises:
            JobFailedError: It failed; the error holds the bucket, with the remote traceback.
            ResultTimeoutError: No result came in time.
        """
        try:
            limit = timedelta(seconds=timeout) if isinstance(timeout, int | float) else timeout
        except (OverflowError, ValueError):
            limit = timedelta.max
        if limit is not None and not (isinstance(limit, timedelta) and limit <= _CENTURY):
            raise UsageError(f"wait(timeout={timeout!r}): give a timedelta or seconds, or None for ever")
        bucket = await self._results().payloads.wait_result(self.result_id, limit)
        if not bucket.success:
            raise JobFailedError(bucket)
        return cast("T", bucket.data if self._converter is None else self._converter.load_outputs(bucket.data))

    async def cancel(self) -> bool:
        """Take it out of its queue unless it runs or is done; say whether it was there.

        A job that was cancelled has a failed result, exception "Cancelled", so that nobody waits for it in vain.

        Raises:
            UnsupportedFeatureError: The broker cannot.
            UsageError: It has no id of its own and was never enqueued.
        """
        connection = self._reach()
        connection.check()
        id_ = self.id_ or (None if self._sent is None else self._sent.key.id_)
        if id_ is None:
            raise UsageError(f"{self!r} was not enqueued and has no id_ of its own: there is nothing to cancel")
        if Capability.CANCEL not in connection.message_broker.capabilities:
            raise UnsupportedFeatureError(Capability.CANCEL, connection.message_broker)
        if not await connection.message_broker.cancel(self._queue, id_):
            return False
        now, sent = connection.clock.now(), self._sent
        if sent is not None:
            parameters = sent.parameters
        else:  # another process enqueued it, and may have given the result's id
            parameters = Parameters(
                now, result_id=None if self.store_result is False else self._result_id, result_ttl=self.result_ttl
            )
        ns = connection.clock.time_ns()
        outcome = Outcome(success=False, started_when=ns, finished_when=ns, exception="Cancelled")
        await connection.payloads.store_result(parameters, outcome)
        if sent is not None and sent.args_owned and sent.args_id is not None:
            await connection.payloads.delete_args(sent.args_id)
        return True

    def _wants_bucket(self, connection: Connection, payload: bytes) -> bool:
        if self.args is None:
            return False
        if self._args_id is not None or self.use_args_bucketer is not None:
            return self._args_id is not None or self.use_args_bucketer is True
        return connection.args_bucket_broker is not None and len(payload) >= connection.args_bucket_threshold

    def _reach(self) -> Connection:
        return self._connection or current_connection()

    def _results(self) -> Connection:
        connection = self._reach()
        connection.check()
        connection.payloads.results()
        if self.store_result is False:
            raise UsageError(f"{self!r} stores no result: leave out store_result=False")
        return connection


def _default_converter(connection: Connection | None) -> type[Converter]:
    try:
        return (connection or current_connection()).converter
    except NoConnectionError:
        chosen = Config.CONVERTER
        return plugins().build(Kind.CONVERTER, chosen) if isinstance(chosen, str) else chosen


def _check_duration(what: str, duration: object, least: timedelta) -> None:
    if not isinstance(duration, timedelta):
        raise InvalidJobError(f"{what}={duration!r}: give a timedelta, such as timedelta(seconds=30)")
    if not least <= duration <= _CENTURY:
        raise InvalidJobError(f"{what}={duration!r}: give at least {least} and at most a hundred years")
