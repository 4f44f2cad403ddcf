"""What was enqueued, compared with what a test expects."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import field, frozen

from repid_core.abc import Serializer
from repid_core.codec import decode_bucket
from repid_core.connection import Connection
from repid_core.data import Envelope, Priority
from repid_core.errors import RepidError, SerializationError
from repid_core.router import Actor

_SHOWN = 5  # jobs in the text of a failed assertion
_WIDTH = 100  # characters of a value there


@frozen
class EnqueuedJob:
    """A job that was enqueued.

    Attributes:
        envelope: The message.
        args: Its arguments as plain data: after the serializer, before the converter.
        enqueued_at: When, on the clock of the test.
        lag: How far that clock was behind the real time that had passed in the test.
    """

    envelope: Envelope
    args: Any
    enqueued_at: datetime
    lag: timedelta = field(default=timedelta(0), repr=False)

    @property
    def name(self) -> str:
        """The actor's name."""
        return self.envelope.key.topic

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.envelope.key.queue

    @property
    def id_(self) -> str:
        """The job's id."""
        return self.envelope.key.id_

    @property
    def priority(self) -> Priority:
        """Which goes first."""
        return self.envelope.key.priority

    @property
    def due(self) -> datetime | None:
        """Not before this; None at once."""
        return self.envelope.due

    @property
    def headers(self) -> Mapping[str, str]:
        """Text by name."""
        return self.envelope.headers

    def __str__(self) -> str:
        parts = [f"queue={self.queue!r}", f"args={short(self.args)}"]
        if self.due is not None:
            parts.append(f"due in {timedelta(seconds=round((self.due - self.enqueued_at).total_seconds()))}")
        return f"{self.name}  {'  '.join(parts)}"


@frozen
class Wanted:
    """What a test expects of a job: the name, and what it gave of the rest.

    Args:
        name: The actor's name.
        criteria: By the name of an attribute of `EnqueuedJob`. `due` may be a timedelta from the enqueueing on; `headers`
            are those that matter.
        actor: The actor, if it is known; it gives arguments by position their names.
        serializer: What the arguments went through.
    """

    name: str
    criteria: Mapping[str, Any]
    actor: Actor | None
    serializer: Serializer

    def __str__(self) -> str:
        given = "".join(f"\n    {name}={short(value)}" for name, value in self.criteria.items())
        return f"{self.name!r}" + (f" with{given}" if given else "")

    def differences(self, job: EnqueuedJob) -> list[str]:
        """A line for each difference; none if the job is one of those."""
        lines = [] if job.name == self.name else [f"name: {job.name!r}, not {self.name!r}"]
        for name, value in self.criteria.items():
            lines += getattr(self, f"_{name}", self._other)(name, value, job)
        return lines

    def closest(self, jobs: Sequence[EnqueuedJob]) -> list[EnqueuedJob]:
        """The jobs, those that differ least first."""
        text = repr(self.criteria.get("args"))

        def distance(job: EnqueuedJob) -> tuple[bool, int, float]:
            alike = difflib.SequenceMatcher(None, text, repr(job.args)).quick_ratio()
            return job.name != self.name, len(self.differences(job)), -alike

        return sorted(jobs, key=distance)

    def explain(self, jobs: Sequence[EnqueuedJob]) -> str:
        """What was enqueued instead, and in what it differs."""
        if not jobs:
            return "nothing was enqueued"
        lines = [f"{len(jobs)} job{'s were' if len(jobs) > 1 else ' was'} enqueued, the nearest first:"]
        for number, job in enumerate(self.closest(jobs)[:_SHOWN], 1):
            lines.append(f"  {number}. {job}")
            if job.name == self.name:
                lines += [f"       {line}" for line in self.differences(job)]
        if len(jobs) > _SHOWN:
            lines.append(f"  … and {len(jobs) - _SHOWN} more")
        return "\n".join(lines)

    def _args(self, name: str, value: Any, job: EnqueuedJob) -> Iterator[str]:
        yield from _compare("args", self._named(job.args), self._named(_plain(value, self.serializer)))

    def _due(self, name: str, value: datetime | timedelta | None, job: EnqueuedJob) -> Iterator[str]:
        due = job.enqueued_at + value if isinstance(value, timedelta) else value
        if isinstance(value, timedelta) and due and job.due and due <= job.due <= due + job.lag:
            return  # the application added it to the real time
        if job.due != due:
            yield f"due: {job.due and job.due.isoformat()}, wanted {due and due.isoformat()}"

    def _headers(self, name: str, value: Mapping[str, str], job: EnqueuedJob) -> Iterator[str]:
        yield from _compare("headers", {key: text for key, text in job.headers.items() if key in value}, value)

    def _other(self, name: str, value: Any, job: EnqueuedJob) -> Iterator[str]:
        yield from _compare(name, getattr(job, name), value)

    def _named(self, args: Any) -> Any:
        """Arguments by position get the actor's names, so that it does not matter how they were passed."""
        if args is None:
            return {}
        if self.actor is None or isinstance(args, Mapping):
            return args
        given = args if isinstance(args, list) else [args]  # anything else is the only argument
        names = [
            name
            for name, parameter in inspect.signature(self.actor.fn).parameters.items()
            if name not in self.actor.dependencies.names and parameter.kind <= parameter.POSITIONAL_OR_KEYWORD
        ]
        return dict(zip(names, given, strict=False)) if len(given) <= len(names) else args


async def read_args(connection: Connection, envelope: Envelope) -> Any:
    """A message's arguments, wherever they are, without a middleware hearing of it; None if there are none."""
    payloads = connection.payloads
    try:
        if envelope.args_id is None:
            return payloads.loads(envelope.payload, envelope.content_type)
        broker = payloads.args()
        data = await broker.get_bucket(envelope.args_id)
        if data is None:
            return f"(bucket {envelope.args_id})"  # of a job that has not run yet: the two are chained
        bucket = decode_bucket(data, envelope.args_id, broker)
        return payloads.loads(bucket.payload, bucket.content_type)
    except RepidError as error:
        return f"(unreadable: {error})"


def short(value: Any) -> str:
    """A value in the text of a failed assertion."""
    text = repr(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _plain(value: Any, serializer: Serializer) -> Any:
    """As it comes out of the message; but what cannot go in, such as `unittest.mock.ANY`, stays what it is."""
    try:
        return serializer.loads(serializer.dumps(value))
    except SerializationError:
        if isinstance(value, Mapping):
            return {key: _plain(item, serializer) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [_plain(item, serializer) for item in value]
        return value


def _compare(path: str, found: Any, wanted: Any) -> Iterator[str]:
    """A line for each value that differs, with its path."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            where = f"{path}[{key!r}]"
            if key not in found:
                yield f"{where}: missing, wanted {short(wanted[key])}"
            elif key not in wanted:
                yield f"{where}: {short(found[key])}, not wanted"
            else:
                yield from _compare(where, found[key], wanted[key])
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for index, (item, other) in enumerate(zip(found, wanted, strict=True)):
            yield from _compare(f"{path}[{index}]", item, other)
    elif not (wanted == found or found == wanted):
        yield f"{path}: {short(found)}, wanted {short(wanted)}"
