"""The values that travel between producers, brokers and workers: frozen, comparable, and free of behaviour."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal

from attrs import field, frozen

_ID = re.compile(r"(?!\.+\Z)[A-Za-z0-9._:-]{1,256}\Z")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}\Z")
_EMPTY: Mapping[str, Any] = MappingProxyType({})

#: What `enqueue` does if the id is live: raise `DuplicateJobError`, keep the job that is there, or replace it.
OnDuplicate = Literal["raise", "keep", "replace"]

#: An int of bytes. A settings field of this type may be written "64 KiB" in configuration; see `repid_core.settings`.
Size = Annotated[int, "bytes"]


def check_id(id_: object, what: str = "id") -> str:
    """Return a legal message or bucket id, or raise `ValueError` naming it."""
    if isinstance(id_, str) and _ID.match(id_):
        return id_
    raise ValueError(
        f"{what} {id_!r} is not valid: use 1 to 256 of ASCII letters, digits, '.', '_', ':' and '-', and not dots alone",
    )


def check_name(name: object, what: str) -> str:
    """Return a legal queue or actor name, or raise `ValueError` naming it."""
    if isinstance(name, str) and _NAME.match(name):
        return name
    raise ValueError(
        f"{what} {name!r} is not valid: start with an ASCII letter or '_', and go on with up to 127 of "
        "letters, digits, '_', '-' and '.'",
    )


class Priority(IntEnum):
    """Which of the waiting messages goes first; higher goes before lower."""

    LOW = 0
    MEDIUM = 5
    HIGH = 9


class MessageCategory(Enum):
    """Where in a queue a message is: NORMAL (ready), DELAYED (not due yet) or DEAD (kept for inspection and redrive)."""

    NORMAL = "normal"
    DELAYED = "delayed"
    DEAD = "dead"


class Capability(Enum):
    """What a message broker may promise beyond the minimum; the letters are those of the contract."""

    DELAY = "delay"  #: messages with a due time in the future (M7)
    PRIORITY = "priority"  #: HIGH before MEDIUM before LOW (M9)
    TOPICS = "topics"  #: foreign topics pass at once and in order (M10)
    UNIQUE = "unique"  #: one live message per id and queue (M14)
    CANCEL = "cancel"  #: removal of ready and delayed messages by id (M15)
    BROWSE = "browse"  #: listing without disturbing (M12)
    DELAYED_ACCESS = "delayed_access"  #: consuming messages that are not due (M12)
    ATOMIC_REQUEUE = "atomic_requeue"  #: requeue and nack happen wholly or not at all (M6)
    POISON = "poison"  #: a limit on how many workers a message may kill (M13)


class Enqueued(Enum):
    """What became of an enqueued message."""

    NEW = "new"
    REPLACED = "replaced"  #: it took the place of a live one with its id
    KEPT = "kept"  #: a live one with its id was kept, and this one dropped


class DeathReason(Enum):
    """Why a message is dead."""

    FAILED = "failed"  #: the last attempt failed
    EXPIRED = "expired"  #: its TTL had passed
    POISON = "poison"  #: workers died while they ran it
    NACKED = "nacked"  #: the actor, or whoever held it, said so
    INVALID = "invalid"  #: it cannot be decoded, or its arguments do not fit


@frozen
class Death:
    """How a message died.

    Attributes:
        reason: Why.
        at: When, aware.
        attempts: How many times it was tried, the last one included.
        error: The error's text; it may hold a traceback.
    """

    reason: DeathReason
    at: datetime
    attempts: int = 0
    error: str | None = None


@frozen
class Limits:
    """What a backend keeps; the conformance suite measures it, and the documentation prints it.

    Attributes:
        delay_step: Due times are rounded up to a multiple of this.
        lateness: At most this long after its due time is a delayed message delivered, on an idle machine.
        wake_up: At most this long after its enqueue does a message reach an idle consumer.
        lease: A silent worker's messages go to another within twice this.
        max_delay: The longest delay.
        max_payload: The largest payload in bytes; None for no limit.
        max_deliveries: With `POISON`, how many workers a message may kill.
    """

    delay_step: timedelta = timedelta(milliseconds=1)
    lateness: timedelta = timedelta(milliseconds=50)
    wake_up: timedelta = timedelta(milliseconds=5)
    lease: timedelta = timedelta(seconds=15)
    max_delay: timedelta = timedelta(days=365)
    max_payload: int | None = None
    max_deliveries: int = 5


@frozen
class RoutingKey:
    """Which message, for which actor, in which queue.

    Attributes:
        id_: Unique among the live messages of the queue, where the broker declares `UNIQUE`.
        topic: The actor's name.
        queue: The queue's name.
        priority: See `Priority`.
    """

    id_: str
    topic: str
    queue: str = "default"
    priority: Priority = Priority.MEDIUM


@frozen
class Recurrence:
    """When a recurring message comes again: an interval or a cron line, never both.

    Attributes:
        interval: The distance between two points of the grid.
        cron: A cron line.
        timezone: The IANA zone that the cron line is read in; None is UTC.
        anchor: A point of the interval's grid, aware.
    """

    interval: timedelta | None = None
    cron: str | None = None
    timezone: str | None = None
    anchor: datetime = datetime(1970, 1, 1, tzinfo=UTC)


@frozen
class Parameters:
    """How a message is to be run.

    Attributes:
        timestamp: When the job was enqueued first, aware.
        timeout: The longest run, dependencies included.
        retries: How many attempts may follow a failed first one.
        tried: How many attempts have failed since the last schedule.
        result_id: The bucket that takes the result; None stores no result.
        result_ttl: How long the result is kept; None for ever.
        ttl: How long after it is due the message is still worth running; None for ever.
        recurrence: When it comes again; None runs it once.
    """

    timestamp: datetime
    timeout: timedelta = timedelta(minutes=10)
    retries: int = 0
    tried: int = 0
    result_id: str | None = None
    result_ttl: timedelta | None = None
    ttl: timedelta | None = None
    recurrence: Recurrence | None = None


@frozen
class Envelope:
    """A message as brokers carry it.

    Attributes:
        key: Where it goes.
        parameters: How it is run.
        payload: The serialized arguments; empty if they are in a bucket.
        content_type: What the payload is.
        args_id: The bucket that holds the arguments, if they are not in the payload.
        args_owned: Whether that bucket is this message's own, to be deleted with it.
        due: Not before this, aware; None is at once.
        expires_at: Not run after this, aware; None for recurring messages and those without a TTL.
        headers: Text by name, for middlewares.
        on_duplicate: What to do if the id is live; not on the wire.
        extra: Fields of the wire that this version does not know; they survive requeue.
    """

    key: RoutingKey
    parameters: Parameters
    payload: bytes = field(default=b"", repr=False)
    content_type: str = "application/json"
    args_id: str | None = None
    args_owned: bool = False
    due: datetime | None = None
    expires_at: datetime | None = None
    headers: Mapping[str, str] = _EMPTY
    on_duplicate: OnDuplicate = "raise"
    extra: Mapping[str, Any] = _EMPTY


@frozen
class Browsed:
    """A message seen by `browse`: nothing holds it.

    Attributes:
        cursor: Pass it as `after` to go on behind this message.
        envelope: The message.
        death: How it died, if it is dead.
    """

    cursor: str
    envelope: Envelope
    death: Death | None = None


@frozen
class QueueStats:
    """How many messages a queue holds; None where the server cannot tell."""

    ready: int | None
    in_progress: int | None
    delayed: int | None
    dead: int | None


@frozen
class Receipt:
    """What `enqueue` gives back: the message's id, and whether it is new, replaced another, or was dropped for one."""

    id_: str
    outcome: Enqueued = Enqueued.NEW


@frozen
class Outcome:
    """How a run ended.

    Attributes:
        success: Whether it did what it was to do.
        started_when: Nanoseconds since the epoch.
        finished_when: Nanoseconds since the epoch.
        exception: The exception's type name, if it failed.
        traceback: Its traceback, if there is one.
    """

    success: bool
    started_when: int
    finished_when: int
    exception: str | None = None
    traceback: str | None = field(default=None, repr=False)


@frozen
class Bucket:
    """Arguments, or a result if it has an outcome, as bucket brokers store them (see `codec`)."""

    payload: bytes = field(repr=False)
    content_type: str
    timestamp: datetime
    expires_at: datetime | None = None
    outcome: Outcome | None = None


@frozen
class ResultBucket:
    """A result, decoded.

    Attributes:
        data: What the actor returned, as plain data; None if it failed.
        success: Whether it returned.
        exception: The exception's type name, if it failed.
        traceback: Its traceback, if there is one.
        started_when: Nanoseconds since the epoch.
        finished_when: Nanoseconds since the epoch.
        timestamp: When the bucket was written, aware.
        expires_at: When it will be gone, aware; None never.
    """

    data: Any
    success: bool
    started_when: int
    finished_when: int
    exception: str | None
    traceback: str | None = field(repr=False)
    timestamp: datetime
    expires_at: datetime | None

    @property
    def duration(self) -> timedelta:
        """How long the run took, to the microsecond."""
        return timedelta(microseconds=(self.finished_when - self.started_when) // 1000)
